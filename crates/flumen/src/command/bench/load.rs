//! `bench produce` and `bench e2e`: sessions on threads, consumers beside them, one report.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use anyhow::{Context as _, Result, anyhow};
use flumen_client::{Code, NewStream, StreamDescription, StreamName};
use tokio::sync::Barrier;
use tokio::time::Instant;

use super::Load;
use super::pace::Pace;
use super::payload::{KeyedShard, keys};
use super::readers::{Readers, ReadersPlan};
use super::report::{Report, latencies};
use super::session::{Done, Plan, Session, Stamp, Until};
use super::target::{Endpoint, Target};
use super::verify::{Expected, ends, read_back};
use crate::cli::Context;
use crate::command::block_on;
use crate::command::stream::level_name;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Appends.
    Produce,
    /// Appends and what reads them.
    EndToEnd {
        /// How many read.
        consumers: u32,
    },
}

/// Runs a load and reports it.
pub(super) fn run(
    context: &mut Context,
    target: &Target,
    load: &Load,
    mode: Mode,
) -> Result<Report> {
    let stream = block_on(stream(target, load))?;
    let report = measure(context, target, load, mode, &stream);
    if load.stream.is_none() {
        // A leftover stream is not worth failing for.
        let deleted = block_on(async { Ok(target.client()?.delete_stream(&stream.name).await?) });
        if let Err(error) = deleted {
            context
                .output
                .note(&format!("{} is left behind: {error:#}", stream.name));
        }
    }
    report
}

/// The stream to load; made when it is missing.
async fn stream(target: &Target, load: &Load) -> Result<StreamDescription> {
    let client = target.client()?;
    let name = match &load.stream {
        Some(name) => name.clone(),
        None => {
            let name = format!("bench-{:08x}", rand::random::<u32>());
            name.parse::<StreamName>()
                .context("BUG: a name of our own")?
        }
    };
    if load.stream.is_some() {
        match client.describe_stream(&name).await {
            Ok(stream) => return Ok(stream),
            Err(error) if error.code() == Code::NotFound => {}
            Err(error) => return Err(target.explain(error)),
        }
    }
    let new = NewStream {
        shards: load.shards,
        durability: Some(load.durability.into()),
        ..NewStream::new(name)
    };
    client
        .create_stream(new)
        .await
        .map_err(|error| target.explain(error))
}

fn measure(
    context: &mut Context,
    target: &Target,
    load: &Load,
    mode: Mode,
    stream: &StreamDescription,
) -> Result<Report> {
    let shards = Arc::new(keys(stream));
    let base = Instant::now();
    let readers = match mode {
        Mode::Produce => None,
        Mode::EndToEnd { consumers } => {
            let plan = ReadersPlan {
                consumers,
                sessions: load.sessions,
                stream: stream.name.clone(),
                incarnation: stream.incarnation,
                from: ends(stream),
                shards: Arc::clone(&shards),
                record_bytes: load.record_size,
                base,
            };
            Some(Readers::start(target, plan)?)
        }
    };
    let stamp = if readers.is_some() {
        Stamp::Due(base)
    } else {
        Stamp::Number
    };
    context.output.progress("measuring …");
    let run = sessions(target, load, &stream.name, &shards, stamp)?;
    let stored: Vec<Vec<u64>> = run.done.iter().map(|done| done.stored.clone()).collect();
    let consumed = readers
        .map(|readers| readers.finish(run.begun, &stored))
        .transpose();
    let mut report = report(load, stream, mode, &run);
    match consumed {
        Ok(consumed) => report.consumed = consumed,
        Err(error) => report.first_error = Some(format!("end to end: {error:#}")),
    }
    if load.verify && report.first_error.is_none() {
        context.output.progress("verifying …");
        let expected = Expected {
            stream: stream.name.clone(),
            incarnation: stream.incarnation,
            shards,
            before: ends(stream),
            record_bytes: load.record_size,
            stored,
            numbered: stamp == Stamp::Number,
        };
        match block_on(async { read_back(&target.client()?, &expected).await }) {
            Ok(records) => report.verified_records = Some(records),
            Err(error) => report.first_error = Some(format!("verification failed: {error:#}")),
        }
    }
    Ok(report)
}

/// What all sessions did.
struct Run {
    begun: Instant,
    done: Vec<Done>,
}

