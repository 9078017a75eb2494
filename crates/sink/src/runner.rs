//! The life of one delivery stream: waits for what it is told, works, tries again, stops, ends.
//!
//! Whatever changes, the work is dropped and begun anew from what is durable: there is no other way
//! back from a crash either.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flumen_broker::{
    DeliveryDesk, DeliveryEnd, DeliveryOrders, DeliveryPhase, DeliverySettings, DeliverySource,
    DeliveryStart, Error, StartPosition,
};
use flumen_record::Timestamp;
use tokio::sync::{mpsc, watch};

use crate::active::{Active, on_blocking_thread};
use crate::bundle::Bundle;
use crate::commit::{commit_all, finish_planned, save};
use crate::cut::{Incarnation, unique};
use crate::gather::Gatherer;
use crate::progress::Progress;
use crate::reading::Reading;
use crate::reporter::Reporter;
use crate::sealing::{Agreement, check_last};
use crate::shared::Shared;
use crate::spool::Spool;
use crate::trouble::Trouble;

/// An attempt that went well for so long is not counted with the failures before it.
const LONG_ENOUGH: Duration = Duration::from_secs(60);

/// Failures in a row after which a cut with settings that were replaced is looked at anew.
const OLD_PATIENCE: u32 = 5;

/// Runs one delivery stream.
#[derive(Debug)]
pub(crate) struct Runner {
    shared: Arc<Shared>,
    desk: DeliveryDesk,
    reporter: Arc<Reporter>,
    orders: watch::Receiver<Arc<DeliveryOrders>>,
    /// The life that it was created with.
    created: Incarnation,
    /// Held while something is saved, also for work that was given up meanwhile.
    saving: Arc<tokio::sync::Mutex<()>>,
    spool: Spool,
    /// Failures in a row.
    failures: u32,
    /// The last attempt got to where records are delivered.
    got_going: AtomicBool,
    /// The last attempt ended with this: what somebody orders then may mend it.
    failed: Option<Failed>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failed {
    /// The destination, or something else that passes.
    Retrying,
    /// For good.
    Stopped { spool_lost: bool },
}

/// How an attempt ended.
enum Ended {
    /// There are other orders.
    Ordered,
    /// Everything is delivered, as it was told before it is deleted.
    Delivered,
    Failed(Trouble),
}

impl Runner {
    pub(crate) fn new(shared: Arc<Shared>, desk: DeliveryDesk) -> Self {
        let created = Incarnation {
            began: desk.created(),
            number: desk.id().value(),
        };
        let dir = shared.spool_dir.join(desk.id().to_string());
        Self {
            spool: Spool::over(
                Arc::clone(&shared.spools),
                dir,
                shared.config.spool_bytes_max,
            ),
            reporter: Arc::new(Reporter::new(desk.clone(), shared.clock.clone())),
            orders: desk.orders(),
            shared,
            desk,
            created,
            saving: Arc::default(),
            failures: 0,
            got_going: AtomicBool::new(false),
            failed: None,
        }
    }

    /// Another one in its place, for the case that it fails itself.
    pub(crate) fn successor(&self) -> Self {
        Self {
            spool: self.spool(),
            ..Self::new(Arc::clone(&self.shared), self.desk.clone())
        }
    }

    /// Where it keeps what is on its way.
    pub(crate) fn spool(&self) -> Spool {
        self.spool.clone()
    }

    /// Waits until it is to be dropped.
    pub(crate) async fn until_dropped(&mut self) {
        let is_dropped = |orders: &Arc<DeliveryOrders>| orders.ending == Some(DeliveryEnd::Drop);
        if self.orders.wait_for(is_dropped).await.is_err() {
            // The node ends: whoever waits for it sees that elsewhere.
            std::future::pending::<()>().await;
        }
    }

    /// What tells how it is doing.
    pub(crate) fn reporter(&self) -> Arc<Reporter> {
        Arc::clone(&self.reporter)
    }

