//! What expires, and when.

use std::sync::Arc;
use std::time::Duration;

use flumen_broker::{StreamSettings, StreamUpdate};
use flumen_log::{MemoryStorage, OperationKind};
use flumen_record::{Durability, ProducerId};

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
    assert_eq!(after.version, before.version + 1);
    let of_catalog = |operation: &&flumen_log::Operation| {
        operation.kind == OperationKind::Write && operation.path.starts_with("catalog/")
    };
    // The catalog may have rested as well by then.
    assert!(storage.trace().iter().filter(of_catalog).count() <= 2);
    let horizons = after.shards.iter().map(|shard| shard.trim_horizon);
    assert!(horizons.eq([number(1); 50]));
}
