//! The comparisons: what is run on each side, and what it is held against.

mod delivery;
mod footprint;
mod steady;

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::peers::{self, fresh};
use super::server::{Server, number};
use super::{Bench, Row, Side, Target};
use crate::shell::output;
use steady::Steady;

type Case = fn(&Bench) -> Result<Vec<Row>>;
type Run = Result<(String, f64)>;

/// All comparisons, in the order of the report.
pub(crate) const ALL: &[(&str, Case)] = &[
    ("pipelined-16x16", |bench| {
        let ids = ("pipelined-16x16", "pipelined-16x16-empty");
        against_redis(bench, ids, (16, 16), Target::Ratio(3.0))
    }),
    ("pipelined-1x256", |bench| {
        let ids = ("pipelined-1x256", "pipelined-1x256-empty");
        against_redis(bench, ids, (1, 256), Target::Ratio(5.0))
    }),
    ("single-256x1", single),
    ("bulk-disk", bulk_disk),
    ("bulk-memory", bulk_memory),
    ("small-memory", small_memory),
    ("tail", tail),
    ("cold", cold),
    ("shards", shards),
    ("idle", footprint::idle),
    ("start", footprint::start),
    ("restart", footprint::restart),
    ("groups", footprint::groups),
    ("delivery", delivery::throughput),
    ("delivery-idle", delivery::idle),
];

/// Runs both sides in turn.
fn in_turn(
    bench: &Bench,
    mut ours: impl FnMut() -> Run,
    mut theirs: impl FnMut() -> Run,
    names: (&'static str, &'static str),
) -> Result<(Side, Side)> {
    let mut a = Side {
        name: names.0,
        command: String::new(),
        figures: Vec::new(),
    };
    let mut b = Side {
        name: names.1,
        command: String::new(),
        figures: Vec::new(),
    };
    for _ in 0..bench.effort.runs {
        for (side, run) in [
            (&mut a, &mut ours as &mut dyn FnMut() -> Run),
            (&mut b, &mut theirs),
        ] {
            let (command, figure) = run()?;
            side.command = command;
            side.figures.push(figure);
        }
    }
    Ok((a, b))
}

/// One run of `flumen bench` against a fresh server; contents are verified unless it says otherwise.
fn flumen(bench: &Bench, words: &str) -> Result<(String, Value, f64)> {
    let data = fresh(&bench.dir.join("flumen"))?;
    let server = Server::flumen(bench, &data)?;
    let report = server.bench(bench, words)?;
    let cpu = server.cpu_seconds()?;
    ensure!(number(&report, "errors")? == 0.0, "errors in {report}");
    drop(server);
    std::fs::remove_dir_all(&data).ok();
    Ok((format!("flumen bench {words}"), report, cpu))
}

fn latency(report: &Value) -> String {
    let at = |quantile: &str| {
        report
            .pointer(&format!("/latency_us/{quantile}"))
            .and_then(Value::as_f64)
            .unwrap_or(f64::NAN)
    };
    format!(
        "ack latency p50 {} µs, p99 {} µs, p99.9 {} µs",
        at("p50"),
        at("p99"),
        at("p999")
    )
}

fn un_batched(bench: &Bench, (sessions, in_flight): (u32, u32), connections: u32) -> String {
    format!(
        "produce --durability disk --record-size 256 --batch 1 --sessions {sessions} \
         --in-flight {in_flight} --connections {connections} --duration {}s --verify",
        bench.effort.seconds
    )
}

fn against_redis(
    bench: &Bench,
    ids: (&'static str, &'static str),
    shape: (u32, u32),
    target: Target,
) -> Result<Vec<Row>> {
    let words = un_batched(bench, shape, shape.0);
    let what = format!(
        "`disk`, 256 B un-batched, an ack each, {} sessions × {} in flight",
        shape.0, shape.1
    );
    let names = ("Flumen", "Redis Streams");
    let redis = || peers::redis(bench, shape.0, shape.1);
    let mut notes = Vec::new();
    let mut note = |report: &Value, cpu: f64| {
        notes.push(format!(
            "{}, {cpu:.1} s of CPU in the server",
            latency(report)
        ));
    };
    let steady = Steady::start(bench, "disk")?;
    let recycled = in_turn(
        bench,
        || {
            let (command, report, cpu) = steady.run(&words)?;
            note(&report, cpu);
            Ok((command, number(&report, "records_per_s")?))
        },
        redis,
        names,
    )?;
    steady.stop()?;
    let fresh = in_turn(
        bench,
        || {
            let (command, report, cpu) = flumen(bench, &words)?;
            note(&report, cpu);
            Ok((command, number(&report, "records_per_s")?))
        },
        redis,
        names,
    )?;
    let fresh_notes = notes.split_off(bench.effort.runs);
    let row = |id, what, (ours, theirs), target, notes| Row {
        id,
        what,
        unit: "/s",
        ours,
        theirs: Some(theirs),
        target,
        notes,
    };
    Ok(vec![
        row(
            ids.0,
            format!("{what}, recycled segments"),
            recycled,
            target,
            notes,
        ),
        row(
            ids.1,
            format!("{what}, the first seconds of an empty directory"),
            fresh,
            Target::Reported,
            fresh_notes,
        ),
    ])
}

