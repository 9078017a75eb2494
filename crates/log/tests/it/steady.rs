//! A log that is written and trimmed for long: segments of the right size, used again.

use std::sync::Arc;

use flumen_log::{LogConfig, MemoryStorage, NewFrame, Storage};
use flumen_record::SequenceNumber;

use crate::fixture::{DISK, at, frame, number, open, shard, small_segments};

fn memory() -> Arc<dyn Storage> {
    Arc::new(MemoryStorage::new())
}

/// The room kept for producers was counted per batch, not per producer: a segment of small batches
/// was rolled early, its rest given back, and its file never used again.
#[test]
fn segments_of_small_batches_are_used_again() {
    let config = LogConfig {
        segment_bytes_min: 5 << 20,
        segment_bytes_max: 5 << 20,
        hot_window_bytes: 0,
        ..small_segments()
    };
    let storage = memory();
    let (mut log, ..) = open(&storage, DISK, &config, at(0));
    let mut keeper = log.housekeeper();
    let one = frame(1, 0, 1, 10, at(0));
    let mut base = 0;
    let mut prepared = 0;
    for step in 0..150_u64 {
        let now = at(step * 2000);
        let round: Vec<NewFrame> = (base..base + 2000)
            .map(|base| NewFrame {
                base: number(base),
                arrival: now,
                ..one.clone()
            })
            .collect();
        base += 2000;
        log.trim(shard(1), SequenceNumber::new(base.saturating_sub(100_000)));
        log.commit(&round, 0, now).unwrap().unwrap();
        while keeper.step(now).unwrap().more {}
        if step == 100 {
            prepared = log.stats().segments_prepared;
        }
    }
    let stats = log.stats();
    assert_eq!(
        stats.segments_prepared, prepared,
        "zeroes are written again"
    );
    assert_eq!(stats.segments_unprepared, 1, "only the first one");
    assert!(stats.segments_recycled >= 3, "{}", stats.segments_recycled);
}

/// A segment that was full by its number of runs made the next one twice as large.
#[test]
fn segments_that_are_full_by_runs_do_not_grow() {
    let config = LogConfig {
        segment_bytes_max: 4 << 20,
        segment_runs_max: 60,
        ..small_segments()
    };
    let storage = memory();
    let (mut log, ..) = open(&storage, DISK, &config, at(0));
    let mut keeper = log.housekeeper();
    for base in 0..600 {
        let frames = [
            frame(1, base, 1, 10, at(base)),
            frame(2, base, 1, 10, at(base)),
        ];
        log.commit(&frames, 0, at(base)).unwrap().unwrap();
        while keeper.step(at(base)).unwrap().more {}
    }
    let files = storage.list(&DISK.dir_name()).unwrap();
    let largest = files.iter().map(|file| file.bytes).max().unwrap();
    assert_eq!(largest, config.segment_bytes_min);
}
