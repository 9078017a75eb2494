//! The task that speaks with the broker for a member: joins, heartbeats, checkpoints, releases; and
//! starts and ends the workers of its shards.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use flumen_api::v1;
use flumen_api::v1::group_request::Request;
use flumen_api::v1::group_response::Response;
use flumen_record::{MemberName, ShardIndex, StreamIncarnation, StreamName};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::events::Events;
use super::leases::{Gap, Grant, Leases, Progress};
use super::session::{Session, grant};
use super::worker::{self, Hold, WorkerContext};
use super::{GroupConfig, GroupEvent, GroupStats, Handler};
use crate::consumer::wire;
use crate::description::micros;
use crate::retry::{Backoff, RetryPolicy, random_seed};
use crate::{Client, ConsumeError, Error, reason};

/// Words of workers that wait for the driver.
const WORDS_MAX: usize = 1024;
/// How long a leaving member waits for the broker's last word.
const LEAVE_PATIENCE: Duration = Duration::from_secs(5);

/// What a worker tells the driver.
#[derive(Debug)]
pub(super) enum Word {
    /// Records are processed.
    Processed {
        shard: ShardIndex,
        generation: u64,
        progress: Progress,
        records: u64,
    },
    /// Records were gone before they could be read.
    Skipped {
        shard: ShardIndex,
        generation: u64,
        gap: Gap,
    },
    /// An attempt failed.
    Failed,
    /// A record is in the dead-letter stream.
    DeadLettered,
    /// Nothing more will be processed under this lease.
    Done { shard: ShardIndex, generation: u64 },
}

struct Driver<H> {
    client: Client,
    stream: StreamName,
    /// Which of that name; unset until it has joined. What is not processed, and what is not saved,
    /// belongs to it alone.
    incarnation: StreamIncarnation,
    config: Arc<GroupConfig>,
    member: MemberName,
    instance: u64,
    handler: Arc<H>,
    events: Events,
    stopping: watch::Receiver<bool>,
    leases: Leases,
    workers: HashMap<ShardIndex, watch::Sender<Hold>>,
    /// Until when handlers may run.
    fence: watch::Sender<Instant>,
    words: mpsc::Sender<Word>,
    heard: mpsc::Receiver<Word>,
    requests: u64,
    stats: GroupStats,
    leaving: bool,
}

/// Joins, and returns the task that goes on from there.
pub(super) async fn start<H: Handler>(
    client: Client,
    stream: StreamName,
    config: GroupConfig,
    handler: H,
    stopping: watch::Receiver<bool>,
    events: Events,
) -> Result<impl Future<Output = Result<GroupStats, ConsumeError>> + Send, ConsumeError> {
    let member = match &config.member {
        Some(member) => member.clone(),
        None => random_member(),
    };
    let (fence, _) = watch::channel(Instant::now());
    let (words, heard) = mpsc::channel(WORDS_MAX);
    let mut driver = Driver {
        client,
        stream,
        incarnation: StreamIncarnation::default(),
        config: Arc::new(config),
        member,
        instance: random_seed(),
        handler: Arc::new(handler),
        events,
        stopping,
        leases: Leases::default(),
        workers: HashMap::new(),
        fence,
        words,
        heard,
        requests: 0,
        stats: GroupStats::default(),
        leaving: false,
    };
    let session = driver.join().await?;
    Ok(driver.run(session))
}

fn random_member() -> MemberName {
    let name = format!("member-{:016x}", random_seed());
    name.parse().expect("BUG: hexadecimal digits make a name")
}

