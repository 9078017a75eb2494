//! Where records wait to become batches: one open batch per shard, full ones behind each other.
//! Synchronous; it stands behind the producer's lock.

use std::collections::VecDeque;
use std::sync::Arc;

use flumen_record::{BatchBuilder, HashKeyCache, HashRange, Record, RecordError, RecordLimits};
use tokio::time::{Duration, Instant};

use super::delivery::{BatchCell, Outcome};
use super::ledger::Ledger;
use super::routing::Routing;
use super::stats::ProducerStats;
use crate::{ProducerConfig, SendError};

/// Records of one shard on their way into one batch.
#[derive(Debug)]
pub(crate) struct OpenBatch {
    pub(crate) builder: BatchBuilder,
    pub(crate) tag: BatchTag,
    /// Tells this batch from later ones at the same shard.
    number: u64,
    /// When it leaves though it is not full.
    due: Instant,
}

/// What belongs to a batch however it is encoded.
#[derive(Debug)]
pub(crate) struct BatchTag {
    pub(crate) cell: Arc<BatchCell>,
    pub(crate) records: u32,
    pub(crate) data_bytes: u64,
    /// Held from the producer's memory.
    pub(crate) memory_bytes: usize,
    /// The ledger page on which it counts.
    pub(crate) page: u64,
}

#[derive(Debug, Default)]
struct Buffer {
    open: Option<OpenBatch>,
    full: VecDeque<OpenBatch>,
    /// Whether the driver has been told that a batch is ready here.
    announced: bool,
}

/// All records that are not sealed into batches yet.
#[derive(Debug)]
pub(crate) struct Intake {
    pub(crate) routing: Routing,
    pub(crate) ledger: Ledger,
    pub(crate) stats: ProducerStats,
    /// No more records are taken.
    pub(crate) closed: bool,
    /// Everything leaves at once: a flush, or the producer is being closed.
    hurry: bool,
    buffers: Vec<Buffer>,
    /// Places with something ready that the driver has not seen yet.
    ready: Vec<usize>,
    /// Open batches by due time; the entries of batches that have left are stale.
    due: VecDeque<(Instant, usize, u64)>,
    opened: u64,
    waiting_batches: usize,
    /// Memory held by open batches.
    open_bytes: usize,
    hash_keys: HashKeyCache,
    spare: Vec<BatchBuilder>,
    limits: RecordLimits,
    linger: Duration,
    batch_bytes: usize,
    batch_records: u32,
    memory_bytes: usize,
}

/// Builders kept for reuse.
const SPARE_MAX: usize = 16;
/// Stale due times kept before they are swept.
const DUE_SLACK: usize = 64;
/// What a record takes in a batch beside its own bytes, about.
const RECORD_OVERHEAD_BYTES: usize = 32;

impl Intake {
    pub(crate) fn new(routing: Routing, limits: RecordLimits, config: &ProducerConfig) -> Self {
        Self {
            buffers: std::iter::repeat_with(Buffer::default)
                .take(routing.places())
                .collect(),
            routing,
            ledger: Ledger::new(),
            stats: ProducerStats::default(),
            closed: false,
            hurry: false,
            ready: Vec::new(),
            due: VecDeque::new(),
            opened: 0,
            waiting_batches: 0,
            open_bytes: 0,
            hash_keys: HashKeyCache::default(),
            spare: Vec::new(),
            limits,
            linger: config.linger,
            batch_bytes: config.batch_bytes,
            batch_records: if config.batch_records == 0 {
                u32::MAX
            } else {
                config.batch_records
            },
            memory_bytes: config.memory_bytes,
        }
    }

    /// What a record holds of the producer's memory until it is answered.
    pub(crate) fn cost(record: &Record, memory_bytes: usize) -> usize {
        let bytes = usize::try_from(record.size_bytes()).unwrap_or(usize::MAX);
        bytes
            .saturating_add(RECORD_OVERHEAD_BYTES)
            .min(memory_bytes)
    }

    /// What this record holds.
    pub(crate) fn cost_of(&self, record: &Record) -> usize {
        Self::cost(record, self.memory_bytes)
    }

    /// Puts a record into the open batch of its shard: that batch and the record's place in it. The
    /// flag says that the driver has to look: something became ready or has to be timed.
    pub(crate) fn push(
        &mut self,
        record: &Record,
    ) -> Result<(&Arc<BatchCell>, u32, bool), SendError> {
        if self.closed {
            return Err(SendError::Closed);
        }
        let (place, range) = self.route(record);
        let wake = self.add(place, record, range, None)?;
        self.stats.records_taken += 1;
        let tag = self.last_tag(place);
        Ok((&tag.cell, tag.records - 1, wake))
    }

