//! A real node in this process: broker and gRPC server on a directory, to be stopped, killed and
//! started again; and a TCP proxy that loses its answers on demand.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use flumen_broker::{Broker, BrokerConfig, Clock};
use flumen_client::{Client, ClientConfig};
use flumen_grpc::{GrpcConfig, GrpcServer};
use flumen_log::DiskStorage;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{oneshot, watch};

/// A running node, with a runtime of its own.
pub(crate) struct Node {
    runtime: Option<Runtime>,
    broker: Option<Broker>,
    grpc: Option<GrpcServer>,
    pub(crate) address: SocketAddr,
}

impl Node {
    pub(crate) async fn start(directory: &Path) -> Self {
        Self::start_at(directory, "127.0.0.1:0".parse().unwrap()).await
    }

    pub(crate) async fn start_at(directory: &Path, address: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let (started, starting) = oneshot::channel();
        let directory = directory.to_owned();
        runtime.spawn(async move {
            let open = || DiskStorage::open(&directory, Duration::from_secs(10));
            let storage = tokio::task::block_in_place(open).unwrap();
            let config = BrokerConfig::default();
            let broker = Broker::open(Arc::new(storage), config, Clock::system())
                .await
                .unwrap();
            let listener = TcpListener::bind(address).await.unwrap();
            let config = GrpcConfig {
                drain_timeout_ms: 500,
                ..GrpcConfig::default()
            };
            let grpc = GrpcServer::start(broker.clone(), config, vec![listener])
                .await
                .unwrap();
            started.send((broker, grpc)).ok();
        });
        let (broker, grpc) = starting.await.unwrap();
        let address = grpc.addresses()[0];
        Self {
            runtime: Some(runtime),
            broker: Some(broker),
            grpc: Some(grpc),
            address,
        }
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(ClientConfig::new(format!("http://{}", self.address))).unwrap()
    }

    pub(crate) fn broker(&self) -> &Broker {
        self.broker.as_ref().unwrap()
    }

    /// Stops it in order.
    pub(crate) async fn stop(mut self) {
        let (broker, grpc) = (self.broker.take().unwrap(), self.grpc.take().unwrap());
        let stopped = self.runtime.as_ref().unwrap().spawn(async move {
            grpc.shutdown().await;
            broker.shutdown().await.unwrap();
        });
        stopped.await.unwrap();
    }

    /// Ends it as a kill would: nothing is finished, nothing is written.
    pub(crate) fn kill(self) {}
}

impl Drop for Node {
    fn drop(&mut self) {
        self.grpc = None;
        self.broker = None;
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Forwards TCP connections, and loses what the node says when told to.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    cut: watch::Sender<u64>,
}

struct Shared {
    swallow: AtomicBool,
    swallowed: AtomicU64,
}

impl Proxy {
    pub(crate) async fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            swallow: AtomicBool::new(false),
            swallowed: AtomicU64::new(0),
        });
        let (cut, cuts) = watch::channel(0);
        let proxy = Self {
            address,
            shared: Arc::clone(&shared),
            cut,
        };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(forward(client, upstream, Arc::clone(&shared), cuts.clone()));
            }
        });
        proxy
    }

    /// From now on the node's answers do not reach the client, while requests go on to the node.
    pub(crate) fn swallow_answers(&self) {
        self.shared.swallowed.store(0, Ordering::SeqCst);
        self.shared.swallow.store(true, Ordering::SeqCst);
    }

    /// Bytes lost since then.
    pub(crate) fn swallowed(&self) -> u64 {
        self.shared.swallowed.load(Ordering::SeqCst)
    }

    /// Cuts every connection; new ones are forwarded whole.
    pub(crate) fn cut(&self) {
        self.cut.send_modify(|cuts| *cuts += 1);
        self.shared.swallow.store(false, Ordering::SeqCst);
    }
}

async fn forward(
    mut client: TcpStream,
    upstream: SocketAddr,
    shared: Arc<Shared>,
    mut cuts: watch::Receiver<u64>,
) {
    cuts.mark_unchanged();
    let Ok(mut node) = TcpStream::connect(upstream).await else {
        return;
    };
    let (mut from_client, mut to_client) = client.split();
    let (mut from_node, mut to_node) = node.split();
    let answers = async {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let n = from_node.read(&mut buffer).await?;
            if n == 0 {
                return std::io::Result::Ok(());
            }
            if shared.swallow.load(Ordering::SeqCst) {
                shared.swallowed.fetch_add(n as u64, Ordering::SeqCst);
            } else {
                to_client.write_all(&buffer[..n]).await?;
            }
        }
    };
    tokio::select! {
        _ = tokio::io::copy(&mut from_client, &mut to_node) => {}
        _ = answers => {}
        _ = cuts.changed() => {}
    }
}
