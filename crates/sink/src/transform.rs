//! The HTTP transform: what Lambda is to Firehose (row F9).
//!
//! Batches go as one POST each: `{invocationId, deliveryStreamArn, region, sourceKinesisStreamArn?,
//! records[{recordId, approximateArrivalTimestamp, data, kinesisRecordMetadata}]}`, times in
//! milliseconds, data in base64. The reply has each `recordId` once, with `result` `Ok`, `Dropped` or
//! `ProcessingFailed`, for `Ok` with `data`, and perhaps `metadata.partitionKeys`. What fails is tried
//! again as often as the settings say, then its records fail; an endpoint that is away is no other
//! case, but is told apart in [`Invocation::error`]. Redirects are not followed, and proxies of the
//! environment not used.

mod wire;

use std::time::Duration;

use bytes::Bytes;
use flumen_broker::{Clock, HttpTransform};
use md5::{Digest, Md5};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, StatusCode, Url};

use crate::unit::{ErrorType, Failure, Unit};
use flumen_broker::SettingRefused;

/// Bytes of a request or a reply at most.
pub(crate) const MAX_BODY_BYTES: usize = 6 << 20;
/// Records of a request at most.
const MAX_BATCH_RECORDS: usize = 10_000;
/// The pause after the first attempt, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// What settings may say.
const BATCH_BYTES: std::ops::RangeInclusive<u64> = 200_000..=3 << 20;
const MAX_RETRIES: u32 = 300;
const MAX_TIMEOUT_MS: u64 = 300_000;

/// What the transform says about one unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TransformOutcome {
    /// It goes on with this data.
    Ok {
        /// The data.
        data: Bytes,
        /// Partition keys by name (`!{partitionKeyFromLambda:…}`), sorted.
        keys: Vec<(String, String)>,
    },
    /// Dropped on purpose.
    Dropped,
    /// It goes to the error prefix.
    Failed(Failure),
}

/// How one batch fared.
#[derive(Debug)]
pub(crate) struct Invocation {
    /// Each unit, in the order they came in.
    pub(crate) outcomes: Vec<(Unit, TransformOutcome)>,
    /// Attempts that were made, from 1; 0 if the batch is too large to be tried.
    pub(crate) attempts: u32,
    /// What went wrong last, also if another attempt succeeded.
    pub(crate) error: Option<InvocationError>,
}

/// An attempt has failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvocationError {
    /// Nobody answers there.
    #[error("the transform cannot be reached: {fault}")]
    Unreachable {
        /// What the client says.
        fault: String,
    },
    /// No answer in time.
    #[error("the transform did not answer within {timeout:?}")]
    Timeout {
        /// How long was waited.
        timeout: Duration,
    },
    /// An answer other than success.
    #[error("the transform answered with status {status}")]
    Status {
        /// Its status.
        status: u16,
    },
    /// The answer breaks the contract.
    #[error("the transform's reply is not as agreed: {fault}")]
    Reply {
        /// How.
        fault: String,
    },
    /// The request would be too large.
    #[error("the request would be {bytes} bytes long, of at most {MAX_BODY_BYTES}")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
}

impl InvocationError {
    /// Whether the endpoint is away, rather than wrong: waiting may mend it.
    pub(crate) fn is_away(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Timeout { .. } => true,
            Self::Status { status } => *status >= 500 || *status == 429,
            Self::Reply { .. } | Self::TooLarge { .. } => false,
        }
    }

    fn is_worth_another_attempt(&self) -> bool {
        self.is_away() || matches!(self, Self::Status { status: 408 | 425 })
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } | Self::Status { .. } => "Transform.InvocationFailed",
            Self::Timeout { .. } => "Transform.Timeout",
            Self::Reply { .. } => "Transform.InvalidReply",
            Self::TooLarge { .. } => "Transform.TooLarge",
        }
    }
}

/// What the transform is told about where records come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TransformSource {
    /// ARN of the delivery stream.
    pub(crate) delivery_arn: String,
    /// ARN of the stream it reads; none for direct puts.
    pub(crate) stream_arn: Option<String>,
    /// Region of both.
    pub(crate) region: String,
}

/// An HTTP transform. Send and Sync; `run` may run several times at once.
#[derive(Debug)]
pub(crate) struct Transform {
    client: Client,
    url: Url,
    headers: HeaderMap,
    batch_bytes: u64,
    retries: u32,
    timeout: Duration,
    source: TransformSource,
    clock: Clock,
}

