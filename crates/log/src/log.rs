//! One log: the segments of one lane, written by one thread.

pub(crate) mod active;
mod failure;
pub(crate) mod fresh;
mod sync;
pub(crate) mod writer;

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use flumen_record::{Batch, SequenceNumber, ShardEpoch, ShardId, Timestamp};

use crate::config::{LogConfig, LogKey};
use crate::control::Control;
use crate::error::{OpenError, SyncError, WriteError};
use crate::housekeeper::{Housekeeper, WriterBell};
use crate::reader::LogReader;
use crate::recovery::{self, Recovery, Replay};
use crate::round::CLOSED;
use crate::shared::elapsed;
use crate::snapshot::SnapshotJob;
use crate::stay::LogStays;
use crate::storage::Storage;
use crate::voucher::Voucher;
use failure::Unwritten;
use writer::{PutError, Writer};

pub use sync::{SyncDone, SyncJob};

/// Trims wait at most this long for a round of their own …
const TRIM_WAIT: Duration = Duration::from_secs(1);

/// … and so many times as long as the last round for one that vouches for it.
const TRIMS_WAIT_LONGER: u32 = 4;

/// A log that should roll does so after being idle this long.
const ROLL_WAIT: Duration = Duration::from_millis(100);

/// Counts the rounds of a log, from 1, over all its segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct RoundNumber(pub u64);

/// A batch that was admitted and stamped.
#[derive(Debug, Clone)]
pub struct NewFrame {
    /// Its shard.
    pub shard: ShardId,
    /// The shard's epoch.
    pub epoch: ShardEpoch,
    /// Sequence number of its first record.
    pub base: SequenceNumber,
    /// Arrival time; never decreasing in a shard.
    pub arrival: Timestamp,
    /// The batch, its bytes written as they are.
    pub batch: Batch,
}

/// Counters since open.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogStats {
    /// Rounds written.
    pub rounds: u64,
    /// Bytes of rounds written, headers and padding included.
    pub round_bytes: u64,
    /// Syncs that ended well.
    pub syncs: u64,
    /// Syncs or writes that failed.
    pub failed_syncs: u64,
    /// Segments prepared ahead with written blocks.
    pub segments_prepared: u64,
    /// Segments recycled.
    pub segments_recycled: u64,
    /// Segments that had to be created on the spot because the pool was empty.
    pub segments_unprepared: u64,
    /// Segments copied because they were less than half live.
    pub segments_copied: u64,
    /// Segments in the log now.
    pub segments: u64,
    /// Bytes of all files of the log now.
    pub file_bytes: u64,
    /// Bytes of unlinked segments still held by readers.
    pub pinned_bytes: u64,
    /// Quarantined ranges.
    pub quarantined: u64,
    /// Indexes of sealed segments gathered again from frames, because a footer did not verify.
    pub indexes_rebuilt: u64,
    /// 1 when poisoned.
    pub poisoned: u64,
}

/// The one writer of a log.
#[derive(Debug)]
pub struct Log {
    writer: Writer,
    snapshots: SnapshotClock,
    syncing: Option<u64>,
}

impl Drop for Log {
    fn drop(&mut self) {
        let mut work = self.writer.shared.work.lock();
        work.closed = true;
        self.writer.shared.work.wake(work);
    }
}

/// What others remember of a log that is opened.
#[derive(Debug, Clone, Copy, Default)]
pub struct Expected<'a> {
    /// How far it got: one that is not there, or is less than that, is refused
    /// ([`OpenError::Short`]) and nothing is changed.
    pub voucher: Option<Voucher>,
    /// Which stays of shards it holds: what lies elsewhere is neither missing here nor jumped over, a
    /// stay that is over ends where it ended, and only shards whose stay here is open jump. `None`:
    /// every shard lies here from its first number on.
    pub stays: Option<&'a LogStays>,
}

