//! A node from its settings to its end: bind, recover, serve, drain.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use flumen_broker::{Broker, Clock};
use flumen_console::Node;
use flumen_grpc::GrpcServer;
use flumen_log::DiskStorage;
use flumen_sink::{RealDestinations, Sink};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::config::Config;
use crate::output::Output;
use crate::telemetry;

/// What blocking threads get to end after everything else has.
const LAST_THREADS: Duration = Duration::from_secs(2);

/// Runs a node until it is asked to end. Prints one line per listener, then "ready".
pub(crate) fn run(output: &mut Output, config: Config, until_stdin_closes: bool) -> Result<()> {
    telemetry::start(config.log_format, &config.log)?;
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(worker_threads(&config))
        .thread_name("flumen-edge")
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let ended = runtime.block_on(serve(output, config, until_stdin_closes));
    runtime.shutdown_timeout(LAST_THREADS);
    ended
}

/// Every segment and every connection is an open file, and the usual limit of 1,024 is left over
/// from programs that used `select`: the process takes what it may have.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        tracing::debug!(files = limit.current, "open files");
        return;
    }
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => tracing::debug!(files = raised.current, was = limit.current, "open files"),
        Err(error) => {
            tracing::warn!(%error, files = limit.current, "the limit of open files was not raised");
        }
    }
}

fn worker_threads(config: &Config) -> usize {
    let cores = || std::thread::available_parallelism().ok();
    config
        .worker_threads
        .or_else(cores)
        .map_or(1, NonZeroUsize::get)
}

async fn serve(output: &mut Output, config: Config, until_stdin_closes: bool) -> Result<()> {
    let mut ending = Ending::watch(until_stdin_closes)?;
    let console = bind("console", "--listen-console", config.listen_console).await?;
    let grpc = bind("grpc", "--listen-grpc", config.listen_grpc).await?;
    say(output, &format!("grpc {}", grpc.local_addr()?));
    say(output, &format!("console {}", console.local_addr()?));
    let node = Node::starting();
    tokio::spawn(flumen_console::serve(
        console,
        node.clone(),
        config.console.clone(),
        std::future::pending(),
    ));
    let clock = Clock::system();
    let opening = open(&config, clock.clone());
    let broker = tokio::select! {
        broker = opening => broker?,
        // Recovery leaves nothing half-done that the next start would miss.
        why = ending.wait() => {
            tracing::info!(why, "ended while recovering");
            return Ok(());
        }
    };
    // Where the logs are: what is spooled for a cut must not be lost without them.
    let spool = config.data_dir.join("sink");
    let destinations = Arc::new(RealDestinations::of_this_process());
    let sink = Sink::start(&broker, config.sink.clone(), destinations, clock, spool);
    let server = GrpcServer::start(broker.clone(), config.grpc, vec![grpc]).await;
    let server = server.context("serving gRPC")?;
    node.serving(broker.clone());
    say(output, "ready");
    let why = ending.wait().await;
    tracing::info!(why, "draining");
    node.draining();
    let drain = async {
        server.shutdown().await;
        if let Some(sink) = sink {
            sink.shutdown().await;
        }
        broker
            .shutdown()
            .await
            .context("closing the data directory")
    };
    tokio::select! {
        drained = drain => drained,
        why = ending.signal() => Err(anyhow!("ended at once, before it had drained ({why})")),
    }
}

/// Whoever started the node may not read its standard output any more: the node goes on.
fn say(output: &mut Output, line: &str) {
    if let Err(error) = output.line(line).and_then(|()| output.flush()) {
        tracing::debug!(%error, "nobody reads standard output");
    }
}

async fn bind(what: &str, flag: &str, address: SocketAddr) -> Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    bound
        .with_context(|| format!("{what} cannot listen on {address}; {flag} takes another address"))
}

async fn open(config: &Config, clock: Clock) -> Result<Broker> {
    let dir = config.data_dir.clone();
    let opened =
        tokio::task::spawn_blocking(move || DiskStorage::open(&dir, DiskStorage::LOCK_WAIT)).await;
    let storage = opened.context("opening the data directory")??;
    let broker = Broker::open(Arc::new(storage), config.broker.clone(), clock);
    Ok(broker.await?)
}

/// Everything that asks the node to end.
struct Ending {
    terminate: Signal,
    interrupt: Signal,
    stdin: mpsc::Receiver<()>,
    /// Keeps `stdin` open when nobody watches it.
    _never: mpsc::Sender<()>,
}

impl Ending {
    fn watch(until_stdin_closes: bool) -> Result<Self> {
        let (closed, stdin) = mpsc::channel(1);
        if until_stdin_closes {
            let closed = closed.clone();
            // Not a task of the runtime: its end, in a panic too, would wait for this read.
            std::thread::spawn(move || {
                // However it ends, whoever held the other side is gone.
                drop(io::copy(&mut io::stdin(), &mut io::sink()));
                // Nobody waits any more: then it is ending already.
                let _ = closed.blocking_send(());
            });
        }
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("watching SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("watching SIGINT")?,
            stdin,
            _never: closed,
        })
    }

    /// The next request, by name.
    async fn wait(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.stdin.recv() => "standard input closed",
        }
    }

    /// The next signal, by name.
    async fn signal(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_of_open_files_becomes_the_hard_one() {
        let limit = getrlimit(Resource::Nofile);
        let current = limit.maximum.map_or(Some(10_000), |most| Some(most - 1));
        setrlimit(Resource::Nofile, Rlimit { current, ..limit }).unwrap();
        raise_file_limit();
        assert_eq!(getrlimit(Resource::Nofile).current, limit.maximum);
    }
}
