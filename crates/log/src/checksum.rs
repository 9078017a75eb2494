//! Checksums seeded with a segment's salt and the place of the bytes in it, so that bytes of a
//! recycled file or of a misdirected write are never taken for those that belong there.

use crate::config::LogKey;

/// What seeds the checksum of bytes at `position` of a segment with `salt`.
pub(crate) const fn seed(salt: u64, position: u64) -> u64 {
    salt ^ position
}

/// CRC-32 over a seed and some bytes.
pub(crate) fn seeded(seed: u64, parts: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize()
}

/// A salt for a new segment file. It need not be secret, only different for every file that ever
/// held the same blocks.
pub(crate) fn new_salt(key: LogKey, segment: u64, generation: u32, epoch: u32, now: u64) -> u64 {
    [
        key.id(),
        segment,
        u64::from(generation),
        u64::from(epoch),
        now,
    ]
    .into_iter()
    .fold(0x666c_756d_656e, |state, word| mix(state ^ word))
}

/// The finalizer of splitmix64 (Steele, Lea, Flood 2014): every input bit reaches every output bit.
const fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}
