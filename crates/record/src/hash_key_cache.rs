//! Remembering where partition keys fall, because MD5 is most of the work per small record.

use std::fmt;

use bytes::BufMut;

use crate::{HashKey, Record};

/// Longer keys are hashed each time.
const MAX_KEY_BYTES: usize = 64;
const HASH_KEY_BYTES: usize = size_of::<u128>();
/// Hash key, length of the key (0: nothing here), key, and a rest up to half a cache line.
const SLOT_BYTES: usize = 96;

/// A bounded memory of partition keys and their hash keys.
///
/// A key may lie in either of two slots. If both are taken it displaces the key in one of them,
/// which goes to its own other slot when it comes again: soon each key has a slot, as long as no
/// more than half of them are wanted. Takes 96 bytes per slot, but not before they are used. Whatever keys come, the
/// worst it can do is to hash each of them.
#[derive(Clone)]
pub struct HashKeyCache {
    /// Plain zeroes at first, so that the pages of unused slots are never touched.
    slots: Vec<u8>,
    /// A power of two.
    slot_count: usize,
    /// Which of two taken slots is given up next.
    displace_first: bool,
}

impl HashKeyCache {
    /// Remembers `keys` keys, at most 65,536.
    pub fn new(keys: usize) -> Self {
        // Twice the slots, so that no more than half of them are wanted.
        let slot_count = (2 * keys.clamp(1, 1 << 16)).next_power_of_two();
        Self {
            slots: Vec::new(),
            slot_count,
            displace_first: true,
        }
    }

    /// What [`Record::hash_key`] says.
    #[inline]
    pub fn hash_key(&mut self, record: &Record) -> HashKey {
        record
            .explicit_hash_key
            .unwrap_or_else(|| self.of(&record.partition_key))
    }

    /// What [`HashKey::of`] says.
    #[inline]
    pub fn of(&mut self, partition_key: &[u8]) -> HashKey {
        let places = self.places(partition_key);
        places
            .and_then(|(first, second)| {
                let first = Slot::read(self.slots.get(first..)?)?;
                first
                    .hash_key_of(partition_key)
                    .or_else(|| Slot::read(self.slots.get(second..)?)?.hash_key_of(partition_key))
            })
            .unwrap_or_else(|| self.remember(partition_key, places))
    }

    /// Where a key may lie in `slots`; nowhere if it is too long.
    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the lower bits are what is wanted"
    )]
    fn places(&self, key: &[u8]) -> Option<(usize, usize)> {
        let folded = fold(key);
        let place = |half: u64| (half as usize & (self.slot_count - 1)) * SLOT_BYTES;
        let fits = (1..=MAX_KEY_BYTES).contains(&key.len());
        fits.then(|| (place(folded), place(folded >> 32)))
    }

    #[cold]
    fn remember(&mut self, key: &[u8], places: Option<(usize, usize)>) -> HashKey {
        let hash_key = HashKey::of(key);
        if let Some((first, second)) = places {
            if self.slots.is_empty() {
                self.slots = vec![0; self.slot_count * SLOT_BYTES];
            }
            let is_free = |place| {
                self.slots
                    .get(place..)
                    .and_then(Slot::read)
                    .is_some_and(|slot| slot.is_free())
            };
            let displace = if is_free(first) {
                first
            } else if is_free(second) {
                second
            } else {
                self.displace_first = !self.displace_first;
                if self.displace_first { first } else { second }
            };
            if let Some(slot) = self.slots.get_mut(displace..) {
                Slot::write(slot, key, hash_key);
            }
        }
        hash_key
    }
}

impl Default for HashKeyCache {
    /// 2,048 keys: 384 KiB.
    fn default() -> Self {
        Self::new(2048)
    }
}

impl fmt::Debug for HashKeyCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HashKeyCache")
            .field("slot_count", &self.slot_count)
            .finish_non_exhaustive()
    }
}

/// A slot's parts.
struct Slot<'a> {
    hash_key: &'a [u8; HASH_KEY_BYTES],
    /// Of the key in it; 0 when there is none.
    length: u8,
    /// The key, and what was there before it.
    key: &'a [u8],
}

impl<'a> Slot<'a> {
    /// The slot at the front.
    #[inline]
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let (slot, _) = bytes.split_first_chunk::<SLOT_BYTES>()?;
        let (hash_key, rest) = slot.split_first_chunk()?;
        let (length, key) = rest.split_first()?;
        Some(Self {
            hash_key,
            length: *length,
            key,
        })
    }

    #[inline]
    fn hash_key_of(&self, key: &[u8]) -> Option<HashKey> {
        let same = usize::from(self.length) == key.len() && self.key.starts_with(key);
        same.then(|| HashKey::new(u128::from_le_bytes(*self.hash_key)))
    }

    fn is_free(&self) -> bool {
        self.length == 0
    }

    /// Over the slot at the front.
    fn write(bytes: &mut [u8], key: &[u8], hash_key: HashKey) {
        let mut slot = bytes;
        slot.put_u128_le(hash_key.value());
        slot.put_u8(u8::try_from(key.len()).expect("BUG: a key longer than its slot"));
        slot.put_slice(key);
    }
}

/// Spreads keys over slots; quick rather than good.
#[inline]
fn fold(key: &[u8]) -> u64 {
    let length = key.len() as u64;
    let (words, rest) = key.as_chunks::<8>();
    let folded = words.iter().fold(length, |folded, word| {
        mix(folded, u64::from_le_bytes(*word))
    });
    let last = match key.last_chunk::<8>() {
        // Overlaps the word before it: one step for the rest of the key.
        Some(last) => u64::from_le_bytes(*last),
        None => rest
            .iter()
            .fold(0, |last, byte| last << 8 | u64::from(*byte)),
    };
    mix(folded, last)
}

/// Both halves of the product, so that every bit of `word` reaches the low ones.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the two halves")]
fn mix(folded: u64, word: u64) -> u64 {
    const SPREAD: u128 = 0x9e37_79b9_7f4a_7c15;
    let product = u128::from(folded ^ word) * SPREAD;
    product as u64 ^ (product >> 64) as u64
}
