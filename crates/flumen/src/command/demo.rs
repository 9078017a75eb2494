//! `flumen demo`: real telemetry in over gRPC, a kill -9 on the way, everything out again.
//!
//! The broker is a child process on a fresh directory. Producers replay the readings of all devices,
//! the members of a consumer group process them, and a delivery stream writes them into Parquet files.
//! On the way a shard is split, the broker is killed while batches of every producer are
//! unacknowledged, and started again, and one of the members vanishes. Then what came out, and what the
//! manifests of the delivery stream name, is compared with what went in, the stream is read a second
//! time, the broker is asked to end, and its directory is checked.

mod consuming;
mod delivering;
mod drawing;
mod killing;
mod ledger;
mod producing;
mod splitting;
mod summary;
mod telemetry;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use flumen_client::{Client, ClientConfig, NewStream, StreamName};

use super::interrupted;
use super::stream::Level;
use crate::broker_process::{BrokerPlan, BrokerProcess};
use crate::cli::Context;
use crate::failure::AlreadySaid;
use crate::inspection::inspect;
use crate::output::Output;
use crate::quantity::{count, size};
use consuming::{Members, Vanished, read_again};
use delivering::Delivering;
use killing::{Kill, kill_and_restart, wait_until};
use producing::{Producers, Shared, Watched};
use splitting::{Split, split};
use summary::Summary;
use telemetry::Telemetry;

const PRODUCERS: usize = 4;
const MEMBERS: usize = 3;
/// One of them vanishes when this share of the readings is acknowledged, in percent.
const MEMBER_LOST_AT: u64 = 85;
/// The readings are spread over this long, the outage not counted.
const REPLAY: Duration = Duration::from_secs(5);
/// How often the progress line moves.
const FRAME: Duration = Duration::from_millis(80);

/// Arguments of `demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Other CSV files (or folders of them): `timestamp,value` with a header, the file is the device
    #[arg(long, value_name = "PATH", num_args = 1..)]
    data: Vec<PathBuf>,
    /// Keep the broker's data and log, and the objects, here: a new or empty directory
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Shards of the stream
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1_000), value_name = "N")]
    shards: u32,
    /// What an ack promises
    #[arg(long, value_enum, default_value_t = Level::Disk)]
    durability: Level,
}

/// Where the broker lives; removed at the end unless it is to be kept.
struct Home {
    dir: PathBuf,
    _temporary: Option<tempfile::TempDir>,
}

/// Runs the command.
pub(crate) fn run(context: &mut Context, args: Args) -> Result<()> {
    let telemetry = if args.data.is_empty() {
        Telemetry::bundled()?
    } else {
        Telemetry::of_paths(&args.data)?
    };
    let home = home(args.keep.as_deref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let runtime = runtime.context("starting the runtime")?;
    let output = &mut context.output;
    let summary = runtime.block_on(async {
        tokio::select! {
            summary = play(output, &args, telemetry, &home) => summary,
            () = interrupted() => Err(anyhow::anyhow!("interrupted; the broker is ended")),
        }
    })?;
    if context.output.is_json() {
        context.output.json(&summary.json())?;
    } else {
        drawing::summary(&mut context.output, &summary)?;
        if args.keep.is_some() {
            drawing::fact(&mut context.output, "kept", &home.dir.display().to_string())?;
        }
    }
    if summary.held() {
        Ok(())
    } else {
        Err(AlreadySaid.into())
    }
}

fn home(keep: Option<&Path>) -> Result<Home> {
    let Some(dir) = keep else {
        let temporary = tempfile::Builder::new().prefix("flumen-demo-").tempdir();
        let temporary = temporary.context("creating a temporary directory")?;
        return Ok(Home {
            dir: temporary.path().to_owned(),
            _temporary: Some(temporary),
        });
    };
    let shown = dir.display();
    std::fs::create_dir_all(dir).with_context(|| format!("creating {shown}"))?;
    let inside = std::fs::read_dir(dir)
        .with_context(|| format!("reading {shown}"))?
        .next();
    ensure!(
        inside.is_none(),
        "{shown} is not empty: --keep takes a new directory"
    );
    Ok(Home {
        dir: dir.to_owned(),
        _temporary: None,
    })
}

async fn play(
    output: &mut Output,
    args: &Args,
    telemetry: Telemetry,
    home: &Home,
) -> Result<Summary> {
    let mut plan = BrokerPlan::in_dir(&home.dir);
    let starting = plan.clone();
    let started = tokio::task::spawn_blocking(move || starting.start()).await;
    let mut broker = started.context("starting the broker")??;
    // The next process takes the place of the first.
    (plan.grpc, plan.console) = (broker.grpc(), broker.console());
    introduce(output, args, &telemetry, &broker, home)?;
    let endpoint = broker.endpoint();
    let stream: StreamName = "telemetry".parse().context("BUG: a name of our own")?;
    let client = Client::connect(ClientConfig::new(&endpoint))?;
    let delivering = create(&client, &stream, args, &telemetry, home).await?;

    let shared = Arc::new(Shared::new(Arc::new(telemetry)));
    let mut members = Members::start(&endpoint, &stream, &shared, MEMBERS).await?;
    let present = members.watched();
    let producers = Producers::start(&endpoint, &stream, &shared, PRODUCERS, REPLAY).await?;
    let watched = producers.watched();
    let seen = || (watched.stored(), present());
    let scene = Scene {
        client: &client,
        stream: &stream,
        producers: &watched,
        delivering: &delivering,
        shared: &shared,
        seen: &seen,
    };
    let split = scene.split(output).await?;
    let kill = scene.kill(output, &mut broker, &plan).await?;
    let vanished = scene.lose_member(output, &mut members).await?;
    let (acknowledged, send_to_ack) = watch(output, producers.finish(), seen, &shared).await?;
    let (processed, delivered) = tokio::try_join!(
        members.finish(shared.telemetry.readings),
        delivering.finish(&shared.telemetry),
    )?;
    output.clear_progress();
    let (again, again_took) = read_again(&endpoint, &stream, &shared).await?;
    let stats = watched.stats();
    let ended = tokio::task::spawn_blocking(move || broker.end()).await;
    let exit = ended.context("ending the broker")??.code();
    let data_dir = plan.data_dir.clone();
    let inspected = tokio::task::spawn_blocking(move || inspect(&data_dir)).await;
    Ok(Summary {
        readings: shared.telemetry.readings,
        bytes: shared.telemetry.bytes,
        devices: shared.telemetry.devices.len() as u64,
        shards: args.shards,
        durability: super::stream::level_name(args.durability.into()),
        producers: stats.len() as u64,
        members: MEMBERS as u64,
        split,
        kill,
        vanished,
        lag_records: processed.lag_records,
        finished_shards: processed.finished_shards,
        batches_resent: stats.iter().map(|stats| stats.batches_resent).sum(),
        recognised: stats.iter().map(|stats| stats.records_duplicate).sum(),
        live: processed.findings,
        delivered,
        again,
        again_took,
        took: acknowledged - shared.begun,
        send_to_ack,
        send_to_read: processed.latency,
        exit,
        inspection: inspected.context("checking the data directory")??,
    })
}

/// The stream, and the delivery stream that reads it.
async fn create(
    client: &Client,
    stream: &StreamName,
    args: &Args,
    telemetry: &Telemetry,
    home: &Home,
) -> Result<Delivering> {
    let new = NewStream {
        shards: args.shards,
        durability: Some(args.durability.into()),
        ..NewStream::new(stream.clone())
    };
    client.create_stream(new).await?;
    Delivering::start(client, stream, &home.dir.join("objects"), telemetry).await
}

/// What the incidents on the way have in common.
struct Scene<'a, S> {
    client: &'a Client,
    stream: &'a StreamName,
    producers: &'a Watched,
    delivering: &'a Delivering,
    shared: &'a Shared,
    /// Readings stored and processed so far.
    seen: &'a S,
}

