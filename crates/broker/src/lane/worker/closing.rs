//! The lane's last rounds: everything that waits is written and saved, and the log closed in order.

use std::sync::atomic::Ordering;

use flumen_world::Turn;

use super::{OPEN, Worker};
use crate::Error;
use crate::lane::background::run_snapshot;

/// How far closing has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closing {
    /// A background sync may be running: its end is waited for.
    Syncing,
    /// The queue is closed; what was in it is written.
    Writing,
    /// Everything is written; what the background has to do is waited for.
    Saving,
}

impl Worker {
    /// Writes everything that waits, saves, and closes the log, step by step.
    pub(super) fn close(&mut self, closing: Closing) -> Turn {
        let next = match closing {
            Closing::Syncing if self.sync_running => {
                let wait = !self.lane.take(None, &mut self.controls, true);
                self.work();
                return if wait { Turn::Wait(None) } else { Turn::Again };
            }
            Closing::Syncing => {
                let (submissions, controls) = self.lane.close_queue();
                self.controls.extend(controls);
                self.inbox.extend(submissions);
                self.work();
                Closing::Writing
            }
            Closing::Writing if self.can_write_round() => {
                self.work();
                Closing::Writing
            }
            Closing::Writing => {
                self.sync_here();
                Closing::Saving
            }
            // An older snapshot must not come after the last one.
            Closing::Saving if self.background.is_busy() => return Turn::Wait(None),
            Closing::Saving => {
                let result = self.save_and_close();
                if let Some(done) = self.shutdown.take() {
                    let _ = done.send(result);
                }
                return Turn::Ended;
            }
        };
        self.closing = Some(next);
        Turn::Again
    }

    /// Syncs what a `memory` log has written, without the background thread.
    fn sync_here(&mut self) {
        if self.lane.is_poisoned() {
            return;
        }
        let now = self.context.clock.now();
        let log = self.log.as_mut().expect(OPEN);
        if let Some(job) = log.begin_sync() {
            match log.finish_sync(job.run(), now) {
                Ok(_) => self.reached_disk(),
                Err(error) => self.poisoned_by(&error),
            }
        }
    }

    fn save_and_close(&mut self) -> Result<(), Error> {
        let mut log = self.log.take().expect(OPEN);
        if self.lane.is_poisoned() {
            return Err(self.lane.poisoned_by());
        }
        let now = self.context.clock.now();
        log.know_catalog(self.context.catalog_record.load(Ordering::Acquire));
        run_snapshot(log.snapshot(self.desk.states(), now));
        log.close(now).map_err(|error| {
            tracing::error!(lane = %self.lane.label(), %error, "the log was not closed in order");
            self.lane.poisoned_by()
        })
    }
}
