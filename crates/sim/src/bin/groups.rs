//! `cargo run --release -p flumen-sim --bin groups -- FIRST [COUNT]`: runs seeds, and stops at the
//! first that breaks a promise.

use std::io::Write;
use std::process::ExitCode;

use flumen_sim::run;

fn main() -> ExitCode {
    let numbers: Vec<u64> = std::env::args()
        .skip(1)
        .filter_map(|argument| argument.parse().ok())
        .collect();
    let first = numbers.first().copied().unwrap_or(0);
    let count = numbers.get(1).copied().unwrap_or(1);
    let mut out = std::io::stdout().lock();
    for seed in first..first.saturating_add(count) {
        let told = match run(seed, None) {
            Ok(report) if count == 1 => writeln!(out, "seed {seed}: {report:?}"),
            Ok(_) if (seed - first + 1).is_multiple_of(1_000) => {
                writeln!(out, "{} seeds passed", seed - first + 1)
            }
            Ok(_) => Ok(()),
            Err(violation) => {
                let _ = writeln!(out, "{violation}");
                return ExitCode::FAILURE;
            }
        };
        if told.is_err() {
            return ExitCode::FAILURE;
        }
    }
    let _ = writeln!(out, "all {count} seeds passed");
    ExitCode::SUCCESS
}
