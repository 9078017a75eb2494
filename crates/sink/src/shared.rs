//! What all delivery streams of a node share.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flumen_broker::{Broker, Clock, StoreGuarantee};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::config::SinkConfig;
use crate::cut::Epoch;
use crate::retry::{Budget, pause};
use crate::spool::SpoolFiles;
use crate::store::Destinations;
use flumen_world::World;

/// Upload room is counted in these.
const UPLOAD_UNIT: u64 = 64 << 10;

/// What all delivery streams of a node share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) broker: Broker,
    pub(crate) config: SinkConfig,
    pub(crate) destinations: Arc<dyn Destinations>,
    pub(crate) clock: Clock,
    /// The node's.
    pub(crate) world: Arc<dyn World>,
    /// Where spools lie.
    pub(crate) spools: Arc<dyn SpoolFiles>,
    /// Each delivery stream has a folder in it.
    pub(crate) spool_dir: PathBuf,
    /// Of this run.
    pub(crate) epoch: Epoch,
    retries: Mutex<Budget>,
    uploads: Semaphore,
    upload_units: u32,
    /// What stores guarantee, by name: asked once per process.
    guarantees: Mutex<BTreeMap<String, StoreGuarantee>>,
}

impl Shared {
    pub(crate) fn new(
        broker: Broker,
        config: SinkConfig,
        destinations: Arc<dyn Destinations>,
        clock: Clock,
        spools: Arc<dyn SpoolFiles>,
        spool_dir: PathBuf,
    ) -> Self {
        let units = config.upload_bytes_max.div_ceil(UPLOAD_UNIT).max(1);
        let upload_units = u32::try_from(units).unwrap_or(u32::MAX >> 3);
        let world = Arc::clone(broker.world());
        Self {
            retries: Mutex::new(Budget::full(clock.monotonic())),
            uploads: Semaphore::new(upload_units as usize),
            upload_units,
            guarantees: Mutex::default(),
            broker,
            config,
            destinations,
            clock,
            spools,
            spool_dir,
            epoch: Epoch(world.random()),
            world,
        }
    }

    /// Waits until an object of this size may be in memory.
    pub(crate) async fn upload_room(&self, bytes: u64) -> SemaphorePermit<'_> {
        let units = bytes.div_ceil(UPLOAD_UNIT).max(1);
        let units =
            u32::try_from(units).map_or(self.upload_units, |units| units.min(self.upload_units));
        self.uploads
            .acquire_many(units)
            .await
            .expect("BUG: nobody closes the semaphore")
    }

    /// Waits before something is tried again, after so many failures in a row.
    pub(crate) async fn pause(&self, failures: u32) {
        let pause = pause(failures, self.world.fraction());
        let mut turn = Duration::ZERO;
        if let Ok(mut budget) = self.retries.lock() {
            turn = budget.take(self.clock.monotonic());
        }
        self.clock.sleep(pause.max(turn)).await;
    }

    /// What a store is known to guarantee.
    pub(crate) fn guarantee(&self, store: &str) -> Option<StoreGuarantee> {
        let known = self
            .guarantees
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        known.get(store).copied()
    }

    /// Remembers it.
    pub(crate) fn learn(&self, store: String, guarantee: StoreGuarantee) {
        let mut known = self
            .guarantees
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        known.insert(store, guarantee);
    }
}
