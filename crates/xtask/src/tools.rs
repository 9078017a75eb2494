//! What the sink's tests run against: object stores and Python packages, pinned, in `target/tools`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell::{cargo, is_installed, root, run, say};

/// A server that checks signatures, keeps files, and whose conditional puts are atomic.
const VERSITYGW: &str = "github.com/versity/versitygw/cmd/versitygw@v1.8.0";
/// A server whose conditional puts are not atomic.
const S3S_FS: &str = "0.14.1";
/// A server that answers as AWS does, what reads back what is written, and clients.
const PYTHON: &[&str] = &[
    "moto[server,s3]==5.2.5",
    "boto3==1.44.8",
    "pyarrow==26.0.1",
    "duckdb==2.0.1",
    "cramjam==2.14.0",
];

/// One thing to install.
struct Tool {
    name: &'static str,
    /// What it is installed as; another pin installs it again.
    pin: String,
    /// The file that shows that it is there.
    file: PathBuf,
    install: fn(&Path) -> Result<()>,
}

/// `target/tools`.
pub(crate) fn folder() -> PathBuf {
    root().join("target").join("tools")
}

/// The Python that tests start.
pub(crate) fn python() -> PathBuf {
    folder().join("venv/bin/python")
}

/// Whether Python can make environments of its own: Debian packs that apart.
pub(crate) fn lacks_venv() -> bool {
    let check = Command::new("python3")
        .args(["-c", "import ensurepip, venv"])
        .output();
    !check.is_ok_and(|check| check.status.success())
}

/// Installs what is missing. Or else names it in one line: the tests that need it
/// say that they are skipped.
pub(crate) fn install_missing(install: bool) -> Result<()> {
    let folder = folder();
    let missing: Vec<Tool> = tools(&folder)
        .into_iter()
        .filter(|tool| !is_there(&folder, tool))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|tool| tool.name).collect();
    if !install {
        say(&format!(
            "tests of the sink are skipped without {}; `cargo xtask tools` installs them into {}",
            names.join(", "),
            folder.display()
        ));
        return Ok(());
    }
    std::fs::create_dir_all(folder.join("bin"))
        .with_context(|| format!("cannot make {}", folder.display()))?;
    for tool in missing {
        (tool.install)(&folder).with_context(|| format!("cannot install {}", tool.name))?;
        if !tool.file.is_file() {
            bail!(
                "{} is installed, but {} is not there",
                tool.name,
                tool.file.display()
            );
        }
        std::fs::write(stamp(&folder, &tool), &tool.pin)
            .context("cannot note what is installed")?;
    }
    Ok(())
}

fn tools(folder: &Path) -> [Tool; 3] {
    [
        Tool {
            name: "moto, pyarrow and duckdb",
            pin: PYTHON.join(" "),
            file: folder.join("venv/bin/moto_server"),
            install: python_packages,
        },
        Tool {
            name: "versitygw",
            pin: VERSITYGW.to_owned(),
            file: folder.join("bin/versitygw"),
            install: versitygw,
        },
        Tool {
            name: "s3s-fs",
            pin: S3S_FS.to_owned(),
            file: folder.join("bin/s3s-fs"),
            install: s3s_fs,
        },
    ]
}

fn is_there(folder: &Path, tool: &Tool) -> bool {
    let pinned = std::fs::read_to_string(stamp(folder, tool)).ok();
    tool.file.is_file() && pinned.as_deref() == Some(tool.pin.as_str())
}

fn stamp(folder: &Path, tool: &Tool) -> PathBuf {
    let mut name = tool.file.file_name().unwrap_or_default().to_owned();
    name.push(".pin");
    folder.join(name)
}

fn python_packages(folder: &Path) -> Result<()> {
    let venv = folder.join("venv");
    run(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    run(Command::new(venv.join("bin/python"))
        .args(["-m", "pip", "install", "--quiet"])
        .args(["--disable-pip-version-check", "--no-input"])
        .args(PYTHON))
}

fn versitygw(folder: &Path) -> Result<()> {
    if !is_installed("go") {
        bail!("there is no `go`; install Go 1.24 or later");
    }
    run(Command::new("go")
        .args(["install", VERSITYGW])
        .env("GOBIN", folder.join("bin")))
}

fn s3s_fs(folder: &Path) -> Result<()> {
    let build = folder.join("build");
    run(cargo()
        .args(["install", "s3s-fs", "--version", S3S_FS])
        .args(["--features", "binary", "--locked", "--force", "--root"])
        .arg(folder)
        .env("CARGO_TARGET_DIR", &build))?;
    // Hundreds of megabytes that nobody needs again; left behind, they do no harm.
    let _ = std::fs::remove_dir_all(build);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_pin_is_installed_again() {
        let folder = std::env::temp_dir().join(format!("flumen-tools-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("bin")).unwrap();
        let [_, tool, _] = tools(&folder);
        let check = |expected: bool| assert_eq!(is_there(&folder, &tool), expected);
        check(false);
        std::fs::write(stamp(&folder, &tool), &tool.pin).unwrap();
        check(false);
        std::fs::write(&tool.file, "program").unwrap();
        check(true);
        std::fs::write(stamp(&folder, &tool), "another").unwrap();
        check(false);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