fn single(bench: &Bench) -> Result<Vec<Row>> {
    let words = un_batched(bench, (256, 1), 256);
    let mut rows = Vec::new();
    let steady = Steady::start(bench, "disk")?;
    let ours = || {
        let (command, report, _) = steady.run(&words)?;
        Ok((command, number(&report, "records_per_s")?))
    };
    let (a, b) = in_turn(
        bench,
        ours,
        || peers::echo(bench, 256, 1),
        ("Flumen", "bare RPC echo"),
    )?;
    let what = "`disk`, 256 B un-batched, 256 sessions × 1 over 256 connections".to_owned();
    rows.push(Row {
        id: "single-256x1",
        what: what.clone(),
        unit: "/s",
        ours: a,
        theirs: Some(b),
        target: Target::Ratio(0.5),
        notes: Vec::new(),
    });
    let (a, b) = in_turn(
        bench,
        ours,
        || peers::redis(bench, 256, 1),
        ("Flumen", "Redis Streams"),
    )?;
    rows.push(Row {
        id: "single-256x1-redis",
        what,
        unit: "/s",
        ours: a,
        theirs: Some(b),
        target: Target::Reported,
        notes: Vec::new(),
    });
    steady.stop()?;
    Ok(rows)
}

const BULK: &str =
    "--record-size 1024 --batch 1000 --sessions 2 --in-flight 4 --connections 2 --rate max";

fn bulk_disk(bench: &Bench) -> Result<Vec<Row>> {
    let recycled = format!(
        "produce --durability disk {BULK} --duration {}s --verify",
        bench.effort.seconds
    );
    let sustained = format!(
        "produce --durability disk {BULK} --records {}",
        bench.effort.large_bytes * 4 / 1024
    );
    let steady = Steady::start(bench, "disk")?;
    let recycled = bulk_row(
        bench,
        ("bulk-disk", 0.4),
        "`disk`, 1 KiB records in batches of 1 MiB, recycled segments",
        || steady.run(&recycled),
    )?;
    steady.stop()?;
    let sustained = bulk_row(
        bench,
        ("bulk-disk-sustained", 0.25),
        "the same, sustained over 20 GiB from an empty directory",
        || flumen(bench, &sustained),
    )?;
    Ok(vec![recycled, sustained])
}

