//! The catalog over storage that can lose what was not synced.

mod crash;
mod damage;
mod faults;

use std::time::Duration;

use flumen_log::{MemoryStorage, Stay, Voucher};
use flumen_record::{Durability, HashKey, ShardEpoch};

use super::*;

const NOW: Timestamp = Timestamp::from_micros(1_000_000);

fn config() -> StreamConfig {
    StreamConfig {
        producer_id_block: 3,
        catalog_snapshot_records: 8,
        ..StreamConfig::default()
    }
}

fn open(storage: &MemoryStorage) -> Catalog {
    Catalog::open(Arc::new(storage.clone()), config(), NOW)
        .unwrap()
        .0
}

fn name(text: &str) -> StreamName {
    text.parse().unwrap()
}

fn new(text: &str, shards: u32) -> NewStream {
    NewStream {
        name: name(text),
        shards,
        settings: StreamSettings::default(),
    }
}

#[test]
fn changes_are_there_after_a_power_cut() {
    let storage = MemoryStorage::new();
    let mut catalog = open(&storage);
    let created = catalog.create(new("a", 3), NOW).unwrap();
    catalog.create(new("b", 1), NOW).unwrap();
    catalog.delete(&name("b"), NOW).unwrap();
    let update = StreamUpdate {
        max_record_bytes: Some(2 << 20),
        ..StreamUpdate::default()
    };
    let updated = catalog.update(&name("a"), &update, &[], NOW).unwrap();
    assert_eq!(updated.settings.max_record_bytes, 2 << 20);
    assert!(updated.version > created.version);
    let records = catalog.last_record();
    drop(catalog);
    let storage = storage.crash_keeping(flumen_log::Grain::Page, 0);
    let catalog = open(&storage);
    assert_eq!(catalog.streams().collect::<Vec<_>>(), [&updated]);
    assert_eq!(catalog.last_record(), records);
    catalog.check_named(records).unwrap();
    assert!(matches!(
        catalog.check_named(records + 1),
        Err(CatalogError::Behind { .. })
    ));
}

#[test]
fn numbers_are_never_used_again() {
    let mut storage = MemoryStorage::new();
    let mut seen_streams = Vec::new();
    let mut seen_producers = Vec::new();
    for _ in 0..12 {
        let mut catalog = open(&storage);
        seen_streams.push(catalog.create(new("a", 1), NOW).unwrap().id);
        for _ in 0..2 {
            seen_producers.push(catalog.issue_producer(NOW).unwrap());
            assert_eq!(seen_producers.last(), Some(&catalog.producers_issued()));
        }
        catalog.delete(&name("a"), NOW).unwrap();
        drop(catalog);
        storage = storage.crash_keeping(flumen_log::Grain::Page, 0);
    }
    assert!(seen_streams.is_sorted_by(|a, b| a < b), "{seen_streams:?}");
    assert!(
        seen_producers.is_sorted_by(|a, b| a < b),
        "{seen_producers:?}"
    );
}

/// A copy of a data directory, or a backup that was restored, goes on where the original was then. A
/// number that both gave would make one producer's batches duplicates of another's: acknowledged, and
/// not stored.
#[test]
fn a_copy_gives_no_producer_id_that_the_original_gave() {
    let storage = MemoryStorage::new();
    let mut original = open(&storage);
    original.issue_producer(NOW).unwrap();
    let backup = storage.duplicate();
    let mut given = Vec::new();
    for _ in 0..3_000 {
        given.push(original.issue_producer(NOW).unwrap());
    }
    let later = NOW.saturating_add(Duration::from_secs(1));
    let config = StreamConfig::default();
    let (mut copy, _) = Catalog::open(Arc::new(backup), config, later).unwrap();
    let (above, up_to) = copy.producers_never_issued();
    // Those of the original that the copy does not know of are known to be none of its own.
    let unknown = given.iter().filter(|id| **id > above && **id <= up_to);
    assert!(unknown.count() > 1_000);
    for _ in 0..3_000 {
        let id = copy.issue_producer(later).unwrap();
        assert!(!given.contains(&id) && id > up_to);
    }
}

