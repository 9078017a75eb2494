//! A delivery stream at work with one version of its settings: what gathering and committing share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flumen_broker::{DeliveryDesk, DeliveryPhase, Error};
use flumen_record::Record;
use futures_util::{StreamExt, stream};

use crate::bundle::Bundle;
use crate::cut::{Cut, CutName, CutRange, Incarnation};
use crate::encode::Schema;
use crate::filling::{FillError, Filling, Piece, Taken, Tally};
use crate::lineage::Positions;
use crate::reporter::Reporter;
use crate::shared::Shared;
use crate::spool::{CutSpool, Spool};
use crate::store::{Store, StoreError};
use crate::transform::{Transform, TransformOutcome};
use crate::trouble::Trouble;
use crate::unit::Unit;
use flumen_world::World;

/// The failures in a row whose pause (about three seconds) is the least where the store needs somebody:
/// credentials, a bucket.
const SLOW: u32 = 5;

/// A delivery stream at work.
#[derive(Debug)]
pub(crate) struct Active<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) desk: &'a DeliveryDesk,
    pub(crate) reporter: &'a Reporter,
    pub(crate) incarnation: Incarnation,
    pub(crate) bundle: Arc<Bundle>,
    pub(crate) store: Store,
    pub(crate) spool: Spool,
    /// Failures in a row after which [`Active::insist`] hands the error on.
    pub(crate) patience: u32,
    /// Held while something is saved.
    pub(crate) saving: &'a Arc<tokio::sync::Mutex<()>>,
}

