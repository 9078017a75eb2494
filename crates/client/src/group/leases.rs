//! Which shards a member holds, what of them is processed and what of that is saved. Pure.

use std::collections::BTreeMap;

use flumen_record::{SequenceNumber, ShardIndex};

use crate::StartPosition;

/// A shard to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) shard: ShardIndex,
    pub(super) generation: u64,
    pub(super) start: StartPosition,
    pub(super) expired_records: Option<u64>,
    /// It is to be handed over already.
    pub(super) revoked: bool,
}

/// How far a shard is processed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Up to and with this record.
    Through(SequenceNumber),
    /// To the end of the closed shard.
    End,
}

/// Records that were gone: from the first to the first behind them.
pub(super) type Gap = (SequenceNumber, SequenceNumber);

/// Gaps that are said with one checkpoint at most.
const GAPS_MAX: usize = 32;

/// So many between two checkpoints are said as one.
fn bound_gaps(gaps: &mut Vec<Gap>) {
    while gaps.len() > GAPS_MAX
        && let Some((_, to)) = gaps.pop()
        && let Some(last) = gaps.last_mut()
    {
        last.1 = to;
    }
}

/// One thing to save.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ToSave {
    pub(super) shard: ShardIndex,
    pub(super) generation: u64,
    pub(super) progress: Progress,
    /// What before it was gone before it could be read.
    pub(super) skipped: Vec<Gap>,
}

#[derive(Debug)]
struct Lease {
    generation: u64,
    /// Processed and not on its way to the broker.
    unsaved: Option<Progress>,
    /// On its way, in this request, with what was skipped.
    saving: Option<(u64, Progress, Vec<Gap>)>,
    /// What was skipped and is not on its way to the broker.
    skipped: Vec<Gap>,
    /// Nothing more will be processed under this lease.
    done: bool,
    /// The broker waits for it, to give it to somebody else.
    revoked: bool,
}

impl Lease {
    /// Nothing of it is left to process or to save.
    fn is_settled(&self) -> bool {
        self.done && self.unsaved.is_none() && self.saving.is_none()
    }
}

/// The leases of a member.
#[derive(Debug, Default)]
pub(super) struct Leases {
    by_shard: BTreeMap<ShardIndex, Lease>,
}

impl Leases {
    /// Takes a grant in. `false`: it is known already.
    pub(super) fn grant(&mut self, grant: &Grant) -> bool {
        let known = self.by_shard.get(&grant.shard);
        if known.is_some_and(|lease| lease.generation >= grant.generation) {
            return false;
        }
        self.by_shard.insert(
            grant.shard,
            Lease {
                generation: grant.generation,
                unsaved: None,
                saving: None,
                skipped: Vec::new(),
                done: false,
                revoked: grant.revoked,
            },
        );
        true
    }

    /// After joining again: the leases that are not among those that the broker has kept.
    pub(super) fn not_among(&self, kept: &[Grant]) -> Vec<(ShardIndex, u64)> {
        let is_kept = |shard: ShardIndex, generation: u64| {
            kept.iter()
                .any(|grant| (grant.shard, grant.generation) == (shard, generation))
        };
        self.by_shard
            .iter()
            .map(|(shard, lease)| (*shard, lease.generation))
            .filter(|(shard, generation)| !is_kept(*shard, *generation))
            .collect()
    }

    /// Whether this lease is held.
    pub(super) fn holds(&self, shard: ShardIndex, generation: u64) -> bool {
        self.by_shard
            .get(&shard)
            .is_some_and(|lease| lease.generation == generation)
    }

    /// Drops a lease; `false` when there is none of this generation.
    pub(super) fn drop(&mut self, shard: ShardIndex, generation: u64) -> bool {
        let held = self.holds(shard, generation);
        if held {
            self.by_shard.remove(&shard);
        }
        held
    }

    fn lease(&mut self, shard: ShardIndex, generation: u64) -> Option<&mut Lease> {
        self.by_shard
            .get_mut(&shard)
            .filter(|lease| lease.generation == generation)
    }

    /// More is processed.
    pub(super) fn processed(&mut self, shard: ShardIndex, generation: u64, progress: Progress) {
        if let Some(lease) = self.lease(shard, generation) {
            lease.unsaved = Some(progress);
        }
    }

