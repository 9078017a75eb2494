//! `bench consume`: how fast a stream is read.

use anyhow::{Result, anyhow};
use flumen_client::{Client, Consumer, ConsumerConfig, ReadUntil, StreamName};
use flumen_record::ShardIndex;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Consume;
use super::report::Report;
use super::target::Target;
use crate::command::block_on;
use crate::command::stream::level_name;

/// Bytes per response: as many as the broker gives.
const RESPONSE_BYTES: u64 = 4 << 20;

/// Runs it.
pub(super) fn run(target: &Target, args: &Consume) -> Result<Report> {
    block_on(async {
        let client = target.client()?;
        let described = client.describe_stream(&args.stream).await;
        let stream = described.map_err(|error| target.explain(error))?;
        let shards: Vec<ShardIndex> = stream.shards.iter().map(|shard| shard.index).collect();
        let begun = Instant::now();
        let mut reading = JoinSet::new();
        for mine in shared_out(&shards, args.connections) {
            reading.spawn(read(target.client()?, args.stream.clone(), mine));
        }
        let connections = u32::try_from(reading.len()).unwrap_or(u32::MAX);
        let (mut records, mut bytes) = (0, 0);
        while let Some(done) = reading.join_next().await {
            let (more_records, more_bytes) = done.map_err(|error| anyhow!(error))??;
            records += more_records;
            bytes += more_bytes;
        }
        let took = begun.elapsed();
        Ok(Report {
            mode: "consume",
            stream: args.stream.clone(),
            shards: shards.len() as u64,
            durability: level_name(stream.durability),
            record_bytes: bytes.checked_div(records).unwrap_or(0),
            batch_records: 0,
            sessions: connections,
            in_flight: 0,
            connections,
            rate_target_per_s: None,
            records,
            bytes,
            errors: 0,
            took,
            latency: None,
            consumed: None,
            verified_records: None,
            first_error: None,
        })
    })
}

/// Shards dealt to at most `hands` consumers.
fn shared_out(shards: &[ShardIndex], hands: u32) -> Vec<Vec<ShardIndex>> {
    let hands = (hands as usize).clamp(1, shards.len().max(1));
    let mut dealt = vec![Vec::new(); hands];
    for (index, shard) in shards.iter().enumerate() {
        if let Some(hand) = dealt.get_mut(index % hands) {
            hand.push(*shard);
        }
    }
    dealt
}

/// Reads shards to what is their end now; returns records and data bytes.
async fn read(client: Client, stream: StreamName, shards: Vec<ShardIndex>) -> Result<(u64, u64)> {
    let config = ConsumerConfig {
        shards,
        until: ReadUntil::CurrentEnd,
        response_bytes_max: RESPONSE_BYTES,
        ..ConsumerConfig::default()
    };
    let mut consumer = Consumer::open(&client, &stream, config).await?;
    let (mut records, mut bytes) = (0, 0);
    while let Some(batch) = consumer.next().await? {
        for record in batch.records() {
            records += 1;
            bytes += record?.data.len() as u64;
        }
    }
    Ok((records, bytes))
}
