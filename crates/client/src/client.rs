//! One TCP connection to a broker.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use flumen_api::v1::admin_client::AdminClient;
use flumen_api::v1::consumer_client::ConsumerClient;
use flumen_api::v1::delivery_client::DeliveryClient;
use flumen_api::v1::producer_client::ProducerClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

use crate::{ClientConfig, Error};

/// A connection to a broker, made on first use and made again when it broke. Cheap to clone: clones
/// share it.
#[derive(Debug, Clone)]
pub struct Client {
    channel: Channel,
    config: Arc<ClientConfig>,
}

impl Client {
    /// A client for this endpoint. Does not wait for the broker: the first call connects. Needs a
    /// tokio runtime.
    ///
    /// # Errors
    /// When the endpoint is not a URL.
    pub fn connect(config: ClientConfig) -> Result<Self, Error> {
        let endpoint = Endpoint::from_shared(config.endpoint.clone())
            .ok()
            .filter(|endpoint| endpoint.uri().scheme_str() == Some("http"))
            .ok_or_else(|| {
                let message = format!("{} is not http://HOST:PORT", config.endpoint);
                Error::local(Code::InvalidArgument, message.into(), None)
            })?;
        let channel = endpoint
            .connect_timeout(config.connect_timeout)
            .tcp_nodelay(true)
            .tcp_keepalive(Some(config.keepalive_interval))
            .http2_keep_alive_interval(config.keepalive_interval)
            .keep_alive_timeout(config.keepalive_interval)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(config.session_window_bytes)
            .initial_connection_window_size(config.connection_window_bytes)
            .max_frame_size(config.frame_bytes_max)
            .connect_lazy();
        Ok(Self {
            channel,
            config: Arc::new(config),
        })
    }

    /// Where it connects to.
    pub fn endpoint(&self) -> &str {
        &self.config.endpoint
    }

    /// How it connects.
    pub fn config(&self) -> &ClientConfig {
        &self.config
    }

    pub(crate) fn admin(&self) -> AdminClient<Channel> {
        let bytes = self.config.message_bytes_max;
        AdminClient::new(self.channel.clone())
            .max_decoding_message_size(bytes)
            .max_encoding_message_size(bytes)
    }

    pub(crate) fn producer(&self) -> ProducerClient<Channel> {
        let bytes = self.config.message_bytes_max;
        ProducerClient::new(self.channel.clone())
            .max_decoding_message_size(bytes)
            .max_encoding_message_size(bytes)
    }

    pub(crate) fn consumer(&self) -> ConsumerClient<Channel> {
        let bytes = self.config.message_bytes_max;
        ConsumerClient::new(self.channel.clone())
            .max_decoding_message_size(bytes)
            .max_encoding_message_size(bytes)
    }

    pub(crate) fn delivery(&self) -> DeliveryClient<Channel> {
        let bytes = self.config.message_bytes_max;
        DeliveryClient::new(self.channel.clone())
            .max_decoding_message_size(bytes)
            .max_encoding_message_size(bytes)
    }

    /// A call that is answered once, within `bound`.
    pub(crate) async fn call<T>(
        &self,
        bound: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Error> {
        match tokio::time::timeout(bound, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.failure(&status)),
            Err(_) => Err(Error::timed_out(self.endpoint(), bound)),
        }
    }

    pub(crate) fn failure(&self, status: &Status) -> Error {
        Error::of_status(status, self.endpoint())
    }
}