#[test]
fn a_snapshot_carries_everything_over() {
    let storage = MemoryStorage::new();
    let mut catalog = open(&storage);
    for number in 0..50 {
        catalog.create(new(&format!("s{number}"), 2), NOW).unwrap();
    }
    let before: Vec<_> = catalog.streams().cloned().collect();
    catalog.close(NOW).unwrap();
    let catalog = open(&storage);
    assert_eq!(catalog.streams().cloned().collect::<Vec<_>>(), before);
}

#[test]
fn routes_find_the_open_shard_of_every_key() {
    let storage = MemoryStorage::new();
    let stream = open(&storage).create(new("a", 7), NOW).unwrap();
    for shard in &stream.shards {
        for key in [shard.range.start, shard.range.end] {
            assert_eq!(stream.route(key).map(|found| found.id), Some(shard.id));
        }
        assert_eq!(stream.shard(shard.id.index()), Some(shard));
    }
    assert_eq!(stream.shard(ShardIndex::new(7)), None);
}

fn split(shard: u32) -> Reshard {
    Reshard::Split {
        shard: ShardIndex::new(shard),
        at: None,
    }
}

#[test]
fn a_reshard_is_one_record() {
    let storage = MemoryStorage::new();
    let mut catalog = open(&storage);
    catalog.create(new("a", 2), NOW).unwrap();
    let before = catalog.last_record();
    let merged = Reshard::Merge {
        shard: ShardIndex::new(3),
        adjacent: ShardIndex::new(1),
    };
    let later = NOW.saturating_add(Duration::from_secs(1));
    catalog
        .reshard(&name("a"), &[split(0)], &ends(&[(0, 7)]), NOW)
        .unwrap();
    let ends = ends(&[(1, 5), (3, 0), (2, 9)]);
    let steps = [merged, split(2)];
    let stream = catalog.reshard(&name("a"), &steps, &ends, later).unwrap();
    assert_eq!(catalog.last_record(), before + 2);
    assert_eq!(stream.version, before + 2);
    let shown: Vec<_> = stream
        .shards
        .iter()
        .map(|shard| {
            let parents = shard.parents.iter().map(|parent| parent.value());
            (shard.state, parents.collect::<Vec<_>>())
        })
        .collect();
    let closed = |end, at| ShardState::Closed {
        end: SequenceNumber::new(end),
        at,
    };
    assert_eq!(
        shown,
        [
            (closed(7, NOW), vec![]),
            (closed(5, later), vec![]),
            (closed(9, later), vec![0]),
            (closed(0, later), vec![0]),
            (ShardState::Open, vec![3, 1]),
            (ShardState::Open, vec![2]),
            (ShardState::Open, vec![2]),
        ]
    );
    for shard in stream.open_shards() {
        for key in [shard.range.start, shard.range.end] {
            assert_eq!(stream.route(key).map(|found| found.id), Some(shard.id));
        }
        assert_eq!(shard.stays.first().from(), SequenceNumber::ZERO);
    }
    drop(catalog);
    let catalog = open(&storage.crash_keeping(flumen_log::Grain::Page, 0));
    assert_eq!(catalog.stream(&name("a")), Some(stream));
}

#[test]
fn what_cannot_be_resharded_changes_nothing() {
    let storage = MemoryStorage::new();
    let mut catalog = open(&storage);
    let before = catalog.create(new("a", 2), NOW).unwrap();
    let missing = catalog.reshard(&name("b"), &[split(0)], &[], NOW);
    assert!(matches!(missing, Err(CatalogError::NotFound { .. })));
    let refused = catalog.reshard(&name("a"), &[split(2)], &[], NOW);
    assert!(matches!(refused, Err(CatalogError::Reshard { .. })));
    assert_eq!(catalog.stream(&name("a")), Some(before));
}

