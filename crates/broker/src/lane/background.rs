//! The loop beside a lane that runs what would hold the lane up: background syncs of a `memory` log,
//! and writing snapshots. Started when it is first needed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, Weak};

use flumen_log::{SnapshotJob, SyncJob};
use flumen_world::{Running, Turn, World, lock};

use super::{Control, Lane};

#[derive(Debug)]
enum Job {
    Sync(SyncJob),
    Snapshot(SnapshotJob),
}

/// The lane's side of it.
#[derive(Debug)]
pub(super) struct Background {
    world: Arc<dyn World>,
    label: String,
    jobs: Arc<Jobs>,
    running: Option<Running>,
}

/// What is to be done. One sync and one snapshot at a time: the lane asks for no more.
#[derive(Debug)]
struct Jobs {
    lane: Weak<Lane>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Job>,
    /// One has been taken from the queue and is not done.
    running: bool,
    ended: bool,
}

impl Background {
    pub(super) fn new(lane: Weak<Lane>, label: String, world: Arc<dyn World>) -> Self {
        Self {
            world,
            label,
            jobs: Arc::new(Jobs {
                lane,
                state: Mutex::default(),
            }),
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
        if self.running.is_none() {
            let jobs = Arc::clone(&self.jobs);
            let name = format!("sync-{}", self.label);
            let turn = Box::new(move |_| jobs.turn());
            match Running::start(&*self.world, &name, turn) {
                Ok(running) => self.running = Some(running),
                Err(error) => {
                    tracing::warn!(%error, "the lane does it itself");
                    return self.jobs.run(job);
                }
            }
        }
        lock(&self.jobs.state).queue.push_back(job);
        if let Some(running) = &self.running {
            running.wake().wake();
        }
    }

    /// Whether something that was asked for is not done. Its end wakes the lane.
    pub(super) fn is_busy(&self) -> bool {
        let state = lock(&self.jobs.state);
        state.running || !state.queue.is_empty()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        lock(&self.jobs.state).ended = true;
        if let Some(running) = &self.running {
            running.wake().wake();
        }
    }
}

impl Jobs {
    fn turn(&self) -> Turn {
        let job = {
            let mut state = lock(&self.state);
            let job = state.queue.pop_front();
            state.running = job.is_some();
            match (&job, state.ended) {
                (None, true) => return Turn::Ended,
                (None, false) => return Turn::Wait(None),
                (Some(_), _) => job,
            }
        };
        let _done = Done(self);
        job.into_iter().for_each(|job| self.run(job));
        Turn::Again
    }

    fn run(&self, job: Job) {
        match job {
            Job::Sync(job) => {
                let done = job.run();
                if let Some(lane) = self.lane.upgrade() {
                    lane.send(Control::Synced(done));
                }
            }
            Job::Snapshot(job) => run_snapshot(job),
        }
    }
}

/// However a job ends, the lane does not wait for it any more.
struct Done<'a>(&'a Jobs);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).running = false;
        if let Some(lane) = self.0.lane.upgrade() {
            lane.wake();
        }
    }
}

/// Writes a snapshot here and now.
pub(super) fn run_snapshot(job: SnapshotJob) {
    if let Err(error) = job.run() {
        tracing::warn!(%error, "a node snapshot was not written; the next start reads more");
    }
}
