//! Looking at a log from outside: what opening it would find, and every byte of what opening takes
//! on trust. Changes nothing.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use flumen_record::{ShardId, Timestamp};

use super::inventory::{Candidate, Inventory};
use super::restore::Restorer;
use super::runs::{begin, extend};
use super::scan::{Scan, sealed};
use super::{BatchMark, Quarantined, Replay, new_writer, read_snapshot};
use crate::config::{LogConfig, LogKey};
use crate::error::OpenError;
use crate::footer::{Trailer, decode_runs};
use crate::footer_cache::{read_all_producers, read_rows};
use crate::index::Run;
use crate::round::{
    COPIED, FoundFrame, FoundHeader, NewRun, RoundOwner, Window, read_frames, read_header,
};
use crate::shared::Shared;
use crate::snapshot::SNAPSHOT_NAME;
use crate::storage::Storage;
use crate::voucher::Voucher;

/// What looking at a log found.
#[derive(Debug, Clone, Default)]
pub struct LogInspection {
    /// Segments of its chain.
    pub segments: u64,
    /// Bytes of their files.
    pub file_bytes: u64,
    /// Rounds that verify.
    pub rounds: u64,
    /// Records in them.
    pub records: u64,
    /// Rounds at the end that nothing vouches for: the next start writes them again. No damage.
    pub tail_rounds: u64,
    /// Whether the last process closed the log in order.
    pub clean: bool,
    /// Highest catalog record that a round names.
    pub catalog_named: u64,
    /// How far it gets, to be held against what vouches for it ([`Voucher::is_met_by`]). `None`:
    /// there is no segment.
    pub reaches: Option<Voucher>,
    /// Damage, as far as opening would answer it with a typed error, and damage that it would not
    /// see before somebody reads the records.
    pub damage: Vec<Quarantined>,
}

/// Nobody wants producers' batches here.
struct Nobody;

impl Replay for Nobody {
    fn state(&mut self, _: ShardId, _: bytes::Bytes) {}
    fn batch(&mut self, _: ShardId, _: &BatchMark, _: bool) {}
}

/// Reads and checks everything of the log `key`. Blocks; `storage` may be read-only.
///
/// # Errors
/// What [`crate::Log::open`] refuses: files of another log, of an unknown version, cut or extended.
pub fn inspect(
    storage: Arc<dyn Storage>,
    key: LogKey,
    config: LogConfig,
) -> Result<LogInspection, OpenError> {
    let shared = Arc::new(Shared::new(storage, key, config, Timestamp::ZERO));
    let inventory = Inventory::take(&shared, false)?;
    let snapshot = read_snapshot(&shared)?;
    let mut nobody = Nobody;
    let mut restorer = Restorer::new(&shared, &mut nobody, snapshot.as_ref());
    let scan = Scan::run(&inventory, &mut restorer, snapshot.as_ref(), None)?;
    let mut writer = new_writer(&shared, &scan);
    restorer.install(&mut writer, &inventory, &scan);
    restorer.jump(&mut writer, scan.clean);
    let recovery = restorer.report(&writer, &scan, 0, Timestamp::MAX);
    let mut inspection = LogInspection {
        tail_rounds: scan.tail.len() as u64,
        clean: recovery.clean,
        catalog_named: recovery.catalog_named,
        reaches: (!inventory.segments.is_empty()).then_some(Voucher {
            epoch: scan.epoch,
            round: scan.reached,
        }),
        damage: recovery.quarantined,
        ..LogInspection::default()
    };
    let snapshot_path = shared.path(SNAPSHOT_NAME);
    if snapshot.is_none() && shared.storage.read_small(&snapshot_path).is_ok() {
        let reason = "the snapshot does not verify; the next start reads everything instead";
        inspection.found(SNAPSHOT_NAME, reason);
    }
    for candidate in inventory.segments.iter().take(scan.segments_end) {
        inspection
            .segment(candidate)
            .map_err(|source| OpenError::Io {
                path: candidate.path.clone(),
                source,
            })?;
    }
    Ok(inspection)
}

impl LogInspection {
    fn found(&mut self, file: &str, reason: impl Into<String>) {
        self.damage.push(Quarantined {
            segment: file.to_owned(),
            shards: Vec::new(),
            reason: reason.into(),
        });
    }

    fn segment(&mut self, candidate: &Candidate) -> io::Result<()> {
        self.segments += 1;
        self.file_bytes += candidate.file.bytes();
        match sealed(candidate) {
            Some(trailer) => self.sealed(candidate, trailer),
            None => self.unsealed(candidate),
        }
    }

    /// Counts what a segment without a footer holds: opening reads all of it, and says what is
    /// damaged.
    fn unsealed(&mut self, candidate: &Candidate) -> io::Result<()> {
        let mut window = Window::new(&*candidate.file, candidate.file.bytes());
        let owner = RoundOwner::of(&candidate.header);
        let mut position = candidate.header.rounds_at();
        while let Some(found) = read_header(&mut window, owner, position)? {
            if found.header.round > candidate.exists_until {
                break;
            }
            self.count(&read_frames(&mut window, &found, position)?.frames);
            position += found.header.padded_bytes();
        }
        Ok(())
    }