/// When the next snapshot is due.
#[derive(Debug, Default)]
struct SnapshotClock {
    at: Timestamp,
    round: u64,
    segment: u64,
}

impl Log {
    /// Opens (creating what is missing) and recovers the log `key`, handing what lies beyond its
    /// snapshot to `replay`. Blocks.
    pub fn open(
        storage: Arc<dyn Storage>,
        key: LogKey,
        config: LogConfig,
        now: Timestamp,
        replay: &mut dyn Replay,
    ) -> Result<(Self, Recovery), OpenError> {
        Self::open_expecting(storage, key, config, now, replay, Expected::default())
    }

    /// [`Log::open`] of a log of which another one remembers how far it got.
    pub fn open_vouched(
        storage: Arc<dyn Storage>,
        key: LogKey,
        config: LogConfig,
        now: Timestamp,
        replay: &mut dyn Replay,
        voucher: Option<Voucher>,
    ) -> Result<(Self, Recovery), OpenError> {
        let expected = Expected {
            voucher,
            stays: None,
        };
        Self::open_expecting(storage, key, config, now, replay, expected)
    }

    /// [`Log::open`] of a log of which others remember something.
    pub fn open_expecting(
        storage: Arc<dyn Storage>,
        key: LogKey,
        config: LogConfig,
        now: Timestamp,
        replay: &mut dyn Replay,
        expected: Expected<'_>,
    ) -> Result<(Self, Recovery), OpenError> {
        let (writer, recovery) = recovery::recover(storage, key, config, now, replay, expected)?;
        let snapshots = SnapshotClock {
            at: now,
            round: writer.chain.round,
            segment: writer.shared.work.lock().last_used,
        };
        writer.queue_recovered();
        let log = Self {
            writer,
            snapshots,
            syncing: None,
        };
        Ok((log, recovery))
    }

    /// A handle for reading from any thread.
    pub fn reader(&self) -> LogReader {
        LogReader::new(Arc::clone(&self.writer.shared))
    }

    /// What connects the housekeeper to the loop that writes this log.
    pub fn bell(&self) -> WriterBell {
        WriterBell {
            shared: Arc::clone(&self.writer.shared),
        }
    }

    /// Whether the active segment is to be rolled, so that what it holds can be freed.
    pub fn wants_roll(&self) -> bool {
        self.writer.shared.roll.load(Ordering::Acquire)
    }

    /// The handle of the one background thread of this log.
    pub fn housekeeper(&self) -> Housekeeper {
        Housekeeper::new(Arc::clone(&self.writer.shared))
    }

    /// Whether a round with `bytes` of frames would be accepted now: asked before sequence numbers are
    /// given out. One without frames is not refused for want of space above the floor, see
    /// [`Log::commit`].
    pub fn accepts(&self, bytes: u64) -> Result<(), WriteError> {
        let shared = &self.writer.shared;
        shared.refuse_when_poisoned()?;
        let (free_bytes, floor_bytes) = (shared.free_bytes(), shared.floor_bytes());
        let full = WriteError::Full {
            free_bytes,
            floor_bytes,
        };
        if free_bytes < floor_bytes {
            shared.work.stir();
            return Err(full);
        }
        let fits = |active: &active::Active| active.has_room(bytes, 1, 0);
        if self.writer.active.as_ref().is_some_and(fits) {
            return Ok(());
        }
        let spare = free_bytes - floor_bytes;
        let needed = bytes.max(shared.config.segment_bytes_min);
        if spare < needed && shared.work.lock().pool.is_empty() {
            // Whether that is still so is for the housekeeper to look at.
            shared.work.stir();
            return Err(full);
        }
        Ok(())
    }

