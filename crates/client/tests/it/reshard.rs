//! Producers and consumers that go on while shards are split and merged: each record once, in order
//! per key, whatever breaks on the way.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flumen_client::{
    Client, ClientConfig, ConsumedRecord, Consumer, ConsumerConfig, Durability, NewStream,
    Producer, ProducerConfig, ProducerStats, ReadUntil, StreamDescription, StreamName,
};
use flumen_record::{Record, SequenceNumber, ShardIndex};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::node::{Node, Proxy};

const WAIT: Duration = Duration::from_secs(60);

fn client_of(address: SocketAddr) -> Client {
    Client::connect(ClientConfig::new(format!("http://{address}"))).unwrap()
}

fn record(key: &str, data: String) -> Record {
    Record {
        partition_key: key.to_owned().into(),
        explicit_hash_key: None,
        data: data.into(),
        client_timestamp: None,
        headers: Vec::new(),
    }
}

async fn create(client: &Client, shards: u32, durability: Durability) -> StreamName {
    let stream: StreamName = "s".parse().unwrap();
    let new = NewStream {
        shards,
        durability: Some(durability),
        ..NewStream::new(stream.clone())
    };
    client.create_stream(new).await.unwrap();
    stream
}

/// Sends records of keys of its own, each counting from 0, until it is told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<(u64, ProducerStats)>>,
}

const KEYS: usize = 8;

impl Load {
    async fn start(client: &Client, stream: &StreamName, producers: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = Vec::new();
        for task in 0..producers {
            let config = ProducerConfig {
                linger: Duration::from_millis(1),
                batch_bytes: 2 << 10,
                memory_bytes: 1 << 20,
                ..ProducerConfig::default()
            };
            let producer = Producer::open(client, stream, config).await.unwrap();
            let stop = Arc::clone(&stop);
            tasks.push(tokio::spawn(async move {
                let mut n = 0;
                while !stop.load(Ordering::SeqCst) {
                    for key in 0..KEYS {
                        let record = record(&format!("{task}-{key}"), n.to_string());
                        producer.send(record).await.unwrap();
                    }
                    n += 1;
                    tokio::task::yield_now().await;
                }
                producer.close().await.unwrap();
                (n, producer.stats())
            }));
        }
        Self { stop, tasks }
    }

    /// Stops; how often each key was sent, and what became of all records.
    async fn end(self) -> HashMap<String, u64> {
        self.stop.store(true, Ordering::SeqCst);
        let mut sent = HashMap::new();
        for (task, handle) in self.tasks.into_iter().enumerate() {
            let (count, stats) = tokio::time::timeout(WAIT, handle).await.unwrap().unwrap();
            let records = count * KEYS as u64;
            let left = (stats.records_failed, stats.records_waiting());
            assert_eq!((stats.records_stored, left), (records, (0, 0)), "{stats:?}");
            sent.extend((0..KEYS).map(|key| (format!("{task}-{key}"), count)));
        }
        sent
    }
}

/// Follows the stream until it has as many records as were sent.
fn follow(client: &Client, stream: &StreamName) -> JoinHandle<Vec<ConsumedRecord>> {
    let (client, stream) = (client.clone(), stream.clone());
    tokio::spawn(async move {
        let config = ConsumerConfig::default();
        let mut consumer = Consumer::open(&client, &stream, config).await.unwrap();
        let mut records = Vec::new();
        loop {
            let batch = consumer.next().await.unwrap().unwrap();
            let batch = batch.records().map(Result::unwrap);
            let before = records.len();
            records.extend(batch);
            if records[before..].iter().any(|record| record.data == "last") {
                return records;
            }
        }
    })
}

async fn read_all(client: &Client, stream: &StreamName) -> Vec<ConsumedRecord> {
    let config = ConsumerConfig {
        until: ReadUntil::CurrentEnd,
        ..ConsumerConfig::default()
    };
    let mut consumer = Consumer::open(client, stream, config).await.unwrap();
    let mut records = Vec::new();
    while let Some(batch) = consumer.next().await.unwrap() {
        records.extend(batch.records().map(Result::unwrap));
    }
    records
}

/// Every record once, in order per key.
#[track_caller]
fn assert_all_once_in_order(records: &[ConsumedRecord], sent: &HashMap<String, u64>) {
    let mut found: HashMap<String, u64> = HashMap::new();
    for record in records.iter().filter(|record| record.data != "last") {
        let key = String::from_utf8(record.partition_key.to_vec()).unwrap();
        let next = found.entry(key).or_default();
        assert_eq!(
            record.data,
            next.to_string(),
            "key {:?}",
            record.partition_key
        );
        *next += 1;
    }
    assert_eq!(&found, sent);
}

fn open_shards(stream: &StreamDescription) -> Vec<ShardIndex> {
    let mut open: Vec<_> = stream.shards.iter().filter(|shard| shard.open).collect();
    open.sort_unstable_by_key(|shard| shard.range.start);
    open.iter().map(|shard| shard.index).collect()
}

