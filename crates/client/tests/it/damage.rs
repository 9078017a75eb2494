//! Readers over damage: where a data-loss error says to go on, it goes on, on closed shards too.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flumen_client::{
    Client, ConsumeError, Consumer, ConsumerConfig, GapPolicy, GroupBatch, GroupConfig,
    GroupConsumer, HandlerError, NewStream, ReadBudget, ReadUntil, Record, StartPosition,
    StreamName,
};
use flumen_record::{SequenceNumber, ShardIndex};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::node::Node;

const SOON: Duration = Duration::from_secs(30);

/// Records of the parent, of the two it was split into, and of what those were merged into.
const PARENT: u64 = 12;
const CHILDREN: u64 = 6;
const GRANDCHILD: u64 = 4;

fn stream() -> StreamName {
    "readings".parse().unwrap()
}

/// What a record holds: long, so that a byte of it can be told from any other.
fn text(name: &str, n: u64) -> String {
    format!("<{name} {n}>{}", ".".repeat(200))
}

async fn put(client: &Client, name: &str, count: u64) {
    for n in 0..count {
        let record = Record {
            partition_key: format!("k{n}").into(),
            explicit_hash_key: None,
            data: text(name, n).into(),
            client_timestamp: None,
            headers: Vec::new(),
        };
        let outcomes = client.put(&stream(), vec![record]).await.unwrap();
        assert!(outcomes.iter().all(Result::is_ok));
    }
}

/// A stream of one shard that was split, and merged again.
async fn fill(client: &Client) {
    client
        .create_stream(NewStream::new(stream()))
        .await
        .unwrap();
    put(client, "parent", PARENT).await;
    let shard = ShardIndex::new;
    client.split_shard(&stream(), shard(0), None).await.unwrap();
    put(client, "child", CHILDREN).await;
    client
        .merge_shards(&stream(), shard(1), shard(2))
        .await
        .unwrap();
    put(client, "grandchild", GRANDCHILD).await;
}

fn all() -> BTreeSet<String> {
    [
        ("parent", PARENT),
        ("child", CHILDREN),
        ("grandchild", GRANDCHILD),
    ]
    .into_iter()
    .flat_map(|(name, count)| (0..count).map(move |n| text(name, n)))
    .collect()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| {
            if path.is_dir() {
                files(&path)
            } else {
                vec![path]
            }
        })
        .collect()
}

/// Flips a bit of a record on disk.
fn damage(directory: &Path, record: &str) {
    let mut found = 0;
    for path in files(directory) {
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes
            .windows(record.len())
            .position(|window| window == record.as_bytes());
        if let Some(at) = at {
            bytes[at + 50] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            found += 1;
        }
    }
    assert_eq!(found, 1, "{record}");
}

/// Everything a consumer gets that steps over gaps.
async fn consume(client: &Client) -> BTreeSet<String> {
    let config = ConsumerConfig {
        gaps: GapPolicy::Skip,
        until: ReadUntil::CurrentEnd,
        ..ConsumerConfig::default()
    };
    let mut consumer = Consumer::open(client, &stream(), config).await.unwrap();
    let mut records = BTreeSet::new();
    while let Some(batch) = timeout(SOON, consumer.next())
        .await
        .expect("it stands still")
        .unwrap()
    {
        let batch = batch.records().map(|record| record.unwrap().data);
        records.extend(batch.map(|data| String::from_utf8(data.to_vec()).unwrap()));
    }
    records
}

