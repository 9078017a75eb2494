//! `cargo run --release -p flumen-sim --bin node -- FROM [COUNT] [--days 90] [--without
//! rot,wall] [--trace]`: lives whole nodes, and stops at the first life in which a promise is broken.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;

use flumen_sim::{KINDS, LifeOptions, live};

fn main() -> ExitCode {
    let mut options = LifeOptions::default();
    let mut numbers = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--days" => {
                let days = arguments.next().and_then(|days| days.parse().ok());
                options.days = days.unwrap_or(options.days);
            }
            "--without" => {
                let kinds = arguments.next().unwrap_or_default();
                for kind in kinds.split(',') {
                    let at = KINDS.iter().position(|it| *it == kind);
                    options.without |= at.map_or(0, |at| 1 << at);
                }
            }
            "--trace" => options.tell_trace = true,
            number => numbers.extend(number.parse::<u64>().ok()),
        }
    }
    let first = numbers.first().copied().unwrap_or(0);
    let count = numbers.get(1).copied().unwrap_or(1);
    let mut out = std::io::stdout();
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    let (mut steps, mut starts) = (0, 0);
    for (lived, seed) in (first..first.saturating_add(count)).enumerate() {
        match live(seed, options) {
            Ok(report) => {
                steps += report.steps;
                starts += report.starts;
                for (what, times) in &report.counts {
                    *sums.entry(what).or_default() += times;
                }
                let mut told = Ok(());
                if options.tell_trace {
                    let fingerprint = report.fingerprint;
                    told = told.and_then(|()| writeln!(out, "fingerprint {fingerprint:016x}"));
                }
                if (lived + 1).is_multiple_of(100) {
                    let lives = lived + 1;
                    told = told.and_then(|()| writeln!(out, "{lives} lives, {steps} steps"));
                }
                if told.is_err() {
                    return ExitCode::FAILURE;
                }
            }
            Err(failure) => {
                let _ = writeln!(out, "{failure}");
                return ExitCode::FAILURE;
            }
        }
    }
    let days = options.days;
    let _ = writeln!(
        out,
        "all {count} lives of {days} days passed: {steps} steps, {starts} starts, {sums:?}"
    );
    ExitCode::SUCCESS
}
