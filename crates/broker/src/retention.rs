//! Expiring records: by arrival time and by bytes, regularly, also when nothing is appended.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use flumen_log::{ReadError, SearchAnswer, StayId};
use flumen_record::{SequenceNumber, ShardId, StreamId, Timestamp};
use flumen_stream::retention::{
    Expiry, bytes_kept, expired_before, has_expired, held_back, let_go_before,
};
use flumen_stream::{Catalog, StreamSettings};

use crate::Error;
use crate::changes::forget;
use crate::hold::ask;
use crate::lane::{Control, PerLane};
use crate::node::{Node, on_blocking_thread};
use crate::streams::{Place, ShardHandle, Stream, StreamState};

/// By time, a stream is looked at again after this part of its retention.
const LOOKS_PER_RETENTION: u32 = 1000;

/// When each stream is next looked at by time, and which version of it that was decided for: another
/// retention is noticed at once.
type Due = BTreeMap<StreamId, (u64, Timestamp)>;

/// A shard, and how far its horizon is to move.
type Trim = (Arc<ShardHandle>, SequenceNumber);

/// What delivery streams have planned and not delivered: retention waits for it, up to a bound.
struct Holds {
    /// Per shard, from where on.
    held: BTreeMap<ShardId, SequenceNumber>,
    /// Nobody knows what is planned: it may be anything.
    unknown: bool,
    /// For how long at most.
    max: Duration,
    now: Timestamp,
}

/// Starts the loop. It ends with the node.
pub(crate) fn start(node: &Arc<Node>) {
    let interval = Duration::from_millis(node.config.retention_interval_ms.max(1));
    let mut stop = node.stop.subscribe();
    let clock = node.clock.clone();
    let (here, node) = (node, Arc::downgrade(node));
    here.background(async move {
        let mut due = Due::new();
        loop {
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                () = clock.sleep(interval) => {}
            }
            let Some(node) = Weak::upgrade(&node) else {
                return;
            };
            // What failed was told, and stays due.
            let _ = node.expire_due(&mut due).await;
        }
    });
}

impl Node {
    /// [`crate::Broker::apply_retention`].
    pub(crate) async fn apply_retention(self: &Arc<Self>) -> Result<(), Error> {
        self.expire_due(&mut Due::new()).await
    }

    /// Looks at every stream that is due. One that fails does not stop the others: it is told, and
    /// due again the next time. The first error is returned at the end.
    async fn expire_due(self: &Arc<Self>, due: &mut Due) -> Result<(), Error> {
        if !self.clock.is_trusted() {
            return Ok(());
        }
        let now = self.clock.now();
        let streams = self.streams.all();
        let ids: BTreeSet<StreamId> = streams
            .iter()
            .map(|stream| stream.state().info.id)
            .collect();
        due.retain(|id, _| ids.contains(id));
        let mut first = Ok(());
        for stream in streams {
            self.check_serving()?;
            match self.expire_if_due(&stream, due, now).await {
                Ok(()) => {}
                // It was deleted meanwhile.
                Err(Error::StreamNotFound { .. }) => {}
                Err(error) => {
                    self.check_serving()?;
                    tracing::warn!(
                        stream = %stream.name,
                        %error,
                        "retention could not be applied; it is tried again"
                    );
                    first = first.and(Err(error));
                }
            }
        }
        first
    }

    async fn expire_if_due(
        self: &Arc<Self>,
        stream: &Arc<Stream>,
        due: &mut Due,
        now: Timestamp,
    ) -> Result<(), Error> {
        let info = Arc::clone(&stream.state().info);
        let by_time = due
            .get(&info.id)
            .is_none_or(|(version, at)| *version != info.version || *at <= now);
        let cut_off = by_time.then(|| expired_before(&info.settings, now));
        if cut_off.is_some() || info.settings.retention_bytes.is_some() {
            let settings = info.settings.clone();
            self.expire(stream, cut_off, settings, now).await?;
        }
        if by_time {
            let again = now.saturating_add(info.settings.retention / LOOKS_PER_RETENTION);
            due.insert(info.id, (info.version, again));
        }
        Ok(())
    }

