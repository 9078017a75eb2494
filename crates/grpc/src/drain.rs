//! The signal that the server is going away, and bodies that end on it or on a deadline.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use flumen_broker::Error;
use http_body::{Body, Frame};
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};
use tonic::Status;

use crate::call::CallError;
use crate::response::trailers;
use crate::status::Facts;

/// How far the server is on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Not at all.
    Serving,
    /// Sessions are ending.
    Draining,
    /// What has not ended is cut off.
    Closing,
}

/// Everyone's view of the server's phase. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Drain(watch::Receiver<Phase>);

impl Drain {
    pub(crate) fn new(phase: watch::Receiver<Phase>) -> Self {
        Self(phase)
    }

    /// Completes once the server is at `phase` or beyond, also when the server is gone.
    pub(crate) fn at(&self, phase: Phase) -> DrainWait {
        let mut receiver = self.0.clone();
        DrainWait {
            watched: self.0.clone(),
            reached: Box::pin(async move {
                // An error means that the server was dropped.
                let _gone = receiver.wait_for(|now| *now >= phase).await;
            }),
            registered: None,
        }
    }

    /// Completes once the server drains.
    pub(crate) fn started(&self) -> DrainWait {
        self.at(Phase::Draining)
    }
}

/// Waits for a phase. Every session polls one whenever it is woken, so that a poll which finds
/// nothing new must cost next to nothing: no lock, no registration.
pub(crate) struct DrainWait {
    watched: watch::Receiver<Phase>,
    reached: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// Whom `reached` is going to wake.
    registered: Option<Waker>,
}

impl Future for DrainWait {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let registered = self.registered.as_ref();
        let known = registered.is_some_and(|waker| waker.will_wake(cx.waker()));
        if known && matches!(self.watched.has_changed(), Ok(false)) {
            return Poll::Pending;
        }
        let reached = self.reached.as_mut().poll(cx);
        self.registered = Some(cx.waker().clone());
        reached
    }
}

/// A response body that ends with a status of its own when the caller's deadline passes or, where
/// that is asked for, when the server drains.
pub(crate) struct Guarded {
    body: tonic::body::Body,
    deadline: Option<Pin<Box<Sleep>>>,
    drain: Option<DrainWait>,
    ended: bool,
}

impl Guarded {
    pub(crate) fn new(
        body: tonic::body::Body,
        deadline: Option<Instant>,
        drain: Option<DrainWait>,
    ) -> Self {
        Self {
            body,
            deadline: deadline.map(|at| Box::pin(tokio::time::sleep_until(at))),
            drain,
            ended: false,
        }
    }

    fn why_end(&mut self, cx: &mut Context<'_>) -> Option<Facts> {
        let sleep = self.deadline.as_mut();
        if sleep.is_some_and(|sleep| sleep.as_mut().poll(cx).is_ready()) {
            return Some(CallError::DeadlineExceeded.into());
        }
        let drain = self.drain.as_mut();
        if drain.is_some_and(|drain| Pin::new(drain).poll(cx).is_ready()) {
            return Some(Error::Draining.into());
        }
        None
    }
}

impl Body for Guarded {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        match self.why_end(cx) {
            Some(facts) => {
                self.ended = true;
                Poll::Ready(Some(Ok(Frame::trailers(trailers(Err(facts.into()))))))
            }
            None => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }
}
