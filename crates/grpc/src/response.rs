//! Writes gRPC responses: messages as they become ready, then the status.
//!
//! A reply leaves as the pieces it is made of, so that mapped bytes go to the socket from where
//! they lie. The next reply is asked for when the transport has taken the one before: flow control
//! is the backpressure.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Response};
use http_body::{Body, Frame};
use prost::Message;
use tonic::{Code, Status};

use crate::request::PREFIX_BYTES;
use crate::status::Facts;

/// The content type of every response.
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// Where the replies of one call come from.
pub(crate) trait Replies: Send + Unpin + 'static {
    /// Adds the pieces of the next reply, prefix included, to `pieces`; `None` at the end.
    fn poll_reply(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &mut VecDeque<Bytes>,
    ) -> Poll<Option<Result<(), Facts>>>;
}

/// One reply that is there.
pub(crate) struct Only(pub(crate) Option<VecDeque<Bytes>>);

impl Replies for Only {
    fn poll_reply(
        &mut self,
        _cx: &mut Context<'_>,
        pieces: &mut VecDeque<Bytes>,
    ) -> Poll<Option<Result<(), Facts>>> {
        Poll::Ready(self.0.take().map(|mut reply| {
            pieces.append(&mut reply);
            Ok(())
        }))
    }
}

/// A response body: the pieces of all replies, then trailers with the status.
struct ReplyBody<R> {
    replies: R,
    pieces: VecDeque<Bytes>,
    ended: bool,
}

impl<R: Replies> Body for ReplyBody<R> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        loop {
            if let Some(piece) = this.pieces.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            if this.ended {
                return Poll::Ready(None);
            }
            let status = match ready!(this.replies.poll_reply(cx, &mut this.pieces)) {
                Some(Ok(())) => continue,
                Some(Err(facts)) => Err(facts.into()),
                None => Ok(()),
            };
            this.ended = true;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers(status)))));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended && self.pieces.is_empty()
    }
}

/// The trailers that end a call.
pub(crate) fn trailers(outcome: Result<(), Status>) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    let Err(status) = outcome else {
        trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
        return trailers;
    };
    // Only metadata can fail to become headers, and we set none.
    if status.add_header(&mut trailers).is_err() {
        trailers.insert(
            Status::GRPC_STATUS,
            HeaderValue::from(Code::Internal as i32),
        );
    }
    trailers
}

/// A response whose replies are still to come.
pub(crate) fn replies<R: Replies>(replies: R) -> Response<tonic::body::Body> {
    let body = ReplyBody {
        replies,
        pieces: VecDeque::new(),
        ended: false,
    };
    let mut response = Response::new(tonic::body::Body::new(body));
    response.headers_mut().insert(CONTENT_TYPE, GRPC);
    response
}

/// A refused call: a status and nothing else.
pub(crate) fn refused(facts: Facts) -> Response<tonic::body::Body> {
    Status::from(facts).into_http()
}

/// The response of a unary call.
pub(crate) fn unary<M: Message>(outcome: Result<M, Facts>) -> Response<tonic::body::Body> {
    match outcome {
        Ok(message) => replies(Only(Some(VecDeque::from([encode(&message)])))),
        Err(facts) => refused(facts),
    }
}

/// A message with its prefix.
pub(crate) fn encode<M: Message>(message: &M) -> Bytes {
    let mut buffer = BytesMut::new();
    encode_before(message, 0, &mut buffer);
    buffer.freeze()
}

/// A message with its prefix, of which `following_bytes` more are going to follow elsewhere.
pub(crate) fn encode_before<M: Message>(
    message: &M,
    following_bytes: usize,
    buffer: &mut BytesMut,
) {
    let bytes = message.encoded_len();
    buffer.reserve(PREFIX_BYTES + bytes);
    buffer.put_u8(0);
    let length = u32::try_from(bytes + following_bytes)
        .expect("BUG: a reply has at most a few MiB, the broker's config says so");
    buffer.put_u32(length);
    message.encode_raw(buffer);
}
