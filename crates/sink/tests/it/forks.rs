//! A data directory that is copied, or restored from a backup: two states of one delivery stream write
//! under one name. Cuts of equal numbers hold other records then. Whoever comes second stops as
//! `conflict`; under a new incarnation it delivers what it has and the other does not.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use flumen_broker::{Broker, BrokerConfig, Clock, DeliveryPhase, Destination};
use flumen_log::{DiskStorage, MemoryStorage};
use flumen_record::{DeliveryName, StreamName, Timestamp};
use flumen_sink::fault::{Conditions, Crash, FaultPlan, FaultyStore};
use flumen_sink::{Manifests, RealDestinations, Sink, SinkConfig};
use flumen_stream::delivery::{DeliveryConfig, DeliveryLog, DeliveryProgress};
use flumen_stream::{Catalog, NewStream, StreamConfig, StreamSettings};
use futures_util::TryStreamExt;
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt};

use crate::fixture::{
    Delivered, Rig, WAIT, create_stream, deliver, delivery_name, flush, memory, put, settings,
    shared, stream_name, until_failed,
};

const BEGIN: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);
const HOUR: Duration = Duration::from_secs(3600);

/// One of the two data directories.
struct Side {
    storage: MemoryStorage,
    spool: tempfile::TempDir,
    /// How often it was started.
    lives: u32,
}

impl Side {
    fn new(storage: MemoryStorage) -> Self {
        Self {
            storage,
            spool: tempfile::tempdir().unwrap(),
            lives: 0,
        }
    }

    /// Files and all.
    fn copy(&self) -> Self {
        let copy = Self::new(self.storage.duplicate());
        copy_files(self.spool.path(), copy.spool.path());
        copy
    }

    async fn start(&mut self, store: Arc<dyn ObjectStore>) -> Rig {
        self.lives += 1;
        let at = BEGIN.saturating_add(HOUR * self.lives);
        Rig::start_fast(&self.storage, store, self.spool.path(), at).await
    }

    async fn kill(&mut self, rig: Rig) {
        self.storage = self.storage.kill();
        rig.kill().await;
    }
}

