//! Reading shards that close, split and expire.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flumen_broker::{BrokerConfig, Clock, NewStream, Reshard, StreamSettings};
use flumen_log::{Grain, MemoryStorage, Storage};
use flumen_record::{Record, Timestamp};

use super::*;

async fn open(storage: &MemoryStorage) -> Broker {
    let clock = Clock::manual(Timestamp::from_micros(1_800_000_000_000_000));
    let config = BrokerConfig::default();
    Broker::open(Arc::new(storage.clone()), config, clock)
        .await
        .unwrap()
}

async fn node() -> (Broker, StreamName) {
    node_over(&MemoryStorage::new()).await
}

async fn node_over(storage: &MemoryStorage) -> (Broker, StreamName) {
    let broker = open(storage).await;
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
    put_data(broker, stream, count, "data".to_owned()).await;
}

async fn put_data(broker: &Broker, stream: &StreamName, count: usize, data: String) {
    let record = |n: usize| Record {
        partition_key: Bytes::from(format!("key-{n}")),
        explicit_hash_key: None,
        data: Bytes::from(data.clone()),
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

/// Flips a bit of each place in the stream's log where `what` stands.
fn damage(storage: &MemoryStorage, what: &str) {
    let dir = "log-disk-168h-0";
    for entry in storage.list(dir).unwrap() {
        let path = format!("{dir}/{}", entry.name);
        let file = storage.open(&path, false).unwrap();
        let mut bytes = vec![0; usize::try_from(entry.bytes).unwrap()];
        file.read_at(&mut bytes, 0).unwrap();
        drop(file);
        let places = bytes.windows(what.len()).enumerate();
        for (at, _) in places.filter(|(_, window)| *window == what.as_bytes()) {
            storage.rot(&path, at as u64, |bytes| bytes[0] ^= 1, 1);
        }
    }
}

/// Damage at the end of a closed shard: what the error names as the place to go on at lay beyond the
/// shard's end.
#[tokio::test]
async fn damage_at_the_end_of_a_closed_shard_is_passed_over_to_its_children() {
    for lost in [0_u64, 3, 5] {
        let storage = MemoryStorage::new();
        let (broker, stream) = node_over(&storage).await;
        for n in 0..6 {
            put_data(&broker, &stream, 1, format!("parent-{n}")).await;
        }
        let split = Reshard::Split {
            shard: ShardIndex::new(0),
            at: None,
        };
        broker.reshard(&stream, split).await.unwrap();
        put(&broker, &stream, 20).await;
        let storage = storage.crash(Grain::Page, |_, _| usize::MAX);
        damage(&storage, &format!("parent-{lost}"));
        let broker = open(&storage).await;
        let mut reading = Reading::new(&broker, &stream, Positions::new(), 1);
        let (mut damaged, mut of_parent, mut of_children) = (Vec::new(), 0, 0);
        while of_children < 20 {
            match next(&mut reading).await {
                Found::Piece(piece) => {
                    let (to, records) = (piece.to, piece.to.value() - piece.from.value());
                    match piece.shard.value() {
                        0 => of_parent += records,
                        _ => of_children += records,
                    }
                    reading.taken(piece, to);
                }
                Found::Damaged(range) => damaged.push(range),
                Found::Expired(range) => panic!("{range:?} has expired"),
            }
        }
        let range = CutRange {
            shard: ShardIndex::new(0),
            from: SequenceNumber::new(lost),
            to: SequenceNumber::new(lost + 1),
        };
        assert_eq!((of_parent, damaged), (5, vec![range]), "{lost}");
        broker.shutdown().await.unwrap();
    }
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
