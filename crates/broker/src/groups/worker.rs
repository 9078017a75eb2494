//! The loop: everything that came since the last round is one step, one round of the groups' log,
//! one sync; then members are told.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flumen_log::WriteError;
use flumen_record::{GroupName, StreamId, Timestamp};
use flumen_stream::group::{
    Answer, Assignment, Coordinator, Effect, Event, FencedReason, GroupChange, GroupError,
    GroupLog, GroupLogError, ReadFrom, RequestId, SessionId, ShardFacts, Step,
};
use flumen_stream::{ShardState, StartPosition, StreamInfo};
use tokio::sync::oneshot;

use super::member::{MemberLease, MemberQueue, MemberWord, fenced};
use super::taking::{Sessions, Taken, alive};
use super::{Groups, Input, Look};
use crate::Error;
use crate::node::Node;
use flumen_world::{Now, Running, SpawnError, Turn, lock};

/// When the disk has no room for the log to rest, it is tried again this much later.
const REST_AGAIN: Duration = Duration::from_secs(5);
/// A step that did not fit on the disk is tried again this often.
const TRY_AGAIN: Duration = Duration::from_millis(200);

struct Worker {
    groups: Arc<Groups>,
    /// The last durable catalog record, which rounds name.
    catalog_record: Arc<AtomicU64>,
    log: GroupLog,
    coordinator: Coordinator,
    sessions: Sessions,
    asked: BTreeMap<RequestId, oneshot::Sender<Result<Answer, GroupError>>>,
    /// Groups that are asked to be deleted.
    deleting: BTreeMap<RequestId, (StreamId, GroupName)>,
    /// What is decided and did not fit on the disk, and when it is tried again: nothing else is decided
    /// before.
    stuck: Option<(Duration, Decided)>,
    /// That it did not fit was said.
    said: bool,
}

/// A step that is not carried out yet.
struct Decided {
    step: Step,
    looks: Vec<Look>,
    /// Streams that are gone.
    deleted: Vec<StreamId>,
    at: Duration,
}

/// Starts the loop, and tells it the shards of every stream that has groups.
pub(crate) fn start(
    node: &Arc<Node>,
    log: GroupLog,
    coordinator: Coordinator,
) -> Result<(), SpawnError> {
    let groups = Arc::clone(&node.groups);
    let _ = groups.reader.set(log.reader());
    let known: Vec<StreamId> = coordinator.streams().collect();
    let there = node.streams.all();
    let there: BTreeMap<StreamId, _> = there
        .iter()
        .map(|stream| (stream.state().info.id, stream))
        .collect();
    for stream in known {
        let told = match there.get(&stream) {
            Some(there) => groups.tell_shards(there, []),
            None => groups.happened(Event::StreamDeleted { stream }),
        };
        told.expect("BUG: a loop that has not started has ended");
    }
    let worker = Worker {
        groups: Arc::clone(&groups),
        catalog_record: Arc::clone(&node.catalog_record),
        log,
        coordinator: coordinator.with_bounds(groups.bounds()),
        sessions: Sessions::new(&groups),
        asked: BTreeMap::new(),
        deleting: BTreeMap::new(),
        stuck: None,
        said: false,
    };
    let mut turns = Turns {
        groups: Arc::clone(&groups),
        worker: Some(worker),
    };
    let turn = Box::new(move |now| turns.turn(now));
    let running = Running::start(&*node.world, "groups", turn)?;
    groups.runs(running);
    Ok(())
}

/// What groups need to know of a stream's shards.
pub(super) fn shards_of(info: &StreamInfo) -> Event {
    let facts = info.shards.iter().map(|shard| ShardFacts {
        shard: shard.id.index(),
        parents: shard.parents.clone(),
        end: match shard.state {
            ShardState::Open => None,
            ShardState::Closed { end, .. } => Some(end),
        },
    });
    Event::ShardsChanged {
        stream: info.id,
        shards: facts.collect(),
    }
}

/// What the loop does next.
enum Next {
    Turn(Turn),
    /// It was told to end, and everything said before is decided and durable.
    Close,
}

/// The loop's hold on the worker, which is gone when the loop has ended.
struct Turns {
    groups: Arc<Groups>,
    worker: Option<Worker>,
}

impl Turns {
    fn turn(&mut self, now: Now) -> Turn {
        match catch_unwind(AssertUnwindSafe(|| self.try_turn(now))) {
            Ok(turn) => turn,
            Err(_) => {
                tracing::error!("consumer groups: panicked; groups need a restart");
                self.groups.fail();
                self.worker = None;
                Turn::Ended
            }
        }
    }

    fn try_turn(&mut self, now: Now) -> Turn {
        let next = match &mut self.worker {
            Some(worker) => worker.turn(now),
            None => return Turn::Ended,
        };
        match (next, self.worker.take()) {
            (Ok(Next::Turn(turn)), worker) => {
                self.worker = worker;
                return turn;
            }
            (Ok(Next::Close), Some(worker)) => worker.close(now.wall),
            (Err(error), Some(worker)) => worker.fail(&error),
            (_, None) => {}
        }
        Turn::Ended
    }
}