fn copy_files(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.metadata().unwrap().is_dir() {
            copy_files(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

fn stream() -> StreamName {
    stream_name("s")
}

fn delivery() -> DeliveryName {
    delivery_name("d")
}

/// One directory that has delivered ten records.
async fn begun(objects: &Arc<InMemory>) -> Side {
    let mut side = Side::new(MemoryStorage::new());
    let rig = side.start(shared(objects)).await;
    let stream = create_stream(&rig.broker, "s", 1).await;
    put(&rig.broker, &stream, 0..10).await;
    let name = deliver(&rig.broker, settings(&stream)).await;
    flush(&rig.broker, &name).await;
    rig.shutdown().await;
    side
}

async fn put_and_flush(broker: &Broker, numbers: std::ops::Range<u64>) {
    put(broker, &stream(), numbers).await;
    flush(broker, &delivery()).await;
}

async fn stopped(broker: &Broker) {
    let described = until_failed(broker, &delivery(), DeliveryPhase::Stopped, "conflict").await;
    let text = described.report.last_error.unwrap().text;
    assert!(text.contains("--new-incarnation"), "{text}");
}

async fn renew(broker: &Broker) {
    let renewed = broker.renew_delivery(&delivery(), 1000 * WAIT).await;
    renewed.expect("it goes on");
}

/// Each of these is there once, in lives whose cuts have no gaps.
async fn expect(objects: &InMemory, numbers: &[std::ops::Range<u64>]) {
    let delivered = Delivered::read(objects).await;
    let expected: Vec<_> = numbers.iter().cloned().flatten().collect();
    assert_eq!(delivered.numbers(), expected);
    let mut lives = BTreeSet::new();
    for manifest in delivered.manifests.values() {
        let life = manifest["incarnation"].as_str().unwrap().to_owned();
        let cut = manifest["cut"].as_u64().unwrap();
        assert!(
            cut == 0 || lives.contains(&(life.clone(), cut - 1)),
            "{life} {cut}"
        );
        lives.insert((life, cut));
    }
}

/// The trace of the issue: `cp -r` after a cut, the first broker goes on for three cuts, the copy starts
/// and delivers three others. They were lost in silence: their names were found taken, by cuts that
/// had the same numbers. Both orders of who goes first.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_delivers_too_stops_and_loses_nothing() {
    for copy_first in [false, true] {
        let objects = memory();
        let mut first = begun(&objects).await;
        let mut second = first.copy();
        if copy_first {
            std::mem::swap(&mut first, &mut second);
        }
        let rig = first.start(shared(&objects)).await;
        for cut in 0..3 {
            put_and_flush(&rig.broker, 100 + cut..101 + cut).await;
        }
        let other = second.start(shared(&objects)).await;
        stopped(&other.broker).await;
        put(&other.broker, &stream(), 200..203).await;
        // It says so after a restart as well, and nobody has to have seen it before.
        second.kill(other).await;
        let other = second.start(shared(&objects)).await;
        stopped(&other.broker).await;
        expect(&objects, &[0..10, 100..103]).await;

        renew(&other.broker).await;
        flush(&other.broker, &delivery()).await;
        put_and_flush(&other.broker, 203..204).await;
        put_and_flush(&rig.broker, 103..104).await;
        expect(&objects, &[0..10, 100..104, 200..204]).await;
        // A plain restart knows its life.
        other.shutdown().await;
        let other = second.start(shared(&objects)).await;
        put_and_flush(&other.broker, 204..205).await;
        expect(&objects, &[0..10, 100..104, 200..205]).await;
        other.shutdown().await;
        rig.shutdown().await;
    }
}

/// Both run when they meet, and one of them, or both, die at any request to the store: between an
/// object, its manifest and the position behind it. A restart finds its own half-written cut; who lost
/// the race for a number notices.
#[tokio::test(flavor = "multi_thread")]
async fn two_copies_that_race_and_die_at_any_request_lose_nothing() {
    let mut deaths = 0;
    for at in 0.. {
        let mut survived = true;
        for (after_effect, both) in [(false, false), (true, true)] {
            let objects = memory();
            let mut first = begun(&objects).await;
            let mut second = first.copy();
            let plan = FaultPlan {
                crash: Some(Crash { at, after_effect }),
                ..FaultPlan::default()
            };
            let faulty = FaultyStore::new(shared(&objects), plan.clone());
            let calm = FaultyStore::new(shared(&objects), FaultPlan::default());
            let rig = first.start(Arc::new(faulty.clone())).await;
            let other = second.start(Arc::new(calm.clone())).await;
            put(&rig.broker, &stream(), 100..105).await;
            let died = race(&rig.broker, &faulty).await;
            faulty.set_plan(FaultPlan::default());
            deaths += u32::from(died);
            survived &= !died;
            let rig = again(&mut first, rig, died, &objects).await;
            flush(&rig.broker, &delivery()).await;

            if both {
                calm.set_plan(plan);
            }
            put(&other.broker, &stream(), 200..205).await;
            let died = tokio::select! {
                () = stopped(&other.broker) => false,
                () = calm.crashed() => true,
            };
            deaths += u32::from(died);
            calm.set_plan(FaultPlan::default());
            let other = again(&mut second, other, died, &objects).await;
            stopped(&other.broker).await;
            renew(&other.broker).await;
            flush(&other.broker, &delivery()).await;
            put_and_flush(&rig.broker, 105..107).await;
            expect(&objects, &[0..10, 100..107, 200..205]).await;
            rig.kill().await;
            other.kill().await;
        }
        if survived {
            break;
        }
    }
    assert!(deaths > 5, "{deaths} deaths");
}

/// Whether it dies before everything is delivered.
async fn race(broker: &Broker, faulty: &FaultyStore) -> bool {
    let name = delivery();
    tokio::select! {
        _ = flush(broker, &name) => false,
        () = faulty.crashed() => true,
    }
}

/// The same, or what starts after its death.
async fn again(side: &mut Side, rig: Rig, died: bool, objects: &Arc<InMemory>) -> Rig {
    if !died {
        return rig;
    }
    side.kill(rig).await;
    side.start(shared(objects)).await
}

/// Copied while a cut is under way, at any request to the store: it is the same cut on both sides, with
/// the same records, so whoever comes second finds it done. What they plan afterwards is not.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_cut_under_way_is_the_same_cut() {
    let mut copies = 0;
    for at in 0.. {
        let objects = memory();
        let mut first = begun(&objects).await;
        let crash = Some(Crash {
            at,
            after_effect: at % 2 == 0,
        });
        let plan = FaultPlan {
            crash,
            ..FaultPlan::default()
        };
        let faulty = FaultyStore::new(shared(&objects), plan);
        let rig = first.start(Arc::new(faulty.clone())).await;
        put(&rig.broker, &stream(), 10..20).await;
        let died = race(&rig.broker, &faulty).await;
        first.kill(rig).await;
        let mut second = first.copy();
        copies += 1;
        let rig = first.start(shared(&objects)).await;
        flush(&rig.broker, &delivery()).await;
        let described = rig.broker.describe_delivery(&delivery()).unwrap();
        let planned_before = described.report.cuts == 2;
        assert!(planned_before);
        let other = second.start(shared(&objects)).await;
        put(&other.broker, &stream(), 200..205).await;
        // Either that cut was planned when the copy was made, or it has to plan it, and may not.
        let described = flush_or_stop(&other.broker).await;
        if described {
            put(&rig.broker, &stream(), 100..105).await;
            stopped_after_flush(&rig.broker).await;
            renew(&rig.broker).await;
            flush(&rig.broker, &delivery()).await;
            expect(&objects, &[0..20, 100..105, 200..205]).await;
        } else {
            let delivered = Delivered::read(&*objects).await;
            delivered.expect_numbers(0..20);
            renew(&other.broker).await;
            flush(&other.broker, &delivery()).await;
            let delivered = Delivered::read(&*objects).await;
            let unique: BTreeSet<_> = delivered.numbers().into_iter().collect();
            // These ten were in both directories and in no cut of the second: it delivers them too.
            let expected: BTreeSet<_> = (0..20).chain(200..205).collect();
            assert_eq!(unique, expected);
        }
        rig.kill().await;
        other.kill().await;
        if !died {
            break;
        }
    }
    assert!(copies > 3, "{copies} copies");
}

/// Whether everything is delivered; otherwise it has stopped as a conflict.
async fn flush_or_stop(broker: &Broker) -> bool {
    let name = delivery();
    tokio::select! {
        _ = flush(broker, &name) => true,
        () = stopped(broker) => false,
    }
}

async fn stopped_after_flush(broker: &Broker) {
    assert!(!flush_or_stop(broker).await, "nobody noticed");
}

/// A store that lets all racing creates win: the manifest of one was replaced by the other's. The one
/// that lost finds that before its next manifest, and delivers those records again.
#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_was_replaced_is_noticed_by_the_next() {
    let objects = memory();
    let plan = FaultPlan {
        conditions: Conditions::Ignored,
        ..FaultPlan::default()
    };
    let store: Arc<dyn ObjectStore> = Arc::new(FaultyStore::new(shared(&objects), plan));
    let mut first = begun(&objects).await;
    let mut second = first.copy();
    let rig = first.start(Arc::clone(&store)).await;
    let other = second.start(Arc::clone(&store)).await;
    put_and_flush(&rig.broker, 100..105).await;
    // The other looks before it writes, since it does not know yet that conditions are kept.
    put(&other.broker, &stream(), 200..205).await;
    stopped(&other.broker).await;
    // It was on its way when the other one looked: it is there now, in place of the first.
    let manifests = manifest_keys(&objects).await;
    let key = ObjectPath::parse(manifests.last().unwrap()).unwrap();
    let mine = objects.get(&key).await.unwrap().bytes().await.unwrap();
    let text = String::from_utf8(mine.to_vec()).unwrap();
    let theirs = text.replace("\"epoch\": \"", "\"epoch\": \"00000000");
    assert_ne!(theirs, text);
    objects.put(&key, theirs.into_bytes().into()).await.unwrap();
    put(&rig.broker, &stream(), 105..107).await;
    stopped(&rig.broker).await;
    renew(&rig.broker).await;
    flush(&rig.broker, &delivery()).await;
    renew(&other.broker).await;
    flush(&other.broker, &delivery()).await;
    // What stood in the manifest that was replaced is in the new life as well, as a whole.
    objects.delete(&key).await.unwrap();
    let delivered = Delivered::read(&*objects).await;
    let numbers: BTreeSet<_> = delivered.numbers().into_iter().collect();
    let expected: BTreeSet<_> = (0..10).chain(100..107).chain(200..205).collect();
    assert_eq!(numbers, expected);
    rig.kill().await;
    other.kill().await;
}

