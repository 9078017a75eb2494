//! Delivery streams: a store that fails, and what its manifests must name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use flumen_broker::{
    BufferingHints, DeliveryEnd, DeliveryPhase, DeliverySettings, DeliverySource, DeliveryStart,
    Destination, Error, NewDelivery, ObjectFormat, ObjectSettings, SettingRefused, StreamNameText,
};
use flumen_record::{DeliveryName, StreamId, StreamName};
use flumen_sink::fault::{FaultPlan, FaultRates, FaultyStore};
use flumen_sink::{CutRange, Destinations, Manifest, Sink, SinkConfig, Store, StoreConfig};
use flumen_world::lock;
use futures_util::TryStreamExt;
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt};

use super::Life;
use super::model::{Checked, Model, RecordId};
use super::reading::record_of;
use crate::random::{Dice, place};

const NAMES: [&str; 2] = ["x", "y"];
/// A flush is done within this once nothing fails.
const PATIENCE: Duration = Duration::from_secs(4 * 3600);

/// What is known of one life of a delivery stream.
#[derive(Debug, Clone)]
pub(crate) struct DeliveryModel {
    pub(crate) stream: StreamId,
    pub(crate) start: DeliveryStart,
    pub(crate) is_deleted: bool,
    /// It is created or deleted, and nobody was told.
    pub(crate) is_unsure: bool,
}

/// Every destination is this store.
#[derive(Debug)]
struct Only(Arc<dyn ObjectStore>);

impl Destinations for Only {
    fn open(
        &self,
        _: &Destination,
        object: &ObjectSettings,
        config: &StoreConfig,
    ) -> Result<Store, SettingRefused> {
        Ok(Store::over(Arc::clone(&self.0), "life", object, config))
    }
}

/// One manifest with what its objects hold.
#[derive(Debug)]
struct Cut {
    manifest: Manifest,
    records: Vec<RecordId>,
}

fn settings(stream: &StreamName, start: DeliveryStart, dice: &mut Dice) -> DeliverySettings {
    let source = DeliverySource::Stream {
        stream: StreamNameText(stream.clone()),
        start,
    };
    let json = serde_json::json!({
        "source": source,
        "destination": { "kind": "memory", "name": "life" },
    });
    let read: Result<DeliverySettings, _> = serde_json::from_value(json);
    let Ok(read) = read else {
        unreachable!("BUG: settings of a delivery stream are not read")
    };
    DeliverySettings {
        buffering: BufferingHints {
            size_bytes: dice.pick([1 << 20, 5 << 20]),
            interval_ms: dice.pick([0, 60_000, 600_000]),
        },
        format: ObjectFormat::Ndjson,
        ..read
    }
}

impl Life {
    /// Starts what delivers, beside a node that has started.
    pub(super) fn start_sink(&mut self) -> Result<(), String> {
        let broker = self.broker()?;
        let rates = match self.dice.below(3) {
            0 => FaultRates::rough(),
            _ => FaultRates::default(),
        };
        let plan = FaultPlan {
            seed: self.dice.next(),
            rates,
            ..FaultPlan::default()
        };
        let store = FaultyStore::new(Arc::clone(&self.objects) as Arc<dyn ObjectStore>, plan);
        store.set_clock(self.driver.clock().clone());
        self.store = Some(store.clone());
        let config = SinkConfig {
            probe: false,
            read_bytes: self.dice.pick([4 << 10, 1 << 20]),
            store: StoreConfig {
                request_timeout_ms: 10_000,
                ..StoreConfig::default()
            },
            ..SinkConfig::default()
        };
        let destinations = Arc::new(Only(Arc::new(store)));
        let clock = self.driver.clock().clone();
        let spool = self.spool.path().to_owned();
        let sink = Sink::start(&broker, config, destinations, clock, spool);
        self.sink = sink;
        match self.sink {
            Some(_) => Ok(()),
            None => Err("the seat of deliveries is taken".to_owned()),
        }
    }

    fn some_delivery(&mut self) -> Option<DeliveryName> {
        NAMES
            .get(place(self.dice.below(NAMES.len() as u64)))?
            .parse()
            .ok()
    }

    pub(super) fn create_delivery(&mut self) -> Result<(), String> {
        let (Some(name), Some((stream, id))) = (self.some_delivery(), self.some_stream()) else {
            return Ok(());
        };
        let start = match self.dice.below(3) {
            0 => DeliveryStart::Latest,
            1 => {
                let ago = Duration::from_secs(self.dice.below(48 * 3600));
                let now = super::START.saturating_add(lock(&self.shared).now);
                DeliveryStart::at(now.saturating_sub(ago))
            }
            _ => DeliveryStart::TrimHorizon,
        };
        let new = NewDelivery {
            name: name.clone(),
            settings: settings(&stream, start, &mut self.dice),
        };
        let (broker, shared) = (self.broker()?, Arc::clone(&self.shared));
        self.driver.spawn("create delivery", async move {
            let answer = broker.create_delivery(new).await;
            let mut model = lock(&shared);
            model.count("deliveries");
            model.say(|| format!("delivery {name} of {stream}: {:?}", answer.as_ref().err()));
            match answer {
                Ok(_) => {
                    let known = DeliveryModel {
                        stream: id,
                        start,
                        is_deleted: false,
                        is_unsure: false,
                    };
                    model.deliveries.insert(name, known);
                }
                Err(
                    Error::DeliveryExists { .. }
                    | Error::StreamNotFound { .. }
                    | Error::DeliveryEnding { .. },
                ) => {}
                Err(error) if model.allows(&error) => {}
                Err(error) => {
                    model.check(Err(format!("{name} is not created: {error:?}")));
                }
            }
        });
        Ok(())
    }

