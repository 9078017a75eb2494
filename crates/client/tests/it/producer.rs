//! Producers against a broker that misbehaves on demand.

use std::time::Duration;

use flumen_client::{Code, Producer, ProducerConfig, SendError};
use flumen_record::{HashKey, HashRange, Record};

use crate::fake::{Deed, Fake, Server, Shard, client_of, stream};

/// A record of one of eight keys with a number as its data.
fn numbered(n: usize) -> Record {
    keyed(&format!("key-{}", n % 8), &n.to_string())
}

fn keyed(key: &str, data: &str) -> Record {
    Record {
        partition_key: key.to_owned().into(),
        explicit_hash_key: None,
        data: data.to_owned().into(),
        client_timestamp: None,
        headers: Vec::new(),
    }
}

fn small_batches() -> ProducerConfig {
    ProducerConfig {
        linger: Duration::ZERO,
        batch_records: 4,
        retry_for: Duration::from_secs(10),
        ..ProducerConfig::default()
    }
}

async fn open(server: &Server, config: ProducerConfig) -> Producer {
    Producer::open(&server.client(), &stream(), config)
        .await
        .unwrap()
}

/// Every number below `count` is stored once, and in order among those of its key.
fn assert_exactly_once(fake: &Fake, count: usize) {
    let mut numbers = Vec::new();
    for shard in fake.stored() {
        let shard: Vec<usize> = shard.iter().map(|data| data.parse().unwrap()).collect();
        for key in 0..8 {
            let of_key: Vec<_> = shard.iter().filter(|n| *n % 8 == key).collect();
            assert!(of_key.is_sorted(), "key {key}: {of_key:?}");
        }
        numbers.extend(shard);
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (0..count).collect::<Vec<_>>());
}

#[tokio::test]
async fn records_arrive_once_in_order_and_know_where() {
    let fake = Fake::new(3);
    let server = Server::start(&fake);
    let producer = open(&server, small_batches()).await;
    let mut deliveries = Vec::new();
    for n in 0..500 {
        deliveries.push((n, producer.send(numbered(n)).await.unwrap()));
    }
    producer.flush().await.unwrap();
    for (n, delivery) in deliveries {
        let delivered = delivery.try_wait().expect("flushed").unwrap();
        let shard = &fake.stored()[delivered.shard.value() as usize];
        let at = delivered.sequence_number.unwrap().value() as usize;
        assert_eq!(shard[at], n.to_string());
    }
    assert_exactly_once(&fake, 500);
    let stats = producer.stats();
    assert_eq!(
        (
            stats.records_taken,
            stats.records_stored,
            stats.records_failed
        ),
        (500, 500, 0)
    );
    assert_eq!(
        (
            stats.records_in_flight,
            stats.batches_in_flight,
            stats.sessions_opened
        ),
        (0, 0, 1)
    );
    producer.close().await.unwrap();
    assert!(matches!(
        producer.send(numbered(0)).await,
        Err(SendError::Closed)
    ));
}

#[tokio::test]
async fn bulk_records_share_batches() {
    let fake = Fake::new(1);
    let server = Server::start(&fake);
    let producer = open(&server, ProducerConfig::default()).await;
    let receipt = producer.send_all((0..20_000).map(numbered)).await.unwrap();
    assert_eq!(receipt.records(), 20_000);
    producer.flush().await.unwrap();
    receipt.wait().await.unwrap();
    assert_exactly_once(&fake, 20_000);
    assert!(
        producer.stats().batches_stored < 100,
        "{:?}",
        producer.stats()
    );
}

#[tokio::test]
async fn a_lost_ack_is_no_duplicate() {
    let fake = Fake::new(1);
    let server = Server::start(&fake);
    fake.decide(|seen, _, _| {
        if seen % 5 == 0 {
            Deed::StoreAndCut
        } else {
            Deed::Accept
        }
    });
    let producer = open(&server, small_batches()).await;
    let receipt = producer.send_all((0..200).map(numbered)).await.unwrap();
    producer.flush().await.unwrap();
    receipt.wait().await.unwrap();
    assert_exactly_once(&fake, 200);
    let stats = producer.stats();
    assert!(
        stats.records_duplicate > 0 && stats.sessions_opened > 1,
        "{stats:?}"
    );
    assert_eq!(stats.producer_ids_replaced, 0);
}

