//! Exactly once, whatever happens: a process that dies at every step, and a store that does everything
//! a store can do, by a schedule that a seed decides. Who reads the manifests finds each record once.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use flumen_broker::{Broker, DeliverySettings, ObjectCompression, Partitioning, Reshard};
use flumen_log::{Grain, MemoryStorage};
use flumen_record::{StreamName, Timestamp};
use flumen_sink::fault::{Crash, FaultPlan, FaultRates, FaultyStore, Outage};
use object_store::memory::InMemory;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::fixture::{
    Delivered, Rig, WAIT, create_stream, deliver, delivery_name, flush, memory, put, settings,
    shared, stream_name,
};

/// When the first process begins; each later one begins an hour after the one before.
const BEGIN: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);
const HOUR: Duration = Duration::from_secs(3600);
/// Records of the short runs.
const RECORDS: u64 = 60;

/// Three partitions and errors: cuts of several objects.
fn partitioned(stream: &StreamName) -> DeliverySettings {
    let mut settings = settings(stream);
    settings.keys.prefix = Some("p=!{partitionKeyFromQuery:p}/".to_owned());
    settings.keys.error_prefix = Some("errors/!{firehose:error-output-type}/".to_owned());
    settings.partitioning = Some(Partitioning {
        keys: [("p".to_owned(), ".n % 3".to_owned())].into(),
        partitions_max: 500,
    });
    settings.buffering.interval_ms = 1;
    settings
}

/// Puts and delivers `RECORDS` records, unless it dies before.
async fn run_short(broker: &Broker, settings: impl Fn(&StreamName) -> DeliverySettings) {
    let stream = create_stream(broker, "s", 2).await;
    put(broker, &stream, 0..RECORDS / 2).await;
    let name = deliver(broker, settings(&stream)).await;
    flush(broker, &name).await;
    put(broker, &stream, RECORDS / 2..RECORDS).await;
    flush(broker, &name).await;
}

/// One whose process died while it was paused goes on.
async fn resume(broker: &Broker) {
    let name = delivery_name("d");
    if broker.describe_delivery(&name).unwrap().paused {
        broker.resume_delivery(&name).await.unwrap();
    }
}

