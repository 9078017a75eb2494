//! One `Append` session: encoded batches out, acks in; nothing is retried.
//!
//! Batches that are handed over while the connection is busy gather and leave together, so small
//! appends cost little each, and a lone one is not held back.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::vec;

use bytes::Bytes;
use flumen_api::convert;
use flumen_api::v1::{AppendAck, AppendBatch, AppendRequest, AppendResponse};
use flumen_record::{
    Durability, SequenceNumber, ShardIndex, StreamIncarnation, StreamName, Timestamp,
};
use futures_core::Stream;
use tokio::sync::Notify;
use tonic::{Code, Streaming};

use crate::{Client, Error};

/// Batches that wait together leave in messages of about this many bytes (or one larger batch).
const MESSAGE_BYTES: usize = 1 << 20;
/// More than this does not wait for the connection: `flush` waits instead.
const QUEUE_BYTES_MAX: usize = 4 << 20;
/// What a batch takes in a message beside its bytes, about.
const BATCH_OVERHEAD_BYTES: usize = 24;

/// An open session. The halves may live in different tasks.
#[derive(Debug)]
pub struct AppendSession {
    /// Batches out.
    pub sender: AppendSender,
    /// Acks in.
    pub acks: AckReceiver,
}

impl AppendSession {
    /// Opens a session on a stream; returns when the broker says that it is open.
    ///
    /// # Errors
    /// When the stream does not exist, or no broker answers within the connect timeout.
    pub async fn open(client: &Client, stream: &StreamName) -> Result<Self, Error> {
        Self::open_known(client, stream, StreamIncarnation::default()).await
    }

    /// [`AppendSession::open`] on a stream that is known already; unset: whichever has the name.
    ///
    /// # Errors
    /// Also when another stream has the name now ([`crate::reason::STREAM_REPLACED`]).
    pub async fn open_known(
        client: &Client,
        stream: &StreamName,
        known: StreamIncarnation,
    ) -> Result<Self, Error> {
        let queue = Arc::new(SendQueue::default());
        let requests = Requests {
            queue: Arc::clone(&queue),
            stream: Some((stream.to_string(), known.value())),
        };
        let sender = AppendSender {
            queue,
            gathered: Gathered::default(),
        };
        let bound = client.config().connect_timeout;
        let opening = async {
            let mut responses = client
                .producer()
                .append(requests)
                .await
                .map_err(|status| client.failure(&status))?
                .into_inner();
            match responses.message().await {
                Ok(Some(opened)) => {
                    let found = StreamIncarnation::new(opened.stream_incarnation);
                    client.check_incarnation(stream, known, found)?;
                    Ok(responses)
                }
                Ok(None) => Err(Error::session_ended(client.endpoint())),
                Err(status) => Err(client.failure(&status)),
            }
        };
        let responses = tokio::time::timeout(bound, opening)
            .await
            .unwrap_or_else(|_| Err(Error::timed_out(client.endpoint(), bound)))?;
        Ok(Self {
            sender,
            acks: AckReceiver {
                responses,
                client: client.clone(),
            },
        })
    }
}

/// The sending half. Dropping it ends the session once everything handed over is answered.
#[derive(Debug)]
pub struct AppendSender {
    queue: Arc<SendQueue>,
    gathered: Gathered,
}

impl AppendSender {
    /// Gathers an encoded batch (`flumen_record::BatchBuilder`); nothing moves before a flush.
    /// `request` is echoed in its ack.
    pub fn push(&mut self, request: u64, shard: ShardIndex, batch: Bytes) {
        self.gathered.push(AppendBatch {
            request,
            shard: shard.value(),
            batch,
        });
    }

    /// Bytes gathered and not handed over.
    pub fn gathered_bytes(&self) -> usize {
        self.gathered.bytes
    }

    /// Hands what was gathered to the connection; waits while more than a few MiB wait there.
    /// Cancel-safe.
    ///
    /// # Errors
    /// When the session has ended; the ack half says why, and what is not answered then may or may
    /// not be stored.
    pub async fn flush(&mut self) -> Result<(), Error> {
        while !self.try_flush() {
            self.room().await;
        }
        if self.queue.lock().ended {
            let message = "the session has ended; its acks say why".into();
            return Err(Error::local(Code::Unavailable, message, None));
        }
        Ok(())
    }

    /// [`AppendSender::flush`] without waiting: `false` when too much waits already. Hands over to
    /// nobody once the session has ended.
    pub fn try_flush(&mut self) -> bool {
        self.gathered.is_empty() || self.queue.extend(&mut self.gathered)
    }

