//! What a round says about shards besides their frames: trims, deletions and jumps.

use bytes::{Buf, BufMut};
use flumen_record::{SequenceNumber, ShardId};

/// Size of one on disk.
pub(crate) const CONTROL_BYTES: usize = 32;

const TRIM: u64 = 1;
const FORGET: u64 = 2;
const JUMP: u64 = 3;
const LOST: u64 = 4;

/// One fact about a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Control {
    /// Records below `before` are trimmed.
    Trim {
        shard: ShardId,
        before: SequenceNumber,
    },
    /// The shard is deleted; its runs up to here are dead.
    Forget { shard: ShardId },
    /// The numbers `from..to` belong to no record that this log can read.
    Jump {
        shard: ShardId,
        from: SequenceNumber,
        to: SequenceNumber,
        /// Some of them may have been acknowledged, and are hidden by damage.
        lost: bool,
    },
}

impl Control {
    pub(crate) fn encode(&self, out: &mut impl BufMut) {
        let (kind, shard, first, second) = match *self {
            Self::Trim { shard, before } => (TRIM, shard, before, SequenceNumber::ZERO),
            Self::Forget { shard } => (FORGET, shard, SequenceNumber::ZERO, SequenceNumber::ZERO),
            Self::Jump {
                shard,
                from,
                to,
                lost,
            } => (if lost { LOST } else { JUMP }, shard, from, to),
        };
        out.put_u64_le(kind);
        out.put_u64_le(shard.value());
        out.put_u64_le(first.value());
        out.put_u64_le(second.value());
    }

    /// Reads as many as `bytes` holds; `None` when one of them is not known or bytes are left over.
    pub(crate) fn decode_all(mut bytes: &[u8]) -> Option<Vec<Self>> {
        let mut all = Vec::with_capacity(bytes.len() / CONTROL_BYTES);
        while !bytes.is_empty() {
            all.push(Self::decode(&mut bytes)?);
        }
        Some(all)
    }

    fn decode(bytes: &mut &[u8]) -> Option<Self> {
        if bytes.len() < CONTROL_BYTES {
            return None;
        }
        let kind = bytes.get_u64_le();
        let shard = ShardId::from_value(bytes.get_u64_le());
        let first = SequenceNumber::new(bytes.get_u64_le());
        let second = SequenceNumber::new(bytes.get_u64_le());
        match kind {
            TRIM => Some(Self::Trim {
                shard,
                before: first,
            }),
            FORGET => Some(Self::Forget { shard }),
            JUMP | LOST if first < second => Some(Self::Jump {
                shard,
                from: first,
                to: second,
                lost: kind == LOST,
            }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_read_back_as_written() {
        let shard = ShardId::from_value(77);
        let all = [
            Control::Trim {
                shard,
                before: SequenceNumber::new(5),
            },
            Control::Forget { shard },
            Control::Jump {
                shard,
                from: SequenceNumber::new(5),
                to: SequenceNumber::new(9),
                lost: true,
            },
        ];
        let mut bytes = Vec::new();
        for control in &all {
            control.encode(&mut bytes);
        }
        assert_eq!(bytes.len(), 3 * CONTROL_BYTES);
        assert_eq!(Control::decode_all(&bytes).as_deref(), Some(&all[..]));
        assert_eq!(Control::decode_all(&bytes[..40]), None);
        bytes[0] = 9;
        assert_eq!(Control::decode_all(&bytes), None);
    }
}
