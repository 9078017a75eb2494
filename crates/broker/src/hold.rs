//! Holding shards back in their lanes while the catalog changes, and letting them go on: where they
//! were, in another log, or not at all.

use std::collections::BTreeMap;
use std::sync::Arc;

use flumen_record::ShardId;
use tokio::sync::oneshot;

use crate::Error;
use crate::lane::{Control, HeldShard, Lane, PerLane};
use crate::node::Node;
use crate::streams::ShardHandle;

impl Node {
    /// Holds shards back in their lanes.
    pub(crate) async fn hold(&self, shards: &[Arc<ShardHandle>]) -> Result<Vec<Held>, Error> {
        let mut by_lane = PerLane::default();
        shards
            .iter()
            .for_each(|shard| by_lane.add(shard.lane(), shard.id));
        let mut held: Vec<Held> = Vec::new();
        for (lane, ids) in by_lane {
            match ask(&lane, |done| Control::Hold(ids.clone(), done)).await {
                Ok(shards) => {
                    let all = shards.len() == ids.len();
                    held.push(Held { lane, ids, shards });
                    if !all {
                        // A change with an unknown outcome has frozen some.
                        release_all(held).await;
                        return Err(Error::Poisoned);
                    }
                }
                Err(error) => {
                    // This lane's hold may stand; it does not know whom to answer any more.
                    held.push(Held {
                        lane,
                        ids,
                        shards: Vec::new(),
                    });
                    release_all(held).await;
                    return Err(error);
                }
            }
        }
        Ok(held)
    }
}

/// Why a change was not carried through.
#[derive(Debug)]
pub(crate) enum NotChanged {
    /// It is not in the catalog.
    Refused(Error),
    /// It may be.
    Unknown(Error),
}

impl NotChanged {
    /// Ends the holds: as if nothing had been asked, or for good. Returns what to answer.
    pub(crate) async fn end(self, held: Vec<Held>) -> Error {
        match self {
            Self::Refused(error) => {
                release_all(held).await;
                error
            }
            Self::Unknown(error) => {
                for held in held {
                    held.freeze().await;
                }
                error
            }
        }
    }
}

/// Lets everything go on where it is.
async fn release_all(held: Vec<Held>) {
    for held in held {
        held.release(None).await;
    }
}

/// Shards that one lane holds back.
#[derive(Debug)]
pub(crate) struct Held {
    lane: Arc<Lane>,
    ids: Vec<ShardId>,
    /// Where they stand.
    pub(crate) shards: Vec<HeldShard>,
}

impl Held {
    /// Lets them go on, here or in another lane.
    pub(crate) async fn release(self, to: Option<Arc<Lane>>) {
        let shards = self.ids;
        // A lane that has ended has answered its batches itself.
        let _ = ask(&self.lane, |done| Control::Release { shards, to, done }).await;
    }

    /// Closes them where they end: what waits is answered as a duplicate, or as not appended.
    pub(crate) async fn close(self) {
        let shards = self.ids;
        // A lane that has ended has answered its batches itself.
        let _ = ask(&self.lane, |done| Control::Close(shards, done)).await;
    }

    /// Gives them up: nobody knows in which log they go on after the next start, or whether their
    /// children do, and what is acknowledged here might be missing there.
    async fn freeze(self) {
        tracing::error!(
            lane = %self.lane.label(),
            shards = self.ids.len(),
            "a change of the catalog has an unknown outcome; its shards take appends again after a restart"
        );
        let shards = self.ids;
        let _ = ask(&self.lane, |done| Control::Freeze(shards, done)).await;
    }

    /// The parts that go to different lanes.
    pub(crate) fn split_by(self, lanes: &BTreeMap<ShardId, Arc<Lane>>) -> Vec<(Arc<Lane>, Self)> {
        let mut parts = PerLane::default();
        for id in self.ids {
            if let Some(to) = lanes.get(&id) {
                parts.add(to, id);
            }
        }
        let lane = self.lane;
        let part = |(to, ids)| {
            (
                to,
                Self {
                    lane: Arc::clone(&lane),
                    ids,
                    shards: Vec::new(),
                },
            )
        };
        parts.into_iter().map(part).collect()
    }
}

/// Asks a lane for something and waits for its answer.
pub(crate) async fn ask<T>(
    lane: &Lane,
    control: impl FnOnce(oneshot::Sender<T>) -> Control,
) -> Result<T, Error> {
    let (done, answer) = oneshot::channel();
    lane.send(control(done));
    answer.await.map_err(|_| lane.gone())
}