    /// Runs until the delivery stream is gone or the node ends.
    pub(crate) async fn run(mut self) {
        if let Ok(progress) = Progress::decode(&self.desk.progress()) {
            // Known from the beginning, also of one that is paused.
            self.reporter.stands(&progress);
        }
        loop {
            let orders = Arc::clone(&self.orders.borrow_and_update());
            let usual = match (orders.ending, orders.paused) {
                (Some(DeliveryEnd::Drop), _) => return self.remove().await,
                (Some(DeliveryEnd::Flush), _) => DeliveryPhase::Deleting,
                (None, true) => {
                    self.reporter.enter(DeliveryPhase::Paused);
                    if self.orders.changed().await.is_err() {
                        return;
                    }
                    continue;
                }
                (None, false) => DeliveryPhase::Running,
            };
            self.reporter.usually(usual);
            let (committed, began) = (self.reporter.committed(), self.shared.clock.monotonic());
            let ended = tokio::select! {
                biased;
                () = ordered_otherwise(self.desk.orders(), Arc::clone(&orders)) => Ended::Ordered,
                ended = self.work(&orders) => match ended {
                    Ok(()) => Ended::Delivered,
                    Err(trouble) => Ended::Failed(trouble),
                },
            };
            if self.got_going.swap(false, Ordering::Relaxed) {
                self.failed = None;
            }
            // What fails each time after a good start is no reason to try at full speed.
            let took = self.shared.clock.monotonic().saturating_sub(began);
            if self.reporter.committed() > committed || took > LONG_ENOUGH {
                self.failures = 0;
            }
            match ended {
                Ended::Ordered if self.reporter.phase() == DeliveryPhase::Retrying => {
                    self.failed = Some(Failed::Retrying);
                }
                Ended::Ordered => {}
                Ended::Delivered => return self.remove().await,
                Ended::Failed(trouble) if trouble.is_end() => return,
                Ended::Failed(trouble) => self.wait_after(&trouble, orders).await,
            }
        }
    }

    /// After a failure: until it is time to try again, or somebody orders something.
    async fn wait_after(&mut self, trouble: &Trouble, orders: Arc<DeliveryOrders>) {
        let ordered = ordered_otherwise(self.desk.orders(), orders);
        if trouble.is_permanent() {
            self.reporter.failed(trouble, DeliveryPhase::Stopped);
            self.failed = Some(Failed::Stopped {
                spool_lost: matches!(trouble, Trouble::SpoolLost { .. }),
            });
            ordered.await;
            return;
        }
        self.failures = self.failures.saturating_add(1);
        self.reporter.failed(trouble, DeliveryPhase::Retrying);
        self.failed = Some(Failed::Retrying);
        tokio::select! {
            biased;
            () = ordered => {}
            () = self.shared.pause(self.failures) => {}
        }
    }

    /// It is gone for good.
    pub(crate) async fn remove(self) {
        self.spool.idle().await;
        let sweeping = self.spool.clone();
        if let Err(trouble) =
            on_blocking_thread(&*self.shared.world, move || Ok(sweeping.sweep()?)).await
        {
            tracing::warn!(delivery = %self.desk.name(), error = %trouble, "its spool is left behind");
        }
        let mut failures = 0;
        loop {
            match self.desk.remove().await {
                Ok(()) | Err(Error::Draining | Error::DeliveryNotFound { .. }) => return,
                Err(error) => {
                    failures += 1;
                    let trouble = Trouble::Node(error);
                    self.reporter.failed(&trouble, DeliveryPhase::Retrying);
                    self.shared.pause(failures).await;
                }
            }
        }
    }

