//! Append sessions: acks, duplicates, refusals.

use flumen_broker::{Appended, Error, StreamUpdate};
use flumen_log::MemoryStorage;
use flumen_record::{Batch, BatchError, Durability, HashRange, ProducerId, ProducerSequence};

use crate::fixture::*;

async fn one_shard() -> (flumen_broker::Broker, flumen_record::StreamName, ProducerId) {
    let broker = open(&MemoryStorage::new()).await;
    let stream = create(&broker, "readings", 1, level(Durability::Disk)).await;
    let producer = broker.open_producer().await.unwrap();
    (broker, stream, producer)
}

#[tokio::test]
async fn pipelined_batches_are_acknowledged_one_by_one() {
    let (broker, stream, producer) = one_shard().await;
    let mut session = Session::open(&broker, &stream);
    for n in 0..1000 {
        session
            .sender
            .append(n, shard(0), one(n.to_string(), producer, n));
        if n % 64 == 63 {
            session.sender.flush().await.unwrap();
        }
    }
    session.sender.flush().await.unwrap();
    let mut acks = session.acks(1000).await;
    acks.sort_by_key(|ack| ack.request);
    for (n, ack) in (0..).zip(acks) {
        let appended = ack.outcome.unwrap();
        let expected = Appended {
            base: number(n),
            count: 1,
            duplicate: false,
            ..appended
        };
        assert_eq!((ack.request, appended), (n, expected));
        assert_eq!(appended.durability, Durability::Disk);
    }
    assert_eq!(read_all(&broker, &stream, shard(0)).await, counted(0..1000));
}

#[tokio::test]
async fn a_session_ends_when_its_sender_is_gone_and_all_is_answered() {
    let (broker, stream, producer) = one_shard().await;
    let mut session = Session::open(&broker, &stream);
    session.sender.append(0, shard(0), one("0", producer, 0));
    session.sender.flush().await.unwrap();
    drop(session.sender);
    let mut acks = Vec::new();
    loop {
        let before = acks.len();
        std::future::poll_fn(|cx| session.receiver.poll_acks(cx, &mut acks)).await;
        if acks.len() == before {
            break;
        }
    }
    assert_eq!(acks.len(), 1);
}

#[tokio::test]
async fn a_retry_gets_the_ack_of_its_original() {
    let (broker, stream, producer) = one_shard().await;
    let mut session = Session::open(&broker, &stream);
    let first = session.append(one("0", producer, 0)).await.unwrap();
    let again = session.append(one("0", producer, 0)).await.unwrap();
    assert_eq!(
        again,
        Appended {
            duplicate: true,
            ..first
        }
    );
    let other = session.append(one("other", producer, 0)).await;
    assert_eq!(
        other,
        Err(Error::SequenceReused {
            sequence: ProducerSequence::new(0)
        })
    );
    assert_eq!(read_all(&broker, &stream, shard(0)).await, counted(0..1));
}

/// Both copies are in one round: the second joins the first one's ack.
#[tokio::test]
async fn a_retry_while_the_original_is_in_flight_waits_with_it() {
    let (broker, stream, producer) = one_shard().await;
    let mut session = Session::open(&broker, &stream);
    for request in 0..2 {
        session
            .sender
            .append(request, shard(0), one("0", producer, 0));
    }
    session.sender.flush().await.unwrap();
    let acks = session.acks(2).await;
    let outcomes: Vec<_> = acks.into_iter().map(|ack| ack.outcome.unwrap()).collect();
    assert_eq!(
        outcomes
            .iter()
            .filter(|appended| appended.duplicate)
            .count(),
        1
    );
    assert!(outcomes.iter().all(|appended| appended.base == number(0)));
    assert_eq!(read_all(&broker, &stream, shard(0)).await, counted(0..1));
}

/// One refusal in a pipeline refuses what follows it, so that a retry from there keeps order.
#[tokio::test]
async fn a_gap_refuses_everything_behind_it() {
    let (broker, stream, producer) = one_shard().await;
    let mut session = Session::open(&broker, &stream);
    for sequence in [0, 2, 3] {
        session.sender.append(
            sequence,
            shard(0),
            one(sequence.to_string(), producer, sequence),
        );
    }
    session.sender.flush().await.unwrap();
    let mut acks = session.acks(3).await;
    acks.sort_by_key(|ack| ack.request);
    assert!(acks[0].outcome.is_ok());
    for ack in &acks[1..] {
        let expected = ProducerSequence::new(1);
        let got = ProducerSequence::new(ack.request);
        assert_eq!(ack.outcome, Err(Error::OutOfSequence { expected, got }));
    }
    for sequence in 1..4 {
        let appended = session
            .append(one(sequence.to_string(), producer, sequence))
            .await;
        assert_eq!(appended.unwrap().base, number(sequence));
    }
    assert_eq!(read_all(&broker, &stream, shard(0)).await, counted(0..4));
}

