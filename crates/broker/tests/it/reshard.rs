//! Shards that are split and merged while writers and readers go on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flumen_broker::{
    Broker, Clock, Error, Reshard, StartPosition, StreamDescription, StreamSettings, StreamUpdate,
};
use flumen_log::{Fault, FaultError, Grain, MemoryStorage, OperationKind};
use flumen_record::{Durability, HashKey, ProducerId, ShardIndex, StreamName};
use tokio::time::Instant;

use crate::fixture::*;

const HOUR: Duration = Duration::from_secs(3600);

fn split(index: u32) -> Reshard {
    Reshard::Split {
        shard: shard(index),
        at: None,
    }
}

fn merge(one: u32, other: u32) -> Reshard {
    Reshard::Merge {
        shard: shard(one),
        adjacent: shard(other),
    }
}

/// (index, open, parents) of all shards.
fn map(stream: &StreamDescription) -> Vec<(u32, bool, Vec<u32>)> {
    let shards = stream.shards.iter().map(|shard| {
        let parents = shard.parents.iter().map(|parent| parent.value());
        (shard.index.value(), shard.open, parents.collect())
    });
    shards.collect()
}

/// Reads the whole stream, parents first: the data of each key, in order.
async fn by_key(broker: &Broker, stream: &StreamName) -> BTreeMap<Bytes, Vec<Bytes>> {
    let mut found: BTreeMap<Bytes, Vec<Bytes>> = BTreeMap::new();
    // Children have higher numbers than their parents.
    for shard in broker.describe_stream(stream).unwrap().shards {
        let mut start = StartPosition::TrimHorizon;
        loop {
            let read = broker.read(stream, shard.index, start, BUDGET, Duration::ZERO);
            let reply = read.await.unwrap();
            for (_, record) in records(&reply) {
                found
                    .entry(record.partition_key)
                    .or_default()
                    .push(record.data);
            }
            if reply.pieces.is_empty() {
                break;
            }
            start = StartPosition::At(reply.next);
        }
    }
    found
}

#[tokio::test]
async fn a_split_closes_the_parent_and_opens_children_at_once() {
    let broker = open(&MemoryStorage::new()).await;
    let stream = create(&broker, "readings", 1, level(Durability::Disk)).await;
    let producer = broker.open_producer().await.unwrap();
    let mut session = Session::open(&broker, &stream);
    let before = session.append(one("0", producer, 0)).await.unwrap();
    let described = broker.reshard(&stream, split(0)).await.unwrap();
    let expected = [(0, false, vec![]), (1, true, vec![0]), (2, true, vec![0])];
    assert_eq!(map(&described), expected);
    assert_eq!(described, broker.describe_stream(&stream).unwrap());
    // What was stored is recognised, what is new is refused, by an old session too.
    let again = session.append(one("0", producer, 0)).await.unwrap();
    assert_eq!((again.base, again.duplicate), (before.base, true));
    let closed = Err(Error::ShardClosed {
        shard: shard(0),
        end: number(1),
    });
    assert_eq!(session.append(one("1", producer, 1)).await, closed);
    // The children begin at 0, with sequences of their own.
    let low = batch(&[record_for(0, 2, "low")], producer, 0);
    let high = batch(&[record_for(1, 2, "high")], producer, 0);
    for (index, batch) in [(1, low), (2, high)] {
        let appended = session.append_to(shard(index), batch).await.unwrap();
        assert_eq!(appended.base, number(0));
    }
    let stray = batch(&[record_for(1, 2, "high")], producer, 1);
    let refused = session.append_to(shard(1), stray).await;
    assert!(
        matches!(refused, Err(Error::WrongShard { .. })),
        "{refused:?}"
    );
    // Merged, they are one shard again.
    let described = broker.reshard(&stream, merge(2, 1)).await.unwrap();
    assert_eq!(described.shards[3].parents, [shard(2), shard(1)]);
    assert_eq!(
        described.shards.iter().filter(|shard| shard.open).count(),
        1
    );
    let metrics = broker.metrics().snapshot().counters;
    let count = |name: &str| {
        let of = metrics.iter().filter(|(known, ..)| *known == name);
        of.map(|(.., value)| value).sum::<u64>()
    };
    assert_eq!((count("shard_splits"), count("shard_merges")), (1, 1));
}