#[tokio::test]
async fn refusals_that_pass_keep_the_order() {
    for (code, reason) in [
        (Code::ResourceExhausted, "THROTTLED"),
        (Code::ResourceExhausted, "STORAGE_FULL"),
        (Code::Unavailable, "OUTCOME_UNKNOWN"),
        (Code::Unavailable, "DRAINING"),
    ] {
        let fake = Fake::new(2);
        let server = Server::start(&fake);
        let mut random = 1_u32;
        fake.decide(move |_, _, _| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let refused = (random >> 16).is_multiple_of(7);
            if refused {
                Deed::Refuse(code, reason)
            } else {
                Deed::Accept
            }
        });
        let producer = open(&server, small_batches()).await;
        producer.send_all((0..300).map(numbered)).await.unwrap();
        producer.flush().await.unwrap();
        assert_exactly_once(&fake, 300);
        assert!(producer.stats().batches_resent > 0);
    }
}

/// A full disk was reported as "producer sequence 7 came where 0 was next": the refusals that follow
/// from the first one in a pipeline hid it.
#[tokio::test]
async fn the_refusal_that_others_follow_from_is_the_one_to_tell() {
    let fake = Fake::new(1);
    let server = Server::start(&fake);
    fake.decide(|_, _, header| match header.sequence.value() {
        0 => Deed::RefuseFor(
            Code::ResourceExhausted,
            "STORAGE_FULL",
            Duration::from_secs(60),
        ),
        _ => Deed::Accept,
    });
    let config = ProducerConfig {
        batch_records: 1,
        // Shorter than the delay: what came last is from the first pass.
        retry_for: Duration::from_secs(1),
        ..small_batches()
    };
    let producer = open(&server, config).await;
    producer.send_all((0..20).map(numbered)).await.unwrap();
    let failure = producer.flush().await.unwrap_err();
    assert!(
        matches!(&failure, SendError::NotStored { last, .. } if last.reason() == "STORAGE_FULL"),
        "{failure}"
    );
}

#[tokio::test]
async fn a_batch_refused_for_good_fails_alone() {
    let fake = Fake::new(1);
    let server = Server::start(&fake);
    fake.decide(|seen, _, _| match seen {
        3 => Deed::Refuse(Code::InvalidArgument, "RECORD_TOO_LARGE"),
        _ => Deed::Accept,
    });
    let config = ProducerConfig {
        batch_records: 1,
        ..small_batches()
    };
    let producer = open(&server, config).await;
    let mut deliveries = Vec::new();
    for n in 0..20 {
        deliveries.push(producer.send(numbered(n)).await.unwrap());
    }
    let failure = producer.flush().await.unwrap_err();
    assert!(matches!(&failure, SendError::Refused(error) if error.reason() == "RECORD_TOO_LARGE"));
    producer.flush().await.expect("reported once");
    let stored: Vec<String> = fake.stored().concat();
    let mut failed = Vec::new();
    for (n, delivery) in deliveries.iter().enumerate() {
        match delivery.wait().await {
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error, failure);
                failed.push(n.to_string());
            }
        }
    }
    let expected: Vec<_> = (0..20)
        .map(|n| n.to_string())
        .filter(|n| *n != failed[0])
        .collect();
    assert_eq!((failed.len(), stored), (1, expected));
    assert_eq!(producer.stats().producer_ids_replaced, 1);
}

#[tokio::test]
async fn forgotten_producers_go_on_under_a_new_id() {
    let fake = Fake::new(1);
    let server = Server::start(&fake);
    let mut forgotten = false;
    fake.decide(move |seen, _, header| {
        forgotten |= seen == 10;
        if forgotten && header.producer.value() == 1 {
            return Deed::Refuse(Code::FailedPrecondition, "PRODUCER_STATE_LOST");
        }
        Deed::Accept
    });
    let producer = open(&server, small_batches()).await;
    producer.send_all((0..200).map(numbered)).await.unwrap();
    producer.flush().await.unwrap();
    assert_exactly_once(&fake, 200);
    assert_eq!(producer.stats().producer_ids_replaced, 1);
}

