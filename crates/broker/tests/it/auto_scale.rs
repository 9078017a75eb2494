//! Streams whose shards follow their load.

use std::sync::Arc;
use std::time::Duration;

use flumen_broker::{
    AutoScale, AutoScaleChange, AutoScaleUpdate, Broker, Clock, StreamDescription, StreamSettings,
    StreamUpdate,
};
use flumen_log::MemoryStorage;
use flumen_record::{HashKey, Record, StreamName};

use crate::fixture::*;

const SECOND: Duration = Duration::from_secs(1);

/// 100 records/s per shard, 1 to 4 shards, all times short.
fn settings() -> StreamSettings {
    StreamSettings {
        auto_scale: Some(AutoScale {
            shards_max: 4,
            shard_records_per_s: Some(100),
            split_after: 3 * SECOND,
            merge_after: 5 * SECOND,
            cool_down: 10 * SECOND,
            ..AutoScale::default()
        }),
        ..StreamSettings::default()
    }
}

/// Goes on second by second with so many records in each, at these keys in turn, until it is so.
async fn until(
    broker: &Broker,
    (stream, clock): (&StreamName, &Clock),
    (load, keys): (usize, &[u128]),
    is_so: impl Fn(&StreamDescription) -> bool,
) -> StreamDescription {
    let mut changes = broker.stream_changes();
    for _ in 0..200 {
        let described = broker.describe_stream(stream).unwrap();
        if is_so(&described) {
            return described;
        }
        let records: Vec<_> = keys
            .iter()
            .cycle()
            .take(load)
            .map(|key| Record {
                explicit_hash_key: Some(HashKey::new(*key)),
                ..record("key", "data")
            })
            .collect();
        // As many producers would.
        for records in records.chunks(20) {
            for put in broker.put(stream, records.to_vec()).await.unwrap() {
                put.unwrap();
            }
        }
        clock.advance(SECOND);
        // Nothing happens in most of the seconds.
        let _ = tokio::time::timeout(Duration::from_millis(20), changes.changed()).await;
    }
    panic!("in vain: {:?}", broker.describe_stream(stream));
}

fn open_shards(stream: &StreamDescription) -> usize {
    stream.shards.iter().filter(|shard| shard.open).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hot_shard_is_split_at_its_median_and_cold_ones_are_merged() {
    let clock = clock();
    let storage = Arc::new(MemoryStorage::new());
    let broker = open_with(storage, config(), clock.clone()).await;
    let stream = create(&broker, "readings", 1, settings()).await;
    let at = (&stream, &clock);
    // All in the lowest hundredth of the key space.
    let keys: Vec<u128> = (0..20).map(|n| n * 1000 + 1000).collect();
    let split = until(&broker, at, (200, &keys), |stream| open_shards(stream) == 2).await;
    let border = split.shards[2].range.start.value();
    assert!((5_000..=16_000).contains(&border), "{border}");
    // Nobody sends any more: they become one again.
    until(&broker, at, (0, &[]), |stream| open_shards(stream) == 1).await;
    let counters = broker.metrics().snapshot().counters;
    let by_load: Vec<_> = counters
        .iter()
        .filter(|(_, _, labels, _)| labels.contains(&("cause", "load".to_owned())))
        .map(|(name, .., value)| (*name, *value))
        .collect();
    assert_eq!(by_load, [("shard_splits", 1), ("shard_merges", 1)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_hot_key_is_no_reason_to_split() {
    let clock = clock();
    let storage = Arc::new(MemoryStorage::new());
    let broker = open_with(storage, config(), clock.clone()).await;
    let hot = create(&broker, "hot", 1, settings()).await;
    let spread = create(&broker, "spread", 1, settings()).await;
    let keys = [1_u128 << 100, 1 << 127];
    for _ in 0..30 {
        let records = (0..200).map(|_| record("key", "data")).collect();
        broker.put(&hot, records).await.unwrap();
        let at = (&spread, &clock);
        let seconds = std::cell::Cell::new(0);
        // One second of the other's load.
        until(&broker, at, (200, &keys), |_| seconds.replace(1) == 1).await;
    }
    assert_eq!(open_shards(&broker.describe_stream(&hot).unwrap()), 1);
    assert!(open_shards(&broker.describe_stream(&spread).unwrap()) > 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bounds_hold_without_load_and_settings_outlive_a_restart() {
    let clock = clock();
    let storage = MemoryStorage::new();
    let broker = open_with(Arc::new(storage.clone()), config(), clock.clone()).await;
    let stream = create(&broker, "readings", 1, settings()).await;
    let change = AutoScaleChange {
        shards_min: Some(3),
        ..AutoScaleChange::default()
    };
    let update = StreamUpdate {
        auto_scale: Some(AutoScaleUpdate::On(change)),
        ..StreamUpdate::default()
    };
    broker.update_stream(&stream, update).await.unwrap();
    let at = (&stream, &clock);
    let described = until(&broker, at, (0, &[]), |stream| open_shards(stream) == 3).await;
    let auto_scale = described.settings.auto_scale.unwrap();
    assert_eq!((auto_scale.shards_min, auto_scale.shards_max), (3, 4));
    let broker = open_with(Arc::new(storage.kill()), config(), clock.clone()).await;
    let again = broker.describe_stream(&stream).unwrap();
    assert_eq!(again.settings, described.settings);
    let update = StreamUpdate {
        auto_scale: Some(AutoScaleUpdate::Off),
        ..StreamUpdate::default()
    };
    let off = broker.update_stream(&stream, update).await.unwrap();
    assert_eq!(off.settings.auto_scale, None);
}

#[tokio::test]
async fn settings_that_make_no_sense_are_refused() {
    let broker = open(&MemoryStorage::new()).await;
    let stream = create(&broker, "readings", 1, StreamSettings::default()).await;
    let rate = AutoScaleChange {
        shard_records_per_s: Some(100),
        ..AutoScaleChange::default()
    };
    for (change, setting) in [
        (AutoScaleChange::default(), "scale-bytes-per-s"),
        (
            AutoScaleChange {
                shards_min: Some(0),
                ..rate
            },
            "at least",
        ),
        (
            AutoScaleChange {
                shards_min: Some(17),
                ..rate
            },
            "at least",
        ),
        (
            AutoScaleChange {
                shards_max: Some(10_001),
                ..rate
            },
            "at most",
        ),
        (
            AutoScaleChange {
                split_above_percent: Some(101),
                ..rate
            },
            "scale-split-above",
        ),
        (
            AutoScaleChange {
                merge_below_percent: Some(70),
                ..rate
            },
            "scale-merge-below",
        ),
        (
            AutoScaleChange {
                split_after: Some(Duration::ZERO),
                ..rate
            },
            "scale-split-after",
        ),
        (
            AutoScaleChange {
                cool_down: Some(100_000 * SECOND),
                ..rate
            },
            "scale-cool-down",
        ),
    ] {
        let update = StreamUpdate {
            auto_scale: Some(AutoScaleUpdate::On(change)),
            ..StreamUpdate::default()
        };
        let refused = broker.update_stream(&stream, update).await.unwrap_err();
        assert_eq!(refused.reason(), "OUT_OF_BOUNDS");
        assert!(refused.to_string().contains(setting), "{refused}");
    }
}
