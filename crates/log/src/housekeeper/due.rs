//! When the housekeeper has something to do again, without being woken.
//!
//! While the log is written it looks a few times a second: free space, what is hot. A log that rests
//! rests with its housekeeper: it is woken by the next round, and by nothing before that but a true
//! deadline.

use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use flumen_record::Timestamp;
use flumen_world::{Now, Turn, Wake};

use super::Housekeeper;
use crate::error::OpenError;
use crate::shared::Shared;

/// While the log is written, or space is short, it looks this often.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// Segments that readers hold are looked at this often.
const RETIRED_AGAIN: Duration = Duration::from_secs(5);
/// Whether there is room for another segment ahead is looked at this often while nothing is written.
const ROOM_AGAIN: Duration = Duration::from_secs(60);

/// Says to a log what wakes its writer's loop, when its housekeeper wants the active segment rolled
/// ([`crate::Log::idle_round_in`]).
#[derive(Debug)]
pub struct WriterBell {
    pub(crate) shared: std::sync::Arc<Shared>,
}

impl WriterBell {
    /// From now on the housekeeper wakes the writer by this. Once per log.
    pub fn set(&self, wake: Wake) {
        wake.wake();
        // A log has one writer.
        let _ = self.shared.work.writer.set(wake);
    }
}

/// Says to a log what wakes its housekeeper.
#[derive(Debug)]
pub struct Bell {
    pub(super) shared: std::sync::Arc<Shared>,
}

impl Bell {
    /// From now on the log wakes its housekeeper by this. Once per log.
    pub fn set(&self, wake: Wake) {
        wake.wake();
        // A second one would belong to a second housekeeper of the same log, which there is not.
        let _ = self.shared.work.bell.set(wake);
        self.shared.work.ring();
    }
}

impl Housekeeper {
    /// What connects the log to the loop that calls [`Housekeeper::turn`].
    pub fn bell(&self) -> Bell {
        Bell {
            shared: std::sync::Arc::clone(&self.shared),
        }
    }

    /// One bounded step, and when the next one is due. Ends once the log is closed. Blocks on the disk.
    pub fn turn(&mut self, now: Now) -> Result<Turn, OpenError> {
        if self.is_over() {
            return Ok(Turn::Ended);
        }
        if self.step(now.wall)?.more {
            return Ok(Turn::Again);
        }
        Ok(self.rest(now))
    }

    /// Whether the log is gone: nobody asks for anything any more.
    pub fn is_over(&self) -> bool {
        self.shared.work.lock().closed
    }

    fn rest(&mut self, now: Now) -> Turn {
        let work = &self.shared.work;
        work.resting.store(true, Ordering::SeqCst);
        // Either the writer sees that it rests, or it sees what was written.
        fence(Ordering::SeqCst);
        let written = self.shared.written.load(Ordering::SeqCst);
        let progress = (written, self.shared.durable_round());
        if std::mem::replace(&mut self.seen, progress) != progress {
            work.resting.store(false, Ordering::SeqCst);
            return Turn::Wait(Some(now.monotonic + LOOK_AGAIN));
        }
        let after = [
            self.files_due(),
            self.sweep_due(now.wall),
            self.hot.due(&self.shared, now.wall),
            self.verify_due(),
            (!self.retired.is_empty()).then_some(RETIRED_AGAIN),
        ];
        let after = after.into_iter().flatten().min();
        Turn::Wait(after.map(|after| now.monotonic.saturating_add(after)))
    }

    fn files_due(&self) -> Option<Duration> {
        if self.is_below_floor() {
            return Some(LOOK_AGAIN);
        }
        let work = self.shared.work.lock();
        if !work.discarded.is_empty() || !work.doomed.is_empty() {
            return Some(LOOK_AGAIN);
        }
        let lacks = work.pool.len() < work.wanted && !self.shared.is_poisoned();
        lacks.then_some(ROOM_AGAIN)
    }

    fn sweep_due(&self, now: Timestamp) -> Option<Duration> {
        if self.copies.are_waiting() {
            return Some(LOOK_AGAIN);
        }
        // Those that later segments have replaced are taken away once one of those is written, which
        // wakes it.
        if self.has_leftovers() || !self.shared.work.lock().reclaim {
            return None;
        }
        Some(self.sweep.due(now, self.is_below_floor(), self.growth()))
    }
}
