//! The commands, one file each.

pub(crate) mod bench;
pub(crate) mod clock;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod consume;
pub(crate) mod delivery;
pub(crate) mod demo;
pub(crate) mod doctor;
pub(crate) mod group;
pub(crate) mod produce;
pub(crate) mod serve;
pub(crate) mod stream;

use std::future::Future;

use anyhow::{Context, Result};

/// Runs a command's future on a runtime of its own, on this thread.
fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.context("starting the runtime")?.block_on(work)
}

/// Resolves when somebody asks this process to end (ctrl-c or SIGTERM).
async fn interrupted() {
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        .expect("BUG: no runtime with signals");
    tokio::select! {
        // An error means that ctrl-c cannot be heard: then only the other one ends us.
        Ok(()) = tokio::signal::ctrl_c() => {}
        _ = term.recv() => {}
    }
}