/// A session knows the stream as it was when it last handed something over.
#[tokio::test]
async fn an_old_session_finds_children_and_misses_what_has_expired() {
    let clock = clock();
    let storage = Arc::new(MemoryStorage::new());
    let broker = open_with(storage, config(), clock.clone()).await;
    let (stream, producer) = split_long_ago(&broker).await;
    let mut session = Session::open(&broker, &stream);
    broker.reshard(&stream, split(2)).await.unwrap();
    let highest = batch(&[record_for(3, 4, "x")], producer, 0);
    let appended = session.append_to(shard(4), highest).await.unwrap();
    assert_eq!(appended.base, number(0));
    let mut session = Session::open(&broker, &stream);
    clock.advance(2 * HOUR);
    broker.apply_retention().await.unwrap();
    let gone = Err(Error::ShardNotFound {
        stream: stream.clone(),
        shard: shard(0),
    });
    assert_eq!(session.append(one("1", producer, 1)).await, gone);
}

#[tokio::test]
async fn what_cannot_be_resharded_is_refused_and_changes_nothing() {
    let broker = open(&MemoryStorage::new()).await;
    let stream = create(&broker, "readings", 3, level(Durability::Disk)).await;
    let nobody = broker.reshard(&name("nobody"), split(0)).await;
    assert!(matches!(nobody, Err(Error::StreamNotFound { .. })));
    broker.reshard(&stream, split(0)).await.unwrap();
    let before = broker.describe_stream(&stream).unwrap();
    let at = |key| Reshard::Split {
        shard: shard(1),
        at: Some(HashKey::new(key)),
    };
    for (step, reason) in [
        (split(9), "SHARD_NOT_FOUND"),
        (merge(2, 9), "SHARD_NOT_FOUND"),
        (split(0), "SHARD_CLOSED"),
        (merge(0, 1), "SHARD_CLOSED"),
        (merge(3, 2), "SHARDS_NOT_ADJACENT"),
        (at(0), "SPLIT_OUTSIDE"),
        (at(u128::MAX), "SPLIT_OUTSIDE"),
    ] {
        let refused = broker.reshard(&stream, step).await.unwrap_err();
        assert_eq!(refused.reason(), reason, "{step:?}");
    }
    for shards in [0, 10_001] {
        let refused = broker.scale_stream(&stream, shards).await.unwrap_err();
        assert_eq!(refused.reason(), "OUT_OF_BOUNDS");
    }
    assert_eq!(broker.describe_stream(&stream).unwrap(), before);
}

#[tokio::test]
async fn a_stream_scales_up_and_down() {
    let broker = open(&MemoryStorage::new()).await;
    let stream = create(&broker, "readings", 1, level(Durability::Disk)).await;
    for shards in [8, 8, 3, 100, 1] {
        let described = broker.scale_stream(&stream, shards).await.unwrap();
        let open = described.shards.iter().filter(|shard| shard.open).count();
        assert_eq!(open, shards as usize);
        let put = (0..50).map(|n| record(&n.to_string(), "x")).collect();
        let outcomes = broker.put(&stream, put).await.unwrap();
        assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    }
    let found = by_key(&broker, &stream).await;
    assert!(found.len() == 50 && found.values().all(|data| data.len() == 5));
}

