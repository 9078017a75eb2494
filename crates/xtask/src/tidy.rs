//! What a reader can rely on about the shape of the tree: crate edges, file sizes, names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::shell::{cargo, output, say};

/// Which crates each crate may import (`design.md` section 1). A crate that is not listed has no
/// place in the house yet.
const EDGES: &[(&str, &[&str])] = &[
    ("record", &[]),
    ("world", &["record"]),
    ("log", &["record", "world"]),
    ("stream", &["record", "log"]),
    ("broker", &["record", "world", "log", "stream"]),
    ("api", &["record"]),
    ("grpc", &["record", "api", "broker"]),
    ("kinesis", &["record", "broker"]),
    ("sink", &["record", "world", "broker"]),
    ("console", &["record", "broker"]),
    ("client", &["record", "api"]),
    (
        "flumen",
        &[
            "record", "world", "log", "stream", "broker", "api", "grpc", "kinesis", "sink",
            "console", "client",
        ],
    ),
    (
        "sim",
        &["record", "world", "log", "stream", "broker", "sink"],
    ),
    ("xtask", &[]),
    (
        "benches",
        &[
            "record", "world", "log", "stream", "broker", "api", "grpc", "client", "sink",
        ],
    ),
];

/// Crates that alone may know these third parties.
const FENCES: &[(&str, &[&str])] = &[
    ("memmap2", &["log"]),
    ("prost", &["api", "grpc", "client", "sink", "xtask"]),
    ("tonic", &["api", "grpc", "client", "flumen", "benches"]),
    ("axum", &["console", "kinesis"]),
    ("anyhow", &["flumen", "xtask", "sim", "benches"]),
];

/// Lines of a file above its tests.
const LINES_MAX: usize = 500;
/// Files that may be longer, each with its reason.
const LONGER: &[(&str, &str)] = &[
    (
        "crates/client/src/group/driver.rs",
        "grew with what a long life needs; to be split",
    ),
    (
        "crates/log/src/log.rs",
        "grew with what a long life needs; to be split",
    ),
    (
        "crates/sim/src/life.rs",
        "grew with what a long life needs; to be split",
    ),
    (
        "crates/sim/src/life/operations.rs",
        "grew with what a long life needs; to be split",
    ),
    (
        "crates/sim/src/life/producer.rs",
        "grew with what a long life needs; to be split",
    ),
];
/// Module names that say nothing.
const NAMELESS: &[&str] = &[
    "util", "utils", "helper", "helpers", "common", "misc", "manager", "handler", "handlers",
    "types",
];
/// What runs in a world (`flumen_world::World`), which alone starts, sleeps and draws.
const IN_A_WORLD: &[&str] = &["crates/stream/src/", "crates/broker/src/"];
/// Ways around the world: a simulator would not see them.
const BYPASSES: &[&str] = &[
    "tokio::spawn",
    "spawn_blocking",
    "tokio::time::",
    "thread::spawn",
    "thread::Builder",
    "thread::sleep",
    "thread::park",
    "Handle::current",
    "JoinSet",
    "Condvar",
    "rand::",
    "RandomState",
];
/// The one file that may say `unsafe`.
const FENCE: &str = "crates/log/src/mapped_file.rs";

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// `None` for a normal dependency.
    kind: Option<String>,
}

/// Whatever runs in a world and goes around it.
fn bypasses(path: &str, text: &str) -> Vec<String> {
    let within = IN_A_WORLD.iter().any(|folder| path.starts_with(folder));
    if !within || path.contains("/tests/") || path.ends_with("/tests.rs") {
        return Vec::new();
    }
    let mut found = Vec::new();
    let mut choosing = false;
    for line in text.lines() {
        if line.starts_with("#[cfg(test)]") {
            break;
        }
        if std::mem::replace(&mut choosing, line.trim_end().ends_with("select! {"))
            && line.trim() != "biased;"
        {
            found.push(format!(
                "{path}: `select!` without `biased;` draws by chance"
            ));
        }
        let code = line.split("//").next().unwrap_or_default();
        let around = BYPASSES.iter().find(|way| code.contains(**way));
        found.extend(around.map(|way| format!("{path}: `{way}` goes around the node's world")));
    }
    found
}

/// Checks the tree and names every offence.
pub(crate) fn run(root: &Path) -> Result<()> {
    let mut found = edges(root)?;
    let files = rust_files(root)?;
    for (path, text) in &files {
        found.extend(file(path, text));
        found.extend(bypasses(path, text));
    }
    found.extend(pages(root)?);
    if !found.is_empty() {
        bail!("not tidy:\n  {}", found.join("\n  "));
    }
    say(&format!(
        "tidy: {} Rust files and all crate edges in order",
        files.len()
    ));
    Ok(())
}

fn short(package: &str) -> &str {
    package.strip_prefix("flumen-").unwrap_or(package)
}

fn edges(root: &Path) -> Result<Vec<String>> {
    let metadata = output(cargo().current_dir(root).args([
        "metadata",
        "--format-version",
        "1",
        "--no-deps",
        "--locked",
    ]))?;
    let metadata: Metadata = serde_json::from_str(&metadata).context("cargo metadata")?;
    Ok(metadata.packages.iter().flat_map(forbidden).collect())
}

fn forbidden(package: &Package) -> Vec<String> {
    let legal: BTreeMap<_, _> = EDGES.iter().copied().collect();
    let from = short(&package.name);
    let Some(allowed) = legal.get(from) else {
        return vec![format!(
            "crate {} is not in tidy's table of edges",
            package.name
        )];
    };
    let mut found = Vec::new();
    // Tests may start the whole house.
    for dependency in package
        .dependencies
        .iter()
        .filter(|dependency| dependency.kind.is_none())
    {
        let to = dependency.name.as_str();
        let ours = to == "flumen" || to.starts_with("flumen-");
        if ours && !allowed.contains(&short(to)) {
            found.push(format!("{} must not import {to}", package.name));
        }
        let fence = FENCES.iter().find(|(crate_name, _)| *crate_name == to);
        if fence.is_some_and(|(_, inside)| !inside.contains(&from)) {
            found.push(format!("{} must not know {to}", package.name));
        }
    }
    found
}

