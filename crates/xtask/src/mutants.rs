//! Proof that the simulator can find: each patch under `crates/sim/mutations` takes one mend out of
//! the node, and some life has to notice.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::shell::{output, run, say};

/// Lives that one mutation is looked for in.
const SEEDS: u64 = 2_000;
/// And for how long.
const TIME_MAX: Duration = Duration::from_secs(15 * 60);

/// What is asked for.
struct Plan {
    seeds: u64,
    days: u64,
    /// Only those whose name has this in it.
    only: Option<String>,
}

/// Applies each mutation in a work tree of its own, and lives until it is noticed.
pub(crate) fn run_all(root: &Path, words: &[&str]) -> Result<()> {
    let plan = plan(words)?;
    let mutations = mutations(&root.join("crates/sim/mutations"), plan.only.as_deref())?;
    let tree = root.join("target/mutants/tree");
    let build = root.join("target/mutants/build");
    leave(root, &tree);
    run(git(root)
        .args(["worktree", "add", "--force", "--detach"])
        .arg(&tree))?;
    let mut unnoticed = Vec::new();
    for mutation in &mutations {
        let name = mutation.file_stem().unwrap_or_default().to_string_lossy();
        let noticed =
            look_for(&tree, &build, mutation, &plan).with_context(|| format!("mutation {name}"))?;
        match noticed {
            Some((seed, what)) => say(&format!("{name}: noticed in life {seed}: {what}")),
            None => {
                say(&format!("{name}: NOT noticed"));
                unnoticed.push(name.into_owned());
            }
        }
    }
    leave(root, &tree);
    if !unnoticed.is_empty() {
        bail!("not noticed: {}", unnoticed.join(", "));
    }
    say(&format!("all {} mutations are noticed", mutations.len()));
    Ok(())
}

fn plan(words: &[&str]) -> Result<Plan> {
    let mut plan = Plan {
        seeds: SEEDS,
        days: 90,
        only: None,
    };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let value = words
            .next()
            .with_context(|| format!("{word} takes a value"))?;
        match *word {
            "--seeds" => plan.seeds = value.parse()?,
            "--days" => plan.days = value.parse()?,
            "--only" => plan.only = Some((*value).to_owned()),
            other => bail!("unknown: {other}; there are --seeds, --days and --only"),
        }
    }
    Ok(plan)
}

fn mutations(folder: &Path, only: Option<&str>) -> Result<Vec<PathBuf>> {
    let listing = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut found = Vec::new();
    for item in listing {
        let path = item?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let is_patch = path.extension().is_some_and(|ending| ending == "patch");
        if is_patch && only.is_none_or(|only| name.contains(only)) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn git(root: &Path) -> Command {
    let mut command = Command::new("git");
    command.current_dir(root);
    command
}

/// Takes the work tree away again; there may be none.
fn leave(root: &Path, tree: &Path) {
    let mut remove = git(root);
    remove.args(["worktree", "remove", "--force"]).arg(tree);
    let _ = remove.stdout(Stdio::null()).stderr(Stdio::null()).status();
}

/// The seed and the promise, when one was broken.
#[expect(clippy::disallowed_methods, reason = "a bound on real time")]
fn look_for(
    tree: &Path,
    build: &Path,
    mutation: &Path,
    plan: &Plan,
) -> Result<Option<(String, String)>> {
    output(git(tree).args(["reset", "--quiet", "--hard"]))?;
    output(git(tree).args(["apply", "--recount", "-C1"]).arg(mutation))?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(tree).env("CARGO_TARGET_DIR", build);
    cargo.args([
        "build",
        "--release",
        "--locked",
        "--quiet",
        "-p",
        "flumen-sim",
        "--bin",
        "node",
    ]);
    run(&mut cargo)?;
    let began = Instant::now();
    let program = build.join("release/node");
    let mut seed = 0;
    while seed < plan.seeds && began.elapsed() < TIME_MAX {
        let lived = Command::new(&program)
            .args([seed.to_string(), "20".to_owned()])
            .args(["--days".to_owned(), plan.days.to_string()])
            .output()
            .context("the simulator does not start")?;
        if !lived.status.success() {
            let text = String::from_utf8_lossy(&lived.stdout);
            let last = text.lines().last().unwrap_or("it ended without a word");
            let (at, what) = last.split_once(':').unwrap_or((last, ""));
            return Ok(Some((at.to_owned(), what.trim().to_owned())));
        }
        seed += 20;
    }
    Ok(None)
}
