//! What may expire: by age in true time, by bytes; and what the wall clock may have been believed.

use std::time::Duration;

use flumen_record::{StreamId, Timestamp};

use super::{Change, Checked, Model, StreamModel};

/// Smaller steps of the wall clock are believed at once; two of them can add up.
const TOLERANCE: Duration = Duration::from_secs(11 * 60);
/// A wrong wall clock that lasts this long may be believed.
const BELIEVED_AFTER: Duration = Duration::from_secs(23 * 3600);

/// The wall clock as the simulation sets it, in microseconds beside true time.
#[derive(Debug)]
pub(crate) struct WallClock {
    start: Timestamp,
    offset: i64,
    since: Duration,
    /// The furthest that may have been believed, both ways.
    believed: (i64, i64),
}

impl WallClock {
    pub(crate) fn new(start: Timestamp) -> Self {
        Self {
            start,
            offset: 0,
            since: Duration::ZERO,
            believed: (0, 0),
        }
    }

    /// What it shows.
    pub(crate) fn shown(&self, now: Duration) -> Timestamp {
        let micros = i64::try_from(now.as_micros()).unwrap_or(i64::MAX);
        let shift = micros.saturating_add(self.offset);
        Timestamp::from_micros(self.start.as_micros().saturating_add_signed(shift))
    }

    /// It is set to another time.
    pub(crate) fn set(&mut self, now: Duration, offset: i64) {
        self.look(now);
        self.offset = offset;
        self.since = now;
    }

    /// An operator says that it is right.
    pub(crate) fn confirm(&mut self) {
        let (least, most) = self.believed;
        self.believed = (least.min(self.offset), most.max(self.offset));
    }

    fn look(&mut self, now: Duration) {
        if now.saturating_sub(self.since) >= BELIEVED_AFTER {
            self.confirm();
        }
    }

    /// How much older than it is a record may be taken for.
    pub(crate) fn bias(&mut self, now: Duration) -> Duration {
        self.look(now);
        let (least, most) = self.believed;
        TOLERANCE + Duration::from_micros(most.abs_diff(least))
    }

    /// Whether the node may have stamped a record so that was sent and acknowledged then.
    pub(super) fn check_stamp(&mut self, now: Duration, arrival: Timestamp) -> Checked {
        let latest = self.start.saturating_add(now + self.bias(now));
        if arrival > latest {
            let ahead = arrival.since(latest);
            return Err(format!("it is stamped {ahead:?} ahead of time"));
        }
        Ok(())
    }
}

impl StreamModel {
    /// The shortest retention that is in force, or will be.
    fn shortest(&self) -> Duration {
        match &self.pending {
            Some(Change::Update(settings)) => settings.retention.min(self.settings.retention),
            _ => self.settings.retention,
        }
    }
}

impl Model {
    /// Time has passed: more may have expired.
    pub(crate) fn time_passed(&mut self, now: Duration) {
        self.now = now;
        let bias = self.wall.bias(now);
        for stream in self.streams.values_mut() {
            stream.note_settings();
            let cut_off = (now + bias).saturating_sub(stream.shortest());
            stream.expired_before = stream.expired_before.max(cut_off);
        }
    }

    /// A horizon that somebody was told: it never moves back, and only over what may be gone.
    pub(crate) fn see_horizon(&mut self, id: StreamId, index: u32, horizon: u64) -> Checked {
        let now = self.look();
        self.time_passed(now);
        let Some(stream) = self.streams.get_mut(&id) else {
            return Ok(());
        };
        let name = stream.name.clone();
        let shard = stream.shard_mut(index);
        if horizon < shard.horizon {
            let before = shard.horizon;
            return Err(format!(
                "the horizon of shard {index} of {name} went back from {before} to {horizon}"
            ));
        }
        if horizon == shard.horizon {
            return Ok(());
        }
        shard.horizon = horizon;
        self.check_bytes(id, index)
    }

    /// Every record that is gone and not old enough has to be one too many by bytes.
    fn check_bytes(&mut self, id: StreamId, index: u32) -> Checked {
        let Some(stream) = self.streams.get(&id) else {
            return Ok(());
        };
        let Some((number, record)) = self.newest_too_young(stream, index) else {
            return Ok(());
        };
        let wrong = |why: String| {
            let horizon = stream.shards.get(&index).map_or(0, |shard| shard.horizon);
            let sent = self.records.get(place(record)).map(|it| it.sent);
            Err(format!(
                "record {record}, number {number} of shard {index} of {}, sent at {sent:?}, is gone below the horizon {} {why}",
                stream.name, horizon
            ))
        };
        let Some(bound) = stream.byte_bounds.first().copied() else {
            let before = stream.expired_before;
            return wrong(format!("and only what was sent before {before:?} may be"));
        };
        let kept = stream.shards.keys().map(|index| self.kept(stream, *index));
        let kept: u64 = kept.sum();
        // Nobody was told where these lie, if anywhere.
        let somewhere = self
            .records
            .iter()
            .filter(|record| record.stream == id && record.place.is_none() && record.may_exist());
        let kept = kept + somewhere.map(|record| record.bytes).sum::<u64>();
        // Nobody was told where these lie, if anywhere.
        let somewhere = self
            .records
            .iter()
            .filter(|record| record.stream == id && record.place.is_none() && record.may_exist());
        let kept = kept + somewhere.map(|record| record.bytes).sum::<u64>();
        // Every shard's share is rounded down.
        if kept + stream.shards.len() as u64 <= bound {
            return wrong(format!(
                "though {kept} bytes with it are within the bound {bound}"
            ));
        }
        Ok(())
    }

    /// The last record below the horizon that is not old enough to have expired.
    fn newest_too_young(&self, stream: &StreamModel, index: u32) -> Option<(u64, u64)> {
        let shard = stream.shards.get(&index)?;
        let below = shard.numbers.range(shard.horizon_before..shard.horizon);
        let mut below = below.rev().map(|(number, (id, _))| (*number, *id));
        below.find(|(_, id)| {
            let record = self.records.get(place(*id));
            record.is_some_and(|it| it.must_exist() && it.sent >= stream.expired_before)
        })
    }

    /// What a shard held at most when bytes were last counted, from the batch on that went last.
    fn kept(&self, stream: &StreamModel, index: u32) -> u64 {
        let Some(shard) = stream.shards.get(&index) else {
            return 0;
        };
        let from = match self.newest_too_young(stream, index) {
            // Its whole batch went: that is at most what was sent together.
            Some((number, _)) => number.saturating_sub(BATCH_RECORDS_MAX),
            None => shard.horizon_before,
        };
        let records = shard.numbers.range(from..);
        records
            .filter_map(|(_, (id, _))| self.records.get(place(*id)))
            .map(|record| record.bytes)
            .sum()
    }

    /// Horizons and bounds of this moment are what later ones are compared with.
    pub(crate) fn settle_bytes(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.byte_bounds.clear();
            stream.note_settings();
            for shard in stream.shards.values_mut() {
                shard.horizon_before = shard.horizon;
            }
        }
    }
}

/// Records of one batch at most.
pub(crate) const BATCH_RECORDS_MAX: u64 = 8;

fn place(id: u64) -> usize {
    usize::try_from(id).unwrap_or(usize::MAX)
}
