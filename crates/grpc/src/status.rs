//! From refusals to gRPC statuses: the only place that knows a status code.
//!
//! A status and a [`v1::Refusal`] inside a reply carry the same facts: code, text, a stable reason
//! (`docs/errors.md`), the refused values, and when a retry may succeed.

use std::time::Duration;

use flumen_api::convert::ConvertError;
use flumen_api::v1;
use flumen_broker::{Error, ErrorKind};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::call::CallError;

/// The `domain` of every `google.rpc.ErrorInfo`.
pub const ERROR_DOMAIN: &str = "flumen";

/// A value in the metadata is cut off here: all of it must fit into response headers.
const VALUE_CHARACTERS: usize = 256;

/// What there is to say about one refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    code: Code,
    message: String,
    reason: &'static str,
    metadata: Vec<(&'static str, String)>,
    retry_after: Option<Duration>,
}

/// `surface.md`, "On the wire".
fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::Invalid => Code::InvalidArgument,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::Conflict => Code::FailedPrecondition,
        ErrorKind::Throttled | ErrorKind::Full => Code::ResourceExhausted,
        ErrorKind::Expired => Code::OutOfRange,
        ErrorKind::Corrupt => Code::DataLoss,
        ErrorKind::Unavailable | ErrorKind::Poisoned => Code::Unavailable,
        ErrorKind::Internal => Code::Internal,
    }
}

impl From<Error> for Facts {
    fn from(error: Error) -> Self {
        Self {
            code: code(error.kind()),
            message: error.to_string(),
            reason: error.reason(),
            metadata: error.metadata(),
            retry_after: error.retry_after(),
        }
    }
}

impl From<ConvertError> for Facts {
    fn from(error: ConvertError) -> Self {
        Self {
            code: Code::InvalidArgument,
            message: error.to_string(),
            reason: error.reason(),
            metadata: error.metadata(),
            retry_after: None,
        }
    }
}

impl From<CallError> for Facts {
    fn from(error: CallError) -> Self {
        let code = match &error {
            CallError::MessageTooLarge { .. } => Code::ResourceExhausted,
            CallError::MessageMalformed { .. }
            | CallError::MessageCut { .. }
            | CallError::MessageMissing
            | CallError::MessageExtra
            | CallError::OtherStream { .. } => Code::InvalidArgument,
            CallError::Compressed | CallError::UnknownMethod { .. } => Code::Unimplemented,
            CallError::DeadlineExceeded => Code::DeadlineExceeded,
            CallError::Cancelled => Code::Cancelled,
        };
        Self {
            code,
            message: error.to_string(),
            reason: error.reason(),
            metadata: error.metadata(),
            retry_after: None,
        }
    }
}

impl Facts {
    /// The same with one more refused value.
    pub(crate) fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        if self.metadata.iter().all(|(known, _)| *known != name) {
            self.metadata.push((name, value.to_string()));
        }
        self
    }

    fn pairs(metadata: Vec<(&'static str, String)>) -> impl Iterator<Item = (String, String)> {
        metadata.into_iter().map(|(name, value)| {
            let value = match value.char_indices().nth(VALUE_CHARACTERS) {
                Some((end, _)) => value.get(..end).unwrap_or_default().to_owned(),
                None => value,
            };
            (name.to_owned(), value)
        })
    }
}

impl From<Facts> for Status {
    fn from(facts: Facts) -> Self {
        let metadata: std::collections::HashMap<_, _> = Facts::pairs(facts.metadata).collect();
        let mut details = ErrorDetails::with_error_info(facts.reason, ERROR_DOMAIN, metadata);
        if let Some(delay) = facts.retry_after {
            details.set_retry_info(Some(delay));
        }
        Self::with_error_details(facts.code, facts.message, details)
    }
}

impl From<Facts> for v1::Refusal {
    fn from(facts: Facts) -> Self {
        let retry_after = facts.retry_after.unwrap_or_default();
        Self {
            code: facts.code.into(),
            message: facts.message,
            reason: facts.reason.to_owned(),
            metadata: Facts::pairs(facts.metadata).collect(),
            retry_after_us: u64::try_from(retry_after.as_micros()).unwrap_or(u64::MAX),
        }
    }
}

#[cfg(test)]
mod tests;
