//! What the tests share: a node with a sink, a store that can be read, and who reads manifests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flumen_broker::{
    Broker, BrokerConfig, BufferingHints, Clock, DeliveryDescription, DeliveryPhase,
    DeliverySettings, DeliverySource, DeliveryStart, Destination, NewDelivery, NewStream,
    ObjectFormat, ObjectSettings, SettingRefused, StreamNameText, StreamSettings,
};
use flumen_log::MemoryStorage;
use flumen_record::{DeliveryName, Record, StreamName, Timestamp};
use flumen_sink::{Destinations, Sink, SinkConfig, Store, StoreConfig};
use futures_util::TryStreamExt;
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt};
use serde_json::Value;

/// Nothing takes longer, unless something is wrong.
pub(crate) const WAIT: Duration = Duration::from_secs(60);

/// Every destination is this store.
#[derive(Debug)]
pub(crate) struct Only(pub(crate) Arc<dyn ObjectStore>);

impl Destinations for Only {
    fn open(
        &self,
        destination: &Destination,
        object: &ObjectSettings,
        config: &StoreConfig,
    ) -> Result<Store, SettingRefused> {
        let Destination::Memory { name } = destination else {
            panic!("the tests write to memory");
        };
        Ok(Store::over(Arc::clone(&self.0), name, object, config))
    }
}

/// Each destination is the store of its name.
#[derive(Debug)]
pub(crate) struct Named(pub(crate) BTreeMap<&'static str, Arc<dyn ObjectStore>>);

impl Destinations for Named {
    fn open(
        &self,
        destination: &Destination,
        object: &ObjectSettings,
        config: &StoreConfig,
    ) -> Result<Store, SettingRefused> {
        let Destination::Memory { name } = destination else {
            panic!("the tests write to memory");
        };
        let store = Arc::clone(&self.0[name.as_str()]);
        Ok(Store::over(store, name, object, config))
    }
}

/// A node with a sink.
pub(crate) struct Rig {
    pub(crate) broker: Broker,
    pub(crate) sink: Sink,
    pub(crate) clock: Clock,
    /// Moves a clock of its own along.
    ticking: Option<tokio::task::JoinHandle<()>>,
}

impl Rig {
    /// On the time of day.
    pub(crate) async fn start(
        storage: &MemoryStorage,
        objects: Arc<dyn ObjectStore>,
        spool: &Path,
    ) -> Self {
        Self::start_at(storage, objects, spool, Clock::system()).await
    }

    /// On a clock that runs a hundred times as fast, so that pauses between attempts are short.
    pub(crate) async fn start_fast(
        storage: &MemoryStorage,
        objects: Arc<dyn ObjectStore>,
        spool: &Path,
        from: Timestamp,
    ) -> Self {
        let clock = Clock::manual(from);
        let mut rig = Self::start_at(storage, objects, spool, clock).await;
        rig.tick();
        rig
    }

    /// Its clock runs fast from here on.
    pub(crate) fn tick(&mut self) {
        let clock = self.clock.clone();
        self.ticking = Some(tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(1)).await;
                clock.advance(Duration::from_millis(100));
            }
        }));
    }

    /// On this clock.
    pub(crate) async fn start_at(
        storage: &MemoryStorage,
        objects: Arc<dyn ObjectStore>,
        spool: &Path,
        clock: Clock,
    ) -> Self {
        // Where a clock runs a hundred times as fast, that is as long.
        let request_timeout_ms = if clock.is_manual() { 5_000 } else { 50 };
        let config = SinkConfig {
            // It has tests of its own, and takes a second.
            probe: false,
            // An answer that never comes is not waited for long.
            store: StoreConfig {
                request_timeout_ms,
                ..StoreConfig::default()
            },
            ..SinkConfig::default()
        };
        Self::start_with(storage, Arc::new(Only(objects)), spool, clock, config).await
    }

    /// With everything that can be chosen.
    pub(crate) async fn start_with(
        storage: &MemoryStorage,
        destinations: Arc<dyn Destinations>,
        spool: &Path,
        clock: Clock,
        sink: SinkConfig,
    ) -> Self {
        let mut config = BrokerConfig::default();
        config.log.segment_bytes_min = 1 << 20;
        config.log.segment_bytes_max = 4 << 20;
        config.log.free_space_floor_bytes = Some(0);
        // What these tests call now is so.
        clock.set_synchronised(true);
        let broker = Broker::open(Arc::new(storage.clone()), config, clock.clone())
            .await
            .expect("the node opens");
        let sink = Sink::start(&broker, sink, destinations, clock.clone(), spool.to_owned());
        let sink = sink.expect("the seat is free");
        Self {
            broker,
            sink,
            clock,
            ticking: None,
        }
    }

    /// As a killed process: nothing is closed in order.
    pub(crate) async fn kill(self) {
        self.sink.shutdown().await;
        if let Some(ticking) = self.ticking {
            ticking.abort();
        }
    }

    pub(crate) async fn shutdown(self) {
        self.sink.shutdown().await;
        self.broker.shutdown().await.expect("it closes in order");
        if let Some(ticking) = self.ticking {
            ticking.abort();
        }
    }
}

