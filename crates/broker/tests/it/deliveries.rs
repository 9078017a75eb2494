//! Delivery streams from outside: what edges ask, and what a runner is told. Here a test is the
//! runner.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flumen_broker::{
    Broker, BrokerConfig, Clock, DeliveryChecks, DeliveryDescription, DeliveryDesk, DeliveryEnd,
    DeliveryPhase, DeliveryReport, DeliverySeat, DeliverySettings, DeliverySource, Destination,
    Error, LastError, NewDelivery, Partitioning, SettingRefused, StartPosition, StreamNameText,
    StreamSettings,
};
use flumen_log::{Fault, FaultError, Grain, MemoryStorage, OperationKind};
use flumen_record::{DeliveryName, StreamName};

use crate::fixture::*;

const HOUR: Duration = Duration::from_secs(3600);
const SECOND: Duration = Duration::from_secs(1);

/// Refuses one destination.
#[derive(Debug)]
struct Checks;

impl DeliveryChecks for Checks {
    fn check(&self, _: &DeliveryName, settings: &DeliverySettings) -> Result<(), SettingRefused> {
        match &settings.destination {
            Destination::Memory { name } if name == "refused" => Err(SettingRefused {
                setting: "destination.name",
                reason: "it is refused".to_owned(),
            }),
            _ => Ok(()),
        }
    }
}

fn delivery(text: &str) -> DeliveryName {
    text.parse().unwrap()
}

fn settings(source: DeliverySource) -> DeliverySettings {
    DeliverySettings {
        source,
        destination: Destination::Memory {
            name: "a".to_owned(),
        },
        buffering: Default::default(),
        processing: Default::default(),
        format: Default::default(),
        compression: Default::default(),
        keys: Default::default(),
        object: Default::default(),
        partitioning: None,
        backup: None,
        dead_letters: None,
    }
}

fn reads(stream: &StreamName) -> DeliverySettings {
    settings(DeliverySource::Stream {
        stream: StreamNameText(stream.clone()),
        start: Default::default(),
    })
}

fn direct(shards: u32) -> DeliverySettings {
    settings(DeliverySource::Direct { shards })
}

fn backing(text: &str) -> StreamName {
    name(&format!("delivery.{text}"))
}

fn to(destination: &str, settings: DeliverySettings) -> DeliverySettings {
    DeliverySettings {
        destination: Destination::Memory {
            name: destination.to_owned(),
        },
        ..settings
    }
}

fn new(text: &str, settings: DeliverySettings) -> NewDelivery {
    NewDelivery {
        name: delivery(text),
        settings,
    }
}

fn attach(broker: &Broker) -> DeliverySeat {
    broker
        .attach_deliveries(Arc::new(Checks))
        .expect("the seat is free")
}

fn desk(seat: &DeliverySeat, text: &str) -> DeliveryDesk {
    let mut desks = seat.desks().into_iter();
    desks
        .find(|desk| desk.name().as_str() == text)
        .expect("it has a desk")
}

/// A node with a stream of two shards, and the seat taken.
async fn node(storage: &MemoryStorage) -> (Broker, DeliverySeat, StreamName) {
    let broker = open(storage).await;
    let seat = attach(&broker);
    let stream = create(&broker, "readings", 2, StreamSettings::default()).await;
    (broker, seat, stream)
}

