//! Consumers against a broker that misbehaves on demand.

use std::time::Duration;

use flumen_client::{
    Code, Compression, ConsumeError, Consumer, ConsumerConfig, GapPolicy, ReadUntil, StartPosition,
};
use flumen_record::{
    BatchBuilder, HashKey, HashRange, ProducerId, ProducerSequence, Record, RecordLimits,
    SequenceNumber, ShardIndex,
};

use crate::fake::{Fake, Server, Shard, stream};

fn record(data: String) -> Record {
    Record {
        partition_key: "key".into(),
        explicit_hash_key: None,
        data: data.into(),
        client_timestamp: None,
        headers: Vec::new(),
    }
}

/// Appends batches of `size` records whose data is "SHARD:NUMBER".
fn fill(fake: &Fake, shard: u32, batches: u32, size: u32) {
    fake.change(|world| {
        let shard_data = &mut world.shards[shard as usize];
        for i in 0..batches {
            let mut builder = BatchBuilder::new(RecordLimits::default());
            for n in 0..u64::from(size) {
                let record = record(format!("{shard}:{}", shard_data.next + n));
                builder.push_within(&record, HashRange::FULL).unwrap();
            }
            let compression =
                [Compression::None, Compression::Lz4, Compression::Zstd][i as usize % 3];
            shard_data.append(builder.finish(
                ProducerId::NONE,
                ProducerSequence::default(),
                compression,
            ));
        }
    });
}

async fn open(server: &Server, config: ConsumerConfig) -> Consumer {
    Consumer::open(&server.client(), &stream(), config)
        .await
        .unwrap()
}

fn to_end() -> ConsumerConfig {
    ConsumerConfig {
        until: ReadUntil::CurrentEnd,
        ..ConsumerConfig::default()
    }
}

/// Reads until `count` records came or the end: data per shard, each checked against its number.
async fn read(consumer: &mut Consumer, count: usize) -> Result<Vec<Vec<u64>>, ConsumeError> {
    let mut shards = vec![Vec::new(); 8];
    let mut got = 0;
    while got < count {
        let Some(batch) = consumer.next().await? else {
            break;
        };
        assert_eq!(batch.records().count(), batch.count() as usize);
        for record in batch.records() {
            let record = record.unwrap();
            let (shard, number) = (record.shard.value(), record.sequence_number.value());
            assert_eq!(record.data, format!("{shard}:{number}"));
            shards[shard as usize].push(number);
            got += 1;
        }
    }
    Ok(shards)
}

fn numbers(range: std::ops::Range<u64>) -> Vec<u64> {
    range.collect()
}

#[tokio::test]
async fn everything_comes_once_in_order_and_ends_at_the_end() {
    let fake = Fake::new(3);
    let server = Server::start(&fake);
    fill(&fake, 0, 40, 3);
    fill(&fake, 2, 7, 100);
    let mut consumer = open(&server, to_end()).await;
    fill(&fake, 0, 5, 5);
    let shards = read(&mut consumer, usize::MAX).await.unwrap();
    assert_eq!(
        (&shards[0], &shards[2]),
        (&numbers(0..120), &numbers(0..700))
    );
    assert!(shards[1].is_empty() && consumer.next().await.unwrap().is_none());
    let empty = &mut open(
        &server,
        ConsumerConfig {
            start: StartPosition::Latest,
            ..to_end()
        },
    )
    .await;
    assert!(empty.next().await.unwrap().is_none());
}

#[tokio::test]
async fn positions_resume_in_the_middle_of_a_batch() {
    let fake = Fake::new(2);
    let server = Server::start(&fake);
    fill(&fake, 0, 10, 10);
    fill(&fake, 1, 10, 10);
    for start in [0, 1, 9, 10, 55, 99] {
        let positions = vec![(
            ShardIndex::new(1),
            StartPosition::At(SequenceNumber::new(start)),
        )];
        let mut consumer = open(
            &server,
            ConsumerConfig {
                positions,
                ..to_end()
            },
        )
        .await;
        let shards = read(&mut consumer, usize::MAX).await.unwrap();
        assert_eq!(
            (&shards[0], &shards[1]),
            (&numbers(0..100), &numbers(start..100))
        );
    }
    let mut first = open(&server, to_end()).await;
    let before = read(&mut first, 73).await.unwrap();
    let config = ConsumerConfig {
        positions: first.positions(),
        ..to_end()
    };
    let after = read(&mut open(&server, config).await, usize::MAX)
        .await
        .unwrap();
    for shard in 0..2 {
        assert_eq!(
            [&before[shard][..], &after[shard][..]].concat(),
            numbers(0..100)
        );
    }
}

