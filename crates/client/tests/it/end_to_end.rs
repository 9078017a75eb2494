//! Producers and consumers against a real node on a real directory.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use flumen_client::{
    AppendSession, Client, ClientConfig, Code, Compression, ConsumedRecord, Consumer,
    ConsumerConfig, Durability, NewStream, Producer, ProducerConfig, ReadBudget, ReadUntil,
    SendError, StartPosition, StreamName, StreamUpdate,
};
use flumen_record::{
    BatchBuilder, HashKey, Header, ProducerSequence, Record, RecordLimits, SequenceNumber,
    ShardIndex, Timestamp,
};

use crate::node::{Node, Proxy};

fn name(text: &str) -> StreamName {
    text.parse().unwrap()
}

fn client_of(address: SocketAddr) -> Client {
    Client::connect(ClientConfig::new(format!("http://{address}"))).unwrap()
}

fn record(key: &str, data: impl Into<bytes::Bytes>) -> Record {
    Record {
        partition_key: key.to_owned().into(),
        explicit_hash_key: None,
        data: data.into(),
        client_timestamp: None,
        headers: Vec::new(),
    }
}

async fn create(client: &Client, stream: &StreamName, shards: u32, durability: Durability) {
    let new = NewStream {
        shards,
        durability: Some(durability),
        ..NewStream::new(stream.clone())
    };
    let described = client.create_stream(new).await.unwrap();
    assert_eq!(
        (described.shards.len(), described.durability),
        (shards as usize, durability)
    );
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

/// Numbers per shard are dense from 0; data per key counts up from 0.
fn assert_dense_and_counting(records: &[ConsumedRecord], keys: usize, per_key: u64) {
    let mut next: HashMap<ShardIndex, u64> = HashMap::new();
    let mut counts: HashMap<&[u8], u64> = HashMap::new();
    for record in records {
        let count = counts.entry(&record.partition_key).or_default();
        assert_eq!(
            record.data,
            count.to_string(),
            "key {:?}",
            record.partition_key
        );
        *count += 1;
        let next = next.entry(record.shard).or_default();
        assert!(record.sequence_number.value() >= *next);
        *next = record.sequence_number.value() + 1;
    }
    assert_eq!(counts.len(), keys);
    assert!(counts.values().all(|count| *count == per_key), "{counts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_field_comes_back_under_every_compression() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path()).await;
    let client = node.client();
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
        let stream = name(&format!("stream-{compression}"));
        create(&client, &stream, 3, Durability::Disk).await;
        let config = ProducerConfig {
            compression,
            batch_bytes: 16 << 10,
            ..Default::default()
        };
        let producer = Producer::open(&client, &stream, config).await.unwrap();
        let mut sent = HashMap::new();
        for n in 0..3000_u32 {
            let mut record = record(&format!("key-{}", n % 97), vec![b'x'; n as usize % 700]);
            record.client_timestamp = Some(Timestamp::from_micros(u64::from(n)));
            if n % 3 == 0 {
                record.explicit_hash_key = Some(HashKey::new(u128::from(n) << 116));
                let (name, value) = ("n".into(), n.to_string().into());
                record.headers.push(Header { name, value });
            }
            let delivery = producer.send(record.clone()).await.unwrap();
            sent.insert(n, (record, delivery));
        }
        producer.close().await.unwrap();
        let records = read_all(&client, &stream).await;
        assert_eq!(records.len(), sent.len());
        for read in records {
            let n = read.client_timestamp.unwrap().as_micros() as u32;
            let (record, delivery) = sent.remove(&n).expect("each record comes once");
            let delivered = delivery.try_wait().unwrap().unwrap();
            assert_eq!(
                (read.partition_key, read.data),
                (record.partition_key, record.data)
            );
            assert_eq!(read.headers, record.headers);
            assert_eq!(
                (read.shard, Some(read.sequence_number)),
                (delivered.shard, delivered.sequence_number)
            );
            assert_eq!(Some(read.arrival), delivered.arrival);
            assert_eq!(
                (delivered.durability, delivered.duplicate),
                (Durability::Disk, false)
            );
        }
    }
    node.stop().await;
}

/// Producers and a following consumer, while the node is stopped or killed and started again.
async fn ride_out_restarts(durability: Durability, kill: bool) {
    const KEYS: usize = 12;
    const PER_KEY: u64 = 1500;
    let directory = tempfile::tempdir().unwrap();
    let mut node = Node::start(directory.path()).await;
    let (client, stream) = (node.client(), name("s"));
    create(&client, &stream, 3, durability).await;
    let mut tasks = Vec::new();
    for task in 0..3 {
        let config = ProducerConfig {
            linger: Duration::from_millis(1),
            batch_bytes: 2 << 10,
            ..ProducerConfig::default()
        };
        let producer = Producer::open(&client, &stream, config).await.unwrap();
        tasks.push(tokio::spawn(async move {
            for n in 0..PER_KEY {
                for key in (task * KEYS / 3)..((task + 1) * KEYS / 3) {
                    producer
                        .send(record(&format!("key-{key}"), n.to_string()))
                        .await
                        .unwrap();
                }
                if n % 20 == 0 {
                    tokio::time::sleep(Duration::from_millis(3)).await;
                }
            }
            producer.close().await.unwrap();
            producer.stats()
        }));
    }
    let mut consumer = Consumer::open(&client, &stream, ConsumerConfig::default())
        .await
        .unwrap();
    let reader = tokio::spawn(async move {
        let mut records = Vec::new();
        while records.len() < KEYS * PER_KEY as usize {
            let batch = consumer.next().await.unwrap().unwrap();
            records.extend(batch.records().map(Result::unwrap));
        }
        records
    });
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(60)).await;
        let address = node.address;
        if kill {
            node.kill();
        } else {
            node.stop().await;
        }
        node = Node::start_at(directory.path(), address).await;
    }
    let mut sessions = 0;
    for task in tasks {
        let stats = task.await.unwrap();
        let left = (stats.records_failed, stats.records_waiting());
        assert_eq!(left, (0, 0), "{stats:?}");
        sessions += stats.sessions_opened;
    }
    assert!(sessions > 3, "nothing was interrupted");
    let mut followed = reader.await.unwrap();
    assert_dense_and_counting(&followed, KEYS, PER_KEY);
    let mut again = read_all(&client, &stream).await;
    again.sort_by_key(|record| (record.shard, record.sequence_number));
    followed.sort_by_key(|record| (record.shard, record.sequence_number));
    assert!(again == followed, "what was followed is what is stored");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_is_ridden_out_on_disk() {
    ride_out_restarts(Durability::Disk, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_is_ridden_out_on_disk() {
    ride_out_restarts(Durability::Disk, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_is_ridden_out_in_memory() {
    ride_out_restarts(Durability::Memory, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_is_ridden_out_in_memory() {
    ride_out_restarts(Durability::Memory, true).await;
}

/// The ack is lost on the wire after the node has stored the batch; with `kill`, the node is killed
/// before the retry.
async fn lose_an_ack(kill: bool) {
    let directory = tempfile::tempdir().unwrap();
    let mut node = Node::start(directory.path()).await;
    let stream = name("s");
    create(&node.client(), &stream, 1, Durability::Disk).await;
    let proxy = Proxy::start(node.address).await;
    let config = ProducerConfig {
        linger: Duration::ZERO,
        ..ProducerConfig::default()
    };
    let producer = Producer::open(&client_of(proxy.address), &stream, config)
        .await
        .unwrap();
    producer
        .send(record("k", "0"))
        .await
        .unwrap()
        .wait()
        .await
        .unwrap();
    for n in 1..=5_u64 {
        proxy.swallow_answers();
        let delivery = producer.send(record("k", n.to_string())).await.unwrap();
        let direct = node.client();
        loop {
            let end = direct.describe_stream(&stream).await.unwrap().shards[0].durable_end;
            if end == SequenceNumber::new(n + 1) && proxy.swallowed() > 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(delivery.try_wait().is_none(), "stored, and its ack lost");
        assert_eq!(producer.stats().batches_in_flight, 1);
        if kill {
            let address = node.address;
            node.kill();
            node = Node::start_at(directory.path(), address).await;
        }
        proxy.cut();
        let delivered = delivery.wait().await.unwrap();
        assert!(delivered.duplicate);
        assert_eq!(delivered.sequence_number, Some(SequenceNumber::new(n)));
    }
    assert_dense_and_counting(&read_all(&node.client(), &stream).await, 1, 6);
    let stats = producer.stats();
    assert_eq!((stats.records_stored, stats.records_duplicate), (6, 5));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_ack_is_acknowledged_once_and_stored_once() {
    lose_an_ack(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_ack_and_a_killed_broker_too() {
    lose_an_ack(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_of_encoded_batches() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path()).await;
    let (client, stream) = (node.client(), name("s"));
    create(&client, &stream, 1, Durability::Disk).await;
    let producer = client.open_producer().await.unwrap();
    let mut session = AppendSession::open(&client, &stream).await.unwrap();
    let mut builder = BatchBuilder::new(RecordLimits::default());
    let mut batch = |sequence: u64| {
        let record = record("key-0", sequence.to_string());
        builder.push(&record, record.hash_key()).unwrap();
        let sequence = ProducerSequence::new(sequence);
        builder
            .finish(producer, sequence, Compression::None)
            .bytes()
            .clone()
    };
    for sequence in 0..5000 {
        session
            .sender
            .push(sequence, ShardIndex::new(0), batch(sequence));
    }
    // Ahead of its turn; and one of the last 64 again, whose places are remembered whatever rounds
    // they went in.
    session.sender.push(9999, ShardIndex::new(0), batch(9999));
    session.sender.push(4990, ShardIndex::new(0), batch(4990));
    session.sender.flush().await.unwrap();
    drop(session.sender);
    let mut answers = HashMap::new();
    while let Some(acks) = session.acks.next().await.unwrap() {
        for ack in acks {
            answers
                .entry(ack.request)
                .or_insert_with(Vec::new)
                .push(ack.outcome);
        }
    }
    assert_eq!(answers.len(), 5001);
    let refused = answers[&9999][0].as_ref().unwrap_err();
    assert_eq!(
        (refused.code(), refused.reason()),
        (Code::FailedPrecondition, "OUT_OF_SEQUENCE")
    );
    assert_eq!(refused.metadata("expected"), Some("5000"));
    let [first, second] =
        [&answers[&4990][0], &answers[&4990][1]].map(|stored| *stored.as_ref().unwrap());
    assert_eq!(
        (first.base, first.duplicate),
        (second.base, second.duplicate ^ true)
    );
    assert_dense_and_counting(&read_all(&client, &stream).await, 1, 5000);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_puts_and_reads() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path()).await;
    let (client, stream) = (node.client(), name("s"));
    create(&client, &stream, 1, Durability::Disk).await;
    let records = (0..10).map(|n| record("key-0", n.to_string())).collect();
    let outcomes = client.put(&stream, records).await.unwrap();
    for (n, outcome) in (0..).zip(&outcomes) {
        assert_eq!(
            outcome.as_ref().unwrap().sequence_number,
            SequenceNumber::new(n)
        );
    }
    let (shard, three) = (
        ShardIndex::new(0),
        StartPosition::At(SequenceNumber::new(3)),
    );
    let reply = client
        .read(&stream, shard, three, ReadBudget::default())
        .await
        .unwrap();
    assert_eq!(
        (
            reply.start.value(),
            reply.next.value(),
            reply.durable_end.value()
        ),
        (3, 10, 10)
    );
    let data: Vec<_> = reply
        .batches
        .iter()
        .flat_map(|batch| batch.records())
        .collect();
    assert_eq!(
        (data.len(), &data[0].as_ref().unwrap().data[..]),
        (7, &b"3"[..])
    );
    let beyond = StartPosition::At(SequenceNumber::new(11));
    let error = client
        .read(&stream, shard, beyond, ReadBudget::default())
        .await
        .unwrap_err();
    assert_eq!(
        (error.code(), error.reason()),
        (Code::InvalidArgument, "BEYOND_END")
    );
    let nowhere = client
        .put(&name("nowhere"), vec![record("k", "")])
        .await
        .unwrap_err();
    assert_eq!(
        (nowhere.code(), nowhere.reason()),
        (Code::NotFound, "STREAM_NOT_FOUND")
    );
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_are_made_changed_listed_and_deleted() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path()).await;
    let client = node.client();
    for stream in ["a", "b", "c"] {
        create(&client, &name(stream), 2, Durability::Memory).await;
    }
    let again = client
        .create_stream(NewStream::new(name("a")))
        .await
        .unwrap_err();
    assert_eq!(
        (again.code(), again.reason()),
        (Code::AlreadyExists, "STREAM_EXISTS")
    );
    let retention = Some(Duration::from_secs(2 * 3600));
    let update = StreamUpdate {
        retention,
        max_record_bytes: Some(2048),
        ..Default::default()
    };
    let updated = client.update_stream(&name("b"), update).await.unwrap();
    assert_eq!(
        (Some(updated.retention), updated.max_record_bytes),
        (retention, 2048)
    );
    assert_eq!(updated, client.describe_stream(&name("b")).await.unwrap());

    let (page, more) = client.list_streams(Some(&name("a")), 1).await.unwrap();
    assert_eq!((page[0].name.as_str(), page.len(), more), ("b", 1, true));
    client.delete_stream(&name("c")).await.unwrap();
    let (all, more) = client.list_streams(None, 0).await.unwrap();
    let names: Vec<_> = all.iter().map(|stream| stream.name.as_str()).collect();
    assert_eq!((names, more), (vec!["a", "b"], false));

    // The producer knows the stream's limit; a record beyond it is refused before it is taken.
    let producer = Producer::open(&client, &name("b"), ProducerConfig::default())
        .await
        .unwrap();
    let too_large = producer.send(record("k", vec![0; 4096])).await.unwrap_err();
    assert!(matches!(too_large, SendError::Record(_)), "{too_large}");
    node.stop().await;
}

#[tokio::test]
async fn nobody_there_is_one_clear_line() {
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let error = client_of(free)
        .describe_stream(&name("s"))
        .await
        .unwrap_err();
    assert!(error.is_retryable() && error.reason().is_empty());
    assert_eq!(error.code(), Code::Unavailable);
    let text = error.to_string().to_lowercase();
    assert!(
        text.contains(&free.to_string()) && text.contains("refused"),
        "{text}"
    );
    let wrong = Client::connect(ClientConfig::new("ftp://x")).unwrap_err();
    assert_eq!(wrong.code(), Code::InvalidArgument);
}
