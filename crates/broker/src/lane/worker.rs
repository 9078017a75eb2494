//! The lane's loop: what came since the last round becomes the next one.

mod asked;
mod closing;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;
use std::time::Duration;

use flumen_log::{Log, RoundNumber, SyncDone, SyncError, WriteError};
use flumen_record::{Durability, Timestamp};
use tokio::sync::oneshot;

use closing::Closing;

use super::background::Background;
use super::desk::{Desk, RoundOutcome};
use super::{Control, HeldShard, Lane, LaneContext, OpenShard};
use crate::Error;
use crate::pending::Submission;
use crate::round::{Turns, share_of_waiting};
use flumen_world::{Now, Turn, lock};

/// More readers than this are woken by the runtime, not by the lane.
const WAKERS_MAX: usize = 16;

/// How often a log is looked at while the disk is full, or what is due cannot be done.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// A snapshot waits so many times as long as a round that vouches for the last one, for more shards
/// to move in.
const MOVED_IN_FOR: u32 = 20;

/// Answers a hold once its round is on disk.
#[derive(Debug)]
struct Barrier {
    round: RoundNumber,
    held: Vec<HeldShard>,
    done: oneshot::Sender<Vec<HeldShard>>,
}

#[derive(Debug)]
pub(super) struct Worker {
    lane: Arc<Lane>,
    /// Taken when the log is closed.
    log: Option<Log>,
    context: LaneContext,
    desk: Desk,
    turns: Turns<Submission>,
    inbox: Vec<Submission>,
    controls: Vec<Control>,
    wakers: Vec<Waker>,
    background: Background,
    written: RoundNumber,
    /// Of a `memory` log: bytes written since the last sync began, and when that was.
    unsynced_bytes: u64,
    last_sync: Duration,
    sync_running: bool,
    barriers: Vec<Barrier>,
    /// A snapshot whose rounds are not all on disk yet.
    snapshot: Option<(RoundNumber, flumen_log::SnapshotJob)>,
    /// Since when there are shards whose state came with them from another log and is in no snapshot
    /// of this one. It must be before the other log forgets them.
    moved_in: Option<Timestamp>,
    /// Something is due later, or was written since the log was last seen idle.
    restless: bool,
    /// Bytes of the round that the full disk refused last, until one like it would be taken.
    refused_bytes: Option<u64>,
    shutdown: Option<oneshot::Sender<Result<(), Error>>>,
    closing: Option<Closing>,
    stopped: bool,
    /// When the turn began.
    now: Timestamp,
    /// What came was fetched at the end of the last turn.
    looked: bool,
    /// When something is due for the log.
    due: Option<Duration>,
}

/// The loop's hold on its worker, which is gone when the loop has ended.
#[derive(Debug)]
pub(super) struct Loop(pub(super) Option<Worker>);

impl Loop {
    /// One turn. Ends when the lane was told to end, or has broken a promise of its own code.
    pub(super) fn turn(&mut self, now: Now) -> Turn {
        let Some(worker) = &mut self.0 else {
            return Turn::Ended;
        };
        worker.now = now.wall;
        let turn = catch_unwind(AssertUnwindSafe(|| worker.turn()));
        let panicked = turn.is_err();
        match turn {
            Ok(turn @ (Turn::Again | Turn::Wait(_))) => turn,
            Ok(Turn::Ended) | Err(_) => {
                if let Some(worker) = self.0.take() {
                    worker.end(panicked);
                }
                Turn::Ended
            }
        }
    }
}

impl Worker {
    pub(super) fn new(
        lane: Arc<Lane>,
        log: Log,
        shards: Vec<OpenShard>,
        context: LaneContext,
    ) -> Self {
        let mut desk = Desk::new(lane.key.durability, context.metrics.clone());
        shards.into_iter().for_each(|shard| desk.open(shard));
        let world = Arc::clone(&context.world);
        let background = Background::new(Arc::downgrade(&lane), lane.label(), world);
        Self {
            written: log.durable_round(),
            log: Some(log),
            context,
            desk,
            turns: Turns::default(),
            inbox: Vec::new(),
            controls: Vec::new(),
            wakers: Vec::new(),
            background,
            unsynced_bytes: 0,
            last_sync: Duration::ZERO,
            sync_running: false,
            barriers: Vec::new(),
            snapshot: None,
            moved_in: None,
            restless: true,
            refused_bytes: None,
            shutdown: None,
            closing: None,
            stopped: false,
            now: Timestamp::ZERO,
            looked: false,
            due: None,
            lane,
        }
    }

