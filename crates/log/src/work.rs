//! What the writer leaves for the housekeeper, and the segments the housekeeper has ready.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use flumen_world::{Wake, lock};

use crate::control::Control;
use crate::footer::FooterSummary;
use crate::index::ShardCell;
use crate::segment::{Segment, SegmentName};
use crate::storage::SegmentFile;

/// A shard that has runs in a segment.
#[derive(Debug, Clone)]
pub(crate) struct Touched {
    pub(crate) cell: Arc<ShardCell>,
    /// The segment before it that holds the shard; 0 when none does.
    pub(crate) previous: u64,
}

/// A segment that is full and wants its footer.
#[derive(Debug, Clone)]
pub(crate) struct Sealing {
    pub(crate) segment: Arc<Segment>,
    pub(crate) summary: FooterSummary,
    pub(crate) touched: Vec<Touched>,
    pub(crate) controls: Vec<Control>,
}

/// A file with real blocks and no header, its name durable.
#[derive(Debug, Clone)]
pub(crate) struct PreparedFile {
    pub(crate) name: SegmentName,
    pub(crate) path: String,
    pub(crate) file: Arc<dyn SegmentFile>,
}

/// The state behind the lock.
#[derive(Debug, Default)]
pub(crate) struct WorkState {
    pub(crate) sealing: VecDeque<Sealing>,
    /// Ascending by id.
    pub(crate) pool: VecDeque<PreparedFile>,
    /// Files that were prepared and cannot be used any more.
    pub(crate) discarded: Vec<PreparedFile>,
    /// Files of the log's past, to be unlinked once a later header is on disk.
    pub(crate) superseded: Vec<PreparedFile>,
    /// Failed segments that hold nothing durable: to be unlinked.
    pub(crate) doomed: Vec<Arc<Segment>>,
    /// Ids are given out once.
    pub(crate) next_segment: u64,
    /// The last segment whose header was written.
    pub(crate) last_used: u64,
    /// Size of the segment wanted next.
    pub(crate) next_bytes: u64,
    /// How many prepared segments the writer wants.
    pub(crate) wanted: usize,
    /// Something may have become reclaimable.
    pub(crate) reclaim: bool,
    /// The log is gone: nobody asks for anything any more.
    pub(crate) closed: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Work {
    state: Mutex<WorkState>,
    /// Wakes the housekeeper's loop, once there is one.
    pub(crate) bell: OnceLock<Wake>,
    /// Wakes the writer's loop, once there is one.
    pub(crate) writer: OnceLock<Wake>,
    /// The housekeeper has nothing to do before something is written.
    pub(crate) resting: AtomicBool,
}

impl Work {
    pub(crate) fn lock(&self) -> MutexGuard<'_, WorkState> {
        lock(&self.state)
    }

    /// Wakes the housekeeper: what is in the state is for it.
    pub(crate) fn wake(&self, state: MutexGuard<'_, WorkState>) {
        drop(state);
        self.ring();
    }

    /// Wakes the housekeeper.
    pub(crate) fn ring(&self) {
        if let Some(bell) = self.bell.get() {
            bell.wake();
        }
    }

    /// Wakes the housekeeper if it rests: something was written, or became durable. One that does not
    /// rest looks by itself.
    pub(crate) fn stir(&self) {
        fence(Ordering::SeqCst);
        if self.resting.load(Ordering::SeqCst) && self.resting.swap(false, Ordering::SeqCst) {
            self.ring();
        }
    }
}

impl WorkState {
    /// An id for a new segment; ids rise and are never given out twice.
    pub(crate) fn take_id(&mut self) -> u64 {
        self.next_segment += 1;
        self.next_segment
    }

    /// Takes the next prepared file of at least `bytes`. Smaller ones are given up: ids rise.
    pub(crate) fn take_prepared(&mut self, bytes: u64) -> Option<PreparedFile> {
        while let Some(prepared) = self.pool.pop_front() {
            if prepared.file.bytes() >= bytes && prepared.name.segment > self.last_used {
                return Some(prepared);
            }
            self.discarded.push(prepared);
        }
        None
    }

    /// Puts a file that is ready into the pool, unless a later one is already in use.
    pub(crate) fn put_prepared(&mut self, prepared: PreparedFile) {
        let newest = self
            .pool
            .back()
            .map_or(self.last_used, |file| file.name.segment);
        if prepared.name.segment > newest.max(self.last_used) {
            self.pool.push_back(prepared);
        } else {
            self.discarded.push(prepared);
        }
    }
}
