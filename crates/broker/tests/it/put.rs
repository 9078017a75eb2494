//! Putting records.

use flumen_broker::Error;
use flumen_log::MemoryStorage;
use flumen_record::{Durability, RecordError};

use crate::fixture::*;

async fn put_and_read_back(durability: Durability) {
    let broker = open(&MemoryStorage::new()).await;
    let stream = create(&broker, "readings", 4, level(durability)).await;
    let records: Vec<_> = (0..100u32)
        .map(|n| record_for(n % 4, 4, n.to_string()))
        .collect();
    let outcomes = broker.put(&stream, records).await.unwrap();
    for (n, outcome) in outcomes.iter().enumerate() {
        let outcome = outcome.as_ref().unwrap();
        assert_eq!(outcome.shard, shard(n as u32 % 4));
        assert_eq!(outcome.sequence_number.value(), n as u64 / 4);
        assert_eq!(outcome.durability, durability);
    }
    for index in 0..4 {
        let found = read_all(&broker, &stream, shard(index)).await;
        let data: Vec<_> = found.iter().map(|(_, data)| data.clone()).collect();
        let expected: Vec<_> = (0..25).map(|n| (n * 4 + index).to_string()).collect();
        assert_eq!(data, expected);
    }
    broker.shutdown().await.unwrap();
}

#[tokio::test]
async fn disk_records_come_back_in_request_order_per_shard() {
    put_and_read_back(Durability::Disk).await;
}

#[tokio::test]
async fn memory_records_come_back_in_request_order_per_shard() {
    put_and_read_back(Durability::Memory).await;
}

#[tokio::test]
async fn works_on_real_files() {
    let dir = tempfile::tempdir().unwrap();
    let broker = open_dir(dir.path()).await;
    let stream = create(&broker, "readings", 1, level(Durability::Disk)).await;
    for n in 0..20u32 {
        let outcomes = broker
            .put(&stream, vec![record("key", n.to_string())])
            .await
            .unwrap();
        assert!(outcomes.iter().all(Result::is_ok));
    }
    assert_eq!(read_all(&broker, &stream, shard(0)).await, counted(0..20));
    broker.shutdown().await.unwrap();
    drop(broker);
    let broker = open_dir(dir.path()).await;
    assert_eq!(read_all(&broker, &stream, shard(0)).await, counted(0..20));
    broker.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_record_that_cannot_be_stored_does_not_hold_up_the_others() {
    let broker = open(&MemoryStorage::new()).await;
    let stream = create(&broker, "readings", 1, level(Durability::Disk)).await;
    let records = vec![
        record("key", "0"),
        record("key", vec![0; (1 << 20) + 1]),
        record("key", "1"),
    ];
    let outcomes = broker.put(&stream, records).await.unwrap();
    assert_eq!(outcomes[0].as_ref().unwrap().sequence_number, number(0));
    assert!(matches!(
        outcomes[1],
        Err(Error::Record(RecordError::TooLarge { .. }))
    ));
    assert_eq!(outcomes[2].as_ref().unwrap().sequence_number, number(1));
    assert_eq!(read_all(&broker, &stream, shard(0)).await, counted(0..2));
    assert_eq!(broker.put(&stream, Vec::new()).await, Ok(Vec::new()));
    let missing = name("missing");
    let refused = broker.put(&missing, vec![record("key", "0")]).await;
    assert_eq!(refused, Err(Error::StreamNotFound { stream: missing }));
}

/// More than fits into one batch goes into several, in order.
#[tokio::test]
async fn puts_more_than_a_batch_holds() {
    let broker = open(&MemoryStorage::new()).await;
    let stream = create(&broker, "readings", 1, level(Durability::Disk)).await;
    let records: Vec<_> = (0..20u8)
        .map(|n| record("key", vec![n; 1 << 19 | 1 << 18 | 1 << 17]))
        .collect();
    let outcomes = broker.put(&stream, records).await.unwrap();
    let numbers: Vec<_> = outcomes
        .iter()
        .map(|outcome| outcome.as_ref().unwrap().sequence_number.value())
        .collect();
    assert_eq!(numbers, (0..20).collect::<Vec<_>>());
    let found = read_all(&broker, &stream, shard(0)).await;
    assert!(
        found
            .iter()
            .enumerate()
            .all(|(n, (number, data))| *number == n as u64 && data[0] == n as u8)
    );
}
