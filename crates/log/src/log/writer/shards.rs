//! Shards as they come into a log and jump in it.

use std::sync::Arc;

use flumen_record::{SequenceNumber, ShardId};

use super::{NewFrame, Writer, WriterShard};
use crate::control::Control;
use crate::index::ShardCell;
use crate::state::{Gap, ShardStanding};

impl Writer {
    /// Notes where shards jump in front of `frames` and finds their cells.
    pub(crate) fn prepare_shards(&mut self, frames: &[NewFrame]) {
        let mut last: Option<ShardId> = None;
        for frame in frames {
            if last == Some(frame.shard) {
                continue;
            }
            last = Some(frame.shard);
            self.prepare_shard(frame.shard, frame.base);
        }
    }

    fn prepare_shard(&mut self, shard: ShardId, base: SequenceNumber) {
        if let Some(known) = self.shards.get_mut(&shard) {
            debug_assert!(base >= known.end, "BUG: sequence numbers never go back");
            if base > known.end {
                self.jumps.push(Control::Jump {
                    shard,
                    from: known.end,
                    to: base,
                    lost: false,
                });
                known.end = base;
            }
            return;
        }
        self.open_shard(shard, base);
    }

    /// Takes in the shards that jump in a round that is written again, and of which nothing else is
    /// known.
    pub(crate) fn prepare_jumping(&mut self, controls: &[Control]) {
        for control in controls {
            if let Control::Jump { shard, from, .. } = *control
                && !self.shards.contains_key(&shard)
            {
                self.open_shard(shard, from);
            }
        }
    }

    /// Takes in a shard of which the log holds nothing (any more).
    fn open_shard(&mut self, shard: ShardId, base: SequenceNumber) -> Arc<ShardCell> {
        // It was forgotten and has come back before that was written.
        self.forgets.retain(|forgotten| *forgotten != shard);
        self.shared.forgetting().remove(&shard);
        let mut standing = ShardStanding::new(shard);
        standing.horizon = base;
        standing.end = base;
        let cell = ShardCell::new(&standing);
        // What it had here before is dead once the disk says so.
        cell.lock().durable_horizon = SequenceNumber::ZERO;
        self.shared.index.insert(Arc::clone(&cell));
        let known = WriterShard {
            cell: Arc::clone(&cell),
            end: base,
        };
        self.shards.insert(shard, known);
        if base > SequenceNumber::ZERO {
            self.jumps.push(Control::Trim {
                shard,
                before: base,
            });
        }
        cell
    }

    /// [`crate::Log::jump`].
    pub(crate) fn jump(
        &mut self,
        shard: ShardId,
        from: SequenceNumber,
        to: SequenceNumber,
        lost: bool,
    ) {
        let (cell, from) = match self.shards.get(&shard) {
            Some(known) => (Arc::clone(&known.cell), known.end),
            None => (self.open_shard(shard, from), from),
        };
        if to <= from {
            return;
        }
        cell.lock().jump(Gap { from, to, lost });
        if let Some(known) = self.shards.get_mut(&shard) {
            known.end = to;
        }
        self.jumps.push(Control::Jump {
            shard,
            from,
            to,
            lost,
        });
    }
}
