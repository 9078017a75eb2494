//! `flumen consume --group`: reading as a member of a consumer group.
//!
//! The member runs on a thread of the runtime and hands what it gets to this one, which writes it:
//! a reader of standard output that is slow holds up records, never heartbeats. A batch counts as
//! processed, and so may be checkpointed, once it was flushed.

use std::collections::HashMap;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use flumen_broker::Clock;
use flumen_client::{
    Client, FailurePolicy, GapPolicy, GroupBatch, GroupConfig, GroupConsumer, GroupEvent,
    GroupName, HandlerError, MemberName,
};
use flumen_record::{SequenceNumber, ShardIndex};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use super::goal::{Goal, Skips, reached};
use super::layout::Layout;
use super::{Args, explain};
use crate::cli::Context;
use crate::command::interrupted;
use crate::failure::{of_client, usage};
use crate::output::{Output, OutputError};
use crate::quantity::{count, parse_duration};

/// Without `--follow`, what was written is checkpointed this often: the end waits for it.
const CHECKPOINT_EVERY: Duration = Duration::from_millis(200);

/// Losses are said this long after the last of them: who loses all shards ends with one error.
const LOST_PAUSE: Duration = Duration::from_millis(200);

/// How to be a member.
#[derive(Debug, Default, clap::Args)]
pub(super) struct MemberArgs {
    /// Read as a member of this group: members share the shards, and the group remembers how far it
    /// is; --from is where a new group begins
    #[arg(long, value_name = "NAME", conflicts_with = "shard")]
    pub(super) group: Option<GroupName>,
    /// Who this is: a name that stays has its shards back at once after a restart [default: random]
    #[arg(long, value_name = "NAME", requires = "group")]
    member: Option<MemberName>,
    /// Silent for this long, a member is gone and its shards go to others; 1s to 5m
    #[arg(long, value_parser = parse_duration, default_value = "10s", value_name = "TIME", requires = "group")]
    session_timeout: Duration,
}

/// Records on their way to standard output, and who waits for that.
#[derive(Debug)]
struct Offer {
    batch: GroupBatch,
    answer: oneshot::Sender<Result<(), NotWritten>>,
}

/// Why records were not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
enum NotWritten {
    /// More than `--max` leaves: a part of them may fit.
    #[error("more records than were asked for")]
    TooMany,
    /// Standard output takes nothing more.
    #[error("standard output is gone")]
    Gone,
}

/// Runs the command.
pub(super) fn run(
    context: &mut Context,
    args: &Args,
    group: &GroupName,
    layout: &Layout,
) -> Result<()> {
    if args.from.names_a_record().is_some() {
        return Err(usage(
            "a group begins at trim-horizon, latest or a time: a sequence number is a place in one \
             shard; `flumen group reset --shard ID --to at:SEQ` moves one",
        ));
    }
    // The member has a thread of its own; this one may be held up by standard output.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    let runtime = runtime.context("starting the runtime")?;
    runtime.block_on(take_part(context, args, group, layout))
}

async fn take_part(
    context: &mut Context,
    args: &Args,
    group: &GroupName,
    layout: &Layout,
) -> Result<()> {
    let client = context.client()?;
    if args.shared.max == Some(0) {
        let described = client.describe_stream(&args.stream).await;
        described.map_err(|error| of_client(error, context.endpoint()))?;
        return Ok(());
    }
    let (offers, offered) = mpsc::channel(1);
    let handler = move |batch| offer(offers.clone(), batch);
    // It waits for a broker that is away.
    let joined = GroupConsumer::join(&client, &args.stream, config(args, group), handler).await;
    let consumer = joined.map_err(|error| explain(error, context.endpoint()))?;
    // Nothing is written yet: this is the beginning.
    let described = client.describe_stream(&args.stream).await;
    let described = described.map_err(|error| of_client(error, context.endpoint()))?;
    let goal = (!args.follow).then(|| Goal::of(&described));
    let printer = Printer {
        output: &mut context.output,
        layout,
        args,
        left: args.shared.max.unwrap_or(u64::MAX),
        written: HashMap::new(),
        skipped: watch::Sender::new(Skips::default()),
        lost: Vec::new(),
        say_lost_at: Instant::now(),
    };
    printer.print(&client, group, consumer, offered, goal).await
}

fn config(args: &Args, group: &GroupName) -> GroupConfig {
    let defaults = GroupConfig::new(group.clone());
    GroupConfig {
        member: args.member.member.clone(),
        start: args.from.resolve(Clock::system().now()),
        session_timeout: args.member.session_timeout,
        checkpoint_interval: if args.follow {
            defaults.checkpoint_interval
        } else {
            CHECKPOINT_EVERY
        },
        // Halves of what was too much, down to what is left of `--max`.
        on_failure: FailurePolicy {
            bisect: true,
            ..FailurePolicy::default()
        },
        gaps: if args.shared.skip_gaps {
            GapPolicy::Skip
        } else {
            GapPolicy::Fail
        },
        retry_for: args.shared.retry_for,
        ..defaults
    }
}

/// Hands records over and waits until they are written.
async fn offer(offers: mpsc::Sender<Offer>, batch: GroupBatch) -> Result<(), HandlerError> {
    let (answer, answered) = oneshot::channel();
    let offered = offers.send(Offer { batch, answer }).await;
    offered.map_err(|_| NotWritten::Gone)?;
    Ok(answered.await.unwrap_or(Err(NotWritten::Gone))?)
}

