//! Where a shard's records are: recent runs in memory, marks for older segments, gaps.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use flumen_record::{SequenceNumber, ShardEpoch, ShardId, Timestamp};

use crate::round::NewRun;
use crate::state::{Gap, ShardStanding, add_gap, drop_gaps_below, uncovered};

/// Marks kept per shard: with more, old ones are thinned.
const MARKS_MAX: usize = 64;
/// The newest marks are never thinned.
const MARKS_DENSE: usize = 16;

/// One shard's frames within one round: consecutive bytes, consecutive sequence numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) segment: u64,
    pub(crate) base: SequenceNumber,
    pub(crate) end: SequenceNumber,
    pub(crate) arrival: Timestamp,
    pub(crate) last_arrival: Timestamp,
    pub(crate) position: u32,
    pub(crate) bytes: u32,
}

impl Run {
    pub(crate) fn new(segment: u64, run: &NewRun) -> Self {
        Self {
            segment,
            base: run.base,
            end: run.end,
            arrival: run.arrival,
            last_arrival: run.last_arrival,
            position: u32::try_from(run.position).expect("BUG: segments are below 4 GiB"),
            bytes: run.bytes,
        }
    }
}

/// The first run of a shard in one segment, and where the shard was before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) base: SequenceNumber,
    pub(crate) arrival: Timestamp,
    pub(crate) segment: u64,
    /// The segment before it that holds the shard; 0 when none does.
    pub(crate) previous: u64,
}

/// Everything known about a shard; behind a lock that is held shortly.
#[derive(Debug)]
pub(crate) struct ShardState {
    /// First sequence number kept.
    pub(crate) horizon: SequenceNumber,
    /// As far as the horizon is on disk: what is below may be freed.
    pub(crate) durable_horizon: SequenceNumber,
    /// First sequence number readers may not see yet.
    pub(crate) end: SequenceNumber,
    pub(crate) last_arrival: Timestamp,
    pub(crate) epoch: ShardEpoch,
    pub(crate) stored_bytes: u64,
    /// Whether they were added up, and not estimated since.
    pub(crate) bytes_are_exact: bool,
    /// Stored bytes below the horizon, as long as it is not durable.
    pub(crate) trimmed_bytes: u64,
    pub(crate) gaps: Vec<Gap>,
    /// Ascending; thinned.
    pub(crate) marks: Arc<Vec<Mark>>,
    /// Runs of segments whose index is in memory, ascending.
    pub(crate) recent: VecDeque<Run>,
    /// The last segment that holds runs before `recent`; 0 when none does.
    pub(crate) before_recent: u64,
    /// The last segment that holds runs; 0 when none does.
    pub(crate) last_segment: u64,
}

/// Where to look for a sequence number that is not in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ColdStart {
    /// Walk back from this segment; 0: nothing is older.
    pub(crate) from_segment: u64,
    /// The segment after it that holds the shard; 0: what follows is in memory.
    pub(crate) next_segment: u64,
    /// First number of what follows.
    pub(crate) upper: SequenceNumber,
}

/// Where to look for the first batch that arrived at or after a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TimePlace {
    /// There is none.
    AllOlder,
    /// Records are missing from here on; they may be later.
    At(SequenceNumber),
    /// Its last batch is not older, and nothing before it is later.
    In(Run),
    /// In footers, or in the first run in memory.
    Cold(ColdStart),
}

impl ShardState {
    fn new(standing: &ShardStanding) -> Self {
        Self {
            horizon: standing.horizon,
            durable_horizon: standing.horizon,
            end: standing.end,
            last_arrival: standing.last_arrival,
            epoch: standing.epoch,
            stored_bytes: standing.stored_bytes,
            bytes_are_exact: standing.horizon == standing.end && standing.stored_bytes == 0,
            trimmed_bytes: 0,
            gaps: standing.gaps.clone(),
            marks: Arc::default(),
            recent: VecDeque::new(),
            before_recent: standing.last_segment,
            last_segment: standing.last_segment,
        }
    }

    pub(crate) fn standing(&self, shard: ShardId) -> ShardStanding {
        ShardStanding {
            shard,
            horizon: self.horizon,
            end: self.end,
            last_arrival: self.last_arrival,
            epoch: self.epoch,
            last_segment: self.last_segment,
            stored_bytes: self.stored_bytes,
            gaps: self.gaps.clone(),
        }
    }