/// What members of a group get that steps over gaps, until they have `wanted` records.
async fn consume_as_group(client: &Client, wanted: usize) -> BTreeSet<String> {
    let seen = Arc::new((Mutex::new(BTreeSet::new()), Notify::new()));
    let handled = Arc::clone(&seen);
    let config = GroupConfig {
        gaps: GapPolicy::Skip,
        start: StartPosition::TrimHorizon,
        ..GroupConfig::new("analytics".parse().unwrap())
    };
    let handler = move |batch: GroupBatch| {
        let handled = Arc::clone(&handled);
        async move {
            let records = batch.records.iter();
            let texts = records.map(|record| String::from_utf8(record.data.to_vec()).unwrap());
            handled.0.lock().unwrap().extend(texts);
            handled.1.notify_one();
            Ok::<(), HandlerError>(())
        }
    };
    let member = GroupConsumer::join(client, &stream(), config, handler)
        .await
        .unwrap();
    let all_came = async {
        while seen.0.lock().unwrap().len() < wanted {
            seen.1.notified().await;
        }
    };
    let came = timeout(SOON, all_came).await;
    let records = seen.0.lock().unwrap().clone();
    assert!(came.is_ok(), "{} of {wanted} came", records.len());
    member.leave().await.unwrap();
    records
}

/// What a reader is told at the damage, and what it meets where it is sent.
async fn ask(client: &Client, shard: u32, lost: u64, end: u64, children: &[u32]) {
    let config = ConsumerConfig {
        shards: vec![ShardIndex::new(shard)],
        ..ConsumerConfig::default()
    };
    let mut consumer = Consumer::open(client, &stream(), config).await.unwrap();
    let told = loop {
        match timeout(SOON, consumer.next())
            .await
            .expect("it stands still")
        {
            Ok(batch) => assert!(batch.is_some(), "no error"),
            Err(error) => break error,
        }
    };
    let ConsumeError::DataLoss { from, to, .. } = told else {
        panic!("{told}");
    };
    assert_eq!((from.value(), to.value()), (lost, lost + 1));
    let budget = ReadBudget::default();
    let (mut at, mut ended) = (to, None);
    while ended.is_none() {
        let start = StartPosition::At(at);
        let reply = client
            .read(&stream(), ShardIndex::new(shard), start, budget)
            .await;
        let reply = reply.unwrap_or_else(|error| panic!("at {at}: {error}"));
        assert!(
            reply.next > at || reply.end_of_shard.is_some(),
            "no way on at {at}"
        );
        (at, ended) = (reply.next, reply.end_of_shard);
    }
    assert_eq!(at.value(), end);
    let children: Vec<ShardIndex> = children.iter().copied().map(ShardIndex::new).collect();
    assert_eq!(ended.unwrap(), children);
    // Beyond it there is nothing, and that is said as before.
    let beyond = StartPosition::At(SequenceNumber::new(end + 1));
    let refused = client
        .read(&stream(), ShardIndex::new(shard), beyond, budget)
        .await;
    assert_eq!(refused.unwrap_err().reason(), "BEYOND_END");
}

/// Damage at the end of a shard makes its log jump: the error named a place 2^32 numbers further on, at
/// which a closed shard refuses to be read, so that nobody ever came to its children.
#[tokio::test(flavor = "multi_thread")]
async fn a_closed_shard_is_read_to_its_end_and_its_children_over_damage() {
    let first_middle_last = [0, PARENT / 2, PARENT - 1];
    for (in_order, places) in [(true, &first_middle_last[2..]), (false, &first_middle_last)] {
        for &lost in places {
            let directory = tempfile::tempdir().unwrap();
            let node = Node::start(directory.path()).await;
            fill(&node.client()).await;
            if in_order {
                node.stop().await;
            } else {
                node.kill();
            }
            let record = text("parent", lost);
            damage(directory.path(), &record);
            let node = Node::start(directory.path()).await;
            let mut expected = all();
            expected.remove(&record);
            let client = node.client();
            ask(&client, 0, lost, PARENT, &[1, 2]).await;
            let found = consume(&client).await;
            assert!(found == expected, "{lost}: {} records", found.len());
            let found = consume_as_group(&client, expected.len()).await;
            assert!(
                found == expected,
                "{lost}: {} records in a group",
                found.len()
            );
            node.stop().await;
        }
    }
}
