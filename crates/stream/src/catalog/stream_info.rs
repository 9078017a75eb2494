//! What the catalog knows of a stream, and what a user can set about it.

use std::time::Duration;

use flumen_log::{LogKey, Stays};
use flumen_record::{
    Durability, HashKey, HashRange, SequenceNumber, ShardEpoch, ShardId, ShardIndex, StreamId,
    StreamIncarnation, StreamName, Timestamp,
};

use super::in_bounds;
use crate::CatalogError;
use crate::auto_scale::{AutoScale, AutoScaleUpdate};
use crate::reshard::{self, Reshard, ReshardError};
use crate::retention::{RETENTION_MAX, RETENTION_MIN, retention_class};

/// As many shards as a stream can have.
const AUTO_SCALE_SHARDS_MAX: u64 = 10_000;
/// Stays of one shard at most. They leave with the records that lie there.
const STAYS_MAX: u64 = 1_000;
const AUTO_SCALE_TIME_MAX: Duration = Duration::from_hours(24);

/// What a user can set about a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamSettings {
    /// What an ack promises.
    pub durability: Durability,
    /// Records are kept this long by arrival time: 1 h to 8760 h. Default 168 h.
    pub retention: Duration,
    /// And at most about this many stored bytes per stream, oldest trimmed first.
    pub retention_bytes: Option<u64>,
    /// Data, key and headers of one record: 1 KiB to 10 MiB. Default 1 MiB.
    pub max_record_bytes: u64,
    /// Shards are split and merged by load; `None`: by hand.
    pub auto_scale: Option<AutoScale>,
}

impl Default for StreamSettings {
    fn default() -> Self {
        Self {
            durability: Durability::Disk,
            retention: Duration::from_secs(168 * 3600),
            retention_bytes: None,
            max_record_bytes: 1 << 20,
            auto_scale: None,
        }
    }
}

impl StreamSettings {
    /// Refuses what is outside its bounds.
    pub fn check(&self) -> Result<(), CatalogError> {
        let hours = |duration: Duration| duration.as_secs() / 3600;
        let retention = hours(self.retention);
        // Whole hours would let 8760 h and 59 min pass.
        let retention = if self.retention > RETENTION_MAX {
            retention + 1
        } else {
            retention
        };
        in_bounds(
            "retention in hours",
            retention,
            hours(RETENTION_MIN),
            hours(RETENTION_MAX),
        )?;
        in_bounds("max-record-size", self.max_record_bytes, 1 << 10, 10 << 20)?;
        if let Some(bound) = self.retention_bytes {
            in_bounds("retention-bytes", bound, 1, u64::MAX)?;
        }
        self.auto_scale.as_ref().map_or(Ok(()), check_auto_scale)
    }

    /// The log a stream with these settings writes to: retention rounds up to a class.
    pub(super) fn log(&self, lane: u32) -> LogKey {
        LogKey {
            durability: self.durability,
            class_hours: retention_class(self.retention),
            lane,
        }
    }
}

/// Refuses settings under which shards would be split and merged in turns, or never.
fn check_auto_scale(auto_scale: &AutoScale) -> Result<(), CatalogError> {
    let AutoScale {
        shards_min,
        shards_max,
        split_above_percent,
        merge_below_percent,
        ..
    } = *auto_scale;
    let (least, most) = (u64::from(shards_min), u64::from(shards_max));
    in_bounds("auto-scale, at most", most, 1, AUTO_SCALE_SHARDS_MAX)?;
    in_bounds("auto-scale, at least", least, 1, most)?;
    let rates = [auto_scale.shard_bytes_per_s, auto_scale.shard_records_per_s];
    let rate = rates.into_iter().flatten().max().unwrap_or(0);
    in_bounds(
        "scale-bytes-per-s or scale-records-per-s",
        rate,
        1,
        u64::MAX,
    )?;
    let above = u64::from(split_above_percent);
    in_bounds("scale-split-above", above, 1, 100)?;
    in_bounds(
        "scale-merge-below",
        u64::from(merge_below_percent),
        0,
        above - 1,
    )?;
    let day = AUTO_SCALE_TIME_MAX.as_secs();
    for (setting, time, least) in [
        ("scale-split-after in seconds", auto_scale.split_after, 1),
        ("scale-merge-after in seconds", auto_scale.merge_after, 1),
        ("scale-cool-down in seconds", auto_scale.cool_down, 0),
    ] {
        in_bounds(setting, time.as_secs(), least, day)?;
    }
    Ok(())
}

