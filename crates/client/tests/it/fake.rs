//! A broker of a few hundred lines in memory that keeps the rules of producers' sequences, and does
//! to each batch what the test says.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use flumen_api::v1::admin_server::{Admin, AdminServer};
use flumen_api::v1::consumer_server::{Consumer, ConsumerServer};
use flumen_api::v1::producer_server::{Producer, ProducerServer};
use flumen_api::v1::start_position::Position;
use flumen_api::v1::{self, ReadRequest, ReadResponse, SubscribeRequest};
use flumen_client::{Client, ClientConfig, StreamName};
use flumen_record::{
    Batch, BatchHeader, FrameHeader, HashRange, Record, SequenceNumber, ShardEpoch, ShardId,
    ShardIndex, StreamId, Timestamp,
};
use futures_core::Stream;
use tokio::sync::{Notify, mpsc};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt};

/// What to do with one batch.
#[derive(Debug, Clone)]
pub(crate) enum Deed {
    Accept,
    Refuse(Code, &'static str),
    /// Refuses it, and asks for this delay before a retry.
    RefuseFor(Code, &'static str, Duration),
    /// Stores it, and ends the session before its ack.
    StoreAndCut,
}

/// Decides about a batch for a shard; the number counts all batches that came.
pub(crate) type Decide = Box<dyn FnMut(u64, ShardIndex, &BatchHeader) -> Deed + Send>;

#[derive(Default)]
pub(crate) struct World {
    pub(crate) shards: Vec<Shard>,
    pub(crate) decide: Option<Decide>,
    /// Batches that came.
    pub(crate) batches_seen: u64,
    pub(crate) producers_issued: u64,
    /// Answer nothing.
    pub(crate) stalled: bool,
    /// A failure for every subscription.
    pub(crate) subscribe_failure: Option<(Code, &'static str)>,
    /// Spoil one byte of the next response with frames, this many times.
    pub(crate) spoil: u32,
    pub(crate) describes: u64,
    /// Members that were let in.
    pub(crate) joins: u64,
    /// Members hear nothing more.
    pub(crate) mute: bool,
    /// What each member is given as it comes.
    pub(crate) gives: Vec<v1::ShardAssigned>,
    /// Checkpoints that members saved.
    pub(crate) saved: Vec<v1::Checkpoint>,
}

pub(crate) struct Shard {
    pub(crate) range: HashRange,
    pub(crate) open: bool,
    pub(crate) parents: Vec<u32>,
    pub(crate) children: Vec<u32>,
    pub(crate) trim_horizon: u64,
    pub(crate) next: u64,
    pub(crate) frames: Vec<(u64, Batch)>,
    /// By producer: base and checksum of each of its batches.
    pub(crate) producers: HashMap<u64, Vec<(u64, u32)>>,
}

impl Shard {
    pub(crate) fn new(range: HashRange) -> Self {
        Self {
            range,
            open: true,
            parents: Vec::new(),
            children: Vec::new(),
            trim_horizon: 0,
            next: 0,
            frames: Vec::new(),
            producers: HashMap::new(),
        }
    }

    pub(crate) fn append(&mut self, batch: Batch) -> u64 {
        let base = self.next;
        self.next += u64::from(batch.header().count);
        self.frames.push((base, batch));
        base
    }

    /// Every record stored, in order.
    pub(crate) fn records(&self) -> Vec<Record> {
        self.frames
            .iter()
            .flat_map(|(_, batch)| batch.records())
            .map(Result::unwrap)
            .collect()
    }
}

/// The data that outlives servers.
#[derive(Clone)]
pub(crate) struct Fake {
    world: Arc<Mutex<World>>,
    changed: Arc<Notify>,
}

impl Fake {
    pub(crate) fn new(shards: u32) -> Self {
        let ranges = HashRange::even_slices(NonZeroU32::new(shards).unwrap());
        let world = World {
            shards: ranges.map(Shard::new).collect(),
            ..World::default()
        };
        Self {
            world: Arc::new(Mutex::new(world)),
            changed: Arc::default(),
        }
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// Changes something that sessions may wait for.
    pub(crate) fn change(&self, change: impl FnOnce(&mut World)) {
        change(&mut self.world());
        self.changed.notify_waiters();
    }

    pub(crate) fn decide(
        &self,
        decide: impl FnMut(u64, ShardIndex, &BatchHeader) -> Deed + Send + 'static,
    ) {
        self.world().decide = Some(Box::new(decide));
    }

    /// Data of every record of every shard as text, shard by shard.
    pub(crate) fn stored(&self) -> Vec<Vec<String>> {
        let text = |record: Record| String::from_utf8(record.data.to_vec()).unwrap();
        let world = self.world();
        world
            .shards
            .iter()
            .map(|shard| shard.records().into_iter().map(text).collect())
            .collect()
    }

    fn describe(&self) -> v1::Stream {
        let mut world = self.world();
        world.describes += 1;
        let shard = |(index, shard): (u32, &Shard)| v1::Shard {
            shard: index,
            range: Some(shard.range.into()),
            open: shard.open,
            parents: shard.parents.clone(),
            trim_horizon: shard.trim_horizon,
            durable_end: shard.next,
            last_arrival_us: 0,
            stored_bytes: 0,
        };
        v1::Stream {
            name: "s".to_owned(),
            id: 1,
            durability: v1::Durability::Disk as i32,
            retention_us: 3_600_000_000,
            retention_bytes: 0,
            max_record_bytes: 1 << 20,
            auto_scale: None,
            created_us: 0,
            incarnation: 0,
            version: 1,
            shards: (0..).zip(&world.shards).map(shard).collect(),
        }
    }
}

/// A running server of a fake; a runtime of its own, so that killing it cuts every connection.
pub(crate) struct Server {
    runtime: Option<tokio::runtime::Runtime>,
    pub(crate) address: SocketAddr,
}

impl Server {
    pub(crate) fn start(fake: &Fake) -> Self {
        Self::start_at(fake, "127.0.0.1:0".parse().unwrap())
    }

    pub(crate) fn start_at(fake: &Fake, address: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = std::net::TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let fake = fake.clone();
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            tonic::transport::Server::builder()
                .add_service(AdminServer::new(fake.clone()))
                .add_service(ProducerServer::new(fake.clone()).max_decoding_message_size(17 << 20))
                .add_service(ConsumerServer::new(fake))
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .unwrap();
        });
        Self {
            runtime: Some(runtime),
            address,
        }
    }

    pub(crate) fn client(&self) -> Client {
        client_of(self.address)
    }
}

pub(crate) fn client_of(address: SocketAddr) -> Client {
    let mut config = ClientConfig::new(format!("http://{address}"));
    config.connect_timeout = Duration::from_millis(500);
    Client::connect(config).unwrap()
}

/// Cuts every connection at once.
impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

pub(crate) fn stream() -> StreamName {
    "s".parse().unwrap()
}

fn status(code: Code, reason: &str, metadata: HashMap<String, String>) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, "flumen", metadata);
    Status::with_error_details(code, reason.to_lowercase(), details)
}

