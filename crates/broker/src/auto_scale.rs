//! Splits and merges by load: about once a second, the load of streams that want it is looked at, and
//! what `flumen_stream::auto_scale` wishes for is done.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use flumen_record::{HashKey, ShardIndex, StreamId, Timestamp};
use flumen_stream::auto_scale::{AutoScaler, Taken, Wish, split_key};
use flumen_stream::{AutoScale, Reshard, ShardState};

use flumen_world::World;

use crate::Error;
use crate::load::Sample;
use crate::node::{Node, on_blocking_thread};
use crate::reshard::Cause;
use crate::streams::{ShardHandle, Stream, StreamState};

/// How often loads are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Keys of one shard that are remembered: about those of the last minute.
const KEYS_MAX: usize = 2048;
/// Keys taken from one batch.
const KEYS_PER_BATCH: usize = 8;
/// After a failure a stream is left alone for this long, at least.
const PAUSE: Duration = Duration::from_secs(60);

/// What is known of one stream.
#[derive(Debug, Default)]
struct Watch {
    scaler: AutoScaler,
    shards: BTreeMap<ShardIndex, Keys>,
    /// Nothing is tried before this.
    not_before: Duration,
}

/// The keys of one shard that were observed last, with their loads.
#[derive(Debug, Default)]
struct Keys {
    observed: VecDeque<(HashKey, u64)>,
    /// Batches that had come at the last look.
    before: u64,
}

/// Starts the loop. It ends with the node.
pub(crate) fn start(node: &Arc<Node>) {
    let mut stop = node.stop.subscribe();
    let clock = node.clock.clone();
    let mut changes = node.streams.changes();
    let (here, node) = (node, Arc::downgrade(node));
    here.background(async move {
        let mut watches: BTreeMap<StreamId, Watch> = BTreeMap::new();
        let mut scaled: Vec<Arc<Stream>> = Vec::new();
        changes.mark_changed();
        loop {
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                // Without a stream that wants it there is nothing to look at.
                changed = changes.changed(), if scaled.is_empty() => {
                    if changed.is_err() {
                        return;
                    }
                    changes.mark_changed();
                }
                () = clock.sleep(LOOK_EVERY), if !scaled.is_empty() => {}
            }
            let Some(node) = Weak::upgrade(&node) else {
                return;
            };
            if changes.has_changed().unwrap_or(false) {
                changes.mark_unchanged();
                scaled = node.scaled_streams(&scaled, &mut watches);
            }
            for stream in &scaled {
                let id = stream.state().info.id;
                node.look_at(stream, watches.entry(id).or_default()).await;
            }
        }
    });
}

impl Node {
    /// The streams that are scaled by load now. Of the others nothing is kept.
    fn scaled_streams(
        &self,
        before: &[Arc<Stream>],
        watches: &mut BTreeMap<StreamId, Watch>,
    ) -> Vec<Arc<Stream>> {
        let mut scaled = self.streams.all();
        scaled.retain(|stream| stream.state().info.settings.auto_scale.is_some());
        let ids: BTreeSet<_> = scaled.iter().map(|stream| stream.state().info.id).collect();
        watches.retain(|id, _| ids.contains(id));
        for stream in before {
            let state = stream.state();
            if !ids.contains(&state.info.id) {
                state
                    .shards
                    .iter()
                    .for_each(|shard| shard.tail.load.look_away());
            }
        }
        scaled
    }

    /// Looks at one stream's load, and does what is most urgent.
    async fn look_at(self: &Arc<Self>, stream: &Arc<Stream>, watch: &mut Watch) {
        let state = stream.state();
        let Some(mut settings) = state.info.settings.auto_scale else {
            return;
        };
        settings.shards_max = settings
            .shards_max
            .min(self.config.stream.shards_per_stream_max);
        let open = |shard: &&Arc<ShardHandle>| shard.info.state == ShardState::Open;
        let shards: Vec<_> = state.shards.iter().filter(open).collect();
        watch.observe_keys(&*self.world, &shards, settings).await;
        let taken: Vec<Taken> = shards.iter().map(|shard| taken(shard)).collect();
        let now = self.clock.monotonic();
        let ago = last_reshard(&state).map(|at| self.clock.now().since(at));
        let wishes = watch.scaler.observe(&settings, &taken, now, ago);
        if now < watch.not_before {
            return;
        }
        for wish in wishes {
            let done = match wish {
                Wish::Scale(shards) => {
                    self.scale_stream(stream.itself(), shards, Cause::Load)
                        .await
                }
                Wish::Split(shard) => {
                    let Some(at) = watch.split_key(&state, shard) else {
                        continue;
                    };
                    let at = Some(at);
                    let split = Reshard::Split { shard, at };
                    self.reshard(stream.itself(), split, Cause::Load).await
                }
                Wish::Merge(shard, adjacent) => {
                    let merge = Reshard::Merge { shard, adjacent };
                    self.reshard(stream.itself(), merge, Cause::Load).await
                }
            };
            if let Err(error) = done
                && error != Error::Draining
            {
                tracing::warn!(stream = %stream.name, ?wish, %error, "the stream could not be scaled by its load");
                watch.not_before = now + settings.cool_down.max(PAUSE);
            }
            return;
        }
    }
}