/// Numbers of shards are never used again, also when those before have left.
#[test]
fn expired_shards_leave_and_open_ones_stay() {
    let storage = MemoryStorage::new();
    let mut catalog = open(&storage);
    catalog.create(new("a", 1), NOW).unwrap();
    catalog
        .reshard(&name("a"), &[split(0)], &ends(&[(0, 7)]), NOW)
        .unwrap();
    let all: Vec<_> = (0..9).map(ShardIndex::new).collect();
    let stream = catalog.expire_shards(&name("a"), &all, NOW).unwrap();
    let left: Vec<_> = stream
        .shards
        .iter()
        .map(|shard| shard.id.index().value())
        .collect();
    assert_eq!(left, [1, 2]);
    assert_eq!(stream.shards[0].parents, [ShardIndex::new(0)]);
    assert_eq!(stream.next_index(), ShardIndex::new(3));
    // Nothing to do is no record.
    let records = catalog.last_record();
    catalog.expire_shards(&name("a"), &all, NOW).unwrap();
    assert_eq!(catalog.last_record(), records);
    assert_eq!(catalog.streams().collect::<Vec<_>>(), [&stream]);
}

#[test]
fn a_change_of_level_places_the_shards_anew() {
    let storage = MemoryStorage::new();
    let mut catalog = open(&storage);
    catalog.create(new("a", 2), NOW).unwrap();
    let update = StreamUpdate {
        durability: Some(Durability::Memory),
        ..StreamUpdate::default()
    };
    let moves = moves(&[(0, 9), (1, 0)]);
    let stream = catalog.update(&name("a"), &update, &moves, NOW).unwrap();
    let of = |index: usize| &stream.shards[index].stays;
    let from = of(0).iter().map(|stay| stay.from().value());
    assert_eq!(from.collect::<Vec<_>>(), [0, 9]);
    assert_eq!(of(0).last().log().durability, Durability::Memory);
    assert_eq!(of(1).len(), 1, "nothing was written where it was");
    let old = of(0).first().id(stream.shards[0].id);
    catalog.drop_stays(&[old], NOW).unwrap();
    let stream = catalog.stream(&name("a")).unwrap();
    assert_eq!(stream.shards[0].stays.len(), 1);
}

/// A stay for every change of level would go on for ever.
#[test]
fn a_shard_moves_so_often_while_its_records_are_kept() {
    let storage = MemoryStorage::new();
    let mut catalog = open(&storage);
    catalog.create(new("a", 1), NOW).unwrap();
    let level = |n: u64| match n % 2 {
        0 => Durability::Disk,
        _ => Durability::Memory,
    };
    for n in 1..1_000 {
        let moved = catalog.update(&name("a"), &to(level(n)), &moves(&[(0, n)]), NOW);
        assert_eq!(moved.unwrap().shards[0].stays.len() as u64, n + 1);
    }
    let refused = catalog.update(&name("a"), &to(level(1_000)), &moves(&[(0, 1_000)]), NOW);
    assert!(matches!(
        refused,
        Err(CatalogError::OutOfBounds { max: 1_000, .. })
    ));
    let stays = &catalog.stream(&name("a")).unwrap().shards[0].stays;
    let shard = catalog.stream(&name("a")).unwrap().shards[0].id;
    let old = stays.at(SequenceNumber::new(400)).id(shard);
    catalog.drop_stays(&[old], NOW).unwrap();
    let moved = catalog.update(&name("a"), &to(level(1_000)), &moves(&[(0, 1_000)]), NOW);
    assert_eq!(moved.unwrap().shards[0].stays.len(), 600);
}

