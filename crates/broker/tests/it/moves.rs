//! Streams whose level or retention class changes: their shards go on in another log.

use std::sync::Arc;
use std::time::Duration;

use flumen_broker::{
    Broker, Clock, Delivery, Error, StartPosition, StreamSettings, StreamUpdate, Subscription,
};
use flumen_log::{Fault, FaultError, Grain, MemoryStorage, OperationKind, Storage};
use flumen_record::{Durability, ProducerId, StreamName};

use crate::fixture::*;

/// Of the log a stream moves to when it is kept for an hour.
const SNAPSHOT: &str = "log-disk-1h-0/snapshot";
const HOUR: Duration = Duration::from_secs(3600);
/// How far a shard jumps when numbers may have been lost.
const JUMP: u64 = 1 << 32;

fn kept_for(retention: Duration) -> StreamUpdate {
    StreamUpdate {
        retention: Some(retention),
        ..StreamUpdate::default()
    }
}

fn at_level(durability: Durability) -> StreamUpdate {
    StreamUpdate {
        durability: Some(durability),
        ..StreamUpdate::default()
    }
}

async fn append(broker: &Broker, stream: &StreamName, producer: ProducerId, n: u64) -> u64 {
    let mut session = Session::open(broker, stream);
    let appended = session.append(one(n.to_string(), producer, n)).await;
    appended.expect("it is appended").base.value()
}

async fn next(subscription: &mut Subscription) -> Delivery {
    tokio::time::timeout(WAIT, subscription.next())
        .await
        .expect("something comes")
        .expect("the subscription goes on")
        .expect("it reads")
}

/// A reader that has caught up may look at a shard after its new lane has written and before it
/// learns of the new lane: it must neither spin nor sleep through it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_follow_a_shard_that_moves_under_load() {
    // Reads that find nothing wait, and there must be an end of that.
    let broker = open_with(Arc::new(MemoryStorage::new()), config(), Clock::system()).await;
    let stream = create(&broker, "readings", 1, level(Durability::Memory)).await;
    let from_start = vec![(shard(0), StartPosition::TrimHorizon)];
    let mut subscription = broker.subscribe(&stream, from_start, BUDGET).await.unwrap();
    let moving = {
        let (broker, stream) = (broker.clone(), stream.clone());
        tokio::spawn(async move {
            for turn in 0..200 {
                let hours = if turn % 2 == 0 { 6 } else { 24 };
                let update = kept_for(hours * HOUR);
                broker.update_stream(&stream, update).await.unwrap();
            }
        })
    };
    let appending = {
        let (broker, stream) = (broker.clone(), stream.clone());
        tokio::spawn(async move {
            let producer = broker.open_producer().await.unwrap();
            let mut session = Session::open(&broker, &stream);
            let mut n = 0;
            while !moving.is_finished() {
                let appended = session.append(one(n.to_string(), producer, n)).await;
                assert_eq!(appended.unwrap().base, number(n));
                n += 1;
            }
            n
        })
    };
    let mut polled = StartPosition::TrimHorizon;
    let mut delivered = 0;
    let appended = loop {
        if appending.is_finished() {
            break appending.await.unwrap();
        }
        let delivery = tokio::time::timeout(Duration::from_millis(100), subscription.next());
        if let Ok(delivery) = delivery.await {
            delivered = delivery.unwrap().unwrap().reply.next.value();
        }
        let read = broker.read(&stream, shard(0), polled, BUDGET, WAIT / 100);
        polled = StartPosition::At(read.await.unwrap().next);
    };
    while delivered < appended {
        delivered = next(&mut subscription).await.reply.next.value();
    }
    assert_eq!(
        read_all(&broker, &stream, shard(0)).await,
        counted(0..appended)
    );
}

