//! Looking after files: the loop beside each log that prepares, frees and copies its segments, and the
//! node's own logs while nothing changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flumen_log::Housekeeper;
use flumen_world::{Now, Running, SpawnError, Turn, World};

use crate::Error;
use crate::node::{Node, on_blocking_thread};

/// After a failure it looks again this much later.
const AFTER_FAILURE: Duration = Duration::from_secs(5);

/// The node's own logs are not looked after more often than this.
const REST_AGAIN: Duration = Duration::from_millis(100);

/// The handle of the loop.
#[derive(Debug, Default)]
pub(crate) struct Housekeeping {
    stop: Arc<AtomicBool>,
    running: Option<Running>,
}

impl Housekeeping {
    /// Starts the loop.
    pub(crate) fn start(
        world: &dyn World,
        housekeeper: Housekeeper,
        label: String,
    ) -> Result<Self, SpawnError> {
        let stop = Arc::new(AtomicBool::new(false));
        let (bell, name) = (housekeeper.bell(), format!("keep-{label}"));
        let mut keeper = Keeper {
            housekeeper,
            label,
            stop: Arc::clone(&stop),
            failed: None,
        };
        let running = Running::start(world, &name, Box::new(move |now| keeper.turn(now)))?;
        bell.set(running.wake().clone());
        Ok(Self {
            stop,
            running: Some(running),
        })
    }

    /// Leaves an empty handle behind.
    pub(crate) fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    /// Tells the loop to end.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        if let Some(running) = &self.running {
            running.wake().wake();
        }
    }

    /// Tells the loop to end and waits for it.
    pub(crate) async fn finish(self) {
        self.stop();
        if let Some(running) = self.running {
            running.ended().await;
        }
    }
}

struct Keeper {
    housekeeper: Housekeeper,
    label: String,
    stop: Arc<AtomicBool>,
    /// It has failed, and tries again at this monotonic time.
    failed: Option<Duration>,
}

impl Keeper {
    fn turn(&mut self, now: Now) -> Turn {
        // Its lane may have ended without closing it in order.
        if self.stop.load(Ordering::Acquire) || self.housekeeper.is_over() {
            return Turn::Ended;
        }
        if let Some(again) = self.failed
            && now.monotonic < again
        {
            return Turn::Wait(Some(again));
        }
        match self.housekeeper.turn(now) {
            Ok(turn) => {
                if self.failed.take().is_some() {
                    tracing::info!(log = self.label, "housekeeping works again");
                }
                turn
            }
            Err(error) => {
                let again = now.monotonic.saturating_add(AFTER_FAILURE);
                if self.failed.replace(again).is_none() {
                    tracing::warn!(log = self.label, %error, "housekeeping failed; it goes on trying");
                }
                Turn::Wait(Some(again))
            }
        }
    }
}

/// Lets the node's own logs do what is due while nothing changes, and only then. Ends with the node.
pub(crate) fn start_resting(node: &Arc<Node>) {
    let mut stop = node.stop.subscribe();
    let clock = node.clock.clone();
    let changed = Arc::clone(&node.restless);
    let (here, node) = (node, Arc::downgrade(node));
    here.background(async move {
        loop {
            let Some(there) = node.upgrade() else { return };
            let due = there.rest().await;
            drop(there);
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                () = clock.sleep(due.unwrap_or_default()), if due.is_some() => {}
                // Whatever changes while it waits is looked at then.
                () = changed.notified(), if due.is_none() => {}
            }
        }
    });
}

impl Node {
    /// Lets the catalog and the log of delivery streams rest if they may; in how long they may next.
    async fn rest(self: &Arc<Self>) -> Option<Duration> {
        let now = self.clock.now();
        let rest = move |catalog: &mut flumen_stream::Catalog| {
            let rested = catalog.rest(now).map_err(Error::from);
            Ok((rested, catalog.last_change()))
        };
        let (rested, last_change) = match self.look_at_catalog(rest).await {
            Ok(rested) => rested,
            Err(error) => (Err(error), 0),
        };
        let node = Arc::clone(self);
        // Each change of the catalog is named by some round, also when nothing is appended any more.
        let rest = move || node.deliveries.rest(last_change, now);
        let deliveries = on_blocking_thread(&*self.world, rest).await;
        if let Err(error) = &rested
            && *error != Error::Draining
        {
            tracing::warn!(%error, "the catalog could not be looked after");
        }
        let due = [rested, deliveries].map(|due| due.unwrap_or(Some(AFTER_FAILURE)));
        let due = due.into_iter().flatten().min();
        due.map(|due| due.max(REST_AGAIN))
    }
}

#[cfg(test)]
mod tests {
    use flumen_log::{Log, LogConfig, LogKey, MemoryStorage};
    use flumen_world::{Clock, Threads};

    use super::*;

    /// A lane that panics drops its log: that ends the loop, which is not told to stop.
    #[tokio::test]
    async fn ends_with_its_log() {
        let clock = Clock::system();
        let storage = Arc::new(MemoryStorage::new());
        let (key, config) = (LogKey::CATALOG, LogConfig::default());
        let mut ignore = crate::open::Ignore;
        let (log, _) = Log::open(storage, key, config, clock.now(), &mut ignore).unwrap();
        let world = Threads::new(clock);
        let housekeeping = Housekeeping::start(&world, log.housekeeper(), "test".to_owned());
        drop(log);
        housekeeping.unwrap().running.unwrap().ended().await;
    }
}
