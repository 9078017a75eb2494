//! The delivery streams there are, in memory and in their log.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::time::Duration;

use bytes::Bytes;
use flumen_log::{Housekeeper, LogReader};
use flumen_record::{
    DeliveryId, DeliveryName, SequenceNumber, ShardId, ShardIndex, StreamName, Timestamp,
};
use flumen_stream::delivery::{
    DeliveryConfig, DeliveryEnding, DeliveryLog, DeliveryLogError, StoredDelivery,
};
use tokio::sync::{Notify, watch};

use super::saving::Saves;
use super::{
    DeliveryChecks, DeliveryCounters, DeliveryEnd, DeliveryOrders, DeliveryReport,
    DeliverySettings, DeliverySource,
};
use crate::Error;
use crate::open::OpenError;
use flumen_world::{lock, read, write};

/// One delivery stream, for as long as it exists.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(super) id: DeliveryId,
    pub(super) name: DeliveryName,
    pub(super) created: Timestamp,
    /// The stream it reads.
    pub(super) stream: StreamName,
    pub(super) orders: watch::Sender<Arc<DeliveryOrders>>,
    pub(super) report: watch::Sender<DeliveryReport>,
    pub(super) counters: DeliveryCounters,
    pub(super) standing: Mutex<Standing>,
    /// It exists no more.
    pub(super) gone: watch::Sender<bool>,
}

/// Where a delivery stream stands.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// When its settings last changed.
    pub(super) updated: Timestamp,
    /// What its runner saved last.
    pub(super) progress: Bytes,
    /// Saved with it: what retention waits for.
    pub(super) held: Vec<(ShardId, SequenceNumber)>,
    /// What is not delivered yet begins here, as its runner said last.
    pub(super) positions: BTreeMap<ShardIndex, SequenceNumber>,
    /// When the oldest record of it arrived, if its runner knows.
    pub(super) oldest: Option<Timestamp>,
    /// Records that expired before they were delivered, ever.
    pub(super) expired: u64,
}

/// All delivery streams of the node.
#[derive(Debug)]
pub(crate) struct Deliveries {
    pub(super) config: DeliveryConfig,
    /// `None` once it is closed. Used on threads that may block.
    log: Mutex<Option<DeliveryLog>>,
    /// The last durable catalog record, which rounds name.
    catalog_record: Arc<AtomicU64>,
    /// Says how far the log has got, also when it is closed.
    reader: Option<LogReader>,
    /// Told when the log was changed.
    pub(crate) restless: Arc<Notify>,
    /// The log has failed: nothing is changed any more.
    failed: AtomicBool,
    /// The log did not open: nobody knows which there are.
    refusal: Option<Error>,
    pub(super) saves: Saves,
    /// Of the sink, once it has taken its seat.
    checks: OnceLock<Arc<dyn DeliveryChecks>>,
    known: RwLock<Known>,
    /// Counts those that came and went.
    changes: watch::Sender<u64>,
}

/// Those there are, twice: as they are named, and by the stream that they read.
#[derive(Debug, Default)]
struct Known {
    by_name: BTreeMap<DeliveryName, Arc<Entry>>,
    by_stream: BTreeMap<StreamName, Vec<Arc<Entry>>>,
}

impl Known {
    fn add(&mut self, entry: Arc<Entry>) {
        let readers = self.by_stream.entry(entry.stream.clone()).or_default();
        readers.push(Arc::clone(&entry));
        self.by_name.insert(entry.name.clone(), entry);
    }

    fn remove(&mut self, entry: &Entry) {
        self.by_name.remove(&entry.name);
        if let Some(readers) = self.by_stream.get_mut(&entry.stream) {
            readers.retain(|reader| reader.id != entry.id);
            if readers.is_empty() {
                self.by_stream.remove(&entry.stream);
            }
        }
    }
}

/// The stream that takes the direct puts of a delivery stream.
pub(super) fn backing_stream(delivery: &DeliveryName) -> StreamName {
    format!("delivery.{delivery}")
        .parse()
        .expect("BUG: the name of a delivery stream has at most 64 characters")
}

impl Entry {
    /// A new one, or one from the log.
    pub(super) fn new(id: DeliveryId, stored: StoredDelivery, settings: DeliverySettings) -> Self {
        let definition = stored.definition;
        let stream = match &settings.source {
            DeliverySource::Stream { stream, .. } => stream.0.clone(),
            DeliverySource::Direct { .. } => backing_stream(&definition.name),
        };
        let orders = DeliveryOrders {
            version: definition.version,
            settings: Arc::new(settings),
            paused: definition.paused,
            tries: 0,
            flush: 0,
            renew: 0,
            ending: definition.ending.map(|ending| match ending {
                DeliveryEnding::Flush => DeliveryEnd::Flush,
                DeliveryEnding::Drop => DeliveryEnd::Drop,
            }),
        };
        Self {
            id,
            name: definition.name,
            created: definition.created,
            stream,
            orders: watch::Sender::new(Arc::new(orders)),
            report: watch::Sender::default(),
            counters: DeliveryCounters::default(),
            standing: Mutex::new(Standing {
                updated: definition.updated,
                progress: stored.progress.bytes,
                held: stored.progress.held,
                ..Standing::default()
            }),
            gone: watch::Sender::new(false),
        }
    }

