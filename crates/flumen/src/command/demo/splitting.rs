//! A shard is split while batches for it are on their way.

use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use flumen_client::{Client, StreamName};
use serde::Serialize;
use tokio::time::Instant;

use super::killing::{catch_all_in_flight, wait_until};
use super::producing::{Shared, Watched};
use crate::quantity::micros;

/// When this share of the readings is acknowledged, in percent.
const MOMENT: u64 = 20;

/// One split.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Split {
    /// The shard that was split.
    pub(super) shard: u32,
    /// What it was split into.
    pub(super) children: Vec<u32>,
    /// From asking until the children took records.
    pub(super) took_us: u64,
    /// Readings sent and unacknowledged when it was asked for.
    pub(super) readings_in_flight: u64,
}

/// Splits the first shard in the middle of its keys.
pub(super) async fn split(
    client: &Client,
    stream: &StreamName,
    producers: &Watched,
    shared: &Shared,
) -> Result<Split> {
    wait_until(producers, shared.telemetry.readings * MOMENT / 100).await?;
    let described = client.describe_stream(stream).await?;
    let shard = described.shards.iter().find(|shard| shard.open);
    let shard = shard.context("BUG: a stream without an open shard")?.index;
    shared.burst.store(true, Ordering::Relaxed);
    catch_all_in_flight(producers).await;
    let in_flight = producers
        .stats()
        .iter()
        .map(|stats| stats.records_in_flight)
        .sum();
    let asked = Instant::now();
    let after = client.split_shard(stream, shard, None).await?;
    let took = asked.elapsed();
    shared.burst.store(false, Ordering::Relaxed);
    let children = after
        .shards
        .iter()
        .filter(|one| one.parents.contains(&shard));
    Ok(Split {
        shard: shard.value(),
        children: children.map(|child| child.index.value()).collect(),
        took_us: micros(took),
        readings_in_flight: in_flight,
    })
}