impl Worker {
    /// One step, or what is due, or another try of the step that the disk had no room for.
    fn turn(&mut self, now: Now) -> Result<Next, GroupLogError> {
        let decided = match self.stuck.take() {
            Some((again, decided)) => {
                let stop = lock(&self.groups.inbox).stop;
                if now.monotonic < again && !stop {
                    self.stuck = Some((again, decided));
                    return Ok(Next::Turn(Turn::Wait(Some(again))));
                }
                decided
            }
            None => match self.groups.take() {
                Some(inputs) => self.decide(inputs, now),
                None if self.sessions.waiting.is_empty() => return Ok(Next::Close),
                None => self.decide(Vec::new(), now),
            },
        };
        match self.commit(&decided.step, now) {
            Ok(()) => self.carry_out(decided),
            // Nothing that waiting helps against.
            Err(error @ GroupLogError::Write(WriteError::Poisoned | WriteError::Gone(_))) => {
                return Err(error);
            }
            Err(GroupLogError::Write(error)) => {
                if !std::mem::replace(&mut self.said, true) {
                    tracing::warn!(%error, "consumer groups: the log cannot be written, trying again");
                }
                if lock(&self.groups.inbox).stop {
                    return Err(GroupLogError::Write(error));
                }
                let again = now.monotonic.saturating_add(TRY_AGAIN);
                self.stuck = Some((again, decided));
                return Ok(Next::Turn(Turn::Wait(Some(again))));
            }
            Err(error) => return Err(error),
        }
        self.said = false;
        if !self.sessions.waiting.is_empty() || lock(&self.groups.inbox).stop {
            return Ok(Next::Turn(Turn::Again));
        }
        let rest = match self.log.rest(now.wall) {
            Ok(rest) => rest.map(|rest| rest.max(TRY_AGAIN)),
            // It needs little, and has time.
            Err(GroupLogError::Write(_)) => Some(REST_AGAIN),
            Err(error) => return Err(error),
        };
        let rest = rest.map(|rest| now.monotonic.saturating_add(rest));
        let deadline = self.coordinator.next_deadline().into_iter().chain(rest);
        Ok(Next::Turn(Turn::Wait(deadline.min())))
    }

    /// Decides about what came, as much as fits into a step.
    fn decide(&mut self, inputs: Vec<Input>, now: Now) -> Decided {
        // Whoever waits for its turn is alive.
        for session in inputs.iter().filter_map(alive) {
            self.coordinator.heard(now.monotonic, session);
        }
        self.sessions.waiting.extend(inputs);
        let mut taken = Taken {
            sessions: &mut self.sessions,
            asked: &mut self.asked,
            deleting: &mut self.deleting,
            looks: Vec::new(),
            deleted: Vec::new(),
        };
        let coordinator = &mut self.coordinator;
        let step = coordinator.step_bounded(now.monotonic, now.wall, &mut taken);
        Decided {
            step,
            looks: taken.looks,
            deleted: taken.deleted,
            at: now.monotonic,
        }
    }

    /// Lets go of what readers are checked by for shards that are no more.
    fn unfence(&self, step: &Step) {
        for change in &step.changes {
            if let GroupChange::ShardExpired { group, shard, .. } = change
                && let Some((stream, group)) = self.coordinator.name_of(*group)
            {
                self.groups.fences.forget_shard(stream, group, *shard);
            }
        }
    }