#[tokio::test]
async fn restarts_lose_and_repeat_nothing() {
    let fake = Fake::new(2);
    let mut server = Server::start(&fake);
    let address = server.address;
    fill(&fake, 0, 3, 7);
    let mut latest = open(
        &server,
        ConsumerConfig {
            start: StartPosition::Latest,
            ..Default::default()
        },
    )
    .await;
    let mut consumer = open(&server, ConsumerConfig::default()).await;
    let reader = tokio::spawn(async move {
        let shards = read(&mut consumer, 21 + 50 * 14).await.unwrap();
        (shards, consumer.stats().sessions_opened)
    });
    for round in 0..50 {
        fill(&fake, 0, 1, 7);
        fill(&fake, 1, 1, 7);
        if round % 12 == 5 {
            drop(server);
            tokio::time::sleep(Duration::from_millis(5)).await;
            server = Server::start_at(&fake, address);
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let (shards, sessions) = reader.await.unwrap();
    assert_eq!(
        (&shards[0], &shards[1]),
        (&numbers(0..371), &numbers(0..350))
    );
    assert!(sessions > 1);
    // It began at what was the end then, though its first session opens only now.
    let shards = read(&mut latest, 700).await.unwrap();
    assert_eq!(
        (&shards[0], &shards[1]),
        (&numbers(21..371), &numbers(0..350))
    );
}

#[tokio::test]
async fn a_cancelled_next_loses_nothing() {
    let fake = Fake::new(1);
    let server = Server::start(&fake);
    let mut consumer = open(&server, ConsumerConfig::default()).await;
    let mut seen = Vec::new();
    let writer = tokio::spawn({
        let fake = fake.clone();
        async move {
            for _ in 0..100 {
                fill(&fake, 0, 1, 2);
                tokio::time::sleep(Duration::from_micros(500)).await;
            }
        }
    });
    while seen.len() < 200 {
        let next = tokio::time::timeout(Duration::from_micros(300), consumer.next()).await;
        if let Ok(batch) = next {
            let batch = batch.unwrap().unwrap();
            seen.extend(batch.first().value()..batch.next().value());
        }
    }
    assert_eq!(seen, numbers(0..200));
    writer.await.unwrap();
}

#[tokio::test]
async fn trimmed_records_are_an_error_or_a_counted_gap() {
    let fake = Fake::new(1);
    let server = Server::start(&fake);
    fill(&fake, 0, 10, 10);
    fake.world().shards[0].trim_horizon = 40;
    let config = ConsumerConfig {
        start: StartPosition::At(SequenceNumber::new(15)),
        ..to_end()
    };
    let mut strict = open(&server, config.clone()).await;
    let expected = ConsumeError::Trimmed {
        shard: ShardIndex::new(0),
        asked: SequenceNumber::new(15),
        horizon: SequenceNumber::new(40),
    };
    assert_eq!(strict.next().await.unwrap_err(), expected);
    let mut lenient = open(
        &server,
        ConsumerConfig {
            gaps: GapPolicy::Skip,
            ..config
        },
    )
    .await;
    assert_eq!(
        read(&mut lenient, usize::MAX).await.unwrap()[0],
        numbers(40..100)
    );
    assert_eq!(lenient.stats().numbers_skipped, 25);
}

#[tokio::test]
async fn a_jump_at_the_end_does_not_keep_a_reader_waiting() {
    let fake = Fake::new(1);
    let server = Server::start(&fake);
    fill(&fake, 0, 2, 5);
    fake.world().shards[0].next = 1 << 32;
    let mut consumer = open(&server, to_end()).await;
    assert_eq!(
        read(&mut consumer, usize::MAX).await.unwrap()[0],
        numbers(0..10)
    );
}

#[tokio::test]
async fn damage_on_the_wire_is_asked_for_again_and_damage_at_rest_is_an_error() {
    let fake = Fake::new(1);
    let server = Server::start(&fake);
    fill(&fake, 0, 4, 10);
    fake.world().spoil = 2;
    let mut consumer = open(&server, to_end()).await;
    assert_eq!(
        read(&mut consumer, usize::MAX).await.unwrap()[0],
        numbers(0..40)
    );
    fake.world().spoil = u32::MAX;
    let error = read(&mut open(&server, to_end()).await, usize::MAX)
        .await
        .unwrap_err();
    assert!(matches!(error, ConsumeError::Damaged { .. }), "{error}");
}

#[tokio::test]
async fn children_follow_their_parents() {
    let fake = Fake::new(1);
    let server = Server::start(&fake);
    fill(&fake, 0, 3, 10);
    let mut consumer = open(&server, ConsumerConfig::default()).await;
    assert_eq!(read(&mut consumer, 10).await.unwrap()[0], numbers(0..10));
    fake.change(|world| {
        world.shards[0].open = false;
        world.shards[0].children = vec![1, 2];
        let middle = HashKey::new(1 << 127);
        let halves = [
            HashRange {
                start: HashKey::MIN,
                end: HashKey::new(middle.value() - 1),
            },
            HashRange {
                start: middle,
                end: HashKey::MAX,
            },
        ];
        for range in halves {
            let mut child = Shard::new(range);
            child.parents = vec![0];
            world.shards.push(child);
        }
    });
    fill(&fake, 1, 2, 5);
    fill(&fake, 2, 2, 5);
    let shards = read(&mut consumer, 40).await.unwrap();
    assert_eq!(
        (&shards[0], &shards[1], &shards[2]),
        (&numbers(10..30), &numbers(0..10), &numbers(0..10))
    );
    // And from the beginning, all at once, parents first.
    let shards = read(&mut open(&server, to_end()).await, usize::MAX)
        .await
        .unwrap();
    assert_eq!(
        (&shards[0], &shards[1], &shards[2]),
        (&numbers(0..30), &numbers(0..10), &numbers(0..10))
    );
}

#[tokio::test]
async fn an_outage_beyond_the_budget_is_an_error_and_calling_again_goes_on() {
    let fake = Fake::new(1);
    let server = Server::start(&fake);
    fill(&fake, 0, 1, 5);
    let config = ConsumerConfig {
        retry_for: Duration::from_millis(100),
        ..Default::default()
    };
    let mut consumer = open(&server, config).await;
    assert_eq!(read(&mut consumer, 5).await.unwrap()[0], numbers(0..5));
    let address = server.address;
    drop(server);
    let error = consumer.next().await.unwrap_err();
    assert!(matches!(error, ConsumeError::Unavailable { .. }), "{error}");
    let _server = Server::start_at(&fake, address);
    fill(&fake, 0, 1, 5);
    assert_eq!(read(&mut consumer, 5).await.unwrap()[0], numbers(5..10));
}

#[tokio::test]
async fn refusals_for_good_are_said_at_once() {
    let fake = Fake::new(1);
    let server = Server::start(&fake);
    fake.world().subscribe_failure = Some((Code::PermissionDenied, "DENIED"));
    let error = open(&server, ConsumerConfig::default())
        .await
        .next()
        .await
        .unwrap_err();
    assert!(matches!(error, ConsumeError::Refused(error) if error.reason() == "DENIED"));
    let config = ConsumerConfig {
        shards: vec![ShardIndex::new(7)],
        ..Default::default()
    };
    let missing = Consumer::open(&server.client(), &stream(), config)
        .await
        .unwrap_err();
    assert_eq!(
        missing,
        ConsumeError::ShardNotFound {
            shard: ShardIndex::new(7)
        }
    );
}
