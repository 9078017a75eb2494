//! Which streams and shards there are: one record per change in a small log of its own, synced
//! before the answer.

mod catalog_log;
mod change;
mod stream_info;
#[cfg(test)]
mod tests;
mod vouched;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use flumen_log::{Housekeeper, LogKey, Recovery, StayId, Stays, Storage};
use flumen_record::{
    HashRange, ProducerId, SequenceNumber, ShardId, ShardIndex, StreamId, StreamName, Timestamp,
};

use self::catalog_log::CatalogLog;
use self::change::Change;
use self::stream_info::lane_of;
use crate::salvage::{self, LostRecords};
use crate::{CatalogError, Reshard, StreamConfig};

pub use stream_info::{
    Move, NewStream, ShardInfo, ShardState, StreamInfo, StreamSettings, StreamUpdate,
};
pub use vouched::Vouched;

/// Everything the records of the catalog add up to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct State {
    streams: BTreeMap<StreamName, Arc<StreamInfo>>,
    names: BTreeMap<StreamId, StreamName>,
    /// Stream numbers are never used again.
    next_stream: u32,
    /// Producer ids up to this one may have been issued.
    reserved: u64,
    /// How far other logs have got.
    vouched: BTreeMap<LogKey, Vouched>,
    /// The last record since the snapshot that is not about that.
    last_change: u64,
}

impl State {
    fn put(&mut self, stream: StreamInfo) {
        self.next_stream = self.next_stream.max(stream.id.value().saturating_add(1));
        self.names.insert(stream.id, stream.name.clone());
        self.streams.insert(stream.name.clone(), Arc::new(stream));
    }

    /// Makes the change that catalog record `number` stands for.
    fn apply(&mut self, change: Change, number: u64) {
        if change.is_of_streams() {
            self.last_change = number;
        }
        match change {
            Change::Stream(stream) | Change::SnapshotStream(stream) => self.put(stream),
            Change::Deleted(stream) => {
                if let Some(name) = self.names.remove(&stream) {
                    self.streams.remove(&name);
                }
            }
            Change::Producers { reserved } => self.reserved = self.reserved.max(reserved),
            Change::SnapshotBegin {
                reserved,
                next_stream,
            } => {
                self.reserved = self.reserved.max(reserved);
                self.next_stream = self.next_stream.max(next_stream);
            }
            Change::SnapshotEnd { .. } => {}
            Change::PlacementsDropped(dropped) => {
                let dropped = dropped.iter().map(|(shard, log)| (*shard, *log));
                self.drop_from(dropped, number, |stream, shard, log| {
                    stream.drop_oldest_in(shard, log);
                });
            }
            Change::StaysDropped(dropped) => {
                let dropped = dropped.iter().map(|stay| (stay.shard, stay.epoch));
                self.drop_from(dropped, number, |stream, shard, epoch| {
                    stream.drop_stays(shard, epoch);
                });
            }
            Change::Vouch(vouched) | Change::SnapshotVouch(vouched) => self.vouch(vouched),
        }
    }

    /// Takes what was `dropped` from each stream that it names; those of a stream come together.
    fn drop_from<T: Copy>(
        &mut self,
        dropped: impl Iterator<Item = (ShardId, T)>,
        number: u64,
        drop: impl Fn(&mut StreamInfo, ShardIndex, T),
    ) {
        let dropped: Vec<(ShardId, T)> = dropped.collect();
        let of_one_stream =
            |one: &(ShardId, T), other: &(ShardId, T)| one.0.stream() == other.0.stream();
        for dropped in dropped.chunk_by(of_one_stream) {
            let stream = dropped
                .first()
                .and_then(|(shard, _)| self.by_id(shard.stream()));
            let Some(stream) = stream else { continue };
            let mut stream = StreamInfo::clone(stream);
            for (shard, what) in dropped {
                drop(&mut stream, shard.index(), *what);
            }
            stream.version = number;
            self.put(stream);
        }
    }

    fn by_id(&self, id: StreamId) -> Option<&Arc<StreamInfo>> {
        self.streams.get(self.names.get(&id)?)
    }
}