#[tokio::test]
async fn it_is_created_described_and_listed() {
    let broker = open(&MemoryStorage::new()).await;
    let stream = create(&broker, "readings", 2, StreamSettings::default()).await;
    let without = broker.create_delivery(new("a", reads(&stream))).await;
    assert_eq!(without, Err(Error::DeliveriesUnavailable));
    let seat = attach(&broker);
    assert!(broker.attach_deliveries(Arc::new(Checks)).is_none());
    let changes = seat.changes();
    let created = broker.create_delivery(new("b", reads(&stream))).await;
    let created = created.unwrap();
    assert!(changes.has_changed().unwrap());
    let shown = (created.id.value(), created.version, created.paused);
    assert_eq!(shown, (1, 1, false));
    assert_eq!(created.stream, stream);
    assert_eq!(created.settings.as_ref(), &reads(&stream));
    assert_eq!(created.report.phase, DeliveryPhase::Starting);
    assert_eq!(broker.describe_delivery(&delivery("b")), Ok(created));
    for text in ["d", "a", "c"] {
        broker
            .create_delivery(new(text, reads(&stream)))
            .await
            .unwrap();
    }
    let names = |(page, more): (Vec<DeliveryDescription>, bool)| {
        let names = page.iter().map(|found| found.name.to_string());
        (names.collect::<Vec<_>>().concat(), more)
    };
    let all = broker.list_deliveries(None, 10).unwrap();
    assert_eq!(names(all), ("abcd".to_owned(), false));
    let page = broker.list_deliveries(Some(&delivery("a")), 2).unwrap();
    assert_eq!(names(page), ("bc".to_owned(), true));
    let desks: String = seat
        .desks()
        .iter()
        .map(|desk| desk.name().to_string())
        .collect();
    assert_eq!(desks, "abcd");
    broker.shutdown().await.unwrap();
}

#[tokio::test]
async fn what_is_refused_is_not_created() {
    let (broker, seat, stream) = node(&MemoryStorage::new()).await;
    broker
        .create_delivery(new("b", reads(&stream)))
        .await
        .unwrap();
    let changes = seat.changes();
    for (refused, expected) in [
        (
            new("b", reads(&stream)),
            Error::DeliveryExists {
                delivery: delivery("b"),
            },
        ),
        (
            new("c", to("refused", reads(&stream))),
            Error::DeliverySetting {
                setting: "destination.name",
                reason: "it is refused".to_owned(),
            },
        ),
        (
            new("c", reads(&name("nothing"))),
            Error::StreamNotFound {
                stream: name("nothing"),
            },
        ),
        (
            new(
                "c",
                DeliverySettings {
                    dead_letters: Some(StreamNameText(name("nothing"))),
                    ..reads(&stream)
                },
            ),
            Error::StreamNotFound {
                stream: name("nothing"),
            },
        ),
    ] {
        assert_eq!(broker.create_delivery(refused).await, Err(expected));
    }
    assert!(!changes.has_changed().unwrap());
    assert_eq!(seat.desks().len(), 1);
}

#[tokio::test]
async fn settings_are_replaced_under_their_version() {
    let (broker, seat, stream) = node(&MemoryStorage::new()).await;
    let name = delivery("a");
    broker
        .create_delivery(new("a", reads(&stream)))
        .await
        .unwrap();
    let mut orders = desk(&seat, "a").orders();
    let changed = to("b", reads(&stream));
    let update = |version, settings| broker.update_delivery(&name, version, settings);
    let stale = update(Some(2), changed.clone()).await;
    let (expected, current) = (2, 1);
    assert_eq!(stale, Err(Error::DeliveryVersion { expected, current }));
    let updated = update(Some(1), changed.clone()).await.unwrap();
    assert_eq!((updated.version, updated.settings.as_ref()), (2, &changed));
    assert_eq!(update(None, changed.clone()).await.unwrap().version, 3);
    orders.changed().await.unwrap();
    let told = Arc::clone(&orders.borrow());
    assert_eq!((told.version, told.tries), (3, 2));
    assert_eq!(told.settings.as_ref(), &changed);
    let partitioned = DeliverySettings {
        partitioning: Some(Partitioning {
            keys: Default::default(),
            partitions_max: 5,
        }),
        ..changed.clone()
    };
    for (refused, expected) in [
        (direct(1), Error::DeliveryImmutable { setting: "source" }),
        (
            partitioned,
            Error::DeliveryImmutable {
                setting: "partitioning",
            },
        ),
        (
            to("refused", changed.clone()),
            Error::DeliverySetting {
                setting: "destination.name",
                reason: "it is refused".to_owned(),
            },
        ),
    ] {
        assert_eq!(update(None, refused).await, Err(expected));
    }
    assert_eq!(broker.describe_delivery(&name).unwrap().version, 3);
    let unknown = broker.update_delivery(&delivery("x"), None, changed).await;
    assert!(matches!(unknown, Err(Error::DeliveryNotFound { .. })));
}

