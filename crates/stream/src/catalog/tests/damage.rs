//! A catalog that is damaged, or was written by another version, is refused and not guessed at.

use bytes::Bytes;
use flumen_log::{Log, LogConfig, NewFrame, Storage};
use flumen_record::{
    BatchBuilder, Compression, ProducerSequence, Record, RecordLimits, ShardEpoch,
};

use super::super::catalog_log::Nobody;
use super::super::change::Change;
use super::*;

const SHARD: ShardId = ShardId::from_value(0);

fn log(storage: &MemoryStorage) -> (Log, Recovery) {
    let storage = Arc::new(storage.clone());
    Log::open(
        storage,
        LogKey::CATALOG,
        LogConfig::default(),
        NOW,
        &mut Nobody,
    )
    .unwrap()
}

fn frame(number: u64, records: &[Vec<u8>]) -> NewFrame {
    let mut builder = BatchBuilder::new(RecordLimits::MAX);
    for data in records {
        let record = Record {
            partition_key: Bytes::from_static(b"catalog"),
            explicit_hash_key: Some(HashKey::MIN),
            data: Bytes::from(data.clone()),
            client_timestamp: None,
            headers: Vec::new(),
        };
        builder.push(&record, HashKey::MIN).unwrap();
    }
    let (producer, sequence) = (ProducerId::NONE, ProducerSequence::new(0));
    NewFrame {
        shard: SHARD,
        epoch: ShardEpoch::new(1),
        base: SequenceNumber::new(number),
        arrival: NOW,
        batch: builder.finish(producer, sequence, Compression::None),
    }
}

/// A catalog of these frames, records before `trimmed` gone.
fn written(frames: &[NewFrame], trimmed: u64) -> MemoryStorage {
    let storage = MemoryStorage::new();
    let (mut log, _) = log(&storage);
    log.commit(frames, 0, NOW).unwrap().unwrap();
    if trimmed > 0 {
        log.trim(SHARD, SequenceNumber::new(trimmed));
        log.commit(&[], 0, NOW).unwrap().unwrap();
    }
    log.close(NOW).unwrap();
    storage.kill()
}

/// Frames of one record each, from number 0 on.
fn in_order(changes: &[Change]) -> Vec<NewFrame> {
    let numbered = (0..).zip(changes);
    numbered
        .map(|(number, change)| frame(number, &[change.encode()]))
        .collect()
}

fn try_open(storage: &MemoryStorage) -> Result<Catalog, CatalogError> {
    Catalog::open(Arc::new(storage.clone()), config(), NOW).map(|(catalog, _)| catalog)
}

#[track_caller]
fn check(frames: &[NewFrame], trimmed: u64, record: u64, reason: &str) {
    match try_open(&written(frames, trimmed)) {
        Err(CatalogError::Damaged {
            record: found,
            reason: why,
        }) => assert_eq!((found, why), (record, reason)),
        other => panic!("{other:?}"),
    }
}

fn stream(number: u32, text: &str) -> StreamInfo {
    let storage = MemoryStorage::new();
    let mut catalog = open(&storage);
    let mut stream = StreamInfo::clone(&catalog.create(new(text, 1), NOW).unwrap());
    stream.id = StreamId::new(number);
    stream.shards[0].id = ShardId::new(stream.id, ShardIndex::new(0));
    stream
}

fn begin() -> Change {
    Change::SnapshotBegin {
        reserved: 7,
        next_stream: 20,
    }
}

fn producers() -> Change {
    Change::Producers { reserved: 5 }
}

#[test]
fn what_is_in_order_is_read() {
    let changes = [
        Change::Stream(stream(3, "a")),
        begin(),
        Change::SnapshotStream(stream(4, "b")),
        // Not finished: it counts for nothing.
        Change::Stream(stream(5, "c")),
        begin(),
        Change::SnapshotStream(stream(5, "c")),
        Change::SnapshotEnd { streams: 1 },
        Change::Stream(stream(21, "d")),
    ];
    let names = |count: usize| {
        let catalog = try_open(&written(&in_order(&changes[..count]), 0)).unwrap();
        assert_eq!(catalog.last_record(), count as u64);
        catalog
            .streams()
            .map(|stream| stream.name.to_string())
            .collect::<Vec<_>>()
    };
    let names: Vec<_> = (1..=changes.len()).map(names).collect();
    let (a, ac, c, cd) = (vec!["a"], vec!["a", "c"], vec!["c"], vec!["c", "d"]);
    assert_eq!(
        names,
        [a.clone(), a.clone(), a, ac.clone(), ac.clone(), ac, c, cd]
    );
    let trimmed = try_open(&written(&in_order(&changes), 4)).unwrap();
    assert_eq!(trimmed.last_record(), changes.len() as u64);
    assert_eq!(trimmed.streams().count(), 2);
}

