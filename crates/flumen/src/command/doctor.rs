//! `flumen doctor`: is a data directory undamaged? Offline, and read-only but for `repair`.

mod repair;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use super::serve::Settings;
use crate::cli::Context;
use crate::failure::AlreadySaid;
use crate::inspection::{Seconds, inspect};
use crate::output::Paint;
use crate::quantity::{count, duration, size};

/// Arguments of `doctor`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The data directory [default: as `serve` would take it]
    #[arg(long, value_name = "DIR", global = true)]
    data_dir: Option<PathBuf>,
    /// A configuration file that names it
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What to do beside looking.
#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make what does not open fit for use again: keeps what is intact, says what is lost, and keeps
    /// copies of all it changes
    Repair(repair::Args),
}

/// Runs the command.
pub(crate) fn run(context: &mut Context, args: &Args) -> Result<()> {
    let settings = Settings::of_data_dir(args.data_dir.clone(), args.config.clone());
    let data_dir = settings.resolve()?.config.data_dir;
    if let Some(Command::Repair(repair)) = &args.command {
        return repair::run(context, repair, &data_dir);
    }
    context.output.progress("reading …");
    let found = inspect(&data_dir)?;
    let output = &mut context.output;
    if output.is_json() {
        for finding in &found.findings {
            output.json(&json!({
                "finding": finding.to_string(),
                "file": finding.file,
                "problem": finding.problem,
                "meaning": finding.meaning,
                "advice": finding.advice,
            }))?;
        }
        output.json(&json!({
            "data_dir": data_dir,
            "logs": found.logs,
            "segments": found.segments,
            "rounds": found.rounds,
            "records": found.records,
            "file_bytes": found.bytes,
            "tail_rounds": found.tail_rounds,
            "clock_doubt_seconds": found.clock_doubt.map(|seconds| seconds.0),
            "findings": found.findings.len(),
        }))?;
    } else {
        for finding in &found.findings {
            let line = output.paint(Paint::Bad, &finding.to_string());
            output.line(&line)?;
        }
        let verdict = match found.findings.len() {
            0 => output.paint(Paint::Good, "no damage"),
            1 => output.paint(Paint::Bad, "1 finding"),
            more => output.paint(Paint::Bad, &format!("{more} findings")),
        };
        if found.tail_rounds > 0 {
            output.line(&format!(
                "not closed in order: the next start makes the last {} rounds durable again",
                count(found.tail_rounds)
            ))?;
        }
        if let Some(Seconds(seconds)) = found.clock_doubt {
            let direction = if seconds > 0 { "ahead of" } else { "behind" };
            let off = duration(Duration::from_secs(seconds.unsigned_abs()));
            output.line(&format!(
                "the wall clock is {off} {direction} what this directory saw last: unless the machine's clock is known to be right, the next start expires nothing until `flumen clock confirm`"
            ))?;
        }
        output.line(&format!(
            "{}: {verdict}; {} logs, {} segments ({}), {} rounds, {} records",
            data_dir.display(),
            found.logs,
            count(found.segments),
            size(found.bytes),
            count(found.rounds),
            count(found.records)
        ))?;
    }
    if found.findings.is_empty() {
        Ok(())
    } else {
        Err(AlreadySaid.into())
    }
}