    /// Trims one stream: what arrived before `cut_off`, and what is beyond its bound in bytes.
    async fn expire(
        self: &Arc<Self>,
        stream: &Arc<Stream>,
        cut_off: Option<Timestamp>,
        settings: StreamSettings,
        now: Timestamp,
    ) -> Result<(), Error> {
        let state = stream.state();
        let holds = Holds {
            held: self.deliveries.held(&stream.name),
            unknown: self.deliveries.refusal().is_some(),
            max: self.config.delivery.hold_max(),
            now,
        };
        let find = move || Ok(find_trims(&state.shards, cut_off, &settings, &holds));
        let (trims, found) = on_blocking_thread(&*self.world, find).await?;
        let mut by_lane = PerLane::default();
        for (shard, before) in trims {
            for Place { stay, lane } in &shard.places {
                let before = stay.to().map_or(before, |to| before.min(to));
                if before > stay.from() {
                    by_lane.add(lane, (shard.id, before));
                }
            }
        }
        for (lane, trims) in by_lane {
            ask(&lane, |done| Control::Trim(trims, done)).await?;
        }
        self.leave_empty_logs(stream).await?;
        if cut_off.is_some() {
            self.drop_expired_shards(stream, now).await?;
        }
        found
    }

    /// Lets go of closed shards that have expired.
    async fn drop_expired_shards(
        self: &Arc<Self>,
        stream: &Arc<Stream>,
        now: Timestamp,
    ) -> Result<(), Error> {
        let expired = |state: &StreamState| -> Vec<Arc<ShardHandle>> {
            let settings = &state.info.settings;
            let shards = state.shards.iter().filter(|shard| {
                shard.closed_at().is_some()
                    && has_expired(shard.info.state, shard.bounds().trim_horizon, settings, now)
            });
            shards.cloned().collect()
        };
        if expired(&stream.state()).is_empty() {
            return Ok(());
        }
        let _one_at_a_time = self.changes.lock().await;
        stream.check_exists()?;
        let state = stream.state();
        let gone = expired(&state);
        let indices: Vec<_> = gone.iter().map(|shard| shard.id.index()).collect();
        let (name, told) = (stream.name.clone(), indices.len());
        let change = move |catalog: &mut Catalog| Ok(catalog.expire_shards(&name, &indices, now)?);
        let info = self.with_catalog(change).await?;
        let tail = |id: ShardId| {
            let shard = state
                .shard(id.index())
                .expect("BUG: expiring a shard made one");
            Arc::clone(&shard.tail)
        };
        let handles = self.handles(&info, tail).await?;
        stream.replace(info, handles);
        self.groups.stream_changed(stream);
        forget(&gone);
        tracing::info!(stream = %stream.name, shards = told, "closed shards have expired");
        Ok(())
    }

    /// Drops the stays of shards of which nothing is left. A log that a shard has no other stay in
    /// forgets it.
    async fn leave_empty_logs(self: &Arc<Self>, stream: &Arc<Stream>) -> Result<(), Error> {
        let state = stream.state();
        if !state.shards.iter().any(|shard| empty_places(shard) > 0) {
            return Ok(());
        }
        let _one_at_a_time = self.changes.lock().await;
        stream.check_exists()?;
        let state = stream.state();
        let now = self.clock.now();
        let mut dropped: Vec<StayId> = Vec::new();
        let mut left = PerLane::default();
        for shard in &state.shards {
            let (gone, kept) = shard.places.split_at(empty_places(shard));
            let Some(last) = gone.last() else {
                continue;
            };
            dropped.push(last.stay.id(shard.id));
            for lane in shard.lanes() {
                if !kept.iter().any(|place| Arc::ptr_eq(&place.lane, lane)) {
                    left.add(lane, shard.id);
                }
            }
        }
        if dropped.is_empty() {
            return Ok(());
        }
        let name = stream.name.clone();
        let info = self
            .with_catalog(move |catalog| {
                catalog.drop_stays(&dropped, now)?;
                catalog.stream(&name).ok_or_else(|| Error::StreamNotFound {
                    stream: name.clone(),
                })
            })
            .await?;
        let tail = |id: ShardId| {
            let shard = state
                .shard(id.index())
                .expect("BUG: dropping a stay made a shard");
            Arc::clone(&shard.tail)
        };
        let handles = self.handles(&info, tail).await?;
        stream.replace(info, handles);
        self.groups.stream_changed(stream);
        for (lane, shards) in left {
            lane.send(Control::Forget(shards));
        }
        Ok(())
    }
}

