//! The wire as a client sees it: calls to a broker process, and what every refusal must say.

use std::collections::HashMap;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use flumen_api::v1;
use flumen_api::v1::admin_client::AdminClient;
use flumen_api::v1::consumer_client::ConsumerClient;
use flumen_api::v1::delivery_client::DeliveryClient;
use flumen_api::v1::producer_client::ProducerClient;
use flumen_record::{
    Batch, BatchBuilder, Compression, HashKey, ProducerId, ProducerSequence, Record, RecordLimits,
};
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// No call of these tests takes longer.
const LONGEST: Duration = Duration::from_secs(60);
/// What `google.rpc.RetryInfo` comes with: waiting helps against these.
const WAITS: [&str; 8] = [
    "THROTTLED",
    "QUEUE_FULL",
    "STORAGE_FULL",
    "DISK_STUCK",
    "DRAINING",
    "MEMBER_UNREAD",
    "GROUPS_UNANSWERED",
    "DELIVERY_UNFINISHED",
];

/// A connection, and a runtime to wait on.
pub(crate) struct Wire {
    /// `HOST:PORT`.
    address: String,
    runtime: tokio::runtime::Runtime,
    channel: Channel,
}

impl Wire {
    pub(crate) fn to(endpoint: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let address = endpoint.trim_start_matches("http://").to_owned();
        let endpoint = Channel::from_shared(endpoint.to_owned()).expect("an URL");
        let channel = runtime.block_on(endpoint.connect()).expect("a broker");
        Self {
            address,
            runtime,
            channel,
        }
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub(crate) fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.channel())
    }

    pub(crate) fn producer(&self) -> ProducerClient<Channel> {
        ProducerClient::new(self.channel()).max_encoding_message_size(64 << 20)
    }

    pub(crate) fn consumer(&self) -> ConsumerClient<Channel> {
        ConsumerClient::new(self.channel()).max_decoding_message_size(64 << 20)
    }

    pub(crate) fn delivery(&self) -> DeliveryClient<Channel> {
        DeliveryClient::new(self.channel())
    }

    /// Waits for a call, not for ever.
    #[track_caller]
    pub(crate) fn wait<T>(&self, call: impl Future<Output = T>) -> T {
        let limited = self
            .runtime
            .block_on(async { tokio::time::timeout(LONGEST, call).await });
        limited.expect("an answer within a minute")
    }

    /// Lets something go on beside the test.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(task);
    }

    /// Waits for a call that succeeds.
    #[track_caller]
    pub(crate) fn good<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> T {
        match self.wait(call) {
            Ok(response) => response.into_inner(),
            Err(status) => panic!("{status:?}"),
        }
    }

    /// Waits for a call that is refused.
    #[track_caller]
    pub(crate) fn refused<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Refused {
        match self.wait(call) {
            Ok(_) => panic!("it was carried out"),
            Err(status) => Refused::from(&status),
        }
    }

    /// Appends batches in a session of their own; the acks, in the order of `batches`, and how the
    /// session ended.
    #[track_caller]
    pub(crate) fn append(
        &self,
        stream: &str,
        batches: Vec<(u32, Bytes)>,
    ) -> (Vec<v1::AppendAck>, Result<(), Status>) {
        let batches = (0..).zip(batches).map(|(request, (shard, batch))| {
            let batch = v1::AppendBatch {
                request,
                shard,
                batch,
            };
            v1::AppendRequest {
                stream: stream.to_owned(),
                batches: vec![batch],
                stream_incarnation: 0,
            }
        });
        let messages = tokio_stream::iter(batches.collect::<Vec<_>>());
        let mut client = self.producer();
        self.wait(async {
            let mut acks = Vec::new();
            let mut session = match client.append(messages).await {
                Ok(session) => session.into_inner(),
                Err(status) => return (acks, Err(status)),
            };
            let ended = loop {
                match session.message().await {
                    Ok(Some(response)) => acks.extend(response.acks),
                    Ok(None) => break Ok(()),
                    Err(status) => break Err(status),
                }
            };
            acks.sort_by_key(|ack| ack.request);
            (acks, ended)
        })
    }

    /// Sends these bytes as the body of a call, over a connection of its own that knows nothing of
    /// gRPC; the status that comes back.
    #[track_caller]
    pub(crate) fn raw(&self, path: &str, headers: &[(&str, &str)], body: Bytes) -> Status {
        let mut request = Request::post(format!("http://{}{path}", self.address));
        if headers.iter().all(|(name, _)| *name != "content-type") {
            request = request.header("content-type", "application/grpc");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body)).expect("a request");
        self.wait(async {
            let tcp = tokio::net::TcpStream::connect(&self.address).await;
            let tcp = TokioIo::new(tcp.expect("a connection"));
            let connection = http2::handshake(TokioExecutor::new(), tcp).await;
            let (mut sender, connection) = connection.expect("HTTP/2");
            tokio::spawn(connection);
            let response = sender.send_request(request).await.expect("a response");
            let (head, body) = response.into_parts();
            if let Some(status) = Status::from_header_map(&head.headers) {
                return status;
            }
            let whole = body.collect().await.expect("the whole response");
            let trailers = whole.trailers();
            let status = trailers.and_then(Status::from_header_map);
            status.unwrap_or_else(|| Status::unknown(head.status.to_string()))
        })
    }
}

