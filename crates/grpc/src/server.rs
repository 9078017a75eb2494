//! Listeners, connections, and how they end.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use flumen_broker::Broker;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;
use tracing::{debug, info, warn};

use crate::GrpcConfig;
use crate::attendant::Attendants;
use crate::drain::{Drain, Phase};
use crate::route::Router;

/// Rest after an accept that failed, so that a server out of file handles does not spin.
const ACCEPT_REST: Duration = Duration::from_millis(50);
/// What every HTTP/2 client with prior knowledge sends first (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// For those who come with a browser or `curl`.
const NOT_HTTP2: &[u8] = b"HTTP/1.1 505 HTTP Version Not Supported\r\n\
    content-type: text/plain\r\ncontent-length: 42\r\nconnection: close\r\n\r\n\
    this port speaks gRPC (HTTP/2) and only it";

/// Why a server does not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// A listener has no address.
    #[error("the gRPC listener is not usable: {0}")]
    Listener(#[from] io::Error),
    /// The descriptors that are compiled in do not decode.
    #[error("gRPC reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// A running gRPC server. Dropping it cuts its connections off.
#[derive(Debug)]
pub struct GrpcServer {
    config: Arc<GrpcConfig>,
    attendants: Attendants,
    phase: watch::Sender<Phase>,
    connections: Arc<Semaphore>,
    addresses: Vec<SocketAddr>,
}

impl GrpcServer {
    /// Serves `broker` on these listeners, from now on.
    pub async fn start(
        broker: Broker,
        config: GrpcConfig,
        listeners: Vec<TcpListener>,
    ) -> Result<Self, StartError> {
        let addresses = listeners
            .iter()
            .map(TcpListener::local_addr)
            .collect::<io::Result<_>>()?;
        let config = Arc::new(config);
        let (phase, watched) = watch::channel(Phase::Serving);
        let attendants = Attendants::new().await?;
        let connections = Arc::new(Semaphore::new(config.connections_max as usize));
        let acceptor = Acceptor {
            router: Router {
                broker,
                config: Arc::clone(&config),
                drain: Drain::new(watched),
                attendants: attendants.clone(),
            },
            http: http(&config),
            connections: Arc::clone(&connections),
        };
        for listener in listeners {
            tokio::spawn(acceptor.clone().accept(listener));
        }
        Ok(Self {
            config,
            attendants,
            phase,
            connections,
            addresses,
        })
    }

    /// Where it listens.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Takes no new connections and calls, says so to health checkers, and lets sessions end:
    /// acks of what was taken still go out, then each ends as `UNAVAILABLE`, reason `DRAINING`.
    pub async fn drain(&self) {
        self.attendants.say_draining().await;
        self.phase.send_if_modified(|phase| {
            let later = *phase < Phase::Draining;
            *phase = Phase::Draining.max(*phase);
            later
        });
    }

    /// Drains, waits for all connections to end, and cuts off what has not after
    /// `drain_timeout_ms`.
    pub async fn shutdown(self) {
        self.drain().await;
        let all = self.config.connections_max;
        let ended = self.connections.acquire_many(all);
        if timeout(self.config.drain_timeout(), ended).await.is_err() {
            let left = all as usize - self.connections.available_permits();
            warn!(connections = left, "gRPC: cut off what did not end in time");
            self.phase.send_replace(Phase::Closing);
        }
    }
}

fn http(config: &GrpcConfig) -> http2::Builder<TokioExecutor> {
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new())
        .auto_date_header(false)
        .max_concurrent_streams(config.sessions_per_connection_max)
        .initial_stream_window_size(config.session_window_bytes)
        .initial_connection_window_size(config.connection_window_bytes)
        .max_frame_size(config.frame_bytes_max)
        .max_send_buf_size(config.send_buffer_bytes as usize)
        .max_header_list_size(config.header_bytes_max)
        .max_pending_accept_reset_streams(config.pending_resets_max as usize)
        .max_local_error_reset_streams(config.fault_resets_max as usize)
        .keep_alive_interval(config.keepalive_interval())
        .keep_alive_timeout(config.keepalive_timeout());
    http
}

#[derive(Clone)]
struct Acceptor {
    router: Router,
    http: http2::Builder<TokioExecutor>,
    connections: Arc<Semaphore>,
}

impl Acceptor {
    /// Ends when the server drains, and for no other reason.
    async fn accept(self, listener: TcpListener) {
        let mut draining = self.router.drain.started();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = &mut draining => return,
            };
            match accepted {
                Ok((tcp, peer)) => self.admit(tcp, peer),
                Err(error) => {
                    warn!(%error, "gRPC: cannot accept a connection");
                    tokio::time::sleep(ACCEPT_REST).await;
                }
            }
        }
    }

    fn admit(&self, tcp: TcpStream, peer: SocketAddr) {
        let Ok(permit) = Arc::clone(&self.connections).try_acquire_owned() else {
            let limit = self.router.config.connections_max;
            warn!(%peer, limit, "gRPC: too many connections, closed one");
            return;
        };
        tokio::spawn(self.clone().serve(tcp, peer, permit));
    }

    async fn serve(self, tcp: TcpStream, peer: SocketAddr, permit: OwnedSemaphorePermit) {
        let limit = self.router.config.handshake_timeout();
        match timeout(limit, self.greet(tcp)).await {
            Ok(Ok(Some(tcp))) => {
                self.converse(tcp, peer).await;
            }
            Ok(Ok(None)) => info!(%peer, "gRPC: closed a connection that does not speak HTTP/2"),
            Ok(Err(error)) => debug!(%peer, %error, "gRPC: a connection broke at once"),
            Err(_) => info!(%peer, "gRPC: closed a connection that said nothing"),
        }
        drop(permit);
    }

    /// Reads the client's first bytes. `None`: it does not speak HTTP/2, and was told so.
    async fn greet(&self, mut tcp: TcpStream) -> io::Result<Option<TcpStream>> {
        tcp.set_nodelay(true)?;
        let mut first = [0; PREFACE.len()];
        tcp.read_exact(&mut first).await?;
        if first == *PREFACE {
            return Ok(Some(tcp));
        }
        tcp.write_all(NOT_HTTP2).await?;
        tcp.shutdown().await?;
        Ok(None)
    }

    /// Speaks HTTP/2 until either side is done.
    async fn converse(self, tcp: TcpStream, peer: SocketAddr) {
        let (incoming, outgoing) = tcp.into_split();
        // The preface was read already; hyper wants to see it too.
        let io = TokioIo::new(tokio::io::join(PREFACE.chain(incoming), outgoing));
        let mut draining = self.router.drain.started();
        let mut closing = self.router.drain.at(Phase::Closing);
        let router = self.router;
        let service = service_fn(move |request| {
            let answer = router.clone().answer(request);
            async move { Ok::<_, Infallible>(answer.await) }
        });
        let mut connection = pin!(self.http.serve_connection(io, service));
        let mut told = false;
        loop {
            tokio::select! {
                biased;
                ended = &mut connection => {
                    if let Err(error) = ended {
                        debug!(%peer, %error, "gRPC: a connection broke");
                    }
                    return;
                }
                () = &mut draining, if !told => {
                    told = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = &mut closing => return,
            }
        }
    }
}
