//! `flumen delivery`: create, list, describe, update, pause, resume, flush, delete.

mod processing;
mod settings;
mod shown;
mod typed;

use std::time::Duration;

use anyhow::Result;
use clap::Subcommand;
use flumen_broker::{
    BufferingHints, Clock, DeliverySettings, DeliverySource, DeliveryStart, KeySettings,
    ObjectCompression, ObjectFormat, ObjectSettings, Processing, StreamNameText,
};
use flumen_client::delivery::DeliveryDescription;
use flumen_client::{Client, DeliveryName, StreamName, reason};
use flumen_grpc::{delivery_settings, wire_delivery_settings};
use serde_json::json;

use super::block_on;
use super::consume::start::From;
use crate::cli::Context;
use crate::failure::{of_client, usage};
use crate::output::Output;
use crate::quantity::parse_duration;
use settings::SettingsArgs;

/// The verbs of `delivery`.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Create a delivery stream: records of a stream, or direct puts, into objects, each once
    Create(Box<Create>),
    /// List delivery streams: status, how old what is not delivered is, and where objects go
    List,
    /// Describe a delivery stream: how it does, its last object and error, its settings
    Describe {
        /// The delivery stream
        name: DeliveryName,
    },
    /// Change settings; what is not given stays, and '' takes a setting away
    Update(Box<Update>),
    /// Deliver nothing until it is resumed
    Pause {
        /// The delivery stream
        name: DeliveryName,
    },
    /// Go on; one that has stopped tries again
    Resume {
        /// The delivery stream
        name: DeliveryName,
        /// Under new names, with what this broker has that no manifest of the old ones names: after
        /// `conflict`, when the data directory was copied or restored from a backup
        #[arg(long)]
        new_incarnation: bool,
        /// Wait until that is durable, at most this long
        #[arg(long, value_parser = parse_duration, default_value = "60s", value_name = "TIME", requires = "new_incarnation")]
        wait: Duration,
    },
    /// Deliver what is there now, whatever the buffering hints say
    Flush {
        /// The delivery stream
        name: DeliveryName,
        /// Wait until it is delivered, at most this long
        #[arg(long, value_parser = parse_duration, default_value = "60s", value_name = "TIME")]
        wait: Duration,
    },
    /// Deliver what is there, then delete a delivery stream; its objects stay
    Delete(Delete),
}

/// Arguments of `delivery create`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Create {
    /// The delivery stream: 1 to 64 of a-z A-Z 0-9 _ . -
    name: DeliveryName,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// What a delivery stream reads.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Source")]
struct SourceArgs {
    /// A stream that is there
    #[arg(long, value_name = "NAME", conflicts_with = "direct")]
    stream: Option<StreamName>,
    /// Where in it delivery begins: trim-horizon (the oldest), latest, or a time (RFC 3339, or a
    /// while ago as in -15m) [default: trim-horizon]
    #[arg(long, value_parser = From::parse, allow_hyphen_values = true, requires = "stream", conflicts_with = "direct", value_name = "WHERE")]
    from: Option<From>,
    /// A stream of its own, delivery.NAME, created and deleted with it
    #[arg(long)]
    direct: bool,
    /// Shards of that stream [default: 1]
    #[arg(long, requires = "direct", conflicts_with = "stream", value_name = "N")]
    shards: Option<u32>,
}

/// Arguments of `delivery update`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Update {
    /// The delivery stream
    name: DeliveryName,
    /// Only if the settings are at this version (`describe` shows it)
    #[arg(long, value_name = "N")]
    version: Option<u64>,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Arguments of `delivery delete`.
#[derive(Debug, clap::Args)]
pub(crate) struct Delete {
    /// The delivery stream
    name: DeliveryName,
    /// At once; what is not delivered is not going to be
    #[arg(long)]
    drop: bool,
    /// Wait until what is there is delivered, at most this long
    #[arg(long, value_parser = parse_duration, default_value = "5m", value_name = "TIME")]
    wait: Duration,
    /// When that takes longer, or it is paused: delete it anyhow, as with --drop
    #[arg(long, conflicts_with = "drop")]
    force: bool,
}

