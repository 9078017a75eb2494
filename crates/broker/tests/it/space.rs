//! A full disk: appends are refused, and what frees space goes on.

use std::sync::Arc;
use std::time::Duration;

use flumen_broker::{Broker, BrokerConfig, Clock, Error, Health, StreamSettings};
use flumen_log::{MemoryStorage, Storage};
use flumen_record::{Durability, ProducerId, StreamName};

use crate::fixture::*;

const HOUR: Duration = Duration::from_secs(3600);
const FLOOR: u64 = 16 << 20;
/// Lanes look after their logs, and housekeeping at the free space, more often than this.
const LOOKED_AGAIN: Duration = Duration::from_millis(1500);

fn with_floor() -> BrokerConfig {
    let mut config = config();
    config.log.free_space_floor_bytes = Some(FLOOR);
    config.log.hot_window_bytes = 0;
    config
}

fn free(storage: &MemoryStorage) -> u64 {
    storage.space().unwrap().free_bytes
}

/// Somebody else's files grow or shrink until so much is free.
fn leave_free(storage: &MemoryStorage, bytes: u64) {
    let space = storage.space().unwrap();
    storage.set_total_bytes(space.total_bytes - space.free_bytes + bytes);
}

async fn append(broker: &Broker, stream: &StreamName) -> Result<(), Error> {
    let mut session = Session::open(broker, stream);
    let batch = one(vec![7; 256 << 10], ProducerId::NONE, 0);
    session.append(batch).await.map(|_| ())
}

fn is_full(error: &Error) -> bool {
    matches!(error, Error::StorageFull { .. })
}

struct Full {
    storage: MemoryStorage,
    broker: Broker,
    clock: Clock,
    /// Holds nearly everything.
    stream: StreamName,
    /// Holds one record.
    small: StreamName,
}

/// Leaves so much free until appends are refused: at first a log gives back files that it had ready
/// or left over, and that may be enough.
async fn fill_up(
    storage: &MemoryStorage,
    bytes: u64,
    broker: &Broker,
    stream: &StreamName,
    clock: &Clock,
) {
    let mut refusals = 0;
    for _ in 0..12 {
        leave_free(storage, bytes);
        clock.advance(LOOKED_AGAIN);
        tokio::time::sleep(LOOKED_AGAIN).await;
        match append(broker, stream).await {
            Ok(()) => refusals = 0,
            Err(refused) => {
                assert!(is_full(&refused), "{refused}");
                refusals += 1;
            }
        }
        // It may give back more because it has refused.
        if refusals == 3 {
            return;
        }
    }
    panic!("appends go on, on a full disk");
}

/// A node with 16 MiB of records, on a disk that somebody else fills.
async fn full(durability: Durability) -> Full {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let broker = open_with(Arc::new(storage.clone()), with_floor(), clock.clone()).await;
    let settings = StreamSettings {
        retention: HOUR,
        ..level(durability)
    };
    let small = create(&broker, "small", 1, settings.clone()).await;
    append(&broker, &small).await.unwrap();
    let stream = create(&broker, "readings", 1, settings).await;
    for _ in 0..64 {
        append(&broker, &stream).await.unwrap();
    }
    // Everything is vouched: nothing is left to do but to wait for space.
    for _ in 0..3 {
        clock.advance(Duration::from_secs(10));
        tokio::time::sleep(LOOKED_AGAIN / 2).await;
    }
    fill_up(&storage, FLOOR / 2, &broker, &stream, &clock).await;
    assert!(matches!(broker.health(), Health::Degraded(_)));
    Full {
        storage,
        broker,
        clock,
        stream,
        small,
    }
}

impl Full {
    /// Space comes back without anybody appending, and with it health and appends.
    async fn recovers(&self, stream: &StreamName) {
        eventually(&self.clock, "the floor is reached again", || {
            free(&self.storage) >= FLOOR && self.broker.health() == Health::Serving
        })
        .await;
        append(&self.broker, stream).await.unwrap();
    }
}

#[tokio::test]
async fn a_deleted_stream_gives_its_space_back_below_the_floor() {
    for durability in [Durability::Disk, Durability::Memory] {
        let full = full(durability).await;
        let other = StreamSettings {
            retention: HOUR,
            ..level(durability)
        };
        full.broker.delete_stream(&full.stream).await.unwrap();
        let other = create(&full.broker, "other", 1, other).await;
        full.recovers(&other).await;
    }
}

#[tokio::test]
async fn retention_gives_space_back_below_the_floor() {
    let full = full(Durability::Disk).await;
    full.clock.advance(2 * HOUR);
    full.broker.apply_retention().await.unwrap();
    full.recovers(&full.stream).await;
}

/// It was said that the disk is full; that there is room again is said without an append.
#[tokio::test]
async fn health_clears_when_space_comes_back_by_itself() {
    let full = full(Durability::Disk).await;
    leave_free(&full.storage, 1 << 30);
    full.recovers(&full.stream).await;
}

/// While not enough can be freed, a full disk is no reason to begin one segment after another.
#[tokio::test]
async fn a_log_that_waits_for_space_keeps_still() {
    let full = full(Durability::Disk).await;
    let file_operations = || {
        let counts = full.storage.counts();
        counts
            .get(&flumen_log::OperationKind::Create)
            .copied()
            .unwrap_or(0)
    };
    full.broker.delete_stream(&full.small).await.unwrap();
    for _ in 0..20 {
        full.clock.advance(Duration::from_secs(5));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let settled = file_operations();
    for _ in 0..30 {
        full.clock.advance(Duration::from_secs(5));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(file_operations(), settled);
}

/// No segment is active after a clean start, and there is not enough above the floor for one: what
/// expires is given back all the same.
#[tokio::test]
async fn a_disk_that_was_filled_to_the_floor_is_usable_after_a_restart() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let broker = open_with(Arc::new(storage.clone()), with_floor(), clock.clone()).await;
    let settings = StreamSettings {
        retention: HOUR,
        ..level(Durability::Disk)
    };
    let stream = create(&broker, "readings", 1, settings).await;
    leave_free(&storage, FLOOR + (24 << 20));
    let refused = loop {
        if let Err(error) = append(&broker, &stream).await {
            break error;
        }
        clock.advance(Duration::from_secs(1));
    };
    assert!(is_full(&refused), "{refused}");
    broker.shutdown().await.unwrap();
    drop(broker);
    let storage = storage.kill();
    let broker = open_with(Arc::new(storage.clone()), with_floor(), clock.clone()).await;
    // What is left is less than a segment, whatever opening has tidied up.
    fill_up(&storage, FLOOR + (1 << 19), &broker, &stream, &clock).await;
    let full = Full {
        storage,
        broker,
        clock,
        small: stream.clone(),
        stream,
    };
    full.clock.advance(2 * HOUR);
    full.broker.apply_retention().await.unwrap();
    full.recovers(&full.stream).await;
}
