//! What the writer, the readers and the housekeeper of one log share.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use flumen_record::{Durability, SequenceNumber, ShardId, Timestamp};

use crate::config::{LogConfig, LogKey};
use crate::error::{Gone, WriteError};
use crate::footer_cache::FooterCache;
use crate::index::Index;
use crate::log::LogStats;
use crate::segment::Segment;
use crate::storage::Storage;
use crate::work::Work;

/// Adds up what happened; read for metrics.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) rounds: AtomicU64,
    pub(crate) round_bytes: AtomicU64,
    pub(crate) syncs: AtomicU64,
    pub(crate) failed_syncs: AtomicU64,
    pub(crate) segments_prepared: AtomicU64,
    pub(crate) segments_recycled: AtomicU64,
    pub(crate) segments_unprepared: AtomicU64,
    pub(crate) segments_copied: AtomicU64,
    pub(crate) pinned_bytes: AtomicU64,
    pub(crate) quarantined: AtomicU64,
    pub(crate) indexes_rebuilt: AtomicU64,
}

/// What became reclaimable since the log was opened.
#[derive(Debug, Default)]
pub(crate) struct Trimmed {
    /// Stored bytes below durable horizons, about.
    pub(crate) bytes: AtomicU64,
    /// Shards durably forgotten.
    pub(crate) shards: AtomicU64,
}

/// Adds to a counter.
pub(crate) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// How long ago `since` was. A wall clock that went back makes it very long ago: what waits for a
/// time is done too early once, not too late.
pub(crate) fn elapsed(since: Timestamp, now: Timestamp) -> Duration {
    if now < since {
        return Duration::MAX;
    }
    now.since(since)
}

/// A range that is known to be damaged, for naming the file in errors.
#[derive(Debug, Clone)]
pub(crate) struct DamagedRange {
    pub(crate) shard: ShardId,
    pub(crate) from: SequenceNumber,
    pub(crate) to: SequenceNumber,
    pub(crate) segment: String,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) key: LogKey,
    /// The log's folder in the data directory.
    pub(crate) dir: String,
    pub(crate) config: LogConfig,
    /// When the log was opened: what was lost before arrived before.
    pub(crate) opened: Timestamp,
    pub(crate) index: Index,
    segments: RwLock<BTreeMap<u64, Arc<Segment>>>,
    pub(crate) footers: FooterCache,
    pub(crate) work: Work,
    pub(crate) counters: Counters,
    /// Bytes of the log this process has written: how far back the hot window reaches.
    pub(crate) written: AtomicU64,
    pub(crate) durable_round: AtomicU64,
    /// The highest epoch of which a round is durable.
    pub(crate) epoch: AtomicU32,
    /// Why the log did not open: then nothing of it is served.
    pub(crate) refusal: Option<String>,
    /// The last round that a durable round names durable: what the next open knows for sure.
    pub(crate) vouched_round: AtomicU64,
    pub(crate) poisoned: AtomicBool,
    /// When it was last looked whether the data directory is where it was, in microseconds.
    looked_at: AtomicU64,
    /// The writer should roll, so that the active segment can be reclaimed.
    pub(crate) roll: AtomicBool,
    pub(crate) free_bytes: AtomicU64,
    pub(crate) total_bytes: AtomicU64,
    /// What was durably trimmed so far: says whether looking for dead segments is worth while.
    pub(crate) trimmed: Trimmed,
    /// Where the log ended some time ago, in [`Shared::written`]: what is older is not hot,
    /// however little was written since.
    pub(crate) hot_from: AtomicU64,
    /// Forgotten shards whose forgetting is not durable yet: their runs are still live.
    forgetting: Mutex<HashSet<ShardId>>,
    pub(crate) damaged: Mutex<Vec<DamagedRange>>,
    /// Held while an index is gathered again from frames: one at a time.
    pub(crate) mending: Mutex<()>,
}

impl Shared {
    pub(crate) fn new(
        storage: Arc<dyn Storage>,
        key: LogKey,
        config: LogConfig,
        opened: Timestamp,
    ) -> Self {
        Self {
            storage,
            key,
            dir: key.dir_name(),
            config,
            opened,
            index: Index::default(),
            segments: RwLock::default(),
            footers: FooterCache::default(),
            work: Work::default(),
            counters: Counters::default(),
            written: AtomicU64::new(0),
            durable_round: AtomicU64::new(0),
            epoch: AtomicU32::new(0),
            refusal: None,
            vouched_round: AtomicU64::new(0),
            poisoned: AtomicBool::new(false),
            looked_at: AtomicU64::new(0),
            roll: AtomicBool::new(false),
            free_bytes: AtomicU64::new(u64::MAX),
            total_bytes: AtomicU64::new(0),
            trimmed: Trimmed::default(),
            hot_from: AtomicU64::new(0),
            forgetting: Mutex::default(),
            damaged: Mutex::default(),
            mending: Mutex::default(),
        }
    }

    /// Whether records are readable, and acknowledged, before they are synced.
    pub(crate) fn is_memory(&self) -> bool {
        self.key.durability == Durability::Memory
    }

    pub(crate) fn path(&self, file_name: &str) -> String {
        format!("{}/{file_name}", self.dir)
    }

    pub(crate) fn segment(&self, id: u64) -> Option<Arc<Segment>> {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        segments.get(&id).map(Arc::clone)
    }

