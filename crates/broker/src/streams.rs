//! The streams of the node as edges see them: which shard owns a key, which lane writes it, which
//! logs hold it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::task::Waker;

use flumen_log::Stay;
use flumen_record::{
    HashKey, SequenceNumber, ShardId, ShardIndex, StreamIncarnation, StreamName, Timestamp,
};
use flumen_stream::{ShardInfo, ShardState, StreamInfo};
use tokio::sync::watch;

use crate::Error;
use crate::lane::Lane;
use crate::tail::Tail;
use flumen_world::{read, write};

/// A stream as a caller means it: the one that has this name, or only one of those that ever had it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamRef<'a> {
    /// Its name.
    pub name: &'a StreamName,
    /// Which of that name; `None`: whichever there is.
    pub incarnation: Option<StreamIncarnation>,
}

impl<'a> From<&'a StreamName> for StreamRef<'a> {
    fn from(name: &'a StreamName) -> Self {
        Self {
            name,
            incarnation: None,
        }
    }
}

/// One stream, for as long as it exists.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) name: StreamName,
    /// Tells it from others of its name.
    pub(crate) incarnation: StreamIncarnation,
    state: RwLock<Arc<StreamState>>,
    /// Counts the states there were, so that sessions notice a new one without a lock. In one total
    /// order with what tails note of their readers: either a reader sees the new state before it
    /// waits, or it is made to look again.
    generation: AtomicU64,
    deleted: AtomicBool,
    /// Counts changes of all streams, for who watches them.
    changes: watch::Sender<u64>,
}

/// What a stream is between two changes.
#[derive(Debug)]
pub(crate) struct StreamState {
    pub(crate) info: Arc<StreamInfo>,
    pub(crate) generation: u64,
    /// By index, as `info.shards`.
    pub(crate) shards: Vec<Arc<ShardHandle>>,
}

/// One shard as readers and senders see it.
#[derive(Debug)]
pub(crate) struct ShardHandle {
    pub(crate) id: ShardId,
    pub(crate) info: ShardInfo,
    pub(crate) tail: Arc<Tail>,
    /// Its stays, oldest first, at least one: the last one's lane takes its appends.
    pub(crate) places: Vec<Place>,
}

/// A stay of a shard, with the lane of its log.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) stay: Stay,
    pub(crate) lane: Arc<Lane>,
}

/// What can be read of a shard, over all its logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) trim_horizon: SequenceNumber,
    pub(crate) durable_end: SequenceNumber,
    pub(crate) last_arrival: Timestamp,
    pub(crate) stored_bytes: u64,
    /// Whether they were added up; otherwise they are an estimate.
    pub(crate) bytes_are_exact: bool,
}

impl Stream {
    fn new(
        info: Arc<StreamInfo>,
        shards: Vec<Arc<ShardHandle>>,
        changes: watch::Sender<u64>,
    ) -> Arc<Self> {
        Arc::new(Self {
            name: info.name.clone(),
            incarnation: info.incarnation(),
            state: RwLock::new(Arc::new(StreamState {
                info,
                generation: 0,
                shards,
            })),
            generation: AtomicU64::new(0),
            deleted: AtomicBool::new(false),
            changes,
        })
    }

