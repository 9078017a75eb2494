//! The thread beside a lane that runs what would hold the lane up: background syncs of a `memory`
//! log, and writing snapshots. Started when it is first needed.

use std::sync::Weak;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use flumen_log::{SnapshotJob, SyncJob};

use super::{Control, Lane};

#[derive(Debug)]
enum Job {
    Sync(SyncJob),
    Snapshot(SnapshotJob),
}

/// The lane's side of it.
#[derive(Debug)]
pub(super) struct Background {
    lane: Weak<Lane>,
    label: String,
    running: Option<(SyncSender<Job>, JoinHandle<()>)>,
}

impl Background {
    pub(super) fn new(lane: Weak<Lane>, label: String) -> Self {
        Self {
            lane,
            label,
            running: None,
        }
    }

    /// Runs a sync; its result comes back as [`Control::Synced`].
    pub(super) fn sync(&mut self, job: SyncJob) {
        self.run(Job::Sync(job));
    }

    /// Writes a snapshot. A failure is logged: the next one is due soon, and none is needed.
    pub(super) fn snapshot(&mut self, job: SnapshotJob) {
        self.run(Job::Snapshot(job));
    }

    fn run(&mut self, job: Job) {
        let (sender, _) = self.running.get_or_insert_with(|| {
            // One sync and one snapshot at a time: the lane never waits here.
            let (sender, receiver) = sync_channel(4);
            let lane = Weak::clone(&self.lane);
            let thread = thread::Builder::new()
                .name(format!("sync-{}", self.label))
                .spawn(move || run_jobs(&receiver, &lane))
                .expect("BUG: the system refuses a thread");
            (sender, thread)
        });
        sender
            .send(job)
            .expect("BUG: the background thread ended before its lane");
    }

    /// Waits until what was asked is done, and ends the thread.
    pub(super) fn finish(&mut self) {
        if let Some((sender, thread)) = self.running.take() {
            drop(sender);
            let _ = thread.join();
        }
    }
}

fn run_jobs(jobs: &Receiver<Job>, lane: &Weak<Lane>) {
    for job in jobs {
        match job {
            Job::Sync(job) => {
                let done = job.run();
                if let Some(lane) = lane.upgrade() {
                    lane.send(Control::Synced(done));
                }
            }
            Job::Snapshot(job) => run_snapshot(job),
        }
    }
}

/// Writes a snapshot here and now.
pub(super) fn run_snapshot(job: SnapshotJob) {
    if let Err(error) = job.run() {
        tracing::warn!(%error, "a node snapshot was not written; the next start reads more");
    }
}
