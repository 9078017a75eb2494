//! All delivery streams of a node: a runner for each, as they come and go.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;

use flumen_broker::{
    Broker, Clock, DeliveryChecks, DeliveryPhase, DeliverySeat, DeliverySettings, SettingRefused,
};
use flumen_record::DeliveryName;
use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::bundle::Bundle;
use crate::config::SinkConfig;
use crate::runner::Runner;
use crate::shared::Shared;
use crate::store::{Destinations, StoreConfig};
use crate::trouble::Trouble;

/// Runs the delivery streams of a node.
#[derive(Debug)]
pub struct Sink {
    stop: watch::Sender<bool>,
    running: JoinHandle<()>,
}

/// Says whether settings can be run.
#[derive(Debug)]
struct Checks {
    destinations: Arc<dyn Destinations>,
    store: StoreConfig,
    clock: Clock,
}

impl DeliveryChecks for Checks {
    fn check(
        &self,
        name: &DeliveryName,
        settings: &DeliverySettings,
    ) -> Result<(), SettingRefused> {
        Bundle::compile(name, 1, Arc::new(settings.clone()), &self.clock)?;
        let (destination, object) = (&settings.destination, &settings.object);
        self.destinations.open(destination, object, &self.store)?;
        Ok(())
    }
}

impl Sink {
    /// Takes the seat of the node and begins to run what is there; `None` when it is taken. Spools
    /// lie in `spool_dir`. Needs a tokio runtime.
    pub fn start(
        broker: &Broker,
        config: SinkConfig,
        destinations: Arc<dyn Destinations>,
        clock: Clock,
        spool_dir: PathBuf,
    ) -> Option<Self> {
        let seat = broker.attach_deliveries(Arc::new(Checks {
            destinations: Arc::clone(&destinations),
            store: config.store.clone(),
            clock: clock.clone(),
        }))?;
        let shared = Shared::new(seat.broker(), config, destinations, clock, spool_dir);
        let (stop, stopped) = watch::channel(false);
        Some(Self {
            stop,
            running: tokio::spawn(run(seat, Arc::new(shared), stopped)),
        })
    }

    /// Stops all work where it is: everything that counts is durable. Returns when nothing runs any
    /// more.
    pub async fn shutdown(self) {
        self.stop.send_replace(true);
        if let Err(ended) = self.running.await
            && ended.is_panic()
        {
            std::panic::resume_unwind(ended.into_panic());
        }
    }
}

/// Keeps a runner for each delivery stream.
async fn run(seat: DeliverySeat, shared: Arc<Shared>, mut stopped: watch::Receiver<bool>) {
    let mut changes = seat.changes();
    let mut runners = JoinSet::new();
    let mut known = HashMap::new();
    loop {
        changes.mark_unchanged();
        let desks = seat.desks();
        // One that has ended is not begun again: it is on its way out, or the node is.
        known.retain(|id, _| desks.iter().any(|desk| desk.id() == *id));
        for desk in desks {
            if let Entry::Vacant(vacant) = known.entry(desk.id()) {
                let runner = Runner::new(Arc::clone(&shared), desk);
                vacant.insert(runner.spool());
                runners.spawn(run_one(runner));
            }
        }
        tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => break,
            changed = changes.changed() => if changed.is_err() { break },
            Some(_) = runners.join_next() => {}
        }
    }
    // What they had in hand is read again.
    runners.shutdown().await;
    // Threads are not stopped: they come to their end, and do not meet who uses the spools next.
    for spool in known.values() {
        spool.idle().await;
    }
}

/// A panic is one delivery stream's: the others go on.
async fn run_one(runner: Runner) {
    let (reporter, mut successor) = (runner.reporter(), runner.successor());
    if AssertUnwindSafe(runner.run()).catch_unwind().await.is_err() {
        reporter.failed(&Trouble::Bug, DeliveryPhase::Stopped);
        // Until a restart: it can only be dropped.
        successor.until_dropped().await;
        successor.remove().await;
    }
}