impl SourceArgs {
    fn source(&self) -> Result<Option<DeliverySource>> {
        if self.direct {
            let shards = self.shards.unwrap_or(1);
            return Ok(Some(DeliverySource::Direct { shards }));
        }
        let Some(stream) = &self.stream else {
            return Ok(None);
        };
        let start = match self.from {
            None | Some(From::TrimHorizon) => DeliveryStart::TrimHorizon,
            Some(From::Latest) => DeliveryStart::Latest,
            Some(From::Time(time)) => DeliveryStart::at(time.resolve(Clock::system().now())),
            Some(From::At(_) | From::After(_)) => {
                return Err(usage(
                    "sequence numbers are places in one shard: --from takes trim-horizon, latest or \
                     a time",
                ));
            }
        };
        Ok(Some(DeliverySource::Stream {
            stream: StreamNameText(stream.clone()),
            start,
        }))
    }
}

impl Create {
    /// What is asked for, over the file's settings or the defaults.
    fn settings(&self) -> Result<DeliverySettings> {
        let (source, destination) = (self.source.source()?, self.settings.to());
        let mut settings = match self.settings.file()? {
            Some(mut settings) => {
                settings.source = source.unwrap_or(settings.source);
                settings
            }
            None => DeliverySettings {
                source: source.ok_or_else(|| {
                    usage("say what is delivered: --stream NAME, or --direct for puts of its own")
                })?,
                destination: destination.ok_or_else(|| {
                    usage("say where objects go: --to DIR, or --to s3://BUCKET[/PREFIX]")
                })?,
                buffering: BufferingHints::default(),
                processing: Processing::default(),
                format: ObjectFormat::default(),
                compression: ObjectCompression::default(),
                keys: KeySettings::default(),
                object: ObjectSettings::default(),
                partitioning: None,
                backup: None,
                dead_letters: None,
            },
        };
        self.settings.apply(&mut settings)?;
        self.settings.begin_prefixes(&self.name, &mut settings);
        Ok(settings)
    }
}

/// Runs the command.
pub(crate) fn run(context: &mut Context, verb: Verb) -> Result<()> {
    // What was typed wrongly is said before anybody is asked.
    let settings = match &verb {
        Verb::Create(create) => Some(create.settings()?),
        Verb::Update(update) if update.settings.says_nothing() => {
            return Err(usage(
                "nothing to change; try --interval 60s, or `flumen delivery update --help`",
            ));
        }
        Verb::Update(update) => {
            update.settings.check_update()?;
            update.settings.file()?
        }
        _ => None,
    };
    block_on(async {
        let client = context.client()?;
        // Settings are large, and a call holds some of them.
        let done = Box::pin(act(&client, &mut context.output, verb, settings)).await;
        done.map_err(|error| match error.downcast::<flumen_client::Error>() {
            Ok(error) => explain(error, context.endpoint()),
            Err(other) => other,
        })
    })
}

/// The error with what to try next.
fn explain(error: flumen_client::Error, endpoint: &str) -> anyhow::Error {
    let next = match error.reason() {
        reason::DELIVERY_NOT_FOUND => "`flumen delivery list` shows those there are",
        reason::DELIVERY_EXISTS => "use another name, or `flumen delivery update`",
        reason::DELIVERY_VERSION => "`flumen delivery describe` shows them",
        reason::DELIVERY_UNFINISHED => "`flumen delivery describe` shows how it does",
        reason::DELIVERY_PAUSED => {
            "`flumen delivery resume` does; a deletion may --drop or --force"
        }
        _ => return of_client(error, endpoint),
    };
    anyhow::anyhow!("{error}; {next}")
}

