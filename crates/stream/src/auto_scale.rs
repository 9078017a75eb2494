//! Splitting and merging shards by their load: what is observed, and what is wished for. Pure; `now`
//! is monotonic.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use flumen_record::{HashKey, HashRange, ShardIndex};

use crate::reshard::middle;

/// Rates are averages over about this long, so that a producer that sends every few seconds has one.
const AVERAGED_OVER: Duration = Duration::from_secs(10);
/// With fewer keys than this nothing is known about where the load lies.
const KEYS_MIN: usize = 16;
/// A split that leaves more than this part of the load on one side is no use.
const USELESS_PERCENT: u128 = 95;

/// A stream's settings for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AutoScale {
    /// Open shards at least.
    pub shards_min: u32,
    /// Open shards at most.
    pub shards_max: u32,
    /// Bytes of batches one shard is meant to take per second; `None`: no matter. At least one of
    /// the two rates is set.
    pub shard_bytes_per_s: Option<u64>,
    /// Records one shard is meant to take per second.
    pub shard_records_per_s: Option<u64>,
    /// A shard is split when its load is above this part of its rate …
    pub split_above_percent: u32,
    /// … for this long.
    pub split_after: Duration,
    /// Two neighbours are merged when their load together is below this part of one shard's rate …
    pub merge_below_percent: u32,
    /// … for this long.
    pub merge_after: Duration,
    /// After a split or merge nothing is done for this long.
    pub cool_down: Duration,
}

impl Default for AutoScale {
    fn default() -> Self {
        Self {
            shards_min: 1,
            shards_max: 16,
            shard_bytes_per_s: None,
            shard_records_per_s: None,
            split_above_percent: 70,
            split_after: Duration::from_secs(60),
            merge_below_percent: 20,
            merge_after: Duration::from_secs(10 * 60),
            cool_down: Duration::from_secs(5 * 60),
        }
    }
}

impl AutoScale {
    /// How much bytes and records are of what one shard is meant to take in a second, in millionths.
    pub fn load(&self, bytes: u64, records: u64) -> u64 {
        let part = |amount: u64, rate: Option<u64>| {
            let rate = rate.filter(|rate| *rate > 0)?;
            u64::try_from(u128::from(amount) * 1_000_000 / u128::from(rate)).ok()
        };
        let bytes = part(bytes, self.shard_bytes_per_s);
        bytes
            .max(part(records, self.shard_records_per_s))
            .unwrap_or(0)
    }
}

/// What to change about it; `None` leaves a setting as it is, or at its default where there was none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AutoScaleChange {
    /// See [`AutoScale`], field by field. `Some(0)` lifts a rate.
    pub shards_min: Option<u32>,
    /// Open shards at most.
    pub shards_max: Option<u32>,
    /// Bytes per second.
    pub shard_bytes_per_s: Option<u64>,
    /// Records per second.
    pub shard_records_per_s: Option<u64>,
    /// Split above.
    pub split_above_percent: Option<u32>,
    /// For this long.
    pub split_after: Option<Duration>,
    /// Merge below.
    pub merge_below_percent: Option<u32>,
    /// For this long.
    pub merge_after: Option<Duration>,
    /// Pause afterwards.
    pub cool_down: Option<Duration>,
}

/// A change of the setting as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AutoScaleUpdate {
    /// Shards are split and merged by hand.
    Off,
    /// By load.
    On(AutoScaleChange),
}

impl AutoScaleUpdate {
    /// What the setting becomes.
    pub fn applied_to(&self, before: Option<AutoScale>) -> Option<AutoScale> {
        let change = match self {
            Self::Off => return None,
            Self::On(change) => change,
        };
        let before = before.unwrap_or_default();
        let rate = |changed: Option<u64>, before: Option<u64>| match changed {
            None => before,
            Some(rate) => Some(rate).filter(|rate| *rate > 0),
        };
        Some(AutoScale {
            shards_min: change.shards_min.unwrap_or(before.shards_min),
            shards_max: change.shards_max.unwrap_or(before.shards_max),
            shard_bytes_per_s: rate(change.shard_bytes_per_s, before.shard_bytes_per_s),
            shard_records_per_s: rate(change.shard_records_per_s, before.shard_records_per_s),
            split_above_percent: change
                .split_above_percent
                .unwrap_or(before.split_above_percent),
            split_after: change.split_after.unwrap_or(before.split_after),
            merge_below_percent: change
                .merge_below_percent
                .unwrap_or(before.merge_below_percent),
            merge_after: change.merge_after.unwrap_or(before.merge_after),
            cool_down: change.cool_down.unwrap_or(before.cool_down),
        })
    }
}

/// What an open shard has taken so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// The shard.
    pub shard: ShardIndex,
    /// Its range.
    pub range: HashRange,
    /// Bytes of batches since some moment, which stays the same.
    pub bytes: u64,
    /// Records since then.
    pub records: u64,
}

/// What the load asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// This many open shards: there are too few or too many for the settings.
    Scale(u32),
    /// A hot shard.
    Split(ShardIndex),
    /// Two cold neighbours, in the order of their keys.
    Merge(ShardIndex, ShardIndex),
}

/// One stream's load as it was observed.
#[derive(Debug, Default)]
pub struct AutoScaler {
    shards: BTreeMap<ShardIndex, Watched>,
    /// Pairs of neighbours that are cold, and since when.
    cold: BTreeMap<(ShardIndex, ShardIndex), Duration>,
}

#[derive(Debug, Default)]
struct Watched {
    /// (when, bytes, records), oldest first.
    readings: VecDeque<(Duration, u64, u64)>,
    /// Since when it is hot.
    hot: Option<Duration>,
}

