//! A full disk, and one that fails.

use flumen_log::{Fault, FaultError, OperationKind, SyncError, WriteError};

use super::*;

const LARGE: u64 = 1 << 40;

/// All but `skip` operations of this kind fail.
fn broken(on: OperationKind, skip: u64) -> Fault {
    Fault {
        on: Some(on),
        skip,
        times: u64::MAX,
        error: FaultError::Io,
    }
}

/// Creates streams until the log says that the disk is full.
fn fill(catalog: &mut Catalog, first: u32) -> u32 {
    for number in first.. {
        match catalog.create(new(&format!("s{number}"), 20), NOW) {
            Ok(_) => {}
            Err(CatalogError::Write(WriteError::Full { .. })) => return number,
            Err(other) => panic!("{other:?}"),
        }
    }
    unreachable!("numbers have no end")
}

#[test]
fn on_a_full_disk_streams_are_not_created_and_everything_else_goes_on() {
    let storage = MemoryStorage::new();
    let config = StreamConfig {
        catalog_snapshot_records: 100,
        ..config()
    };
    let (mut catalog, _) = Catalog::open(Arc::new(storage.clone()), config, NOW).unwrap();
    let mut housekeeper = catalog.housekeeper();
    catalog.create(new("s0", 20), NOW).unwrap();
    storage.set_total_bytes(9 << 18);
    housekeeper.step(NOW).unwrap();
    let created = fill(&mut catalog, 1);
    for number in 0..created / 2 {
        catalog.delete(&name(&format!("s{number}")), NOW).unwrap();
    }
    let update = StreamUpdate {
        retention_bytes: Some(Some(5)),
        ..StreamUpdate::default()
    };
    let last = name(&format!("s{}", created - 1));
    catalog.update(&last, &update, &[], NOW).unwrap();
    for _ in 0..10 {
        catalog.issue_producer(NOW).unwrap();
    }
    storage.set_total_bytes(LARGE);
    housekeeper.step(NOW).unwrap();
    catalog.create(new("again", 1), NOW).unwrap();
    let all: Vec<_> = catalog.streams().cloned().collect();
    assert_eq!(all.len(), (created - created / 2 + 1) as usize);
    drop((catalog, housekeeper));
    let catalog = open(&storage.crash_keeping(flumen_log::Grain::Page, 0));
    assert_eq!(catalog.streams().cloned().collect::<Vec<_>>(), all);
}

#[test]
fn after_an_unknown_outcome_nothing_is_changed_any_more() {
    let storage = MemoryStorage::new();
    let mut catalog = open(&storage);
    let known = catalog.create(new("a", 1), NOW).unwrap();
    storage.inject(broken(OperationKind::Sync, 0));
    let unknown = catalog.create(new("b", 1), NOW);
    assert!(
        matches!(unknown, Err(CatalogError::Sync(SyncError::Poisoned { .. }))),
        "{unknown:?}"
    );
    storage.clear_faults();
    let refused = catalog.delete(&name("a"), NOW);
    assert!(
        matches!(refused, Err(CatalogError::Write(WriteError::Poisoned))),
        "{refused:?}"
    );
    // It still answers what it knows, and only that.
    assert_eq!(catalog.streams().collect::<Vec<_>>(), [&known]);
    assert_eq!(catalog.last_record(), 1);
    drop(catalog);
    let mut catalog = open(&storage.kill());
    assert_eq!(catalog.stream(&name("a")), Some(known));
    let _ = catalog.delete(&name("b"), NOW);
    catalog.create(new("b", 1), NOW).unwrap();
}

#[test]
fn one_failed_sync_goes_unnoticed() {
    let storage = MemoryStorage::new();
    let mut catalog = open(&storage);
    storage.inject(Fault {
        times: 1,
        ..broken(OperationKind::Sync, 0)
    });
    let created = catalog.create(new("a", 1), NOW).unwrap();
    drop(catalog);
    let catalog = open(&storage.crash_keeping(flumen_log::Grain::Page, 0));
    assert_eq!(catalog.stream(&name("a")), Some(created));
}

#[test]
fn a_change_stands_when_the_snapshot_after_it_fails() {
    let config = StreamConfig {
        catalog_snapshot_records: 2,
        ..config()
    };
    let storage = MemoryStorage::new();
    let (mut catalog, _) = Catalog::open(Arc::new(storage.clone()), config, NOW).unwrap();
    let first = catalog.create(new("a", 1), NOW).unwrap();
    storage.inject(broken(OperationKind::Sync, 1));
    let second = catalog.create(new("b", 1), NOW).unwrap();
    assert_eq!(catalog.streams().collect::<Vec<_>>(), [&first, &second]);
    let refused = catalog.create(new("c", 1), NOW);
    assert!(
        matches!(refused, Err(CatalogError::Write(WriteError::Poisoned))),
        "{refused:?}"
    );
    storage.clear_faults();
    drop(catalog);
    let catalog = open(&storage.crash_keeping(flumen_log::Grain::Page, 0));
    assert_eq!(catalog.streams().collect::<Vec<_>>(), [&first, &second]);
}

#[test]
fn snapshots_let_older_records_go() {
    use flumen_log::{Log, LogConfig};
    let storage = MemoryStorage::new();
    let mut catalog = open(&storage);
    for number in 0..100 {
        catalog.create(new(&format!("s{number}"), 1), NOW).unwrap();
        catalog.delete(&name(&format!("s{number}")), NOW).unwrap();
    }
    let records = catalog.last_record();
    catalog.close(NOW).unwrap();
    let storage = Arc::new(storage.kill());
    let settings = LogConfig::default();
    let mut nobody = catalog_log::Nobody;
    let (log, recovery) = Log::open(storage, LogKey::CATALOG, settings, NOW, &mut nobody).unwrap();
    let [shard] = recovery.shards[..] else {
        panic!("one shard")
    };
    assert_eq!(shard.next.value(), records);
    assert!(records - shard.trim_horizon.value() < 20, "{shard:?}");
    drop(log);
}
