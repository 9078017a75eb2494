//! The consumers: they read while the producers send, and ride out the same outage.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flumen_client::{Client, ClientConfig, Consumer, ConsumerConfig, ReadUntil, StreamName};
use flumen_record::ShardIndex;
use hdrhistogram::Histogram;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::ledger::{Findings, Ledger};
use super::producing::{Shared, latencies};

/// With readings missing and nothing new for this long, they are lost.
const PATIENCE: Duration = Duration::from_secs(10);

/// When a consumer got its last reading, and how long readings took to it.
type Read = (Instant, Histogram<u64>);

/// Running consumers.
#[derive(Debug)]
pub(super) struct Consumers {
    ledger: Arc<Mutex<Ledger>>,
    /// True once nothing more is sent.
    sent: watch::Sender<bool>,
    reading: Vec<JoinHandle<Result<Read>>>,
}

impl Consumers {
    /// Opens `count` consumers, which share the shards.
    pub(super) async fn start(
        endpoint: &str,
        stream: &StreamName,
        shared: &Arc<Shared>,
        count: u32,
        shards: u32,
    ) -> Result<Self> {
        let ledger = Arc::new(Mutex::new(Ledger::new(Arc::clone(&shared.telemetry))));
        let (sent, _) = watch::channel(false);
        let mut reading = Vec::new();
        for first in 0..count.min(shards) {
            let client = Client::connect(ClientConfig::new(endpoint))?;
            let mine = (first..shards)
                .step_by(count as usize)
                .map(ShardIndex::new)
                .collect();
            let config = ConsumerConfig {
                shards: mine,
                ..ConsumerConfig::default()
            };
            let consumer = Consumer::open(&client, stream, config).await?;
            let follow = follow(
                consumer,
                Arc::clone(&ledger),
                Arc::clone(shared),
                sent.subscribe(),
            );
            reading.push(tokio::spawn(follow));
        }
        Ok(Self {
            ledger,
            sent,
            reading,
        })
    }

    /// Readings that are there so far.
    pub(super) fn present(&self) -> u64 {
        locked(&self.ledger).present()
    }

    /// Now that all is sent: waits for the rest. When it was there, how long readings took, and
    /// what was wrong.
    pub(super) async fn finish(self) -> Result<(Instant, Histogram<u64>, Findings)> {
        self.sent.send_replace(true);
        let mut latency = latencies();
        let mut ended = None;
        for reading in self.reading {
            let (at, took) = reading.await.context("a consumer")??;
            ended = ended.max(Some(at));
            latency.add(took).expect("BUG: bounds differ");
        }
        let findings = locked(&self.ledger).findings();
        Ok((ended.context("there are no consumers")?, latency, findings))
    }
}

fn locked(ledger: &Mutex<Ledger>) -> std::sync::MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn follow(
    mut consumer: Consumer,
    ledger: Arc<Mutex<Ledger>>,
    shared: Arc<Shared>,
    mut sent: watch::Receiver<bool>,
) -> Result<Read> {
    let mut latency = latencies();
    let mut last = Instant::now();
    loop {
        let all_sent = *sent.borrow_and_update();
        let complete = locked(&ledger).present() >= shared.telemetry.readings;
        if all_sent && (complete || last.elapsed() > PATIENCE) {
            return Ok((last, latency));
        }
        // Another consumer may bring the last reading: look again now and then.
        let look = tokio::time::sleep(Duration::from_millis(20));
        let batch = tokio::select! {
            batch = consumer.next() => batch?.context("the stream ended")?,
            Ok(()) = sent.changed() => continue,
            () = look, if all_sent => continue,
        };
        last = Instant::now();
        let mut ledger = locked(&ledger);
        for record in batch.records() {
            if let Some(number) = ledger.take(&record?) {
                latency.saturating_record(shared.since_sent(number));
            }
        }
    }
}

/// Reads the whole stream again, from its first record to its end.
pub(super) async fn read_again(
    endpoint: &str,
    stream: &StreamName,
    shared: &Shared,
) -> Result<(Findings, Duration)> {
    let begun = Instant::now();
    let client = Client::connect(ClientConfig::new(endpoint))?;
    let config = ConsumerConfig {
        until: ReadUntil::CurrentEnd,
        ..ConsumerConfig::default()
    };
    let mut consumer = Consumer::open(&client, stream, config).await?;
    let mut ledger = Ledger::new(Arc::clone(&shared.telemetry));
    while let Some(batch) = consumer.next().await? {
        for record in batch.records() {
            ledger.take(&record?);
        }
    }
    let findings = ledger.findings();
    let counted = findings.present + findings.repeated + findings.strange;
    ensure!(counted == ledger.taken(), "BUG: the ledger lost count");
    Ok((findings, begun.elapsed()))
}