    fn count(&mut self, frames: &[FoundFrame]) {
        self.rounds += 1;
        let records = |frame: &FoundFrame| u64::from(frame.batch.header().count);
        self.records += frames.iter().map(records).sum::<u64>();
    }

    /// Opening stands by a footer without reading what lies above it: here it is read, and held
    /// against the footer.
    fn sealed(&mut self, candidate: &Candidate, trailer: &Trailer) -> io::Result<()> {
        let name = candidate.name.to_string();
        let mut window = Window::new(&*candidate.file, trailer.summary.data_end);
        let owner = RoundOwner::of(&candidate.header);
        let mut position = candidate.header.rounds_at();
        let mut chain = Chain::new(candidate);
        let mut runs: BTreeMap<ShardId, Vec<Run>> = BTreeMap::new();
        while position < trailer.summary.data_end {
            let Some(found) = read_header(&mut window, owner, position)? else {
                self.found(&name, format!("no round at {position}, above the footer"));
                return Ok(());
            };
            if let Some(reason) = chain.next(&found, position) {
                self.found(&name, reason);
            }
            let content = read_frames(&mut window, &found, position)?;
            if !content.is_intact() {
                let round = found.header.round;
                let reason = format!("round {round} at {position}: frames are damaged");
                self.found(&name, reason);
            }
            self.count(&content.frames);
            for run in runs_of(&content.frames) {
                let shard = runs.entry(run.shard).or_default();
                shard.push(Run::new(candidate.name.segment, &run));
            }
            position += found.header.padded_bytes();
        }
        if let Some(reason) = chain.end(trailer) {
            self.found(&name, reason);
        }
        self.footer(candidate, trailer, &runs)
    }

    fn footer(
        &mut self,
        candidate: &Candidate,
        trailer: &Trailer,
        runs: &BTreeMap<ShardId, Vec<Run>>,
    ) -> io::Result<()> {
        let (file, header) = (&*candidate.file, &candidate.header);
        let name = candidate.name.to_string();
        let footer = match read_rows(file, header, trailer) {
            Ok(footer) => footer,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                self.found(&name, error.to_string());
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        match read_all_producers(file, header, trailer, &footer.rows) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                self.found(&name, error.to_string());
            }
            other => drop(other?),
        }
        let shards: Vec<ShardId> = footer.rows.iter().map(|row| row.shard).collect();
        if !shards.iter().eq(runs.keys()) {
            self.found(&name, "the footer names other shards than the rounds");
        }
        for row in &footer.rows {
            let (at, length) = trailer.runs_place(row);
            let mut bytes = vec![0; length];
            file.read_at(&mut bytes, at)?;
            let indexed = decode_runs(&bytes, trailer, row, header.salt);
            if indexed.as_ref() != runs.get(&row.shard) {
                let reason = format!("shard {}: the index is not what the rounds say", row.shard);
                self.found(&name, reason);
            }
        }
        Ok(())
    }
}

/// The rounds of a segment, each after the one before.
struct Chain {
    /// The round before, and its checksum where it is known.
    last: u64,
    checksum: Option<u32>,
}

impl Chain {
    fn new(candidate: &Candidate) -> Self {
        let checksum = candidate.header.previous_checksum;
        Self {
            last: candidate.header.continues_after,
            checksum: (checksum != 0).then_some(checksum),
        }
    }

    /// What is wrong with this round's place, if anything.
    fn next(&mut self, found: &FoundHeader, position: u64) -> Option<String> {
        let header = &found.header;
        let copied = header.flags & COPIED != 0;
        // A copied round stands for several, of which it names the last.
        let follows = if copied {
            header.round > self.last
        } else {
            header.round == self.last + 1
        };
        let linked = copied
            || self
                .checksum
                .is_none_or(|checksum| checksum == header.previous_checksum);
        let last = self.last;
        self.last = header.round;
        self.checksum = (!copied).then_some(found.checksum);
        (!follows || !linked).then(|| {
            let round = header.round;
            format!("round {round} at {position} does not continue round {last}")
        })
    }

    fn end(&self, trailer: &Trailer) -> Option<String> {
        let promised = trailer.summary.last_round;
        (self.last != promised).then(|| {
            let last = self.last;
            format!("the footer ends at round {promised}, the rounds above it at {last}")
        })
    }
}

/// The runs that a round's frames form.
fn runs_of(frames: &[FoundFrame]) -> Vec<NewRun> {
    let mut runs: Vec<NewRun> = Vec::new();
    for frame in frames {
        if !runs.last_mut().is_some_and(|run| extend(run, frame)) {
            runs.push(begin(frame));
        }
    }
    runs
}
