//! What goes wrong between the sink and a store, and what that means for trying again.

use std::path::PathBuf;
use std::time::Duration;

use object_store::client::{HttpError, HttpErrorKind};

use super::answer::{ServerAnswer, source};
use super::credentials::CredentialError;
use super::{Found, Tag};

/// Why an operation on a store failed.
///
/// Three kinds: what passes by itself (tried again without end), what somebody must mend outside
/// ([`StoreError::needs_somebody`]: tried again at a slow pace, since it may be mended any time), and
/// what trying again cannot mend ([`StoreError::is_permanent`]).
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store asks for fewer requests.
    #[error("the store asks to slow down (status {status} {code}); it is tried again later")]
    SlowDown {
        /// HTTP status.
        status: u16,
        /// S3's error code, or empty.
        code: String,
    },
    /// No answer, or only a part of one.
    #[error("the store cannot be reached: {detail}; check the endpoint and the network")]
    Unreachable {
        /// What the connection said.
        detail: String,
        /// Whether the request may have been received.
        sent: bool,
    },
    /// No answer in time.
    #[error("no answer from the store in {after:?}")]
    TimedOut {
        /// How long was waited.
        after: Duration,
    },
    /// The store failed.
    #[error("the store failed (status {status} {code}); it is tried again")]
    Server {
        /// HTTP status.
        status: u16,
        /// S3's error code, or empty.
        code: String,
    },
    /// Access is refused: wrong or expired credentials, or a missing permission.
    #[error(
        "access is denied (status {status} {code}); check the credentials and the bucket's policy"
    )]
    Denied {
        /// HTTP status.
        status: u16,
        /// S3's error code, or empty.
        code: String,
    },
    /// There are no credentials to sign with.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    /// The bucket is not there.
    #[error("there is no bucket at {destination}; create it, or correct the destination")]
    NoSuchBucket {
        /// The destination.
        destination: String,
    },
    /// Under this key is an object that another cut wrote, or another program; or the same cut, with
    /// other content.
    #[error(
        "there is another object at {key} ({found}); something else writes under this prefix: move that object, or choose another prefix"
    )]
    Conflict {
        /// The key.
        key: String,
        /// What is there.
        found: Box<Found>,
    },
    /// A create was refused, and nothing is there: another request is on its way, or the object was
    /// removed at that moment.
    #[error("{key} was refused as present, and is absent; it is tried again")]
    Contended {
        /// The key.
        key: String,
    },
    /// Larger than the limit of whoever writes or reads it.
    #[error("{key} has {bytes} bytes, the limit is {bytes_max}")]
    TooLarge {
        /// The key.
        key: String,
        /// Its size.
        bytes: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// The store does not take the request.
    #[error(
        "the store refuses the request (status {status} {code}); check region, endpoint and object settings"
    )]
    Refused {
        /// HTTP status.
        status: u16,
        /// S3's error code, or empty.
        code: String,
    },
    /// A key that no store can be asked for.
    #[error("`{key}` is no key: {why}")]
    BadKey {
        /// The key.
        key: String,
        /// What is wrong.
        why: &'static str,
    },
    /// Nothing is there.
    #[error("there is nothing at {key}")]
    Missing {
        /// The key.
        key: String,
    },
    /// The body ended early.
    #[error("of {key} came {got} of {bytes} bytes; it is read again")]
    Truncated {
        /// The key.
        key: String,
        /// What came.
        got: u64,
        /// Its size.
        bytes: u64,
    },
    /// The file system of a directory failed.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was tried: `write`, `open`, ….
        doing: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