#[tokio::test]
async fn it_pauses_and_resumes() {
    let (broker, seat, stream) = node(&MemoryStorage::new()).await;
    let name = delivery("a");
    broker
        .create_delivery(new("a", reads(&stream)))
        .await
        .unwrap();
    let orders = desk(&seat, "a").orders();
    for _ in 0..2 {
        assert!(broker.pause_delivery(&name).await.unwrap().paused);
    }
    let told = Arc::clone(&orders.borrow());
    assert_eq!((told.paused, told.tries), (true, 0));
    let flushed = broker.flush_delivery(&name, SECOND).await;
    let paused = Error::DeliveryPaused {
        delivery: name.clone(),
    };
    assert_eq!(flushed, Err(paused.clone()));
    // What is not delivered can only be dropped.
    let deleted = broker.delete_delivery(&name, DeliveryEnd::Flush, SECOND);
    assert_eq!(deleted.await, Err(paused));
    for tries in 1..3 {
        assert!(!broker.resume_delivery(&name).await.unwrap().paused);
        let told = Arc::clone(&orders.borrow());
        assert_eq!((told.paused, told.tries), (false, tries));
    }
}

#[tokio::test]
async fn a_flush_returns_when_its_runner_says_so() {
    let storage = Arc::new(MemoryStorage::new());
    let clock = clock();
    let broker = open_with(storage, config(), clock.clone()).await;
    let seat = attach(&broker);
    let stream = create(&broker, "readings", 1, StreamSettings::default()).await;
    broker
        .create_delivery(new("a", reads(&stream)))
        .await
        .unwrap();
    let desk = desk(&seat, "a");
    let name = delivery("a");
    let mut orders = desk.orders();
    let runner = tokio::spawn({
        let desk = desk.clone();
        async move {
            let flush = orders
                .wait_for(|orders| orders.flush > 0)
                .await
                .unwrap()
                .flush;
            desk.report(DeliveryReport {
                flushed: flush,
                cuts: 7,
                ..DeliveryReport::default()
            });
        }
    });
    let flushed = broker.flush_delivery(&name, WAIT).await.unwrap();
    assert_eq!(flushed.report.cuts, 7);
    runner.await.unwrap();
    // Nobody answers the next one.
    desk.report(DeliveryReport {
        flushed: 1,
        phase: DeliveryPhase::Retrying,
        last_error: Some(LastError {
            reason: "no_such_bucket",
            text: "the bucket does not exist".to_owned(),
            at: clock.now(),
            times: 3,
        }),
        ..DeliveryReport::default()
    });
    let waits = async {
        let mut orders = desk.orders();
        orders.wait_for(|orders| orders.flush == 2).await.unwrap();
        clock.advance(SECOND);
    };
    let (flushed, ()) = tokio::join!(broker.flush_delivery(&name, SECOND), waits);
    let unfinished = flushed.unwrap_err();
    assert_eq!(
        unfinished.to_string(),
        "the flush of delivery stream a goes on and is not done after 1000 ms; \
         last error: the bucket does not exist"
    );
    assert!(unfinished.retry_after().is_some());
    // A pause interrupts who waits.
    let pausing = async {
        let mut orders = desk.orders();
        orders.wait_for(|orders| orders.flush == 3).await.unwrap();
        broker.pause_delivery(&name).await.unwrap();
    };
    let (flushed, ()) = tokio::join!(broker.flush_delivery(&name, WAIT), pausing);
    assert!(
        matches!(flushed, Err(Error::DeliveryPaused { .. })),
        "{flushed:?}"
    );
}