impl<H: Handler> Driver<H> {
    async fn run(mut self, session: Session) -> Result<GroupStats, ConsumeError> {
        let mut session = session;
        loop {
            let error = match self.converse(&mut session).await {
                Ok(()) => return Ok(self.stats),
                Err(error) => error,
            };
            self.leases.disconnected();
            // Silent for too long: its shards are given away, and it begins anew.
            let may_join_again = error.reason() == reason::MEMBER_EXPIRED;
            if !error.is_retryable() && !may_join_again {
                self.lose_all(&error.to_string());
                return Err(ConsumeError::Refused(error));
            }
            tracing::info!(stream = %self.stream, group = %self.config.group, %error, "consumer group: session broken, joining again");
            drop(session);
            session = match self.join().await {
                Ok(session) => session,
                Err(error) => {
                    self.lose_all(&error.to_string());
                    return Err(error);
                }
            };
        }
    }

    /// Opens a session, trying again for as long as an outage is ridden out. Workers go on meanwhile,
    /// up to the fence.
    async fn join(&mut self) -> Result<Session, ConsumeError> {
        let mut backoff = Backoff::new(RetryPolicy::default(), random_seed());
        let begun = Instant::now();
        loop {
            let error = match self.try_join().await {
                Ok(session) => return Ok(session),
                Err(error) if error.is_retryable() => error,
                Err(error) => return Err(ConsumeError::Refused(error)),
            };
            let waited = begun.elapsed();
            if waited > self.config.retry_for || *self.stopping.borrow() {
                return Err(ConsumeError::Unavailable {
                    waited,
                    last: error,
                });
            }
            let next = Instant::now() + backoff.next(error.retry_after());
            self.listen_until(next).await;
        }
    }

    /// Hears workers until then, so that they are not held up by an outage.
    async fn listen_until(&mut self, then: Instant) {
        loop {
            tokio::select! {
                () = sleep_until(then) => return,
                Some(word) = self.heard.recv() => self.hear(word),
            }
        }
    }

    async fn try_join(&mut self) -> Result<Session, Error> {
        let join = v1::JoinGroup {
            stream: self.stream.to_string(),
            group: self.config.group.to_string(),
            member: self.member.to_string(),
            instance: self.instance,
            session_timeout_us: micros(self.config.session_timeout),
            start: Some(wire(self.config.start)),
            stream_incarnation: self.incarnation.value(),
        };
        // Heard by the broker after now: its timeout begins no earlier.
        let sent = Instant::now();
        let (session, kept) = Session::open(&self.client, join).await?;
        let (stream, found) = (&self.stream, session.stream);
        self.client
            .check_incarnation(stream, self.incarnation, found)?;
        self.incarnation = found;
        self.move_fence(sent, session.session_timeout);
        for (shard, generation) in self.leases.not_among(&kept) {
            self.lose(shard, generation, "it was given away during an outage");
        }
        let member = self.member.clone();
        let joined = GroupEvent::Joined {
            member,
            kept: kept.len(),
        };
        self.tell(joined);
        kept.iter().for_each(|grant| self.assigned(grant));
        Ok(session)
    }

    /// Handlers may run until the broker's timeout, counted from a moment before it heard from us.
    fn move_fence(&self, heard_after: Instant, session_timeout: Duration) {
        let margin = self.config.margin.min(session_timeout / 2);
        self.fence
            .send_replace(heard_after + session_timeout.saturating_sub(margin));
    }

