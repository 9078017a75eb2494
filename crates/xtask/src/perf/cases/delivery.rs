//! Delivery streams: one core's throughput beside its parts alone, and what idle ones cost.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::footprint::alone;
use crate::perf::peers::fresh;
use crate::perf::server::number;
use crate::perf::{Bench, Row, Side, Target};
use crate::shell::{output, root, run};

const ROWS_BYTES: u64 = 512 << 20;
/// Buffering sizes: of Parquet the least that Firehose takes for it.
const LINES_BYTES: u64 = 16 << 20;
const COLUMNS_BYTES: u64 = 64 << 20;

pub(super) fn throughput(bench: &Bench) -> Result<Vec<Row>> {
    let data = unpacked(bench)?;
    let mut rows = Vec::new();
    for (id, format, size, what) in [
        (
            "delivery-ndjson",
            "ndjson-gzip",
            LINES_BYTES,
            "JSON lines, gzip",
        ),
        (
            "delivery-parquet",
            "parquet-zstd",
            COLUMNS_BYTES,
            "Parquet, inferred columns, zstd",
        ),
    ] {
        let dir = fresh(&bench.dir.join("delivery"))?;
        let rounds = bench.effort.runs;
        let words = format!(
            "throughput --format {format} --size {size} --bytes {ROWS_BYTES} --rounds {rounds}"
        );
        let report = output(
            Command::new(&bench.delivery)
                .args(words.split_whitespace())
                .arg("--data")
                .arg(&data)
                .arg("--dir")
                .arg(&dir),
        )?;
        std::fs::remove_dir_all(&dir).ok();
        let report: Value = serde_json::from_str(report.trim())?;
        let figures = |key: &str| -> Result<Vec<f64>> {
            let figures = report.get(key).and_then(Value::as_array);
            let figures = figures.with_context(|| format!("no {key} in {report}"))?;
            Ok(figures.iter().filter_map(Value::as_f64).collect())
        };
        let command = format!("delivery {words}");
        rows.push(Row {
            id,
            what: format!("a backlog of real readings into a local directory on one core: {what}"),
            unit: "B/s",
            ours: Side {
                name: "Flumen",
                command: command.clone(),
                figures: figures("sink_bytes_per_s")?,
            },
            theirs: Some(Side {
                name: "the slower of encoder alone and store alone",
                command,
                figures: figures("slower_bytes_per_s")?,
            }),
            target: Target::Ratio(0.8),
            notes: vec![format!(
                "encoder alone {} B/s, store alone {} B/s",
                number(&report, "encoder_bytes_per_s")?,
                number(&report, "store_bytes_per_s")?
            )],
        });
    }
    Ok(rows)
}

pub(super) fn idle(bench: &Bench) -> Result<Vec<Row>> {
    let words = format!("idle --streams 100 --seconds {}", 2 * bench.effort.seconds);
    let mut percent = Vec::new();
    for _ in 0..bench.effort.runs {
        let dir = fresh(&bench.dir.join("delivery"))?;
        let report = output(
            Command::new(&bench.delivery)
                .args(words.split_whitespace())
                .arg("--dir")
                .arg(&dir),
        )?;
        std::fs::remove_dir_all(&dir).ok();
        let report: Value = serde_json::from_str(report.trim())?;
        percent.push(number(&report, "cpu_percent")? / 100.0);
    }
    Ok(vec![alone(
        "delivery-idle",
        "100 delivery streams with nothing to do, broker included: CPU",
        "cores",
        &format!("delivery {words}"),
        percent,
        0.01,
    )])
}

/// The readings that ship with the binary, as files.
fn unpacked(bench: &Bench) -> Result<PathBuf> {
    let data = fresh(&bench.dir.join("telemetry"))?;
    std::fs::create_dir_all(&data)?;
    run(Command::new("tar")
        .args(["--zstd", "-xf"])
        .arg(root().join("crates/flumen/data/telemetry.tar.zst"))
        .arg("-C")
        .arg(&data))?;
    Ok(data)
}