/// A runner that ends what is to be ended.
fn ends(desk: DeliveryDesk) -> tokio::task::JoinHandle<Option<DeliveryEnd>> {
    tokio::spawn(async move {
        let mut orders = desk.orders();
        let ending = orders
            .wait_for(|orders| orders.ending.is_some())
            .await
            .unwrap()
            .ending;
        desk.remove().await.unwrap();
        ending
    })
}

#[tokio::test]
async fn it_is_deleted_by_its_runner() {
    let (broker, seat, stream) = node(&MemoryStorage::new()).await;
    for (text, end) in [("a", DeliveryEnd::Flush), ("b", DeliveryEnd::Drop)] {
        let name = delivery(text);
        broker
            .create_delivery(new(text, reads(&stream)))
            .await
            .unwrap();
        let desk = desk(&seat, text);
        let runner = ends(desk.clone());
        broker.delete_delivery(&name, end, WAIT).await.unwrap();
        assert_eq!(runner.await.unwrap(), Some(end));
        let gone = Err(Error::DeliveryNotFound {
            delivery: name.clone(),
        });
        assert_eq!(broker.describe_delivery(&name), gone);
        assert!(seat.desks().is_empty());
        // Too late.
        let saved = desk.save(Bytes::new(), Vec::new()).await;
        assert!(
            matches!(saved, Err(Error::DeliveryNotFound { .. })),
            "{saved:?}"
        );
        desk.remove().await.unwrap();
    }
    // The numbers of those that are gone are not given again.
    let created = broker.create_delivery(new("a", reads(&stream))).await;
    assert_eq!(created.unwrap().id.value(), 3);
}

#[tokio::test]
async fn a_deletion_goes_on_when_nobody_waits_and_after_a_restart() {
    let storage = MemoryStorage::new();
    let (broker, seat, stream) = node(&storage).await;
    let name = delivery("a");
    broker
        .create_delivery(new("a", reads(&stream)))
        .await
        .unwrap();
    let short = Duration::ZERO;
    for end in [DeliveryEnd::Flush, DeliveryEnd::Flush, DeliveryEnd::Drop] {
        let deleted = broker.delete_delivery(&name, end, short).await;
        assert_eq!(
            deleted,
            Err(Error::DeliveryUnfinished {
                delivery: name.clone(),
                work: "deletion",
                waited: short,
                last_error: None,
            })
        );
        assert_eq!(desk(&seat, "a").orders().borrow().ending, Some(end));
    }
    // It is not spared again.
    let _ = broker
        .delete_delivery(&name, DeliveryEnd::Flush, short)
        .await;
    let ending = Some(DeliveryEnd::Drop);
    assert_eq!(desk(&seat, "a").orders().borrow().ending, ending);
    let ending_error = Error::DeliveryEnding {
        delivery: name.clone(),
    };
    assert_eq!(
        broker.pause_delivery(&name).await,
        Err(ending_error.clone())
    );
    let updated = broker.update_delivery(&name, None, reads(&stream)).await;
    assert_eq!(updated, Err(ending_error.clone()));
    assert_eq!(
        broker.flush_delivery(&name, SECOND).await,
        Err(ending_error)
    );
    drop((broker, seat));
    let broker = open(&storage.crash_keeping(Grain::Page, 0)).await;
    let seat = attach(&broker);
    assert_eq!(ends(desk(&seat, "a")).await.unwrap(), ending);
    assert!(broker.list_deliveries(None, 1).unwrap().0.is_empty());
}

