//! The lane's last rounds: everything that waits is written and saved, and the log closed in order.

use std::sync::atomic::Ordering;

use super::{OPEN, Worker};
use crate::Error;
use crate::lane::background::run_snapshot;

impl Worker {
    /// Writes everything that waits, saves, and closes the log.
    pub(super) fn close(&mut self) {
        while self.sync_running {
            self.lane.take(None, &mut self.controls, Some(None));
            self.work();
        }
        let (submissions, controls) = self.lane.close_queue();
        self.controls.extend(controls);
        self.inbox.extend(submissions);
        self.work();
        while self.can_write_round() {
            self.work();
        }
        self.sync_here();
        self.background.finish();
        let result = self.save_and_close();
        if let Some(done) = self.shutdown.take() {
            let _ = done.send(result);
        }
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
            return Err(Error::Poisoned);
        }
        let now = self.context.clock.now();
        log.know_catalog(self.context.catalog_record.load(Ordering::Acquire));
        run_snapshot(log.snapshot(self.desk.states(), now));
        log.close(now).map_err(|error| {
            tracing::error!(lane = %self.lane.label(), %error, "the log was not closed in order");
            Error::Poisoned
        })
    }
}
