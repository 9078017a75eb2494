//! What a server answers when it refuses, as a value: status and S3 error code.
//!
//! `object_store` keeps both inside an error that cannot be looked into, and tells some refusals
//! apart that mean the same, and some not that differ (`SlowDown` from `InternalError`). Below its
//! client, answers that are no success are therefore turned into [`ServerAnswer`], which is found
//! again as a source of the error that comes out on top.
//!
//! This is also where requests of a race are held together ([`Gate`]).

use std::error::Error as StdError;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService,
};
use tokio::sync::watch;

/// Of the body of a refusal, this much is read to find its code.
const BODY_BYTES_MAX: usize = 64 << 10;
/// Sources of an error that are looked through.
const SOURCES_MAX: usize = 16;

/// An answer that is no success.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("HTTP status {status} {code}")]
pub(crate) struct ServerAnswer {
    /// HTTP status.
    pub(crate) status: u16,
    /// S3's error code (`NoSuchBucket`, …); empty where the server names none.
    pub(crate) code: String,
}

impl ServerAnswer {
    /// The answer that led to this error, if one did.
    pub(crate) fn behind<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Self> {
        source(error)
    }
}

/// The first error of this type among an error and what led to it.
pub(crate) fn source<'a, T: StdError + 'static>(
    error: &'a (dyn StdError + 'static),
) -> Option<&'a T> {
    let first: Option<&'a (dyn StdError + 'static)> = Some(error);
    std::iter::successors(first, |error: &&'a (dyn StdError + 'static)| {
        (*error).source()
    })
    .take(SOURCES_MAX)
    .find_map(|error| error.downcast_ref())
}

/// Makes clients whose refusals are [`ServerAnswer`]s.
#[derive(Debug)]
pub(crate) struct AnswerConnector {
    /// What it connects with.
    pub(crate) client: reqwest::Client,
}

impl HttpConnector for AnswerConnector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(AnswerService {
            plain: HttpClient::new(self.client.clone()),
            client: self.client.clone(),
        }))
    }
}

#[derive(Debug)]
struct AnswerService {
    plain: HttpClient,
    client: reqwest::Client,
}

#[async_trait]
impl HttpService for AnswerService {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let response = match request.extensions().get::<Racer>().cloned() {
            Some(racer) => self.race(request, racer).await?,
            None => self.plain.execute(request).await?,
        };
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let code = code_of(response.into_body()).await;
        // Of this kind, `object_store` tries nothing again.
        Err(HttpError::new(
            HttpErrorKind::Unknown,
            ServerAnswer {
                status: status.as_u16(),
                code,
            },
        ))
    }
}

impl AnswerService {
    /// Sends a request whose body waits for the others of its race.
    async fn race(&self, request: HttpRequest, racer: Racer) -> Result<HttpResponse, HttpError> {
        let broken = |error| HttpError::new(HttpErrorKind::Interrupted, error);
        let (parts, _) = request.into_parts();
        let mut sent = self
            .client
            .request(parts.method, parts.uri.to_string())
            .headers(parts.headers);
        sent = sent.body(reqwest::Body::wrap_stream(racer.body()));
        let answered = sent.send().await.map_err(broken)?;
        let (status, headers) = (answered.status(), answered.headers().clone());
        let body = answered.bytes().await.map_err(broken)?;
        let mut response = HttpResponse::new(body.into());
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Ok(response)
    }
}

/// Holds the ends of bodies back until all requests of a race have begun. Whoever looks whether
/// something is there when a request comes, and writes when its body is whole, lets all of them in.
#[derive(Debug, Clone)]
pub(crate) struct Gate {
    begun: watch::Sender<usize>,
    racers: usize,
}

impl Gate {
    /// Some do not begin: they failed before. They are not waited for any longer.
    const OPEN_AFTER: Duration = Duration::from_secs(2);
    /// What is sent is not yet seen by the server: nobody says when it is.
    const SEEN_AFTER: Duration = Duration::from_millis(250);

    /// For so many.
    pub(crate) fn new(racers: usize) -> Self {
        Self {
            begun: watch::Sender::new(0),
            racers,
        }
    }

    async fn pass(&self) {
        self.begun.send_modify(|begun| *begun += 1);
        let mut begun = self.begun.subscribe();
        let all = begun.wait_for(|begun| *begun >= self.racers);
        // Late or not, it opens.
        let _ = tokio::time::timeout(Self::OPEN_AFTER, all).await;
        tokio::time::sleep(Self::SEEN_AFTER).await;
    }
}

/// One request of a race: goes with it as an extension.
#[derive(Debug, Clone)]
pub(crate) struct Racer {
    /// The gate of its race.
    pub(crate) gate: Gate,
    /// Its body, at least two bytes.
    pub(crate) body: Bytes,
}

impl Racer {
    fn body(self) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static {
        let Self { gate, mut body } = self;
        let end = body.split_off(body.len() / 2);
        let first = futures_util::stream::iter([Ok(body)]);
        let last = futures_util::stream::once(async move {
            gate.pass().await;
            Ok(end)
        });
        first.chain(last)
    }
}

/// The error code in the body of a refusal. A body that breaks off has none: the status was whole.
async fn code_of(body: HttpResponseBody) -> String {
    let mut text = Vec::new();
    let mut pieces = body.bytes_stream();
    while let Some(Ok(piece)) = pieces.next().await {
        let room = BODY_BYTES_MAX - text.len();
        text.extend_from_slice(piece.get(..room).unwrap_or(&piece));
        if text.len() >= BODY_BYTES_MAX {
            break;
        }
    }
    code_in(&String::from_utf8_lossy(&text)).unwrap_or_default()
}

/// `<Code>…</Code>`, as far as it looks like a code. What a server says is shown to people: no more
/// than letters and digits is taken from it.
fn code_in(body: &str) -> Option<String> {
    const CODE_LEN_MAX: usize = 64;
    let (_, rest) = body.split_once("<Code>")?;
    let (code, _) = rest.split_once("</Code>")?;
    let code = code.trim();
    let plain = code.len() <= CODE_LEN_MAX && code.chars().all(|c| c.is_ascii_alphanumeric());
    plain.then(|| code.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_found_in_what_servers_say() {
        let check = |body: &str, expected: Option<&str>| {
            assert_eq!(code_in(body).as_deref(), expected, "{body}");
        };
        check(
            "<?xml version=\"1.0\"?>\n<Error><Code>SlowDown</Code><Message>m</Message></Error>",
            Some("SlowDown"),
        );
        check("<Error><Code> NoSuchKey </Code></Error>", Some("NoSuchKey"));
        check("<html>502 Bad Gateway</html>", None);
        check("<Code>a\u{1b}[31m</Code>", None);
        check("<Code>unfinished", None);
        check("", None);
    }

    #[test]
    fn an_answer_is_found_below_other_errors() {
        let answer = ServerAnswer {
            status: 503,
            code: "SlowDown".to_owned(),
        };
        let error = object_store::Error::Generic {
            store: "S3",
            source: Box::new(HttpError::new(HttpErrorKind::Unknown, answer.clone())),
        };
        assert_eq!(ServerAnswer::behind(&error), Some(&answer));
        let other = object_store::Error::Generic {
            store: "S3",
            source: "else".into(),
        };
        assert_eq!(ServerAnswer::behind(&other), None);
    }
}
