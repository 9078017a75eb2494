//! What can be set about the console.

use serde::{Deserialize, Serialize};

/// The console's settings. Production values by default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConsoleConfig {
    /// TCP connections served at a time; more wait to be accepted.
    pub connections_max: u32,
    /// A request line and its headers must have arrived after this long.
    pub header_timeout_ms: u64,
    /// A connection is closed after this long, however busy.
    pub connection_ms_max: u64,
    /// Consumer groups whose lag is on a page of metrics at most.
    pub group_lags_max: u32,
    /// Delivery streams that are on a page of metrics each, at most.
    pub deliveries_max: u32,
}

impl Default for ConsoleConfig {
    fn default() -> Self {
        Self {
            connections_max: 64,
            header_timeout_ms: 5_000,
            connection_ms_max: 60_000,
            group_lags_max: 1_000,
            deliveries_max: 1_000,
        }
    }
}
