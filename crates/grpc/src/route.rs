//! From a path to the service that answers.

use std::sync::Arc;

use bytes::Bytes;
use flumen_api::v1::{admin_server, consumer_server, producer_server};
use flumen_broker::Broker;
use http::header::CONTENT_TYPE;
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use hyper::body::Incoming;
use prost::Message;
use tokio::time::Instant;
use tonic::body::Body as GrpcBody;

use crate::GrpcConfig;
use crate::append::AppendSession;
use crate::attendant::Attendants;
use crate::call::CallError;
use crate::deadline::timeout;
use crate::drain::{Drain, Guarded};
use crate::request::Messages;
use crate::response::{Only, refused, replies, unary};
use crate::status::Facts;
use crate::{admin, consumer, producer};

/// Everything a call may need.
#[derive(Clone)]
pub(crate) struct Router {
    pub(crate) broker: Broker,
    pub(crate) config: Arc<GrpcConfig>,
    pub(crate) drain: Drain,
    pub(crate) attendants: Attendants,
}

impl Router {
    /// Answers one request, within the caller's deadline.
    pub(crate) async fn answer(self, request: Request<Incoming>) -> Response<GrpcBody> {
        if !is_grpc(&request) {
            let mut response = Response::new(GrpcBody::empty());
            *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return response;
        }
        let Some(timeout) = timeout(request.headers()) else {
            return self.call(request).await;
        };
        let deadline = Instant::now() + timeout;
        match tokio::time::timeout_at(deadline, self.call(request)).await {
            Ok(response) => {
                response.map(|body| GrpcBody::new(Guarded::new(body, Some(deadline), None)))
            }
            Err(_) => refused(CallError::DeadlineExceeded.into()),
        }
    }

    async fn call(self, request: Request<Incoming>) -> Response<GrpcBody> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path();
        let (service, method) = path
            .strip_prefix('/')
            .and_then(|path| path.split_once('/'))
            .unwrap_or_default();
        match service {
            producer_server::SERVICE_NAME => self.producer(method, self.messages(body)).await,
            consumer_server::SERVICE_NAME => self.consumer(method, self.messages(body)).await,
            admin_server::SERVICE_NAME => self.admin(method, self.messages(body)).await,
            _ if Attendants::answers(service) => {
                let ends = self.drain.started();
                let mut attendants = self.attendants;
                let response = attendants.answer(Request::from_parts(parts, body)).await;
                response.map(|body| GrpcBody::new(Guarded::new(body, None, Some(ends))))
            }
            _ => refused(unknown(path)),
        }
    }

    fn messages<B: Body<Data = Bytes> + Unpin>(&self, body: B) -> Messages<B> {
        Messages::new(body, self.config.message_bytes_max as usize)
    }

    async fn producer(&self, method: &str, requests: Messages<Incoming>) -> Response<GrpcBody> {
        let broker = &self.broker;
        match method {
            "Append" => {
                match AppendSession::open(broker, &self.config, &self.drain, requests).await {
                    Ok(session) => replies(session),
                    Err(facts) => refused(facts),
                }
            }
            "Put" => unary(one(requests, async |put| producer::put(broker, put).await).await),
            "OpenProducer" => unary(
                one(requests, async |open| {
                    producer::open_producer(broker, open).await
                })
                .await,
            ),
            _ => refused(unknown(method)),
        }
    }

    async fn consumer(&self, method: &str, requests: Messages<Incoming>) -> Response<GrpcBody> {
        let (broker, drain) = (&self.broker, &self.drain);
        match method {
            "Read" => {
                let read = async |read| consumer::read(broker, drain, read).await;
                match one(requests, read).await {
                    Ok(pieces) => replies(Only(Some(pieces))),
                    Err(facts) => refused(facts),
                }
            }
            "Subscribe" => {
                let subscribe = async |request| consumer::subscribe(broker, drain, request).await;
                match one(requests, subscribe).await {
                    Ok(subscription) => replies(subscription),
                    Err(facts) => refused(facts),
                }
            }
            _ => refused(unknown(method)),
        }
    }

    async fn admin(&self, method: &str, requests: Messages<Incoming>) -> Response<GrpcBody> {
        let broker = &self.broker;
        match method {
            "CreateStream" => unary(
                one(requests, async |new| {
                    admin::create_stream(broker, new).await
                })
                .await,
            ),
            "DescribeStream" => {
                unary(one(requests, async |name| admin::describe_stream(broker, &name)).await)
            }
            "ListStreams" => {
                unary(one(requests, async |page| admin::list_streams(broker, &page)).await)
            }
            "UpdateStream" => unary(
                one(requests, async |new| {
                    admin::update_stream(broker, new).await
                })
                .await,
            ),
            "DeleteStream" => unary(
                one(requests, async |name| {
                    admin::delete_stream(broker, name).await
                })
                .await,
            ),
            _ => refused(unknown(method)),
        }
    }
}

/// Reads the only message of a request and gives it to `call`.
async fn one<M, T>(
    requests: Messages<Incoming>,
    call: impl AsyncFnOnce(M) -> Result<T, Facts>,
) -> Result<T, Facts>
where
    M: Message + Default,
{
    call(requests.only(std::any::type_name::<M>()).await?).await
}

fn unknown(path: &str) -> Facts {
    let path = path.to_owned();
    CallError::UnknownMethod { path }.into()
}

fn is_grpc<B>(request: &Request<B>) -> bool {
    let content_type = request.headers().get(CONTENT_TYPE);
    let is_grpc =
        content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    is_grpc && request.method() == Method::POST
}