    /// A run became readable. Returns the mark when it is the shard's first in its segment.
    pub(crate) fn append(&mut self, run: Run, epoch: ShardEpoch) -> Option<Mark> {
        debug_assert!(run.base >= self.end, "BUG: runs are appended in order");
        let mark = (run.segment != self.last_segment).then(|| {
            let mark = Mark {
                base: run.base,
                arrival: run.arrival,
                segment: run.segment,
                previous: self.last_segment,
            };
            self.add_mark(mark);
            mark
        });
        if self.recent.is_empty() {
            self.before_recent = mark.map_or(self.before_recent, |mark| mark.previous);
        }
        self.recent.push_back(run);
        self.last_segment = run.segment;
        self.end = self.end.max(run.end);
        self.last_arrival = self.last_arrival.max(run.last_arrival);
        self.epoch = self.epoch.max(epoch);
        self.stored_bytes += u64::from(run.bytes);
        mark
    }

    /// A readable run was written again elsewhere: its last segment failed. Returns the segment that
    /// held the shard before, when this is its first run in the new one.
    pub(crate) fn move_run(&mut self, run: Run) -> Option<u64> {
        let place = self.recent.partition_point(|known| known.base < run.base);
        let known = self
            .recent
            .get_mut(place)
            .filter(|known| known.base == run.base)?;
        *known = run;
        let before = place
            .checked_sub(1)
            .and_then(|index| self.recent.get(index));
        let previous = before.map_or(self.before_recent, |before| before.segment);
        if previous == run.segment {
            return None;
        }
        let marks = Arc::make_mut(&mut self.marks);
        marks.truncate(marks.partition_point(|mark| mark.base < run.base));
        self.last_segment = run.segment;
        self.add_mark(Mark {
            base: run.base,
            arrival: run.arrival,
            segment: run.segment,
            previous,
        });
        Some(previous)
    }

    /// Remembers the first run of a segment; marks come in ascending order.
    pub(crate) fn add_mark(&mut self, mark: Mark) {
        let marks = Arc::make_mut(&mut self.marks);
        if marks.len() >= MARKS_MAX {
            let dense_from = marks.len() - MARKS_DENSE;
            let mut index = 0;
            marks.retain(|_| {
                index += 1;
                index > dense_from || index % 2 == 0
            });
        }
        marks.push(mark);
    }

    /// Drops the marks below the horizon but for the last, which may be of the segment that the
    /// horizon lies in. Those segments may be gone.
    pub(crate) fn drop_dead_marks(&mut self) {
        let horizon = self.horizon;
        let below = self.marks.partition_point(|mark| mark.base <= horizon);
        if below > 1 {
            Arc::make_mut(&mut self.marks).drain(..below - 1);
        }
    }

    /// Moves the horizon up; what is stored below is estimated.
    pub(crate) fn trim(&mut self, before: SequenceNumber) {
        if before <= self.horizon {
            return;
        }
        let numbers = self.records_from(self.horizon);
        let left = self.records_from(before);
        let share = u128::from(self.stored_bytes) * u128::from(left) / u128::from(numbers.max(1));
        let stored = u64::try_from(share).unwrap_or(u64::MAX);
        self.trimmed_bytes += self.stored_bytes.saturating_sub(stored);
        self.stored_bytes = stored.min(self.stored_bytes);
        self.bytes_are_exact = left == 0;
        self.horizon = before;
        self.end = self.end.max(before);
        drop_gaps_below(&mut self.gaps, before);
        self.drop_dead_marks();
    }

    /// Goes on behind `gap`.
    pub(crate) fn jump(&mut self, gap: Gap) {
        self.end = self.end.max(gap.to);
        add_gap(&mut self.gaps, gap);
    }

    /// Ends at `end`: what was jumped over from there on lies elsewhere.
    pub(crate) fn end_at(&mut self, end: SequenceNumber) {
        self.end = end;
        self.gaps.retain(|gap| gap.from < end);
        if let Some(last) = self.gaps.last_mut() {
            last.to = last.to.min(end);
        }
    }

    /// The first recent run that ends after `from`, when `from` is not before all of them.
    pub(crate) fn recent_at(&self, from: SequenceNumber) -> Option<usize> {
        let first = self.recent.front()?;
        if from < first.base && self.before_recent != 0 {
            return None;
        }
        Some(self.recent.partition_point(|run| run.end <= from))
    }

    /// The first number in `from..to` that is neither in a recorded jump nor known to be empty:
    /// with no run for it, acknowledged data is hidden there.
    pub(crate) fn lost_between(
        &self,
        from: SequenceNumber,
        to: SequenceNumber,
    ) -> Option<SequenceNumber> {
        uncovered(&self.gaps, from, to)
    }

    /// The first number in `from..to` that is in no recorded gap, of either kind.
    pub(crate) fn unexplained(
        &self,
        from: SequenceNumber,
        to: SequenceNumber,
    ) -> Option<SequenceNumber> {
        let mut at = from;
        for gap in &self.gaps {
            if gap.from <= at && at < gap.to {
                at = gap.to;
            }
        }
        (at < to).then_some(at)
    }

