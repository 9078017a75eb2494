//! The task of one leased shard: reads, calls the handler, says what is processed.

use std::sync::Arc;

use flumen_record::{SequenceNumber, ShardIndex, StreamIncarnation, StreamName};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Duration, Instant, sleep, sleep_until};

use super::dead_letter;
use super::driver::Word;
use super::events::Events;
use super::failure::NextStep;
use super::leases::{Grant, Progress};
use super::{GroupBatch, GroupConfig, GroupEvent, Handler};
use crate::consumer::{ReadBudget, ReadReply};
use crate::retry::{Backoff, RetryPolicy, random_seed};
use crate::{Client, ConsumedRecord, Error, GapPolicy, StartPosition, reason};

/// How long one read waits for a first record.
const READ_WAIT: Duration = Duration::from_secs(20);

/// What the driver says of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    /// Go on.
    Held,
    /// Finish what is in hand.
    Revoked,
    /// Stop at once.
    Lost,
}

/// What a worker needs.
#[derive(Debug)]
pub(super) struct WorkerContext {
    pub(super) client: Client,
    pub(super) stream: StreamName,
    pub(super) incarnation: StreamIncarnation,
    pub(super) config: Arc<GroupConfig>,
    pub(super) words: mpsc::Sender<Word>,
    pub(super) events: Events,
    pub(super) fence: watch::Receiver<Instant>,
    pub(super) hold: watch::Receiver<Hold>,
}

/// Why a worker goes no further.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Halt {
    /// The lease is gone.
    Lost,
    /// What was in hand is processed, as far as it could be.
    Revoked,
    /// The handler, or a gap, stands in the way.
    Stopped { at: SequenceNumber, reason: String },
}

struct Worker<H> {
    context: WorkerContext,
    handler: Arc<H>,
    shard: ShardIndex,
    generation: u64,
    /// Where the lease begins.
    start: StartPosition,
}

/// Starts the task. It ends when its lease does, or the driver.
pub(super) fn start<H: Handler>(context: WorkerContext, grant: &Grant, handler: Arc<H>) {
    let worker = Worker {
        context,
        handler,
        shard: grant.shard,
        generation: grant.generation,
        start: grant.start,
    };
    tokio::spawn(async move { worker.run().await });
}

/// A read under way, ended when it is dropped.
struct Ahead(JoinHandle<Result<ReadReply, Error>>);

impl Drop for Ahead {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<H: Handler> Worker<H> {
    async fn run(mut self) {
        let halt = match self.work().await {
            Ok(()) => return,
            Err(halt) => halt,
        };
        if let Halt::Stopped { at, reason } = halt {
            let (shard, stream) = (self.shard, &self.context.stream);
            tracing::error!(%stream, %shard, %at, %reason, "a shard of a consumer group stands still");
            self.tell(GroupEvent::Stopped { shard, at, reason });
            // The lease is kept: whoever gets it next would fail at the same record.
            let _ = self.context.hold.wait_for(|hold| *hold != Hold::Held).await;
        }
        let (shard, generation) = (self.shard, self.generation);
        self.say(Word::Done { shard, generation }).await;
    }

    /// To the end of the shard.
    async fn work(&mut self) -> Result<(), Halt> {
        let mut ahead = self.read_ahead(self.start);
        loop {
            let reply = self.take(&mut ahead).await;
            let reply = match reply? {
                Ok(reply) => reply,
                Err((from, gap)) => {
                    ahead = self.step_over(from, gap).await?;
                    continue;
                }
            };
            let end = reply.end_of_shard.is_some();
            let next = StartPosition::At(reply.next);
            if !end {
                ahead = self.read_ahead(next);
            }
            self.process(reply).await?;
            if end {
                let (shard, generation) = (self.shard, self.generation);
                let word = Word::Processed {
                    shard,
                    generation,
                    progress: Progress::End,
                    records: 0,
                };
                self.say(word).await;
                return Ok(());
            }
            self.check()?;
        }
    }

    fn read_ahead(&self, from: StartPosition) -> (StartPosition, Ahead) {
        let (client, stream) = (self.context.client.clone(), self.context.stream.clone());
        let incarnation = self.context.incarnation;
        let (shard, generation) = (self.shard, self.generation);
        let group = self.context.config.group.clone();
        let budget = ReadBudget {
            max_bytes: self.context.config.read_bytes_max,
            max_records: 0,
            max_wait: READ_WAIT,
        };
        let read = async move {
            client
                .read_leased(
                    (&stream, incarnation),
                    shard,
                    from,
                    budget,
                    &group,
                    generation,
                )
                .await
        };
        (from, Ahead(tokio::spawn(read)))
    }

