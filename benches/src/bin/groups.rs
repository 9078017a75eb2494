//! Consumer groups under load, against a running broker: how fast shards change hands, and what many
//! groups with frequent checkpoints cost.
//!
//! `groups rebalance --target http://… --shards 1000 --members 10` and `groups checkpoints --target
//! http://… --groups 10000 --pid SERVER` print one JSON object each.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::{Parser, Subcommand};
use flumen_api::v1;
use flumen_api::v1::consumer_client::ConsumerClient;
use flumen_api::v1::group_request::Request;
use flumen_api::v1::group_response::Response;
use flumen_client::{
    Client, ClientConfig, GroupBatch, GroupConfig, GroupConsumer, GroupEvent, HandlerError,
    NewStream, StreamName,
};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Subcommand)]
enum Mode {
    /// One more member joins, and leaves again.
    Rebalance {
        #[arg(long)]
        target: String,
        #[arg(long, default_value_t = 1000)]
        shards: u32,
        #[arg(long, default_value_t = 10)]
        members: u32,
    },
    /// Groups of one member each, with a checkpoint each per second.
    Checkpoints {
        #[arg(long)]
        target: String,
        #[arg(long, default_value_t = 10_000)]
        groups: u32,
        #[arg(long, default_value_t = 100)]
        connections: u32,
        #[arg(long, default_value_t = 10)]
        seconds: u64,
        /// The server's process, whose CPU time is measured
        #[arg(long)]
        pid: u32,
    },
}

fn main() -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let report = match Arguments::parse().mode {
        Mode::Rebalance {
            target,
            shards,
            members,
        } => runtime.block_on(rebalance(&target, shards, members))?,
        Mode::Checkpoints {
            target,
            groups,
            connections,
            seconds,
            pid,
        } => runtime.block_on(checkpoints(&target, groups, connections, seconds, pid))?,
    };
    writeln!(std::io::stdout(), "{report}")?;
    Ok(())
}

fn idle(_: GroupBatch) -> std::future::Ready<Result<(), HandlerError>> {
    std::future::ready(Ok(()))
}

async fn join(target: &str, stream: &StreamName, member: u32) -> Result<GroupConsumer, Failure> {
    let client = Client::connect(ClientConfig::new(target))?;
    let config = GroupConfig {
        member: Some(format!("member-{member}").parse()?),
        ..GroupConfig::new("rebalance".parse()?)
    };
    Ok(GroupConsumer::join(&client, stream, config, idle).await?)
}

/// Waits until a member has been given this many shards.
async fn given(member: &mut GroupConsumer, shards: usize) -> Result<(), Failure> {
    let mut has = BTreeSet::new();
    while has.len() < shards {
        match member.event().await.ok_or("the member has ended")? {
            GroupEvent::Assigned { shard, .. } => has.insert(shard),
            GroupEvent::Revoked { shard } | GroupEvent::Lost { shard, .. } => has.remove(&shard),
            _ => false,
        };
    }
    Ok(())
}

async fn rebalance(target: &str, shards: u32, members: u32) -> Result<String, Failure> {
    let client = Client::connect(ClientConfig::new(target))?;
    let stream: StreamName = "rebalance".parse()?;
    let new = NewStream {
        shards,
        ..NewStream::new(stream.clone())
    };
    client.create_stream(new).await?;
    let fair = (shards / members) as usize;
    let begun = Instant::now();
    let mut running = vec![join(target, &stream, 1).await?];
    for first in &mut running {
        given(first, shards as usize).await?;
    }
    let first = begun.elapsed();
    for member in 2..members {
        let mut joined = join(target, &stream, member).await?;
        given(&mut joined, (shards / member) as usize).await?;
        running.push(joined);
    }
    let begun = Instant::now();
    let mut last = join(target, &stream, members).await?;
    given(&mut last, fair).await?;
    let joined = begun.elapsed();
    let begun = Instant::now();
    last.leave().await?;
    let held = async {
        loop {
            let group = "rebalance".parse()?;
            let described = client.describe_group(&stream, &group).await?;
            let held = described
                .shards
                .iter()
                .filter(|shard| matches!(shard.lease, flumen_client::ShardLease::Held(_)));
            if held.count() == shards as usize && described.members.len() == running.len() {
                return Ok::<_, Failure>(());
            }
            sleep(Duration::from_millis(2)).await;
        }
    };
    held.await?;
    let left = begun.elapsed();
    for member in running {
        member.leave().await?;
    }
    client.delete_stream(&stream).await?;
    Ok(format!(
        "{{\"shards\":{shards},\"members\":{members},\"first_us\":{},\"join_us\":{},\"leave_us\":{}}}",
        first.as_micros(),
        joined.as_micros(),
        left.as_micros()
    ))
}

