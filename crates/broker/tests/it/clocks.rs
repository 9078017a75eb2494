//! A node that starts under a wrong wall clock. It expired everything within seconds, for good, and
//! stamped ahead for ever: the start trusted what the running node does not.

use std::sync::Arc;
use std::time::Duration;

use flumen_broker::{Broker, Clock, Health, StreamSettings};
use flumen_log::MemoryStorage;
use flumen_record::{Durability, ProducerId, StreamName, Timestamp};

use crate::fixture::*;

const DAY: Duration = Duration::from_secs(24 * 3600);
const HOUR: Duration = Duration::from_secs(3600);

async fn append(broker: &Broker, stream: &StreamName) -> Timestamp {
    let mut session = Session::open(broker, stream);
    session.append(one("x", ProducerId::NONE, 0)).await.unwrap();
    broker.describe_stream(stream).unwrap().shards[0].last_arrival
}

/// How many records are kept.
async fn kept(broker: &Broker, stream: &StreamName) -> u64 {
    broker.apply_retention().await.unwrap();
    let shard = &broker.describe_stream(stream).unwrap().shards[0];
    shard.durable_end.value() - shard.trim_horizon.value()
}

struct Stopped {
    storage: MemoryStorage,
    /// As it was when the node ended, and goes on to be.
    clock: Clock,
    stream: StreamName,
    last: Timestamp,
}

/// A node with ten records, kept for a day, an hour old; it was closed, or killed, and its file of the
/// time is there, or not.
async fn stopped(durability: Durability, kill: bool, forget: bool) -> Stopped {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let broker = open_with(Arc::new(storage.clone()), config(), clock.clone()).await;
    let settings = StreamSettings {
        retention: DAY,
        ..level(durability)
    };
    let stream = create(&broker, "readings", 1, settings).await;
    for _ in 0..10 {
        append(&broker, &stream).await;
    }
    clock.advance(HOUR);
    let last = append(&broker, &stream).await;
    if !kill {
        broker.shutdown().await.unwrap();
    }
    drop(broker);
    let storage = storage.kill();
    if forget {
        flumen_log::Storage::remove(&storage, "clock").unwrap();
    }
    Stopped {
        storage,
        clock,
        stream,
        last,
    }
}

impl Stopped {
    async fn start(&self, wall: Timestamp) -> (Broker, Clock) {
        let clock = Clock::manual(wall);
        let storage = Arc::new(self.storage.kill());
        let broker = open_doubting(storage, config(), clock.clone()).await;
        (broker, clock)
    }
}

fn wrong(last: Timestamp, days: i64) -> Timestamp {
    let off = DAY * u32::try_from(days.abs()).unwrap();
    if days > 0 {
        last.saturating_add(off)
    } else {
        last.saturating_sub(off)
    }
}

#[tokio::test]
async fn a_start_under_a_wrong_clock_expires_nothing_and_stamps_nothing_ahead() {
    for (kill, forget) in [(false, false), (true, false), (true, true), (false, true)] {
        let stopped = stopped(Durability::Disk, kill, forget).await;
        for days in [1, 40, -1, -40] {
            let (broker, clock) = stopped.start(wrong(stopped.last, days)).await;
            assert!(!clock.is_trusted(), "{days} {kill} {forget}");
            assert_eq!(kept(&broker, &stopped.stream).await, 11);
            match broker.health() {
                Health::Degraded(why) => assert!(why.contains("flumen clock confirm"), "{why}"),
                other => panic!("{other:?}"),
            }
            // Order is kept, and time goes on from where it was.
            let first = append(&broker, &stopped.stream).await;
            assert!(first >= stopped.last && first <= clock.now(), "{first}");
            clock.advance(2 * HOUR);
            let second = append(&broker, &stopped.stream).await;
            assert_eq!(second, clock.now());
            assert!(second >= first && second < stopped.last.saturating_add(3 * HOUR));
            assert_eq!(kept(&broker, &stopped.stream).await, 13);
            broker.shutdown().await.unwrap();
        }
    }
}