    /// The newest segment's id.
    pub(crate) fn last_segment_id(&self) -> Option<u64> {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        segments.last_key_value().map(|(id, _)| *id)
    }

    /// The newest segment older than `id`; 0 when there is none.
    pub(crate) fn segment_before(&self, id: u64) -> u64 {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        segments.range(..id).next_back().map_or(0, |(id, _)| *id)
    }

    /// The oldest segment newer than `id`.
    pub(crate) fn segment_after(&self, id: u64) -> Option<Arc<Segment>> {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        let newer = segments.range(id.saturating_add(1)..);
        newer.map(|(_, segment)| Arc::clone(segment)).next()
    }

    /// All segments, ascending.
    pub(crate) fn all_segments(&self) -> Vec<Arc<Segment>> {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        segments.values().map(Arc::clone).collect()
    }

    /// Adds a segment, or replaces an older generation, which is returned.
    pub(crate) fn insert_segment(&self, segment: Arc<Segment>) -> Option<Arc<Segment>> {
        let mut segments = self
            .segments
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        segments.insert(segment.id(), segment)
    }

    pub(crate) fn remove_segment(&self, id: u64) -> Option<Arc<Segment>> {
        let mut segments = self
            .segments
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        segments.remove(&id)
    }

    pub(crate) fn forgetting(&self) -> MutexGuard<'_, HashSet<ShardId>> {
        self.forgetting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn damaged(&self) -> MutexGuard<'_, Vec<DamagedRange>> {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Acquire)
    }

    pub(crate) fn refuse_when_poisoned(&self) -> Result<(), WriteError> {
        if !self.is_poisoned() {
            return Ok(());
        }
        let gone = self.storage.gone();
        Err(gone.map_or(WriteError::Poisoned, WriteError::Gone))
    }

    pub(crate) fn durable_round(&self) -> u64 {
        self.durable_round.load(Ordering::Acquire)
    }

    /// Looks at the file system again.
    pub(crate) fn refresh_space(&self) {
        if let Ok(space) = self.storage.space() {
            self.free_bytes.store(space.free_bytes, Ordering::Relaxed);
            self.total_bytes.store(space.total_bytes, Ordering::Relaxed);
        }
    }

    pub(crate) fn free_bytes(&self) -> u64 {
        self.free_bytes.load(Ordering::Relaxed)
    }

    /// Below this much free space appends are refused. What the node itself remembers is not.
    pub(crate) fn floor_bytes(&self) -> u64 {
        if !self.key.holds_records() {
            return 0;
        }
        self.config
            .floor_bytes(self.total_bytes.load(Ordering::Relaxed))
    }

    /// Looks whether the data directory is where it was, unless it was looked a moment ago. A log of
    /// a directory that is gone is poisoned.
    pub(crate) fn look_when_due(&self, now: Timestamp) -> Result<(), Gone> {
        let interval = Duration::from_millis(self.config.place_look_ms);
        let last = Timestamp::from_micros(self.looked_at.load(Ordering::Relaxed));
        if interval.is_zero() {
            return Ok(());
        }
        if elapsed(last, now) >= interval {
            self.look()?;
            self.looked_at.store(now.as_micros(), Ordering::Relaxed);
        }
        match self.storage.gone() {
            None => Ok(()),
            Some(gone) => Err(self.lose(gone)),
        }
    }

    /// Looks whether the names of the data directory and of the newest segment still lead to what is
    /// open here: a descriptor goes on working when they do not.
    pub(crate) fn look(&self) -> Result<(), Gone> {
        let newest = || self.last_segment_id().and_then(|id| self.segment(id));
        let mut segment = newest();
        loop {
            let path = segment.as_ref().map_or("", |segment| &*segment.path);
            let Err(gone) = self.storage.look(path) else {
                return Ok(());
            };
            // It may have left the log meanwhile, and was removed by ourselves.
            let again = newest();
            let id = |segment: &Option<Arc<Segment>>| segment.as_ref().map(|segment| segment.id());
            if id(&again) == id(&segment) {
                return Err(self.lose(gone));
            }
            segment = again;
        }
    }

    pub(crate) fn lose(&self, gone: Gone) -> Gone {
        if !self.poisoned.swap(true, Ordering::AcqRel) {
            tracing::error!(log = %self.dir, %gone, "log: poisoned, nothing is written any more");
        }
        self.storage.lose(gone.clone());
        gone
    }

    /// Bytes of the files of all segments.
    pub(crate) fn file_bytes(&self) -> u64 {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        segments.values().map(|segment| segment.file.bytes()).sum()
    }

    pub(crate) fn stats(&self) -> LogStats {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let segments = self.all_segments();
        LogStats {
            rounds: value(&self.counters.rounds),
            round_bytes: value(&self.counters.round_bytes),
            syncs: value(&self.counters.syncs),
            failed_syncs: value(&self.counters.failed_syncs),
            segments_prepared: value(&self.counters.segments_prepared),
            segments_recycled: value(&self.counters.segments_recycled),
            segments_unprepared: value(&self.counters.segments_unprepared),
            segments_copied: value(&self.counters.segments_copied),
            segments: segments.len() as u64,
            file_bytes: segments.iter().map(|segment| segment.file.bytes()).sum(),
            pinned_bytes: value(&self.counters.pinned_bytes),
            quarantined: value(&self.counters.quarantined),
            indexes_rebuilt: value(&self.counters.indexes_rebuilt),
            poisoned: u64::from(self.is_poisoned()),
        }
    }
}
