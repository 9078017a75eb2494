//! `flumen stream`: create, list, describe, update, delete; split, merge, scale.

mod auto_scale;
mod show;

use std::time::Duration;

use anyhow::Result;
use clap::{Subcommand, ValueEnum};
use flumen_client::{
    Client, Durability, HashKey, NewStream, ShardIndex, StreamDescription, StreamName, StreamUpdate,
};
use serde_json::json;

use super::block_on;
use crate::cli::Context;
use crate::failure::{of_client, usage};
use crate::output::Output;
use crate::quantity::{count, parse_duration, parse_hash_key, parse_size, setting_duration, size};
use auto_scale::{AutoScaleArgs, AutoScaleChangeArgs};
use show::{changed, children, describe, open, records, stream_json};

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
    /// Split an open shard in two; producers and consumers go on
    Split {
        /// The stream
        name: StreamName,
        /// The shard
        #[arg(value_parser = parse_shard)]
        shard: ShardIndex,
        /// First hash key of the upper half, decimal or 0x… [default: the middle]
        #[arg(long, value_parser = parse_hash_key, value_name = "HASH")]
        at: Option<HashKey>,
    },
    /// Merge two open shards whose hash keys touch; producers and consumers go on
    Merge {
        /// The stream
        name: StreamName,
        /// One shard
        #[arg(value_name = "A", value_parser = parse_shard)]
        shard: ShardIndex,
        /// Its neighbour
        #[arg(value_name = "B", value_parser = parse_shard)]
        adjacent: ShardIndex,
    },
    /// Split and merge until there are N open shards, in the fewest steps
    Scale {
        /// The stream
        name: StreamName,
        /// Open shards there shall be
        #[arg(value_name = "N")]
        shards: u32,
    },
}

fn parse_shard(text: &str) -> Result<ShardIndex, std::num::ParseIntError> {
    text.parse().map(ShardIndex::new)
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
    #[command(flatten)]
    auto_scale: AutoScaleArgs,
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
    #[command(flatten)]
    auto_scale: AutoScaleChangeArgs,
}

impl Update {
    fn changes_nothing(&self) -> bool {
        self.durability.is_none()
            && self.retention.is_none()
            && self.retention_bytes.is_none()
            && self.max_record_size.is_none()
            && self.auto_scale.update().is_none()
    }
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
    if let Verb::Update(update) = &verb
        && update.changes_nothing()
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
        Verb::Split { name, shard, at } => {
            let stream = client.split_shard(&name, shard, at).await?;
            let children = children(&stream, shard);
            let done = format!("split shard {shard} of {name} into {children}");
            resharded(output, &done, &stream)?;
        }
        Verb::Merge {
            name,
            shard,
            adjacent,
        } => {
            let stream = client.merge_shards(&name, shard, adjacent).await?;
            let child = children(&stream, shard);
            let done = format!("merged shards {shard} and {adjacent} of {name} into {child}");
            resharded(output, &done, &stream)?;
        }
        Verb::Scale { name, shards } => {
            let stream = client.scale_stream(&name, shards).await?;
            let done = format!("scaled {name}: {} open shards", open(&stream));
            resharded(output, &done, &stream)?;
        }
    }
    Ok(())
}

/// What became of the shards: a line, or the stream with its shard map.
fn resharded(output: &mut Output, done: &str, stream: &StreamDescription) -> Result<()> {
    if output.is_json() {
        output.json(&stream_json(stream, true))?;
    } else {
        output.line(done)?;
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
            auto_scale: args.auto_scale.update(),
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
            auto_scale: args.auto_scale.update(),
        }
    }
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
            open(stream).to_string(),
            level_name(stream.durability).to_owned(),
            setting_duration(stream.retention),
            count(stream.shards.iter().map(records).sum()),
            size(stream.shards.iter().map(|shard| shard.stored_bytes).sum()),
        ]
    }));
    Ok(output.table(&rows)?)
}
