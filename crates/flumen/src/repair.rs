//! Making a data directory fit for use again: what is intact is kept, what is lost is said, and of
//! everything that is changed a copy stays in the directory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use flumen_log::{DiskStorage, LogKey, Storage};
use flumen_record::StreamId;
use flumen_stream::delivery::{DeliveryConfig, DeliveryLog, DeliveryLogError};
use flumen_stream::group::{GroupConfig, GroupLog, GroupLogError};
use flumen_stream::{Catalog, CatalogError, LostRecords, StreamConfig};

use crate::inspection::{Inspection, Logs, copy_of, now, open_at_rest};

/// How long another process may take to let the directory go.
const LOCK_WAIT: Duration = Duration::from_millis(500);

/// What the operator wants.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) dry_run: bool,
    pub(crate) accept_loss: bool,
}

/// What is, or would be, done to one folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) file: String,
    pub(crate) action: String,
    pub(crate) lost: Vec<String>,
}

/// All of it.
#[derive(Debug, Default)]
pub(crate) struct Repair {
    pub(crate) steps: Vec<Step>,
    /// Why nothing was changed.
    pub(crate) blocked: Option<String>,
    /// Where the copies are, below the data directory.
    pub(crate) copies: Option<String>,
}

/// What has to be done, found out on copies.
#[derive(Debug, Default)]
struct Plan {
    catalog: bool,
    groups: bool,
    deliveries: bool,
    /// Logs that are less than the catalog vouches for.
    accept: Vec<LogKey>,
    /// Streams that logs hold records of and no catalog knows.
    unknown: BTreeMap<StreamId, BTreeSet<String>>,
    steps: Vec<Step>,
}

/// Finds out what is to be done, and does it. Blocks.
pub(crate) fn repair(data_dir: &Path, wanted: Wanted) -> Result<Repair> {
    let plan = {
        let storage = open_at_rest(data_dir)?;
        let logs = Inspection::default().logs(&storage)?;
        Plan::of(&*storage, &logs)?
    };
    let mut done = Repair {
        steps: plan.steps.clone(),
        ..Repair::default()
    };
    if !plan.unknown.is_empty() && !wanted.accept_loss {
        let streams: Vec<String> = plan.unknown.keys().map(ToString::to_string).collect();
        done.blocked = Some(format!(
            "no catalog knows the streams numbered {}: put back a newer copy of the folder `catalog`, \
             or let the next start delete their records with --accept-loss",
            streams.join(", ")
        ));
        return Ok(done);
    }
    if wanted.dry_run || plan.steps.is_empty() {
        return Ok(done);
    }
    done.copies = Some(plan.carry_out(data_dir)?);
    Ok(done)
}

impl Plan {
    fn of(storage: &dyn Storage, logs: &Logs) -> Result<Self> {
        let mut plan = Self::default();
        plan.catalog(storage, logs)?;
        plan.groups(storage)?;
        plan.deliveries(storage)?;
        Ok(plan)
    }

    fn step(&mut self, key: LogKey, action: &str, lost: Vec<String>) {
        self.steps.push(Step {
            file: key.dir_name(),
            action: action.to_owned(),
            lost,
        });
    }

    fn catalog(&mut self, storage: &dyn Storage, logs: &Logs) -> Result<()> {
        let key = LogKey::CATALOG;
        let copy = copy_of(storage, key)?;
        let catalog = match Catalog::open(copy, StreamConfig::default(), now()) {
            Ok((catalog, _)) => catalog,
            Err(CatalogError::Damaged { .. } | CatalogError::Read(_)) => {
                let copy = copy_of(storage, key)?;
                let (catalog, lost) = Catalog::salvage(copy, StreamConfig::default(), now())
                    .context("catalog: no whole snapshot is left; put the folder back as it was")?;
                self.catalog = true;
                self.unknown = unknown_streams(&catalog, logs);
                let mut lost: Vec<String> = lost.iter().map(shown).collect();
                lost.extend(self.unknown.iter().map(|(stream, dirs)| {
                    let dirs: Vec<&str> = dirs.iter().map(String::as_str).collect();
                    format!(
                        "all records of stream number {stream} in {}",
                        dirs.join(", ")
                    )
                }));
                let streams = catalog.streams().count();
                let action = format!(
                    "damaged; its newest whole snapshot and the intact records after it are written \
                     anew: {streams} streams"
                );
                self.step(key, &action, lost);
                catalog
            }
            Err(error) => {
                return Err(error).context("catalog: there is no way out but a copy of it");
            }
        };
        catalog
            .check_named(logs.named)
            .context("catalog: put back a newer copy of the folder")?;
        for short in catalog.shortfalls(&logs.reaches) {
            let lost = format!("what was in it beyond that, up to {}", short.vouched);
            self.accept.push(short.log);
            self.step(short.log, "less than it was; accepted as it is", vec![lost]);
        }
        Ok(())
    }

