//! The catalog's own log: one frame of one record per change, and now and then a snapshot.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flumen_log::{
    BatchMark, Housekeeper, Log, LogConfig, LogKey, LogReader, NewFrame, ReadError, Recovery,
    Replay, Storage,
};
use flumen_record::{
    Batch, BatchBuilder, Compression, Frame, Frames, HashKey, ProducerId, ProducerSequence, Record,
    RecordLimits, SequenceNumber, ShardEpoch, ShardId, Timestamp,
};

use super::State;
use super::change::Change;
use crate::CatalogError;
use crate::salvage::{self, AddUp, LostRecords};

/// The one shard of the catalog's log. Streams are numbered from 1.
const SHARD: ShardId = ShardId::from_value(0);
/// One commit of a snapshot holds about this much.
const ROUND_BYTES: usize = 4 << 20;
const READ_BYTES: usize = 1 << 20;
/// What creations leave free in the log's last segment, so that streams can be deleted when the
/// disk is full to the last byte.
const RESERVED_BYTES: u64 = 256 << 10;

/// The catalog's log.
#[derive(Debug)]
pub(super) struct CatalogLog {
    log: Log,
    epoch: ShardEpoch,
    /// Also the number of records so far.
    next: SequenceNumber,
    last_arrival: Timestamp,
    since_snapshot: u64,
}

/// The catalog reads its frames itself.
pub(super) struct Nobody;

impl Replay for Nobody {
    fn state(&mut self, _: ShardId, _: Bytes) {}
    fn batch(&mut self, _: ShardId, _: &BatchMark, _: bool) {}
}

fn config() -> LogConfig {
    LogConfig {
        // Few and small records: the whole catalog of most nodes fits into one segment.
        segment_bytes_min: 1 << 20,
        segment_bytes_max: 32 << 20,
        retention_class_hours: 8_760,
        ..LogConfig::default()
    }
}

impl CatalogLog {
    pub(super) fn open(
        storage: Arc<dyn Storage>,
        now: Timestamp,
    ) -> Result<(Self, State, Recovery), CatalogError> {
        let (log, recovery) = Log::open(storage, LogKey::CATALOG, config(), now, &mut Nobody)?;
        let standing = recovery
            .shards
            .iter()
            .find(|standing| standing.shard == SHARD);
        let (state, since_snapshot) = match standing {
            Some(standing) => read_all(&log.reader(), standing.trim_horizon, standing.next)?,
            None => (State::default(), 0),
        };
        let catalog_log = Self {
            epoch: ShardEpoch::new(
                standing.map_or(1, |standing| standing.epoch.value().saturating_add(1)),
            ),
            next: standing.map_or(SequenceNumber::ZERO, |standing| standing.next),
            last_arrival: standing.map_or(now, |standing| standing.last_arrival),
            since_snapshot,
            log,
        };
        Ok((catalog_log, state, recovery))
    }

    /// As [`CatalogLog::open`], leaving out records that are damaged. Returns which those are.
    pub(super) fn salvage(
        storage: Arc<dyn Storage>,
        now: Timestamp,
    ) -> Result<(Self, State, Vec<LostRecords>), CatalogError> {
        let (log, recovery) = Log::open(storage, LogKey::CATALOG, config(), now, &mut Nobody)?;
        let mut standings = recovery.shards.iter();
        let standing = standings.find(|standing| standing.shard == SHARD).copied();
        let (from, end) = standing.map_or((SequenceNumber::ZERO, SequenceNumber::ZERO), |found| {
            (found.trim_horizon, found.next)
        });
        let mut reading = Reading::from(from);
        let lost = salvage::add_up(&mut reading, &log.reader(), SHARD, end)?;
        let next = reading.next;
        let (state, since_snapshot) = reading.finish()?;
        let epoch = standing.map_or(0, |standing| standing.epoch.value());
        let catalog_log = Self {
            epoch: ShardEpoch::new(epoch.saturating_add(1)),
            next,
            last_arrival: standing.map_or(now, |standing| standing.last_arrival),
            since_snapshot,
            log,
        };
        Ok((catalog_log, state, lost))
    }

