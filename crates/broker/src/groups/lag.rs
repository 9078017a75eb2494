//! What a group has not processed yet.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flumen_log::Backlog;
use flumen_record::{SequenceNumber, ShardId, Timestamp};
use flumen_stream::group::{Checkpoint, InitialPosition};

use super::GroupLag;
use crate::Error;
use crate::node::Node;
use crate::streams::ShardHandle;
use flumen_world::lock;

/// Times whose places are remembered at most.
const BEGINNINGS_MAX: usize = 100_000;

/// Where times lie in shards: a place of the past does not change, and to find it the disk is looked
/// at.
#[derive(Debug, Default)]
pub(super) struct Beginnings(Mutex<HashMap<(ShardId, Timestamp), SequenceNumber>>);

impl Beginnings {
    async fn of(
        &self,
        node: &Arc<Node>,
        shard: &Arc<ShardHandle>,
        time: Timestamp,
    ) -> Result<SequenceNumber, Error> {
        let key = (shard.id, time);
        let known = lock(&self.0).get(&key).copied();
        if let Some(known) = known {
            return Ok(known);
        }
        let is_past = time < node.clock.now();
        let start = flumen_stream::StartPosition::AtTimestamp(time);
        let found = node.resolve(shard, start).await?;
        if is_past {
            let mut known = lock(&self.0);
            if known.len() >= BEGINNINGS_MAX {
                known.clear();
            }
            known.insert(key, found);
        }
        Ok(found)
    }
}

impl GroupLag {
    /// Both together; the age is that of the older.
    pub(super) fn add(&mut self, other: Self) {
        self.records += other.records;
        self.bytes += other.bytes;
        self.age = self.age.max(other.age);
    }
}

/// Where a group goes on in a shard: what `backlog` begins at. A group without a checkpoint that
/// began at a time has read nothing before it; that it may be found the disk is looked at.
pub(super) async fn position(
    node: &Arc<Node>,
    shard: &Arc<ShardHandle>,
    checkpoint: Option<Checkpoint>,
    start: InitialPosition,
    created: Timestamp,
) -> Result<SequenceNumber, Error> {
    let horizon = shard.bounds().trim_horizon;
    let at = match (checkpoint, start) {
        (Some(checkpoint), _) => return Ok(checkpoint.next().max(horizon)),
        (None, InitialPosition::TrimHorizon) => return Ok(horizon),
        (None, InitialPosition::Latest) => created,
        (None, InitialPosition::AtTimestamp(at)) => at,
    };
    // Children are read from their first record.
    if !shard.info.parents.is_empty() {
        return Ok(horizon);
    }
    let found = node.groups.beginnings.of(node, shard, at).await?;
    Ok(found.max(horizon))
}

/// What is left of a shard from there, from memory. Over all logs that it lies in.
pub(crate) fn backlog(shard: &ShardHandle, from: SequenceNumber) -> Backlog {
    let mut all = Backlog::default();
    for (place, next) in shard.places_with_next() {
        if next.is_some_and(|next| next <= from) {
            continue;
        }
        let reader = place.lane.reader();
        let begin = from.max(place.from);
        let Some(mut here) = reader.backlog(shard.id, begin) else {
            continue;
        };
        if let Some(next) = next
            && let Some(beyond) = reader.backlog(shard.id, next)
        {
            // What lies behind the place where the next log took over is no record of it.
            here.records = here.records.saturating_sub(beyond.records);
            here.bytes = here.bytes.saturating_sub(beyond.bytes);
        }
        if here.records > 0 && all.records == 0 {
            (all.oldest, all.is_exact) = (here.oldest, here.is_exact);
        }
        all.records += here.records;
        all.bytes += here.bytes;
    }
    all
}

/// Lag as people read it.
pub(super) fn lag(backlog: &Backlog, oldest: Option<Timestamp>, now: Timestamp) -> GroupLag {
    let age = oldest.map_or(Duration::ZERO, |oldest| now.since(oldest));
    GroupLag {
        records: backlog.records,
        bytes: backlog.bytes,
        age: if backlog.records > 0 {
            age
        } else {
            Duration::ZERO
        },
    }
}

/// When the first record that is left arrived; looks at the disk when that is not in memory.
pub(super) async fn oldest(
    node: &Arc<Node>,
    shard: &Arc<ShardHandle>,
    from: SequenceNumber,
    backlog: &Backlog,
) -> Result<Option<Timestamp>, Error> {
    if backlog.records == 0 || backlog.is_exact {
        return Ok(backlog.oldest);
    }
    let shard = Arc::clone(shard);
    node.blocking_read(move || {
        for (place, next) in shard.places_with_next() {
            if next.is_some_and(|next| next <= from) {
                continue;
            }
            let begin = from.max(place.from);
            match place.lane.reader().arrival_of(shard.id, begin) {
                Ok(Some(arrival)) => return Ok(Some(arrival)),
                Ok(None) => {}
                // Trimmed meanwhile: there is less lag than there was.
                Err(
                    flumen_log::ReadError::Trimmed { .. }
                    | flumen_log::ReadError::UnknownShard { .. },
                ) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    })
    .await
}