pub(crate) fn stream_name(name: &str) -> StreamName {
    name.parse().unwrap()
}

pub(crate) fn delivery_name(name: &str) -> DeliveryName {
    name.parse().unwrap()
}

pub(crate) async fn create_stream(broker: &Broker, name: &str, shards: u32) -> StreamName {
    let name = stream_name(name);
    let new = NewStream {
        name: name.clone(),
        shards,
        settings: StreamSettings::default(),
    };
    broker.create_stream(new).await.expect("it is created");
    name
}

/// Lines into memory, at once.
pub(crate) fn settings(stream: &StreamName) -> DeliverySettings {
    let source = DeliverySource::Stream {
        stream: StreamNameText(stream.clone()),
        start: DeliveryStart::TrimHorizon,
    };
    let json = serde_json::json!({
        "source": source,
        "destination": { "kind": "memory", "name": "test" },
    });
    DeliverySettings {
        buffering: BufferingHints {
            size_bytes: 1 << 20,
            interval_ms: 0,
        },
        format: ObjectFormat::Ndjson,
        ..serde_json::from_value(json).unwrap()
    }
}

pub(crate) async fn deliver(broker: &Broker, settings: DeliverySettings) -> DeliveryName {
    let name = delivery_name("d");
    let new = NewDelivery {
        name: name.clone(),
        settings,
    };
    broker.create_delivery(new).await.expect("it is created");
    name
}

/// Records whose data says which they are.
pub(crate) fn numbered(numbers: std::ops::Range<u64>) -> Vec<Record> {
    numbers
        .map(|n| Record {
            partition_key: Bytes::from(format!("key-{}", n % 97)),
            explicit_hash_key: None,
            data: Bytes::from(format!("{{\"n\":{n}}}")),
            client_timestamp: None,
            headers: Vec::new(),
        })
        .collect()
}

pub(crate) async fn put(broker: &Broker, stream: &StreamName, numbers: std::ops::Range<u64>) {
    let outcomes = broker
        .put(stream, numbered(numbers))
        .await
        .expect("it is attempted");
    for outcome in outcomes {
        outcome.expect("it is stored");
    }
}

pub(crate) async fn flush(broker: &Broker, name: &DeliveryName) -> DeliveryDescription {
    // By the broker's clock, which may run fast; and by the time of day.
    let flushing = broker.flush_delivery(name, 1000 * WAIT);
    let flushed = tokio::time::timeout(WAIT, flushing).await;
    let Ok(flushed) = flushed else {
        panic!(
            "it takes too long: {:#?}",
            broker.describe_delivery(name).unwrap()
        );
    };
    flushed.expect("it is flushed")
}