/// A long poll and a subscription that wait at the end are told at once, with the children; later
/// readers are told, too.
#[tokio::test]
async fn readers_learn_that_their_shard_has_ended() {
    let broker = open(&MemoryStorage::new()).await;
    let stream = create(&broker, "readings", 1, level(Durability::Disk)).await;
    let mut session = Session::open(&broker, &stream);
    session.append(one("0", ProducerId::NONE, 0)).await.unwrap();
    let latest = vec![(shard(0), StartPosition::Latest)];
    let mut subscription = broker.subscribe(&stream, latest, BUDGET).await.unwrap();
    let polling = {
        let (broker, stream) = (broker.clone(), stream.clone());
        tokio::spawn(async move {
            let latest = StartPosition::Latest;
            broker.read(&stream, shard(0), latest, BUDGET, WAIT).await
        })
    };
    let subscribed = tokio::spawn(async move {
        let first = subscription.next().await;
        (first, subscription.next().await.is_none())
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!polling.is_finished() && !subscribed.is_finished());
    broker.reshard(&stream, split(0)).await.unwrap();
    let children = Some(vec![shard(1), shard(2)]);
    let reply = tokio::time::timeout(WAIT, polling)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(
        (reply.next, reply.end_of_shard),
        (number(1), children.clone())
    );
    let (first, over) = tokio::time::timeout(WAIT, subscribed)
        .await
        .unwrap()
        .unwrap();
    let reply = first.unwrap().unwrap().reply;
    assert_eq!(
        (reply.next, reply.end_of_shard),
        (number(1), children.clone())
    );
    assert!(over, "it had one shard");
    let from_start = vec![(shard(0), StartPosition::TrimHorizon)];
    let mut later = broker.subscribe(&stream, from_start, BUDGET).await.unwrap();
    let reply = later.next().await.unwrap().unwrap().reply;
    assert_eq!((records(&reply).len(), reply.end_of_shard), (1, children));
}

/// Puts and idempotent sessions at full speed, across many splits and merges: each record once, in
/// order per key, and each reshard takes little time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn puts_go_on_across_splits_and_merges() {
    for durability in [Durability::Disk, Durability::Memory] {
        let dir = tempfile::tempdir().unwrap();
        let broker = open_dir(dir.path()).await;
        let stream = create(&broker, "readings", 1, level(durability)).await;
        let resharding = {
            let (broker, stream) = (broker.clone(), stream.clone());
            tokio::spawn(async move {
                let mut longest = Duration::ZERO;
                for turn in 0..60 {
                    let described = broker.describe_stream(&stream).unwrap();
                    let mut open: Vec<_> =
                        described.shards.iter().filter(|shard| shard.open).collect();
                    open.sort_unstable_by_key(|shard| shard.range.start);
                    let step = match (turn / 6) % 2 {
                        0 => split(open[turn % open.len()].index.value()),
                        _ => merge(open[0].index.value(), open[1].index.value()),
                    };
                    let began = Instant::now();
                    broker.reshard(&stream, step).await.unwrap();
                    longest = longest.max(began.elapsed());
                }
                longest
            })
        };
        let mut putting = Vec::new();
        for task in 0..4 {
            let (broker, stream) = (broker.clone(), stream.clone());
            let going_on = resharding.abort_handle();
            putting.push(tokio::spawn(async move {
                let mut n = 0;
                while !going_on.is_finished() {
                    let put = (0..8).map(|key| record(&format!("{task}-{key}"), n.to_string()));
                    for outcome in broker.put(&stream, put.collect()).await.unwrap() {
                        outcome.unwrap();
                    }
                    n += 1;
                }
                n
            }));
        }
        let mut expected = BTreeMap::new();
        for (task, putting) in putting.into_iter().enumerate() {
            let count = putting.await.unwrap();
            let data: Vec<_> = (0..count)
                .map(|n: u64| Bytes::from(n.to_string()))
                .collect();
            for key in 0..8 {
                expected.insert(Bytes::from(format!("{task}-{key}")), data.clone());
            }
        }
        let longest = resharding.await.unwrap();
        assert!(longest < Duration::from_secs(1), "{longest:?}");
        let found = by_key(&broker, &stream).await;
        assert!(found == expected, "{durability:?}");
    }
}

