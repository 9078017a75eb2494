//! Which shards are read now: parents to their end before their children. Pure.

use std::collections::BTreeMap;

use flumen_record::{SequenceNumber, ShardIndex};

/// What is known of one shard of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shard {
    /// Its index.
    pub(crate) index: ShardIndex,
    /// The shards it came from, as far as the stream still has them.
    pub(crate) parents: Vec<ShardIndex>,
    /// Its end, if it is closed.
    pub(crate) closed_at: Option<SequenceNumber>,
    /// First record kept.
    pub(crate) trim_horizon: SequenceNumber,
}

/// Where reading is: by shard, the next record to read.
pub(crate) type Positions = BTreeMap<ShardIndex, SequenceNumber>;

/// Whether a shard is read to its end.
fn is_finished(shard: &Shard, positions: &Positions) -> bool {
    let at = positions.get(&shard.index);
    match (shard.closed_at, at) {
        (Some(end), Some(at)) => *at >= end,
        // Empty, or expired as a whole: there is nothing to read, ever.
        (Some(end), None) => shard.trim_horizon >= end,
        (None, _) => false,
    }
}

/// The shards that may be read now and have not ended, each with where: those whose parents are read
/// to their ends, or are gone. A shard that was not begun starts at its first record.
pub(crate) fn readable(
    shards: &[Shard],
    positions: &Positions,
) -> Vec<(ShardIndex, SequenceNumber)> {
    let finished = |index: &ShardIndex| {
        shards
            .iter()
            .find(|shard| shard.index == *index)
            .is_none_or(|shard| is_finished(shard, positions))
    };
    shards
        .iter()
        .filter(|shard| !is_finished(shard, positions))
        // One that has been begun goes on: it was allowed to when it was.
        .filter(|shard| {
            positions.contains_key(&shard.index) || shard.parents.iter().all(finished)
        })
        .map(|shard| {
            let at = positions.get(&shard.index).copied();
            (shard.index, at.unwrap_or(shard.trim_horizon))
        })
        .collect()
}

/// Where everything that is there now ends: a flush is done when reading has come there in every
/// shard. Closed shards that are finished are left out.
pub(crate) fn has_reached(targets: &Positions, positions: &Positions) -> bool {
    targets.iter().all(|(shard, end)| {
        *end == SequenceNumber::ZERO || positions.get(shard).is_some_and(|at| at >= end)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(index: u32, parents: &[u32], closed_at: Option<u64>, horizon: u64) -> Shard {
        Shard {
            index: ShardIndex::new(index),
            parents: parents.iter().copied().map(ShardIndex::new).collect(),
            closed_at: closed_at.map(SequenceNumber::new),
            trim_horizon: SequenceNumber::new(horizon),
        }
    }

    fn check(shards: &[Shard], positions: &[(u32, u64)], expected: &[(u32, u64)]) {
        let positions = positions
            .iter()
            .map(|(shard, at)| (ShardIndex::new(*shard), SequenceNumber::new(*at)))
            .collect();
        let found: Vec<_> = readable(shards, &positions)
            .into_iter()
            .map(|(shard, at)| (shard.value(), at.value()))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn parents_are_read_to_their_end_before_their_children() {
        let split = [
            shard(0, &[], Some(10), 0),
            shard(1, &[0], None, 0),
            shard(2, &[0], None, 0),
        ];
        check(&split, &[(0, 4)], &[(0, 4)]);
        check(&split, &[(0, 10)], &[(1, 0), (2, 0)]);
        check(&split, &[(0, 10), (1, 7)], &[(1, 7), (2, 0)]);
    }

    #[test]
    fn a_merge_waits_for_both_parents() {
        let merge = [
            shard(0, &[], Some(10), 0),
            shard(1, &[], Some(20), 0),
            shard(2, &[0, 1], None, 0),
        ];
        check(&merge, &[(0, 10), (1, 19)], &[(1, 19)]);
        check(&merge, &[(0, 10), (1, 20)], &[(2, 0)]);
    }

    #[test]
    fn grandchildren_wait_behind_an_empty_child() {
        let shards = [
            shard(0, &[], Some(10), 0),
            shard(1, &[0], Some(0), 0),
            shard(2, &[1], None, 0),
        ];
        check(&shards, &[(0, 9)], &[(0, 9)]);
        // The empty child is finished from the beginning: its own child must still wait.
        check(&shards, &[], &[(0, 0)]);
    }

    #[test]
    fn what_the_stream_has_let_go_of_is_not_waited_for() {
        check(&[shard(5, &[3], None, 40)], &[], &[(5, 40)]);
    }
}
