//! `Consumer.Group`: one member's session; and what is asked about groups beside.
//!
//! The session is one poll function on the call's own task: it takes what the member says, hands it
//! to the broker, and sends what the broker has to say. Nothing is read while too many checkpoints
//! wait for their answer.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use flumen_api::convert::{ConvertError, group_name, member_name, stream_name};
use flumen_api::v1;
use flumen_api::v1::group_request::Request;
use flumen_api::v1::group_response::Response;
use flumen_broker::{
    Broker, Checkpoint, Error, GroupLag, GroupPosition, GroupStatus, InitialPosition, JoinGroup,
    LeaseStatus, LostReason, MemberLease, MemberWord, Membership, SaveCheckpoint, StartPosition,
};
use flumen_record::{GroupName, SequenceNumber, ShardIndex, StreamName, Timestamp};
use http_body::Body;
use tokio::task::coop;

use crate::call::{CallError, meant};
use crate::consumer::start_position;
use crate::drain::{Drain, DrainWait};
use crate::request::{Messages, decode};
use crate::response::{Replies, encode};
use crate::status::Facts;

/// What a member's message decodes as.
const REQUEST: &str = "flumen.v1.GroupRequest";
/// Heartbeats that fit into a session timeout.
const HEARTBEATS: u32 = 4;
/// Groups of one list.
const LIST_DEFAULT: usize = 100;
const LIST_MAX: usize = 1000;

/// One open session.
pub(crate) struct GroupSession<B> {
    /// Gone once the member says nothing more.
    requests: Option<Messages<B>>,
    member: Membership,
    draining: DrainWait,
    /// Nothing more will be said.
    over: bool,
}

