//! Measures Flumen beside its peers and the machine's own ceilings, and writes `docs/performance.md`.
//!
//! Every comparison runs A B A B on the same file system in the same minutes; medians are
//! reported, as ratios. `cargo xtask perf [--quick] [--keep-memory] [ID …]` runs all, or those named;
//! the page keeps what earlier runs in this target folder found of the others.

mod cases;
mod memory;
mod peers;
mod report;
mod server;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use report::Written;

use crate::shell::{cargo, is_installed, root, run as run_command, say};

/// One measured side of a comparison.
pub(crate) struct Side {
    /// Who.
    pub(crate) name: &'static str,
    /// What was run, for the reader.
    pub(crate) command: String,
    /// One figure per run.
    pub(crate) figures: Vec<f64>,
}

/// What a figure is held against.
pub(crate) enum Target {
    /// Ours over theirs, at least.
    Ratio(f64),
    /// Reported, not judged.
    Reported,
    /// Ours alone, at least.
    AtLeast(f64),
    /// Ours alone, at most.
    AtMost(f64),
}

/// One row of the report.
pub(crate) struct Row {
    pub(crate) id: &'static str,
    pub(crate) what: String,
    pub(crate) unit: &'static str,
    pub(crate) ours: Side,
    pub(crate) theirs: Option<Side>,
    pub(crate) target: Target,
    /// What else is worth knowing: latencies, CPU, disk reads.
    pub(crate) notes: Vec<String>,
}

/// How long and how often.
#[derive(Clone, Copy)]
pub(crate) struct Effort {
    pub(crate) runs: usize,
    pub(crate) seconds: u64,
    pub(crate) large_bytes: u64,
}

/// Where things are.
pub(crate) struct Bench {
    pub(crate) flumen: PathBuf,
    pub(crate) echo: PathBuf,
    /// The load of consumer groups.
    pub(crate) groups: PathBuf,
    /// Delivery streams and their parts.
    pub(crate) delivery: PathBuf,
    /// Everything that is written, on the file system under test.
    pub(crate) dir: PathBuf,
    pub(crate) effort: Effort,
}

/// Middle of the figures; the lower one of two.
pub(crate) fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
        .get(sorted.len().saturating_sub(1) / 2)
        .copied()
        .unwrap_or(f64::NAN)
}

/// Runs the comparisons and writes the report.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    let quick = arguments.contains(&"--quick");
    let only: Vec<&str> = arguments
        .iter()
        .filter(|word| !word.starts_with("--"))
        .copied()
        .collect();
    require(&["fio", "redis-server", "redis-benchmark", "iperf3", "zstd"])?;
    run_command(cargo().args([
        "build",
        "--release",
        "--locked",
        "-p",
        "flumen",
        "-p",
        "flumen-benches",
        "--bins",
    ]))?;
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let bench = Bench {
        flumen: target.join("release/flumen"),
        echo: target.join("release/rpc_echo"),
        groups: target.join("release/groups"),
        delivery: target.join("release/delivery"),
        dir: target.join("perf"),
        effort: if quick {
            Effort {
                runs: 1,
                seconds: 3,
                large_bytes: 1 << 30,
            }
        } else {
            Effort {
                runs: 3,
                seconds: 8,
                large_bytes: 5 << 30,
            }
        },
    };
    std::fs::create_dir_all(&bench.dir).context("the folder for benchmark data")?;
    let kept = if arguments.contains(&"--keep-memory") {
        Some(memory::Kept::all()?)
    } else {
        None
    };
    let setting = report::setting(quick, kept.is_some())?;
    let written = bench.dir.join("rows");
    std::fs::create_dir_all(&written)?;
    for (id, case) in cases::ALL {
        if !only.is_empty() && !only.contains(id) {
            continue;
        }
        say(&format!("\n== {id}"));
        let rows = case(&bench).with_context(|| (*id).to_owned())?;
        for row in &rows {
            say(&report::line(row));
        }
        let rows: Vec<Written> = rows
            .iter()
            .map(|row| Written::of(row, &setting))
            .collect::<Result<_>>()?;
        std::fs::write(written.join(id), serde_json::to_vec(&rows)?)?;
    }
    drop(kept);
    if quick {
        return Ok(());
    }
    write_page(&written)
}

/// Puts together what this run and earlier ones have found.
fn write_page(written: &Path) -> Result<()> {
    let mut rows: Vec<Written> = Vec::new();
    for (id, _) in cases::ALL {
        if let Ok(bytes) = std::fs::read(written.join(id)) {
            rows.extend(serde_json::from_slice::<Vec<Written>>(&bytes)?);
        }
    }
    let path = root().join("docs/performance.md");
    report::write(&path, &report::page(&rows)?)?;
    say(&format!("\nwritten: {}", path.display()));
    Ok(())
}

fn require(programs: &[&str]) -> Result<()> {
    let missing: Vec<_> = programs
        .iter()
        .filter(|program| !is_installed(program))
        .collect();
    if !missing.is_empty() {
        bail!(
            "missing {missing:?}; install them with: apt-get install -y fio redis-server redis-tools iperf3 zstd"
        );
    }
    Ok(())
}
