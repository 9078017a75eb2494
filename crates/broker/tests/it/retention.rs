//! What expires, and when.

use std::sync::Arc;
use std::time::Duration;

use flumen_broker::{Broker, BrokerConfig, Clock, StartPosition, StreamSettings, StreamUpdate};
use flumen_log::{MemoryStorage, OperationKind, Storage};
use flumen_record::{Durability, Frames, ProducerId, SequenceNumber, StreamName, Timestamp};

use crate::fixture::*;

const HOUR: Duration = Duration::from_secs(3600);

fn kept_for(retention: Duration) -> StreamSettings {
    StreamSettings {
        retention,
        ..level(Durability::Disk)
    }
}

fn keep_for(retention: Duration) -> StreamUpdate {
    StreamUpdate {
        retention: Some(retention),
        ..StreamUpdate::default()
    }
}

/// A stream kept for a year is looked at every few hours; a full disk cannot wait for that.
#[tokio::test]
async fn a_shortened_retention_is_noticed_at_once() {
    let (storage, clock) = (Arc::new(MemoryStorage::new()), clock());
    let broker = open_with(storage, config(), clock.clone()).await;
    let stream = create(&broker, "readings", 1, kept_for(8760 * HOUR)).await;
    let mut session = Session::open(&broker, &stream);
    session.append(one("0", ProducerId::NONE, 0)).await.unwrap();
    clock.advance(2 * HOUR);
    // It is looked at, and nothing is due.
    for _ in 0..5 {
        clock.advance(Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let update = keep_for(HOUR);
    broker.update_stream(&stream, update).await.unwrap();
    eventually(&clock, "the record expires", || {
        let description = broker.describe_stream(&stream).unwrap();
        description.shards[0].trim_horizon == number(1)
    })
    .await;
}

/// All shards leave a log together: one change of the catalog, however many there are.
#[tokio::test]
async fn leaving_a_log_is_one_change() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let broker = open_with(Arc::new(storage.clone()), config(), clock.clone()).await;
    let stream = create(&broker, "readings", 50, kept_for(24 * HOUR)).await;
    let records = (0..50).map(|index| record_for(index, 50, "data")).collect();
    for outcome in broker.put(&stream, records).await.unwrap() {
        outcome.unwrap();
    }
    let update = keep_for(HOUR);
    let before = broker.update_stream(&stream, update).await.unwrap();
    clock.advance(2 * HOUR);
    storage.start_trace();
    broker.apply_retention().await.unwrap();
    let after = broker.describe_stream(&stream).unwrap();
    assert!(after.version > before.version);
    let of_catalog = |operation: &&flumen_log::Operation| {
        operation.kind == OperationKind::Write && operation.path.starts_with("catalog/")
    };
    // Others may say how far logs have got, as two hours are over, and that the catalog rests.
    let written = storage.trace().iter().filter(of_catalog).count();
    assert!((1..=4).contains(&written), "{written}");
    let horizons = after.shards.iter().map(|shard| shard.trim_horizon);
    assert!(horizons.eq([number(1); 50]));
}

const RECORD_BYTES: usize = 20 << 10;
const BOUND: u64 = 2 << 20;

/// Files so small that a bound of two megabytes is many of them.
fn small_files() -> BrokerConfig {
    let mut config = config();
    config.log.segment_bytes_min = 128 << 10;
    config.log.segment_bytes_max = 256 << 10;
    config.log.hot_window_bytes = 0;
    config
}

fn bounded() -> StreamSettings {
    StreamSettings {
        retention_bytes: Some(BOUND),
        ..level(Durability::Disk)
    }
}

async fn put_large(broker: &Broker, stream: &StreamName, clock: &Clock, count: u32) {
    for n in 0..count {
        clock.advance(Duration::from_millis(100));
        let mut data = vec![b'x'; RECORD_BYTES];
        data[..4].copy_from_slice(&n.to_le_bytes());
        let put = broker.put(stream, vec![record("key", data)]).await;
        put.unwrap().remove(0).unwrap();
    }
}

/// Its two ends, after every kept record was read.
async fn kept(broker: &Broker, stream: &StreamName) -> (u64, u64) {
    let bounds = broker.describe_stream(stream).unwrap().shards[0].clone();
    let (horizon, end) = (bounds.trim_horizon.value(), bounds.durable_end.value());
    let read = read_all(broker, stream, shard(0)).await;
    let numbers: Vec<u64> = read.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (horizon..end).collect::<Vec<_>>());
    (horizon, end)
}

