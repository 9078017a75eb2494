//! Looking at a data directory from outside, while no broker runs on it.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use flumen_broker::Clock;
use flumen_log::{
    DiskStorage, LogConfig, LogKey, MemoryStorage, OpenError, Preparation, Quarantined, Storage,
    Voucher,
};
use flumen_record::Timestamp;
use flumen_stream::{Catalog, CatalogError, StreamConfig};

/// Bytes copied at a time.
const PIECE_BYTES: u64 = 1 << 20;

/// What was found in a data directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Inspection {
    /// Logs, the catalog's among them.
    pub(crate) logs: u64,
    pub(crate) segments: u64,
    pub(crate) rounds: u64,
    /// Records of streams.
    pub(crate) records: u64,
    /// Bytes of segment files.
    pub(crate) bytes: u64,
    /// Rounds that the next start writes again: the broker was killed. No damage.
    pub(crate) tail_rounds: u64,
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
    let storage: Arc<dyn Storage> = Arc::new(storage);
    let mut found = Inspection::default();
    let (mut named, mut reaches) = (0, BTreeMap::new());
    for key in flumen_log::list_logs(&*storage).context("the logs cannot be listed")? {
        match flumen_log::inspect(Arc::clone(&storage), key, LogConfig::default()) {
            Ok(log) => {
                found.logs += 1;
                found.segments += log.segments;
                found.rounds += log.rounds;
                found.bytes += log.file_bytes;
                found.tail_rounds += log.tail_rounds;
                if key.holds_records() {
                    found.records += log.records;
                }
                if key != LogKey::CATALOG {
                    named = named.max(log.catalog_named);
                }
                reaches.insert(key, log.reaches);
                let lines = log.damage.iter().map(|damage| line(key, damage));
                found.findings.extend(lines);
            }
            Err(error) => {
                found.refused(&error)?;
                // It is there, and its own finding is said: not that it is less than it was.
                let whole = Voucher {
                    epoch: u32::MAX,
                    round: u64::MAX,
                };
                reaches.insert(key, Some(whole));
            }
        }
    }
    found.catalog(&*storage, named, &reaches)?;
    Ok(found)
}

impl Inspection {
    /// A log that does not open is a finding, a disk that does not answer the end of looking.
    fn refused(&mut self, error: &OpenError) -> Result<()> {
        if let OpenError::Io { .. } = error {
            anyhow::bail!("{error}");
        }
        self.findings.push(error.to_string());
        Ok(())
    }

    /// Whether the catalog's records add up, and reach as far as the logs say; and whether the logs
    /// reach as far as the catalog says.
    fn catalog(
        &mut self,
        storage: &dyn Storage,
        named: u64,
        reaches: &BTreeMap<LogKey, Option<Voucher>>,
    ) -> Result<()> {
        let copy =
            copy_of(storage, &LogKey::CATALOG.dir_name()).context("the catalog cannot be read")?;
        let opened = Catalog::open(copy, StreamConfig::default(), now());
        let checked = opened.and_then(|(catalog, _)| {
            let short = catalog.shortfalls(reaches);
            self.findings.extend(short.iter().map(ToString::to_string));
            catalog.check_named(named)
        });
        match checked {
            Ok(()) => {}
            // Said already, of the log itself.
            Err(CatalogError::Open(_)) => {}
            Err(error @ CatalogError::Behind { .. }) => self.findings.push(format!(
                "{error}; put back a copy of the folder `catalog` that is as new as the logs: \
                 without it nobody knows which streams their records belong to"
            )),
            Err(error) => self.findings.push(error.to_string()),
        }
        Ok(())
    }
}

/// Opening a log writes to it, so the catalog is opened on a copy in memory: it is small.
fn copy_of(storage: &dyn Storage, dir: &str) -> io::Result<Arc<dyn Storage>> {
    let copy: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    copy.create_dir(dir)?;
    let files = match storage.list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(copy),
        files => files?,
    };
    for entry in files {
        let path = format!("{dir}/{}", entry.name);
        let from = storage.open(&path, false)?;
        let to = copy.create(&path, from.bytes(), Preparation::Written)?;
        let mut position = 0;
        while position < from.bytes() {
            let length = PIECE_BYTES.min(from.bytes() - position);
            let mut piece = vec![0; usize::try_from(length).map_err(io::Error::other)?];
            from.read_at(&mut piece, position)?;
            to.write_at(&[IoSlice::new(&piece)], position)?;
            position += length;
        }
        to.sync()?;
    }
    copy.sync_dir(dir)?;
    Ok(copy)
}

fn now() -> Timestamp {
    Clock::system().now()
}

fn line(key: LogKey, damage: &Quarantined) -> String {
    let mut line = format!("{}/{}: {}", key.dir_name(), damage.segment, damage.reason);
    for (shard, from, to) in &damage.shards {
        line.push_str(&format!("; shard {shard}: {from} to {to} are lost"));
    }
    line
}