    /// Waits until [`AppendSender::try_flush`] has a chance.
    pub async fn room(&self) {
        self.queue.room().await;
    }
}

impl Drop for AppendSender {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        state.no_more = true;
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }
}

/// Batches in messages of a bounded size.
#[derive(Debug, Default)]
struct Gathered {
    messages: VecDeque<Message>,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Message {
    batches: Vec<AppendBatch>,
    bytes: usize,
}

impl Gathered {
    fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    fn push(&mut self, batch: AppendBatch) {
        let bytes = batch.batch.len() + BATCH_OVERHEAD_BYTES;
        self.bytes += bytes;
        match self.messages.back_mut() {
            Some(last) if last.bytes + bytes <= MESSAGE_BYTES => {
                last.batches.push(batch);
                last.bytes += bytes;
            }
            _ => self.messages.push_back(Message {
                batches: vec![batch],
                bytes,
            }),
        }
    }

    fn append(&mut self, other: &mut Self) {
        self.bytes += std::mem::take(&mut other.bytes);
        if let (Some(last), Some(first)) = (self.messages.back_mut(), other.messages.front_mut())
            && last.bytes + first.bytes <= MESSAGE_BYTES
        {
            last.batches.append(&mut first.batches);
            last.bytes += first.bytes;
            other.messages.pop_front();
        }
        self.messages.append(&mut other.messages);
    }

    fn pop(&mut self) -> Option<Vec<AppendBatch>> {
        let message = self.messages.pop_front()?;
        self.bytes -= message.bytes;
        Some(message.batches)
    }

    fn clear(&mut self) {
        self.messages.clear();
        self.bytes = 0;
    }
}

/// What stands between the sender and the connection.
#[derive(Debug, Default)]
struct SendQueue {
    state: Mutex<QueueState>,
    room: Notify,
}

#[derive(Debug, Default)]
struct QueueState {
    waiting: Gathered,
    /// The connection waits for a batch.
    waker: Option<Waker>,
    /// The sender is gone.
    no_more: bool,
    /// The connection has dropped the session.
    ended: bool,
}

impl SendQueue {
    fn lock(&self) -> MutexGuard<'_, QueueState> {
        // Nothing panics while holding it, and a half-done change would only be a lost batch.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes everything from `gathered` unless too much waits already.
    fn extend(&self, gathered: &mut Gathered) -> bool {
        let mut state = self.lock();
        if state.ended {
            gathered.clear();
            return true;
        }
        if state.waiting.bytes >= QUEUE_BYTES_MAX {
            return false;
        }
        state.waiting.append(gathered);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    async fn room(&self) {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            {
                let state = self.lock();
                if state.ended || state.waiting.bytes < QUEUE_BYTES_MAX {
                    return;
                }
            }
            room.await;
        }
    }
}

/// The session's requests as the connection pulls them.
#[derive(Debug)]
struct Requests {
    queue: Arc<SendQueue>,
    /// For the first message, with which of that name.
    stream: Option<(String, u64)>,
}

impl Stream for Requests {
    type Item = AppendRequest;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<AppendRequest>> {
        if let Some((stream, stream_incarnation)) = self.stream.take() {
            return Poll::Ready(Some(AppendRequest {
                stream,
                batches: Vec::new(),
                stream_incarnation,
            }));
        }
        let mut state = self.queue.lock();
        let full = state.waiting.bytes >= QUEUE_BYTES_MAX;
        let Some(batches) = state.waiting.pop() else {
            if state.no_more {
                return Poll::Ready(None);
            }
            if !state
                .waker
                .as_ref()
                .is_some_and(|waker| waker.will_wake(cx.waker()))
            {
                state.waker = Some(cx.waker().clone());
            }
            return Poll::Pending;
        };
        let room = full && state.waiting.bytes < QUEUE_BYTES_MAX;
        drop(state);
        if room {
            self.queue.room.notify_waiters();
        }
        Poll::Ready(Some(AppendRequest {
            stream: String::new(),
            batches,
            stream_incarnation: 0,
        }))
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        state.ended = true;
        state.waiting.clear();
        drop(state);
        self.queue.room.notify_waiters();
    }
}

/// The receiving half.
#[derive(Debug)]
pub struct AckReceiver {
    responses: Streaming<AppendResponse>,
    client: Client,
}

impl AckReceiver {
    /// The next acks, all that became ready together; `None` when the session ended and every batch
    /// was answered. Cancel-safe.
    ///
    /// # Errors
    /// Why the session ended; what is not answered then may or may not be stored.
    pub async fn next(&mut self) -> Result<Option<Acks>, Error> {
        let response = self.responses.message().await;
        let response = response.map_err(|status| self.client.failure(&status))?;
        Ok(response.map(|response| {
            // A level that this client does not know promises nothing more than the weakest.
            let named = convert::durability("durability", response.durability);
            let durability = named.ok().flatten().unwrap_or(Durability::Memory);
            Acks {
                durability,
                acks: response.acks.into_iter(),
            }
        }))
    }
}

/// Acks that became ready together.
#[derive(Debug)]
pub struct Acks {
    durability: Durability,
    acks: vec::IntoIter<AppendAck>,
}

impl Acks {
    /// The level they have reached.
    pub fn durability(&self) -> Durability {
        self.durability
    }
}

impl Iterator for Acks {
    type Item = Ack;