async fn manifest_keys(objects: &InMemory) -> Vec<String> {
    let listed: Vec<_> = objects.list(None).try_collect().await.unwrap();
    let keys = listed.into_iter().map(|meta| meta.location.to_string());
    let mut keys: Vec<_> = keys.filter(|key| key.contains("_manifest/")).collect();
    keys.sort();
    keys
}

/// A planned cut whose object has other bytes than the same records have now, as when they were read in
/// another order of their shards: it is named with the size and checksum that the store has, and nothing
/// is left without a manifest.
#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_was_encoded_otherwise_is_named_as_it_is() {
    let objects = memory();
    let mut side = begun(&objects).await;
    // Dies when it writes the manifest: the object is there.
    let crash = Some(Crash {
        at: 4,
        after_effect: false,
    });
    let plan = FaultPlan {
        crash,
        ..FaultPlan::default()
    };
    let faulty = FaultyStore::new(shared(&objects), plan);
    let rig = side.start(Arc::new(faulty.clone())).await;
    put(&rig.broker, &stream(), 10..20).await;
    assert!(race(&rig.broker, &faulty).await);
    side.kill(rig).await;
    let strays = Delivered::read(&*objects).await.strays;
    let key = ObjectPath::parse(strays.iter().next().expect("the object")).unwrap();
    let got = objects.get(&key).await.unwrap();
    let mut attributes = got.attributes.clone();
    let bytes = got.bytes().await.unwrap();
    let (last, rows) = bytes.split_last().unwrap();
    let other: bytes::Bytes = [rows, b" ", &[*last]].concat().into();
    let crc32 = format!("{:08x}", crc32fast::hash(&other));
    attributes.insert(
        object_store::Attribute::Metadata("flumen-crc32".into()),
        crc32.into(),
    );
    objects
        .put_opts(&key, other.into(), attributes.into())
        .await
        .unwrap();
    let rig = side.start(shared(&objects)).await;
    flush(&rig.broker, &delivery()).await;
    rig.shutdown().await;
    let delivered = Delivered::read(&*objects).await;
    delivered.expect_numbers(0..20);
    assert!(delivered.strays.is_empty(), "{:?}", delivered.strays);
}

