//! One shard as the driver sees it: its queue, and when to turn to it again.

use flumen_record::{ProducerId, ShardIndex};
use tokio::time::{Duration, Instant};

use super::super::shard_queue::{ShardQueue, Step};
use super::{Driver, Sealed};
use crate::retry::{Backoff, RetryPolicy, random_seed};
use crate::{Error, reason};

#[derive(Debug)]
pub(super) struct Line {
    pub(super) shard: ShardIndex,
    pub(super) queue: ShardQueue<Sealed>,
    pub(super) backoff: Backoff,
    /// When what the queue needs may be done.
    pub(super) resume_at: Option<Instant>,
    /// What the broker asked to be waited for.
    retry_after: Option<Duration>,
    pub(super) last_error: Option<Error>,
    /// It is in the driver's `ready`.
    pub(super) listed: bool,
    /// It is in the driver's `troubled`.
    pub(super) troubled: bool,
    /// The intake has more than the window let in.
    pub(super) starved: bool,
}

impl Line {
    pub(super) fn new(shard: ShardIndex, producer: ProducerId) -> Self {
        Self {
            shard,
            queue: ShardQueue::new(producer),
            backoff: Backoff::new(RetryPolicy::default(), random_seed()),
            resume_at: None,
            retry_after: None,
            last_error: None,
            listed: false,
            troubled: false,
            starved: false,
        }
    }

    /// How long nothing of what waits here was acknowledged.
    pub(super) fn waited(&self, now: Instant) -> Duration {
        self.queue
            .quiet_since()
            .map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// The broker refused a batch.
    pub(super) fn refused(&mut self, error: &Error) {
        self.retry_after = self.retry_after.max(error.retry_after());
        // These only follow from an earlier refusal, and that is the one to tell.
        let follows = [reason::OUT_OF_SEQUENCE, reason::SESSION_ENDED].contains(&error.reason());
        if !follows || self.last_error.is_none() {
            self.last_error = Some(error.clone());
        }
    }

    /// The broker stored a batch: earlier trouble is over.
    pub(super) fn stored(&mut self) {
        self.backoff.reset();
        self.last_error = None;
    }

    /// Whether the next pump should look here.
    pub(super) fn wants_turn(&self) -> bool {
        self.starved || self.queue.has_unsent()
    }

    /// Whether the time has come for what the queue needs; the first look decides how long it takes.
    pub(super) fn is_due(&mut self, step: Step, now: Instant) -> bool {
        if let Some(at) = self.resume_at {
            return at <= now;
        }
        // A new id or a new map helps at once, unless it did not help the last time.
        let at_once = step != Step::Resend && self.backoff.failures() == 0;
        let delay = self.backoff.next(self.retry_after.take());
        let delay = if at_once { Duration::ZERO } else { delay };
        self.resume_at = Some(now + delay);
        delay.is_zero()
    }

    /// What the queue needed is done.
    pub(super) fn relieved(&mut self) {
        self.resume_at = None;
    }
}

impl Driver {
    /// Does what troubled queues need where no call to the broker is needed for it; whether any may
    /// send again.
    pub(super) fn turn_lines(&mut self, now: Instant) -> bool {
        let mut relieved = Vec::new();
        let idempotent = self.config.idempotent;
        self.troubled.retain(|place| {
            let Some(line) = self.lines.get_mut(*place) else {
                return false;
            };
            let step = line.queue.step();
            match step {
                Step::Flow => {}
                Step::Settle => return true,
                Step::Resend if line.is_due(step, now) => line.queue.resend(),
                Step::NewProducer if !idempotent => {
                    line.queue.restart(ProducerId::NONE, |_, _, _| {});
                }
                Step::NewProducer | Step::Reroute if line.queue.unsettled() > 0 => {
                    line.is_due(step, now);
                    return true;
                }
                Step::Resend | Step::NewProducer | Step::Reroute => return true,
            }
            line.relieved();
            line.troubled = false;
            relieved.push(*place);
            false
        });
        let any = !relieved.is_empty();
        for place in relieved {
            self.list(place);
        }
        any
    }
}
