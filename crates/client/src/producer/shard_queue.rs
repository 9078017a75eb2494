//! One shard's sealed batches from their first attempt to their answer: what to send next, and what
//! an ack, a refusal or a lost session means for it. Pure: no clock of its own, no connection.
//!
//! The broker accepts a producer's batches at a shard in sequence only, so one refusal refuses what
//! follows it in the pipeline. The queue then stops sending, waits until everything in flight is
//! answered, and acts on the gravest answer: send again from the first refused batch, go on under
//! a new producer id, or hand everything back because the shard does not own its keys any more.
//!
//! A batch is *uncertain* while an attempt may have stored it without our knowing. An uncertain batch
//! is never sent under another producer id or to another shard: the broker could not recognise it.

use std::collections::VecDeque;

use flumen_record::{ProducerId, ProducerSequence};
use tokio::time::Instant;

/// What a refusal says about a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Not accepted now, whatever an earlier attempt came to.
    Later,
    /// The broker cannot say whether it is stored.
    Unknown,
    /// An earlier batch is missing; this one is not stored.
    OutOfSequence,
    /// The shard does not know this producer any more.
    StateLost,
    /// Not stored: the shard does not own its keys, or is closed.
    Elsewhere,
    /// Not stored, and never will be.
    Never,
}

/// The answer to one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It is stored, now or by an earlier attempt.
    Stored,
    /// It was refused.
    Refused(Refusal),
}

/// How a batch left the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Stored.
    Stored,
    /// Certainly not stored.
    NotStored,
    /// Refused for good.
    Refused,
    /// It may or may not be stored.
    Unknown,
}

/// What the queue needs done. Anything but `Flow` and `Settle` waits for the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    /// Nothing: it sends.
    Flow,
    /// Nothing: it waits for the answers to what is in flight.
    Settle,
    /// [`ShardQueue::resend`], after a delay.
    Resend,
    /// [`ShardQueue::restart`] with a new producer id.
    NewProducer,
    /// [`ShardQueue::take_all`], then route the records again.
    Reroute,
}

/// What is to happen once nothing is in flight; the later variants are graver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Course {
    Flow,
    Resend,
    NewProducer,
    Reroute,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    InFlight,
    Settled,
}

#[derive(Debug)]
struct Slot<T> {
    /// `None` once settled.
    batch: Option<T>,
    state: State,
    uncertain: bool,
    attempts: u32,
}

/// The batches of one shard that are sealed and not answered, in order.
#[derive(Debug)]
pub(crate) struct ShardQueue<T> {
    producer: ProducerId,
    /// Sequence of the first slot; slots are contiguous.
    first: u64,
    slots: VecDeque<Slot<T>>,
    /// Slots before this index have been sent in this pass (or are settled).
    sent: usize,
    in_flight: usize,
    unsettled: usize,
    course: Course,
    /// After a refusal one batch goes first, until one is stored.
    cautious: bool,
    /// Since when something waits here without an ack.
    quiet_since: Option<Instant>,
}

impl<T> ShardQueue<T> {
    /// An empty queue for batches of this producer, sequences from 0.
    pub(crate) fn new(producer: ProducerId) -> Self {
        Self {
            producer,
            first: 0,
            slots: VecDeque::new(),
            sent: 0,
            in_flight: 0,
            unsettled: 0,
            course: Course::Flow,
            cautious: false,
            quiet_since: None,
        }
    }

    /// Adds a batch, made for its place in the sequence.
    pub(crate) fn push(
        &mut self,
        now: Instant,
        make: impl FnOnce(ProducerId, ProducerSequence) -> T,
    ) {
        let sequence = ProducerSequence::new(self.first + self.slots.len() as u64);
        let batch = Some(make(self.producer, sequence));
        self.slots.push_back(Slot {
            batch,
            state: State::Waiting,
            uncertain: false,
            attempts: 0,
        });
        self.unsettled += 1;
        self.quiet_since.get_or_insert(now);
    }

