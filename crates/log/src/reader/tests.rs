//! Cold reads: what they hold, and what they cost.

mod switches;

use crate::storage::MemoryStorage;
use crate::testing::{at, config, frame, keep_house, number, open, shard};

/// Fills some segments with two shards, seals them and lets go of their runs in memory.
#[test]
fn a_copy_between_look_up_and_reading_is_no_damage() {
    let storage = MemoryStorage::new();
    let mut log = open(&storage, &config());
    let mut keeper = log.housekeeper();
    let mut millis = 1000;
    for base in 0..200 {
        let frames = [frame(1, base, 5000), frame(2, base, 3000)];
        log.commit(&frames, 0, at(base)).unwrap().unwrap();
    }
    keep_house(&mut keeper, &mut millis);
    let reader = log.reader();
    let budget = 20_000;
    let plan = reader.look_up_cold(shard(2), number(3), budget);
    let plan = plan.unwrap().unwrap();
    let before = reader.fetch_cold(shard(2), &plan, number(3), budget);
    let before = before.unwrap().unwrap();
    log.trim(shard(1), number(200));
    log.commit(&[], 0, at(millis)).unwrap().unwrap();
    while reader
        .shared
        .segment(plan.runs[0].segment)
        .unwrap()
        .name
        .generation
        == 0
    {
        keep_house(&mut keeper, &mut millis);
    }
    let after = reader.fetch_cold(shard(2), &plan, number(3), budget);
    let after = after.unwrap().unwrap();
    assert_eq!(after.pieces, before.pieces);
    let found = reader.read_cold(shard(2), number(3), budget).unwrap();
    assert_eq!(found.next, before.next);
}

#[test]
fn a_cold_read_costs_what_it_returns() {
    let storage = MemoryStorage::new();
    let config = crate::LogConfig {
        segment_bytes_min: 16 << 20,
        segment_bytes_max: 16 << 20,
        ..config()
    };
    let mut log = open(&storage, &config);
    let frames: Vec<_> = (0..64).map(|base| frame(1, base, 60_000)).collect();
    log.commit(&frames, 0, at(0)).unwrap().unwrap();
    let reader = log.reader();
    for from in [0, 31, 63] {
        let before = storage.read_bytes();
        let found = reader.read_cold(shard(1), number(from), 1).unwrap();
        assert_eq!(found.next, number(from + 1));
        let read = storage.read_bytes() - before;
        // Those before it are walked by their headers, a window at a time.
        let walked = (from + 1) * 61_000 + (1 << 20);
        assert!(read <= walked, "{read} bytes read for one frame at {from}");
    }
}

/// A damaged frame that a reply does not reach is not its business.
#[test]
fn damage_behind_what_is_returned_is_met_when_it_is_reached() {
    let storage = MemoryStorage::new();
    let mut log = open(&storage, &config());
    let frames: Vec<_> = (0..4).map(|base| frame(1, base, 1000)).collect();
    log.commit(&frames, 0, at(0)).unwrap().unwrap();
    let reader = log.reader();
    let run = reader.shared.index.get(shard(1)).unwrap().lock().recent[0];
    let segment = reader.shared.segment(run.segment).unwrap();
    let third = u64::from(run.position) + u64::from(run.bytes) / 4 * 2 + 200;
    storage.rot(&segment.path, third, |bytes| bytes[0] ^= 1, 1);
    let read = |from| reader.read_cold(shard(1), number(from), usize::MAX);
    assert_eq!(read(0).unwrap().next, number(2));
    let lost = read(2).unwrap_err().to_string();
    assert!(lost.contains("from 2 up to 3"), "{lost}");
    assert_eq!(read(3).unwrap().next, number(4));
}
