//! Append, read, roll, open again: the plain ways of a log.

use std::sync::Arc;

use flumen_log::{
    Fault, FaultError, Log, LogConfig, MemoryStorage, OperationKind, ReadError, SearchAnswer,
    Storage, WriteError,
};

use crate::fixture::{
    ALL, DISK, MEMORY, at, frame, frames_of, number, open, read_all, shard, small_segments,
};

fn memory() -> (MemoryStorage, Arc<dyn Storage>) {
    let storage = MemoryStorage::new();
    (storage.clone(), Arc::new(storage))
}

#[test]
fn what_is_committed_is_read_back_hot_and_cold() {
    let (_, storage) = memory();
    let (mut log, recovery, _) = open(&storage, DISK, &LogConfig::default(), at(0));
    assert!(recovery.clean);
    let reader = log.reader();
    assert_eq!(reader.bounds(shard(1)), None);
    for round in 0..20_u64 {
        let now = at(round);
        let frames = [
            frame(1, round * 5, 2, 100, now),
            frame(1, round * 5 + 2, 3, 10, now),
            frame(2, round, 1, 9000, now),
        ];
        log.commit(&frames, 0, now).unwrap().unwrap();
    }
    let bounds = reader.bounds(shard(1)).unwrap();
    assert_eq!(bounds.durable_end, number(100));
    assert_eq!(bounds.last_arrival, at(19));
    let expected: Vec<(u64, u32)> = (0..20).flat_map(|r| [(r * 5, 2), (r * 5 + 2, 3)]).collect();
    let hot = reader
        .read_hot(shard(1), number(0), usize::MAX)
        .unwrap()
        .unwrap();
    assert_eq!(frames_of(&hot), expected);
    assert_eq!(hot.next, number(100));
    assert_eq!(read_all(&reader, 1, 0), expected);
    assert_eq!(read_all(&reader, 1, 4)[0], (2, 3));
    let large = reader
        .read_hot(shard(2), number(3), 10_000)
        .unwrap()
        .unwrap();
    assert_eq!(frames_of(&large), [(3, 1), (4, 1)]);
    assert_eq!(
        reader.find_time(shard(1), &ALL, at(7)).unwrap(),
        SearchAnswer::At(number(35))
    );
    assert_eq!(
        reader.find_time(shard(1), &ALL, at(70)).unwrap(),
        SearchAnswer::AllOlder
    );
    let nothing = reader.read_hot(shard(1), number(100), 10).unwrap().unwrap();
    assert_eq!((nothing.pieces.len(), nothing.next), (0, number(100)));
}

#[test]
fn an_ordered_close_is_a_clean_open() {
    for key in [DISK, MEMORY] {
        let (_, storage) = memory();
        let (mut log, ..) = open(&storage, key, &LogConfig::default(), at(0));
        for base in 0..10 {
            log.write(&[frame(1, base, 1, 50, at(base))], 77, at(base))
                .unwrap();
        }
        log.sync(&[], at(11)).unwrap();
        log.close(at(12)).unwrap();
        let (log, recovery, seen) = open(&storage, key, &LogConfig::default(), at(20));
        assert!(recovery.clean, "{key:?}");
        assert_eq!(recovery.tail_rounds_rewritten, 0);
        assert_eq!(recovery.catalog_named, 77);
        assert_eq!(recovery.shards.len(), 1);
        assert_eq!(recovery.shards[0].next, number(10));
        assert_eq!(recovery.shards[0].jumped, None);
        assert_eq!(seen.batches.len(), 10);
        assert_eq!(read_all(&log.reader(), 1, 0).len(), 10);
    }
}

