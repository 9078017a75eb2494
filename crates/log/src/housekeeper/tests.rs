//! What a step of housekeeping does and leaves.

mod footers;

use std::sync::Arc;

use crate::config::LogConfig;
use crate::log::Log;
use crate::storage::{Fault, FaultError, MemoryStorage, OperationKind};
use crate::testing::{at, config, frame, keep_house, number, open, shard};

/// Ten shards in many sealed segments.
fn fill(log: &mut Log, rounds: std::ops::Range<u64>) {
    for base in rounds {
        let frames: Vec<_> = (1..=10).map(|shard| frame(shard, base, 1000)).collect();
        log.commit(&frames, 0, at(base)).unwrap().unwrap();
    }
}

/// Every trim made the housekeeper read all rows of all segments, as often as once a second.
#[test]
fn trims_of_a_few_bytes_do_not_make_it_read_every_row() {
    let storage = MemoryStorage::new();
    let mut log = open(&storage, &config());
    let mut keeper = log.housekeeper();
    let mut millis = 1000;
    fill(&mut log, 0..1000);
    keep_house(&mut keeper, &mut millis);
    let segments = log.stats().segments;
    assert!(segments > 30, "{segments}");
    keeper.sweep.rows = 0;
    let mut rows = 0;
    for step in 1..=60 {
        millis += 1000;
        log.trim(shard(1), number(step));
        log.commit(&[], 0, at(millis)).unwrap().unwrap();
        keeper.step(at(millis)).unwrap();
        rows += std::mem::take(&mut keeper.sweep.rows);
    }
    assert!(
        rows < segments * 10 * 5,
        "{rows} rows of {segments} segments"
    );
    // What is dead is still found.
    for shard_value in 1..=10 {
        log.trim(shard(shard_value), number(900));
    }
    log.commit(&[], 0, at(millis)).unwrap().unwrap();
    keep_house(&mut keeper, &mut millis);
    let left = log.stats().segments;
    assert!(
        left <= segments / 5,
        "{left} of {segments} segments are left"
    );
}

/// Several half-dead segments are copied one by one, though each was looked at only once.
#[test]
fn all_half_dead_segments_are_copied() {
    let storage = MemoryStorage::new();
    let mut log = open(&storage, &config());
    let mut keeper = log.housekeeper();
    let mut millis = 1000;
    fill(&mut log, 0..300);
    keep_house(&mut keeper, &mut millis);
    let segments = log.stats().segments;
    for shard_value in 1..=8 {
        log.trim(shard(shard_value), number(300));
    }
    log.commit(&[], 0, at(millis)).unwrap().unwrap();
    for _ in 0..segments * 2 {
        keep_house(&mut keeper, &mut millis);
    }
    let copied = log.stats().segments_copied;
    assert!(copied + 2 >= segments, "{copied} of {segments}");
}

/// 4 MiB segments under 19 MiB/s grew a bound of 8 MiB to 1 GiB, because a little of something else
/// was live in each of them, and one segment a second was copied.
#[test]
fn half_dead_segments_are_copied_as_fast_as_they_come() {
    const SECONDS: u64 = 40;
    const ROUNDS_PER_SECOND: u64 = 16;
    const BULK: usize = 256 << 10;
    const TRICKLE: usize = 16 << 10;
    const BOUND_ROUNDS: u64 = 8;
    let storage = MemoryStorage::new();
    let config = LogConfig {
        segment_bytes_min: 1 << 20,
        segment_bytes_max: 1 << 20,
        ..config()
    };
    let mut log = open(&storage, &config);
    let mut keeper = log.housekeeper();
    let written_per_second = (BULK + TRICKLE) as u64 * ROUNDS_PER_SECOND;
    for round in 0..SECONDS * ROUNDS_PER_SECOND {
        let now = at(1000 + round * 1000 / ROUNDS_PER_SECOND);
        let frames = [frame(1, round, BULK), frame(2, round, TRICKLE)];
        log.trim(shard(1), number(round.saturating_sub(BOUND_ROUNDS)));
        log.commit(&frames, 0, now).unwrap().unwrap();
        if round % 4 == 0 {
            // A thread that goes on while there is more, and otherwise looks again after 250 ms.
            for _ in 0..100 {
                if !keeper.step(now).unwrap().more {
                    break;
                }
            }
        }
        let live = BOUND_ROUNDS * BULK as u64 + (round + 1) * TRICKLE as u64;
        let stored = log.stats().file_bytes;
        assert!(
            stored <= 2 * live + 4 * written_per_second,
            "{stored} bytes for {live} after {round} rounds"
        );
    }
}

/// Segments in which every look found a little more trimmed were never copied: many shards, each
/// with its own bound, kept them alive until the slowest was through.
#[test]
fn what_dies_slowly_is_copied() {
    let storage = MemoryStorage::new();
    let mut log = open(&storage, &config());
    let mut keeper = log.housekeeper();
    let mut millis = 1000;
    fill(&mut log, 0..300);
    keep_house(&mut keeper, &mut millis);
    for shard_value in 1..=8 {
        log.trim(shard(shard_value), number(300));
    }
    for step in 1..=100 {
        log.trim(shard(9), number(step));
        log.commit(&[], 0, at(millis)).unwrap().unwrap();
        for _ in 0..4 {
            millis += 250;
            keeper.step(at(millis)).unwrap();
        }
    }
    let (copied, segments) = (log.stats().segments_copied, log.stats().segments);
    assert!(copied + 3 >= segments, "{copied} of {segments}");
}