#[test]
fn what_is_out_of_bounds_is_refused() {
    let storage = MemoryStorage::new();
    let mut catalog = open(&storage);
    catalog.create(new("a", 1), NOW).unwrap();
    assert!(matches!(
        catalog.create(new("a", 1), NOW),
        Err(CatalogError::AlreadyExists { .. })
    ));
    assert!(matches!(
        catalog.delete(&name("b"), NOW),
        Err(CatalogError::NotFound { .. })
    ));
    let mut check = |change: fn(&mut NewStream), setting: &str| {
        let mut stream = new("b", 1);
        change(&mut stream);
        match catalog.create(stream, NOW) {
            Err(CatalogError::OutOfBounds { setting: found, .. }) => assert_eq!(found, setting),
            other => panic!("{setting}: {other:?}"),
        }
    };
    check(|new| new.shards = 0, "shards");
    check(|new| new.shards = 10_001, "shards");
    check(
        |new| new.settings.retention = Duration::from_secs(3_599),
        "retention in hours",
    );
    check(
        |new| new.settings.retention = Duration::from_secs(8_760 * 3_600 + 1),
        "retention in hours",
    );
    check(
        |new| new.settings.max_record_bytes = 1_023,
        "max-record-size",
    );
    check(
        |new| new.settings.max_record_bytes = (10 << 20) + 1,
        "max-record-size",
    );
    check(
        |new| new.settings.retention_bytes = Some(0),
        "retention-bytes",
    );
}

fn moves(moves: &[(u32, u64)]) -> Vec<Move> {
    let to = |(index, from): &(u32, u64)| Move {
        shard: ShardIndex::new(*index),
        from: SequenceNumber::new(*from),
        epoch: ShardEpoch::new(2),
    };
    moves.iter().map(to).collect()
}

fn ends(ends: &[(u32, u64)]) -> Vec<(ShardIndex, SequenceNumber)> {
    let numbers = |(index, end): &(u32, u64)| (ShardIndex::new(*index), SequenceNumber::new(*end));
    ends.iter().map(numbers).collect()
}

fn to(durability: Durability) -> StreamUpdate {
    StreamUpdate {
        durability: Some(durability),
        ..StreamUpdate::default()
    }
}

/// Where each shard lies: level and first number.
fn places(stream: &StreamInfo) -> Vec<Vec<(Durability, u64)>> {
    let place = |stay: &Stay| (stay.log().durability, stay.from().value());
    let shards = stream.shards.iter();
    shards
        .map(|shard| shard.stays.iter().map(place).collect())
        .collect()
}

#[test]
fn shards_move_there_and_back() {
    use Durability::{Disk, Memory};
    let storage = MemoryStorage::new();
    let mut catalog = open(&storage);
    catalog.create(new("a", 3), NOW).unwrap();
    let steps = [
        (
            Memory,
            [(0, 5), (1, 0), (2, 7)],
            [
                vec![(Disk, 0), (Memory, 5)],
                vec![(Memory, 0)],
                vec![(Disk, 0), (Memory, 7)],
            ],
        ),
        // Shard 0 wrote nothing there: it is where it was. Shard 1 did, and shard 2 comes back.
        (
            Disk,
            [(2, 9), (1, 3), (0, 5)],
            [
                vec![(Disk, 0)],
                vec![(Memory, 0), (Disk, 3)],
                vec![(Disk, 0), (Memory, 7), (Disk, 9)],
            ],
        ),
    ];
    for (durability, from, expected) in steps {
        let stream = catalog
            .update(&name("a"), &to(durability), &moves(&from), NOW)
            .unwrap();
        assert_eq!(places(&stream), expected);
    }
    let shard = |index: u32| ShardId::new(StreamId::new(1), ShardIndex::new(index));
    let stay = |shard: ShardId, epoch: u32| StayId {
        shard,
        epoch: ShardEpoch::new(epoch),
    };
    let records = catalog.last_record();
    let nothing_there = [stay(shard(0), 0), stay(shard(1), 1), stay(shard(9), 5)];
    catalog.drop_stays(&nothing_there, NOW).unwrap();
    let gone = ShardId::new(StreamId::new(8), ShardIndex::new(0));
    catalog.drop_stays(&[stay(gone, 5)], NOW).unwrap();
    assert_eq!(
        catalog.last_record(),
        records,
        "what changes nothing is not written"
    );
    let all = [stay(shard(1), 2), stay(shard(2), 2)];
    catalog.drop_stays(&all, NOW).unwrap();
    assert_eq!(catalog.last_record(), records + 1);
    let stream = catalog.stream(&name("a")).unwrap();
    assert_eq!(stream.version, records + 1);
    assert_eq!(places(&stream), [[(Disk, 0)], [(Disk, 3)], [(Disk, 9)]]);
    drop(catalog);
    let catalog = open(&storage.kill());
    assert_eq!(catalog.stream(&name("a")), Some(stream));
}

