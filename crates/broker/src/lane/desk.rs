//! The lane's desk: its shards, what becomes of the batches of a round, and the answers.

mod shards;

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use flumen_log::NewFrame;
use flumen_record::{
    Batch, Durability, ProducerId, SequenceNumber, ShardEpoch, ShardId, Timestamp,
};
use flumen_stream::{Admission, Refusal};

use super::shard_hash::ShardHasher;
use super::{Lane, OpenShard, PerLane};
use crate::pending::{Pending, Session, Submission};
use crate::round::Turns;
use crate::{Ack, Appended, Error, Metrics};

/// What a lane knows about a shard number.
#[derive(Debug)]
enum Slot {
    Open(Open),
    /// Its batches wait while it is decided where it goes on.
    Held(Open, VecDeque<Submission>),
    /// It went on in another lane. Its state as it left stays in this log's snapshots, until the
    /// other log can speak for it.
    Moved {
        to: Arc<Lane>,
        state: Bytes,
    },
    /// It takes no batches any more; its state stays in the snapshots.
    Frozen {
        state: Bytes,
    },
    Free,
}

#[derive(Debug)]
struct Open {
    shard: OpenShard,
    /// Its state for the snapshot, unless it changed since.
    saved: Option<Bytes>,
}

/// What a round does to one shard.
#[derive(Debug)]
struct Touched {
    slot: u32,
    first: SequenceNumber,
    end: SequenceNumber,
}

/// What became of a round.
#[derive(Debug)]
pub(super) enum RoundOutcome {
    /// At the log's level, and readable.
    Durable,
    /// Definitely not in the log.
    Refused(Error),
    /// Nobody knows.
    Unknown,
}

#[derive(Debug)]
pub(super) struct Desk {
    durability: Durability,
    metrics: Metrics,
    index: HashMap<ShardId, u32, BuildHasherDefault<ShardHasher>>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    frames: Vec<NewFrame>,
    touched: Vec<Touched>,
    pending: VecDeque<Pending>,
    /// Sessions to wake at the end of the round.
    sessions: Vec<Arc<Session>>,
    /// Room in the queue to give back.
    released: u64,
    duplicates: u64,
    records: u64,
    bytes: u64,
}

impl Desk {
    pub(super) fn new(durability: Durability, metrics: Metrics) -> Self {
        Self {
            durability,
            metrics,
            index: HashMap::default(),
            slots: Vec::new(),
            free: Vec::new(),
            frames: Vec::new(),
            touched: Vec::new(),
            pending: VecDeque::new(),
            sessions: Vec::new(),
            released: 0,
            duplicates: 0,
            records: 0,
            bytes: 0,
        }
    }

    /// Lines up what came. Batches of shards that went elsewhere are sent after them.
    pub(super) fn sort(&mut self, inbox: &mut Vec<Submission>, turns: &mut Turns<Submission>) {
        let mut last = None;
        let mut elsewhere = PerLane::default();
        for mut submission in inbox.drain(..) {
            let slot = match last {
                Some((shard, slot)) if shard == submission.shard => slot,
                _ => match self.index.get(&submission.shard) {
                    Some(&slot) => slot,
                    None => {
                        let stream = submission.session.stream.clone();
                        self.refuse(submission, Error::StreamNotFound { stream });
                        continue;
                    }
                },
            };
            match self.slots.get_mut(slot as usize) {
                Some(Slot::Open(_)) => {
                    last = Some((submission.shard, slot));
                    turns.push(slot, submission);
                }
                Some(Slot::Held(_, held)) => held.push_back(submission),
                Some(Slot::Moved { to, .. }) => {
                    self.released += u64::from(std::mem::take(&mut submission.cost));
                    elsewhere.add(to, submission);
                }
                Some(Slot::Frozen { .. }) => self.refuse(submission, Error::Poisoned),
                Some(Slot::Free) | None => unreachable!("BUG: the index names a free slot"),
            }
        }
        for (lane, mut submissions) in elsewhere {
            self.pass_on(&lane, &mut submissions);
        }
    }