/// What the version before this one has stored: no epoch in progress, cuts and manifests. It goes on,
/// also with a cut that it left half-written, and finds a manifest that it wrote.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_the_version_before_goes_on() {
    for sealed in [false, true] {
        let objects = memory();
        let mut side = begun(&objects).await;
        let rig = side.start(shared(&objects)).await;
        let described = rig.broker.describe_delivery(&delivery()).unwrap();
        rig.broker.pause_delivery(&delivery()).await.unwrap();
        put(&rig.broker, &stream(), 10..20).await;
        rig.shutdown().await;
        let storage = Arc::new(side.storage.clone());
        let (mut log, _) = DeliveryLog::open(storage, DeliveryConfig::default(), BEGIN).unwrap();
        let settings = serde_json::to_value(&*described.settings).unwrap();
        let stage = if sealed { "sealing" } else { "planned" };
        let progress = serde_json::json!({
            "form": 1, "next_cut": 2, "positions": {"0": 20}, "expired": 0,
            "cuts": [{
                "number": 1, "version": 1, "ranges": [{"shard": 0, "from": 10, "to": 20}],
                "oldest_us": 1, "records": 10, "stage": stage,
            }],
            "settings": settings, "schema_before": [], "schema": [],
        });
        let progress = DeliveryProgress {
            bytes: progress.to_string().into(),
            held: Vec::new(),
        };
        log.save(vec![(described.id, progress)], BEGIN).unwrap();
        let mut definition = log.get(described.id).unwrap().definition.clone();
        definition.paused = false;
        log.set(described.id, definition, BEGIN).unwrap();
        log.close(BEGIN).unwrap();
        let keys = manifest_keys(&objects).await;
        old_manifest(&objects, &keys[0], |_| {}).await;
        if sealed {
            // It had committed, and died before it said so.
            let mut before = side.copy();
            let rig = before.start(shared(&objects)).await;
            flush(&rig.broker, &delivery()).await;
            rig.kill().await;
            let keys = manifest_keys(&objects).await;
            let written = old_manifest(&objects, &keys[1], |manifest| {
                assert!(manifest.get("epoch").is_none(), "{manifest}");
            });
            written.await;
        }
        let rig = side.start(shared(&objects)).await;
        put_and_flush(&rig.broker, 20..30).await;
        rig.shutdown().await;
        let delivered = Delivered::read(&*objects).await;
        delivered.expect_numbers(0..30);
        delivered.expect_no_strays();
        assert_eq!(delivered.manifests.len(), 3);
    }
}

