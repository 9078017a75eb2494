//! Changes of streams: one at a time, each durable in the catalog before it is visible, and carried
//! through even when who asked has gone away.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use flumen_log::LogKey;
use flumen_record::{ProducerId, SequenceNumber, ShardEpoch, ShardId, StreamName};
use flumen_stream::{Catalog, Move, NewStream, Shard, StreamInfo, StreamUpdate};

use crate::describe::describe;
use crate::hold::{NotChanged, ask};
use crate::lane::{Control, Lane, OpenShard, PerLane};
use crate::node::{Node, on_blocking_thread};
use crate::streams::{Place, ShardHandle, Stream, StreamRef};
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
        meant: StreamRef<'_>,
        update: StreamUpdate,
    ) -> Result<StreamDescription, Error> {
        let (name, incarnation) = (meant.name.clone(), meant.incarnation);
        self.change(move |node| async move {
            let name = &name;
            node.streams.get(StreamRef { name, incarnation })?;
            node.update(name, update).await
        })
        .await
    }

    /// [`crate::Broker::delete_stream`].
    pub(crate) async fn delete_stream(self: &Arc<Self>, meant: StreamRef<'_>) -> Result<(), Error> {
        let (name, incarnation) = (meant.name.clone(), meant.incarnation);
        self.change(move |node| async move {
            let meant = StreamRef {
                name: &name,
                incarnation,
            };
            node.streams.get(meant)?;
            node.delete(name).await
        })
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
    pub(crate) async fn change<T, F>(
        self: &Arc<Self>,
        change: impl FnOnce(Arc<Self>) -> F,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let node = Arc::clone(self);
        let change = change(Arc::clone(self));
        let task = self.carry_through(async move {
            let _one_at_a_time = node.changes.lock().await;
            node.check_serving()?;
            change.await
        });
        task.await.unwrap_or(Err(Error::Draining))
    }

    /// Creates a stream, within a change.
    pub(crate) async fn create(
        self: Arc<Self>,
        new: NewStream,
    ) -> Result<StreamDescription, Error> {
        let now = self.clock.now();
        let info = self
            .with_catalog(move |catalog| Ok(catalog.create(new, now)?))
            .await?;
        let handles = match self.open_shards(&info).await {
            Ok(handles) => handles,
            Err(error) => {
                // Its log does not open, or has ended: as if the stream had never been there.
                let name = info.name.clone();
                self.with_catalog(move |catalog| Ok(catalog.delete(&name, now)?))
                    .await?;
                return Err(error);
            }
        };
        Ok(describe(&self.streams.add(info, handles)))
    }

    /// Opens the shards of a new stream in their lanes: all of them, or none.
    async fn open_shards(
        self: &Arc<Self>,
        info: &Arc<StreamInfo>,
    ) -> Result<Vec<Arc<ShardHandle>>, Error> {
        let new_tail = |_| Arc::new(Tail::new(SequenceNumber::ZERO));
        let handles = self.handles(info, new_tail).await?;
        if let Err(error) = self.open_empty(&handles).await {
            forget(&handles);
            return Err(error);
        }
        Ok(handles)
    }

    /// Opens shards that have never held anything in their lanes.
    pub(crate) async fn open_empty(&self, handles: &[Arc<ShardHandle>]) -> Result<(), Error> {
        let mut by_lane = PerLane::default();
        for handle in handles {
            let shard = Shard::new(handle.id, handle.info.range, &self.config.stream);
            let tail = Arc::clone(&handle.tail);
            by_lane.add(handle.lane(), OpenShard { shard, tail });
        }
        for (lane, shards) in by_lane {
            ask(&lane, |done| Control::Open(shards, Some(done))).await?;
        }
        Ok(())
    }

    async fn delete(self: Arc<Self>, name: StreamName) -> Result<(), Error> {
        self.streams.get(&name)?;
        self.deliveries.check_unused(&name)?;
        self.delete_unchecked(&name).await
    }

    /// Deletes a stream, within a change, whoever uses it.
    pub(crate) async fn delete_unchecked(self: &Arc<Self>, name: &StreamName) -> Result<(), Error> {
        let now = self.clock.now();
        let (stream, name) = (self.streams.get(name)?, name.clone());
        self.with_catalog(move |catalog| Ok(catalog.delete(&name, now)?))
            .await?;
        stream.mark_deleted();
        self.streams.remove(&stream.name);
        self.groups.stream_deleted(&stream);
        let state = stream.state();
        let mut wakers = Vec::new();
        for shard in &state.shards {
            shard.tail.stir(&mut wakers);
        }
        wakers.into_iter().for_each(std::task::Waker::wake);
        forget(&state.shards);
        Ok(())
    }

    async fn update(
        self: Arc<Self>,
        name: &StreamName,
        update: StreamUpdate,
    ) -> Result<StreamDescription, Error> {
        let stream = self.streams.get(name)?;
        let state = stream.state();
        let settings = update.applied_to(&state.info.settings);
        // Nothing is held or opened for what would be refused.
        settings.check()?;
        let moving: Vec<Arc<ShardHandle>> = {
            let open = state
                .shards
                .iter()
                .filter(|shard| shard.closed_at().is_none());
            open.filter(|shard| {
                let key = shard.lane().key();
                Catalog::log_for(&settings, key.lane) != key
            })
            .cloned()
            .collect()
        };
        // The new logs must open before anything rests on them.
        for shard in &moving {
            self.lane(Catalog::log_for(&settings, shard.lane().key().lane))
                .await?
                .check_open()?;
        }
        let held = self.hold(&moving).await?;
        let moves: Vec<_> = held
            .iter()
            .flat_map(|held| &held.shards)
            .map(|shard| Move {
                shard: shard.id.index(),
                from: shard.next,
                epoch: ShardEpoch::new(shard.epoch.value().saturating_add(1)),
            })
            .collect();
        let (name, now) = (stream.name.clone(), self.clock.now());
        let change = move |catalog: &mut Catalog| Ok(catalog.update(&name, &update, &moves, now)?);
        let (info, handles) = match self.record(&stream, change).await {
            Ok(changed) => changed,
            Err(not_changed) => return Err(not_changed.end(held).await),
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

    /// Writes a change down; the stream and its shards as they are after it.
    pub(crate) async fn record(
        self: &Arc<Self>,
        stream: &Stream,
        change: impl FnOnce(&mut Catalog) -> Result<Arc<StreamInfo>, Error> + Send + 'static,
    ) -> Result<(Arc<StreamInfo>, Vec<Arc<ShardHandle>>), NotChanged> {
        let state = stream.state();
        let info = match self.with_catalog(change).await {
            Ok(info) => info,
            Err(Error::OutcomeUnknown) => return Err(NotChanged::Unknown(Error::OutcomeUnknown)),
            Err(error) => return Err(NotChanged::Refused(error)),
        };
        let tail = |id: ShardId| {
            let known = state.shard(id.index()).map(|shard| Arc::clone(&shard.tail));
            known.unwrap_or_else(|| Arc::new(Tail::new(SequenceNumber::ZERO)))
        };
        match self.handles(&info, tail).await {
            Ok(handles) => Ok((info, handles)),
            Err(error) => Err(NotChanged::Unknown(error)),
        }
    }

    /// The shards of a stream with their lanes, which are started where they are not running.
    pub(crate) async fn handles(
        self: &Arc<Self>,
        info: &Arc<StreamInfo>,
        tail: impl Fn(ShardId) -> Arc<Tail>,
    ) -> Result<Vec<Arc<ShardHandle>>, Error> {
        let mut handles = Vec::with_capacity(info.shards.len());
        for shard in &info.shards {
            let mut places = Vec::with_capacity(shard.stays.len());
            for &stay in shard.stays.iter() {
                let lane = self.lane(stay.log()).await?;
                places.push(Place { stay, lane });
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
    pub(crate) async fn lane(self: &Arc<Self>, key: LogKey) -> Result<Arc<Lane>, Error> {
        if let Some(lane) = self.lanes.get(key) {
            return Ok(lane);
        }
        let node = Arc::clone(self);
        on_blocking_thread(&*self.world, move || crate::open::open_new_log(&node, key)).await
    }
}

/// Tells the lanes of shards to forget them.
pub(crate) fn forget(shards: &[Arc<ShardHandle>]) {
    let mut by_lane = PerLane::default();
    for shard in shards {
        for lane in shard.lanes() {
            by_lane.add(lane, shard.id);
        }
    }
    for (lane, shards) in by_lane {
        lane.send(Control::Forget(shards));
    }
}

#[cfg(test)]
mod tests {
    use flumen_log::MemoryStorage;
    use flumen_stream::StreamSettings;

    use super::*;
    use crate::{BrokerConfig, Clock};

    fn new_stream(name: &str) -> NewStream {
        NewStream {
            name: name.parse().unwrap(),
            shards: 1,
            settings: StreamSettings::default(),
        }
    }

    /// Otherwise its name would be taken until the next start by a stream that nobody can reach.
    #[tokio::test]
    async fn a_stream_whose_lane_has_ended_is_not_created() {
        let storage = Arc::new(MemoryStorage::new());
        let node = crate::open::on_threads(storage, BrokerConfig::default(), Clock::system())
            .await
            .unwrap();
        let settings = StreamSettings::default();
        let lane = node.lane(Catalog::log_for(&settings, 0)).await.unwrap();
        lane.send(Control::Stop);
        lane.ended().await;
        for _ in 0..2 {
            let refused = node.create_stream(new_stream("readings")).await;
            assert_eq!(refused.unwrap_err(), Error::Draining);
        }
        let name = new_stream("readings").name;
        let known = node
            .with_catalog(move |catalog| Ok(catalog.stream(&name)))
            .await;
        assert_eq!(known, Ok(None));
    }

    #[tokio::test]
    async fn no_log_is_opened_for_settings_that_are_refused() {
        let storage = Arc::new(MemoryStorage::new());
        let node = crate::open::on_threads(storage, BrokerConfig::default(), Clock::system())
            .await
            .unwrap();
        let created = node.create_stream(new_stream("readings")).await.unwrap();
        let update = StreamUpdate {
            retention: Some(std::time::Duration::from_secs(3600)),
            max_record_bytes: Some(1),
            ..StreamUpdate::default()
        };
        let refused = node.update_stream((&created.name).into(), update).await;
        assert!(matches!(refused, Err(Error::OutOfBounds { .. })));
        assert_eq!(node.lanes.all().len(), 1);
    }
}