    /// Works with these orders until everything is delivered and it is to end, or something fails.
    async fn work(&self, orders: &Arc<DeliveryOrders>) -> Result<(), Trouble> {
        // Threads of the work before this may still write, and save.
        self.spool.idle().await;
        drop(self.saving.lock().await);
        let mut progress = self.progress(&orders.settings).await?;
        self.check_stream(&mut progress)?;
        self.adapt(&mut progress, orders);
        let is_asked_to_renew = orders.renew > self.reporter.last_renewed();
        match self.finish(orders, &mut progress).await {
            // The names it needs are free in the next life.
            Err(trouble) if is_asked_to_renew && trouble.is_conflict() => {}
            finished => finished?,
        }
        let settings = Arc::clone(&orders.settings);
        let mut active = self.active(orders.version, settings, &progress)?;
        if is_asked_to_renew {
            self.renew(&active, &mut progress, orders).await?;
            active.incarnation = progress.incarnation(self.created);
        }
        let sweeping = self.spool.clone();
        on_blocking_thread(&*self.shared.world, move || Ok(sweeping.sweep()?)).await?;
        self.forget_gone(&active, &mut progress);
        save(&active, &progress).await?;
        self.got_going.store(true, Ordering::Relaxed);
        active.reporter.works();
        let reading = Reading::new(
            &self.shared.broker,
            self.desk.stream(),
            progress.positions(),
            self.shared.config.read_bytes,
        );
        // One cut may wait for the one before it: one is filled, one waits, one is written.
        let (out, gathered) = mpsc::channel(1);
        let flushed = active.reporter.last_flush();
        let gatherer = Gatherer::new(&active, self.desk.orders(), reading, flushed);
        let (number, schema) = (progress.next_cut(), progress.schema().clone());
        let agreement = Agreement::new(&active, &progress);
        let delivering = async {
            let gathering = gatherer.run(number, schema, out);
            let committing = commit_all(&active, &mut progress, &agreement, gathered);
            tokio::try_join!(gathering, committing).map(|_| ())
        };
        let looking = async {
            // What has nothing to deliver hears of another state as well.
            agreement.check().await?;
            self.probe(&active).await;
            std::future::pending().await
        };
        tokio::select! {
            biased;
            delivered = delivering => delivered,
            looked = looking => looked,
        }
    }

    /// Finishes what is planned.
    async fn finish(
        &self,
        orders: &DeliveryOrders,
        progress: &mut Progress,
    ) -> Result<(), Trouble> {
        let (Some(settings), Some(cut)) = (progress.settings().cloned(), progress.cuts().first())
        else {
            return Ok(());
        };
        let version = cut.version;
        let mut active = self.active(version, Arc::new(settings), progress)?;
        if version != orders.version {
            // Where they go may be what the update was about: after a few failures in a row it is
            // seen to that they go elsewhere, if they may.
            active.patience = OLD_PATIENCE;
        }
        save(&active, progress).await?;
        finish_planned(&active, progress).await
    }

    /// Goes on under a life of its own, as somebody asked for: what another copy of the data directory
    /// writes, or wrote, is not met again.
    async fn renew(
        &self,
        active: &Active<'_>,
        progress: &mut Progress,
        orders: &DeliveryOrders,
    ) -> Result<(), Trouble> {
        let is_lost = match check_last(active, progress.last()).await {
            Err(trouble) if trouble.is_conflict() => true,
            checked => checked.map(|()| false)?,
        };
        let life = Incarnation {
            began: self.shared.clock.now(),
            number: self.shared.world.random(),
        };
        tracing::info!(
            delivery = %self.desk.name(), before = %active.incarnation, incarnation = %life,
            "it goes on under a new incarnation, as was asked"
        );
        progress.go_on_as(life, is_lost);
        save(active, progress).await?;
        self.reporter.renewed(orders.renew);
        Ok(())
    }

    fn active(
        &self,
        version: u64,
        settings: Arc<DeliverySettings>,
        progress: &Progress,
    ) -> Result<Active<'_>, Trouble> {
        let (name, clock) = (self.desk.name(), &self.shared.clock);
        let store = self.shared.destinations.open(
            &settings.destination,
            &settings.object,
            &self.shared.config.store,
        )?;
        let store = store.run_in(Arc::clone(&self.shared.world), clock.clone());
        Ok(Active {
            shared: &self.shared,
            desk: &self.desk,
            reporter: &self.reporter,
            incarnation: progress.incarnation(self.created),
            bundle: Arc::new(Bundle::compile(name, version, settings, clock)?),
            store,
            spool: self.spool.clone(),
            saving: &self.saving,
            patience: u32::MAX,
        })
    }