#[tokio::test]
async fn opened_again_everything_is_as_it_was() {
    let storage = MemoryStorage::new();
    let (broker, seat, stream) = node(&storage).await;
    for text in ["a", "b", "c"] {
        broker
            .create_delivery(new(text, reads(&stream)))
            .await
            .unwrap();
    }
    let changed = to("elsewhere", reads(&stream));
    broker
        .update_delivery(&delivery("a"), None, changed)
        .await
        .unwrap();
    broker.pause_delivery(&delivery("a")).await.unwrap();
    let short = Duration::ZERO;
    broker
        .delete_delivery(&delivery("b"), DeliveryEnd::Flush, short)
        .await
        .unwrap_err();
    assert!(desk(&seat, "a").progress().is_empty());
    // Those that come together are written together, and each is there.
    let desks = seat.desks();
    let saves = desks.iter().map(|desk| {
        let progress = Bytes::from(format!("of {}", desk.name()));
        let desk = desk.clone();
        tokio::spawn(async move { desk.save(progress, vec![(shard(1), number(0))]).await })
    });
    let saves: Vec<_> = saves.collect();
    for save in saves {
        save.await.unwrap().unwrap();
    }
    let shown = |broker: &Broker, seat: &DeliverySeat| {
        let (all, _) = broker.list_deliveries(None, 10).unwrap();
        let desks = seat.desks();
        let ends = desks.iter().map(|desk| {
            let ending = desk.orders().borrow().ending;
            (desk.progress(), ending, desk.created(), desk.id())
        });
        let facts = all.into_iter().map(|found| {
            let times = (found.created, found.updated);
            (found.id, found.version, found.settings, found.paused, times)
        });
        (facts.collect::<Vec<_>>(), ends.collect::<Vec<_>>())
    };
    let before = shown(&broker, &seat);
    assert_eq!(before.1[2].0, "of c");
    assert_eq!(before.1[1].1, Some(DeliveryEnd::Flush));
    assert_eq!((before.0[0].1, before.0[0].3), (2, true));
    drop((broker, seat, desks));
    let storage = storage.crash_keeping(Grain::Page, 0);
    let broker = open(&storage).await;
    let seat = attach(&broker);
    assert_eq!(shown(&broker, &seat), before);
    broker.shutdown().await.unwrap();
    let saved = desk(&seat, "a").save(Bytes::new(), Vec::new()).await;
    assert_eq!(saved, Err(Error::Draining));
    let storage = storage.kill();
    let broker = open(&storage).await;
    let seat = attach(&broker);
    assert_eq!(shown(&broker, &seat), before);
    let created = broker.create_delivery(new("d", reads(&stream))).await;
    assert_eq!(created.unwrap().id.value(), 4);
}

#[tokio::test]
async fn direct_puts_go_to_a_stream_that_comes_and_goes_with_it() {
    let storage = MemoryStorage::new();
    let (broker, seat, _) = node(&storage).await;
    let created = broker.create_delivery(new("a", direct(3))).await.unwrap();
    let backing = name("delivery.a");
    assert_eq!(created.stream, backing);
    assert_eq!(broker.describe_stream(&backing).unwrap().shards.len(), 3);
    let desk = desk(&seat, "a");
    assert_eq!(desk.stream(), &backing);
    broker
        .put(&backing, vec![record("key", "data")])
        .await
        .unwrap();
    assert_eq!(
        broker
            .describe_delivery(&delivery("a"))
            .unwrap()
            .backlog
            .records,
        1
    );
    let in_use = Err(Error::StreamInUse {
        stream: backing.clone(),
        delivery: delivery("a"),
    });
    assert_eq!(broker.delete_stream(&backing).await, in_use);
    let runner = ends(desk);
    broker
        .delete_delivery(&delivery("a"), DeliveryEnd::Drop, WAIT)
        .await
        .unwrap();
    runner.await.unwrap();
    let gone = broker.describe_stream(&backing);
    assert!(
        matches!(gone, Err(Error::StreamNotFound { .. })),
        "{gone:?}"
    );
    // What an earlier creation left behind is taken over, what holds records is not.
    create(&broker, "delivery.b", 2, StreamSettings::default()).await;
    broker.create_delivery(new("b", direct(1))).await.unwrap();
    let other = create(&broker, "delivery.c", 1, StreamSettings::default()).await;
    broker
        .put(&other, vec![record("key", "data")])
        .await
        .unwrap();
    let taken = broker.create_delivery(new("c", direct(1))).await;
    assert_eq!(taken, Err(Error::StreamExists { stream: other }));
    // What is refused leaves no stream behind.
    let refused = broker
        .create_delivery(new("d", to("refused", direct(1))))
        .await;
    assert!(refused.is_err());
    assert!(broker.describe_stream(&name("delivery.d")).is_err());
}

