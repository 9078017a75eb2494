//! Footers, snapshots, segments made ready, freed, used again and copied.

use std::sync::Arc;

use bytes::Bytes;
use flumen_log::{DiskStorage, Housekeeper, Log, LogConfig, MemoryStorage, SearchAnswer, Storage};

use crate::fixture::{ALL, DISK, at, frame, number, open, read_all, shard, small_segments};

/// No runs stay in memory for the window's sake.
fn cold_config() -> LogConfig {
    LogConfig {
        hot_window_bytes: 0,
        ..small_segments()
    }
}

fn memory() -> (MemoryStorage, Arc<dyn Storage>) {
    let storage = MemoryStorage::new();
    (storage.clone(), Arc::new(storage))
}

/// Steps until nothing is left to do.
fn keep_house(keeper: &mut Housekeeper, millis: &mut u64) -> (u32, u32) {
    let (mut freed, mut copied) = (0, 0);
    let mut idle = 0;
    while idle < 3 {
        *millis += 2000;
        let report = keeper.step(at(*millis)).unwrap();
        freed += report.freed;
        copied += report.copied;
        idle = if report.more || report.sealed > 0 || report.freed > 0 {
            0
        } else {
            idle + 1
        };
    }
    (freed, copied)
}

fn fill(log: &mut Log, rounds: std::ops::Range<u64>) {
    for base in rounds {
        let frames = [
            frame(1, base, 1, 5000, at(base)),
            frame(2, base, 1, 3000, at(base)),
        ];
        log.commit(&frames, 0, at(base)).unwrap().unwrap();
    }
}

fn expected(range: std::ops::Range<u64>) -> Vec<(u64, u32)> {
    range.map(|base| (base, 1)).collect()
}

#[test]
fn sealed_segments_are_read_by_their_footers_and_stand_by_them() {
    let (twin, storage) = memory();
    let (mut log, ..) = open(&storage, DISK, &cold_config(), at(0));
    let mut keeper = log.housekeeper();
    let mut millis = 1000;
    for step in 0..10 {
        fill(&mut log, step * 30..(step + 1) * 30);
        keep_house(&mut keeper, &mut millis);
    }
    let reader = log.reader();
    assert_eq!(read_all(&reader, 1, 0), expected(0..300));
    assert_eq!(read_all(&reader, 2, 77), expected(77..300));
    assert_eq!(
        reader.find_time(shard(1), &ALL, at(33)).unwrap(),
        SearchAnswer::At(number(33))
    );
    assert!(log.stats().segments_prepared > 0);
    let segments = log.stats().segments;
    drop(log);
    let storage: Arc<dyn Storage> = Arc::new(twin.kill());
    let (log, recovery, seen) = open(&storage, DISK, &cold_config(), at(millis));
    assert_eq!(recovery.quarantined, []);
    assert_eq!(recovery.sealed_segments, segments - 1);
    assert!(recovery.scanned_bytes <= 256 << 10);
    assert!(seen.batches.iter().any(|(_, _, partial)| *partial));
    assert_eq!(read_all(&log.reader(), 1, 0), expected(0..300));
    assert_eq!(recovery.shards[1].next, number(300));
}

#[test]
fn trimmed_segments_are_freed_and_used_again() {
    let (twin, storage) = memory();
    let (mut log, ..) = open(&storage, DISK, &cold_config(), at(0));
    let mut keeper = log.housekeeper();
    let mut millis = 1000;
    let mut most = 0;
    for step in 0..20 {
        fill(&mut log, step * 50..(step + 1) * 50);
        let before = number((step * 50).saturating_sub(50));
        log.trim(shard(1), before);
        log.trim(shard(2), before);
        log.commit(&[], 0, at(millis)).unwrap().unwrap();
        keep_house(&mut keeper, &mut millis);
        most = most.max(log.stats().segments);
    }
    assert!(most < 8, "{most} segments at once");
    assert!(log.stats().segments_recycled > 5);
    let reader = log.reader();
    assert_eq!(read_all(&reader, 1, 900), expected(900..1000));
    drop((log, keeper));
    let storage: Arc<dyn Storage> = Arc::new(twin.kill());
    let (log, recovery, _) = open(&storage, DISK, &cold_config(), at(millis));
    assert_eq!(recovery.quarantined, []);
    assert_eq!(recovery.shards[0].trim_horizon, number(900));
    assert_eq!(read_all(&log.reader(), 2, 900), expected(900..1000));
}