#[test]
fn unknown_records_are_refused() {
    let garbage = |bytes: &[u8]| {
        [
            frame(0, &[producers().encode()]),
            frame(1, &[bytes.to_vec()]),
        ]
    };
    check(&garbage(&[]), 0, 2, "it ends too soon");
    let newer = "its version is not known; it was written by a newer Flumen";
    check(&garbage(&[4, 1]), 0, 2, newer);
    let newer = "its kind is not known; it was written by a newer Flumen";
    check(&garbage(&[2, 99]), 0, 2, newer);
    let mut longer = producers().encode();
    longer.push(0);
    check(&garbage(&longer), 0, 2, "it goes on after its end");
}

#[test]
fn a_missing_record_is_damage() {
    let record = producers().encode();
    let one = std::slice::from_ref(&record);
    let later = [frame(0, one), frame(2, one)];
    // The log sees the hole first.
    let refused = try_open(&written(&later, 0));
    assert!(matches!(refused, Err(CatalogError::Read(_))), "{refused:?}");
    let two = [frame(0, &[record.clone(), record])];
    check(&two, 0, 1, "its frame holds more than one record");
}

#[test]
fn what_was_trimmed_must_stand_in_a_snapshot() {
    let reason = "the snapshot it should begin is not complete";
    let changes = [
        Change::Stream(stream(3, "a")),
        Change::Stream(stream(4, "b")),
        begin(),
        Change::SnapshotStream(stream(3, "a")),
        Change::SnapshotStream(stream(4, "b")),
        Change::SnapshotEnd { streams: 2 },
    ];
    check(&in_order(&changes[..2]), 1, 2, reason);
    for count in 3..changes.len() {
        check(&in_order(&changes[..count]), 2, 3, reason);
    }
    assert_eq!(
        try_open(&written(&in_order(&changes), 2))
            .unwrap()
            .streams()
            .count(),
        2
    );
}

#[test]
fn a_snapshot_without_beginning_or_with_a_hole_is_damage() {
    let part = Change::SnapshotStream(stream(3, "a"));
    let end = Change::SnapshotEnd { streams: 1 };
    let reason = "it belongs to a snapshot that does not begin";
    check(&in_order(&[producers(), part.clone()]), 0, 2, reason);
    check(&in_order(&[producers(), end.clone()]), 0, 2, reason);
    check(&in_order(&[begin(), producers(), part]), 0, 3, reason);
    check(
        &in_order(&[begin(), end]),
        0,
        2,
        "the snapshot it ends is not complete",
    );
}

/// Wherever a byte rots: the catalog is the same, or it is refused.
#[test]
fn rot_never_makes_another_catalog_of_it() {
    let storage = MemoryStorage::new();
    let mut catalog = open(&storage);
    for number in 0..12 {
        catalog.create(new(&format!("s{number}"), 2), NOW).unwrap();
    }
    catalog.delete(&name("s3"), NOW).unwrap();
    let streams: Vec<_> = catalog.streams().cloned().collect();
    let records = catalog.last_record();
    catalog.close(NOW).unwrap();
    let storage = storage.kill();
    let (mut refused, mut same) = (0, 0);
    for dir in storage.list_dirs("").unwrap() {
        for file in storage.list(&dir).unwrap() {
            let path = format!("{dir}/{}", file.name);
            for position in (0..file.bytes.min(48 << 10)).step_by(97) {
                let rotten = storage.duplicate();
                rotten.rot(&path, position, |bytes| bytes[0] ^= 0x10, 1);
                match try_open(&rotten) {
                    Ok(catalog) if catalog.check_named(records).is_ok() => {
                        same += 1;
                        let found: Vec<_> = catalog.streams().cloned().collect();
                        assert_eq!(found, streams, "{path} at {position}");
                    }
                    _ => refused += 1,
                }
            }
        }
    }
    assert!(
        refused > 20 && same > 20,
        "{refused} refused, {same} the same"
    );
}
