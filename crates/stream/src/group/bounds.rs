//! Where shards stand now, and what of them expired before a group had read it.

use std::fmt;

use flumen_record::{SequenceNumber, ShardIndex, StreamId, Timestamp};

use super::{Checkpoint, InitialPosition};

/// A shard that may have given numbers out and lost them goes on this much higher: between two records
/// it is no distance.
const JUMP: u64 = 1 << 32;

/// What can be read of a shard at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardBounds {
    /// The oldest record kept.
    pub horizon: SequenceNumber,
    /// The first number that readers may not see yet.
    pub end: SequenceNumber,
}

/// Says where shards stand at the moment it is asked. What was read of a shard before it is asked lies
/// below the end that it tells: both only move up.
pub trait BoundsOf: fmt::Debug + Send + Sync {
    /// `None`: the stream has no such shard any more.
    fn bounds(&self, stream: StreamId, shard: ShardIndex) -> Option<ShardBounds>;
}

/// Knows no shard: the coordinator was not told whom to ask.
#[derive(Debug)]
pub(super) struct NoBounds;

impl BoundsOf for NoBounds {
    fn bounds(&self, _: StreamId, _: ShardIndex) -> Option<ShardBounds> {
        None
    }
}

/// Records from one number up to another; jumps between them are none.
pub fn records_between(from: SequenceNumber, to: SequenceNumber) -> u64 {
    to.value().saturating_sub(from.value()) % JUMP
}

/// Where the holder of a lease begins to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadFrom {
    /// Here. Everything before it is processed, expired, or no concern of the group.
    At(SequenceNumber),
    /// At the oldest record kept, of a group from before it was written down where groups begin.
    TrimHorizon,
    /// At the first record that arrived at or after this time, of such a group.
    AtTimestamp(Timestamp),
}

/// Records that expired before a group had processed them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expired {
    /// So many at least.
    pub records: u64,
    /// Not more than that. What expired before groups wrote down where they begin is not known, nor
    /// what was in a shard that went while nobody looked.
    pub is_exact: bool,
}

impl Expired {
    /// None.
    pub const NONE: Self = Self {
        records: 0,
        is_exact: true,
    };
    /// Nobody knows how many.
    pub const UNKNOWN: Self = Self {
        records: 0,
        is_exact: false,
    };

    /// How many, if that is known.
    pub fn exactly(self) -> Option<u64> {
        self.is_exact.then_some(self.records)
    }

    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            records: self.records.saturating_add(other.records),
            is_exact: self.is_exact && other.is_exact,
        }
    }
}

impl From<Option<u64>> for Expired {
    fn from(records: Option<u64>) -> Self {
        records.map_or(Self::UNKNOWN, |records| Self {
            records,
            is_exact: true,
        })
    }
}

/// Where a group stands in a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardPosition {
    /// Where reading goes on.
    pub from: ReadFrom,
    /// The last checkpoint.
    pub checkpoint: Option<Checkpoint>,
    /// What expired before `from`. What has expired behind it since is not in it.
    pub expired: Expired,
}

impl ShardPosition {
    /// Of a shard that nothing is written down of: it came into being after the group, which reads it
    /// from its first record, or the group is from before that was written down.
    pub(super) fn untouched(
        start: InitialPosition,
        first_new_shard: ShardIndex,
        shard: ShardIndex,
    ) -> Self {
        let (from, expired) = match start {
            _ if shard >= first_new_shard => (ReadFrom::At(SequenceNumber::ZERO), Expired::NONE),
            InitialPosition::AtTimestamp(at) => (ReadFrom::AtTimestamp(at), Expired::UNKNOWN),
            InitialPosition::TrimHorizon | InitialPosition::Latest => {
                (ReadFrom::TrimHorizon, Expired::UNKNOWN)
            }
        };
        Self {
            from,
            checkpoint: None,
            expired,
        }
    }

    /// Whether the shard is processed to its end, if it has closed at one.
    pub fn is_finished(&self, end: Option<SequenceNumber>) -> bool {
        self.checkpoint
            .is_some_and(|checkpoint| checkpoint.finishes(end))
    }

    /// What expired unread up to `horizon`, which is where the shard begins now.
    pub fn expired_up_to(&self, horizon: SequenceNumber) -> Expired {
        match self.from {
            ReadFrom::At(from) => self.expired.and(Expired {
                records: records_between(from, horizon),
                is_exact: true,
            }),
            ReadFrom::TrimHorizon | ReadFrom::AtTimestamp(_) => self.expired,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_are_no_records() {
        let number = SequenceNumber::new;
        for (from, to, expected) in [
            (0, 0, 0),
            (5, 9, 4),
            (9, 5, 0),
            (5, 9 + (1 << 32), 4),
            (0, 2 << 32, 0),
            (0, u64::MAX, (1 << 32) - 1),
        ] {
            let records = records_between(number(from), number(to));
            assert_eq!(records, expected, "{from} to {to}");
        }
    }
}
