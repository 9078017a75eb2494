//! `flumen consume` and `flumen tail`: records to standard output.

mod goal;
mod layout;
mod member;
pub(super) mod start;

use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use flumen_broker::Clock;
use flumen_client::{
    Client, ConsumeError, ConsumedBatch, Consumer, ConsumerConfig, GapPolicy, ReadUntil,
    StreamDescription, StreamIncarnation, StreamName,
};
use flumen_record::{SequenceNumber, ShardIndex};
use futures_util::FutureExt;

use super::{block_on, interrupted};
use crate::cli::Context;
use crate::failure::{of_client, usage};
use crate::output::Output;
use crate::quantity::parse_duration;
use layout::Layout;
use member::MemberArgs;
use start::From;

/// How formats are written, for `--help`.
const FORMATS: &str = "\
Formats: %d data, %k partition key, %s sequence number, %S shard, %t arrival time, %T the same in
microseconds, %h headers as NAME=VALUE, %b bytes of data, %n stream, %% a percent sign; \\n \\t \\r
\\0 \\\\ as usual. `raw` writes data and nothing between. Without --format: '%d\\n'.";

/// Arguments of `consume`.
#[derive(Debug, clap::Args)]
#[command(after_help = FORMATS)]
pub(crate) struct Args {
    /// The stream
    stream: StreamName,
    /// Where to begin: trim-horizon (the oldest), latest, at:SEQ, after:SEQ, or a time (RFC 3339,
    /// or a while ago as in -15m)
    #[arg(long, default_value = "trim-horizon", value_parser = From::parse, allow_hyphen_values = true, value_name = "WHERE")]
    from: From,
    /// Only this stream of the name (`stream describe` shows it): another one that was created under
    /// it meanwhile is refused, since --from at:SEQ is a place in one stream
    #[arg(long, value_parser = incarnation, value_name = "HEX")]
    incarnation: Option<StreamIncarnation>,
    #[command(flatten)]
    shared: Shared,
    /// Go on when the end is reached; without it, reading ends at what was the end at the start
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    member: MemberArgs,
}

/// Arguments of `tail`.
#[derive(Debug, clap::Args)]
#[command(after_help = FORMATS)]
pub(crate) struct TailArgs {
    /// The stream
    stream: StreamName,
    #[command(flatten)]
    shared: Shared,
}

/// What both have.
#[derive(Debug, clap::Args)]
struct Shared {
    /// Only this shard (may be given several times)
    #[arg(long, value_name = "ID")]
    shard: Vec<u32>,
    /// End after this many records
    #[arg(long, value_name = "N")]
    max: Option<u64>,
    /// How a record is written, see below
    #[arg(long, value_name = "FORMAT|raw")]
    format: Option<String>,
    /// Go on behind records that are gone (trimmed or damaged) instead of failing
    #[arg(long)]
    skip_gaps: bool,
    /// Ride out a broker that is away for this long
    #[arg(long, value_parser = parse_duration, default_value = "60s", value_name = "TIME")]
    retry_for: Duration,
}

impl std::convert::From<TailArgs> for Args {
    fn from(tail: TailArgs) -> Self {
        Self {
            stream: tail.stream,
            from: From::Latest,
            incarnation: None,
            shared: tail.shared,
            follow: true,
            member: MemberArgs::default(),
        }
    }
}

fn incarnation(text: &str) -> Result<StreamIncarnation, &'static str> {
    StreamIncarnation::from_hex(text).ok_or("an incarnation has 16 hexadecimal digits")
}

/// Runs the command.
pub(crate) fn run(context: &mut Context, args: Args) -> Result<()> {
    let json = context.output.is_json();
    if json && args.shared.format.is_some() {
        return Err(usage("--format and --output json exclude each other"));
    }
    let layout = match &args.shared.format {
        _ if json => Layout::Json,
        Some(format) => Layout::parse(format).map_err(usage)?,
        None => Layout::line(),
    };
    if let Some(group) = &args.member.group {
        return member::run(context, &args, group, &layout);
    }
    block_on(async {
        let client = context.client()?;
        let consumer = open(&client, &args, context.endpoint()).await?;
        print(&mut context.output, consumer, &layout, &args).await
    })
}

