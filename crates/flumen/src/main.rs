//! The `flumen` binary.

fn main() -> std::process::ExitCode {
    flumen::run(std::env::args_os())
}