    /// What its runner is to do now.
    pub(super) fn orders(&self) -> Arc<DeliveryOrders> {
        Arc::clone(&self.orders.borrow())
    }

    /// Tells its runner to do something else.
    pub(super) fn order(&self, change: impl FnOnce(&mut DeliveryOrders)) {
        self.orders
            .send_modify(|orders| change(Arc::make_mut(orders)));
    }

    /// [`Error::DeliveryEnding`] once it is being deleted.
    pub(super) fn check_stays(&self) -> Result<(), Error> {
        match self.orders().ending {
            Some(_) => Err(Error::DeliveryEnding {
                delivery: self.name.clone(),
            }),
            None => Ok(()),
        }
    }

    /// Whether it reads a stream of its own.
    pub(super) fn is_direct(&self) -> bool {
        let orders = self.orders();
        matches!(orders.settings.source, DeliverySource::Direct { .. })
    }
}

impl Deliveries {
    /// Knows what is in the log. `exists` says which streams there are. Blocks.
    pub(crate) fn of(
        mut log: DeliveryLog,
        config: DeliveryConfig,
        catalog_record: Arc<AtomicU64>,
        now: Timestamp,
        exists: impl Fn(&StreamName) -> bool,
    ) -> Result<Self, OpenError> {
        let mut known = Known::default();
        let mut deleted = Vec::new();
        for (id, stored) in log.deliveries() {
            let settings: DeliverySettings = serde_json::from_slice(&stored.definition.settings)
                .map_err(|error| OpenError::DeliverySettings {
                    delivery: stored.definition.name.clone(),
                    reason: error.to_string(),
                })?;
            let entry = Entry::new(id, stored.clone(), settings);
            if entry.orders().ending.is_some() && entry.is_direct() && !exists(&entry.stream) {
                // Its stream is the last thing that goes before it does.
                deleted.push(id);
            } else {
                known.add(Arc::new(entry));
            }
        }
        for id in deleted {
            log.remove(id, now)?;
        }
        Ok(Self {
            config,
            catalog_record,
            reader: Some(log.reader()),
            log: Mutex::new(Some(log)),
            restless: Arc::default(),
            failed: AtomicBool::new(false),
            refusal: None,
            saves: Saves::default(),
            checks: OnceLock::new(),
            known: RwLock::new(known),
            changes: watch::Sender::default(),
        })
    }

    /// Those of a log that did not open: whatever is asked, this is the answer.
    pub(crate) fn refused(config: DeliveryConfig, why: Error) -> Self {
        Self {
            config,
            catalog_record: Arc::default(),
            reader: None,
            log: Mutex::new(None),
            restless: Arc::default(),
            failed: AtomicBool::new(false),
            refusal: Some(why),
            saves: Saves::default(),
            checks: OnceLock::new(),
            known: RwLock::default(),
            changes: watch::Sender::default(),
        }
    }

    /// Why the log did not open, if it did not.
    pub(crate) fn refusal(&self) -> Option<&Error> {
        self.refusal.as_ref()
    }

    pub(super) fn check_open(&self) -> Result<(), Error> {
        self.refusal.clone().map_or(Ok(()), Err)
    }

    /// Says how far the log has got; `None` when it did not open.
    pub(crate) fn reader(&self) -> Option<&LogReader> {
        self.reader.as_ref()
    }

    /// The handle for the thread that looks after the log's files.
    pub(crate) fn housekeeper(&self) -> Option<Housekeeper> {
        lock(&self.log).as_ref().map(DeliveryLog::housekeeper)
    }

    /// The seat is taken by whoever brings the checks first.
    pub(super) fn attach(&self, checks: Arc<dyn DeliveryChecks>) -> bool {
        self.checks.set(checks).is_ok()
    }

    /// [`Error::DeliveriesUnavailable`] until the seat is taken.
    pub(super) fn checks(&self) -> Result<&Arc<dyn DeliveryChecks>, Error> {
        self.checks.get().ok_or(Error::DeliveriesUnavailable)
    }