    /// Batches that are not answered.
    pub(crate) fn unsettled(&self) -> usize {
        self.unsettled
    }

    /// Batches sent and not answered.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether a batch waits to be sent.
    pub(crate) fn has_unsent(&self) -> bool {
        self.sent < self.slots.len()
    }

    /// Since when something waits here without an ack; `None` while nothing waits.
    pub(crate) fn quiet_since(&self) -> Option<Instant> {
        self.quiet_since
    }

    /// What the queue needs done.
    pub(crate) fn step(&self) -> Step {
        match self.course {
            Course::Flow => Step::Flow,
            _ if self.in_flight > 0 => Step::Settle,
            Course::Resend => Step::Resend,
            Course::NewProducer | Course::Reroute if self.has_uncertain() => Step::Resend,
            Course::NewProducer => Step::NewProducer,
            Course::Reroute => Step::Reroute,
        }
    }

    /// The next batch to send while fewer than `window` are in flight: the number its answer must
    /// carry, whether it was sent before, and the batch.
    pub(crate) fn next_to_send(&mut self, window: usize) -> Option<(u32, bool, &mut T)> {
        let window = if self.cautious { 1 } else { window };
        if self.course != Course::Flow || self.in_flight >= window {
            return None;
        }
        while self
            .slots
            .get(self.sent)
            .is_some_and(|slot| slot.state == State::Settled)
        {
            self.sent += 1;
        }
        let request = low_half(self.first + self.sent as u64);
        let slot = self.slots.get_mut(self.sent)?;
        slot.state = State::InFlight;
        let again = slot.attempts > 0;
        slot.attempts = slot.attempts.saturating_add(1);
        self.sent += 1;
        self.in_flight += 1;
        let batch = slot
            .batch
            .as_mut()
            .expect("BUG: a settled batch was to be sent");
        Some((request, again, batch))
    }

    /// Takes the answer to the batch sent with this number. Returns the batch when that settles it;
    /// `None` when it stays, or when nothing of this number is in flight.
    pub(crate) fn answered(
        &mut self,
        request: u32,
        answer: Answer,
        now: Instant,
    ) -> Option<(T, Fate)> {
        let index = request.wrapping_sub(low_half(self.first)) as usize;
        let slot = self
            .slots
            .get_mut(index)
            .filter(|slot| slot.state == State::InFlight)?;
        self.in_flight -= 1;
        slot.state = State::Waiting;
        let refusal = match answer {
            Answer::Stored => {
                self.cautious = false;
                let settled = self.settle(index, Fate::Stored);
                self.quiet_since = (self.unsettled > 0).then_some(now);
                return settled;
            }
            Answer::Refused(refusal) => refusal,
        };
        match refusal {
            Refusal::Later => self.raise(Course::Resend),
            Refusal::Unknown => {
                slot.uncertain = true;
                self.raise(Course::Resend);
            }
            Refusal::OutOfSequence => {
                slot.uncertain = false;
                // With an earlier batch still to be stored that is what is missing. Otherwise the
                // broker misses a batch that is settled: it cannot be sent again.
                let explained = self
                    .slots
                    .iter()
                    .take(index)
                    .any(|s| s.state != State::Settled);
                self.raise(if explained {
                    Course::Resend
                } else {
                    Course::NewProducer
                });
            }
            Refusal::StateLost => {
                let uncertain = slot.uncertain;
                self.raise(Course::NewProducer);
                if uncertain {
                    return self.settle(index, Fate::Unknown);
                }
            }
            Refusal::Elsewhere => {
                slot.uncertain = false;
                self.raise(Course::Reroute);
            }
            Refusal::Never => {
                self.raise(Course::NewProducer);
                return self.settle(index, Fate::Refused);
            }
        }
        None
    }

