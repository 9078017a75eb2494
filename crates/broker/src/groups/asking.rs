//! What is asked about groups, and done to them from outside.

use std::sync::Arc;
use std::time::Duration;

use flumen_record::{
    GroupName, SequenceNumber, ShardIndex, StreamIncarnation, StreamName, Timestamp,
};
use flumen_stream::StartPosition;
use flumen_stream::group::{
    Answer, Checkpoint, Expired, GroupDescription, Request, Reset, ShardDescription,
};

use super::lag::{backlog, lag, oldest, stand};
use crate::Error;
use crate::node::Node;
use crate::streams::{Stream, StreamRef};

/// What is stored and not processed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GroupLag {
    /// Records.
    pub records: u64,
    /// Stored bytes; of a long backlog an estimate.
    pub bytes: u64,
    /// Age of the oldest of them.
    pub age: Duration,
}

/// Who has a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseStatus {
    /// Its parents are not finished.
    Waiting,
    /// Nobody.
    Free,
    /// This member.
    Held(String),
    /// This member, asked to hand it over.
    Revoked(String),
    /// It is closed and processed to its end.
    Finished,
}

/// One shard of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupPosition {
    /// Which.
    pub shard: ShardIndex,
    /// Who has it.
    pub lease: LeaseStatus,
    /// Of the last lease.
    pub generation: u64,
    /// How far it is processed, and when that was said.
    pub checkpoint: Option<(Checkpoint, Timestamp)>,
    /// What is left.
    pub lag: GroupLag,
    /// Records that expired before they were processed; `None`: it is not known how many.
    pub expired_records: Option<u64>,
    /// The checkpoint is beyond the end of the shard, and nothing is read until it is reset.
    pub is_beyond_end: bool,
}

/// A group at a glance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupStatus {
    /// Its stream.
    pub stream: StreamName,
    /// Which of that name.
    pub incarnation: StreamIncarnation,
    /// Its name.
    pub group: GroupName,
    /// Members.
    pub members: usize,
    /// Shards that are not finished.
    pub shards: usize,
    /// Over all shards; the age is that of the oldest record.
    pub lag: GroupLag,
    /// Records that expired before they were processed, also in shards that are no more.
    pub expired: Expired,
    /// Lag by shard, of those that are not finished.
    pub by_shard: Vec<ShardLag>,
}

/// What is left of one shard, and what is missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardLag {
    /// Which.
    pub shard: ShardIndex,
    /// What is left.
    pub lag: GroupLag,
    /// Records that expired before they were processed.
    pub expired: Expired,
}

/// A group in full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupState {
    /// At a glance.
    pub status: GroupStatus,
    /// Members: name, instance, whether its session is open, when it was last heard, shards.
    pub members: Vec<MemberStatus>,
    /// Shards, by index.
    pub shards: Vec<GroupPosition>,
    /// Hand-overs that reached their deadline.
    pub forced: u64,
}

/// One member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its name.
    pub member: String,
    /// Its process.
    pub instance: u64,
    /// Whether its session is open.
    pub connected: bool,
    /// When it was last heard.
    pub heard_ago: Duration,
    /// Shards that it holds.
    pub shards: usize,
}

/// What a reset does to one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupReset {
    /// Which.
    pub shard: ShardIndex,
    /// Where the group would have gone on; `None`: where it begins.
    pub before: Option<SequenceNumber>,
    /// Where it goes on.
    pub after: SequenceNumber,
}

impl Node {
    /// [`crate::Broker::describe_group`].
    pub(crate) async fn describe_group(
        self: &Arc<Self>,
        stream: StreamRef<'_>,
        group: &GroupName,
    ) -> Result<GroupState, Error> {
        let stream = self.groups_of(stream)?;
        let described = self.described(&stream, group).await?;
        self.state_of(&stream, described).await
    }

    async fn described(
        self: &Arc<Self>,
        stream: &Arc<Stream>,
        group: &GroupName,
    ) -> Result<GroupDescription, Error> {
        let (id, name) = (stream.state().info.id, group.clone());
        let described = self
            .groups
            .look(move |coordinator| coordinator.describe(id, &name))
            .await?;
        described.ok_or_else(|| Error::GroupNotFound {
            stream: stream.name.clone(),
            group: group.clone(),
        })
    }

