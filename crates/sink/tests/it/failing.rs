//! Destinations that fail, for a while or for good, and what is bounded meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flumen_broker::{
    Broker, Clock, DeliveryPhase, DeliverySettings, Destination, ObjectSettings, Reshard,
    SettingRefused, StreamSettings,
};
use flumen_log::MemoryStorage;
use flumen_record::{DeliveryName, Record, ShardIndex, StreamName, Timestamp};
use flumen_sink::fault::{Fault, FaultPlan, FaultyStore, Outage};
use flumen_sink::{Destinations, SinkConfig, Store, StoreConfig};
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt};

use crate::fixture::{
    Delivered, Named, Only, Rig, bytes_in, create_stream, deliver, delivery_name, flush, memory,
    put, settings, until, until_failed,
};
use crate::watched::{Fate, Watched};

const BEGIN: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);
const MIB: u64 = 1 << 20;
const HOUR: Duration = Duration::from_secs(3600);

fn retention() -> Duration {
    StreamSettings::default().retention
}

fn outage(fault: Fault) -> FaultPlan {
    FaultPlan {
        outages: vec![Outage {
            from: 0,
            operations: u64::MAX,
            fault,
        }],
        ..FaultPlan::default()
    }
}

/// Numbered records of 100 kB.
async fn put_large(broker: &Broker, stream: &StreamName, numbers: std::ops::Range<u64>) {
    let padding = "x".repeat(100_000);
    for n in numbers {
        let record = Record {
            partition_key: Bytes::from(format!("key-{n}")),
            explicit_hash_key: None,
            data: Bytes::from(format!("{{\"n\":{n},\"padding\":\"{padding}\"}}")),
            client_timestamp: None,
            headers: Vec::new(),
        };
        for outcome in broker.put(stream, vec![record]).await.unwrap() {
            outcome.unwrap();
        }
    }
}

