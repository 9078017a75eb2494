//! The peers and the machine's ceilings: each function is one run and returns one figure.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde_json::Value;

use super::server::{Server, free_port, number};
use super::{Bench, Effort};
use crate::shell::output;

/// XADD per second, a record of 256 bytes each, every one synced before its answer.
pub(crate) fn redis(bench: &Bench, clients: u32, pipeline: u32) -> Result<(String, f64)> {
    let data = fresh(&bench.dir.join("redis"))?;
    let server = Server::redis(&data)?;
    let words = |requests: u64| {
        format!(
            "-c {clients} -P {pipeline} -n {requests} --csv XADD s * f {}",
            "x".repeat(256)
        )
    };
    let run = |requests: u64| -> Result<f64> {
        let printed = output(
            Command::new("redis-benchmark")
                .args(["-p", &server.address])
                .args(words(requests).split_whitespace()),
        )?;
        let row = printed
            .lines()
            .last()
            .context("redis-benchmark printed nothing")?;
        let rate = row.split("\",\"").nth(1).context("no rate")?;
        Ok(rate.trim_matches('"').parse()?)
    };
    let probe = run(100_000)?;
    output(Command::new("redis-cli").args(["-p", &server.address, "flushall"]))?;
    #[expect(clippy::cast_possible_truncation, reason = "a rate below 2^53")]
    let requests = (probe * bench.effort.seconds as f64) as u64;
    let figure = run(requests)?;
    let shown = format!(
        "redis-server --appendonly yes --appendfsync always --save '' ; redis-benchmark -c {clients} -P {pipeline} --csv XADD s '*' f <256 B>"
    );
    std::fs::remove_dir_all(&data).ok();
    Ok((shown, figure))
}

/// Bytes per second of 1 MiB writes, each synced, into blocks that were written before.
pub(crate) fn fio_durable_write(bench: &Bench) -> Result<(String, f64)> {
    let words = "--rw=write --bs=1M --size=2G --fdatasync=1 --overwrite=1";
    fio(&bench.dir, bench.effort, words, "write")
}

/// Bytes per second of a sequential read with a cold cache.
pub(crate) fn fio_read(bench: &Bench) -> Result<(String, f64)> {
    let words = "--rw=read --bs=1M --size=4G --invalidate=1 --ioengine=psync";
    fio(&bench.dir, bench.effort, words, "read")
}

fn fio(dir: &Path, effort: Effort, words: &str, side: &str) -> Result<(String, f64)> {
    // Laid out first, so that only the timed part counts and the blocks are real.
    let file = format!("--filename={}", dir.join(format!("fio-{side}")).display());
    let size = words
        .split_whitespace()
        .find(|word| word.starts_with("--size="))
        .unwrap_or("--size=2G");
    if !dir.join(format!("fio-{side}")).exists() {
        output(Command::new("fio").args([
            "--name=lay",
            &file,
            "--rw=write",
            "--bs=1M",
            size,
            "--end_fsync=1",
        ]))?;
    }
    let time = format!("--runtime={}", effort.seconds);
    let printed = output(
        Command::new("fio")
            .args([
                "--name=peer",
                &file,
                "--time_based",
                &time,
                "--output-format=json",
            ])
            .args(words.split_whitespace()),
    )?;
    let begin = printed.find('{').context("fio printed no JSON")?;
    let report: Value = serde_json::from_str(printed.get(begin..).unwrap_or_default())?;
    let job = report
        .pointer(&format!("/jobs/0/{side}"))
        .context("no job")?;
    Ok((
        format!("fio --name=peer --time_based {time} {words}"),
        number(job, "bw_bytes")?,
    ))
}

/// Bytes per second that one TCP connection moves over loopback.
pub(crate) fn loopback(bench: &Bench) -> Result<(String, f64)> {
    let port = free_port()?;
    let mut server = Command::new("iperf3")
        .args(["-s", "-1", "-B", "127.0.0.1", "-p", &port])
        .stdout(Stdio::null())
        .spawn()
        .context("iperf3")?;
    let seconds = bench.effort.seconds.to_string();
    // It prints JSON, and ends well, also when nobody listens.
    let client = || -> Result<f64> {
        let printed = output(Command::new("iperf3").args([
            "-c",
            "127.0.0.1",
            "-p",
            &port,
            "-t",
            &seconds,
            "-J",
        ]))?;
        let report: Value = serde_json::from_str(&printed)?;
        let received = report.pointer("/end/sum_received").context("no sum")?;
        Ok(number(received, "bits_per_second")? / 8.0)
    };
    // The server may need a moment to listen.
    let mut figure = client();
    for _ in 0..50 {
        if figure.is_ok() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
        figure = client();
    }
    // It does not always end after its one client.
    server.kill()?;
    server.wait()?;
    Ok((format!("iperf3 -c 127.0.0.1 -t {seconds}"), figure?))
}

/// Answers per second of a bare RPC echo.
pub(crate) fn echo(bench: &Bench, sessions: u32, in_flight: u32) -> Result<(String, f64)> {
    let server = Server::echo(bench)?;
    let words = format!(
        "load --sessions {sessions} --in-flight {in_flight} --connections {sessions} \
         --message-bytes 376 --seconds {}",
        bench.effort.seconds
    );
    let printed = output(
        Command::new(&bench.echo)
            .args(words.split_whitespace())
            .args(["--target", &server.address]),
    )?;
    let report: Value = serde_json::from_str(printed.trim())?;
    Ok((
        format!("rpc_echo {words}"),
        number(&report, "messages_per_s")?,
    ))
}

/// An empty folder of this name.
pub(crate) fn fresh(path: &Path) -> Result<std::path::PathBuf> {
    if path.exists() {
        std::fs::remove_dir_all(path)?;
    }
    std::fs::create_dir_all(path)?;
    Ok(path.to_path_buf())
}