/// A manifest as the version before wrote it.
async fn old_manifest(objects: &InMemory, key: &str, look: impl Fn(&serde_json::Value)) {
    let key = ObjectPath::parse(key).unwrap();
    let got = objects.get(&key).await.unwrap();
    let mut attributes = got.attributes.clone();
    let bytes = got.bytes().await.unwrap();
    let mut manifest: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    look(&manifest);
    manifest.as_object_mut().unwrap().remove("epoch");
    let old = serde_json::to_vec_pretty(&manifest).unwrap();
    let crc32 = format!("{:08x}", crc32fast::hash(&old));
    attributes.insert(
        object_store::Attribute::Metadata("flumen-crc32".into()),
        crc32.into(),
    );
    objects
        .put_opts(&key, old.into(), attributes.into())
        .await
        .unwrap();
}

/// Two brokers on real directories, one a copy of the other, that deliver into one real directory.
#[tokio::test(flavor = "multi_thread")]
async fn two_brokers_on_copied_directories_and_one_destination() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let lake = dir.path().join("lake");
    let (broker, sink) = open(&one).await;
    let stream = create_stream(&broker, "s", 1).await;
    let mut to_lake = settings(&stream);
    to_lake.destination = Destination::Directory { path: lake.clone() };
    deliver(&broker, to_lake).await;
    put_and_flush(&broker, 0..10).await;
    sink.shutdown().await;
    broker.shutdown().await.unwrap();
    drop(broker);
    copy_files(&one, &two);

    let (broker, sink) = open(&one).await;
    let (other, other_sink) = open(&two).await;
    for cut in 0..3 {
        put_and_flush(&broker, 100 + cut..101 + cut).await;
    }
    put(&other, &stream, 200..203).await;
    stopped(&other).await;
    assert_eq!(
        numbers_in(&lake),
        (0..10).chain(100..103).collect::<Vec<_>>()
    );
    renew(&other).await;
    flush(&other, &delivery()).await;
    put_and_flush(&broker, 103..104).await;
    let all = (0..10).chain(100..104).chain(200..203);
    assert_eq!(numbers_in(&lake), all.collect::<Vec<_>>());
    for (broker, sink) in [(broker, sink), (other, other_sink)] {
        sink.shutdown().await;
        broker.shutdown().await.unwrap();
    }
}

async fn open(dir: &Path) -> (Broker, Sink) {
    let storage = Arc::new(DiskStorage::open(dir, DiskStorage::LOCK_WAIT).unwrap());
    let mut config = BrokerConfig::default();
    config.log.segment_bytes_min = 1 << 20;
    config.log.free_space_floor_bytes = Some(0);
    let clock = Clock::system();
    let broker = Broker::open(storage, config, clock.clone()).await.unwrap();
    let sink = Sink::start(
        &broker,
        SinkConfig::default(),
        Arc::new(RealDestinations::of_this_process()),
        clock,
        dir.join("sink"),
    );
    (broker, sink.unwrap())
}

/// Numbers in what the manifests name, sorted.
fn numbers_in(lake: &Path) -> Vec<u64> {
    let manifests = Manifests::read(lake, "d/").unwrap();
    let mut numbers = Vec::new();
    for object in manifests.objects("data") {
        let read = manifests.rows(object, &mut |row| numbers.push(row["n"].as_u64().unwrap()));
        read.unwrap();
    }
    numbers.sort_unstable();
    numbers
}

/// A catalog that was restored, or made anew, without the rest: under the name of the stream that is
/// delivered is another one. Positions of the old one mean nothing in it.
#[tokio::test(flavor = "multi_thread")]
async fn another_stream_under_the_name_is_not_delivered_from_the_middle() {
    let objects = memory();
    let mut side = begun(&objects).await;
    let storage = Arc::new(side.storage.clone());
    let (mut catalog, _) = Catalog::open(storage, StreamConfig::default(), BEGIN).unwrap();
    catalog.delete(&stream(), BEGIN).unwrap();
    let new = NewStream {
        name: stream(),
        shards: 1,
        settings: StreamSettings::default(),
    };
    catalog.create(new, BEGIN).unwrap();
    catalog.close(BEGIN).unwrap();
    let rig = side.start(shared(&objects)).await;
    put(&rig.broker, &stream(), 100..120).await;
    let reason = "STREAM_REPLACED";
    until_failed(&rig.broker, &delivery(), DeliveryPhase::Stopped, reason).await;
    Delivered::read(&*objects).await.expect_numbers(0..10);
    rig.kill().await;
}
