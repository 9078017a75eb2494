//! What can be set about the running node.

use flumen_log::LogConfig;
use flumen_stream::StreamConfig;
use flumen_stream::delivery::DeliveryConfig;
use flumen_stream::group::GroupConfig;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The node's settings. Production values by default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BrokerConfig {
    /// Largest round, unless a single batch is larger.
    pub round_bytes_max: u64,
    /// Bound of a lane's queue; senders wait beyond it.
    pub lane_queue_bytes_max: u64,
    /// Lanes per (level, retention class).
    pub lanes_per_class: u32,
    /// Threads for cold reads and footers.
    pub blocking_reads_max: u32,
    /// Bytes one reply carries at most.
    pub reply_bytes_max: u64,
    /// Longest a read may wait.
    pub read_wait_ms_max: u64,
    /// Retention is applied about this often.
    pub retention_interval_ms: u64,
    /// The logs' settings.
    pub log: LogConfig,
    /// Limits of streams.
    pub stream: StreamConfig,
    /// Limits of consumer groups.
    pub groups: GroupConfig,
    /// Limits of delivery streams.
    pub delivery: DeliveryConfig,
}

impl Default for BrokerConfig {
    fn default() -> Self {
        Self {
            round_bytes_max: 4 << 20,
            lane_queue_bytes_max: 64 << 20,
            lanes_per_class: 1,
            blocking_reads_max: 8,
            reply_bytes_max: 4 << 20,
            read_wait_ms_max: 30_000,
            retention_interval_ms: 10_000,
            log: LogConfig::default(),
            stream: StreamConfig::default(),
            groups: GroupConfig::default(),
            delivery: DeliveryConfig::default(),
        }
    }
}

/// A setting that no node can run with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{setting} is {value}, allowed is {min} to {max}")]
pub struct SettingError {
    /// Which, within [`BrokerConfig`].
    pub setting: &'static str,
    /// What it is.
    pub value: u64,
    /// Least allowed.
    pub min: u64,
    /// Most allowed.
    pub max: u64,
}

impl BrokerConfig {
    /// Whether the settings fit together.
    pub fn check(&self) -> Result<(), SettingError> {
        for (setting, value, min, max) in groups(&self.groups)
            .into_iter()
            .chain(delivery(&self.delivery))
        {
            if !(min..=max).contains(&value) {
                return Err(SettingError {
                    setting,
                    value,
                    min,
                    max,
                });
            }
        }
        Ok(())
    }
}

/// A setting, its value, least and most.
type Bounds = (&'static str, u64, u64, u64);

fn groups(groups: &GroupConfig) -> [Bounds; 10] {
    let longest = groups.session_timeout_ms_max;
    [
        ("groups.groups_max", groups.groups_max.into(), 1, 1_000_000),
        (
            "groups.members_per_group_max",
            groups.members_per_group_max.into(),
            1,
            100_000,
        ),
        ("groups.session_timeout_ms_max", longest, 1_000, 3_600_000),
        (
            "groups.session_timeout_ms_min",
            groups.session_timeout_ms_min,
            100,
            longest,
        ),
        (
            "groups.session_timeout_ms",
            groups.session_timeout_ms,
            groups.session_timeout_ms_min,
            longest,
        ),
        (
            "groups.drain_deadline_ms",
            groups.drain_deadline_ms,
            100,
            3_600_000,
        ),
        ("groups.shard_weight", groups.shard_weight, 1, 1 << 40),
        ("groups.snapshot_growth", groups.snapshot_growth, 1, 1_000),
        (
            "groups.snapshot_bytes_min",
            groups.snapshot_bytes_min,
            4 << 10,
            1 << 40,
        ),
        (
            "groups.snapshot_piece_bytes",
            groups.snapshot_piece_bytes,
            4 << 10,
            4 << 20,
        ),
    ]
}

fn delivery(delivery: &DeliveryConfig) -> [Bounds; 8] {
    let piece = delivery.snapshot_piece_bytes;
    [
        (
            "delivery.deliveries_max",
            delivery.deliveries_max.into(),
            1,
            1_000_000,
        ),
        (
            "delivery.settings_bytes_max",
            delivery.settings_bytes_max,
            4 << 10,
            256 << 10,
        ),
        (
            "delivery.progress_bytes_max",
            delivery.progress_bytes_max,
            64 << 10,
            4 << 20,
        ),
        ("delivery.held_max", delivery.held_max.into(), 1, 100_000),
        (
            "delivery.hold_ms_max",
            delivery.hold_ms_max,
            0,
            8_760 * 3_600_000,
        ),
        (
            "delivery.snapshot_growth",
            delivery.snapshot_growth,
            1,
            1_000,
        ),
        (
            "delivery.snapshot_bytes_min",
            delivery.snapshot_bytes_min,
            4 << 10,
            1 << 40,
        ),
        ("delivery.snapshot_piece_bytes", piece, 4 << 10, 4 << 20),
    ]
}
