//! Everything a change must pass, in the order that fails soonest.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::shell::{cargo, is_installed, root, run, say};
use crate::{deny, tidy, tools};

/// Programs the tests start, and the Debian package each comes in. Power cuts are made on a small
/// ext4 file system of the test's own.
const PROGRAMS: &[(&str, &str)] = &[
    ("mkfs.ext4", "e2fsprogs"),
    ("losetup", "mount"),
    ("mount", "mount"),
    ("perl", "perl-base"),
    // What the sink writes is read with these.
    ("jq", "jq"),
    ("zstd", "zstd"),
    ("gzip", "gzip"),
    // For moto, pyarrow, duckdb.
    ("python3", "python3"),
];

/// Runs the gate.
pub(crate) fn run_all() -> Result<()> {
    install_missing()?;
    step("formatting", || {
        run(cargo().args(["fmt", "--all", "--check"]))
    })?;
    step("tidy", || tidy::run(&root()))?;
    step("supply chain", || deny::run(&root()))?;
    step("clippy", || {
        run(cargo().args([
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "-D",
            "warnings",
        ]))
    })?;
    step("tests", || {
        run(cargo()
            .args(["test", "--workspace", "--locked"])
            .envs(test_environment()))
    })?;
    say("\nthe gate is passed");
    Ok(())
}

fn step(name: &str, check: impl FnOnce() -> Result<()>) -> Result<()> {
    #[expect(
        clippy::disallowed_methods,
        reason = "tells the person who waits how long it took"
    )]
    let begun = Instant::now();
    say(&format!("\n== {name}"));
    check().with_context(|| format!("the gate fails at: {name}"))?;
    say(&format!(
        "== {name}: passed in {} s",
        begun.elapsed().as_secs()
    ));
    Ok(())
}

/// With `CI=true` installs what is missing; otherwise names it in one line.
fn install_missing() -> Result<()> {
    let mut packages: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(program, _)| !is_installed(program))
        .map(|(_, package)| *package)
        .collect();
    packages.dedup();
    let ci = std::env::var_os("CI").is_some_and(|ci| ci == "true");
    if ci && tools::lacks_venv() {
        packages.push("python3-venv");
    }
    if !packages.is_empty() {
        install_packages(&packages, ci)?;
    }
    tools::install_missing(ci)
}

fn install_packages(packages: &[&str], ci: bool) -> Result<()> {
    let install = format!("apt-get install -y {}", packages.join(" "));
    if !ci {
        bail!("missing programs; install them with: {install}");
    }
    run(Command::new("apt-get").args(["update", "-q"]))?;
    run(Command::new("apt-get")
        .args(["install", "-y", "-q", "--no-install-recommends"])
        .args(packages))
}

/// Where tests find what was installed for them.
fn test_environment() -> Vec<(&'static str, PathBuf)> {
    let mut environment = vec![("FLUMEN_TEST_TOOLS", tools::folder())];
    if tools::python().is_file() {
        environment.push(("FLUMEN_TEST_PYTHON", tools::python()));
    }
    environment
}