impl<B> GroupSession<B>
where
    B: Body<Data = Bytes> + Unpin + Send + 'static,
{
    /// Opens the session of the member that the first message names.
    pub(crate) async fn open(
        broker: &Broker,
        drain: &Drain,
        mut requests: Messages<B>,
    ) -> Result<Self, Facts> {
        let first = requests.next().await.ok_or(CallError::MessageMissing)??;
        let first: v1::GroupRequest = decode(first, REQUEST)?;
        let Some(Request::Join(join)) = first.request else {
            return Err(ConvertError::Missing { field: "join" }.into());
        };
        let name = stream_name("join.stream", &join.stream)?;
        let stream = join.stream_incarnation;
        let start = match &join.start {
            None => InitialPosition::TrimHorizon,
            some => initial_position(start_position("join.start", some.as_ref())?)?,
        };
        let timeout = join.session_timeout_us;
        let join = JoinGroup {
            group: group_name("join.group", &join.group)?,
            member: member_name("join.member", &join.member)?,
            instance: join.instance,
            session_timeout: (timeout > 0).then(|| Duration::from_micros(timeout)),
            start,
        };
        Ok(Self {
            requests: Some(requests),
            member: broker.join_group(meant(&name, stream), join).await?,
            draining: drain.started(),
            over: false,
        })
    }

    fn take(&mut self, message: Bytes) -> Result<(), Facts> {
        let request: v1::GroupRequest = decode(message, REQUEST)?;
        match request.request {
            Some(Request::Heartbeat(heartbeat)) => self.member.heartbeat(heartbeat.number)?,
            Some(Request::Checkpoints(save)) => {
                let checkpoints = save.checkpoints.iter().map(|one| {
                    let number = SequenceNumber::new(one.sequence_number);
                    let checkpoint = (!one.end_of_shard).then(|| match one.part {
                        Some(part) => Checkpoint::after_part(number, part),
                        None => Checkpoint::after(number),
                    });
                    SaveCheckpoint {
                        shard: ShardIndex::new(one.shard),
                        generation: one.generation,
                        checkpoint,
                        skipped: one.skipped.iter().map(range).collect(),
                    }
                });
                self.member.save(save.request, checkpoints.collect())?;
            }
            Some(Request::Release(release)) => {
                let leases = release.leases.iter();
                let leases = leases.map(|one| (ShardIndex::new(one.shard), one.generation));
                self.member.release(leases.collect())?;
            }
            Some(Request::Leave(_)) => self.member.leave()?,
            Some(Request::Join(_)) => return Err(CallError::MessageExtra.into()),
            None => return Err(ConvertError::Missing { field: "request" }.into()),
        }
        Ok(())
    }

    /// Takes what the member has said. Pending: nothing more yet.
    fn poll_requests(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Facts>> {
        while self.member.has_room() {
            let Some(requests) = &mut self.requests else {
                return Poll::Pending;
            };
            match ready!(requests.poll_next(cx)) {
                Some(Ok(message)) => {
                    if let Err(facts) = self.take(message) {
                        return Poll::Ready(Err(facts));
                    }
                }
                Some(Err(error)) => return Poll::Ready(Err(error.into())),
                // It may still want to hear what is to be said.
                None => self.requests = None,
            }
        }
        Poll::Pending
    }

    /// Takes what the broker has to say, all that is there.
    fn poll_words(&mut self, cx: &mut Context<'_>, pieces: &mut VecDeque<Bytes>) -> Option<Facts> {
        while let Poll::Ready(word) = self.member.poll_word(cx) {
            match said(word) {
                Ok((response, last)) => {
                    pieces.push_back(encode(&v1::GroupResponse {
                        response: Some(response),
                    }));
                    if last {
                        self.over = true;
                        return None;
                    }
                }
                Err(error) => return Some(error.into()),
            }
        }
        None
    }
}

impl<B> Replies for GroupSession<B>
where
    B: Body<Data = Bytes> + Unpin + Send + 'static,
{
    fn poll_reply(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &mut VecDeque<Bytes>,
    ) -> Poll<Option<Result<(), Facts>>> {
        if self.over {
            return Poll::Ready(None);
        }
        // A member that never pauses must not keep others from the thread.
        let turn = ready!(coop::poll_proceed(cx));
        if let Poll::Ready(Err(facts)) = self.poll_requests(cx) {
            self.over = true;
            return Poll::Ready(Some(Err(facts)));
        }
        if let Some(facts) = self.poll_words(cx, pieces) {
            self.over = true;
            return Poll::Ready(Some(Err(facts)));
        }
        if !pieces.is_empty() {
            turn.made_progress();
            return Poll::Ready(Some(Ok(())));
        }
        if Pin::new(&mut self.draining).poll(cx).is_ready() {
            self.over = true;
            return Poll::Ready(Some(Err(Error::Draining.into())));
        }
        if self.requests.is_none() {
            // It has hung up without leaving.
            self.over = true;
            return Poll::Ready(None);
        }
        Poll::Pending
    }
}

/// A word in the wire's words, and whether it is the last.
fn said(word: MemberWord) -> Result<(Response, bool), Error> {
    Ok(match word {
        MemberWord::Joined {
            stream,
            session_timeout,
            kept,
        } => {
            let joined = v1::Joined {
                session_timeout_us: micros(session_timeout),
                heartbeat_us: micros(session_timeout / HEARTBEATS),
                kept: kept.into_iter().map(assigned).collect(),
                stream_incarnation: stream.value(),
            };
            (Response::Joined(joined), false)
        }
        MemberWord::Heartbeat(number) => {
            (Response::Heartbeat(v1::HeartbeatHeard { number }), false)
        }
        MemberWord::Assigned(lease) => {
            let shards = vec![assigned(lease)];
            (Response::Assigned(v1::ShardsAssigned { shards }), false)
        }
        MemberWord::Revoked {
            shard,
            generation,
            deadline,
        } => {
            let revoked = v1::ShardsRevoked {
                leases: vec![lease(shard, generation)],
                deadline_us: micros(deadline),
            };
            (Response::Revoked(revoked), false)
        }
        MemberWord::Lost {
            shard,
            generation,
            reason,
        } => {
            let lost = v1::ShardsLost {
                leases: vec![lease(shard, generation)],
                reason: why_lost(reason).to_owned(),
                finished: reason == LostReason::Finished,
            };
            (Response::Lost(lost), false)
        }
        MemberWord::Saved { request, outcomes } => {
            let refused = outcomes.into_iter().filter_map(|saved| {
                let facts = Facts::from(saved.outcome.err()?);
                Some(v1::CheckpointRefused {
                    shard: saved.shard.value(),
                    refusal: Some(facts.into()),
                })
            });
            let saved = v1::CheckpointsSaved {
                request,
                refused: refused.collect(),
            };
            (Response::Checkpoints(saved), false)
        }
        MemberWord::Left => (Response::Left(v1::Left {}), true),
        MemberWord::Ended(error) => return Err(error),
    })
}

fn range(range: &v1::SkippedRange) -> (SequenceNumber, SequenceNumber) {
    let number = SequenceNumber::new;
    (number(range.from), number(range.to))
}

fn why_lost(reason: LostReason) -> &'static str {
    match reason {
        LostReason::Forced => "it was not released by the deadline",
        LostReason::Reset => "the group was reset",
        LostReason::Finished => "it is processed to its end",
        LostReason::Expired => "it has expired",
    }
}

