//! Routes and the accept loop: plain HTTP/1.1, bounded in connections and time.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use flumen_broker::{Broker, Clock};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::deliveries;
use crate::exposition::{self, Numbers};
use crate::process::ProcessStats;
use crate::{ConsoleConfig, Node};

/// How long a page waits for the lag of groups.
const LAGS_PATIENCE: Duration = Duration::from_secs(2);

/// Answers until `shutdown` resolves. Connections that are open then are dropped: what the console
/// says is never the only copy of anything.
pub async fn serve(
    listener: TcpListener,
    node: Node,
    config: ConsoleConfig,
    shutdown: impl Future<Output = ()>,
) {
    let routes = routes(Console {
        node,
        group_lags_max: usize::try_from(config.group_lags_max).unwrap_or(usize::MAX),
        deliveries_max: usize::try_from(config.deliveries_max).unwrap_or(usize::MAX),
    });
    let connections = Arc::new(Semaphore::new(
        usize::try_from(config.connections_max).unwrap_or(Semaphore::MAX_PERMITS),
    ));
    let accepting = async {
        loop {
            let permit = Arc::clone(&connections).acquire_owned().await;
            match listener.accept().await {
                Ok((stream, _)) => {
                    let answering = answer(stream, routes.clone(), config.clone());
                    tokio::spawn(async move {
                        answering.await;
                        drop(permit);
                    });
                }
                // Out of descriptors, or the peer is gone already: neither ends the console.
                Err(error) => {
                    tracing::warn!(%error, "the console cannot accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    };
    tokio::select! {
        () = accepting => {}
        () = shutdown => {}
    }
}

async fn answer(stream: TcpStream, routes: Router, config: ConsoleConfig) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(config.header_timeout_ms))
        .max_buf_size(16 << 10)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    let longest = Duration::from_millis(config.connection_ms_max);
    match tokio::time::timeout(longest, connection).await {
        Ok(Ok(())) | Err(_) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a console connection ended early"),
    }
}

/// What the routes speak about.
#[derive(Debug, Clone)]
struct Console {
    node: Node,
    group_lags_max: usize,
    deliveries_max: usize,
}

impl Console {
    /// The broker's numbers; without those of groups when these do not come in time.
    async fn numbers(&self) -> Option<Numbers> {
        let broker = self.node.broker()?;
        let mut numbers = Numbers::from(broker.metrics().snapshot());
        // Their log may wait for a disk that is full or stuck: everything else is still worth telling.
        let lags = tokio::time::timeout(LAGS_PATIENCE, broker.group_lags(self.group_lags_max));
        if let Ok(Ok(lags)) = lags.await {
            numbers.snapshot.add_group_lags(&lags);
        }
        Some(self.with_deliveries(broker, numbers).await)
    }

    /// From memory, but there may be many, each of many shards: not on a thread that others wait for.
    async fn with_deliveries(&self, broker: Broker, mut numbers: Numbers) -> Numbers {
        let listing = tokio::task::spawn_blocking(move || {
            // The broker bounds how many there are.
            broker.list_deliveries(None, usize::MAX)
        });
        match listing.await {
            // Its log did not open: there are no numbers, but one that says so.
            Ok(Err(_)) => {}
            Ok(Ok((all, _))) => {
                deliveries::add(
                    &mut numbers,
                    &all,
                    self.deliveries_max,
                    Clock::system().now(),
                );
            }
            Err(error) => tracing::error!(%error, "delivery streams cannot be listed"),
        }
        numbers
    }
}

fn routes(console: Console) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/version", get(version))
        .with_state(console)
}

async fn metrics(State(console): State<Console>) -> Response {
    let ready = console.node.readiness().ready;
    match exposition::render(console.numbers().await, ProcessStats::read(), ready) {
        Ok(text) => ([(header::CONTENT_TYPE, exposition::CONTENT_TYPE)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "metrics cannot be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// The process is alive; what it says about its work is in `/readyz`.
async fn healthz() -> &'static str {
    "alive\n"
}

async fn readyz(State(console): State<Console>) -> (StatusCode, String) {
    let readiness = console.node.readiness();
    let code = if readiness.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (code, format!("{}\n", readiness.says))
}

async fn version() -> Response {
    let version = concat!(
        r#"{"name":"flumen","version":""#,
        env!("CARGO_PKG_VERSION"),
        "\"}\n"
    );
    ([(header::CONTENT_TYPE, "application/json")], version).into_response()
}

#[cfg(test)]
mod tests;
