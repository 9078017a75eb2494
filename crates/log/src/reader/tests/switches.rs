//! What another thread switches while a read is under way is neither damage nor loss.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use flumen_record::{Durability, SequenceNumber};

use crate::config::{LogConfig, LogKey};
use crate::error::ReadError;
use crate::log::Log;
use crate::reader::LogReader;
use crate::storage::{Fault, FaultError, MemoryStorage, OperationKind};
use crate::testing::seam::{self, Seam};
use crate::testing::{KEY, at, config, frame, keep_house, number, open, open_as, shard};

/// Writes `numbers` of shard 1, each a round that a small segment holds four of.
fn fill(log: &mut Log, numbers: std::ops::Range<u64>) {
    for base in numbers {
        log.commit(&[frame(1, base, 25_000)], 0, at(base))
            .unwrap()
            .unwrap();
    }
}

/// So that a look at one is a read.
fn forget_footers(reader: &LogReader) {
    for segment in reader.shared.all_segments() {
        reader.shared.footers.forget(segment.id());
    }
}

fn next_of(reader: &LogReader, from: u64) -> Result<SequenceNumber, String> {
    let found = reader.read_cold(shard(1), number(from), 1);
    found
        .map(|found| found.next)
        .map_err(|error| error.to_string())
}

/// Shortly after a start the footers of what was read round by round are in memory, and are written
/// meanwhile: a row from one and its runs by the other were "the runs in a footer do not verify".
#[test]
fn a_footer_written_between_two_looks_is_no_damage() {
    for look in 0..12 {
        let storage = MemoryStorage::new();
        fill(&mut open(&storage, &config()), 0..20);
        let mut log = open(&storage, &config());
        fill(&mut log, 20..21);
        let reader = log.reader();
        let (mut keeper, mut millis) = (log.housekeeper(), 1000);
        let passed = Rc::new(Cell::new(0));
        let passes = Rc::clone(&passed);
        seam::at(Seam::FooterSeen, move || {
            if passes.replace(passes.get() + 1) == look {
                keep_house(&mut keeper, &mut millis);
            }
        });
        for from in 0..21 {
            assert_eq!(next_of(&reader, from), Ok(number(from + 1)), "look {look}");
        }
        seam::clear();
        assert!(passed.get() > look, "{} looks", passed.get());
    }
}

/// The segment that held it was freed while it was looked for, and the next one was all that was
/// found: "data loss" for what had just been trimmed.
#[test]
fn what_is_freed_while_it_is_looked_for_was_trimmed() {
    let storage = MemoryStorage::new();
    let settings = LogConfig {
        segment_bytes_max: 128 << 10,
        ..config()
    };
    let mut log = open(&storage, &settings);
    let (mut keeper, mut millis) = (log.housekeeper(), 1000);
    // So many segments that not every one has a mark.
    fill(&mut log, 0..400);
    keep_house(&mut keeper, &mut millis);
    let reader = log.reader();
    let state = |number| {
        let cell = reader.shared.index.get(shard(1)).unwrap();
        let state = cell.lock();
        state.cold_start(number)
    };
    // One that is found from the segment behind it.
    let row_base = |id| {
        let segment = reader.shared.segment(id).unwrap();
        let index = reader.shared.index_of(&segment).unwrap().unwrap();
        index.row(shard(1)).unwrap().base
    };
    let from = (0..400)
        .find(|from| row_base(state(number(*from)).from_segment) > number(*from))
        .expect("a segment without a mark");
    let next_base = row_base(state(number(from)).from_segment);
    forget_footers(&reader);
    let parts = Arc::new(Mutex::new((log, keeper)));
    let others = Arc::clone(&parts);
    storage.before_next_read(move || {
        let (log, keeper) = &mut *others.lock().unwrap();
        log.trim(shard(1), next_base);
        log.commit(&[], 0, at(millis)).unwrap().unwrap();
        keep_house(keeper, &mut millis);
        assert!(keeper_freed(log));
    });
    let answer = reader.read_cold(shard(1), number(from), 1);
    assert!(
        matches!(answer, Err(ReadError::Trimmed { horizon, .. }) if horizon == next_base),
        "{answer:?}"
    );
}

fn keeper_freed(log: &Log) -> bool {
    log.reader().shared.segment(1).is_none()
}

/// A reader in a jump found nothing older, and what follows had left memory meanwhile: the next run in
/// memory was taken for the next there is.
#[test]
fn runs_that_leave_memory_while_a_reader_is_in_a_jump_are_not_lost() {
    let key = LogKey {
        durability: Durability::Memory,
        ..KEY
    };
    let storage = MemoryStorage::new();
    let settings = config();
    fill(&mut open_as(&storage, key, &settings), 0..4);
    let mut log = open_as(&storage, key, &settings);
    let (mut keeper, mut millis) = (log.housekeeper(), 1000);
    let first = 4 + (1 << 32);
    fill(&mut log, first..first + 1);
    keep_house(&mut keeper, &mut millis);
    fill(&mut log, first + 1..first + 12);
    let reader = log.reader();
    forget_footers(&reader);
    storage.before_next_read(move || keep_house(&mut keeper, &mut millis));
    assert_eq!(next_of(&reader, 4), Ok(number(first + 1)));
    drop(log);
}

/// After a failed sync the failed segment left the log before the index said where its rounds stand
/// now: readers of a `memory` log heard of segments that are gone.
#[test]
fn a_failed_segment_serves_until_the_fresh_one_is_named() {
    let key = LogKey {
        durability: Durability::Memory,
        ..KEY
    };
    let storage = MemoryStorage::new();
    let settings = LogConfig {
        hot_window_bytes: 1 << 30,
        ..config()
    };
    let mut log = open_as(&storage, key, &settings);
    fill(&mut log, 0..1);
    for base in 1..12 {
        log.write(&[frame(1, base, 25_000)], 0, at(base)).unwrap();
    }
    let (mut keeper, mut millis) = (log.housekeeper(), 1000);
    let reader = log.reader();
    let seen = Rc::new(Cell::new(false));
    let told = Rc::clone(&seen);
    let inside = reader.clone();
    seam::at(Seam::FreshTakenOver, move || {
        keep_house(&mut keeper, &mut millis);
        for from in 0..12 {
            assert_eq!(next_of(&inside, from), Ok(number(from + 1)));
        }
        told.set(true);
    });
    storage.inject(Fault {
        on: Some(OperationKind::Sync),
        skip: 0,
        times: 1,
        error: FaultError::Io,
    });
    log.sync(&[], at(20)).unwrap();
    seam::clear();
    assert!(seen.get(), "no sync failed");
    storage.drop_caches();
    let (mut keeper, mut millis) = (log.housekeeper(), 1000);
    fill(&mut log, 12..24);
    keep_house(&mut keeper, &mut millis);
    for from in 0..24 {
        assert_eq!(next_of(&reader, from), Ok(number(from + 1)));
    }
}
