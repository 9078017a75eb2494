//! `kill -9` while shards are split and merged and producers run: every record once, in order per key.
//!
//! `FLUMEN_TEST_KILL_CYCLES` and `FLUMEN_TEST_SEED` as in `kill.rs`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flumen_client::{
    Client, ClientConfig, Consumer, ConsumerConfig, Durability, Error, NewStream, Producer,
    ProducerConfig, ReadUntil, Record, StreamName,
};

use crate::journal::Random;
use crate::kill::{seed, setting};
use crate::process::BrokerProcess;

const KEYS: u64 = 12;

fn record(key: u64, data: u64) -> Record {
    Record {
        partition_key: format!("key-{key}").into(),
        explicit_hash_key: None,
        data: data.to_string().into(),
        client_timestamp: None,
        headers: Vec::new(),
    }
}

/// Splits a shard, merges two, or scales; a broker that is not there refuses, and that is fine.
async fn reshard(client: &Client, stream: &StreamName, random: &mut Random) -> Result<(), Error> {
    let described = client.describe_stream(stream).await?;
    let mut open: Vec<_> = described.shards.iter().filter(|shard| shard.open).collect();
    open.sort_unstable_by_key(|shard| shard.range.start);
    let drawn = usize::try_from(random.below(open.len() as u64)).unwrap();
    let shard = open[drawn].index;
    let done = match open.get(drawn + 1) {
        _ if open.len() < 4 => client.split_shard(stream, shard, None).await,
        Some(next) if open.len() < 12 => client.merge_shards(stream, shard, next.index).await,
        _ => {
            client
                .scale_stream(stream, 1 + u32::try_from(random.below(9)).unwrap())
                .await
        }
    };
    done.map(drop)
}

/// Sends until it is told to stop; how often each key was sent.
async fn produce(producer: Producer, stop: Arc<AtomicBool>) -> u64 {
    let mut n = 0;
    while !stop.load(Ordering::SeqCst) {
        for key in 0..KEYS {
            producer.send(record(key, n)).await.unwrap();
        }
        n += 1;
        tokio::task::yield_now().await;
    }
    producer.close().await.unwrap();
    n
}

/// Takes step after step until it is told to stop; how many were taken.
async fn keep_resharding(
    client: Client,
    stream: StreamName,
    stop: Arc<AtomicBool>,
    mut random: Random,
) -> u64 {
    let mut made = 0;
    while !stop.load(Ordering::SeqCst) {
        match reshard(&client, &stream, &mut random).await {
            Ok(()) => made += 1,
            Err(error) => {
                // A step whose answer was lost may have been taken.
                let stale = error.reason() == "SHARD_CLOSED";
                assert!(stale || error.is_retryable(), "{error}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
    made
}

/// Reads everything, parents first: how many records each key has, which count from 0.
async fn read_counts(client: &Client, stream: &StreamName) -> HashMap<String, u64> {
    let config = ConsumerConfig {
        until: ReadUntil::CurrentEnd,
        ..ConsumerConfig::default()
    };
    let mut consumer = Consumer::open(client, stream, config).await.unwrap();
    let mut found: HashMap<String, u64> = HashMap::new();
    while let Some(batch) = consumer.next().await.unwrap() {
        for record in batch.records() {
            let record = record.unwrap();
            let key = String::from_utf8(record.partition_key.to_vec()).unwrap();
            let next = found.entry(key).or_default();
            assert_eq!(record.data, next.to_string(), "{:?}", record.partition_key);
            *next += 1;
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn producers_ride_out_kills_while_shards_are_split_and_merged_on_disk() {
    ride_out_kills(Durability::Disk).await;
}

/// Also where nothing of a child was written yet: its log knows nothing of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn producers_ride_out_kills_while_shards_are_split_and_merged_in_memory() {
    ride_out_kills(Durability::Memory).await;
}

async fn ride_out_kills(durability: Durability) {
    let cycles = setting("FLUMEN_TEST_KILL_CYCLES", 300) / 25;
    let mut random = Random::new(seed("kill -9 while resharding"));
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut broker = BrokerProcess::start(&data);
    let endpoint = broker.endpoint.clone();
    let client = Client::connect(ClientConfig::new(&endpoint)).unwrap();
    let stream: StreamName = "s".parse().unwrap();
    let new = NewStream {
        durability: Some(durability),
        ..NewStream::new(stream.clone())
    };
    client.create_stream(new).await.unwrap();
    let config = ProducerConfig {
        linger: Duration::from_millis(1),
        batch_bytes: 4 << 10,
        ..ProducerConfig::default()
    };
    let producer = Producer::open(&client, &stream, config).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let producing = tokio::spawn(produce(producer.clone(), Arc::clone(&stop)));
    let again = Random::new(random.next());
    let resharding = keep_resharding(client.clone(), stream.clone(), Arc::clone(&stop), again);
    let resharding = tokio::spawn(resharding);
    for _ in 0..cycles {
        tokio::time::sleep(Duration::from_millis(20 + random.below(150))).await;
        broker.kill();
        broker = BrokerProcess::start_again(&data, &endpoint);
    }
    stop.store(true, Ordering::SeqCst);
    let sent = producing.await.unwrap();
    let made = resharding.await.unwrap();
    let stats = producer.stats();
    assert_eq!(
        (stats.records_stored, stats.records_failed),
        (sent * KEYS, 0)
    );
    let found = read_counts(&client, &stream).await;
    let expected: HashMap<_, _> = (0..KEYS).map(|key| (format!("key-{key}"), sent)).collect();
    assert_eq!(found, expected);
    assert!(made >= cycles, "only {made} splits and merges");
}
