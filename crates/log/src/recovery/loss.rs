//! What is damaged or missing, and which damage explains which missing records.

use flumen_record::{SequenceNumber, ShardId};

use super::Quarantined;
use crate::shared::DamagedRange;

/// Sequence numbers between two runs of a shard.
#[derive(Debug)]
struct Hole {
    shard: ShardId,
    from: SequenceNumber,
    to: SequenceNumber,
    /// The damage found last before it.
    damage: Option<usize>,
    segment: String,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Losses {
    quarantined: Vec<Quarantined>,
    holes: Vec<Hole>,
}

impl Losses {
    /// Something in `segment` is damaged.
    pub(super) fn damage(&mut self, segment: &str, reason: String) {
        self.quarantined.push(Quarantined {
            segment: segment.to_owned(),
            shards: Vec::new(),
            reason,
        });
    }

    /// Records are missing before what was found in `segment`. Whether they were trimmed is known
    /// in the end only.
    pub(super) fn hole(
        &mut self,
        shard: ShardId,
        from: SequenceNumber,
        to: SequenceNumber,
        segment: &str,
    ) {
        self.holes.push(Hole {
            shard,
            from,
            to,
            damage: self.quarantined.len().checked_sub(1),
            segment: segment.to_owned(),
        });
    }

    /// Ties the holes to the damage before them, but for what lies below the `horizon` of a shard
    /// (`None`: it was forgotten). Returns what is lost.
    pub(super) fn settle(
        &mut self,
        horizon: impl Fn(ShardId) -> Option<SequenceNumber>,
    ) -> Vec<DamagedRange> {
        let mut lost = Vec::new();
        for hole in std::mem::take(&mut self.holes) {
            let Some(horizon) = horizon(hole.shard) else {
                continue;
            };
            if hole.to > horizon {
                lost.extend(self.lose(&hole, hole.from.max(horizon)));
            }
        }
        lost
    }

    fn lose(&mut self, hole: &Hole, from: SequenceNumber) -> Option<DamagedRange> {
        let damage = hole.damage.unwrap_or_else(|| {
            let reason = "records before this segment are missing".to_owned();
            self.damage(&hole.segment, reason);
            self.quarantined.len() - 1
        });
        let damage = self.quarantined.get_mut(damage)?;
        damage.shards.push((hole.shard, from, hole.to));
        Some(DamagedRange {
            shard: hole.shard,
            from,
            to: hole.to,
            segment: damage.segment.clone(),
        })
    }

    pub(super) fn into_quarantined(self) -> Vec<Quarantined> {
        self.quarantined
    }
}