fn refusal(request: u64, code: Code, reason: &str) -> v1::AppendAck {
    let refusal = v1::Refusal {
        code: code as i32,
        message: reason.to_lowercase(),
        reason: reason.to_owned(),
        ..Default::default()
    };
    v1::AppendAck {
        request,
        refusal: Some(Box::new(refusal)),
        ..Default::default()
    }
}

impl World {
    /// Admits a batch as a lane does; whether the session ends before the ack.
    fn admit(&mut self, request: u64, shard: u32, bytes: Bytes) -> (v1::AppendAck, bool) {
        let batch = Batch::decode(bytes).unwrap();
        let header = *batch.header();
        self.batches_seen += 1;
        let seen = self.batches_seen;
        let deed = self.decide.as_mut().map_or(Deed::Accept, |decide| {
            decide(seen, ShardIndex::new(shard), &header)
        });
        let shard = &mut self.shards[shard as usize];
        let mine = shard.producers.entry(header.producer.value()).or_default();
        let sequence = usize::try_from(header.sequence.value()).unwrap();
        let idempotent = header.producer.value() > 0;
        let ack = |base, duplicate| v1::AppendAck {
            request,
            base,
            count: header.count,
            arrival_us: 1,
            duplicate,
            refusal: None,
        };
        match deed {
            Deed::Refuse(code, reason) => return (refusal(request, code, reason), false),
            Deed::RefuseFor(code, reason, delay) => {
                let mut ack = refusal(request, code, reason);
                if let Some(refusal) = &mut ack.refusal {
                    refusal.retry_after_us = delay.as_micros() as u64;
                }
                return (ack, false);
            }
            Deed::Accept | Deed::StoreAndCut => {}
        }
        let cut = matches!(deed, Deed::StoreAndCut);
        if idempotent && sequence < mine.len() {
            let (base, checksum) = mine[sequence];
            assert_eq!(checksum, header.checksum, "a sequence used twice");
            return (ack(base, true), cut);
        }
        if idempotent && sequence > mine.len() {
            return (
                refusal(request, Code::FailedPrecondition, "OUT_OF_SEQUENCE"),
                cut,
            );
        }
        if !shard.open {
            return (
                refusal(request, Code::FailedPrecondition, "SHARD_CLOSED"),
                cut,
            );
        }
        if !shard.range.covers(&header.span) {
            return (
                refusal(request, Code::FailedPrecondition, "WRONG_SHARD"),
                cut,
            );
        }
        let base = shard.next;
        mine.push((base, header.checksum));
        shard.append(batch);
        (ack(base, false), cut)
    }

