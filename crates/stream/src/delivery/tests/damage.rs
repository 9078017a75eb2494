//! A log that is damaged, or was written by another version, is refused and not guessed at.

use flumen_log::{Fault, FaultError, Log, LogConfig, LogKey, NewFrame, OperationKind, Storage};
use flumen_record::{
    BatchBuilder, Compression, HashKey, ProducerId, ProducerSequence, Record, RecordLimits,
    ShardEpoch,
};

use super::*;

const SHARD: ShardId = ShardId::from_value(0);

fn frame(number: u64, records: &[Vec<u8>]) -> NewFrame {
    let mut builder = BatchBuilder::new(RecordLimits::MAX);
    for data in records {
        let record = Record {
            partition_key: Bytes::from_static(b"deliveries"),
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

/// A log of these frames, records before `trimmed` gone.
fn written(frames: &[NewFrame], trimmed: u64) -> MemoryStorage {
    let storage = MemoryStorage::new();
    let (mut log, _) = Log::open(
        Arc::new(storage.clone()),
        LogKey::DELIVERIES,
        LogConfig::default(),
        NOW,
        &mut Ignore,
    )
    .unwrap();
    log.commit(frames, 0, NOW).unwrap().unwrap();
    if trimmed > 0 {
        log.trim(SHARD, SequenceNumber::new(trimmed));
        log.commit(&[], 0, NOW).unwrap().unwrap();
    }
    log.close(NOW).unwrap();
    storage.kill()
}

fn encode(changes: &[DeliveryChange]) -> Vec<u8> {
    let mut bytes = vec![1];
    for change in changes {
        change.encode(&mut bytes);
    }
    bytes
}

/// Frames of one change each, from number 0 on.
fn in_order(changes: &[DeliveryChange]) -> Vec<NewFrame> {
    let numbered = (0..).zip(changes.chunks(1));
    numbered
        .map(|(number, change)| frame(number, &[encode(change)]))
        .collect()
}

#[track_caller]
fn check(frames: &[NewFrame], trimmed: u64, record: u64, reason: &str) {
    match try_open(&written(frames, trimmed)) {
        Err(DeliveryLogError::Damaged {
            record: found,
            reason: why,
        }) => assert_eq!((found, why), (record, reason)),
        other => panic!("{other:?}"),
    }
}

fn set(number: u64, named: u64) -> DeliveryChange {
    DeliveryChange::Set {
        id: id(number),
        definition: definition(named),
    }
}

fn image_of(number: u64) -> DeliveryChange {
    DeliveryChange::SnapshotDelivery {
        id: id(number),
        stored: stored(number),
    }
}

fn came_further(number: u64) -> DeliveryChange {
    DeliveryChange::Progress {
        id: id(number),
        progress: progress(9),
    }
}

const BEGIN: DeliveryChange = DeliveryChange::SnapshotBegin {
    last: DeliveryId::new(20),
};

#[test]
fn what_is_in_order_is_read() {
    let changes = [
        set(3, 3),
        set(4, 4),
        BEGIN,
        image_of(3),
        // Its turn comes: what is about it before that means nothing, trimmed or not.
        came_further(4),
        came_further(3),
        DeliveryChange::Removed { id: id(3) },
        set(21, 3),
        image_of(4),
        DeliveryChange::SnapshotDelivery {
            id: id(21),
            stored: stored(3),
        },
        DeliveryChange::SnapshotEnd { deliveries: 2 },
        came_further(4),
    ];
    for trimmed in [0, 2] {
        let log = open(&written(&in_order(&changes), trimmed));
        assert_eq!(log.records(), changes.len() as u64);
        let (last, found) = image(&log);
        let ids: Vec<_> = found.iter().map(|(id, _)| id.value()).collect();
        assert_eq!((last, ids), (id(21), vec![4, 21]));
        assert_eq!(found[0].1.progress, progress(9));
    }
}

#[test]
fn unknown_records_are_refused() {
    let after_one = |bytes: &[u8]| {
        [
            frame(0, &[encode(&[set(1, 1)])]),
            frame(1, &[bytes.to_vec()]),
        ]
    };
    let newer = "its version is not known; it was written by a newer Flumen";
    check(&after_one(&[]), 0, 2, newer);
    check(&after_one(&[2, 3, 1]), 0, 2, newer);
    let newer = "its kind is not known; it was written by a newer Flumen";
    check(&after_one(&[1, 99]), 0, 2, newer);
    let mut longer = encode(&[came_further(1)]);
    longer.push(3);
    let short = "a number in it is not one, or it ends too soon";
    check(&after_one(&longer), 0, 2, short);
    let two = [frame(0, &[encode(&[set(1, 1)]), encode(&[set(2, 2)])])];
    check(&two, 0, 1, "its frame holds more than one record");
    let hole = [
        frame(0, &[encode(&[set(1, 1)])]),
        frame(2, &[encode(&[set(2, 2)])]),
    ];
    // The log sees it first.
    let refused = try_open(&written(&hole, 0));
    assert!(
        matches!(refused, Err(DeliveryLogError::Read(_))),
        "{refused:?}"
    );
}

#[test]
fn what_does_not_follow_is_refused() {
    let unknown = "it is about a delivery stream that does not exist";
    check(&in_order(&[set(1, 1), came_further(2)]), 0, 2, unknown);
    let removed = DeliveryChange::Removed { id: id(2) };
    check(&in_order(&[removed]), 0, 1, unknown);
    let reused = "its number was given before";
    check(&in_order(&[set(2, 2), set(1, 1)]), 0, 2, reused);
    let taken = "another delivery stream has its name";
    check(&in_order(&[set(1, 1), set(2, 1)]), 0, 2, taken);
    let renamed = "it has another name than before";
    check(&in_order(&[set(1, 1), set(1, 2)]), 0, 2, renamed);
    let end = DeliveryChange::SnapshotEnd { deliveries: 2 };
    let incomplete = "the snapshot it ends is not complete";
    check(
        &in_order(&[set(1, 1), BEGIN, image_of(1), end]),
        0,
        4,
        incomplete,
    );
}

#[test]
fn what_was_trimmed_must_stand_in_a_snapshot() {
    let changes = [
        set(3, 3),
        set(4, 4),
        BEGIN,
        image_of(3),
        image_of(4),
        DeliveryChange::SnapshotEnd { deliveries: 2 },
    ];
    let reason = "the snapshot it should begin does not begin there";
    check(&in_order(&changes[..2]), 1, 2, reason);
    let reason = "the snapshot it should begin is not complete";
    for count in 3..changes.len() {
        check(&in_order(&changes[..count]), 2, 3, reason);
    }
    let log = open(&written(&in_order(&changes), 2));
    assert_eq!(log.deliveries().count(), 2);
    assert_eq!(log.last_id(), id(20));
}

/// Wherever a byte rots: the log says the same, or it is refused.
#[test]
fn rot_never_makes_another_log_of_it() {
    let storage = MemoryStorage::new();
    let mut log = open(&storage);
    for number in 0..12 {
        let id = log.create(name(number), settings(number), NOW).unwrap();
        log.save(vec![(id, progress(number * 31))], NOW).unwrap();
    }
    log.remove(id(3), NOW).unwrap();
    let before = image(&log);
    let records = log.records();
    log.close(NOW).unwrap();
    let storage = storage.kill();
    let (mut refused, mut same) = (0, 0);
    for dir in storage.list_dirs("").unwrap() {
        for file in storage.list(&dir).unwrap() {
            let path = format!("{dir}/{}", file.name);
            for position in (0..file.bytes.min(32 << 10)).step_by(97) {
                let rotten = storage.duplicate();
                rotten.rot(&path, position, |bytes| bytes[0] ^= 0x10, 1);
                match try_open(&rotten) {
                    Ok(log) if log.records() == records => {
                        same += 1;
                        assert_eq!(image(&log), before, "{path} at {position}");
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

/// A log that failed says so, and is what was answered when it is opened again.
#[test]
fn a_failed_log_takes_nothing_more() {
    let storage = MemoryStorage::new();
    let mut log = open(&storage);
    log.create(name(1), settings(1), NOW).unwrap();
    storage.inject(Fault {
        on: Some(OperationKind::Sync),
        skip: 0,
        times: u64::MAX,
        error: FaultError::Io,
    });
    for _ in 0..2 {
        let failed = log.save(vec![(id(1), progress(5))], NOW).unwrap_err();
        assert!(!failed.is_refusal(), "{failed:?}");
    }
    assert_eq!(
        log.get(id(1)).unwrap().progress,
        DeliveryProgress::default()
    );
    drop(log);
    let log = open(&storage.crash_keeping(Grain::Page, 0));
    assert_eq!(log.get(id(1)).unwrap().definition.name, name(1));
}