impl Transform {
    /// Reads the settings.
    pub(crate) fn compile(
        settings: &HttpTransform,
        source: TransformSource,
        clock: Clock,
    ) -> Result<Self, SettingRefused> {
        let refused = |reason: String| Err(SettingRefused::new("processing.transform", reason));
        let url = match Url::parse(&settings.url) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => url,
            _ => return refused(format!("{:?} is no http:// or https:// URL", settings.url)),
        };
        if !BATCH_BYTES.contains(&settings.batch_bytes) {
            return refused("batch_bytes must be 200000 to 3145728".to_owned());
        }
        if settings.retries > MAX_RETRIES {
            return refused(format!("retries must be at most {MAX_RETRIES}"));
        }
        if !(1..=MAX_TIMEOUT_MS).contains(&settings.timeout_ms) {
            return refused(format!("timeout_ms must be 1 to {MAX_TIMEOUT_MS}"));
        }
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        for (name, value) in &settings.headers {
            let (Ok(of), Ok(value)) = (name.parse::<HeaderName>(), value.parse()) else {
                return refused(format!("{name:?} and its value cannot be a header"));
            };
            headers.insert(of, value);
        }
        let client = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build();
        let Ok(client) = client else {
            return refused(
                "there is no HTTP client: look at the system's certificates".to_owned(),
            );
        };
        Ok(Self {
            client,
            url,
            headers,
            batch_bytes: settings.batch_bytes,
            retries: settings.retries,
            timeout: Duration::from_millis(settings.timeout_ms),
            source,
            clock,
        })
    }

    /// Batches within the bounds of a request, in order. Equal units make equal batches.
    pub(crate) fn split(&self, units: Vec<Unit>) -> Vec<Vec<Unit>> {
        let (mut batches, mut batch) = (Vec::new(), Vec::new());
        let (mut data, mut body) = (0_u64, 0_usize);
        for unit in units {
            let (more_data, more_body) = (unit.data.len() as u64, wire::body_bytes(&unit));
            let full = data + more_data > self.batch_bytes
                || body + more_body > MAX_BODY_BYTES
                || batch.len() == MAX_BATCH_RECORDS;
            if full && !batch.is_empty() {
                batches.push(std::mem::take(&mut batch));
                (data, body) = (0, 0);
            }
            batch.push(unit);
            (data, body) = (data + more_data, body + more_body);
        }
        if !batch.is_empty() {
            batches.push(batch);
        }
        batches
    }

    /// Hands one batch over, tries again as the settings say, and says what becomes of each unit.
    pub(crate) async fn run(&self, invocation_id: &str, units: Vec<Unit>) -> Invocation {
        let body = Bytes::from(wire::request(invocation_id, &self.source, &units));
        if body.len() > MAX_BODY_BYTES {
            let error = InvocationError::TooLarge { bytes: body.len() };
            return failed(units, error, 0);
        }
        let (mut attempts, mut before) = (0, None);
        loop {
            attempts += 1;
            let outcome = match self.attempt(body.clone()).await {
                Ok(reply) => wire::outcomes(&reply, units.len(), attempts),
                Err(error) => Err(error),
            };
            match outcome {
                Ok(outcomes) => {
                    return Invocation {
                        outcomes: units.into_iter().zip(outcomes).collect(),
                        attempts,
                        error: before,
                    };
                }
                Err(error) if attempts > self.retries || !error.is_worth_another_attempt() => {
                    return failed(units, error, attempts);
                }
                Err(error) => before = Some(error),
            }
            self.clock.sleep(pause(invocation_id, attempts)).await;
        }
    }

    async fn attempt(&self, body: Bytes) -> Result<Vec<u8>, InvocationError> {
        let request = self
            .client
            .post(self.url.clone())
            .headers(self.headers.clone());
        let request = request.body(body).timeout(self.timeout);
        let told = |error: reqwest::Error| {
            if error.is_timeout() {
                let timeout = self.timeout;
                return InvocationError::Timeout { timeout };
            }
            InvocationError::Unreachable {
                fault: causes(&error.without_url()),
            }
        };
        let mut response = request.send().await.map_err(told)?;
        if response.status() != StatusCode::OK {
            let status = response.status().as_u16();
            return Err(InvocationError::Status { status });
        }
        let mut reply = Vec::new();
        while let Some(more) = response.chunk().await.map_err(told)? {
            if reply.len() + more.len() > MAX_BODY_BYTES {
                let fault = format!("it is longer than {MAX_BODY_BYTES} bytes");
                return Err(InvocationError::Reply { fault });
            }
            reply.extend_from_slice(&more);
        }
        Ok(reply)
    }
}

fn failed(units: Vec<Unit>, error: InvocationError, attempts: u32) -> Invocation {
    let failure = Failure {
        kind: ErrorType::ProcessingFailed,
        code: error.code(),
        message: error.to_string(),
        attempts,
    };
    let outcome = |unit| (unit, TransformOutcome::Failed(failure.clone()));
    Invocation {
        outcomes: units.into_iter().map(outcome).collect(),
        attempts,
        error: Some(error),
    }
}

/// An error and what is behind it, in one line.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// How long to wait after so many attempts: twice as long each time, and half of it by chance, which
/// derives from the invocation so that many do not come at once.
fn pause(invocation_id: &str, attempts: u32) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1 << attempts.saturating_sub(1).min(16));
    let mut digest = Md5::new();
    digest.update(invocation_id);
    digest.update(attempts.to_le_bytes());
    let [chance, ..]: [u8; 16] = digest.finalize().into();
    doubled
        .min(LONGEST_PAUSE)
        .mul_f64(0.5 + f64::from(chance) / 512.0)
}

#[cfg(test)]
mod tests;
