//! Limits a user meets on delivery streams.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::delivery_log::in_bounds;
use super::{DeliveryLogError, DeliveryProgress};

/// Limits. Production values by default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeliveryConfig {
    /// Delivery streams of the node at most.
    pub deliveries_max: u32,
    /// The settings of one, as they are stored, at most.
    pub settings_bytes_max: u64,
    /// What its runner remembers, at most.
    pub progress_bytes_max: u64,
    /// Shards whose records one holds back from retention, at most.
    pub held_max: u32,
    /// Records that are held go this long after they would have expired, at the latest.
    pub hold_ms_max: u64,
    /// A snapshot is due when the log has grown by this many times the last snapshot …
    pub snapshot_growth: u64,
    /// … and by this many bytes.
    pub snapshot_bytes_min: u64,
    /// A snapshot is written in pieces of about this size, one beside every commit.
    pub snapshot_piece_bytes: u64,
}

impl Default for DeliveryConfig {
    fn default() -> Self {
        Self {
            deliveries_max: 10_000,
            settings_bytes_max: 256 << 10,
            progress_bytes_max: 4 << 20,
            held_max: 100_000,
            hold_ms_max: 24 * 3_600_000,
            snapshot_growth: 4,
            snapshot_bytes_min: 8 << 20,
            snapshot_piece_bytes: 256 << 10,
        }
    }
}

impl DeliveryConfig {
    /// [`hold_ms_max`](Self::hold_ms_max) as a duration.
    pub fn hold_max(&self) -> Duration {
        Duration::from_millis(self.hold_ms_max)
    }

    /// Whether a runner may remember this.
    pub fn check_progress(&self, progress: &DeliveryProgress) -> Result<(), DeliveryLogError> {
        let bytes = progress.bytes.len() as u64;
        in_bounds("progress bytes", bytes, self.progress_bytes_max)?;
        let held = progress.held.len() as u64;
        in_bounds("held shards", held, self.held_max.into())
    }
}