#[test]
fn a_killed_disk_log_loses_nothing_and_jumps_nowhere() {
    let (twin, storage) = memory();
    let (mut log, ..) = open(&storage, DISK, &LogConfig::default(), at(0));
    for base in 0..10 {
        log.commit(&[frame(1, base, 1, 50, at(base))], 0, at(base))
            .unwrap()
            .unwrap();
    }
    drop(log);
    let storage: Arc<dyn Storage> = Arc::new(twin.kill());
    let (mut log, recovery, seen) = open(&storage, DISK, &LogConfig::default(), at(20));
    assert!(!recovery.clean);
    assert!(recovery.tail_rounds_rewritten >= 1);
    assert_eq!(recovery.quarantined, []);
    assert_eq!(recovery.shards[0].next, number(10));
    assert_eq!(seen.batches.len(), 10);
    log.commit(&[frame(1, 10, 1, 50, at(30))], 0, at(30))
        .unwrap()
        .unwrap();
    let expected: Vec<(u64, u32)> = (0..11).map(|base| (base, 1)).collect();
    assert_eq!(read_all(&log.reader(), 1, 0), expected);
}

#[test]
fn a_killed_memory_log_keeps_what_was_written_and_jumps() {
    let (twin, storage) = memory();
    let (mut log, ..) = open(&storage, MEMORY, &LogConfig::default(), at(0));
    for base in 0..10 {
        log.write(&[frame(1, base, 1, 50, at(base))], 0, at(base))
            .unwrap();
    }
    assert_eq!(
        log.reader().bounds(shard(1)).unwrap().durable_end,
        number(10)
    );
    drop(log);
    let storage: Arc<dyn Storage> = Arc::new(twin.kill());
    let (mut log, recovery, _) = open(&storage, MEMORY, &LogConfig::default(), at(20));
    let jumped = number(10 + (1 << 32));
    assert_eq!(recovery.shards[0].jumped, Some(jumped));
    assert_eq!(recovery.shards[0].next, jumped);
    log.write(&[frame(1, jumped.value(), 1, 50, at(30))], 0, at(30))
        .unwrap();
    let mut expected: Vec<(u64, u32)> = (0..10).map(|base| (base, 1)).collect();
    expected.push((jumped.value(), 1));
    assert_eq!(read_all(&log.reader(), 1, 0), expected);
    log.close(at(40)).unwrap();
    let (log, recovery, _) = open(&storage, MEMORY, &LogConfig::default(), at(50));
    assert_eq!(recovery.shards[0].jumped, None);
    assert_eq!(read_all(&log.reader(), 1, 0), expected);
}

#[test]
fn segments_roll_and_all_of_them_are_read() {
    let (twin, storage) = memory();
    let (mut log, ..) = open(&storage, DISK, &small_segments(), at(0));
    for base in 0..300 {
        let frames = [
            frame(1, base, 1, 5000, at(base)),
            frame(2, base * 2, 2, 20, at(base)),
        ];
        log.commit(&frames, 0, at(base)).unwrap().unwrap();
    }
    assert!(log.stats().segments > 4);
    let first: Vec<(u64, u32)> = (0..300).map(|base| (base, 1)).collect();
    let second: Vec<(u64, u32)> = (0..300).map(|base| (base * 2, 2)).collect();
    assert_eq!(read_all(&log.reader(), 1, 0), first);
    assert_eq!(read_all(&log.reader(), 2, 0), second);
    drop(log);
    let storage: Arc<dyn Storage> = Arc::new(twin.kill());
    let (log, recovery, _) = open(&storage, DISK, &small_segments(), at(1000));
    assert_eq!(recovery.quarantined, []);
    let reader = log.reader();
    assert_eq!(read_all(&reader, 1, 0), first);
    assert_eq!(read_all(&reader, 2, 0), second);
    assert_eq!(read_all(&reader, 2, 301)[0], (300, 2));
    for millis in [0, 1, 77, 150, 299] {
        assert_eq!(
            reader.find_time(shard(1), &ALL, at(millis)).unwrap(),
            SearchAnswer::At(number(millis))
        );
        assert_eq!(
            reader.find_time(shard(2), &ALL, at(millis)).unwrap(),
            SearchAnswer::At(number(millis * 2))
        );
    }
    let one = reader.bounds(shard(1)).unwrap().stored_bytes / 300;
    assert_eq!(
        reader
            .find_bytes_from_end(shard(1), &ALL, one * 10 + 5)
            .unwrap(),
        SearchAnswer::At(number(290))
    );
    assert_eq!(
        reader
            .find_bytes_from_end(shard(1), &ALL, one * 250)
            .unwrap(),
        SearchAnswer::At(number(50))
    );
    assert_eq!(
        reader
            .find_bytes_from_end(shard(1), &ALL, one * 500)
            .unwrap(),
        SearchAnswer::At(number(0))
    );
}

