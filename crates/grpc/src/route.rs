//! From a path to the service that answers.

use std::sync::Arc;

use bytes::Bytes;
use flumen_api::v1::{admin_server, consumer_server, delivery_server, producer_server};
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
use crate::group::GroupSession;
use crate::request::Messages;
use crate::response::{Only, refused, replies, unary};
use crate::status::Facts;
use crate::{admin, consumer, delivery, group, producer};

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
            delivery_server::SERVICE_NAME => self.delivery(method, self.messages(body)).await,
            _ if Attendants::answers(service) => {
                let ends = self.drain.started();
                let mut attendants = self.attendants;
                let response = attendants.answer(Request::from_parts(parts, body)).await;
                response.map(|body| GrpcBody::new(Guarded::new(body, None, Some(ends))))
            }
            _ => refused(no_path(path.to_owned())),
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
            "Put" => {
                let put = async |put| producer::put(broker, put).await;
                unary(one(requests, "flumen.v1.PutRequest", put).await)
            }
            "OpenProducer" => {
                let open = async |open| producer::open_producer(broker, open).await;
                unary(one(requests, "flumen.v1.OpenProducerRequest", open).await)
            }
            _ => refused(no_method(producer_server::SERVICE_NAME, method)),
        }
    }

    async fn consumer(&self, method: &str, requests: Messages<Incoming>) -> Response<GrpcBody> {
        let (broker, drain) = (&self.broker, &self.drain);
        match method {
            "Read" => {
                let read = async |read| consumer::read(broker, drain, read).await;
                match one(requests, "flumen.v1.ReadRequest", read).await {
                    Ok(pieces) => replies(Only(Some(pieces))),
                    Err(facts) => refused(facts),
                }
            }
            "Subscribe" => {
                let subscribe = async |request| consumer::subscribe(broker, drain, request).await;
                match one(requests, "flumen.v1.SubscribeRequest", subscribe).await {
                    Ok(subscription) => replies(subscription),
                    Err(facts) => refused(facts),
                }
            }
            "Group" => match GroupSession::open(broker, drain, requests).await {
                Ok(session) => replies(session),
                Err(facts) => refused(facts),
            },
            _ => refused(no_method(consumer_server::SERVICE_NAME, method)),
        }
    }

    async fn admin(&self, method: &str, requests: Messages<Incoming>) -> Response<GrpcBody> {
        let broker = &self.broker;
        match method {
            "CreateStream" => {
                let create = async |new| admin::create_stream(broker, new).await;
                unary(one(requests, "flumen.v1.CreateStreamRequest", create).await)
            }
            "DescribeStream" => {
                let describe = async |name| admin::describe_stream(broker, &name);
                unary(one(requests, "flumen.v1.DescribeStreamRequest", describe).await)
            }
            "ListStreams" => {
                let list = async |page| admin::list_streams(broker, &page);
                unary(one(requests, "flumen.v1.ListStreamsRequest", list).await)
            }
            "UpdateStream" => {
                let update = async |new| admin::update_stream(broker, new).await;
                unary(one(requests, "flumen.v1.UpdateStreamRequest", update).await)
            }
            "DeleteStream" => {
                let delete = async |name| admin::delete_stream(broker, name).await;
                unary(one(requests, "flumen.v1.DeleteStreamRequest", delete).await)
            }
            "SplitShard" | "MergeShards" | "ScaleStream" => self.reshard(method, requests).await,
            "ConfirmClock" => {
                let confirm = async |confirm| admin::confirm_clock(broker, confirm).await;
                unary(one(requests, "flumen.v1.ConfirmClockRequest", confirm).await)
            }
            _ => self.groups(method, requests).await,
        }
    }

    async fn groups(&self, method: &str, requests: Messages<Incoming>) -> Response<GrpcBody> {
        let broker = &self.broker;
        match method {
            "ListGroups" => {
                let list = async |page| group::list(broker, page).await;
                unary(one(requests, "flumen.v1.ListGroupsRequest", list).await)
            }
            "DescribeGroup" => {
                let describe = async |name| group::describe(broker, name).await;
                unary(one(requests, "flumen.v1.DescribeGroupRequest", describe).await)
            }
            "ResetGroup" => {
                let reset = async |reset| group::reset(broker, reset).await;
                unary(one(requests, "flumen.v1.ResetGroupRequest", reset).await)
            }
            "DeleteGroup" => {
                let delete = async |name| group::delete(broker, name).await;
                unary(one(requests, "flumen.v1.DeleteGroupRequest", delete).await)
            }
            _ => refused(no_method(admin_server::SERVICE_NAME, method)),
        }
    }

    async fn delivery(&self, method: &str, requests: Messages<Incoming>) -> Response<GrpcBody> {
        let broker = &self.broker;
        match method {
            "CreateDelivery" => {
                let create = async |new| delivery::create(broker, new).await;
                unary(one(requests, "flumen.v1.CreateDeliveryRequest", create).await)
            }
            "DescribeDelivery" => {
                let describe = async |name| delivery::describe(broker, &name);
                unary(one(requests, "flumen.v1.DescribeDeliveryRequest", describe).await)
            }
            "ListDeliveries" => {
                let list = async |page| delivery::list(broker, &page);
                unary(one(requests, "flumen.v1.ListDeliveriesRequest", list).await)
            }
            "UpdateDelivery" => {
                let update = async |new| delivery::update(broker, new).await;
                unary(one(requests, "flumen.v1.UpdateDeliveryRequest", update).await)
            }
            "PauseDelivery" => {
                let pause = async |name| delivery::pause(broker, name).await;
                unary(one(requests, "flumen.v1.PauseDeliveryRequest", pause).await)
            }
            "ResumeDelivery" => {
                let resume = async |resume| delivery::resume(broker, &self.drain, resume).await;
                unary(one(requests, "flumen.v1.ResumeDeliveryRequest", resume).await)
            }
            "FlushDelivery" => {
                let flush = async |flush| delivery::flush(broker, &self.drain, flush).await;
                unary(one(requests, "flumen.v1.FlushDeliveryRequest", flush).await)
            }
            "DeleteDelivery" => {
                let delete = async |delete| delivery::delete(broker, &self.drain, delete).await;
                unary(one(requests, "flumen.v1.DeleteDeliveryRequest", delete).await)
            }
            _ => refused(no_method(delivery_server::SERVICE_NAME, method)),
        }
    }

    async fn reshard(&self, method: &str, requests: Messages<Incoming>) -> Response<GrpcBody> {
        let broker = &self.broker;
        match method {
            "SplitShard" => {
                let split = async |split| admin::split_shard(broker, split).await;
                unary(one(requests, "flumen.v1.SplitShardRequest", split).await)
            }
            "MergeShards" => {
                let merge = async |merge| admin::merge_shards(broker, merge).await;
                unary(one(requests, "flumen.v1.MergeShardsRequest", merge).await)
            }
            "ScaleStream" => {
                let scale = async |scale| admin::scale_stream(broker, scale).await;
                unary(one(requests, "flumen.v1.ScaleStreamRequest", scale).await)
            }
            _ => refused(no_method(admin_server::SERVICE_NAME, method)),
        }
    }
}

/// Reads the only message of a request, an `expected`, and gives it to `call`.
async fn one<M, T>(
    requests: Messages<Incoming>,
    expected: &'static str,
    call: impl AsyncFnOnce(M) -> Result<T, Facts>,
) -> Result<T, Facts>
where
    M: Message + Default,
{
    call(requests.only(expected).await?).await
}

fn no_method(service: &str, method: &str) -> Facts {
    no_path(format!("/{service}/{method}"))
}

fn no_path(path: String) -> Facts {
    CallError::UnknownMethod { path }.into()
}

fn is_grpc<B>(request: &Request<B>) -> bool {
    let content_type = request.headers().get(CONTENT_TYPE);
    let is_grpc =
        content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    is_grpc && request.method() == Method::POST
}
