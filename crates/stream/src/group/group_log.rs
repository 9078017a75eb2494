//! The groups' own log: one record per step, and beside the records, piece by piece, a snapshot.
//!
//! A snapshot is not one moment: each group is written as it is when its turn comes, and changes
//! go on in between. Read from its beginning, what is about a group that has not come yet is in
//! the image that follows, and what comes after an image is a change of it.

use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flumen_log::{
    BatchMark, Housekeeper, Log, LogConfig, LogKey, LogReader, NewFrame, Recovery, Replay, Storage,
    Voucher,
};
use flumen_record::{
    Batch, BatchBuilder, Compression, Frame, Frames, HashKey, ProducerId, ProducerSequence, Record,
    RecordLimits, SequenceNumber, ShardEpoch, ShardId, Timestamp,
};

use super::change::{GroupChange, encode_group};
use super::state::State;
use super::{Coordinator, GroupConfig, GroupLogError, GroupNumber, Step};
use crate::salvage::{self, AddUp, LostRecords};

/// The one shard of the groups' log. Streams are numbered from 1.
const SHARD: ShardId = ShardId::from_value(0);
const READ_BYTES: usize = 1 << 20;
/// A step whose changes are larger goes into several records of one round.
const RECORD_BYTES: usize = 4 << 20;
/// 2 since it is written down where groups begin and what they miss.
const VERSION: u8 = 2;
const VERSION_1: u8 = 1;

/// The groups' log. Every commit blocks until it is durable.
#[derive(Debug)]
pub struct GroupLog {
    log: Log,
    config: GroupConfig,
    epoch: ShardEpoch,
    /// Also the number of records so far.
    next: SequenceNumber,
    /// Written since the last snapshot began.
    grown_bytes: u64,
    /// The size of the last snapshot.
    snapshot_bytes: u64,
    snapshot: Option<Snapshot>,
    /// Kept to be used again.
    buffer: Vec<u8>,
}

/// A snapshot that is being written.
#[derive(Debug, Clone, Copy)]
struct Snapshot {
    /// Its first record.
    begin: SequenceNumber,
    /// Groups up to this one are written.
    after: GroupNumber,
    bytes: u64,
}

struct Nobody;

impl Replay for Nobody {
    fn state(&mut self, _: ShardId, _: Bytes) {}
    fn batch(&mut self, _: ShardId, _: &BatchMark, _: bool) {}
}

fn log_config() -> LogConfig {
    LogConfig {
        segment_bytes_min: 4 << 20,
        segment_bytes_max: 64 << 20,
        retention_class_hours: 8_760,
        ..LogConfig::default()
    }
}

impl GroupLog {
    /// Opens the log and adds its records up. `wall` is the time of day, `now` the monotonic time
    /// from which on members that held leases have one session timeout to come back.
    pub fn open(
        storage: Arc<dyn Storage>,
        config: GroupConfig,
        wall: Timestamp,
        now: Duration,
    ) -> Result<(Self, Coordinator, Recovery), GroupLogError> {
        Self::open_vouched(storage, config, wall, now, None)
    }

    /// [`GroupLog::open`] of a log of which the catalog remembers how far it got.
    pub fn open_vouched(
        storage: Arc<dyn Storage>,
        config: GroupConfig,
        wall: Timestamp,
        now: Duration,
        voucher: Option<Voucher>,
    ) -> Result<(Self, Coordinator, Recovery), GroupLogError> {
        let (key, log_config) = (LogKey::GROUPS, log_config());
        let (log, recovery) =
            Log::open_vouched(storage, key, log_config, wall, &mut Nobody, voucher)?;
        let shards = &recovery.shards;
        let standing = shards.iter().find(|standing| standing.shard == SHARD);
        let reading = match standing {
            Some(standing) => read_all(&log.reader(), standing.trim_horizon, standing.next)?,
            None => Reading::from(SequenceNumber::ZERO),
        };
        let group_log = Self {
            epoch: ShardEpoch::new(
                standing.map_or(1, |standing| standing.epoch.value().saturating_add(1)),
            ),
            next: reading.next,
            grown_bytes: reading.bytes,
            snapshot_bytes: 0,
            snapshot: None,
            buffer: Vec::new(),
            config: config.clone(),
            log,
        };
        let coordinator = Coordinator::recover(config, reading.state, reading.at, now);
        Ok((group_log, coordinator, recovery))
    }