#[tokio::test]
async fn refuses_producers_that_were_never_issued() {
    let (broker, stream, producer) = one_shard().await;
    let mut session = Session::open(&broker, &stream);
    let unknown = ProducerId::new(producer.value() + 1);
    let refused = session.append(one("0", unknown, 0)).await;
    assert_eq!(refused, Err(Error::UnknownProducer { producer: unknown }));
    // It has a producer id, even if a wrong one: the session goes on.
    session.append(one("0", producer, 0)).await.unwrap();
}

#[tokio::test]
async fn a_session_without_producer_ids_ends_at_the_first_refusal() {
    let (broker, stream, producer) = one_shard().await;
    let mut session = Session::open(&broker, &stream);
    session.append(one("0", ProducerId::NONE, 0)).await.unwrap();
    let missing = session
        .append_to(shard(9), one("lost", ProducerId::NONE, 0))
        .await;
    assert_eq!(
        missing,
        Err(Error::ShardNotFound {
            stream: stream.clone(),
            shard: shard(9)
        })
    );
    let behind = session.append(one("behind", ProducerId::NONE, 0)).await;
    assert_eq!(behind, Err(Error::SessionEnded));
    // Batches that can be retried under their number are not affected.
    session.append(one("1", producer, 0)).await.unwrap();
    let mut other = Session::open(&broker, &stream);
    other.append(one("2", ProducerId::NONE, 0)).await.unwrap();
    assert_eq!(read_all(&broker, &stream, shard(0)).await, counted(0..3));
    assert_eq!(
        broker
            .metrics()
            .snapshot()
            .gauges
            .iter()
            .filter(|g| g.0 == "streams")
            .count(),
        1
    );
}

/// What was already handed over behind the refused batch is not attempted either.
#[tokio::test]
async fn nothing_overtakes_a_refused_batch_in_the_same_flush() {
    let broker = open(&MemoryStorage::new()).await;
    let stream = create(&broker, "readings", 2, level(Durability::Disk)).await;
    let mut session = Session::open(&broker, &stream);
    let fits = |data: &'static str| batch(&[record_for(0, 2, data)], ProducerId::NONE, 0);
    let wrong = batch(&[record_for(1, 2, "wrong")], ProducerId::NONE, 0);
    let span = wrong.header().span;
    for (request, batch) in (0..).zip([fits("0"), wrong, fits("behind")]) {
        session.sender.append(request, shard(0), batch);
    }
    session.sender.flush().await.unwrap();
    let mut acks = session.acks(3).await;
    acks.sort_by_key(|ack| ack.request);
    assert!(acks[0].outcome.is_ok());
    let range = HashRange {
        start: flumen_record::HashKey::MIN,
        end: flumen_record::HashKey::new(u128::MAX / 2),
    };
    assert_eq!(
        acks[1].outcome,
        Err(Error::WrongShard {
            shard: shard(0),
            span,
            range
        })
    );
    assert_eq!(acks[2].outcome, Err(Error::SessionEnded));
    assert_eq!(read_all(&broker, &stream, shard(0)).await, counted(0..1));
}

#[tokio::test]
async fn checks_bodies_before_they_get_near_a_lane() {
    let (broker, stream, producer) = one_shard().await;
    let mut session = Session::open(&broker, &stream);
    let large = one(vec![0; (1 << 20) + 1], producer, 0);
    let refused = session.append(large).await;
    assert!(
        matches!(
            refused,
            Err(Error::Batch(BatchError::Record { index: 0, .. }))
        ),
        "{refused:?}"
    );
    // Bytes that are no batch never become one; the edge says so in their place.
    let garbage = Batch::decode(bytes::Bytes::from_static(b"garbage")).unwrap_err();
    session.sender.refuse(3, garbage.into());
    let acks = session.acks(1).await;
    assert_eq!(
        (acks[0].request, &acks[0].outcome),
        (3, &Err(garbage.into()))
    );
    session.append(one("0", producer, 0)).await.unwrap();
}

/// Its limit was lowered since: a retry is still the same batch, and what is new is refused.
#[tokio::test]
async fn a_retry_gets_its_ack_although_it_would_be_too_large_now() {
    let (broker, stream, producer) = one_shard().await;
    let large = |sequence| one(vec![7; 100 << 10], producer, sequence);
    let mut session = Session::open(&broker, &stream);
    let first = session.append(large(0)).await.unwrap();
    let update = StreamUpdate {
        max_record_bytes: Some(10 << 10),
        ..StreamUpdate::default()
    };
    broker.update_stream(&stream, update).await.unwrap();
    let mut session = Session::open(&broker, &stream);
    let again = session.append(large(0)).await.unwrap();
    assert_eq!((again.base, again.duplicate), (first.base, true));
    let refused = session.append(large(1)).await.unwrap_err();
    assert_eq!(refused.reason(), "RECORD_TOO_LARGE");
    // It took no number and no place in the sequence.
    let fits = session.append(one("fits", producer, 1)).await.unwrap();
    assert_eq!(fits.base, number(1));
    let anonymous = one(vec![7; 100 << 10], ProducerId::NONE, 0);
    let refused = session.append(anonymous).await.unwrap_err();
    assert_eq!(refused.reason(), "RECORD_TOO_LARGE");
}