/// One message as it stands in a call's body.
pub(crate) fn message(content: &[u8]) -> Bytes {
    let mut body = BytesMut::new();
    body.put_u8(0);
    body.put_u32(content.len().try_into().expect("a small message"));
    body.put_slice(content);
    body.freeze()
}

/// Records of one batch, all at one place of the key space.
pub(crate) fn batch(producer: u64, sequence: u64, hash_key: u128, data: &[&[u8]]) -> Batch {
    let limits = RecordLimits {
        max_record_bytes: 10 << 20,
    };
    let hash_key = HashKey::new(hash_key);
    let mut builder = BatchBuilder::new(limits);
    for data in data {
        let record = Record {
            partition_key: Bytes::from_static(b"k"),
            explicit_hash_key: Some(hash_key),
            data: Bytes::copy_from_slice(data),
            client_timestamp: None,
            headers: Vec::new(),
        };
        builder
            .push(&record, hash_key)
            .expect("a record within its limits");
    }
    let producer = ProducerId::new(producer);
    builder.finish(producer, ProducerSequence::new(sequence), Compression::None)
}

/// A refusal, from a status or from inside a reply.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) code: Code,
    pub(crate) message: String,
    pub(crate) domain: String,
    pub(crate) reason: String,
    pub(crate) metadata: HashMap<String, String>,
    pub(crate) retry_after: Option<Duration>,
}

impl From<&Status> for Refused {
    fn from(status: &Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info();
        Self {
            code: status.code(),
            message: status.message().to_owned(),
            domain: info.map(|info| info.domain.clone()).unwrap_or_default(),
            reason: info.map(|info| info.reason.clone()).unwrap_or_default(),
            metadata: info.map(|info| info.metadata.clone()).unwrap_or_default(),
            retry_after: details.retry_info().and_then(|retry| retry.retry_delay),
        }
    }
}

impl From<&v1::Refusal> for Refused {
    fn from(refusal: &v1::Refusal) -> Self {
        let retry_after = Duration::from_micros(refusal.retry_after_us);
        Self {
            code: Code::from_i32(refusal.code),
            message: refusal.message.clone(),
            domain: "flumen".to_owned(),
            reason: refusal.reason.clone(),
            metadata: refusal.metadata.clone(),
            retry_after: (!retry_after.is_zero()).then_some(retry_after),
        }
    }
}

impl Refused {
    /// The refusal of an ack.
    #[track_caller]
    pub(crate) fn of_ack(ack: &v1::AppendAck) -> Self {
        Self::from(&**ack.refusal.as_ref().expect("a refusal"))
    }

    /// The refusal of a put record.
    #[track_caller]
    pub(crate) fn of_put(result: &v1::PutResult) -> Self {
        Self::from(&**result.refusal.as_ref().expect("a refusal"))
    }

    /// It says this, in all the ways that `docs/errors.md` promises.
    #[track_caller]
    pub(crate) fn says(&self, code: Code, reason: &str, metadata: &[(&str, &str)]) {
        assert_eq!(
            (self.code, &*self.domain, &*self.reason),
            (code, "flumen", reason),
            "{self:?}"
        );
        let document = include_str!("../../../../docs/errors.md");
        let row = document
            .lines()
            .find(|line| line.starts_with('|') && line.contains(&format!("`{reason}`")));
        let row = row.unwrap_or_else(|| panic!("docs/errors.md does not list {reason}"));
        for (name, value) in metadata {
            let found = self.metadata.get(*name).map(String::as_str);
            assert_eq!(found, Some(*value), "{name} of {self:?}");
        }
        // `Subscribe` says of all refusals which shard they are about.
        for name in self.metadata.keys().filter(|name| *name != "shard") {
            assert!(row.contains(&format!("`{name}`")), "{name} is not in {row}");
        }
        assert!(
            !self.message.is_empty() && !self.message.contains('\n'),
            "{self:?}"
        );
        let waits = self.retry_after.is_some_and(|delay| !delay.is_zero());
        assert_eq!(waits, WAITS.contains(&reason), "{self:?}");
    }
}
