//! SIGKILL while batches of every producer are on their way, and the start after it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use tokio::time::Instant;

use super::delivering::{Delivering, OnDisk};
use super::producing::{Shared, Watched};
use crate::broker_process::{BrokerPlan, BrokerProcess};
use crate::quantity::micros;

/// When this share of the readings is acknowledged, in percent; the later ones only when one kill
/// found a producer with nothing on its way.
const MOMENTS: [u64; 5] = [40, 50, 60, 70, 80];
/// How long the broker stays away.
const DOWN: Duration = Duration::from_millis(250);
/// How long to look for the moment in which every producer has batches on its way.
const LOOKING: Duration = Duration::from_millis(500);

/// One kill and the start after it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Kill {
    /// The process that was killed.
    pub(super) pid: u32,
    /// Readings acknowledged by then.
    pub(super) acknowledged: u64,
    /// Batches sent and unacknowledged when it died, by producer.
    pub(super) batches_in_flight: Vec<u64>,
    /// Readings in them.
    pub(super) readings_in_flight: u64,
    /// What the delivery stream had written by then.
    pub(super) delivered: OnDisk,
    /// From the start of the next process until it was ready.
    pub(super) recovery_us: u64,
    /// From the kill to the first ack after it.
    pub(super) outage_us: u64,
    /// Kills in all: more than one when a producer had nothing on its way.
    pub(super) kills: u64,
}

/// Kills the broker when batches of every producer are unacknowledged, and starts it again on the
/// same ports and directory.
pub(super) async fn kill_and_restart(
    broker: &mut BrokerProcess,
    plan: &BrokerPlan,
    producers: &Watched,
    delivering: &Delivering,
    shared: &Shared,
) -> Result<Kill> {
    let mut kills = 0;
    for percent in MOMENTS {
        wait_until(producers, shared.telemetry.readings * percent / 100).await?;
        shared.burst.store(true, Ordering::Relaxed);
        catch_all_in_flight(producers).await;
        let pid = broker.pid();
        let killed = Instant::now();
        broker.kill()?;
        kills += 1;
        shared.burst.store(false, Ordering::Relaxed);
        // Acks that had left before are still taken; what is unacknowledged now stays so until the
        // next process answers.
        tokio::time::sleep(DOWN).await;
        let delivered = delivering.on_disk().await?;
        let stats = producers.stats();
        let acknowledged: u64 = stats.iter().map(|stats| stats.records_stored).sum();
        let spawned = Instant::now();
        let again = plan.clone();
        let started = tokio::task::spawn_blocking(move || again.start()).await;
        *broker = started.context("starting the broker again")??;
        let recovery = spawned.elapsed();
        wait_until(producers, acknowledged + 1).await?;
        let outage = killed.elapsed();
        let batches: Vec<u64> = stats.iter().map(|stats| stats.batches_in_flight).collect();
        if batches.iter().all(|batches| *batches > 0) {
            return Ok(Kill {
                pid,
                acknowledged,
                batches_in_flight: batches,
                readings_in_flight: stats.iter().map(|stats| stats.records_in_flight).sum(),
                delivered,
                recovery_us: micros(recovery),
                outage_us: micros(outage),
                kills,
            });
        }
    }
    bail!("{kills} kills, and each time a producer had nothing on its way; try it again")
}

/// Waits until this many readings are acknowledged (or all are, or nothing moves any more).
pub(super) async fn wait_until(producers: &Watched, readings: u64) -> Result<()> {
    let (mut before, mut moved) = (0, Instant::now());
    loop {
        let stored = producers.stored();
        if stored >= readings {
            return Ok(());
        }
        if stored > before {
            (before, moved) = (stored, Instant::now());
        }
        if moved.elapsed() > Duration::from_secs(20) {
            bail!("no reading was acknowledged for 20 s; {stored} were before");
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Waits for a moment in which every producer has batches on its way, but not for long.
pub(super) async fn catch_all_in_flight(producers: &Watched) {
    let begun = Instant::now();
    while begun.elapsed() < LOOKING {
        if producers
            .stats()
            .iter()
            .all(|stats| stats.batches_in_flight > 0)
        {
            return;
        }
        tokio::task::yield_now().await;
    }
}