#[tokio::test]
async fn what_its_log_refuses_leaves_no_stream_behind() {
    let mut config = config();
    config.delivery.deliveries_max = 1;
    let broker = open_with(Arc::new(MemoryStorage::new()), config, clock()).await;
    let _seat = attach(&broker);
    broker.create_delivery(new("a", direct(1))).await.unwrap();
    let refused = broker.create_delivery(new("b", direct(1))).await;
    let is_so = matches!(
        refused,
        Err(Error::OutOfBounds {
            value: 2,
            max: 1,
            ..
        })
    );
    assert!(is_so, "{refused:?}");
    assert!(broker.describe_stream(&name("delivery.b")).is_err());
}

/// Wherever a crash cuts a removal off, the delivery stream is there with its stream, or neither is.
#[tokio::test]
async fn a_removal_is_finished_by_the_next_start() {
    let name = delivery("a");
    let (mut unfinished, mut finished) = (0, 0);
    for operation in 1..20 {
        let storage = MemoryStorage::new();
        let (broker, seat, _) = node(&storage).await;
        broker.create_delivery(new("a", direct(1))).await.unwrap();
        let deleted = broker.delete_delivery(&name, DeliveryEnd::Drop, Duration::ZERO);
        deleted.await.unwrap_err();
        storage.crash_after(operation);
        let removed = desk(&seat, "a").remove().await;
        // Nothing that was not synced is left.
        let image = storage.crash_keeping(Grain::Page, 0);
        drop((broker, seat));
        let broker = open(&image).await;
        let seat = attach(&broker);
        let stream = broker.describe_stream(&backing("a"));
        if broker.describe_delivery(&name).is_ok() {
            assert!(removed.is_err(), "{operation}");
            assert!(stream.is_ok(), "{operation}");
            assert_eq!(
                ends(desk(&seat, "a")).await.unwrap(),
                Some(DeliveryEnd::Drop)
            );
            unfinished += 1;
        } else {
            assert!(stream.is_err(), "{operation}");
            finished += 1;
        }
        assert!(broker.describe_stream(&backing("a")).is_err());
        let again = broker.create_delivery(new("a", direct(1))).await;
        assert_eq!(again.unwrap().id.value(), 2, "{operation}");
    }
    assert!(unfinished > 0 && finished > 0, "{unfinished} {finished}");
}

#[tokio::test]
async fn a_failed_log_says_so_until_the_next_start() {
    let storage = MemoryStorage::new();
    let (broker, seat, stream) = node(&storage).await;
    broker
        .create_delivery(new("a", reads(&stream)))
        .await
        .unwrap();
    let desk = desk(&seat, "a");
    desk.save(Bytes::from_static(b"1"), Vec::new())
        .await
        .unwrap();
    storage.inject(Fault {
        on: Some(OperationKind::Sync),
        skip: 0,
        times: u64::MAX,
        error: FaultError::Io,
    });
    let failed = Error::DeliveriesFailed;
    for _ in 0..2 {
        let saved = desk.save(Bytes::from_static(b"2"), Vec::new()).await;
        assert_eq!(saved, Err(failed.clone()));
    }
    storage.clear_faults();
    let name = delivery("a");
    assert_eq!(broker.pause_delivery(&name).await, Err(failed.clone()));
    let created = broker.create_delivery(new("b", reads(&stream))).await;
    assert_eq!(created, Err(failed.clone()));
    assert_eq!(broker.flush_delivery(&name, WAIT).await, Err(failed));
    assert_eq!(desk.progress(), "1");
    assert!(!broker.describe_delivery(&name).unwrap().paused);
    drop((broker, seat));
    let broker = open(&storage.kill()).await;
    let progress = self::desk(&attach(&broker), "a").progress();
    // Whether it was written nobody knew.
    assert!(progress == "1" || progress == "2", "{progress:?}");
    broker.pause_delivery(&name).await.unwrap();
}

