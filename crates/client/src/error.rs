//! What can go wrong between a program and a broker, and what to do about it.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use flumen_api::v1::Refusal;
use flumen_record::{
    FrameError, RecordError, SequenceNumber, ShardIndex, StreamIncarnation, StreamName,
};
use thiserror::Error;
use tonic::Status;
use tonic_types::StatusExt;

pub use tonic::Code;

/// Stable reasons the client itself acts on (`docs/errors.md` lists all of them).
pub mod reason {
    /// No stream of this name.
    pub const STREAM_NOT_FOUND: &str = "STREAM_NOT_FOUND";
    /// Another stream has the name of the one that is meant: it was deleted and created anew.
    pub const STREAM_REPLACED: &str = "STREAM_REPLACED";
    /// A stream of this name is there already.
    pub const STREAM_EXISTS: &str = "STREAM_EXISTS";
    /// An earlier batch of this producer is missing.
    pub const OUT_OF_SEQUENCE: &str = "OUT_OF_SEQUENCE";
    /// The shard cannot know any more what this producer sent.
    pub const PRODUCER_STATE_LOST: &str = "PRODUCER_STATE_LOST";
    /// The producer id was never issued.
    pub const UNKNOWN_PRODUCER: &str = "UNKNOWN_PRODUCER";
    /// A hash key is outside the shard.
    pub const WRONG_SHARD: &str = "WRONG_SHARD";
    /// No such shard.
    pub const SHARD_NOT_FOUND: &str = "SHARD_NOT_FOUND";
    /// The shard is closed and the batch was not appended.
    pub const SHARD_CLOSED: &str = "SHARD_CLOSED";
    /// Appended before, too long ago to say where.
    pub const ALREADY_APPENDED: &str = "ALREADY_APPENDED";
    /// A batch before it in the session was refused; this one is not stored.
    pub const SESSION_ENDED: &str = "SESSION_ENDED";
    /// The batch may or may not be stored.
    pub const OUTCOME_UNKNOWN: &str = "OUTCOME_UNKNOWN";
    /// The position was trimmed.
    pub const TRIMMED: &str = "TRIMMED";
    /// A sequence number that was never given out.
    pub const BEYOND_END: &str = "BEYOND_END";
    /// Acknowledged data is damaged.
    pub const DATA_LOSS: &str = "DATA_LOSS";
    /// The stream has no group of this name.
    pub const GROUP_NOT_FOUND: &str = "GROUP_NOT_FOUND";
    /// Members are in the way.
    pub const GROUP_IN_USE: &str = "GROUP_IN_USE";
    /// No delivery stream of this name.
    pub const DELIVERY_NOT_FOUND: &str = "DELIVERY_NOT_FOUND";
    /// A delivery stream of this name is there already.
    pub const DELIVERY_EXISTS: &str = "DELIVERY_EXISTS";
    /// A setting of a delivery stream that cannot be run.
    pub const DELIVERY_SETTING: &str = "DELIVERY_SETTING";
    /// The settings were changed by somebody else meanwhile.
    pub const DELIVERY_VERSION: &str = "DELIVERY_VERSION";
    /// A paused delivery stream delivers nothing.
    pub const DELIVERY_PAUSED: &str = "DELIVERY_PAUSED";
    /// A flush or a deletion goes on and was not waited for any longer.
    pub const DELIVERY_UNFINISHED: &str = "DELIVERY_UNFINISHED";
    /// The member was silent for its session timeout.
    pub const MEMBER_EXPIRED: &str = "MEMBER_EXPIRED";
}

/// A call the broker refused, or that did not reach it. Cheap to clone: one failure may answer many
/// waiters.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}", .0.message)]
pub struct Error(Arc<Facts>);

#[derive(Debug, PartialEq, Eq)]
struct Facts {
    code: Code,
    message: Box<str>,
    /// Empty when the failure is not the broker's.
    reason: Box<str>,
    metadata: Vec<(Box<str>, Box<str>)>,
    retry_after: Option<Duration>,
}

impl Error {
    /// The gRPC status code.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// What happened and what to try, in one line for a person.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The stable reason for programs; empty when the failure is the connection's.
    pub fn reason(&self) -> &str {
        &self.0.reason
    }