    /// One turn: what came, at most one round, what is due.
    fn turn(&mut self) -> Turn {
        if let Some(closing) = self.closing {
            return self.close(closing);
        }
        if self.stopped {
            return self.end_as_it_is();
        }
        if !std::mem::take(&mut self.looked) {
            self.look(false);
        }
        self.work();
        if self.shutdown.is_some() {
            self.closing = Some(Closing::Syncing);
            return Turn::Again;
        }
        if self.stopped {
            return Turn::Again;
        }
        let sleepy = !self.can_write_round();
        if self.look(sleepy) {
            self.looked = true;
            return Turn::Again;
        }
        Turn::Wait(self.deadline())
    }

    /// Nothing is written any more once what the background does is done.
    fn end_as_it_is(&self) -> Turn {
        if self.background.is_busy() {
            Turn::Wait(None)
        } else {
            Turn::Ended
        }
    }

    /// The end of the loop: whoever waits is answered.
    fn end(mut self, panicked: bool) {
        if panicked {
            tracing::error!(lane = %self.lane.label(), "the lane has panicked; its log is poisoned");
            self.lane.poisoned.store(true, Ordering::Release);
            self.lane.sync_ended();
            self.desk.settle_after_panic();
        }
        let refusal = if self.lane.is_poisoned() {
            self.lane.poisoned_by()
        } else {
            Error::Draining
        };
        let (submissions, controls) = self.lane.close_queue();
        drop(controls);
        self.inbox.extend(submissions);
        for submission in self.inbox.drain(..) {
            self.desk.refuse(submission, refusal.clone());
        }
        self.turns.take_round(u64::MAX, |_, submission| {
            self.desk.refuse(submission, refusal.clone())
        });
        self.desk.abandon_holds(&refusal);
        self.finish_round();
    }

    /// Fetches what came. With `sleepy`, when nothing did: `false`, and whatever comes wakes the loop.
    fn look(&mut self, sleepy: bool) -> bool {
        let submissions = if self.is_choked() {
            None
        } else {
            Some(&mut self.inbox)
        };
        self.lane.take(submissions, &mut self.controls, sleepy)
    }

    /// Does everything that can be done now.
    fn work(&mut self) {
        let mut controls = std::mem::take(&mut self.controls);
        for control in controls.drain(..) {
            self.control(control);
        }
        self.controls = controls;
        self.desk.sort(&mut self.inbox, &mut self.turns);
        if self.can_write_round() {
            self.round();
        } else if self.desk.has_answers() {
            self.finish_round();
        }
        self.look_after_log();
    }

    /// A `memory` log that is too far ahead of the disk waits for it.
    fn is_choked(&self) -> bool {
        self.sync_running && self.unsynced_bytes >= self.context.unsynced_bytes_max
    }

    fn can_write_round(&self) -> bool {
        !self.turns.is_empty() && !self.is_choked()
    }

    /// When something is due, if nothing comes.
    fn deadline(&self) -> Option<Duration> {
        let sync = (self.unsynced_bytes > 0 && !self.sync_running)
            .then(|| self.last_sync + self.context.memory_sync_interval);
        [self.due, sync].into_iter().flatten().min()
    }

    /// Writes one round of what waits, and answers it.
    fn round(&mut self) {
        let now = self.now;
        let waiting = self.turns.waiting_bytes();
        let bytes_max = share_of_waiting(waiting).min(self.context.round_bytes_max);
        let stop = self.accepts(waiting.min(bytes_max)).err();
        let desk = &mut self.desk;
        self.turns.take_round(bytes_max, |slot, submission| {
            desk.admit(slot, submission, now, stop.as_ref());
        });
        if !self.desk.frames().is_empty() {
            let outcome = self.write(now);
            self.desk.settle(&outcome, &mut self.wakers);
        }
        self.finish_round();
    }