/// The stream as it is now, as soon as its node answers.
async fn describe(client: &Client, stream: &StreamName) -> StreamDescription {
    let answered = async {
        loop {
            match client.describe_stream(stream).await {
                Ok(described) => break described,
                Err(error) => assert!(error.is_retryable(), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(WAIT, answered)
        .await
        .expect("it answers")
}

/// One step: more shards in the first half of a cycle, fewer in the second.
async fn step(client: &Client, stream: &StreamName, turn: usize) -> Duration {
    let open = open_shards(&describe(client, stream).await);
    let began = Instant::now();
    let done = match turn % 10 {
        0..5 => {
            client
                .split_shard(stream, open[turn % open.len()], None)
                .await
        }
        _ if open.len() > 1 => {
            let place = turn % (open.len() - 1);
            client
                .merge_shards(stream, open[place + 1], open[place])
                .await
        }
        _ => client.scale_stream(stream, 4).await,
    };
    done.unwrap();
    began.elapsed()
}

async fn across_splits_and_merges(durability: Durability) {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path()).await;
    let client = node.client();
    let stream = create(&client, 1, durability).await;
    let load = Load::start(&client, &stream, 3).await;
    let following = follow(&client, &stream);
    let mut longest = Duration::ZERO;
    for turn in 0..60 {
        longest = longest.max(step(&client, &stream, turn).await);
    }
    let sent = load.end().await;
    assert!(longest < Duration::from_secs(1), "{longest:?}");
    // One behind everything, in each shard.
    client.scale_stream(&stream, 1).await.unwrap();
    let last = vec![record("last", "last".to_owned())];
    client.put(&stream, last).await.unwrap()[0]
        .as_ref()
        .unwrap();
    let followed = tokio::time::timeout(WAIT, following)
        .await
        .unwrap()
        .unwrap();
    assert_all_once_in_order(&followed, &sent);
    assert_all_once_in_order(&read_all(&client, &stream).await, &sent);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn producers_go_on_across_splits_and_merges_on_disk() {
    across_splits_and_merges(Durability::Disk).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn producers_go_on_across_splits_and_merges_in_memory() {
    across_splits_and_merges(Durability::Memory).await;
}

/// Connections are cut in the middle, some with answers lost just before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_break_across_splits_and_merges() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path()).await;
    let client = node.client();
    let stream = create(&client, 1, Durability::Disk).await;
    let proxy = Proxy::start(node.address).await;
    let load = Load::start(&client_of(proxy.address), &stream, 3).await;
    for turn in 0..40 {
        if turn % 2 == 0 {
            proxy.swallow_answers();
            let swallowed = async {
                while proxy.swallowed() == 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::time::timeout(WAIT, swallowed)
                .await
                .expect("answers to lose");
        }
        step(&client, &stream, turn).await;
        proxy.cut();
    }
    let sent = load.end().await;
    assert_all_once_in_order(&read_all(&client, &stream).await, &sent);
    node.stop().await;
}

/// The node is killed between, and sometimes during, splits and merges.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_node_comes_back_across_splits_and_merges() {
    let directory = tempfile::tempdir().unwrap();
    let mut node = Node::start(directory.path()).await;
    let address = node.address;
    let client = client_of(address);
    let stream = create(&client, 1, Durability::Disk).await;
    let load = Load::start(&client, &stream, 3).await;
    for turn in 0..16 {
        step(&client, &stream, turn).await;
        if turn % 2 == 0 {
            let open = open_shards(&describe(&client, &stream).await);
            let under_way = client.split_shard(&stream, open[0], None);
            // However far it gets.
            let _ = tokio::time::timeout(Duration::from_millis(turn as u64 / 2), under_way).await;
        }
        node.kill();
        node = Node::start_at(directory.path(), address).await;
    }
    let sent = load.end().await;
    assert_all_once_in_order(&read_all(&client, &stream).await, &sent);
    node.stop().await;
}

/// The ack of a batch is lost, its shard is split, then the connection breaks: the retry at the
/// parent learns that it was stored. What was not goes to the children.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ack_lost_just_before_a_split_is_settled_at_the_parent() {
    for kill in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let mut node = Node::start(directory.path()).await;
        let stream = create(&node.client(), 1, Durability::Disk).await;
        let proxy = Proxy::start(node.address).await;
        let config = ProducerConfig {
            linger: Duration::ZERO,
            ..ProducerConfig::default()
        };
        let client = client_of(proxy.address);
        let producer = Producer::open(&client, &stream, config).await.unwrap();
        let first = producer.send(record("k", "0".to_owned())).await.unwrap();
        first.wait().await.unwrap();
        proxy.swallow_answers();
        let stored = producer.send(record("k", "1".to_owned())).await.unwrap();
        let direct = node.client();
        let arrived = async {
            loop {
                let described = direct.describe_stream(&stream).await.unwrap();
                if described.shards[0].durable_end == SequenceNumber::new(2) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(WAIT, arrived)
            .await
            .expect("it is stored");
        direct
            .split_shard(&stream, ShardIndex::new(0), None)
            .await
            .unwrap();
        let late = producer.send(record("k", "2".to_owned())).await.unwrap();
        if kill {
            let address = node.address;
            node.kill();
            node = Node::start_at(directory.path(), address).await;
        }
        proxy.cut();
        let stored = tokio::time::timeout(WAIT, stored.wait())
            .await
            .unwrap()
            .unwrap();
        let (shard, number) = (ShardIndex::new(0), Some(SequenceNumber::new(1)));
        assert_eq!(
            (stored.shard, stored.sequence_number, stored.duplicate),
            (shard, number, true)
        );
        let late = tokio::time::timeout(WAIT, late.wait())
            .await
            .unwrap()
            .unwrap();
        assert!(late.shard > shard && !late.duplicate, "{late:?}");
        let sent = HashMap::from([("k".to_owned(), 3)]);
        assert_all_once_in_order(&read_all(&node.client(), &stream).await, &sent);
        node.stop().await;
    }
}
