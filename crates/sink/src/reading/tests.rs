//! Reading shards that close, split and expire.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flumen_broker::{BrokerConfig, Clock, NewStream, Reshard, StreamSettings};
use flumen_log::MemoryStorage;
use flumen_record::{Record, Timestamp};

use super::*;

async fn node() -> (Broker, StreamName) {
    let clock = Clock::manual(Timestamp::from_micros(1_800_000_000_000_000));
    let config = BrokerConfig::default();
    let broker = Broker::open(Arc::new(MemoryStorage::new()), config, clock)
        .await
        .unwrap();
    let name: StreamName = "s".parse().unwrap();
    let new = NewStream {
        name: name.clone(),
        shards: 1,
        settings: StreamSettings::default(),
    };
    broker.create_stream(new).await.unwrap();
    (broker, name)
}

async fn put(broker: &Broker, stream: &StreamName, count: usize) {
    let record = |n: usize| Record {
        partition_key: Bytes::from(format!("key-{n}")),
        explicit_hash_key: None,
        data: Bytes::from_static(b"data"),
        client_timestamp: None,
        headers: Vec::new(),
    };
    for outcome in broker
        .put(stream, (0..count).map(record).collect())
        .await
        .unwrap()
    {
        outcome.unwrap();
    }
}

async fn next(reading: &mut Reading) -> Found {
    let next = tokio::time::timeout(Duration::from_secs(30), reading.next());
    next.await.expect("something comes").unwrap()
}

#[tokio::test]
async fn a_closed_shard_is_read_to_its_end_before_its_children() {
    let (broker, stream) = node().await;
    put(&broker, &stream, 20).await;
    let split = Reshard::Split {
        shard: ShardIndex::new(0),
        at: None,
    };
    broker.reshard(&stream, split).await.unwrap();
    put(&broker, &stream, 20).await;
    let mut reading = Reading::new(&broker, &stream, Positions::new(), 1);
    let mut order = Vec::new();
    while order.iter().map(|(_, records)| records).sum::<u64>() < 40 {
        let Found::Piece(piece) = next(&mut reading).await else {
            panic!("nothing is lost");
        };
        let to = piece.to;
        order.push((piece.shard.value(), to.value() - piece.from.value()));
        reading.taken(piece, to);
    }
    let of_parent: u64 = order
        .iter()
        .filter(|(shard, _)| *shard == 0)
        .map(|(_, n)| n)
        .sum();
    assert_eq!(of_parent, 20);
    let first_child = order.iter().position(|(shard, _)| *shard != 0).unwrap();
    let children = &order[first_child..];
    assert!(
        children.iter().all(|(shard, n)| *shard != 0 || *n == 0),
        "{order:?}"
    );
    broker.shutdown().await.unwrap();
}

#[tokio::test]
async fn what_was_not_taken_comes_again() {
    let (broker, stream) = node().await;
    put(&broker, &stream, 10).await;
    let mut reading = Reading::new(&broker, &stream, Positions::new(), 1 << 20);
    let Found::Piece(piece) = next(&mut reading).await else {
        panic!("nothing is lost");
    };
    assert_eq!((piece.from.value(), piece.to.value()), (0, 10));
    reading.taken(piece, SequenceNumber::new(4));
    let Found::Piece(piece) = next(&mut reading).await else {
        panic!("nothing is lost");
    };
    assert_eq!((piece.from.value(), piece.to.value()), (4, 10));
    assert_eq!(
        reading.positions().get(&ShardIndex::new(0)),
        Some(&SequenceNumber::new(4))
    );
    broker.shutdown().await.unwrap();
}
