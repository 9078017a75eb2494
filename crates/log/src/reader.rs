//! Reading a log from any thread.

mod by_bytes;
mod by_time;
mod cold;
mod cut;
mod fetch;
mod search;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use flumen_record::{SequenceNumber, ShardId, Timestamp};

use crate::config::{LogConfig, LogKey};
use crate::error::{Gone, ReadError};
use crate::index::{Run, ShardCell, ShardState};
use crate::log::LogStats;
use crate::segment::Segment;
use crate::shared::Shared;
use crate::stay::Stay;
use crate::storage::Storage;
use crate::voucher::Voucher;

/// Runs looked at for one reply.
const RUNS_PER_READ: usize = 8192;

/// Times that a look-up is made again when what it points at is gone.
const LOOKS: usize = 16;

/// The two ends of what can be read of a shard, in one log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardBounds {
    /// First sequence number kept.
    pub trim_horizon: SequenceNumber,
    /// First one readers may not see yet.
    pub durable_end: SequenceNumber,
    /// Arrival time of the last readable batch.
    pub last_arrival: Timestamp,
    /// Stored bytes of the shard between the two ends.
    pub stored_bytes: u64,
    /// Whether they were added up; otherwise they are an estimate.
    pub bytes_are_exact: bool,
}

/// What a search says. Records are deleted and readers sent on by it: what is not known is neither
/// "nothing" nor "the end".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SearchAnswer {
    /// It is here; everything that is kept before this number is older.
    At(SequenceNumber),
    /// Everything that is kept is older.
    AllOlder,
    /// The index does not know: nothing may be concluded from it.
    Unknown,
}

/// Whole frames, in order.
#[derive(Debug, Clone, Default)]
pub struct FoundFrames {
    /// Each piece holds whole frames; slices of the map where they are large or contiguous. The
    /// first frame may begin below the asked number, the last one ends at `next`.
    pub pieces: Vec<Bytes>,
    /// Their bytes together.
    pub bytes: usize,
    /// First sequence number after them: where to go on.
    pub next: SequenceNumber,
}

/// Reads a log; cheap to clone, usable from any thread while the log is written.
#[derive(Debug, Clone)]
pub struct LogReader {
    pub(crate) shared: Arc<Shared>,
}

/// What to read for an answer.
#[derive(Debug)]
struct Plan {
    /// Consecutive runs; the first may begin below the asked number.
    runs: Vec<Run>,
    /// What they are in, held from the look-up on: a copy that takes the place of one of them has
    /// its bytes elsewhere.
    segments: Vec<Arc<Segment>>,
    /// Where to go on when there are none.
    next: SequenceNumber,
}

impl Plan {
    fn segment(&self, run: &Run) -> Option<&Arc<Segment>> {
        self.segments
            .iter()
            .find(|segment| segment.id() == run.segment)
    }
}

/// Where the runs of an answer are.
#[derive(Debug)]
enum Lookup {
    /// In memory.
    Recent(Plan),
    /// In footers.
    Cold,
}

impl LogReader {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Looks whether the log is where it was, unless it was looked a moment ago. Blocks.
    pub fn is_in_place(&self, now: Timestamp) -> bool {
        self.shared.look_when_due(now).is_ok()
    }

    /// What is gone of the data directory, if anything is: the log is poisoned then.
    pub fn gone(&self) -> Option<Gone> {
        self.shared.storage.gone()
    }

    /// Whether there is less space than the floor, as of the last look: appends are refused.
    pub fn is_below_floor(&self) -> bool {
        self.shared.free_bytes() < self.shared.floor_bytes()
    }

    /// The log's counters, for metrics.
    pub fn stats(&self) -> LogStats {
        self.shared.stats()
    }

    /// Of a log that did not open: every read of it is [`ReadError::Refused`].
    pub fn refused(storage: Arc<dyn Storage>, key: LogKey, reason: String) -> Self {
        let mut shared = Shared::new(storage, key, LogConfig::default(), Timestamp::ZERO);
        shared.refusal = Some(reason);
        Self::new(Arc::new(shared))
    }

    /// How far the log has got, for another one to remember; `None` when it holds no round yet, or
    /// is poisoned.
    pub fn voucher(&self) -> Option<Voucher> {
        let shared = &self.shared;
        // In this order: an epoch is stored before its rounds are durable.
        let round = shared.vouched_round.load(Ordering::Acquire);
        let has_rounds = shared.durable_round() > 0;
        let epoch = shared.epoch.load(Ordering::Acquire);
        (has_rounds && !shared.is_poisoned()).then_some(Voucher { epoch, round })
    }

    pub(crate) fn cell(&self, shard: ShardId) -> Result<Arc<ShardCell>, ReadError> {
        if let Some(reason) = &self.shared.refusal {
            return Err(ReadError::Refused {
                log: self.shared.dir.clone(),
                reason: reason.clone(),
            });
        }
        self.shared
            .index
            .get(shard)
            .ok_or(ReadError::UnknownShard { shard })
    }

    /// The readable ends of a shard; `None` when this log never held it. Never touches the disk.
    pub fn bounds(&self, shard: ShardId) -> Option<ShardBounds> {
        let cell = self.shared.index.get(shard)?;
        let state = cell.lock();
        Some(ShardBounds {
            trim_horizon: state.horizon,
            durable_end: state.end,
            last_arrival: state.last_arrival,
            stored_bytes: state.stored_bytes,
            bytes_are_exact: state.bytes_are_exact,
        })
    }