impl Active<'_> {
    /// A cut that is filled for the first time.
    pub(crate) fn name(&self, number: u64) -> CutName {
        CutName {
            incarnation: self.incarnation,
            number,
            epoch: Some(self.shared.epoch),
            again: 0,
            remade: None,
        }
    }

    /// A cut that is planned.
    pub(crate) fn planned_name(&self, cut: &Cut) -> CutName {
        cut.name(self.incarnation)
    }

    /// The key of a cut's manifest.
    pub(crate) fn manifest_key(&self, cut: u64) -> String {
        let incarnation = self.incarnation.to_string();
        self.bundle.keys.manifest(&incarnation, cut)
    }

    /// Begins to fill a cut. `schema` are the columns known before it.
    pub(crate) fn begin(&self, name: CutName, schema: Schema) -> (Filling, CutSpool) {
        let spool = self.spool.cut(name.number);
        let rows = self.shared.config.rows_bytes_max;
        let now = self.shared.clock.now();
        let filling = Filling::new(&self.bundle, name, &spool, schema, rows, now);
        (filling, spool)
    }

    /// Puts a piece into a cut, through the transform if there is one.
    pub(crate) async fn take(
        &self,
        name: CutName,
        mut filling: Filling,
        piece: Piece,
    ) -> Result<(Filling, Piece, Taken), Trouble> {
        let before = filling.tally();
        let (mut filling, piece, taken) = match &self.bundle.transform {
            None => {
                on_blocking_thread(&*self.shared.world, move || {
                    let taken = filling.take(&piece)?;
                    Ok((filling, piece, taken))
                })
                .await?
            }
            Some(transform) => {
                let (filling, piece, (taken, units)) =
                    on_blocking_thread(&*self.shared.world, move || {
                        let unpacked = filling.unpack(&piece)?;
                        Ok((filling, piece, unpacked))
                    })
                    .await?;
                let transformed = self.transform(name, transform, units).await;
                let filling = on_blocking_thread(&*self.shared.world, move || {
                    let mut filling = filling;
                    filling.place(transformed)?;
                    Ok(filling)
                })
                .await?;
                (filling, piece, taken)
            }
        };
        self.count(&before, &filling);
        let letters = filling.dead_letters();
        self.bury(letters).await?;
        Ok((filling, piece, taken))
    }

    async fn transform(
        &self,
        name: CutName,
        transform: &Transform,
        units: Vec<Unit>,
    ) -> Vec<(Unit, TransformOutcome)> {
        let counters = self.desk.counters();
        let under_way = self.shared.config.transforms_max.max(1) as usize;
        let id = name.id(self.bundle.version);
        let batches = transform.split(units).into_iter().enumerate();
        let requests: Vec<_> = batches
            .map(|(batch, units)| {
                let id = format!("{id}-{batch}");
                async move {
                    let began = self.shared.clock.monotonic();
                    let answer = transform.run(&id, units).await;
                    let took = self.shared.clock.monotonic().saturating_sub(began);
                    let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
                    counters.processing_us.fetch_add(took, Ordering::Relaxed);
                    answer
                }
            })
            .collect();
        let answers: Vec<_> = stream::iter(requests).buffered(under_way).collect().await;
        let mut all = Vec::new();
        for answer in answers {
            let gave_up = answer.outcomes.iter().any(|(_, outcome)| match outcome {
                TransformOutcome::Failed(failure) => failure.code != "Transform.RecordFailed",
                TransformOutcome::Ok { .. } | TransformOutcome::Dropped => false,
            });
            match answer.error.filter(|_| gave_up) {
                None => {
                    counters
                        .processing_successes
                        .fetch_add(1, Ordering::Relaxed);
                }
                Some(error) => {
                    tracing::debug!(
                        delivery = %self.desk.name(), %error, attempts = answer.attempts,
                        "the transform gave up"
                    );
                    counters.processing_failures.fetch_add(1, Ordering::Relaxed);
                    self.reporter.noted(&Trouble::Transform(error));
                }
            }
            all.extend(answer.outcomes);
        }
        all
    }

    fn count(&self, before: &Tally, filling: &Filling) {
        let (after, counters) = (filling.tally(), self.desk.counters());
        let add = |counter: &AtomicU64, after: u64, before: u64| {
            counter.fetch_add(after.saturating_sub(before), Ordering::Relaxed);
        };
        add(&counters.incoming_records, after.records, before.records);
        add(&counters.incoming_bytes, after.bytes, before.bytes);
        add(&counters.processed_records, after.rows, before.rows);
        add(&counters.processed_bytes, after.row_bytes, before.row_bytes);
        add(&counters.dropped_records, after.dropped, before.dropped);
        add(&counters.failed_records, after.failed, before.failed);
        add(
            &counters.partition_overflows,
            after.overflows,
            before.overflows,
        );
        let partitions = u64::from(filling.partitions());
        counters.partitions.store(partitions, Ordering::Relaxed);
    }

    /// Writes records that failed to the dead-letter stream: at least once, before the cut that has
    /// them in its error objects is planned.
    async fn bury(&self, mut letters: Vec<Record>) -> Result<(), Trouble> {
        let Some(stream) = &self.bundle.settings.dead_letters else {
            return Ok(());
        };
        let mut failures = 0;
        while !letters.is_empty() {
            let error = match self.shared.broker.put(&stream.0, letters.clone()).await {
                Ok(outcomes) => {
                    let mut outcomes = outcomes.into_iter();
                    let mut last = None;
                    letters.retain(|_| match outcomes.next() {
                        Some(Err(Error::Record(error))) => {
                            tracing::warn!(
                                delivery = %self.desk.name(), stream = %stream.0, %error,
                                "a failed record does not fit into the dead-letter stream; it is in \
                                 the error object"
                            );
                            false
                        }
                        Some(Err(error)) => {
                            last = Some(error);
                            true
                        }
                        _ => false,
                    });
                    last
                }
                Err(Error::Draining) => return Err(Error::Draining.into()),
                Err(error) => Some(error),
            };
            let Some(error) = error else {
                if failures > 0 {
                    self.reporter.works();
                }
                return Ok(());
            };
            failures += 1;
            self.reporter
                .failed(&Trouble::DeadLetters(error), DeliveryPhase::Retrying);
            self.shared.pause(failures).await;
        }
        Ok(())
    }

    /// Where every shard of the source ends now.
    pub(crate) fn ends(&self) -> Result<Positions, Trouble> {
        let described = self.shared.broker.describe_stream(self.desk.stream())?;
        Ok(described
            .shards
            .iter()
            // Empty, or expired as a whole.
            .filter(|shard| shard.trim_horizon < shard.durable_end)
            .map(|shard| (shard.index, shard.durable_end))
            .collect())
    }

    /// Asks the store until it answers, or until trying again has no sense.
    /// What is not about the store is handed on.
    pub(crate) async fn insist<T, A>(&self, mut attempt: impl FnMut() -> A) -> Result<T, Trouble>
    where
        A: Future<Output = Result<T, Trouble>>,
    {
        let mut failures = 0;
        loop {
            let error = match attempt().await {
                Ok(done) => {
                    self.reporter.works();
                    return Ok(done);
                }
                Err(Trouble::Store(error)) => error,
                Err(trouble) => return Err(trouble),
            };
            let counters = self.desk.counters();
            counters.delivery_failures.fetch_add(1, Ordering::Relaxed);
            if error.is_throttle() {
                counters.throttled.fetch_add(1, Ordering::Relaxed);
            }
            let needs_somebody = error.needs_somebody();
            let trouble = Trouble::Store(error);
            if trouble.is_permanent() {
                return Err(trouble);
            }
            failures += 1;
            if failures > self.patience {
                return Err(trouble);
            }
            self.reporter.failed(&trouble, DeliveryPhase::Retrying);
            // What somebody has to mend is not mended in the next second.
            let at_least = if needs_somebody { SLOW } else { 0 };
            self.shared.pause(failures.max(at_least)).await;
        }
    }

    /// [`Active::insist`], for a look that may not be allowed: S3 denies instead of saying that nothing
    /// is there, to whoever may not list the bucket. `None`: it is denied.
    pub(crate) async fn insist_unless_denied<T, A>(
        &self,
        mut look: impl FnMut() -> A,
    ) -> Result<Option<T>, Trouble>
    where
        A: Future<Output = Result<Result<T, StoreError>, Trouble>>,
    {
        let look = || {
            let looking = look();
            async {
                match looking.await? {
                    Err(StoreError::Denied { .. }) => Ok(None),
                    looked => Ok(Some(looked?)),
                }
            }
        };
        self.insist(look).await
    }

    /// Records are gone before they were delivered.
    pub(crate) fn expired(&self, gone: &CutRange) {
        tracing::error!(
            delivery = %self.desk.name(), stream = %self.desk.stream(), shard = %gone.shard,
            from = %gone.from, to = %gone.to,
            "records expired before they were delivered; the manifest says how many"
        );
    }

    /// Records are damaged and cannot be delivered.
    pub(crate) fn damaged(&self, gone: &CutRange) {
        tracing::error!(
            delivery = %self.desk.name(), stream = %self.desk.stream(), shard = %gone.shard,
            from = %gone.from, to = %gone.to,
            "records are damaged and cannot be delivered; the manifest names them"
        );
    }
}

/// Runs what may block on a thread that may; a panic there goes on here.
pub(crate) async fn on_blocking_thread<T: Send + 'static>(
    world: &dyn World,
    run: impl FnOnce() -> Result<T, FillError> + Send + 'static,
) -> Result<T, Trouble> {
    match world.blocked(run).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(Error::Draining.into()),
    }
}