    fn next(&mut self) -> Option<Ack> {
        let ack = self.acks.next()?;
        let outcome = match ack.refusal {
            Some(refusal) => Err(Error::of_refusal(*refusal)),
            None => Ok(Stored {
                base: SequenceNumber::new(ack.base),
                count: ack.count,
                arrival: Timestamp::from_micros(ack.arrival_us),
                durability: self.durability,
                duplicate: ack.duplicate,
            }),
        };
        Some(Ack {
            request: ack.request,
            outcome,
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.acks.size_hint()
    }
}

impl ExactSizeIterator for Acks {}

/// The answer to one batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    /// The number the sender gave the batch.
    pub request: u64,
    /// Where it is stored, or why not.
    pub outcome: Result<Stored, Error>,
}

/// Where an acknowledged batch lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
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

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, StreamExt};

    use super::*;

    fn pair() -> (AppendSender, Requests) {
        let queue = Arc::new(SendQueue::default());
        let requests = Requests {
            queue: Arc::clone(&queue),
            stream: Some(("s".to_owned(), 0)),
        };
        (
            AppendSender {
                queue,
                gathered: Gathered::default(),
            },
            requests,
        )
    }

    fn push(sender: &mut AppendSender, range: std::ops::Range<u64>, bytes: usize) {
        for request in range {
            sender.push(request, ShardIndex::new(0), Bytes::from(vec![0; bytes]));
        }
    }

    /// Batches per message of everything that is there.
    fn messages(requests: &mut Requests) -> Vec<usize> {
        let mut next = 0;
        let mut sizes = Vec::new();
        while let Some(Some(message)) = requests.next().now_or_never() {
            for batch in &message.batches {
                assert_eq!(batch.request, next, "order");
                next += 1;
            }
            sizes.push(message.batches.len());
        }
        sizes
    }

    #[test]
    fn what_waits_together_travels_together_up_to_a_message() {
        let (mut sender, mut requests) = pair();
        push(&mut sender, 0..3, 100);
        assert!(sender.try_flush());
        push(&mut sender, 3..5, 100);
        assert!(sender.try_flush());
        push(&mut sender, 5..8, 600 << 10);
        assert!(sender.try_flush());
        assert_eq!(
            messages(&mut requests),
            [0, 6, 1, 1],
            "the stream's name, then batches"
        );
    }

    #[test]
    fn a_full_queue_takes_nothing_until_there_is_room() {
        let (mut sender, mut requests) = pair();
        push(&mut sender, 0..5, 1 << 20);
        assert!(sender.try_flush());
        push(&mut sender, 5..6, 1);
        assert!(!sender.try_flush());
        assert!(sender.flush().now_or_never().is_none());
        assert_eq!(messages(&mut requests).len(), 6);
        assert!(sender.flush().now_or_never().is_some());
        assert_eq!(sender.gathered_bytes(), 0);
    }

    #[test]
    fn either_end_may_go_first() {
        let (mut sender, mut requests) = pair();
        push(&mut sender, 0..1, 1);
        sender.try_flush();
        drop(sender);
        assert_eq!(messages(&mut requests), [0, 1]);
        assert_eq!(requests.next().now_or_never(), Some(None));

        let (mut sender, requests) = pair();
        push(&mut sender, 0..9, 1 << 20);
        assert!(sender.try_flush());
        drop(requests);
        push(&mut sender, 9..10, 1);
        assert!(sender.try_flush(), "what nobody will send does not block");
    }
}
