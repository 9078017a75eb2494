//! The seam.

use std::fmt;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use thiserror::Error;

use crate::clock::Now;
use crate::task::{BoxFuture, Task};

/// What a loop wants after one of its turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Another turn at once.
    Again,
    /// Another turn when it is woken, or when the clock's monotonic time
    /// ([`crate::Clock::monotonic`]) has reached this; `None`: only when it is woken.
    Wait(Option<Duration>),
    /// No turn any more.
    Ended,
}

/// One step of a loop, called again and again.
pub type TurnLoop = Box<dyn FnMut(Now) -> Turn + Send>;

/// What runs a node. Asked when something starts, never per record.
///
/// **Whoever implements it** promises:
/// - A turn, a task's poll and a job are never called from within a call to this trait, a [`Wake`] or
///   a waker: always later, so that they may be called under a lock.
/// - Turns of one loop follow each other; those of different loops, tasks and jobs may run at the same
///   time or in any order.
/// - A loop gets its first turn without being woken. A wake during a turn is followed by another turn;
///   several wakes before a turn are one. A turn may come without any reason.
/// - A loop, a task's future and a job are dropped, outside of a call to this trait, when they have
///   ended or panicked, or when the world itself ends: whoever waits for that ([`Running`], a channel
///   whose sender they own) learns it by the drop.
///
/// **Whoever uses it** promises: a turn and a job do not wait for anything but storage and short
/// locks, and hold no lock when they end; a task's poll waits for nothing at all. A turn waits by
/// [`Turn::Wait`] with the true time at which something is due.
pub trait World: fmt::Debug + Send + Sync {
    /// Starts a loop: a thread of that name in production.
    fn run(&self, name: &str, turn: TurnLoop) -> Result<Wake, SpawnError>;

    /// Starts a task. Dropping the handle leaves it running. [`Task::of`] makes the handle.
    fn task(&self, future: BoxFuture<'static, ()>) -> Task;

    /// Runs a job that may wait for the disk, whole, later: on a pool's thread in production. A job
    /// that will never run is dropped.
    fn blocking(&self, job: Box<dyn FnOnce() + Send>);

    /// A number by chance; in a simulation, by the seed.
    fn random(&self) -> u64;
}

impl dyn World + '_ {
    /// A fraction by chance, from 0 to below 1.
    pub fn fraction(&self) -> f64 {
        // As many bits as a float holds; a half of them at a time is exact.
        let bits = self.random() >> 11;
        let (high, low) = (
            u32::try_from(bits >> 27).unwrap_or(0),
            u32::try_from(bits & ((1 << 27) - 1)).unwrap_or(0),
        );
        (f64::from(high) + f64::from(low) / f64::from(1u32 << 27)) / f64::from(1u32 << 26)
    }
}

/// Makes a loop take another turn. Cheap to clone; wakes nobody once the loop has ended.
#[derive(Debug, Clone)]
pub struct Wake(Waker);

impl Wake {
    /// A wake that calls `waker`.
    pub fn new(waker: Waker) -> Self {
        Self(waker)
    }

    /// Wakes the loop.
    pub fn wake(&self) {
        self.0.wake_by_ref();
    }
}

/// A loop that could not be started.
#[derive(Debug, Clone, Error)]
#[error("the system refuses a thread for {name} ({source}); raise its limit of threads")]
pub struct SpawnError {
    /// The loop's name.
    pub name: String,
    /// What the system said.
    pub source: Arc<std::io::Error>,
}