#[test]
fn half_dead_segments_are_copied() {
    let (twin, storage) = memory();
    let (mut log, ..) = open(&storage, DISK, &cold_config(), at(0));
    let mut keeper = log.housekeeper();
    let mut millis = 1000;
    fill(&mut log, 0..200);
    keep_house(&mut keeper, &mut millis);
    let full = log.stats().file_bytes;
    log.trim(shard(1), number(200));
    log.commit(&[], 0, at(millis)).unwrap().unwrap();
    let mut copied = 0;
    for _ in 0..30 {
        copied += keep_house(&mut keeper, &mut millis).1;
    }
    assert!(copied > 3, "{copied}");
    assert!(log.stats().file_bytes < full * 2 / 3);
    assert_eq!(read_all(&log.reader(), 2, 0), expected(0..200));
    drop((log, keeper));
    let storage: Arc<dyn Storage> = Arc::new(twin.kill());
    let (log, recovery, _) = open(&storage, DISK, &cold_config(), at(millis));
    assert_eq!(recovery.quarantined, []);
    assert_eq!(read_all(&log.reader(), 2, 0), expected(0..200));
    assert_eq!(recovery.shards[0].next, number(200));
}

#[test]
fn a_snapshot_gives_back_states_and_saves_reading() {
    let (twin, storage) = memory();
    let (mut log, ..) = open(&storage, DISK, &cold_config(), at(0));
    let mut keeper = log.housekeeper();
    let mut millis = 1000;
    fill(&mut log, 0..100);
    log.trim(shard(2), number(10));
    keep_house(&mut keeper, &mut millis);
    let states = vec![(shard(1), Bytes::from_static(b"one"))];
    log.snapshot(states, at(millis)).run().unwrap();
    fill(&mut log, 100..103);
    drop((log, keeper));
    let storage: Arc<dyn Storage> = Arc::new(twin.kill());
    let (mut log, recovery, seen) = open(&storage, DISK, &cold_config(), at(millis));
    assert!(recovery.complete);
    assert_eq!(recovery.quarantined, []);
    assert_eq!(seen.states[&shard(1)], Bytes::from_static(b"one"));
    let bases: Vec<u64> = seen
        .batches
        .iter()
        .map(|(_, mark, _)| mark.base.value())
        .collect();
    assert_eq!(bases, [100, 100, 101, 101, 102, 102]);
    assert_eq!(recovery.shards[1].trim_horizon, number(10));
    assert_eq!(read_all(&log.reader(), 1, 0), expected(0..103));
    let mut keeper = log.housekeeper();
    fill(&mut log, 103..120);
    keep_house(&mut keeper, &mut millis);
    drop((log, keeper));
    let (log, recovery, seen) = open(&storage, DISK, &cold_config(), at(millis));
    assert_eq!(recovery.quarantined, []);
    assert!(
        seen.batches
            .iter()
            .all(|(_, mark, _)| mark.base >= number(100))
    );
    assert_eq!(read_all(&log.reader(), 1, 0), expected(0..120));
}

#[test]
fn a_log_that_ends_below_its_snapshot_is_damage() {
    let (twin, storage) = memory();
    let (mut log, ..) = open(&storage, DISK, &cold_config(), at(0));
    fill(&mut log, 0..50);
    log.snapshot(Vec::new(), at(1)).run().unwrap();
    drop(log);
    let storage: Arc<dyn Storage> = Arc::new(twin.kill());
    let last = storage
        .list(&DISK.dir_name())
        .unwrap()
        .into_iter()
        .rfind(|file| file.name.ends_with(".seg"))
        .unwrap();
    storage
        .remove(&format!("{}/{}", DISK.dir_name(), last.name))
        .unwrap();
    let (log, recovery, _) = open(&storage, DISK, &cold_config(), at(2));
    assert_eq!(recovery.quarantined.len(), 1);
    assert_eq!(recovery.shards[0].jumped, Some(number(50 + (1 << 32))));
    let reader = log.reader();
    let mut from = number(0);
    let lost = loop {
        match reader.read_cold(shard(1), from, usize::MAX) {
            Ok(found) => from = found.next,
            Err(lost) => break lost,
        }
    };
    assert!(from > number(10) && from < number(50), "{from}");
    assert!(lost.to_string().contains("data loss"), "{lost}");
}