    /// The reply under way, asked for again for as long as the lease lasts. The inner error is a gap.
    async fn take(
        &mut self,
        ahead: &mut (StartPosition, Ahead),
    ) -> Result<Result<ReadReply, (StartPosition, Error)>, Halt> {
        let mut backoff = Backoff::new(RetryPolicy::default(), random_seed());
        loop {
            let read = tokio::select! {
                biased;
                halt = ended(&mut self.context.hold) => return Err(halt),
                read = &mut ahead.1.0 => read,
            };
            let from = ahead.0;
            let error = match read {
                Ok(Ok(reply)) => return Ok(Ok(reply)),
                Ok(Err(error)) => error,
                Err(ended) if ended.is_panic() => std::panic::resume_unwind(ended.into_panic()),
                Err(_) => return Err(Halt::Lost),
            };
            if matches!(error.reason(), reason::TRIMMED | reason::DATA_LOSS) {
                return Ok(Err((from, error)));
            }
            if error.reason() == reason::BEYOND_END {
                // Nothing will ever come there, and what comes before it would be passed over.
                let at = place_of(from).unwrap_or(SequenceNumber::ZERO);
                let reason = format!("{error}; reset the group to read this shard on");
                return Err(Halt::Stopped { at, reason });
            }
            // A stale generation is followed by the word that the lease is lost, or it came already.
            // Whatever else it is: the lease decides how long it is tried.
            tracing::debug!(shard = %self.shard, %error, "a read for a group failed");
            tokio::select! {
                biased;
                halt = ended(&mut self.context.hold) => return Err(halt),
                () = sleep(backoff.next(error.retry_after())) => {}
            }
            *ahead = self.read_ahead(from);
        }
    }

    /// Goes on behind a gap, or stands still before it.
    async fn step_over(
        &self,
        from: StartPosition,
        gap: Error,
    ) -> Result<(StartPosition, Ahead), Halt> {
        let number = |name| gap.metadata(name).and_then(|text| text.parse().ok());
        let (asked, to) = match gap.reason() {
            reason::TRIMMED => (number("asked"), number("horizon")),
            _ => (number("from"), number("to")),
        };
        let at = SequenceNumber::new(asked.unwrap_or(0));
        // What expires between the grant and the first read is as what had expired before it.
        let is_late = from == self.start && gap.reason() == reason::TRIMMED;
        match (self.context.config.gaps, to) {
            (policy, Some(to)) if policy == GapPolicy::Skip || is_late => {
                let to = SequenceNumber::new(to);
                self.say(Word::Skipped {
                    shard: self.shard,
                    generation: self.generation,
                    gap: (at, to),
                })
                .await;
                self.tell(GroupEvent::Skipped {
                    shard: self.shard,
                    from: at,
                    to,
                });
                Ok(self.read_ahead(StartPosition::At(to)))
            }
            _ => {
                let at = place_of(from).unwrap_or(at);
                let reason = gap.to_string();
                Err(Halt::Stopped { at, reason })
            }
        }
    }

    /// Hands all records of a reply to the handler.
    async fn process(&mut self, reply: ReadReply) -> Result<(), Halt> {
        let most = self.context.config.records_max.max(1);
        let mut records = Vec::new();
        for record in reply.batches.iter().flat_map(|batch| batch.records()) {
            match record {
                Ok(record) => records.push(record),
                Err(malformed) => {
                    self.settle(std::mem::take(&mut records)).await?;
                    // No handler can be asked about it.
                    let (at, reason) = (malformed.sequence_number, malformed.to_string());
                    return Err(Halt::Stopped { at, reason });
                }
            }
            if records.len() >= most {
                self.settle(std::mem::take(&mut records)).await?;
            }
        }
        self.settle(records).await
    }

    /// Sees these records through: handled, halved, set aside.
    async fn settle(&mut self, records: Vec<ConsumedRecord>) -> Result<(), Halt> {
        let mut parts = vec![records];
        while let Some(mut part) = parts.pop() {
            let (Some(first), Some(last)) = (part.first(), part.last()) else {
                continue;
            };
            let (at, through) = (first.sequence_number, last.sequence_number);
            let count = part.len();
            let shared = Arc::new(part);
            let failed = self.attempts(&shared).await?;
            let Some(reason) = failed else {
                self.processed(through, count).await;
                continue;
            };
            part = Arc::try_unwrap(shared).unwrap_or_else(|kept| Vec::clone(&kept));
            let config = Arc::clone(&self.context.config);
            match config.on_failure.next_step(count, u32::MAX) {
                NextStep::Halve(left) => {
                    let right = part.split_off(left);
                    parts.push(right);
                    parts.push(part);
                }
                NextStep::DeadLetter(stream) => {
                    self.set_aside(stream, part, &reason).await?;
                    self.processed(through, 0).await;
                }
                NextStep::Retry | NextStep::Stop => {
                    return Err(Halt::Stopped { at, reason });
                }
            }
        }
        Ok(())
    }