struct Printer<'a> {
    output: &'a mut Output,
    layout: &'a Layout,
    args: &'a Args,
    /// Records still to be written.
    left: u64,
    /// Per shard: under which generation something was written, and up to where. What is handed over
    /// again under the same lease (the broker was late to confirm it) is not written again.
    written: HashMap<ShardIndex, (u64, SequenceNumber)>,
    skipped: watch::Sender<Skips>,
    /// Shards that were lost, and why: said a moment later, unless the member ends with them.
    lost: Vec<(ShardIndex, String)>,
    say_lost_at: Instant,
}

impl Printer<'_> {
    /// Writes until there is a reason to end, and leaves in order.
    async fn print(
        mut self,
        client: &Client,
        group: &GroupName,
        mut consumer: GroupConsumer,
        mut offered: mpsc::Receiver<Offer>,
        goal: Option<Goal>,
    ) -> Result<()> {
        let skips = self.skipped.subscribe();
        let mut done = pin!(reached(client, &self.args.stream, group, goal, skips));
        let mut stop = pin!(interrupted());
        let mut failure = None;
        while self.left > 0 && failure.is_none() {
            tokio::select! {
                biased;
                () = &mut stop => break,
                () = sleep_until(self.say_lost_at), if !self.lost.is_empty() => self.say_lost(),
                Some(offer) = offered.recv() => failure = self.take(offer).err().map(Into::into),
                event = consumer.event() => match event {
                    Some(event) => failure = self.told(event),
                    // It has ended by itself, and says why.
                    None => break,
                },
                () = &mut done => break,
            }
        }
        if failure.is_some() {
            // Nothing more is written: whoever waits for it is to know.
            offered.close();
            while offered.try_recv().is_ok() {}
        }
        let left = {
            let mut leaving = pin!(consumer.leave());
            loop {
                tokio::select! {
                    biased;
                    left = &mut leaving => break left,
                    // What is in hand is seen through.
                    Some(offer) = offered.recv() => if let Err(error) = self.take(offer) {
                        failure = Some(error.into());
                        offered.close();
                    },
                }
            }
        };
        self.sum_up();
        if left.is_ok() {
            self.say_lost();
        }
        match (failure, left) {
            (Some(failure), _) => Err(failure),
            (None, Err(error)) => Err(explain(error, client.endpoint())),
            (None, Ok(_)) => Ok(()),
        }
    }

    /// Writes records and says so; the error is that of standard output.
    fn take(&mut self, offer: Offer) -> Result<(), OutputError> {
        let Offer { batch, answer } = offer;
        // Its lease ended while it waited.
        if answer.is_closed() {
            return Ok(());
        }
        let (answered, outcome) = match self.write(&batch) {
            Ok(answer) => (answer, Ok(())),
            Err(error) => (Err(NotWritten::Gone), Err(error)),
        };
        // Nobody waits any more: written and not checkpointed, the next member writes it again.
        let _ = answer.send(answered);
        outcome
    }

    fn write(&mut self, batch: &GroupBatch) -> Result<Result<(), NotWritten>, OutputError> {
        let (generation, from) = match self.written.get(&batch.shard) {
            Some((generation, from)) if *generation == batch.generation => (*generation, *from),
            _ => (batch.generation, SequenceNumber::ZERO),
        };
        let new = || {
            let records = batch.records.iter();
            records.filter(|record| record.sequence_number >= from)
        };
        let many = new().count() as u64;
        if many > self.left {
            return Ok(Err(NotWritten::TooMany));
        }
        for record in new() {
            self.layout.write(self.output, &self.args.stream, record)?;
        }
        self.output.flush()?;
        self.left -= many;
        if let Some(last) = new().next_back() {
            let next = last.sequence_number.plus(1);
            self.written.insert(batch.shard, (generation, next));
        }
        Ok(Ok(()))
    }

    /// What happened to the member; the error ends it.
    fn told(&mut self, event: GroupEvent) -> Option<anyhow::Error> {
        match event {
            GroupEvent::Assigned {
                shard,
                expired_records,
                ..
            } if expired_records != Some(0) => self.output.note(&match expired_records {
                Some(expired) => format!(
                    "shard {shard}: {} records expired before the group read them",
                    count(expired)
                ),
                None => format!(
                    "shard {shard}: records may have expired before the group read them; \
                     how many is not known"
                ),
            }),
            GroupEvent::Lost { shard, reason } => {
                self.lost.push((shard, reason));
                self.say_lost_at = Instant::now() + LOST_PAUSE;
            }
            GroupEvent::Skipped { shard, from, to } => {
                self.skipped.send_modify(|skips| skips.add(shard, from, to))
            }
            GroupEvent::Stopped { shard, at, reason } => {
                return Some(anyhow!(
                    "shard {shard} stands still at {at}: {reason}; --skip-gaps goes on behind \
                     records that are gone"
                ));
            }
            _ => {}
        }
        None
    }

    /// Shards that were lost for the same reason in one line.
    fn say_lost(&mut self) {
        let lost = std::mem::take(&mut self.lost);
        for same in lost.chunk_by(|(_, one), (_, next)| one == next) {
            let shards: Vec<_> = same.iter().map(|(shard, _)| shard.to_string()).collect();
            let reason = same.first().map_or("", |(_, reason)| reason);
            self.output.note(&format!(
                "lost shard {}: {reason}; what was not checkpointed is read again",
                shards.join(", ")
            ));
        }
    }

    fn sum_up(&mut self) {
        let skipped = self.skipped.borrow().numbers();
        if skipped > 0 {
            self.output.note(&format!(
                "{} sequence numbers were skipped: trimmed, damaged or jumped",
                count(skipped)
            ));
        }
    }
}
