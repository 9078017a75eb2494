//! One lane: the loop (a thread in production) that writes one log, and the queue in front of it.
//!
//! Sessions hand batches over, many at a time; the queue is bounded by bytes, which a sender
//! acquires first and the lane gives back with the answers. A busy lane costs its senders no system
//! call: only a sleeping one is woken.

mod background;
mod control;
mod desk;
mod shard_hash;
mod worker;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use flumen_log::{Log, LogKey, LogReader, LogStats};
use tokio::sync::Semaphore;

use crate::pending::Submission;
use crate::{Clock, Error, Metrics};
use flumen_world::{Running, SpawnError, World, lock};

pub(crate) use control::{Control, HeldShard, OpenShard};

/// New appends are not attempted when a sync has been running for this long.
const STUCK_AFTER: Duration = Duration::from_secs(10);

/// What a lane needs to know about its node.
#[derive(Debug, Clone)]
pub(crate) struct LaneContext {
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
    /// The last durable catalog record, which rounds name.
    pub(crate) catalog_record: Arc<AtomicU64>,
    pub(crate) round_bytes_max: u64,
    pub(crate) queue_bytes_max: u64,
    pub(crate) memory_sync_interval: Duration,
    pub(crate) unsynced_bytes_max: u64,
    pub(crate) idle_vouch: Duration,
    /// Where many waiting readers are woken, so that the lane does not spend its time on them.
    pub(crate) world: Arc<dyn World>,
}

/// The handle of a lane.
#[derive(Debug)]
pub(crate) struct Lane {
    key: LogKey,
    reader: LogReader,
    clock: Clock,
    queue: Mutex<Queue>,
    permits: Semaphore,
    capacity: u32,
    running: OnceLock<Running>,
    /// Monotonic microseconds, plus one, at which the write or sync that is running began; 0: none is.
    syncing_since: AtomicU64,
    poisoned: AtomicBool,
    full: Mutex<Option<Error>>,
    /// The log did not open: there is no thread, and this is every answer.
    refusal: Option<Error>,
}

#[derive(Debug, Default)]
struct Queue {
    submissions: Vec<Submission>,
    controls: Vec<Control>,
    /// The loop waits for something to come.
    sleeping: bool,
    /// The loop takes nothing any more.
    closed: bool,
}

impl Lane {
    /// Starts the thread of a log, with the shards that lie in it.
    pub(crate) fn start(
        log: Log,
        key: LogKey,
        shards: Vec<OpenShard>,
        context: LaneContext,
    ) -> Result<Arc<Self>, SpawnError> {
        let capacity = u32::try_from(context.queue_bytes_max)
            .unwrap_or(u32::MAX)
            .max(1);
        let (clock, world) = (context.clock.clone(), Arc::clone(&context.world));
        let lane = Arc::new(Self::new(key, log.reader(), clock, capacity));
        let bell = log.bell();
        let worker = worker::Worker::new(Arc::clone(&lane), log, shards, context);
        let mut worker = worker::Loop(Some(worker));
        let name = format!("lane-{}", lane.label());
        let running = Running::start(&*world, &name, Box::new(move |now| worker.turn(now)))?;
        bell.set(running.wake().clone());
        let _ = lane.running.set(running);
        Ok(lane)
    }

    /// The lane of a log that did not open: it takes nothing, and answers why.
    pub(crate) fn refused(key: LogKey, reader: LogReader, clock: Clock, why: Error) -> Arc<Self> {
        let mut lane = Self::new(key, reader, clock, 1);
        lane.refusal = Some(why);
        drop(lane.close_queue());
        Arc::new(lane)
    }

    fn new(key: LogKey, reader: LogReader, clock: Clock, capacity: u32) -> Self {
        Self {
            key,
            reader,
            clock,
            queue: Mutex::default(),
            permits: Semaphore::new(capacity as usize),
            capacity,
            running: OnceLock::new(),
            syncing_since: AtomicU64::new(0),
            poisoned: AtomicBool::new(false),
            full: Mutex::new(None),
            refusal: None,
        }
    }

    /// Why its log did not open, if it did not.
    pub(crate) fn refusal(&self) -> Option<&Error> {
        self.refusal.as_ref()
    }

    /// [`Error::LogRefused`] when its log did not open.
    pub(crate) fn check_open(&self) -> Result<(), Error> {
        self.refusal.clone().map_or(Ok(()), Err)
    }

    /// Why its thread does not answer.
    pub(crate) fn gone(&self) -> Error {
        match &self.refusal {
            Some(refusal) => refusal.clone(),
            None if self.is_poisoned() => self.poisoned_by(),
            None => Error::Draining,
        }
    }

    /// Its log.
    pub(crate) fn key(&self) -> LogKey {
        self.key
    }

    /// The clock it goes by.
    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Its log's name, for metrics and thread names.
    pub(crate) fn label(&self) -> String {
        let level = match self.key.durability {
            flumen_record::Durability::Memory => "memory",
            flumen_record::Durability::Disk => "disk",
        };
        format!("{level}-{}h-{}", self.key.class_hours, self.key.lane)
    }

    /// Reads its log.
    pub(crate) fn reader(&self) -> &LogReader {
        &self.reader
    }

    /// What a batch may cost at most: the whole queue.
    pub(crate) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Bytes in its queue.
    pub(crate) fn queued_bytes(&self) -> u64 {
        u64::from(self.capacity).saturating_sub(self.permits.available_permits() as u64)
    }

