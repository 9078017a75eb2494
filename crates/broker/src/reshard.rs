//! Splits and merges while writers and readers go on.
//!
//! The parents' batches wait in their lanes until everything before them is on disk, one catalog
//! record is written, and children have opened; then streams, routes and listings switch at once, and
//! what waited at the parents is answered: as a duplicate of what they hold, or as not appended.

use std::sync::Arc;

use flumen_record::{ShardIndex, StreamName};
use flumen_stream::reshard::next_steps;
use flumen_stream::{Catalog, Reshard, ReshardError};

use crate::describe::describe;
use crate::node::Node;
use crate::streams::{ShardHandle, Stream, StreamRef, StreamState};
use crate::{Error, StreamDescription};

/// Who wanted shards to be split or merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// A user.
    Asked,
    /// The stream's load.
    Load,
}

impl Node {
    /// [`crate::Broker::reshard`].
    pub(crate) async fn reshard(
        self: &Arc<Self>,
        meant: StreamRef<'_>,
        step: Reshard,
        cause: Cause,
    ) -> Result<StreamDescription, Error> {
        let (name, incarnation) = (meant.name.clone(), meant.incarnation);
        self.change(move |node| async move {
            let name = &name;
            let stream = node.streams.get(StreamRef { name, incarnation })?;
            node.take_steps(&stream, vec![step], cause).await?;
            Ok(describe(&stream))
        })
        .await
    }

    /// [`crate::Broker::scale_stream`].
    pub(crate) async fn scale_stream(
        self: &Arc<Self>,
        meant: StreamRef<'_>,
        shards: u32,
        cause: Cause,
    ) -> Result<StreamDescription, Error> {
        let (name, incarnation) = (meant.name.clone(), meant.incarnation);
        self.change(move |node| async move {
            let name = &name;
            let stream = node.streams.get(StreamRef { name, incarnation })?;
            let bounded = |max| match shards {
                shards if (1..=max).contains(&shards) => Ok(()),
                _ => Err(Error::OutOfBounds {
                    setting: "shards",
                    value: u64::from(shards),
                    min: 1,
                    max: u64::from(max),
                }),
            };
            bounded(node.config.stream.shards_per_stream_max)?;
            loop {
                let open = open_shards(&stream.state());
                let steps = next_steps(&open, shards);
                if steps.is_empty() {
                    // Single keys cannot be split.
                    bounded(u32::try_from(open.len()).unwrap_or(u32::MAX))?;
                    return Ok(describe(&stream));
                }
                node.take_steps(&stream, steps, cause).await?;
            }
        })
        .await
    }

    /// Takes steps that do not touch each other's shards, all of them or none.
    async fn take_steps(
        self: &Arc<Self>,
        stream: &Arc<Stream>,
        steps: Vec<Reshard>,
        cause: Cause,
    ) -> Result<(), Error> {
        let began = self.clock.monotonic();
        let state = stream.state();
        let limits = &self.config.stream;
        // Nothing is held or opened for what would be refused.
        let check = state
            .info
            .check_reshard(&steps, limits.shards_per_stream_max);
        check.map_err(|refusal| Error::of_reshard(&stream.name, refusal))?;
        // The children's logs must open before anything rests on them.
        let first = state.info.next_index().value();
        for child in (first..).take(2 * steps.len()) {
            let log = state
                .info
                .log_of(ShardIndex::new(child), limits.lanes_per_class);
            self.lane(log).await?.check_open()?;
        }
        let parents = steps.iter().flat_map(Reshard::parents);
        let parents: Vec<Arc<ShardHandle>> = parents
            .filter_map(|parent| state.shard(parent).cloned())
            .collect();
        let held = self.hold(&parents).await?;
        let ends: Vec<_> = held
            .iter()
            .flat_map(|held| &held.shards)
            .map(|shard| (shard.id.index(), shard.next))
            .collect();
        let (name, now) = (stream.name.clone(), self.clock.now());
        let change = {
            let steps = steps.clone();
            move |catalog: &mut Catalog| Ok(catalog.reshard(&name, &steps, &ends, now)?)
        };
        let (info, handles) = match self.record(stream, change).await {
            Ok(changed) => changed,
            Err(not_changed) => return Err(not_changed.end(held).await),
        };
        self.metrics.resharded(&steps, cause);
        let is_child = |handle: &&Arc<ShardHandle>| state.shard(handle.id.index()).is_none();
        let children: Vec<_> = handles.iter().filter(is_child).cloned().collect();
        let opened = self.open_empty(&children).await;
        // Whoever is told that a parent is closed finds the children.
        stream.replace(info, handles);
        self.groups.stream_changed(stream);
        for held in held {
            held.close().await;
        }
        let took = self.clock.monotonic().saturating_sub(began);
        tracing::info!(
            stream = %stream.name,
            parents = ?numbers(&parents),
            children = ?numbers(&children),
            ?cause,
            took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            "resharded"
        );
        opened
    }
}

/// The open shards of a stream, with their ranges.
fn open_shards(state: &StreamState) -> Vec<(ShardIndex, flumen_record::HashRange)> {
    let open = state.info.open_shards();
    open.map(|shard| (shard.id.index(), shard.range)).collect()
}

fn numbers(shards: &[Arc<ShardHandle>]) -> Vec<u32> {
    shards
        .iter()
        .map(|shard| shard.id.index().value())
        .collect()
}

impl Error {
    /// A refused split or merge, in the broker's words.
    pub(crate) fn of_reshard(stream: &StreamName, refusal: ReshardError) -> Self {
        match refusal {
            ReshardError::NotFound { shard } => Self::ShardNotFound {
                stream: stream.clone(),
                shard,
            },
            ReshardError::Closed { shard, end } => Self::ShardClosed { shard, end },
            ReshardError::NotAdjacent { shard, other } => Self::NotAdjacent { shard, other },
            ReshardError::Outside { shard, at, range } => Self::SplitOutside {
                shard,
                key: at,
                range,
            },
            ReshardError::TooMany {
                shards,
                max,
                closed_too,
            } => Self::OutOfBounds {
                setting: if closed_too {
                    "shards, closed ones that are kept included"
                } else {
                    "shards"
                },
                value: shards,
                min: 1,
                max: u64::from(max),
            },
        }
    }
}