/// The catalog of one node. Every change blocks until it is durable.
#[derive(Debug)]
pub struct Catalog {
    config: StreamConfig,
    state: State,
    log: CatalogLog,
    /// The highest producer id that was issued, or may have been by an earlier process.
    issued: u64,
    /// Ids above the first and up to the second were never issued here.
    never_issued: (u64, u64),
}

impl Catalog {
    /// Opens the catalog's log and reads the last snapshot and what follows it.
    pub fn open(
        storage: Arc<dyn Storage>,
        config: StreamConfig,
        now: Timestamp,
    ) -> Result<(Self, Recovery), CatalogError> {
        let (log, state, recovery) = CatalogLog::open(storage, now)?;
        // Above what any process of this directory issued, or of another that has come further than a
        // copy of it: ids are a time of day, and fewer than one is issued in a microsecond.
        let issued = state.reserved.max(now.as_micros());
        Ok((
            Self {
                never_issued: (state.reserved, issued),
                config,
                state,
                log,
                issued,
            },
            recovery,
        ))
    }

    /// Opens a catalog with damaged records: its newest whole snapshot and the intact records after it.
    /// What comes of that is written as a new snapshot by [`Catalog::close_salvaged`]. Returns which
    /// records are lost too.
    ///
    /// # Errors
    /// When its log does not open, or no whole snapshot is left of one.
    pub fn salvage(
        storage: Arc<dyn Storage>,
        config: StreamConfig,
        now: Timestamp,
    ) -> Result<(Self, Vec<LostRecords>), CatalogError> {
        let (log, state, lost) = CatalogLog::salvage(storage, now)?;
        let issued = state.reserved.max(now.as_micros());
        let catalog = Self {
            never_issued: (state.reserved, issued),
            config,
            state,
            log,
            issued,
        };
        Ok((catalog, lost))
    }

