//! What can be asked about groups, and done to them.

use std::time::Duration;

use flumen_api::convert::ConvertError;
use flumen_api::v1;
use flumen_record::{GroupName, SequenceNumber, ShardIndex, StreamName, Timestamp};

use crate::consumer::wire;
use crate::{Client, Error, StartPosition};

/// What is stored and not processed yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lag {
    /// Records.
    pub records: u64,
    /// Stored bytes; of a long backlog an estimate.
    pub bytes: u64,
    /// Age of the oldest of them.
    pub age: Duration,
}

/// A group at a glance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupSummary {
    /// Its stream.
    pub stream: StreamName,
    /// Its name.
    pub group: GroupName,
    /// Members.
    pub members: u32,
    /// Shards that are not finished.
    pub shards: u32,
    /// Over all shards; the age is that of the oldest record.
    pub lag: Lag,
    /// Records that expired before they were processed, also in shards that are no more: so many at
    /// least.
    pub expired_records: u64,
    /// More may have expired, unknown how many.
    pub expired_unknown: bool,
}

/// A group in full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupDescription {
    /// At a glance.
    pub summary: GroupSummary,
    /// Its members, by name.
    pub members: Vec<MemberDescription>,
    /// Its shards, by index.
    pub shards: Vec<ShardProgress>,
    /// Hand-overs that reached their deadline.
    pub forced: u64,
}

/// One member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberDescription {
    /// Its name.
    pub member: String,
    /// Whether its session is open.
    pub connected: bool,
    /// When it was last heard.
    pub heard_ago: Duration,
    /// Shards it holds.
    pub shards: u32,
}

/// One shard of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardProgress {
    /// Which.
    pub shard: ShardIndex,
    /// Who has it.
    pub lease: ShardLease,
    /// Of the last lease.
    pub generation: u64,
    /// The last record that was processed, and its last part that was when not all of it was.
    pub checkpoint: Option<(SequenceNumber, Option<u64>)>,
    /// When that was saved.
    pub checkpointed: Option<Timestamp>,
    /// What is left.
    pub lag: Lag,
    /// Records that expired before they were processed; `None`: it is not known how many.
    pub expired_records: Option<u64>,
    /// The checkpoint is beyond the end of the shard; nothing is read until it is reset.
    pub is_beyond_end: bool,
}

/// Who has a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShardLease {
    /// It waits for its parents to be finished.
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

/// Which shards are reset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResetScope {
    /// All of the stream.
    All,
    /// These.
    Shards(Vec<ShardIndex>),
}

/// What a reset does to one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardReset {
    /// Which.
    pub shard: ShardIndex,
    /// Where the group would have gone on; `None`: where it begins.
    pub before: Option<SequenceNumber>,
    /// Where it goes on.
    pub after: SequenceNumber,
}

impl Client {
    /// Up to `limit` groups (0: 100), of one stream or of all, after one of a page before; and
    /// whether there are more.
    ///
    /// # Errors
    /// When there is no such stream, or the broker does not answer.
    pub async fn list_groups(
        &self,
        stream: Option<&StreamName>,
        after: Option<(&StreamName, &GroupName)>,
        limit: u32,
    ) -> Result<(Vec<GroupSummary>, bool), Error> {
        let mut admin = self.admin();
        let call = admin.list_groups(v1::ListGroupsRequest {
            stream: stream.map(ToString::to_string).unwrap_or_default(),
            after: after
                .map(|(stream, group)| format!("{stream}/{group}"))
                .unwrap_or_default(),
            limit,
            stream_incarnation: 0,
        });
        let response = self.call(self.config().call_timeout, call).await?;
        let groups = response.groups.into_iter().map(summary);
        let groups = groups.collect::<Result<_, _>>();
        Ok((self.made_sense(groups)?, response.more))
    }

    /// Members, leases, checkpoints and lag of a group.
    ///
    /// # Errors
    /// When there is no such group.
    pub async fn describe_group(
        &self,
        stream: &StreamName,
        group: &GroupName,
    ) -> Result<GroupDescription, Error> {
        let mut admin = self.admin();
        let call = admin.describe_group(v1::DescribeGroupRequest {
            stream: stream.to_string(),
            group: group.to_string(),
            stream_incarnation: 0,
        });
        let response = self.call(self.config().call_timeout, call).await?;
        self.made_sense(description(response))
    }

