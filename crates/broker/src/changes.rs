//! Changes of streams: one at a time, each durable in the catalog before it is visible, and carried
//! through even when who asked has gone away.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use flumen_log::LogKey;
use flumen_record::{ProducerId, SequenceNumber, ShardId, ShardIndex, StreamName};
use flumen_stream::{NewStream, Shard, StreamInfo, StreamUpdate};
use tokio::sync::oneshot;

use crate::describe::describe;
use crate::lane::{Control, Lane, OpenShard, PerLane};
use crate::node::{Node, on_blocking_thread};
use crate::streams::{Place, ShardHandle, Stream};
use crate::tail::Tail;
use crate::{Error, StreamDescription};

impl Node {
    /// [`crate::Broker::create_stream`].
    pub(crate) async fn create_stream(
        self: &Arc<Self>,
        new: NewStream,
    ) -> Result<StreamDescription, Error> {
        self.change(|node| async move { node.create(new).await })
            .await
    }

    /// [`crate::Broker::update_stream`].
    pub(crate) async fn update_stream(
        self: &Arc<Self>,
        name: &StreamName,
        update: StreamUpdate,
    ) -> Result<StreamDescription, Error> {
        let name = name.clone();
        self.change(|node| async move { node.update(&name, update).await })
            .await
    }

    /// [`crate::Broker::delete_stream`].
    pub(crate) async fn delete_stream(self: &Arc<Self>, name: &StreamName) -> Result<(), Error> {
        let name = name.clone();
        self.change(|node| async move { node.delete(name).await })
            .await
    }

    /// [`crate::Broker::open_producer`].
    pub(crate) async fn open_producer(self: &Arc<Self>) -> Result<ProducerId, Error> {
        self.check_serving()?;
        let now = self.clock.now();
        let producer = self
            .with_catalog(move |catalog| Ok(catalog.issue_producer(now)?))
            .await?;
        self.issued.fetch_max(producer.value(), Ordering::AcqRel);
        Ok(producer)
    }

    /// Runs a change in a task of its own, after those before it.
    async fn change<T, F>(self: &Arc<Self>, change: impl FnOnce(Arc<Self>) -> F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let node = Arc::clone(self);
        let change = change(Arc::clone(self));
        let task = tokio::spawn(async move {
            let _one_at_a_time = node.changes.lock().await;
            node.check_serving()?;
            change.await
        });
        match task.await {
            Ok(result) => result,
            Err(ended) if ended.is_panic() => std::panic::resume_unwind(ended.into_panic()),
            Err(_) => Err(Error::Draining),
        }
    }

    async fn create(self: Arc<Self>, new: NewStream) -> Result<StreamDescription, Error> {
        let now = self.clock.now();
        let info = self
            .with_catalog(move |catalog| Ok(catalog.create(new, now)?))
            .await?;
        let handles = match self
            .handles(&info, |_| Arc::new(Tail::new(SequenceNumber::ZERO)))
            .await
        {
            Ok(handles) => handles,
            Err(error) => {
                // Its log does not open: as if it had never been there.
                let name = info.name.clone();
                self.with_catalog(move |catalog| Ok(catalog.delete(&name, now)?))
                    .await?;
                return Err(error);
            }
        };
        let mut by_lane = PerLane::default();
        for handle in &handles {
            let shard = Shard::new(handle.id, handle.info.range, &self.config.stream);
            let tail = Arc::clone(&handle.tail);
            by_lane.add(handle.lane(), OpenShard { shard, tail });
        }
        for (lane, shards) in by_lane {
            ask(&lane, |done| Control::Open(shards, Some(done))).await?;
        }
        let stream = Stream::new(info, handles);
        self.streams.insert(Arc::clone(&stream));
        Ok(describe(&stream))
    }

    async fn delete(self: Arc<Self>, name: StreamName) -> Result<(), Error> {
        let now = self.clock.now();
        let stream = self.streams.get(&name)?;
        self.with_catalog(move |catalog| Ok(catalog.delete(&name, now)?))
            .await?;
        stream.mark_deleted();
        self.streams.remove(&stream.name);
        let state = stream.state();
        let mut wakers = Vec::new();
        let mut by_lane = PerLane::default();
        for shard in &state.shards {
            shard.tail.stir(&mut wakers);
            for place in &shard.places {
                by_lane.add(&place.lane, shard.id);
            }
        }
        wakers.into_iter().for_each(std::task::Waker::wake);
        for (lane, shards) in by_lane {
            lane.send(Control::Forget(shards));
        }
        Ok(())
    }

