//! `docs/errors.md` says what the code does.

use std::collections::BTreeSet;
use std::time::Duration;

use flumen_log::IoFault;
use flumen_record::{
    BatchError, Compression, HashKey, HashRange, ProducerId, ProducerSequence, RecordError,
    RecordFault, SequenceNumber, ShardIndex, StreamIncarnation, StreamName,
};

use flumen_stream::group::{Checkpoint, CheckpointError, Generation, GroupError};

use super::{Error, ErrorKind, REASONS};

/// At least one error per reason.
#[expect(clippy::too_many_lines, reason = "a list")]
fn examples() -> Vec<Error> {
    let stream: StreamName = "readings".parse().unwrap();
    let shard = ShardIndex::new(3);
    let (low, high) = (SequenceNumber::new(5), SequenceNumber::new(9));
    let (sequence, got) = (ProducerSequence::new(7), ProducerSequence::new(8));
    let producer = ProducerId::new(4);
    let range = HashRange::FULL;
    let second = Duration::from_secs(1);
    let mut examples = vec![
        Error::StreamNotFound {
            stream: stream.clone(),
        },
        Error::StreamReplaced {
            stream: stream.clone(),
            expected: StreamIncarnation::new(1),
            found: StreamIncarnation::new(2),
        },
        Error::StreamExists {
            stream: stream.clone(),
        },
        Error::ShardNotFound { stream, shard },
        Error::OutOfBounds {
            setting: "shards",
            value: 0,
            min: 1,
            max: 10_000,
        },
        Error::WrongShard {
            shard,
            span: range,
            range,
        },
        Error::NoShard { key: HashKey::MAX },
        Error::ShardClosed { shard, end: high },
        Error::OutOfSequence {
            expected: sequence,
            got,
        },
        Error::SequenceReused { sequence },
        Error::ProducerStateLost { producer },
        Error::UnknownProducer { producer },
        Error::Throttled {
            retry_after: second,
        },
        Error::QueueFull {
            retry_after: second,
        },
        Error::StorageFull {
            free_bytes: 1,
            floor_bytes: 2,
        },
        Error::Trimmed {
            asked: low,
            horizon: high,
        },
        Error::BeyondEnd {
            asked: high,
            end: low,
        },
        Error::DataLoss {
            shard,
            from: low,
            to: high,
            segment: "0001.log".to_owned(),
        },
        Error::NotAdjacent {
            shard,
            other: ShardIndex::new(9),
        },
        Error::SplitOutside {
            shard,
            key: HashKey::MAX,
            range: HashRange::FULL,
        },
        Error::AlreadyAppended { sequence },
        Error::OutcomeUnknown,
        Error::Poisoned,
        Error::StorageGone {
            path: "/data/LOCK".to_owned(),
        },
        Error::DiskStuck {
            waited: 12 * second,
        },
        Error::LogRefused {
            log: "log-disk-24h-0".to_owned(),
            reason: "log-disk-24h-0: it is missing or empty".to_owned(),
        },
        Error::SessionEnded,
        Error::Draining,
        Error::Catalog {
            reason: "its log does not open",
        },
        Error::NoThread {
            name: "lane-disk-24h-0".to_owned(),
        },
        Error::Io {
            segment: "0001.log".to_owned(),
            fault: IoFault::Missing,
        },
        Error::Io {
            segment: "0001.log".to_owned(),
            fault: IoFault::Disk,
        },
    ];
    examples.extend(group_errors());
    examples.extend(delivery_errors());
    examples.extend(record_errors().map(Error::from));
    examples.extend(batch_errors().map(Error::from));
    examples
}

fn group_errors() -> impl Iterator<Item = Error> {
    let stream: StreamName = "readings".parse().unwrap();
    let group: flumen_record::GroupName = "billing".parse().unwrap();
    let member: flumen_record::MemberName = "m".parse().unwrap();
    let shard = ShardIndex::new(3);
    let end = SequenceNumber::new(9);
    let asked = Checkpoint::after(SequenceNumber::new(12));
    let generation = Generation::new(4);
    let checkpoints = [
        CheckpointError::Stale {
            shard,
            asked: generation,
            current: generation,
        },
        CheckpointError::Held {
            shard,
            member: member.clone(),
        },
        CheckpointError::Behind {
            shard,
            asked,
            current: asked,
        },
        CheckpointError::Beyond { shard, asked, end },
        CheckpointError::NoShard { shard },
    ];
    let errors = [
        Error::GroupNotFound {
            stream: stream.clone(),
            group: group.clone(),
        },
        Error::StaleLease {
            shard,
            generation: 4,
        },
        Error::MemberReplaced,
        Error::MemberExpired,
        Error::MemberUnread,
        Error::ShardOpen { shard },
        Error::GroupsFailed,
        Error::GroupsUnanswered {
            waited: Duration::from_secs(1),
        },
    ];
    let of_groups = [
        GroupError::NotFound {
            group: group.clone(),
        },
        GroupError::NoShard { shard },
        GroupError::OutOfBounds {
            setting: "groups",
            value: 2,
            min: 1,
            max: 1,
        },
        GroupError::SessionInUse {
            member: member.clone(),
        },
        GroupError::Held { shard, member },
        GroupError::HasMembers { group, members: 2 },
        GroupError::Beyond { shard, asked, end },
    ];
    let of_groups = of_groups.map(|error| Error::group(&stream, error));
    let checkpoints = checkpoints.into_iter().map(Error::from);
    errors.into_iter().chain(of_groups).chain(checkpoints)
}