    fn refuse_when_closed(&self, frames: &[NewFrame], now: Timestamp) -> Result<(), WriteError> {
        let shared = &self.writer.shared;
        // Before anything is acknowledged, so that nothing is for longer than between two looks.
        shared.look_when_due(now)?;
        shared.refuse_when_poisoned()?;
        let (free_bytes, floor_bytes) = (shared.free_bytes(), shared.floor_bytes());
        if !frames.is_empty() && free_bytes < floor_bytes {
            return Err(WriteError::Full {
                free_bytes,
                floor_bytes,
            });
        }
        Ok(())
    }

    /// Writes a first round, empty, into a log that has none: then another one can vouch for it before
    /// there is anything to lose. And one that says what shards jump over as lost: the files that prove
    /// it may be freed.
    pub fn begin(
        &mut self,
        catalog: u64,
        now: Timestamp,
    ) -> Result<Result<(), WriteError>, SyncError> {
        let is_lost = |jump: &Control| matches!(jump, Control::Jump { lost: true, .. });
        if self.writer.chain.round > 0 && !self.writer.jumps.iter().any(is_lost) {
            return Ok(Ok(()));
        }
        Ok(self.commit(&[], catalog, now)?.map(|_| ()))
    }

    /// The last durable catalog record, for the rounds that follow to name.
    pub fn know_catalog(&mut self, record: u64) {
        self.writer.catalog = self.writer.catalog.max(record);
    }

    /// As [`Log::know_catalog`]; a round is due for it alone.
    pub fn name_catalog(&mut self, record: u64) {
        self.know_catalog(record);
        self.writer.owed_catalog = self.writer.owed_catalog.max(record);
    }

    /// Writes one round: `frames` grouped by shard, in sequence order within a shard. It may be
    /// empty. Trims queued with [`Log::trim`] travel in it. `catalog` is the last durable catalog
    /// record. In a `memory` log its frames are readable on return; in a `disk` log after
    /// [`Log::sync`]. The first round after opening is durable at once. A failed write goes once
    /// into a fresh segment before it is an error.
    pub fn write(
        &mut self,
        frames: &[NewFrame],
        catalog: u64,
        now: Timestamp,
    ) -> Result<RoundNumber, WriteError> {
        self.refuse_when_closed(frames, now)?;
        let writer = &mut self.writer;
        writer.catalog = writer.catalog.max(catalog);
        let is_memory = writer.shared.is_memory();
        let backlog = writer.unsynced_bytes > writer.shared.config.unsynced_bytes_max;
        if !writer.unsettled.is_empty() && (!is_memory || backlog) {
            writer.sync_all(now).map_err(|_| WriteError::Poisoned)?;
        }
        let is_first = writer.is_at_start();
        match writer.put_round(frames, now, 0, is_first) {
            Ok(round) => {
                if is_first {
                    writer.settle(round.0);
                } else if is_memory {
                    writer.publish_last();
                }
                Ok(round)
            }
            Err(PutError::Refused(refused)) => Err(refused),
            Err(PutError::Failed(cause)) => {
                let unwritten = Unwritten { frames, flags: 0 };
                writer
                    .move_to_fresh(Some(unwritten), now, &cause)
                    .map_err(|SyncError::Poisoned { source }| WriteError::Unknown { source })?;
                Ok(RoundNumber(writer.chain.round))
            }
        }
    }

    /// Makes everything written durable and, in a `disk` log, readable. `frames` of the last write
    /// are still needed here: on failure they go once into a fresh segment that continues after
    /// the last durable round.
    pub fn sync(&mut self, _frames: &[NewFrame], now: Timestamp) -> Result<RoundNumber, SyncError> {
        self.writer.sync_all(now)?;
        Ok(self.durable_round())
    }

    /// Write and sync in one step, with the fewest system calls (what a `disk` lane uses). On
    /// `Err(SyncError)` the outcome of these frames is unknown; a definite refusal is
    /// `Ok(Err(WriteError))`.
    pub fn commit(
        &mut self,
        frames: &[NewFrame],
        catalog: u64,
        now: Timestamp,
    ) -> Result<Result<RoundNumber, WriteError>, SyncError> {
        if let Err(refused) = self.refuse_when_closed(frames, now) {
            return Ok(Err(refused));
        }
        self.writer.catalog = self.writer.catalog.max(catalog);
        self.commit_flagged(frames, 0, now)
    }