    /// Hands batches to another lane; refuses them when it is closed.
    pub(super) fn pass_on(&mut self, lane: &Lane, submissions: &mut Vec<Submission>) {
        lane.hand_over(submissions);
        for submission in submissions.drain(..) {
            self.refuse(submission, Error::Draining);
        }
    }

    /// Answers a batch that is not admitted.
    pub(super) fn refuse(&mut self, submission: Submission, error: Error) {
        self.released += u64::from(submission.cost);
        let pending = submission.answered(Err(error));
        if pending.anonymous {
            pending.session.refused();
        }
        self.pending.push_back(pending);
    }

    /// Decides about one batch whose turn it is. With `stop` nothing new is admitted, but
    /// duplicates of what is durable are answered all the same.
    pub(super) fn admit(
        &mut self,
        slot: u32,
        submission: Submission,
        now: Timestamp,
        stop: Option<&Error>,
    ) {
        let anonymous = submission.batch.header().producer == ProducerId::NONE;
        if anonymous && submission.session.has_ended() {
            return self.refuse(submission, Error::SessionEnded);
        }
        let Some(Slot::Open(open)) = self.slots.get_mut(slot as usize) else {
            unreachable!("BUG: a batch in line for a shard that is not open");
        };
        let shard = &mut open.shard.shard;
        let header = submission.batch.header();
        let (base, arrival, duplicate, waits) = match shard.admit(header, now) {
            Admission::Append { base, arrival } => match submission.refusal.as_deref().or(stop) {
                None => (base, arrival, false, true),
                Some(error) => {
                    shard.abandon(base);
                    let error = error.clone();
                    return self.refuse(submission, error);
                }
            },
            // What is not durable and not in a round that is under way has an unknown outcome.
            Admission::Duplicate { durable: false, .. } if stop.is_some() => {
                return self.refuse(submission, Error::OutcomeUnknown);
            }
            Admission::Duplicate {
                base,
                arrival,
                durable,
            } => (base, arrival, true, !durable),
            Admission::AlreadyAppended => {
                let sequence = header.sequence;
                return self.refuse(submission, Error::AlreadyAppended { sequence });
            }
            Admission::Refused(refusal) => {
                let error = refused(refusal, submission.shard);
                return self.refuse(submission, error);
            }
        };
        let appended = Appended {
            base,
            count: header.count,
            arrival,
            durability: self.durability,
            duplicate,
        };
        self.released += u64::from(submission.cost);
        let pending = Pending {
            session: submission.session,
            ack: Ack {
                request: submission.request,
                outcome: Ok(appended),
            },
            queued: submission.queued,
            waits,
            anonymous,
        };
        self.pending.push_back(pending);
        if duplicate {
            self.duplicates += 1;
            return;
        }
        open.saved = None;
        open.shard.tail.load.came(&submission.batch);
        let epoch = open.shard.shard.epoch();
        self.enter_round(slot, submission.shard, epoch, &appended, submission.batch);
    }

    fn enter_round(
        &mut self,
        slot: u32,
        shard: ShardId,
        epoch: ShardEpoch,
        appended: &Appended,
        batch: Batch,
    ) {
        let Appended {
            base,
            count,
            arrival,
            ..
        } = *appended;
        self.records += u64::from(count);
        self.bytes += batch.bytes().len() as u64;
        let end = base.plus(u64::from(count));
        match self.touched.last_mut() {
            Some(last) if last.slot == slot => last.end = end,
            _ => self.touched.push(Touched {
                slot,
                first: base,
                end,
            }),
        }
        self.frames.push(NewFrame {
            shard,
            epoch,
            base,
            arrival,
            batch,
        });
    }

    /// What was admitted for the round.
    pub(super) fn frames(&self) -> &[NewFrame] {
        &self.frames
    }