fn sessions(
    target: &Target,
    load: &Load,
    stream: &StreamName,
    shards: &Arc<Vec<KeyedShard>>,
    stamp: Stamp,
) -> Result<Run> {
    let until = until(load);
    let plan = |session| Plan {
        session,
        sessions: load.sessions,
        stream: stream.clone(),
        shards: Arc::clone(shards),
        record_bytes: load.record_size,
        batch: load.batch,
        in_flight: load.in_flight,
        until: until.clone(),
        stamp,
    };
    let threads = load.threads.min(load.connections);
    // All sessions are open before the first one sends.
    let ready = Arc::new(Barrier::new(threads as usize));
    let begun = Arc::new(std::sync::OnceLock::new());
    let mut running = Vec::new();
    for thread in 0..threads {
        let connections = (thread..load.connections).step_by(threads as usize).count();
        let mine: Vec<Plan> = (thread..load.sessions)
            .step_by(threads as usize)
            .map(plan)
            .collect();
        let (ready, begun, until) = (Arc::clone(&ready), Arc::clone(&begun), until.clone());
        let endpoint = target.endpoint();
        running.push(std::thread::spawn(move || {
            block_on(async move {
                let opened = open(&endpoint, connections, mine).await;
                ready.wait().await;
                let opened = opened?;
                let begun = *begun.get_or_init(|| start(&until));
                run_all(opened, begun).await
            })
        }));
    }
    let mut done = Vec::new();
    for thread in running {
        let finished = thread
            .join()
            .map_err(|_| anyhow!("a load thread panicked"))?;
        done.extend(finished.map_err(|error| match error.downcast() {
            Ok(error) => target.explain(error),
            Err(other) => other,
        })?);
    }
    done.sort_by_key(|(session, _)| *session);
    let begun = begun.get().copied().context("nothing ran")?;
    Ok(Run {
        begun,
        done: done.into_iter().map(|(_, done)| done).collect(),
    })
}

fn until(load: &Load) -> Until {
    let records = load.records.unwrap_or_else(|| {
        let rate = load.rate.0.unwrap_or(0);
        let micros = crate::quantity::micros(load.duration);
        u64::try_from(u128::from(rate) * u128::from(micros) / 1_000_000).unwrap_or(u64::MAX)
    });
    match load.rate.0 {
        Some(rate) => Until::Paced(Arc::new(Pace::new(
            rate,
            load.batch,
            records,
            load.sessions,
        ))),
        None if load.records.is_some() => Until::Records(Arc::new(AtomicU64::new(records))),
        None => Until::Time(load.duration),
    }
}

/// Now; an open loop's clock starts with it.
fn start(until: &Until) -> Instant {
    let begun = Instant::now();
    if let Until::Paced(pace) = until {
        let pace = Arc::clone(pace);
        std::thread::spawn(move || pace.run(begun));
    }
    begun
}

async fn open(
    endpoint: &Endpoint,
    connections: usize,
    plans: Vec<Plan>,
) -> Result<Vec<(u32, Session)>> {
    let clients = (0..connections)
        .map(|_| endpoint.client())
        .collect::<Result<Vec<_>>>()?;
    let mut sessions = Vec::with_capacity(plans.len());
    for (plan, client) in plans.into_iter().zip(clients.iter().cycle()) {
        sessions.push((plan.session, Session::open(client, plan).await?));
    }
    Ok(sessions)
}

async fn run_all(sessions: Vec<(u32, Session)>, begun: Instant) -> Result<Vec<(u32, Done)>> {
    let mut running = tokio::task::JoinSet::new();
    for (number, session) in sessions {
        running.spawn(async move { session.run(begun).await.map(|done| (number, done)) });
    }
    let mut done = Vec::new();
    while let Some(finished) = running.join_next().await {
        done.push(finished.context("a session")??);
    }
    Ok(done)
}

fn report(load: &Load, stream: &StreamDescription, mode: Mode, run: &Run) -> Report {
    let mut latency = latencies();
    for done in &run.done {
        latency.add(&done.latency).expect("BUG: bounds differ");
    }
    let ended = run
        .done
        .iter()
        .map(|done| done.ended)
        .max()
        .unwrap_or(run.begun);
    let records = run.done.iter().flat_map(|done| &done.stored).sum::<u64>();
    let first_error = run.done.iter().find_map(|done| done.first_error.as_ref());
    let took = ended - run.begun;
    Report {
        mode: if mode == Mode::Produce {
            "produce"
        } else {
            "e2e"
        },
        stream: stream.name.clone(),
        shards: stream.shards.len() as u64,
        durability: level_name(stream.durability),
        record_bytes: load.record_size,
        batch_records: load.batch,
        sessions: load.sessions,
        in_flight: load.in_flight,
        connections: load.connections,
        rate_target_per_s: load.rate.0,
        records,
        bytes: records.saturating_mul(load.record_size),
        errors: run.done.iter().map(|done| done.errors).sum(),
        took,
        latency: Some(latency),
        consumed: None,
        verified_records: None,
        first_error: first_error.map(|error| format!("appends were refused: {error}")),
    }
}