    /// Opens a log with damaged records, adds up those that are intact, writes what they come to anew,
    /// and closes it: it opens as any other then. Returns which records are lost.
    ///
    /// # Errors
    /// When the log itself does not open, or cannot be written.
    pub fn salvage(
        storage: Arc<dyn Storage>,
        config: GroupConfig,
        wall: Timestamp,
    ) -> Result<Vec<LostRecords>, GroupLogError> {
        let (log, recovery) = Log::open(storage, LogKey::GROUPS, log_config(), wall, &mut Nobody)?;
        let mut standings = recovery.shards.iter();
        let Some(standing) = standings.find(|standing| standing.shard == SHARD) else {
            return Ok(Vec::new());
        };
        let mut reading = Reading::from(standing.trim_horizon);
        let lost = salvage::add_up(&mut reading, &log.reader(), SHARD, standing.next)?;
        reading.state.is_partial = false;
        let mut salvaged = Self {
            epoch: ShardEpoch::new(standing.epoch.value().saturating_add(1)),
            next: reading.next,
            grown_bytes: u64::MAX,
            snapshot_bytes: 0,
            snapshot: None,
            buffer: Vec::new(),
            config: GroupConfig {
                snapshot_piece_bytes: u64::MAX,
                ..config
            },
            log,
        };
        let mut records = Records::new(Vec::new());
        let (_, ended) = salvaged.write_piece(&reading.state, &mut records)?;
        salvaged.put(records, reading.at.max(wall), wall)?;
        if let Some(ended) = ended {
            salvaged.log.trim(SHARD, ended.begin);
        }
        salvaged.log.commit(&[], 0, wall)??;
        salvage::keep_house(salvaged.log.housekeeper(), wall)?;
        salvaged.close(wall)?;
        Ok(lost)
    }

    /// How many records there are.
    pub fn records(&self) -> u64 {
        self.next.value()
    }

    /// The handle of the background thread of this log.
    pub fn housekeeper(&self) -> Housekeeper {
        self.log.housekeeper()
    }

    /// Says how far this log has got, from any thread.
    pub fn reader(&self) -> LogReader {
        self.log.reader()
    }

    /// Writes a first round into a log that has none, so that the catalog can vouch for it.
    pub fn begin(&mut self, wall: Timestamp) -> Result<(), GroupLogError> {
        Ok(self.log.begin(0, wall)??)
    }

    /// The last durable catalog record, for the rounds that follow to name.
    pub fn know_catalog(&mut self, record: u64) {
        self.log.know_catalog(record);
    }

    /// Makes the changes of a step durable, all or none of them; one without changes costs
    /// nothing. `coordinator` is the one that has just taken the step: now and then a piece of a
    /// snapshot of it goes with the changes. After [`GroupLogError::Write`] nothing
    /// is written, and the same step may be committed again; after any other error the coordinator
    /// must not be used any more.
    pub fn commit(
        &mut self,
        step: &Step,
        coordinator: &Coordinator,
        wall: Timestamp,
    ) -> Result<(), GroupLogError> {
        if step.changes.is_empty() {
            return Ok(());
        }
        let mut records = Records::new(std::mem::take(&mut self.buffer));
        for change in &step.changes {
            records.room()?;
            change.encode(&mut records.bytes);
        }
        let (snapshot, ended) = self.write_piece(&coordinator.state, &mut records)?;
        let written = self.put(records, step.at, wall);
        let bytes = written?;
        self.grown_bytes = self.grown_bytes.saturating_add(bytes);
        self.snapshot = snapshot;
        if let Some(ended) = ended {
            self.snapshot_bytes = ended.bytes;
            // Carried by the next round. Until then, and if the log fails, the old records stay.
            self.log.trim(SHARD, ended.begin);
        }
        Ok(())
    }