#[test]
fn a_longer_retention_of_the_same_class_moves_nothing() {
    let storage = MemoryStorage::new();
    let mut catalog = open(&storage);
    catalog.create(new("a", 1), NOW).unwrap();
    let hours = |hours| StreamUpdate {
        retention: Some(Duration::from_hours(hours)),
        ..StreamUpdate::default()
    };
    let stream = catalog.update(&name("a"), &hours(25), &[], NOW).unwrap();
    assert_eq!(stream.shards[0].stays.len(), 1);
    let from = moves(&[(0, 44)]);
    let stream = catalog.update(&name("a"), &hours(24), &from, NOW).unwrap();
    let stays = stream.shards[0].stays.iter();
    let classes = stays.map(|stay| stay.log().class_hours);
    assert_eq!(classes.collect::<Vec<_>>(), [168, 24]);
}

#[test]
#[should_panic(expected = "BUG: a shard moves and nobody knows from where")]
fn a_move_names_every_open_shard() {
    let storage = MemoryStorage::new();
    let mut catalog = open(&storage);
    catalog.create(new("a", 2), NOW).unwrap();
    let _ = catalog.update(&name("a"), &to(Durability::Memory), &moves(&[(1, 1)]), NOW);
}

#[test]
fn shards_take_turns_on_the_lanes() {
    let storage = MemoryStorage::new();
    let config = StreamConfig {
        lanes_per_class: 3,
        ..config()
    };
    let (mut catalog, _) = Catalog::open(Arc::new(storage), config, NOW).unwrap();
    for lanes in [[1, 2, 0, 1], [2, 0, 1, 2]] {
        let stream = catalog
            .create(new(&format!("s{}", lanes[0]), 4), NOW)
            .unwrap();
        let found = stream
            .shards
            .iter()
            .map(|shard| shard.stays.first().log().lane);
        assert_eq!(found.collect::<Vec<_>>(), lanes);
    }
}

#[test]
fn a_stream_of_ten_thousand_shards_is_one_record() {
    let storage = MemoryStorage::new();
    let mut catalog = open(&storage);
    let stream = catalog.create(new("a", 10_000), NOW).unwrap();
    assert_eq!(catalog.last_record(), 1);
    for index in [0, 1, 4_999, 9_999] {
        let shard = stream.shard(ShardIndex::new(index)).unwrap();
        assert_eq!(stream.route(shard.range.start), Some(shard));
        assert_eq!(stream.route(shard.range.end), Some(shard));
    }
    assert_eq!(
        stream.route(HashKey::MAX).unwrap().id.index(),
        ShardIndex::new(9_999)
    );
    let from: Vec<_> = (0..10_000).map(|index| (index, 1)).collect();
    let moved = catalog
        .update(&name("a"), &to(Durability::Memory), &moves(&from), NOW)
        .unwrap();
    let old = |shard: &ShardInfo| shard.stays.first().id(shard.id);
    let dropped: Vec<_> = moved.shards.iter().map(old).collect();
    catalog.drop_stays(&dropped, NOW).unwrap();
    assert_eq!(catalog.last_record(), 3);
    let after = catalog.stream(&name("a")).unwrap();
    assert!(after.shards.iter().all(|shard| shard.stays.len() == 1));
    // A snapshot of it is larger than a segment.
    for number in 0..5 {
        catalog
            .create(new(&format!("b{number}"), 10_000), NOW)
            .unwrap();
    }
    let all: Vec<_> = catalog.streams().cloned().collect();
    assert!(catalog.last_record() > 8, "a snapshot was due");
    catalog.close(NOW).unwrap();
    let catalog = open(&storage.kill());
    assert_eq!(catalog.streams().cloned().collect::<Vec<_>>(), all);
}