    /// Tries records as often as the policy says; why the last attempt failed.
    async fn attempts(
        &mut self,
        records: &Arc<Vec<ConsumedRecord>>,
    ) -> Result<Option<String>, Halt> {
        let config = Arc::clone(&self.context.config);
        let mut backoff = Backoff::new(config.on_failure.backoff, random_seed());
        let mut attempt = 1;
        loop {
            let batch = GroupBatch {
                shard: self.shard,
                generation: self.generation,
                attempt,
                records: Arc::clone(records),
            };
            let Some(reason) = self.attempt(batch).await? else {
                return Ok(None);
            };
            self.say(Word::Failed).await;
            if config.on_failure.next_step(records.len(), attempt) != NextStep::Retry {
                return Ok(Some(reason));
            }
            attempt += 1;
            tokio::select! {
                biased;
                halt = ended(&mut self.context.hold) => return Err(halt),
                () = sleep(backoff.next(None)) => {}
            }
        }
    }

    /// Calls the handler once, within the lease. `None`: it has processed them.
    async fn attempt(&mut self, batch: GroupBatch) -> Result<Option<String>, Halt> {
        loop {
            self.wait_within_fence().await?;
            let handled = self.handler.handle(batch.clone());
            tokio::select! {
                biased;
                () = lost(&mut self.context.hold) => return Err(Halt::Lost),
                () = passed(&mut self.context.fence) => {}
                handled = handled => return Ok(handled.err().map(|error| error.to_string())),
            }
            // The broker has not confirmed in time: what was begun is begun again once it does, under
            // the same lease, or never.
        }
    }

    /// Waits until the broker has confirmed that the lease still runs.
    async fn wait_within_fence(&mut self) -> Result<(), Halt> {
        loop {
            if *self.context.fence.borrow_and_update() > Instant::now() {
                return Ok(());
            }
            tokio::select! {
                biased;
                () = lost(&mut self.context.hold) => return Err(Halt::Lost),
                moved = self.context.fence.changed() => moved.map_err(|_| Halt::Lost)?,
            }
        }
    }

    async fn processed(&self, through: SequenceNumber, records: usize) {
        self.say(Word::Processed {
            shard: self.shard,
            generation: self.generation,
            progress: Progress::Through(through),
            records: records as u64,
        })
        .await;
    }

    async fn set_aside(
        &mut self,
        stream: &StreamName,
        records: Vec<ConsumedRecord>,
        reason: &str,
    ) -> Result<(), Halt> {
        let letters = dead_letter::letters(&records, &self.context, reason);
        let put = dead_letter::put(&self.context.client, stream, letters);
        let put = tokio::select! {
            biased;
            () = lost(&mut self.context.hold) => return Err(Halt::Lost),
            put = put => put,
        };
        if let Err(error) = put {
            let at = records
                .first()
                .map_or(SequenceNumber::ZERO, |record| record.sequence_number);
            let reason = format!("{reason}; and the dead-letter stream refuses it: {error}");
            return Err(Halt::Stopped { at, reason });
        }
        for record in &records {
            self.say(Word::DeadLettered).await;
            self.tell(GroupEvent::DeadLettered {
                shard: self.shard,
                sequence_number: record.sequence_number,
                reason: reason.to_owned(),
            });
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Halt> {
        match *self.context.hold.borrow() {
            Hold::Held => Ok(()),
            Hold::Revoked => Err(Halt::Revoked),
            Hold::Lost => Err(Halt::Lost),
        }
    }

    async fn say(&self, word: Word) {
        // The driver is gone: so is the lease.
        let _ = self.context.words.send(word).await;
    }

    fn tell(&self, event: GroupEvent) {
        self.context.events.tell(event);
    }
}

/// The number that a position names, if it does.
fn place_of(position: StartPosition) -> Option<SequenceNumber> {
    match position {
        StartPosition::At(at) => Some(at),
        StartPosition::After(at) => Some(at.plus(1)),
        StartPosition::TrimHorizon | StartPosition::Latest | StartPosition::AtTimestamp(_) => None,
    }
}

/// Resolves when the lease is revoked or lost, or the driver is gone.
async fn ended(hold: &mut watch::Receiver<Hold>) -> Halt {
    let now = hold.wait_for(|hold| *hold != Hold::Held).await;
    match now.as_deref() {
        Ok(Hold::Revoked) => Halt::Revoked,
        _ => Halt::Lost,
    }
}

/// Resolves when the lease is lost, or the driver is gone.
async fn lost(hold: &mut watch::Receiver<Hold>) {
    let _ = hold.wait_for(|hold| *hold == Hold::Lost).await;
}

/// Resolves when the fence is behind us.
async fn passed(fence: &mut watch::Receiver<Instant>) {
    loop {
        let at = *fence.borrow_and_update();
        tokio::select! {
            () = sleep_until(at) => return,
            moved = fence.changed() => if moved.is_err() {
                return;
            },
        }
    }
}
