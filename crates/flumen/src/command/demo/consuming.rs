//! The members of a consumer group: they process readings while the producers send, ride out the same
//! outage, follow a split, and one of them vanishes on the way.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use flumen_client::{
    Client, ClientConfig, Consumer, ConsumerConfig, GroupBatch, GroupConfig, GroupConsumer,
    GroupName, HandlerError, ReadUntil, ShardLease, StreamName,
};
use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::ledger::{Findings, Ledger};
use super::producing::{Shared, latencies};
use crate::quantity::micros;

/// With readings missing and nothing new for this long, they are lost.
const PATIENCE: Duration = Duration::from_secs(10);
/// A member that is silent for this long is gone.
const SESSION_TIMEOUT: Duration = Duration::from_secs(2);
const CHECKPOINT_INTERVAL: Duration = Duration::from_millis(100);
/// How often the broker is asked who has what.
const LOOK: Duration = Duration::from_millis(20);

/// What the members share.
#[derive(Debug)]
struct Seen {
    ledger: Ledger,
    latency: Histogram<u64>,
    last: Instant,
}

/// Running members.
#[derive(Debug)]
pub(super) struct Members {
    client: Client,
    stream: StreamName,
    group: GroupName,
    running: Vec<GroupConsumer>,
    seen: Arc<Mutex<Seen>>,
    moved: Arc<Notify>,
}

/// One member that ended without a word, and what became of its shards.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Vanished {
    /// Which, counted from 1.
    pub(super) member: usize,
    /// Shards it had.
    pub(super) shards: usize,
    /// Until the others had all of them.
    pub(super) taken_over_us: u64,
    /// What a silent member is given.
    pub(super) session_timeout_us: u64,
}

/// What the members did, once nothing more came.
#[derive(Debug)]
pub(super) struct Processed {
    pub(super) findings: Findings,
    pub(super) latency: Histogram<u64>,
    /// What the group had left to process at the end, by the broker's word.
    pub(super) lag_records: u64,
    /// Closed shards that are processed to their end.
    pub(super) finished_shards: usize,
}

impl Members {
    /// Joins `count` members, each on a connection of its own.
    pub(super) async fn start(
        endpoint: &str,
        stream: &StreamName,
        shared: &Arc<Shared>,
        count: usize,
    ) -> Result<Self> {
        let seen = Seen {
            ledger: Ledger::new(Arc::clone(&shared.telemetry)),
            latency: latencies(),
            last: Instant::now(),
        };
        let mut members = Self {
            client: Client::connect(ClientConfig::new(endpoint))?,
            stream: stream.clone(),
            group: "demo".parse().context("BUG: a name of our own")?,
            running: Vec::new(),
            seen: Arc::new(Mutex::new(seen)),
            moved: Arc::default(),
        };
        for number in 1..=count {
            let client = Client::connect(ClientConfig::new(endpoint))?;
            let name = format!("member-{number}");
            let config = GroupConfig {
                member: Some(name.parse().context("BUG: a name of our own")?),
                session_timeout: SESSION_TIMEOUT,
                checkpoint_interval: CHECKPOINT_INTERVAL,
                ..GroupConfig::new(members.group.clone())
            };
            let handler = members.handler(number, shared);
            let joined = GroupConsumer::join(&client, stream, config, handler).await;
            members.running.push(joined.context(name)?);
        }
        Ok(members)
    }

    /// Takes what a member processes into the ledger they share.
    fn handler(
        &self,
        member: usize,
        shared: &Arc<Shared>,
    ) -> impl Fn(GroupBatch) -> std::future::Ready<Result<(), HandlerError>> + Send + Sync + 'static
    {
        let (seen, moved) = (Arc::clone(&self.seen), Arc::clone(&self.moved));
        let shared = Arc::clone(shared);
        move |batch| {
            let mut seen = locked(&seen);
            for record in batch.records.iter() {
                if let Some(number) = seen.ledger.take_by(record, member) {
                    seen.latency.saturating_record(shared.since_sent(number));
                }
            }
            seen.last = Instant::now();
            drop(seen);
            moved.notify_waiters();
            std::future::ready(Ok(()))
        }
    }

    /// Readings that are processed so far.
    pub(super) fn present(&self) -> u64 {
        locked(&self.seen).ledger.present()
    }

    /// A view of them for who does not run them.
    pub(super) fn watched(&self) -> impl Fn() -> u64 + use<> {
        let seen = Arc::clone(&self.seen);
        move || locked(&seen).ledger.present()
    }

    /// The last member ends as if its process had been killed: it leaves no word and saves nothing.
    /// Returns when the others have its shards.
    pub(super) async fn lose_one(&mut self) -> Result<Vanished> {
        let member = self.running.len();
        let name = format!("member-{member}");
        let victim = self.running.pop().context("there are no members")?;
        let shards = self.shards_of(&name).await?;
        // What it has processed since its last checkpoint comes again, and is no fault.
        locked(&self.seen).ledger.excuse(member);
        let begun = Instant::now();
        drop(victim);
        while self.shards_of(&name).await? > 0 {
            if begun.elapsed() > PATIENCE {
                bail!(
                    "{name} is gone for {} s and still has shards",
                    begun.elapsed().as_secs()
                );
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(Vanished {
            member,
            shards,
            taken_over_us: micros(begun.elapsed()),
            session_timeout_us: micros(SESSION_TIMEOUT),
        })
    }

    async fn shards_of(&self, member: &str) -> Result<usize> {
        let described = self
            .client
            .describe_group(&self.stream, &self.group)
            .await?;
        let holds = |lease: &ShardLease| match lease {
            ShardLease::Held(holder) | ShardLease::Revoked(holder) => holder == member,
            ShardLease::Waiting | ShardLease::Free | ShardLease::Finished => false,
        };
        Ok(described
            .shards
            .iter()
            .filter(|shard| holds(&shard.lease))
            .count())
    }

    /// Now that all is sent: waits for the rest, lets the members leave in order, and asks the broker
    /// what it thinks is left.
    pub(super) async fn finish(self, readings: u64) -> Result<Processed> {
        loop {
            let moved = self.moved.notified();
            let quiet = locked(&self.seen).last.elapsed();
            if self.present() >= readings || quiet > PATIENCE {
                break;
            }
            // Nothing may come any more.
            let _ = tokio::time::timeout(PATIENCE, moved).await;
        }
        for member in self.running {
            member.leave().await.context("a member")?;
        }
        let described = self
            .client
            .describe_group(&self.stream, &self.group)
            .await?;
        let finished = described
            .shards
            .iter()
            .filter(|shard| shard.lease == ShardLease::Finished);
        let seen = locked(&self.seen);
        Ok(Processed {
            findings: seen.ledger.findings(),
            latency: seen.latency.clone(),
            lag_records: described.summary.lag.records,
            finished_shards: finished.count(),
        })
    }
}

fn locked(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
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
            ledger.take_by(&record?, 0);
        }
    }
    let findings = ledger.findings();
    let counted = findings.present + findings.repeated + findings.strange;
    ensure!(counted == ledger.taken(), "BUG: the ledger lost count");
    Ok((findings, begun.elapsed()))
}
