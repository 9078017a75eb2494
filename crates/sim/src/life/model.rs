//! What the node must do, plainly: which records there are, where they lie, what may be gone.
//!
//! It learns from acks and from what readers see, and says of each whether it can be. Nothing here
//! knows how the broker works; times are the simulation's own.

mod expiry;
mod group;
mod shard;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flumen_broker::{StreamDescription, StreamSettings};
use flumen_record::{DeliveryName, Durability, HashKey, StreamId, StreamName, Timestamp};

pub(crate) use expiry::{BATCH_RECORDS_MAX, WallClock};
pub(crate) use group::{GroupKey, GroupModel};
pub(crate) use shard::{Place, ShardModel};

use flumen_world::Clock;

use crate::life::delivering::DeliveryModel;
use crate::life::trace::Trace;

/// The number of a record, written into its data.
pub(crate) type RecordId = u64;

/// A promise is broken; what.
pub(crate) type Checked = Result<(), String>;

/// What is known of a record.
#[derive(Debug, Clone)]
pub(crate) struct RecordModel {
    /// The stream it was sent to.
    pub(crate) stream: StreamId,
    /// Where its key falls.
    pub(crate) key: HashKey,
    /// Under which producer id; 0 without one.
    pub(crate) producer: u64,
    /// Bytes it takes when it is stored, at most.
    pub(crate) bytes: u64,
    /// When it was first sent, by the simulation's time.
    pub(crate) sent: Duration,
    /// Attempts that are not answered.
    pub(crate) in_flight: u32,
    /// Some attempt may have stored it without anybody having been told.
    pub(crate) unsure: bool,
    /// What the best ack promised, and when that came.
    pub(crate) acked: Option<(Durability, Duration)>,
    /// Where it lies, once an ack or a reader has said so.
    pub(crate) place: Option<Place>,
    /// The level it was stored at allows that it is gone since the last power cut.
    pub(crate) doubtful: bool,
    /// It is gone, and may be.
    pub(crate) lost: bool,
}

impl RecordModel {
    /// Whether a reader must find it, unless it has expired.
    pub(crate) fn must_exist(&self) -> bool {
        self.acked.is_some() && !self.doubtful && !self.lost
    }

    /// Whether a reader may find it.
    pub(crate) fn may_exist(&self) -> bool {
        self.acked.is_some() || self.in_flight > 0 || self.unsure
    }
}

/// A change of a stream that is not answered.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// It is being created.
    Create,
    /// It is being deleted.
    Delete,
    /// It gets other settings.
    Update(Box<StreamSettings>),
    /// Shards are split or merged.
    Reshard,
}

/// One life of a stream, from its creation to its deletion.
#[derive(Debug)]
pub(crate) struct StreamModel {
    pub(crate) id: StreamId,
    pub(crate) name: StreamName,
    pub(crate) settings: StreamSettings,
    pub(crate) pending: Option<Change>,
    pub(crate) is_deleted: bool,
    pub(crate) shards: BTreeMap<u32, ShardModel>,
    /// What was sent before this may be gone.
    pub(crate) expired_before: Duration,
    /// Bounds in bytes that were in force since horizons were last looked at.
    pub(crate) byte_bounds: BTreeSet<u64>,
    /// Level and class it was ever at; what is unclean about `memory` stays for its shards.
    pub(crate) levels: BTreeSet<u8>,
    /// A `memory` log of it ended uncleanly, or something of it is damaged: numbers may jump,
    /// producers may be forgotten.
    pub(crate) may_jump: bool,
}

/// All of it.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) trace: Trace,
    /// The simulation's time, when it was last looked at.
    pub(crate) now: Duration,
    /// What it goes by: the clock of the process, which began at `base`.
    pub(crate) clock: Clock,
    pub(crate) base: Duration,
    pub(crate) wall: WallClock,
    pub(crate) streams: BTreeMap<StreamId, StreamModel>,
    /// Streams that exist, as far as anybody was told.
    pub(crate) names: BTreeMap<StreamName, StreamId>,
    /// Streams whose creation is not answered.
    pub(crate) creating: BTreeMap<StreamName, StreamSettings>,
    /// By their number.
    pub(crate) records: Vec<RecordModel>,
    /// The first broken promise.
    pub(crate) violation: Option<String>,
    /// Something on disk was damaged: typed loss is legal from now on.
    pub(crate) is_damaged: bool,
    /// The disk fails, is full, or the node is ending: refusals that say so are legal.
    pub(crate) is_failing: bool,
    /// A log was emptied: it is to be refused.
    pub(crate) lost_log: bool,
    /// The power goes any moment.
    pub(crate) is_dying: bool,
    /// The node is shutting down.
    pub(crate) is_ending: bool,
    /// Consumer groups.
    pub(crate) groups: BTreeMap<GroupKey, GroupModel>,
    /// Delivery streams.
    pub(crate) deliveries: BTreeMap<DeliveryName, DeliveryModel>,
    /// Counts of what happened.
    pub(crate) counts: BTreeMap<&'static str, u64>,
}