    /// Takes room in the queue if there is some and nobody waits for it.
    pub(crate) fn try_reserve(&self, cost: u32) -> bool {
        self.permits
            .try_acquire_many(cost)
            .map(tokio::sync::SemaphorePermit::forget)
            .is_ok()
    }

    /// Waits for room in the queue, in order of arrival. The room is the caller's to hand over.
    pub(crate) async fn reserve(&self, cost: u32) -> Result<(), Error> {
        match self.permits.acquire_many(cost).await {
            Ok(permit) => {
                permit.forget();
                Ok(())
            }
            Err(_) => Err(self.refusal.clone().unwrap_or(Error::Draining)),
        }
    }

    /// Gives back reserved room.
    pub(crate) fn give_back(&self, cost: u64) {
        if cost > 0 {
            self.permits.add_permits(usize::try_from(cost).unwrap_or(0));
        }
    }

    /// Hands batches over, whose room is reserved. What is left in `submissions` was not taken: the
    /// lane is closed.
    pub(crate) fn hand_over(&self, submissions: &mut Vec<Submission>) {
        let was_sleeping = {
            let mut queue = lock(&self.queue);
            if queue.closed {
                return;
            }
            if queue.submissions.is_empty() {
                std::mem::swap(&mut queue.submissions, submissions);
            } else {
                queue.submissions.append(submissions);
            }
            std::mem::take(&mut queue.sleeping)
        };
        if was_sleeping {
            self.wake();
        }
    }

    /// Asks for something else than an append. `false`: the lane is closed.
    pub(crate) fn send(&self, control: Control) -> bool {
        let was_sleeping = {
            let mut queue = lock(&self.queue);
            if queue.closed {
                return false;
            }
            queue.controls.push(control);
            std::mem::take(&mut queue.sleeping)
        };
        if was_sleeping {
            self.wake();
        }
        true
    }

    /// Makes the loop take a turn.
    fn wake(&self) {
        if let Some(running) = self.running.get() {
            running.wake().wake();
        }
    }

    /// Waits for the loop to end.
    pub(crate) async fn ended(&self) {
        if let Some(running) = self.running.get() {
            running.ended().await;
        }
    }

    /// Why the log accepts nothing any more.
    pub(crate) fn poisoned_by(&self) -> Error {
        self.reader.gone().map_or(Error::Poisoned, Error::from)
    }

    /// Whether the log accepts nothing any more.
    pub(crate) fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Acquire)
    }

    /// The refusal for the full disk, as long as it lasts.
    pub(crate) fn full(&self) -> Option<Error> {
        lock(&self.full).clone()
    }

    /// How long the write or sync that is running has been.
    pub(crate) fn syncing_for(&self) -> Duration {
        match self.syncing_since.load(Ordering::Acquire) {
            0 => Duration::ZERO,
            since => self
                .clock
                .monotonic()
                .saturating_sub(Duration::from_micros(since - 1)),
        }
    }

    /// The refusal for a log that did not open, or for a disk that does not answer, as long as it
    /// lasts.
    pub(crate) fn stuck(&self) -> Option<Error> {
        if self.refusal.is_some() {
            return self.refusal.clone();
        }
        if self.syncing_since.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let waited = self.syncing_for();
        (waited >= STUCK_AFTER).then_some(Error::DiskStuck { waited })
    }

    /// The log's counters.
    pub(crate) fn stats(&self) -> LogStats {
        self.reader.stats()
    }

    fn sync_began(&self) {
        let micros = u64::try_from(self.clock.monotonic().as_micros()).unwrap_or(u64::MAX - 1);
        self.syncing_since.store(micros + 1, Ordering::Release);
    }

    fn sync_ended(&self) {
        self.syncing_since.store(0, Ordering::Release);
    }

    /// Closes the queue and takes what is in it.
    fn close_queue(&self) -> (Vec<Submission>, Vec<Control>) {
        let mut queue = lock(&self.queue);
        queue.closed = true;
        self.permits.close();
        (
            std::mem::take(&mut queue.submissions),
            std::mem::take(&mut queue.controls),
        )
    }

    /// Swaps what came into the (empty) vectors of the loop. With `sleepy`, when nothing did: `false`,
    /// and the loop is woken by what comes next. With `submissions` left out only controls are taken.
    fn take(
        &self,
        submissions: Option<&mut Vec<Submission>>,
        controls: &mut Vec<Control>,
        sleepy: bool,
    ) -> bool {
        let mut queue = lock(&self.queue);
        let nothing =
            queue.controls.is_empty() && (submissions.is_none() || queue.submissions.is_empty());
        queue.sleeping = nothing && sleepy;
        if queue.sleeping {
            return false;
        }
        std::mem::swap(&mut queue.controls, controls);
        if let Some(submissions) = submissions {
            std::mem::swap(&mut queue.submissions, submissions);
        }
        true
    }
}

/// Things for lanes, gathered so that each lane is asked once.
#[derive(Debug)]
pub(crate) struct PerLane<T>(Vec<(Arc<Lane>, Vec<T>)>);

impl<T> Default for PerLane<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> PerLane<T> {
    pub(crate) fn add(&mut self, lane: &Arc<Lane>, thing: T) {
        match self
            .0
            .iter_mut()
            .find(|(known, _)| Arc::ptr_eq(known, lane))
        {
            Some((_, things)) => things.push(thing),
            None => self.0.push((Arc::clone(lane), vec![thing])),
        }
    }
}

impl<T> IntoIterator for PerLane<T> {
    type Item = (Arc<Lane>, Vec<T>);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}
