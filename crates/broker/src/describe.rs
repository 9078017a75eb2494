//! Streams as users see them.

use crate::streams::{ShardHandle, Stream};
use crate::{ShardDescription, StreamDescription};

/// The stream as it is now.
pub(crate) fn describe(stream: &Stream) -> StreamDescription {
    let state = stream.state();
    let info = &state.info;
    StreamDescription {
        id: info.id,
        incarnation: stream.incarnation,
        name: info.name.clone(),
        settings: info.settings.clone(),
        created: info.created,
        version: info.version,
        shards: state
            .shards
            .iter()
            .map(|shard| describe_shard(shard))
            .collect(),
    }
}

fn describe_shard(shard: &ShardHandle) -> ShardDescription {
    let bounds = shard.bounds();
    ShardDescription {
        index: shard.id.index(),
        range: shard.info.range,
        open: shard.closed_at().is_none(),
        parents: shard.info.parents.clone(),
        trim_horizon: bounds.trim_horizon,
        durable_end: bounds.durable_end,
        last_arrival: bounds.last_arrival,
        stored_bytes: bounds.stored_bytes,
    }
}