    /// Frames from the one that holds `from` (or the next after a gap), at least one when there is
    /// any below `durable_end`, at most `budget` bytes beyond the first frame. `Ok(None)`: not in
    /// the hot window, ask [`LogReader::read_cold`] on a thread that may block. Empty when `from`
    /// is at `durable_end`.
    pub fn read_hot(
        &self,
        shard: ShardId,
        from: SequenceNumber,
        budget: usize,
    ) -> Result<Option<FoundFrames>, ReadError> {
        match self.look_up(shard, from, budget)? {
            Lookup::Recent(plan) => self.fetch_hot(&plan, from, budget),
            Lookup::Cold => Ok(None),
        }
    }

    /// As `read_hot`, from disk where needed: verified before they are returned. Blocks.
    pub fn read_cold(
        &self,
        shard: ShardId,
        from: SequenceNumber,
        budget: usize,
    ) -> Result<FoundFrames, ReadError> {
        // A segment can be freed, copied or released from memory between looking up and reading:
        // then the look-up is stale and is made again.
        for _ in 0..LOOKS {
            let plan = match self.look_up(shard, from, budget)? {
                Lookup::Recent(plan) => Some(plan),
                Lookup::Cold => self.look_up_cold(shard, from, budget)?,
            };
            if let Some(plan) = plan
                && let Some(found) = self.fetch_cold(shard, &plan, from, budget)?
            {
                return Ok(found);
            }
        }
        Err(self.keeps_moving())
    }

    fn keeps_moving(&self) -> ReadError {
        ReadError::Io {
            segment: self.shared.dir.clone(),
            source: io::Error::other("BUG: the index keeps pointing at segments that are gone"),
        }
    }

    /// Where the first batch of a stay lies that arrived at or after `at`. Everything that is kept
    /// before it arrived earlier; records that cannot be read count as later. May block (footers).
    pub fn find_time(
        &self,
        shard: ShardId,
        stay: &Stay,
        at: Timestamp,
    ) -> Result<SearchAnswer, ReadError> {
        self.search_time(shard, stay, at)
    }

    /// The first batch boundary such that at most `bytes` stored bytes of the stay follow it: with one
    /// batch more there would be more than that. For retention by size. May block.
    pub fn find_bytes_from_end(
        &self,
        shard: ShardId,
        stay: &Stay,
        bytes: u64,
    ) -> Result<SearchAnswer, ReadError> {
        self.search_bytes_from_end(shard, stay, bytes)
    }

    /// Stored bytes that are kept of a stay: added up, where [`LogReader::bounds`] estimates. `None`:
    /// they could not be added up, as segments came and went meanwhile. May block.
    pub fn count_bytes(&self, shard: ShardId, stay: &Stay) -> Result<Option<u64>, ReadError> {
        self.add_up_all(shard, stay)
    }

    /// Answers from memory where possible.
    fn look_up(
        &self,
        shard: ShardId,
        from: SequenceNumber,
        budget: usize,
    ) -> Result<Lookup, ReadError> {
        let cell = self.cell(shard)?;
        let state = cell.lock();
        if from < state.horizon {
            return Err(ReadError::Trimmed {
                asked: from,
                horizon: state.horizon,
            });
        }
        if from >= state.end {
            return Ok(Lookup::Recent(Plan {
                runs: Vec::new(),
                segments: Vec::new(),
                next: from,
            }));
        }
        let Some(place) = state.recent_at(from) else {
            return Ok(Lookup::Cold);
        };
        let runs = take_runs(state.recent.range(place..), budget);
        let segments = self.segments_of(&runs);
        self.plan(shard, &state, from, runs, segments)
            .map(Lookup::Recent)
    }

    /// The segments of runs in memory. While the shard is locked they are what the runs are about:
    /// a segment leaves memory before it is copied.
    fn segments_of(&self, runs: &[Run]) -> Vec<Arc<Segment>> {
        let same = |one: &Run, other: &Run| one.segment == other.segment;
        runs.chunk_by(same)
            .filter_map(|runs| self.shared.segment(runs.first()?.segment))
            .collect()
    }

    /// Steps over recorded jumps in front of the first run, and over nothing else.
    fn plan(
        &self,
        shard: ShardId,
        state: &ShardState,
        from: SequenceNumber,
        runs: Vec<Run>,
        segments: Vec<Arc<Segment>>,
    ) -> Result<Plan, ReadError> {
        let next = runs.first().map_or(state.end, |run| run.base);
        let Some(lost_from) = state.lost_between(from, next) else {
            return Ok(Plan {
                runs,
                segments,
                next,
            });
        };
        let damaged = self.shared.damaged();
        let known = damaged
            .iter()
            .find(|range| range.shard == shard && range.from < next && lost_from < range.to);
        let segment = known.map(|range| range.segment.clone());
        Err(ReadError::DataLoss {
            shard,
            from: lost_from,
            to: next,
            segment: segment.unwrap_or_else(|| self.shared.dir.clone()),
        })
    }
}

/// Consecutive runs until `budget` is surely used up.
fn take_runs<'a>(runs: impl Iterator<Item = &'a Run>, budget: usize) -> Vec<Run> {
    let mut taken: Vec<Run> = Vec::new();
    let mut bytes = 0_u64;
    for run in runs.take(RUNS_PER_READ) {
        let follows = taken.last().is_none_or(|last| last.end == run.base);
        if !follows || bytes > budget as u64 {
            break;
        }
        if !taken.is_empty() {
            bytes += u64::from(run.bytes);
        }
        taken.push(*run);
    }
    taken
}
