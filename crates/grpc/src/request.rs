//! Reads gRPC messages from a request without copying them where the transport allows it.
//!
//! A message that arrived within one HTTP/2 frame is a slice of that frame. Only one that spans
//! frames is put together, once, in a buffer of its own size.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http_body::Body;
use prost::Message;

use crate::call::CallError;

/// Compression flag and length before every message.
pub(crate) const PREFIX_BYTES: usize = 5;
/// A buffer for a message that spans frames begins at most this large, whatever its prefix claims.
const FIRST_BUFFER_BYTES: usize = 2 << 20;

/// The messages of one request.
#[derive(Debug)]
pub(crate) struct Messages<B> {
    body: B,
    limit: usize,
    /// What is left of the frame that came last.
    frame: Bytes,
    /// The part of a prefix that came in earlier frames.
    prefix: BytesMut,
    /// Length of the message being read.
    needed: Option<usize>,
    /// The part of that message that came in earlier frames.
    partial: BytesMut,
}

impl<B> Messages<B>
where
    B: Body<Data = Bytes> + Unpin,
{
    /// Messages of at most `limit` bytes.
    pub(crate) fn new(body: B, limit: usize) -> Self {
        Self {
            body,
            limit,
            frame: Bytes::new(),
            prefix: BytesMut::new(),
            needed: None,
            partial: BytesMut::new(),
        }
    }

    /// The next message's bytes; `None` when the caller has half-closed. After an error nothing
    /// more can be read.
    pub(crate) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, CallError>>> {
        loop {
            match self.take() {
                Ok(Some(message)) => return Poll::Ready(Some(Ok(message))),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    // Trailers of a request say nothing to us.
                    if let Ok(data) = frame.into_data() {
                        self.frame = data;
                    }
                }
                Some(Err(_)) => return Poll::Ready(Some(Err(CallError::Cancelled))),
                None => return Poll::Ready(self.cut().map(Err)),
            }
        }
    }

    pub(crate) async fn next(&mut self) -> Option<Result<Bytes, CallError>> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Takes the next message out of what has arrived, or all of it towards the next message.
    fn take(&mut self) -> Result<Option<Bytes>, CallError> {
        let needed = match self.needed {
            Some(needed) => needed,
            None => match self.take_prefix()? {
                Some(needed) => needed,
                None => return Ok(None),
            },
        };
        if self.partial.is_empty() && self.frame.len() >= needed {
            self.needed = None;
            return Ok(Some(self.frame.split_to(needed)));
        }
        if self.partial.is_empty() {
            self.partial.reserve(needed.min(FIRST_BUFFER_BYTES));
        }
        let missing = needed - self.partial.len();
        let part = self.frame.split_to(missing.min(self.frame.len()));
        self.partial.extend_from_slice(&part);
        if self.partial.len() < needed {
            self.needed = Some(needed);
            return Ok(None);
        }
        self.needed = None;
        Ok(Some(self.partial.split().freeze()))
    }

    fn take_prefix(&mut self) -> Result<Option<usize>, CallError> {
        if self.prefix.is_empty() && self.frame.len() >= PREFIX_BYTES {
            let mut prefix = self.frame.split_to(PREFIX_BYTES);
            return self.check_prefix(prefix.get_u8(), prefix.get_u32());
        }
        let missing = PREFIX_BYTES - self.prefix.len();
        let part = self.frame.split_to(missing.min(self.frame.len()));
        self.prefix.extend_from_slice(&part);
        if self.prefix.len() < PREFIX_BYTES {
            return Ok(None);
        }
        let mut prefix = self.prefix.split();
        self.check_prefix(prefix.get_u8(), prefix.get_u32())
    }

    fn check_prefix(&self, compressed: u8, length: u32) -> Result<Option<usize>, CallError> {
        if compressed != 0 {
            return Err(CallError::Compressed);
        }
        let needed = length as usize;
        if needed > self.limit {
            return Err(CallError::MessageTooLarge {
                bytes: u64::from(length),
                limit: self.limit as u64,
            });
        }
        Ok(Some(needed))
    }

    /// What is wrong when the request ends here.
    fn cut(&self) -> Option<CallError> {
        let (needed, found) = match self.needed {
            Some(needed) => (needed, self.partial.len()),
            None if self.prefix.is_empty() => return None,
            None => (PREFIX_BYTES, self.prefix.len()),
        };
        Some(CallError::MessageCut {
            needed: needed as u64,
            found: found as u64,
        })
    }

    /// The only message of a unary request.
    pub(crate) async fn only<M>(mut self, expected: &'static str) -> Result<M, CallError>
    where
        M: Message + Default,
    {
        let message = self.next().await.ok_or(CallError::MessageMissing)??;
        let message = decode(message, expected)?;
        match self.next().await {
            None => Ok(message),
            Some(Ok(_)) => Err(CallError::MessageExtra),
            Some(Err(error)) => Err(error),
        }
    }
}

/// Decodes a message; its `bytes` fields are slices of `message`.
pub(crate) fn decode<M>(message: Bytes, expected: &'static str) -> Result<M, CallError>
where
    M: Message + Default,
{
    M::decode(message).map_err(|_| CallError::MessageMalformed { expected })
}

#[cfg(test)]
mod tests;