/// The log it moved to remembers nothing of the shard, and may have lost what it acknowledged:
/// numbers go on behind a jump. The jump lies in no record that could be read.
#[tokio::test]
async fn readers_step_over_the_jump_of_a_shard_that_left_no_trace_in_its_log() {
    let storage = MemoryStorage::new();
    let broker = open(&storage).await;
    let other = create(&broker, "other", 1, level(Durability::Memory)).await;
    append(&broker, &other, ProducerId::NONE, 0).await;
    let stream = create(&broker, "readings", 1, level(Durability::Disk)).await;
    for n in 0..3 {
        append(&broker, &stream, ProducerId::NONE, n).await;
    }
    let update = at_level(Durability::Memory);
    broker.update_stream(&stream, update).await.unwrap();
    let broker = open(&storage.kill()).await;
    assert_eq!(read_all(&broker, &stream, shard(0)).await, counted(0..3));
    let caught_up = vec![(shard(0), StartPosition::At(number(3)))];
    let mut subscription = broker.subscribe(&stream, caught_up, BUDGET).await.unwrap();
    let waiting = tokio::time::timeout(Duration::from_millis(50), subscription.next());
    assert!(waiting.await.is_err(), "there is nothing to deliver");
    let base = append(&broker, &stream, ProducerId::NONE, 3).await;
    assert_eq!(base, 3 + JUMP);
    let delivery = next(&mut subscription).await;
    assert_eq!(records(&delivery.reply)[0].0, base);
    let at_the_end = StartPosition::At(number(3));
    let reply = broker
        .read(&stream, shard(0), at_the_end, BUDGET, Duration::ZERO)
        .await
        .expect("nothing was trimmed");
    assert_eq!(records(&reply)[0].0, base);
    let found = read_all(&broker, &stream, shard(0)).await;
    assert_eq!(found.len(), 4);
}

/// What of a node that has moved a shard into a log where nothing was written since, and whose old
/// log has dropped it.
struct MovedWhileIdle {
    storage: MemoryStorage,
    broker: Broker,
    clock: Clock,
    stream: StreamName,
    producer: ProducerId,
}

async fn moved_while_idle(wait_for_snapshot: bool) -> MovedWhileIdle {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let broker = open_with(Arc::new(storage.clone()), config(), clock.clone()).await;
    let settings = StreamSettings {
        retention: 24 * HOUR,
        ..level(Durability::Disk)
    };
    let stream = create(&broker, "readings", 1, settings).await;
    let producer = broker.open_producer().await.unwrap();
    for n in 0..5 {
        append(&broker, &stream, producer, n).await;
    }
    let update = kept_for(HOUR);
    broker.update_stream(&stream, update).await.unwrap();
    if wait_for_snapshot {
        eventually(&clock, "a snapshot of the new log", || {
            storage.read_small(SNAPSHOT).is_ok()
        })
        .await;
    }
    clock.advance(2 * HOUR);
    broker.apply_retention().await.unwrap();
    assert_eq!(ends(&broker, &stream), (5, 5));
    MovedWhileIdle {
        storage,
        broker,
        clock,
        stream,
        producer,
    }
}

fn ends(broker: &Broker, stream: &StreamName) -> (u64, u64) {
    let description = broker.describe_stream(stream).unwrap();
    let shard = &description.shards[0];
    (shard.trim_horizon.value(), shard.durable_end.value())
}

/// Numbers are given out once, although no log knows the shard any more.
#[tokio::test]
async fn a_shard_that_moved_while_idle_goes_on_where_it_was() {
    let moved = moved_while_idle(false).await;
    let storage = moved.storage.kill();
    // Either it was not written yet, or it was lost since.
    let _ = storage.remove(SNAPSHOT);
    let broker = open_with(Arc::new(storage), config(), moved.clock).await;
    assert_eq!(ends(&broker, &moved.stream), (5, 5));
    let mut session = Session::open(&broker, &moved.stream);
    // Nobody remembers what it has sent.
    let again = session.append(one("0", moved.producer, 0)).await;
    let producer = moved.producer;
    assert_eq!(again, Err(Error::ProducerStateLost { producer }));
    assert_eq!(append(&broker, &moved.stream, ProducerId::NONE, 5).await, 5);
    let at_the_end = StartPosition::At(number(5));
    let reply = broker
        .read(&moved.stream, shard(0), at_the_end, BUDGET, Duration::ZERO)
        .await
        .unwrap();
    assert_eq!(records(&reply)[0].0, 5);
}

/// The new log's snapshot speaks for the shard before the old log forgets it.
#[tokio::test]
async fn a_shard_that_moved_while_idle_keeps_its_producers() {
    let moved = moved_while_idle(true).await;
    let storage = Arc::new(moved.storage.kill());
    let broker = open_with(storage, config(), moved.clock).await;
    let mut session = Session::open(&broker, &moved.stream);
    let again = session.append(one("4", moved.producer, 4)).await.unwrap();
    assert_eq!((again.base, again.duplicate), (number(4), true));
    assert_eq!(append(&broker, &moved.stream, moved.producer, 5).await, 5);
}