    fn commit_flagged(
        &mut self,
        frames: &[NewFrame],
        flags: u16,
        now: Timestamp,
    ) -> Result<Result<RoundNumber, WriteError>, SyncError> {
        let writer = &mut self.writer;
        if !writer.unsettled.is_empty() {
            writer.sync_all(now)?;
        }
        match writer.put_round(frames, now, flags, true) {
            Ok(round) => {
                writer.settle(round.0);
                Ok(Ok(round))
            }
            Err(PutError::Refused(refused)) => Ok(Err(refused)),
            Err(PutError::Failed(cause)) => {
                writer.move_to_fresh(Some(Unwritten { frames, flags }), now, &cause)?;
                Ok(Ok(RoundNumber(writer.chain.round)))
            }
        }
    }

    /// For a `memory` log: what must be synced now, to be run on another thread; hand its result
    /// to [`Log::finish_sync`]. `None` when there is nothing to sync, or a job is under way.
    pub fn begin_sync(&mut self) -> Option<SyncJob> {
        let last = self.writer.unsettled.back()?.round;
        if self.syncing.is_some() || self.writer.shared.is_poisoned() {
            return None;
        }
        self.syncing = Some(last);
        Some(SyncJob::new(&self.writer.unsettled, last))
    }

    /// Takes the result of a background sync. After an error the un-synced rounds are copied from
    /// the page cache, verified, and written into a fresh segment, or the log is poisoned.
    pub fn finish_sync(
        &mut self,
        done: SyncDone,
        now: Timestamp,
    ) -> Result<RoundNumber, SyncError> {
        self.syncing = None;
        self.writer.finish_sync(done, now)?;
        Ok(self.durable_round())
    }

    /// The last durable round.
    pub fn durable_round(&self) -> RoundNumber {
        RoundNumber(self.writer.chain.durable)
    }

    /// Makes a shard jump to `to`: numbers below may have been given out here and lost. One that the log
    /// does not hold begins at `from`. With `lost` the numbers that are jumped over are answered as
    /// data loss, else readers step over them. The jump is durable with the next round; until then
    /// opening again finds as little.
    pub fn jump(&mut self, shard: ShardId, from: SequenceNumber, to: SequenceNumber, lost: bool) {
        self.writer.jump(shard, from, to, lost);
    }

    /// Moves a shard's trim horizon up to `before` (a batch boundary or beyond; never back).
    /// Readers see it at once; it is durable with the next round, which the caller makes happen.
    pub fn trim(&mut self, shard: ShardId, before: SequenceNumber) {
        let Some(known) = self.writer.shards.get(&shard) else {
            return;
        };
        let before = before.min(known.end);
        let mut state = known.cell.lock();
        if before > state.horizon {
            state.trim(before);
            drop(state);
            self.writer.trims.insert(shard, before);
        }
    }

    /// Forgets a shard altogether (its stream was deleted durably): all its runs are dead.
    pub fn forget(&mut self, shard: ShardId) {
        if self.writer.shards.remove(&shard).is_some() {
            self.writer.shared.forgetting().insert(shard);
            self.writer.shared.index.remove(shard);
            self.writer.trims.remove(&shard);
            self.writer.forgets.push(shard);
        }
    }

    /// Whether jumps wait for the next round: until then opening again finds as little.
    pub fn has_jumps(&self) -> bool {
        !self.writer.jumps.is_empty()
    }

    /// Whether an empty round is due: something is not vouched or named yet, or a trim waits.
    pub fn idle_round_due(&self, now: Timestamp) -> bool {
        self.idle_round_in(now) == Some(Duration::ZERO)
    }