/// What the sessions count together.
#[derive(Default)]
struct Counts {
    saved: AtomicU64,
    refused: AtomicU64,
    latency_us: AtomicU64,
}

async fn checkpoints(
    target: &str,
    groups: u32,
    connections: u32,
    seconds: u64,
    pid: u32,
) -> Result<String, Failure> {
    let client = Client::connect(ClientConfig::new(target))?;
    let stream: StreamName = "checkpoints".parse()?;
    client.create_stream(NewStream::new(stream.clone())).await?;
    let mut channels: Vec<Channel> = Vec::new();
    for _ in 0..connections {
        channels.push(Endpoint::from_shared(target.to_owned())?.connect().await?);
    }
    let counts = Arc::new(Counts::default());
    let mut running = Vec::new();
    for group in 0..groups {
        let channel = channels
            .get((group % connections) as usize)
            .ok_or("no connections")?
            .clone();
        running.push(tokio::spawn(member(channel, group, Arc::clone(&counts))));
        if group % 100 == 99 {
            // Joins are not what is measured.
            sleep(Duration::from_millis(10)).await;
        }
    }
    sleep(Duration::from_secs(3)).await;
    let before = (cpu_seconds(pid)?, counts.saved.load(Ordering::Relaxed));
    counts.latency_us.store(0, Ordering::Relaxed);
    let begun = Instant::now();
    sleep(Duration::from_secs(seconds)).await;
    let took = begun.elapsed().as_secs_f64();
    let saved = counts.saved.load(Ordering::Relaxed) - before.1;
    let cpu = (cpu_seconds(pid)? - before.0) / took;
    let mean = counts.latency_us.load(Ordering::Relaxed) / saved.max(1);
    let ended = running.iter().filter(|member| member.is_finished()).count();
    running.iter().for_each(tokio::task::JoinHandle::abort);
    client.delete_stream(&stream).await?;
    Ok(format!(
        "{{\"groups\":{groups},\"checkpoints_per_s\":{:.0},\"refused\":{},\"members_ended\":{ended},\
         \"mean_ack_us\":{mean},\"server_cpu\":{cpu:.3}}}",
        saved as f64 / took,
        counts.refused.load(Ordering::Relaxed),
    ))
}

/// One member of a group of its own: a heartbeat now and then, a checkpoint per second.
async fn member(channel: Channel, group: u32, counts: Arc<Counts>) -> Result<(), Failure> {
    let (say, said) = mpsc::channel(8);
    let request = |request| v1::GroupRequest {
        request: Some(request),
    };
    let join = v1::JoinGroup {
        stream: "checkpoints".to_owned(),
        group: format!("group-{group}"),
        member: "member".to_owned(),
        instance: u64::from(group),
        ..Default::default()
    };
    say.send(request(Request::Join(join))).await?;
    let mut consumer = ConsumerClient::new(channel);
    let mut answers = consumer
        .group(ReceiverStream::new(said))
        .await?
        .into_inner();
    let mut generation = None;
    let phase = Duration::from_millis(u64::from(group) % 1000);
    let mut tick = interval_at(Instant::now() + phase, Duration::from_secs(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut number, mut sent) = (0, Instant::now());
    loop {
        tokio::select! {
            _ = tick.tick() => {
                number += 1;
                if number % 3 == 0 {
                    let beat = v1::Heartbeat { number };
                    say.send(request(Request::Heartbeat(beat))).await?;
                }
                let Some(generation) = generation else { continue };
                sent = Instant::now();
                let checkpoint = v1::Checkpoint {
                    shard: 0,
                    generation,
                    sequence_number: number,
                    ..Default::default()
                };
                let save = v1::SaveCheckpoints {
                    request: number,
                    checkpoints: vec![checkpoint],
                };
                say.send(request(Request::Checkpoints(save))).await?;
            }
            answer = answers.message() => match answer?.and_then(|answer| answer.response) {
                Some(Response::Assigned(assigned)) => {
                    generation = assigned.shards.first().map(|shard| shard.generation);
                }
                Some(Response::Checkpoints(saved)) if saved.refused.is_empty() => {
                    let took = u64::try_from(sent.elapsed().as_micros())?;
                    counts.saved.fetch_add(1, Ordering::Relaxed);
                    counts.latency_us.fetch_add(took, Ordering::Relaxed);
                }
                Some(Response::Checkpoints(_)) => {
                    counts.refused.fetch_add(1, Ordering::Relaxed);
                }
                Some(_) => {}
                None => return Err("the session has ended".into()),
            },
        }
    }
}

/// CPU time that a process has used (utime and stime of proc(5)), in seconds.
fn cpu_seconds(pid: u32) -> Result<f64, Failure> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks = |at: usize| -> Result<f64, Failure> {
        Ok(fields.get(at).ok_or("no such field")?.parse::<f64>()?)
    };
    Ok((ticks(11)? + ticks(12)?) / 100.0)
}