/// Neither do a wrong clock at one start and a right one at the next leave anything behind.
#[tokio::test]
async fn a_wrong_clock_between_two_runs_leaves_nothing_behind() {
    for days in [1, 40, -1, -40] {
        let stopped = stopped(Durability::Disk, true, false).await;
        let storage = stopped.storage.clone();
        let wrong = Clock::manual(wrong(stopped.last, days));
        let broker = open_doubting(Arc::new(storage.clone()), config(), wrong.clone()).await;
        append(&broker, &stopped.stream).await;
        wrong.advance(Duration::from_secs(60));
        broker.shutdown().await.unwrap();
        let right = Clock::manual(stopped.last.saturating_add(Duration::from_secs(120)));
        let storage = Arc::new(storage.kill());
        let broker = open_doubting(storage, config(), right.clone()).await;
        assert!(right.is_trusted());
        assert_eq!(kept(&broker, &stopped.stream).await, 12);
        let arrival = append(&broker, &stopped.stream).await;
        assert_eq!(arrival, right.now());
    }
}

/// Simply off for a week, with a right clock: what has expired goes, once something says that the
/// clock is right.
#[tokio::test]
async fn a_node_that_was_off_for_a_week_goes_on() {
    let stopped = stopped(Durability::Disk, false, false).await;
    let later = wrong(stopped.last, 7);
    // The kernel says so at the start, …
    let clock = Clock::manual(later);
    clock.set_synchronised(true);
    let storage = Arc::new(stopped.storage.kill());
    let broker = open_doubting(storage, config(), clock.clone()).await;
    assert_eq!(broker.health(), Health::Serving);
    assert_eq!(append(&broker, &stopped.stream).await, later);
    assert_eq!(kept(&broker, &stopped.stream).await, 1);
    // … or later, …
    let (broker, clock) = stopped.start(later).await;
    assert_eq!(kept(&broker, &stopped.stream).await, 11);
    clock.set_synchronised(true);
    eventually(&clock, "the kernel is asked", || clock.is_trusted()).await;
    assert_eq!(kept(&broker, &stopped.stream).await, 0);
    // … or the operator does, …
    let (broker, clock) = stopped.start(later).await;
    let jump = broker.confirm_clock().await.unwrap();
    assert!((jump - 7.0 * 86_400.0).abs() < 1.0, "{jump}");
    assert_eq!(broker.confirm_clock().await.unwrap(), 0.0);
    assert_eq!(kept(&broker, &stopped.stream).await, 0);
    assert_eq!(append(&broker, &stopped.stream).await, clock.now());
    // … or time that passes.
    let (broker, clock) = stopped.start(later).await;
    clock.advance(DAY - HOUR);
    assert_eq!(append(&broker, &stopped.stream).await, clock.now());
    assert!(clock.now() < wrong(stopped.last, 1));
    clock.advance(HOUR);
    assert!(clock.is_trusted());
    assert_eq!(clock.now(), wrong(later, 1));
    assert_eq!(kept(&broker, &stopped.stream).await, 0);
    // The machine itself has stayed on: it knows how much time has passed.
    stopped.clock.advance(7 * DAY);
    let storage = Arc::new(stopped.storage.kill());
    let broker = open_doubting(storage, config(), stopped.clock.clone()).await;
    assert_eq!(broker.health(), Health::Serving);
    assert_eq!(kept(&broker, &stopped.stream).await, 0);
}

/// What was confirmed is not doubted again at the next start.
#[tokio::test]
async fn a_confirmed_clock_stays_confirmed() {
    let stopped = stopped(Durability::Disk, true, true).await;
    let later = wrong(stopped.last, 40);
    let clock = Clock::manual(later);
    let storage = stopped.storage;
    let broker = open_doubting(Arc::new(storage.clone()), config(), clock.clone()).await;
    assert!(!clock.is_trusted());
    broker.confirm_clock().await.unwrap();
    drop(broker);
    let again = Clock::manual(later.saturating_add(Duration::from_secs(60)));
    open_doubting(Arc::new(storage.kill()), config(), again.clone()).await;
    assert!(again.is_trusted());
}