    /// Makes a step durable.
    fn commit(&mut self, step: &Step, now: Now) -> Result<(), GroupLogError> {
        self.log
            .know_catalog(self.catalog_record.load(Ordering::Acquire));
        if step.changes.is_empty() {
            return Ok(());
        }
        self.log.commit(step, &self.coordinator, now.wall)?;
        self.groups.counters.rounds.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// What was decided is durable: everybody is told.
    fn carry_out(&mut self, decided: Decided) {
        self.unfence(&decided.step);
        for effect in decided.step.effects {
            self.tell(effect, decided.at);
        }
        for stream in decided.deleted {
            self.groups.fences.forget_stream(stream);
        }
        for look in decided.looks {
            look(&self.coordinator);
        }
        let counters = &self.groups.counters;
        let groups = self.coordinator.group_count() as u64;
        counters.groups.store(groups, Ordering::Relaxed);
        let lost = self.coordinator.leases_lost();
        counters.leases_lost.store(lost, Ordering::Relaxed);
        let sessions = self.sessions.queues.len() as u64;
        if counters.sessions.swap(sessions, Ordering::Relaxed) == 0 && sessions > 0 {
            self.groups.busy.notify_one();
        }
    }

    /// Closes the log in order.
    fn close(mut self, wall: Timestamp) {
        let closing = lock(&self.groups.inbox).closing.take();
        let Some(done) = closing else { return };
        self.log
            .know_catalog(self.catalog_record.load(Ordering::Acquire));
        let closed = self.log.close(wall).map_err(|error| {
            tracing::error!(%error, "consumer groups: the log did not close");
            Error::GroupsFailed
        });
        // Who asked may be gone.
        let _ = done.send(closed);
    }

    /// Nothing more can be decided: everybody is told.
    fn fail(mut self, error: &GroupLogError) {
        tracing::error!(%error, "the log of consumer groups has failed; groups need a restart");
        self.groups.fail();
        // Only now: who asked learns why.
        self.asked.clear();
    }

    fn tell(&mut self, effect: Effect, now: Duration) {
        let counters = &self.groups.counters;
        let (session, word) = match effect {
            Effect::Joined {
                session,
                session_timeout,
                leases,
            } => {
                let Some(queue) = self.sessions.queues.get(&session) else {
                    return;
                };
                let kept = leases.into_iter();
                let kept = kept.map(|lease| self.lease(queue, lease, now)).collect();
                let joined = MemberWord::Joined {
                    stream: queue.stream.incarnation,
                    session_timeout,
                    kept,
                };
                (session, joined)
            }
            Effect::Refused { session, error } => return self.refuse(session, error),
            Effect::HeartbeatAnswered { session, beat } => (session, MemberWord::Heartbeat(beat)),
            Effect::Assigned { session, lease } => {
                counters.leases_granted.fetch_add(1, Ordering::Relaxed);
                let Some(queue) = self.sessions.queues.get(&session) else {
                    return;
                };
                (session, MemberWord::Assigned(self.lease(queue, lease, now)))
            }
            Effect::Revoked {
                session,
                shard,
                generation,
                deadline,
            } => {
                let revoked = MemberWord::Revoked {
                    shard,
                    generation: generation.value(),
                    deadline: deadline.saturating_sub(now),
                };
                (session, revoked)
            }
            Effect::Lost {
                session,
                shard,
                generation,
                reason,
            } => {
                let lost = MemberWord::Lost {
                    shard,
                    generation: generation.value(),
                    reason,
                };
                (session, lost)
            }
            Effect::Fenced { session, reason } => return self.fence(session, reason),
            Effect::Left { session } => return self.farewell(session),
            Effect::Answered { id, answer } => return self.answer(id, answer),
        };
        let told = self
            .sessions
            .queues
            .get(&session)
            .is_none_or(|queue| queue.tell(word));
        if !told {
            // Its connection has broken, or it reads nothing, which it is told.
            self.sessions.queues.remove(&session);
            let _ = self.groups.happened(Event::SessionLost { session });
        }
    }

    fn refuse(&mut self, session: SessionId, error: GroupError) {
        if let Some(queue) = self.sessions.queues.remove(&session) {
            let error = Error::group(&queue.stream.name, error);
            queue.end(error);
        }
    }

    fn farewell(&mut self, session: SessionId) {
        if let Some(queue) = self.sessions.queues.remove(&session) {
            queue.left();
        }
    }

    fn fence(&mut self, session: SessionId, reason: FencedReason) {
        let Some(queue) = self.sessions.queues.remove(&session) else {
            return;
        };
        queue.end(fenced(&queue, reason));
    }

    fn answer(&mut self, id: RequestId, answer: Result<Answer, GroupError>) {
        if let Ok(Answer::Checkpoints(outcomes)) = &answer {
            let saved = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
            let counters = &self.groups.counters;
            counters
                .checkpoints
                .fetch_add(saved as u64, Ordering::Relaxed);
        }
        if let Some((stream, group)) = self.deleting.remove(&id)
            && matches!(answer, Ok(Answer::Deleted))
        {
            // Before leases of a group that is made anew under the name.
            self.groups.fences.forget(stream, &group);
        }
        if let Some(asked) = self.asked.remove(&id) {
            // Who asked may be gone.
            let _ = asked.send(answer);
        }
    }

    /// A lease in the words of a reader.
    fn lease(&self, queue: &MemberQueue, lease: Assignment, now: Duration) -> MemberLease {
        self.groups.fences.granted(
            queue.stream.state().info.id,
            &queue.group,
            lease.shard,
            lease.watch.clone(),
        );
        MemberLease {
            shard: lease.shard,
            generation: lease.generation.value(),
            start: match lease.from {
                ReadFrom::At(from) => StartPosition::At(from),
                ReadFrom::TrimHorizon => StartPosition::TrimHorizon,
                ReadFrom::AtTimestamp(at) => StartPosition::AtTimestamp(at),
            },
            checkpoint: lease.checkpoint,
            expired_records: lease.expired,
            revoked: lease.revoked.map(|at| at.saturating_sub(now)),
        }
    }
}
