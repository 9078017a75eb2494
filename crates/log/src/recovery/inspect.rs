//! Looking at a log from outside: what opening it would find, and every byte of what opening takes
//! on trust. Changes nothing.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use flumen_record::{SequenceNumber, ShardId, Timestamp};

use super::inventory::{Candidate, Inventory};
use super::restore::Restorer;
use super::runs::{begin, extend};
use super::scan::{Scan, sealed};
use super::{BatchMark, Quarantined, Replay, ShardRecovery, new_writer, read_snapshot};
use crate::config::{LogConfig, LogKey};
use crate::error::OpenError;
use crate::footer::{Trailer, decode_runs};
use crate::footer_cache::{read_all_producers, read_rows};
use crate::index::{Run, ShardState};
use crate::round::{
    COPIED, FoundFrame, FoundHeader, NewRun, RoundOwner, Window, read_frames, read_header,
};
use crate::segment::SegmentName;
use crate::segment_header::SECTOR_BYTES;
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
    /// Every shard this log holds or has held and not forgotten, as opening would find it.
    pub shards: Vec<ShardRecovery>,
    /// Damage, as far as opening would answer it with a typed error, and damage that it would not
    /// see before somebody reads the records.
    pub damage: Vec<Quarantined>,
    /// What stands in intact frames.
    held: BTreeMap<ShardId, Held>,
}

/// Which numbers of a shard stand in intact frames: disjoint, ascending, merged where they touch.
#[derive(Debug, Clone, Default)]
struct Held(BTreeMap<SequenceNumber, SequenceNumber>);

impl Held {
    fn add(&mut self, mut from: SequenceNumber, mut to: SequenceNumber) {
        if let Some((&before, &end)) = self.0.range(..=from).next_back()
            && end >= from
        {
            from = before;
            to = to.max(end);
        }
        while let Some((&next, &end)) = self.0.range(from..).next().filter(|(n, _)| **n <= to) {
            to = to.max(end);
            self.0.remove(&next);
        }
        self.0.insert(from, to);
    }

    /// What of `from..to` is not among them.
    fn missing(&self, from: SequenceNumber, to: SequenceNumber) -> Vec<Range<SequenceNumber>> {
        let mut missing = Vec::new();
        let mut at = from;
        for (&base, &end) in &self.0 {
            if base >= to {
                break;
            }
            if base > at {
                missing.push(at..base);
            }
            at = at.max(end);
        }
        if at < to {
            missing.push(at..to);
        }
        missing
    }
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
    restorer.settle(&mut writer, scan.clean, None);
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
        if let Some(reason) = candidate.odd_length() {
            inspection.found_once(&candidate.name.to_string(), reason);
        }
        inspection
            .segment(candidate)
            .map_err(|source| OpenError::Io {
                path: candidate.path.clone(),
                source,
            })?;
    }
    for cell in shared.index.all() {
        let state = cell.lock();
        inspection.shards.push(ShardRecovery {
            shard: cell.shard,
            trim_horizon: state.horizon,
            next: writer
                .shards
                .get(&cell.shard)
                .map_or(state.end, |known| known.end),
            epoch: state.epoch,
            last_arrival: state.last_arrival,
            jumped: None,
        });
        inspection.missing(cell.shard, &state, &inventory);
    }
    inspection.shards.sort_unstable_by_key(|shard| shard.shard);
    Ok(inspection)
}

/// The file that should hold a shard's records from `from` on, by what the index remembers.
fn file_of(
    state: &ShardState,
    from: SequenceNumber,
    inventory: &Inventory,
) -> (String, &'static str) {
    let above = state.marks.partition_point(|mark| mark.base <= from);
    let mark = above.checked_sub(1).and_then(|at| state.marks.get(at));
    // What follows names the segment before it, also one of which nothing else is known any more.
    let next = state.marks.get(above).map(|mark| mark.previous);
    let id = next.max(mark.map(|mark| mark.segment));
    let Some(id) = id.filter(|id| *id > 0) else {
        return ("segments".to_owned(), "records are missing");
    };
    let in_chain = inventory.segments.iter().find(|one| one.name.segment == id);
    if let Some(segment) = in_chain {
        return (
            segment.name.to_string(),
            "records that it should hold are missing",
        );
    }
    let left = inventory
        .leftovers
        .iter()
        .find(|one| one.name.segment == id);
    if let Some(left) = left {
        let reason = "it was a segment, and is emptied or overwritten";
        return (left.name.to_string(), reason);
    }
    let name = SegmentName {
        segment: id,
        generation: 0,
    };
    (name.to_string(), "the segment is missing")
}

impl LogInspection {
    fn found(&mut self, file: &str, reason: impl Into<String>) {
        self.damage.push(Quarantined {
            segment: file.to_owned(),
            shards: Vec::new(),
            reason: reason.into(),
        });
    }

    /// As [`LogInspection::found`], unless that was said of the file already.
    fn found_once(&mut self, file: &str, reason: String) {
        let said = |known: &Quarantined| known.segment == file && known.reason == reason;
        if !self.damage.iter().any(said) {
            self.found(file, reason);
        }
    }

    /// Holds what a shard should have against what there is of it.
    fn missing(&mut self, shard: ShardId, state: &ShardState, inventory: &Inventory) {
        let held = self.held.remove(&shard).unwrap_or_default();
        for missing in held.missing(state.horizon, state.end) {
            let mut at = missing.start;
            while let Some(from) = state.unexplained(at, missing.end) {
                let next_gap = state.gaps.iter().find(|gap| gap.from > from);
                let to = next_gap.map_or(missing.end, |gap| gap.from.min(missing.end));
                self.miss(shard, from..to, state, inventory);
                at = to;
            }
        }
    }

    fn miss(
        &mut self,
        shard: ShardId,
        range: Range<SequenceNumber>,
        state: &ShardState,
        inventory: &Inventory,
    ) {
        let overlaps = |(known, from, to): &(ShardId, SequenceNumber, SequenceNumber)| {
            *known == shard && *from < range.end && range.start < *to
        };
        if self
            .damage
            .iter()
            .any(|known| known.shards.iter().any(overlaps))
        {
            return;
        }
        let (file, reason) = file_of(state, range.start, inventory);
        let lost = (shard, range.start, range.end);
        let said = |known: &&mut Quarantined| known.segment == file && known.reason == reason;
        match self.damage.iter_mut().find(said) {
            Some(known) => known.shards.push(lost),
            None => self.damage.push(Quarantined {
                segment: file,
                shards: vec![lost],
                reason: reason.to_owned(),
            }),
        }
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
        while position < window.end() {
            // What lies behind a damaged round is still there.
            let Some(found) = read_header(&mut window, owner, position)? else {
                position += SECTOR_BYTES;
                continue;
            };
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
        for frame in frames {
            let held = self.held.entry(frame.header.shard).or_default();
            held.add(frame.header.base, frame.end());
        }
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
