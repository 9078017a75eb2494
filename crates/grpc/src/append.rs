//! `Producer.Append`: a pipelined session of encoded batches, an ack for each.
//!
//! One poll function on the session's own task does everything: it takes the messages that are
//! there already, hands their batches to the lanes together, and sends the acks that are ready in
//! one message. While the lanes' queues are full nothing is read, and while the client does not read
//! its acks nothing is read either.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use flumen_api::convert::stream_name;
use flumen_api::v1;
use flumen_broker::{Ack, AckReceiver, AppendSender, Broker, Error};
use flumen_record::{Batch, ShardIndex, StreamIncarnation};
use http_body::Body;
use tokio::task::coop;

use crate::GrpcConfig;
use crate::call::CallError;
use crate::call::meant;
use crate::drain::{Drain, DrainWait};
use crate::producer::level;
use crate::request::{Messages, decode};
use crate::response::{Replies, encode};
use crate::status::Facts;

/// What an Append message decodes as.
const REQUEST: &str = "flumen.v1.AppendRequest";

/// One open session.
pub(crate) struct AppendSession<B> {
    stream: String,
    /// Gone once the client has half-closed or may not go on.
    requests: Option<Messages<B>>,
    /// Gone once everything was handed over; the lanes' word that no more batches come.
    sender: Option<AppendSender>,
    acks: AckReceiver,
    ready: Vec<Ack>,
    /// Batches wait for room in a lane's queue.
    flushing: bool,
    /// Of the stream it appends to.
    incarnation: StreamIncarnation,
    opened: bool,
    /// Why the session ends once all acks are out, when the client did not end it.
    refused: Option<Facts>,
    draining: DrainWait,
    burst_bytes_max: usize,
    burst_messages_max: usize,
}

impl<B> AppendSession<B>
where
    B: Body<Data = Bytes> + Unpin + Send + 'static,
{
    /// Opens a session on the stream that the first message names.
    pub(crate) async fn open(
        broker: &Broker,
        config: &GrpcConfig,
        drain: &Drain,
        mut requests: Messages<B>,
    ) -> Result<Self, Facts> {
        let first = requests.next().await.ok_or(CallError::MessageMissing)??;
        let first: v1::AppendRequest = decode(first, REQUEST)?;
        let name = stream_name("stream", &first.stream)?;
        let (sender, acks) = broker.append_session(meant(&name, first.stream_incarnation))?;
        let incarnation = sender.stream();
        let mut session = Self {
            stream: first.stream,
            requests: Some(requests),
            sender: Some(sender),
            acks,
            ready: Vec::new(),
            flushing: !first.batches.is_empty(),
            incarnation,
            opened: false,
            refused: None,
            draining: drain.started(),
            burst_bytes_max: config.burst_bytes_max as usize,
            burst_messages_max: config.burst_messages_max as usize,
        };
        session.gather(first.batches);
        Ok(session)
    }

    /// Gives batches to the sender. What is not a batch is refused in its ack.
    fn gather(&mut self, batches: Vec<v1::AppendBatch>) {
        let Some(sender) = &mut self.sender else {
            return;
        };
        for one in batches {
            match Batch::decode(one.batch) {
                Ok(batch) => sender.append(one.request, ShardIndex::new(one.shard), batch),
                Err(error) => sender.refuse(one.request, error.into()),
            }
        }
    }

    fn take(&mut self, message: Bytes) -> Result<(), CallError> {
        let request: v1::AppendRequest = decode(message, REQUEST)?;
        if !request.stream.is_empty() && request.stream != self.stream {
            return Err(CallError::OtherStream {
                session: self.stream.clone(),
                asked: request.stream,
            });
        }
        self.gather(request.batches);
        Ok(())
    }

    /// Takes the messages that are there, up to a burst. Pending: there are no more yet.
    fn poll_burst(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut bytes = 0;
        for _ in 0..self.burst_messages_max {
            let Some(requests) = &mut self.requests else {
                return Poll::Ready(());
            };
            let taken = match ready!(requests.poll_next(cx)) {
                Some(Ok(message)) => {
                    bytes += message.len();
                    self.flushing = true;
                    self.take(message)
                }
                Some(Err(error)) => Err(error),
                None => {
                    self.requests = None;
                    return Poll::Ready(());
                }
            };
            if let Err(error) = taken {
                self.end(error.into());
            }
            if bytes >= self.burst_bytes_max {
                return Poll::Ready(());
            }
        }
        Poll::Ready(())
    }

    /// Reads no more; `why` is the status once all acks are out.
    fn end(&mut self, why: Facts) {
        self.requests = None;
        self.refused = Some(why);
    }

    /// Hands over what was gathered. Pending: a lane's queue is full.
    fn poll_hand_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.flushing
            && let Some(sender) = &mut self.sender
        {
            let flushed = ready!(sender.poll_flush(cx));
            self.flushing = false;
            if let Err(error) = flushed {
                self.end(error.into());
            }
        }
        if self.requests.is_none() {
            self.sender = None;
        }
        Poll::Ready(())
    }

    /// One burst from the client to the lanes. Ready: there may be another one.
    fn poll_requests(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        ready!(self.poll_hand_over(cx));
        if self.requests.is_none() {
            return Poll::Pending;
        }
        let more = self.poll_burst(cx);
        ready!(self.poll_hand_over(cx));
        if more.is_pending() && Pin::new(&mut self.draining).poll(cx).is_ready() {
            self.end(Error::Draining.into());
            return Poll::Ready(());
        }
        more
    }
}

impl<B> Replies for AppendSession<B>
where
    B: Body<Data = Bytes> + Unpin + Send + 'static,
{
    fn poll_reply(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &mut VecDeque<Bytes>,
    ) -> Poll<Option<Result<(), Facts>>> {
        if !self.opened {
            self.opened = true;
            pieces.push_back(encode(&v1::AppendResponse {
                stream_incarnation: self.incarnation.value(),
                ..v1::AppendResponse::default()
            }));
            return Poll::Ready(Some(Ok(())));
        }
        loop {
            // A client that never pauses must not keep others from the thread.
            let turn = ready!(coop::poll_proceed(cx));
            let more = self.poll_requests(cx);
            match self.acks.poll_acks(cx, &mut self.ready) {
                Poll::Ready(()) if self.ready.is_empty() => {
                    return Poll::Ready(self.refused.take().map(Err));
                }
                Poll::Ready(()) => {
                    turn.made_progress();
                    pieces.push_back(encode(&response(&mut self.ready)));
                    return Poll::Ready(Some(Ok(())));
                }
                Poll::Pending if more.is_pending() => return Poll::Pending,
                Poll::Pending => turn.made_progress(),
            }
        }
    }
}

/// All acks in one message.
fn response(ready: &mut Vec<Ack>) -> v1::AppendResponse {
    let mut durability = None;
    let acks = ready.drain(..).map(|ack| match ack.outcome {
        Ok(appended) => {
            let reached = durability.get_or_insert(appended.durability);
            *reached = appended.durability.min(*reached);
            v1::AppendAck {
                request: ack.request,
                base: appended.base.value(),
                count: appended.count,
                arrival_us: appended.arrival.as_micros(),
                duplicate: appended.duplicate,
                refusal: None,
            }
        }
        Err(error) => v1::AppendAck {
            request: ack.request,
            refusal: Some(Box::new(Facts::from(error).into())),
            ..Default::default()
        },
    });
    let acks = acks.collect();
    v1::AppendResponse {
        acks,
        durability: level(durability),
        stream_incarnation: 0,
    }
}