    pub(super) fn records(&self) -> u64 {
        self.next.value()
    }

    pub(super) fn records_since_snapshot(&self) -> u64 {
        self.since_snapshot
    }

    pub(super) fn housekeeper(&self) -> Housekeeper {
        self.log.housekeeper()
    }

    /// Whether there is room for a change that could also wait, and for many deletes after it.
    pub(super) fn accepts(&self, change: &Change) -> Result<(), CatalogError> {
        let bytes = encode(change)?.bytes().len() as u64;
        Ok(self.log.accepts(bytes.saturating_add(RESERVED_BYTES))?)
    }

    /// Whether there is room for a change that can wait, without what is set aside for those that free
    /// space on a full disk.
    pub(super) fn has_room(&self, change: &Change) -> Result<(), CatalogError> {
        let bytes = encode(change)?.bytes().len() as u64;
        Ok(self.log.accepts(bytes)?)
    }

    /// Makes changes durable, all or none of them.
    pub(super) fn commit(
        &mut self,
        changes: &[Change],
        now: Timestamp,
    ) -> Result<(), CatalogError> {
        let arrival = self.last_arrival.max(now);
        let mut frames = Vec::with_capacity(changes.len());
        let mut base = self.next;
        for change in changes {
            let batch = encode(change)?;
            frames.push(NewFrame {
                shard: SHARD,
                epoch: self.epoch,
                base,
                arrival,
                batch,
            });
            base = base.plus(1);
        }
        self.log.commit(&frames, 0, now)??;
        self.next = base;
        self.last_arrival = arrival;
        self.since_snapshot = self.since_snapshot.saturating_add(changes.len() as u64);
        Ok(())
    }

    /// Writes a whole snapshot, then lets go of what came before it. When that fails nothing is
    /// lost but the room: the older records are still there, and the next one is due as late as if
    /// this one had been written.
    pub(super) fn snapshot(
        &mut self,
        changes: &[Change],
        now: Timestamp,
    ) -> Result<(), CatalogError> {
        let begin = self.next;
        self.since_snapshot = 0;
        let bytes: usize = changes.iter().map(|change| change.encode().len()).sum();
        self.log.accepts(bytes as u64 + RESERVED_BYTES)?;
        let written = self.commit_in_rounds(changes, now);
        self.since_snapshot = 0;
        written?;
        self.log.trim(SHARD, begin);
        // An empty round carries the trim.
        self.log.commit(&[], 0, now)??;
        Ok(())
    }

    fn commit_in_rounds(&mut self, changes: &[Change], now: Timestamp) -> Result<(), CatalogError> {
        let mut rest = changes;
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |change: &&Change| {
                bytes += change.encode().len();
                bytes <= ROUND_BYTES
            };
            let count = rest.iter().take_while(fits).count().max(1);
            let (round, later) = rest.split_at(count);
            self.commit(round, now)?;
            rest = later;
        }
        Ok(())
    }

    pub(super) fn rest(&mut self, now: Timestamp) -> Result<Option<Duration>, CatalogError> {
        if self.log.idle_round_due(now) {
            self.log.commit(&[], 0, now)??;
        }
        Ok(self.log.idle_round_in(now))
    }

    pub(super) fn close(self, now: Timestamp) -> Result<(), CatalogError> {
        Ok(self.log.close(now)?)
    }
}

fn encode(change: &Change) -> Result<Batch, CatalogError> {
    let record = Record {
        partition_key: Bytes::from_static(b"catalog"),
        explicit_hash_key: Some(HashKey::MIN),
        data: Bytes::from(change.encode()),
        client_timestamp: None,
        headers: Vec::new(),
    };
    let mut builder = BatchBuilder::new(RecordLimits::MAX);
    builder.push(&record, HashKey::MIN)?;
    Ok(builder.finish(
        ProducerId::NONE,
        ProducerSequence::new(0),
        Compression::None,
    ))
}