impl StoreError {
    /// Stable, for programs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::SlowDown { .. } => "slow_down",
            Self::Unreachable { .. } => "unreachable",
            Self::TimedOut { .. } => "timeout",
            Self::Server { .. } => "server_error",
            Self::Denied { .. } => "denied",
            Self::Credentials(_) => "no_credentials",
            Self::NoSuchBucket { .. } => "no_such_bucket",
            Self::Conflict { .. } => "conflict",
            Self::Contended { .. } => "contended",
            Self::TooLarge { .. } => "too_large",
            Self::Refused { .. } => "refused",
            Self::BadKey { .. } => "bad_key",
            Self::Missing { .. } => "missing",
            Self::Truncated { .. } => "truncated",
            Self::Io { source, .. } => match source.kind() {
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => "disk_full",
                std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
                    "denied"
                }
                _ => "io",
            },
        }
    }

    /// Whether fewer requests should be made, by everybody who writes to this store.
    pub fn is_throttle(&self) -> bool {
        matches!(self, Self::SlowDown { .. })
    }

    /// Whether trying again cannot mend it.
    pub fn is_permanent(&self) -> bool {
        matches!(
            self,
            Self::Conflict { .. }
                | Self::TooLarge { .. }
                | Self::Refused { .. }
                | Self::BadKey { .. }
        )
    }

    /// Whether it lasts until somebody does something outside: try at a slow pace.
    pub fn needs_somebody(&self) -> bool {
        matches!(
            self,
            Self::Denied { .. } | Self::Credentials(_) | Self::NoSuchBucket { .. }
        ) || matches!(self.reason(), "disk_full" | "denied")
    }

    /// Whether it is certain that nothing was stored.
    pub(crate) fn is_definite(&self) -> bool {
        match self {
            Self::Unreachable { sent, .. } => !sent,
            Self::Denied { .. }
            | Self::Credentials(_)
            | Self::NoSuchBucket { .. }
            | Self::TooLarge { .. }
            | Self::Refused { .. }
            | Self::BadKey { .. } => true,
            // A full disk, say, comes before the file has its name, or after: it is looked at.
            Self::SlowDown { .. }
            | Self::TimedOut { .. }
            | Self::Server { .. }
            | Self::Conflict { .. }
            | Self::Contended { .. }
            | Self::Missing { .. }
            | Self::Truncated { .. }
            | Self::Io { .. } => false,
        }
    }
}

/// What an operation of `object_store` came to, as far as it did not succeed.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Something is there already, or another request is creating it.
    There,
    /// Nothing is there.
    Missing,
    /// The store has no such operation (it does not know conditions).
    Unsupported,
    /// Anything else.
    Failed(StoreError),
}

/// What an error of `object_store` means. `destination` is for what is said of it.
pub(crate) fn classify(error: &object_store::Error, destination: &str) -> Outcome {
    if let Some(answer) = ServerAnswer::behind(error) {
        return answered(answer, destination);
    }
    if let Some(refused) = source::<CredentialError>(error) {
        return Outcome::Failed(StoreError::Credentials(refused.clone()));
    }
    match error {
        object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. } => {
            return Outcome::There;
        }
        object_store::Error::NotFound { .. } => return Outcome::Missing,
        object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. } => {
            return Outcome::Unsupported;
        }
        _ => {}
    }
    let kind = source::<HttpError>(error).map(HttpError::kind);
    let mut detail = innermost(error);
    if detail.contains(NO_TLS) {
        "the server answers without TLS, as one at http:// does".clone_into(&mut detail);
    }
    Outcome::Failed(StoreError::Unreachable {
        detail,
        sent: kind != Some(HttpErrorKind::Connect),
    })
}

/// What rustls says to bytes that are no TLS at all.
const NO_TLS: &str = "corrupt message of type InvalidContentType";

/// The error that all began with: what is wrapped around it names requests, and repeats it.
pub(crate) fn innermost(error: &object_store::Error) -> String {
    let mut innermost: &(dyn std::error::Error + 'static) = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// S3's codes for what passes by itself, though the status says otherwise.
const PASSING: &[&str] = &[
    "RequestTimeout",
    "IncompleteBody",
    "BadDigest",
    "XAmzContentSHA256Mismatch",
    "XAmzContentChecksumMismatch",
    "InternalError",
];
/// S3's codes for too many requests.
const THROTTLES: &[&str] = &[
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "TooManyRequests",
    "TooManyRequestsException",
];
/// S3's codes for credentials it does not take, which come with several statuses.
const DENIALS: &[&str] = &[
    "AccessDenied",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
];

fn answered(answer: &ServerAnswer, destination: &str) -> Outcome {
    let status = answer.status;
    let code = || answer.code.clone();
    let known = |codes: &[&str]| codes.contains(&answer.code.as_str());
    Outcome::Failed(match status {
        _ if known(THROTTLES) => StoreError::SlowDown {
            status,
            code: code(),
        },
        429 | 503 => StoreError::SlowDown {
            status,
            code: code(),
        },
        _ if known(DENIALS) => StoreError::Denied {
            status,
            code: code(),
        },
        401 | 403 => StoreError::Denied {
            status,
            code: code(),
        },
        _ if answer.code == "NoSuchBucket" => StoreError::NoSuchBucket {
            destination: destination.to_owned(),
        },
        404 => return Outcome::Missing,
        409 | 412 => return Outcome::There,
        501 => return Outcome::Unsupported,
        408 | 500.. => StoreError::Server {
            status,
            code: code(),
        },
        _ if known(PASSING) => StoreError::Server {
            status,
            code: code(),
        },
        _ => StoreError::Refused {
            status,
            code: code(),
        },
    })
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.bytes)?;
        match &self.cut {
            Some(cut) => write!(f, " of cut {cut}"),
            None => write!(f, " without a cut id"),
        }
    }
}

