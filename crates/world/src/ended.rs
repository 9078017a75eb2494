//! Starting things whose end, or result, somebody waits for.

use std::any::Any;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use thiserror::Error;
use tokio::sync::{oneshot, watch};

use crate::clock::Now;
use crate::world::{SpawnError, Turn, TurnLoop, Wake, World};

/// What was started was dropped before its result: the world ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("it was given up before it was done: the process ends")]
pub struct Gone;

/// A loop that runs, and whose end can be waited for. Dropping it leaves it running.
#[derive(Debug, Clone)]
pub struct Running {
    wake: Wake,
    over: watch::Receiver<()>,
}

impl Running {
    /// Starts a loop.
    pub fn start(world: &dyn World, name: &str, turn: TurnLoop) -> Result<Self, SpawnError> {
        let (alive, over) = watch::channel(());
        let mut held = Held {
            turn,
            _alive: alive,
        };
        let wake = world.run(name, Box::new(move |now| held.turn(now)))?;
        Ok(Self { wake, over })
    }

    /// What wakes it.
    pub fn wake(&self) -> &Wake {
        &self.wake
    }

    /// Whether it has ended, and what it held was dropped.
    pub fn has_ended(&self) -> bool {
        self.over.has_changed().is_err()
    }

    /// Waits until it has ended, and what it held was dropped.
    pub async fn ended(&self) {
        let mut over = self.over.clone();
        while over.changed().await.is_ok() {}
    }
}

/// Fields are dropped in this order.
struct Held {
    turn: TurnLoop,
    _alive: watch::Sender<()>,
}

impl Held {
    /// A method, so that a closure which calls it holds all of it.
    fn turn(&mut self, now: Now) -> Turn {
        (self.turn)(now)
    }
}

type Outcome<T> = Result<T, Box<dyn Any + Send>>;

impl dyn World + '_ {
    /// Runs a future as a task, and waits for what becomes of it. The task goes on when the waiting
    /// is given up. A panic in it goes on here.
    pub fn join<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Joined<T> {
        let (done, outcome) = oneshot::channel();
        let _detached = self.task(Box::pin(async move {
            // Who waits may be gone.
            let _ = done.send(caught(future).await);
        }));
        Joined(outcome)
    }

    /// Runs a job that may wait for the disk, and waits for what becomes of it. A panic in it goes on
    /// here.
    pub fn blocked<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Joined<T> {
        let (done, outcome) = oneshot::channel();
        self.blocking(Box::new(move || {
            // Who waits may be gone.
            let _ = done.send(catch_unwind(AssertUnwindSafe(job)));
        }));
        Joined(outcome)
    }
}

/// What becomes of a task or a job; a panic in it goes on in whoever waits.
#[derive(Debug)]
pub struct Joined<T>(oneshot::Receiver<Outcome<T>>);

impl<T> Future for Joined<T> {
    type Output = Result<T, Gone>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(|outcome| match outcome {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(panic)) => resume_unwind(panic),
            Err(_) => Err(Gone),
        })
    }
}

async fn caught<T>(future: impl Future<Output = T>) -> Outcome<T> {
    let mut future = pin!(future);
    poll_fn(
        |cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(result)) => Poll::Ready(Ok(result)),
            Err(panic) => Poll::Ready(Err(panic)),
        },
    )
    .await
}
