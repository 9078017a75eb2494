//! The groups' log: what is written is what was decided, whatever happens in between.

use std::sync::Arc;

use flumen_log::{Grain, MemoryStorage};
use proptest::prelude::*;

use super::change::encode_group;
use super::*;

const NOW: Timestamp = Timestamp::from_micros(1_000_000);

fn config() -> GroupConfig {
    GroupConfig {
        snapshot_bytes_min: 2_000,
        snapshot_growth: 1,
        snapshot_piece_bytes: 100,
        ..GroupConfig::default()
    }
}

fn open(storage: &MemoryStorage) -> (GroupLog, Coordinator) {
    let storage = Arc::new(storage.clone());
    let (log, coordinator, _) = GroupLog::open(storage, config(), NOW, seconds(100)).unwrap();
    (log, coordinator.with_bounds(Arc::<Bounds>::default()))
}

/// All that is durable, byte by byte.
fn image(coordinator: &Coordinator) -> Vec<u8> {
    let mut out = Vec::new();
    let state = &coordinator.state;
    out.extend(state.last_group.value().to_le_bytes());
    out.extend(state.generation_floor.value().to_le_bytes());
    for (number, group) in &state.groups {
        encode_group(*number, group, &mut out);
    }
    out
}

fn shards(stream: StreamId, count: u32) -> Event {
    Event::ShardsChanged {
        stream,
        shards: (0..count).map(|index| super::open(index, &[])).collect(),
    }
}

/// Something that changes something, by dice.
fn event(dice: u64, session: u64) -> Event {
    let group: GroupName = format!("g{}", dice % 7).parse().unwrap();
    let stream = STREAM;
    match dice / 7 % 5 {
        0 => Event::Join(Join {
            session: SessionId::new(session),
            stream,
            group,
            member: format!("m{}", dice / 64 % 3).parse().unwrap(),
            instance: InstanceId::new(dice / 64 % 2),
            session_timeout: None,
            start: InitialPosition::Latest,
            begins: None,
        }),
        1 => Event::Leave {
            session: SessionId::new(session.saturating_sub(dice / 64 % 6)),
        },
        2 if (dice / 64).is_multiple_of(4) => Event::Request {
            id: RequestId(0),
            stream,
            group,
            request: Request::Delete { force: true },
        },
        _ => Event::Request {
            id: RequestId(0),
            stream,
            group,
            request: Request::Reset(Reset {
                shards: vec![(shard((dice / 64 % 4) as u32), at(dice / 3 % 1000))],
                force: true,
                dry_run: false,
            }),
        },
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn opened_again_it_is_what_it_was(
        dice in prop::collection::vec(any::<u64>(), 1..120),
        cut in any::<u64>(),
    ) {
        let mut storage = MemoryStorage::new();
        let (mut log, mut coordinator) = open(&storage);
        let mut now = seconds(100);
        let step = coordinator.step(now, NOW, [shards(STREAM, 4)]);
        log.commit(&step, &coordinator, NOW).unwrap();
        for (dice, session) in dice.iter().zip(1..) {
            now += Duration::from_millis(dice % 3000);
            let step = coordinator.step(now, NOW, [event(*dice, session)]);
            log.commit(&step, &coordinator, NOW).unwrap();
            if dice.is_multiple_of(23) {
                drop(log);
                storage = storage.crash_keeping(Grain::Sector, cut);
                let before = image(&coordinator);
                (log, coordinator) = open(&storage);
                prop_assert_eq!(image(&coordinator), before);
                let step = coordinator.step(now, NOW, [shards(STREAM, 4)]);
                log.commit(&step, &coordinator, NOW).unwrap();
            }
        }
        log.close(NOW).unwrap();
        let (log, again) = open(&storage);
        prop_assert_eq!(image(&again), image(&coordinator));
        prop_assert!(log.records() > 0 || dice.len() < 20);
    }

    #[test]
    fn any_bytes_are_an_error_or_what_they_say(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let before = rest;
            let Ok(change) = GroupChange::decode(&mut rest) else { break };
            let mut encoded = Vec::new();
            change.encode(&mut encoded);
            let taken = before.len() - rest.len();
            prop_assert_eq!(&encoded[..], &before[..taken]);
        }
    }
}

