//! What can be set about the running node.

use flumen_log::LogConfig;
use flumen_stream::StreamConfig;
use flumen_stream::group::GroupConfig;
use serde::{Deserialize, Serialize};

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
        }
    }
}
