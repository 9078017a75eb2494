//! Turns `proto/` into the checked-in Rust of `flumen-api`, without `protoc`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use prost::Message as _;

/// Where the generated files are checked in.
const GENERATED: &str = "crates/api/src/generated";
/// The file descriptor set, for reflection and for tests that walk all RPCs.
const DESCRIPTORS: &str = "descriptors.bin";

/// Writes the generated code into the checkout at `root`.
pub(crate) fn run(root: &Path) -> Result<()> {
    generate(&root.join("proto"), &root.join(GENERATED))
}

/// Generates code and descriptors for all protos below `protos` into `target`.
fn generate(protos: &Path, target: &Path) -> Result<()> {
    fs::create_dir_all(target).with_context(|| format!("cannot create {}", target.display()))?;
    let mut files = Vec::new();
    find(protos, &mut files)?;
    // The descriptor set lists files in the order of this list.
    files.sort();
    ensure!(!files.is_empty(), "no .proto below {}", protos.display());
    let set = protox::compile(&files, [protos]).context("the protos do not compile")?;

    tonic_prost_build::configure()
        .bytes(".")
        .boxed(".flumen.v1.AppendAck.refusal")
        .boxed(".flumen.v1.PutResult.refusal")
        .codec_path("crate::codec::ProstCodec")
        .out_dir(target)
        .compile_fds(set.clone())
        .context("prost does not like the protos")?;

    let mut lean = set;
    for file in &mut lean.file {
        file.source_code_info = None;
    }
    fs::write(target.join(DESCRIPTORS), lean.encode_to_vec()).context("cannot write descriptors")
}

fn find(directory: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            find(&path, into)?;
        } else if path
            .extension()
            .is_some_and(|extension| extension == "proto")
        {
            into.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shell::root;

    #[test]
    fn checked_in_code_is_what_the_protos_give() {
        let fresh = tempfile::tempdir().unwrap();
        generate(&root().join("proto"), fresh.path()).unwrap();
        let mut names: Vec<_> = fs::read_dir(fresh.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, [DESCRIPTORS, "flumen.v1.rs"]);
        for name in names {
            let checked_in = fs::read(root().join(GENERATED).join(&name)).unwrap_or_default();
            let generated = fs::read(fresh.path().join(&name)).unwrap();
            assert!(
                checked_in == generated,
                "{GENERATED}/{} is stale: run `cargo xtask codegen`",
                name.display()
            );
        }
    }
}