    /// This one, and no other that has its name later.
    pub(crate) fn itself(&self) -> StreamRef<'_> {
        StreamRef {
            name: &self.name,
            incarnation: Some(self.incarnation),
        }
    }

    /// What it is now.
    pub(crate) fn state(&self) -> Arc<StreamState> {
        Arc::clone(&read(&self.state))
    }

    /// Whether `state` is not what it is now.
    pub(crate) fn is_stale(&self, state: &StreamState) -> bool {
        self.generation.load(Ordering::SeqCst) != state.generation
    }

    /// Replaces what it is. Whoever waits for a shard looks again: it may go on in another log, and
    /// have been read where it no longer does.
    pub(crate) fn replace(&self, info: Arc<StreamInfo>, shards: Vec<Arc<ShardHandle>>) {
        let replaced = {
            let mut state = write(&self.state);
            let generation = state.generation + 1;
            let new = Arc::new(StreamState {
                info,
                generation,
                shards,
            });
            let replaced = std::mem::replace(&mut *state, new);
            self.generation.store(generation, Ordering::SeqCst);
            replaced
        };
        // Nobody waits yet for a shard that is new.
        let mut wakers = Vec::new();
        for shard in &replaced.shards {
            shard.tail.stir(&mut wakers);
        }
        wakers.into_iter().for_each(Waker::wake);
        self.changes.send_modify(|changes| *changes += 1);
    }

    pub(crate) fn mark_deleted(&self) {
        self.deleted.store(true, Ordering::Release);
    }

    /// [`Error::StreamNotFound`] once it was deleted.
    pub(crate) fn check_exists(&self) -> Result<(), Error> {
        if self.deleted.load(Ordering::Acquire) {
            return Err(Error::StreamNotFound {
                stream: self.name.clone(),
            });
        }
        Ok(())
    }

    /// The shard with this index.
    pub(crate) fn shard(&self, index: ShardIndex) -> Result<Arc<ShardHandle>, Error> {
        self.shard_of(&self.state(), index)
    }

    /// The shard with this index, in one of its states.
    pub(crate) fn shard_of(
        &self,
        state: &StreamState,
        index: ShardIndex,
    ) -> Result<Arc<ShardHandle>, Error> {
        state
            .shard(index)
            .cloned()
            .ok_or_else(|| Error::ShardNotFound {
                stream: self.name.clone(),
                shard: index,
            })
    }
}

impl StreamState {
    /// The shard with this index.
    pub(crate) fn shard(&self, index: ShardIndex) -> Option<&Arc<ShardHandle>> {
        // Shards keep their indices while older ones expire: mostly the index is the place.
        let at = index.value() as usize;
        if let Some(shard) = self.shards.get(at)
            && shard.id.index() == index
        {
            return Some(shard);
        }
        let at = self
            .shards
            .binary_search_by_key(&index, |shard| shard.id.index())
            .ok()?;
        self.shards.get(at)
    }

    /// The open shard that owns `key`.
    pub(crate) fn route(&self, key: HashKey) -> Result<&Arc<ShardHandle>, Error> {
        self.info
            .route(key)
            .and_then(|shard| self.shard(shard.id.index()))
            .ok_or(Error::NoShard { key })
    }

    /// The shards that came out of `index`.
    pub(crate) fn children(&self, index: ShardIndex) -> Vec<ShardIndex> {
        let shards = self.info.shards.iter();
        shards
            .filter(|shard| shard.parents.contains(&index))
            .map(|shard| shard.id.index())
            .collect()
    }

    /// Whether every shard that was there in `before` is written by the same lane, if it is there.
    pub(crate) fn same_lanes(&self, before: &Self) -> bool {
        before.shards.iter().all(|shard| {
            let now = self.shard(shard.id.index());
            now.is_none_or(|now| Arc::ptr_eq(now.lane(), shard.lane()))
        })
    }
}

impl ShardHandle {
    /// The lane that takes its appends.
    pub(crate) fn lane(&self) -> &Arc<Lane> {
        &self
            .places
            .last()
            .expect("BUG: a shard that lies in no log")
            .lane
    }

    /// The lanes of the logs it lies in, each once.
    pub(crate) fn lanes(&self) -> impl Iterator<Item = &Arc<Lane>> {
        let is_first = |at: usize, lane: &Arc<Lane>| {
            let mut before = self.places.iter().take(at);
            !before.any(|before| Arc::ptr_eq(&before.lane, lane))
        };
        let places = self.places.iter().enumerate();
        places
            .filter(move |(at, place)| is_first(*at, &place.lane))
            .map(|(_, place)| &place.lane)
    }

    /// The place that holds `from`.
    pub(crate) fn place_of(&self, from: SequenceNumber) -> &Place {
        let after = self
            .places
            .partition_point(|place| place.stay.from() <= from);
        self.places
            .get(after.saturating_sub(1))
            .expect("BUG: a shard that lies in no log")
    }