async fn start_at(broker: &Broker, stream: &StreamName, time: Timestamp) -> u64 {
    let start = StartPosition::AtTimestamp(time);
    let found = broker.resolve_start(stream, shard(0), start).await;
    found.unwrap().value()
}

/// When the record of this number arrived, as every reader is told.
async fn arrival(broker: &Broker, stream: &StreamName, number: u64) -> Timestamp {
    let start = StartPosition::At(SequenceNumber::new(number));
    let read = broker.read(stream, shard(0), start, BUDGET, Duration::ZERO);
    let reply = read.await.unwrap();
    let frame = Frames::new(reply.pieces[0].clone()).next().unwrap();
    frame.unwrap().header.arrival
}

async fn check_starts(broker: &Broker, stream: &StreamName, clock: &Clock) {
    let (horizon, end) = kept(broker, stream).await;
    assert_eq!(start_at(broker, stream, Timestamp::ZERO).await, horizon);
    for number in [horizon, horizon + 1, horizon.midpoint(end), end - 1] {
        let arrived = arrival(broker, stream, number).await;
        assert_eq!(start_at(broker, stream, arrived).await, number);
        let before = arrived.saturating_sub(Duration::from_micros(1));
        assert_eq!(start_at(broker, stream, before).await, number);
    }
    let later = clock.now().saturating_add(HOUR);
    assert_eq!(start_at(broker, stream, later).await, end);
}

/// A bound in bytes freed segments that the index went on naming. A time before them was answered
/// with "the end": after a restart retention by time deleted all that was kept.
#[tokio::test]
async fn a_bound_in_bytes_and_a_restart_lose_nothing_that_is_kept() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let mut broker = open_with(Arc::new(storage.clone()), small_files(), clock.clone()).await;
    let stream = create(&broker, "readings", 1, bounded()).await;
    put_large(&broker, &stream, &clock, 400).await;
    broker.apply_retention().await.unwrap();
    let (horizon, end) = kept(&broker, &stream).await;
    let fit = BOUND / RECORD_BYTES as u64;
    assert!(
        (fit - 3..=fit).contains(&(end - horizon)),
        "{horizon} {end}"
    );
    eventually(&clock, "segments are freed", || {
        storage.list("log-disk-168h-0").unwrap().len() < 30
    })
    .await;
    let mut storage = storage;
    for is_clean in [true, false, true] {
        check_starts(&broker, &stream, &clock).await;
        if is_clean {
            broker.shutdown().await.unwrap();
        }
        storage = storage.kill();
        broker = open_with(Arc::new(storage.clone()), small_files(), clock.clone()).await;
        broker.apply_retention().await.unwrap();
        assert_eq!(kept(&broker, &stream).await, (horizon, end), "{is_clean}");
    }
}

/// Every record kept is younger than the retention, and none that is younger went.
#[tokio::test]
async fn age_expires_exactly_what_is_due() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let settings = StreamSettings {
        retention: HOUR,
        ..bounded()
    };
    let broker = open_with(Arc::new(storage.clone()), small_files(), clock.clone()).await;
    let stream = create(&broker, "readings", 1, settings).await;
    put_large(&broker, &stream, &clock, 200).await;
    broker.apply_retention().await.unwrap();
    eventually(&clock, "segments are freed", || {
        storage.list("log-disk-1h-0").unwrap().len() < 30
    })
    .await;
    let (horizon, end) = kept(&broker, &stream).await;
    let due = horizon + (end - horizon) / 3;
    let arrived = arrival(&broker, &stream, due).await;
    let age = clock.now().since(arrived);
    clock.advance(HOUR - age);
    broker.apply_retention().await.unwrap();
    assert_eq!(kept(&broker, &stream).await, (due, end));
}
