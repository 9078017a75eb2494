//! A footer that rots costs nothing: what it said is in the frames below it.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::config::LogConfig;
use crate::error::ReadError;
use crate::footer::{TRAILER_BYTES, Trailer};
use crate::footer_cache::footer_verifies;
use crate::housekeeper::{Housekeeper, verify};
use crate::log::Log;
use crate::reader::LogReader;
use crate::segment::FooterPlace;
use crate::storage::{Grain, MemoryStorage};
use crate::testing::{at, config, frame, keep_house, number, open, shard};

const SHARDS: Range<u64> = 1..4;
/// The segment whose footer rots: neither the first nor the last.
const ROTTEN: u64 = 2;

/// Small, as every byte is worth an open log.
fn small() -> LogConfig {
    LogConfig {
        segment_bytes_min: 48 << 10,
        segment_bytes_max: 48 << 10,
        ..config()
    }
}

/// Three shards in four segments or so; all but the last have their footers.
fn fill(log: &mut Log, keeper: &mut Housekeeper, millis: &mut u64) {
    for (base, size) in (0..20).zip((2_500..).step_by(10)) {
        let frames: Vec<_> = SHARDS.map(|shard| frame(shard, base, size)).collect();
        log.commit(&frames, 0, at(base)).unwrap().unwrap();
    }
    keep_house(keeper, millis);
}

type Frames = Vec<(u64, u64, Bytes)>;

/// Everything there is, read from disk batch by batch.
fn read_all(reader: &LogReader) -> Result<Frames, String> {
    let mut all = Vec::new();
    for value in SHARDS {
        let mut from = number(0);
        let end = reader.bounds(shard(value)).unwrap().durable_end;
        while from < end {
            let found = reader.read_cold(shard(value), from, 1);
            let found = found.map_err(|error| error.to_string())?;
            assert!(found.next > from);
            let pieces: Vec<u8> = found.pieces.concat();
            all.push((value, from.value(), pieces.into()));
            from = found.next;
        }
    }
    Ok(all)
}

fn check(found: &Result<Frames, String>, before: &Frames, place: u64) {
    let found = found
        .as_ref()
        .unwrap_or_else(|error| panic!("{place}: {error}"));
    assert!(found == before, "{place}: other frames");
}

fn trailer_of(reader: &LogReader, id: u64) -> Option<Trailer> {
    match reader.shared.segment(id)?.footer() {
        FooterPlace::Disk(trailer) => Some(trailer),
        FooterPlace::Pinned(_) | FooterPlace::Recent => None,
    }
}

/// Places of all bytes of a footer, trailer included, and its path.
fn places(reader: &LogReader, id: u64) -> (String, Vec<u64>) {
    let trailer = trailer_of(reader, id).expect("it is sealed");
    let segment = reader.shared.segment(id).unwrap();
    let end = segment.file.bytes();
    let footer = trailer.footer_at..trailer.footer_at + trailer.footer_bytes();
    let places = footer.chain(end - TRAILER_BYTES..end).collect();
    (segment.path.clone(), places)
}

fn is_whole_on_disk(reader: &LogReader, id: u64) -> bool {
    let segment = reader.shared.segment(id).unwrap();
    let trailer = trailer_of(reader, id);
    trailer
        .is_some_and(|trailer| footer_verifies(&*segment.file, &segment.header, &trailer).unwrap())
}

/// One flipped bit in a footer's runs hid the whole segment for a shard, as an error of the disk.
/// Here every byte rots under a running log, whether a reader or the housekeeper meets it first.
#[test]
fn a_rotten_byte_of_a_footer_costs_no_record() {
    for readers_first in [true, false] {
        let storage = MemoryStorage::new();
        let mut log = open(&storage, &small());
        let (mut keeper, mut millis) = (log.housekeeper(), 1000);
        fill(&mut log, &mut keeper, &mut millis);
        let reader = log.reader();
        let before = read_all(&reader).unwrap();
        let (path, places) = places(&reader, ROTTEN);
        assert!(places.len() > 600, "{}", places.len());
        for place in places {
            storage.rot(&path, place, |bytes| bytes[0] ^= 0x10, 1);
            reader.shared.footers.forget(ROTTEN);
            if readers_first {
                check(&read_all(&reader), &before, place);
            }
            keeper.verified = verify::Verified::default();
            keep_house(&mut keeper, &mut millis);
            assert!(is_whole_on_disk(&reader, ROTTEN), "{place}: not mended");
            check(&read_all(&reader), &before, place);
        }
    }
}

