//! Where shards go on once all that the log holds is known: which numbers lie elsewhere, where stays
//! that are over end, and who jumps because numbers may have been given out and lost.

use std::sync::Arc;

use flumen_record::ShardId;

use super::restore::Restorer;
use crate::control::Control;
use crate::index::{ShardCell, ShardState};
use crate::log::writer::{Writer, WriterShard};
use crate::state::{Gap, ShardStanding};
use crate::stay::{LogStays, Stay};

/// How far a shard jumps when numbers may have been given out and lost.
const JUMP: u64 = 1 << 32;

impl Restorer<'_> {
    /// Brings every shard to where its stays here say it is, and makes those jump for which numbers
    /// may have been given out and lost. Jumps are durable with the next round; until then opening
    /// again finds the same. Without `stays` every shard lies here from its first number on.
    pub(super) fn settle(&mut self, writer: &mut Writer, clean: bool, stays: Option<&LogStays>) {
        if let Some(stays) = stays {
            self.meet_missing(writer, stays);
            self.drop_what_left(writer, stays);
        }
        self.report_holes();
        let unclean_memory = self.shared.is_memory() && !clean;
        let mut shards: Vec<(ShardId, Arc<ShardCell>)> = writer
            .shards
            .iter()
            .map(|(shard, known)| (*shard, Arc::clone(&known.cell)))
            .collect();
        shards.sort_unstable_by_key(|(shard, _)| *shard);
        for (shard, cell) in shards {
            let here = stays.map(|stays| stays.of(shard));
            let mut state = cell.lock();
            let hidden = self.standings.is_hidden(shard, state.end);
            let mut gaps = here.map_or_else(Vec::new, |here| gaps_of(&mut state, here, hidden));
            gaps.iter().for_each(|gap| state.jump(*gap));
            let is_open =
                here.is_none_or(|here| here.last().is_some_and(|last| last.to().is_none()));
            if is_open && (hidden || unclean_memory) {
                let (from, to) = (state.end, state.end.plus(JUMP));
                let lost = hidden;
                let gap = Gap { from, to, lost };
                state.jump(gap);
                gaps.push(gap);
                self.jumped.insert(shard, to);
            }
            let end = state.end;
            drop(state);
            if let Some(known) = writer.shards.get_mut(&shard) {
                known.end = end;
            }
            for Gap { from, to, lost } in gaps {
                if lost {
                    self.losses.hole(shard, from, to, &self.current.1);
                }
                writer.jumps.push(Control::Jump {
                    shard,
                    from,
                    to,
                    lost,
                });
            }
        }
        self.report_holes();
    }

    /// Takes in shards that should have left something here and have not. One that has only just
    /// come and wrote nothing is none of them.
    fn meet_missing(&self, writer: &mut Writer, stays: &LogStays) {
        for (shard, here) in stays.shards() {
            let holds_some = |stay: &&Stay| stay.to().is_some_and(|to| to > stay.from());
            let Some(first) = here.iter().find(holds_some) else {
                continue;
            };
            if writer.shards.contains_key(&shard) {
                continue;
            }
            let mut standing = ShardStanding::new(shard);
            standing.horizon = first.from();
            standing.end = first.from();
            let cell = ShardCell::new(&standing);
            self.shared.index.insert(Arc::clone(&cell));
            let end = standing.end;
            writer.shards.insert(shard, WriterShard { cell, end });
        }
    }

    /// What a shard had here before its first stay that is kept is trimmed: the stays it was in are
    /// over, and nothing of them is kept.
    fn drop_what_left(&self, writer: &mut Writer, stays: &LogStays) {
        for (shard, known) in &writer.shards {
            let Some(first) = stays.of(*shard).first() else {
                continue;
            };
            let mut state = known.cell.lock();
            if state.horizon < first.from() {
                state.trim(first.from());
                writer.trims.insert(*shard, first.from());
            }
        }
    }
}

/// Moves a shard on to the end of its stays here. Returns the gaps that explain its numbers: those
/// that lie elsewhere, and those that are not here and should be.
fn gaps_of(state: &mut ShardState, here: &[Stay], hidden: bool) -> Vec<Gap> {
    let mut gaps = Vec::new();
    if let Some(end) = here.last().and_then(Stay::to)
        && state.end > end
    {
        // It jumped here while it lay elsewhere: nothing was given out there.
        state.end_at(end);
    }
    let mut at = state.end;
    for stay in here {
        if at < stay.from() {
            gaps.push(Gap {
                from: at,
                to: stay.from(),
                lost: false,
            });
            at = stay.from();
        }
        if let Some(to) = stay.to().filter(|to| at < *to) {
            // Everything was on disk when the stay ended, but for a jump behind which nothing was
            // written.
            let is_jump = to.value() - at.value() == JUMP && !hidden;
            gaps.push(Gap {
                from: at,
                to,
                lost: !is_jump,
            });
            at = to;
        }
    }
    gaps
}

#[cfg(test)]
mod tests {
    use flumen_record::{Durability, SequenceNumber, ShardEpoch};

    use super::*;
    use crate::config::LogKey;

    const KEY: LogKey = LogKey {
        durability: Durability::Memory,
        class_hours: 24,
        lane: 0,
    };

    /// Stays by their ends (0: open), the end that was found, whether damage may hide more; the gaps
    /// (from, to, lost), and the end.
    #[track_caller]
    fn check(stays: &[(u64, u64)], found: u64, hidden: bool, gaps: &[(u64, u64, bool)], end: u64) {
        let number = SequenceNumber::new;
        let here: Vec<Stay> = (1..)
            .zip(stays)
            .map(|(epoch, &(from, to))| {
                let to = (to > 0).then(|| number(to));
                Stay::new(KEY, ShardEpoch::new(epoch), number(from), to)
            })
            .collect();
        let mut standing = ShardStanding::new(ShardId::from_value(1));
        standing.end = number(found);
        let cell = ShardCell::new(&standing);
        let mut state = cell.lock();
        let shown: Vec<_> = gaps_of(&mut state, &here, hidden)
            .into_iter()
            .map(|gap| {
                state.jump(gap);
                (gap.from.value(), gap.to.value(), gap.lost)
            })
            .collect();
        assert_eq!(shown, gaps);
        assert_eq!(state.end.value(), end);
    }

    #[test]
    fn numbers_that_lie_elsewhere_are_not_missing() {
        check(&[(0, 0)], 5, false, &[], 5);
        check(&[(0, 5)], 5, false, &[], 5);
        check(&[(0, 5), (6, 0)], 5, false, &[(5, 6, false)], 6);
        check(&[(0, 5), (6, 0)], 8, false, &[], 8);
        check(&[(3, 0)], 0, false, &[(0, 3, false)], 3);
    }

    #[test]
    fn a_stay_that_is_over_ends_where_it_ended() {
        check(&[(0, 5)], 5 + JUMP, false, &[], 5);
        check(&[(0, 5)], 3, false, &[(3, 5, true)], 5);
        check(
            &[(0, 5 + JUMP)],
            5,
            false,
            &[(5, 5 + JUMP, false)],
            5 + JUMP,
        );
        check(&[(0, 5 + JUMP)], 5, true, &[(5, 5 + JUMP, true)], 5 + JUMP);
        let gaps = [(5, 6, true), (6, 9, false)];
        check(&[(0, 6), (9, 0)], 5, false, &gaps, 9);
    }
}
