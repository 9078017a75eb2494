//! All delivery streams of a node: a runner for each, as they come and go.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;

use flumen_broker::{
    Broker, Clock, DeliveryChecks, DeliveryPhase, DeliverySeat, DeliverySettings, SettingRefused,
};
use flumen_record::DeliveryName;
use flumen_world::{Joined, Task};
use futures_util::FutureExt;
use tokio::sync::watch;

use crate::bundle::Bundle;
use crate::config::SinkConfig;
use crate::runner::Runner;
use crate::shared::Shared;
use crate::spool::SpoolFiles;
use crate::spool::files::DirectoryFiles;
use crate::store::{Destinations, StoreConfig};
use crate::trouble::Trouble;

/// Runs the delivery streams of a node.
#[derive(Debug)]
pub struct Sink {
    stop: watch::Sender<bool>,
    running: Joined<()>,
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
    /// lie in `spool_dir`.
    pub fn start(
        broker: &Broker,
        config: SinkConfig,
        destinations: Arc<dyn Destinations>,
        clock: Clock,
        spool_dir: PathBuf,
    ) -> Option<Self> {
        let files = Arc::new(DirectoryFiles);
        Self::start_over(broker, config, destinations, clock, files, spool_dir)
    }

    /// As [`Sink::start`], with spools in `spool_dir` of these files.
    pub fn start_over(
        broker: &Broker,
        config: SinkConfig,
        destinations: Arc<dyn Destinations>,
        clock: Clock,
        spools: Arc<dyn SpoolFiles>,
        spool_dir: PathBuf,
    ) -> Option<Self> {
        let seat = broker.attach_deliveries(Arc::new(Checks {
            destinations: Arc::clone(&destinations),
            store: config.store.clone(),
            clock: clock.clone(),
        }))?;
        let shared = Shared::new(
            seat.broker(),
            config,
            destinations,
            clock,
            spools,
            spool_dir,
        );
        let (stop, stopped) = watch::channel(false);
        Some(Self {
            stop,
            running: broker.world().join(run(seat, Arc::new(shared), stopped)),
        })
    }

    /// Stops all work where it is: everything that counts is durable. Returns when nothing runs any
    /// more.
    pub async fn shutdown(self) {
        self.stop.send_replace(true);
        // Given up, nothing runs either.
        let _ = self.running.await;
    }
}

/// Keeps a runner for each delivery stream.
async fn run(seat: DeliverySeat, shared: Arc<Shared>, mut stopped: watch::Receiver<bool>) {
    let mut changes = seat.changes();
    let mut runners = Runners::default();
    let mut known = BTreeMap::new();
    loop {
        changes.mark_unchanged();
        let desks = seat.desks();
        // One that has ended is not begun again: it is on its way out, or the node is.
        known.retain(|id, _| desks.iter().any(|desk| desk.id() == *id));
        for desk in desks {
            if let Entry::Vacant(vacant) = known.entry(desk.id()) {
                let runner = Runner::new(Arc::clone(&shared), desk);
                vacant.insert(runner.spool());
                let task = shared.world.task(Box::pin(run_one(runner)));
                runners.0.push(task);
            }
        }
        runners.0.retain(|runner| !runner.has_ended());
        tokio::select! {
            biased;
            _ = stopped.wait_for(|stopped| *stopped) => break,
            changed = changes.changed() => if changed.is_err() { break },
        }
    }
    // What they had in hand is read again.
    runners.end().await;
    // Threads are not stopped: they come to their end, and do not meet who uses the spools next.
    for spool in known.values() {
        spool.idle().await;
    }
}

/// A panic is one delivery stream's: the others go on.
/// The runners that run. They end with it.
#[derive(Debug, Default)]
struct Runners(Vec<Task>);

impl Runners {
    async fn end(&self) {
        self.0.iter().for_each(Task::abort);
        for runner in &self.0 {
            runner.ended().await;
        }
    }
}

impl Drop for Runners {
    fn drop(&mut self) {
        self.0.iter().for_each(Task::abort);
    }
}

async fn run_one(runner: Runner) {
    let (reporter, mut successor) = (runner.reporter(), runner.successor());
    if AssertUnwindSafe(runner.run()).catch_unwind().await.is_err() {
        reporter.failed(&Trouble::Bug, DeliveryPhase::Stopped);
        // Until a restart: it can only be dropped.
        successor.until_dropped().await;
        successor.remove().await;
    }
}
