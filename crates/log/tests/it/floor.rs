//! Below the floor of free space: appends are refused, what frees space goes on.

use std::sync::Arc;

use flumen_log::{
    Grain, Housekeeper, Log, LogConfig, MemoryStorage, Storage, WriteError, keep_reserve,
};

use crate::fixture::{DISK, at, frame, number, open, read_all, shard, small_segments};

const FLOOR: u64 = 8 << 20;

/// Segments so large that one does not fit below the floor.
fn config() -> LogConfig {
    LogConfig {
        segment_bytes_min: 4 << 20,
        segment_bytes_max: 4 << 20,
        free_space_floor_bytes: Some(FLOOR),
        hot_window_bytes: 0,
        ..small_segments()
    }
}

fn memory() -> (MemoryStorage, Arc<dyn Storage>) {
    let storage = MemoryStorage::new();
    (storage.clone(), Arc::new(storage))
}

/// Somebody else takes all but `free` bytes.
fn leave(twin: &MemoryStorage, free: u64) {
    let space = twin.space().unwrap();
    twin.set_total_bytes(space.total_bytes - space.free_bytes + free);
}

fn fill(log: &mut Log, keeper: &mut Housekeeper, rounds: std::ops::Range<u64>) {
    for base in rounds {
        let frames = [frame(1, base, 1, 500_000, at(base))];
        log.commit(&frames, 0, at(base)).unwrap().unwrap();
        keeper.step(at(base)).unwrap();
    }
}

fn segment_files(storage: &Arc<dyn Storage>) -> Vec<(String, u64)> {
    let files = storage.list(&DISK.dir_name()).unwrap();
    let segments = files.into_iter().filter(|file| file.name.ends_with(".seg"));
    segments.map(|file| (file.name, file.bytes)).collect()
}

/// What a lane does while nothing is appended, once a second.
fn idle(log: &mut Log, keeper: &mut Housekeeper, seconds: std::ops::Range<u64>) {
    for second in seconds {
        let now = at(second * 1000);
        if log.idle_round_due(now) {
            log.commit(&[], 0, now).unwrap().unwrap();
        }
        while keeper.step(now).unwrap().more {}
    }
}

/// After a clean open there is no active segment, and a usual one does not fit: expired records
/// were never freed, and appends refused for ever.
#[test]
fn a_trim_becomes_durable_after_a_clean_open_below_the_floor() {
    let (twin, storage) = memory();
    let (mut log, ..) = open(&storage, DISK, &config(), at(0));
    let mut keeper = log.housekeeper();
    fill(&mut log, &mut keeper, 0..40);
    drop(keeper);
    log.close(at(100)).unwrap();
    let leftover: u64 = segment_files(&storage).iter().map(|(_, bytes)| bytes).sum();
    leave(&twin, 3 << 20);
    let (mut log, recovery, _) = open(&storage, DISK, &config(), at(200));
    assert!(recovery.clean);
    assert!(matches!(log.accepts(100), Err(WriteError::Full { .. })));
    let append = [frame(1, 40, 1, 100, at(300))];
    let refused = log.commit(&append, 0, at(300)).unwrap();
    assert!(matches!(refused, Err(WriteError::Full { .. })));
    let mut keeper = log.housekeeper();
    log.trim(shard(1), number(40));
    idle(&mut log, &mut keeper, 10..40);
    let left: u64 = segment_files(&storage).iter().map(|(_, bytes)| bytes).sum();
    assert!(left * 2 < leftover, "{left} of {leftover} bytes are left");
    log.accepts(100).unwrap();
    log.commit(&append, 0, at(50_000)).unwrap().unwrap();
}

/// A forgotten shard frees its segments too, and the log does not begin a new one every second.
#[test]
fn below_the_floor_a_log_at_rest_comes_to_rest() {
    let (twin, storage) = memory();
    let (mut log, ..) = open(&storage, DISK, &config(), at(0));
    let mut keeper = log.housekeeper();
    fill(&mut log, &mut keeper, 0..20);
    for base in 0..3 {
        let other = [frame(2, base, 1, 100_000, at(30))];
        log.commit(&other, 0, at(30)).unwrap().unwrap();
    }
    leave(&twin, 2 << 20);
    log.forget(shard(1));
    idle(&mut log, &mut keeper, 10..30);
    // The floor stays out of reach.
    leave(&twin, 2 << 20);
    log.trim(shard(2), number(1));
    idle(&mut log, &mut keeper, 30..60);
    leave(&twin, 2 << 20);
    log.trim(shard(2), number(2));
    idle(&mut log, &mut keeper, 60..70);
    let (rounds, files) = (log.stats().rounds, segment_files(&storage));
    idle(&mut log, &mut keeper, 70..170);
    assert_eq!(segment_files(&storage), files);
    assert!(log.stats().rounds <= rounds + 1, "rounds go on");
    assert!(log.stats().segments <= 2);
}

