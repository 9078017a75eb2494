//! Shards that are split and merged by their load: a stream's settings for it.

use std::time::Duration;

use flumen_api::v1;

use crate::description::micros;

/// How a stream's shards follow its load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AutoScale {
    /// Open shards at least.
    pub shards_min: u32,
    /// Open shards at most.
    pub shards_max: u32,
    /// Bytes of batches one shard is meant to take per second; `None`: no matter.
    pub shard_bytes_per_s: Option<u64>,
    /// Records one shard is meant to take per second; `None`: no matter.
    pub shard_records_per_s: Option<u64>,
    /// A shard is split when it is above this part of its rate …
    pub split_above_percent: u32,
    /// … for this long.
    pub split_after: Duration,
    /// Neighbours are merged when they are together below this part of it …
    pub merge_below_percent: u32,
    /// … for this long.
    pub merge_after: Duration,
    /// Nothing is done for this long after the last split or merge.
    pub cool_down: Duration,
}

/// What to change about it; `None` leaves a setting as it is, or at the broker's default where there
/// was none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AutoScaleUpdate {
    /// Switches it off, whatever else is set.
    pub off: bool,
    /// Open shards at least.
    pub shards_min: Option<u32>,
    /// Open shards at most.
    pub shards_max: Option<u32>,
    /// Bytes per second and shard; `Some(0)`: no matter.
    pub shard_bytes_per_s: Option<u64>,
    /// Records per second and shard; `Some(0)`: no matter.
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

impl From<AutoScaleUpdate> for v1::AutoScaleUpdate {
    fn from(update: AutoScaleUpdate) -> Self {
        Self {
            off: update.off,
            shards_min: update.shards_min,
            shards_max: update.shards_max,
            shard_bytes_per_s: update.shard_bytes_per_s,
            shard_records_per_s: update.shard_records_per_s,
            split_above_percent: update.split_above_percent,
            split_after_us: update.split_after.map(micros),
            merge_below_percent: update.merge_below_percent,
            merge_after_us: update.merge_after.map(micros),
            cool_down_us: update.cool_down.map(micros),
        }
    }
}

impl From<v1::AutoScale> for AutoScale {
    fn from(auto_scale: v1::AutoScale) -> Self {
        let rate = |rate: u64| (rate > 0).then_some(rate);
        Self {
            shards_min: auto_scale.shards_min,
            shards_max: auto_scale.shards_max,
            shard_bytes_per_s: rate(auto_scale.shard_bytes_per_s),
            shard_records_per_s: rate(auto_scale.shard_records_per_s),
            split_above_percent: auto_scale.split_above_percent,
            split_after: Duration::from_micros(auto_scale.split_after_us),
            merge_below_percent: auto_scale.merge_below_percent,
            merge_after: Duration::from_micros(auto_scale.merge_after_us),
            cool_down: Duration::from_micros(auto_scale.cool_down_us),
        }
    }
}