fn lease(shard: ShardIndex, generation: u64) -> v1::Lease {
    v1::Lease {
        shard: shard.value(),
        generation,
    }
}

fn assigned(lease: MemberLease) -> v1::ShardAssigned {
    let (sequence_number, part) = last(lease.checkpoint);
    v1::ShardAssigned {
        shard: lease.shard.value(),
        generation: lease.generation,
        start: Some(wire_position(lease.start)),
        sequence_number,
        part,
        expired_records: lease.expired_records,
        revoked_us: lease.revoked.map(micros),
    }
}

/// The last record that was processed, and the part of it when it was not all.
fn last(checkpoint: Option<Checkpoint>) -> (Option<u64>, Option<u64>) {
    let last = checkpoint.and_then(Checkpoint::last);
    (
        last.map(|(number, _)| number.value()),
        last.and_then(|(_, part)| part),
    )
}

fn wire_position(start: StartPosition) -> v1::StartPosition {
    use v1::start_position::{Newest, Oldest, Position};

    let position = match start {
        StartPosition::TrimHorizon => Position::TrimHorizon(Oldest {}),
        StartPosition::Latest => Position::Latest(Newest {}),
        StartPosition::At(number) => Position::AtSequenceNumber(number.value()),
        StartPosition::After(number) => Position::AfterSequenceNumber(number.value()),
        StartPosition::AtTimestamp(time) => Position::AtTimestampUs(time.as_micros()),
    };
    v1::StartPosition {
        position: Some(position),
    }
}