    /// Where it stands. A new one begins where its settings say, and that is durable at once: "latest"
    /// means what was the latest when it began.
    async fn progress(&self, settings: &DeliverySettings) -> Result<Progress, Trouble> {
        let saved = self.desk.progress();
        if !saved.is_empty() {
            return Ok(Progress::decode(&saved)?);
        }
        let start = match &settings.source {
            DeliverySource::Direct { .. } => DeliveryStart::TrimHorizon,
            DeliverySource::Stream { start, .. } => *start,
        };
        let start = match start {
            // Children of shards that are read are read from their first record.
            DeliveryStart::TrimHorizon => return Ok(Progress::begin([])),
            // What came since it was created, also if it took a while to begin.
            DeliveryStart::Latest => StartPosition::AtTimestamp(
                self.desk.created().saturating_add(Duration::from_micros(1)),
            ),
            DeliveryStart::AtTimestampUs(at) => {
                StartPosition::AtTimestamp(Timestamp::from_micros(at))
            }
        };
        let (broker, stream) = (&self.shared.broker, self.desk.stream());
        let mut starts = Vec::new();
        for shard in broker.describe_stream(stream)?.shards {
            let at = broker.resolve_start(stream, shard.index, start).await?;
            starts.push((shard.index, at));
        }
        let progress = Progress::begin(starts);
        self.desk
            .save(progress.encode().into(), progress.held())
            .await?;
        Ok(progress)
    }

    /// Whether the positions are places in the stream that is read. A stream that is delivered is not
    /// deleted; a catalog that was restored without the rest may have another one under the name.
    fn check_stream(&self, progress: &mut Progress) -> Result<(), Trouble> {
        let name = self.desk.stream();
        let found = self.shared.broker.describe_stream(name)?.incarnation;
        if progress.reads(found) {
            return Ok(());
        }
        Err(Error::StreamReplaced {
            stream: name.clone(),
            expected: progress.stream().unwrap_or_default(),
            found,
        }
        .into())
    }

    /// What somebody ordered after a failure may be meant for the cuts that are planned.
    fn adapt(&self, progress: &mut Progress, orders: &DeliveryOrders) {
        let Some(failed) = self.failed else {
            return;
        };
        if failed == (Failed::Stopped { spool_lost: true }) {
            progress.forgive_spool(self.shared.epoch);
        }
        let version = progress.cuts().first().map(|cut| cut.version);
        if version.is_some_and(|version| version != orders.version)
            && progress.replan(orders.version, &orders.settings, self.shared.epoch)
        {
            tracing::info!(
                delivery = %self.desk.name(), version = orders.version,
                "what was planned and failed is delivered with the new settings"
            );
        }
    }

    fn forget_gone(&self, active: &Active<'_>, progress: &mut Progress) {
        if let Ok(stream) = self.shared.broker.describe_stream(active.desk.stream()) {
            progress.forget(|shard| stream.shards.iter().all(|known| known.index != shard));
        }
    }

    /// Finds out what the store guarantees, once per process, and says it. Beside the work: nothing
    /// waits for it, since what is done is the same in any case; a store that fails is told by that.
    async fn probe(&self, active: &Active<'_>) {
        let store = active.store.describe();
        let mut failures = 0;
        if !self.shared.config.probe {
            return;
        }
        loop {
            if let Some(guarantee) = self.shared.guarantee(&store) {
                return active.reporter.guaranteed(guarantee);
            }
            let at = self.shared.clock.now().as_micros().to_string();
            let unique = unique(&self.shared.epoch.to_string(), &["probe", &at]);
            let prefix = active.bundle.keys.manifest_prefix();
            match active.store.probe(prefix, unique).await {
                Ok(guarantee) => self.shared.learn(store.clone(), guarantee),
                Err(error) => {
                    failures += 1;
                    tracing::debug!(delivery = %self.desk.name(), %error, "the store was not probed");
                    self.shared.pause(failures).await;
                }
            }
        }
    }
}

/// Waits until orders come that the work does not see to itself.
async fn ordered_otherwise(
    mut orders: watch::Receiver<Arc<DeliveryOrders>>,
    now: Arc<DeliveryOrders>,
) {
    let key =
        |orders: &DeliveryOrders| (orders.version, orders.tries, orders.paused, orders.ending);
    let is_over = orders
        .wait_for(|orders| key(orders) != key(&now))
        .await
        .is_err();
    if is_over {
        // The node ends: whoever waits for it sees that elsewhere.
        std::future::pending::<()>().await;
    }
}
