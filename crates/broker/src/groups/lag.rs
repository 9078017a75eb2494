//! What a group has not processed yet.

use std::sync::Arc;
use std::time::Duration;

use flumen_log::Backlog;
use flumen_record::{SequenceNumber, ShardIndex, Timestamp};
use flumen_stream::StartPosition;
use flumen_stream::group::{Event, Expired, GroupNumber, ReadFrom, ShardPosition};

use super::GroupLag;
use crate::Error;
use crate::node::Node;
use crate::streams::{Place, ShardHandle};

impl GroupLag {
    /// Both together; the age is that of the older.
    pub(super) fn add(&mut self, other: Self) {
        self.records += other.records;
        self.bytes += other.bytes;
        self.age = self.age.max(other.age);
    }
}

/// Where a group stands in a shard, by what is there now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stand {
    /// Where it goes on: what [`backlog`] begins at.
    pub(super) from: SequenceNumber,
    /// What expired before that, all in all.
    pub(super) expired: Expired,
    /// Its checkpoint is beyond the end: an older broker took it.
    pub(super) is_beyond_end: bool,
    /// It was looked up now where it begins, which is worth to be written down.
    pub(super) began: Option<SequenceNumber>,
}

/// Where a group stands in a shard. That the time at which an old group begins may be found, the disk
/// is looked at.
pub(super) async fn stand(
    node: &Arc<Node>,
    shard: &Arc<ShardHandle>,
    position: &ShardPosition,
) -> Result<Stand, Error> {
    let mut began = None;
    let from = match position.from {
        ReadFrom::At(from) => from,
        ReadFrom::TrimHorizon => SequenceNumber::ZERO,
        ReadFrom::AtTimestamp(at) => {
            let found = node.resolve(shard, StartPosition::AtTimestamp(at)).await?;
            // Of a time that is to come it is not known yet.
            began = (at < node.clock.now()).then_some(found);
            found
        }
    };
    // Looked at last: what was found moves up with it only.
    let bounds = shard.bounds();
    Ok(Stand {
        from: from.max(bounds.trim_horizon),
        expired: position.expired_up_to(bounds.trim_horizon),
        is_beyond_end: from > shard.closed_at().unwrap_or(bounds.durable_end),
        began,
    })
}

impl Node {
    /// Writes down where an old group begins, so that it is not looked up again.
    pub(super) fn write_begins(
        &self,
        group: GroupNumber,
        begins: Vec<(ShardIndex, SequenceNumber)>,
    ) {
        if !begins.is_empty() {
            // It is looked up again if that does not come to pass.
            let _ = self.groups.say(Event::Began { group, begins });
        }
    }
}

/// What is left of a shard from there, from memory. Over all logs that it lies in.
pub(crate) fn backlog(shard: &ShardHandle, from: SequenceNumber) -> Backlog {
    let mut all = Backlog::default();
    for Place { stay, lane } in &shard.places {
        let Some(here) = lane.reader().backlog(shard.id, stay, from) else {
            continue;
        };
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
        for Place { stay, lane } in &shard.places {
            match lane.reader().arrival_of(shard.id, stay, from) {
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