    /// The next frames of a shard from a number on: at most a few, so that there are seams.
    fn read(&mut self, index: u32, next: u64) -> ReadResponse {
        let spoil = &mut self.spoil;
        let shard = &self.shards[index as usize];
        let mut frames = BytesMut::new();
        let mut after = next;
        for (base, batch) in &shard.frames {
            let end = base + u64::from(batch.header().count);
            if end <= next {
                continue;
            }
            if frames.len() > 512 {
                break;
            }
            let header = FrameHeader {
                frame_bytes: 0,
                checksum: 0,
                shard: ShardId::new(StreamId::new(1), ShardIndex::new(index)),
                epoch: ShardEpoch::new(1),
                base: SequenceNumber::new(*base),
                arrival: Timestamp::from_micros(1),
            };
            frames.put_slice(&header.encode(
                batch.header().encoded_bytes,
                batch.header().checksum,
                0,
            ));
            frames.put_slice(batch.bytes());
            after = end;
        }
        if *spoil > 0 && !frames.is_empty() {
            *spoil -= 1;
            let last = frames.len() - 1;
            frames[last] ^= 1;
        }
        let end_of_shard = !shard.open && after >= shard.next;
        ReadResponse {
            shard: index,
            start: next,
            next: after,
            trim_horizon: shard.trim_horizon,
            durable_end: shard.next,
            last_arrival_us: 1,
            end_of_shard,
            children: if end_of_shard {
                shard.children.clone()
            } else {
                Vec::new()
            },
            frames: frames.freeze(),
            stream_incarnation: 0,
        }
    }