/// A stream to create.
#[derive(Debug, Clone)]
pub struct NewStream {
    /// Its name.
    pub name: StreamName,
    /// Shards, equal slices of the key space; the last takes the remainder.
    pub shards: u32,
    /// Its settings.
    pub settings: StreamSettings,
}

/// What to change about a stream; `None` leaves a setting as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StreamUpdate {
    /// New level.
    pub durability: Option<Durability>,
    /// New retention.
    pub retention: Option<Duration>,
    /// New bound in bytes; `Some(None)` lifts it.
    pub retention_bytes: Option<Option<u64>>,
    /// New record limit.
    pub max_record_bytes: Option<u64>,
    /// Splitting and merging by load.
    pub auto_scale: Option<AutoScaleUpdate>,
}

impl StreamUpdate {
    /// What `settings` become by it.
    #[must_use]
    pub fn applied_to(&self, settings: &StreamSettings) -> StreamSettings {
        StreamSettings {
            durability: self.durability.unwrap_or(settings.durability),
            retention: self.retention.unwrap_or(settings.retention),
            retention_bytes: self.retention_bytes.unwrap_or(settings.retention_bytes),
            max_record_bytes: self.max_record_bytes.unwrap_or(settings.max_record_bytes),
            auto_scale: match &self.auto_scale {
                Some(update) => update.applied_to(settings.auto_scale),
                None => settings.auto_scale,
            },
        }
    }
}

/// A shard that goes on in another log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// Which.
    pub shard: ShardIndex,
    /// Its first number there: everything below is on disk where it was.
    pub from: SequenceNumber,
    /// Its epoch there.
    pub epoch: ShardEpoch,
}

/// Whether a shard takes appends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardState {
    /// It does.
    Open,
    /// It was split or merged; readable until its retention ends.
    Closed {
        /// First number it never gave out.
        end: SequenceNumber,
        /// When it closed.
        at: Timestamp,
    },
}

/// One shard of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardInfo {
    /// Its number.
    pub id: ShardId,
    /// The slice of the key space it owns.
    pub range: HashRange,
    /// Whether it takes appends.
    pub state: ShardState,
    /// The shards it was split or merged from.
    pub parents: Vec<ShardIndex>,
    /// Where its frames lie. More than one after a change of level or class. The last one of a closed
    /// shard is open, too: where it ends its state says.
    pub stays: Stays,
}

/// One stream as the catalog knows it. Shared, replaced as a whole on every change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamInfo {
    /// Its number.
    pub id: StreamId,
    /// Its name.
    pub name: StreamName,
    /// Its settings.
    pub settings: StreamSettings,
    /// When it was created.
    pub created: Timestamp,
    /// Changes with every change of the stream: the number of the catalog record that made it.
    pub version: u64,
    /// All shards that are not expired, by index.
    pub shards: Vec<ShardInfo>,
    /// Open shards by the start of their range: (start, place in `shards`).
    pub(crate) routes: Vec<(HashKey, usize)>,
}

impl StreamInfo {
    /// What tells it from another stream of its name.
    pub fn incarnation(&self) -> StreamIncarnation {
        StreamIncarnation::of(self.id, self.created)
    }

    /// The open shard that owns `key`.
    pub fn route(&self, key: HashKey) -> Option<&ShardInfo> {
        let place = self
            .routes
            .partition_point(|(start, _)| *start <= key)
            .checked_sub(1)?;
        let (_, shard) = self.routes.get(place)?;
        self.shards
            .get(*shard)
            .filter(|shard| shard.range.contains(key))
    }

    /// Its open shards, by index. They cover the key space.
    pub fn open_shards(&self) -> impl Iterator<Item = &ShardInfo> {
        let is_open = |shard: &&ShardInfo| shard.state == ShardState::Open;
        self.shards.iter().filter(is_open)
    }

    /// The number of the next shard. Numbers are never used again: the newest shard is always open,
    /// and only closed ones leave.
    pub fn next_index(&self) -> ShardIndex {
        let last = self.shards.last().map(|shard| shard.id.index().value());
        ShardIndex::new(last.map_or(0, |last| last.saturating_add(1)))
    }

    /// The log that a shard which opens now writes to: shards take turns on the lanes of their class.
    pub fn log_of(&self, shard: ShardIndex, lanes: u32) -> LogKey {
        self.settings.log(lane_of(self.id, shard, lanes))
    }

    /// Refuses steps that cannot be made of the shards there are.
    pub fn check_reshard(&self, steps: &[Reshard], shards_max: u32) -> Result<(), ReshardError> {
        reshard::outcomes(self, steps, shards_max).map(|_| ())
    }