    fn groups(&mut self, storage: &dyn Storage) -> Result<()> {
        let key = LogKey::GROUPS;
        let copy = copy_of(storage, key)?;
        match GroupLog::open(copy, GroupConfig::default(), now(), Duration::ZERO) {
            Ok(_) => Ok(()),
            Err(GroupLogError::Damaged { .. } | GroupLogError::Read(_)) => {
                let copy = copy_of(storage, key)?;
                let lost = GroupLog::salvage(copy, GroupConfig::default(), now())
                    .context("groups: put the folder back as it was")?;
                self.groups = true;
                let mut lost: Vec<String> = lost.iter().map(shown).collect();
                lost.push(
                    "checkpoints that only those had: members begin again at the ones before"
                        .to_owned(),
                );
                self.step(key, "damaged; what is intact is written anew", lost);
                Ok(())
            }
            Err(error) => Err(error).context("groups: put the folder back as it was"),
        }
    }

    fn deliveries(&mut self, storage: &dyn Storage) -> Result<()> {
        let key = LogKey::DELIVERIES;
        let copy = copy_of(storage, key)?;
        match DeliveryLog::open(copy, DeliveryConfig::default(), now()) {
            Ok(_) => Ok(()),
            Err(DeliveryLogError::Damaged { .. } | DeliveryLogError::Read(_)) => {
                let copy = copy_of(storage, key)?;
                let lost = DeliveryLog::salvage(copy, DeliveryConfig::default(), now())
                    .context("deliveries: put the folder back as it was")?;
                self.deliveries = true;
                let mut lost: Vec<String> = lost.iter().map(shown).collect();
                lost.push(
                    "progress that only those had: what was delivered since may be delivered again"
                        .to_owned(),
                );
                self.step(key, "damaged; what is intact is written anew", lost);
                Ok(())
            }
            Err(error) => Err(error).context("deliveries: put the folder back as it was"),
        }
    }

    /// Keeps copies, then does it. Returns where the copies are.
    fn carry_out(&self, data_dir: &Path) -> Result<String> {
        // Held from the first copy to the last write.
        let storage: Arc<dyn Storage> = Arc::new(DiskStorage::open(data_dir, LOCK_WAIT)?);
        let copies = format!("repair-{}", now().to_string().replace(':', "-"));
        let to = data_dir.join(&copies);
        let accepts = !self.accept.is_empty();
        let changed = [
            (self.catalog || accepts, LogKey::CATALOG),
            (self.groups, LogKey::GROUPS),
            (self.deliveries, LogKey::DELIVERIES),
        ];
        for (_, key) in changed.iter().filter(|(changed, _)| *changed) {
            let dir = key.dir_name();
            keep_copy(&data_dir.join(&dir), &to.join(&dir))
                .with_context(|| format!("{dir}: no copy of it was made, nothing was changed"))?;
        }
        if self.catalog {
            let (catalog, _) =
                Catalog::salvage(Arc::clone(&storage), StreamConfig::default(), now())?;
            catalog.close_salvaged(now())?;
        }
        if self.groups {
            GroupLog::salvage(Arc::clone(&storage), GroupConfig::default(), now())?;
        }
        if self.deliveries {
            DeliveryLog::salvage(Arc::clone(&storage), DeliveryConfig::default(), now())?;
        }
        if accepts {
            let (mut catalog, _) = Catalog::open(storage, StreamConfig::default(), now())?;
            for log in &self.accept {
                catalog.accept_loss(*log, now())?;
            }
            catalog.close(now())?;
        }
        Ok(copies)
    }
}

fn shown(lost: &LostRecords) -> String {
    let LostRecords {
        first,
        last,
        reason,
    } = lost;
    if first == last {
        format!("record {first} ({reason})")
    } else {
        format!("records {first} to {last} ({reason})")
    }
}

/// Streams of which logs hold shards and the catalog knows nothing.
fn unknown_streams(catalog: &Catalog, logs: &Logs) -> BTreeMap<StreamId, BTreeSet<String>> {
    let known: BTreeSet<StreamId> = catalog.streams().map(|stream| stream.id).collect();
    let mut unknown: BTreeMap<StreamId, BTreeSet<String>> = BTreeMap::new();
    let record_logs = logs.shards.iter().filter(|(key, _)| key.holds_records());
    for (key, shards) in record_logs {
        let kept = shards
            .iter()
            .filter(|shard| shard.trim_horizon < shard.next);
        for shard in kept.filter(|shard| !known.contains(&shard.shard.stream())) {
            let dirs = unknown.entry(shard.shard.stream()).or_default();
            dirs.insert(key.dir_name());
        }
    }
    unknown
}

/// Copies a folder of files, durably.
fn keep_copy(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            let target = to.join(entry.file_name());
            fs::copy(entry.path(), &target)?;
            fs::File::open(&target)?.sync_all()?;
        }
    }
    fs::File::open(to)?.sync_all()?;
    if let Some(above) = to.parent() {
        fs::File::open(above)?.sync_all()?;
    }
    Ok(())
}
