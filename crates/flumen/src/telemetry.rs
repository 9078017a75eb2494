//! Logs of the running node: for people on a terminal, JSON otherwise, always to standard error.

use std::io::{self, IsTerminal};

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// `human` on a terminal, `json` otherwise.
    #[default]
    Auto,
    /// Readable lines.
    Human,
    /// One JSON object per line.
    Json,
}

/// Starts logging. `filter` as in `info` or `warn,flumen_log=debug`.
pub(crate) fn start(format: LogFormat, filter: &str) -> Result<()> {
    let filter = EnvFilter::builder()
        .parse(filter)
        .with_context(|| format!("log filter {filter:?}; try info or warn,flumen_log=debug"))?;
    let terminal = io::stderr().is_terminal();
    let json = match format {
        LogFormat::Auto => !terminal,
        LogFormat::Human => false,
        LogFormat::Json => true,
    };
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    let started = if json {
        lines
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .try_init()
    } else {
        lines.with_ansi(terminal).with_target(false).try_init()
    };
    // Only a second start in one process fails; the first one goes on.
    drop(started);
    Ok(())
}