/// Shards at rest kept the runs of segments that were freed, for ever.
#[test]
fn a_freed_segment_leaves_no_runs_in_memory() {
    let storage = MemoryStorage::new();
    let config = LogConfig {
        hot_window_bytes: 1 << 30,
        ..config()
    };
    let mut log = open(&storage, &config);
    let mut keeper = log.housekeeper();
    let mut millis = 1000;
    fill(&mut log, 0..100);
    for base in 0..100 {
        let frames = [frame(11, base, 3000)];
        log.commit(&frames, 0, at(base)).unwrap().unwrap();
    }
    keep_house(&mut keeper, &mut millis);
    for shard_value in 1..=10 {
        log.trim(shard(shard_value), number(100));
    }
    log.commit(&[], 0, at(millis)).unwrap().unwrap();
    keep_house(&mut keeper, &mut millis);
    let shared = Arc::clone(&keeper.shared);
    assert!(shared.segment(1).is_none(), "nothing was freed");
    let cell = shared.index.get(shard(1)).unwrap();
    let held = cell
        .lock()
        .recent
        .iter()
        .any(|run| shared.segment(run.segment).is_none());
    assert!(!held);
}

/// The footer's producers were read through the map: a bad sector would have ended the process.
#[test]
fn a_segment_that_cannot_be_read_gets_no_footer() {
    let storage = MemoryStorage::new();
    let mut log = open(&storage, &config());
    let mut keeper = log.housekeeper();
    let mut millis = 1000;
    fill(&mut log, 0..30);
    // The first read looks at the free space.
    storage.inject(Fault {
        on: Some(OperationKind::Read),
        skip: 1,
        times: 1,
        error: FaultError::Io,
    });
    keep_house(&mut keeper, &mut millis);
    let segments = keeper.shared.all_segments();
    let failed: Vec<u64> = segments
        .iter()
        .filter(|segment| segment.is_failed())
        .map(|segment| segment.id())
        .collect();
    assert_eq!(failed, [1]);
    let found = log.reader().read_cold(shard(3), number(0), usize::MAX);
    assert!(found.unwrap().next > number(5));
}

/// What a slow log wrote hours ago is near in bytes, and not in the page cache any more.
#[test]
fn what_was_written_long_ago_is_not_hot() {
    let storage = MemoryStorage::new();
    let config = LogConfig {
        hot_window_bytes: 1 << 30,
        ..config()
    };
    let mut log = open(&storage, &config);
    let mut keeper = log.housekeeper();
    let window = config.hot_window_ms;
    let reader = log.reader();
    let is_hot = |from| {
        let hot = reader.read_hot(shard(1), number(from), 1).unwrap();
        assert!(reader.read_cold(shard(1), number(from), 1).is_ok());
        hot.is_some()
    };
    let mut append = |base: u64, millis: u64| {
        keeper.step(at(millis)).unwrap();
        let frames = [frame(1, base, 100)];
        log.commit(&frames, 0, at(millis)).unwrap().unwrap();
    };
    append(0, 0);
    append(1, 1000);
    assert!(is_hot(0) && is_hot(1));
    append(2, window / 2);
    assert!(is_hot(0) && is_hot(1));
    append(3, window);
    append(4, window * 3 / 2);
    assert!(!is_hot(0) && !is_hot(1));
    assert!(is_hot(3) && is_hot(4));
}

/// A thread beside each log looked four times a second, for as long as the node lived.
#[test]
fn a_log_that_rests_is_left_alone_until_it_is_written() {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::Waker;
    use std::time::Duration;

    use flumen_world::{Now, Turn, Wake};

    #[derive(Default)]
    struct Rings(AtomicU32);
    impl std::task::Wake for Rings {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    let mut log = open(&MemoryStorage::new(), &config());
    let mut keeper = log.housekeeper();
    let rings = Arc::new(Rings::default());
    keeper
        .bell()
        .set(Wake::new(Waker::from(Arc::clone(&rings))));
    let mut monotonic = Duration::ZERO;
    let mut rest = |keeper: &mut super::Housekeeper| {
        for turns in 0..1000 {
            let millis = 1000 + u64::try_from(monotonic.as_millis()).unwrap();
            let now = Now {
                wall: at(millis),
                monotonic,
            };
            match keeper.turn(now).unwrap() {
                Turn::Again => {}
                Turn::Wait(Some(until)) if until > monotonic => monotonic = until,
                Turn::Wait(None) => return turns,
                other => panic!("it does not come to rest: {other:?}"),
            }
        }
        panic!("it does not come to rest");
    };
    fill(&mut log, 0..300);
    rest(&mut keeper);
    let rung = rings.0.load(Ordering::SeqCst);
    fill(&mut log, 300..301);
    assert_eq!(rings.0.load(Ordering::SeqCst), rung + 1);
    fill(&mut log, 301..302);
    // One that looks by itself is not woken for each round.
    let after = rest(&mut keeper);
    assert!(after < 10, "{after} turns");
    drop(log);
    assert!(rings.0.load(Ordering::SeqCst) > rung + 1);
    assert!(keeper.is_over());
}
