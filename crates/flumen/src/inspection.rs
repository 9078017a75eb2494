//! Looking at a data directory from outside, while no broker runs on it.

mod finding;

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use flumen_broker::Clock;
use flumen_log::{
    DiskStorage, LogConfig, LogKey, MemoryStorage, OpenError, Preparation, ShardRecovery, Storage,
    Voucher,
};
use flumen_record::Timestamp;
use flumen_stream::delivery::{DeliveryConfig, DeliveryLog, DeliveryLogError};
use flumen_stream::group::{GroupConfig, GroupLog, GroupLogError};
use flumen_stream::{Catalog, CatalogError, ShardState, StreamConfig};

pub(crate) use finding::Finding;

/// Bytes copied at a time.
const PIECE_BYTES: u64 = 1 << 20;
/// As far as a shard jumps: no log loses so many records.
const JUMP: u64 = 1 << 32;

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
    /// By how many seconds the wall clock is ahead (behind: negative) of what this directory saw last,
    /// when the next start would not believe it. No damage.
    pub(crate) clock_doubt: Option<Seconds>,
    /// What is wrong.
    pub(crate) findings: Vec<Finding>,
}

/// How far each log gets, and what it knows of each shard.
#[derive(Debug, Default)]
pub(crate) struct Logs {
    /// The highest catalog record that a log names.
    pub(crate) named: u64,
    pub(crate) reaches: BTreeMap<LogKey, Option<Voucher>>,
    pub(crate) shards: BTreeMap<LogKey, Vec<ShardRecovery>>,
}

/// Opens a data directory to be looked at, if nobody else has it.
pub(crate) fn open_at_rest(data_dir: &Path) -> Result<Arc<dyn Storage>> {
    let storage = DiskStorage::open_read_only(data_dir)?;
    anyhow::ensure!(
        storage.holder().is_none(),
        "{} is in use ({}); doctor needs it at rest: end the broker first",
        data_dir.display(),
        storage.holder().unwrap_or("another process")
    );
    Ok(Arc::new(storage))
}

/// Reads and checks everything; changes nothing. Blocks.
pub(crate) fn inspect(data_dir: &Path) -> Result<Inspection> {
    let storage = open_at_rest(data_dir)?;
    let mut found = Inspection::default();
    let logs = found.logs(&storage)?;
    found.catalog(&*storage, &logs)?;
    found.groups(&*storage)?;
    found.deliveries(&*storage)?;
    found.clock_doubt = flumen_broker::clock_doubt(&*storage).map(Seconds::of);
    Ok(found)
}

/// Whole seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seconds(pub(crate) i64);

impl Seconds {
    #[expect(clippy::cast_possible_truncation, reason = "it saturates")]
    fn of(seconds: f64) -> Self {
        Self(seconds as i64)
    }
}

impl Inspection {
    /// Reads every log.
    pub(crate) fn logs(&mut self, storage: &Arc<dyn Storage>) -> Result<Logs> {
        let mut logs = Logs::default();
        for key in flumen_log::list_logs(&**storage).context("the logs cannot be listed")? {
            match flumen_log::inspect(Arc::clone(storage), key, LogConfig::default()) {
                Ok(log) => {
                    self.logs += 1;
                    self.segments += log.segments;
                    self.rounds += log.rounds;
                    self.bytes += log.file_bytes;
                    self.tail_rounds += log.tail_rounds;
                    if key.holds_records() {
                        self.records += log.records;
                    }
                    if key != LogKey::CATALOG {
                        logs.named = logs.named.max(log.catalog_named);
                    }
                    logs.reaches.insert(key, log.reaches);
                    logs.shards.insert(key, log.shards);
                    let damage = log.damage.iter();
                    self.findings
                        .extend(damage.map(|damage| Finding::of_damage(key, damage)));
                }
                // A disk that does not answer is the end of looking.
                Err(error @ OpenError::Io { .. }) => anyhow::bail!("{error}"),
                Err(error) => {
                    self.findings.push(Finding::of_refusal(key, &error));
                    // It is there, and its own finding is said: not that it is less than it was.
                    let whole = Voucher {
                        epoch: u32::MAX,
                        round: u64::MAX,
                    };
                    logs.reaches.insert(key, Some(whole));
                }
            }
        }
        Ok(logs)
    }

    /// Whether the catalog's records add up, and reach as far as the logs say; and whether the logs
    /// reach as far as the catalog says.
    fn catalog(&mut self, storage: &dyn Storage, logs: &Logs) -> Result<()> {
        let copy = copy_of(storage, LogKey::CATALOG)?;
        let opened = Catalog::open(copy, StreamConfig::default(), now());
        let checked = opened.and_then(|(catalog, _)| {
            let short = catalog.shortfalls(&logs.reaches);
            self.findings
                .extend(short.iter().map(Finding::of_shortfall));
            self.ends(&catalog, logs);
            catalog.check_named(logs.named)
        });
        match checked {
            // Said already, of the log itself.
            Ok(()) | Err(CatalogError::Open(_)) => {}
            Err(error) => self.findings.push(Finding::of_catalog(&error)),
        }
        Ok(())
    }

    /// Whether each log holds its shards up to where the catalog says that they go on elsewhere, or are
    /// closed.
    fn ends(&mut self, catalog: &Catalog, logs: &Logs) {
        for shard in catalog.streams().flat_map(|stream| &stream.shards) {
            let closed = match shard.state {
                ShardState::Closed { end, .. } => Some(end),
                ShardState::Open => None,
            };
            for stay in shard.stays.iter() {
                let end = stay.to().or(closed);
                let held = logs.shards.get(&stay.log());
                let held = held.and_then(|all| all.iter().find(|held| held.shard == shard.id));
                if let (Some(held), Some(end)) = (held, end)
                    && held.next < end
                    && end.value() - held.next.value() < JUMP
                {
                    self.findings.push(Finding::of_end(stay.log(), held, end));
                }
            }
        }
    }

    /// Whether what consumer groups have decided adds up.
    fn groups(&mut self, storage: &dyn Storage) -> Result<()> {
        let copy = copy_of(storage, LogKey::GROUPS)?;
        let opened = GroupLog::open(copy, GroupConfig::default(), now(), Duration::ZERO);
        match opened {
            Ok(_) | Err(GroupLogError::Open(_)) => {}
            Err(error) => self
                .findings
                .push(Finding::of_own_log(LogKey::GROUPS, &error)),
        }
        Ok(())
    }

    /// Whether what delivery streams are and have done adds up.
    fn deliveries(&mut self, storage: &dyn Storage) -> Result<()> {
        let copy = copy_of(storage, LogKey::DELIVERIES)?;
        match DeliveryLog::open(copy, DeliveryConfig::default(), now()) {
            Ok(_) | Err(DeliveryLogError::Open(_)) => {}
            Err(error) => self
                .findings
                .push(Finding::of_own_log(LogKey::DELIVERIES, &error)),
        }
        Ok(())
    }
}

/// Opening a log writes to it, so what the node itself remembers is opened on a copy in memory: it is
/// small.
pub(crate) fn copy_of(storage: &dyn Storage, key: LogKey) -> Result<Arc<dyn Storage>> {
    let dir = key.dir_name();
    copy_dir(storage, &dir).with_context(|| format!("{dir} cannot be read"))
}

fn copy_dir(storage: &dyn Storage, dir: &str) -> io::Result<Arc<dyn Storage>> {
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

pub(crate) fn now() -> Timestamp {
    Clock::system().now()
}
