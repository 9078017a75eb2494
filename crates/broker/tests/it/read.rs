//! Reading: start positions, budgets, waiting.

use std::time::Duration;

use flumen_broker::{Error, ReadBudget, StartPosition};
use flumen_log::MemoryStorage;
use flumen_record::{Durability, ProducerId, StreamName};

use crate::fixture::*;

/// Ten records in batches of two, a minute apart.
async fn ten_records() -> (flumen_broker::Broker, StreamName, flumen_broker::Clock) {
    let clock = clock();
    let storage = std::sync::Arc::new(MemoryStorage::new());
    let broker = open_with(storage, config(), clock.clone()).await;
    let stream = create(&broker, "readings", 1, level(Durability::Disk)).await;
    let mut session = Session::open(&broker, &stream);
    for n in 0..5 {
        let records = [
            record("key", (2 * n).to_string()),
            record("key", (2 * n + 1).to_string()),
        ];
        session
            .append(batch(&records, ProducerId::NONE, 0))
            .await
            .unwrap();
        clock.advance(Duration::from_secs(60));
    }
    (broker, stream, clock)
}

async fn numbers_from(
    broker: &flumen_broker::Broker,
    stream: &StreamName,
    start: StartPosition,
    budget: ReadBudget,
) -> Result<Vec<u64>, Error> {
    let reply = broker
        .read(stream, shard(0), start, budget, Duration::ZERO)
        .await?;
    Ok(records(&reply)
        .into_iter()
        .map(|(number, _)| number)
        .collect())
}

#[tokio::test]
async fn begins_where_it_is_told() {
    let (broker, stream, clock) = ten_records().await;
    let at = |minutes_ago: u64| {
        StartPosition::AtTimestamp(
            clock
                .now()
                .saturating_sub(Duration::from_secs(60 * minutes_ago)),
        )
    };
    for (start, expected) in [
        (StartPosition::TrimHorizon, 0..10),
        (StartPosition::Latest, 10..10),
        (StartPosition::At(number(3)), 3..10),
        (StartPosition::After(number(3)), 4..10),
        (StartPosition::At(number(10)), 10..10),
        (StartPosition::After(number(9)), 10..10),
        (at(5), 0..10),
        (at(3), 4..10),
        (at(60), 0..10),
        (at(0), 10..10),
    ] {
        let found = numbers_from(&broker, &stream, start, BUDGET).await.unwrap();
        assert_eq!(found, expected.collect::<Vec<_>>(), "{start:?}");
    }
    let beyond = numbers_from(&broker, &stream, StartPosition::At(number(11)), BUDGET).await;
    assert_eq!(
        beyond,
        Err(Error::BeyondEnd {
            asked: number(11),
            end: number(10)
        })
    );
}

#[tokio::test]
async fn keeps_to_its_budgets_in_whole_frames() {
    let (broker, stream, _) = ten_records().await;
    for (records, from, expected) in [
        (1, 0, 0..2),
        (2, 0, 0..2),
        (3, 0, 0..4),
        (3, 1, 1..4),
        (99, 0, 0..10),
    ] {
        let budget = ReadBudget { records, ..BUDGET };
        let start = StartPosition::At(number(from));
        let found = numbers_from(&broker, &stream, start, budget).await.unwrap();
        assert_eq!(found, expected.collect::<Vec<_>>(), "{records} from {from}");
    }
    // At least one frame comes, whatever the budget.
    let tiny = ReadBudget {
        bytes: 0,
        records: 0,
    };
    let found = numbers_from(&broker, &stream, StartPosition::TrimHorizon, tiny)
        .await
        .unwrap();
    assert_eq!(found, [0, 1]);
    let reply = broker
        .read(
            &stream,
            shard(0),
            StartPosition::At(number(3)),
            tiny,
            Duration::ZERO,
        )
        .await
        .unwrap();
    assert_eq!((reply.start, reply.next), (number(3), number(4)));
    assert_eq!(
        (reply.trim_horizon, reply.durable_end),
        (number(0), number(10))
    );
    assert_eq!(reply.end_of_shard, None);
}

#[tokio::test]
async fn waits_for_a_first_record() {
    let (broker, stream, _) = ten_records().await;
    let waiting = tokio::spawn({
        let (broker, stream) = (broker.clone(), stream.clone());
        async move {
            broker
                .read(&stream, shard(0), StartPosition::Latest, BUDGET, WAIT)
                .await
        }
    });
    tokio::task::yield_now().await;
    let mut session = Session::open(&broker, &stream);
    session
        .append(one("10", ProducerId::NONE, 0))
        .await
        .unwrap();
    let reply = waiting.await.unwrap().unwrap();
    assert_eq!(records(&reply).len(), 1);
    assert_eq!((reply.start, reply.next), (number(10), number(11)));
}

#[tokio::test]
async fn stops_waiting_when_nothing_comes() {
    let (broker, stream, clock) = ten_records().await;
    let wait = Duration::from_millis(50);
    let time_passes = async {
        loop {
            clock.advance(wait);
            tokio::task::yield_now().await;
        }
    };
    let reply = tokio::select! {
        biased;
        reply = broker.read(&stream, shard(0), StartPosition::Latest, BUDGET, wait) => reply.unwrap(),
        () = time_passes => unreachable!(),
    };
    assert!(reply.pieces.is_empty());
    assert_eq!(reply.next, number(10));
}

#[tokio::test]
async fn what_is_not_there_is_said() {
    let (broker, stream, _) = ten_records().await;
    let read = |stream: StreamName, index: u32| {
        let broker = broker.clone();
        async move {
            let start = StartPosition::TrimHorizon;
            broker
                .read(&stream, shard(index), start, BUDGET, Duration::ZERO)
                .await
                .unwrap_err()
        }
    };
    let missing = name("missing");
    assert_eq!(
        read(missing.clone(), 0).await,
        Error::StreamNotFound { stream: missing }
    );
    assert_eq!(
        read(stream.clone(), 1).await,
        Error::ShardNotFound {
            stream,
            shard: shard(1)
        }
    );
}
