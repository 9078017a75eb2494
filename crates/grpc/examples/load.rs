//! What the gRPC edge carries over loopback: `serve` in one process, a load in another.
//!
//! ```text
//! load serve [THREADS] [DATA_DIR]
//! load in  BATCH_BYTES IN_FLIGHT SESSIONS [CONNECTIONS]   sessions of Append, an ack per batch
//! load out BATCH_BYTES SUBSCRIBERS                        Subscribe from the trim horizon
//! load put RECORD_BYTES CALLS                             unary puts, one record each
//! ```
#![expect(clippy::print_stdout, reason = "its output is for a person")]

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes};
use flumen_api::MAX_MESSAGE_BYTES;
use flumen_api::v1::start_position::{Oldest, Position};
use flumen_api::v1::{
    AppendBatch, AppendRequest, AppendResponse, CreateStreamRequest, Durability, PutRecord,
    PutRequest, ReadResponse, StartPosition, SubscribeRequest, admin_client::AdminClient,
    consumer_client::ConsumerClient, producer_client::ProducerClient,
};
use flumen_broker::{Broker, BrokerConfig, Clock};
use flumen_grpc::{GrpcConfig, GrpcServer};
use flumen_log::{DiskStorage, MemoryStorage, Storage};
use flumen_record::{
    BatchBuilder, Compression, HashRange, ProducerId, ProducerSequence, Record, RecordLimits,
};
use prost::Message;
use tokio::time::Instant;
use tokio_stream::StreamExt;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};

const ADDRESS: &str = "127.0.0.1:5599";
const RUN: Duration = Duration::from_secs(5);
const STREAM: &str = "load";

/// Sends bytes that are a message already, receives acks.
#[derive(Clone, Default)]
struct Encoded<M>(PhantomData<M>);

impl<M: Message + Default + 'static> Codec for Encoded<M> {
    type Encode = Bytes;
    type Decode = M;
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        Self(PhantomData)
    }
    fn decoder(&mut self) -> Self {
        Self(PhantomData)
    }
}

impl<M> Encoder for Encoded<M> {
    type Item = Bytes;
    type Error = Status;
    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(64 << 10, 256 << 10)
    }
}

impl<M: Message + Default> Decoder for Encoded<M> {
    type Item = M;
    type Error = Status;
    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<M>, Status> {
        M::decode(buffer)
            .map(Some)
            .map_err(|error| Status::internal(error.to_string()))
    }
}

fn serve(words: &[&str]) {
    let threads = words.first().map_or(1, |word| word.parse().unwrap());
    let runtime = if threads == 1 {
        one_thread()
    } else {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .enable_all()
            .build()
            .unwrap()
    };
    runtime.block_on(async {
        let storage: Arc<dyn Storage> = match words.get(1) {
            Some(directory) => {
                let directory = std::path::Path::new(directory);
                Arc::new(DiskStorage::open(directory, DiskStorage::LOCK_WAIT).unwrap())
            }
            None => Arc::new(MemoryStorage::new()),
        };
        let broker = Broker::open(storage, BrokerConfig::default(), Clock::system())
            .await
            .unwrap();
        let listener = tokio::net::TcpListener::bind(ADDRESS).await.unwrap();
        let server = GrpcServer::start(broker, GrpcConfig::default(), vec![listener]).await;
        println!("serving on {:?}", server.as_ref().unwrap().addresses());
        std::future::pending::<()>().await;
    });
}

async fn channel() -> Channel {
    Endpoint::from_shared(format!("http://{ADDRESS}"))
        .unwrap()
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(16 << 20)
        .max_frame_size(1 << 20)
        .connect()
        .await
        .unwrap()
}

fn batch(bytes: usize) -> Bytes {
    let mut builder = BatchBuilder::new(RecordLimits::default());
    let record_bytes = bytes.min(1 << 10);
    for index in 0..bytes / record_bytes {
        let record = Record {
            partition_key: format!("key {index}").into(),
            explicit_hash_key: None,
            data: vec![7; record_bytes].into(),
            client_timestamp: None,
            headers: Vec::new(),
        };
        builder.push_within(&record, HashRange::FULL).unwrap();
    }
    let sequence = ProducerSequence::new(0);
    let batch = builder.finish(ProducerId::NONE, sequence, Compression::None);
    batch.bytes().clone()
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |word: &str| word.parse::<usize>().unwrap();
    match words.as_slice() {
        ["serve", rest @ ..] => serve(rest),
        ["in", size, in_flight, sessions, rest @ ..] => {
            let connections = rest.first().map_or(number(sessions), |word| number(word));
            let load = append(
                number(size),
                number(in_flight),
                number(sessions),
                connections,
            );
            one_thread().block_on(load);
        }
        ["out", size, subscribers] => {
            one_thread().block_on(subscribe(number(size), number(subscribers)));
        }
        ["put", size, calls] => one_thread().block_on(put(number(size), number(calls))),
        _ => println!("see the top of load.rs"),
    }
}

fn one_thread() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

