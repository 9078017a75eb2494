//! Where a shard's readable records end, and who waits for more.
//!
//! The lane stores the end once per round and touched shard. A reader that has caught up *arms* the
//! tail and looks at the end again; the lane takes armed readers off as it wakes them. So a reader
//! that is behind is nobody's business, and one that waits for a thousand shards is woken once.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use flumen_record::SequenceNumber;

use crate::load::Load;
use flumen_world::lock;

/// One shard's readable end.
#[derive(Debug)]
pub(crate) struct Tail {
    end: AtomicU64,
    /// Whether `watchers` may hold something; stored with the end in one total order, so that
    /// either the lane sees the watcher or the watcher sees the new end.
    armed: AtomicBool,
    watchers: Mutex<Vec<Watcher>>,
    /// What came, which the lane notes as well.
    pub(crate) load: Load,
}

#[derive(Debug)]
struct Watcher {
    ready: Arc<ReadySet>,
    token: u32,
}

impl Tail {
    /// A tail that ends at `end`.
    pub(crate) fn new(end: SequenceNumber) -> Self {
        Self {
            end: AtomicU64::new(end.value()),
            armed: AtomicBool::new(false),
            watchers: Mutex::new(Vec::new()),
            load: Load::default(),
        }
    }

    /// First sequence number readers may not see yet.
    pub(crate) fn end(&self) -> SequenceNumber {
        SequenceNumber::new(self.end.load(Ordering::SeqCst))
    }

    /// Moves the end up; whoever is to be woken is added to `wakers`.
    pub(crate) fn advance(&self, end: SequenceNumber, wakers: &mut Vec<Waker>) {
        self.end.store(end.value(), Ordering::SeqCst);
        self.stir(wakers);
    }

    /// Makes everyone who waits look again: the shard was closed or deleted, or the node drains.
    pub(crate) fn stir(&self, wakers: &mut Vec<Waker>) {
        if self.armed.load(Ordering::SeqCst) {
            let mut watchers = lock(&self.watchers);
            self.armed.store(false, Ordering::SeqCst);
            for watcher in watchers.drain(..) {
                wakers.extend(watcher.ready.mark(watcher.token));
            }
        }
    }

    /// Asks for `token` to be marked in `ready`, once, when something happens after this call. The
    /// caller looks at the end once more before it waits, and does not ask again before it is marked.
    pub(crate) fn arm(&self, ready: &Arc<ReadySet>, token: u32) {
        let mut watchers = lock(&self.watchers);
        watchers.push(Watcher {
            ready: Arc::clone(ready),
            token,
        });
        self.armed.store(true, Ordering::SeqCst);
    }

    /// Forgets whatever `ready` asked for.
    pub(crate) fn disarm(&self, ready: &Arc<ReadySet>) {
        lock(&self.watchers).retain(|watcher| !Arc::ptr_eq(&watcher.ready, ready));
    }
}

/// What became ready for one reader of many shards.
#[derive(Debug, Default)]
pub(crate) struct ReadySet {
    state: Mutex<Ready>,
}

#[derive(Debug, Default)]
struct Ready {
    tokens: Vec<u32>,
    waker: Option<Waker>,
}

impl ReadySet {
    /// Marks one; the waker of who waits, once.
    #[must_use]
    pub(crate) fn mark(&self, token: u32) -> Option<Waker> {
        let mut state = lock(&self.state);
        state.tokens.push(token);
        state.waker.take()
    }

    /// Moves what is marked into `into`; pending when there is nothing.
    pub(crate) fn poll(&self, cx: &mut Context<'_>, into: &mut Vec<u32>) -> Poll<()> {
        let mut state = lock(&self.state);
        if state.tokens.is_empty() {
            match &mut state.waker {
                Some(waker) => waker.clone_from(cx.waker()),
                waker => *waker = Some(cx.waker().clone()),
            }
            return Poll::Pending;
        }
        into.append(&mut state.tokens);
        Poll::Ready(())
    }

    /// Moves what is marked into `into` and does not wait.
    pub(crate) fn take(&self, into: &mut Vec<u32>) {
        into.append(&mut lock(&self.state).tokens);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(value: u64) -> SequenceNumber {
        SequenceNumber::new(value)
    }

    #[test]
    fn marks_armed_readers_once() {
        let (one, other) = (Tail::new(number(0)), Tail::new(number(5)));
        let ready = Arc::new(ReadySet::default());
        one.arm(&ready, 1);
        other.arm(&ready, 2);
        let mut wakers = Vec::new();
        one.advance(number(3), &mut wakers);
        one.advance(number(4), &mut wakers);
        other.stir(&mut wakers);
        let mut found = Vec::new();
        ready.take(&mut found);
        assert_eq!(found, [1, 2]);
        assert_eq!((one.end(), other.end()), (number(4), number(5)));
    }

    #[test]
    fn wakes_a_waiting_reader_once_per_round() {
        let tail = Tail::new(number(0));
        let ready = Arc::new(ReadySet::default());
        tail.arm(&ready, 0);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(ready.poll(&mut cx, &mut Vec::new()).is_pending());
        let mut wakers = Vec::new();
        tail.advance(number(1), &mut wakers);
        tail.arm(&ready, 0);
        tail.advance(number(2), &mut wakers);
        assert_eq!(wakers.len(), 1);
    }

    /// Long polls on a shard where nothing happens must not pile up in it.
    #[test]
    fn a_reader_that_leaves_is_forgotten() {
        let tail = Tail::new(number(0));
        for _ in 0..3 {
            let ready = Arc::new(ReadySet::default());
            tail.arm(&ready, 0);
            tail.disarm(&ready);
        }
        assert!(lock(&tail.watchers).is_empty());
    }
}