    pub(super) fn delete_delivery(&mut self) -> Result<(), String> {
        let Some(name) = self.some_delivery() else {
            return Ok(());
        };
        let end = match self.dice.once_in(2) {
            true => DeliveryEnd::Flush,
            false => DeliveryEnd::Drop,
        };
        if let Some(known) = lock(&self.shared).deliveries.get_mut(&name) {
            known.is_unsure = true;
        }
        let (broker, shared) = (self.broker()?, Arc::clone(&self.shared));
        self.driver.spawn("delete delivery", async move {
            let answer = broker
                .delete_delivery(&name, end, Duration::from_secs(60))
                .await;
            let mut model = lock(&shared);
            model.count("deleted deliveries");
            model.say(|| format!("delete of delivery {name}: {answer:?}"));
            if answer.is_ok()
                && let Some(known) = model.deliveries.get_mut(&name)
            {
                known.is_deleted = true;
            }
        });
        Ok(())
    }

    pub(super) fn touch_delivery(&mut self) -> Result<(), String> {
        let Some(name) = self.some_delivery() else {
            return Ok(());
        };
        let (broker, shared) = (self.broker()?, Arc::clone(&self.shared));
        let what = self.dice.below(3);
        self.driver.spawn("touch delivery", async move {
            let answer = match what {
                0 => broker.pause_delivery(&name).await,
                1 => broker.resume_delivery(&name).await,
                _ => broker.flush_delivery(&name, Duration::from_secs(30)).await,
            };
            let mut model = lock(&shared);
            model.say(|| format!("delivery {name} touched ({what}): {:?}", answer.err()));
        });
        Ok(())
    }

    /// Everything is delivered, and what is delivered is what the manifests name.
    pub(super) fn check_deliveries(&mut self) -> Result<(), String> {
        if let Some(store) = &self.store {
            store.set_plan(FaultPlan::default());
        }
        for name in NAMES {
            let Ok(name) = name.parse::<DeliveryName>() else {
                continue;
            };
            let broker = self.broker()?;
            if broker.describe_delivery(&name).is_err() {
                continue;
            }
            let asked = name.clone();
            let flushing = async move {
                let _ = broker.resume_delivery(&asked).await;
                broker.flush_delivery(&asked, PATIENCE).await
            };
            let flushed = self.driver.wait("flush", 2 * PATIENCE, flushing)?;
            self.tick()?;
            match flushed {
                Ok(described) if described.report.phase == DeliveryPhase::Running => {}
                Ok(described) => {
                    return Err(format!("{name} does not run: {:?}", described.report));
                }
                Err(Error::DeliveryEnding { .. } | Error::DeliveryNotFound { .. }) => {}
                Err(error) => return Err(format!("{name} is not flushed: {error:?}")),
            }
        }
        let cuts = self.cuts()?;
        let broker = self.broker()?;
        let mut model = lock(&self.shared);
        let lives = check_cuts(&model, &cuts)?;
        for (name, known) in model.deliveries.clone() {
            let described = broker.describe_delivery(&name);
            if described.is_err() || known.is_deleted || known.is_unsure {
                continue;
            }
            model.all_is_delivered(&name, &known, &lives)?;
        }
        model.count("looks at manifests");
        Ok(())
    }

    /// What the store holds, as a reader of manifests finds it.
    fn cuts(&mut self) -> Result<Vec<Cut>, String> {
        let objects = Arc::clone(&self.objects);
        let reading = async move { read_cuts(&objects).await };
        self.wait("reading manifests", reading)?
    }
}

async fn read_cuts(objects: &InMemory) -> Result<Vec<Cut>, String> {
    let told = |error: object_store::Error| format!("the store fails: {error}");
    let listed: Vec<_> = objects.list(None).try_collect().await.map_err(told)?;
    let mut cuts = Vec::new();
    for meta in listed {
        if !meta.location.as_ref().contains("_manifest/") {
            continue;
        }
        let bytes = objects.get(&meta.location).await.map_err(told)?;
        let bytes = bytes.bytes().await.map_err(told)?;
        let manifest: Manifest = serde_json::from_slice(&bytes)
            .map_err(|error| format!("{} is no manifest: {error}", meta.location))?;
        let mut records = Vec::new();
        for object in manifest.objects.iter().filter(|it| it.kind == "data") {
            let key = object_store::path::Path::from(object.key.as_str());
            let bytes = objects.get(&key).await.map_err(told)?;
            let bytes = bytes.bytes().await.map_err(told)?;
            for line in bytes
                .split(|byte| *byte == b'\n')
                .filter(|it| !it.is_empty())
            {
                records.push(record_of(line).ok_or_else(|| format!("{key} has a strange line"))?);
            }
        }
        cuts.push(Cut { manifest, records });
    }
    cuts.sort_by(|a, b| {
        let of = |cut: &Cut| (cut.manifest.incarnation.clone(), cut.manifest.cut);
        of(a).cmp(&of(b))
    });
    Ok(cuts)
}

