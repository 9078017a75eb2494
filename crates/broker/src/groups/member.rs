//! One member's session: what it says goes to the thread, what it is told waits here until taken.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use flumen_record::{
    GroupName, MemberName, SequenceNumber, ShardIndex, StreamIncarnation, Timestamp,
};
use flumen_stream::StartPosition;
use flumen_stream::group::{
    Answer, Checkpoint, CheckpointItem, Coordinator, Event, FencedReason, Generation, GroupError,
    InitialPosition, InstanceId, Join, LostReason, Request, RequestId, SessionId,
};
use tokio::sync::oneshot;

use super::Input;
use crate::Error;
use crate::node::Node;
use crate::streams::{Stream, StreamRef};
use flumen_world::lock;

/// Words that a member has not taken, at most: then its session ends.
const UNREAD_MAX: usize = 64 << 10;

/// Requests to save checkpoints that wait for their answer, of one member.
const SAVING_MAX: usize = 256;
/// Checkpoints in them, and in one of them, at most: more than a stream has shards.
const CHECKPOINTS_MAX: usize = 16 << 10;
/// Ranges that are said with a checkpoint to be skipped, at most.
const SKIPPED_MAX: usize = 64;

/// How a member joins.
#[derive(Debug, Clone)]
pub struct JoinGroup {
    /// The group.
    pub group: GroupName,
    /// Who it is.
    pub member: MemberName,
    /// A random number of its process.
    pub instance: u64,
    /// How long it may be silent; `None`: the default.
    pub session_timeout: Option<Duration>,
    /// Where a new group begins.
    pub start: InitialPosition,
}

/// A lease as a member is told of it.
#[derive(Debug, Clone)]
pub struct MemberLease {
    /// The shard.
    pub shard: ShardIndex,
    /// What everything said about it names.
    pub generation: u64,
    /// Where to begin.
    pub start: StartPosition,
    /// What is processed, when anything is.
    pub checkpoint: Option<Checkpoint>,
    /// Records that expired before it and that nobody processed; `None`: it is not known how many.
    pub expired_records: Option<u64>,
    /// It is revoked already, and taken after this long.
    pub revoked: Option<Duration>,
}

/// What a member is told.
#[derive(Debug)]
pub enum MemberWord {
    /// It is in.
    Joined {
        /// Of which stream of its name.
        stream: StreamIncarnation,
        /// How long it may be silent.
        session_timeout: Duration,
        /// What it has kept.
        kept: Vec<MemberLease>,
    },
    /// Its sign of life arrived.
    Heartbeat(u64),
    /// It has a lease.
    Assigned(MemberLease),
    /// It shall hand a lease over, within this long.
    Revoked {
        /// The shard.
        shard: ShardIndex,
        /// Of the lease.
        generation: u64,
        /// After this long it is taken.
        deadline: Duration,
    },
    /// A lease is over.
    Lost {
        /// The shard.
        shard: ShardIndex,
        /// Of the lease.
        generation: u64,
        /// Why.
        reason: LostReason,
    },
    /// Its checkpoints, each durable or refused, in order.
    Saved {
        /// The number that the member gave them.
        request: u64,
        /// The outcomes.
        outcomes: Vec<SavedCheckpoint>,
    },
    /// It is out, in order.
    Left,
    /// The session is over.
    Ended(Error),
}

/// One checkpoint to save.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaveCheckpoint {
    /// The shard.
    pub shard: ShardIndex,
    /// Of the lease.
    pub generation: u64,
    /// How far. `None`: to the end of the closed shard.
    pub checkpoint: Option<Checkpoint>,
    /// Ranges before it, since the last one, that were gone before they could be read, each up to the
    /// first that is not in it.
    pub skipped: Vec<(SequenceNumber, SequenceNumber)>,
}

/// What became of one checkpoint.
#[derive(Debug)]
pub struct SavedCheckpoint {
    /// The shard.
    pub shard: ShardIndex,
    /// Whether it is durable.
    pub outcome: Result<(), Error>,
}

/// What a member is told and has not taken yet. Words have a bound; the end has a place of its own,
/// so that a member that takes nothing learns of it all the same.
#[derive(Debug)]
pub(crate) struct MemberQueue {
    pub(super) stream: Arc<Stream>,
    pub(super) group: GroupName,
    state: Mutex<QueueState>,
}

#[derive(Debug, Default)]
struct QueueState {
    words: VecDeque<MemberWord>,
    /// Nothing follows it; it is told as often as it is asked for.
    end: Option<End>,
    waker: Option<Waker>,
    /// The session is gone.
    closed: bool,
}

/// How a session ends.
#[derive(Debug, Clone)]
enum End {
    /// In order.
    Left,
    Because(Error),
}

impl MemberQueue {
    pub(super) fn new(stream: Arc<Stream>, group: GroupName) -> Self {
        Self {
            stream,
            group,
            state: Mutex::default(),
        }
    }