#[test]
fn a_trim_is_seen_at_once_and_survives() {
    let (_, storage) = memory();
    let (mut log, ..) = open(&storage, DISK, &LogConfig::default(), at(0));
    for base in 0..10 {
        log.commit(&[frame(1, base, 1, 50, at(base))], 0, at(base))
            .unwrap()
            .unwrap();
    }
    assert!(!log.idle_round_due(at(100)));
    log.trim(shard(1), number(4));
    let trimmed = log.reader().read_hot(shard(1), number(3), 100);
    assert!(matches!(trimmed, Err(ReadError::Trimmed { horizon, .. }) if horizon == number(4)));
    assert!(log.idle_round_due(at(2000)));
    log.commit(&[], 0, at(2000)).unwrap().unwrap();
    log.forget(shard(1));
    assert!(matches!(
        log.reader().read_hot(shard(1), number(5), 100),
        Err(ReadError::UnknownShard { .. })
    ));
    drop(log);
    let (mut log, recovery, _) = open(&storage, DISK, &LogConfig::default(), at(3000));
    assert_eq!(recovery.shards[0].trim_horizon, number(4));
    log.forget(shard(1));
    log.commit(&[], 0, at(4000)).unwrap().unwrap();
    drop(log);
    let (_, recovery, _) = open(&storage, DISK, &LogConfig::default(), at(5000));
    assert_eq!(recovery.shards, []);
}

#[test]
fn a_failed_sync_moves_the_round_to_a_fresh_segment() {
    use flumen_log::{Fault, FaultError, OperationKind};
    let (twin, storage) = memory();
    let (mut log, ..) = open(&storage, DISK, &LogConfig::default(), at(0));
    for base in 0..5 {
        log.commit(&[frame(1, base, 1, 50, at(base))], 0, at(base))
            .unwrap()
            .unwrap();
    }
    twin.inject(Fault {
        on: Some(OperationKind::Sync),
        skip: 0,
        times: 1,
        error: FaultError::Io,
    });
    log.commit(&[frame(1, 5, 1, 50, at(5))], 0, at(5))
        .unwrap()
        .unwrap();
    log.commit(&[frame(1, 6, 1, 50, at(6))], 0, at(6))
        .unwrap()
        .unwrap();
    let expected: Vec<(u64, u32)> = (0..7).map(|base| (base, 1)).collect();
    assert_eq!(read_all(&log.reader(), 1, 0), expected);
    assert_eq!(log.stats().failed_syncs, 1);
    drop(log);
    let storage: Arc<dyn Storage> = Arc::new(twin.kill());
    twin.drop_caches();
    let (log, recovery, _) = open(&storage, DISK, &LogConfig::default(), at(20));
    assert_eq!(recovery.quarantined, []);
    assert_eq!(read_all(&log.reader(), 1, 0), expected);
}

/// Bytes of the round may be in either file: "nothing was attempted" would be a lie.
#[test]
fn a_memory_round_that_failed_twice_has_an_unknown_outcome() {
    let (twin, storage) = memory();
    let (mut log, ..) = open(&storage, MEMORY, &LogConfig::default(), at(0));
    log.write(&[frame(1, 0, 1, 50, at(0))], 0, at(0)).unwrap();
    twin.inject(Fault {
        on: Some(OperationKind::Write),
        skip: 0,
        times: u64::MAX,
        error: FaultError::Short(600),
    });
    let write = |log: &mut Log, base| log.write(&[frame(1, base, 1, 50, at(1))], 0, at(1));
    let unknown = write(&mut log, 1);
    assert!(
        matches!(unknown, Err(WriteError::Unknown { .. })),
        "{unknown:?}"
    );
    let refused = write(&mut log, 2);
    assert!(matches!(refused, Err(WriteError::Poisoned)), "{refused:?}");
}