/// A crash at any operation of a split and a merge leaves the parents open or the children, with all
/// that was acknowledged, and producers who ask again learn the truth.
#[tokio::test]
async fn a_crash_at_any_moment_leaves_parents_or_children() {
    let mut maps = BTreeSet::new();
    for durability in [Durability::Disk, Durability::Memory] {
        for operation in 0..60 {
            let (storage, clock) = (MemoryStorage::new(), clock());
            let broker = open_with(Arc::new(storage.clone()), config(), clock.clone()).await;
            let stream = create(&broker, "readings", 1, level(durability)).await;
            let producer = broker.open_producer().await.unwrap();
            let mut session = Session::open(&broker, &stream);
            for n in 0..3 {
                session
                    .append(one(n.to_string(), producer, n))
                    .await
                    .unwrap();
            }
            storage.crash_after(operation);
            let done = broker.reshard(&stream, split(0)).await.is_ok()
                && broker.reshard(&stream, merge(1, 2)).await.is_ok();
            let images = match durability {
                Durability::Disk => vec![
                    storage.kill(),
                    storage.crash_keeping(Grain::Page, 0),
                    storage.crash_seeded(Grain::Sector, operation),
                ],
                // It promises to survive the process.
                Durability::Memory => vec![storage.kill()],
            };
            drop(broker);
            for image in images {
                let broker = open_with(Arc::new(image), config(), clock.clone()).await;
                let described = broker.describe_stream(&stream).unwrap();
                let open: Vec<_> = described
                    .shards
                    .iter()
                    .filter(|shard| shard.open)
                    .map(|shard| shard.index.value())
                    .collect();
                assert!(!done || open == [3], "{open:?}");
                let mut session = Session::open(&broker, &stream);
                for n in 0..3 {
                    let again = session
                        .append(one(n.to_string(), producer, n))
                        .await
                        .unwrap();
                    assert_eq!((again.base, again.duplicate), (number(n), true));
                }
                let next = session.append(one("3", producer, 3)).await;
                match &open[..] {
                    [0] => assert!(next.is_ok(), "{next:?}"),
                    _ => {
                        let (shard, end) = (shard(0), number(3));
                        assert_eq!(next, Err(Error::ShardClosed { shard, end }));
                        assert_eq!(described.shards[0].durable_end, end);
                    }
                }
                let read = read_all(&broker, &stream, shard(0)).await;
                assert_eq!(read[..3], counted(0..3));
                let put = broker
                    .put(&stream, vec![record("later", "x")])
                    .await
                    .unwrap();
                assert!(put[0].is_ok(), "{put:?}");
                maps.insert(open);
            }
        }
    }
    assert_eq!(maps, BTreeSet::from([vec![0], vec![1, 2], vec![3]]));
}

/// Whether the shard was split is decided by what is on the disk, at the next start. Meanwhile
/// nothing may be acknowledged.
#[tokio::test]
async fn a_split_with_an_unknown_outcome_acknowledges_nothing_any_more() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let broker = open_with(Arc::new(storage.clone()), config(), clock.clone()).await;
    let stream = create(&broker, "readings", 1, level(Durability::Disk)).await;
    let producer = broker.open_producer().await.unwrap();
    let mut session = Session::open(&broker, &stream);
    session.append(one("0", producer, 0)).await.unwrap();
    storage.inject(Fault {
        on: Some(OperationKind::Sync),
        skip: 0,
        times: u64::MAX,
        error: FaultError::Io,
    });
    let unknown = broker.reshard(&stream, split(0)).await;
    assert_eq!(unknown.unwrap_err(), Error::OutcomeUnknown);
    storage.clear_faults();
    assert_eq!(
        session.append(one("1", producer, 1)).await,
        Err(Error::Poisoned)
    );
    let again = broker.reshard(&stream, split(0)).await;
    assert_eq!(again.unwrap_err(), Error::Poisoned);
    for storage in [storage.kill(), storage.crash_seeded(Grain::Page, 1)] {
        let broker = open_with(Arc::new(storage), config(), clock.clone()).await;
        let mut session = Session::open(&broker, &stream);
        let again = session.append(one("0", producer, 0)).await.unwrap();
        assert!(again.duplicate);
        let put = broker
            .put(&stream, vec![record("later", "x")])
            .await
            .unwrap();
        assert!(put[0].is_ok(), "{put:?}");
    }
}

/// The log of a child to which nothing was written knows nothing of it. Producers need not fear that
/// it has forgotten them, unless it is so old that all may have expired.
#[tokio::test]
async fn a_child_that_was_never_written_to_knows_that() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let broker = open_with(Arc::new(storage.clone()), config(), clock.clone()).await;
    let stream = create(&broker, "readings", 1, level(Durability::Memory)).await;
    let producer = broker.open_producer().await.unwrap();
    let mut session = Session::open(&broker, &stream);
    session.append(one("0", producer, 0)).await.unwrap();
    broker.reshard(&stream, split(0)).await.unwrap();
    drop(broker);
    for (age, known) in [(HOUR / 2, true), (2 * HOUR, false)] {
        let later = Clock::manual(clock.now().saturating_add(age));
        let broker = open_with(Arc::new(storage.kill()), config(), later).await;
        let mut session = Session::open(&broker, &stream);
        let first = batch(&[record_for(0, 2, "x")], producer, 0);
        let appended = session.append_to(shard(1), first).await;
        assert_eq!(appended.is_ok(), known, "{appended:?}");
        let ahead = batch(&[record_for(1, 2, "x")], producer, 1);
        let refused = session.append_to(shard(2), ahead).await;
        assert_eq!(refused, Err(Error::ProducerStateLost { producer }));
    }
}

