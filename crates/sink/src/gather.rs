//! From the source into cuts: reads what comes, fills the next cut, closes it by size or age or when
//! asked, and hands it over. Nothing here is durable: after a crash it is read again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use flumen_broker::{DeliveryEnd, DeliveryOrders};
use flumen_record::{SequenceNumber, ShardIndex};
use tokio::sync::{mpsc, watch};

use crate::active::{Active, on_blocking_thread};
use crate::cut::CutRange;
use crate::encode::Schema;
use crate::filling::{Filled, Filling, Tally};
use crate::lineage::{Positions, has_reached};
use crate::reading::{Found, Reading};
use crate::spool::CutSpool;
use crate::trouble::Trouble;

/// A cut is not closed by the age of what was read long after it arrived before this: while a backlog
/// is read, waiting for the disk is no reason for a small cut.
const GRACE: Duration = Duration::from_secs(1);

/// A cut that is closed and not planned yet, or only a sign that a flush is done.
#[derive(Debug)]
pub(crate) struct Gathered {
    /// The cut, if there is one.
    pub(crate) cut: Option<GatheredCut>,
    /// Everything up to here was there when this flush was asked.
    pub(crate) flush: Option<u64>,
}

/// What a cut holds.
#[derive(Debug)]
pub(crate) struct GatheredCut {
    pub(crate) number: u64,
    pub(crate) ranges: Vec<CutRange>,
    pub(crate) filled: Filled,
    pub(crate) spool: CutSpool,
    /// Numbers that had expired.
    pub(crate) expired: u64,
    pub(crate) damaged: Vec<CutRange>,
}

/// What was read for one cut.
#[derive(Debug, Default)]
pub(crate) struct Ranges {
    pub(crate) ranges: Vec<CutRange>,
    pub(crate) expired: u64,
    pub(crate) damaged: Vec<CutRange>,
}

impl Ranges {
    /// A shard goes on; parents are begun before their children.
    fn extend(&mut self, shard: ShardIndex, from: SequenceNumber, to: SequenceNumber) {
        match self.ranges.iter_mut().find(|range| range.shard == shard) {
            Some(range) => range.to = range.to.max(to),
            None => self.ranges.push(CutRange { shard, from, to }),
        }
    }

    /// Numbers that cannot be read any more.
    pub(crate) fn expire(&mut self, gone: CutRange) {
        /// A gap this wide is a jump: its numbers were never given out.
        const JUMP: u64 = 1 << 32;
        let numbers = gone.to.value().saturating_sub(gone.from.value());
        self.expired = self.expired.saturating_add(numbers % JUMP);
    }
}

/// Fills cuts until it is dropped, or (when the delivery stream ends) until everything is in one.
#[derive(Debug)]
pub(crate) struct Gatherer<'a> {
    active: &'a Active<'a>,
    orders: watch::Receiver<Arc<DeliveryOrders>>,
    reading: Reading,
    /// The last flush that was seen, and where reading has to come for it.
    flush: u64,
    targets: Option<Positions>,
    /// Ends with that.
    is_last: bool,
    /// Passed over without a record, and in no cut yet.
    passed: Ranges,
}

impl<'a> Gatherer<'a> {
    pub(crate) fn new(
        active: &'a Active<'a>,
        orders: watch::Receiver<Arc<DeliveryOrders>>,
        reading: Reading,
        flushed: u64,
    ) -> Self {
        Self {
            active,
            orders,
            reading,
            flush: flushed,
            targets: None,
            is_last: false,
            passed: Ranges::default(),
        }
    }

    /// Runs. `number` is that of the next cut, `schema` the columns known before it.
    pub(crate) async fn run(
        mut self,
        mut number: u64,
        mut schema: Schema,
        out: mpsc::Sender<Gathered>,
    ) -> Result<(), Trouble> {
        loop {
            let gathered = self.fill(number, schema.clone()).await?;
            if let Some(cut) = &gathered.cut {
                number += 1;
                schema = cut.filled.schema.clone();
            }
            let is_last = self.is_last && gathered.flush.is_some();
            let sent = tokio::select! {
                biased;
                sent = out.send(gathered) => sent,
                error = self.reading.watch() => return Err(error.into()),
            };
            if sent.is_err() || is_last {
                return Ok(());
            }
        }
    }

