//! `flumen stream`: create, list, describe, update, delete.

use std::time::Duration;

use anyhow::Result;
use clap::{Subcommand, ValueEnum};
use flumen_client::{
    Client, Durability, NewStream, ShardDescription, StreamDescription, StreamName, StreamUpdate,
};
use serde_json::{Value, json};

use super::block_on;
use crate::cli::Context;
use crate::failure::{of_client, usage};
use crate::output::{Output, OutputError};
use crate::quantity::{count, micros, parse_duration, parse_size, setting_duration, size};

/// The verbs of `stream`.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Create a stream
    Create(Create),
    /// List all streams
    List,
    /// Describe a stream and its shards
    Describe {
        /// The stream
        name: StreamName,
    },
    /// Change settings of a stream
    Update(Update),
    /// Delete a stream and its records
    Delete {
        /// The stream
        name: StreamName,
    },
}

/// What an ack promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Level {
    /// Survives the death of the broker, not a power cut
    Memory,
    /// Survives a power cut
    Disk,
}

impl From<Level> for Durability {
    fn from(level: Level) -> Self {
        match level {
            Level::Memory => Self::Memory,
            Level::Disk => Self::Disk,
        }
    }
}

/// The level as it is typed and shown.
pub(crate) fn level_name(durability: Durability) -> &'static str {
    match durability {
        Durability::Memory => "memory",
        Durability::Disk => "disk",
    }
}

/// Arguments of `stream create`.
#[derive(Debug, clap::Args)]
pub(crate) struct Create {
    /// The stream: 1 to 128 of a-z A-Z 0-9 _ . -
    name: StreamName,
    /// Shards: what one shard holds is read in the order it was written
    #[arg(long, default_value_t = 1, value_name = "N")]
    shards: u32,
    /// What an ack promises [default: disk]
    #[arg(long, value_enum)]
    durability: Option<Level>,
    /// Records are kept this long, 1h to 8760h [default: 7d]
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    retention: Option<Duration>,
    /// And at most about this many bytes of them
    #[arg(long, value_parser = parse_size, value_name = "SIZE")]
    retention_bytes: Option<u64>,
    /// Largest record: data, key and headers together, up to 10MiB [default: 1MiB]
    #[arg(long, value_parser = parse_size, value_name = "SIZE")]
    max_record_size: Option<u64>,
}

/// Arguments of `stream update`.
#[derive(Debug, clap::Args)]
pub(crate) struct Update {
    /// The stream
    name: StreamName,
    /// What an ack promises
    #[arg(long, value_enum)]
    durability: Option<Level>,
    /// Records are kept this long
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    retention: Option<Duration>,
    /// And at most about this many bytes of them; `none` lifts the bound
    #[arg(long, value_parser = parse_bound, value_name = "SIZE|none")]
    retention_bytes: Option<Bound>,
    /// Largest record
    #[arg(long, value_parser = parse_size, value_name = "SIZE")]
    max_record_size: Option<u64>,
}

/// A bound in bytes, or none.
#[derive(Debug, Clone, Copy)]
struct Bound(Option<u64>);

fn parse_bound(text: &str) -> Result<Bound, crate::quantity::QuantityError> {
    if text == "none" {
        Ok(Bound(None))
    } else {
        parse_size(text).map(|bytes| Bound(Some(bytes)))
    }
}

/// Runs the command.
pub(crate) fn run(context: &mut Context, verb: Verb) -> Result<()> {
    if let Verb::Update(Update {
        durability: None,
        retention: None,
        retention_bytes: None,
        max_record_size: None,
        ..
    }) = &verb
    {
        return Err(usage(
            "nothing to change; try --retention 24h, or `flumen stream update --help`",
        ));
    }
    block_on(async {
        let client = context.client()?;
        let done = act(&client, &mut context.output, verb).await;
        done.map_err(|error| match error.downcast::<flumen_client::Error>() {
            Ok(error) => of_client(error, context.endpoint()),
            Err(other) => other,
        })
    })
}

async fn act(client: &Client, output: &mut Output, verb: Verb) -> Result<()> {
    match verb {
        Verb::Create(args) => {
            let stream = client.create_stream(args.into()).await?;
            changed(output, "created", &stream)?;
        }
        Verb::List => list(client, output).await?,
        Verb::Describe { name } => describe(output, &client.describe_stream(&name).await?)?,
        Verb::Update(args) => {
            let name = args.name.clone();
            let stream = client.update_stream(&name, args.into()).await?;
            changed(output, "updated", &stream)?;
        }
        Verb::Delete { name } => {
            client.delete_stream(&name).await?;
            if output.is_json() {
                output.json(&json!({ "stream": name.as_str(), "deleted": true }))?;
            } else {
                output.line(&format!("deleted {name}"))?;
            }
        }
    }
    Ok(())
}

impl From<Create> for NewStream {
    fn from(args: Create) -> Self {
        Self {
            name: args.name,
            shards: args.shards,
            durability: args.durability.map(Durability::from),
            retention: args.retention,
            retention_bytes: args.retention_bytes,
            max_record_bytes: args.max_record_size,
        }
    }
}

