//! A log that is missing, emptied or an older copy: it cannot say so itself, another one does. It is
//! refused, the rest is served, and no number is given out twice.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

use flumen_broker::{
    Broker, Clock, DeliveryChecks, DeliverySettings, DeliverySource, Destination, Error, ErrorKind,
    Health, NewDelivery, NewStream, OpenError, SettingRefused, StartPosition, StreamNameText,
    StreamUpdate,
};
use flumen_log::{Grain, LogKey, MemoryStorage, OperationKind, Preparation, Storage};
use flumen_record::{DeliveryName, Durability, GroupName, ProducerId, StreamName};
use flumen_stream::{Catalog, StreamConfig};

use crate::fixture::*;

const MEMORY: &str = "log-memory-168h-0";
const DISK: &str = "log-disk-168h-0";

/// Files of a data directory, by folder and name.
type Files = BTreeMap<String, BTreeMap<String, Vec<u8>>>;

fn files(storage: &MemoryStorage) -> Files {
    // As a process leaves it that ends now.
    let storage = storage.duplicate();
    let dirs = storage.list_dirs("").unwrap();
    dirs.into_iter()
        .map(|dir| {
            let read = |entry: flumen_log::DirEntry| {
                let bytes = storage.read_small(&format!("{dir}/{}", entry.name));
                (entry.name, bytes.unwrap().to_vec())
            };
            let files = storage.list(&dir).unwrap().into_iter().map(read).collect();
            (dir, files)
        })
        .collect()
}

fn storage_of(files: &Files) -> MemoryStorage {
    let storage = MemoryStorage::new();
    for (dir, files) in files {
        storage.create_dir(dir).unwrap();
        for (name, bytes) in files {
            let path = format!("{dir}/{name}");
            let file = storage
                .create(&path, bytes.len() as u64, Preparation::Written)
                .unwrap();
            if !bytes.is_empty() {
                file.write_at(&[IoSlice::new(bytes)], 0).unwrap();
            }
            file.sync().unwrap();
        }
        storage.sync_dir(dir).unwrap();
    }
    storage
}

fn is_segment(name: &str) -> bool {
    name != "snapshot"
}

/// The newest file that holds rounds; those after it were made ready and are blank.
fn last_segment(files: &BTreeMap<String, Vec<u8>>) -> String {
    let with_rounds =
        |(name, bytes): &(&String, &Vec<u8>)| is_segment(name) && bytes.starts_with(b"flumenSG");
    let last = files.iter().rfind(with_rounds);
    last.expect("a log has a segment").0.clone()
}

/// What becomes of a log's folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    Missing,
    Emptied,
    Segments,
    TruncatedLast,
    LastSegment,
    OlderCopy,
}

const LOSSES: [Loss; 6] = [
    Loss::Missing,
    Loss::Emptied,
    Loss::Segments,
    Loss::TruncatedLast,
    Loss::LastSegment,
    Loss::OlderCopy,
];

fn lose(older: &Files, newest: &Files, dir: &str, loss: Loss) -> Files {
    let mut lost = newest.clone();
    let folder = lost.get_mut(dir).unwrap();
    match loss {
        Loss::Missing => drop(lost.remove(dir)),
        Loss::Emptied => folder.clear(),
        Loss::Segments => folder.retain(|name, _| !is_segment(name)),
        Loss::TruncatedLast => folder.get_mut(&last_segment(&newest[dir])).unwrap().clear(),
        Loss::LastSegment => drop(folder.remove(&last_segment(&newest[dir]))),
        Loss::OlderCopy => drop(lost.insert(dir.to_owned(), older[dir].clone())),
    }
    lost
}

#[derive(Debug)]
struct AnySettings;

impl DeliveryChecks for AnySettings {
    fn check(&self, _: &DeliveryName, _: &DeliverySettings) -> Result<(), SettingRefused> {
        Ok(())
    }
}

