//! The thread beside a log that prepares, frees and copies its segments.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use flumen_log::Housekeeper;

use crate::node::{Node, on_blocking_thread};
use crate::{Clock, Error};

/// Also how long it takes at most to notice that it should end.
const WAIT: Duration = Duration::from_millis(250);
/// The catalog and the delivery streams' log are given the chance to rest this often.
const REST_EVERY: Duration = Duration::from_secs(5);
/// After a failure it looks again this many waits later.
const WAITS_AFTER_FAILURE: u32 = 20;

/// The handle of the thread.
#[derive(Debug, Default)]
pub(crate) struct Housekeeping {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Housekeeping {
    /// Starts the thread.
    pub(crate) fn start(housekeeper: Housekeeper, label: String, clock: Clock) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name(format!("keep-{label}"))
            .spawn(move || run(housekeeper, &label, &clock, &told))
            .expect("BUG: the system refuses a thread");
        Self {
            stop,
            thread: Some(thread),
        }
    }

    /// Leaves an empty handle behind.
    pub(crate) fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    /// Tells the thread to end.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    /// Tells the thread to end and waits for it.
    pub(crate) fn finish(self) {
        self.stop();
        if let Some(thread) = self.thread {
            let _ = thread.join();
        }
    }
}

/// Lets the node's own logs do what is due while nothing changes. Ends with the node.
pub(crate) fn start_resting(node: &Arc<Node>) {
    let mut stop = node.stop.subscribe();
    let (world, clock) = (Arc::clone(&node.world), node.clock.clone());
    let node = Arc::downgrade(node);
    world.task(Box::pin(async move {
        loop {
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                () = clock.sleep(REST_EVERY) => {}
            }
            let Some(node) = node.upgrade() else { return };
            let now = node.clock.now();
            let rested = node
                .with_catalog(move |catalog| Ok(catalog.rest(now)?))
                .await;
            let deliveries = Arc::clone(&node);
            let _ = on_blocking_thread(&*node.world, move || {
                deliveries.deliveries.rest(now);
                Ok(())
            })
            .await;
            if let Err(error) = rested
                && error != Error::Draining
            {
                tracing::warn!(%error, "the catalog could not be looked after");
            }
        }
    }));
}

fn run(mut housekeeper: Housekeeper, label: &str, clock: &Clock, stop: &AtomicBool) {
    let mut failed = false;
    while !stop.load(Ordering::Acquire) {
        match housekeeper.step(clock.now()) {
            Ok(report) => {
                if std::mem::take(&mut failed) {
                    tracing::info!(log = label, "housekeeping works again");
                }
                if !report.more && !housekeeper.wait(WAIT) {
                    // Its lane has ended without closing it in order.
                    return;
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut failed, true) {
                    tracing::warn!(log = label, %error, "housekeeping failed; it goes on trying");
                }
                for _ in 0..WAITS_AFTER_FAILURE {
                    if stop.load(Ordering::Acquire) {
                        return;
                    }
                    thread::sleep(WAIT);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use flumen_log::{Log, LogConfig, LogKey, MemoryStorage};

    use super::*;

    /// A lane that panics drops its log: nobody wakes the thread any more, and waiting returns at
    /// once.
    #[test]
    fn ends_with_its_log() {
        let clock = Clock::system();
        let storage = Arc::new(MemoryStorage::new());
        let (key, config) = (LogKey::CATALOG, LogConfig::default());
        let mut ignore = crate::open::Ignore;
        let (log, _) = Log::open(storage, key, config, clock.now(), &mut ignore).unwrap();
        let housekeeping = Housekeeping::start(log.housekeeper(), "test".to_owned(), clock);
        drop(log);
        // Joined without being told to stop.
        housekeeping.thread.unwrap().join().unwrap();
    }
}
