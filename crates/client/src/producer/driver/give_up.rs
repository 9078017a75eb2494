//! The end of patience: what has waited longer than the retry budget is answered with what is known.

use std::sync::Arc;

use tokio::time::{Duration, Instant};

use super::super::delivery::Outcome;
use super::super::shard_queue::Fate;
use super::Driver;
use crate::{Error, SendError};
use tonic::Code;

/// What a batch that failed is answered.
pub(super) fn failure(fate: Fate, waited: Duration, last: Error) -> SendError {
    match fate {
        Fate::Refused => SendError::Refused(last),
        Fate::NotStored => SendError::NotStored { waited, last },
        Fate::Unknown => SendError::OutcomeUnknown { waited, last },
        Fate::Stored => unreachable!("BUG: a stored batch has not failed"),
    }
}

impl Driver {
    /// Looks every now and then for what has waited too long.
    pub(super) fn sweep(&mut self, now: Instant) {
        if now < self.sweep_at {
            return;
        }
        let budget = self.config.retry_for;
        self.sweep_at = now + (budget / 8).min(Duration::from_secs(1));
        if self
            .outage_since
            .is_some_and(|since| now.saturating_duration_since(since) >= budget)
        {
            self.outage_since = None;
            let last = self.last_error.clone().unwrap_or_else(|| self.silence());
            return self.give_up_places(0..self.places(), Fate::NotStored, budget, &last);
        }
        let late: Vec<usize> = (0..)
            .zip(&self.lines)
            .filter(|(_, line)| line.waited(now) >= budget)
            .map(|(place, _)| place)
            .collect();
        for place in late {
            let last = self
                .lines
                .get(place)
                .and_then(|line| line.last_error.clone());
            let last = last
                .or_else(|| self.last_error.clone())
                .unwrap_or_else(|| self.silence());
            self.give_up_places(place..place + 1, Fate::NotStored, budget, &last);
        }
    }

    /// Everything that waits is refused for good.
    pub(super) fn give_up_all(&mut self, refusal: &Error) {
        self.outage_since = None;
        self.give_up_places(0..self.places(), Fate::Refused, Duration::ZERO, refusal);
    }

    fn places(&self) -> usize {
        self.shared.lock().routing.places()
    }

    fn silence(&self) -> Error {
        let message = format!("{}: no answer", self.client.endpoint());
        Error::local(Code::DeadlineExceeded, message.into(), None)
    }

    /// Answers everything at these places: with `not_stored` what is certainly not stored.
    fn give_up_places(
        &mut self,
        places: std::ops::Range<usize>,
        not_stored: Fate,
        waited: Duration,
        last: &Error,
    ) {
        let shared = Arc::clone(&self.shared);
        let mut intake = shared.lock();
        let mut freed = 0;
        let mut unanswered = false;
        for place in places.clone() {
            if let Some(line) = self.lines.get_mut(place) {
                unanswered |= line.queue.in_flight() > 0;
                for (sealed, fate) in line.queue.give_up() {
                    let fate = if fate == Fate::NotStored {
                        not_stored
                    } else {
                        fate
                    };
                    self.unsettled -= 1;
                    let outcome = Outcome::Failed(failure(fate, waited, last.clone()));
                    freed += sealed.settle(outcome, &mut intake);
                }
                line.relieved();
                if !line.troubled {
                    line.troubled = true;
                    self.troubled.push(place);
                }
            }
            for open in intake.take_all(place) {
                let outcome = Outcome::Failed(failure(not_stored, waited, last.clone()));
                freed += open.tag.settle(outcome, &mut intake);
            }
        }
        drop(intake);
        self.free(freed);
        for place in places {
            self.list(place);
        }
        if unanswered && self.session.is_some() {
            // Late answers must not be taken for those of batches to come.
            self.lost(last.clone());
        }
    }
}

/// A driver that ends early (its runtime is shut down) leaves nobody waiting.
impl Drop for Driver {
    fn drop(&mut self) {
        self.shared.close();
        let message = format!("{}: the producer was shut down", self.client.endpoint());
        let ended = Error::local(Code::Unavailable, message.into(), None);
        self.give_up_places(0..self.places(), Fate::NotStored, Duration::ZERO, &ended);
        self.shared.answered();
    }
}