    /// Encodes the next piece of a snapshot, if one is due: what the snapshot will be if the
    /// record is written, and the one that is complete then.
    fn write_piece(
        &mut self,
        state: &State,
        records: &mut Records,
    ) -> Result<(Option<Snapshot>, Option<Snapshot>), GroupLogError> {
        let due = self
            .snapshot_bytes
            .saturating_mul(self.config.snapshot_growth);
        let due = due.max(self.config.snapshot_bytes_min);
        let mut snapshot = match self.snapshot {
            Some(snapshot) => snapshot,
            None if self.grown_bytes < due => return Ok((None, None)),
            None => {
                // The snapshot begins with a record of its own, behind this step's changes.
                records.finish()?;
                GroupChange::SnapshotBegin {
                    last_group: state.last_group,
                    generation_floor: state.generation_floor,
                }
                .encode(&mut records.bytes);
                self.grown_bytes = 0;
                Snapshot {
                    begin: self.next.plus(records.batches.len() as u64),
                    after: GroupNumber::default(),
                    bytes: 0,
                }
            }
        };
        let piece = self.config.snapshot_piece_bytes.max(1);
        let mut written = 0;
        let rest = (Bound::Excluded(snapshot.after), Bound::Unbounded);
        for (number, group) in state.groups.range(rest) {
            if written >= piece {
                snapshot.bytes = snapshot.bytes.saturating_add(written);
                return Ok((Some(snapshot), None));
            }
            records.room()?;
            let before = records.bytes.len();
            encode_group(*number, group, &mut records.bytes);
            written += (records.bytes.len() - before) as u64;
            snapshot.after = *number;
        }
        snapshot.bytes = snapshot.bytes.saturating_add(written);
        let groups = state.groups.len() as u64;
        GroupChange::SnapshotEnd { groups }.encode(&mut records.bytes);
        Ok((None, Some(snapshot)))
    }

    fn put(
        &mut self,
        mut records: Records,
        at: Timestamp,
        wall: Timestamp,
    ) -> Result<u64, GroupLogError> {
        records.finish()?;
        let Records { bytes, batches } = records;
        self.buffer = bytes;
        let frames: Vec<_> = batches
            .into_iter()
            .zip(self.next.value()..)
            .map(|(batch, base)| NewFrame {
                shard: SHARD,
                epoch: self.epoch,
                base: SequenceNumber::new(base),
                arrival: at,
                batch,
            })
            .collect();
        let bytes = frames.iter().map(|frame| frame.batch.bytes().len() as u64);
        let bytes = bytes.sum();
        self.log.commit(&frames, 0, wall)??;
        self.next = self.next.plus(frames.len() as u64);
        Ok(bytes)
    }

    /// What is due while nothing changes: an empty round that vouches for the last record. In how long
    /// there is something again; `None`: after the next change.
    pub fn rest(&mut self, wall: Timestamp) -> Result<Option<Duration>, GroupLogError> {
        if self.log.idle_round_due(wall) {
            self.log.commit(&[], 0, wall)??;
        }
        Ok(self.log.idle_round_in(wall))
    }

    /// Syncs and closes.
    pub fn close(self, wall: Timestamp) -> Result<(), GroupLogError> {
        Ok(self.log.close(wall)?)
    }
}

/// The records of one round: changes are appended to `bytes`, behind the version.
struct Records {
    bytes: Vec<u8>,
    batches: Vec<Batch>,
}

impl Records {
    fn new(mut buffer: Vec<u8>) -> Self {
        buffer.clear();
        buffer.push(VERSION);
        Self {
            bytes: buffer,
            batches: Vec::new(),
        }
    }

    /// Begins another record when this one is full.
    fn room(&mut self) -> Result<(), GroupLogError> {
        if self.bytes.len() >= RECORD_BYTES {
            self.finish()?;
        }
        Ok(())
    }

    /// Ends the record, if anything is in it.
    fn finish(&mut self) -> Result<(), GroupLogError> {
        if self.bytes.len() > 1 {
            let record = Record {
                partition_key: Bytes::from_static(b"groups"),
                explicit_hash_key: Some(HashKey::MIN),
                data: Bytes::copy_from_slice(&self.bytes),
                client_timestamp: None,
                headers: Vec::new(),
            };
            let mut builder = BatchBuilder::new(RecordLimits::MAX);
            builder.push(&record, HashKey::MIN)?;
            self.batches.push(builder.finish(
                ProducerId::NONE,
                ProducerSequence::new(0),
                Compression::None,
            ));
        }
        self.bytes.clear();
        self.bytes.push(VERSION);
        Ok(())
    }
}