async fn open(client: &Client, args: &Args, endpoint: &str) -> Result<Consumer> {
    let shards: Vec<_> = args
        .shared
        .shard
        .iter()
        .copied()
        .map(ShardIndex::new)
        .collect();
    if let Some(first) = args.from.names_a_record() {
        let described = client.describe_stream(&args.stream).await;
        let stream = described.map_err(|error| of_client(error, endpoint))?;
        check_place(&stream, &shards, first)?;
    }
    let config = ConsumerConfig {
        start: args.from.resolve(Clock::system().now()),
        incarnation: args.incarnation,
        shards,
        until: if args.follow {
            ReadUntil::Forever
        } else {
            ReadUntil::CurrentEnd
        },
        gaps: if args.shared.skip_gaps {
            GapPolicy::Skip
        } else {
            GapPolicy::Fail
        },
        retry_for: args.shared.retry_for,
        ..ConsumerConfig::default()
    };
    let opened = Consumer::open(client, &args.stream, config).await;
    opened.map_err(|error| explain(error, endpoint))
}

/// A sequence number means something in one shard only, and only up to its end.
fn check_place(
    stream: &StreamDescription,
    shards: &[ShardIndex],
    first: SequenceNumber,
) -> Result<()> {
    let mut chosen = stream
        .shards
        .iter()
        .filter(|shard| shards.is_empty() || shards.contains(&shard.index));
    // A shard that is not there is refused with that reason when the reading begins.
    let Some(shard) = chosen.next() else {
        return Ok(());
    };
    if chosen.next().is_some() {
        return Err(usage(format!(
            "{} has {} shards, each with sequence numbers of its own: say which with --shard",
            stream.name,
            stream.shards.len()
        )));
    }
    ensure!(
        first <= shard.durable_end,
        "record {first} is not there: shard {} ends at {}; --from latest waits for what comes",
        shard.index,
        shard.durable_end
    );
    Ok(())
}

async fn print(
    output: &mut Output,
    mut consumer: Consumer,
    layout: &Layout,
    args: &Args,
) -> Result<()> {
    let mut left = args.shared.max.unwrap_or(u64::MAX);
    let mut malformed = 0_u64;
    let mut stop = std::pin::pin!(interrupted());
    while left > 0 {
        let ready = consumer.next().now_or_never();
        let next = match ready {
            Some(next) => next,
            None => {
                // Nothing is at hand: what was written so far should be seen.
                output.flush()?;
                tokio::select! {
                    next = consumer.next() => next,
                    () = &mut stop => break,
                }
            }
        };
        let Some(batch) = next.map_err(|error| explain(error, ""))? else {
            break;
        };
        malformed += write(output, layout, &args.stream, &batch, &mut left)?;
    }
    output.flush()?;
    let skipped = consumer.stats().numbers_skipped;
    if skipped > 0 {
        output.note(&format!(
            "{skipped} sequence numbers were skipped: trimmed, damaged or jumped"
        ));
    }
    match malformed {
        0 => Ok(()),
        _ => Err(anyhow!(
            "{malformed} records do not decode: their producer broke a compressed batch"
        )),
    }
}

/// Writes the records of a batch; returns how many do not decode.
fn write(
    output: &mut Output,
    layout: &Layout,
    stream: &StreamName,
    batch: &ConsumedBatch,
    left: &mut u64,
) -> Result<u64> {
    let mut malformed = 0;
    for record in batch.records() {
        if *left == 0 {
            break;
        }
        *left -= 1;
        match record {
            Ok(record) => layout.write(output, stream, &record)?,
            Err(error) => {
                malformed += 1;
                output.note(&error.to_string());
            }
        }
    }
    Ok(malformed)
}

/// The error with what to try next.
fn explain(error: ConsumeError, endpoint: &str) -> anyhow::Error {
    match error {
        ConsumeError::Refused(error) => of_client(error, endpoint),
        ConsumeError::Unavailable { last, .. } => of_client(last, endpoint),
        ConsumeError::Trimmed { .. } | ConsumeError::DataLoss { .. } => {
            anyhow!("{error}; --skip-gaps goes on behind them")
        }
        other => other.into(),
    }
}
