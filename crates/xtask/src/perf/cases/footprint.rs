//! What a server takes and how fast it is there: memory at rest and under load, start and restart.

use std::process::Command;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::{BULK, un_batched};
use crate::perf::peers::fresh;
use crate::perf::server::{Server, now, number};
use crate::perf::{Bench, Row, Side, Target};
use crate::shell::output;

pub(super) fn alone(
    id: &'static str,
    what: &str,
    unit: &'static str,
    command: &str,
    figures: Vec<f64>,
    most: f64,
) -> Row {
    Row {
        id,
        what: what.to_owned(),
        unit,
        ours: Side {
            name: "Flumen",
            command: command.to_owned(),
            figures,
        },
        theirs: None,
        target: Target::AtMost(most),
        notes: Vec::new(),
    }
}

pub(super) fn idle(bench: &Bench) -> Result<Vec<Row>> {
    let (mut resting, mut anonymous) = (Vec::new(), Vec::new());
    let words = un_batched(bench, (16, 16), 16);
    let bulk = format!(
        "produce --durability disk {BULK} --duration {}s",
        bench.effort.seconds
    );
    for _ in 0..bench.effort.runs {
        let data = fresh(&bench.dir.join("flumen"))?;
        let server = Server::flumen(bench, &data)?;
        std::thread::sleep(std::time::Duration::from_secs(2));
        resting.push(server.memory("VmRSS")? as f64);
        let mut most = 0;
        for words in [&words, &bulk] {
            std::thread::scope(|scope| -> Result<()> {
                let load = scope.spawn(|| server.bench(bench, words));
                while !load.is_finished() {
                    most = most.max(server.memory("RssAnon")?);
                    std::thread::sleep(std::time::Duration::from_millis(100));
                }
                load.join().expect("BUG: the load panicked")?;
                Ok(())
            })?;
        }
        anonymous.push(most as f64);
    }
    Ok(vec![
        alone(
            "idle",
            "resident memory of an idle server",
            "B",
            "VmRSS after 2 s",
            resting,
            25e6 * 1.048_576,
        ),
        alone(
            "loaded",
            "anonymous memory under load, highest",
            "B",
            "RssAnon, every 100 ms",
            anonymous,
            200e6 * 1.048_576,
        ),
    ])
}

pub(super) fn start(bench: &Bench) -> Result<Vec<Row>> {
    let mut figures = Vec::new();
    for _ in 0..bench.effort.runs.max(3) {
        let data = fresh(&bench.dir.join("flumen"))?;
        let begun = now();
        let server = Server::flumen(bench, &data)?;
        server.bench(
            bench,
            "produce --record-size 256 --batch 1 --sessions 1 --in-flight 1 --records 1",
        )?;
        figures.push(begun.elapsed().as_secs_f64());
    }
    let what = "start on an empty directory to the first ack (a second process and a stream created included)";
    Ok(vec![alone(
        "start",
        what,
        "s",
        "flumen serve; flumen bench produce --records 1",
        figures,
        0.150,
    )])
}

pub(super) fn restart(bench: &Bench) -> Result<Vec<Row>> {
    let data = fresh(&bench.dir.join("restart"))?;
    let fill = format!(
        "produce --stream again --durability disk {BULK} --records {}",
        bench.effort.large_bytes / 1024
    );
    let mut server = Server::flumen(bench, &data)?;
    let written = number(&server.bench(bench, &fill)?, "records")?;
    let mut figures = Vec::new();
    for _ in 0..bench.effort.runs {
        // Killed while a load is running, so that there is a tail to recover.
        std::thread::scope(|scope| {
            let load = format!("produce --stream again {BULK} --duration 2s");
            let running = scope.spawn({
                let server = &server;
                move || server.bench(bench, &load).is_ok()
            });
            std::thread::sleep(std::time::Duration::from_secs(1));
            let _ = output(Command::new("kill").args(["-9", &server.child.id().to_string()]));
            running.join().is_ok()
        });
        let begun = now();
        server = Server::flumen(bench, &data)?;
        server.bench(
            bench,
            "produce --stream again --record-size 256 --batch 1 --records 1",
        )?;
        figures.push(begun.elapsed().as_secs_f64());
    }
    let read = number(&server.bench(bench, "consume --stream again")?, "records")?;
    ensure!(
        read >= written,
        "only {read} of {written} acknowledged records came back"
    );
    drop(server);
    std::fs::remove_dir_all(&data).ok();
    let what = "`kill -9` under load with 5 GiB of log: to readable and the next ack";
    Ok(vec![alone(
        "restart",
        what,
        "s",
        "flumen serve; flumen bench produce --records 1",
        figures,
        2.0,
    )])
}

/// What consumer groups take: shards that change hands, and many checkpoints.
pub(super) fn groups(bench: &Bench) -> Result<Vec<Row>> {
    let data = fresh(&bench.dir.join("flumen"))?;
    let server = Server::flumen(bench, &data)?;
    let run = |words: &str| -> Result<Value> {
        let printed = output(
            Command::new(&bench.groups)
                .args(words.split_whitespace())
                .args(["--target", &server.address]),
        )?;
        Ok(serde_json::from_str(printed.trim())?)
    };
    let (mut joins, mut leaves, mut cpu, mut notes) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.effort.runs {
        let report = run("rebalance --shards 1000 --members 10")?;
        joins.push(number(&report, "join_us")? / 1e6);
        leaves.push(number(&report, "leave_us")? / 1e6);
    }
    let load = format!(
        "checkpoints --groups 10000 --seconds {} --pid {}",
        bench.effort.seconds,
        server.child.id()
    );
    for _ in 0..bench.effort.runs {
        let report = run(&load)?;
        ensure!(number(&report, "refused")? == 0.0, "refusals in {report}");
        cpu.push(number(&report, "server_cpu")?);
        notes.push(format!(
            "{:.0} checkpoints/s, acknowledged in {:.1} ms on average",
            number(&report, "checkpoints_per_s")?,
            number(&report, "mean_ack_us")? / 1e3
        ));
    }
    drop(server);
    std::fs::remove_dir_all(&data).ok();
    let rebalance = "groups rebalance --shards 1000 --members 10";
    let mut rows = vec![
        alone(
            "groups-join",
            "the tenth member of a group of 1,000 shards joins: until it has its hundred",
            "s",
            rebalance,
            joins,
            1.0,
        ),
        alone(
            "groups-leave",
            "it leaves: until the others have them",
            "s",
            rebalance,
            leaves,
            1.0,
        ),
        alone(
            "groups-checkpoints",
            "10,000 groups of one member each, a durable checkpoint a second each: the server's CPU",
            "cores",
            "groups checkpoints --groups 10000",
            cpu,
            0.5,
        ),
    ];
    if let Some(row) = rows.last_mut() {
        row.notes = notes;
    }
    Ok(rows)
}