#[tokio::test]
async fn a_split_moves_records_to_the_children_in_order() {
    let fake = Fake::new(1);
    let server = Server::start(&fake);
    let producer = open(&server, small_batches()).await;
    let mut deliveries = Vec::new();
    for n in 0..400 {
        deliveries.push(producer.send(numbered(n)).await.unwrap());
        if n == 200 {
            deliveries[100].wait().await.unwrap();
            split(&fake);
        }
        if n % 50 == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    producer.flush().await.unwrap();
    assert_exactly_once(&fake, 400);
    let stored = fake.stored();
    assert!(stored.iter().all(|shard| !shard.is_empty()), "{stored:?}");
    for (n, delivery) in deliveries.iter().enumerate() {
        let delivered = delivery.wait().await.unwrap();
        let at = delivered.sequence_number.unwrap().value() as usize;
        assert_eq!(stored[delivered.shard.value() as usize][at], n.to_string());
    }
}

/// Closes shard 0 and opens two children.
fn split(fake: &Fake) {
    fake.change(|world| {
        let middle = HashKey::new(1 << 127);
        let below = HashKey::new(middle.value() - 1);
        world.shards[0].open = false;
        world.shards[0].children = vec![1, 2];
        for range in [
            HashRange {
                start: HashKey::MIN,
                end: below,
            },
            HashRange {
                start: middle,
                end: HashKey::MAX,
            },
        ] {
            let mut child = Shard::new(range);
            child.parents = vec![0];
            world.shards.push(child);
        }
    });
}

#[tokio::test]
async fn a_restart_in_the_middle_loses_and_repeats_nothing() {
    let fake = Fake::new(2);
    let mut server = Server::start(&fake);
    let address = server.address;
    let producer = open(&server, small_batches()).await;
    let sender = tokio::spawn({
        let producer = producer.clone();
        async move {
            for n in 0..2000 {
                producer.send(numbered(n)).await.unwrap();
                if n % 20 == 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        }
    });
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(30)).await;
        drop(server);
        tokio::time::sleep(Duration::from_millis(30)).await;
        server = Server::start_at(&fake, address);
    }
    sender.await.unwrap();
    producer.flush().await.unwrap();
    assert_exactly_once(&fake, 2000);
    assert!(
        producer.stats().sessions_opened >= 3,
        "{:?}",
        producer.stats()
    );
}

