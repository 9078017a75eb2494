//! What the parts of a running node share.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use flumen_log::{LogKey, Storage};
use flumen_record::ProducerId;
use flumen_stream::Catalog;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::delivery::Deliveries;
use crate::groups::Groups;
use crate::housekeeping::Housekeeping;
use crate::lane::{Control, Lane};
use crate::streams::Streams;
use crate::{BrokerConfig, Clock, Error, Health, Metrics};
use flumen_world::{Joined, World, lock};

/// So much may run beside.
pub(crate) const BESIDE_MAX: u32 = 1 << 24;

/// A sync that takes longer is worth a warning light.
const SLOW_SYNC: std::time::Duration = std::time::Duration::from_secs(1);

/// One running node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) config: BrokerConfig,
    pub(crate) clock: Clock,
    /// Runs loops, tasks and jobs.
    pub(crate) world: Arc<dyn World>,
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) metrics: Metrics,
    pub(crate) streams: Streams,
    pub(crate) groups: Arc<Groups>,
    pub(crate) deliveries: Deliveries,
    pub(crate) lanes: Lanes,
    /// `None` once it is closed. Used on threads that may block.
    pub(crate) catalog: Mutex<Option<Catalog>>,
    /// The loop that looks after the catalog's files.
    pub(crate) catalog_housekeeping: Mutex<Housekeeping>,
    /// The loop that looks after the files of the groups' log.
    pub(crate) groups_housekeeping: Mutex<Housekeeping>,
    /// The loop that looks after the files of the delivery streams' log.
    pub(crate) deliveries_housekeeping: Mutex<Housekeeping>,
    /// The last durable catalog record, which rounds name.
    pub(crate) catalog_record: Arc<AtomicU64>,
    /// The highest producer id that was issued.
    pub(crate) issued: AtomicU64,
    /// Above the first and up to the second none was.
    pub(crate) never_issued: (ProducerId, ProducerId),
    /// The catalog or the log of delivery streams has changed: they rest later.
    pub(crate) restless: Arc<Notify>,
    /// Held while streams change, one change at a time.
    pub(crate) changes: tokio::sync::Mutex<()>,
    /// Bounds the threads that read from disk.
    pub(crate) blocking_reads: Arc<Semaphore>,
    pub(crate) draining: AtomicBool,
    /// What runs beside holds a permit each: a shutdown waits for all of them.
    pub(crate) beside: Arc<Semaphore>,
    /// Tells background tasks to end.
    pub(crate) stop: tokio::sync::watch::Sender<bool>,
}

impl Node {
    /// [`Error::Draining`] once it is shutting down.
    pub(crate) fn check_serving(&self) -> Result<(), Error> {
        if self.draining.load(Ordering::Acquire) {
            Err(Error::Draining)
        } else {
            Ok(())
        }
    }

    /// Runs something beside, which ends by itself when [`Node::stop`] says so.
    pub(crate) fn background(&self, future: impl Future<Output = ()> + Send + 'static) {
        let permit = self.permit_beside();
        self.world.task(Box::pin(async move {
            future.await;
            // What it held of the node is gone.
            drop(permit);
        }));
    }

    /// Runs something whose outcome somebody waits for, and carries it through when nobody does any
    /// more. A shutdown waits for it.
    pub(crate) fn carry_through<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Joined<T> {
        let permit = self.permit_beside();
        self.world.join(async move {
            let done = future.await;
            drop(permit);
            done
        })
    }

