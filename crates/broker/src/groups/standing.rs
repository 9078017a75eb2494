//! Where shards of streams with groups stand, for the thread that decides about groups.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use flumen_record::{ShardIndex, StreamId};
use flumen_stream::group::{BoundsOf, ShardBounds};
use flumen_world::{read, write};

use crate::streams::Stream;

/// The streams that groups are of, by number.
#[derive(Debug, Default)]
pub(super) struct Standing(RwLock<HashMap<StreamId, Arc<Stream>>>);

impl Standing {
    pub(super) fn know(&self, id: StreamId, stream: &Arc<Stream>) {
        write(&self.0).insert(id, Arc::clone(stream));
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        read(&self.0).len()
    }

    pub(super) fn forget(&self, id: StreamId) {
        write(&self.0).remove(&id);
    }
}

impl BoundsOf for Standing {
    fn bounds(&self, stream: StreamId, shard: ShardIndex) -> Option<ShardBounds> {
        let stream = read(&self.0).get(&stream).cloned()?;
        // Of the state that it has now: an older one would name a log that the shard has left.
        let bounds = stream.state().shard(shard)?.bounds();
        stream.check_exists().ok()?;
        Some(ShardBounds {
            horizon: bounds.trim_horizon,
            end: bounds.durable_end,
        })
    }
}
