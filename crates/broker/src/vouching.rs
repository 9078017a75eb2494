//! The catalog vouches for every other log: how far it had got at an earlier moment, which a log that
//! is missing, emptied or an older copy cannot say itself.
//!
//! What is vouched for is on disk before the record is: a crash in between leaves a log that is more
//! than is remembered, never less. Each round names the last catalog record, which vouches for the
//! catalog.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use flumen_log::{Log, LogKey, SyncError, Voucher};
use flumen_record::Timestamp;
use flumen_stream::{Catalog, CatalogError, Vouched};

use crate::Error;
use crate::clock_watch::ASK_AGAIN;
use crate::node::{Node, on_blocking_thread};
use flumen_world::lock;

/// How often it is written down how far logs have got.
const VOUCH_EVERY: Duration = Duration::from_secs(600);
/// The same while a log has nobody who vouches for it, because the disk was full.
const VOUCH_SOON: Duration = Duration::from_secs(1);

/// Writes the first round of logs that have none, so that somebody can vouch for them, and what shards
/// jump over as lost. Without it a log is served all the same, and vouched for later; but not one whose
/// loss is accepted, as the acceptance is used up then: it is among those returned.
pub(crate) fn begin_logs(
    logs: &mut Vec<(LogKey, Log)>,
    catalog: &Catalog,
    now: Timestamp,
) -> Vec<(LogKey, Error)> {
    let record = catalog.last_record();
    let mut refused = Vec::new();
    logs.retain_mut(|(key, log)| {
        let dir = key.dir_name();
        let accepted = catalog.vouched(*key) == Some(Vouched::LossAccepted);
        let written = log.begin(record, now).map_err(Error::from);
        let Err(error) = written.and_then(|written| Ok(written?)) else {
            return true;
        };
        if accepted {
            let reason = format!(
                "{dir}: its loss is accepted, but what it jumps over cannot be written: {error}"
            );
            tracing::error!(log = dir, reason, "log refused; everything else is served");
            refused.push((*key, Error::LogRefused { log: dir, reason }));
        } else {
            tracing::warn!(log = dir, %error, "log: no first round; nobody vouches for it yet");
        }
        !accepted
    });
    refused
}

/// Starts the loop that vouches now and then. It ends with the node.
pub(crate) fn start(node: &Arc<Node>) {
    let mut stop = node.stop.subscribe();
    let clock = node.clock.clone();
    let (here, node) = (node, Arc::downgrade(node));
    here.background(async move {
        let mut every = VOUCH_SOON;
        // The first time was told by the start.
        let mut told = true;
        let mut looked = clock.monotonic();
        let mut was_trusted = clock.is_trusted();
        loop {
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                () = clock.sleep(every) => {}
            }
            let Some(node) = node.upgrade() else { return };
            let world = Arc::clone(&node.world);
            let now = clock.monotonic();
            let look = now.saturating_sub(looked) >= ASK_AGAIN;
            if look {
                looked = now;
            }
            let vouch = move || {
                node.keep_reserve();
                let record = node.catalog_record.load(Ordering::Acquire);
                let all = node.vouch(!told);
                if look {
                    // A node at rest writes nothing.
                    let moved = node.catalog_record.load(Ordering::Acquire) != record;
                    node.look_at_clock(was_trusted, moved);
                }
                Ok(all)
            };
            let all = on_blocking_thread(&*world, vouch).await;
            told = all != Ok(true);
            if look {
                was_trusted = clock.is_trusted();
            }
            every = match (told, clock.is_trusted()) {
                (true, _) => VOUCH_SOON,
                (false, false) => ASK_AGAIN,
                (false, true) => VOUCH_EVERY,
            };
        }
    });
}

impl Node {
    /// Writes down how far every log has got, and says if that failed (`tell`). Whether all of them are
    /// vouched for now. Blocks.
    pub(crate) fn vouch(&self, tell: bool) -> bool {
        let mut catalog = lock(&self.catalog);
        let Some(catalog) = catalog.as_mut() else {
            return true;
        };
        let logs = self.logs();
        let reached = logs.iter().filter_map(|(key, at)| Some((*key, (*at)?)));
        let written = self.write_vouchers(catalog, reached.collect());
        if let Err(error) = written {
            if tell {
                tracing::warn!(%error, "catalog: how far logs have got was not written; trying again");
            }
            return false;
        }
        logs.iter().all(|(key, _)| catalog.vouched(*key).is_some())
    }

    /// Has a log that was opened just now vouched for, before there is anything to lose. Blocks.
    pub(crate) fn vouch_for_new(&self, key: LogKey, log: &mut Log) -> Result<(), Error> {
        let mut catalog = lock(&self.catalog);
        let catalog = catalog.as_mut().ok_or(Error::Draining)?;
        let begun = log.begin(catalog.last_record(), self.clock.now());
        begun.map_err(|SyncError::Poisoned { source }| {
            // Nothing was in it, so that nothing is unknown.
            tracing::error!(log = key.dir_name(), error = %source, "log: not created");
            Error::Io {
                segment: key.dir_name(),
                fault: flumen_log::IoFault::from(&source),
            }
        })??;
        let reached = log.reader().voucher().map(|voucher| (key, voucher));
        let written = self.write_vouchers(catalog, reached.into_iter().collect());
        written.map_err(|error| match error {
            // Whoever asks for the log has changed nothing yet.
            CatalogError::Sync(_) => Error::Poisoned,
            error => error.into(),
        })
    }

    fn write_vouchers(
        &self,
        catalog: &mut Catalog,
        reached: Vec<(LogKey, Voucher)>,
    ) -> Result<(), CatalogError> {
        let written = catalog.vouch(reached, self.clock.now());
        self.catalog_record
            .store(catalog.last_record(), Ordering::Release);
        self.restless.notify_one();
        written
    }

    /// All logs but the catalog's that are served, and how far each has got.
    fn logs(&self) -> Vec<(LogKey, Option<Voucher>)> {
        let lanes = self.lanes.all().into_iter();
        let lanes = lanes.filter(|lane| lane.refusal().is_none());
        let mut all: Vec<_> = lanes
            .map(|lane| (lane.key(), lane.reader().voucher()))
            .collect();
        if let Some(reader) = self.groups.reader() {
            all.push((LogKey::GROUPS, reader.voucher()));
        }
        if let Some(reader) = self.deliveries.reader() {
            all.push((LogKey::DELIVERIES, reader.voucher()));
        }
        all
    }
}