impl From<Update> for StreamUpdate {
    fn from(args: Update) -> Self {
        Self {
            durability: args.durability.map(Durability::from),
            retention: args.retention,
            retention_bytes: args.retention_bytes.map(|bound| bound.0),
            max_record_bytes: args.max_record_size,
        }
    }
}

fn changed(output: &mut Output, verb: &str, stream: &StreamDescription) -> Result<(), OutputError> {
    if output.is_json() {
        return output.json(&stream_json(stream, false));
    }
    output.line(&format!("{verb} {}: {}", stream.name, settings(stream)))
}

fn settings(stream: &StreamDescription) -> String {
    let shards = stream.shards.len();
    let bytes = match stream.retention_bytes {
        Some(bytes) => format!(" and {}", size(bytes)),
        None => String::new(),
    };
    format!(
        "{shards} shard{}, {}, kept {}{bytes}, records up to {}",
        if shards == 1 { "" } else { "s" },
        level_name(stream.durability),
        setting_duration(stream.retention),
        size(stream.max_record_bytes)
    )
}

async fn list(client: &Client, output: &mut Output) -> Result<()> {
    let mut streams: Vec<StreamDescription> = Vec::new();
    loop {
        let last = streams.last().map(|stream| stream.name.clone());
        let (page, more) = client.list_streams(last.as_ref(), 0).await?;
        let end = page.is_empty() || !more;
        streams.extend(page);
        if end {
            break;
        }
    }
    if output.is_json() {
        return Ok(streams
            .iter()
            .try_for_each(|stream| output.json(&stream_json(stream, false)))?);
    }
    if streams.is_empty() {
        output.note("no streams yet; create one with `flumen stream create NAME`");
        return Ok(());
    }
    let mut rows =
        vec![["STREAM", "SHARDS", "LEVEL", "KEPT", "RECORDS", "STORED"].map(str::to_owned)];
    rows.extend(streams.iter().map(|stream| {
        [
            stream.name.to_string(),
            stream.shards.len().to_string(),
            level_name(stream.durability).to_owned(),
            setting_duration(stream.retention),
            count(stream.shards.iter().map(records).sum()),
            size(stream.shards.iter().map(|shard| shard.stored_bytes).sum()),
        ]
    }));
    Ok(output.table(&rows)?)
}

/// Numbers between the horizon and the end: the records kept, but for recorded jumps.
fn records(shard: &ShardDescription) -> u64 {
    shard
        .durable_end
        .value()
        .saturating_sub(shard.trim_horizon.value())
}

fn describe(output: &mut Output, stream: &StreamDescription) -> Result<(), OutputError> {
    if output.is_json() {
        return output.json(&stream_json(stream, true));
    }
    output.line(&format!("{}: {}", stream.name, settings(stream)))?;
    output.line(&format!(
        "created {}, version {}",
        stream.created, stream.version
    ))?;
    output.line("")?;
    let header = [
        "SHARD",
        "STATE",
        "FIRST",
        "END",
        "STORED",
        "LAST ARRIVAL",
        "HASH KEYS FROM",
    ];
    let mut rows = vec![header.map(str::to_owned)];
    rows.extend(stream.shards.iter().map(|shard| {
        let empty = shard.last_arrival.as_micros() == 0;
        [
            shard.index.to_string(),
            if shard.open { "open" } else { "closed" }.to_owned(),
            shard.trim_horizon.to_string(),
            shard.durable_end.to_string(),
            size(shard.stored_bytes),
            if empty {
                "-".to_owned()
            } else {
                shard.last_arrival.to_string()
            },
            format!("{:032x}", shard.range.start.value()),
        ]
    }));
    output.table(&rows)
}

fn stream_json(stream: &StreamDescription, with_shards: bool) -> Value {
    let mut shown = json!({
        "stream": stream.name.as_str(),
        "id": stream.id.value(),
        "shards": stream.shards.len(),
        "durability": level_name(stream.durability),
        "retention_us": micros(stream.retention),
        "retention_bytes": stream.retention_bytes,
        "max_record_bytes": stream.max_record_bytes,
        "created_time": stream.created.to_string(),
        "version": stream.version,
        "records": stream.shards.iter().map(records).sum::<u64>(),
        "stored_bytes": stream.shards.iter().map(|shard| shard.stored_bytes).sum::<u64>(),
    });
    if let (true, Some(fields)) = (with_shards, shown.as_object_mut()) {
        let shards = stream.shards.iter().map(shard_json).collect();
        fields.insert("shard_map".to_owned(), Value::Array(shards));
    }
    shown
}

fn shard_json(shard: &ShardDescription) -> Value {
    let empty = shard.last_arrival.as_micros() == 0;
    json!({
        "shard": shard.index.value(),
        "open": shard.open,
        "parents": shard.parents.iter().map(|parent| parent.value()).collect::<Vec<_>>(),
        "hash_key_start": format!("{:032x}", shard.range.start.value()),
        "hash_key_end": format!("{:032x}", shard.range.end.value()),
        "trim_horizon": shard.trim_horizon.value(),
        "durable_end": shard.durable_end.value(),
        "stored_bytes": shard.stored_bytes,
        "last_arrival_time": (!empty).then(|| shard.last_arrival.to_string()),
    })
}
