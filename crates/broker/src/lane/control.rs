//! What a lane is asked beside appending: shards that open, move and end, trims, and its own end.

use std::sync::Arc;

use bytes::Bytes;
use flumen_log::SyncDone;
use flumen_record::{SequenceNumber, ShardEpoch, ShardId};
use flumen_stream::Shard;
use tokio::sync::oneshot;

use super::Lane;
use crate::Error;
use crate::tail::Tail;

/// A shard on its way into a lane.
#[derive(Debug)]
pub(crate) struct OpenShard {
    /// Its state, which only the lane touches from now on.
    pub(crate) shard: Shard,
    /// Where its readers wait.
    pub(crate) tail: Arc<Tail>,
}

/// Where a shard stands that is held back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeldShard {
    pub(crate) id: ShardId,
    /// Its next number: everything below is on disk.
    pub(crate) next: SequenceNumber,
    /// The epoch of what it wrote last.
    pub(crate) epoch: ShardEpoch,
}

/// A request to a lane, done between two rounds and before the batches that came with it.
#[derive(Debug)]
pub(crate) enum Control {
    /// Takes shards in.
    Open(Vec<OpenShard>, Option<oneshot::Sender<()>>),
    /// Holds back the batches of shards and answers, once all their earlier batches are on disk,
    /// with where each stands.
    Hold(Vec<ShardId>, oneshot::Sender<Vec<HeldShard>>),
    /// Ends a hold: the shards go on here, or in another lane.
    Release {
        shards: Vec<ShardId>,
        to: Option<Arc<Lane>>,
        done: oneshot::Sender<()>,
    },
    /// Ends a hold for good: the shards' batches, those that wait and those to come, are refused as
    /// of a poisoned log until the node is started again.
    Freeze(Vec<ShardId>, oneshot::Sender<()>),
    /// Ends a hold: the shards are closed. They go on answering duplicates.
    Close(Vec<ShardId>, oneshot::Sender<()>),
    /// Remembers a shard that went on in another lane before the node was started.
    Departed {
        shard: ShardId,
        to: Arc<Lane>,
        state: Bytes,
    },
    /// Moves trim horizons up; readers see it when this is answered.
    Trim(Vec<(ShardId, SequenceNumber)>, oneshot::Sender<()>),
    /// Forgets shards: their stream was deleted, or nothing of them lies in this log any more.
    Forget(Vec<ShardId>),
    /// A background sync has ended.
    Synced(SyncDone),
    /// Finishes everything, saves and closes the log.
    Shutdown(oneshot::Sender<Result<(), Error>>),
    /// Leaves everything as it is and ends.
    Stop,
}