/// Waits until a delivery stream is seen to be so.
pub(crate) async fn until(
    broker: &Broker,
    name: &DeliveryName,
    mut is_so: impl FnMut(&DeliveryDescription) -> bool,
) -> DeliveryDescription {
    let looking = async {
        loop {
            let described = broker.describe_delivery(name).unwrap();
            if is_so(&described) {
                return described;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    match tokio::time::timeout(WAIT, looking).await {
        Ok(described) => described,
        Err(_) => panic!(
            "it never is: {:#?}",
            broker.describe_delivery(name).unwrap()
        ),
    }
}

/// Waits until it is in this phase for this reason.
pub(crate) async fn until_failed(
    broker: &Broker,
    name: &DeliveryName,
    phase: DeliveryPhase,
    reason: &str,
) -> DeliveryDescription {
    until(broker, name, |described| {
        let error = described.report.last_error.as_ref();
        described.report.phase == phase && error.is_some_and(|error| error.reason == reason)
    })
    .await
}

/// Bytes in a directory.
pub(crate) fn bytes_in(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return 0;
    };
    let sizes = entries
        .map_while(Result::ok)
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => bytes_in(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        });
    sizes.sum()
}

/// What a reader of the manifests sees.
#[derive(Debug, Default)]
pub(crate) struct Delivered {
    /// Manifests by key.
    pub(crate) manifests: BTreeMap<String, Value>,
    /// The bytes of the objects that they name, by kind and key.
    pub(crate) objects: BTreeMap<(String, String), Bytes>,
    /// Keys that no manifest names.
    pub(crate) strays: BTreeSet<String>,
}

impl Delivered {
    /// Reads everything, and checks that the manifests say what is there.
    pub(crate) async fn read(objects: &dyn ObjectStore) -> Self {
        let mut read = Self::default();
        let listed: Vec<_> = objects.list(None).try_collect().await.unwrap();
        let mut keys: BTreeSet<String> = listed
            .into_iter()
            .map(|meta| meta.location.to_string())
            .collect();
        let manifests: Vec<_> = keys
            .iter()
            .filter(|key| key.contains("_manifest/"))
            .cloned()
            .collect();
        for key in manifests {
            keys.remove(&key);
            let manifest: Value = serde_json::from_slice(&get(objects, &key).await).unwrap();
            for object in manifest["objects"].as_array().unwrap() {
                let key = object["key"].as_str().unwrap();
                assert!(keys.remove(key), "{key} is named twice, or not there");
                let bytes = get(objects, key).await;
                assert_eq!(object["bytes"], bytes.len() as u64, "{key}");
                let crc32 = format!("{:08x}", crc32fast::hash(&bytes));
                assert_eq!(object["crc32"], Value::String(crc32), "{key}");
                let kind = object["kind"].as_str().unwrap().to_owned();
                read.objects.insert((kind, key.to_owned()), bytes);
            }
            read.manifests.insert(key, manifest);
        }
        read.strays = keys;
        read
    }

    /// All lines of objects of a kind.
    pub(crate) fn lines(&self, kind: &str) -> Vec<String> {
        self.objects
            .iter()
            .filter(|((of, _), _)| of == kind)
            .flat_map(|(_, bytes)| {
                let text = std::str::from_utf8(bytes).unwrap();
                text.lines().map(str::to_owned).collect::<Vec<_>>()
            })
            .collect()
    }

    /// The numbers in the lines of data objects, sorted.
    pub(crate) fn numbers(&self) -> Vec<u64> {
        let lines = self.lines("data");
        let number = |line: &String| {
            let row: Value = serde_json::from_str(line).unwrap();
            row["n"].as_u64().unwrap()
        };
        let mut numbers: Vec<_> = lines.iter().map(number).collect();
        numbers.sort_unstable();
        numbers
    }

    /// Each of these is there once, and nothing else.
    pub(crate) fn expect_numbers(&self, numbers: std::ops::Range<u64>) {
        assert_eq!(self.numbers(), numbers.collect::<Vec<_>>());
        self.expect_contiguous();
    }

    /// Whatever was written is named: made again, a cut has the same names.
    pub(crate) fn expect_no_strays(&self) {
        let strays = self.strays.iter().filter(|key| !key.contains("_probe/"));
        assert_eq!(strays.collect::<Vec<_>>(), Vec::<&String>::new());
    }

    /// Cut numbers have no gap, and each shard's ranges follow each other.
    pub(crate) fn expect_contiguous(&self) {
        let mut ends: BTreeMap<u64, u64> = BTreeMap::new();
        for (at, manifest) in self.manifests.values().enumerate() {
            assert_eq!(manifest["cut"], at as u64);
            for range in manifest["ranges"].as_array().unwrap() {
                let (from, to) = (
                    range["from"].as_u64().unwrap(),
                    range["to"].as_u64().unwrap(),
                );
                let end = ends.entry(range["shard"].as_u64().unwrap()).or_insert(from);
                assert_eq!(*end, from, "cut {at}");
                *end = to;
            }
        }
    }
}

async fn get(objects: &dyn ObjectStore, key: &str) -> Bytes {
    let path = object_store::path::Path::parse(key).unwrap();
    objects.get(&path).await.unwrap().bytes().await.unwrap()
}

pub(crate) fn memory() -> Arc<InMemory> {
    Arc::new(InMemory::new())
}

/// The same, for the sink.
pub(crate) fn shared(objects: &Arc<InMemory>) -> Arc<dyn ObjectStore> {
    Arc::<InMemory>::clone(objects)
}
