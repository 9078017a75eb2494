//! The thread: everything that came since the last round is one step, one round of the groups' log,
//! one sync; then members are told.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flumen_record::{GroupName, StreamId};
use flumen_stream::group::{
    Answer, Assignment, Coordinator, Effect, Event, FencedReason, GroupError, GroupLog,
    GroupLogError, ReadFrom, Request, RequestId, SessionId, ShardFacts, Step,
};
use flumen_stream::{ShardState, StartPosition, StreamInfo};
use tokio::sync::oneshot;

use super::member::{MemberLease, MemberQueue, MemberWord, fenced};
use super::{Groups, Input};
use crate::node::Node;
use crate::{Clock, Error};
use flumen_world::lock;

/// Without anything to do the log is given the chance to rest this often.
const REST_EVERY: Duration = Duration::from_secs(5);
/// A step that did not fit on the disk is tried again this often.
const TRY_AGAIN: Duration = Duration::from_millis(200);

struct Worker {
    groups: Arc<Groups>,
    clock: Clock,
    /// The last durable catalog record, which rounds name.
    catalog_record: Arc<AtomicU64>,
    log: GroupLog,
    coordinator: Coordinator,
    sessions: Sessions,
    asked: HashMap<RequestId, oneshot::Sender<Result<Answer, GroupError>>>,
    /// Groups that are asked to be deleted.
    deleting: HashMap<RequestId, (StreamId, GroupName)>,
}

/// The members that are told things. However the thread ends, they are told that too.
struct Sessions {
    groups: Arc<Groups>,
    queues: HashMap<SessionId, Arc<MemberQueue>>,
}

impl Drop for Sessions {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.groups.failed.store(true, Ordering::Release);
        }
        let error = self.groups.gone();
        for queue in self.queues.values() {
            queue.end(error.clone());
        }
    }
}

