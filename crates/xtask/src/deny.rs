//! Licences, bans and sources of every dependency, checked from `cargo metadata` against `deny.toml`.
//!
//! The file is cargo-deny's own; only what is checked here is read from it.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::shell::{cargo, output, say};

#[derive(Deserialize)]
struct Rules {
    licenses: Licenses,
    bans: Bans,
    sources: Sources,
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
    let metadata: Metadata = serde_json::from_str(&metadata).context("cargo metadata")?;
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
            "[licenses]\nallow = ['MIT']\n[bans]\ndeny = [{ name = 'bad', reason = 'r' }]\n\
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
}
