//! Batches that are not answered yet, and the acks of a session on their way to it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use flumen_record::{Batch, ProducerId, ShardId, StreamName};

use crate::round::Weigh;
use crate::{Ack, Appended, Error};
use flumen_world::lock;

/// What a queued batch takes beside its bytes.
const SUBMISSION_BYTES: u64 = 256;

/// A batch on its way into a round.
#[derive(Debug)]
pub(crate) struct Submission {
    /// Its shard.
    pub(crate) shard: ShardId,
    /// The caller's number for it.
    pub(crate) request: u64,
    /// When it was handed in, in monotonic time.
    pub(crate) queued: Duration,
    /// Its bytes, checked.
    pub(crate) batch: Batch,
    /// Who waits for the answer.
    pub(crate) session: Arc<Session>,
    /// Permits of the lane's queue that are given back with the answer.
    pub(crate) cost: u32,
    /// Why it is refused unless it was stored before.
    pub(crate) refusal: Option<Box<Error>>,
}

impl Submission {
    /// What a batch takes of a lane's queue that holds `capacity`.
    pub(crate) fn cost_of(batch: &Batch, capacity: u32) -> u32 {
        let bytes = batch.bytes().len() as u64 + SUBMISSION_BYTES;
        u32::try_from(bytes).unwrap_or(u32::MAX).min(capacity)
    }

    /// The answer to it, when it is clear at once.
    pub(crate) fn answered(self, outcome: Result<Appended, Error>) -> Pending {
        Pending {
            ack: Ack {
                request: self.request,
                outcome,
            },
            queued: self.queued,
            waits: false,
            anonymous: self.batch.header().producer == ProducerId::NONE,
            session: self.session,
        }
    }
}

impl Weigh for Submission {
    fn bytes(&self) -> u64 {
        (flumen_record::FRAME_HEADER_BYTES + self.batch.bytes().len()) as u64
    }
}

/// A batch that was admitted, with the ack it gets if the round becomes durable.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) session: Arc<Session>,
    pub(crate) ack: Ack,
    pub(crate) queued: Duration,
    /// Whether the ack is true only once the round is durable.
    pub(crate) waits: bool,
    /// Whether the batch has no producer id.
    pub(crate) anonymous: bool,
}

impl Pending {
    /// Replaces the ack: the round did not become durable.
    pub(crate) fn fail(&mut self, error: &Error) {
        if self.waits {
            self.waits = false;
            self.ack.outcome = Err(error.clone());
        }
    }
}

/// The part of a session that lanes and both its halves share.
#[derive(Debug)]
pub(crate) struct Session {
    /// The stream it appends to.
    pub(crate) stream: StreamName,
    /// Whether the first refusal of a batch without a producer id ends it (design 4).
    ends_at_refusal: bool,
    ended: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    ready: Vec<Ack>,
    receiver: Option<Waker>,
    receiver_gone: bool,
    /// A lane has this session on its list of those to wake.
    wake_queued: bool,
    /// Batches handed to lanes and not answered.
    outstanding: u64,
    sender: Option<Waker>,
    sender_gone: bool,
}

impl Session {
    pub(crate) fn new(stream: StreamName, ends_at_refusal: bool) -> Arc<Self> {
        Arc::new(Self {
            stream,
            ends_at_refusal,
            ended: AtomicBool::new(false),
            state: Mutex::default(),
        })
    }

    /// Whether a batch without a producer id is not to be attempted any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// A batch without a producer id was refused.
    pub(crate) fn refused(&self) {
        if self.ends_at_refusal {
            self.ended.store(true, Ordering::Release);
        }
    }

    /// Counts batches that are about to be handed to a lane.
    pub(crate) fn submitted(&self, batches: u64) {
        lock(&self.state).outstanding += batches;
    }

    /// Answers a batch that never reached a lane.
    pub(crate) fn answer_now(&self, ack: Ack) {
        let waker = {
            let mut state = lock(&self.state);
            if !state.receiver_gone {
                state.ready.push(ack);
            }
            state.receiver.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }

    /// Answers batches of a round, and says whether the caller is the one to [`Session::wake`] it.
    pub(crate) fn answer(&self, acks: impl ExactSizeIterator<Item = Ack>) -> bool {
        let mut state = lock(&self.state);
        state.outstanding -= acks.len() as u64;
        if !state.receiver_gone {
            state.ready.extend(acks);
        }
        !std::mem::replace(&mut state.wake_queued, true)
    }

    /// Wakes whoever waits for what was answered.
    pub(crate) fn wake(&self) {
        let (receiver, sender) = {
            let mut state = lock(&self.state);
            state.wake_queued = false;
            (state.receiver.take(), state.sender.take())
        };
        receiver.into_iter().chain(sender).for_each(Waker::wake);
    }

    /// Moves all acks into `into`; ready with nothing when there will never be one again.
    pub(crate) fn poll_acks(&self, cx: &mut Context<'_>, into: &mut Vec<Ack>) -> Poll<()> {
        let mut state = lock(&self.state);
        if !state.ready.is_empty() {
            if into.is_empty() {
                std::mem::swap(into, &mut state.ready);
            } else {
                into.append(&mut state.ready);
            }
            let sender = state.sender.take();
            drop(state);
            sender.into_iter().for_each(Waker::wake);
            return Poll::Ready(());
        }
        if state.sender_gone && state.outstanding == 0 {
            return Poll::Ready(());
        }
        keep(&mut state.receiver, cx);
        Poll::Pending
    }

    /// Pending while more than `unanswered` batches are with the lanes, or more than `unread` acks
    /// have not been fetched.
    pub(crate) fn poll_below(
        &self,
        cx: &mut Context<'_>,
        unanswered: u64,
        unread: usize,
    ) -> Poll<()> {
        let mut state = lock(&self.state);
        if state.outstanding <= unanswered && state.ready.len() <= unread {
            return Poll::Ready(());
        }
        keep(&mut state.sender, cx);
        Poll::Pending
    }

    /// There will be no more batches.
    pub(crate) fn close_sender(&self) {
        let waker = {
            let mut state = lock(&self.state);
            state.sender_gone = true;
            state.receiver.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }

    /// Nobody will fetch acks any more.
    pub(crate) fn close_receiver(&self) {
        let waker = {
            let mut state = lock(&self.state);
            state.receiver_gone = true;
            state.ready = Vec::new();
            state.sender.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }
}

/// Remembers who waits, cloning the waker only when it is another one.
fn keep(place: &mut Option<Waker>, cx: &Context<'_>) {
    match place {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *place = Some(cx.waker().clone()),
    }
}