    /// Whether a round would be taken now; asked before numbers are given out.
    fn accepts(&mut self, bytes: u64) -> Result<(), Error> {
        if self.lane.is_poisoned() {
            return Err(self.lane.poisoned_by());
        }
        let accepted = self.log().accepts(bytes).map_err(Error::from);
        if matches!(accepted, Err(Error::StorageGone { .. })) {
            self.poison();
            return accepted;
        }
        self.note_full(accepted.as_ref().err(), bytes);
        self.restless |= accepted.is_err();
        accepted
    }

    /// Says once that the disk is full for a round of `bytes`, and once that it is not any more.
    fn note_full(&mut self, refusal: Option<&Error>, bytes: u64) {
        self.refused_bytes = refusal.map(|_| bytes);
        let mut full = lock(&self.lane.full);
        if full.is_some() != refusal.is_some() {
            match refusal {
                None => tracing::info!(lane = %self.lane.label(), "appends resume"),
                Some(error) => {
                    tracing::warn!(lane = %self.lane.label(), %error, "appends are refused")
                }
            }
            *full = refusal.cloned();
        }
    }

    fn write(&mut self, now: Timestamp) -> RoundOutcome {
        let catalog = self.context.catalog_record.load(Ordering::Acquire);
        let frames = self.desk.frames();
        let began = self.context.clock.monotonic();
        // While a background sync runs, that is the one to watch.
        if !self.sync_running {
            self.lane.sync_began();
        }
        let log = self.log.as_mut().expect(OPEN);
        let result = match self.lane.key.durability {
            Durability::Disk => log.commit(frames, catalog, now),
            Durability::Memory => Ok(log.write(frames, catalog, now)),
        };
        if !self.sync_running {
            self.lane.sync_ended();
        }
        self.restless = true;
        match result {
            Ok(Ok(round)) => {
                self.written = round;
                let took = self.context.clock.monotonic().saturating_sub(began);
                match self.lane.key.durability {
                    Durability::Disk => self.context.metrics.sync_latency(Durability::Disk, took),
                    Durability::Memory => self.unsynced_bytes += round_bytes(frames).max(1),
                }
                RoundOutcome::Durable
            }
            Ok(Err(WriteError::Unknown { source })) => {
                self.poisoned_by(&SyncError::Poisoned { source });
                RoundOutcome::Unknown
            }
            Ok(Err(error)) => {
                if matches!(error, WriteError::Poisoned | WriteError::Gone(_)) {
                    self.poison();
                }
                RoundOutcome::Refused(error.into())
            }
            Err(error) => {
                self.poisoned_by(&error);
                RoundOutcome::Unknown
            }
        }
    }

    /// Sends answers and wakes readers.
    fn finish_round(&mut self) {
        let now = self.context.clock.monotonic();
        self.desk.answer(now, &self.lane);
        if self.wakers.len() > WAKERS_MAX {
            let wakers = std::mem::take(&mut self.wakers);
            let waking = async move { wakers.into_iter().for_each(Waker::wake) };
            self.context.world.task(Box::pin(waking));
        } else {
            self.wakers.drain(..).for_each(Waker::wake);
        }
    }

    /// Background syncs, empty rounds that vouch for the last real one, snapshots; and when there is
    /// something again.
    fn look_after_log(&mut self) {
        self.due = None;
        if self.lane.is_poisoned() || self.stopped {
            self.restless = false;
            return;
        }
        self.sync_when_due();
        if let Some(bytes) = self.refused_bytes {
            // Whoever watches learns that there is room again, whether or not somebody appends.
            let _ = self.accepts(bytes);
        }
        if !self.restless && !self.log().wants_roll() {
            return;
        }
        let now = self.context.clock.both();
        if self.turns.is_empty() && self.log().idle_round_due(now.wall) {
            self.idle_round(now.wall);
        }
        if self.snapshot_in(now.wall) == Some(Duration::ZERO) && self.snapshot.is_none() {
            let states = self.desk.states();
            let job = self.log.as_mut().expect(OPEN).snapshot(states, now.wall);
            self.snapshot = Some((self.written, job));
            self.moved_in = None;
            self.reached_disk();
        }
        let later = [
            self.log().idle_round_in(now.wall),
            self.snapshot_in(now.wall),
            self.refused_bytes.map(|_| LOOK_AGAIN),
        ];
        let later = later.into_iter().flatten().min();
        // What is due and could not be done is not tried in a circle.
        let later = later.map(|later| if later.is_zero() { LOOK_AGAIN } else { later });
        self.due = later.map(|later| now.monotonic.saturating_add(later));
        self.restless = later.is_some();
    }