    /// In how long an empty round is due, if nothing is written before; `None`: none is. Where it
    /// waits for a sync that runs, it is looked at again then.
    pub fn idle_round_in(&self, now: Timestamp) -> Option<Duration> {
        let writer = &self.writer;
        if writer.shared.is_poisoned() {
            return None;
        }
        let idle = elapsed(writer.last_written, now);
        let vouch_after = Duration::from_millis(writer.shared.config.idle_vouch_ms);
        let trims = !writer.trims.is_empty() || !writer.forgets.is_empty();
        // Only what has runs can become free by being rolled.
        let has_runs = writer
            .active
            .as_ref()
            .is_some_and(|active| active.runs() > 0);
        let roll = writer.shared.roll.load(Ordering::Acquire) && has_runs;
        let vouch = writer.is_unvouched().then(|| {
            let left = vouch_after.saturating_sub(idle);
            // A round names durable what is: of a `memory` log it waits for the sync.
            if writer.chain.durable < writer.last_loaded_round {
                left.max(vouch_after).max(ROLL_WAIT)
            } else {
                left
            }
        });
        let is_owed = writer.named_catalog < writer.owed_catalog;
        let name = is_owed.then(|| vouch_after.saturating_sub(idle));
        let roll = roll.then(|| ROLL_WAIT.saturating_sub(idle));
        let trim_wait = TRIM_WAIT.min(TRIMS_WAIT_LONGER * vouch_after);
        let trim = trims.then(|| trim_wait.saturating_sub(idle));
        [vouch, name, roll, trim].into_iter().flatten().min()
    }

    /// Whether a snapshot is due.
    pub fn snapshot_due(&self, now: Timestamp) -> bool {
        self.snapshot_in(now) == Some(Duration::ZERO)
    }

    /// In how long a snapshot is due, if nothing is written before; `None`: none is.
    pub fn snapshot_in(&self, now: Timestamp) -> Option<Duration> {
        let config = &self.writer.shared.config;
        if self.writer.last_loaded_round <= self.snapshots.round {
            return None;
        }
        let segment = self
            .writer
            .active
            .as_ref()
            .map_or(0, |active| active.segment.id());
        let seals = segment.saturating_sub(self.snapshots.segment);
        if seals >= u64::from(config.snapshot_seals) {
            return Some(Duration::ZERO);
        }
        let interval = Duration::from_millis(config.snapshot_interval_ms);
        Some(interval.saturating_sub(elapsed(self.snapshots.at, now)))
    }

    /// Captures the log's part of the node snapshot between two rounds, with what the caller wants
    /// to get back per shard ([`Replay::state`]). The job is run on another thread, after
    /// everything written so far is durable.
    pub fn snapshot(&mut self, states: Vec<(ShardId, Bytes)>, now: Timestamp) -> SnapshotJob {
        self.snapshots = SnapshotClock {
            at: now,
            round: self.writer.chain.round,
            segment: self
                .writer
                .active
                .as_ref()
                .map_or(0, |active| active.segment.id()),
        };
        SnapshotJob::capture(&self.writer, states, now)
    }

    /// Counters for metrics.
    pub fn stats(&self) -> LogStats {
        self.writer.shared.stats()
    }

    /// Syncs and writes what lets the next open be a clean one. The caller has taken a last
    /// snapshot and run it.
    pub fn close(mut self, now: Timestamp) -> Result<(), SyncError> {
        if self.writer.shared.is_poisoned() {
            return Ok(());
        }
        let look = self.writer.shared.look();
        look.map_err(|gone| SyncError::Poisoned {
            source: io::Error::other(gone),
        })?;
        self.writer.sync_all(now)?;
        if self.writer.chain.round > 0 {
            // A refusal leaves the log as it is: the next open is not a clean one, and finds all.
            let _refused = self.commit_flagged(&[], CLOSED, now)?;
        }
        self.writer
            .shared
            .durable_round
            .store(self.writer.chain.durable, Ordering::Release);
        Ok(())
    }
}