impl Watch {
    /// Takes in the keys of batches that came since the last look.
    async fn observe_keys(
        &mut self,
        world: &dyn World,
        shards: &[&Arc<ShardHandle>],
        settings: AutoScale,
    ) {
        let open: BTreeSet<_> = shards.iter().map(|shard| shard.id.index()).collect();
        self.shards.retain(|shard, _| open.contains(shard));
        let mut samples: Vec<(ShardIndex, Vec<Sample>)> = Vec::new();
        for shard in shards {
            let keys = self.shards.entry(shard.id.index()).or_default();
            let kept = shard.tail.load.look(&mut keys.before);
            if !kept.is_empty() {
                samples.push((shard.id.index(), kept));
            }
        }
        if samples.is_empty() {
            return;
        }
        // Compressed ones have to be decompressed for it.
        let keys = move || {
            let keys = |(shard, kept): (ShardIndex, Vec<Sample>)| {
                let keys = kept.iter().flat_map(|sample| keys_of(sample, &settings));
                (shard, keys.collect::<Vec<_>>())
            };
            Ok(samples.into_iter().map(keys).collect::<Vec<_>>())
        };
        for (shard, found) in on_blocking_thread(world, keys).await.unwrap_or_default() {
            let keys = self.shards.entry(shard).or_default();
            keys.observed.extend(found);
            let surplus = keys.observed.len().saturating_sub(KEYS_MAX);
            keys.observed.drain(..surplus);
        }
    }

    fn split_key(&self, state: &StreamState, shard: ShardIndex) -> Option<HashKey> {
        let range = state.info.shard(shard)?.range;
        let observed = self.shards.get(&shard).map(|keys| &keys.observed);
        let observed: Vec<_> = observed.into_iter().flatten().copied().collect();
        split_key(range, &observed)
    }
}

/// Some of a batch's keys, each with its share of the load that the batch stands for. Drawn, as
/// producers often send their keys in turns.
fn keys_of(sample: &Sample, settings: &AutoScale) -> Vec<(HashKey, u64)> {
    let header = sample.batch.header();
    let load = settings.load(sample.batch.bytes().len() as u64, u64::from(header.count));
    let share = load.saturating_mul(sample.stride) / KEYS_PER_BATCH as u64;
    // Batches may be alike: each is drawn from in its own way.
    let mut draw = u64::from(header.checksum) ^ sample.number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut drawn: Vec<u64> = std::iter::repeat_with(|| {
        draw = draw.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
        (draw >> 32) % u64::from(header.count.max(1))
    })
    .take(KEYS_PER_BATCH)
    .collect();
    drawn.sort_unstable();
    let mut keys = Vec::with_capacity(KEYS_PER_BATCH);
    for (place, record) in (0_u64..).zip(sample.batch.records()) {
        let times = drawn.iter().filter(|drawn| **drawn == place).count();
        // What does not decode is for its readers to find out.
        if let (1.., Ok(record)) = (times, record) {
            keys.push((record.hash_key(), share.saturating_mul(times as u64).max(1)));
        }
    }
    keys
}

fn taken(shard: &ShardHandle) -> Taken {
    let (bytes, records) = shard.tail.load.taken();
    Taken {
        shard: shard.id.index(),
        range: shard.info.range,
        bytes,
        records,
    }
}

/// When a shard of the stream was last closed.
fn last_reshard(state: &StreamState) -> Option<Timestamp> {
    let closed = |shard: &Arc<ShardHandle>| match shard.info.state {
        ShardState::Closed { at, .. } => Some(at),
        ShardState::Open => None,
    };
    state.shards.iter().filter_map(closed).max()
}