async fn act(
    client: &Client,
    output: &mut Output,
    verb: Verb,
    settings: Option<DeliverySettings>,
) -> Result<()> {
    match verb {
        Verb::Create(args) => {
            let settings = settings.expect("BUG: a creation without settings");
            let wire = wire_delivery_settings(&settings);
            let delivery = client.create_delivery(&args.name, wire).await?;
            shown::created(output, &delivery, &settings)?;
        }
        Verb::List => list(client, output).await?,
        Verb::Describe { name } => {
            let delivery = client.describe_delivery(&name).await?;
            shown::describe(output, &delivery, &settings_of(&delivery)?)?;
        }
        Verb::Update(args) => Box::pin(update(client, output, &args, settings)).await?,
        Verb::Pause { name } => {
            let delivery = client.pause_delivery(&name).await?;
            shown::changed(output, "paused", &delivery, &settings_of(&delivery)?)?;
        }
        Verb::Resume {
            name,
            new_incarnation,
            wait,
        } => {
            let delivery = match new_incarnation {
                true => client.renew_delivery(&name, wait).await?,
                false => client.resume_delivery(&name).await?,
            };
            shown::changed(output, "resumed", &delivery, &settings_of(&delivery)?)?;
        }
        Verb::Flush { name, wait } => {
            let delivery = client.flush_delivery(&name, wait).await?;
            shown::changed(output, "flushed", &delivery, &settings_of(&delivery)?)?;
        }
        Verb::Delete(args) => delete(client, output, &args).await?,
    }
    Ok(())
}

/// As this version of the command understands them.
fn settings_of(delivery: &DeliveryDescription) -> Result<DeliverySettings> {
    Ok(delivery_settings(delivery.settings.clone())?)
}

/// Page by page.
async fn list(client: &Client, output: &mut Output) -> Result<()> {
    let mut found: Vec<DeliveryDescription> = Vec::new();
    loop {
        let after = found.last().map(|last| last.name.clone());
        let (page, more) = client.list_deliveries(after.as_ref(), 0).await?;
        let end = page.is_empty() || !more;
        found.extend(page);
        if end {
            break;
        }
    }
    let settings = found.iter().map(settings_of).collect::<Result<Vec<_>>>()?;
    shown::list(output, &found, &settings)
}

async fn update(
    client: &Client,
    output: &mut Output,
    args: &Update,
    file: Option<DeliverySettings>,
) -> Result<()> {
    let there = client.describe_delivery(&args.name).await?;
    let mut settings = match file {
        Some(settings) => settings,
        None => settings_of(&there)?,
    };
    args.settings.apply(&mut settings)?;
    // Nobody else's change is undone by what was read here before it.
    let version = Some(args.version.unwrap_or(there.version));
    let wire = wire_delivery_settings(&settings);
    let delivery = client.update_delivery(&args.name, version, wire).await?;
    Ok(shown::changed(output, "updated", &delivery, &settings)?)
}

async fn delete(client: &Client, output: &mut Output, args: &Delete) -> Result<()> {
    let name = &args.name;
    let mut dropped = args.drop;
    let mut done = client.delete_delivery(name, args.drop, args.wait).await;
    if let Err(error) = &done
        && args.force
        && matches!(
            error.reason(),
            reason::DELIVERY_UNFINISHED | reason::DELIVERY_PAUSED
        )
    {
        output.note(&format!("{error}; what is left is dropped"));
        dropped = true;
        done = client.delete_delivery(name, true, args.wait).await;
    }
    done?;
    if output.is_json() {
        let deleted = json!({ "name": name.as_str(), "deleted": true, "dropped": dropped });
        return Ok(output.json(&deleted)?);
    }
    let how = if dropped {
        " without delivering what was left"
    } else {
        ""
    };
    Ok(output.line(&format!("deleted {name}{how}; its objects stay"))?)
}

#[cfg(test)]
mod tests;