fn bulk_row(
    bench: &Bench,
    (id, least): (&'static str, f64),
    what: &str,
    run: impl Fn() -> Result<(String, Value, f64)>,
) -> Result<Row> {
    let mut notes = Vec::new();
    let (ours, theirs) = in_turn(
        bench,
        || {
            let (command, report, cpu) = run()?;
            let gigabytes = number(&report, "bytes")? / 1e9;
            notes.push(format!(
                "{gigabytes:.1} GB, {}, {:.2} s of server CPU per GB",
                latency(&report),
                cpu / gigabytes
            ));
            Ok((command, number(&report, "bytes_per_s")?))
        },
        || peers::fio_durable_write(bench),
        ("Flumen", "fio"),
    )?;
    Ok(Row {
        id,
        what: what.to_owned(),
        unit: "B/s",
        ours,
        theirs: Some(theirs),
        target: Target::Ratio(least),
        notes,
    })
}

fn bulk_memory(bench: &Bench) -> Result<Vec<Row>> {
    let words = format!(
        "produce --durability memory {BULK} --records {}",
        (2u64 << 30) / 1024
    );
    let (ours, theirs) = in_turn(
        bench,
        || {
            let (command, report, _) = flumen(bench, &words)?;
            Ok((command, number(&report, "bytes_per_s")?))
        },
        || peers::loopback(bench),
        ("Flumen", "loopback"),
    )?;
    Ok(vec![Row {
        id: "bulk-memory",
        what: "`memory`, 1 KiB records in batches of 1 MiB, 2 GiB".to_owned(),
        unit: "B/s",
        ours,
        theirs: Some(theirs),
        target: Target::Ratio(0.5),
        notes: Vec::new(),
    }])
}

fn small_memory(bench: &Bench) -> Result<Vec<Row>> {
    let words = format!(
        "produce --durability memory --record-size 256 --batch 4000 --sessions 2 --in-flight 4 \
         --connections 2 --duration {}s",
        bench.effort.seconds
    );
    let mut ours = Side {
        name: "Flumen",
        command: String::new(),
        figures: Vec::new(),
    };
    for _ in 0..bench.effort.runs {
        let (command, report, _) = flumen(bench, &words)?;
        ours.command = command;
        ours.figures.push(number(&report, "records_per_s")?);
    }
    Ok(vec![Row {
        id: "small-memory",
        what: "`memory`, 256 B records in batches of 1 MiB, encoding included".to_owned(),
        unit: "/s",
        ours,
        theirs: None,
        target: Target::AtLeast(2e6),
        notes: Vec::new(),
    }])
}

fn tail(bench: &Bench) -> Result<Vec<Row>> {
    let words = format!(
        "e2e --durability memory {BULK} --consumers 4 --duration {}s",
        bench.effort.seconds
    );
    let (ours, theirs) = in_turn(
        bench,
        || {
            let (command, report, _) = flumen(bench, &words)?;
            Ok((command, number(&report, "bytes_out_per_s")?))
        },
        || peers::loopback(bench),
        ("Flumen", "loopback"),
    )?;
    Ok(vec![Row {
        id: "tail",
        what: "one producer, four subscribers at the tail: bytes out".to_owned(),
        unit: "B/s",
        ours,
        theirs: Some(theirs),
        target: Target::Ratio(0.35),
        notes: Vec::new(),
    }])
}

/// Makes the next reads come from the disk.
fn drop_caches() -> Result<()> {
    output(&mut Command::new("sync"))?;
    std::fs::write("/proc/sys/vm/drop_caches", "3").context("dropping caches needs root")
}

fn cold(bench: &Bench) -> Result<Vec<Row>> {
    let data = fresh(&bench.dir.join("cold"))?;
    let fill = format!(
        "produce --stream cold --shards 16 --durability memory {BULK} --records {}",
        bench.effort.large_bytes / 1024
    );
    Server::flumen(bench, &data)?.bench(bench, &fill)?;
    let mut notes = Vec::new();
    let words = "consume --stream cold";
    let (ours, theirs) = in_turn(
        bench,
        || {
            drop_caches()?;
            let server = Server::flumen(bench, &data)?;
            let report = server.bench(bench, words)?;
            let bytes = number(&report, "bytes")?;
            let read = server.disk_read_bytes()? as f64;
            ensure!(
                read >= 0.9 * bytes,
                "only {read} of {bytes} bytes came from the disk"
            );
            notes.push(format!(
                "{:.1} GB read from disk for {:.1} GB",
                read / 1e9,
                bytes / 1e9
            ));
            Ok((
                format!("flumen bench {words}"),
                number(&report, "bytes_per_s")?,
            ))
        },
        || {
            drop_caches()?;
            peers::fio_read(bench)
        },
        ("Flumen", "fio"),
    )?;
    std::fs::remove_dir_all(&data).ok();
    Ok(vec![Row {
        id: "cold",
        what: "a whole stream of 16 shards read back with cold caches".to_owned(),
        unit: "B/s",
        ours,
        theirs: Some(theirs),
        target: Target::Ratio(0.6),
        notes,
    }])
}

fn shards(bench: &Bench) -> Result<Vec<Row>> {
    let run = |shards: u32| -> Run {
        let words = format!("{} --shards {shards}", un_batched(bench, (16, 16), 16));
        let (command, report, _) = flumen(bench, &words)?;
        Ok((command, number(&report, "records_per_s")?))
    };
    let (many, one) = in_turn(
        bench,
        || run(1000),
        || run(1),
        ("1,000 shards", "one shard"),
    )?;
    Ok(vec![Row {
        id: "shards",
        what: "`disk`, 256 B un-batched, written evenly to 1,000 shards".to_owned(),
        unit: "/s",
        ours: many,
        theirs: Some(one),
        target: Target::Ratio(0.6),
        notes: Vec::new(),
    }])
}