    /// Whether something is to be answered.
    pub(super) fn has_answers(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Ends the round: shards and tails learn what became of it.
    pub(super) fn settle(&mut self, outcome: &RoundOutcome, wakers: &mut Vec<Waker>) {
        let error = match outcome {
            RoundOutcome::Durable => None,
            RoundOutcome::Refused(error) => Some(error.clone()),
            RoundOutcome::Unknown => Some(Error::OutcomeUnknown),
        };
        for touched in self.touched.drain(..) {
            let Some(Slot::Open(open)) = self.slots.get_mut(touched.slot as usize) else {
                unreachable!("BUG: a round touched a shard that is not open");
            };
            match outcome {
                RoundOutcome::Durable => {
                    open.shard.shard.durable(touched.end);
                    open.shard.tail.advance(touched.end, wakers);
                }
                RoundOutcome::Refused(_) => open.shard.shard.abandon(touched.first),
                RoundOutcome::Unknown => {}
            }
        }
        if let Some(error) = error {
            for pending in &mut self.pending {
                if pending.waits && pending.anonymous {
                    pending.session.refused();
                }
                pending.fail(&error);
            }
        } else {
            self.metrics
                .appended(self.frames.len() as u64, self.records, self.bytes);
        }
        self.metrics.duplicates(self.duplicates);
        (self.records, self.bytes, self.duplicates) = (0, 0, 0);
        self.frames.clear();
    }

    /// Sends the answers off: one push per session's run of batches, one wake per session.
    pub(super) fn answer(&mut self, now: Duration, lane: &Lane) {
        while let Some(first) = self.pending.front() {
            let (session, queued) = (Arc::clone(&first.session), first.queued);
            let same = |pending: &&Pending| {
                Arc::ptr_eq(&pending.session, &session) && pending.queued == queued
            };
            let run = self.pending.iter().take_while(same).count();
            let metrics = &self.metrics;
            let acks = self.pending.drain(..run).map(|pending| {
                if let Err(error) = &pending.ack.outcome {
                    metrics.refused(error);
                }
                pending.ack
            });
            let wake = session.answer(acks);
            metrics.append_latency(self.durability, now.saturating_sub(queued), run as u64);
            if wake {
                self.sessions.push(session);
            }
        }
        for session in self.sessions.drain(..) {
            session.wake();
        }
        lane.give_back(std::mem::take(&mut self.released));
    }

    fn slot(&mut self, slot: u32) -> &mut Slot {
        self.slots
            .get_mut(slot as usize)
            .expect("BUG: the index names a slot that is not there")
    }

    /// Ends a round in which this program broke a promise: its outcome is unknown.
    pub(super) fn settle_after_panic(&mut self) {
        self.touched.clear();
        self.frames.clear();
        for pending in &mut self.pending {
            pending.fail(&Error::OutcomeUnknown);
        }
    }

    /// Takes every batch that waits in a hold, to refuse it: the lane ends.
    pub(super) fn abandon_holds(&mut self, error: &Error) {
        let mut held_back = Vec::new();
        for slot in &mut self.slots {
            if let Slot::Held(_, held) = slot {
                held_back.extend(held.drain(..));
            }
        }
        held_back
            .into_iter()
            .for_each(|submission| self.refuse(submission, error.clone()));
    }
}

fn refused(refusal: Refusal, id: ShardId) -> Error {
    let shard = id.index();
    match refusal {
        Refusal::OutOfSequence { expected, got } => Error::OutOfSequence { expected, got },
        Refusal::ChecksumDiffers { sequence } => Error::SequenceReused { sequence },
        Refusal::ProducerStateLost { producer } => Error::ProducerStateLost { producer },
        Refusal::WrongShard { span, range } => Error::WrongShard { shard, span, range },
        Refusal::Closed { end } => Error::ShardClosed { shard, end },
        Refusal::Throttled { retry_after } => Error::Throttled { retry_after },
    }
}