/// One of each kind.
fn every_kind() -> Vec<GroupChange> {
    let mut node = Node::new(3);
    let mut changes = Vec::new();
    let a = node.join("a");
    changes.append(&mut node.last.changes);
    node.join("b");
    changes.append(&mut node.last.changes);
    node.checkpoint(0, Some(1), Checkpoint::after_part(number(1 << 40), 3))
        .unwrap();
    changes.append(&mut node.last.changes);
    node.wait_alive(DRAIN, &[a]);
    node.release(a, 0, 1);
    changes.append(&mut node.last.changes);
    node.shards(vec![super::open(1, &[])]);
    changes.append(&mut node.last.changes);
    node.step(vec![Event::Leave { session: a }]);
    changes.append(&mut node.last.changes);
    let state = node.coordinator.state.clone();
    let (number, mut group) = state.groups.into_iter().next().unwrap();
    group.check_at = None;
    group.ready.clear();
    changes.push(GroupChange::SnapshotBegin {
        last_group: number,
        generation_floor: generation(300),
    });
    changes.push(GroupChange::SnapshotGroup(Box::new(change::GroupImage {
        number,
        group,
    })));
    changes.push(GroupChange::SnapshotEnd { groups: 1 });
    changes.push(GroupChange::ShardExpired {
        group: number,
        shard: shard(9),
        unread: Some(300),
    });
    changes.push(GroupChange::Began {
        group: number,
        shard: shard(9),
        position: super::number(300),
    });
    changes.push(GroupChange::ExpiredUnread {
        group: number,
        shard: shard(9),
        to: super::number(300),
        records: 200,
    });
    changes.push(GroupChange::ShardsMissed {
        group: number,
        shards: 3,
    });
    node.request(Request::Delete { force: true }).unwrap();
    changes.append(&mut node.last.changes);
    changes
}

#[test]
fn changes_read_back_as_written_and_nothing_shorter_is_one() {
    let mut kinds = std::collections::BTreeSet::new();
    for change in every_kind() {
        let mut bytes = Vec::new();
        change.encode(&mut bytes);
        kinds.insert(bytes[0]);
        let mut rest = bytes.as_slice();
        let read = GroupChange::decode(&mut rest).unwrap();
        assert!(rest.is_empty());
        let mut again = Vec::new();
        read.encode(&mut again);
        assert_eq!(again, bytes);
        assert_eq!(format!("{read:?}"), format!("{change:?}"));
        for length in 0..bytes.len() {
            let cut = GroupChange::decode(&mut &bytes[..length]);
            assert!(cut.is_err(), "{change:?} cut at {length}");
        }
    }
    // 1 and 10 are those of version 1.
    assert_eq!(kinds, (2..=9).chain(11..=17).collect());
}

#[test]
fn a_checkpoint_is_small() {
    let mut bytes = Vec::new();
    GroupChange::Checkpointed {
        group: GroupNumber::new(10_000),
        shard: shard(3),
        checkpoint: at(1 << 40),
    }
    .encode(&mut bytes);
    assert!(bytes.len() <= 12, "{}", bytes.len());
}

#[test]
fn what_does_not_follow_is_refused() {
    let mut state = state::State::default();
    for (change, expected) in [
        (
            GroupChange::MemberLeft {
                group: GroupNumber::new(1),
                member: MemberNumber::new(1),
            },
            "it is about a group that does not exist",
        ),
        (
            GroupChange::SnapshotEnd { groups: 1 },
            "the snapshot it ends is not complete",
        ),
    ] {
        assert_eq!(state.apply(&change, NOW), Err(expected));
    }
}

