//! What the RPC layer alone carries over loopback: a bidirectional stream whose server answers each
//! message with its length. The ceiling that `cargo xtask perf` compares un-batched appends with.
//!
//! `rpc_echo serve --listen 127.0.0.1:0` prints its address; `rpc_echo load --target http://…
//! --sessions 256 --in-flight 1 --connections 256 --message-bytes 350 --seconds 8` prints one JSON object.
#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::io::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use clap::{Parser, Subcommand};
use futures_util::StreamExt;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_stream::Stream;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

const WINDOW_BYTES: u32 = 8 << 20;
const FRAME_BYTES: u32 = 1 << 20;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Subcommand)]
enum Mode {
    /// Answers.
    Serve {
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: String,
    },
    /// Asks.
    Load {
        #[arg(long)]
        target: String,
        #[arg(long)]
        sessions: usize,
        #[arg(long)]
        in_flight: usize,
        #[arg(long)]
        connections: usize,
        #[arg(long)]
        message_bytes: usize,
        #[arg(long)]
        seconds: u64,
    },
}

/// Bytes in, bytes out.
#[derive(Clone, Copy, Default)]
struct PassThrough;

fn buffers() -> BufferSettings {
    BufferSettings::new(64 << 10, 1 << 20)
}

impl Codec for PassThrough {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for PassThrough {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(item);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        buffers()
    }
}

impl Decoder for PassThrough {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let bytes = from.remaining();
        Ok(Some(from.copy_to_bytes(bytes)))
    }

    fn buffer_settings(&self) -> BufferSettings {
        buffers()
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;
type Later<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

#[derive(Clone)]
struct Echo;

impl tonic::server::NamedService for Echo {
    const NAME: &'static str = "echo.Echo";
}

impl tonic::server::StreamingService<Bytes> for Echo {
    type Response = Bytes;
    type ResponseStream = Answers;
    type Future = Later<Response<Answers>, Status>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let answers = request.into_inner().map(|message| {
            message.map(|bytes| Bytes::copy_from_slice(&(bytes.len() as u64).to_le_bytes()))
        });
        Box::pin(async { Ok(Response::new(Box::pin(answers) as Answers)) })
    }
}

impl tower_service::Service<http::Request<tonic::body::Body>> for Echo {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Later<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        Box::pin(async {
            Ok(tonic::server::Grpc::new(PassThrough)
                .streaming(Echo, request)
                .await)
        })
    }
}

async fn serve(listen: &str) -> Result<(), Box<dyn std::error::Error>> {
    let listener = TcpListener::bind(listen).await?;
    writeln!(std::io::stdout(), "{}", listener.local_addr()?)?;
    Server::builder()
        .max_frame_size(FRAME_BYTES)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(2 * WINDOW_BYTES)
        .tcp_nodelay(true)
        .add_service(Echo)
        .serve_with_incoming(TcpListenerStream::new(listener))
        .await?;
    Ok(())
}

/// One session with a window of messages; returns how many were answered by `stop`.
async fn session(
    channel: Channel,
    in_flight: usize,
    message: Bytes,
    stop: Instant,
) -> Result<u64, Status> {
    let window = Arc::new(Semaphore::new(in_flight));
    let answered = Arc::clone(&window);
    let messages = futures_util::stream::unfold(message, move |message| {
        let window = Arc::clone(&window);
        async move {
            let permit = window.acquire_owned().await.ok()?;
            permit.forget();
            (Instant::now() < stop).then(|| (message.clone(), message))
        }
    });
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready()
        .await
        .map_err(|error| Status::unavailable(error.to_string()))?;
    let path = http::uri::PathAndQuery::from_static("/echo.Echo/Call");
    let mut answers = grpc
        .streaming(Request::new(messages), path, PassThrough)
        .await?
        .into_inner();
    let mut count = 0;
    while answers.next().await.transpose()?.is_some() {
        count += u64::from(Instant::now() < stop);
        answered.add_permits(1);
    }
    Ok(count)
}

async fn load(
    target: String,
    (sessions, in_flight, connections): (usize, usize, usize),
    message_bytes: usize,
    seconds: u64,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut channels = Vec::new();
    for _ in 0..connections.max(1) {
        let endpoint = Endpoint::from_shared(target.clone())?
            .tcp_nodelay(true)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(2 * WINDOW_BYTES);
        channels.push(endpoint.connect().await?);
    }
    let begun = Instant::now();
    let stop = begun + Duration::from_secs(seconds);
    let message = Bytes::from(vec![7; message_bytes]);
    let running: Vec<_> = channels
        .iter()
        .cycle()
        .take(sessions)
        .map(|channel| tokio::spawn(session(channel.clone(), in_flight, message.clone(), stop)))
        .collect();
    let mut messages = 0;
    for session in running {
        messages += session.await??;
    }
    let per_second = messages as f64 / seconds as f64;
    writeln!(
        std::io::stdout(),
        "{{\"messages\":{messages},\"seconds\":{seconds},\"messages_per_s\":{per_second:.0}}}"
    )?;
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match Arguments::parse().mode {
            Mode::Serve { listen } => serve(&listen).await,
            Mode::Load {
                target,
                sessions,
                in_flight,
                connections,
                message_bytes,
                seconds,
            } => {
                load(
                    target,
                    (sessions, in_flight, connections),
                    message_bytes,
                    seconds,
                )
                .await
            }
        }
    })
}
