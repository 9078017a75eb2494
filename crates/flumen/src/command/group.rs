//! `flumen group`: list, describe, reset, delete.

mod shown;

use anyhow::Result;
use clap::Subcommand;
use flumen_broker::Clock;
use flumen_client::{Client, GroupName, GroupSummary, ResetScope, StreamName, reason};
use flumen_record::ShardIndex;
use serde_json::json;

use super::block_on;
use super::consume::start::From;
use crate::cli::Context;
use crate::failure::{of_client, usage};
use crate::output::Output;

/// The verbs of `group`.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// List groups: members, shards, and how far behind they are
    List {
        /// Only those of this stream
        #[arg(long, value_name = "NAME")]
        stream: Option<StreamName>,
    },
    /// Describe a group: its members, and of every shard who has it and how far it is
    Describe {
        /// The stream
        stream: StreamName,
        /// The group
        group: GroupName,
    },
    /// Move where a group goes on, or will begin
    Reset(Reset),
    /// Delete a group and its checkpoints
    Delete {
        /// The stream
        stream: StreamName,
        /// The group
        group: GroupName,
        /// Also while it has members: they end
        #[arg(long)]
        force: bool,
    },
}

/// Arguments of `group reset`.
#[derive(Debug, clap::Args)]
pub(crate) struct Reset {
    /// The stream
    stream: StreamName,
    /// The group
    group: GroupName,
    /// Where it goes on: trim-horizon (the oldest), latest, at:SEQ (of one --shard), or a time (RFC
    /// 3339, or a while ago as in -15m)
    #[arg(long, value_parser = From::parse, allow_hyphen_values = true, value_name = "WHERE")]
    to: From,
    /// Only this shard (may be given several times)
    #[arg(long, value_name = "ID")]
    shard: Vec<u32>,
    /// Also while members hold the shards: their leases end first
    #[arg(long)]
    force: bool,
    /// Only say what would change
    #[arg(long)]
    dry_run: bool,
}

impl Reset {
    /// A sequence number is a place in one shard.
    fn check(&self) -> Result<()> {
        match self.to {
            From::After(_) => Err(usage(
                "--to takes trim-horizon, latest, at:SEQ or a time; at:SEQ names the record to go on at",
            )),
            From::At(_) if self.shard.len() != 1 => Err(usage(
                "every shard has sequence numbers of its own: say which one with --shard",
            )),
            _ => Ok(()),
        }
    }
}

/// Runs the command.
pub(crate) fn run(context: &mut Context, verb: Verb) -> Result<()> {
    if let Verb::Reset(reset) = &verb {
        reset.check()?;
    }
    block_on(async {
        let client = context.client()?;
        let done = act(&client, &mut context.output, verb).await;
        done.map_err(|error| match error.downcast::<flumen_client::Error>() {
            Ok(error) => explain(error, context.endpoint()),
            Err(other) => other,
        })
    })
}

/// The error with what to try next.
fn explain(error: flumen_client::Error, endpoint: &str) -> anyhow::Error {
    match error.reason() {
        reason::GROUP_NOT_FOUND => {
            anyhow::anyhow!("{error}; `flumen group list` shows those there are")
        }
        reason::GROUP_IN_USE => anyhow::anyhow!("{error} (--force)"),
        _ => of_client(error, endpoint),
    }
}

async fn act(client: &Client, output: &mut Output, verb: Verb) -> Result<()> {
    match verb {
        Verb::List { stream } => {
            let groups = all(client, stream.as_ref()).await?;
            shown::list(output, &groups)
        }
        Verb::Describe { stream, group } => {
            let described = client.describe_group(&stream, &group).await?;
            Ok(shown::describe(output, &described)?)
        }
        Verb::Reset(args) => reset(client, output, args).await,
        Verb::Delete {
            stream,
            group,
            force,
        } => {
            client.delete_group(&stream, &group, force).await?;
            if output.is_json() {
                let deleted =
                    json!({ "stream": stream.as_str(), "group": group.as_str(), "deleted": true });
                return Ok(output.json(&deleted)?);
            }
            Ok(output.line(&format!("deleted {group} of {stream}"))?)
        }
    }
}

/// Page by page.
async fn all(
    client: &Client,
    stream: Option<&StreamName>,
) -> Result<Vec<GroupSummary>, flumen_client::Error> {
    let mut groups: Vec<GroupSummary> = Vec::new();
    loop {
        let after = groups.last().map(|last| (&last.stream, &last.group));
        let (page, more) = client.list_groups(stream, after, 0).await?;
        let end = page.is_empty() || !more;
        groups.extend(page);
        if end {
            return Ok(groups);
        }
    }
}

async fn reset(client: &Client, output: &mut Output, args: Reset) -> Result<()> {
    let scope = if args.shard.is_empty() {
        ResetScope::All
    } else {
        ResetScope::Shards(args.shard.iter().copied().map(ShardIndex::new).collect())
    };
    let to = args.to.resolve(Clock::system().now());
    let (stream, group) = (&args.stream, &args.group);
    let resets = client.reset_group(stream, group, &scope, to, args.force, args.dry_run);
    shown::resets(output, stream, group, &resets.await?, args.dry_run)?;
    Ok(())
}