    /// A refused value by name.
    pub fn metadata(&self, name: &str) -> Option<&str> {
        self.0
            .metadata
            .iter()
            .find(|(n, _)| **n == *name)
            .map(|(_, value)| &**value)
    }

    /// When a retry may succeed, where the broker says so.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// Whether the same call may succeed later without anybody changing its arguments.
    pub fn is_retryable(&self) -> bool {
        match self.code() {
            Code::Unavailable
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::DeadlineExceeded => true,
            // A broken connection appears under these; from the broker they would be a verdict.
            Code::Unknown | Code::Internal | Code::Cancelled => self.reason().is_empty(),
            _ => false,
        }
    }

    /// A status of a call to `endpoint`. What the broker did not say itself names the endpoint.
    pub(crate) fn of_status(status: &Status, endpoint: &str) -> Self {
        let info = status.get_details_error_info();
        let retry_after = status
            .get_details_retry_info()
            .and_then(|retry| retry.retry_delay);
        let Some(info) = info.filter(|info| info.domain == DOMAIN) else {
            let message = format!("{endpoint}: {}", cause(status)).into();
            return Self::local(status.code(), message, retry_after);
        };
        let metadata = info
            .metadata
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()));
        Self(Arc::new(Facts {
            code: status.code(),
            message: status.message().into(),
            reason: info.reason.into(),
            metadata: metadata.collect(),
            retry_after,
        }))
    }

    pub(crate) fn of_refusal(refusal: Refusal) -> Self {
        let metadata = refusal
            .metadata
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()));
        let after = refusal.retry_after_us;
        Self(Arc::new(Facts {
            code: Code::from_i32(refusal.code),
            message: refusal.message.into(),
            reason: refusal.reason.into(),
            metadata: metadata.collect(),
            retry_after: (after > 0).then(|| Duration::from_micros(after)),
        }))
    }

    /// A failure on this side.
    pub(crate) fn local(code: Code, message: Box<str>, retry_after: Option<Duration>) -> Self {
        let (reason, metadata) = (Box::default(), Vec::new());
        Self(Arc::new(Facts {
            code,
            message,
            reason,
            metadata,
            retry_after,
        }))
    }

    /// An answer is about another stream than the one that is meant: what the broker says itself to
    /// whoever names the one.
    pub(crate) fn stream_replaced(
        name: &StreamName,
        expected: StreamIncarnation,
        found: StreamIncarnation,
    ) -> Self {
        let (expected, found) = (expected.to_hex(), found.to_hex());
        let message = format!(
            "stream {name} was deleted and created anew since it was last seen (incarnation \
             {expected}, now {found}); begin anew, from a start position"
        );
        let metadata = [
            ("stream", name.as_str()),
            ("expected", &expected),
            ("found", &found),
        ];
        let metadata = metadata.map(|(name, value)| (name.into(), value.into()));
        Self(Arc::new(Facts {
            code: Code::FailedPrecondition,
            message: message.into(),
            reason: reason::STREAM_REPLACED.into(),
            metadata: metadata.into(),
            retry_after: None,
        }))
    }

    /// No answer came in time.
    pub(crate) fn timed_out(endpoint: &str, waited: Duration) -> Self {
        let message = format!("{endpoint}: no answer within {} ms", waited.as_millis());
        Self::local(Code::DeadlineExceeded, message.into(), None)
    }

    /// The session ended without a word.
    pub(crate) fn session_ended(endpoint: &str) -> Self {
        let message = format!("{endpoint}: the broker ended the session");
        Self::local(Code::Unavailable, message.into(), None)
    }

    /// An answer that says something no broker of this version says.
    pub(crate) fn nonsense(endpoint: &str, what: &str) -> Self {
        let message = format!("{endpoint}: the answer makes no sense: {what}");
        Self::local(Code::DataLoss, message.into(), None)
    }
}

/// The domain of the broker's own reasons.
const DOMAIN: &str = "flumen";

/// The innermost words of a failure that did not come from the broker.
fn cause(status: &Status) -> String {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = status.source();
    let mut words = None;
    while let Some(error) = cause {
        words = Some(error.to_string());
        cause = error.source();
    }
    words.unwrap_or_else(|| status.message().to_owned())
}

