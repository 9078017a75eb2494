//! What a round says about shards besides their frames: trims, deletions and jumps.

use std::collections::HashMap;

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

/// The control marks of a segment on their way into its footer, which has no order between them and
/// the runs.
#[derive(Debug, Default)]
pub(crate) struct GatheredControls {
    marks: Vec<Control>,
    /// Where among the marks shards are forgotten that have not come back.
    forgotten: HashMap<ShardId, usize>,
}

impl GatheredControls {
    /// Adds the marks of a round, before its runs.
    pub(crate) fn push(&mut self, marks: &[Control]) {
        // A shard that comes back may jump before its first run.
        for mark in marks {
            if let Control::Jump { shard, from, .. } = mark {
                self.run(*shard, *from);
            }
        }
        for mark in marks {
            if let Control::Forget { shard } = mark {
                self.forgotten.insert(*shard, self.marks.len());
            }
            self.marks.push(*mark);
        }
    }

    /// `shard` goes on at `base`. If it was forgotten, that what came before is dead is all that
    /// remains of it: else the footer would forget what follows, too.
    pub(crate) fn run(&mut self, shard: ShardId, base: SequenceNumber) {
        if self.forgotten.is_empty() {
            return;
        }
        let place = self.forgotten.remove(&shard);
        if let Some(mark) = place.and_then(|place| self.marks.get_mut(place)) {
            *mark = Control::Trim {
                shard,
                before: base,
            };
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.marks.len()
    }

    pub(crate) fn into_marks(self) -> Vec<Control> {
        self.marks
    }
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

    /// Otherwise it would begin at its first run, and readers in front of that be told that they are
    /// late.
    #[test]
    fn a_forgotten_shard_that_comes_back_with_a_jump_begins_in_front_of_it() {
        let shard = ShardId::from_value(7);
        let [at, to] = [5, 9].map(SequenceNumber::new);
        let jump = Control::Jump {
            shard,
            from: at,
            to,
            lost: false,
        };
        let mut gathered = GatheredControls::default();
        gathered.push(&[Control::Forget { shard }]);
        gathered.push(&[Control::Trim { shard, before: at }, jump]);
        gathered.run(shard, to);
        let trim = Control::Trim { shard, before: at };
        assert_eq!(gathered.into_marks(), [trim, trim, jump]);
    }

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