#[tokio::test]
async fn a_stream_that_is_used_stays() {
    let (broker, seat, stream) = node(&MemoryStorage::new()).await;
    let failed = create(&broker, "failed", 1, StreamSettings::default()).await;
    let with_dead_letters = DeliverySettings {
        dead_letters: Some(StreamNameText(failed.clone())),
        ..reads(&stream)
    };
    let itself = DeliverySettings {
        dead_letters: Some(StreamNameText(stream.clone())),
        ..reads(&stream)
    };
    let refused = broker.create_delivery(new("a", itself)).await;
    let setting = "dead_letters";
    let is_so =
        matches!(&refused, Err(Error::DeliverySetting { setting: found, .. }) if *found == setting);
    assert!(is_so, "{refused:?}");
    broker
        .create_delivery(new("a", with_dead_letters))
        .await
        .unwrap();
    for used in [&stream, &failed] {
        let refused = broker.delete_stream(used).await;
        let in_use = Error::StreamInUse {
            stream: used.clone(),
            delivery: delivery("a"),
        };
        assert_eq!(refused, Err(in_use));
    }
    broker
        .update_delivery(&delivery("a"), None, reads(&stream))
        .await
        .unwrap();
    broker.delete_stream(&failed).await.unwrap();
    let runner = ends(desk(&seat, "a"));
    broker
        .delete_delivery(&delivery("a"), DeliveryEnd::Drop, WAIT)
        .await
        .unwrap();
    runner.await.unwrap();
    broker.delete_stream(&stream).await.unwrap();
}

#[tokio::test]
async fn the_backlog_is_what_is_in_no_cut() {
    let storage = Arc::new(MemoryStorage::new());
    let clock = clock();
    let broker = open_with(storage, config(), clock.clone()).await;
    let seat = attach(&broker);
    let stream = create(&broker, "readings", 2, StreamSettings::default()).await;
    broker
        .create_delivery(new("a", reads(&stream)))
        .await
        .unwrap();
    let desk = desk(&seat, "a");
    let backlog = || broker.describe_delivery(&delivery("a")).unwrap().backlog;
    assert_eq!((backlog().records, backlog().oldest), (0, None));
    let begun = clock.now();
    for _ in 0..5 {
        let records = (0..2).map(|index| record_for(index, 2, "data"));
        broker.put(&stream, records.collect()).await.unwrap();
        clock.advance(SECOND);
    }
    assert_eq!(backlog().records, 10);
    assert!(backlog().bytes > 0);
    assert_eq!(backlog().oldest, Some(begun));
    desk.deliver_from(vec![(shard(0), number(3))], None);
    assert_eq!(backlog().records, 7);
    let known = begun.saturating_add(SECOND);
    let positions = vec![(shard(0), number(3)), (shard(1), number(1))];
    desk.deliver_from(positions, Some(known));
    assert_eq!((backlog().records, backlog().oldest), (6, Some(known)));
    assert_eq!(backlog().freshness(clock.now()), 4 * SECOND);
    let positions = vec![(shard(0), number(5)), (shard(1), number(5))];
    desk.deliver_from(positions, Some(known));
    desk.expired(4);
    assert_eq!((backlog().records, backlog().oldest), (0, None));
    assert_eq!(backlog().expired, 4);
    let start = StartPosition::AtTimestamp(known);
    let found = broker.resolve_start(&stream, shard(1), start).await;
    assert_eq!(found, Ok(number(1)));
    let beyond = broker.resolve_start(&stream, shard(2), start).await;
    assert!(matches!(beyond, Err(Error::ShardNotFound { .. })));
}

