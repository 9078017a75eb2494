//! How long what was written stays hot: the page cache forgets what nobody wrote or read lately.

use std::sync::atomic::Ordering;
use std::time::Duration;

use flumen_record::Timestamp;

use crate::shared::{Shared, elapsed};

/// Remembers where the log ended at two points in time, one window apart at most.
#[derive(Debug, Default)]
pub(super) struct HotClock {
    at: Timestamp,
    written: u64,
}

impl HotClock {
    /// Moves the beginning of what is hot. A log whose housekeeper rests keeps everything hot that
    /// is near enough in bytes.
    pub(super) fn tick(&mut self, shared: &Shared, now: Timestamp) {
        let half = Duration::from_millis(shared.config.hot_window_ms / 2);
        if elapsed(self.at, now) < half {
            return;
        }
        // What was written before the last tick but one is half a window old at least, and a whole
        // one at most when it leaves.
        shared.hot_from.store(self.written, Ordering::Relaxed);
        self.at = now;
        self.written = shared.written.load(Ordering::Relaxed);
    }

    /// In how long the beginning moves again, if nothing is written; `None`: it has come to the end.
    pub(super) fn due(&self, shared: &Shared, now: Timestamp) -> Option<Duration> {
        let half = Duration::from_millis(shared.config.hot_window_ms / 2);
        let end = shared.written.load(Ordering::Relaxed);
        (shared.hot_from.load(Ordering::Relaxed) < end)
            .then(|| half.saturating_sub(elapsed(self.at, now)))
    }
}
