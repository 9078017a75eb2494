//! Handles of tasks.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use crate::lock::lock;

/// A future of its own.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The handle of a task. Dropping it leaves the task running.
#[derive(Debug, Clone)]
pub struct Task {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    aborted: bool,
    ended: bool,
    /// The task's own, while it waits.
    task: Option<Waker>,
    waiting: Vec<Waker>,
}

impl Task {
    /// The handle of `future`, and what is to be run in its place: for whoever makes a
    /// [`crate::World`].
    pub fn of(future: BoxFuture<'static, ()>) -> (Self, BoxFuture<'static, ()>) {
        let shared = Arc::new(Shared::default());
        let watched = Watched {
            future: Some(future),
            shared: Arc::clone(&shared),
        };
        (Self { shared }, Box::pin(watched))
    }

    /// Drops the task's future instead of polling it again.
    pub fn abort(&self) {
        let waker = {
            let mut state = lock(&self.shared.state);
            state.aborted = true;
            state.task.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }

    /// Whether it is over: done, aborted or panicked.
    pub fn has_ended(&self) -> bool {
        lock(&self.shared.state).ended
    }

    /// Waits until it is over.
    pub async fn ended(&self) {
        std::future::poll_fn(|cx| {
            let mut state = lock(&self.shared.state);
            if state.ended {
                return Poll::Ready(());
            }
            if !state
                .waiting
                .iter()
                .any(|waker| waker.will_wake(cx.waker()))
            {
                state.waiting.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}

/// A task's future, with what its handle says and learns.
struct Watched {
    future: Option<BoxFuture<'static, ()>>,
    shared: Arc<Shared>,
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").finish_non_exhaustive()
    }
}

impl Future for Watched {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        {
            let mut state = lock(&self.shared.state);
            if !state.aborted {
                match &mut state.task {
                    Some(waker) => waker.clone_from(cx.waker()),
                    none => *none = Some(cx.waker().clone()),
                }
            } else {
                drop(state);
                self.future = None;
                return Poll::Ready(());
            }
        }
        let Some(future) = &mut self.future else {
            return Poll::Ready(());
        };
        let polled = future.as_mut().poll(cx);
        if polled.is_ready() {
            self.future = None;
        }
        polled
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // Whoever waits for the end finds everything that the task held given back.
        self.future = None;
        let waiting = {
            let mut state = lock(&self.shared.state);
            state.ended = true;
            state.task = None;
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }
}