    async fn update(
        self: Arc<Self>,
        name: &StreamName,
        update: StreamUpdate,
    ) -> Result<StreamDescription, Error> {
        let stream = self.streams.get(name)?;
        let state = stream.state();
        let moving: Vec<Arc<ShardHandle>> = {
            let mut settings = state.info.settings.clone();
            settings.durability = update.durability.unwrap_or(settings.durability);
            settings.retention = update.retention.unwrap_or(settings.retention);
            let open = state
                .shards
                .iter()
                .filter(|shard| shard.closed_at().is_none());
            open.filter(|shard| {
                let key = shard.lane().key();
                flumen_stream::Catalog::log_for(&settings, key.lane) != key
            })
            .cloned()
            .collect()
        };
        let held = self.hold(&moving).await?;
        let moves: Vec<_> = held
            .iter()
            .flat_map(|held| &held.numbers)
            .copied()
            .collect();
        let changed = self.record_update(name, update, moves).await;
        let (info, handles) = match changed {
            Ok(changed) => changed,
            Err(error) => {
                for held in held {
                    held.release(None).await;
                }
                return Err(error);
            }
        };
        let new_lanes: BTreeMap<ShardId, Arc<Lane>> = handles
            .iter()
            .map(|handle| (handle.id, Arc::clone(handle.lane())))
            .collect();
        for held in held {
            for (lane, part) in held.split_by(&new_lanes) {
                part.release(Some(lane)).await;
            }
        }
        stream.replace(info, handles);
        Ok(describe(&stream))
    }

    /// Writes the change down; its streams' shards as they are after it.
    async fn record_update(
        self: &Arc<Self>,
        name: &StreamName,
        update: StreamUpdate,
        moves: Vec<(ShardIndex, SequenceNumber)>,
    ) -> Result<(Arc<StreamInfo>, Vec<Arc<ShardHandle>>), Error> {
        let now = self.clock.now();
        let stream = self.streams.get(name)?;
        let state = stream.state();
        if !moves.is_empty() {
            // The new log must open before anything rests on it.
            let mut settings = state.info.settings.clone();
            settings.durability = update.durability.unwrap_or(settings.durability);
            settings.retention = update.retention.unwrap_or(settings.retention);
            for shard in &state.shards {
                let key = flumen_stream::Catalog::log_for(&settings, shard.lane().key().lane);
                self.lane(key).await?;
            }
        }
        let name = name.clone();
        let change = move |catalog: &mut flumen_stream::Catalog| {
            Ok(catalog.update(&name, &update, &moves, now)?)
        };
        let info = self.with_catalog(change).await?;
        let tail = |id: ShardId| {
            let known = state.shard(id.index()).map(|shard| Arc::clone(&shard.tail));
            known.unwrap_or_else(|| Arc::new(Tail::new(SequenceNumber::ZERO)))
        };
        let handles = self.handles(&info, tail).await?;
        Ok((info, handles))
    }

    /// Holds shards back in their lanes.
    async fn hold(&self, shards: &[Arc<ShardHandle>]) -> Result<Vec<Held>, Error> {
        let mut by_lane = PerLane::default();
        shards
            .iter()
            .for_each(|shard| by_lane.add(shard.lane(), shard.id));
        let mut held: Vec<Held> = Vec::new();
        for (lane, ids) in by_lane {
            match ask(&lane, |done| Control::Hold(ids.clone(), done)).await {
                Ok(numbers) => {
                    let numbers = numbers
                        .into_iter()
                        .map(|(id, next)| (id.index(), next))
                        .collect();
                    held.push(Held { lane, ids, numbers });
                }
                Err(error) => {
                    // This lane's hold may stand; it does not know whom to answer any more.
                    held.push(Held {
                        lane,
                        ids,
                        numbers: Vec::new(),
                    });
                    for held in held {
                        held.release(None).await;
                    }
                    return Err(error);
                }
            }
        }
        Ok(held)
    }

    /// The shards of a stream with their lanes, which are started where they are not running.
    pub(crate) async fn handles(
        self: &Arc<Self>,
        info: &Arc<StreamInfo>,
        tail: impl Fn(ShardId) -> Arc<Tail>,
    ) -> Result<Vec<Arc<ShardHandle>>, Error> {
        let mut handles = Vec::with_capacity(info.shards.len());
        for shard in &info.shards {
            let mut places = Vec::with_capacity(shard.placements.len());
            for placement in &shard.placements {
                places.push(Place {
                    from: placement.from,
                    lane: self.lane(placement.log).await?,
                });
            }
            handles.push(Arc::new(ShardHandle {
                id: shard.id,
                info: shard.clone(),
                tail: tail(shard.id),
                places,
            }));
        }
        Ok(handles)
    }

    /// The lane of a log, which is created when it is first needed.
    async fn lane(self: &Arc<Self>, key: LogKey) -> Result<Arc<Lane>, Error> {
        if let Some(lane) = self.lanes.get(key) {
            return Ok(lane);
        }
        let node = Arc::clone(self);
        let runtime = tokio::runtime::Handle::current();
        on_blocking_thread(move || crate::open::open_new_log(&node, key, runtime)).await
    }
}

/// Shards that one lane holds back.
struct Held {
    lane: Arc<Lane>,
    ids: Vec<ShardId>,
    numbers: Vec<(ShardIndex, SequenceNumber)>,
}

impl Held {
    /// Lets them go on, here or in another lane.
    async fn release(self, to: Option<Arc<Lane>>) {
        let shards = self.ids;
        // A lane that has ended has answered its batches itself.
        let _ = ask(&self.lane, |done| Control::Release { shards, to, done }).await;
    }

    /// The parts that go to different lanes.
    fn split_by(self, lanes: &BTreeMap<ShardId, Arc<Lane>>) -> Vec<(Arc<Lane>, Self)> {
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
                    numbers: Vec::new(),
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
    answer.await.map_err(|_| {
        if lane.is_poisoned() {
            Error::Poisoned
        } else {
            Error::Draining
        }
    })
}