pub(crate) fn level_code(level: Durability) -> u8 {
    match level {
        Durability::Memory => 1,
        Durability::Disk => 2,
    }
}

impl StreamModel {
    pub(crate) fn new(description: &StreamDescription) -> Self {
        let mut stream = Self {
            id: description.id,
            name: description.name.clone(),
            settings: description.settings.clone(),
            pending: None,
            is_deleted: false,
            shards: BTreeMap::new(),
            expired_before: Duration::ZERO,
            byte_bounds: BTreeSet::new(),
            levels: BTreeSet::new(),
            may_jump: false,
        };
        stream.note_settings();
        stream
    }

    /// What the settings in force permit from now on.
    pub(crate) fn note_settings(&mut self) {
        self.levels.insert(level_code(self.settings.durability));
        self.byte_bounds.extend(self.settings.retention_bytes);
        if let Some(Change::Update(settings)) = &self.pending {
            self.levels.insert(level_code(settings.durability));
            self.byte_bounds.extend(settings.retention_bytes);
        }
    }

    pub(crate) fn shard_mut(&mut self, index: u32) -> &mut ShardModel {
        self.shards.entry(index).or_default()
    }

    /// The shards that take appends, as far as is known.
    pub(crate) fn open_shards(&self) -> Vec<u32> {
        let open = self.shards.iter().filter(|(_, shard)| shard.is_open());
        open.map(|(index, _)| *index).collect()
    }
}

impl Model {
    pub(crate) fn new(start: Timestamp, tell_trace: bool) -> Self {
        Self {
            trace: Trace::new(tell_trace),
            now: Duration::ZERO,
            clock: Clock::manual(start),
            base: Duration::ZERO,
            wall: WallClock::new(start),
            streams: BTreeMap::new(),
            names: BTreeMap::new(),
            creating: BTreeMap::new(),
            records: Vec::new(),
            violation: None,
            is_damaged: false,
            is_failing: false,
            lost_log: false,
            is_dying: false,
            is_ending: false,
            groups: BTreeMap::new(),
            deliveries: BTreeMap::new(),
            counts: BTreeMap::new(),
        }
    }

    /// What time it is.
    pub(crate) fn look(&mut self) -> Duration {
        self.now = self.base + self.clock.monotonic();
        self.now
    }

    /// Counts something that happened.
    pub(crate) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Writes a line of the trace.
    pub(crate) fn say(&mut self, line: impl FnOnce() -> String) {
        let now = self.look();
        self.trace.line(now, line);
    }

    /// Keeps the first broken promise.
    pub(crate) fn check(&mut self, checked: Checked) {
        if let Err(what) = checked {
            self.say(|| format!("VIOLATION {what}"));
            self.violation.get_or_insert(what);
        }
    }

    pub(crate) fn stream(&self, name: &StreamName) -> Option<&StreamModel> {
        self.streams.get(self.names.get(name)?)
    }

    /// The record of this number, as far as there is one.
    pub(crate) fn record(&self, id: RecordId) -> Option<&RecordModel> {
        self.records.get(usize::try_from(id).ok()?)
    }

    pub(crate) fn record_mut(&mut self, id: RecordId) -> Option<&mut RecordModel> {
        self.records.get_mut(usize::try_from(id).ok()?)
    }

    /// A record that is about to be sent.
    pub(crate) fn new_record(
        &mut self,
        stream: StreamId,
        key: HashKey,
        producer: u64,
        bytes: u64,
    ) -> RecordId {
        let sent = self.look();
        self.records.push(RecordModel {
            stream,
            key,
            producer,
            bytes,
            sent,
            in_flight: 0,
            unsure: false,
            acked: None,
            place: None,
            doubtful: false,
            lost: false,
        });
        self.records.len() as RecordId - 1
    }

