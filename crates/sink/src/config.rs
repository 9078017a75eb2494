//! What can be set about the sink.

use serde::{Deserialize, Serialize};

use crate::store::StoreConfig;

/// The sink's settings. Production values by default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SinkConfig {
    /// Bytes one read of a shard brings at most, about.
    pub read_bytes: u64,
    /// Rows a delivery stream keeps in memory while a cut is filled; what is more goes to the spool.
    pub rows_bytes_max: u64,
    /// Bytes one delivery stream may have in its spool.
    pub spool_bytes_max: u64,
    /// Bytes of objects on their way to stores, all delivery streams of the node together; one
    /// larger object goes alone.
    pub upload_bytes_max: u64,
    /// Objects of one cut that are written at a time.
    pub uploads_max: u32,
    /// Requests to a transform that one delivery stream has under way.
    pub transforms_max: u32,
    /// Stores are asked once per start what their conditional create is worth: a few small objects
    /// under `_probe/`, removed again. Without it `describe` does not know what a store guarantees.
    pub probe: bool,
    /// Stores.
    pub store: StoreConfig,
}

impl Default for SinkConfig {
    fn default() -> Self {
        Self {
            read_bytes: 1 << 20,
            rows_bytes_max: 4 << 20,
            spool_bytes_max: 2 << 30,
            upload_bytes_max: 64 << 20,
            uploads_max: 4,
            transforms_max: 5,
            probe: true,
            store: StoreConfig::default(),
        }
    }
}
