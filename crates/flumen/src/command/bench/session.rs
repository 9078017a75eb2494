//! One append session under load: batches encoded, sent, acknowledged, timed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use flumen_client::{AppendSession, Client, Compression, Error, Record, StreamName};
use flumen_record::{BatchBuilder, ProducerId, ProducerSequence, RecordLimits, Timestamp};
use hdrhistogram::Histogram;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::pace::Pace;
use super::payload::{KeyedShard, Ring};
use super::report::latencies;
use crate::quantity::micros;

/// How long a load goes on.
#[derive(Debug, Clone)]
pub(super) enum Until {
    /// Closed loop, for some time.
    Time(std::time::Duration),
    /// Closed loop, until this many records (what is left of them) are taken.
    Records(Arc<AtomicU64>),
    /// Open loop.
    Paced(Arc<Pace>),
}

/// What the records' timestamps say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stamp {
    /// The record's number in its session and shard.
    Number,
    /// When it was due, in microseconds since this.
    Due(Instant),
}

/// What one session is to do.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) session: u32,
    pub(super) sessions: u32,
    pub(super) stream: StreamName,
    pub(super) shards: Arc<Vec<KeyedShard>>,
    pub(super) record_bytes: u64,
    pub(super) batch: u32,
    pub(super) in_flight: u32,
    pub(super) until: Until,
    pub(super) stamp: Stamp,
}

/// What one session did.
#[derive(Debug)]
pub(super) struct Done {
    /// Records acknowledged, by place in the plan's shards.
    pub(super) stored: Vec<u64>,
    /// Batches that were refused.
    pub(super) errors: u64,
    pub(super) first_error: Option<Error>,
    pub(super) latency: Histogram<u64>,
    /// When the last ack came.
    pub(super) ended: Instant,
}

/// An open session, ready to go.
#[derive(Debug)]
pub(super) struct Session {
    plan: Plan,
    wire: AppendSession,
    producer: ProducerId,
    turn: Option<Arc<Semaphore>>,
}

/// A batch on its way, by the number its ack will carry.
#[derive(Debug, Clone, Copy)]
struct InFlight {
    due: Instant,
    /// Place in the plan's shards.
    shard: usize,
}

/// The moving parts of a running session.
struct Load {
    ring: Ring,
    builder: BatchBuilder,
    /// Batches and records so far, by place in the plan's shards.
    sent: Vec<(u64, u64)>,
    slots: Vec<InFlight>,
    free: Vec<usize>,
    /// Batches so far.
    batches: u64,
    done: Done,
}

impl Session {
    /// Opens it.
    pub(super) async fn open(client: &Client, plan: Plan) -> Result<Self, Error> {
        let producer = client.open_producer().await?;
        let wire = AppendSession::open(client, &plan.stream).await?;
        let turn = match &plan.until {
            Until::Paced(pace) => pace.turn(plan.session),
            Until::Time(_) | Until::Records(_) => None,
        };
        Ok(Self {
            plan,
            wire,
            producer,
            turn,
        })
    }

    /// Runs it to its end.
    pub(super) async fn run(mut self, begun: Instant) -> Result<Done> {
        let mut load = Load::new(&self.plan, begun);
        let mut refused = false;
        loop {
            let mut finished = refused;
            while !refused && !load.free.is_empty() {
                match self.next(&load, begun) {
                    Next::Due(due, records) => self.push(&mut load, due, records)?,
                    Next::Later => break,
                    Next::Never => {
                        finished = true;
                        break;
                    }
                }
            }
            let flushed = self.wire.sender.flush().await;
            if finished && load.free.len() == load.slots.len() {
                return Ok(load.done);
            }
            let waits_for_turn = !finished && !load.free.is_empty() && flushed.is_ok();
            let acks = tokio::select! {
                biased;
                // When the session has ended, this half says why.
                acks = self.wire.acks.next() => acks?,
                () = turn(self.turn.as_deref(), waits_for_turn) => continue,
            };
            flushed?;
            let acks = acks.context("the broker ended the session early")?;
            let now = Instant::now();
            for ack in acks {
                refused |= load.settle(ack, now);
            }
        }
    }