    /// Tells the member something. `false`: its session has ended, now if too much is untaken.
    pub(super) fn tell(&self, word: MemberWord) -> bool {
        let mut state = lock(&self.state);
        if state.closed || state.end.is_some() {
            return false;
        }
        let has_room = state.words.len() < UNREAD_MAX;
        if has_room {
            state.words.push_back(word);
        } else {
            // It is told everything anew when it comes back.
            state.words = VecDeque::new();
            state.end = Some(End::Because(Error::MemberUnread));
        }
        wake(state);
        has_room
    }

    /// Tells the member that its session is over: behind what it has not taken, unless it has an end
    /// already.
    pub(super) fn end(&self, error: Error) {
        self.close_with(End::Because(error));
    }

    /// Tells the member that it is out, in order.
    pub(super) fn left(&self) {
        self.close_with(End::Left);
    }

    fn close_with(&self, end: End) {
        let mut state = lock(&self.state);
        state.end.get_or_insert(end);
        wake(state);
    }

    /// Why nothing more is heard from this member.
    fn check(&self) -> Result<(), Error> {
        match &lock(&self.state).end {
            Some(End::Because(error)) => Err(error.clone()),
            Some(End::Left) | None => Ok(()),
        }
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<MemberWord> {
        let mut state = lock(&self.state);
        if let Some(word) = state.words.pop_front() {
            return Poll::Ready(word);
        }
        match &state.end {
            Some(End::Left) => Poll::Ready(MemberWord::Left),
            Some(End::Because(error)) => Poll::Ready(MemberWord::Ended(error.clone())),
            None => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

fn wake(mut state: MutexGuard<'_, QueueState>) {
    let waker = state.waker.take();
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// Checkpoints on their way.
#[derive(Debug)]
struct Saving {
    request: u64,
    shards: Vec<ShardIndex>,
    answer: oneshot::Receiver<Result<Answer, GroupError>>,
}

/// An open session of a member. Dropping it leaves the member its shards until its session timeout.
#[derive(Debug)]
pub struct Membership {
    node: Arc<Node>,
    session: SessionId,
    queue: Arc<MemberQueue>,
    saving: VecDeque<Saving>,
}

impl Node {
    /// [`crate::Broker::join_group`].
    pub(crate) async fn join_group(
        self: &Arc<Self>,
        stream: StreamRef<'_>,
        join: JoinGroup,
    ) -> Result<Membership, Error> {
        let stream = self.groups_of(stream)?;
        let begins = match join.start {
            InitialPosition::AtTimestamp(at) => self.begins(&stream, &join.group, at).await?,
            InitialPosition::TrimHorizon | InitialPosition::Latest => None,
        };
        let session = self.groups.sessions.fetch_add(1, Ordering::Relaxed) + 1;
        let session = SessionId::new(session);
        let queue = Arc::new(MemberQueue::new(Arc::clone(&stream), join.group.clone()));
        let event = Event::Join(Join {
            session,
            stream: stream.state().info.id,
            group: join.group,
            member: join.member,
            instance: InstanceId::new(join.instance),
            session_timeout: join.session_timeout,
            start: join.start,
            begins,
        });
        let opened = Input::Opened(session, Arc::clone(&queue));
        self.groups
            .tell_shards(&stream, [opened, Input::Event(event)])?;
        Ok(Membership {
            node: Arc::clone(self),
            session,
            queue,
            saving: VecDeque::new(),
        })
    }
}

impl Node {
    /// Where a time lies in each shard, if the group is not there yet. Before damage that hides it
    /// the oldest kept is read.
    async fn begins(
        self: &Arc<Self>,
        stream: &Arc<Stream>,
        group: &GroupName,
        at: Timestamp,
    ) -> Result<Option<Vec<(ShardIndex, SequenceNumber)>>, Error> {
        let (id, name) = (stream.state().info.id, group.clone());
        let look = move |coordinator: &Coordinator| coordinator.is_there(id, &name);
        if self.groups.look(look).await? {
            return Ok(None);
        }
        let shards = &stream.state().shards;
        let mut begins = Vec::with_capacity(shards.len());
        for shard in shards {
            let found = self.resolve(shard, StartPosition::AtTimestamp(at)).await;
            let found = found.unwrap_or_else(|error| {
                let (shard, stream) = (shard.id.index(), &stream.name);
                tracing::warn!(%stream, %group, %shard, %error, "consumer group: time not found in a shard, beginning at its oldest record");
                SequenceNumber::ZERO
            });
            begins.push((shard.id.index(), found));
        }
        Ok(Some(begins))
    }
}

impl Membership {
    /// A sign of life; the number comes back.
    pub fn heartbeat(&self, beat: u64) -> Result<(), Error> {
        self.queue.check()?;
        let session = self.session;
        self.node.groups.say(Event::Heartbeat { session, beat })
    }

    /// Saves checkpoints. Answered together, in the order of the calls.
    pub fn save(&mut self, request: u64, checkpoints: Vec<SaveCheckpoint>) -> Result<(), Error> {
        self.queue.check()?;
        let in_bounds = |setting, count: usize, max: usize| match count {
            count if count <= max => Ok(()),
            count => Err(Error::OutOfBounds {
                setting,
                value: count as u64,
                min: 0,
                max: max as u64,
            }),
        };
        let count = checkpoints.len();
        in_bounds("checkpoints of one request", count, CHECKPOINTS_MAX)?;
        let mut items = Vec::with_capacity(checkpoints.len());
        for save in checkpoints {
            let shard = save.shard;
            let ranges = save.skipped.len();
            in_bounds("skipped ranges of one checkpoint", ranges, SKIPPED_MAX)?;
            let checkpoint = match save.checkpoint {
                Some(checkpoint) => checkpoint,
                None => Checkpoint::at(self.end_of(shard)?),
            };
            items.push(CheckpointItem {
                shard,
                generation: Some(Generation::new(save.generation)),
                checkpoint,
                skipped: save.skipped,
            });
        }
        let groups = &self.node.groups;
        let id = RequestId(groups.requests.fetch_add(1, Ordering::Relaxed));
        let (answer, answered) = oneshot::channel();
        let shards = items.iter().map(|item| item.shard).collect();
        let event = Event::Request {
            id,
            stream: self.queue.stream.state().info.id,
            group: self.queue.group.clone(),
            request: Request::Checkpoint {
                session: Some(self.session),
                items,
            },
        };
        // Where shards end is known here; there it must be too, before one is said to be finished.
        groups.tell_shards(
            &self.queue.stream,
            [Input::Asked(id, answer), Input::Event(event)],
        )?;
        self.saving.push_back(Saving {
            request,
            shards,
            answer: answered,
        });
        Ok(())
    }

    /// Where a closed shard ends.
    fn end_of(&self, index: ShardIndex) -> Result<SequenceNumber, Error> {
        let shard = self.queue.stream.shard(index)?;
        shard.closed_at().ok_or(Error::ShardOpen { shard: index })
    }

    /// Gives leases back.
    pub fn release(&self, leases: Vec<(ShardIndex, u64)>) -> Result<(), Error> {
        self.queue.check()?;
        let leases = leases.into_iter();
        let leases = leases.map(|(shard, generation)| (shard, Generation::new(generation)));
        self.node.groups.say(Event::Release {
            session: self.session,
            leases: leases.collect(),
        })
    }

    /// Ends the membership in order.
    pub fn leave(&self) -> Result<(), Error> {
        self.queue.check()?;
        let session = self.session;
        self.node.groups.say(Event::Leave { session })
    }

    /// Whether the answers that are not taken yet are few enough for more to be asked.
    pub fn has_room(&self) -> bool {
        let checkpoints = self.saving.iter().map(|saving| saving.shards.len());
        self.saving.len() < SAVING_MAX && checkpoints.sum::<usize>() < CHECKPOINTS_MAX
    }

    /// The next word for the member.
    pub fn poll_word(&mut self, cx: &mut Context<'_>) -> Poll<MemberWord> {
        if let Some(saving) = self.saving.front_mut()
            && let Poll::Ready(answer) = Pin::new(&mut saving.answer).poll(cx)
        {
            let answer = answer.map_err(|_| self.node.groups.gone());
            let Some(saving) = self.saving.pop_front() else {
                return Poll::Pending;
            };
            return Poll::Ready(self.saved(saving, answer));
        }
        self.queue.poll(cx)
    }

    fn saved(
        &self,
        saving: Saving,
        answer: Result<Result<Answer, GroupError>, Error>,
    ) -> MemberWord {
        let stream = &self.queue.stream.name;
        let answer = answer.and_then(|answer| answer.map_err(|error| Error::group(stream, error)));
        let Saving {
            request, shards, ..
        } = saving;
        let outcomes = match answer {
            Ok(Answer::Checkpoints(outcomes)) => shards
                .into_iter()
                .zip(outcomes)
                .map(|(shard, outcome)| SavedCheckpoint {
                    shard,
                    outcome: outcome.map_err(Error::Checkpoint),
                })
                .collect(),
            Ok(Answer::Reset(_) | Answer::Deleted) => Vec::new(),
            Err(error) => shards
                .into_iter()
                .map(|shard| SavedCheckpoint {
                    shard,
                    outcome: Err(error.clone()),
                })
                .collect(),
        };
        MemberWord::Saved { request, outcomes }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        lock(&self.queue.state).closed = true;
        let session = self.session;
        // When the thread is gone there is nobody to tell.
        let _ = self.node.groups.happened(Event::SessionLost { session });
    }
}

/// Why a session was ended, for its member.
pub(super) fn fenced(queue: &MemberQueue, reason: FencedReason) -> Error {
    match reason {
        FencedReason::Replaced | FencedReason::Superseded => Error::MemberReplaced,
        FencedReason::Silent | FencedReason::NotMember => Error::MemberExpired,
        // With its stream, or by itself.
        FencedReason::Deleted => match queue.stream.check_exists() {
            Err(error) => error,
            Ok(()) => Error::GroupNotFound {
                stream: queue.stream.name.clone(),
                group: queue.group.clone(),
            },
        },
    }
}
