//! Calls to the broker beside the session: opening one, a new producer id, the stream's shards. One
//! at a time, while acks go on coming in.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use flumen_record::ProducerId;
use tokio::time::Instant;

use super::super::shard_queue::Step;
use super::{Driver, Session};
use crate::{AppendSession, Error, StreamDescription};

/// A call under way.
pub(super) struct Errand {
    call: Pin<Box<dyn Future<Output = Done> + Send>>,
}

/// What a call came to.
pub(super) enum Done {
    Session(Result<Box<AppendSession>, Error>),
    Producer(Result<ProducerId, Error>),
    Stream(Result<Box<StreamDescription>, Error>),
}

impl Errand {
    fn new(call: impl Future<Output = Done> + Send + 'static) -> Self {
        Self {
            call: Box::pin(call),
        }
    }

    /// Waits for the end of the call. Cancel-safe: the call stays under way.
    pub(super) async fn done(&mut self) -> Done {
        self.call.as_mut().await
    }
}

impl fmt::Debug for Errand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Errand")
    }
}

impl Driver {
    /// Starts the call that is needed most, if one is.
    pub(super) fn start_errand(&mut self, now: Instant) {
        if self.errand.is_some() || self.errand_at > now {
            return;
        }
        let (client, stream) = (self.client.clone(), self.stream.clone());
        let incarnation = self.incarnation;
        if self.session.is_none() {
            if !self.opened_once || self.has_work() {
                self.errand = Some(Errand::new(async move {
                    let session = AppendSession::open_known(&client, &stream, incarnation).await;
                    Done::Session(session.map(Box::new))
                }));
            }
        } else if self.needs(Step::NewProducer, now) {
            self.errand = Some(Errand::new(async move {
                Done::Producer(client.open_producer().await)
            }));
        } else if self.needs(Step::Reroute, now) {
            self.errand = Some(Errand::new(async move {
                let described = client.describe_known(&stream, incarnation).await;
                Done::Stream(described.map(Box::new))
            }));
        }
    }

    fn needs(&self, step: Step, now: Instant) -> bool {
        self.troubled
            .iter()
            .filter_map(|place| self.lines.get(*place))
            .any(|line| {
                line.queue.step() == step
                    && line.queue.unsettled() > 0
                    && line.resume_at.is_some_and(|at| at <= now)
            })
    }

    /// Takes the result of a call.
    pub(super) fn finish_errand(&mut self, done: Done) {
        self.errand = None;
        let failed = match done {
            Done::Session(Ok(session)) => return self.opened(*session),
            Done::Producer(Ok(id)) => return self.restart_lines(id),
            Done::Stream(Ok(stream)) => return self.reroute(&stream),
            Done::Session(Err(error)) | Done::Producer(Err(error)) | Done::Stream(Err(error)) => {
                error
            }
        };
        if failed.is_retryable() {
            self.failed(failed);
        } else {
            // The stream is gone, or we are not welcome: so it is for every shard.
            self.give_up_all(&failed);
            self.failed(failed);
        }
    }

    fn opened(&mut self, session: AppendSession) {
        let AppendSession { sender, acks } = session;
        self.session = Some(Session { sender, acks });
        self.opened_once = true;
        self.outage_since = None;
        self.shared.lock().stats.sessions_opened += 1;
        for place in 0..self.lines.len() {
            self.list(place);
        }
    }

    /// The connection, or a call, failed: the next attempt waits.
    pub(super) fn failed(&mut self, error: Error) {
        let now = Instant::now();
        self.errand_at = now + self.backoff.next(error.retry_after());
        if self.session.is_none() && self.has_work() {
            self.outage_since.get_or_insert(now);
        }
        self.last_error = Some(error);
    }

    /// Every shard that waits for a new producer id goes on under this one; none has used it.
    fn restart_lines(&mut self, id: ProducerId) {
        let mut restarted = Vec::new();
        for place in &self.troubled {
            let Some(line) = self.lines.get_mut(*place) else {
                continue;
            };
            if line.queue.step() == Step::NewProducer {
                line.queue.restart(id, |sealed, id, sequence| {
                    sealed.batch = sealed.batch.restamped(id, sequence);
                });
                restarted.push(*place);
            }
        }
        self.shared.lock().stats.producer_ids_replaced += restarted.len() as u64;
        // `turn_lines` finds them relieved.
    }
}