    /// [`Error::DeliveriesFailed`] once the log has failed, [`Error::LogRefused`] when it did not
    /// open.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.check_open()?;
        if self.failed.load(Ordering::Acquire) {
            Err(Error::DeliveriesFailed)
        } else {
            Ok(())
        }
    }

    /// Runs a change of the log, about the delivery stream of this name. Blocks.
    pub(super) fn with_log<T>(
        &self,
        about: &DeliveryName,
        change: impl FnOnce(&mut DeliveryLog) -> Result<T, DeliveryLogError>,
    ) -> Result<T, Error> {
        let mut log = lock(&self.log);
        self.check()?;
        let log = log.as_mut().ok_or(Error::Draining)?;
        log.know_catalog(self.catalog_record.load(Ordering::Acquire));
        self.restless.notify_one();
        change(log).map_err(|error| {
            if !error.is_refusal() {
                tracing::error!(%error, "the log of delivery streams has failed; they need a restart");
                self.failed.store(true, Ordering::Release);
            }
            Error::delivery(about, error)
        })
    }

    /// What is due while nothing changes; how long until the next, `None`: nothing is due. Some round
    /// names this catalog record then. Blocks.
    pub(crate) fn rest(&self, catalog: u64, now: Timestamp) -> Result<Option<Duration>, Error> {
        let mut log = lock(&self.log);
        let Some(log) = log.as_mut() else {
            return Ok(None);
        };
        if self.check().is_err() {
            return Ok(None);
        }
        log.know_catalog(self.catalog_record.load(Ordering::Acquire));
        log.rest(catalog, now).map_err(|error| {
            let has_failed = !error.is_refusal();
            self.failed.fetch_or(has_failed, Ordering::AcqRel);
            tracing::warn!(%error, "the log of delivery streams could not be looked after");
            Error::DeliveriesFailed
        })
    }

    /// Syncs and closes; nothing is changed any more. Blocks.
    pub(crate) fn close(&self, now: Timestamp) -> Result<(), Error> {
        let log = lock(&self.log).take();
        match log {
            Some(mut log) if self.check().is_ok() => {
                log.know_catalog(self.catalog_record.load(Ordering::Acquire));
                log.close(now).map_err(|error| {
                    tracing::error!(%error, "the log of delivery streams could not be closed");
                    Error::DeliveriesFailed
                })
            }
            _ => Ok(()),
        }
    }

    /// The one of this name.
    pub(super) fn get(&self, name: &DeliveryName) -> Result<Arc<Entry>, Error> {
        self.check_open()?;
        let known = read(&self.known);
        let entry = known.by_name.get(name).cloned();
        entry.ok_or_else(|| Error::DeliveryNotFound {
            delivery: name.clone(),
        })
    }

    /// Up to `limit` after `after`, by name, and whether there are more.
    pub(super) fn page(
        &self,
        after: Option<&DeliveryName>,
        limit: usize,
    ) -> (Vec<Arc<Entry>>, bool) {
        let known = read(&self.known);
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = known
            .by_name
            .range::<DeliveryName, _>((from, Bound::Unbounded));
        let page = rest
            .by_ref()
            .take(limit)
            .map(|(_, entry)| Arc::clone(entry));
        let page = page.collect();
        (page, rest.next().is_some())
    }

    /// Makes one known.
    pub(super) fn add(&self, entry: Arc<Entry>) {
        write(&self.known).add(entry);
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// Forgets one, and tells who waits for that.
    pub(super) fn remove(&self, entry: &Entry) {
        write(&self.known).remove(entry);
        entry.gone.send_replace(true);
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// Counts those that came and went.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// [`Error::StreamInUse`] when one reads this stream, or writes what failed to it.
    pub(crate) fn check_unused(&self, stream: &StreamName) -> Result<(), Error> {
        self.check_open()?;
        let known = read(&self.known);
        let uses = |entry: &&Arc<Entry>| {
            let orders = entry.orders();
            let dead_letters = orders.settings.dead_letters.as_ref();
            entry.stream == *stream || dead_letters.is_some_and(|name| name.0 == *stream)
        };
        match known.by_name.values().find(uses) {
            Some(entry) => Err(Error::StreamInUse {
                stream: stream.clone(),
                delivery: entry.name.clone(),
            }),
            None => Ok(()),
        }
    }

    /// From where on retention waits for shards of a stream.
    pub(crate) fn held(&self, stream: &StreamName) -> BTreeMap<ShardId, SequenceNumber> {
        let readers = {
            let known = read(&self.known);
            known.by_stream.get(stream).cloned().unwrap_or_default()
        };
        let mut held = BTreeMap::new();
        for entry in readers {
            for (shard, from) in &lock(&entry.standing).held {
                let least = held.entry(*shard).or_insert(*from);
                *least = (*least).min(*from);
            }
        }
        held
    }
}