    /// Records were gone before they could be read.
    pub(super) fn skipped(&mut self, shard: ShardIndex, generation: u64, gap: Gap) {
        let Some(lease) = self.lease(shard, generation) else {
            return;
        };
        lease.skipped.push(gap);
        bound_gaps(&mut lease.skipped);
    }

    /// Nothing more will be processed under this lease.
    pub(super) fn done(&mut self, shard: ShardIndex, generation: u64) {
        if let Some(lease) = self.lease(shard, generation) {
            lease.done = true;
        }
    }

    /// The broker waits for this lease.
    pub(super) fn revoked(&mut self, shard: ShardIndex, generation: u64) {
        if let Some(lease) = self.lease(shard, generation) {
            lease.revoked = true;
        }
    }

    /// What to save now, in `request`. What is on its way already waits for its answer.
    pub(super) fn take_unsaved(&mut self, request: u64) -> Vec<ToSave> {
        let mut save = Vec::new();
        for (shard, lease) in &mut self.by_shard {
            if lease.saving.is_none()
                && let Some(progress) = lease.unsaved.take()
            {
                let skipped = std::mem::take(&mut lease.skipped);
                lease.saving = Some((request, progress, skipped.clone()));
                save.push(ToSave {
                    shard: *shard,
                    generation: lease.generation,
                    progress,
                    skipped,
                });
            }
        }
        save
    }

    /// A request was answered; how many of its checkpoints are durable, and the shards that are
    /// processed to their end: their leases are gone with it.
    pub(super) fn saved(&mut self, request: u64, refused: &[ShardIndex]) -> (u64, Vec<ShardIndex>) {
        let (mut durable, mut finished) = (0, Vec::new());
        for (shard, lease) in &mut self.by_shard {
            let Some((_, progress, _)) = lease.saving.take_if(|(sent, ..)| *sent == request) else {
                continue;
            };
            if refused.contains(shard) {
                continue;
            }
            durable += 1;
            if progress == Progress::End {
                finished.push(*shard);
            }
        }
        for shard in &finished {
            self.by_shard.remove(shard);
        }
        (durable, finished)
    }

    /// The session broke: what was on its way is to be saved again.
    pub(super) fn disconnected(&mut self) {
        for lease in self.by_shard.values_mut() {
            if let Some((_, progress, skipped)) = lease.saving.take() {
                lease.unsaved.get_or_insert(progress);
                // Counted once, also if it was heard.
                lease.skipped.splice(..0, skipped);
                bound_gaps(&mut lease.skipped);
            }
        }
    }

    /// Leases whose work is done and saved: to be released. They are gone from here. A member that
    /// leaves keeps those that nobody waits for until it is out: the broker would give them back to it.
    pub(super) fn take_released(&mut self, leaving: bool) -> Vec<(ShardIndex, u64)> {
        let ready = |lease: &Lease| lease.is_settled() && (lease.revoked || !leaving);
        let released: Vec<_> = self
            .by_shard
            .iter()
            .filter(|(_, lease)| ready(lease))
            .map(|(shard, lease)| (*shard, lease.generation))
            .collect();
        for (shard, _) in &released {
            self.by_shard.remove(shard);
        }
        released
    }

