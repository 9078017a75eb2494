//! Licences, bans and sources of every dependency that is built, checked against `deny.toml`.
//!
//! The file is cargo-deny's own; only what is checked here is read from it. `cargo metadata` knows
//! licences and sources, but also names optional dependencies that no feature switches on; what is
//! built for the targets of the file, `cargo tree` knows.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::shell::{cargo, output, say};

#[derive(Deserialize)]
struct Rules {
    graph: Graph,
    licenses: Licenses,
    bans: Bans,
    sources: Sources,
}

#[derive(Deserialize)]
struct Graph {
    targets: Vec<String>,
}

#[derive(Deserialize)]
struct Licenses {
    allow: Vec<String>,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Ban>,
}

#[derive(Deserialize)]
struct Ban {
    name: String,
    reason: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Sources {
    allow_registry: Vec<String>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    /// `None` for the crates of this workspace.
    source: Option<String>,
}

/// Checks all of them and names every offence.
pub(crate) fn run(root: &Path) -> Result<()> {
    let rules = std::fs::read_to_string(root.join("deny.toml")).context("deny.toml")?;
    let rules: Rules = toml::from_str(&rules).context("deny.toml")?;
    let metadata = output(cargo().args(["metadata", "--format-version", "1", "--locked"]))?;
    let mut metadata: Metadata = serde_json::from_str(&metadata).context("cargo metadata")?;
    let built = built(&rules.graph.targets)?;
    metadata
        .packages
        .retain(|package| built.contains(&package.spelled()));
    if metadata.packages.len() != built.len() {
        bail!(
            "cargo tree shows {} packages, and cargo metadata describes {} of them",
            built.len(),
            metadata.packages.len()
        );
    }
    let offences = offences(&rules, &metadata.packages);
    if !offences.is_empty() {
        bail!(
            "dependencies against deny.toml:\n  {}",
            offences.join("\n  ")
        );
    }
    say(&format!(
        "deny: {} packages, licences, bans and sources in order",
        metadata.packages.len()
    ));
    Ok(())
}

/// What is built for these targets, tests, benches and build scripts too: `name v1.2.3` each.
fn built(targets: &[String]) -> Result<BTreeSet<String>> {
    if targets.is_empty() {
        bail!("deny.toml names no targets");
    }
    let mut built = BTreeSet::new();
    for target in targets {
        let tree = output(cargo().args([
            "tree",
            "--workspace",
            "--locked",
            "--edges=normal,build,dev",
            "--prefix=none",
            "--format={p}",
            "--target",
            target,
        ]))?;
        built.extend(tree.lines().filter_map(package_of));
    }
    Ok(built)
}

/// From a line as `name v1.2.3 (proc-macro) (*)`; what follows the version says where it comes from
/// and that it was shown before.
fn package_of(line: &str) -> Option<String> {
    let mut words = line.split(' ');
    let (name, version) = (words.next()?, words.next()?);
    Some(format!("{name} {version}"))
}

impl Package {
    /// As `cargo tree` spells it.
    fn spelled(&self) -> String {
        format!("{} v{}", self.name, self.version)
    }
}

fn offences(rules: &Rules, packages: &[Package]) -> Vec<String> {
    let mut found = Vec::new();
    for package in packages {
        let mut offence = |what: String| {
            found.push(format!("{} {}: {what}", package.name, package.version));
        };
        if let Some(ban) = rules.bans.deny.iter().find(|ban| ban.name == package.name) {
            offence(format!("banned: {}", ban.reason));
        }
        let Some(source) = &package.source else {
            continue;
        };
        let known = |registry: &String| source.strip_prefix("registry+") == Some(registry);
        if !rules.sources.allow_registry.iter().any(known) {
            offence("from a source that is not allowed".to_owned());
        }
        if !is_allowed(package.license.as_deref(), &rules.licenses.allow) {
            offence(format!("licence {:?} is not allowed", package.license));
        }
    }
    found
}

fn is_allowed(license: Option<&str>, allowed: &[String]) -> bool {
    let Some(license) = license else { return false };
    // `A/B` is the old way to write `A OR B`.
    spdx::Expression::parse_mode(license, spdx::ParseMode::LAX).is_ok_and(|expression| {
        expression.evaluate(|requirement| {
            requirement
                .license
                .id()
                .is_some_and(|id| allowed.iter().any(|name| name == id.name))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dependency_is_in_order() {
        run(&crate::shell::root()).unwrap();
    }

    #[test]
    fn an_offence_of_each_kind_is_found() {
        let rules: Rules = toml::from_str(
            "[graph]\ntargets = []\n[licenses]\nallow = ['MIT']\n[bans]\ndeny = [{ name = 'bad', reason = 'r' }]\n\
             [sources]\nallow-registry = ['https://good']",
        )
        .unwrap();
        let package = |name: &str, license: Option<&str>, source: &str| Package {
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            license: license.map(str::to_owned),
            source: Some(source.to_owned()),
        };
        let check = |package: Package, expected: usize| {
            assert_eq!(offences(&rules, &[package]).len(), expected);
        };
        check(
            package("fine", Some("MIT/Apache-2.0"), "registry+https://good"),
            0,
        );
        check(
            package(
                "fine",
                Some("(MIT OR GPL-3.0) AND MIT"),
                "registry+https://good",
            ),
            0,
        );
        check(package("bad", Some("MIT"), "registry+https://good"), 1);
        check(
            package("copyleft", Some("GPL-3.0"), "registry+https://good"),
            1,
        );
        check(package("unlicensed", None, "registry+https://good"), 1);
        check(package("elsewhere", Some("MIT"), "git+https://good"), 1);
    }

    #[test]
    fn what_no_feature_switches_on_is_not_built() {
        let target = ["x86_64-unknown-linux-gnu".to_owned()];
        let built = built(&target).unwrap();
        let names = |name: &str| {
            let of = |package: &&String| package.split(' ').next() == Some(name);
            built.iter().filter(of).count()
        };
        // rustls takes either, and the lock file has both.
        assert_eq!((names("ring"), names("aws-lc-rs")), (0, 1));
        // Built for tests only, for build scripts only, and here.
        assert!(names("proptest") > 0 && names("cc") > 0 && names("flumen") == 1);
        // For other systems.
        assert_eq!(names("windows-sys"), 0);
        assert!(super::built(&[]).is_err());
    }

    #[test]
    fn a_line_of_the_tree_names_a_package() {
        let check = |line: &str, expected: Option<&str>| {
            assert_eq!(package_of(line).as_deref(), expected, "{line}");
        };
        check("a-b v1.2.3", Some("a-b v1.2.3"));
        check("a v1.2.3+x (proc-macro) (*)", Some("a v1.2.3+x"));
        check("a v0.1.0 (/somewhere/else)", Some("a v0.1.0"));
        check("", None);
    }
}
