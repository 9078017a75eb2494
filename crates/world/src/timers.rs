//! Who sleeps on a manual clock.

use std::collections::BTreeMap;
use std::task::Waker;
use std::time::Duration;

/// Wakers by the time at which they are due, those of one time in the order in which they came.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    due: BTreeMap<(Duration, u64), Waker>,
    next: u64,
}

impl Timers {
    /// Keeps a waker until `at`; the number takes it back.
    pub(crate) fn add(&mut self, at: Duration, waker: Waker) -> u64 {
        self.next += 1;
        self.due.insert((at, self.next), waker);
        self.next
    }

    /// Replaces the waker that was kept under a number. `false`: it was due.
    pub(crate) fn replace(&mut self, at: Duration, number: u64, waker: &Waker) -> bool {
        match self.due.get_mut(&(at, number)) {
            Some(known) => {
                known.clone_from(waker);
                true
            }
            None => false,
        }
    }

    pub(crate) fn remove(&mut self, at: Duration, number: u64) {
        self.due.remove(&(at, number));
    }

    /// When the first one is due.
    pub(crate) fn first(&self) -> Option<Duration> {
        self.due.first_key_value().map(|((at, _), _)| *at)
    }

    /// Takes those that are due at `now`, in order.
    pub(crate) fn take_due(&mut self, now: Duration) -> Vec<Waker> {
        let mut due = Vec::new();
        while let Some(first) = self.due.first_entry()
            && first.key().0 <= now
        {
            due.push(first.remove());
        }
        due
    }
}