/// Starts the thread, and tells it the shards of every stream that has groups.
pub(crate) fn start(node: &Arc<Node>, log: GroupLog, coordinator: Coordinator) {
    let groups = Arc::clone(&node.groups);
    let _ = groups.reader.set(log.reader());
    let known: Vec<StreamId> = coordinator.streams().collect();
    for stream in known {
        let there = node.streams.all();
        let there = there.iter().find(|one| one.state().info.id == stream);
        let told = match there {
            Some(there) => groups.tell_shards(there, []),
            None => groups.say(Event::StreamDeleted { stream }),
        };
        told.expect("BUG: the inbox of a thread that has not started is full");
    }
    let worker = Worker {
        groups: Arc::clone(&groups),
        clock: node.clock.clone(),
        catalog_record: Arc::clone(&node.catalog_record),
        log,
        coordinator,
        sessions: Sessions {
            groups: Arc::clone(&groups),
            queues: HashMap::new(),
        },
        asked: HashMap::new(),
        deleting: HashMap::new(),
    };
    let thread = std::thread::Builder::new()
        .name("groups".to_owned())
        .spawn(move || {
            let groups = Arc::clone(&worker.groups);
            if catch_unwind(AssertUnwindSafe(|| worker.run())).is_err() {
                tracing::error!(
                    "the thread of consumer groups has panicked; groups need a restart"
                );
                groups.fail();
            }
        })
        .expect("BUG: the system refuses a thread");
    *lock(&groups.thread) = Some(thread);
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

impl Worker {
    fn run(mut self) {
        while let Some(inputs) = self.groups.wait(Some(self.patience())) {
            if let Err(error) = self.step(inputs) {
                return self.fail(&error);
            }
        }
        let closing = lock(&self.groups.inbox).closing.take();
        let Some(done) = closing else { return };
        self.log
            .know_catalog(self.catalog_record.load(Ordering::Acquire));
        let closed = self.log.close(self.clock.now());
        let closed = closed.map_err(|error| {
            tracing::error!(%error, "the log of consumer groups did not close");
            Error::GroupsFailed
        });
        // Who asked may be gone.
        let _ = done.send(closed);
    }

    /// How long there is nothing to do when nothing comes.
    fn patience(&self) -> Duration {
        let now = self.clock.monotonic();
        let deadline = self.coordinator.next_deadline();
        deadline.map_or(REST_EVERY, |at| at.saturating_sub(now).min(REST_EVERY))
    }

    fn step(&mut self, inputs: Vec<Input>) -> Result<(), GroupLogError> {
        let idle = inputs.is_empty();
        let mut looks = Vec::new();
        let mut events = Vec::with_capacity(inputs.len());
        for input in inputs {
            match input {
                Input::Event(event) => events.push(event),
                Input::Opened(session, queue) => {
                    self.sessions.queues.insert(session, queue);
                }
                Input::Asked(id, answer) => {
                    self.asked.insert(id, answer);
                }
                Input::Look(look) => looks.push(look),
            }
        }
        for event in &events {
            match event {
                Event::SessionLost { session } => {
                    self.sessions.queues.remove(session);
                }
                Event::Request {
                    id,
                    stream,
                    group,
                    request: Request::Delete { .. },
                } => {
                    self.deleting.insert(*id, (*stream, group.clone()));
                }
                _ => {}
            }
        }
        let (now, wall) = (self.clock.monotonic(), self.clock.now());
        let step = self.coordinator.step(now, wall, events);
        self.commit(&step)?;
        for effect in step.effects {
            self.tell(effect, now);
        }
        for look in looks {
            look(&self.coordinator);
        }
        if idle {
            self.log.rest(wall)?;
        }
        let counters = &self.groups.counters;
        let groups = self.coordinator.group_count() as u64;
        counters.groups.store(groups, Ordering::Relaxed);
        let lost = self.coordinator.leases_lost();
        counters.leases_lost.store(lost, Ordering::Relaxed);
        let sessions = self.sessions.queues.len() as u64;
        counters.sessions.store(sessions, Ordering::Relaxed);
        Ok(())
    }

    /// Makes a step durable, however long the disk is full.
    fn commit(&mut self, step: &Step) -> Result<(), GroupLogError> {
        self.log
            .know_catalog(self.catalog_record.load(Ordering::Acquire));
        if step.changes.is_empty() {
            return Ok(());
        }
        let mut said = false;
        loop {
            match self.log.commit(step, &self.coordinator, self.clock.now()) {
                Ok(()) => break,
                Err(GroupLogError::Write(error)) => {
                    if !std::mem::replace(&mut said, true) {
                        tracing::warn!(%error, "what consumer groups decide cannot be written; trying again");
                    }
                    if lock(&self.groups.inbox).stop {
                        return Err(GroupLogError::Write(error));
                    }
                    std::thread::sleep(TRY_AGAIN);
                }
                Err(error) => return Err(error),
            }
        }
        self.groups.counters.rounds.fetch_add(1, Ordering::Relaxed);
        Ok(())
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
            let _ = self.groups.say(Event::SessionLost { session });
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

    /// A lease in the words of a reader: below what is kept it begins at the horizon.
    fn lease(&self, queue: &MemberQueue, lease: Assignment, now: Duration) -> MemberLease {
        let stream = queue.stream.state();
        let shard = stream.shard(lease.shard);
        self.groups.fences.granted(
            stream.info.id,
            &queue.group,
            lease.shard,
            lease.watch.clone(),
        );
        let (start, checkpoint, expired_records) = match lease.from {
            ReadFrom::TrimHorizon => (StartPosition::TrimHorizon, None, 0),
            ReadFrom::AtTimestamp(at) => (StartPosition::AtTimestamp(at), None, 0),
            ReadFrom::Checkpoint(checkpoint) => {
                let horizon = shard.map(|shard| shard.bounds().trim_horizon);
                let horizon = horizon.unwrap_or_else(|| checkpoint.next());
                let from = checkpoint.next().max(horizon);
                let expired = from.value().saturating_sub(checkpoint.next().value());
                (StartPosition::At(from), Some(checkpoint), expired)
            }
        };
        MemberLease {
            shard: lease.shard,
            generation: lease.generation.value(),
            start,
            checkpoint,
            expired_records,
            revoked: lease.revoked.map(|at| at.saturating_sub(now)),
        }
    }
}