fn delivery_errors() -> [Error; 11] {
    let delivery: flumen_record::DeliveryName = "archive".parse().unwrap();
    let setting = "keys.prefix";
    [
        Error::DeliveryNotFound {
            delivery: delivery.clone(),
        },
        Error::DeliveryExists {
            delivery: delivery.clone(),
        },
        Error::DeliverySetting {
            setting,
            reason: "no such expression".to_owned(),
        },
        Error::DeliveryVersion {
            expected: 1,
            current: 2,
        },
        Error::DeliveryImmutable { setting: "source" },
        Error::DeliveryPaused {
            delivery: delivery.clone(),
        },
        Error::DeliveryEnding {
            delivery: delivery.clone(),
        },
        Error::DeliveryUnfinished {
            delivery: delivery.clone(),
            work: "flush",
            waited: Duration::from_secs(1),
            last_error: Some("the bucket does not exist".to_owned()),
        },
        Error::DeliveriesUnavailable,
        Error::DeliveriesFailed,
        Error::StreamInUse {
            stream: "readings".parse().unwrap(),
            delivery,
        },
    ]
}

fn record_errors() -> impl Iterator<Item = RecordError> {
    [
        RecordError::TooLarge { bytes: 2, limit: 1 },
        RecordError::BatchFull { bytes: 2, limit: 1 },
        RecordError::PartitionKeyLength { characters: 0 },
        RecordError::PartitionKeyUtf8 { valid_bytes: 0 },
        RecordError::HeaderNameUtf8 { header: 0 },
        RecordError::Headers {
            count: 65,
            bytes: 10,
        },
    ]
    .into_iter()
}

fn batch_errors() -> impl Iterator<Item = BatchError> {
    let span = HashRange {
        start: HashKey::MAX,
        end: HashKey::MIN,
    };
    let facts = [
        BatchError::Truncated {
            needed: 72,
            found: 3,
        },
        BatchError::Excess {
            needed: 72,
            excess: 3,
        },
        BatchError::Version { version: 9 },
        BatchError::Compression { code: 9 },
        BatchError::Reserved { flags: 1, key: 0 },
        BatchError::TooSmall { bytes: 1 },
        BatchError::TooLarge { bytes: 2, limit: 1 },
        BatchError::BodyTooLarge { bytes: 2, limit: 1 },
        BatchError::BodyLength {
            declared: 1,
            found: 2,
        },
        BatchError::Count {
            count: 0,
            body_bytes: 0,
        },
        BatchError::Span { span },
        BatchError::Checksum {
            expected: 1,
            found: 2,
        },
        BatchError::Decompression {
            compression: Compression::Lz4,
        },
        BatchError::Malformed {
            index: 0,
            fault: RecordFault::Varint,
        },
        BatchError::OutsideSpan {
            index: 0,
            hash_key: HashKey::MAX,
        },
    ];
    let records = record_errors().map(|error| BatchError::Record { index: 2, error });
    facts.into_iter().chain(records)
}

fn kind_name(kind: ErrorKind) -> String {
    format!("{kind:?}")
}

#[test]
fn every_reason_has_an_example_and_its_kind() {
    let found: BTreeSet<_> = examples()
        .iter()
        .map(|error| (error.reason(), kind_name(error.kind())))
        .collect();
    let known: BTreeSet<_> = REASONS
        .iter()
        .map(|(reason, kind)| (*reason, kind_name(*kind)))
        .collect();
    assert_eq!(found, known);
}

/// Each row of the document is a reason with its kind and all its metadata, and there are no others.
#[test]
fn the_document_lists_what_the_code_says() {
    let document = include_str!("../../../../docs/errors.md");
    let section = document.split("## From the broker").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows: Vec<Vec<&str>> = section
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.split('|').map(str::trim).collect())
        .collect();
    let documented: Vec<_> = rows
        .iter()
        .map(|row| (row[1].trim_matches('`'), row[2].to_owned()))
        .collect();
    let known: Vec<_> = REASONS
        .iter()
        .map(|(reason, kind)| (*reason, kind_name(*kind)))
        .collect();
    assert_eq!(documented, known);
    for error in examples() {
        let row = rows
            .iter()
            .find(|row| row[1].trim_matches('`') == error.reason())
            .unwrap();
        for (name, value) in error.metadata() {
            assert!(
                row[3].contains(&format!("`{name}`")),
                "{}: {name}",
                error.reason()
            );
            assert!(!value.is_empty(), "{}: {name}", error.reason());
        }
    }
}

/// Messages are one line for people, without a full stop, that ends with what to do where that helps.
#[test]
fn messages_are_single_lines() {
    for error in examples() {
        let message = error.to_string();
        assert!(
            !message.contains('\n') && !message.ends_with('.'),
            "{message}"
        );
        assert!(
            !message.starts_with(|c: char| c.is_ascii_uppercase()),
            "{message}"
        );
    }
}

#[test]
fn says_when_to_retry_where_waiting_helps() {
    let waits: BTreeSet<_> = examples()
        .iter()
        .filter(|error| error.retry_after().is_some())
        .map(Error::reason)
        .collect();
    let expected = [
        "DELIVERIES_FAILED",
        "DELIVERY_UNFINISHED",
        "DISK_STUCK",
        "DRAINING",
        "GROUPS_FAILED",
        "GROUPS_UNANSWERED",
        "LOG_REFUSED",
        "MEMBER_UNREAD",
        "QUEUE_FULL",
        "STORAGE_FULL",
        "THROTTLED",
    ];
    assert_eq!(waits, BTreeSet::from(expected));
}