    /// In how long a snapshot is due.
    fn snapshot_in(&self, now: Timestamp) -> Option<Duration> {
        let wait = MOVED_IN_FOR * self.context.idle_vouch;
        let moved_in = |since| wait.saturating_sub(now.since(since));
        let moved_in = self.moved_in.map(moved_in);
        moved_in
            .into_iter()
            .chain(self.log().snapshot_in(now))
            .min()
    }

    /// Not asked whether the disk is full: trims and deletes travel in it, and they free space.
    fn idle_round(&mut self, now: Timestamp) {
        match self.write(now) {
            RoundOutcome::Refused(error @ Error::StorageFull { .. }) => {
                self.note_full(Some(&error), self.refused_bytes.unwrap_or(0));
            }
            RoundOutcome::Refused(error) => {
                tracing::warn!(lane = %self.lane.label(), %error, "an empty round was not written");
            }
            RoundOutcome::Durable | RoundOutcome::Unknown => {}
        }
    }

    fn sync_when_due(&mut self) {
        if self.unsynced_bytes == 0 || self.sync_running || self.shutdown.is_some() {
            return;
        }
        let since = self
            .context
            .clock
            .monotonic()
            .saturating_sub(self.last_sync);
        let urgent =
            !self.barriers.is_empty() || self.unsynced_bytes >= self.context.unsynced_bytes_max / 2;
        if since >= self.context.memory_sync_interval || urgent {
            self.last_sync = self.context.clock.monotonic();
            self.unsynced_bytes = 0;
            if let Some(job) = self.log.as_mut().expect(OPEN).begin_sync() {
                self.sync_running = true;
                self.lane.sync_began();
                self.background.sync(job);
            }
        }
    }

    /// A background sync has ended.
    fn synced(&mut self, done: SyncDone) {
        self.sync_running = false;
        self.lane.sync_ended();
        let took = self
            .context
            .clock
            .monotonic()
            .saturating_sub(self.last_sync);
        self.context.metrics.sync_latency(Durability::Memory, took);
        let now = self.context.clock.now();
        match self.log.as_mut().expect(OPEN).finish_sync(done, now) {
            Ok(_) => self.reached_disk(),
            Err(error) => self.poisoned_by(&error),
        }
    }

    /// More is on disk: what waited for that goes on.
    fn reached_disk(&mut self) {
        let durable = self.log().durable_round();
        for barrier in std::mem::take(&mut self.barriers) {
            if barrier.round <= durable {
                // Who asked may be gone: the hold is released when its sender is.
                let _ = barrier.done.send(barrier.held);
            } else {
                self.barriers.push(barrier);
            }
        }
        if let Some((round, job)) = self.snapshot.take() {
            if round <= durable {
                self.background.snapshot(job);
            } else {
                self.snapshot = Some((round, job));
            }
        }
    }

    fn poisoned_by(&mut self, error: &SyncError) {
        tracing::error!(lane = %self.lane.label(), %error, "a sync failed twice");
        self.poison();
    }

    fn poison(&mut self) {
        self.lane.poisoned.store(true, Ordering::Release);
        self.snapshot = None;
        // Whoever waits for the disk learns it by the sender that is dropped.
        self.barriers.clear();
    }

    fn log(&self) -> &Log {
        self.log.as_ref().expect(OPEN)
    }
}

const OPEN: &str = "BUG: a closed log is used";

fn round_bytes(frames: &[flumen_log::NewFrame]) -> u64 {
    let frame = |frame: &flumen_log::NewFrame| {
        (flumen_record::FRAME_HEADER_BYTES + frame.batch.bytes().len()) as u64
    };
    frames.iter().map(frame).sum()
}