    /// Fills one cut, and waits until it is to be closed.
    async fn fill(&mut self, number: u64, schema: Schema) -> Result<Gathered, Trouble> {
        let active = self.active;
        let name = active.name(number);
        let (mut filling, spool) = active.begin(name, schema);
        let mut ranges = std::mem::take(&mut self.passed);
        let mut began = None;
        loop {
            self.look_at_orders()?;
            let reached = self.targets.as_ref();
            if reached.is_some_and(|targets| has_reached(targets, self.reading.positions())) {
                self.targets = None;
                return self.close(number, filling, spool, ranges, true).await;
            }
            let now = active.shared.clock.monotonic();
            let tally = filling.tally();
            let due = began.map(|began| self.due_in(&tally, began, now));
            let found = tokio::select! {
                biased;
                found = self.reading.next() => found?,
                changed = self.orders.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return Err(flumen_broker::Error::Draining.into()),
                },
                () = active.shared.clock.sleep(due.unwrap_or_default()), if due.is_some() => {
                    return self.close(number, filling, spool, ranges, false).await;
                }
            };
            began = began.or(Some(now));
            let piece = match found {
                Found::Piece(piece) => piece,
                Found::Expired(gone) => {
                    ranges.expire(gone);
                    ranges.extend(gone.shard, gone.from, gone.to);
                    active.expired(&gone);
                    self.let_go()?;
                    continue;
                }
                Found::Damaged(gone) => {
                    ranges.damaged.push(gone);
                    ranges.extend(gone.shard, gone.from, gone.to);
                    active.damaged(&gone);
                    continue;
                }
            };
            let (filled, piece, taken) = active.take(name, filling, piece).await?;
            filling = filled;
            active.reporter.filling(filling.tally().oldest);
            ranges.extend(piece.shard, piece.from, taken.next);
            self.reading.taken(piece, taken.next);
            let now = active.shared.clock.monotonic();
            let since = now.saturating_sub(began.unwrap_or(now));
            if filling.tally().records == 0 {
                // A shard that ended, or numbers that were never given out: that alone is no cut.
                began = None;
            } else if taken.is_full
                || since >= active.bundle.settings.buffering.interval() && since > GRACE
            {
                return self.close(number, filling, spool, ranges, false).await;
            }
        }
    }

    /// How long until the cut is old enough, once everything is read.
    fn due_in(&self, tally: &Tally, began: Duration, now: Duration) -> Duration {
        let interval = self.active.bundle.settings.buffering.interval();
        let wall = self.active.shared.clock.now();
        let by_age = tally.oldest.map_or(interval, |oldest| {
            interval.saturating_sub(wall.since(oldest))
        });
        let by_grace = began
            .saturating_add(GRACE.min(interval))
            .saturating_sub(now);
        by_age.max(by_grace)
    }

    /// Takes note of a flush, and of the end.
    fn look_at_orders(&mut self) -> Result<(), Trouble> {
        let orders = Arc::clone(&self.orders.borrow_and_update());
        let ends = orders.ending == Some(DeliveryEnd::Flush) && !self.is_last;
        if orders.flush > self.flush || ends {
            self.flush = orders.flush;
            self.is_last |= ends;
            self.targets = Some(self.active.ends()?);
        }
        Ok(())
    }

    /// What has expired as a whole is not waited for.
    fn let_go(&mut self) -> Result<(), Trouble> {
        if let Some(targets) = &mut self.targets {
            let ends = self.active.ends()?;
            targets.retain(|shard, _| ends.contains_key(shard));
        }
        Ok(())
    }

    async fn close(
        &mut self,
        number: u64,
        filling: Filling,
        spool: CutSpool,
        ranges: Ranges,
        is_flush: bool,
    ) -> Result<Gathered, Trouble> {
        let flush = is_flush.then_some(self.flush);
        self.active
            .desk
            .counters()
            .partitions
            .store(0, Ordering::Relaxed);
        if filling.tally().records == 0 && ranges.expired == 0 && ranges.damaged.is_empty() {
            self.passed = ranges;
            return Ok(Gathered { cut: None, flush });
        }
        let filled =
            on_blocking_thread(&*self.active.shared.world, move || filling.finish()).await?;
        self.active.reporter.filling(None);
        Ok(Gathered {
            cut: Some(GatheredCut {
                number,
                ranges: ranges.ranges,
                filled,
                spool,
                expired: ranges.expired,
                damaged: ranges.damaged,
            }),
            flush,
        })
    }
}
