//! The delivery streams' own log: one round per commit, and beside the changes, piece by piece, a
//! snapshot.
//!
//! A snapshot is not one moment: each delivery stream is written as it is when its turn comes, and
//! changes go on in between. Read from its beginning, what is about one that has not come yet is in
//! the image that follows, and what comes after an image is a change of it.

use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flumen_log::{
    BatchMark, Housekeeper, Log, LogConfig, LogKey, LogReader, NewFrame, Recovery, Replay, Storage,
    Voucher,
};
use flumen_record::{DeliveryId, DeliveryName, SequenceNumber, ShardEpoch, ShardId, Timestamp};

use super::change::encode_stored;
use super::records::{Reading, Records, read_all};
use super::state::State;
use super::{
    DeliveryChange, DeliveryConfig, DeliveryDefinition, DeliveryLogError, DeliveryProgress,
    StoredDelivery,
};
use crate::salvage::{self, LostRecords};

/// The one shard of this log. Streams are numbered from 1.
pub(super) const SHARD: ShardId = ShardId::from_value(0);

/// The log of delivery streams, and what it adds up to. Every change blocks until it is durable.
#[derive(Debug)]
pub struct DeliveryLog {
    log: Log,
    config: DeliveryConfig,
    state: State,
    epoch: ShardEpoch,
    /// Also the number of records so far.
    next: SequenceNumber,
    last_arrival: Timestamp,
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
    /// Those up to this one are written.
    after: DeliveryId,
    bytes: u64,
}

/// What became of the snapshot in one commit, if that is written.
#[derive(Debug, Clone, Copy, Default)]
struct Piece {
    /// It has begun here.
    begins: bool,
    /// It goes on.
    under_way: Option<Snapshot>,
    /// It is complete.
    ended: Option<Snapshot>,
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

impl DeliveryLog {
    /// Opens the log and adds its records up. `now` is the time of day.
    pub fn open(
        storage: Arc<dyn Storage>,
        config: DeliveryConfig,
        now: Timestamp,
    ) -> Result<(Self, Recovery), DeliveryLogError> {
        Self::open_vouched(storage, config, now, None)
    }

    /// [`DeliveryLog::open`] of a log of which the catalog remembers how far it got.
    pub fn open_vouched(
        storage: Arc<dyn Storage>,
        config: DeliveryConfig,
        now: Timestamp,
        voucher: Option<Voucher>,
    ) -> Result<(Self, Recovery), DeliveryLogError> {
        let (key, log_config) = (LogKey::DELIVERIES, log_config());
        let (log, recovery) =
            Log::open_vouched(storage, key, log_config, now, &mut Nobody, voucher)?;
        let shards = &recovery.shards;
        let standing = shards.iter().find(|standing| standing.shard == SHARD);
        let reading = match standing {
            Some(standing) => read_all(&log.reader(), standing.trim_horizon, standing.next)?,
            None => Reading::from(SequenceNumber::ZERO),
        };
        let delivery_log = Self {
            epoch: ShardEpoch::new(
                standing.map_or(1, |standing| standing.epoch.value().saturating_add(1)),
            ),
            next: reading.next,
            last_arrival: reading.last_arrival,
            grown_bytes: reading.bytes,
            snapshot_bytes: 0,
            snapshot: None,
            buffer: Vec::new(),
            state: reading.state,
            config,
            log,
        };
        Ok((delivery_log, recovery))
    }

    /// Opens a log with damaged records, adds up those that are intact, writes what they come to anew,
    /// and closes it: it opens as any other then. Returns which records are lost.
    ///
    /// # Errors
    /// When the log itself does not open, or cannot be written.
    pub fn salvage(
        storage: Arc<dyn Storage>,
        config: DeliveryConfig,
        now: Timestamp,
    ) -> Result<Vec<LostRecords>, DeliveryLogError> {
        let key = LogKey::DELIVERIES;
        let (log, recovery) = Log::open(storage, key, log_config(), now, &mut Nobody)?;
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
            last_arrival: reading.last_arrival,
            grown_bytes: u64::MAX,
            snapshot_bytes: 0,
            snapshot: None,
            buffer: Vec::new(),
            state: reading.state,
            config: DeliveryConfig {
                snapshot_piece_bytes: u64::MAX,
                ..config
            },
            log,
        };
        let mut records = Records::new(Vec::new());
        let piece = salvaged.write_piece(&mut records)?;
        salvaged.put(records, now)?;
        if let Some(ended) = piece.ended {
            salvaged.log.trim(SHARD, ended.begin);
        }
        salvaged.log.commit(&[], 0, now)??;
        salvage::keep_house(salvaged.log.housekeeper(), now)?;
        salvaged.close(now)?;
        Ok(lost)
    }