impl Watched {
    /// Takes a reading; bytes and records per second, once there are two.
    fn read(&mut self, now: Duration, taken: &Taken) -> Option<(u64, u64)> {
        self.readings.push_back((now, taken.bytes, taken.records));
        // One reading from before the span stays: the average begins there.
        while self
            .readings
            .get(1)
            .is_some_and(|(at, ..)| now.saturating_sub(*at) >= AVERAGED_OVER)
        {
            self.readings.pop_front();
        }
        let (at, bytes, records) = *self.readings.front()?;
        let micros = now.saturating_sub(at).as_micros();
        let per_second = |amount: u64| {
            let rate = (u128::from(amount) * 1_000_000).checked_div(micros)?;
            u64::try_from(rate).ok()
        };
        Some((
            per_second(taken.bytes.saturating_sub(bytes))?,
            per_second(taken.records.saturating_sub(records))?,
        ))
    }
}

/// An open shard and its bytes and records per second, if they are known yet.
type Rated = (ShardIndex, Option<(u64, u64)>);

impl AutoScaler {
    /// Takes what the open shards have taken so far, and says what is wished for, the most urgent
    /// first. `resharded_ago`: when the stream's shards were last split or merged, by whomever.
    pub fn observe(
        &mut self,
        settings: &AutoScale,
        shards: &[Taken],
        now: Duration,
        resharded_ago: Option<Duration>,
    ) -> Vec<Wish> {
        let mut shards = shards.to_vec();
        shards.sort_unstable_by_key(|taken| taken.range.start);
        self.shards
            .retain(|shard, _| shards.iter().any(|taken| taken.shard == *shard));
        let rates: Vec<Rated> = shards
            .iter()
            .map(|taken| {
                let watched = self.shards.entry(taken.shard).or_default();
                (taken.shard, watched.read(now, taken))
            })
            .collect();
        let hot = self.hot(settings, &rates, now);
        let cold = self.cold(settings, &rates, now);
        let open = u32::try_from(shards.len()).unwrap_or(u32::MAX);
        if open < settings.shards_min || open > settings.shards_max {
            return vec![Wish::Scale(
                open.clamp(settings.shards_min, settings.shards_max),
            )];
        }
        if resharded_ago.is_some_and(|ago| ago < settings.cool_down) {
            return Vec::new();
        }
        let hot = hot.into_iter().filter(|_| open < settings.shards_max);
        let cold = cold.into_iter().filter(|_| open > settings.shards_min);
        hot.chain(cold).collect()
    }

    /// Shards that have been hot for long enough, the hottest first.
    fn hot(&mut self, settings: &AutoScale, rates: &[Rated], now: Duration) -> Vec<Wish> {
        let mut hot = Vec::new();
        for (shard, rate) in rates {
            let Some(watched) = self.shards.get_mut(shard) else {
                continue;
            };
            let load = rate.map_or(0, |(bytes, records)| settings.load(bytes, records));
            if load <= u64::from(settings.split_above_percent) * 10_000 {
                watched.hot = None;
                continue;
            }
            let since = *watched.hot.get_or_insert(now);
            if now.saturating_sub(since) >= settings.split_after {
                hot.push((load, *shard));
            }
        }
        hot.sort_unstable_by_key(|(load, shard)| (std::cmp::Reverse(*load), *shard));
        hot.into_iter()
            .map(|(_, shard)| Wish::Split(shard))
            .collect()
    }

    /// Pairs of neighbours that have been cold for long enough, the coldest first.
    fn cold(&mut self, settings: &AutoScale, rates: &[Rated], now: Duration) -> Vec<Wish> {
        let mut cold = Vec::new();
        let mut still = BTreeMap::new();
        for pair in rates.windows(2) {
            let [(lower, Some(one)), (upper, Some(other))] = *pair else {
                continue;
            };
            let (bytes, records) = (one.0.saturating_add(other.0), one.1.saturating_add(other.1));
            let load = settings.load(bytes, records);
            if load >= u64::from(settings.merge_below_percent) * 10_000 {
                continue;
            }
            let key = (lower, upper);
            let since = self.cold.get(&key).copied().unwrap_or(now);
            still.insert(key, since);
            if now.saturating_sub(since) >= settings.merge_after {
                cold.push((load, key));
            }
        }
        self.cold = still;
        cold.sort_unstable();
        let merge = |(_, (lower, upper))| Wish::Merge(lower, upper);
        cold.into_iter().map(merge).collect()
    }
}

/// Where a hot shard is split: at the median of the keys that were observed with their loads, so that
/// either side takes about half. `None`: nearly all of it falls on one key, and no split would help.
/// With next to no keys observed: the middle of the range.
pub fn split_key(range: HashRange, observed: &[(HashKey, u64)]) -> Option<HashKey> {
    let mut keys: Vec<_> = observed
        .iter()
        .filter(|(key, _)| range.contains(*key))
        .collect();
    if keys.len() < KEYS_MIN {
        return (range.start < range.end).then(|| middle(range));
    }
    keys.sort_unstable();
    let total: u128 = keys.iter().map(|(_, load)| u128::from(*load)).sum();
    let mut below = 0;
    let mut best: Option<(u128, HashKey)> = None;
    for same in keys.chunk_by(|one, other| one.0 == other.0) {
        let Some((key, _)) = same.first() else {
            continue;
        };
        let heavier = below.max(total - below);
        // The upper half begins with this key; it must leave some for the lower one.
        if below > 0 && best.is_none_or(|(least, _)| heavier < least) {
            best = Some((heavier, *key));
        }
        below += same.iter().map(|(_, load)| u128::from(*load)).sum::<u128>();
    }
    let (heavier, key) = best?;
    (heavier * 100 <= total * USELESS_PERCENT).then_some(key)
}