#[test]
fn members_have_one_session_timeout_to_come_back_after_a_restart() {
    let storage = MemoryStorage::new();
    let (mut log, mut coordinator) = open(&storage);
    let mut wall = NOW;
    let mut commit =
        |log: &mut GroupLog, coordinator: &mut Coordinator, now, events: Vec<Event>| {
            let step = coordinator.step(now, wall, events);
            log.commit(&step, coordinator, wall).unwrap();
            // The wall clock is of no concern, however it jumps.
            wall = wall.saturating_sub(seconds(3600));
            step
        };
    let join = |session, member: &str, instance| {
        Event::Join(Join {
            session: SessionId::new(session),
            stream: STREAM,
            group: group(),
            member: member.parse().unwrap(),
            instance: InstanceId::new(instance),
            session_timeout: None,
            start: InitialPosition::TrimHorizon,
            begins: None,
        })
    };
    let events = vec![
        shards(STREAM, 3),
        join(1, "a", 1),
        join(2, "b", 1),
        join(3, "c", 1),
    ];
    commit(&mut log, &mut coordinator, seconds(100), events);
    let leases = |coordinator: &Coordinator| {
        let shards = coordinator.describe(STREAM, &group()).unwrap().shards;
        let holder = |shard: &ShardDescription| {
            let holder = shard.holder.as_ref().map_or("-", |holder| holder.as_str());
            format!("{holder}:{}", shard.generation)
        };
        shards.iter().map(holder).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(leases(&coordinator), "a:1 b:2 c:3");
    drop(log);
    let storage = storage.crash_keeping(Grain::Page, 0);
    let (mut log, mut coordinator) = open(&storage);
    assert_eq!(coordinator.streams().collect::<Vec<_>>(), [STREAM]);
    // The monotonic clock of another process, which knows nothing of the first one's.
    commit(
        &mut log,
        &mut coordinator,
        seconds(100),
        vec![shards(STREAM, 3)],
    );
    commit(
        &mut log,
        &mut coordinator,
        seconds(105),
        vec![join(1, "a", 1)],
    );
    commit(
        &mut log,
        &mut coordinator,
        seconds(106),
        vec![join(2, "b", 2)],
    );
    assert_eq!(leases(&coordinator), "a:1 b:4 c:3");
    commit(&mut log, &mut coordinator, seconds(109), Vec::new());
    assert_eq!(leases(&coordinator), "a:1 b:4 c:3");
    commit(&mut log, &mut coordinator, seconds(110), Vec::new());
    assert!(
        leases(&coordinator).ends_with(":5"),
        "{}",
        leases(&coordinator)
    );
}

#[test]
fn old_records_go_once_a_snapshot_stands() {
    let storage = MemoryStorage::new();
    let (mut log, mut coordinator) = open(&storage);
    let step = coordinator.step(seconds(1), NOW, [shards(STREAM, 4)]);
    log.commit(&step, &coordinator, NOW).unwrap();
    for round in 0..2_000_u64 {
        let group: GroupName = format!("g{}", round % 10).parse().unwrap();
        let step = coordinator.step(
            seconds(1),
            NOW,
            [Event::Request {
                id: RequestId(0),
                stream: STREAM,
                group,
                request: Request::Checkpoint {
                    session: None,
                    items: vec![CheckpointItem {
                        shard: shard((round % 4) as u32),
                        generation: None,
                        checkpoint: at(round + 1),
                        skipped: Vec::new(),
                    }],
                },
            }],
        );
        log.commit(&step, &coordinator, NOW).unwrap();
    }
    assert_eq!(log.records() / 2_000, 1);
    let before = image(&coordinator);
    log.close(NOW).unwrap();
    let storage: Arc<dyn flumen_log::Storage> = Arc::new(storage);
    let (log, _) = flumen_log::Log::open(
        Arc::clone(&storage),
        flumen_log::LogKey::GROUPS,
        flumen_log::LogConfig::default(),
        NOW,
        &mut Ignore,
    )
    .unwrap();
    let bounds = log.reader().bounds(flumen_record::ShardId::from_value(0));
    assert!(bounds.unwrap().trim_horizon > number(1_000), "{bounds:?}");
    log.close(NOW).unwrap();
    let (_, again, _) = GroupLog::open(storage, config(), NOW, seconds(1)).unwrap();
    assert_eq!(image(&again), before);
}

#[test]
fn a_step_that_did_not_fit_is_committed_again() {
    let storage = MemoryStorage::new();
    let (mut log, mut coordinator) = open(&storage);
    storage.set_total_bytes(0);
    let step = coordinator.step(seconds(1), NOW, [shards(STREAM, 4), event(0, 1)]);
    assert!(!step.changes.is_empty());
    let refused = log.commit(&step, &coordinator, NOW);
    assert!(
        matches!(refused, Err(GroupLogError::Write(_))),
        "{refused:?}"
    );
    storage.set_total_bytes(1 << 40);
    log.housekeeper().step(NOW).unwrap();
    log.commit(&step, &coordinator, NOW).unwrap();
    drop(log);
    let (_, again) = open(&storage.crash_keeping(Grain::Page, 0));
    assert_eq!(image(&again), image(&coordinator));
}

fn record_of_version_1() -> Vec<u8> {
    let name = |out: &mut Vec<u8>, name: &str| {
        out.push(u8::try_from(name.len()).unwrap());
        out.extend(name.as_bytes());
    };
    let mut record = vec![1];
    // Group 1 of stream 7 is created, from the trim horizon, when there are shards 0, 1 and 2.
    record.extend([1, 1, 7]);
    name(&mut record, "billing");
    record.extend([0, 3]);
    // Its checkpoints of shards 0 and 3; shard 2 has expired.
    record.extend([7, 1, 0, 5, 0, 7, 1, 3, 6, 0]);
    record.extend([8, 1, 2]);
    // Group 2, in a snapshot: from a time, two shards when it was created, a checkpoint of shard 0.
    record.extend([10, 2, 7]);
    name(&mut record, "b");
    record.extend(1_u64.to_le_bytes());
    record.push(1);
    record.extend(77_u64.to_le_bytes());
    record.extend([3, 0, 1, 0, 0, 1, 0, 0, 0]);
    record.extend(0_u64.to_le_bytes());
    record.push(1);
    record.extend([9, 0]);
    record.extend(2_u64.to_le_bytes());
    record
}

/// A log as it was written before it was written down where groups begin: what expired until then, or
/// will have before an old group comes to it, is not known; what is known from its shards still is.
#[test]
fn a_log_of_version_1_says_what_it_does_not_know() {
    let storage = MemoryStorage::new();
    write_record(&storage, &record_of_version_1());
    let (mut log, mut coordinator) = open(&storage);
    let facts = [0, 1, 3, 4].map(|index| super::open(index, &[]));
    let shards = Event::ShardsChanged {
        stream: STREAM,
        shards: facts.to_vec(),
    };
    let step = coordinator.step(seconds(100), NOW, [shards]);
    log.commit(&step, &coordinator, NOW).unwrap();
    let from = |value| ReadFrom::At(number(value));
    for (name, expected) in [
        (
            "billing",
            [
                (from(5), None),
                (ReadFrom::TrimHorizon, None),
                (from(6), None),
                (from(0), Some(0)),
            ],
        ),
        (
            "b",
            [
                (from(9), None),
                (ReadFrom::AtTimestamp(Timestamp::from_micros(77)), None),
                (from(0), Some(0)),
                (from(0), Some(0)),
            ],
        ),
    ] {
        let described = coordinator
            .describe(STREAM, &name.parse().unwrap())
            .unwrap();
        let shards = described.shards.iter();
        let found = shards.map(|shard| (shard.position.from, shard.position.expired.exactly()));
        assert_eq!(found.collect::<Vec<_>>(), expected, "{name}");
        assert_eq!(described.expired.exactly(), None, "{name}");
    }
    // A time that was looked up is written down, once.
    let found = Event::Began {
        group: GroupNumber::new(2),
        begins: vec![
            (shard(0), number(1)),
            (shard(1), number(8)),
            (shard(9), number(1)),
        ],
    };
    let step = coordinator.step(seconds(100), NOW, [found.clone(), found]);
    assert_eq!(step.changes.len(), 1);
    log.commit(&step, &coordinator, NOW).unwrap();
    let before = image(&coordinator);
    drop(log);
    let (_, coordinator) = open(&storage.kill());
    assert_eq!(image(&coordinator), before);
    let positions = coordinator
        .positions(STREAM, &"b".parse().unwrap())
        .unwrap();
    assert_eq!(positions.of(shard(1)).from, from(8));
}

/// Writes the first record of a groups' log.
fn write_record(storage: &MemoryStorage, data: &[u8]) {
    use flumen_record::{
        BatchBuilder, Compression, HashKey, ProducerId, ProducerSequence, Record, RecordLimits,
        ShardEpoch, ShardId,
    };

    let record = Record {
        partition_key: bytes::Bytes::from_static(b"groups"),
        explicit_hash_key: Some(HashKey::MIN),
        data: bytes::Bytes::copy_from_slice(data),
        client_timestamp: None,
        headers: Vec::new(),
    };
    let mut batch = BatchBuilder::new(RecordLimits::MAX);
    batch.push(&record, HashKey::MIN).unwrap();
    let (mut log, _) = flumen_log::Log::open(
        Arc::new(storage.clone()),
        flumen_log::LogKey::GROUPS,
        flumen_log::LogConfig::default(),
        NOW,
        &mut Ignore,
    )
    .unwrap();
    let frame = flumen_log::NewFrame {
        shard: ShardId::from_value(0),
        epoch: ShardEpoch::new(1),
        base: number(0),
        arrival: NOW,
        batch: batch.finish(
            ProducerId::NONE,
            ProducerSequence::new(0),
            Compression::None,
        ),
    };
    log.commit(&[frame], 0, NOW).unwrap().unwrap();
    log.close(NOW).unwrap();
}

struct Ignore;

impl flumen_log::Replay for Ignore {
    fn state(&mut self, _: flumen_record::ShardId, _: bytes::Bytes) {}
    fn batch(&mut self, _: flumen_record::ShardId, _: &flumen_log::BatchMark, _: bool) {}
}
