//! What can be asked about groups without deciding anything.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

use flumen_record::{ShardIndex, StreamId, Timestamp};

use super::{
    Checkpoint, Coordinator, Expired, Generation, GroupName, GroupNumber, InitialPosition,
    InstanceId, LeaseWatch, MemberName, ShardPosition,
};
use crate::group::state::Group;

/// One group in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupSummary {
    /// Its stream.
    pub stream: StreamId,
    /// Its name.
    pub name: GroupName,
    /// How many members it has, also those that are away.
    pub members: usize,
    /// When it came into being.
    pub created: Timestamp,
    /// Where it began in shards that were there.
    pub start: InitialPosition,
}

/// One member of a described group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberDescription {
    /// Its name.
    pub name: MemberName,
    /// Its process.
    pub instance: InstanceId,
    /// How long it may be silent.
    pub session_timeout: Duration,
    /// When it joined.
    pub joined: Timestamp,
    /// Whether it has a session; without one it has until `deadline` to come back.
    pub is_present: bool,
    /// When it counts as gone if nothing is heard, on the monotonic clock.
    pub deadline: Duration,
    /// How many shards it holds.
    pub leases: usize,
}

/// One shard of a described group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardDescription {
    /// The shard.
    pub shard: ShardIndex,
    /// Who holds it.
    pub holder: Option<MemberName>,
    /// The generation of the last grant.
    pub generation: Generation,
    /// When it was last granted or freed.
    pub since: Option<Timestamp>,
    /// If it is being handed over: until when, on the monotonic clock, …
    pub revoked: Option<Duration>,
    /// … and to whom.
    pub target: Option<MemberName>,
    /// How far the group is, and when it said so.
    pub checkpoint: Option<(Checkpoint, Timestamp)>,
    /// Where it goes on.
    pub position: ShardPosition,
    /// All of it is processed.
    pub is_finished: bool,
    /// It waits for its parents.
    pub is_waiting: bool,
}

/// Where a group stands in each shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupPositions {
    /// Its number.
    pub number: GroupNumber,
    /// What expired unread in shards that are no more.
    pub expired: Expired,
    start: InitialPosition,
    first_new_shard: ShardIndex,
    known: Vec<(ShardIndex, ShardPosition)>,
}

impl GroupPositions {
    /// Where it stands in a shard.
    pub fn of(&self, shard: ShardIndex) -> ShardPosition {
        let at = self.known.binary_search_by_key(&shard, |(of, _)| *of);
        let known = at.ok().and_then(|at| self.known.get(at));
        known.map_or_else(
            || ShardPosition::untouched(self.start, self.first_new_shard, shard),
            |(_, position)| *position,
        )
    }

    /// Of how many shards something is written down.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Of none.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}

/// All of one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupDescription {
    /// Its stream.
    pub stream: StreamId,
    /// Its name.
    pub name: GroupName,
    /// Its number.
    pub number: GroupNumber,
    /// When it came into being.
    pub created: Timestamp,
    /// Where it began in shards that were there.
    pub start: InitialPosition,
    /// Hand-overs so far that were not released in time.
    pub forced: u64,
    /// What expired unread in shards that are no more.
    pub expired: Expired,
    /// Its members, in the order in which they joined.
    pub members: Vec<MemberDescription>,
    /// All shards of the stream.
    pub shards: Vec<ShardDescription>,
}

impl Coordinator {
    /// The streams that groups refer to: after a restart the caller tells the shards of each, or
    /// that it was deleted.
    pub fn streams(&self) -> impl Iterator<Item = StreamId> {
        self.state.names.keys().copied()
    }

    /// How many groups there are.
    pub fn group_count(&self) -> usize {
        self.state.groups.len()
    }

    /// Leases that ended without a release since the coordinator was made: members were silent, or
    /// hand-overs forced.
    pub fn leases_lost(&self) -> u64 {
        self.leases_lost
    }

    /// Whether there is such a group.
    pub fn is_there(&self, stream: StreamId, group: &GroupName) -> bool {
        self.state.find(stream, group).is_some()
    }

    /// What a group is called, and which stream it is of.
    pub fn name_of(&self, group: GroupNumber) -> Option<(StreamId, &GroupName)> {
        let group = self.state.groups.get(&group)?;
        Some((group.stream, &group.name))
    }

    /// Groups by stream and name, of one stream or of all, behind `after`, at most `limit`.
    pub fn list(
        &self,
        stream: Option<StreamId>,
        after: Option<(StreamId, &GroupName)>,
        limit: usize,
    ) -> Vec<GroupSummary> {
        let first = match (stream, after) {
            (Some(stream), _) => stream,
            (None, Some((stream, _))) => stream,
            (None, None) => StreamId::default(),
        };
        let streams = self.state.names.range(first..);
        let streams = streams.take_while(|(id, _)| stream.is_none_or(|stream| stream == **id));
        let groups = streams.flat_map(|(id, names)| {
            let after = after.filter(|(stream, _)| stream == id);
            let from = after.map_or(Bound::Unbounded, |(_, name)| Bound::Excluded(name));
            names.range((from, Bound::Unbounded))
        });
        let summary = |(_, number): (_, &GroupNumber)| {
            let group = self.state.groups.get(number)?;
            Some(GroupSummary {
                stream: group.stream,
                name: group.name.clone(),
                members: group.members.len(),
                created: group.created,
                start: group.start,
            })
        };
        groups.filter_map(summary).take(limit).collect()
    }

