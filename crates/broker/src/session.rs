//! A pipelined append session: batches in, an ack for each out.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use flumen_record::{
    Batch, BatchError, Durability, HashKeyCache, ProducerId, RecordError, RecordLimits,
    SequenceNumber, ShardIndex, StreamIncarnation, Timestamp,
};

use crate::Error;
use crate::lane::Lane;
use crate::node::Node;
use crate::pending::{Session, Submission};
use crate::streams::{Stream, StreamState};

/// A sender waits when its receiver has left more acks than this unread.
const UNREAD_ACKS_MAX: usize = 64 << 10;
/// How often a sender that waits for room looks whether the disk is stuck.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Where an acknowledged batch lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Sequence number of its first record.
    pub base: SequenceNumber,
    /// Records in it.
    pub count: u32,
    /// Its arrival time.
    pub arrival: Timestamp,
    /// What the ack promises.
    pub durability: Durability,
    /// It was stored by an earlier attempt.
    pub duplicate: bool,
}

/// The answer to one batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    /// The number the caller gave the batch.
    pub request: u64,
    /// What became of it.
    pub outcome: Result<Appended, Error>,
}

/// The sending half. Dropping it ends the session once every batch is answered.
#[derive(Debug)]
pub struct AppendSender {
    node: Arc<Node>,
    stream: Arc<Stream>,
    state: Arc<StreamState>,
    session: Arc<Session>,
    limits: RecordLimits,
    hash_keys: HashKeyCache,
    gathered: Vec<Gathered>,
    /// When the first batch of what is gathered came.
    gathered_at: Option<Duration>,
    /// How long to wait for room; `None`: as long as it takes.
    patience: Option<Duration>,
    over: Option<Error>,
}

/// Batches for one lane.
#[derive(Debug)]
struct Gathered {
    lane: Arc<Lane>,
    submissions: Vec<Submission>,
    reserving: Option<Reserving>,
}

/// Waiting for room in a lane's queue.
struct Reserving {
    count: usize,
    cost: u32,
    room: Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>,
}

impl fmt::Debug for Reserving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reserving")
            .field("count", &self.count)
            .field("cost", &self.cost)
            .finish_non_exhaustive()
    }
}

/// Opens a session on a stream.
pub(crate) fn open(
    node: &Arc<Node>,
    stream: Arc<Stream>,
    ends_at_refusal: bool,
) -> (AppendSender, AckReceiver) {
    let session = Session::new(stream.name.clone(), ends_at_refusal);
    let state = stream.state();
    let sender = AppendSender {
        node: Arc::clone(node),
        limits: limits(&state),
        stream,
        state,
        session: Arc::clone(&session),
        hash_keys: HashKeyCache::default(),
        gathered: Vec::new(),
        gathered_at: None,
        patience: None,
        over: None,
    };
    (sender, AckReceiver { session })
}

pub(crate) fn limits(state: &StreamState) -> RecordLimits {
    RecordLimits {
        max_record_bytes: state.info.settings.max_record_bytes,
    }
}

impl AppendSender {
    /// Which stream of its name it appends to.
    pub fn stream(&self) -> StreamIncarnation {
        self.stream.incarnation
    }

    /// Gathers a verified batch for its shard's lane; nothing moves before [`AppendSender::flush`].
    /// The body is checked against the stream's limits here (on the caller's thread). A refusal of
    /// this batch arrives as its ack. What is too large now may have been stored when it was not:
    /// that is for the lane to find out, which knows duplicates before anything else.
    pub fn append(&mut self, request: u64, shard: ShardIndex, batch: Batch) {
        let anonymous = batch.header().producer == ProducerId::NONE;
        if anonymous && self.session.has_ended() {
            return self.session.answer_now(Ack {
                request,
                outcome: Err(Error::SessionEnded),
            });
        }
        match self.check(&batch) {
            Ok(()) => self.line_up(request, shard, batch, None),
            Err(error) if !anonymous && is_too_large(&error) => {
                self.line_up(request, shard, batch, Some(Box::new(error)));
            }
            Err(error) => self.refuse_batch(request, error, anonymous),
        }
    }

    /// Refuses what came in place of a batch, such as bytes that are not one. It is answered like a
    /// refused batch, and ends a session whose batches have no producer id.
    pub fn refuse(&mut self, request: u64, error: Error) {
        self.refuse_batch(request, error, true);
    }