fn file(path: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let generated = path.contains("/generated/");
    let stem = Path::new(path)
        .file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or_default();
    if NAMELESS.contains(&stem) {
        found.push(format!(
            "{path}: a module is named for what it is, `{stem}` says nothing"
        ));
    }
    if !generated && !text.starts_with("//!") {
        found.push(format!("{path}: begins without a `//!` line"));
    }
    let lines = text
        .lines()
        .take_while(|line| !line.starts_with("#[cfg(test)]"))
        .count();
    let test = path.contains("/tests/") || stem == "tests" || path.contains("/benches/benches/");
    let longer = LONGER.iter().any(|(listed, _)| *listed == path);
    if !generated && !test && !longer && lines > LINES_MAX {
        found.push(format!(
            "{path}: {lines} lines above its tests, the cap is {LINES_MAX}"
        ));
    }
    let says_unsafe = |line: &str| {
        let code = line.split("//").next().unwrap_or_default();
        code.contains("unsafe {") || code.contains("unsafe fn") || code.contains("unsafe impl")
    };
    if path != FENCE && path != "crates/xtask/src/tidy.rs" && text.lines().any(says_unsafe) {
        found.push(format!("{path}: `unsafe` belongs in {FENCE} alone"));
    }
    found
}

fn pages(root: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let architecture =
        std::fs::read_to_string(root.join("ARCHITECTURE.md")).context("ARCHITECTURE.md")?;
    for folder in std::fs::read_dir(root.join("crates")).context("crates/")? {
        let folder = folder?.file_name().to_string_lossy().into_owned();
        if !architecture.contains(&format!("`{folder}`")) {
            found.push(format!(
                "ARCHITECTURE.md does not name the crate `{folder}`"
            ));
        }
    }
    for (page, lines_max) in [("ARCHITECTURE.md", 150), ("CONTRIBUTING.md", 120)] {
        let text = std::fs::read_to_string(root.join(page)).context(page)?;
        let lines = text.lines().count();
        if lines > lines_max {
            found.push(format!("{page} has {lines} lines, the cap is {lines_max}"));
        }
    }
    Ok(found)
}

fn rust_files(root: &Path) -> Result<Vec<(String, String)>> {
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> = ["crates", "benches", "fuzz"]
        .iter()
        .map(|name| root.join(name))
        .collect();
    while let Some(folder) = folders.pop() {
        let Ok(listing) = std::fs::read_dir(&folder) else {
            continue;
        };
        for item in listing {
            let path = item?.path();
            if path.is_dir() {
                if path.file_name().is_some_and(|name| name != "target") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let text =
                    std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
                let path = path
                    .strip_prefix(root)
                    .unwrap_or(&path)
                    .to_string_lossy()
                    .into_owned();
                files.push((path, text));
            }
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_tidy() {
        run(&crate::shell::root()).unwrap();
    }

    #[test]
    fn an_offence_of_each_kind_is_found() {
        let check = |path: &str, text: &str, expected: usize| {
            assert_eq!(file(path, text).len(), expected, "{path}");
        };
        check("crates/log/src/index.rs", "//! Fine.\n", 0);
        check("crates/log/src/utils.rs", "//! Nameless.\n", 1);
        check("crates/log/src/index.rs", "fn main() {}\n", 1);
        check(
            "crates/log/src/index.rs",
            &format!("//! Long.\n{}", "//\n".repeat(500)),
            1,
        );
        check(
            "crates/log/src/index/tests.rs",
            &format!("//! Long.\n{}", "//\n".repeat(500)),
            0,
        );
        check(
            "crates/log/src/index.rs",
            "//! Sharp.\nfn f() { unsafe { g() } }\n",
            1,
        );
        check(FENCE, "//! Sharp.\nfn f() { unsafe { g() } }\n", 0);
    }

    #[test]
    fn a_way_around_the_world_is_found() {
        let check = |path: &str, text: &str, expected: usize| {
            assert_eq!(bypasses(path, text).len(), expected, "{text}");
        };
        let path = "crates/broker/src/lane.rs";
        check(path, "tokio::spawn(run());\n", 1);
        check(path, "// tokio::spawn is not used\n", 0);
        check(
            path,
            "#[cfg(test)]\nmod tests { tokio::spawn(run()); }\n",
            0,
        );
        check(path, "tokio::select! {\n    biased;\n", 0);
        check(path, "tokio::select! {\n    () = one => {}\n", 1);
        check("crates/world/src/threads.rs", "thread::park();\n", 0);
        check("crates/broker/src/error/tests.rs", "thread::park();\n", 0);
    }

    #[test]
    fn a_forbidden_edge_is_found() {
        let check = |name: &str, to: &str, expected: usize| {
            let package = Package {
                name: name.to_owned(),
                dependencies: vec![Dependency {
                    name: to.to_owned(),
                    kind: None,
                }],
            };
            assert_eq!(forbidden(&package).len(), expected, "{name} -> {to}");
        };
        check("flumen-log", "flumen-record", 0);
        check("flumen-log", "flumen-stream", 1);
        check("flumen-grpc", "flumen-console", 1);
        check("flumen-client", "flumen-broker", 1);
        check("flumen-stream", "memmap2", 1);
        check("flumen-unheard-of", "bytes", 1);
    }
}