    /// All of one group.
    pub fn describe(&self, stream: StreamId, name: &GroupName) -> Option<GroupDescription> {
        let number = self.state.find(stream, name)?;
        let group = self.state.groups.get(&number)?;
        let mut leases = BTreeMap::new();
        for holder in group.shards.values().filter_map(|shard| shard.holder) {
            *leases.entry(holder).or_default() += 1;
        }
        let members = group
            .members
            .iter()
            .map(|(number, member)| MemberDescription {
                name: member.name.clone(),
                instance: member.instance,
                session_timeout: member.session_timeout,
                joined: member.joined,
                is_present: member.session.is_some(),
                deadline: member.deadline(),
                leases: leases.get(number).copied().unwrap_or_default(),
            });
        let shards = self.streams.get(&stream).map(|stream| stream.shards.keys());
        let shards = shards.into_iter().flatten();
        Some(GroupDescription {
            stream,
            name: group.name.clone(),
            number,
            created: group.created,
            start: group.start,
            forced: group.forced,
            expired: group.expired,
            members: members.collect(),
            shards: shards
                .map(|shard| self.describe_shard(number, group, *shard))
                .collect(),
        })
    }

    fn describe_shard(
        &self,
        number: GroupNumber,
        group: &Group,
        index: ShardIndex,
    ) -> ShardDescription {
        let end = self
            .streams
            .get(&group.stream)
            .and_then(|stream| stream.end(index));
        let shard = group.shards.get(&index);
        let hand_over = shard.and_then(|shard| shard.hand_over);
        let target = hand_over.and_then(|hand_over| group.members.get(&hand_over.target?));
        let is_finished = shard.is_some_and(|shard| shard.is_finished(end));
        ShardDescription {
            shard: index,
            holder: group.holder_name(index).cloned(),
            generation: shard.map(|shard| shard.generation).unwrap_or_default(),
            since: shard
                .filter(|shard| shard.generation.value() > 0)
                .map(|shard| shard.since),
            revoked: hand_over.map(|hand_over| hand_over.deadline),
            target: target.map(|member| member.name.clone()),
            checkpoint: shard.and_then(|shard| shard.checkpoint),
            position: group.position(index),
            is_finished,
            is_waiting: !is_finished && !self.is_assignable(number, index),
        }
    }

    /// Whether the lease of this generation stands: what a read on behalf of a group is checked by.
    pub fn is_current(
        &self,
        stream: StreamId,
        group: &GroupName,
        shard: ShardIndex,
        generation: Generation,
    ) -> bool {
        let shard = self.shard(stream, group, shard);
        shard.is_some_and(|shard| shard.is_held_under(generation))
    }

    /// What tells readers of a shard that their lease is over.
    pub fn watch(
        &self,
        stream: StreamId,
        group: &GroupName,
        shard: ShardIndex,
    ) -> Option<LeaseWatch> {
        let shard = self.shard(stream, group, shard)?;
        Some(shard.watch.clone())
    }

    /// How far a group is in each shard that it has a checkpoint for, and when it said so.
    pub fn checkpoints<'a>(
        &'a self,
        stream: StreamId,
        group: &GroupName,
    ) -> impl Iterator<Item = (ShardIndex, Checkpoint, Timestamp)> + use<'a> {
        let number = self.state.find(stream, group);
        let group = number.and_then(|number| self.state.groups.get(&number));
        let shards = group.into_iter().flat_map(|group| &group.shards);
        shards.filter_map(|(index, shard)| {
            let (checkpoint, at) = shard.checkpoint?;
            Some((*index, checkpoint, at))
        })
    }

    /// Where a group stands in each shard. `None`: there is no such group.
    pub fn positions(&self, stream: StreamId, group: &GroupName) -> Option<GroupPositions> {
        let number = self.state.find(stream, group)?;
        let group = self.state.groups.get(&number)?;
        let known = group.shards.keys();
        Some(GroupPositions {
            number,
            expired: group.expired,
            start: group.start,
            first_new_shard: group.first_new_shard,
            known: known
                .map(|shard| (*shard, group.position(*shard)))
                .collect(),
        })
    }

    fn shard(
        &self,
        stream: StreamId,
        group: &GroupName,
        shard: ShardIndex,
    ) -> Option<&super::state::Shard> {
        let number = self.state.find(stream, group)?;
        self.state.groups.get(&number)?.shards.get(&shard)
    }
}