/// Where a group may begin: not at a number, which is a place in one shard.
fn initial_position(start: StartPosition) -> Result<InitialPosition, Facts> {
    match start {
        StartPosition::TrimHorizon => Ok(InitialPosition::TrimHorizon),
        StartPosition::Latest => Ok(InitialPosition::Latest),
        StartPosition::AtTimestamp(at) => Ok(InitialPosition::AtTimestamp(at)),
        StartPosition::At(_) | StartPosition::After(_) => Err(ConvertError::Position {
            field: "join.start",
        }
        .into()),
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// [`v1::ListGroupsRequest`].
pub(crate) async fn list(
    broker: &Broker,
    request: v1::ListGroupsRequest,
) -> Result<v1::ListGroupsResponse, Facts> {
    let stream = match request.stream.as_str() {
        "" => None,
        name => Some(stream_name("stream", name)?),
    };
    let after = match request.after.as_str() {
        "" => None,
        after => {
            // Without a slash the group's name is empty, which no name is.
            let (stream, group) = after.split_once('/').unwrap_or((after, ""));
            Some((stream_name("after", stream)?, group_name("after", group)?))
        }
    };
    let limit = match request.limit as usize {
        0 => LIST_DEFAULT,
        limit if limit > LIST_MAX => {
            return Err(Facts::from(Error::OutOfBounds {
                setting: "limit",
                value: u64::from(request.limit),
                min: 1,
                max: LIST_MAX as u64,
            }));
        }
        limit => limit,
    };
    let stream = stream.as_ref();
    let stream = stream.map(|name| meant(name, request.stream_incarnation));
    let (groups, more) = broker.list_groups(stream, after, limit).await?;
    Ok(v1::ListGroupsResponse {
        groups: groups.iter().map(summary).collect(),
        more,
    })
}

fn names(stream: &str, group: &str) -> Result<(StreamName, GroupName), ConvertError> {
    Ok((stream_name("stream", stream)?, group_name("group", group)?))
}

/// [`v1::DescribeGroupRequest`].
pub(crate) async fn describe(
    broker: &Broker,
    request: v1::DescribeGroupRequest,
) -> Result<v1::DescribeGroupResponse, Facts> {
    let (stream, group) = names(&request.stream, &request.group)?;
    let stream = meant(&stream, request.stream_incarnation);
    let state = broker.describe_group(stream, &group).await?;
    let members = state.members.iter().map(|member| v1::GroupMember {
        member: member.member.clone(),
        instance: member.instance,
        connected: member.connected,
        heard_ago_us: micros(member.heard_ago),
        shards: count(member.shards),
    });
    Ok(v1::DescribeGroupResponse {
        summary: Some(summary(&state.status)),
        members: members.collect(),
        shards: state.shards.into_iter().map(shard).collect(),
        forced: state.forced,
    })
}

fn count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn lag(lag: GroupLag) -> v1::Lag {
    v1::Lag {
        records: lag.records,
        bytes: lag.bytes,
        age_us: micros(lag.age),
    }
}

fn summary(group: &GroupStatus) -> v1::GroupSummary {
    v1::GroupSummary {
        stream: group.stream.to_string(),
        group: group.group.to_string(),
        members: count(group.members),
        shards: count(group.shards),
        lag: Some(lag(group.lag)),
        stream_incarnation: group.incarnation.value(),
        expired_records: group.expired.records,
        expired_unknown: !group.expired.is_exact,
    }
}

fn shard(shard: GroupPosition) -> v1::GroupShard {
    use v1::GroupShardState::{Finished, Free, Held, Revoked, Waiting};

    let (state, member) = match shard.lease {
        LeaseStatus::Waiting => (Waiting, String::new()),
        LeaseStatus::Free => (Free, String::new()),
        LeaseStatus::Held(member) => (Held, member),
        LeaseStatus::Revoked(member) => (Revoked, member),
        LeaseStatus::Finished => (Finished, String::new()),
    };
    let (sequence_number, part) = last(shard.checkpoint.map(|(checkpoint, _)| checkpoint));
    let checkpointed = shard.checkpoint.map_or(Timestamp::ZERO, |(_, at)| at);
    v1::GroupShard {
        shard: shard.shard.value(),
        state: state.into(),
        member,
        generation: shard.generation,
        sequence_number,
        part,
        checkpointed_us: checkpointed.as_micros(),
        lag: Some(lag(shard.lag)),
        expired_records: shard.expired_records,
        beyond_end: shard.is_beyond_end,
    }
}

/// [`v1::ResetGroupRequest`].
pub(crate) async fn reset(
    broker: &Broker,
    request: v1::ResetGroupRequest,
) -> Result<v1::ResetGroupResponse, Facts> {
    let (stream, group) = names(&request.stream, &request.group)?;
    let to = start_position("to", request.to.as_ref())?;
    let shards = request.shards.into_iter().map(ShardIndex::new).collect();
    let (force, dry_run) = (request.force, request.dry_run);
    let stream = meant(&stream, request.stream_incarnation);
    let resets = broker.reset_group(stream, &group, shards, to, force, dry_run);
    let resets = resets.await?.into_iter().map(|reset| v1::ShardReset {
        shard: reset.shard.value(),
        before: reset.before.map(SequenceNumber::value),
        after: reset.after.value(),
    });
    Ok(v1::ResetGroupResponse {
        shards: resets.collect(),
    })
}

/// [`v1::DeleteGroupRequest`].
pub(crate) async fn delete(
    broker: &Broker,
    request: v1::DeleteGroupRequest,
) -> Result<v1::DeleteGroupResponse, Facts> {
    let (stream, group) = names(&request.stream, &request.group)?;
    let stream = meant(&stream, request.stream_incarnation);
    broker.delete_group(stream, &group, request.force).await?;
    Ok(v1::DeleteGroupResponse {})
}