fn reads(stream: &StreamName) -> DeliverySettings {
    DeliverySettings {
        source: DeliverySource::Stream {
            stream: StreamNameText(stream.clone()),
            start: Default::default(),
        },
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

async fn start(storage: &MemoryStorage) -> Result<Broker, OpenError> {
    let broker = Broker::open(Arc::new(storage.clone()), config(), clock()).await?;
    broker.attach_deliveries(Arc::new(AnySettings)).unwrap();
    Ok(broker)
}

fn streams() -> [StreamName; 2] {
    [name("memory"), name("disk")]
}

fn group(text: &str) -> GroupName {
    text.parse().unwrap()
}

async fn put(broker: &Broker, stream: &StreamName, n: u64) -> Result<u64, Error> {
    let mut session = Session::open(broker, stream);
    let batch = one(n.to_string(), ProducerId::NONE, n);
    Ok(session.append(batch).await?.base.value())
}

/// Five more records in each stream, another group, another delivery stream.
async fn live(broker: &Broker, from: u64, group_name: &str) {
    for stream in streams() {
        for n in from..from + 5 {
            assert_eq!(put(broker, &stream, n).await, Ok(n), "{stream}");
        }
    }
    let [stream, _] = streams();
    let name = group(group_name);
    let oldest = StartPosition::TrimHorizon;
    let reset = broker.reset_group(&stream, &name, vec![shard(0)], oldest, false, false);
    reset.await.unwrap();
    let delivery = NewDelivery {
        name: group_name.parse().unwrap(),
        settings: reads(&stream),
    };
    broker.create_delivery(delivery).await.unwrap();
}

/// The data directory at an earlier moment, and as it was left.
async fn two_lives() -> (Files, Files) {
    let storage = MemoryStorage::new();
    let broker = start(&storage).await.unwrap();
    create(&broker, "memory", 1, level(Durability::Memory)).await;
    create(&broker, "disk", 1, level(Durability::Disk)).await;
    live(&broker, 0, "one").await;
    broker.shutdown().await.unwrap();
    let older = files(&storage);
    let storage = storage_of(&older);
    let broker = start(&storage).await.unwrap();
    live(&broker, 5, "two").await;
    // The last thing that happens is a change of the catalog.
    create(&broker, "late", 1, level(Durability::Disk)).await;
    broker.shutdown().await.unwrap();
    (older, files(&storage))
}

fn is_refused<T: std::fmt::Debug>(result: Result<T, Error>, log: &str) {
    match result {
        Err(error @ Error::LogRefused { .. }) => {
            assert_eq!(error.kind(), ErrorKind::Unavailable);
            assert_eq!(error.reason(), "LOG_REFUSED");
            assert_eq!(error.metadata(), [("log", log.to_owned())]);
            assert!(error.to_string().contains("doctor repair"), "{error}");
        }
        other => panic!("{other:?}, though {log} is refused"),
    }
}

async fn is_served(broker: &Broker, stream: &StreamName) {
    assert_eq!(read_all(broker, stream, shard(0)).await, counted(0..10));
    assert_eq!(put(broker, stream, 10).await, Ok(10));
}

async fn stream_is_refused(broker: &Broker, stream: &StreamName, log: &str) {
    is_refused(put(broker, stream, 99).await, log);
    for start in [
        StartPosition::TrimHorizon,
        StartPosition::Latest,
        StartPosition::At(number(0)),
        StartPosition::At(number(7)),
        StartPosition::After(number(9)),
        StartPosition::AtTimestamp(flumen_record::Timestamp::from_micros(1)),
    ] {
        let read = broker.read(stream, shard(0), start, BUDGET, Duration::ZERO);
        is_refused(read.await, log);
    }
    let split = flumen_broker::Reshard::Split {
        shard: shard(0),
        at: None,
    };
    is_refused(broker.reshard(stream, split).await, log);
    // One that would lie there is not created, and its name stays free.
    let settings = broker.describe_stream(stream).unwrap().settings;
    let new = |text| NewStream {
        name: name(text),
        shards: 1,
        settings: settings.clone(),
    };
    is_refused(broker.create_stream(new("another")).await, log);
    is_refused(broker.create_stream(new("another")).await, log);
}

async fn groups_answer(broker: &Broker) -> Result<usize, Error> {
    let listed = broker
        .list_groups(None, None, 10)
        .await
        .map(|(all, _)| all.len());
    let described = broker.describe_group(&streams()[0], &group("one")).await;
    let oldest = StartPosition::TrimHorizon;
    let [stream, _] = streams();
    let name = group("one");
    let reset = broker.reset_group(&stream, &name, vec![shard(0)], oldest, false, false);
    let reset = reset.await;
    assert_eq!(described.map(drop), listed.clone().map(drop));
    assert_eq!(reset.map(drop), listed.clone().map(drop));
    listed
}

async fn deliveries_answer(broker: &Broker) -> Result<usize, Error> {
    let listed = broker.list_deliveries(None, 10).map(|(all, _)| all.len());
    let name: DeliveryName = "one".parse().unwrap();
    let described = broker.describe_delivery(&name);
    assert_eq!(described.map(drop), listed.clone().map(drop));
    let paused = broker.pause_delivery(&name).await;
    assert_eq!(paused.map(drop), listed.clone().map(drop));
    listed
}

fn refused_by_metrics(broker: &Broker) -> usize {
    let gauges = broker.metrics().snapshot().gauges.into_iter();
    let refused = gauges.filter(|(name, _, _, value)| *name == "refused" && *value > 0.0);
    refused.count()
}

/// The whole kind: whatever becomes of the folder of a log, it is refused and the rest is served; put
/// back, everything is there.
#[tokio::test]
async fn a_log_that_is_less_than_is_vouched_for_is_refused_and_the_rest_served() {
    let (older, newest) = two_lives().await;
    for dir in [MEMORY, DISK, "groups", "deliveries"] {
        for loss in LOSSES {
            let lost = lose(&older, &newest, dir, loss);
            let storage = storage_of(&lost);
            let broker = start(&storage).await.unwrap();
            let case = format!("{dir}: {loss:?}");
            for (stream, log) in streams().iter().zip([MEMORY, DISK]) {
                if log == dir {
                    stream_is_refused(&broker, stream, log).await;
                } else {
                    is_served(&broker, stream).await;
                }
            }
            match dir {
                "groups" => is_refused(groups_answer(&broker).await, dir),
                _ => assert_eq!(groups_answer(&broker).await, Ok(2), "{case}"),
            }
            match dir {
                "deliveries" => is_refused(deliveries_answer(&broker).await, dir),
                _ => assert_eq!(deliveries_answer(&broker).await, Ok(2), "{case}"),
            }
            match broker.health() {
                Health::Degraded(why) => assert!(why.contains(dir), "{case}: {why}"),
                other => panic!("{case}: {other:?}"),
            }
            assert_eq!(refused_by_metrics(&broker), 1, "{case}");
            broker.shutdown().await.unwrap();
            // Nothing was made anew, nothing of it was changed.
            let mut after = files(&storage);
            assert_eq!(after.get(dir), lost.get(dir), "{case}");
            after.insert(dir.to_owned(), newest[dir].clone());
            let broker = start(&storage_of(&after)).await.unwrap();
            for (stream, log) in streams().iter().zip([MEMORY, DISK]) {
                let end = if log == dir { 10 } else { 11 };
                let found = read_all(&broker, stream, shard(0)).await;
                assert_eq!(found, counted(0..end), "{case}");
                assert_eq!(put(&broker, stream, end).await, Ok(end), "{case}");
            }
            assert_eq!(groups_answer(&broker).await, Ok(2), "{case}");
            assert_eq!(deliveries_answer(&broker).await, Ok(2), "{case}");
            assert_eq!(broker.health(), Health::Serving, "{case}");
        }
    }
}

/// What streams there are is known to the catalog alone: without it nothing is served. Every other
/// log names its last record, each of them alone is enough.
#[tokio::test]
async fn a_catalog_that_is_less_than_logs_name_is_refused_by_each_of_them() {
    let (older, newest) = two_lives().await;
    let catalog = &LogKey::CATALOG.dir_name();
    for loss in LOSSES {
        let lost = lose(&older, &newest, catalog, loss);
        for witness in [MEMORY, DISK, "groups", "deliveries"] {
            let mut lost = lost.clone();
            lost.retain(|dir, _| dir == catalog || dir == witness);
            let opened = start(&storage_of(&lost)).await;
            let case = format!("{loss:?}, {witness}");
            match opened {
                Err(OpenError::Catalog(error)) => {
                    assert!(error.to_string().contains("doctor"), "{case}: {error}");
                }
                other => panic!("{case}: {:?}", other.map(drop)),
            }
        }
    }
}

/// Moves the clock on until every log has rested: nothing more is written.
async fn at_rest(storage: &MemoryStorage, clock: &Clock) {
    let mut quiet = 0;
    let mut before = storage.operations();
    while quiet < 4 {
        clock.advance(Duration::from_millis(300));
        tokio::time::sleep(Duration::from_millis(60)).await;
        let now = storage.operations();
        quiet = if now == before { quiet + 1 } else { 0 };
        before = now;
    }
}

/// A bit that flips in the last acknowledged round, after a moment of rest and a kill: the records are
/// lost and said to be, and their numbers are not given out again, also when the shard had no other
/// round. (Every byte: the tests of the log. Here the shard, and a restart in between.)
#[tokio::test]
async fn a_flip_in_the_last_round_is_data_loss_and_its_numbers_stay_taken() {
    for durability in [Durability::Memory, Durability::Disk] {
        for before in [0, 3] {
            let (storage, clock) = (MemoryStorage::new(), clock());
            let broker = open_with(Arc::new(storage.clone()), config(), clock.clone()).await;
            let stream = create(&broker, "readings", 1, level(durability)).await;
            for n in 0..before {
                assert_eq!(put(&broker, &stream, n).await, Ok(n));
            }
            at_rest(&storage, &clock).await;
            storage.start_trace();
            assert_eq!(put(&broker, &stream, before).await, Ok(before));
            let mut written = storage.trace().into_iter();
            let log = if durability == Durability::Disk {
                DISK
            } else {
                MEMORY
            };
            let round = written
                .find(|o| o.kind == OperationKind::Write && o.path.starts_with(log))
                .unwrap();
            at_rest(&storage, &clock).await;
            drop(broker);
            let (mut lost, mut whole) = (0, 0);
            for at in round.range.step_by(23) {
                let mut files = files(&storage);
                let (dir, name) = round.path.rsplit_once('/').unwrap();
                files.get_mut(dir).unwrap().get_mut(name).unwrap()[at as usize] ^= 4;
                let case = format!("{durability:?}, {before} before, byte {at}");
                let image = storage_of(&files);
                // Once it is only opened, and ends: what it found is found again.
                drop(open_with(Arc::new(image.clone()), config(), clock.clone()).await);
                let image = Arc::new(image.kill());
                let broker = open_with(image, config(), clock.clone()).await;
                let start = StartPosition::At(number(before));
                let read = broker.read(&stream, shard(0), start, BUDGET, Duration::ZERO);
                match read.await {
                    Err(Error::DataLoss { from, .. }) => {
                        assert_eq!(from, number(before), "{case}");
                        lost += 1;
                    }
                    read => {
                        assert_eq!(records(&read.unwrap()).len(), 1, "{case}");
                        whole += 1;
                    }
                }
                let next = put(&broker, &stream, 99).await.unwrap();
                assert!(next > before, "{case}: {next} is given out again");
                assert_eq!(broker.health(), Health::Serving, "{case}");
            }
            assert!(lost > 8, "{lost} of {}", lost + whole);
        }
    }
}

/// An idle node writes nothing, whatever it did before.
#[tokio::test]
async fn a_node_at_rest_writes_nothing() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let broker = Broker::open(Arc::new(storage.clone()), config(), clock.clone())
        .await
        .unwrap();
    broker.attach_deliveries(Arc::new(AnySettings)).unwrap();
    create(&broker, "memory", 1, level(Durability::Memory)).await;
    create(&broker, "disk", 1, level(Durability::Disk)).await;
    live(&broker, 0, "one").await;
    at_rest(&storage, &clock).await;
    // Snapshots, and what the catalog says of logs, come later, once.
    for _ in 0..3 {
        clock.advance(Duration::from_secs(700));
        at_rest(&storage, &clock).await;
    }
    let before = storage.operations();
    for _ in 0..20 {
        clock.advance(Duration::from_secs(700));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(storage.operations(), before);
}

/// A change of the catalog is named by some round though nothing is appended any more: an older copy
/// of its folder is noticed.
#[tokio::test]
async fn the_last_change_of_the_catalog_is_vouched_for() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let broker = open_with(Arc::new(storage.clone()), config(), clock.clone()).await;
    create(&broker, "first", 1, level(Durability::Disk)).await;
    at_rest(&storage, &clock).await;
    let older = files(&storage);
    create(&broker, "second", 1, level(Durability::Disk)).await;
    at_rest(&storage, &clock).await;
    let mut lost = files(&storage);
    drop(broker);
    lost.insert("catalog".to_owned(), older["catalog"].clone());
    let opened = start(&storage_of(&lost)).await;
    assert!(matches!(opened, Err(OpenError::Catalog(_))));
}

/// The way out for whoever has no copy: the log is taken as it is, what may have been lost is said to
/// be, and no number is given out twice, however often the log had jumped before.
#[tokio::test]
async fn a_loss_that_is_accepted_is_answered_as_lost() {
    let (older, newest) = two_lives().await;
    for (dir, stream) in [(MEMORY, "memory"), (DISK, "disk")] {
        for loss in [Loss::Missing, Loss::Segments, Loss::OlderCopy] {
            let case = format!("{dir}: {loss:?}");
            let storage = storage_of(&lose(&older, &newest, dir, loss));
            let (config, now) = (StreamConfig::default(), clock().now());
            let shared = Arc::new(storage.clone());
            let (mut catalog, _) = Catalog::open(shared, config, now).unwrap();
            catalog
                .accept_loss(LogKey::from_dir_name(dir).unwrap(), now)
                .unwrap();
            catalog.close(now).unwrap();
            let mut storage = storage.kill();
            let kept = if loss == Loss::OlderCopy { 5 } else { 0 };
            let mut next = None;
            for _ in 0..3 {
                let broker = start(&storage).await.unwrap();
                assert_eq!(broker.health(), Health::Serving, "{case}");
                let name = name(stream);
                for n in [kept, 9] {
                    let start = StartPosition::At(number(n));
                    let read = broker.read(&name, shard(0), start, BUDGET, Duration::ZERO);
                    let lost = read.await.map(drop);
                    assert!(
                        matches!(lost, Err(Error::DataLoss { .. })),
                        "{case}: {lost:?}"
                    );
                }
                let got = put(&broker, &name, 7).await.unwrap();
                match next {
                    None => assert!(got >= 1 << 48, "{case}: {got}"),
                    Some(next) => assert_eq!(got, next, "{case}"),
                }
                next = Some(got + 1);
                broker.shutdown().await.unwrap();
                storage = storage_of(&files(&storage));
            }
        }
    }
    for dir in ["groups", "deliveries"] {
        let storage = storage_of(&lose(&older, &newest, dir, Loss::Missing));
        let (config, now) = (StreamConfig::default(), clock().now());
        let shared = Arc::new(storage.clone());
        let (mut catalog, _) = Catalog::open(shared, config, now).unwrap();
        catalog
            .accept_loss(LogKey::from_dir_name(dir).unwrap(), now)
            .unwrap();
        catalog.close(now).unwrap();
        let broker = start(&storage.kill()).await.unwrap();
        assert_eq!(broker.health(), Health::Serving);
        let left = if dir == "groups" {
            (Ok(0), Ok(2))
        } else {
            (Ok(2), Ok(0))
        };
        let groups = broker
            .list_groups(None, None, 10)
            .await
            .map(|(all, _)| all.len());
        let deliveries = broker.list_deliveries(None, 10).map(|(all, _)| all.len());
        assert_eq!((groups, deliveries), left);
    }
}

/// Creates, appends, moves, closes and opens again.
async fn a_life(
    storage: &MemoryStorage,
    acked: &mut Vec<(&'static str, u64)>,
) -> Result<(), Error> {
    let opened = Broker::open(Arc::new(storage.clone()), config(), clock()).await;
    let broker = opened.map_err(|_| Error::Draining)?;
    for (text, durability) in [("a", Durability::Disk), ("b", Durability::Memory)] {
        let new = NewStream {
            name: name(text),
            shards: 1,
            settings: level(durability),
        };
        match broker.create_stream(new).await {
            Ok(_) | Err(Error::StreamExists { .. }) => {}
            Err(error) => return Err(error),
        }
        for _ in 0..2 {
            acked.push((text, put(&broker, &name(text), 0).await?));
        }
    }
    let update = StreamUpdate {
        retention: Some(Duration::from_secs(3600)),
        ..StreamUpdate::default()
    };
    broker.update_stream(&name("a"), update).await?;
    acked.push(("a", put(&broker, &name("a"), 0).await?));
    broker.shutdown().await
}

/// Whatever a cut leaves of a log is no less than what the catalog says of it: neither a log that has
/// never held anything is refused, nor one whose creation or end was cut short.
#[tokio::test]
async fn a_crash_at_any_operation_leaves_no_log_that_is_refused() {
    let first = MemoryStorage::new();
    a_life(&first, &mut Vec::new()).await.unwrap();
    let first = files(&first);
    let mut checked = 0;
    for operation in (3..).step_by(3) {
        // Every other life begins where another one has ended.
        let storage = match operation % 2 {
            0 => storage_of(&first),
            _ => MemoryStorage::new(),
        };
        storage.crash_after(operation);
        let mut acked = Vec::new();
        if a_life(&storage, &mut acked).await.is_ok() {
            break;
        }
        for image in [
            storage.kill(),
            storage.crash_keeping(Grain::Page, 0),
            storage.crash_keeping(Grain::Page, u64::MAX),
            storage.crash_seeded(Grain::Sector, operation),
        ] {
            checked += 1;
            let opened = Broker::open(Arc::new(image), config(), clock()).await;
            let broker = opened.unwrap_or_else(|error| panic!("operation {operation}: {error}"));
            assert_eq!(broker.health(), Health::Serving, "operation {operation}");
            for (stream, got) in acked.iter().filter(|(stream, _)| *stream == "a") {
                let all = read_all(&broker, &name(stream), shard(0)).await;
                assert!(
                    all.iter().any(|(n, _)| n == got),
                    "operation {operation}: {got}"
                );
            }
        }
    }
    assert!(checked > 60, "{checked}");
}

/// The tests above can fail: of a directory in which nobody vouches for anything, as it was written
/// before there were vouchers, a missing log is made anew, and its numbers are given out again.
#[tokio::test]
async fn without_vouchers_the_loss_of_a_log_goes_unnoticed() {
    let (_, newest) = two_lives().await;
    let storage = MemoryStorage::new();
    let (config, now) = (StreamConfig::default(), clock().now());
    let (mut catalog, _) = Catalog::open(Arc::new(storage.clone()), config.clone(), now).unwrap();
    for (stream, durability) in streams()
        .into_iter()
        .zip([Durability::Memory, Durability::Disk])
    {
        let new = NewStream {
            name: stream,
            shards: 1,
            settings: level(durability),
        };
        catalog.create(new, now).unwrap();
    }
    // As many records as the logs name.
    for bound in 1..50 {
        let update = StreamUpdate {
            retention_bytes: Some(Some(bound << 30)),
            ..StreamUpdate::default()
        };
        catalog.update(&name("disk"), &update, &[], now).unwrap();
    }
    catalog.close(now).unwrap();
    let mut before = newest;
    before.insert("catalog".to_owned(), files(&storage)["catalog"].clone());
    let broker = start(&storage_of(&before)).await.unwrap();
    for stream in streams() {
        is_served(&broker, &stream).await;
    }
    broker.shutdown().await.unwrap();
    before.remove(DISK);
    before.remove("groups");
    let broker = start(&storage_of(&before)).await.unwrap();
    assert_eq!(broker.health(), Health::Serving);
    assert_eq!(read_all(&broker, &name("disk"), shard(0)).await, []);
    assert_eq!(put(&broker, &name("disk"), 0).await, Ok(0));
    let (groups, _) = broker.list_groups(None, None, 10).await.unwrap();
    assert_eq!(groups.len(), 0);
}
