//! The consumers of `bench e2e`, on a thread of their own.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use flumen_client::{Consumer, ConsumerConfig, StartPosition, StreamIncarnation, StreamName};
use flumen_record::ShardIndex;
use hdrhistogram::Histogram;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::payload::KeyedShard;
use super::report::{Consumed, latencies};
use super::target::{Endpoint, Target};
use super::verify::Checker;
use crate::command::block_on;
use crate::quantity::micros;

/// A consumer that sees nothing new for this long, while records are missing, has lost them.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the consumers are to do.
#[derive(Debug, Clone)]
pub(super) struct ReadersPlan {
    pub(super) consumers: u32,
    /// Sessions that send.
    pub(super) sessions: u32,
    pub(super) stream: StreamName,
    pub(super) incarnation: StreamIncarnation,
    /// Where the run's records begin.
    pub(super) from: Vec<(ShardIndex, StartPosition)>,
    pub(super) shards: Arc<Vec<KeyedShard>>,
    pub(super) record_bytes: u64,
    /// What the records' timestamps count from.
    pub(super) base: Instant,
}

/// Running consumers.
#[derive(Debug)]
pub(super) struct Readers {
    consumers: u32,
    /// How many records there are, once that is known.
    total: watch::Sender<Option<u64>>,
    thread: JoinHandle<Result<Vec<Done>>>,
    stored: std::sync::mpsc::Sender<Vec<Vec<u64>>>,
}

/// What one consumer got.
#[derive(Debug)]
struct Done {
    bytes: u64,
    latency: Histogram<u64>,
    ended: Instant,
}

impl Readers {
    /// Starts them; returns when all are subscribed.
    pub(super) fn start(target: &Target, plan: ReadersPlan) -> Result<Self> {
        let endpoint = target.endpoint();
        let consumers = plan.consumers;
        let (total, known) = watch::channel(None);
        let (stored, counts) = std::sync::mpsc::channel();
        let (ready, mut subscribed) = mpsc::channel(1);
        let thread = std::thread::spawn(move || {
            let read = block_on(read_all(endpoint, plan, known, ready))?;
            // The sender lives until the counts are sent.
            let stored: Vec<Vec<u64>> = counts.recv().context("the load failed")?;
            let mut done = Vec::new();
            for (checker, reader) in read {
                checker.finish(&stored)?;
                done.push(reader);
            }
            Ok(done)
        });
        let subscribed = block_on(async { Ok(subscribed.recv().await) })?;
        let readers = Self {
            consumers,
            total,
            thread,
            stored,
        };
        match subscribed {
            Some(()) => Ok(readers),
            None => match readers.thread.join() {
                Ok(Err(error)) => Err(error),
                _ => bail!("the consumers ended before they began"),
            },
        }
    }

    /// Tells them what was stored and waits until each has all of it.
    pub(super) fn finish(self, begun: Instant, stored: &[Vec<u64>]) -> Result<Consumed> {
        self.total.send_replace(Some(stored.iter().flatten().sum()));
        drop(self.stored.send(stored.to_vec()));
        let done = self
            .thread
            .join()
            .map_err(|_| anyhow!("the consumers panicked"))??;
        let mut latency = latencies();
        for reader in &done {
            latency.add(&reader.latency).expect("BUG: bounds differ");
        }
        let ended = done
            .iter()
            .map(|reader| reader.ended)
            .max()
            .unwrap_or(begun);
        Ok(Consumed {
            consumers: self.consumers,
            bytes_out: done.iter().map(|reader| reader.bytes).sum(),
            took: ended - begun,
            latency,
        })
    }
}

async fn read_all(
    endpoint: Endpoint,
    plan: ReadersPlan,
    total: watch::Receiver<Option<u64>>,
    ready: mpsc::Sender<()>,
) -> Result<Vec<(Checker, Done)>> {
    let mut reading = JoinSet::new();
    for _ in 0..plan.consumers {
        let client = endpoint.client()?;
        let config = ConsumerConfig {
            positions: plan.from.clone(),
            incarnation: Some(plan.incarnation),
            ..ConsumerConfig::default()
        };
        let consumer = Consumer::open(&client, &plan.stream, config).await?;
        reading.spawn(read(consumer, plan.clone(), total.clone()));
    }
    ready.send(()).await.context("nobody waits")?;
    let mut done = Vec::new();
    while let Some(reader) = reading.join_next().await {
        done.push(reader.context("a consumer")??);
    }
    Ok(done)
}

async fn read(
    mut consumer: Consumer,
    plan: ReadersPlan,
    mut total: watch::Receiver<Option<u64>>,
) -> Result<(Checker, Done)> {
    let mut checker = Checker::new(plan.sessions, &plan.shards, plan.record_bytes, false);
    let mut done = Done {
        bytes: 0,
        latency: latencies(),
        ended: plan.base,
    };
    let mut records = 0_u64;
    loop {
        let known = *total.borrow_and_update();
        if known.is_some_and(|total| records >= total) {
            return Ok((checker, done));
        }
        let batch = tokio::select! {
            batch = consumer.next() => batch?,
            Ok(()) = total.changed() => continue,
            () = tokio::time::sleep(PATIENCE), if known.is_some() => {
                bail!("{records} records came, then nothing for {} s", PATIENCE.as_secs());
            }
        };
        let batch = batch.context("the stream ended")?;
        done.ended = Instant::now();
        let now = micros(done.ended - plan.base);
        for record in batch.records() {
            let record = record?;
            checker.take(&record)?;
            let due = record.client_timestamp.map_or(now, |due| due.as_micros());
            done.latency
                .saturating_record(now.saturating_sub(due).max(1));
            done.bytes += record.data.len() as u64;
            records += 1;
        }
    }
}
