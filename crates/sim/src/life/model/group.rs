//! Consumer groups: how far each has come, and which leases there were.

use std::collections::BTreeMap;

use flumen_broker::MemberLease;
use flumen_record::StreamId;

use super::{Checked, Model};

/// A group of one life of a stream.
pub(crate) type GroupKey = (StreamId, String);

/// A group's shard.
#[derive(Debug, Default)]
pub(crate) struct HeldModel {
    /// The checkpoint that was acknowledged last.
    pub(crate) saved: Option<u64>,
    /// The furthest that may have been saved without anybody being told.
    pub(crate) tried: Option<u64>,
    /// Everything below was processed, or may be skipped.
    pub(crate) covered: Option<u64>,
    /// The newest lease.
    pub(crate) generation: u64,
    /// It was reset, or may have been: it begins anywhere once.
    pub(crate) is_reset: bool,
}

/// What is known of a group.
#[derive(Debug, Default)]
pub(crate) struct GroupModel {
    pub(crate) shards: BTreeMap<u32, HeldModel>,
    /// It may have been deleted, and be another one by now.
    pub(crate) is_unsure: bool,
}

impl Model {
    pub(crate) fn held(&mut self, key: &GroupKey, shard: u32) -> &mut HeldModel {
        let group = self.groups.entry(key.clone()).or_default();
        group.shards.entry(shard).or_default()
    }

    /// A member is told of a lease.
    pub(crate) fn leased(&mut self, key: &GroupKey, lease: &MemberLease, kept: bool) -> Checked {
        let now = self.look();
        self.time_passed(now);
        let index = lease.shard.value();
        let told = |why: &str| Err(format!("lease {lease:?} of group {key:?}: {why}"));
        let may_jump = self
            .streams
            .get(&key.0)
            .is_none_or(|stream| stream.may_jump);
        let unsure = self.groups.get(key).is_some_and(|group| group.is_unsure);
        if !unsure && !kept {
            self.parents_are_finished(key, index)
                .map_err(|why| format!("lease {lease:?} of group {key:?}: {why}"))?;
        }
        let held = self.held(key, index);
        let before = std::mem::replace(&mut held.generation, lease.generation);
        if !unsure && (lease.generation < before || (lease.generation == before && !kept)) {
            return told(&format!("generation {before} was there before"));
        }
        let checkpoint = lease.checkpoint.map(|it| it.next().value());
        // A group that begins at what comes next has a checkpoint there from the start.
        if held.is_reset || unsure || (before == 0 && held.tried.is_none()) {
            (held.saved, held.covered) = (checkpoint, None);
            return Ok(());
        }
        if checkpoint < held.saved {
            return told(&format!(
                "a checkpoint at {:?} was acknowledged",
                held.saved
            ));
        }
        if checkpoint > held.saved.max(held.tried) {
            let (saved, tried) = (held.saved, held.tried);
            return told(&format!("checkpoints are at {saved:?}, tried {tried:?}"));
        }
        if let (Some(from), flumen_broker::StartPosition::At(at)) = (checkpoint, lease.start)
            && !may_jump
            && let Some(expired) = lease.expired_records
            // What earlier grants have counted is not counted again.
            && expired > at.value().saturating_sub(from)
        {
            return told("more is said to have expired than can have");
        }
        Ok(())
    }

    /// A member begins to read at a number: nothing that is there is skipped.
    pub(crate) fn begins(&mut self, key: &GroupKey, shard: u32, from: u64) -> Checked {
        let held = self.held(key, shard);
        held.is_reset = false;
        let covered = *held.covered.get_or_insert(from);
        if from <= covered {
            return Ok(());
        }
        held.covered = Some(from);
        let stream = self.streams.get(&key.0);
        let known = stream.and_then(|stream| stream.shards.get(&shard));
        let skipped = known.and_then(|known| {
            let mut skipped = known.numbers.range(covered.max(known.horizon)..from);
            skipped.find(|(_, (id, _))| self.record(*id).is_some_and(|it| it.must_exist()))
        });
        match skipped {
            Some((number, _)) => Err(format!(
                "group {key:?} goes on at {from} in shard {shard}, and {number} was not processed"
            )),
            None => Ok(()),
        }
    }

    /// It has processed everything below a number.
    pub(crate) fn processed(&mut self, key: &GroupKey, shard: u32, next: u64) {
        let held = self.held(key, shard);
        held.covered = Some(held.covered.unwrap_or(0).max(next));
    }

    /// A checkpoint is on its way.
    pub(crate) fn saving(&mut self, key: &GroupKey, shard: u32, next: u64) {
        let held = self.held(key, shard);
        held.tried = held.tried.max(Some(next));
    }

    /// It is durable.
    pub(crate) fn saved(&mut self, key: &GroupKey, shard: u32, next: u64) -> Checked {
        let unsure = self.groups.get(key).is_some_and(|group| group.is_unsure);
        let held = self.held(key, shard);
        let before = held.saved;
        held.saved = Some(next);
        if !unsure && !held.is_reset && before > Some(next) {
            return Err(format!(
                "group {key:?}: a checkpoint of shard {shard} went back from {before:?} to {next}"
            ));
        }
        Ok(())
    }

    /// Children come after their parents.
    fn parents_are_finished(&self, key: &GroupKey, index: u32) -> Checked {
        let Some(stream) = self.streams.get(&key.0) else {
            return Ok(());
        };
        let Some(shard) = stream.shards.get(&index) else {
            return Ok(());
        };
        let Some(group) = self.groups.get(key) else {
            return Ok(());
        };
        for parent in &shard.parents {
            let Some(known) = stream.shards.get(parent).filter(|it| !it.is_dropped) else {
                continue;
            };
            let (Some(end), Some(held)) = (known.closed_at, group.shards.get(parent)) else {
                continue;
            };
            let reached = held.saved.max(held.tried);
            let from = reached.unwrap_or(0).max(known.horizon);
            let mut left = known.numbers.range(from..);
            let may_have_expired = !left.any(|(_, (id, _))| {
                let record = self.record(*id);
                record.is_some_and(|it| it.must_exist() && it.sent >= stream.expired_before)
            });
            if may_have_expired {
                continue;
            }
            if !held.is_reset && reached < Some(end) && held.saved.is_some() {
                return Err(format!(
                    "its parent {parent} ends at {end} and is processed up to {reached:?}"
                ));
            }
        }
        Ok(())
    }
}