/// Waits until nothing more is read, and the cut that is written has failed often.
async fn until_full(broker: &Broker, name: &DeliveryName) {
    let mut before = (0, 0);
    until(broker, name, |described| {
        let counts = described.counts;
        let is_still = before.0 == counts.incoming_records && counts.incoming_bytes >= 3 * MIB;
        if !is_still {
            before = (counts.incoming_records, counts.delivery_failures);
        }
        is_still && counts.delivery_failures >= before.1 + 3
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_is_away_bounds_what_is_held_and_comes_back() {
    let faults = [
        (Fault::NoSuchBucket, "no_such_bucket"),
        (Fault::ExpiredToken, "denied"),
        (Fault::SlowDown, "slow_down"),
        (Fault::ServerError, "server_error"),
    ];
    for (fault, reason) in faults {
        let (storage, objects) = (MemoryStorage::new(), memory());
        let spool = tempfile::tempdir().unwrap();
        let store = FaultyStore::new(objects.clone(), outage(fault));
        let rig = Rig::start_fast(&storage, Arc::new(store.clone()), spool.path(), BEGIN).await;
        let stream = create_stream(&rig.broker, "s", 1).await;
        // By size alone: by age the first cut would hold what happens to be there.
        let mut lazy = settings(&stream);
        lazy.buffering.interval_ms = 900_000;
        let name = deliver(&rig.broker, lazy).await;
        put_large(&rig.broker, &stream, 0..80).await;
        until_failed(&rig.broker, &name, DeliveryPhase::Retrying, reason).await;
        until_full(&rig.broker, &name).await;
        // Three cuts, and not more: one is written, one waits, one is closed.
        let described = rig.broker.describe_delivery(&name).unwrap();
        let most = 3 * (MIB + 110_000);
        assert!(described.counts.incoming_bytes <= most, "{described:#?}");
        assert!(bytes_in(spool.path()) <= most);
        assert_eq!(described.report.cuts_open, 1);
        assert_eq!(described.backlog.records, 80);
        assert_eq!(described.counts.throttled > 0, fault == Fault::SlowDown);
        // It asks now and then: at full pauses, each of at least 15 s, two of data and probe.
        let (asked, at) = (store.counts().operations, rig.clock.now());
        while rig.clock.now().since(at) < Duration::from_secs(60) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let asked = store.counts().operations - asked;
        assert!(asked < 200, "{asked} requests in a minute");
        store.set_plan(FaultPlan::default());
        let described = flush(&rig.broker, &name).await;
        assert_eq!(described.report.phase, DeliveryPhase::Running);
        assert_eq!(described.backlog.records, 0);
        let last = described.report.last_error.unwrap();
        assert_eq!(last.reason, reason, "it is kept");
        Delivered::read(&*objects).await.expect_numbers(0..80);
        rig.shutdown().await;
    }
}

async fn foreign(objects: &InMemory, key: &str) {
    let path = ObjectPath::parse(key).unwrap();
    objects.put(&path, "of somebody else".into()).await.unwrap();
}

async fn remove(objects: &InMemory, key: &str) {
    objects
        .delete(&ObjectPath::parse(key).unwrap())
        .await
        .unwrap();
}

/// Where another object stands in the way of a cut.
struct Conflict {
    rig: Rig,
    here: Arc<InMemory>,
    there: Arc<InMemory>,
    store: Watched,
    settings: DeliverySettings,
    name: DeliveryName,
    stream: StreamName,
    key: String,
    _spool: tempfile::TempDir,
}

impl Conflict {
    /// `part` is in the key of the create that meets it.
    async fn meet(part: &'static str) -> Self {
        let (storage, here, there) = (MemoryStorage::new(), memory(), memory());
        let spool = tempfile::tempdir().unwrap();
        let store = Watched::new(here.clone(), move |key| match key.contains(part) {
            true => Fate::Wait,
            false => Fate::Go,
        });
        let stores: BTreeMap<_, Arc<dyn ObjectStore>> = [
            ("test", Arc::new(store.clone()) as _),
            ("other", there.clone() as _),
        ]
        .into();
        let (clock, config) = (Clock::system(), SinkConfig::default());
        let named = Arc::new(Named(stores));
        let rig = Rig::start_with(&storage, named, spool.path(), clock, config).await;
        let stream = create_stream(&rig.broker, "s", 1).await;
        let settings = settings(&stream);
        put(&rig.broker, &stream, 0..50).await;
        let name = deliver(&rig.broker, settings.clone()).await;
        let key = store.asked(part).await;
        foreign(&here, &key).await;
        store.open();
        until_failed(&rig.broker, &name, DeliveryPhase::Stopped, "conflict").await;
        Self {
            rig,
            here,
            there,
            store,
            settings,
            name,
            stream,
            key,
            _spool: spool,
        }
    }

    async fn go_elsewhere(&mut self) {
        self.settings.destination = Destination::Memory {
            name: "other".to_owned(),
        };
        let updating = self
            .rig
            .broker
            .update_delivery(&self.name, None, self.settings.clone());
        updating.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_stops_until_somebody_removes_what_is_in_the_way() {
    let conflict = Conflict::meet("d-1-").await;
    let (broker, name) = (&conflict.rig.broker, &conflict.name);
    put(broker, &conflict.stream, 50..100).await;
    let creates = conflict.store.keys().len();
    let first = broker
        .describe_delivery(name)
        .unwrap()
        .report
        .last_error
        .unwrap();
    broker.resume_delivery(name).await.unwrap();
    until(broker, name, |described| {
        let stopped = described.report.phase == DeliveryPhase::Stopped;
        let last = described.report.last_error.as_ref().unwrap();
        stopped && last.at > first.at
    })
    .await;
    assert_eq!(
        conflict.store.keys().len(),
        creates + 1,
        "it tries once, and nothing else"
    );
    let key = ObjectPath::parse(&conflict.key).unwrap();
    let there = conflict
        .here
        .get(&key)
        .await
        .unwrap()
        .bytes()
        .await
        .unwrap();
    assert_eq!(there, "of somebody else");
    remove(&conflict.here, &conflict.key).await;
    broker.resume_delivery(name).await.unwrap();
    flush(broker, name).await;
    Delivered::read(&*conflict.here)
        .await
        .expect_numbers(0..100);
    conflict.rig.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_planned_goes_to_another_destination_after_a_conflict() {
    let mut conflict = Conflict::meet("d-1-").await;
    conflict.go_elsewhere().await;
    put(&conflict.rig.broker, &conflict.stream, 50..100).await;
    flush(&conflict.rig.broker, &conflict.name).await;
    let there = Delivered::read(&*conflict.there).await;
    there.expect_numbers(0..100);
    assert!(
        there
            .manifests
            .values()
            .all(|manifest| manifest["settings_version"] == 2)
    );
    assert!(there.strays.is_empty());
    let here = Delivered::read(&*conflict.here).await;
    assert!(here.manifests.is_empty());
    conflict.rig.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_that_may_have_its_manifest_stays_where_it_is() {
    let mut conflict = Conflict::meet("_manifest/").await;
    conflict.go_elsewhere().await;
    let broker = &conflict.rig.broker;
    put(broker, &conflict.stream, 50..100).await;
    let described = broker.describe_delivery(&conflict.name).unwrap();
    let first = described.report.last_error.unwrap().at;
    broker.resume_delivery(&conflict.name).await.unwrap();
    until(broker, &conflict.name, |described| {
        let last = described.report.last_error.as_ref().unwrap();
        described.report.phase == DeliveryPhase::Stopped && last.at > first
    })
    .await;
    assert!(Delivered::read(&*conflict.there).await.objects.is_empty());
    remove(&conflict.here, &conflict.key).await;
    broker.resume_delivery(&conflict.name).await.unwrap();
    flush(broker, &conflict.name).await;
    Delivered::read(&*conflict.here).await.expect_numbers(0..50);
    let there = Delivered::read(&*conflict.there).await;
    assert_eq!(there.numbers(), (50..100).collect::<Vec<_>>());
    conflict.rig.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_expire_before_delivery_are_counted() {
    let (storage, objects, spool) = (MemoryStorage::new(), memory(), tempfile::tempdir().unwrap());
    let clock = Clock::manual(BEGIN);
    let rig = Rig::start_at(&storage, objects.clone(), spool.path(), clock).await;
    let stream = create_stream(&rig.broker, "s", 2).await;
    let name = deliver(&rig.broker, settings(&stream)).await;
    put(&rig.broker, &stream, 0..10).await;
    flush(&rig.broker, &name).await;
    rig.broker.pause_delivery(&name).await.unwrap();
    put(&rig.broker, &stream, 10..30).await;
    rig.clock.advance(retention() + HOUR);
    rig.broker.apply_retention().await.unwrap();
    put(&rig.broker, &stream, 30..40).await;
    rig.broker.resume_delivery(&name).await.unwrap();
    let described = flush(&rig.broker, &name).await;
    assert_eq!(described.backlog.expired, 20);
    assert_eq!(described.backlog.records, 0);
    let delivered = Delivered::read(&*objects).await;
    delivered.expect_contiguous();
    assert_eq!(
        delivered.numbers(),
        (0..10).chain(30..40).collect::<Vec<_>>()
    );
    let expired = delivered
        .manifests
        .values()
        .map(|manifest| manifest["expired"].as_u64());
    assert_eq!(expired.map(Option::unwrap).sum::<u64>(), 20);
    rig.shutdown().await;
    // It is remembered.
    let clock = Clock::manual(BEGIN.saturating_add(retention() + 2 * HOUR));
    let rig = Rig::start_at(&storage, objects.clone(), spool.path(), clock).await;
    until(&rig.broker, &name, |described| {
        described.backlog.expired == 20
    })
    .await;
    rig.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_planned_does_not_expire() {
    let (storage, objects, spool) = (MemoryStorage::new(), memory(), tempfile::tempdir().unwrap());
    let clock = Clock::manual(BEGIN);
    let store = FaultyStore::new(objects.clone(), outage(Fault::ServerError));
    let rig = Rig::start_at(&storage, Arc::new(store), spool.path(), clock).await;
    let stream = create_stream(&rig.broker, "s", 1).await;
    let name = deliver(&rig.broker, settings(&stream)).await;
    put(&rig.broker, &stream, 0..10).await;
    until(&rig.broker, &name, |described| {
        described.report.cuts_open == 1
    })
    .await;
    let storage = storage.kill();
    rig.kill().await;
    let clock = Clock::manual(BEGIN.saturating_add(retention() + HOUR));
    let store = FaultyStore::new(objects.clone(), outage(Fault::ServerError));
    let mut rig = Rig::start_at(&storage, Arc::new(store.clone()), spool.path(), clock).await;
    rig.broker.apply_retention().await.unwrap();
    let described = rig.broker.describe_stream(&stream).unwrap();
    assert_eq!(described.shards[0].trim_horizon.value(), 0);
    store.set_plan(FaultPlan::default());
    rig.tick();
    flush(&rig.broker, &name).await;
    Delivered::read(&*objects).await.expect_numbers(0..10);
    // Now it may go.
    rig.broker.apply_retention().await.unwrap();
    let described = rig.broker.describe_stream(&stream).unwrap();
    assert_eq!(described.shards[0].trim_horizon.value(), 10);
    rig.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_expires_whole_holds_up_no_flush() {
    let (storage, objects, spool) = (MemoryStorage::new(), memory(), tempfile::tempdir().unwrap());
    let store = FaultyStore::new(objects.clone(), outage(Fault::ServerError));
    let clock = Clock::manual(BEGIN);
    let mut rig = Rig::start_at(&storage, Arc::new(store.clone()), spool.path(), clock).await;
    let stream = create_stream(&rig.broker, "s", 1).await;
    let mut lazy = settings(&stream);
    lazy.buffering.interval_ms = 900_000;
    let name = deliver(&rig.broker, lazy).await;
    put_large(&rig.broker, &stream, 0..80).await;
    until(&rig.broker, &name, |described| {
        described.counts.incoming_bytes >= 3 * MIB
    })
    .await;
    let split = Reshard::Split {
        shard: ShardIndex::new(0),
        at: None,
    };
    rig.broker.reshard(&stream, split).await.unwrap();
    put(&rig.broker, &stream, 80..90).await;
    // Also beyond what is held for it.
    rig.clock.advance(retention() + 48 * HOUR);
    rig.broker.apply_retention().await.unwrap();
    let described = rig.broker.describe_stream(&stream).unwrap();
    assert!(
        described
            .shards
            .iter()
            .all(|shard| shard.index != ShardIndex::new(0))
    );
    put(&rig.broker, &stream, 90..100).await;
    store.set_plan(FaultPlan::default());
    rig.tick();
    let described = flush(&rig.broker, &name).await;
    let delivered = Delivered::read(&*objects).await;
    let numbers = delivered.numbers();
    assert!(
        numbers.ends_with(&(90..100).collect::<Vec<_>>()),
        "{numbers:?}"
    );
    assert_eq!(
        numbers.len() as u64 + described.backlog.expired,
        100 - lost(&numbers)
    );
    rig.shutdown().await;
}

/// Records of children that expired before anything of theirs was read.
fn lost(numbers: &[u64]) -> u64 {
    10 - numbers.iter().filter(|n| (80..90).contains(*n)).count() as u64
}

/// Destinations that cannot be opened without a panic, once told so.
#[derive(Debug)]
struct Panicking {
    objects: Arc<InMemory>,
    now: std::sync::atomic::AtomicBool,
}

impl Destinations for Panicking {
    fn open(
        &self,
        destination: &Destination,
        object: &ObjectSettings,
        config: &StoreConfig,
    ) -> Result<Store, SettingRefused> {
        let bad = Destination::Memory {
            name: "bad".to_owned(),
        };
        let now = self.now.load(std::sync::atomic::Ordering::Relaxed);
        assert!(!now || *destination != bad, "a bug, made for the test");
        Only(self.objects.clone()).open(
            &Destination::Memory {
                name: "x".to_owned(),
            },
            object,
            config,
        )
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bug_stops_one_delivery_stream_and_not_the_others() {
    let (storage, objects, spool) = (MemoryStorage::new(), memory(), tempfile::tempdir().unwrap());
    let destinations = Arc::new(Panicking {
        objects: objects.clone(),
        now: false.into(),
    });
    let (clock, config) = (Clock::system(), SinkConfig::default());
    let rig = Rig::start_with(&storage, destinations.clone(), spool.path(), clock, config).await;
    let stream = create_stream(&rig.broker, "s", 1).await;
    let mut bad = settings(&stream);
    bad.destination = Destination::Memory {
        name: "bad".to_owned(),
    };
    let bad = flumen_broker::NewDelivery {
        name: delivery_name("bad"),
        settings: bad,
    };
    let bad = rig.broker.create_delivery(bad).await.unwrap().name;
    let name = deliver(&rig.broker, settings(&stream)).await;
    until(&rig.broker, &bad, |described| {
        described.report.phase == DeliveryPhase::Running
    })
    .await;
    destinations
        .now
        .store(true, std::sync::atomic::Ordering::Relaxed);
    rig.broker.pause_delivery(&bad).await.unwrap();
    rig.broker.resume_delivery(&bad).await.unwrap();
    until_failed(&rig.broker, &bad, DeliveryPhase::Stopped, "bug").await;
    put(&rig.broker, &stream, 0..100).await;
    flush(&rig.broker, &name).await;
    Delivered::read(&*objects).await.expect_numbers(0..100);
    // It can be deleted.
    let end = flumen_broker::DeliveryEnd::Drop;
    rig.broker
        .delete_delivery(&bad, end, crate::fixture::WAIT)
        .await
        .unwrap();
    rig.shutdown().await;
}

/// Nobody is there to resume it: the update was made before the restart.
#[tokio::test(flavor = "multi_thread")]
async fn an_update_away_from_a_dead_destination_outlives_a_restart() {
    let (storage, there, spool) = (MemoryStorage::new(), memory(), tempfile::tempdir().unwrap());
    let dead = FaultyStore::new(memory(), outage(Fault::NoSuchBucket));
    let stores: BTreeMap<&str, Arc<dyn ObjectStore>> = [
        ("test", Arc::new(dead) as Arc<dyn ObjectStore>),
        ("there", there.clone() as Arc<dyn ObjectStore>),
    ]
    .into();
    let named = Arc::new(Named(stores));
    let start = |storage: MemoryStorage, from| {
        let (named, spool) = (Arc::clone(&named), spool.path().to_owned());
        async move {
            let config = SinkConfig {
                probe: false,
                ..SinkConfig::default()
            };
            let clock = Clock::manual(from);
            let mut rig = Rig::start_with(&storage, named, &spool, clock, config).await;
            rig.tick();
            rig
        }
    };
    let rig = start(storage.clone(), BEGIN).await;
    let stream = create_stream(&rig.broker, "s", 1).await;
    let name = deliver(&rig.broker, settings(&stream)).await;
    put(&rig.broker, &stream, 0..10).await;
    until(&rig.broker, &name, |described| {
        described.report.cuts_open == 1
    })
    .await;
    rig.broker.pause_delivery(&name).await.unwrap();
    let elsewhere = DeliverySettings {
        destination: Destination::Memory {
            name: "there".to_owned(),
        },
        ..settings(&stream)
    };
    let updated = rig.broker.update_delivery(&name, None, elsewhere).await;
    updated.unwrap();
    let storage = storage.kill();
    rig.kill().await;
    let rig = start(storage, BEGIN.saturating_add(HOUR)).await;
    // A resume makes it try, but this process does not know that the old place ever failed.
    rig.broker.resume_delivery(&name).await.unwrap();
    flush(&rig.broker, &name).await;
    Delivered::read(&*there).await.expect_numbers(0..10);
    rig.shutdown().await;
}
