//! What a refusal of the broker means for the batch it refuses. Pure.

use tonic::Code;

use super::shard_queue::{Answer, Refusal};
use crate::{Error, reason};

/// The answer that an ack's refusal is.
pub(crate) fn verdict(error: &Error) -> Answer {
    let refusal = match error.reason() {
        reason::ALREADY_APPENDED => return Answer::Stored,
        reason::OUT_OF_SEQUENCE => Refusal::OutOfSequence,
        reason::PRODUCER_STATE_LOST | reason::UNKNOWN_PRODUCER => Refusal::StateLost,
        reason::WRONG_SHARD | reason::SHARD_CLOSED | reason::SHARD_NOT_FOUND => Refusal::Elsewhere,
        reason::SESSION_ENDED => Refusal::Later,
        reason::OUTCOME_UNKNOWN => Refusal::Unknown,
        _ => match error.code() {
            // Not an answer about this batch but about how the broker fares.
            Code::Internal | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded => {
                Refusal::Unknown
            }
            _ if error.is_retryable() => Refusal::Later,
            _ => Refusal::Never,
        },
    };
    Answer::Refused(refusal)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(code: Code, reason: &str, expected: Answer) {
        let refusal = flumen_api::v1::Refusal {
            code: code as i32,
            reason: reason.to_owned(),
            ..Default::default()
        };
        assert_eq!(
            verdict(&Error::of_refusal(refusal)),
            expected,
            "{code:?} {reason}"
        );
    }

    #[test]
    fn refusals_by_reason_then_by_code() {
        use Answer::{Refused, Stored};
        check(Code::AlreadyExists, "ALREADY_APPENDED", Stored);
        check(
            Code::FailedPrecondition,
            "OUT_OF_SEQUENCE",
            Refused(Refusal::OutOfSequence),
        );
        check(
            Code::FailedPrecondition,
            "PRODUCER_STATE_LOST",
            Refused(Refusal::StateLost),
        );
        check(
            Code::FailedPrecondition,
            "UNKNOWN_PRODUCER",
            Refused(Refusal::StateLost),
        );
        check(
            Code::FailedPrecondition,
            "WRONG_SHARD",
            Refused(Refusal::Elsewhere),
        );
        check(
            Code::FailedPrecondition,
            "SHARD_CLOSED",
            Refused(Refusal::Elsewhere),
        );
        check(
            Code::NotFound,
            "SHARD_NOT_FOUND",
            Refused(Refusal::Elsewhere),
        );
        check(
            Code::ResourceExhausted,
            "THROTTLED",
            Refused(Refusal::Later),
        );
        check(
            Code::ResourceExhausted,
            "QUEUE_FULL",
            Refused(Refusal::Later),
        );
        check(
            Code::ResourceExhausted,
            "STORAGE_FULL",
            Refused(Refusal::Later),
        );
        check(Code::Unavailable, "DRAINING", Refused(Refusal::Later));
        check(
            Code::Unavailable,
            "OUTCOME_UNKNOWN",
            Refused(Refusal::Unknown),
        );
        check(Code::Internal, "IO", Refused(Refusal::Unknown));
        check(
            Code::InvalidArgument,
            "RECORD_TOO_LARGE",
            Refused(Refusal::Never),
        );
        check(
            Code::FailedPrecondition,
            "SEQUENCE_REUSED",
            Refused(Refusal::Never),
        );
        check(Code::NotFound, "STREAM_NOT_FOUND", Refused(Refusal::Never));
    }
}