/// Starts once more, without faults, delivers what is left, and reads everything.
async fn finish(
    storage: &MemoryStorage,
    objects: &Arc<InMemory>,
    spool: &Path,
    at: Timestamp,
) -> Delivered {
    let rig = Rig::start_fast(storage, shared(objects), spool, at).await;
    resume(&rig.broker).await;
    flush(&rig.broker, &delivery_name("d")).await;
    rig.shutdown().await;
    Delivered::read(&**objects).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_dies_at_any_request_to_the_store() {
    let mut deaths = 0;
    for at in 0.. {
        let mut survived = true;
        for after_effect in [false, true] {
            let (storage, objects) = (MemoryStorage::new(), memory());
            let spool = tempfile::tempdir().unwrap();
            let plan = FaultPlan {
                crash: Some(Crash { at, after_effect }),
                ..FaultPlan::default()
            };
            let faulty = FaultyStore::new(shared(&objects), plan);
            let store = Arc::new(faulty.clone());
            let rig = Rig::start_fast(&storage, store, spool.path(), BEGIN).await;
            let died = tokio::select! {
                () = run_short(&rig.broker, partitioned) => false,
                () = faulty.crashed() => true,
            };
            let storage = storage.kill();
            rig.kill().await;
            survived &= !died;
            if died {
                deaths += 1;
                // What was not put then is put now.
                let at = BEGIN.saturating_add(HOUR);
                complete(&storage, &objects, spool.path(), at).await;
            }
            let at = BEGIN.saturating_add(2 * HOUR);
            let delivered = finish(&storage, &objects, spool.path(), at).await;
            delivered.expect_numbers(0..RECORDS);
            delivered.expect_no_strays();
        }
        if survived {
            break;
        }
    }
    assert!(deaths > 10, "{deaths} deaths");
}

/// Puts what the stream does not have yet.
async fn complete(storage: &MemoryStorage, objects: &Arc<InMemory>, spool: &Path, at: Timestamp) {
    let rig = Rig::start_fast(storage, shared(objects), spool, at).await;
    let stream = stream_name("s");
    let described = rig.broker.describe_stream(&stream).unwrap();
    let there: u64 = described
        .shards
        .iter()
        .map(|shard| shard.durable_end.value())
        .sum();
    if there < RECORDS {
        assert_eq!(there, RECORDS / 2, "a put is whole");
        put(&rig.broker, &stream, there..RECORDS).await;
    }
    rig.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_dies_at_any_write_to_its_disk() {
    let mut deaths = 0;
    for operation in 1.. {
        let (storage, objects) = (MemoryStorage::new(), memory());
        let spool = tempfile::tempdir().unwrap();
        let rig = Rig::start_fast(&storage, shared(&objects), spool.path(), BEGIN).await;
        let stream = create_stream(&rig.broker, "s", 2).await;
        put(&rig.broker, &stream, 0..RECORDS).await;
        let mut lazy = partitioned(&stream);
        lazy.buffering.interval_ms = 900_000;
        let name = deliver(&rig.broker, lazy).await;
        // The disk does what it is asked up to this operation, and nothing after it.
        storage.crash_after(operation);
        let flushed = async { rig.broker.flush_delivery(&name, 1000 * WAIT).await.is_ok() };
        let dead = async {
            while !storage.is_dead() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let survived = tokio::select! {
            flushed = flushed => flushed,
            () = dead => false,
        };
        let images = [
            storage.kill(),
            storage.crash_keeping(Grain::Page, 0),
            storage.crash_seeded(Grain::Sector, operation),
        ];
        rig.kill().await;
        deaths += u64::from(!survived);
        // One store, and so one of these: what is in the store came before all of them.
        let image = &images[usize::try_from(operation).unwrap() % images.len()];
        let at = BEGIN.saturating_add(HOUR);
        let delivered = finish(image, &objects, spool.path(), at).await;
        delivered.expect_numbers(0..RECORDS);
        delivered.expect_no_strays();
        if survived {
            break;
        }
    }
    assert!(deaths > 5, "{deaths} deaths");
}

/// Seeds that the gate runs; `FLUMEN_SINK_SEEDS=from..to` runs others.
fn seeds() -> std::ops::Range<u64> {
    let given = std::env::var("FLUMEN_SINK_SEEDS").ok();
    let given = given.as_deref().and_then(|text| {
        let (from, to) = text.split_once("..")?;
        Some(from.parse().ok()?..to.parse().ok()?)
    });
    given.unwrap_or(0..12)
}

#[tokio::test(flavor = "multi_thread")]
async fn rough_stores_and_deaths_by_seed() {
    for seed in seeds() {
        eprintln!("seed {seed}");
        let mut random = SmallRng::seed_from_u64(seed);
        let (mut storage, objects) = (MemoryStorage::new(), memory());
        let spool = tempfile::tempdir().unwrap();
        let mut puts = Puts::default();
        let lives = random.random_range(2..5_u64);
        for life in 0..lives {
            let faulty = FaultyStore::new(shared(&objects), plan(&mut random, seed));
            let at = BEGIN.saturating_add(HOUR * u32::try_from(life).unwrap());
            let store = Arc::new(faulty.clone());
            let rig = Rig::start_fast(&storage, store, spool.path(), at).await;
            let stream = if life == 0 {
                let stream = create_stream(&rig.broker, "s", 2).await;
                deliver(&rig.broker, shaped(&mut random, &stream)).await;
                stream
            } else {
                resume(&rig.broker).await;
                stream_name("s")
            };
            let steps = random.random_range(1..6);
            tokio::select! {
                () = live(&rig.broker, &stream, &mut random, steps, &mut puts) => {}
                () = faulty.crashed() => {}
            }
            let power_cut = random.random_bool(0.5);
            let image = match power_cut {
                true => storage.crash_seeded(Grain::Sector, seed),
                false => storage.kill(),
            };
            rig.kill().await;
            storage = image;
        }
        let at = BEGIN.saturating_add(HOUR * u32::try_from(lives).unwrap());
        let delivered = finish(&storage, &objects, spool.path(), at).await;
        let (numbers, errors) = (delivered.numbers(), delivered.lines("error").len());
        delivered.expect_contiguous();
        let unique: BTreeSet<_> = numbers.iter().copied().collect();
        assert_eq!(
            unique.len(),
            numbers.len(),
            "seed {seed}: something is there twice"
        );
        assert_eq!(errors, 0, "seed {seed}");
        let missing: Vec<_> = puts.acknowledged.difference(&unique).collect();
        assert!(missing.is_empty(), "seed {seed}: {missing:?} are missing");
    }
}

/// What was put.
#[derive(Default)]
struct Puts {
    next: u64,
    acknowledged: BTreeSet<u64>,
}

/// What goes wrong in one life.
fn plan(random: &mut SmallRng, seed: u64) -> FaultPlan {
    let mut plan = FaultPlan {
        seed: random.random(),
        ..FaultPlan::default()
    };
    if random.random_bool(0.8) {
        plan.rates = FaultRates::rough();
    }
    if random.random_bool(0.5) {
        let faults = [
            flumen_sink::fault::Fault::NoSuchBucket,
            flumen_sink::fault::Fault::ExpiredToken,
            flumen_sink::fault::Fault::SlowDown,
        ];
        plan.outages.push(Outage {
            from: random.random_range(0..20),
            operations: random.random_range(1..10),
            fault: faults[usize::try_from(seed % 3).unwrap()],
        });
    }
    if random.random_bool(0.7) {
        plan.crash = Some(Crash {
            at: random.random_range(8..60),
            after_effect: random.random(),
        });
    }
    plan
}

/// One of several ways to deliver.
fn shaped(random: &mut SmallRng, stream: &StreamName) -> DeliverySettings {
    let mut settings = match random.random_bool(0.5) {
        true => partitioned(stream),
        false => settings(stream),
    };
    if random.random_bool(0.3) {
        settings.buffering.interval_ms = 2_000;
    }
    match random.random_range(0..4) {
        // Comes out differently each time: it is kept in the spool.
        0 => settings.processing.map = Some("{n: .n, at: now}".to_owned()),
        1 => settings.processing.map = Some("{n: .n, twice: (.n * 2)}".to_owned()),
        _ => {}
    }
    settings.compression = ObjectCompression::None;
    settings
}

/// Other settings of the same kind.
async fn update(broker: &Broker, random: &mut SmallRng) {
    let name = delivery_name("d");
    let described = broker.describe_delivery(&name).unwrap();
    let mut settings = (*described.settings).clone();
    let number: u8 = random.random();
    settings.keys.file_extension = Some(format!(".x{number}"));
    settings.processing.map = random
        .random_bool(0.5)
        .then(|| "{n: .n, at: now}".to_owned());
    broker.update_delivery(&name, None, settings).await.unwrap();
}

/// Puts, flushes, splits and merges, pauses and changes settings. What was acknowledged counts.
async fn live(
    broker: &Broker,
    stream: &StreamName,
    random: &mut SmallRng,
    steps: u32,
    puts: &mut Puts,
) {
    for _ in 0..steps {
        let records = random.random_range(1..200);
        // A put that is cut off may be stored or not, and is not made again.
        let numbers = puts.next..puts.next + records;
        puts.next = numbers.end;
        put(broker, stream, numbers.clone()).await;
        puts.acknowledged.extend(numbers);
        match random.random_range(0..8) {
            0 | 2 => drop(flush(broker, &delivery_name("d")).await),
            3 => {
                let name = delivery_name("d");
                broker.pause_delivery(&name).await.unwrap();
                if random.random() {
                    update(broker, random).await;
                }
                broker.resume_delivery(&name).await.unwrap();
            }
            4 => update(broker, random).await,
            1 => {
                let described = broker.describe_stream(stream).unwrap();
                let mut open = described.shards.iter().filter(|shard| shard.open);
                let step = match (open.next(), open.next()) {
                    (Some(one), Some(other)) if random.random() => Reshard::Merge {
                        shard: one.index,
                        adjacent: other.index,
                    },
                    (Some(one), _) => Reshard::Split {
                        shard: one.index,
                        at: None,
                    },
                    _ => continue,
                };
                // Two that do not touch are refused.
                let _ = broker.reshard(stream, step).await;
            }
            _ => tokio::time::sleep(Duration::from_millis(random.random_range(0..40))).await,
        }
    }
}