    /// [`Intake::push`] of a record that was in another batch, on this page of the ledger: it goes by
    /// the map of now and counts for the flush it counted for.
    pub(crate) fn push_again(
        &mut self,
        record: &Record,
        page: u64,
    ) -> Result<(Arc<BatchCell>, u32), RecordError> {
        let (place, range) = self.route(record);
        self.add(place, record, range, Some(page))?;
        let tag = self.last_tag(place);
        Ok((Arc::clone(&tag.cell), tag.records - 1))
    }

    fn route(&mut self, record: &Record) -> (usize, HashRange) {
        // One shard that owns everything: nobody needs the hash.
        if let Some(place) = self.routing.only() {
            return (place, HashRange::FULL);
        }
        let key = self.hash_keys.hash_key(record);
        (
            self.routing.locate(key),
            HashRange {
                start: key,
                end: key,
            },
        )
    }

    /// Adds a record at a place; whether the driver has to look.
    fn add(
        &mut self,
        place: usize,
        record: &Record,
        range: HashRange,
        page: Option<u64>,
    ) -> Result<bool, RecordError> {
        let cost = Self::cost(record, self.memory_bytes);
        let mut wake = self.make_room(place, cost);
        if self.buffer(place).open.is_none() {
            self.buffer(place).open = Some(self.open_batch());
        }
        let buffer = self.buffer(place);
        let batch = buffer.open.as_mut().expect("BUG: opened just now");
        if let Err(error) = batch.builder.push_within(record, range) {
            let unused = buffer.open.take_if(|batch| batch.tag.records == 0);
            unused
                .into_iter()
                .for_each(|batch| self.recycle(batch.builder));
            return Err(error);
        }
        batch.tag.records += 1;
        batch.tag.data_bytes += record.data.len() as u64;
        batch.tag.memory_bytes += cost;
        let fresh = batch.tag.records == 1;
        let (bytes, records) = (batch.builder.encoded_bytes(), batch.tag.records);
        self.open_bytes += cost;
        if fresh {
            self.start(place);
            wake = true;
        }
        if let Some(page) = page {
            self.count_for(place, page);
        }
        if bytes >= self.batch_bytes || records >= self.batch_records {
            self.set_aside(place);
            wake = true;
        }
        Ok(wake)
    }

    /// The open batch has its first record.
    fn start(&mut self, place: usize) {
        self.opened += 1;
        self.waiting_batches += 1;
        let (number, page, due) = (
            self.opened,
            self.ledger.open(),
            Instant::now() + self.linger,
        );
        if let Some(batch) = &mut self.buffer(place).open {
            (batch.number, batch.tag.page, batch.due) = (number, page, due);
        }
        if self.linger.is_zero() || self.hurry {
            self.announce(place);
        } else {
            self.time(due, place, number);
        }
    }

    /// The open batch holds a record that a flush of this page waits for.
    fn count_for(&mut self, place: usize, page: u64) {
        let Some(batch) = self
            .buffers
            .get_mut(place)
            .and_then(|buffer| buffer.open.as_mut())
        else {
            return;
        };
        batch.tag.page = self.ledger.pull(batch.tag.page, page);
    }

    /// The batch that took the last record at a place.
    fn last_tag(&self, place: usize) -> &BatchTag {
        let buffer = self.buffers.get(place);
        let last = buffer.and_then(|buffer| buffer.open.as_ref().or_else(|| buffer.full.back()));
        &last.expect("BUG: a record was just added here").tag
    }

    /// Sets the open batch aside when a record of this cost would make it too large.
    fn make_room(&mut self, place: usize, cost: usize) -> bool {
        let batch_bytes = self.batch_bytes;
        let open = self.buffer(place).open.as_ref();
        let full = open.is_some_and(|batch| batch.builder.encoded_bytes() + cost > batch_bytes);
        if full {
            self.set_aside(place);
        }
        full
    }

    /// The open batch takes no more records.
    fn set_aside(&mut self, place: usize) {
        let buffer = self.buffer(place);
        let Some(batch) = buffer.open.take() else {
            return;
        };
        let bytes = batch.tag.memory_bytes;
        buffer.full.push_back(batch);
        self.open_bytes -= bytes;
        self.announce(place);
    }

    fn open_batch(&mut self) -> OpenBatch {
        let builder = self
            .spare
            .pop()
            .unwrap_or_else(|| BatchBuilder::new(self.limits));
        let tag = BatchTag {
            cell: Arc::new(BatchCell::default()),
            records: 0,
            data_bytes: 0,
            memory_bytes: 0,
            page: 0,
        };
        OpenBatch {
            builder,
            tag,
            number: 0,
            due: Instant::now(),
        }
    }

    fn buffer(&mut self, place: usize) -> &mut Buffer {
        self.buffers
            .get_mut(place)
            .expect("BUG: a buffer for every place of the routing table")
    }