    /// Moves where a group goes on. Refused while members hold the shards, unless forced: then their
    /// leases end first. A dry run only says what would change; otherwise a group that is not there
    /// comes into being, so that its first member begins there.
    ///
    /// # Errors
    /// When there is no such stream or shard, the position is not there, or members hold the shards.
    pub async fn reset_group(
        &self,
        stream: &StreamName,
        group: &GroupName,
        scope: &ResetScope,
        to: StartPosition,
        force: bool,
        dry_run: bool,
    ) -> Result<Vec<ShardReset>, Error> {
        let shards = match scope {
            ResetScope::All => Vec::new(),
            ResetScope::Shards(shards) => shards.iter().map(|shard| shard.value()).collect(),
        };
        let mut admin = self.admin();
        let call = admin.reset_group(v1::ResetGroupRequest {
            stream: stream.to_string(),
            group: group.to_string(),
            shards,
            to: Some(wire(to)),
            force,
            dry_run,
            stream_incarnation: 0,
        });
        let response = self.call(self.config().call_timeout, call).await?;
        let resets = response.shards.into_iter().map(|reset| ShardReset {
            shard: ShardIndex::new(reset.shard),
            before: reset.before.map(SequenceNumber::new),
            after: SequenceNumber::new(reset.after),
        });
        Ok(resets.collect())
    }

    /// Deletes a group with its checkpoints. Refused while it has members, unless forced.
    ///
    /// # Errors
    /// When there is no such group, or it has members.
    pub async fn delete_group(
        &self,
        stream: &StreamName,
        group: &GroupName,
        force: bool,
    ) -> Result<(), Error> {
        let mut admin = self.admin();
        let call = admin.delete_group(v1::DeleteGroupRequest {
            stream: stream.to_string(),
            group: group.to_string(),
            force,
            stream_incarnation: 0,
        });
        self.call(self.config().call_timeout, call).await?;
        Ok(())
    }

    fn made_sense<T>(&self, converted: Result<T, ConvertError>) -> Result<T, Error> {
        converted.map_err(|error| Error::nonsense(self.endpoint(), &error.to_string()))
    }
}

fn lag(lag: Option<v1::Lag>) -> Lag {
    let lag = lag.unwrap_or_default();
    Lag {
        records: lag.records,
        bytes: lag.bytes,
        age: Duration::from_micros(lag.age_us),
    }
}

fn summary(group: v1::GroupSummary) -> Result<GroupSummary, ConvertError> {
    Ok(GroupSummary {
        stream: flumen_api::convert::stream_name("stream", &group.stream)?,
        group: flumen_api::convert::group_name("group", &group.group)?,
        members: group.members,
        shards: group.shards,
        lag: lag(group.lag),
        expired_records: group.expired_records,
        expired_unknown: group.expired_unknown,
    })
}

fn description(group: v1::DescribeGroupResponse) -> Result<GroupDescription, ConvertError> {
    let missing = ConvertError::Missing { field: "summary" };
    let members = group.members.into_iter().map(|member| MemberDescription {
        member: member.member,
        connected: member.connected,
        heard_ago: Duration::from_micros(member.heard_ago_us),
        shards: member.shards,
    });
    Ok(GroupDescription {
        summary: summary(group.summary.ok_or(missing)?)?,
        members: members.collect(),
        shards: group.shards.into_iter().map(progress).collect(),
        forced: group.forced,
    })
}

fn progress(shard: v1::GroupShard) -> ShardProgress {
    use v1::GroupShardState::{Finished, Free, Held, Revoked, Unspecified, Waiting};

    let state = shard.state();
    let lease = match state {
        Waiting => ShardLease::Waiting,
        Held => ShardLease::Held(shard.member),
        Revoked => ShardLease::Revoked(shard.member),
        Finished => ShardLease::Finished,
        Free | Unspecified => ShardLease::Free,
    };
    ShardProgress {
        shard: ShardIndex::new(shard.shard),
        lease,
        generation: shard.generation,
        checkpoint: shard
            .sequence_number
            .map(|number| (SequenceNumber::new(number), shard.part)),
        checkpointed: (shard.checkpointed_us > 0)
            .then(|| Timestamp::from_micros(shard.checkpointed_us)),
        lag: lag(shard.lag),
        expired_records: shard.expired_records,
        is_beyond_end: shard.beyond_end,
    }
}
