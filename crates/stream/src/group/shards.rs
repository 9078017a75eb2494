//! The shards of streams that have groups, as the coordinator was told last.

use std::collections::BTreeMap;

use flumen_record::{SequenceNumber, ShardIndex};

use super::ShardFacts;

/// The shards of a stream.
#[derive(Debug, Clone, Default)]
pub(super) struct Stream {
    pub(super) shards: BTreeMap<ShardIndex, ShardFacts>,
    /// By parent, also of those that are no more.
    children: BTreeMap<ShardIndex, Vec<ShardIndex>>,
    /// Bytes per second, smoothed.
    pub(super) loads: BTreeMap<ShardIndex, u64>,
}

/// What became different of a stream's shards.
#[derive(Debug, Default)]
pub(super) struct ShardsDiff {
    pub(super) new: Vec<ShardIndex>,
    pub(super) closed: Vec<ShardIndex>,
    /// With where they had ended, if they had.
    pub(super) gone: Vec<(ShardIndex, Option<SequenceNumber>)>,
}

impl Stream {
    /// Takes in what its shards are now.
    pub(super) fn replace(&mut self, shards: Vec<ShardFacts>) -> ShardsDiff {
        let mut diff = ShardsDiff::default();
        let new: BTreeMap<_, _> = shards
            .into_iter()
            .map(|facts| (facts.shard, facts))
            .collect();
        for (index, facts) in &new {
            match self.shards.get(index) {
                None => {
                    diff.new.push(*index);
                    for parent in &facts.parents {
                        self.children.entry(*parent).or_default().push(*index);
                    }
                }
                Some(before) if before.end != facts.end => diff.closed.push(*index),
                Some(_) => {}
            }
        }
        if new.len() < self.shards.len() + diff.new.len() {
            let gone = self.shards.values();
            let gone = gone.filter(|before| !new.contains_key(&before.shard));
            diff.gone = gone.map(|before| (before.shard, before.end)).collect();
        }
        for (index, _) in &diff.gone {
            self.loads.remove(index);
        }
        self.shards = new;
        diff
    }

    /// The shards that came out of one.
    pub(super) fn children(&self, parent: ShardIndex) -> &[ShardIndex] {
        self.children.get(&parent).map_or(&[], Vec::as_slice)
    }

    pub(super) fn end(&self, shard: ShardIndex) -> Option<SequenceNumber> {
        self.shards.get(&shard).and_then(|facts| facts.end)
    }
}