    /// Whether something that is kept may lie before `upper`. Not when all numbers there are in
    /// recorded jumps.
    pub(crate) fn may_hold_before(&self, upper: SequenceNumber) -> bool {
        self.lost_between(self.horizon, upper).is_some()
    }

    /// Where to begin walking back to the run that holds `from`, or the next after it.
    pub(crate) fn cold_start(&self, from: SequenceNumber) -> ColdStart {
        self.cold_start_below(self.marks.partition_point(|mark| mark.base <= from))
    }

    fn cold_start_below(&self, above: usize) -> ColdStart {
        let oldest_recent = self.recent.front().map_or(u64::MAX, |run| run.segment);
        // The segment of a mark below the horizon may be gone.
        let live = self.marks.partition_point(|mark| mark.base < self.horizon);
        match self.marks.get(above.max(live)) {
            Some(mark) if mark.segment < oldest_recent => ColdStart {
                from_segment: mark.previous,
                next_segment: mark.segment,
                upper: mark.base,
            },
            _ => ColdStart {
                from_segment: self.before_recent,
                next_segment: 0,
                upper: self.recent.front().map_or(self.end, |run| run.base),
            },
        }
    }

    /// Where the first batch lies that arrived at or after `at`. Numbers that damage hides at the
    /// end were given out before the log was `opened`.
    pub(crate) fn place_of_time(&self, at: Timestamp, opened: Timestamp) -> TimePlace {
        if self.horizon >= self.end {
            return TimePlace::AllOlder;
        }
        let place = self.recent.partition_point(|run| run.last_arrival < at);
        let before = place.checked_sub(1).and_then(|at| self.recent.get(at));
        match (before, self.recent.get(place)) {
            (Some(before), Some(run)) => {
                let from = before.end.max(self.horizon);
                match self.lost_between(from, run.base) {
                    Some(missing) => TimePlace::At(missing),
                    None => TimePlace::In(*run),
                }
            }
            (None, Some(run)) if !self.may_hold_before(run.base) => TimePlace::In(*run),
            (None, _) if self.last_arrival >= at => {
                let above = self.marks.partition_point(|mark| mark.arrival < at);
                TimePlace::Cold(self.cold_start_below(above))
            }
            (before, _) => {
                let from = before.map_or(self.horizon, |before| before.end.max(self.horizon));
                let hidden = self.gaps.last().filter(|gap| gap.lost && gap.from >= from);
                match hidden {
                    Some(hidden) if at <= opened => TimePlace::At(hidden.from),
                    _ => TimePlace::AllOlder,
                }
            }
        }
    }

    /// Drops the runs of `segment` from memory; its footer has them. Segments are dropped oldest
    /// first. Returns how many there were.
    pub(crate) fn release(&mut self, segment: u64) -> usize {
        let count = self.recent.partition_point(|run| run.segment <= segment);
        if count > 0 {
            self.before_recent = segment;
            self.recent.drain(..count);
        }
        count
    }
}

/// One shard.
#[derive(Debug)]
pub(crate) struct ShardCell {
    pub(crate) shard: ShardId,
    state: Mutex<ShardState>,
}

impl ShardCell {
    pub(crate) fn new(standing: &ShardStanding) -> Arc<Self> {
        Arc::new(Self {
            shard: standing.shard,
            state: Mutex::new(ShardState::new(standing)),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, ShardState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Spreads shard numbers: streams count in the upper half, shards in the lower one.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct ShardHasher(u64);

impl Hasher for ShardHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, word: u64) {
        let mixed = (self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }
}

/// A map by shard number.
pub(crate) type ShardMap<V> = HashMap<ShardId, V, BuildHasherDefault<ShardHasher>>;

/// The shards of a log.
#[derive(Debug, Default)]
pub(crate) struct Index {
    shards: RwLock<ShardMap<Arc<ShardCell>>>,
}

impl Index {
    pub(crate) fn get(&self, shard: ShardId) -> Option<Arc<ShardCell>> {
        let shards = self.shards.read().unwrap_or_else(PoisonError::into_inner);
        shards.get(&shard).map(Arc::clone)
    }

    pub(crate) fn insert(&self, cell: Arc<ShardCell>) {
        let mut shards = self.shards.write().unwrap_or_else(PoisonError::into_inner);
        shards.insert(cell.shard, cell);
    }

    pub(crate) fn remove(&self, shard: ShardId) {
        let mut shards = self.shards.write().unwrap_or_else(PoisonError::into_inner);
        shards.remove(&shard);
    }

    /// All shards, in no order.
    pub(crate) fn all(&self) -> Vec<Arc<ShardCell>> {
        let shards = self.shards.read().unwrap_or_else(PoisonError::into_inner);
        shards.values().map(Arc::clone).collect()
    }
}