impl<S: Fn() -> (u64, u64)> Scene<'_, S> {
    async fn split(&self, output: &mut Output) -> Result<Split> {
        let splitting = split(self.client, self.stream, self.producers, self.shared);
        let split = watch(output, splitting, self.seen, self.shared).await?;
        if !output.is_json() {
            drawing::split(output, &split)?;
        }
        Ok(split)
    }

    async fn kill(
        &self,
        output: &mut Output,
        broker: &mut BrokerProcess,
        plan: &BrokerPlan,
    ) -> Result<Kill> {
        let killing = kill_and_restart(broker, plan, self.producers, self.delivering, self.shared);
        let kill = watch(output, killing, self.seen, self.shared).await?;
        tell(output, &kill, self.shared.telemetry.readings)?;
        Ok(kill)
    }

    async fn lose_member(&self, output: &mut Output, members: &mut Members) -> Result<Vanished> {
        let late = self.shared.telemetry.readings * MEMBER_LOST_AT / 100;
        let losing = async {
            wait_until(self.producers, late).await?;
            members.lose_one().await
        };
        let vanished = watch(output, losing, self.seen, self.shared).await?;
        if !output.is_json() {
            drawing::vanished(output, &vanished)?;
        }
        Ok(vanished)
    }
}

fn introduce(
    output: &mut Output,
    args: &Args,
    telemetry: &Telemetry,
    broker: &BrokerProcess,
    home: &Home,
) -> Result<()> {
    if output.is_json() {
        return Ok(());
    }
    drawing::head(output)?;
    let data = format!(
        "{} readings of {} devices, {}",
        count(telemetry.readings),
        telemetry.devices.len(),
        size(telemetry.bytes)
    );
    drawing::fact(output, "data", &data)?;
    let level = match args.durability {
        Level::Disk => "every ack after its sync to disk",
        Level::Memory => "acks before the sync to disk",
    };
    let shards = args.shards;
    let where_ = format!(
        "process {} on {}, {shards} shard{}, {level}",
        broker.pid(),
        broker.grpc(),
        if shards == 1 { "" } else { "s" }
    );
    drawing::fact(output, "broker", &where_)?;
    drawing::fact(output, "files", &home.dir.display().to_string())?;
    let load = format!(
        "{PRODUCERS} producers, a consumer group of {MEMBERS} members, a delivery stream, over gRPC"
    );
    Ok(drawing::fact(output, "load", &load)?)
}

fn tell(output: &mut Output, kill: &Kill, readings: u64) -> Result<()> {
    if output.is_json() {
        return Ok(());
    }
    Ok(drawing::kill(
        output,
        kill,
        kill.acknowledged * 100 / readings.max(1),
    )?)
}

/// Moves the progress line while something goes on.
async fn watch<T>(
    output: &mut Output,
    work: impl Future<Output = Result<T>>,
    seen: impl Fn() -> (u64, u64),
    shared: &Shared,
) -> Result<T> {
    let mut work = std::pin::pin!(work);
    let mut frames = tokio::time::interval(FRAME);
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = frames.tick() => {
                let (stored, read) = seen();
                let total = shared.telemetry.readings;
                drawing::progress(output, stored, read, total, shared.begun.elapsed());
            }
        }
    }
}