/// By incarnation: whose it is, what was delivered, and up to where each shard is.
#[derive(Debug, Default)]
struct Lived {
    delivery: String,
    stream: Option<StreamId>,
    records: BTreeSet<RecordId>,
    ends: BTreeMap<u32, u64>,
    next: u64,
}

/// Each record is there once, within the ranges that say so, and cuts follow each other.
fn check_cuts(model: &Model, cuts: &[Cut]) -> Result<BTreeMap<String, Lived>, String> {
    let mut lives: BTreeMap<String, Lived> = BTreeMap::new();
    for cut in cuts {
        let manifest = &cut.manifest;
        let life = lives.entry(manifest.incarnation.clone()).or_default();
        life.delivery.clone_from(&manifest.delivery);
        let name = format!("cut {} of {}", manifest.cut, manifest.incarnation);
        if manifest.cut != life.next {
            return Err(format!("{name} comes where {} was next", life.next));
        }
        life.next += 1;
        for range in &manifest.ranges {
            let end = life
                .ends
                .entry(range.shard.value())
                .or_insert_with(|| range.from.value());
            if *end != range.from.value() {
                return Err(format!("{name}: {range:?} follows {end}"));
            }
            *end = range.to.value();
        }
        check_records(model, cut, life).map_err(|why| format!("{name}: {why}"))?;
    }
    Ok(lives)
}

fn check_records(model: &Model, cut: &Cut, life: &mut Lived) -> Checked {
    for id in &cut.records {
        let Some(record) = model.record(*id) else {
            return Err(format!("record {id} was never sent"));
        };
        if !life.records.insert(*id) {
            return Err(format!("record {id} is delivered twice"));
        }
        if *life.stream.get_or_insert(record.stream) != record.stream {
            return Err(format!("record {id} is another stream's"));
        }
        let Some(at) = record.place else { continue };
        let within = |range: &CutRange| {
            let numbers = range.from.value()..range.to.value();
            range.shard.value() == at.shard && numbers.contains(&at.number)
        };
        if !cut.manifest.ranges.iter().any(within) && !record.lost {
            return Err(format!("record {id} lies at {at:?}, outside of its ranges"));
        }
    }
    let Some(stream) = life.stream.and_then(|id| model.streams.get(&id)) else {
        return Ok(());
    };
    let (mut missing, mut first) = (0, None);
    for range in &cut.manifest.ranges {
        let Some(shard) = stream.shards.get(&range.shard.value()) else {
            continue;
        };
        for (number, (id, _)) in shard.numbers.range(range.from.value()..range.to.value()) {
            let must = model.record(*id).is_some_and(|it| it.must_exist());
            if must && !life.records.contains(id) {
                missing += 1;
                first.get_or_insert((range.shard, *number, *id));
                if *number >= shard.horizon {
                    return Err(format!(
                        "record {id}, number {number}, of {range:?} is missing"
                    ));
                }
            }
        }
    }
    if missing > cut.manifest.expired && cut.manifest.damaged.is_empty() {
        let expired = cut.manifest.expired;
        return Err(format!(
            "{missing} records are missing (the first: {first:?}), {expired} are said to have expired"
        ));
    }
    Ok(())
}

impl Model {
    /// After a flush nothing is left.
    fn all_is_delivered(
        &self,
        name: &DeliveryName,
        known: &DeliveryModel,
        lives: &BTreeMap<String, Lived>,
    ) -> Checked {
        let Some(stream) = self.streams.get(&known.stream).filter(|it| !it.is_deleted) else {
            return Ok(());
        };
        if known.start != DeliveryStart::TrimHorizon {
            return Ok(());
        }
        let of = |life: &&Lived| {
            life.delivery == name.as_str() && life.stream.is_none_or(|it| it == known.stream)
        };
        let newest = lives.values().filter(of);
        let delivered: BTreeSet<RecordId> = newest.flat_map(|life| life.records.clone()).collect();
        for (index, shard) in &stream.shards {
            for (number, (id, _)) in shard.numbers.range(shard.horizon..) {
                let must = self.record(*id).is_some_and(|it| it.must_exist());
                if must && !delivered.contains(id) {
                    return Err(format!(
                        "{name} is flushed, and record {id}, number {number} of shard {index} of {}, is in no manifest",
                        stream.name
                    ));
                }
            }
        }
        Ok(())
    }
}