#[test]
fn no_more_streams_than_the_node_may_have() {
    let storage = MemoryStorage::new();
    let config = StreamConfig {
        streams_max: 2,
        ..config()
    };
    let (mut catalog, _) = Catalog::open(Arc::new(storage), config, NOW).unwrap();
    catalog.create(new("a", 1), NOW).unwrap();
    catalog.create(new("b", 1), NOW).unwrap();
    let refused = catalog.create(new("c", 1), NOW);
    assert!(matches!(
        refused,
        Err(CatalogError::OutOfBounds {
            setting: "streams",
            ..
        })
    ));
    catalog.delete(&name("a"), NOW).unwrap();
    catalog.create(new("c", 1), NOW).unwrap();
}

#[test]
fn updates_are_checked_as_creations_are() {
    let storage = MemoryStorage::new();
    let mut catalog = open(&storage);
    let before = catalog.create(new("a", 1), NOW).unwrap();
    let update = StreamUpdate {
        max_record_bytes: Some(5),
        ..StreamUpdate::default()
    };
    let refused = catalog.update(&name("a"), &update, &[], NOW);
    assert!(matches!(refused, Err(CatalogError::OutOfBounds { .. })));
    let missing = catalog.update(&name("b"), &StreamUpdate::default(), &[], NOW);
    assert!(matches!(missing, Err(CatalogError::NotFound { .. })));
    assert_eq!(
        (catalog.stream(&name("a")), catalog.last_record()),
        (Some(before), 1)
    );
}

#[test]
fn streams_are_found_by_number() {
    let storage = MemoryStorage::new();
    let mut catalog = open(&storage);
    let stream = catalog.create(new("a", 1), NOW).unwrap();
    assert_eq!(catalog.stream_by_id(stream.id), Some(Arc::clone(&stream)));
    catalog.delete(&name("a"), NOW).unwrap();
    assert_eq!(catalog.stream_by_id(stream.id), None);
    let again = catalog.create(new("a", 1), NOW).unwrap();
    assert_ne!(again.id, stream.id);
}

fn voucher(epoch: u32, round: u64) -> Voucher {
    Voucher { epoch, round }
}

/// What the catalog says of other logs: one record for all that have more to show, none when nothing is
/// new, and it outlives snapshots.
#[test]
fn how_far_logs_have_got_is_remembered() {
    let storage = MemoryStorage::new();
    let mut catalog = open(&storage);
    let (disk, groups) = (LogKey::DELIVERIES, LogKey::GROUPS);
    let reached = [(disk, voucher(1, 5)), (groups, voucher(2, 0))];
    catalog.vouch(reached, NOW).unwrap();
    assert_eq!(catalog.last_record(), 1);
    // Known, or less: nothing is written.
    let less = [(disk, voucher(1, 5)), (groups, voucher(1, 9))];
    catalog.vouch(less, NOW).unwrap();
    assert_eq!((catalog.last_record(), catalog.last_change()), (1, 0));
    for number in 0..50 {
        let name = format!("s{number}");
        catalog.create(new(&name, 1), NOW).unwrap();
        catalog.delete(&name.parse().unwrap(), NOW).unwrap();
    }
    catalog.accept_loss(groups, NOW).unwrap();
    drop(catalog);
    let mut catalog = open(&storage.kill());
    assert_eq!(catalog.vouched(disk), Some(Vouched::Reached(voucher(1, 5))));
    assert_eq!(catalog.vouched(groups), Some(Vouched::LossAccepted));
    assert_eq!(catalog.vouched(LogKey::CATALOG), None);
    // A log whose loss was accepted is less than it was, and that is what is remembered then.
    catalog.vouch([(groups, voucher(1, 1))], NOW).unwrap();
    let there = |found| BTreeMap::from([(groups, Some(voucher(1, 1))), (disk, found)]);
    assert_eq!(catalog.shortfalls(&there(Some(voucher(3, 7)))), []);
    for found in [None, Some(voucher(1, 4)), Some(voucher(0, 9))] {
        let short = catalog.shortfalls(&there(found));
        assert_eq!(
            (short.len(), short[0].log, short[0].found),
            (1, disk, found)
        );
        assert!(short[0].to_string().contains("doctor repair"));
    }
}
