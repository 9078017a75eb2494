//! Who may read for a group: the leases that were granted, without asking the thread that grants.

use std::collections::HashMap;
use std::sync::RwLock;

use flumen_record::{GroupName, ShardIndex, StreamId};
use flumen_stream::group::{Generation, LeaseWatch};

use crate::Error;
use flumen_world::{read, write};

type OfGroup = HashMap<ShardIndex, LeaseWatch>;

/// Leases that were granted since the node was started, also those that are over.
#[derive(Debug, Default)]
pub(crate) struct Fences {
    streams: RwLock<HashMap<StreamId, HashMap<GroupName, OfGroup>>>,
}

impl Fences {
    /// A lease was granted.
    pub(super) fn granted(
        &self,
        stream: StreamId,
        group: &GroupName,
        shard: ShardIndex,
        watch: LeaseWatch,
    ) {
        let mut streams = write(&self.streams);
        let groups = streams.entry(stream).or_default();
        let shards = groups.entry(group.clone()).or_default();
        shards.insert(shard, watch);
    }

    /// A group is gone.
    pub(super) fn forget(&self, stream: StreamId, group: &GroupName) {
        let mut streams = write(&self.streams);
        if let Some(groups) = streams.get_mut(&stream) {
            groups.remove(group);
            if groups.is_empty() {
                streams.remove(&stream);
            }
        }
    }

    /// A shard is gone.
    pub(super) fn forget_shard(&self, stream: StreamId, group: &GroupName, shard: ShardIndex) {
        let mut streams = write(&self.streams);
        let groups = streams.get_mut(&stream);
        if let Some(shards) = groups.and_then(|groups| groups.get_mut(group)) {
            shards.remove(&shard);
        }
    }

    /// A stream is gone.
    pub(super) fn forget_stream(&self, stream: StreamId) {
        write(&self.streams).remove(&stream);
    }

    /// Of how many leases it knows, and of how many streams.
    #[cfg(test)]
    pub(super) fn len(&self) -> (usize, usize) {
        let streams = read(&self.streams);
        let groups = streams.values().flat_map(HashMap::values);
        (groups.map(HashMap::len).sum(), streams.len())
    }

    /// What a reader for this lease is to check before it hands records out.
    pub(crate) fn guard(
        &self,
        stream: StreamId,
        group: &GroupName,
        shard: ShardIndex,
        generation: u64,
    ) -> Result<LeaseGuard, Error> {
        let streams = read(&self.streams);
        let groups = streams.get(&stream);
        let watch = groups.and_then(|groups| groups.get(group)?.get(&shard));
        let stale = Error::StaleLease { shard, generation };
        let guard = LeaseGuard {
            watch: watch.ok_or_else(|| stale.clone())?.clone(),
            shard,
            generation: Generation::new(generation),
        };
        guard.check().map(|()| guard)
    }
}

/// A lease that somebody reads for.
#[derive(Debug, Clone)]
pub struct LeaseGuard {
    watch: LeaseWatch,
    shard: ShardIndex,
    generation: Generation,
}

impl LeaseGuard {
    /// [`Error::StaleLease`] once the lease is over.
    pub fn check(&self) -> Result<(), Error> {
        if self.watch.is_current(self.generation) {
            return Ok(());
        }
        Err(Error::StaleLease {
            shard: self.shard,
            generation: self.generation.value(),
        })
    }
}
