//! `flumen bench`: how fast a broker is, measured honestly.
//!
//! With `--rate N` the load is open loop: batches are due at fixed times whatever the broker does,
//! and latency counts from when a batch was due, not from when it could be sent. With `--rate max`
//! it is closed loop: each session keeps its batches in flight and latency counts from sending.

mod consume;
mod load;
mod pace;
mod payload;
mod readers;
mod report;
mod session;
mod target;
mod verify;

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Subcommand;
use flumen_client::StreamName;

use super::stream::Level;
use crate::cli::Context;
use crate::failure::{AlreadySaid, usage};
use crate::quantity::{parse_duration, parse_size};
use load::Mode;
use report::Report;
use target::Target;

/// The verbs of `bench`.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Append records and wait for their acks
    Produce(Produce),
    /// Read a stream from its oldest record to what is its end now
    Consume(Consume),
    /// Append records while consumers read them
    E2e(EndToEnd),
}

/// What all loads have.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Load {
    /// The stream; created when missing, and kept [default: one of our own, deleted afterwards]
    #[arg(long)]
    stream: Option<StreamName>,
    /// Data bytes of a record
    #[arg(long, default_value = "1KiB", value_parser = parse_size, value_name = "SIZE")]
    record_size: u64,
    /// Records of a batch; 1: each record is a batch with an ack of its own
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_536), value_name = "N")]
    batch: u32,
    /// Concurrent append sessions
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=4_096), value_name = "N")]
    sessions: u32,
    /// Batches of one session that may be sent and unacknowledged
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=65_536), value_name = "N")]
    in_flight: u32,
    /// TCP connections that the sessions share
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4_096), value_name = "N")]
    connections: u32,
    /// Records per second in all, or `max`
    #[arg(long, default_value = "max", value_parser = parse_rate, value_name = "N|max")]
    rate: Rate,
    /// How long
    #[arg(long, default_value = "10s", value_parser = parse_duration, value_name = "TIME")]
    duration: Duration,
    /// This many records, however long it takes
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..), conflicts_with = "duration", value_name = "N")]
    records: Option<u64>,
    /// What an ack of a stream created here promises
    #[arg(long, value_enum, default_value_t = Level::Disk)]
    durability: Level,
    /// Shards of a stream created here
    #[arg(long, default_value_t = 1, value_name = "N")]
    shards: u32,
    /// Threads that make the load
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64), value_name = "N")]
    threads: u32,
    /// Read everything back afterwards: count, order and contents
    #[arg(long)]
    verify: bool,
}

/// Arguments of `bench produce`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Produce {
    #[command(flatten)]
    load: Load,
}

/// Arguments of `bench e2e`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct EndToEnd {
    #[command(flatten)]
    load: Load,
    /// Consumers, each reading all of the stream
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_024), value_name = "N")]
    consumers: u32,
}

/// Arguments of `bench consume`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Consume {
    /// The stream
    #[arg(long)]
    stream: StreamName,
    /// Consumers that share the shards, each with a connection of its own
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_024), value_name = "N")]
    connections: u32,
}

/// A target rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rate(Option<u64>);

fn parse_rate(text: &str) -> Result<Rate, &'static str> {
    match text {
        "max" => Ok(Rate(None)),
        _ => match text.parse() {
            Ok(rate) if rate > 0 => Ok(Rate(Some(rate))),
            _ => Err("a whole number of records per second, or max"),
        },
    }
}

/// Runs the command.
pub(crate) fn run(context: &mut Context, verb: Verb) -> Result<()> {
    if let Verb::Produce(Produce { load }) | Verb::E2e(EndToEnd { load, .. }) = &verb {
        check(load)?;
    }
    let target = Target::find(context)?;
    let report = match verb {
        Verb::Produce(args) => load::run(context, &target, &args.load, Mode::Produce)?,
        Verb::E2e(args) => load::run(
            context,
            &target,
            &args.load,
            Mode::EndToEnd {
                consumers: args.consumers,
            },
        )?,
        Verb::Consume(args) => consume::run(&target, &args)?,
    };
    conclude(context, &report)
}

fn check(load: &Load) -> Result<()> {
    let batch_bytes = load.record_size.saturating_mul(u64::from(load.batch));
    ensure!(
        batch_bytes <= 12 << 20,
        usage("a batch of --batch records of --record-size is larger than 12 MiB; take fewer")
    );
    ensure!(
        load.connections <= load.sessions,
        usage("more --connections than --sessions; each session uses one connection")
    );
    Ok(())
}

fn conclude(context: &mut Context, report: &Report) -> Result<()> {
    report.print(&mut context.output)?;
    context.output.flush()?;
    if let Some(error) = &report.first_error {
        crate::output::complain(error);
        return Err(AlreadySaid.into());
    }
    Ok(())
}