    /// Its readable ends.
    pub(crate) fn bounds(&self) -> Bounds {
        let mut bounds = Bounds {
            trim_horizon: SequenceNumber::MAX,
            durable_end: self.tail.end(),
            last_arrival: Timestamp::ZERO,
            stored_bytes: 0,
            bytes_are_exact: true,
        };
        for Place { stay, lane } in &self.places {
            if lane.refusal().is_some() {
                // Whatever it holds is neither readable nor gone.
                bounds.trim_horizon = bounds.trim_horizon.min(stay.from());
                continue;
            }
            let Some(here) = lane.reader().bounds(self.id) else {
                continue;
            };
            if stay.to().is_none() {
                bounds.durable_end = here.durable_end.max(stay.from());
            }
            let kept_from = here.trim_horizon.max(stay.from());
            if stay.to().is_none_or(|to| kept_from < to) {
                bounds.trim_horizon = bounds.trim_horizon.min(kept_from);
            }
            bounds.last_arrival = bounds.last_arrival.max(here.last_arrival);
        }
        let readers = self.lanes().map(|lane| lane.reader());
        for here in readers.filter_map(|reader| reader.bounds(self.id)) {
            bounds.stored_bytes += here.stored_bytes;
            bounds.bytes_are_exact &= here.bytes_are_exact;
        }
        if let Some(end) = self.closed_at() {
            // A log may have jumped over numbers since, or have lost its end; the catalog knows where
            // the shard ends, and that all of it was durable then.
            bounds.durable_end = end;
        }
        bounds.trim_horizon = bounds.trim_horizon.min(bounds.durable_end);
        bounds
    }

    /// Why a log that it lies in did not open, if one did not.
    pub(crate) fn refusal(&self) -> Option<&Error> {
        self.places.iter().find_map(|place| place.lane.refusal())
    }

    /// The number after its last, when it is closed.
    pub(crate) fn closed_at(&self) -> Option<SequenceNumber> {
        match self.info.state {
            ShardState::Open => None,
            ShardState::Closed { end, .. } => Some(end),
        }
    }
}

/// All streams, by name.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    by_name: RwLock<BTreeMap<StreamName, Arc<Stream>>>,
    changes: watch::Sender<u64>,
}

impl Streams {
    /// The stream of this name, if it is the one that is meant.
    pub(crate) fn get<'a>(&self, meant: impl Into<StreamRef<'a>>) -> Result<Arc<Stream>, Error> {
        let StreamRef { name, incarnation } = meant.into();
        let found = read(&self.by_name).get(name).cloned();
        let stream = found.ok_or_else(|| Error::StreamNotFound {
            stream: name.clone(),
        })?;
        match incarnation {
            Some(expected) if expected != stream.incarnation => Err(Error::StreamReplaced {
                stream: name.clone(),
                expected,
                found: stream.incarnation,
            }),
            _ => Ok(stream),
        }
    }

    /// Makes a stream known.
    pub(crate) fn add(&self, info: Arc<StreamInfo>, shards: Vec<Arc<ShardHandle>>) -> Arc<Stream> {
        let stream = Stream::new(info, shards, self.changes.clone());
        write(&self.by_name).insert(stream.name.clone(), Arc::clone(&stream));
        self.changes.send_modify(|changes| *changes += 1);
        stream
    }

    pub(crate) fn remove(&self, name: &StreamName) {
        write(&self.by_name).remove(name);
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// Counts every change of any stream, after it was made.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// All of them, by name.
    pub(crate) fn all(&self) -> Vec<Arc<Stream>> {
        read(&self.by_name).values().cloned().collect()
    }

    /// Up to `limit` after `after`, and whether there are more.
    pub(crate) fn page(
        &self,
        after: Option<&StreamName>,
        limit: usize,
    ) -> (Vec<Arc<Stream>>, bool) {
        use std::ops::Bound::{Excluded, Unbounded};
        let streams = read(&self.by_name);
        let mut rest =
            streams.range::<StreamName, _>((after.map_or(Unbounded, Excluded), Unbounded));
        let page = rest
            .by_ref()
            .take(limit)
            .map(|(_, stream)| Arc::clone(stream))
            .collect();
        (page, rest.next().is_some())
    }
}
