//! The streams of the node as edges see them: which shard owns a key, which lane writes it, which
//! logs hold it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::task::Waker;

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
    /// The logs it lies in, oldest first, at least one: the last one's lane takes its appends.
    pub(crate) places: Vec<Place>,
}

/// A log that holds a shard's records from a number on, up to where the next place begins.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) from: SequenceNumber,
    pub(crate) lane: Arc<Lane>,
}

/// What can be read of a shard, over all its logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) trim_horizon: SequenceNumber,
    pub(crate) durable_end: SequenceNumber,
    pub(crate) last_arrival: Timestamp,
    pub(crate) stored_bytes: u64,
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

    /// The log that holds `from`, and where the next log takes over.
    pub(crate) fn place_of(&self, from: SequenceNumber) -> (&Place, Option<SequenceNumber>) {
        let later = self.places.iter().position(|place| place.from > from);
        let at = later.unwrap_or(self.places.len()).saturating_sub(1);
        let place = self
            .places
            .get(at)
            .expect("BUG: a shard that lies in no log");
        (place, self.places.get(at + 1).map(|next| next.from))
    }

    /// The logs it lies in, each with where the next one takes over.
    pub(crate) fn places_with_next(
        &self,
    ) -> impl Iterator<Item = (&Place, Option<SequenceNumber>)> {
        let later = self.places.iter().skip(1).map(|place| Some(place.from));
        self.places.iter().zip(later.chain([None]))
    }

    /// Its readable ends.
    pub(crate) fn bounds(&self) -> Bounds {
        let mut bounds = Bounds {
            trim_horizon: SequenceNumber::MAX,
            durable_end: self.tail.end(),
            last_arrival: Timestamp::ZERO,
            stored_bytes: 0,
        };
        for (at, (place, next)) in self.places_with_next().enumerate() {
            if place.lane.refusal().is_some() {
                // Whatever it holds is neither readable nor gone.
                bounds.trim_horizon = bounds.trim_horizon.min(place.from);
                continue;
            }
            let reader = place.lane.reader();
            let Some(here) = reader.bounds(self.id) else {
                continue;
            };
            // A log that was left may end beyond where the next one begins: numbers it jumped over.
            if next.is_none() {
                bounds.durable_end = here.durable_end.max(place.from);
            }
            if next.is_none_or(|next| here.trim_horizon < next) {
                bounds.trim_horizon = bounds.trim_horizon.min(here.trim_horizon);
            }
            bounds.last_arrival = bounds.last_arrival.max(here.last_arrival);
            let key = place.lane.key();
            if self
                .places
                .iter()
                .take(at)
                .all(|before| before.lane.key() != key)
            {
                bounds.stored_bytes += here.stored_bytes;
            }
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
