//! Limits a user meets on streams and producers.

use std::num::{NonZeroU32, NonZeroU64};

use serde::{Deserialize, Serialize};

/// Limits. Production values by default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StreamConfig {
    /// Shards of one stream at most.
    pub shards_per_stream_max: u32,
    /// Streams of the node at most.
    pub streams_max: u32,
    /// Producers of which one shard remembers the last batches; beyond it, of the longest unused only
    /// what comes next.
    pub producers_per_shard_max: u32,
    /// Producers of which one shard remembers what comes next, beside those; beyond it the longest
    /// unused is forgotten and the watermark rises.
    pub resting_producers_per_shard_max: u32,
    /// Batches remembered per producer and shard for duplicate acks.
    pub batches_per_producer: u32,
    /// Producer ids reserved durably at a time.
    pub producer_id_block: u32,
    /// Records one shard takes per second. `None`: as many as come.
    pub shard_records_per_second: Option<NonZeroU32>,
    /// Bytes of encoded batches one shard takes per second. `None`: as many as come.
    pub shard_bytes_per_second: Option<NonZeroU64>,
    /// Lanes per (level, retention class): shards of a stream take turns on them.
    pub lanes_per_class: u32,
    /// A catalog snapshot is written after this many records.
    pub catalog_snapshot_records: u32,
}

impl Default for StreamConfig {
    fn default() -> Self {
        Self {
            shards_per_stream_max: 10_000,
            streams_max: 100_000,
            producers_per_shard_max: 1_024,
            resting_producers_per_shard_max: 16_384,
            batches_per_producer: 64,
            producer_id_block: 1_024,
            shard_records_per_second: None,
            shard_bytes_per_second: None,
            lanes_per_class: 1,
            catalog_snapshot_records: 4_096,
        }
    }
}
