//! Expiring records: by arrival time and by bytes, regularly, also when nothing is appended.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use flumen_log::ReadError;
use flumen_record::{SequenceNumber, ShardId, StreamId, Timestamp};
use flumen_stream::StreamSettings;
use flumen_stream::retention::{bytes_kept, expired_before};
use tokio::runtime::Handle;

use crate::Error;
use crate::changes::ask;
use crate::lane::{Control, Lane, PerLane};
use crate::node::{Node, on_blocking_thread};
use crate::streams::{ShardHandle, Stream};

/// By time, a stream is looked at again after this part of its retention.
const LOOKS_PER_RETENTION: u32 = 1000;

/// Starts the loop. It ends with the node.
pub(crate) fn start(node: &Arc<Node>, runtime: &Handle) {
    let interval = Duration::from_millis(node.config.retention_interval_ms.max(1));
    let mut stop = node.stop.subscribe();
    let clock = node.clock.clone();
    let node = Arc::downgrade(node);
    runtime.spawn(async move {
        let mut due = HashMap::new();
        loop {
            tokio::select! {
                () = clock.sleep(interval) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
            let Some(node) = Weak::upgrade(&node) else {
                return;
            };
            if let Err(error) = node.expire_due(&mut due).await
                && error != Error::Draining
            {
                tracing::warn!(%error, "retention could not be applied; it is tried again");
            }
        }
    });
}

impl Node {
    /// [`crate::Broker::apply_retention`].
    pub(crate) async fn apply_retention(self: &Arc<Self>) -> Result<(), Error> {
        self.expire_due(&mut HashMap::new()).await
    }

    /// Looks at every stream that is due; `due` remembers when each is next.
    async fn expire_due(
        self: &Arc<Self>,
        due: &mut HashMap<StreamId, Timestamp>,
    ) -> Result<(), Error> {
        if !self.clock.is_trusted() {
            return Ok(());
        }
        let now = self.clock.now();
        let streams = self.streams.all();
        due.retain(|id, _| streams.iter().any(|stream| stream.state().info.id == *id));
        for stream in streams {
            let settings = stream.state().info.settings.clone();
            let id = stream.state().info.id;
            let by_time = due.get(&id).is_none_or(|at| *at <= now);
            if by_time {
                due.insert(
                    id,
                    now.saturating_add(settings.retention / LOOKS_PER_RETENTION),
                );
            }
            let cut_off = by_time.then(|| expired_before(&settings, now));
            if cut_off.is_some() || settings.retention_bytes.is_some() {
                self.expire(&stream, cut_off, settings).await?;
            }
        }
        Ok(())
    }

    /// Trims one stream: what arrived before `cut_off`, and what is beyond its bound in bytes.
    async fn expire(
        self: &Arc<Self>,
        stream: &Arc<Stream>,
        cut_off: Option<Timestamp>,
        settings: StreamSettings,
    ) -> Result<(), Error> {
        let state = stream.state();
        let trims =
            on_blocking_thread(move || find_trims(&state.shards, cut_off, &settings)).await?;
        let mut by_lane = PerLane::default();
        for (shard, before) in trims {
            for place in &shard.places {
                by_lane.add(&place.lane, (shard.id, before));
            }
        }
        for (lane, trims) in by_lane {
            ask(&lane, |done| Control::Trim(trims, done)).await?;
        }
        self.leave_empty_logs(stream).await
    }

    /// Drops placements in logs where nothing of a shard is left.
    async fn leave_empty_logs(self: &Arc<Self>, stream: &Arc<Stream>) -> Result<(), Error> {
        let state = stream.state();
        let empty = |shard: &Arc<ShardHandle>| {
            let horizon = shard.bounds().trim_horizon;
            shard
                .places_with_next()
                .any(|(_, next)| next.is_some_and(|next| next <= horizon))
        };
        if !state.shards.iter().any(empty) {
            return Ok(());
        }
        let _one_at_a_time = self.changes.lock().await;
        stream.check_exists()?;
        let state = stream.state();
        let now = self.clock.now();
        let mut left: Vec<(Arc<Lane>, ShardId)> = Vec::new();
        for shard in &state.shards {
            let horizon = shard.bounds().trim_horizon;
            for (at, (place, next)) in shard.places_with_next().enumerate() {
                let (id, key) = (shard.id, place.lane.key());
                let used_later = shard
                    .places
                    .iter()
                    .skip(at + 1)
                    .any(|later| later.lane.key() == key);
                if next.is_none_or(|next| next > horizon) || used_later {
                    break;
                }
                self.with_catalog(move |catalog| Ok(catalog.drop_placement(id, key, now)?))
                    .await?;
                left.push((Arc::clone(&place.lane), id));
            }
        }
        if left.is_empty() {
            return Ok(());
        }
        let name = stream.name.clone();
        let info = self
            .with_catalog(move |catalog| {
                catalog.stream(&name).ok_or_else(|| Error::StreamNotFound {
                    stream: name.clone(),
                })
            })
            .await?;
        let tail = |id: ShardId| {
            let shard = state
                .shard(id.index())
                .expect("BUG: dropping a placement made a shard");
            Arc::clone(&shard.tail)
        };
        let handles = self.handles(&info, tail).await?;
        stream.replace(info, handles);
        for (lane, id) in left {
            lane.send(Control::Forget(vec![id]));
        }
        Ok(())
    }
}

/// How far each shard's horizon is to move. Blocks.
fn find_trims(
    shards: &[Arc<ShardHandle>],
    cut_off: Option<Timestamp>,
    settings: &StreamSettings,
) -> Result<Vec<(Arc<ShardHandle>, SequenceNumber)>, Error> {
    let stored: u64 = shards.iter().map(|shard| shard.bounds().stored_bytes).sum();
    let mut trims = Vec::new();
    for shard in shards {
        let bounds = shard.bounds();
        if bounds.trim_horizon >= bounds.durable_end {
            continue;
        }
        let mut before = bounds.trim_horizon;
        if let Some(cut_off) = cut_off
            && cut_off > Timestamp::ZERO
        {
            before = before.max(arrived_before(shard, cut_off, bounds.durable_end)?);
        }
        if let Some(keep) = bytes_kept(settings, bounds.stored_bytes, stored) {
            before = before.max(beyond_bytes(shard, keep)?);
        }
        if before > bounds.trim_horizon {
            trims.push((Arc::clone(shard), before));
        }
    }
    Ok(trims)
}

/// First number of a shard that did not arrive before `cut_off`.
fn arrived_before(
    shard: &ShardHandle,
    cut_off: Timestamp,
    durable_end: SequenceNumber,
) -> Result<SequenceNumber, Error> {
    for (place, next) in shard.places_with_next() {
        match place.lane.reader().find_time(shard.id, cut_off) {
            Ok(number) if next.is_none_or(|next| number < next) => return Ok(number),
            Ok(_) | Err(ReadError::UnknownShard { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(durable_end)
}

/// First number of a shard such that no more than `keep` bytes follow.
fn beyond_bytes(shard: &ShardHandle, mut keep: u64) -> Result<SequenceNumber, Error> {
    for place in shard.places.iter().rev() {
        let reader = place.lane.reader();
        let Some(bounds) = reader.bounds(shard.id) else {
            continue;
        };
        if bounds.stored_bytes > keep {
            return Ok(reader.find_bytes_from_end(shard.id, keep)?.max(place.from));
        }
        keep -= bounds.stored_bytes;
    }
    Ok(SequenceNumber::ZERO)
}