    fn resolve(&self, index: u32, start: Option<v1::StartPosition>) -> Result<u64, Status> {
        let shard = &self.shards[index as usize];
        let at = match start.and_then(|start| start.position) {
            Some(Position::TrimHorizon(_)) | None => shard.trim_horizon,
            Some(Position::Latest(_)) => shard.next,
            Some(Position::AtSequenceNumber(at)) => at,
            Some(Position::AfterSequenceNumber(after)) => after + 1,
            Some(Position::AtTimestampUs(_)) => shard.trim_horizon,
        };
        let facts = |facts: [(&str, u64); 2]| {
            let each = facts.map(|(name, value)| (name.to_owned(), value.to_string()));
            HashMap::from(each)
        };
        let (horizon, end) = (shard.trim_horizon, shard.next);
        if at < horizon {
            let facts = facts([("asked", at), ("horizon", horizon)]);
            return Err(status(Code::OutOfRange, "TRIMMED", facts));
        }
        if at > end {
            let facts = facts([("asked", at), ("end", end)]);
            return Err(status(Code::InvalidArgument, "BEYOND_END", facts));
        }
        Ok(at)
    }
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Producer for Fake {
    type AppendStream = Responses<v1::AppendResponse>;

    async fn open_producer(
        &self,
        _: Request<v1::OpenProducerRequest>,
    ) -> Result<Response<v1::OpenProducerResponse>, Status> {
        let mut world = self.world();
        world.producers_issued += 1;
        Ok(Response::new(v1::OpenProducerResponse {
            producer_id: world.producers_issued,
        }))
    }

    async fn put(&self, _: Request<v1::PutRequest>) -> Result<Response<v1::PutResponse>, Status> {
        Err(Status::unimplemented("put"))
    }

    async fn append(
        &self,
        request: Request<Streaming<v1::AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let mut requests = request.into_inner();
        let (acks, out) = mpsc::channel(1024);
        let fake = self.clone();
        tokio::spawn(async move {
            let durability = v1::Durability::Disk as i32;
            let opened = v1::AppendResponse {
                acks: Vec::new(),
                durability,
                stream_incarnation: 0,
            };
            acks.send(Ok(opened)).await.ok();
            while let Some(Ok(request)) = requests.next().await {
                while fake.world().stalled {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                let mut ready = Vec::new();
                for batch in request.batches {
                    let (ack, cut) = fake.world().admit(batch.request, batch.shard, batch.batch);
                    if cut {
                        let before = v1::AppendResponse {
                            acks: ready,
                            durability,
                            stream_incarnation: 0,
                        };
                        acks.send(Ok(before)).await.ok();
                        acks.send(Err(Status::unavailable("cut"))).await.ok();
                        return;
                    }
                    ready.push(ack);
                }
                fake.changed.notify_waiters();
                let response = v1::AppendResponse {
                    acks: ready,
                    durability,
                    stream_incarnation: 0,
                };
                if acks.send(Ok(response)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(out))))
    }
}

#[tonic::async_trait]
impl Consumer for Fake {
    type SubscribeStream = Responses<ReadResponse>;
    type GroupStream = Responses<v1::GroupResponse>;

    /// Lets every member in and gives it what it gives; a mute one answers no sign of life.
    async fn group(
        &self,
        request: Request<Streaming<v1::GroupRequest>>,
    ) -> Result<Response<Self::GroupStream>, Status> {
        use v1::group_request::Request as Said;
        use v1::group_response::Response as Word;

        let fake = self.clone();
        let mut said = request.into_inner();
        let (words, told) = mpsc::channel(16);
        tokio::spawn(async move {
            while let Some(Ok(v1::GroupRequest { request })) = said.next().await {
                let word = match request {
                    Some(Said::Join(join)) => {
                        fake.change(|world| world.joins += 1);
                        Word::Joined(v1::Joined {
                            session_timeout_us: join.session_timeout_us,
                            heartbeat_us: join.session_timeout_us / 4,
                            kept: Vec::new(),
                            stream_incarnation: 0,
                        })
                    }
                    Some(Said::Heartbeat(beat)) if !fake.world().mute => {
                        Word::Heartbeat(v1::HeartbeatHeard {
                            number: beat.number,
                        })
                    }
                    Some(Said::Checkpoints(save)) => {
                        fake.change(|world| world.saved.extend(save.checkpoints));
                        Word::Checkpoints(v1::CheckpointsSaved {
                            request: save.request,
                            refused: Vec::new(),
                        })
                    }
                    Some(Said::Leave(_)) => Word::Left(v1::Left {}),
                    _ => continue,
                };
                let joined = matches!(word, Word::Joined(_));
                let shards = fake.world().gives.clone();
                let gives = (joined && !shards.is_empty())
                    .then_some(Word::Assigned(v1::ShardsAssigned { shards }));
                for word in [word].into_iter().chain(gives) {
                    let response = Some(word);
                    let sent = words.send(Ok(v1::GroupResponse { response })).await;
                    if sent.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(told))))
    }

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<ReadResponse>, Status> {
        let request = request.into_inner();
        let mut world = self.world();
        let next = world.resolve(request.shard, request.start)?;
        Ok(Response::new(world.read(request.shard, next)))
    }

    async fn subscribe(
        &self,
        request: Request<SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let fake = self.clone();
        let mut places: Vec<(u32, u64, bool)> = Vec::new();
        {
            let world = self.world();
            if let Some((code, reason)) = world.subscribe_failure {
                return Err(status(code, reason, HashMap::new()));
            }
            for shard in request.into_inner().shards {
                places.push((shard.shard, world.resolve(shard.shard, shard.start)?, false));
            }
        }
        let (responses, out) = mpsc::channel(4);
        tokio::spawn(async move {
            loop {
                let changed = fake.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                let mut ready = Vec::new();
                for (shard, next, ended) in places.iter_mut().filter(|place| !place.2) {
                    let response = fake.world().read(*shard, *next);
                    (*next, *ended) = (response.next, response.end_of_shard);
                    if response.end_of_shard || !response.frames.is_empty() {
                        ready.push(response);
                    }
                }
                let idle = ready.is_empty();
                for response in ready {
                    if responses.send(Ok(response)).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    () = changed, if idle => {}
                    () = responses.closed() => return,
                    () = std::future::ready(()), if !idle => {}
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(out))))
    }
}

#[tonic::async_trait]
impl Admin for Fake {
    async fn list_groups(
        &self,
        _: Request<v1::ListGroupsRequest>,
    ) -> Result<Response<v1::ListGroupsResponse>, Status> {
        Err(Status::unimplemented("groups"))
    }

    async fn describe_group(
        &self,
        _: Request<v1::DescribeGroupRequest>,
    ) -> Result<Response<v1::DescribeGroupResponse>, Status> {
        Err(Status::unimplemented("groups"))
    }

    async fn reset_group(
        &self,
        _: Request<v1::ResetGroupRequest>,
    ) -> Result<Response<v1::ResetGroupResponse>, Status> {
        Err(Status::unimplemented("groups"))
    }

    async fn delete_group(
        &self,
        _: Request<v1::DeleteGroupRequest>,
    ) -> Result<Response<v1::DeleteGroupResponse>, Status> {
        Err(Status::unimplemented("groups"))
    }

    async fn create_stream(
        &self,
        _: Request<v1::CreateStreamRequest>,
    ) -> Result<Response<v1::CreateStreamResponse>, Status> {
        Err(status(Code::AlreadyExists, "STREAM_EXISTS", HashMap::new()))
    }

    async fn describe_stream(
        &self,
        request: Request<v1::DescribeStreamRequest>,
    ) -> Result<Response<v1::DescribeStreamResponse>, Status> {
        if request.into_inner().stream != "s" {
            return Err(status(Code::NotFound, "STREAM_NOT_FOUND", HashMap::new()));
        }
        Ok(Response::new(v1::DescribeStreamResponse {
            stream: Some(self.describe()),
        }))
    }

    async fn list_streams(
        &self,
        _: Request<v1::ListStreamsRequest>,
    ) -> Result<Response<v1::ListStreamsResponse>, Status> {
        Ok(Response::new(v1::ListStreamsResponse {
            streams: vec![self.describe()],
            more: false,
        }))
    }

    async fn update_stream(
        &self,
        _: Request<v1::UpdateStreamRequest>,
    ) -> Result<Response<v1::UpdateStreamResponse>, Status> {
        Err(Status::unimplemented("update"))
    }

    async fn delete_stream(
        &self,
        _: Request<v1::DeleteStreamRequest>,
    ) -> Result<Response<v1::DeleteStreamResponse>, Status> {
        Err(Status::unimplemented("delete"))
    }

    async fn split_shard(
        &self,
        _: Request<v1::SplitShardRequest>,
    ) -> Result<Response<v1::SplitShardResponse>, Status> {
        Err(Status::unimplemented("split"))
    }

    async fn merge_shards(
        &self,
        _: Request<v1::MergeShardsRequest>,
    ) -> Result<Response<v1::MergeShardsResponse>, Status> {
        Err(Status::unimplemented("merge"))
    }

    async fn scale_stream(
        &self,
        _: Request<v1::ScaleStreamRequest>,
    ) -> Result<Response<v1::ScaleStreamResponse>, Status> {
        Err(Status::unimplemented("scale"))
    }

    async fn confirm_clock(
        &self,
        _: Request<v1::ConfirmClockRequest>,
    ) -> Result<Response<v1::ConfirmClockResponse>, Status> {
        Err(Status::unimplemented("clock"))
    }
}