/// Adds up the records from `horizon` up to `end`, all of which must be there.
fn read_all(
    reader: &LogReader,
    horizon: SequenceNumber,
    end: SequenceNumber,
) -> Result<Reading, GroupLogError> {
    let mut reading = Reading::from(horizon);
    loop {
        let found = reader.read_cold(SHARD, reading.next, READ_BYTES)?;
        if found.pieces.is_empty() {
            break;
        }
        for frame in found.pieces.into_iter().flat_map(Frames::new) {
            let frame = frame.map_err(|_| reading.damaged("its frame does not decode"))?;
            reading.frame(&frame)?;
        }
    }
    if reading.next != end {
        return Err(reading.damaged(MISSING));
    }
    if reading.state.is_partial {
        return Err(GroupLogError::Damaged {
            record: horizon.value().saturating_add(1),
            reason: "the snapshot it should begin is not complete",
        });
    }
    Ok(reading)
}

const MISSING: &str = "it is missing";

impl AddUp for Reading {
    fn next(&self) -> SequenceNumber {
        self.next
    }

    fn skip_to(&mut self, next: SequenceNumber) {
        self.next = next;
        self.must_begin = false;
        // What the lost ones said of groups may be in a snapshot's image that follows.
        self.state.is_partial = true;
    }

    fn take(&mut self, frame: &Frame) -> Result<(), &'static str> {
        self.frame(frame).map_err(|error| match error {
            GroupLogError::Damaged { reason, .. } => reason,
            _ => "it cannot be used",
        })
    }
}

/// Adds records up.
struct Reading {
    next: SequenceNumber,
    state: State,
    at: Timestamp,
    bytes: u64,
    /// The next change has to begin a snapshot.
    must_begin: bool,
}

impl Reading {
    fn from(horizon: SequenceNumber) -> Self {
        Self {
            next: horizon,
            state: State {
                // What was trimmed must stand in a snapshot, which begins where reading does.
                is_partial: horizon > SequenceNumber::ZERO,
                ..State::default()
            },
            at: Timestamp::ZERO,
            bytes: 0,
            must_begin: horizon > SequenceNumber::ZERO,
        }
    }

    fn damaged(&self, reason: &'static str) -> GroupLogError {
        GroupLogError::Damaged {
            record: self.next.value().saturating_add(1),
            reason,
        }
    }

    fn frame(&mut self, frame: &Frame) -> Result<(), GroupLogError> {
        if frame.header.base != self.next {
            return Err(self.damaged(MISSING));
        }
        let mut records = frame.batch.records();
        let (Some(record), None) = (records.next(), records.next()) else {
            return Err(self.damaged("its frame holds more than one record"));
        };
        let record = record.map_err(|_| self.damaged("its batch does not decode"))?;
        let applied = self.record(&record.data, frame.header.arrival);
        applied.map_err(|reason| self.damaged(reason))?;
        self.next = self.next.plus(1);
        self.bytes = self.bytes.saturating_add(record.data.len() as u64);
        Ok(())
    }

    fn record(&mut self, data: &[u8], at: Timestamp) -> Result<(), &'static str> {
        let (version, mut rest) = match data.split_first() {
            Some((version @ (&VERSION | &VERSION_1), rest)) => (*version, rest),
            _ => return Err("its version is not known; it was written by a newer Flumen"),
        };
        self.at = self.at.max(at);
        while !rest.is_empty() {
            let change = GroupChange::decode(&mut rest)?;
            let begins = matches!(change, GroupChange::SnapshotBegin { .. });
            if std::mem::take(&mut self.must_begin) && !begins {
                return Err("the snapshot it should begin does not begin there");
            }
            self.state.apply(&change, at)?;
            if version == VERSION_1 {
                self.state.applied_old(&change);
            }
        }
        Ok(())
    }
}