    fn announce(&mut self, place: usize) {
        let buffer = self.buffer(place);
        if !buffer.announced {
            buffer.announced = true;
            self.ready.push(place);
        }
    }

    /// Remembers when an open batch is due.
    fn time(&mut self, due: Instant, place: usize, number: u64) {
        // Batches that filled up have left entries behind; a long linger would let them pile up.
        if self.due.len() >= DUE_SLACK + 2 * self.buffers.len() {
            let buffers = &self.buffers;
            self.due.retain(|(_, place, number)| {
                let open = buffers.get(*place).and_then(|buffer| buffer.open.as_ref());
                open.is_some_and(|batch| batch.number == *number)
            });
        }
        self.due.push_back((due, place, number));
    }

    /// Moves the places where something became ready by `now` into `into`. Each stays announced until
    /// [`Intake::take`] finds nothing there.
    pub(crate) fn drain_ready(&mut self, now: Instant, into: &mut VecDeque<usize>) {
        while let Some(&(due, place, number)) = self.due.front() {
            let buffer = self.buffer(place);
            let open = buffer
                .open
                .as_ref()
                .is_some_and(|batch| batch.number == number);
            if open && due > now {
                break;
            }
            self.due.pop_front();
            if open {
                self.announce(place);
            }
        }
        into.extend(self.ready.drain(..));
    }

    /// When the next open batch is due.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.due.front().map(|(due, ..)| *due)
    }

    /// The next batch of this shard that is ready by `now`; `None`, and no longer announced, when
    /// there is none.
    pub(crate) fn take(&mut self, place: usize, now: Instant) -> Option<OpenBatch> {
        let hurry = self.hurry;
        let buffer = self.buffer(place);
        let mut batch = buffer.full.pop_front();
        if batch.is_none() {
            batch = buffer.open.take_if(|batch| hurry || batch.due <= now);
            buffer.announced = batch.is_some();
            self.open_bytes -= batch.as_ref().map_or(0, |batch| batch.tag.memory_bytes);
        }
        self.waiting_batches -= usize::from(batch.is_some());
        batch
    }

    /// Whether the driver is to take something there that it has not taken.
    pub(crate) fn is_announced(&self, place: usize) -> bool {
        self.buffers
            .get(place)
            .is_some_and(|buffer| buffer.announced)
    }

    /// Everything of this shard, ready or not, in order.
    pub(crate) fn take_all(&mut self, place: usize) -> Vec<OpenBatch> {
        self.set_aside(place);
        let all: Vec<_> = self.buffer(place).full.drain(..).collect();
        self.waiting_batches -= all.len();
        all
    }

    /// Takes a builder back for the next batch.
    pub(crate) fn recycle(&mut self, builder: BatchBuilder) {
        debug_assert!(builder.is_empty(), "BUG: records in a recycled builder");
        if self.spare.len() < SPARE_MAX {
            self.spare.push(builder);
        }
    }

    /// Makes room for shards that a new map brought.
    pub(crate) fn grow(&mut self) {
        self.buffers
            .resize_with(self.routing.places(), Buffer::default);
    }

    /// Whether nothing waits here.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting_batches == 0
    }

    /// Somebody waits for this much memory: whether open batches were told to leave for it. They
    /// need not while most of the memory is on its way already.
    pub(crate) fn pressed(&mut self, wanted: usize) -> bool {
        let free = self.memory_bytes - self.open_bytes;
        let pressed = free < wanted || free < self.open_bytes;
        if pressed {
            self.hurry();
        }
        pressed
    }

    /// Lets everything leave that is there now.
    pub(crate) fn hurry(&mut self) {
        let now = Instant::now();
        for place in 0..self.buffers.len() {
            let buffer = self.buffer(place);
            if let Some(mut batch) = buffer.open.take() {
                batch.due = now;
                buffer.open = Some(batch);
                self.announce(place);
            }
        }
    }

    /// No more records are taken, and nothing lingers.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        self.hurry = true;
        self.hurry();
    }
}

impl BatchTag {
    /// The batch's answer: whoever waits for a record of it, or for a flush, learns it. Gives the
    /// memory it held.
    pub(crate) fn settle(self, outcome: Outcome, intake: &mut Intake) -> usize {
        let stats = &mut intake.stats;
        let records = u64::from(self.records);
        let failure = match &outcome {
            Outcome::Stored(batch) => {
                stats.records_stored += records;
                stats.records_duplicate += if batch.duplicate { records } else { 0 };
                stats.bytes_stored += self.data_bytes;
                stats.batches_stored += 1;
                None
            }
            Outcome::Failed(error) => {
                stats.records_failed += records;
                Some(error.clone())
            }
            Outcome::Moved(_) => None,
        };
        self.cell.complete(outcome);
        intake.ledger.close(self.page, failure.as_ref());
        self.memory_bytes
    }
}

#[cfg(test)]
mod tests;
