//! `flumen produce`: records from files or standard input.

mod keys;
mod source;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use flumen_client::{Compression, Producer, ProducerConfig, Record, SendError, StreamName};
use serde_json::json;
use tokio::time::Instant;

use super::{block_on, interrupted};
use crate::cli::Context;
use crate::failure::{of_client, usage};
use crate::output::Output;
use crate::quantity::{count, duration, parse_duration, per_second, size};
use keys::KeyChoice;
use source::Source;

/// How input becomes records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Format {
    /// Each line is a record
    #[default]
    Lines,
    /// Each line is a JSON value and a record
    Ndjson,
    /// The first row names the columns, each further row is a record, as it stands
    Csv,
}

/// How batches are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum CompressionChoice {
    /// Not
    #[default]
    None,
    /// Fast
    Lz4,
    /// Small
    Zstd,
}

impl From<CompressionChoice> for Compression {
    fn from(choice: CompressionChoice) -> Self {
        match choice {
            CompressionChoice::None => Self::None,
            CompressionChoice::Lz4 => Self::Lz4,
            CompressionChoice::Zstd => Self::Zstd,
        }
    }
}

/// Arguments of `produce`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The stream
    stream: StreamName,
    /// Files, in this order; none or `-`: standard input
    files: Vec<PathBuf>,
    /// How input becomes records
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Partition key from this column (csv) or field (ndjson, a.b for nested ones); `random`: a
    /// new one for every record, which is the default
    #[arg(long, value_name = "FIELD|random", conflicts_with_all = ["key_fixed", "key_separator"])]
    key: Option<String>,
    /// One partition key for all records
    #[arg(long, value_name = "KEY", conflicts_with = "key_separator")]
    key_fixed: Option<String>,
    /// Partition key from each line, up to the first of these (lines only); \t is a tabulator
    #[arg(long, value_name = "TEXT")]
    key_separator: Option<String>,
    /// At most this many records per second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    rate: Option<u64>,
    /// How batches are compressed
    #[arg(long, value_enum, default_value_t)]
    compression: CompressionChoice,
    /// A batch waits this long for more records
    #[arg(long, value_parser = parse_duration, default_value = "2ms", value_name = "TIME")]
    linger: Duration,
    /// Ride out a broker that is away for this long
    #[arg(long, value_parser = parse_duration, default_value = "60s", value_name = "TIME")]
    retry_for: Duration,
}

impl Args {
    fn keys(&self) -> Result<KeyChoice> {
        let refuse = |flag, formats| {
            Err(usage(format!(
                "{flag} needs --format {formats}; see `flumen produce --help`"
            )))
        };
        match (&self.key, &self.key_fixed, &self.key_separator) {
            (Some(field), _, _) if field == "random" => Ok(KeyChoice::Random),
            (Some(_), _, _) if self.format == Format::Lines => {
                refuse("--key FIELD", "csv or ndjson")
            }
            (Some(field), _, _) => Ok(KeyChoice::Field(field.clone())),
            (_, Some(key), _) => Ok(KeyChoice::Fixed(key.clone())),
            (_, _, Some(_)) if self.format != Format::Lines => refuse("--key-separator", "lines"),
            (_, _, Some(text)) if text.is_empty() => Err(usage("--key-separator is empty")),
            (_, _, Some(text)) => Ok(KeyChoice::Separator(text.replace("\\t", "\t"))),
            (None, None, None) => Ok(KeyChoice::Random),
        }
    }
}

/// Runs the command.
pub(crate) fn run(context: &mut Context, args: Args) -> Result<()> {
    let source = Source {
        files: args.files.clone(),
        format: args.format,
        keys: args.keys()?,
    };
    block_on(async {
        let client = context.client()?;
        let config = ProducerConfig {
            linger: args.linger,
            compression: args.compression.into(),
            retry_for: args.retry_for,
            ..ProducerConfig::default()
        };
        let producer = Producer::open(&client, &args.stream, config).await;
        let producer = producer.map_err(|error| of_client(error, context.endpoint()))?;
        let begun = Instant::now();
        let sent = send(&mut context.output, &producer, source, args.rate).await;
        // What was taken is stored, whatever ended the input.
        let closed = producer.close().await;
        report(
            &mut context.output,
            &args.stream,
            &producer,
            begun.elapsed(),
        )?;
        sent?;
        closed.map_err(SendError::into)
    })
}

/// Sends until the input ends, somebody interrupts, or something fails.
async fn send(
    output: &mut Output,
    producer: &Producer,
    source: Source,
    rate: Option<u64>,
) -> Result<()> {
    let (mut records, reading) = source.start();
    let mut stop = std::pin::pin!(interrupted());
    let mut pace = rate.map(Pace::new);
    loop {
        let next = tokio::select! {
            next = records.recv() => next,
            () = &mut stop => break,
        };
        // At the end of the input the reader says below how it went.
        let Some(batch) = next else { break };
        let taken = async {
            match &mut pace {
                None => producer.send_all(batch).await.map(drop),
                Some(pace) => pace.send(producer, batch).await,
            }
        };
        tokio::select! {
            taken = taken => taken?,
            () = &mut stop => break,
        }
        if output.draws_progress() {
            output.progress(&format!(
                "{} records",
                count(producer.stats().records_stored)
            ));
        }
    }
    drop(records);
    let read = tokio::time::timeout(Duration::from_millis(10), reading).await;
    match read {
        Ok(read) => read.context("reading the input")?,
        // It waits for input that nobody wants any more.
        Err(_) => Ok(()),
    }
}

/// Lets records through at a steady rate, from the first on.
struct Pace {
    rate: u64,
    begun: Instant,
    sent: u64,
}

impl Pace {
    fn new(rate: u64) -> Self {
        Self {
            rate,
            begun: Instant::now(),
            sent: 0,
        }
    }

    async fn send(&mut self, producer: &Producer, records: Vec<Record>) -> Result<(), SendError> {
        for record in records {
            let due =
                Duration::from_nanos(self.sent.saturating_mul(1_000_000_000) / self.rate.max(1));
            tokio::time::sleep_until(self.begun + due).await;
            producer.send(record).await?;
            self.sent += 1;
        }
        Ok(())
    }
}

fn report(
    output: &mut Output,
    stream: &StreamName,
    producer: &Producer,
    took: Duration,
) -> Result<()> {
    let stats = producer.stats();
    if output.is_json() {
        let report = json!({
            "stream": stream.as_str(),
            "records": stats.records_stored,
            "bytes": stats.bytes_stored,
            "errors": stats.records_failed,
            "batches_resent": stats.batches_resent,
            "seconds": took.as_secs_f64(),
        });
        return Ok(output.json(&report)?);
    }
    let rate = per_second(stats.records_stored, took);
    output.line(&format!(
        "{} records ({}) stored in {stream} in {}, {}/s",
        count(stats.records_stored),
        size(stats.bytes_stored),
        duration(took),
        count(rate)
    ))?;
    Ok(())
}