/// A trim was refused for want of a new segment to travel in, once because the active one was
/// filled to its last sector, once because it was to be rolled; so on a disk without any space
/// nothing could ever be freed.
#[test]
fn what_frees_space_finds_room_on_a_disk_without_any() {
    for data_bytes in [100, 700, 3000] {
        let (twin, storage) = memory();
        let config = LogConfig {
            free_space_floor_bytes: Some(64 << 10),
            ..cold_config()
        };
        let (mut log, ..) = open(&storage, DISK, &config, at(0));
        let mut keeper = log.housekeeper();
        twin.set_total_bytes(600 << 10);
        let mut millis = 1000;
        let mut base = 0;
        let write = |log: &mut Log, base: u64| {
            let frames = [frame(1, base, 1, data_bytes, at(base))];
            log.commit(&frames, 0, at(base)).unwrap()
        };
        while write(&mut log, base).is_ok() {
            base += 1;
        }
        // Another process takes the reserve as well, and the log wants to roll.
        twin.set_total_bytes(0);
        keep_house(&mut keeper, &mut millis);
        assert!(log.accepts(0).is_err());
        log.trim(shard(1), number(base));
        log.commit(&[], 0, at(millis)).unwrap().unwrap();
        let (freed, _) = keep_house(&mut keeper, &mut millis);
        assert!(freed > 0, "records of {data_bytes} bytes");
    }
}

/// A snapshot that is too large to be read was written all the same, and the next start refused.
#[test]
fn a_snapshot_that_cannot_be_read_is_not_written() {
    let (twin, storage) = memory();
    let config = LogConfig {
        snapshot_bytes_max: 2000,
        ..cold_config()
    };
    let (mut log, ..) = open(&storage, DISK, &config, at(0));
    fill(&mut log, 0..3);
    let states = |bytes| vec![(shard(1), Bytes::from(vec![7; bytes]))];
    log.snapshot(states(100), at(1)).run().unwrap();
    fill(&mut log, 3..5);
    let refused = log.snapshot(states(2000), at(2)).run().unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::FileTooLarge);
    drop(log);
    let storage: Arc<dyn Storage> = Arc::new(twin.kill());
    let (log, recovery, seen) = open(&storage, DISK, &config, at(3));
    assert!(recovery.complete);
    assert_eq!(seen.states[&shard(1)].len(), 100);
    assert_eq!(seen.batches.len(), 4);
    assert_eq!(read_all(&log.reader(), 1, 0), expected(0..5));
}

#[test]
fn a_snapshot_that_is_too_large_is_as_good_as_none() {
    let dir = tempfile::tempdir().unwrap();
    let open_storage = || -> Arc<dyn Storage> {
        Arc::new(DiskStorage::open(dir.path(), DiskStorage::LOCK_WAIT).unwrap())
    };
    let storage = open_storage();
    let (mut log, ..) = open(&storage, DISK, &cold_config(), at(0));
    fill(&mut log, 0..3);
    drop((log, storage));
    let path = dir.path().join(DISK.dir_name()).join("snapshot");
    std::fs::File::create(path)
        .unwrap()
        .set_len((256 << 20) + 1)
        .unwrap();
    let (log, recovery, seen) = open(&open_storage(), DISK, &cold_config(), at(3));
    assert!(recovery.complete, "read from its first round on");
    assert_eq!(seen.batches.len(), 6);
    assert_eq!(read_all(&log.reader(), 1, 0), expected(0..3));
}

/// What waits for a time was late by as much as the wall clock went back.
#[test]
fn a_clock_that_goes_back_delays_nothing() {
    let (_, storage) = memory();
    let (mut log, ..) = open(&storage, DISK, &cold_config(), at(0));
    let (late, early) = (at(400_000), at(100_000));
    log.commit(&[frame(1, 0, 1, 100, late)], 0, late)
        .unwrap()
        .unwrap();
    log.snapshot(Vec::new(), late).run().unwrap();
    assert!(!log.idle_round_due(late));
    assert!(log.idle_round_due(early));
    log.commit(&[frame(1, 1, 1, 100, late)], 0, late)
        .unwrap()
        .unwrap();
    assert!(!log.snapshot_due(late));
    assert!(log.snapshot_due(early));
}