    /// Writes what was salvaged as a snapshot, which takes the place of damaged records, and closes.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn close_salvaged(mut self, now: Timestamp) -> Result<(), CatalogError> {
        self.snapshot(now)?;
        salvage::keep_house(self.log.housekeeper(), now)?;
        self.close(now)
    }

    /// Refuses a catalog that ends below the record a data log names.
    pub fn check_named(&self, named: u64) -> Result<(), CatalogError> {
        let found = self.last_record();
        if named > found {
            Err(CatalogError::Behind { found, named })
        } else {
            Ok(())
        }
    }

    /// The last durable catalog record: what rounds of data logs name. 0: there is none.
    pub fn last_record(&self) -> u64 {
        self.log.records()
    }

    /// The last record that changed something, and does not only say how far logs have got.
    pub fn last_change(&self) -> u64 {
        self.state.last_change
    }

    /// The stream of this name.
    pub fn stream(&self, name: &StreamName) -> Option<Arc<StreamInfo>> {
        self.state.streams.get(name).map(Arc::clone)
    }

    /// The stream with this number.
    pub fn stream_by_id(&self, id: StreamId) -> Option<Arc<StreamInfo>> {
        self.state.by_id(id).map(Arc::clone)
    }

    /// All streams, by name.
    pub fn streams(&self) -> impl Iterator<Item = &Arc<StreamInfo>> {
        self.state.streams.values()
    }

    /// Creates a stream.
    pub fn create(
        &mut self,
        new: NewStream,
        now: Timestamp,
    ) -> Result<Arc<StreamInfo>, CatalogError> {
        if self.state.streams.contains_key(&new.name) {
            return Err(CatalogError::AlreadyExists { name: new.name });
        }
        let streams = self.state.streams.len() as u64 + 1;
        in_bounds("streams", streams, 0, u64::from(self.config.streams_max))?;
        let shards_max = u64::from(self.config.shards_per_stream_max);
        in_bounds("shards", u64::from(new.shards), 1, shards_max)?;
        new.settings.check()?;
        let id = u64::from(self.state.next_stream.max(1));
        in_bounds("streams ever created", id, 1, u64::from(u32::MAX) - 1)?;
        let id = StreamId::new(self.state.next_stream.max(1));
        let slices = NonZeroU32::new(new.shards).map(HashRange::even_slices);
        let lanes = self.config.lanes_per_class;
        let shards = slices.into_iter().flatten().zip(0..).map(|(range, index)| {
            let index = ShardIndex::new(index);
            let log = Self::log_for(&new.settings, lane_of(id, index, lanes));
            ShardInfo {
                id: ShardId::new(id, index),
                range,
                state: ShardState::Open,
                parents: Vec::new(),
                stays: Stays::begin(log),
            }
        });
        let stream = StreamInfo {
            id,
            name: new.name.clone(),
            shards: shards.collect(),
            settings: new.settings,
            created: now,
            version: self.next_version(),
            routes: Vec::new(),
        };
        let change = Change::Stream(stream.arrange());
        // Other changes make room or let go; this one alone may be refused for want of space.
        self.log.accepts(&change)?;
        self.commit(change, now)?;
        self.expect_stream(&new.name)
    }

    /// Changes settings. When level or retention class change, the caller has made the shards'
    /// last rounds durable and hands in from where and under which epoch each goes on (`moves`), so
    /// that their new stay is part of the same record.
    pub fn update(
        &mut self,
        name: &StreamName,
        update: &StreamUpdate,
        moves: &[Move],
        now: Timestamp,
    ) -> Result<Arc<StreamInfo>, CatalogError> {
        let mut stream = StreamInfo::clone(&*self.expect_stream(name)?);
        stream.settings = update.applied_to(&stream.settings);
        stream.settings.check()?;
        stream.move_shards(moves)?;
        stream.version = self.next_version();
        self.commit(Change::Stream(stream.arrange()), now)?;
        self.expect_stream(name)
    }

    /// Splits and merges shards, in one record: parents close at the numbers in `ends`, where the
    /// caller has made their last rounds durable, and children open.
    pub fn reshard(
        &mut self,
        name: &StreamName,
        steps: &[Reshard],
        ends: &[(ShardIndex, SequenceNumber)],
        now: Timestamp,
    ) -> Result<Arc<StreamInfo>, CatalogError> {
        let mut stream = StreamInfo::clone(&*self.expect_stream(name)?);
        let bounds = (
            self.config.shards_per_stream_max,
            self.config.lanes_per_class,
        );
        stream
            .reshard(steps, ends, bounds, now)
            .map_err(|refusal| CatalogError::Reshard {
                stream: name.clone(),
                refusal,
            })?;
        stream.version = self.next_version();
        self.commit(Change::Stream(stream.arrange()), now)?;
        self.expect_stream(name)
    }

    /// Drops closed shards, of which nothing is kept any more, from a stream.
    pub fn expire_shards(
        &mut self,
        name: &StreamName,
        expired: &[ShardIndex],
        now: Timestamp,
    ) -> Result<Arc<StreamInfo>, CatalogError> {
        let before = self.expect_stream(name)?;
        let mut stream = StreamInfo::clone(&*before);
        stream.expire(expired);
        if stream.shards.len() == before.shards.len() {
            return Ok(before);
        }
        stream.version = self.next_version();
        self.commit(Change::Stream(stream.arrange()), now)?;
        self.expect_stream(name)
    }

    /// Deletes a stream; returns what it was, for the caller to forget its shards.
    pub fn delete(
        &mut self,
        name: &StreamName,
        now: Timestamp,
    ) -> Result<Arc<StreamInfo>, CatalogError> {
        let stream = self.expect_stream(name)?;
        self.commit(Change::Deleted(stream.id), now)?;
        Ok(stream)
    }

    /// Drops the stays of shards up to those named, of which nothing is kept any more, best those of a
    /// stream together: one record. A shard's last one remains. Unknown shards are fine: their stream
    /// was deleted meanwhile.
    pub fn drop_stays(&mut self, dropped: &[StayId], now: Timestamp) -> Result<(), CatalogError> {
        let has_effect = |stay: &&StayId| {
            let stream = self.state.by_id(stay.shard.stream());
            let shard = stream.and_then(|stream| stream.shard(stay.shard.index()));
            shard.is_some_and(|shard| {
                shard.stays.len() > 1 && shard.stays.first().epoch() <= stay.epoch
            })
        };
        let dropped: Vec<_> = dropped.iter().filter(has_effect).copied().collect();
        if dropped.is_empty() {
            return Ok(());
        }
        self.commit(Change::StaysDropped(dropped), now)
    }

    /// A new producer id; reserves a durable block when the last one is used up.
    pub fn issue_producer(&mut self, now: Timestamp) -> Result<ProducerId, CatalogError> {
        let id = self.issued.saturating_add(1);
        if id > self.state.reserved {
            let room = u64::from(self.config.producer_id_block.max(1));
            let reserved = self.issued.saturating_add(room);
            let change = Change::Producers { reserved };
            // Who wants to append can wait for space; what frees some cannot.
            self.log.has_room(&change)?;
            self.commit(change, now)?;
        }
        self.issued = id;
        Ok(ProducerId::new(id))
    }

    /// Producer ids above the first and up to the second were never issued by this directory. One that
    /// turns up was by another, of which this one is a copy, or an older state.
    pub fn producers_never_issued(&self) -> (ProducerId, ProducerId) {
        let (above, up_to) = self.never_issued;
        (ProducerId::new(above), ProducerId::new(up_to))
    }

    /// The highest producer id that can have been issued.
    pub fn producers_issued(&self) -> ProducerId {
        ProducerId::new(self.issued)
    }

    /// The log a stream with these settings writes to: retention rounds up to a class.
    pub fn log_for(settings: &StreamSettings, lane: u32) -> LogKey {
        settings.log(lane)
    }

    /// The handle of the background thread of the catalog's log.
    pub fn housekeeper(&self) -> Housekeeper {
        self.log.housekeeper()
    }

    /// What is due while nothing changes: an empty round that vouches for the last record. In how long
    /// there is something again; `None`: after the next change.
    pub fn rest(&mut self, now: Timestamp) -> Result<Option<Duration>, CatalogError> {
        self.log.rest(now)
    }

    /// Syncs and closes.
    pub fn close(self, now: Timestamp) -> Result<(), CatalogError> {
        self.log.close(now)
    }

    fn next_version(&self) -> u64 {
        self.last_record().saturating_add(1)
    }

    fn expect_stream(&self, name: &StreamName) -> Result<Arc<StreamInfo>, CatalogError> {
        self.stream(name)
            .ok_or_else(|| CatalogError::NotFound { name: name.clone() })
    }

    /// Makes a change durable, then true.
    fn commit(&mut self, change: Change, now: Timestamp) -> Result<(), CatalogError> {
        self.log.commit(std::slice::from_ref(&change), now)?;
        self.state.apply(change, self.log.records());
        if self.log.records_since_snapshot() >= u64::from(self.config.catalog_snapshot_records) {
            // The change stands, whatever becomes of the snapshot: a log that has failed for good
            // refuses the next change, and a full disk only costs the older records' room.
            let _ = self.snapshot(now);
        }
        Ok(())
    }

    /// Writes the whole catalog again, so that older records can go.
    fn snapshot(&mut self, now: Timestamp) -> Result<(), CatalogError> {
        let State {
            next_stream,
            reserved,
            ..
        } = self.state;
        let mut changes = vec![Change::SnapshotBegin {
            reserved,
            next_stream,
        }];
        if !self.state.vouched.is_empty() {
            changes.push(Change::SnapshotVouch(self.state.all_vouched()));
        }
        let streams = self.state.streams.values();
        changes.extend(streams.map(|stream| Change::SnapshotStream(StreamInfo::clone(stream))));
        let streams =
            u32::try_from(self.state.streams.len()).expect("BUG: streams are numbered in 32 bits");
        changes.push(Change::SnapshotEnd { streams });
        self.log.snapshot(&changes, now)
    }
}

/// Whether a setting's value is allowed.
fn in_bounds(setting: &'static str, value: u64, min: u64, max: u64) -> Result<(), CatalogError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(CatalogError::OutOfBounds {
        setting,
        value,
        min,
        max,
    })
}
