//! Which segments wait to be copied, and how fast: as fast as segments become half dead, and no faster
//! than the disk can bear beside the log's own rounds.

use std::collections::VecDeque;
use std::time::Duration;

use flumen_record::Timestamp;

use crate::shared::elapsed;

/// Segments that wait at most; the next sweep finds the others again.
const WAITING_MAX: usize = 1024;
/// Bytes read and written for copies per second, however slowly the log is written.
const RATE_MIN: u64 = 64 << 20;
/// A log that is written at some rate needs no more than three times that: a copy costs less than one
/// and a half times the segment, and frees more than half of it.
const RATE_FACTOR: u64 = 4;
/// The disk may be left alone this long, to be made up for afterwards.
const BURST: Duration = Duration::from_secs(1);

/// How fast a log that is written at `written` bytes per second is copied.
pub(super) fn rate(written: u64) -> u64 {
    RATE_MIN.max(written.saturating_mul(RATE_FACTOR))
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Copies {
    /// The deadest first.
    waiting: VecDeque<u64>,
    /// Bytes that were copied and not made up for by waiting yet; up to a burst ahead of time.
    owed: u64,
    at: Timestamp,
}

impl Copies {
    /// Takes the segments that a sweep found worth it, with how much of each is live.
    pub(super) fn plan(&mut self, mut worth: Vec<(u64, u64)>) {
        worth.sort_unstable();
        worth.truncate(WAITING_MAX);
        self.waiting = worth.into_iter().map(|(_, id)| id).collect();
    }

    pub(super) fn are_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The one to copy now; `rate` is in bytes per second, `None`: as fast as it goes.
    pub(super) fn next(&mut self, now: Timestamp, rate: Option<u64>) -> Option<u64> {
        let passed = elapsed(self.at, now).min(Duration::from_secs(3600));
        self.at = now;
        let Some(rate) = rate else {
            self.owed = 0;
            return self.waiting.pop_front();
        };
        let over = |time: Duration| {
            let bytes = u128::from(rate) * time.as_millis() / 1000;
            u64::try_from(bytes).unwrap_or(u64::MAX)
        };
        self.owed = self.owed.saturating_sub(over(passed));
        if self.owed > over(BURST) {
            return None;
        }
        self.waiting.pop_front()
    }

    /// Accounts for a copy.
    pub(super) fn spend(&mut self, bytes: u64) {
        self.owed = self.owed.saturating_add(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_micros(1_000_000_000 + millis * 1000)
    }

    #[test]
    fn the_deadest_goes_first_and_the_disk_gets_its_rest() {
        let mut copies = Copies::default();
        copies.plan(vec![(300, 1), (100, 2), (200, 3), (400, 4)]);
        let rate = Some(10 << 20);
        assert_eq!(copies.next(at(0), rate), Some(2));
        copies.spend(8 << 20);
        assert_eq!(copies.next(at(0), rate), Some(3));
        copies.spend(8 << 20);
        // More than a second's worth is owed.
        assert_eq!(copies.next(at(0), rate), None);
        assert_eq!(copies.next(at(500), rate), None);
        assert_eq!(copies.next(at(700), rate), Some(1));
        copies.spend(80 << 20);
        assert_eq!(copies.next(at(2000), rate), None);
        // Below the floor nothing waits.
        assert_eq!(copies.next(at(2000), None), Some(4));
        assert_eq!(copies.next(at(2000), None), None);
    }

    #[test]
    fn a_busy_log_is_copied_faster() {
        assert_eq!(rate(0), 64 << 20);
        assert_eq!(rate(19 << 20), 76 << 20);
        assert_eq!(rate(u64::MAX), u64::MAX);
    }
}