    /// `None`: there are so many that a shutdown may miss one.
    fn permit_beside(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.beside).try_acquire_owned().ok()
    }

    /// Waits until nothing runs beside any more.
    pub(crate) async fn alone(&self) {
        // Nobody closes it, and it is free again for who asks next.
        let _all = self.beside.acquire_many(BESIDE_MAX).await;
    }

    /// Whether a producer id may have been issued by this data directory.
    pub(crate) fn may_have_issued(&self, producer: ProducerId) -> bool {
        let (above, up_to) = self.never_issued;
        let issued = ProducerId::new(self.issued.load(Ordering::Acquire));
        producer <= above || (producer > up_to && producer <= issued)
    }

    /// Runs a change of the catalog on a thread that may block.
    pub(crate) async fn with_catalog<T: Send + 'static>(
        self: &Arc<Self>,
        change: impl FnOnce(&mut Catalog) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let result = self.look_at_catalog(change).await;
        self.restless.notify_one();
        result
    }

    /// As [`Node::with_catalog`], for what changes nothing that has to rest.
    pub(crate) async fn look_at_catalog<T: Send + 'static>(
        self: &Arc<Self>,
        look: impl FnOnce(&mut Catalog) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let node = Arc::clone(self);
        on_blocking_thread(&*self.world, move || {
            let mut catalog = lock(&node.catalog);
            let catalog = catalog.as_mut().ok_or(Error::Draining)?;
            let result = look(catalog);
            node.catalog_record
                .store(catalog.last_record(), Ordering::Release);
            result
        })
        .await
    }

    /// Sets space aside for what must be written on a full disk, if there is enough. Blocks.
    pub(crate) fn keep_reserve(&self) {
        if self.storage.gone().is_some() {
            return;
        }
        if let Err(error) = flumen_log::keep_reserve(&*self.storage, &self.config.log) {
            tracing::warn!(%error, "the reserve for a full disk was not made");
        }
    }

    /// Whether the node serves.
    pub(crate) fn health(&self) -> Health {
        if self.draining.load(Ordering::Acquire) {
            return Health::Draining;
        }
        if self.storage.gone().is_some() {
            return Health::Failed(Cow::Borrowed(
                "the data directory was removed, moved, replaced or unmounted: put it back, then restart",
            ));
        }
        let lanes = self.lanes.all();
        if let Some(refused) = self.refused_logs(&lanes) {
            return Health::Degraded(Cow::Owned(refused));
        }
        let degraded = |why| Health::Degraded(Cow::Borrowed(why));
        if lanes.iter().any(|lane| lane.is_poisoned()) {
            return degraded("a log is poisoned after failed syncs: appends to it need a restart");
        }
        let is_full = |lane: &Arc<Lane>| lane.full().is_some() || lane.reader().is_below_floor();
        if lanes.iter().any(is_full) {
            return degraded("the disk is full: appends are refused until space is freed");
        }
        if !self.clock.is_trusted() {
            return degraded(
                "the wall clock is not believed: nothing expires until it is right, or `flumen clock confirm` is run",
            );
        }
        if lanes.iter().any(|lane| lane.syncing_for() > SLOW_SYNC) {
            return degraded("the disk is slow: a sync has been running for more than a second");
        }
        Health::Serving
    }

    /// The logs that did not open, with the reason of the first; `None`: all did.
    fn refused_logs(&self, lanes: &[Arc<Lane>]) -> Option<String> {
        let own = [self.groups.refusal(), self.deliveries.refusal()];
        let lanes = lanes.iter().filter_map(|lane| lane.refusal());
        let all: Vec<&Error> = lanes.chain(own.into_iter().flatten()).collect();
        let (first, more) = all.split_first()?;
        let more = match more.len() {
            0 => String::new(),
            more => format!(" (and {more} more logs)"),
        };
        Some(format!("logs refused: {first}{more}"))
    }

    /// Makes every waiting reader look again.
    pub(crate) fn stir_readers(&self) {
        let mut wakers = Vec::new();
        for stream in self.streams.all() {
            for shard in &stream.state().shards {
                shard.tail.stir(&mut wakers);
            }
        }
        wakers.into_iter().for_each(std::task::Waker::wake);
    }
}

impl Drop for Node {
    /// Not a shutdown: as if the process had been killed, but for the threads that are told to end.
    fn drop(&mut self) {
        self.stop.send_replace(true);
        lock(&self.catalog_housekeeping).stop();
        lock(&self.groups_housekeeping).stop();
        lock(&self.deliveries_housekeeping).stop();
        self.groups.stop();
        self.lanes.stop();
    }
}

/// Runs what blocks on a thread that may; a panic there goes on here.
pub(crate) async fn on_blocking_thread<T: Send + 'static>(
    world: &dyn World,
    run: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    world.blocked(run).await.unwrap_or(Err(Error::Draining))
}

/// The lanes of the node, with the thread that looks after each one's files.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    by_log: Mutex<BTreeMap<LogKey, (Arc<Lane>, Housekeeping)>>,
}

impl Lanes {
    pub(crate) fn get(&self, key: LogKey) -> Option<Arc<Lane>> {
        lock(&self.by_log)
            .get(&key)
            .map(|(lane, _)| Arc::clone(lane))
    }

    pub(crate) fn insert(&self, lane: Arc<Lane>, housekeeping: Housekeeping) {
        lock(&self.by_log).insert(lane.key(), (lane, housekeeping));
    }

    pub(crate) fn all(&self) -> Vec<Arc<Lane>> {
        lock(&self.by_log)
            .values()
            .map(|(lane, _)| Arc::clone(lane))
            .collect()
    }

    /// Ends the loops that look after files, and waits for them.
    pub(crate) async fn finish_housekeeping(&self) {
        let running: Vec<_> = {
            let mut lanes = lock(&self.by_log);
            lanes
                .values_mut()
                .map(|(_, housekeeping)| housekeeping.take())
                .collect()
        };
        for housekeeping in running {
            housekeeping.finish().await;
        }
    }

    /// Tells all threads to end as they are.
    fn stop(&self) {
        for (lane, housekeeping) in lock(&self.by_log).values() {
            housekeeping.stop();
            lane.send(Control::Stop);
        }
    }
}