    /// Speaks until the session breaks; `Ok` when the member has left.
    async fn converse(&mut self, session: &mut Session) -> Result<(), Error> {
        let mut heartbeats = interval(session.session_timeout / 4);
        heartbeats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut checkpoints = interval(
            self.config
                .checkpoint_interval
                .max(Duration::from_millis(1)),
        );
        checkpoints.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut give_up: Option<Instant> = None;
        loop {
            self.release(session).await?;
            if self.leaving && self.leases.are_settled() && give_up.is_none() {
                let leave = Request::Leave(v1::LeaveGroup {});
                session.say(&self.client, leave).await?;
                give_up = Some(Instant::now() + LEAVE_PATIENCE);
            }
            let silent_at = session.silent_at();
            tokio::select! {
                biased;
                _ = heartbeats.tick() => session.beat(&self.client).await?,
                response = session.responses.message() => {
                    let response = response.map_err(|status| self.client.failure(&status))?;
                    let Some(response) = response else {
                        return if give_up.is_some() {
                            Ok(())
                        } else {
                            Err(Error::session_ended(self.client.endpoint()))
                        };
                    };
                    if self.answer(session, response) {
                        return Ok(());
                    }
                }
                Some(word) = self.heard.recv() => {
                    self.hear(word);
                    // What came meanwhile, at once.
                    while let Ok(word) = self.heard.try_recv() {
                        self.hear(word);
                    }
                    if self.leaving {
                        self.save(session).await?;
                    }
                }
                _ = checkpoints.tick() => self.save(session).await?,
                () = stopped(&mut self.stopping), if !self.leaving => {
                    self.leaving = true;
                    self.workers.values().for_each(|worker| {
                        worker.send_replace(Hold::Revoked);
                    });
                }
                () = until(give_up) => return Ok(()),
                () = sleep_until(silent_at) => return Err(session.silence(&self.client)),
            }
        }
    }

    /// Sends what is processed and not saved.
    async fn save(&mut self, session: &Session) -> Result<(), Error> {
        let request = self.requests + 1;
        let save = self.leases.take_unsaved(request);
        if save.is_empty() {
            return Ok(());
        }
        self.requests = request;
        let checkpoints = save.into_iter().map(|save| {
            let (number, end) = match save.progress {
                Progress::Through(number) => (number.value(), false),
                Progress::End => (0, true),
            };
            v1::Checkpoint {
                shard: save.shard.value(),
                generation: save.generation,
                sequence_number: number,
                part: None,
                end_of_shard: end,
                skipped: save.skipped.into_iter().map(range).collect(),
            }
        });
        let checkpoints = v1::SaveCheckpoints {
            request,
            checkpoints: checkpoints.collect(),
        };
        session
            .say(&self.client, Request::Checkpoints(checkpoints))
            .await
    }

    /// Gives back what is done and saved.
    async fn release(&mut self, session: &Session) -> Result<(), Error> {
        let released = self.leases.take_released(self.leaving);
        if released.is_empty() {
            return Ok(());
        }
        let leases = released.into_iter().map(|(shard, generation)| {
            self.workers.remove(&shard);
            v1::Lease {
                shard: shard.value(),
                generation,
            }
        });
        let leases = leases.collect();
        session
            .say(&self.client, Request::Release(v1::ReleaseLeases { leases }))
            .await
    }

    /// Takes the broker's word; `true` when it was the last.
    fn answer(&mut self, session: &mut Session, response: v1::GroupResponse) -> bool {
        match response.response {
            Some(Response::Heartbeat(heard)) => {
                if let Some(sent) = session.heard(heard.number) {
                    self.move_fence(sent, session.session_timeout);
                }
            }
            Some(Response::Assigned(assigned)) => {
                for shard in &assigned.shards {
                    self.assigned(&grant(shard));
                }
            }
            Some(Response::Revoked(revoked)) => {
                for lease in revoked.leases {
                    self.revoked(ShardIndex::new(lease.shard), lease.generation);
                }
            }
            Some(Response::Lost(lost)) => {
                for lease in lost.leases {
                    let shard = ShardIndex::new(lease.shard);
                    if lost.finished {
                        self.finished(shard, lease.generation);
                    } else {
                        self.lose(shard, lease.generation, &lost.reason);
                    }
                }
            }
            Some(Response::Checkpoints(saved)) => self.saved(saved),
            Some(Response::Left(_)) => return true,
            // Said once, in front; or by a broker that is newer than this.
            Some(Response::Joined(_)) | None => {}
        }
        false
    }