/// The same, met by the next start, with and without a snapshot in which the segment is.
#[test]
fn a_footer_that_rots_while_nothing_runs_costs_no_record() {
    for with_snapshot in [true, false] {
        let storage = MemoryStorage::new();
        let mut log = open(&storage, &small());
        let (mut keeper, mut millis) = (log.housekeeper(), 1000);
        fill(&mut log, &mut keeper, &mut millis);
        let before = read_all(&log.reader()).unwrap();
        let (path, places) = places(&log.reader(), ROTTEN);
        if with_snapshot {
            log.snapshot(Vec::new(), at(millis)).run().unwrap();
        }
        log.close(at(millis)).unwrap();
        let all = |_: usize, _: &_| usize::MAX;
        for place in places {
            let image = storage.crash(Grain::Page, all);
            image.rot(&path, place, |bytes| bytes[0] ^= 0x10, 1);
            let log = open(&image, &small());
            check(&read_all(&log.reader()), &before, place);
            drop(log);
            let mut log = open(&image, &small());
            let mut keeper = log.housekeeper();
            let reader = log.reader();
            // Something later, so that what was read as a whole can get a footer again.
            log.commit(&[], 0, at(millis)).unwrap().unwrap();
            keep_house(&mut keeper, &mut millis);
            assert!(is_whole_on_disk(&reader, ROTTEN), "{place}: not mended");
            check(&read_all(&reader), &before, place);
        }
    }
}

/// Where frames are damaged too, exactly they are lost, and that is said as what it is.
#[test]
fn a_loss_behind_a_rotten_footer_is_exact() {
    let storage = MemoryStorage::new();
    let mut log = open(&storage, &small());
    let (mut keeper, mut millis) = (log.housekeeper(), 1000);
    fill(&mut log, &mut keeper, &mut millis);
    let reader = log.reader();
    let before = read_all(&reader).unwrap();
    let segment = reader.shared.segment(ROTTEN).unwrap();
    let index = reader.shared.index_of(&segment).unwrap().unwrap();
    let row = *index.row(shard(2)).unwrap();
    let run = reader.shared.runs_of(&segment, &index, &row).unwrap()[1];
    let middle = u64::from(run.position) + u64::from(run.bytes) / 2;
    storage.rot(&segment.path, middle, |bytes| bytes[0] ^= 1, 1);
    let trailer = trailer_of(&reader, ROTTEN).unwrap();
    for place in [trailer.footer_at + 3, trailer.runs_place(&row).0 + 3] {
        storage.rot(&segment.path, place, |bytes| bytes[0] ^= 1, 1);
    }
    reader.shared.footers.forget(ROTTEN);
    for (value, from, bytes) in before {
        let found = reader.read_cold(shard(value), number(from), 1);
        if value == 2 && number(from) == run.base {
            assert!(
                matches!(&found, Err(ReadError::DataLoss { from, to, .. })
                    if (*from, *to) == (run.base, run.end)),
                "{found:?}"
            );
        } else {
            assert_eq!(found.unwrap().pieces.concat(), bytes, "{value} {from}");
        }
    }
    // What is damaged stays as it is, for whoever can still make something of it.
    keep_house(&mut keeper, &mut millis);
    assert!(trailer_of(&reader, ROTTEN).is_none());
}

/// An index that was gathered again does not know which segment held a shard before. The one named
/// in its place may be freed since, while older ones hold records.
#[test]
fn a_freed_neighbour_of_a_rotten_footer_hides_nothing() {
    let storage = MemoryStorage::new();
    let mut log = open(&storage, &config());
    let (mut keeper, mut millis) = (log.housekeeper(), 1000);
    log.commit(&[frame(2, 0, 8_000)], 0, at(0))
        .unwrap()
        .unwrap();
    for base in 0..40 {
        log.commit(&[frame(1, base, 25_000)], 0, at(base))
            .unwrap()
            .unwrap();
    }
    log.commit(&[frame(2, 1, 8_000)], 0, at(50))
        .unwrap()
        .unwrap();
    for base in 40..60 {
        log.commit(&[frame(1, base, 25_000)], 0, at(base))
            .unwrap()
            .unwrap();
    }
    keep_house(&mut keeper, &mut millis);
    let reader = log.reader();
    let cell = reader.shared.index.get(shard(2)).unwrap();
    let second = cell.lock().marks[1].segment;
    let segment = reader.shared.segment(second).unwrap();
    let trailer = trailer_of(&reader, second).unwrap();
    storage.rot(&segment.path, trailer.footer_at + 3, |b| b[0] ^= 1, 1);
    reader.shared.footers.forget(second);
    let neighbour = second - 1;
    let index = reader.shared.index_of(&segment).unwrap().unwrap();
    assert_eq!(index.row(shard(2)).unwrap().previous, neighbour);
    log.trim(shard(1), number(40));
    log.commit(&[], 0, at(millis)).unwrap().unwrap();
    keep_house(&mut keeper, &mut millis);
    assert!(
        reader.shared.segment(neighbour).is_none(),
        "nothing was freed"
    );
    // As after a start without a snapshot, or with so many segments that not every one is marked.
    cell.lock().marks = Arc::default();
    let found = reader.read_cold(shard(2), number(0), 1).unwrap();
    assert_eq!(found.next, number(1));
}