#[tokio::test]
async fn a_shard_that_moved_while_idle_goes_on_after_a_clean_stop() {
    let moved = moved_while_idle(false).await;
    moved.broker.shutdown().await.unwrap();
    let storage = Arc::new(moved.storage.kill());
    let broker = open_with(storage, config(), moved.clock).await;
    assert_eq!(ends(&broker, &moved.stream), (5, 5));
    let mut session = Session::open(&broker, &moved.stream);
    let again = session.append(one("4", moved.producer, 4)).await.unwrap();
    assert_eq!((again.base, again.duplicate), (number(4), true));
    assert_eq!(append(&broker, &moved.stream, moved.producer, 5).await, 5);
}

/// Whether the shard has moved is decided by what is on the disk, at the next start. Meanwhile
/// nothing may be acknowledged, in either log.
#[tokio::test]
async fn a_move_with_an_unknown_outcome_acknowledges_nothing_any_more() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let broker = open_with(Arc::new(storage.clone()), config(), clock.clone()).await;
    let stream = create(&broker, "readings", 1, level(Durability::Disk)).await;
    let other = create(&broker, "other", 1, level(Durability::Disk)).await;
    // The log it moves to is there.
    let settings = StreamSettings {
        retention: HOUR,
        ..StreamSettings::default()
    };
    create(&broker, "short", 1, settings).await;
    for n in 0..3 {
        append(&broker, &stream, ProducerId::NONE, n).await;
    }
    // The catalog's record may be on the disk, and so may its second copy.
    storage.inject(Fault {
        on: Some(OperationKind::Sync),
        skip: 0,
        times: u64::MAX,
        error: FaultError::Io,
    });
    let moved = broker.update_stream(&stream, kept_for(HOUR)).await;
    assert_eq!(moved.unwrap_err(), Error::OutcomeUnknown);
    storage.clear_faults();
    let mut session = Session::open(&broker, &stream);
    let refused = session.append(one("3", ProducerId::NONE, 0)).await;
    assert_eq!(refused, Err(Error::Poisoned));
    let again = broker.update_stream(&stream, kept_for(HOUR)).await;
    assert_eq!(again.unwrap_err(), Error::Poisoned);
    assert_eq!(read_all(&broker, &stream, shard(0)).await, counted(0..3));
    append(&broker, &other, ProducerId::NONE, 0).await;
    for storage in [storage.kill(), storage.crash_seeded(Grain::Page, 1)] {
        let broker = open_with(Arc::new(storage), config(), clock.clone()).await;
        assert_eq!(append(&broker, &stream, ProducerId::NONE, 3).await, 3);
        assert_eq!(read_all(&broker, &stream, shard(0)).await, counted(0..4));
    }
}

/// A shard that came back to a log was where the log had jumped to in its absence: what it wrote there
/// was doubled, or lost, and its producers were told so.
#[tokio::test]
async fn a_stream_that_moves_back_after_kills_is_whole() {
    let (mut storage, clock) = (MemoryStorage::new(), clock());
    let start = async |storage: &MemoryStorage| {
        open_with(Arc::new(storage.clone()), config(), clock.clone()).await
    };
    let mut broker = start(&storage).await;
    let stream = create(&broker, "readings", 1, level(Durability::Memory)).await;
    let producer = broker.open_producer().await.unwrap();
    let mut bases = Vec::new();
    let put = async |broker: &Broker, bases: &mut Vec<u64>, count: u64| {
        for _ in 0..count {
            let n = bases.len() as u64;
            bases.push(append(broker, &stream, producer, n).await);
        }
    };
    put(&broker, &mut bases, 5).await;
    let to = |durability| at_level(durability);
    broker
        .update_stream(&stream, to(Durability::Disk))
        .await
        .unwrap();
    storage = storage.kill();
    broker = start(&storage).await;
    put(&broker, &mut bases, 1).await;
    broker
        .update_stream(&stream, to(Durability::Memory))
        .await
        .unwrap();
    put(&broker, &mut bases, 5).await;
    assert_eq!(bases, (0..11).collect::<Vec<_>>());
    for _ in 0..3 {
        storage = storage.kill();
        broker = start(&storage).await;
        assert_eq!(ends(&broker, &stream).0, 0);
        assert_eq!(read_all(&broker, &stream, shard(0)).await, counted(0..11));
        for from in 0..11 {
            let start = StartPosition::At(number(from));
            let reply = broker.read(&stream, shard(0), start, BUDGET, Duration::ZERO);
            assert_eq!(records(&reply.await.unwrap())[0].0, from);
        }
        let mut session = Session::open(&broker, &stream);
        for n in 0..11 {
            let again = session.append(one(n.to_string(), producer, n)).await;
            match again {
                Ok(again) => assert_eq!((again.base, again.duplicate), (number(n), true)),
                // Its place is not remembered any more, that it was appended is.
                Err(error) => assert!(matches!(error, Error::AlreadyAppended { .. }), "{error}"),
            }
        }
    }
    put(&broker, &mut bases, 1).await;
    assert_eq!(bases.last(), Some(&(11 + 3 * JUMP)));
    assert_eq!(read_all(&broker, &stream, shard(0)).await.len(), 12);
}