    /// An attempt to store it begins.
    pub(crate) fn attempt(&mut self, id: RecordId) {
        if let Some(record) = self.record_mut(id) {
            record.in_flight += 1;
        }
    }

    /// An attempt failed. `stored`: some attempt may have stored it all the same.
    pub(crate) fn not_acked(&mut self, id: RecordId, stored: bool) {
        if let Some(record) = self.record_mut(id) {
            record.in_flight = record.in_flight.saturating_sub(1);
            record.unsure |= stored;
        }
    }

    /// Nobody will answer what is under way: the node is gone.
    pub(crate) fn nobody_answers(&mut self) {
        for record in &mut self.records {
            if record.in_flight > 0 {
                record.in_flight = 0;
                record.unsure = true;
            }
        }
    }

    /// A shard says that it has never stored this record, and never will.
    pub(crate) fn never_stored(&mut self, id: RecordId, by: &str) -> Checked {
        let Some(record) = self.record_mut(id) else {
            return Ok(());
        };
        record.in_flight = record.in_flight.saturating_sub(1);
        if record.must_exist() {
            let place = record.place;
            return Err(format!(
                "record {id} was acknowledged at {place:?}, and is now said not to be stored ({by})"
            ));
        }
        if record.in_flight == 0 {
            record.unsure = false;
            record.acked = None;
            record.place = None;
        }
        Ok(())
    }

    /// It was acknowledged.
    pub(crate) fn acked(&mut self, id: RecordId, place: Place, level: Durability) -> Checked {
        let now = self.look();
        let stamp = self.wall.check_stamp(now, place.arrival);
        let Some(record) = self.record_mut(id) else {
            return Err(format!("record {id} is acknowledged and was never sent"));
        };
        record.in_flight = record.in_flight.saturating_sub(1);
        if let Some(before) = record.place
            && before != place
            && record.must_exist()
        {
            return Err(format!(
                "record {id} lies at {before:?} and is acknowledged at {place:?}"
            ));
        }
        record.acked = Some((level, now));
        (record.doubtful, record.lost, record.unsure) = (false, false, false);
        self.locate(id, place)?;
        stamp.map_err(|wrong| format!("record {id} at {place:?}: {wrong}"))
    }

    /// A reader found it.
    pub(crate) fn seen(&mut self, stream: StreamId, id: RecordId, place: Place) -> Checked {
        let Some(record) = self.record_mut(id) else {
            return Err(format!("record {id} at {place:?} was never sent"));
        };
        if record.stream != stream {
            let meant = record.stream.value();
            return Err(format!(
                "record {id} of stream {meant} lies in stream {} at {place:?}",
                stream.value()
            ));
        }
        if !record.may_exist() {
            return Err(format!(
                "record {id} was refused for good and lies at {place:?}"
            ));
        }
        if record.lost {
            // Lost, sent again, and stored again: it has another place now.
            if record.in_flight == 0 && !record.unsure && record.place != Some(place) {
                return Err(format!("record {id} was lost and is at {place:?}"));
            }
            record.lost = false;
        }
        record.doubtful = false;
        if let Some(before) = record.place
            && before != place
            && (record.acked.is_some())
            && !record.unsure
            && record.in_flight == 0
        {
            return Err(format!("record {id} lies at {before:?} and at {place:?}"));
        }
        self.locate(id, place)
    }

    /// Where a record lies: nothing else ever lay there, and it lies nowhere else.
    fn locate(&mut self, id: RecordId, place: Place) -> Checked {
        let Some(record) = self
            .records
            .get_mut(usize::try_from(id).unwrap_or(usize::MAX))
        else {
            return Err(format!("there is no record {id}"));
        };
        let was = record.place.replace(place);
        let (stream, key, gone) = (record.stream, record.key, record.lost);
        let Some(stream) = self.streams.get_mut(&stream) else {
            return Err(format!("record {id} lies in a stream that never was"));
        };
        if let Some(was) = was
            && was != place
            && !gone
            && let Some(shard) = stream.shards.get(&was.shard)
            && !shard.is_gone(was.number)
        {
            return Err(format!(
                "record {id} is stored twice, at {was:?} and {place:?}"
            ));
        }
        stream.shard_mut(place.shard).put(id, key, place)
    }
}