impl Found {
    /// Whether the same cut wrote this, and what would be written now. `None`: the store does not say
    /// what its content is.
    pub(crate) fn is_of(&self, tag: &Tag) -> Option<bool> {
        let is_so = self.cut.as_deref().is_none_or(|cut| cut == tag.cut) && self.bytes == tag.bytes;
        match (is_so, &self.cut, self.crc32) {
            (true, Some(_), Some(crc32)) => Some(crc32 == tag.crc32),
            // Some file systems and gateways keep no metadata.
            (true, None, _) | (true, _, None) => None,
            (false, ..) => Some(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(status: u16, code: &str) -> String {
        let answer = ServerAnswer {
            status,
            code: code.to_owned(),
        };
        match answered(&answer, "s3://b") {
            Outcome::There => "there".to_owned(),
            Outcome::Missing => "missing".to_owned(),
            Outcome::Unsupported => "unsupported".to_owned(),
            Outcome::Failed(error) => {
                let kind = match (
                    error.is_permanent(),
                    error.needs_somebody(),
                    error.is_throttle(),
                ) {
                    (true, false, false) => "permanent",
                    (false, true, false) => "slow",
                    (false, false, true) => "throttle",
                    (false, false, false) => "again",
                    _ => "muddled",
                };
                let definite = if error.is_definite() {
                    "definite"
                } else {
                    "open"
                };
                format!("{} {kind} {definite}", error.reason())
            }
        }
    }

    #[test]
    fn answers_mean_what_they_mean() {
        let table = [
            (503, "SlowDown", "slow_down throttle open"),
            (503, "", "slow_down throttle open"),
            (429, "", "slow_down throttle open"),
            (400, "RequestLimitExceeded", "slow_down throttle open"),
            (500, "InternalError", "server_error again open"),
            (502, "", "server_error again open"),
            (408, "", "server_error again open"),
            (400, "RequestTimeout", "server_error again open"),
            (400, "BadDigest", "server_error again open"),
            (403, "AccessDenied", "denied slow definite"),
            (403, "SignatureDoesNotMatch", "denied slow definite"),
            (400, "ExpiredToken", "denied slow definite"),
            (401, "", "denied slow definite"),
            (404, "NoSuchBucket", "no_such_bucket slow definite"),
            (404, "NoSuchKey", "missing"),
            (404, "", "missing"),
            (409, "ConditionalRequestConflict", "there"),
            (412, "PreconditionFailed", "there"),
            (501, "NotImplemented", "unsupported"),
            (413, "", "refused permanent definite"),
            (400, "EntityTooLarge", "refused permanent definite"),
            (400, "InvalidStorageClass", "refused permanent definite"),
            (301, "PermanentRedirect", "refused permanent definite"),
        ];
        for (status, code, expected) in table {
            assert_eq!(outcome(status, code), expected, "{status} {code}");
        }
    }

    #[test]
    fn a_connection_that_never_was_sent_nothing() {
        let check = |kind: HttpErrorKind, expected: bool| {
            let error = object_store::Error::Generic {
                store: "S3",
                source: Box::new(HttpError::new(kind, std::io::Error::other("no route"))),
            };
            let Outcome::Failed(error) = classify(&error, "s3://b") else {
                panic!("{kind:?}")
            };
            assert_eq!(error.is_definite(), expected, "{kind:?}");
            assert!(error.to_string().contains("no route"), "{error}");
        };
        check(HttpErrorKind::Connect, true);
        check(HttpErrorKind::Timeout, false);
        check(HttpErrorKind::Interrupted, false);
        check(HttpErrorKind::Request, false);
    }
}