/// Why a record was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SendError {
    /// It can never be stored; nothing was sent.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The broker refused it for good. It is not stored.
    #[error("refused, not stored: {0}")]
    Refused(Error),
    /// The retry budget ran out. It is not stored: no attempt reached the shard's log.
    #[error("not stored, given up after {} s: {last}", waited.as_secs())]
    NotStored {
        /// How long nothing moved.
        waited: Duration,
        /// The last failure.
        last: Error,
    },
    /// It was sent and never answered: it may or may not be stored (once at most).
    #[error("outcome unknown after {} s: {last}", waited.as_secs())]
    OutcomeUnknown {
        /// How long nothing moved.
        waited: Duration,
        /// The last failure.
        last: Error,
    },
    /// The producer was closed before the record was taken.
    #[error("the producer is closed")]
    Closed,
}

/// Why a consumer cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConsumeError {
    /// The next records were trimmed before they were read.
    #[error("shard {shard}: records {asked} up to {horizon} were trimmed before they were read")]
    Trimmed {
        /// The shard.
        shard: ShardIndex,
        /// What was to be read next.
        asked: SequenceNumber,
        /// The oldest record kept.
        horizon: SequenceNumber,
    },
    /// The next records are damaged on the broker's disk.
    #[error("shard {shard}: records {from} up to {to} are lost; run `flumen doctor` on the broker")]
    DataLoss {
        /// The shard.
        shard: ShardIndex,
        /// First that cannot be read.
        from: SequenceNumber,
        /// First after it that can.
        to: SequenceNumber,
    },
    /// What arrives is not a valid frame, also when asked again.
    #[error("shard {shard}: what follows record {next} is damaged: {error}")]
    Damaged {
        /// The shard.
        shard: ShardIndex,
        /// What was to be read next.
        next: SequenceNumber,
        /// What is wrong.
        error: FrameError,
    },
    /// The stream has no such shard.
    #[error("the stream has no shard {shard}")]
    ShardNotFound {
        /// The shard asked for.
        shard: ShardIndex,
    },
    /// The broker refused for good.
    #[error(transparent)]
    Refused(Error),
    /// The retry budget ran out.
    #[error("given up after {} s: {last}", waited.as_secs())]
    Unavailable {
        /// How long nothing moved.
        waited: Duration,
        /// The last failure.
        last: Error,
    },
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn a_status_of_the_broker_keeps_its_facts() {
        let mut details = ErrorDetails::new();
        details.set_error_info(
            "TRIMMED",
            "flumen",
            [("horizon".to_owned(), "7".to_owned())],
        );
        details.set_retry_info(Some(Duration::from_millis(40)));
        let status = Status::with_error_details(Code::OutOfRange, "gone", details);
        let error = Error::of_status(&status, "http://h:1");
        assert_eq!(
            (error.code(), error.reason(), error.message()),
            (Code::OutOfRange, "TRIMMED", "gone")
        );
        assert_eq!(
            (error.metadata("horizon"), error.metadata("x")),
            (Some("7"), None)
        );
        assert_eq!(error.retry_after(), Some(Duration::from_millis(40)));
        assert!(!error.is_retryable());
    }

    #[test]
    fn a_failure_of_the_connection_names_the_endpoint_and_is_worth_a_retry() {
        let error = Error::of_status(&Status::unknown("broken pipe"), "http://h:1");
        assert_eq!(error.to_string(), "http://h:1: broken pipe");
        assert!(error.is_retryable() && error.reason().is_empty());
        assert!(!Error::of_status(&Status::unimplemented("no"), "http://h:1").is_retryable());
    }

    #[test]
    fn a_refusal_in_an_ack_is_an_error_like_any_other() {
        let refusal = Refusal {
            code: Code::ResourceExhausted as i32,
            message: "slow down".to_owned(),
            reason: "THROTTLED".to_owned(),
            metadata: HashMap::new(),
            retry_after_us: 2_000,
        };
        let error = Error::of_refusal(refusal);
        assert_eq!(error.retry_after(), Some(Duration::from_millis(2)));
        assert!(error.is_retryable());
    }
}