/// A node whose stream keeps records for an hour, and holds for two more at most.
async fn holding(storage: &MemoryStorage, clock: &Clock) -> (Broker, DeliverySeat) {
    let config = BrokerConfig {
        // Only when the test says so.
        retention_interval_ms: u64::MAX / 1_000_000,
        ..config()
    };
    let mut config = config;
    config.delivery.hold_ms_max = 2 * 3_600_000;
    let broker = open_with(Arc::new(storage.clone()), config, clock.clone()).await;
    let seat = attach(&broker);
    (broker, seat)
}

fn horizon(broker: &Broker) -> u64 {
    let described = broker.describe_stream(&name("readings")).unwrap();
    described.shards[0].trim_horizon.value()
}

#[tokio::test]
async fn retention_waits_for_what_is_held_but_not_for_ever() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let (broker, seat) = holding(&storage, &clock).await;
    let kept = StreamSettings {
        retention: HOUR,
        ..StreamSettings::default()
    };
    let stream = create(&broker, "readings", 1, kept).await;
    broker
        .create_delivery(new("a", reads(&stream)))
        .await
        .unwrap();
    broker
        .create_delivery(new("b", reads(&stream)))
        .await
        .unwrap();
    for _ in 0..4 {
        broker
            .put(&stream, vec![record("key", "data")])
            .await
            .unwrap();
        clock.advance(Duration::from_secs(60));
    }
    let hold = |text: &'static str, from: u64| {
        let desk = desk(&seat, text);
        async move {
            let held = vec![(shard(0), number(from))];
            desk.save(Bytes::new(), held).await.unwrap();
        }
    };
    hold("a", 1).await;
    hold("b", 2).await;
    clock.advance(HOUR);
    broker.apply_retention().await.unwrap();
    assert_eq!(horizon(&broker), 1);
    // Known before retention looks for the first time.
    drop((broker, seat));
    let storage = storage.crash_keeping(Grain::Page, 0);
    let (broker, seat) = holding(&storage, &clock).await;
    broker.apply_retention().await.unwrap();
    assert_eq!(horizon(&broker), 1);
    // What is delivered is let go.
    desk(&seat, "a")
        .save(Bytes::new(), Vec::new())
        .await
        .unwrap();
    broker.apply_retention().await.unwrap();
    assert_eq!(horizon(&broker), 2);
    // Two hours after it expired it goes all the same.
    clock.advance(2 * HOUR - Duration::from_secs(150));
    broker.apply_retention().await.unwrap();
    assert_eq!(horizon(&broker), 2);
    clock.advance(Duration::from_secs(45));
    broker.apply_retention().await.unwrap();
    assert_eq!(horizon(&broker), 3);
    clock.advance(HOUR);
    broker.apply_retention().await.unwrap();
    assert_eq!(horizon(&broker), 4);
}

#[tokio::test]
async fn bounds_in_bytes_wait_for_what_is_held_as_well() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let (broker, seat) = holding(&storage, &clock).await;
    let kept = StreamSettings {
        retention_bytes: Some(100 << 10),
        ..StreamSettings::default()
    };
    let stream = create(&broker, "readings", 1, kept).await;
    broker
        .create_delivery(new("a", reads(&stream)))
        .await
        .unwrap();
    for _ in 0..8 {
        let large = vec![7; 50 << 10];
        broker
            .put(&stream, vec![record("key", large)])
            .await
            .unwrap();
    }
    let held = vec![(shard(0), number(3))];
    desk(&seat, "a").save(Bytes::new(), held).await.unwrap();
    broker.apply_retention().await.unwrap();
    assert_eq!(horizon(&broker), 3);
    clock.advance(2 * HOUR + SECOND);
    broker.apply_retention().await.unwrap();
    let now = horizon(&broker);
    assert!((6..8).contains(&now), "{now}");
}
