//! Producers of which a shard remembers no batch any more, only what comes next from each: small, so
//! that many may take turns on one shard, and enough to tell a batch that is new from one that was
//! stored before.

use std::collections::{BTreeMap, BTreeSet};

use flumen_record::{ProducerId, SequenceNumber};

/// What is left of a producer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rest {
    /// The sequence that comes next.
    pub(crate) next: u64,
    /// Where its last batch begins.
    pub(crate) last: SequenceNumber,
}

/// The table, bounded by whoever puts producers in.
#[derive(Debug, Default)]
pub(crate) struct Resting {
    by_id: BTreeMap<ProducerId, Rest>,
    /// The longest unused first.
    by_last: BTreeSet<(SequenceNumber, ProducerId)>,
}

impl Resting {
    pub(crate) fn get(&self, id: ProducerId) -> Option<Rest> {
        self.by_id.get(&id).copied()
    }

    /// Puts a producer to rest. With more than `most` of them the longest unused is forgotten, which
    /// is returned: nobody knows any more what it sent.
    pub(crate) fn put(&mut self, id: ProducerId, rest: Rest, most: usize) -> Option<ProducerId> {
        self.take(id);
        self.by_id.insert(id, rest);
        self.by_last.insert((rest.last, id));
        if self.by_id.len() <= most {
            return None;
        }
        let (_, forgotten) = self.by_last.pop_first()?;
        self.by_id.remove(&forgotten);
        Some(forgotten)
    }

    /// Takes a producer out: it has come back.
    pub(crate) fn take(&mut self, id: ProducerId) -> Option<Rest> {
        let rest = self.by_id.remove(&id)?;
        self.by_last.remove(&(rest.last, id));
        Some(rest)
    }

    /// All of them, by id.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (ProducerId, Rest)> {
        self.by_id.iter().map(|(id, rest)| (*id, *rest))
    }
}
