//! The log of delivery streams, over storage that can lose what was not synced.

mod crash;
mod damage;

use std::sync::Arc;

use bytes::Bytes;
use flumen_log::{Grain, MemoryStorage, WriteError};
use flumen_record::{DeliveryId, DeliveryName, SequenceNumber, ShardId, Timestamp};
use proptest::prelude::*;

use super::*;

/// The number of none.
const NOBODY: DeliveryId = DeliveryId::new(999);
const NOW: Timestamp = Timestamp::from_micros(1_000_000);

/// Snapshots come often, in small pieces.
fn config() -> DeliveryConfig {
    DeliveryConfig {
        snapshot_bytes_min: 2_000,
        snapshot_growth: 1,
        snapshot_piece_bytes: 100,
        ..DeliveryConfig::default()
    }
}

fn try_open(storage: &MemoryStorage) -> Result<DeliveryLog, DeliveryLogError> {
    DeliveryLog::open(Arc::new(storage.clone()), config(), NOW).map(|(log, _)| log)
}

fn open(storage: &MemoryStorage) -> DeliveryLog {
    try_open(storage).unwrap()
}

fn name(number: u64) -> DeliveryName {
    format!("d{number}").parse().unwrap()
}

fn id(value: u64) -> DeliveryId {
    DeliveryId::new(value)
}

fn small(number: u64) -> usize {
    usize::try_from(number).unwrap()
}

fn settings(number: u64) -> Bytes {
    Bytes::from(format!("settings {number}"))
}

fn progress(number: u64) -> DeliveryProgress {
    let held = (0..number % 4).map(|shard| {
        let shard = ShardId::from_value(shard << 32 | number);
        (shard, SequenceNumber::new(number << 7))
    });
    DeliveryProgress {
        bytes: Bytes::from(vec![7; small(number % 90)]),
        held: held.collect(),
    }
}

/// All that is durable.
fn image(log: &DeliveryLog) -> (DeliveryId, Vec<(DeliveryId, StoredDelivery)>) {
    let stored = log.deliveries().map(|(id, stored)| (id, stored.clone()));
    (log.last_id(), stored.collect())
}