    /// As `append`, for a batch that was encoded here.
    pub(crate) fn gather(&mut self, request: u64, shard: ShardIndex, batch: Batch) {
        self.line_up(request, shard, batch, None);
    }

    fn line_up(
        &mut self,
        request: u64,
        shard: ShardIndex,
        batch: Batch,
        refusal: Option<Box<Error>>,
    ) {
        let anonymous = batch.header().producer == ProducerId::NONE;
        let known = self.state.shard(shard);
        let newer;
        let handle = match known {
            Some(handle) if !self.stream.is_stale(&self.state) => handle,
            _ => {
                // It may be a child of a split that this session has not heard of, or have expired.
                newer = self.stream.shard(shard);
                match (&newer, known) {
                    (Err(error), _) => {
                        return self.refuse_batch(request, error.clone(), anonymous);
                    }
                    // It may go on in another lane: this one sends it after what came before.
                    (Ok(_), Some(handle)) | (Ok(handle), None) => handle,
                }
            }
        };
        let lane = handle.lane();
        if let Some(error) = lane.stuck() {
            return self.refuse_batch(request, error, anonymous);
        }
        let queued = *self
            .gathered_at
            .get_or_insert_with(|| self.node.clock.monotonic());
        let submission = Submission {
            shard: handle.id,
            request,
            queued,
            cost: Submission::cost_of(&batch, lane.capacity()),
            batch,
            session: Arc::clone(&self.session),
            refusal,
        };
        match self
            .gathered
            .iter_mut()
            .find(|gathered| Arc::ptr_eq(&gathered.lane, lane))
        {
            Some(gathered) => gathered.submissions.push(submission),
            None => self.gathered.push(Gathered {
                lane: Arc::clone(lane),
                submissions: vec![submission],
                reserving: None,
            }),
        }
    }

    /// Hands what was gathered to the lanes, one hand-over each; waits while their queues are full
    /// (this is the backpressure), and while far too many acks are unread. An error means that the
    /// session is over; what was gathered is answered all the same.
    pub async fn flush(&mut self) -> Result<(), Error> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// [`AppendSender::flush`] for who polls by hand. Between two polls more may be appended.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        ready!(self.session.poll_below(cx, u64::MAX, UNREAD_ACKS_MAX));
        for gathered in &mut self.gathered {
            while !gathered.submissions.is_empty() {
                if let Err(error) =
                    ready!(gathered.poll_hand_over(cx, &self.session, self.patience))
                {
                    self.over = Some(error);
                }
            }
        }
        self.gathered_at = None;
        if let Some(error) = self.over.take() {
            return Poll::Ready(Err(error));
        }
        self.node.check_serving()?;
        if self.stream.is_stale(&self.state) {
            ready!(self.poll_adopt_state(cx));
        }
        Poll::Ready(self.stream.check_exists())
    }

    /// Refuses what a full queue would keep waiting for longer.
    pub(crate) fn set_patience(&mut self, patience: Duration) {
        self.patience = Some(patience);
    }

    fn check(&mut self, batch: &Batch) -> Result<(), Error> {
        let producer = batch.header().producer;
        if !self.node.may_have_issued(producer) {
            return Err(Error::UnknownProducer { producer });
        }
        Ok(batch.check_body_with(self.limits, &mut self.hash_keys)?)
    }

    fn refuse_batch(&self, request: u64, error: Error, anonymous: bool) {
        if anonymous {
            self.session.refused();
        }
        self.node.metrics.refused(&error);
        self.session.answer_now(Ack {
            request,
            outcome: Err(error),
        });
    }

    /// Learns what the stream has become. Shards that another lane writes now: only once everything
    /// is answered, so that the session's order is kept.
    fn poll_adopt_state(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let state = self.stream.state();
        if !state.same_lanes(&self.state) {
            ready!(self.session.poll_below(cx, 0, usize::MAX));
            self.gathered.clear();
        }
        self.limits = limits(&state);
        self.state = state;
        Poll::Ready(())
    }
}

