//! What is sent: rings of records whose contents say who sent them and in which order.
//!
//! Record number `n` of a session in a shard carries the data `n mod ring` of that session's ring,
//! and its client timestamp is `n` (or, end to end, when it was due): so a reader can check that
//! each one is there once, in order and unchanged.

use bytes::{BufMut, Bytes, BytesMut};
use flumen_client::{Record, StreamDescription};
use flumen_record::{HashKey, ShardIndex};

/// Memory for all rings together, in bytes.
const RINGS_BYTES: u64 = 32 << 20;
/// Records of a ring at most.
const RING_MAX: u64 = 1_024;
/// What stands before the noise in each record, when there is room.
const STAMP_BYTES: usize = 8;

/// A shard with a key that it owns.
#[derive(Debug, Clone)]
pub(super) struct KeyedShard {
    pub(super) shard: ShardIndex,
    pub(super) key: Bytes,
    pub(super) hash_key: HashKey,
}

/// A partition key for every open shard of the stream.
pub(super) fn keys(stream: &StreamDescription) -> Vec<KeyedShard> {
    let mut open: Vec<_> = stream.shards.iter().filter(|shard| shard.open).collect();
    open.sort_by_key(|shard| shard.range.start);
    let mut found: Vec<Option<KeyedShard>> = vec![None; open.len()];
    let mut missing = found.len();
    // Each attempt falls into a shard with the probability of its share of the key space.
    for attempt in 0_u64.. {
        if missing == 0 {
            break;
        }
        let key = Bytes::from(format!("k{attempt}"));
        let hash_key = HashKey::of(&key);
        let at = open.partition_point(|shard| shard.range.end < hash_key);
        let (Some(shard), Some(slot)) = (open.get(at), found.get_mut(at)) else {
            continue;
        };
        if slot.is_none() && shard.range.contains(hash_key) {
            *slot = Some(KeyedShard {
                shard: shard.index,
                key,
                hash_key,
            });
            missing -= 1;
        }
    }
    found.into_iter().flatten().collect()
}

/// The ring of one session.
#[derive(Debug, Clone)]
pub(super) struct Ring {
    records: Vec<Record>,
}

impl Ring {
    /// The ring of session `session` of `sessions`, each record with `record_bytes` of data.
    pub(super) fn new(session: u32, sessions: u32, record_bytes: u64) -> Self {
        let length = RINGS_BYTES / (u64::from(sessions) * record_bytes.max(1));
        let bytes = usize::try_from(record_bytes).unwrap_or(usize::MAX);
        let record = |index: u64| Record {
            partition_key: Bytes::new(),
            explicit_hash_key: None,
            data: data(session, index, bytes),
            client_timestamp: None,
            headers: Vec::new(),
        };
        Self {
            records: (0..length.clamp(4, RING_MAX)).map(record).collect(),
        }
    }

    /// The record for number `n`, to be addressed and sent.
    pub(super) fn record(&mut self, n: u64) -> &mut Record {
        let at = place(n, self.records.len());
        self.records
            .get_mut(at)
            .expect("BUG: a ring is never empty")
    }

    /// The data that number `n` must have.
    pub(super) fn data(&self, n: u64) -> &Bytes {
        let record = self.records.get(place(n, self.records.len()));
        &record.expect("BUG: a ring is never empty").data
    }
}

fn place(n: u64, length: usize) -> usize {
    usize::try_from(n % length.max(1) as u64).unwrap_or(0)
}

/// The session that sent this data, when it is ours and has room for a stamp.
pub(super) fn session_of(data: &[u8]) -> Option<u32> {
    let stamp = data
        .first_chunk::<4>()
        .filter(|_| data.len() >= STAMP_BYTES)?;
    Some(u32::from_le_bytes(*stamp))
}

/// Noise that does not compress, different for every session and place in the ring.
fn data(session: u32, index: u64, bytes: usize) -> Bytes {
    let mut data = BytesMut::with_capacity(bytes + STAMP_BYTES);
    data.put_u32_le(session);
    data.put_u32_le(u32::try_from(index).unwrap_or(u32::MAX));
    // SplitMix64 (Steele, Lea, Flood 2014).
    let mut state = (u64::from(session) << 32) ^ index ^ 0x5eed;
    while data.len() < bytes {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        data.put_u64_le(z ^ (z >> 31));
    }
    data.truncate(bytes);
    data.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_differ_and_know_their_session() {
        let mut one = Ring::new(1, 2, 100);
        let two = Ring::new(2, 2, 100);
        assert_eq!(one.record(0).data.len(), 100);
        assert_eq!(session_of(one.data(7)), Some(1));
        assert_eq!(session_of(two.data(7)), Some(2));
        assert_ne!(one.data(0), one.data(1));
        assert_eq!(one.data(3), one.data(3 + one.records.len() as u64));
        assert_eq!(session_of(Ring::new(9, 1, 4).data(0)), None);
    }
}