    /// Makes steps: parents close where the caller says they end, children open, written by the lanes
    /// whose turn it is.
    pub(super) fn reshard(
        &mut self,
        steps: &[Reshard],
        ends: &[(ShardIndex, SequenceNumber)],
        (shards_max, lanes): (u32, u32),
        at: Timestamp,
    ) -> Result<(), ReshardError> {
        for outcome in reshard::outcomes(self, steps, shards_max)? {
            for parent in &outcome.parents {
                let end = ends.iter().find(|(index, _)| index == parent);
                let (_, end) = *end.expect("BUG: a shard closes and nobody knows where");
                let parent = self.shard_mut(*parent).expect("BUG: looked at just now");
                parent.state = ShardState::Closed { end, at };
            }
            for range in outcome.children {
                let index = self.next_index();
                self.shards.push(ShardInfo {
                    id: ShardId::new(self.id, index),
                    range,
                    state: ShardState::Open,
                    parents: outcome.parents.clone(),
                    stays: Stays::begin(self.log_of(index, lanes)),
                });
            }
        }
        Ok(())
    }

    /// Drops closed shards.
    pub(super) fn expire(&mut self, expired: &[ShardIndex]) {
        self.shards.retain(|shard| {
            let index = shard.id.index();
            shard.state == ShardState::Open || !expired.contains(&index)
        });
    }

    /// The shard with this index.
    pub fn shard(&self, index: ShardIndex) -> Option<&ShardInfo> {
        let place = self
            .shards
            .binary_search_by_key(&index, |shard| shard.id.index())
            .ok()?;
        self.shards.get(place)
    }

    fn shard_mut(&mut self, index: ShardIndex) -> Option<&mut ShardInfo> {
        let by_index = |shard: &ShardInfo| shard.id.index();
        let place = self.shards.binary_search_by_key(&index, by_index).ok()?;
        self.shards.get_mut(place)
    }

    /// Moves open shards to where the settings want them, each from its next number on.
    ///
    /// # Panics
    /// When an open shard has to move and is not among `moves`.
    pub(super) fn move_shards(&mut self, moves: &[Move]) -> Result<(), CatalogError> {
        let mut moves = moves.to_vec();
        moves.sort_unstable_by_key(|to| to.shard);
        let settings = &self.settings;
        let open = |shard: &&mut ShardInfo| shard.state == ShardState::Open;
        for shard in self.shards.iter_mut().filter(open) {
            let last = shard.stays.last();
            let log = settings.log(last.log().lane);
            if log == last.log() {
                continue;
            }
            let found = moves.binary_search_by_key(&shard.id.index(), |to| to.shard);
            let to = found.ok().and_then(|place| moves.get(place));
            let to = to.expect("BUG: a shard moves and nobody knows from where");
            shard.stays.move_to(log, to.from, to.epoch);
            let stays = shard.stays.len() as u64;
            in_bounds(
                "changes of level or class, with records kept from before each",
                stays,
                1,
                STAYS_MAX,
            )?;
        }
        Ok(())
    }

    /// Forgets the stays of a shard up to the one of this epoch. Its last one remains.
    pub(super) fn drop_stays(&mut self, index: ShardIndex, epoch: ShardEpoch) {
        if let Some(shard) = self.shard_mut(index) {
            shard.stays.drop_through(epoch);
        }
    }

    /// Forgets that a shard lay in `log` at first, as records of versions 1 and 2 say it.
    pub(super) fn drop_oldest_in(&mut self, index: ShardIndex, log: LogKey) {
        if let Some(shard) = self.shard_mut(index)
            && shard.stays.first().log() == log
        {
            shard.stays.drop_through(shard.stays.first().epoch());
        }
    }

    /// Sorts what look-ups rely on; after every change of `shards`.
    pub(crate) fn arrange(mut self) -> Self {
        self.shards.sort_unstable_by_key(|shard| shard.id.index());
        let open = |(place, shard): (usize, &ShardInfo)| {
            (shard.state == ShardState::Open).then_some((shard.range.start, place))
        };
        self.routes = self.shards.iter().enumerate().filter_map(open).collect();
        self.routes.sort_unstable();
        self
    }
}

/// Shards of a stream take turns on the lanes of their class.
pub(super) fn lane_of(stream: StreamId, shard: ShardIndex, lanes: u32) -> u32 {
    stream.value().wrapping_add(shard.value()) % lanes.max(1)
}