    /// Whether another batch is due now.
    fn next(&self, load: &Load, begun: Instant) -> Next {
        match &self.plan.until {
            Until::Time(duration) => {
                let now = Instant::now();
                if now - begun < *duration {
                    Next::Due(now, self.plan.batch)
                } else {
                    Next::Never
                }
            }
            Until::Records(left) => {
                let batch = u64::from(self.plan.batch);
                let take = |left: u64| (left > 0).then(|| left.saturating_sub(batch));
                match left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
                    Ok(before) => Next::Due(Instant::now(), capped(before, self.plan.batch)),
                    Err(_) => Next::Never,
                }
            }
            Until::Paced(pace) if load.batches >= pace.batches_of(self.plan.session) => Next::Never,
            Until::Paced(pace) => {
                let permit = self.turn.as_ref().and_then(|turn| turn.try_acquire().ok());
                match permit {
                    Some(permit) => {
                        permit.forget();
                        let due = pace.due(begun, self.plan.session, load.batches);
                        Next::Due(due, pace.records(self.plan.session, load.batches))
                    }
                    None => Next::Later,
                }
            }
        }
    }

    /// Encodes the next batch and gives it to the session.
    fn push(&mut self, load: &mut Load, due: Instant, count: u32) -> Result<()> {
        let shards = self.plan.shards.len().max(1) as u64;
        let at = (load.batches + u64::from(self.plan.session)) % shards;
        let at = usize::try_from(at).unwrap_or(0);
        let shard = self
            .plan
            .shards
            .get(at)
            .context("BUG: a stream without shards")?;
        let (batches, records) = load
            .sent
            .get_mut(at)
            .context("BUG: a shard without a count")?;
        for _ in 0..count {
            let record = load.ring.record(*records);
            address(record, shard);
            let stamp = match self.plan.stamp {
                Stamp::Number => *records,
                Stamp::Due(base) => micros(due.saturating_duration_since(base)),
            };
            record.client_timestamp = Some(Timestamp::from_micros(stamp));
            load.builder.push(record, shard.hash_key)?;
            *records += 1;
        }
        let sequence = ProducerSequence::new(*batches);
        let batch = load
            .builder
            .finish(self.producer, sequence, Compression::None);
        *batches += 1;
        load.batches += 1;
        let slot = load.free.pop().context("BUG: nothing free")?;
        if let Some(in_flight) = load.slots.get_mut(slot) {
            *in_flight = InFlight { due, shard: at };
        }
        self.wire
            .sender
            .push(slot as u64, shard.shard, batch.bytes().clone());
        Ok(())
    }
}

/// What is left, at most a batch.
fn capped(left: u64, batch: u32) -> u32 {
    u32::try_from(left).unwrap_or(u32::MAX).min(batch)
}

/// A ring record serves all shards; its key is changed only when the shard is another.
fn address(record: &mut Record, shard: &KeyedShard) {
    if record.partition_key != shard.key {
        record.partition_key = shard.key.clone();
    }
}

enum Next {
    /// A batch is due, with this many records.
    Due(Instant, u32),
    Later,
    Never,
}

/// Resolves when another batch is due; never, when nobody waits for one.
async fn turn(turns: Option<&Semaphore>, waits: bool) {
    match turns {
        Some(turns) if waits => {
            // The permit goes back at once: `next` takes it.
            drop(turns.acquire().await);
        }
        _ => std::future::pending().await,
    }
}

impl Load {
    fn new(plan: &Plan, begun: Instant) -> Self {
        let in_flight = plan.in_flight as usize;
        Self {
            ring: Ring::new(plan.session, plan.sessions, plan.record_bytes),
            builder: BatchBuilder::new(RecordLimits::MAX),
            sent: vec![(0, 0); plan.shards.len()],
            slots: vec![
                InFlight {
                    due: begun,
                    shard: 0
                };
                in_flight
            ],
            free: (0..in_flight).collect(),
            batches: 0,
            done: Done {
                stored: vec![0; plan.shards.len()],
                errors: 0,
                first_error: None,
                latency: latencies(),
                ended: begun,
            },
        }
    }

    /// Takes an ack in; true when the batch was refused.
    fn settle(&mut self, ack: flumen_client::Ack, now: Instant) -> bool {
        let slot = usize::try_from(ack.request).unwrap_or(usize::MAX);
        let Some(in_flight) = self.slots.get(slot).copied() else {
            return false;
        };
        self.free.push(slot);
        self.done.ended = now;
        match ack.outcome {
            Ok(stored) => {
                let latency = now.saturating_duration_since(in_flight.due);
                self.done.latency.saturating_record(micros(latency).max(1));
                if let Some(count) = self.done.stored.get_mut(in_flight.shard) {
                    *count += u64::from(stored.count);
                }
                false
            }
            Err(error) => {
                self.done.errors += 1;
                self.done.first_error.get_or_insert(error);
                true
            }
        }
    }
}