/// How many of a shard's places, from the oldest on, hold nothing that is kept. Never the last.
fn empty_places(shard: &ShardHandle) -> usize {
    let horizon = shard.bounds().trim_horizon;
    let is_empty = |place: &&Place| place.stay.to().is_some_and(|to| to <= horizon);
    shard.places.iter().take_while(is_empty).count()
}

/// How far each shard's horizon is to move, as far as that can be found out; the first error of a
/// shard where it cannot. Blocks.
fn find_trims(
    shards: &[Arc<ShardHandle>],
    cut_off: Option<Timestamp>,
    settings: &StreamSettings,
    holds: &Holds,
) -> (Vec<Trim>, Result<(), Error>) {
    let cut_off = cut_off.filter(|cut_off| *cut_off > Timestamp::ZERO);
    let (stored, mut first) = match stored_bytes(shards, settings) {
        Ok(stored) => (stored, Ok(())),
        Err(error) => (None, Err(error)),
    };
    let all = stored.iter().flatten().sum();
    let mut trims = Vec::new();
    for (at, shard) in shards.iter().enumerate() {
        // What is in a log that did not open is not known, and nothing expires by it.
        if shard.refusal().is_some() {
            continue;
        }
        let bounds = shard.bounds();
        if bounds.trim_horizon >= bounds.durable_end {
            continue;
        }
        let by_time = match cut_off {
            Some(cut_off) => arrived_before(shard, cut_off, bounds.durable_end),
            None => Ok(None),
        };
        let stored = stored.as_ref().and_then(|stored| stored.get(at));
        let keep = stored.and_then(|stored| bytes_kept(settings, *stored, all));
        let by_bytes = match keep {
            Some(keep) => beyond_bytes(shard, keep),
            None => Ok(None),
        };
        for (before, by) in [(by_time, Expiry::Time), (by_bytes, Expiry::Bytes)] {
            let limited = before.and_then(|before| match before {
                Some(before) => holds.limit(shard, before, by, settings),
                None => Ok(bounds.trim_horizon),
            });
            match limited {
                Ok(before) if before > bounds.trim_horizon => {
                    trims.push((Arc::clone(shard), before));
                }
                Ok(_) => {}
                Err(error) => first = first.and(Err(error)),
            }
        }
    }
    (trims, first)
}