/// Of a stream with short retention whose shard 0 was split after one record.
async fn split_long_ago(broker: &Broker) -> (StreamName, ProducerId) {
    let settings = StreamSettings {
        retention: HOUR,
        ..level(Durability::Disk)
    };
    let stream = create(broker, "readings", 1, settings).await;
    let producer = broker.open_producer().await.unwrap();
    let mut session = Session::open(broker, &stream);
    session.append(one("0", producer, 0)).await.unwrap();
    broker.reshard(&stream, split(0)).await.unwrap();
    (stream, producer)
}

fn indices(broker: &Broker, stream: &StreamName) -> Vec<ShardIndex> {
    let described = broker.describe_stream(stream).unwrap();
    described.shards.iter().map(|shard| shard.index).collect()
}

/// Until its retention ends a closed shard is read and answers duplicates, also after a restart;
/// then it leaves, and does not come back.
#[tokio::test]
async fn a_closed_shard_leaves_when_its_retention_ends() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let broker = open_with(Arc::new(storage.clone()), config(), clock.clone()).await;
    let (stream, producer) = split_long_ago(&broker).await;
    clock.advance(HOUR / 2);
    broker.apply_retention().await.unwrap();
    broker.shutdown().await.unwrap();
    let storage = storage.kill();
    let broker = open_with(Arc::new(storage.clone()), config(), clock.clone()).await;
    assert_eq!(read_all(&broker, &stream, shard(0)).await, counted(0..1));
    let mut session = Session::open(&broker, &stream);
    assert!(
        session
            .append(one("0", producer, 0))
            .await
            .unwrap()
            .duplicate
    );
    let latest = vec![
        (shard(0), StartPosition::TrimHorizon),
        (shard(1), StartPosition::Latest),
    ];
    let mut subscription = broker.subscribe(&stream, latest, BUDGET).await.unwrap();
    clock.advance(HOUR);
    broker.apply_retention().await.unwrap();
    assert_eq!(indices(&broker, &stream), [shard(1), shard(2)]);
    let gone = Error::ShardNotFound {
        stream: stream.clone(),
        shard: shard(0),
    };
    assert_eq!(
        session.append(one("1", producer, 1)).await,
        Err(gone.clone())
    );
    assert_eq!(subscription.next().await.unwrap().unwrap_err(), gone);
    assert_eq!(subscription.failed_shard(), Some(shard(0)));
    let again = broker.reshard(&stream, merge(1, 2)).await.unwrap();
    assert_eq!(again.shards.last().unwrap().index, shard(3));
    broker.shutdown().await.unwrap();
    let broker = open_with(Arc::new(storage.kill()), config(), clock).await;
    assert_eq!(indices(&broker, &stream), [shard(1), shard(2), shard(3)]);
}

/// A bound in bytes empties a closed shard early; it still answers until its time is over.
#[tokio::test]
async fn a_closed_shard_that_is_empty_answers_until_its_retention_ends() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let broker = open_with(Arc::new(storage.clone()), config(), clock.clone()).await;
    let (stream, producer) = split_long_ago(&broker).await;
    let bound = StreamUpdate {
        retention_bytes: Some(Some(1)),
        ..StreamUpdate::default()
    };
    broker.update_stream(&stream, bound).await.unwrap();
    broker.apply_retention().await.unwrap();
    broker.shutdown().await.unwrap();
    let broker = open_with(Arc::new(storage.kill()), config(), clock).await;
    let described = broker.describe_stream(&stream).unwrap();
    assert_eq!(described.shards[0].trim_horizon, number(1));
    let mut session = Session::open(&broker, &stream);
    let (shard, end) = (shard(0), number(1));
    let closed = Err(Error::ShardClosed { shard, end });
    assert_eq!(session.append(one("1", producer, 1)).await, closed);
    assert!(
        session
            .append(one("0", producer, 0))
            .await
            .unwrap()
            .duplicate
    );
}
