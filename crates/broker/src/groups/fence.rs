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
    groups: RwLock<HashMap<(StreamId, GroupName), OfGroup>>,
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
        let mut groups = write(&self.groups);
        let group = groups.entry((stream, group.clone())).or_default();
        group.insert(shard, watch);
    }

    /// A group is gone.
    pub(super) fn forget(&self, stream: StreamId, group: &GroupName) {
        write(&self.groups).remove(&(stream, group.clone()));
    }

    /// A stream is gone.
    pub(super) fn forget_stream(&self, stream: StreamId) {
        write(&self.groups).retain(|(of, _), _| *of != stream);
    }

    /// What a reader for this lease is to check before it hands records out.
    pub(crate) fn guard(
        &self,
        stream: StreamId,
        group: &GroupName,
        shard: ShardIndex,
        generation: u64,
    ) -> Result<LeaseGuard, Error> {
        let groups = read(&self.groups);
        let watch = groups
            .get(&(stream, group.clone()))
            .and_then(|group| group.get(&shard));
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