#[tokio::test]
async fn a_producer_may_start_before_its_broker() {
    let fake = Fake::new(1);
    let address = Server::start(&fake).address;
    let opening = tokio::spawn(async move {
        Producer::open(&client_of(address), &stream(), small_batches()).await
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let _server = Server::start_at(&fake, address);
    let producer = opening.await.unwrap().unwrap();
    producer
        .send(numbered(0))
        .await
        .unwrap()
        .wait()
        .await
        .unwrap();
}

#[tokio::test]
async fn an_outage_beyond_the_budget_says_what_is_known() {
    let fake = Fake::new(1);
    let server = Server::start(&fake);
    let config = ProducerConfig {
        retry_for: Duration::from_millis(300),
        batch_records: 1,
        max_in_flight_batches: 1,
        ..small_batches()
    };
    let producer = open(&server, config).await;
    producer
        .send(numbered(0))
        .await
        .unwrap()
        .wait()
        .await
        .unwrap();
    fake.world().stalled = true;
    let sent = producer.send(numbered(1)).await.unwrap();
    while producer.stats().batches_in_flight == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let behind = producer.send(numbered(2)).await.unwrap();
    let address = server.address;
    drop(server);
    assert_eq!(
        producer.stats().batches_in_flight,
        1,
        "sent, unanswered, session lost"
    );
    assert!(matches!(
        sent.wait().await,
        Err(SendError::OutcomeUnknown { .. })
    ));
    assert!(matches!(
        behind.wait().await,
        Err(SendError::NotStored { .. })
    ));
    assert!(producer.flush().await.is_err());

    // It goes on when the broker is back.
    fake.world().stalled = false;
    let _server = Server::start_at(&fake, address);
    producer
        .send(numbered(3))
        .await
        .unwrap()
        .wait()
        .await
        .unwrap();
    assert_eq!(fake.stored().concat(), ["0", "3"]);
    assert_eq!(producer.stats().records_failed, 2);
}

#[tokio::test]
async fn a_broker_that_does_not_answer_is_given_up_too() {
    let fake = Fake::new(1);
    let server = Server::start(&fake);
    let config = ProducerConfig {
        retry_for: Duration::from_millis(200),
        ..small_batches()
    };
    let producer = open(&server, config).await;
    fake.world().stalled = true;
    let sent = producer.send(numbered(0)).await.unwrap();
    assert!(matches!(
        sent.wait().await,
        Err(SendError::OutcomeUnknown { .. })
    ));
    fake.world().stalled = false;
    producer
        .send(numbered(1))
        .await
        .unwrap()
        .wait()
        .await
        .unwrap();
}

#[tokio::test]
async fn a_stalled_broker_bounds_the_memory_and_cancelled_sends_are_not_taken() {
    let fake = Fake::new(1);
    let server = Server::start(&fake);
    let config = ProducerConfig {
        memory_bytes: 64 << 10,
        ..ProducerConfig::default()
    };
    let producer = open(&server, config).await;
    fake.world().stalled = true;
    let mut taken = 0;
    while producer
        .try_send(keyed("k", &taken.to_string()))
        .unwrap()
        .is_ok()
    {
        taken += 1;
    }
    assert!((500..3000).contains(&taken), "{taken}");
    let wait = Duration::from_millis(20);
    assert!(
        tokio::time::timeout(wait, producer.send(numbered(0)))
            .await
            .is_err()
    );
    let many = producer.send_all((0..1000).map(numbered));
    assert!(tokio::time::timeout(wait, many).await.is_err());
    fake.world().stalled = false;
    producer.flush().await.unwrap();
    let expected: Vec<_> = (0..taken).map(|n| n.to_string()).collect();
    assert_eq!(fake.stored().concat(), expected);
    producer
        .send(keyed("k", "room again"))
        .await
        .unwrap()
        .wait()
        .await
        .unwrap();
}

#[tokio::test]
async fn at_least_once_resends_without_sequences() {
    let fake = Fake::new(1);
    let server = Server::start(&fake);
    fake.decide(|seen, _, header| {
        assert_eq!((header.producer.value(), header.sequence.value()), (0, 0));
        if seen == 4 {
            Deed::StoreAndCut
        } else {
            Deed::Accept
        }
    });
    let config = ProducerConfig {
        idempotent: false,
        ..small_batches()
    };
    let producer = open(&server, config).await;
    producer.send_all((0..100).map(numbered)).await.unwrap();
    producer.flush().await.unwrap();
    let mut stored: Vec<usize> = fake
        .stored()
        .concat()
        .iter()
        .map(|n| n.parse().unwrap())
        .collect();
    assert!(
        stored.len() > 100,
        "the batch whose ack was lost is there twice"
    );
    stored.sort_unstable();
    stored.dedup();
    assert_eq!(stored, (0..100).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_was_sent_is_delivered_after_the_last_handle_is_gone() {
    let fake = Fake::new(1);
    let server = Server::start(&fake);
    let config = ProducerConfig {
        linger: Duration::from_secs(60),
        ..ProducerConfig::default()
    };
    let producer = open(&server, config).await;
    let delivery = producer.send(numbered(0)).await.unwrap();
    drop(producer);
    delivery.wait().await.unwrap();
    assert_eq!(fake.stored().concat(), ["0"]);
}

#[tokio::test]
async fn a_runtime_that_ends_leaves_nobody_waiting() {
    let fake = Fake::new(1);
    let server = Server::start(&fake);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = server.client();
    let opening =
        runtime.spawn(async move { Producer::open(&client, &stream(), small_batches()).await });
    let producer = opening.await.unwrap().unwrap();
    fake.world().stalled = true;
    let delivery = producer.send(numbered(0)).await.unwrap();
    runtime.shutdown_background();
    assert!(delivery.wait().await.is_err());
    assert!(matches!(
        producer.send(numbered(1)).await,
        Err(SendError::Closed)
    ));
}

#[tokio::test]
async fn a_stream_that_does_not_exist_is_said_at_once() {
    let server = Server::start(&Fake::new(1));
    let name = "other".parse().unwrap();
    let error = Producer::open(&server.client(), &name, small_batches())
        .await
        .unwrap_err();
    assert_eq!(
        (error.code(), error.reason()),
        (Code::NotFound, "STREAM_NOT_FOUND")
    );
}