/// Adds up the records from `horizon` up to `end`, all of which must be there.
fn read_all(
    reader: &LogReader,
    horizon: SequenceNumber,
    end: SequenceNumber,
) -> Result<(State, u64), CatalogError> {
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
    reading.finish()
}

const MISSING: &str = "it is missing";

/// Adds records up. An incomplete snapshot counts for nothing: what it repeats is still there.
struct Reading {
    next: SequenceNumber,
    state: State,
    /// What a snapshot that is being read adds up to.
    snapshot: Option<State>,
    since_snapshot: u64,
    /// What was trimmed must stand in a snapshot, which begins where the trimmed records end.
    incomplete_from: Option<SequenceNumber>,
}

impl Reading {
    fn from(horizon: SequenceNumber) -> Self {
        Self {
            next: horizon,
            state: State::default(),
            snapshot: None,
            since_snapshot: 0,
            incomplete_from: Some(horizon).filter(|horizon| *horizon > SequenceNumber::ZERO),
        }
    }

    fn damaged(&self, reason: &'static str) -> CatalogError {
        CatalogError::Damaged {
            record: self.next.value().saturating_add(1),
            reason,
        }
    }

    fn frame(&mut self, frame: &Frame) -> Result<(), CatalogError> {
        if frame.header.base != self.next {
            return Err(self.damaged(MISSING));
        }
        let mut records = frame.batch.records();
        let (Some(record), None) = (records.next(), records.next()) else {
            return Err(self.damaged("its frame holds more than one record"));
        };
        let record = record.map_err(|_| self.damaged("its batch does not decode"))?;
        let change = Change::decode(&record.data).map_err(|reason| self.damaged(reason))?;
        self.next = self.next.plus(1);
        self.apply(change).map_err(|reason| CatalogError::Damaged {
            record: self.next.value(),
            reason,
        })
    }

    fn apply(&mut self, change: Change) -> Result<(), &'static str> {
        let number = self.next.value();
        self.since_snapshot += 1;
        match (&change, self.snapshot.as_mut()) {
            (Change::SnapshotBegin { .. }, _) => {
                let mut state = State::default();
                state.apply(change, number);
                self.snapshot = Some(state);
            }
            (Change::SnapshotStream(_) | Change::SnapshotVouch(_), Some(state)) => {
                state.apply(change, number);
            }
            (Change::SnapshotEnd { streams }, Some(state)) => {
                if state.streams.len() as u64 != u64::from(*streams) {
                    return Err("the snapshot it ends is not complete");
                }
                self.state = self.snapshot.take().unwrap_or_default();
                self.since_snapshot = 0;
                self.incomplete_from = None;
            }
            (
                Change::SnapshotStream(_) | Change::SnapshotVouch(_) | Change::SnapshotEnd { .. },
                None,
            ) => {
                return Err("it belongs to a snapshot that does not begin");
            }
            // The snapshot before it was never finished.
            _ => {
                self.snapshot = None;
                self.state.apply(change, number);
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<(State, u64), CatalogError> {
        match self.incomplete_from {
            None => Ok((self.state, self.since_snapshot)),
            Some(horizon) => Err(CatalogError::Damaged {
                record: horizon.value().saturating_add(1),
                reason: "the snapshot it should begin is not complete",
            }),
        }
    }
}

impl AddUp for Reading {
    fn next(&self) -> SequenceNumber {
        self.next
    }

    fn skip_to(&mut self, next: SequenceNumber) {
        self.next = next;
        // A snapshot that is not whole stands for nothing.
        self.snapshot = None;
    }

    fn take(&mut self, frame: &Frame) -> Result<(), &'static str> {
        self.frame(frame).map_err(|error| match error {
            CatalogError::Damaged { reason, .. } => reason,
            _ => "it cannot be used",
        })
    }
}

impl From<ReadError> for CatalogError {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}
