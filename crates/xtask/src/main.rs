//! Development only: `cargo xtask test|tidy|deny|codegen|perf|mutants`.
#![forbid(unsafe_code)]

mod codegen;
mod deny;
mod gate;
mod mutants;
mod perf;
mod shell;
mod tidy;
mod tools;

use std::process::ExitCode;

const USAGE: &str = "usage: cargo xtask COMMAND

  test      everything the gate checks; with CI=true it installs what is missing
  tools     installs what the sink's tests run against into target/tools
  tidy      crate edges, file sizes, names, documentation of the layout
  deny      licences, bans and sources of every dependency (deny.toml)
  codegen   writes crates/api/src/generated from proto/
  mutants   takes mends out of the node, one at a time, and expects the simulator to notice
            (--seeds N, --days D, --only NAME)
  perf      measures this machine, its peers and Flumen, and writes docs/performance.md
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["test"] => gate::run_all(),
        ["tools"] => tools::install_missing(true),
        ["tidy"] => tidy::run(&shell::root()),
        ["mutants", rest @ ..] => mutants::run_all(&shell::root(), rest),
        ["perf", rest @ ..] => perf::run(rest),
        ["deny"] => deny::run(&shell::root()),
        ["codegen"] => codegen::run(&shell::root()),
        _ => {
            shell::say(USAGE);
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            shell::say(&format!("xtask: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