/// Something that changes something, by dice; refused where it does not fit.
fn change(log: &mut DeliveryLog, dice: u64) -> Result<(), DeliveryLogError> {
    let count = log.deliveries().count() as u64;
    let any = |dice: u64| {
        let mut all = log.deliveries().map(|(id, _)| id);
        all.nth(small(dice % count.max(1)))
    };
    let chosen = any(dice / 8).unwrap_or(NOBODY);
    match dice % 8 {
        0 | 1 => log
            .create(name(dice / 8 % 9), settings(dice), NOW)
            .map(drop),
        2 => log.remove(chosen, NOW),
        3 | 4 => {
            let Some(known) = log.get(chosen) else {
                return Err(DeliveryLogError::NotFound { id: chosen });
            };
            let definition = DeliveryDefinition {
                version: known.definition.version + 1,
                updated: Timestamp::from_micros(dice % 77),
                paused: dice.is_multiple_of(3),
                ending: [
                    None,
                    Some(DeliveryEnding::Flush),
                    Some(DeliveryEnding::Drop),
                ][small(dice % 3)],
                settings: settings(dice),
                ..known.definition.clone()
            };
            log.set(chosen, definition, NOW)
        }
        _ => {
            let other = any(dice / 16).unwrap_or(NOBODY);
            let all = vec![
                (chosen, progress(dice / 8 % 500)),
                (other, progress(dice / 64 % 500)),
            ];
            log.save(all, NOW)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn opened_again_it_is_what_it_was(
        dice in prop::collection::vec(any::<u32>(), 1..150),
        cut in any::<u64>(),
    ) {
        let mut storage = MemoryStorage::new();
        let mut log = open(&storage);
        for dice in dice.iter().copied().map(u64::from) {
            if let Err(error) = change(&mut log, dice) {
                prop_assert!(error.is_refusal(), "{error}");
            }
            if dice.is_multiple_of(23) {
                drop(log);
                storage = storage.crash_keeping(Grain::Sector, cut);
                log = open(&storage);
            }
        }
        let before = image(&log);
        drop(log);
        let log = open(&storage.crash_keeping(Grain::Page, cut));
        prop_assert_eq!(image(&log), before);
        prop_assert!(log.records() > 0 || dice.len() < 40);
    }

    #[test]
    fn any_bytes_are_an_error_or_what_they_say(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let before = rest;
            let Ok(change) = DeliveryChange::decode(&mut rest) else { break };
            let mut encoded = Vec::new();
            change.encode(&mut encoded);
            let taken = before.len() - rest.len();
            prop_assert_eq!(&encoded[..], &before[..taken]);
        }
    }
}

fn definition(number: u64) -> DeliveryDefinition {
    DeliveryDefinition {
        name: name(number),
        created: NOW,
        updated: Timestamp::from_micros(1 << 50),
        version: 300,
        paused: true,
        ending: Some(DeliveryEnding::Drop),
        settings: settings(number),
    }
}

fn stored(number: u64) -> StoredDelivery {
    StoredDelivery {
        definition: definition(number),
        progress: progress(number),
    }
}

/// One of each kind.
fn every_kind() -> [DeliveryChange; 6] {
    [
        DeliveryChange::Set {
            id: id(1),
            definition: definition(1),
        },
        DeliveryChange::Progress {
            id: id(1 << 40),
            progress: progress(255),
        },
        DeliveryChange::Removed { id: id(300) },
        DeliveryChange::SnapshotBegin { last: id(0) },
        DeliveryChange::SnapshotDelivery {
            id: id(2),
            stored: stored(3),
        },
        DeliveryChange::SnapshotEnd { deliveries: 1 },
    ]
}

#[test]
fn changes_read_back_as_written_and_nothing_shorter_is_one() {
    for (kind, change) in (1..).zip(every_kind()) {
        let mut bytes = Vec::new();
        change.encode(&mut bytes);
        assert_eq!(bytes[0], kind);
        let mut rest = bytes.as_slice();
        assert_eq!(DeliveryChange::decode(&mut rest).unwrap(), change);
        assert!(rest.is_empty());
        for length in 0..bytes.len() {
            let cut = DeliveryChange::decode(&mut &bytes[..length]);
            assert!(cut.is_err(), "{change:?} cut at {length}");
        }
    }
}

/// The bytes of `docs/format.md`: this is a format.
#[test]
fn the_bytes_are_those_of_the_document() {
    let change = DeliveryChange::Set {
        id: id(2),
        definition: DeliveryDefinition {
            name: "ab".parse().unwrap(),
            created: Timestamp::from_micros(3),
            updated: Timestamp::from_micros(4),
            version: 130,
            paused: false,
            ending: Some(DeliveryEnding::Flush),
            settings: Bytes::from_static(b"{}"),
        },
    };
    let mut bytes = Vec::new();
    change.encode(&mut bytes);
    let expected = [
        &[1, 2, 2][..],
        b"ab",
        &[3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0],
        &[0x82, 0x01, 0, 1, 2],
        b"{}",
    ];
    assert_eq!(bytes, expected.concat());
    let change = DeliveryChange::Progress {
        id: id(2),
        progress: DeliveryProgress {
            bytes: Bytes::from_static(b"p"),
            held: vec![(ShardId::from_value(7), SequenceNumber::new(128))],
        },
    };
    let mut bytes = Vec::new();
    change.encode(&mut bytes);
    let expected = [2, 2, 1, b'p', 1, 7, 0, 0, 0, 0, 0, 0, 0, 0x80, 0x01];
    assert_eq!(bytes, expected);
}

#[test]
fn what_is_created_is_numbered_and_named_once() {
    let storage = MemoryStorage::new();
    let mut log = open(&storage);
    assert_eq!(log.create(name(1), settings(1), NOW).unwrap(), id(1));
    let taken = log.create(name(1), settings(1), NOW);
    assert!(matches!(taken, Err(DeliveryLogError::NameTaken { .. })));
    assert_eq!(log.create(name(2), settings(2), NOW).unwrap(), id(2));
    log.remove(id(2), NOW).unwrap();
    log.close(NOW).unwrap();
    let mut log = open(&storage);
    assert_eq!(log.create(name(2), settings(2), NOW).unwrap(), id(3));
    // Another name is not taken over.
    let mut renamed = log.get(id(1)).unwrap().definition.clone();
    (renamed.name, renamed.paused) = (name(7), true);
    log.set(id(1), renamed, NOW).unwrap();
    let found = &log.get(id(1)).unwrap().definition;
    assert_eq!((&found.name, found.paused), (&name(1), true));
    for refused in [
        log.remove(id(2), NOW),
        log.set(id(2), definition(2), NOW),
        log.save(vec![(id(1), progress(3)), (id(2), progress(3))], NOW),
    ] {
        let is_so =
            matches!(refused, Err(DeliveryLogError::NotFound { id: gone }) if gone == id(2));
        assert!(is_so, "{refused:?}");
    }
    // All of them or none.
    assert_eq!(
        log.get(id(1)).unwrap().progress,
        DeliveryProgress::default()
    );
}

#[test]
fn everything_is_bounded() {
    let storage = Arc::new(MemoryStorage::new());
    let small = DeliveryConfig {
        deliveries_max: 1,
        settings_bytes_max: 10,
        progress_bytes_max: 10,
        held_max: 1,
        ..config()
    };
    let (mut log, _) = DeliveryLog::open(storage, small, NOW).unwrap();
    let long = Bytes::from_static(b"longer than ten");
    let created = log.create(name(1), long.clone(), NOW);
    let check = |refused: Result<(), DeliveryLogError>, expected: &str| match refused {
        Err(error @ DeliveryLogError::OutOfBounds { .. }) => {
            assert_eq!(error.to_string(), expected);
        }
        other => panic!("{other:?}"),
    };
    check(
        created.map(drop),
        "settings bytes is 15, allowed is 0 to 10",
    );
    let first = log.create(name(1), settings(1), NOW).unwrap();
    let second = log.create(name(2), settings(2), NOW);
    check(second.map(drop), "deliveries is 2, allowed is 0 to 1");
    let mut larger = log.get(first).unwrap().definition.clone();
    larger.settings = long.clone();
    let larger = log.set(first, larger, NOW);
    check(larger, "settings bytes is 15, allowed is 0 to 10");
    let large = DeliveryProgress {
        bytes: long,
        held: Vec::new(),
    };
    let saved = log.save(vec![(first, large)], NOW);
    check(saved, "progress bytes is 15, allowed is 0 to 10");
    let many = DeliveryProgress {
        bytes: Bytes::new(),
        held: progress(2).held,
    };
    let saved = log.save(vec![(first, many)], NOW);
    check(saved, "held shards is 2, allowed is 0 to 1");
    assert_eq!(log.records(), 1);
}

/// The largest of everything there may be fits into records and rounds, and its snapshot, too.
#[test]
fn the_largest_there_may_be_fits() {
    let storage = MemoryStorage::new();
    let config = DeliveryConfig::default();
    let held = (0..u64::from(config.held_max)).map(|shard| {
        let shard = ShardId::from_value(u64::MAX - shard);
        (shard, SequenceNumber::MAX)
    });
    let large = DeliveryProgress {
        bytes: Bytes::from(vec![7; small(config.progress_bytes_max)]),
        held: held.collect(),
    };
    let settings = Bytes::from(vec![b' '; small(config.settings_bytes_max)]);
    let (mut log, _) = DeliveryLog::open(Arc::new(storage.clone()), config, NOW).unwrap();
    for number in 0..3 {
        let id = log.create(name(number), settings.clone(), NOW).unwrap();
        for _ in 0..2 {
            log.save(vec![(id, large.clone())], NOW).unwrap();
        }
    }
    let all = log.deliveries().map(|(id, _)| (id, large.clone()));
    let all: Vec<_> = all.collect();
    log.save(all, NOW).unwrap();
    let before = image(&log);
    log.close(NOW).unwrap();
    let (log, _) = DeliveryLog::open(Arc::new(storage), DeliveryConfig::default(), NOW).unwrap();
    assert!(image(&log) == before);
}

#[test]
fn old_records_go_once_a_snapshot_stands() {
    let storage = MemoryStorage::new();
    let mut log = open(&storage);
    for number in 0..10 {
        log.create(name(number), settings(number), NOW).unwrap();
    }
    for round in 0..2_000 {
        let one = id(1 + round % 10);
        log.save(vec![(one, progress(round % 500))], NOW).unwrap();
    }
    let before = image(&log);
    log.close(NOW).unwrap();
    let (raw, recovery) = flumen_log::Log::open(
        Arc::new(storage.clone()),
        flumen_log::LogKey::DELIVERIES,
        flumen_log::LogConfig::default(),
        NOW,
        &mut Ignore,
    )
    .unwrap();
    assert!(recovery.shards[0].trim_horizon > SequenceNumber::new(1_000));
    raw.close(NOW).unwrap();
    assert_eq!(image(&open(&storage)), before);
}

#[test]
fn what_did_not_fit_is_not_there_and_can_be_said_again() {
    let storage = MemoryStorage::new();
    let mut log = open(&storage);
    log.create(name(1), settings(1), NOW).unwrap();
    let before = image(&log);
    storage.set_total_bytes(0);
    log.housekeeper().step(NOW).unwrap();
    let refused = loop {
        // Until the segment that is there is full.
        let large = DeliveryProgress {
            bytes: Bytes::from(vec![1; 1 << 20]),
            held: Vec::new(),
        };
        match log.save(vec![(id(1), large)], NOW) {
            Ok(()) => {}
            Err(error) => break error,
        }
    };
    assert!(refused.is_refusal(), "{refused:?}");
    let full = matches!(
        refused,
        DeliveryLogError::Write(WriteError::Full { .. } | WriteError::NoSegment { .. })
    );
    assert!(full, "{refused:?}");
    assert_eq!(image(&log).0, before.0);
    storage.set_total_bytes(1 << 40);
    log.housekeeper().step(NOW).unwrap();
    log.save(vec![(id(1), progress(77))], NOW).unwrap();
    let before = image(&log);
    drop(log);
    assert_eq!(image(&open(&storage.crash_keeping(Grain::Page, 0))), before);
}

struct Ignore;

impl flumen_log::Replay for Ignore {
    fn state(&mut self, _: ShardId, _: Bytes) {}
    fn batch(&mut self, _: ShardId, _: &flumen_log::BatchMark, _: bool) {}
}