/// Files that were made ready stayed while appends were refused for want of space.
#[test]
fn prepared_files_are_given_back_below_the_floor() {
    let (twin, storage) = memory();
    let (mut log, ..) = open(&storage, DISK, &config(), at(0));
    let mut keeper = log.housekeeper();
    fill(&mut log, &mut keeper, 0..20);
    while keeper.step(at(5000)).unwrap().more {}
    let ready = segment_files(&storage).len() as u64 - log.stats().segments;
    assert!(ready > 0, "nothing was made ready");
    leave(&twin, 1 << 20);
    while keeper.step(at(7000)).unwrap().more {}
    assert_eq!(segment_files(&storage).len() as u64, log.stats().segments);
}

/// A log that was killed did not open when its last rounds could not be copied, and nobody could read
/// what is in it, or delete something.
#[test]
fn a_killed_log_opens_without_any_space() {
    let (twin, storage) = memory();
    let (mut log, ..) = open(&storage, DISK, &config(), at(0));
    for base in 0..10 {
        let frames = [frame(1, base, 1, 10_000, at(base))];
        log.commit(&frames, 0, at(base)).unwrap().unwrap();
    }
    drop(log);
    let mut twin = twin.kill();
    for start in 0..3 {
        leave(&twin, 0);
        let storage: Arc<dyn Storage> = Arc::new(twin.clone());
        let (mut log, recovery, seen) = open(&storage, DISK, &config(), at(1000 + start));
        assert_eq!(recovery.tail_rounds_rewritten, 0);
        assert_eq!(seen.batches.len(), 10);
        assert_eq!(read_all(&log.reader(), 1, 0).len(), 10);
        assert!(matches!(log.accepts(100), Err(WriteError::Full { .. })));
        let append = [frame(1, 10, 1, 100, at(2000))];
        let refused = log.commit(&append, 0, at(2000)).unwrap();
        assert!(matches!(refused, Err(WriteError::Full { .. })));
        drop(log);
        // Nothing is left in the page cache but what was synced.
        twin = twin.crash_keeping(Grain::Page, 0);
    }
    twin.set_total_bytes(1 << 40);
    let storage: Arc<dyn Storage> = Arc::new(twin);
    let (mut log, recovery, _) = open(&storage, DISK, &config(), at(3000));
    assert!(recovery.tail_rounds_rewritten > 0);
    let append = [frame(1, 10, 1, 100, at(3000))];
    log.commit(&append, 0, at(3000)).unwrap().unwrap();
    assert_eq!(read_all(&log.reader(), 1, 0).len(), 11);
}

/// What frees space finds some, once others have taken everything: the reserve.
#[test]
fn a_trim_uses_the_reserve_and_it_is_made_again() {
    let (twin, storage) = memory();
    let config = LogConfig {
        reserve_bytes: 2 << 20,
        ..config()
    };
    keep_reserve(&*storage, &config).unwrap();
    let reserved = || {
        storage
            .list("")
            .unwrap()
            .iter()
            .map(|file| file.bytes)
            .sum::<u64>()
    };
    assert_eq!(reserved(), 2 << 20);
    let (mut log, ..) = open(&storage, DISK, &config, at(0));
    let mut keeper = log.housekeeper();
    fill(&mut log, &mut keeper, 0..40);
    drop(keeper);
    log.close(at(100)).unwrap();
    leave(&twin, 0);
    let (mut log, ..) = open(&storage, DISK, &config, at(200));
    let mut keeper = log.housekeeper();
    assert_eq!(reserved(), 2 << 20);
    log.trim(shard(1), number(40));
    idle(&mut log, &mut keeper, 10..40);
    assert!(reserved() < 2 << 20);
    log.accepts(100).unwrap();
    twin.set_total_bytes(1 << 40);
    keep_reserve(&*storage, &config).unwrap();
    assert_eq!(reserved(), 2 << 20);
}
