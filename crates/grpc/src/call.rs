//! What the edge itself refuses, before the broker is asked.

use flumen_broker::StreamRef;
use flumen_record::{StreamIncarnation, StreamName};
use thiserror::Error;

/// The stream that a request means: 0 says whichever has the name.
pub(crate) fn meant(name: &StreamName, incarnation: u64) -> StreamRef<'_> {
    StreamRef {
        name,
        incarnation: (incarnation > 0).then(|| StreamIncarnation::new(incarnation)),
    }
}

/// Why a call is not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum CallError {
    /// A message above the limit. The session ends, because it is not read.
    #[error("a message of {bytes} bytes is larger than the limit of {limit} bytes")]
    MessageTooLarge {
        /// What its prefix says.
        bytes: u64,
        /// The server's limit.
        limit: u64,
    },
    /// Bytes that are not the protobuf message the method takes.
    #[error("the request is not a {expected}")]
    MessageMalformed {
        /// The message's type.
        expected: &'static str,
    },
    /// The request ended inside a message.
    #[error("the request ended after {found} of {needed} bytes of a message")]
    MessageCut {
        /// Bytes the message has.
        needed: u64,
        /// Bytes that came.
        found: u64,
    },
    /// A request without a message.
    #[error("the request has no message")]
    MessageMissing,
    /// More than one message where the method takes one.
    #[error("the request has more than one message")]
    MessageExtra,
    /// gRPC message compression; batches carry their own.
    #[error("compressed messages are not supported; compress batches instead")]
    Compressed,
    /// No such method.
    #[error("there is no method {path}")]
    UnknownMethod {
        /// The path asked for.
        path: String,
    },
    /// An Append session is about the stream its first message names.
    #[error("this session appends to {session}; open another one for {asked}")]
    OtherStream {
        /// The session's stream.
        session: String,
        /// The stream a later message names.
        asked: String,
    },
    /// The caller's own deadline.
    #[error("the deadline of the call has passed")]
    DeadlineExceeded,
    /// The caller went away.
    #[error("the call was cancelled")]
    Cancelled,
}

impl CallError {
    /// A stable name for programs (`docs/errors.md` lists them).
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::MessageTooLarge { .. } => "MESSAGE_TOO_LARGE",
            Self::MessageMalformed { .. } => "MESSAGE_MALFORMED",
            Self::MessageCut { .. } => "MESSAGE_CUT",
            Self::MessageMissing => "MESSAGE_MISSING",
            Self::MessageExtra => "MESSAGE_EXTRA",
            Self::Compressed => "MESSAGE_COMPRESSED",
            Self::UnknownMethod { .. } => "METHOD_UNKNOWN",
            Self::OtherStream { .. } => "OTHER_STREAM",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::Cancelled => "CANCELLED",
        }
    }

    /// The refused values, by name, for programs.
    pub(crate) fn metadata(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::MessageTooLarge { bytes, limit } => {
                vec![("bytes", bytes.to_string()), ("limit", limit.to_string())]
            }
            Self::MessageMalformed { expected } => vec![("expected", (*expected).to_owned())],
            Self::MessageCut { needed, found } => {
                vec![("needed", needed.to_string()), ("found", found.to_string())]
            }
            Self::UnknownMethod { path } => vec![("path", path.clone())],
            Self::OtherStream { session, asked } => {
                vec![("stream", session.clone()), ("asked", asked.clone())]
            }
            Self::MessageMissing
            | Self::MessageExtra
            | Self::Compressed
            | Self::DeadlineExceeded
            | Self::Cancelled => Vec::new(),
        }
    }
}