/// A move into a log that lost nothing, as it never held anything, leaves a jump behind and no record.
/// A reader that comes there has nothing to be told but what follows.
#[tokio::test]
async fn an_empty_stay_in_memory_is_neither_trimmed_nor_lost() {
    let (mut storage, clock) = (MemoryStorage::new(), clock());
    let mut broker = open_with(Arc::new(storage.clone()), config(), clock.clone()).await;
    let other = create(&broker, "other", 1, level(Durability::Memory)).await;
    append(&broker, &other, ProducerId::NONE, 0).await;
    let stream = create(&broker, "readings", 1, level(Durability::Disk)).await;
    for n in 0..3 {
        append(&broker, &stream, ProducerId::NONE, n).await;
    }
    let memory = at_level(Durability::Memory);
    broker.update_stream(&stream, memory).await.unwrap();
    for _ in 0..2 {
        storage = storage.kill();
        broker = open_with(Arc::new(storage.clone()), config(), clock.clone()).await;
    }
    let disk = at_level(Durability::Disk);
    broker.update_stream(&stream, disk).await.unwrap();
    let base = append(&broker, &stream, ProducerId::NONE, 3).await;
    assert!([3 + JUMP, 3 + 2 * JUMP].contains(&base), "{base}");
    for _ in 0..2 {
        storage = storage.kill();
        broker = open_with(Arc::new(storage.clone()), config(), clock.clone()).await;
        for from in [3, 4, 3 + JUMP, base] {
            let start = StartPosition::At(number(from));
            let reply = broker.read(&stream, shard(0), start, BUDGET, Duration::ZERO);
            assert_eq!(records(&reply.await.unwrap())[0].0, base, "{from}");
        }
        assert_eq!(read_all(&broker, &stream, shard(0)).await.len(), 4);
    }
}

/// What lies in a log that the shard was in twice was counted twice: eight records went where one was
/// due.
#[tokio::test]
async fn a_bound_in_bytes_counts_what_came_back_once() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let broker = open_with(Arc::new(storage), config(), clock).await;
    let stream = create(&broker, "readings", 1, level(Durability::Disk)).await;
    let mut n = 0;
    for durability in [Durability::Memory, Durability::Disk, Durability::Memory] {
        for _ in 0..3 {
            let batch = one(vec![b'x'; 1000], ProducerId::NONE, 0);
            let mut session = Session::open(&broker, &stream);
            assert_eq!(session.append(batch).await.unwrap().base.value(), n);
            n += 1;
        }
        broker
            .update_stream(&stream, at_level(durability))
            .await
            .unwrap();
    }
    let one_batch = 40 + one(vec![b'x'; 1000], ProducerId::NONE, 0).bytes().len() as u64;
    for (bound, horizon) in [(9, 0), (8, 1), (5, 4), (4, 5), (1, 8)] {
        let bound = StreamUpdate {
            retention_bytes: Some(Some(bound * one_batch)),
            ..StreamUpdate::default()
        };
        broker.update_stream(&stream, bound).await.unwrap();
        broker.apply_retention().await.unwrap();
        assert_eq!(ends(&broker, &stream), (horizon, 9));
        assert_eq!(
            read_all(&broker, &stream, shard(0)).await.len() as u64,
            9 - horizon
        );
    }
}