impl Gathered {
    /// Hands over as much as fits into the lane's queue at once. After an error everything that was
    /// gathered is answered.
    fn poll_hand_over(
        &mut self,
        cx: &mut Context<'_>,
        session: &Arc<Session>,
        patience: Option<Duration>,
    ) -> Poll<Result<(), Error>> {
        let (count, cost) = match &mut self.reserving {
            Some(reserving) => {
                let reserved = ready!(reserving.room.as_mut().poll(cx));
                let (count, cost) = (reserving.count, reserving.cost);
                self.reserving = None;
                if let Err(error) = reserved {
                    refuse_all(session, &mut self.submissions, &error);
                    return Poll::Ready(Err(error));
                }
                (count, cost)
            }
            None => {
                let (count, cost) = self.next_part();
                if !self.lane.try_reserve(cost) {
                    let room = Box::pin(reserve(Arc::clone(&self.lane), cost, patience));
                    self.reserving = Some(Reserving { count, cost, room });
                    return self.poll_hand_over(cx, session, patience);
                }
                (count, cost)
            }
        };
        self.hand_over(session, count, cost);
        Poll::Ready(Ok(()))
    }

    /// How many batches fit into the queue together, and what they cost.
    fn next_part(&self) -> (usize, u32) {
        let (mut count, mut cost) = (0, 0u32);
        for submission in &self.submissions {
            match cost.checked_add(submission.cost) {
                Some(sum) if sum <= self.lane.capacity() => (count, cost) = (count + 1, sum),
                _ => break,
            }
        }
        (count, cost)
    }

    /// Hands the first `count` batches over, whose room is reserved.
    fn hand_over(&mut self, session: &Session, count: usize, cost: u32) {
        let whole = count == self.submissions.len();
        let rest = if whole {
            Vec::new()
        } else {
            self.submissions.split_off(count)
        };
        session.submitted(count as u64);
        self.lane.hand_over(&mut self.submissions);
        if !self.submissions.is_empty() {
            self.lane.give_back(u64::from(cost));
            let refused = self.submissions.drain(..).map(|submission| Ack {
                request: submission.request,
                outcome: Err(Error::Draining),
            });
            if session.answer(refused) {
                session.wake();
            }
        }
        if !whole {
            self.submissions = rest;
        }
    }
}

/// Whether it is the stream's limit that refuses a batch: that can change.
fn is_too_large(error: &Error) -> bool {
    matches!(
        error,
        Error::Batch(BatchError::Record {
            error: RecordError::TooLarge { .. },
            ..
        })
    )
}

/// Waits for room; not when the disk is stuck, and not longer than `patience`.
async fn reserve(lane: Arc<Lane>, cost: u32, patience: Option<Duration>) -> Result<(), Error> {
    let reserved = lane.reserve(cost);
    let mut reserved = std::pin::pin!(reserved);
    let mut waited = Duration::ZERO;
    loop {
        let slice = patience.map_or(LOOK_AGAIN, |patience| {
            patience.saturating_sub(waited).min(LOOK_AGAIN)
        });
        match lane.clock().timeout(slice, reserved.as_mut()).await {
            Ok(reserved) => return reserved,
            Err(_) => waited += slice,
        }
        if let Some(error) = lane.stuck() {
            return Err(error);
        }
        if patience.is_some_and(|patience| waited >= patience) {
            return Err(Error::QueueFull {
                retry_after: LOOK_AGAIN,
            });
        }
    }
}

fn refuse_all(session: &Session, submissions: &mut Vec<Submission>, error: &Error) {
    for submission in submissions.drain(..) {
        if submission.batch.header().producer == ProducerId::NONE {
            session.refused();
        }
        session.answer_now(Ack {
            request: submission.request,
            outcome: Err(error.clone()),
        });
    }
}

impl Drop for AppendSender {
    fn drop(&mut self) {
        for gathered in &mut self.gathered {
            refuse_all(
                &self.session,
                &mut gathered.submissions,
                &Error::SessionEnded,
            );
        }
        self.session.close_sender();
    }
}

/// The receiving half. Dropping it does not undo what was sent.
#[derive(Debug)]
pub struct AckReceiver {
    session: Arc<Session>,
}

impl AckReceiver {
    /// Moves all acks that are ready into `into` (appending); pending when there are none. Ready
    /// with nothing added: the sender is gone and every batch is answered. Woken at most once per
    /// round and session.
    pub fn poll_acks(&mut self, cx: &mut Context<'_>, into: &mut Vec<Ack>) -> Poll<()> {
        self.session.poll_acks(cx, into)
    }
}

impl Drop for AckReceiver {
    fn drop(&mut self) {
        self.session.close_receiver();
    }
}