async fn create() {
    let request = CreateStreamRequest {
        stream: STREAM.into(),
        durability: Durability::Memory.into(),
        ..Default::default()
    };
    let created = AdminClient::new(channel().await)
        .create_stream(request)
        .await;
    if let Err(status) = created {
        assert_eq!(status.code(), tonic::Code::AlreadyExists, "{status}");
    }
}

fn report(shape: &str, started: Instant, bytes: u64, count: u64) {
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{shape}: {:.0} MB/s, {:.0}/s",
        bytes as f64 / seconds / 1e6,
        count as f64 / seconds
    );
}

async fn append(size: usize, in_flight: usize, sessions: usize, connections: usize) {
    create().await;
    let message = |stream: &str| {
        let batches = vec![AppendBatch {
            request: 1,
            shard: 0,
            batch: batch(size),
        }];
        let stream = stream.to_owned();
        Bytes::from(AppendRequest { stream, batches }.encode_to_vec())
    };
    let (first, next) = (message(STREAM), message(""));
    let mut channels = Vec::new();
    for _ in 0..connections.min(sessions) {
        channels.push(channel().await);
    }
    let started = Instant::now();
    let tasks: Vec<_> = (0..sessions)
        .map(|session| {
            let channel = channels[session % channels.len()].clone();
            tokio::spawn(session_of(
                channel,
                first.clone(),
                next.clone(),
                in_flight,
                started + RUN,
            ))
        })
        .collect();
    let mut acks = 0;
    for task in tasks {
        acks += task.await.unwrap();
    }
    let shape =
        format!("in {size} B, {sessions} sessions x {in_flight}, {connections} connections");
    report(&shape, started, acks * size as u64, acks);
}

async fn session_of(
    channel: Channel,
    first: Bytes,
    next: Bytes,
    in_flight: usize,
    stop: Instant,
) -> u64 {
    let mut grpc = tonic::client::Grpc::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    grpc.ready().await.unwrap();
    let room = Arc::new(tokio::sync::Semaphore::new(in_flight));
    let (sender, receiver) = tokio::sync::mpsc::channel(in_flight.max(1));
    sender.send(first).await.unwrap();
    room.acquire().await.unwrap().forget();
    let path = http::uri::PathAndQuery::from_static("/flumen.v1.Producer/Append");
    let requests = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let answer = grpc.streaming(
        tonic::Request::new(requests),
        path,
        Encoded::<AppendResponse>::default(),
    );
    let mut responses = answer.await.unwrap().into_inner();
    let given = Arc::clone(&room);
    let feeder = tokio::spawn(async move {
        while Instant::now() < stop {
            given.acquire().await.unwrap().forget();
            if sender.send(next.clone()).await.is_err() {
                return;
            }
        }
    });
    let mut acks = 0;
    while let Some(response) = responses.next().await {
        let response = response.unwrap();
        for ack in &response.acks {
            assert!(ack.refusal.is_none(), "{ack:?}");
        }
        acks += response.acks.len() as u64;
        room.add_permits(response.acks.len());
    }
    feeder.await.unwrap();
    acks
}

async fn subscribe(size: usize, subscribers: usize) {
    create().await;
    let started = Instant::now();
    let mut tasks = Vec::new();
    for _ in 0..subscribers {
        let channel = channel().await;
        tasks.push(tokio::spawn(async move {
            let mut client =
                ConsumerClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
            let start = Some(StartPosition {
                position: Some(Position::TrimHorizon(Oldest {})),
            });
            let request = SubscribeRequest {
                stream: STREAM.into(),
                start,
                max_bytes: size as u64,
                ..Default::default()
            };
            let mut replies = client.subscribe(request).await.unwrap().into_inner();
            let (mut bytes, mut count) = (0, 0);
            while started.elapsed() < RUN {
                let Ok(reply) = tokio::time::timeout(RUN, replies.next()).await else {
                    break;
                };
                let reply: ReadResponse = reply.unwrap().unwrap();
                bytes += reply.frames.len() as u64;
                count += 1;
            }
            (bytes, count)
        }));
    }
    let (mut bytes, mut count) = (0, 0);
    for task in tasks {
        let (more_bytes, more) = task.await.unwrap();
        bytes += more_bytes;
        count += more;
    }
    report(
        &format!("out {size} B, {subscribers} subscribers"),
        started,
        bytes,
        count,
    );
}

async fn put(size: usize, calls: usize) {
    create().await;
    let started = Instant::now();
    let channel = channel().await;
    let tasks: Vec<_> = (0..calls)
        .map(|_| {
            let mut client = ProducerClient::new(channel.clone());
            tokio::spawn(async move {
                let record = PutRecord {
                    partition_key: "key".into(),
                    data: vec![7; size].into(),
                    ..Default::default()
                };
                let request = PutRequest {
                    stream: STREAM.into(),
                    records: vec![record],
                };
                let mut count = 0;
                while started.elapsed() < RUN {
                    client.put(request.clone()).await.unwrap();
                    count += 1;
                }
                count
            })
        })
        .collect();
    let mut count = 0;
    for task in tasks {
        count += task.await.unwrap();
    }
    report(
        &format!("put {size} B, {calls} calls"),
        started,
        count * size as u64,
        count,
    );
}
