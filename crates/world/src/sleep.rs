//! Sleeping by a clock.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use thiserror::Error;

use crate::Clock;

/// Time is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("time is up")]
pub struct Elapsed;

/// Waits until a clock has moved on; made by [`Clock::sleep`].
pub struct Sleep(Kind);

enum Kind {
    /// Boxed: it must not move, and sleeping is no hot path.
    System(Pin<Box<tokio::time::Sleep>>),
    Manual(Timer),
}

impl Sleep {
    pub(crate) fn system(duration: Duration) -> Self {
        Self(Kind::System(Box::pin(tokio::time::sleep(duration))))
    }

    pub(crate) fn manual(clock: Clock, until: Duration) -> Self {
        Self(Kind::Manual(Timer {
            clock,
            until,
            number: None,
        }))
    }
}

impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleep").finish_non_exhaustive()
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.0 {
            Kind::System(sleep) => sleep.as_mut().poll(cx),
            Kind::Manual(timer) => timer.poll(cx),
        }
    }
}

/// A place among a manual clock's timers.
struct Timer {
    clock: Clock,
    until: Duration,
    number: Option<u64>,
}

impl Timer {
    fn poll(&mut self, cx: &Context<'_>) -> Poll<()> {
        if self
            .clock
            .keep_until(self.until, &mut self.number, cx.waker())
        {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.clock.forget(self.until, number);
        }
    }
}