    /// How many records there are.
    pub fn records(&self) -> u64 {
        self.next.value()
    }

    /// The highest number ever given.
    pub fn last_id(&self) -> DeliveryId {
        self.state.last
    }

    /// All there are, by number.
    pub fn deliveries(&self) -> impl Iterator<Item = (DeliveryId, &StoredDelivery)> {
        self.state
            .deliveries
            .iter()
            .map(|(id, stored)| (*id, stored))
    }

    /// The one with this number.
    pub fn get(&self, id: DeliveryId) -> Option<&StoredDelivery> {
        self.state.deliveries.get(&id)
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
    pub fn begin(&mut self, now: Timestamp) -> Result<(), DeliveryLogError> {
        Ok(self.log.begin(0, now)??)
    }

    /// The last durable catalog record, for the rounds that follow to name.
    pub fn know_catalog(&mut self, record: u64) {
        self.log.know_catalog(record);
    }

    /// Remembers a new one, which gets a number of its own.
    pub fn create(
        &mut self,
        name: DeliveryName,
        settings: Bytes,
        now: Timestamp,
    ) -> Result<DeliveryId, DeliveryLogError> {
        if self.state.named(&name).is_some() {
            return Err(DeliveryLogError::NameTaken { name });
        }
        let count = self.state.deliveries.len() as u64 + 1;
        in_bounds("deliveries", count, self.config.deliveries_max.into())?;
        let id = DeliveryId::new(self.state.last.value().saturating_add(1));
        let definition = DeliveryDefinition {
            name,
            created: now,
            updated: now,
            version: 1,
            paused: false,
            ending: None,
            settings,
        };
        self.check_settings(&definition)?;
        self.commit(&[DeliveryChange::Set { id, definition }], now)?;
        Ok(id)
    }

    /// Makes one do something else. Its name stays what it is.
    pub fn set(
        &mut self,
        id: DeliveryId,
        definition: DeliveryDefinition,
        now: Timestamp,
    ) -> Result<(), DeliveryLogError> {
        let known = self.get(id).ok_or(DeliveryLogError::NotFound { id })?;
        let definition = DeliveryDefinition {
            name: known.definition.name.clone(),
            ..definition
        };
        self.check_settings(&definition)?;
        self.commit(&[DeliveryChange::Set { id, definition }], now)
    }

    fn check_settings(&self, definition: &DeliveryDefinition) -> Result<(), DeliveryLogError> {
        let bytes = definition.settings.len() as u64;
        in_bounds("settings bytes", bytes, self.config.settings_bytes_max)
    }

    /// Remembers how far each came, in one commit: all of them or none. Later ones of the same
    /// replace earlier ones.
    pub fn save(
        &mut self,
        progress: Vec<(DeliveryId, DeliveryProgress)>,
        now: Timestamp,
    ) -> Result<(), DeliveryLogError> {
        let mut changes = Vec::with_capacity(progress.len());
        for (id, progress) in progress {
            if self.get(id).is_none() {
                return Err(DeliveryLogError::NotFound { id });
            }
            self.config.check_progress(&progress)?;
            changes.push(DeliveryChange::Progress { id, progress });
        }
        self.commit(&changes, now)
    }

    /// Forgets one.
    pub fn remove(&mut self, id: DeliveryId, now: Timestamp) -> Result<(), DeliveryLogError> {
        self.get(id).ok_or(DeliveryLogError::NotFound { id })?;
        self.commit(&[DeliveryChange::Removed { id }], now)
    }

    /// Makes changes durable, all or none of them, then does what they say. A piece of a snapshot,
    /// when one is due, goes before them: it shows what was before.
    fn commit(
        &mut self,
        changes: &[DeliveryChange],
        now: Timestamp,
    ) -> Result<(), DeliveryLogError> {
        if changes.is_empty() {
            return Ok(());
        }
        let mut records = Records::new(std::mem::take(&mut self.buffer));
        let piece = self.write_piece(&mut records)?;
        for change in changes {
            records.room()?;
            change.encode(&mut records.bytes);
        }
        let bytes = self.put(records, now)?;
        if piece.begins {
            self.grown_bytes = 0;
        }
        self.grown_bytes = self.grown_bytes.saturating_add(bytes);
        self.snapshot = piece.under_way;
        if let Some(ended) = piece.ended {
            self.snapshot_bytes = ended.bytes;
            // Carried by the next round. Until then, and if the log fails, the old records stay.
            self.log.trim(SHARD, ended.begin);
        }
        for change in changes {
            self.state
                .apply(change)
                .expect("BUG: a change that does not follow was made durable");
        }
        Ok(())
    }

    /// Encodes the next piece of a snapshot, if one is due.
    fn write_piece(&self, records: &mut Records) -> Result<Piece, DeliveryLogError> {
        let due = self
            .snapshot_bytes
            .saturating_mul(self.config.snapshot_growth)
            .max(self.config.snapshot_bytes_min);
        let mut piece = Piece::default();
        let mut snapshot = match self.snapshot {
            Some(snapshot) => snapshot,
            None if self.grown_bytes < due => return Ok(piece),
            None => {
                let last = self.state.last;
                DeliveryChange::SnapshotBegin { last }.encode(&mut records.bytes);
                piece.begins = true;
                Snapshot {
                    begin: self.next,
                    after: DeliveryId::default(),
                    bytes: 0,
                }
            }
        };
        let piece_bytes = self.config.snapshot_piece_bytes.max(1);
        let mut written = 0;
        let rest = (Bound::Excluded(snapshot.after), Bound::Unbounded);
        for (id, stored) in self.state.deliveries.range(rest) {
            if written >= piece_bytes {
                snapshot.bytes = snapshot.bytes.saturating_add(written);
                piece.under_way = Some(snapshot);
                return Ok(piece);
            }
            records.room()?;
            let before = records.bytes.len();
            encode_stored(*id, stored, &mut records.bytes);
            written += (records.bytes.len() - before) as u64;
            snapshot.after = *id;
        }
        snapshot.bytes = snapshot.bytes.saturating_add(written);
        let deliveries = self.state.deliveries.len() as u64;
        DeliveryChange::SnapshotEnd { deliveries }.encode(&mut records.bytes);
        piece.ended = Some(snapshot);
        Ok(piece)
    }

    fn put(&mut self, mut records: Records, now: Timestamp) -> Result<u64, DeliveryLogError> {
        records.finish()?;
        let Records { bytes, batches } = records;
        self.buffer = bytes;
        let arrival = self.last_arrival.max(now);
        let frames: Vec<_> = batches
            .into_iter()
            .zip(self.next.value()..)
            .map(|(batch, base)| NewFrame {
                shard: SHARD,
                epoch: self.epoch,
                base: SequenceNumber::new(base),
                arrival,
                batch,
            })
            .collect();
        let bytes = frames.iter().map(|frame| frame.batch.bytes().len() as u64);
        let bytes = bytes.sum();
        self.log.commit(&frames, 0, now)??;
        self.next = self.next.plus(frames.len() as u64);
        self.last_arrival = arrival;
        Ok(bytes)
    }

    /// What is due while nothing changes: an empty round that vouches for the last record, and names
    /// this catalog record. In how long there is something again;
    /// `None`: after the next change.
    pub fn rest(
        &mut self,
        catalog: u64,
        now: Timestamp,
    ) -> Result<Option<Duration>, DeliveryLogError> {
        self.log.name_catalog(catalog);
        if self.log.idle_round_due(now) {
            self.log.commit(&[], 0, now)??;
        }
        Ok(self.log.idle_round_in(now))
    }

    /// Syncs and closes.
    pub fn close(self, now: Timestamp) -> Result<(), DeliveryLogError> {
        Ok(self.log.close(now)?)
    }
}

pub(super) fn in_bounds(
    setting: &'static str,
    value: u64,
    max: u64,
) -> Result<(), DeliveryLogError> {
    if value > max {
        return Err(DeliveryLogError::OutOfBounds {
            setting,
            value,
            min: 0,
            max,
        });
    }
    Ok(())
}