/// What each shard of a stream stores, when that is more than the stream may keep together. It is
/// added up only when it may be too much, or is an estimate. `None`: nothing has to go, or it is not known.
fn stored_bytes(
    shards: &[Arc<ShardHandle>],
    settings: &StreamSettings,
) -> Result<Option<Vec<u64>>, Error> {
    let Some(bound) = settings.retention_bytes else {
        return Ok(None);
    };
    let bounds = || shards.iter().map(|shard| shard.bounds());
    let known: u64 = bounds().map(|bounds| bounds.stored_bytes).sum();
    if known <= bound && bounds().all(|bounds| bounds.bytes_are_exact) {
        return Ok(None);
    }
    let mut stored = Vec::with_capacity(shards.len());
    for shard in shards {
        let mut here = 0_u64;
        if shard.refusal().is_some() {
            stored.push(here);
            continue;
        }
        for Place { stay, lane } in &shard.places {
            match lane.reader().count_bytes(shard.id, stay) {
                Ok(Some(bytes)) => here = here.saturating_add(bytes),
                Ok(None) => return Ok(None),
                Err(ReadError::UnknownShard { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        stored.push(here);
    }
    Ok(Some(stored))
}

impl Holds {
    /// How far a shard's horizon may move that would move up to `before`. Blocks.
    fn limit(
        &self,
        shard: &ShardHandle,
        before: SequenceNumber,
        by: Expiry,
        settings: &StreamSettings,
    ) -> Result<SequenceNumber, Error> {
        let held = match self.held.get(&shard.id) {
            _ if self.unknown => SequenceNumber::ZERO,
            Some(held) if *held < before => *held,
            _ => return Ok(before),
        };
        let let_go = let_go_before(settings, by, self.max, self.now);
        let let_go = if let_go > Timestamp::ZERO {
            arrived_before(shard, let_go, shard.bounds().durable_end)?
        } else {
            None
        };
        let let_go = let_go.unwrap_or(SequenceNumber::ZERO);
        Ok(held_back(before, held, let_go))
    }
}

/// First number of a shard that is not known to have arrived before `cut_off`: what is kept before it
/// has. `None`: that is not known of anything.
fn arrived_before(
    shard: &ShardHandle,
    cut_off: Timestamp,
    durable_end: SequenceNumber,
) -> Result<Option<SequenceNumber>, Error> {
    for Place { stay, lane } in &shard.places {
        match lane.reader().find_time(shard.id, stay, cut_off) {
            Ok(SearchAnswer::At(number)) => return Ok(Some(number)),
            Ok(SearchAnswer::AllOlder) | Err(ReadError::UnknownShard { .. }) => {}
            Ok(SearchAnswer::Unknown) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Some(durable_end))
}

/// First number of a shard such that no more than `keep` bytes follow; with the batch before it there
/// would be more. `None`: it is not known, or nothing is beyond.
fn beyond_bytes(shard: &ShardHandle, mut keep: u64) -> Result<Option<SequenceNumber>, Error> {
    for Place { stay, lane } in shard.places.iter().rev() {
        let reader = lane.reader();
        let stored = match reader.count_bytes(shard.id, stay) {
            Ok(Some(stored)) => stored,
            Ok(None) => return Ok(None),
            Err(ReadError::UnknownShard { .. }) => continue,
            Err(error) => return Err(error.into()),
        };
        if stored > keep {
            return match reader.find_bytes_from_end(shard.id, stay, keep)? {
                SearchAnswer::At(number) => Ok(Some(number)),
                SearchAnswer::AllOlder | SearchAnswer::Unknown => Ok(None),
            };
        }
        keep -= stored;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use flumen_log::MemoryStorage;
    use flumen_record::{Record, StreamName};
    use flumen_stream::NewStream;

    use super::*;
    use crate::{BrokerConfig, Clock};

    const HOUR: Duration = Duration::from_secs(3600);

    async fn one_record(node: &Arc<Node>, name: &str, retention: Duration) -> StreamName {
        let name: StreamName = name.parse().unwrap();
        let settings = StreamSettings {
            retention,
            ..StreamSettings::default()
        };
        let new = NewStream {
            name: name.clone(),
            shards: 1,
            settings,
        };
        node.create_stream(new).await.unwrap();
        let record = Record {
            partition_key: "key".into(),
            explicit_hash_key: None,
            data: "data".into(),
            client_timestamp: None,
            headers: Vec::new(),
        };
        node.put((&name).into(), vec![record]).await.unwrap();
        name
    }

    /// The disk must not fill because one stream cannot be looked after.
    #[tokio::test]
    async fn a_stream_that_fails_does_not_stop_retention_for_the_others() {
        let clock = Clock::manual(Timestamp::from_micros(1_800_000_000_000_000));
        let storage = Arc::new(MemoryStorage::new());
        let node = crate::open::on_threads(storage, BrokerConfig::default(), clock.clone())
            .await
            .unwrap();
        let failing = one_record(&node, "a", HOUR).await;
        let other = one_record(&node, "b", 24 * HOUR).await;
        let lane = Arc::clone(node.streams.get(&failing).unwrap().state().shards[0].lane());
        lane.send(Control::Stop);
        lane.ended().await;
        clock.advance(25 * HOUR);
        let mut due = Due::new();
        node.expire_due(&mut due).await.unwrap_err();
        let state = node.streams.get(&other).unwrap().state();
        let bounds = state.shards[0].bounds();
        assert_eq!(bounds.trim_horizon, SequenceNumber::new(1));
        // What failed is due again, what was done is not.
        let ids: Vec<StreamId> = due.keys().copied().collect();
        assert_eq!(ids, [state.info.id]);
    }
}