    /// Adds to what the coordinator knows what is left to process.
    async fn state_of(
        self: &Arc<Self>,
        stream: &Arc<Stream>,
        described: GroupDescription,
    ) -> Result<GroupState, Error> {
        let now = self.clock.now();
        let monotonic = self.clock.monotonic();
        let state = stream.state();
        let mut all = GroupLag::default();
        let mut all_expired = described.expired;
        let mut began = Vec::new();
        let mut by_shard = Vec::new();
        let mut shards = Vec::with_capacity(described.shards.len());
        for shard in &described.shards {
            let mut left = GroupLag::default();
            let mut expired = shard.position.expired;
            let mut is_beyond_end = false;
            if let Some(handle) = state.shard(shard.shard)
                && !shard.is_finished
            {
                let stand = stand(self, handle, &shard.position).await?;
                began.extend(stand.began.map(|at| (shard.shard, at)));
                let behind = backlog(handle, stand.from);
                let first = oldest(self, handle, stand.from, &behind).await?;
                left = lag(&behind, first, now);
                (expired, is_beyond_end) = (stand.expired, stand.is_beyond_end);
            }
            all.add(left);
            all_expired = all_expired.and(expired);
            if !shard.is_finished {
                by_shard.push(ShardLag {
                    shard: shard.shard,
                    lag: left,
                    expired,
                });
            }
            shards.push(GroupPosition {
                shard: shard.shard,
                lease: lease_of(shard),
                generation: shard.generation.value(),
                checkpoint: shard.checkpoint,
                lag: left,
                expired_records: expired.exactly(),
                is_beyond_end,
            });
        }
        self.write_begins(described.number, began);
        let members = described.members.into_iter().map(|member| {
            let left = member.deadline.saturating_sub(monotonic);
            MemberStatus {
                member: member.name.to_string(),
                instance: member.instance.value(),
                connected: member.is_present,
                heard_ago: member.session_timeout.saturating_sub(left),
                shards: member.leases,
            }
        });
        let members: Vec<_> = members.collect();
        Ok(GroupState {
            status: GroupStatus {
                stream: stream.name.clone(),
                incarnation: stream.incarnation,
                group: described.name,
                members: members.len(),
                shards: by_shard.len(),
                lag: all,
                expired: all_expired,
                by_shard,
            },
            members,
            shards,
            forced: described.forced,
        })
    }

    /// [`crate::Broker::reset_group`].
    pub(crate) async fn reset_group(
        self: &Arc<Self>,
        stream: StreamRef<'_>,
        group: &GroupName,
        shards: Vec<ShardIndex>,
        to: StartPosition,
        (force, dry_run): (bool, bool),
    ) -> Result<Vec<GroupReset>, Error> {
        let stream = self.groups_of(stream)?;
        let state = stream.state();
        let shards = if shards.is_empty() {
            state.shards.iter().map(|shard| shard.id.index()).collect()
        } else {
            shards
        };
        let mut resets = Vec::with_capacity(shards.len());
        for index in shards {
            let shard = stream.shard(index)?;
            let at = self.resolve(&shard, to).await?;
            resets.push((index, Checkpoint::at(at)));
        }
        let request = Request::Reset(Reset {
            shards: resets,
            force,
            dry_run,
        });
        match self.groups.ask(&stream, group, request).await? {
            Answer::Reset(report) => Ok(report
                .shards
                .into_iter()
                .map(|reset| GroupReset {
                    shard: reset.shard,
                    before: reset.from.map(Checkpoint::next),
                    after: reset.to.next(),
                })
                .collect()),
            Answer::Checkpoints(_) | Answer::Deleted => Ok(Vec::new()),
        }
    }

    /// [`crate::Broker::delete_group`].
    pub(crate) async fn delete_group(
        self: &Arc<Self>,
        stream: StreamRef<'_>,
        group: &GroupName,
        force: bool,
    ) -> Result<(), Error> {
        let stream = self.groups_of(stream)?;
        let request = Request::Delete { force };
        self.groups.ask(&stream, group, request).await?;
        Ok(())
    }
}

fn lease_of(shard: &ShardDescription) -> LeaseStatus {
    match &shard.holder {
        _ if shard.is_finished => LeaseStatus::Finished,
        Some(holder) if shard.revoked.is_some() => LeaseStatus::Revoked(holder.to_string()),
        Some(holder) => LeaseStatus::Held(holder.to_string()),
        None if shard.is_waiting => LeaseStatus::Waiting,
        None => LeaseStatus::Free,
    }
}