    /// Whether the work of all leases is done and saved.
    pub(super) fn are_settled(&self) -> bool {
        self.by_shard.values().all(Lease::is_settled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ShardIndex = ShardIndex::new(0);
    const B: ShardIndex = ShardIndex::new(1);

    fn grant(shard: ShardIndex, generation: u64) -> Grant {
        Grant {
            shard,
            generation,
            start: StartPosition::TrimHorizon,
            expired_records: Some(0),
            revoked: false,
        }
    }

    fn through(n: u64) -> Progress {
        Progress::Through(SequenceNumber::new(n))
    }

    #[test]
    fn a_grant_counts_once_and_a_later_one_replaces_it() {
        let mut leases = Leases::default();
        assert!(leases.grant(&grant(A, 3)));
        assert!(!leases.grant(&grant(A, 3)));
        assert!(!leases.grant(&grant(A, 2)));
        assert!(leases.grant(&grant(A, 5)));
        assert!(leases.holds(A, 5) && !leases.holds(A, 3));
        leases.processed(A, 3, through(9));
        assert!(leases.take_unsaved(1).is_empty(), "of a lease that is gone");
    }

    #[test]
    fn what_is_processed_is_saved_once_and_again_after_a_break() {
        let mut leases = Leases::default();
        leases.grant(&grant(A, 1));
        leases.processed(A, 1, through(4));
        leases.processed(A, 1, through(7));
        let first = leases.take_unsaved(1);
        assert_eq!(first.len(), 1);
        assert_eq!(first[0].progress, through(7));
        leases.processed(A, 1, through(9));
        assert!(leases.take_unsaved(2).is_empty(), "one is on its way");
        leases.disconnected();
        assert_eq!(leases.take_unsaved(3)[0].progress, through(9));
        assert_eq!(
            leases.saved(1, &[]),
            (0, vec![]),
            "an answer of before the break"
        );
        assert_eq!(leases.saved(3, &[]), (1, vec![]));
        assert!(leases.take_unsaved(4).is_empty());
    }

    #[test]
    fn what_was_skipped_goes_with_the_next_checkpoint_and_again_after_a_break() {
        let number = SequenceNumber::new;
        let gap = |from, to| (number(from), number(to));
        let mut leases = Leases::default();
        leases.grant(&grant(A, 1));
        leases.skipped(A, 1, gap(0, 5));
        assert!(leases.take_unsaved(1).is_empty(), "nothing is processed");
        leases.processed(A, 1, through(7));
        assert_eq!(leases.take_unsaved(2)[0].skipped, [gap(0, 5)]);
        leases.skipped(A, 1, gap(8, 9));
        leases.disconnected();
        assert_eq!(leases.take_unsaved(3)[0].skipped, [gap(0, 5), gap(8, 9)]);
        leases.saved(3, &[]);
        leases.processed(A, 1, through(10));
        assert_eq!(leases.take_unsaved(4)[0].skipped, []);
        for n in 0..100 {
            leases.skipped(A, 1, gap(10 * n, 10 * n + 1));
        }
        leases.processed(A, 1, through(1_000));
        leases.saved(4, &[]);
        let gaps = leases.take_unsaved(5).remove(0).skipped;
        assert_eq!((gaps.len(), gaps[31]), (GAPS_MAX, gap(310, 991)));
    }

    #[test]
    fn a_break_saves_what_was_on_its_way_when_nothing_newer_is_there() {
        let mut leases = Leases::default();
        leases.grant(&grant(A, 1));
        leases.processed(A, 1, through(4));
        leases.take_unsaved(1);
        leases.disconnected();
        assert_eq!(leases.take_unsaved(2)[0].progress, through(4));
    }

    #[test]
    fn a_lease_is_released_when_its_work_is_done_and_saved() {
        let mut leases = Leases::default();
        leases.grant(&grant(A, 1));
        leases.grant(&grant(B, 2));
        leases.processed(A, 1, through(4));
        leases.done(A, 1);
        leases.done(B, 2);
        assert_eq!(leases.take_released(false), [(B, 2)]);
        leases.take_unsaved(1);
        assert!(leases.take_released(false).is_empty());
        leases.saved(1, &[]);
        assert_eq!(leases.take_released(false), [(A, 1)]);
        assert!(leases.by_shard.is_empty());
    }

    #[test]
    fn a_member_that_leaves_releases_what_is_waited_for_and_keeps_the_rest() {
        let mut leases = Leases::default();
        leases.grant(&grant(A, 1));
        leases.grant(&grant(B, 2));
        leases.revoked(B, 1);
        leases.done(B, 2);
        assert!(leases.take_released(true).is_empty());
        leases.revoked(B, 2);
        assert_eq!(leases.take_released(true), [(B, 2)]);
        assert!(!leases.are_settled());
        leases.done(A, 1);
        assert!(leases.take_released(true).is_empty());
        assert!(leases.are_settled());
    }

    #[test]
    fn a_finished_shard_is_gone_once_that_is_durable() {
        let mut leases = Leases::default();
        leases.grant(&grant(A, 1));
        leases.processed(A, 1, Progress::End);
        leases.take_unsaved(1);
        assert_eq!(leases.saved(1, &[]), (1, vec![A]));
        assert!(leases.by_shard.is_empty());
    }

    #[test]
    fn leases_that_the_broker_has_not_kept_are_told() {
        let mut leases = Leases::default();
        leases.grant(&grant(A, 1));
        leases.grant(&grant(B, 2));
        assert_eq!(leases.not_among(&[grant(A, 1), grant(B, 3)]), [(B, 2)]);
        assert!(leases.drop(B, 2) && !leases.drop(B, 2));
        assert!(!leases.by_shard.is_empty());
    }
}