    fn saved(&mut self, saved: v1::CheckpointsSaved) {
        let mut refused = Vec::with_capacity(saved.refused.len());
        for refusal in saved.refused {
            let shard = ShardIndex::new(refusal.shard);
            let reason = refusal.refusal.map(Error::of_refusal);
            let reason = reason.as_ref().map_or("", |error| error.message());
            tracing::warn!(stream = %self.stream, %shard, reason, "a checkpoint was refused");
            refused.push(shard);
        }
        let (durable, finished) = self.leases.saved(saved.request, &refused);
        self.stats.checkpoints += durable;
        for shard in finished {
            self.workers.remove(&shard);
            self.tell(GroupEvent::Finished { shard });
        }
    }

    fn assigned(&mut self, grant: &Grant) {
        if !self.leases.grant(grant) {
            return;
        }
        self.tell(GroupEvent::Assigned {
            shard: grant.shard,
            generation: grant.generation,
            expired_records: grant.expired_records,
        });
        let first = if self.leaving || grant.revoked {
            Hold::Revoked
        } else {
            Hold::Held
        };
        let (hold, held) = watch::channel(first);
        if let Some(before) = self.workers.insert(grant.shard, hold) {
            before.send_replace(Hold::Lost);
        }
        worker::start(
            WorkerContext {
                client: self.client.clone(),
                stream: self.stream.clone(),
                incarnation: self.incarnation,
                config: Arc::clone(&self.config),
                words: self.words.clone(),
                events: self.events.clone(),
                fence: self.fence.subscribe(),
                hold: held,
            },
            grant,
            Arc::clone(&self.handler),
        );
    }

    fn revoked(&mut self, shard: ShardIndex, generation: u64) {
        if !self.leases.holds(shard, generation) {
            return;
        }
        self.leases.revoked(shard, generation);
        if let Some(worker) = self.workers.get(&shard) {
            worker.send_if_modified(|hold| {
                let held = *hold == Hold::Held;
                if held {
                    *hold = Hold::Revoked;
                }
                held
            });
        }
        self.tell(GroupEvent::Revoked { shard });
    }

    fn lose(&mut self, shard: ShardIndex, generation: u64, reason: &str) {
        if !self.leases.drop(shard, generation) {
            return;
        }
        if let Some(worker) = self.workers.remove(&shard) {
            worker.send_replace(Hold::Lost);
        }
        self.stats.lost += 1;
        self.tell(GroupEvent::Lost {
            shard,
            reason: reason.to_owned(),
        });
    }

    /// The broker knew before us that nothing is left of a shard.
    fn finished(&mut self, shard: ShardIndex, generation: u64) {
        if !self.leases.drop(shard, generation) {
            return;
        }
        if let Some(worker) = self.workers.remove(&shard) {
            worker.send_replace(Hold::Lost);
        }
        self.tell(GroupEvent::Finished { shard });
    }

    fn lose_all(&mut self, reason: &str) {
        for (shard, generation) in self.leases.not_among(&[]) {
            self.lose(shard, generation, reason);
        }
    }

    fn hear(&mut self, word: Word) {
        match word {
            Word::Processed {
                shard,
                generation,
                progress,
                records,
            } => {
                self.stats.records += records;
                self.leases.processed(shard, generation, progress);
            }
            Word::Skipped {
                shard,
                generation,
                gap,
            } => self.leases.skipped(shard, generation, gap),
            Word::Failed => self.stats.failures += 1,
            Word::DeadLettered => self.stats.dead_lettered += 1,
            Word::Done { shard, generation } => self.leases.done(shard, generation),
        }
    }

    fn tell(&self, event: GroupEvent) {
        self.events.tell(event);
    }
}

fn range((from, to): Gap) -> v1::SkippedRange {
    v1::SkippedRange {
        from: from.value(),
        to: to.value(),
    }
}

/// Resolves when the member is to leave, or nobody holds it any more.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stop| *stop).await;
}

async fn until(then: Option<Instant>) {
    match then {
        Some(then) => sleep_until(then).await,
        None => std::future::pending().await,
    }
}
