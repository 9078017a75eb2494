//! Batches by size, count and linger; what a closed or pressed intake does.

use std::num::NonZeroU32;

use flumen_record::{
    Compression, Durability, HashKey, ProducerId, ProducerSequence, SequenceNumber, ShardIndex,
    StreamId, Timestamp,
};

use super::*;
use crate::{ShardDescription, StreamDescription};

fn intake(shards: u32, config: &ProducerConfig) -> Intake {
    let ranges = HashRange::even_slices(NonZeroU32::new(shards).unwrap());
    let shard = |(index, range)| ShardDescription {
        index: ShardIndex::new(index),
        range,
        open: true,
        parents: Vec::new(),
        trim_horizon: SequenceNumber::ZERO,
        durable_end: SequenceNumber::ZERO,
        last_arrival: Timestamp::ZERO,
        stored_bytes: 0,
    };
    let stream = StreamDescription {
        name: "s".parse().unwrap(),
        id: StreamId::new(1),
        incarnation: flumen_record::StreamIncarnation::new(1),
        durability: Durability::Disk,
        retention: Duration::from_secs(3600),
        retention_bytes: None,
        max_record_bytes: 1 << 20,
        auto_scale: None,
        created: Timestamp::ZERO,
        version: 1,
        shards: (0..).zip(ranges).map(shard).collect(),
    };
    Intake::new(
        Routing::new(&stream).unwrap(),
        RecordLimits::default(),
        config,
    )
}

fn record(shard_of_four: u8, bytes: usize) -> Record {
    Record {
        partition_key: "key".into(),
        explicit_hash_key: Some(HashKey::new(u128::from(shard_of_four) << 126)),
        data: vec![7; bytes].into(),
        client_timestamp: None,
        headers: Vec::new(),
    }
}

fn lingering(linger_ms: u64) -> ProducerConfig {
    ProducerConfig {
        linger: Duration::from_millis(linger_ms),
        batch_bytes: 1000,
        ..ProducerConfig::default()
    }
}

/// Takes everything that is ready: (place, records) per batch.
fn ready(intake: &mut Intake) -> Vec<(usize, u32)> {
    let now = Instant::now();
    let mut places = VecDeque::new();
    intake.drain_ready(now, &mut places);
    let mut taken = Vec::new();
    for place in places {
        while let Some(mut batch) = intake.take(place, now) {
            let (id, sequence) = (ProducerId::NONE, ProducerSequence::default());
            let sealed = batch.builder.finish(id, sequence, Compression::None);
            assert_eq!(sealed.header().count, batch.tag.records);
            intake.recycle(batch.builder);
            taken.push((place, batch.tag.records));
        }
    }
    taken
}

#[tokio::test(start_paused = true)]
async fn a_batch_leaves_when_it_is_full_or_has_lingered() {
    let mut intake = intake(1, &lingering(5));
    assert!(
        intake.push(&record(0, 100)).unwrap().2,
        "the driver has to time it"
    );
    assert!(!intake.push(&record(0, 100)).unwrap().2);
    assert_eq!(ready(&mut intake), []);
    let due = intake.next_due().unwrap();
    tokio::time::advance(Duration::from_millis(5)).await;
    assert_eq!(due, Instant::now());
    assert_eq!(ready(&mut intake), [(0, 2)]);
    assert!(intake.is_empty() && intake.next_due().is_none());

    for _ in 0..8 {
        intake.push(&record(0, 300)).unwrap();
    }
    assert_eq!(
        ready(&mut intake),
        [(0, 2), (0, 2), (0, 2)],
        "no batch beyond its size"
    );
    tokio::time::advance(Duration::from_millis(5)).await;
    assert_eq!(ready(&mut intake), [(0, 2)]);
    assert!(intake.push(&record(0, 5000)).unwrap().2);
    assert_eq!(
        ready(&mut intake),
        [(0, 1)],
        "a larger record goes alone and at once"
    );
}

#[tokio::test(start_paused = true)]
async fn without_linger_a_batch_is_ready_with_its_first_record() {
    let mut intake = intake(
        4,
        &ProducerConfig {
            batch_records: 3,
            ..lingering(0)
        },
    );
    for _ in 0..4 {
        intake.push(&record(2, 1)).unwrap();
    }
    intake.push(&record(0, 1)).unwrap();
    assert_eq!(ready(&mut intake), [(2, 3), (2, 1), (0, 1)]);
    intake.push(&record(2, 1)).unwrap();
    assert_eq!(ready(&mut intake), [(2, 1)], "announced again");
}

#[tokio::test(start_paused = true)]
async fn a_refused_record_leaves_nothing_behind() {
    let mut intake = intake(1, &lingering(5));
    let too_large = record(0, 2 << 20);
    assert!(matches!(intake.push(&too_large), Err(SendError::Record(_))));
    assert!(intake.is_empty() && intake.next_due().is_none());
    intake.push(&record(0, 1)).unwrap();
    assert!(matches!(intake.push(&too_large), Err(SendError::Record(_))));
    intake.close();
    assert!(matches!(intake.push(&record(0, 1)), Err(SendError::Closed)));
    assert_eq!(
        ready(&mut intake),
        [(0, 1)],
        "what was taken leaves without lingering"
    );
    assert_eq!(intake.stats.records_taken, 1);
}

#[tokio::test(start_paused = true)]
async fn memory_pressure_ends_lingering_only_when_open_batches_hold_the_memory() {
    let config = ProducerConfig {
        memory_bytes: 2000,
        ..lingering(60_000)
    };
    let mut intake = intake(4, &config);
    intake.push(&record(0, 100)).unwrap();
    assert!(!intake.pressed(500), "most of the memory is on its way");
    assert_eq!(ready(&mut intake), []);
    for shard in [1, 2, 3, 0] {
        intake.push(&record(shard, 200)).unwrap();
    }
    assert!(intake.pressed(500));
    assert_eq!(ready(&mut intake).len(), 4);
    assert!(!intake.pressed(500));
}

#[tokio::test(start_paused = true)]
async fn stale_due_times_do_not_pile_up_behind_a_long_linger() {
    let mut intake = intake(4, &lingering(3_600_000));
    intake.push(&record(0, 1)).unwrap();
    for _ in 0..10_000 {
        intake.push(&record(1, 600)).unwrap();
    }
    assert!(
        intake.due.len() <= DUE_SLACK + 2 * 4,
        "{}",
        intake.due.len()
    );
    assert_eq!(ready(&mut intake).len(), 9_999);
    intake.hurry();
    assert_eq!(ready(&mut intake), [(0, 1), (1, 1)]);
}