    /// The session is gone: what was in flight may or may not be stored, and everything that is not
    /// answered is sent again, in order.
    pub(crate) fn disconnected(&mut self) {
        if self.in_flight > 0 {
            for slot in &mut self.slots {
                if slot.state == State::InFlight {
                    slot.state = State::Waiting;
                    slot.uncertain = true;
                }
            }
            self.course = Course::Flow;
        }
        self.in_flight = 0;
        self.sent = 0;
    }

    /// Sends again from the first batch that is not stored, that one alone at first. A graver course
    /// that waits for uncertain batches comes back with the answers.
    pub(crate) fn resend(&mut self) {
        debug_assert_eq!(self.step(), Step::Resend, "BUG: resend was not asked for");
        self.course = Course::Flow;
        self.cautious = true;
        self.sent = 0;
    }

    /// Goes on under a new producer id, sequences from 0; `remake` fits a batch into its new place.
    pub(crate) fn restart(
        &mut self,
        producer: ProducerId,
        mut remake: impl FnMut(&mut T, ProducerId, ProducerSequence),
    ) {
        assert_eq!(
            self.step(),
            Step::NewProducer,
            "BUG: restart with batches in flight"
        );
        self.slots.retain(|slot| slot.state != State::Settled);
        for (sequence, slot) in (0..).zip(&mut self.slots) {
            let batch = slot
                .batch
                .as_mut()
                .expect("BUG: an unsettled slot without its batch");
            remake(batch, producer, ProducerSequence::new(sequence));
        }
        self.producer = producer;
        self.first = 0;
        self.sent = 0;
        self.course = Course::Flow;
    }

    /// Hands back everything, in order, none of it stored. What is pushed later waits for a new
    /// producer id, because the sequences of these batches were never used.
    pub(crate) fn take_all(&mut self) -> Vec<T> {
        assert_eq!(
            self.step(),
            Step::Reroute,
            "BUG: batches taken while some are in flight"
        );
        self.clear().into_iter().map(|(batch, _)| batch).collect()
    }

    /// Gives up everything. Batches in flight are among it: the session they were sent on must end,
    /// or their answers would be taken for others'.
    pub(crate) fn give_up(&mut self) -> Vec<(T, Fate)> {
        self.clear()
    }

    fn clear(&mut self) -> Vec<(T, Fate)> {
        let mut all = Vec::with_capacity(self.unsettled);
        let mut attempted = false;
        for slot in self.slots.drain(..) {
            attempted |= slot.attempts > 0;
            let unknown = slot.uncertain || slot.state == State::InFlight;
            let fate = if unknown {
                Fate::Unknown
            } else {
                Fate::NotStored
            };
            all.extend(slot.batch.map(|batch| (batch, fate)));
        }
        // The next sequence the broker expects is known only if none of these was ever sent and none
        // took a number; a new id is cheaper than telling the cases apart.
        if attempted || !all.is_empty() {
            self.course = Course::NewProducer;
        }
        self.sent = 0;
        self.in_flight = 0;
        self.unsettled = 0;
        self.quiet_since = None;
        all
    }

    fn raise(&mut self, course: Course) {
        self.course = self.course.max(course);
    }

    fn has_uncertain(&self) -> bool {
        self.slots
            .iter()
            .any(|slot| slot.state != State::Settled && slot.uncertain)
    }

    fn settle(&mut self, index: usize, fate: Fate) -> Option<(T, Fate)> {
        let slot = self.slots.get_mut(index)?;
        slot.state = State::Settled;
        let batch = slot.batch.take()?;
        self.unsettled -= 1;
        if self.unsettled == 0 {
            self.quiet_since = None;
        }
        while self
            .slots
            .front()
            .is_some_and(|slot| slot.state == State::Settled)
        {
            self.slots.pop_front();
            self.first += 1;
            self.sent = self.sent.saturating_sub(1);
        }
        Some((batch, fate))
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the lower half identifies it among 2^32"
)]
fn low_half(sequence: u64) -> u32 {
    sequence as u32
}

#[cfg(test)]
mod tests;
