//! When a group has read what was there at the beginning, whichever of its members did.

use std::collections::BTreeMap;
use std::time::Duration;

use flumen_client::{
    Client, GroupDescription, GroupName, ShardLease, StreamDescription, StreamName,
};
use flumen_record::{SequenceNumber, ShardIndex};
use tokio::sync::watch;
use tokio::time::sleep;

/// How often the group is looked at: at first, and at most.
const LOOK_FIRST: Duration = Duration::from_millis(100);
const LOOK_AFTER_MAX: Duration = Duration::from_secs(1);

/// Where every shard ended at the beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Goal {
    ends: BTreeMap<ShardIndex, SequenceNumber>,
}

/// Records that were gone before this member could read them: no checkpoint says so when nothing
/// comes after them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Skips(BTreeMap<(ShardIndex, SequenceNumber), SequenceNumber>);

impl Skips {
    /// From one number up to another.
    pub(super) fn add(&mut self, shard: ShardIndex, from: SequenceNumber, to: SequenceNumber) {
        self.0.insert((shard, from), to);
    }

    /// How many numbers there were.
    pub(super) fn numbers(&self) -> u64 {
        let each = self.0.iter();
        each.map(|((_, from), to)| to.value().saturating_sub(from.value()))
            .sum()
    }

    /// Where a reader that has come to `at` really is.
    fn behind(&self, shard: ShardIndex, at: SequenceNumber) -> SequenceNumber {
        let skips = self.0.range((shard, SequenceNumber::ZERO)..);
        let mine = skips.take_while(|((of, _), _)| *of == shard);
        mine.fold(
            at,
            |at, ((_, from), to)| {
                if *from <= at { at.max(*to) } else { at }
            },
        )
    }
}

impl Goal {
    /// What there is now.
    pub(super) fn of(stream: &StreamDescription) -> Self {
        let shards = stream.shards.iter();
        Self {
            ends: shards
                .map(|shard| (shard.index, shard.durable_end))
                .collect(),
        }
    }

    fn is_reached(&self, group: &GroupDescription, skips: &Skips) -> bool {
        self.ends.iter().all(|(index, end)| {
            let shard = group.shards.iter().find(|shard| shard.shard == *index);
            // One that is not there any more has expired.
            let Some(shard) = shard else { return true };
            let at = match shard.checkpoint {
                None => SequenceNumber::ZERO,
                Some((number, None)) => number.plus(1),
                Some((number, Some(_))) => number,
            };
            shard.lease == ShardLease::Finished
                || shard.lag.records == 0
                || skips.behind(*index, at) >= *end
        })
    }
}

/// Resolves when the group has come to its goal; without one, never.
pub(super) async fn reached(
    client: &Client,
    stream: &StreamName,
    group: &GroupName,
    goal: Option<Goal>,
    skips: watch::Receiver<Skips>,
) {
    let Some(goal) = goal else {
        return std::future::pending().await;
    };
    let mut pause = LOOK_FIRST;
    loop {
        // A broker that is away, and a group that is gone, are the member's to say.
        if let Ok(described) = client.describe_group(stream, group).await
            && goal.is_reached(&described, &skips.borrow())
        {
            return;
        }
        sleep(pause).await;
        pause = (pause * 2).min(LOOK_AFTER_MAX);
    }
}

#[cfg(test)]
mod tests {
    use flumen_client::{GroupSummary, Lag, ShardProgress};

    use super::*;

    fn number(n: u64) -> SequenceNumber {
        SequenceNumber::new(n)
    }

    fn shard(index: u32, lease: ShardLease, checkpoint: Option<u64>, lag: u64) -> ShardProgress {
        ShardProgress {
            shard: ShardIndex::new(index),
            lease,
            generation: 1,
            checkpoint: checkpoint.map(|at| (number(at), None)),
            checkpointed: None,
            lag: Lag {
                records: lag,
                ..Lag::default()
            },
            expired_records: Some(0),
            is_beyond_end: false,
        }
    }

    fn group(shards: Vec<ShardProgress>) -> GroupDescription {
        GroupDescription {
            summary: GroupSummary {
                stream: "s".parse().unwrap(),
                group: "g".parse().unwrap(),
                members: 1,
                shards: 2,
                lag: Lag::default(),
                expired_records: 0,
                expired_unknown: false,
            },
            members: Vec::new(),
            shards,
            forced: 0,
        }
    }

    #[test]
    fn the_goal_is_every_shard_at_its_end_of_the_beginning() {
        let goal = Goal {
            ends: [(0, 10), (1, 0)]
                .map(|(shard, end)| (ShardIndex::new(shard), number(end)))
                .into(),
        };
        let free = || ShardLease::Free;
        let mut gone = Skips::default();
        gone.add(ShardIndex::new(0), number(8), number(12));
        for (shards, skips, expected) in [
            (
                vec![shard(0, free(), None, 10), shard(1, free(), None, 0)],
                None,
                false,
            ),
            (
                vec![shard(0, free(), Some(8), 1), shard(1, free(), None, 0)],
                None,
                false,
            ),
            // More came meanwhile, in both.
            (
                vec![shard(0, free(), Some(9), 5), shard(1, free(), None, 7)],
                None,
                true,
            ),
            (
                vec![shard(0, free(), Some(9), 0), shard(1, free(), None, 0)],
                None,
                true,
            ),
            (vec![shard(0, ShardLease::Finished, None, 0)], None, true),
            // Shard 0 has expired as a whole.
            (vec![shard(1, free(), None, 0)], None, true),
            // Its last records are damaged, and the member went over them.
            (vec![shard(0, free(), Some(7), 2)], Some(&gone), true),
            (vec![shard(0, free(), Some(6), 3)], Some(&gone), false),
        ] {
            let skips = skips.cloned().unwrap_or_default();
            let described = group(shards);
            assert_eq!(
                goal.is_reached(&described, &skips),
                expected,
                "{described:?}"
            );
        }
        assert_eq!(gone.numbers(), 4);
    }
}
