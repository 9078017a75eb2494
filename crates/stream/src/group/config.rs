//! Limits a user meets on consumer groups.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Limits and defaults. Production values by default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GroupConfig {
    /// Groups of the node at most.
    pub groups_max: u32,
    /// Members of one group at most.
    pub members_per_group_max: u32,
    /// A member that asks for none has this session timeout.
    pub session_timeout_ms: u64,
    /// Least a member may ask for.
    pub session_timeout_ms_min: u64,
    /// Most a member may ask for.
    pub session_timeout_ms_max: u64,
    /// A revoked lease is taken this long after its member was told.
    pub drain_deadline_ms: u64,
    /// What a shard weighs when nothing is read from it, in bytes per second: idle shards are
    /// spread by count.
    pub shard_weight: u64,
    /// A step takes nothing more when what it has decided is about this large.
    pub step_bytes_max: u64,
    /// A snapshot is due when the log has grown by this many times the last snapshot …
    pub snapshot_growth: u64,
    /// … and by this many bytes.
    pub snapshot_bytes_min: u64,
    /// A snapshot is written in pieces of about this size, one beside every commit.
    pub snapshot_piece_bytes: u64,
}

impl Default for GroupConfig {
    fn default() -> Self {
        Self {
            groups_max: 100_000,
            members_per_group_max: 10_000,
            session_timeout_ms: 10_000,
            session_timeout_ms_min: 1_000,
            session_timeout_ms_max: 300_000,
            drain_deadline_ms: 30_000,
            shard_weight: 64 << 10,
            step_bytes_max: 4 << 20,
            snapshot_growth: 4,
            snapshot_bytes_min: 8 << 20,
            snapshot_piece_bytes: 256 << 10,
        }
    }
}

impl GroupConfig {
    pub(super) fn drain_deadline(&self) -> Duration {
        Duration::from_millis(self.drain_deadline_ms)
    }
}
