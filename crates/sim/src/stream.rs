//! A stream as the simulation needs it: shards that own ranges of keys, and records in order.

use std::collections::BTreeMap;
use std::ops::Range;

use flumen_record::{SequenceNumber, ShardIndex};
use flumen_stream::group::{ShardBounds, ShardFacts};

use crate::random::place;

/// How many keys there are.
pub(crate) const KEYS: u64 = 32;

/// A record: its key, and the how manieth of that key it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record {
    pub(crate) key: u64,
    pub(crate) nth: u64,
}

#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) index: ShardIndex,
    pub(crate) parents: Vec<ShardIndex>,
    pub(crate) records: Vec<Record>,
    pub(crate) is_closed: bool,
    pub(crate) has_expired: bool,
    /// Records before it have expired.
    pub(crate) horizon: u64,
    keys: Range<u64>,
}

impl Shard {
    pub(crate) fn end(&self) -> u64 {
        self.records.len() as u64
    }
}

/// Shards by index.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) shards: Vec<Shard>,
    /// Per key, where its records lie.
    appended: Vec<Vec<(ShardIndex, u64)>>,
}

impl Stream {
    pub(crate) fn new(shards: u64) -> Self {
        let mut stream = Self {
            shards: Vec::new(),
            appended: vec![Vec::new(); place(KEYS)],
        };
        for index in 0..shards {
            let keys = index * KEYS / shards..(index + 1) * KEYS / shards;
            stream.add(Vec::new(), keys);
        }
        stream
    }

    fn add(&mut self, parents: Vec<ShardIndex>, keys: Range<u64>) {
        let index = u32::try_from(self.shards.len()).unwrap_or(u32::MAX);
        self.shards.push(Shard {
            index: ShardIndex::new(index),
            parents,
            records: Vec::new(),
            is_closed: false,
            has_expired: false,
            horizon: 0,
            keys,
        });
    }

    pub(crate) fn shard(&self, index: ShardIndex) -> &Shard {
        let shard = self.shards.get(place(index.value().into()));
        shard.expect("BUG: a shard that was never there")
    }

    pub(crate) fn append(&mut self, key: u64) {
        let Some(appended) = self.appended.get_mut(place(key)) else {
            return;
        };
        let owner = |shard: &&mut Shard| !shard.is_closed && shard.keys.contains(&key);
        let owner = self.shards.iter_mut().find(owner);
        let owner = owner.expect("BUG: a key that no shard owns");
        let nth = appended.len() as u64;
        appended.push((owner.index, owner.end()));
        owner.records.push(Record { key, nth });
    }

    /// Whether the `nth` record of a key is kept.
    pub(crate) fn is_kept(&self, key: u64, nth: u64) -> bool {
        let records = self.appended.get(place(key));
        let found = records.and_then(|records| records.get(place(nth)));
        found.is_some_and(|(index, at)| {
            let shard = self.shard(*index);
            !shard.has_expired && *at >= shard.horizon
        })
    }

    /// Some of the oldest records of a shard expire.
    pub(crate) fn trim(&mut self, nth: u64, records: u64) {
        let at = place(nth % self.shards.len().max(1) as u64);
        if let Some(shard) = self.shards.get_mut(at) {
            shard.horizon = (shard.horizon + records).min(shard.end());
        }
    }

    /// A closed shard goes, read or not: parents before their children. `false`: there is none.
    pub(crate) fn expire(&mut self, nth: u64) -> bool {
        let may_go = |shard: &&Shard| {
            let mut parents = shard.parents.iter();
            let first = parents.all(|parent| self.shard(*parent).has_expired);
            shard.is_closed && !shard.has_expired && first
        };
        let closed: Vec<_> = self.shards.iter().filter(may_go).collect();
        let at = place(nth % closed.len().max(1) as u64);
        let Some(index) = closed.get(at).map(|shard| shard.index) else {
            return false;
        };
        let goes = self.shards.iter_mut().find(|shard| shard.index == index);
        goes.is_some_and(|shard| {
            shard.has_expired = true;
            true
        })
    }

    /// What can be read of a shard.
    pub(crate) fn bounds(&self) -> BTreeMap<ShardIndex, ShardBounds> {
        let kept = self.shards.iter().filter(|shard| !shard.has_expired);
        let bounds = |shard: &Shard| ShardBounds {
            horizon: SequenceNumber::new(shard.horizon),
            end: SequenceNumber::new(shard.end()),
        };
        kept.map(|shard| (shard.index, bounds(shard))).collect()
    }

    /// Splits the `nth` open shard, if its range can be split.
    pub(crate) fn split(&mut self, nth: u64) {
        let open = self.open();
        let Some(shard) = open.get(place(nth % open.len().max(1) as u64)) else {
            return;
        };
        let Some(shard) = self.shards.get_mut(*shard) else {
            return;
        };
        if shard.keys.end - shard.keys.start < 2 {
            return;
        }
        shard.is_closed = true;
        let (parents, keys) = (vec![shard.index], shard.keys.clone());
        let middle = keys.start.midpoint(keys.end);
        self.add(parents.clone(), keys.start..middle);
        self.add(parents, middle..keys.end);
    }

    /// Merges the `nth` open shard with its neighbour, if it has one.
    pub(crate) fn merge(&mut self, nth: u64) {
        let open = self.open();
        let Some(first) = open.get(place(nth % open.len().max(1) as u64)).copied() else {
            return;
        };
        let Some(keys) = self.shards.get(first).map(|shard| shard.keys.clone()) else {
            return;
        };
        let is_next = |shard: &&Shard| !shard.is_closed && shard.keys.start == keys.end;
        let Some(next) = self.shards.iter().find(is_next).map(|shard| shard.index) else {
            return;
        };
        let mut parents = vec![next];
        let mut merged = keys;
        for shard in &mut self.shards {
            let is_first = shard.keys == merged && !shard.is_closed;
            if is_first {
                parents.push(shard.index);
                shard.is_closed = true;
            }
        }
        for shard in &mut self.shards {
            if shard.index == next {
                shard.is_closed = true;
                merged.end = shard.keys.end;
            }
        }
        parents.sort_unstable();
        self.add(parents, merged);
    }

    fn open(&self) -> Vec<usize> {
        let open = self.shards.iter().enumerate();
        open.filter(|(_, shard)| !shard.is_closed)
            .map(|(at, _)| at)
            .collect()
    }

    /// As the catalog lists them.
    pub(crate) fn facts(&self) -> Vec<ShardFacts> {
        let kept = self.shards.iter().filter(|shard| !shard.has_expired);
        kept.map(|shard| ShardFacts {
            shard: shard.index,
            parents: shard.parents.clone(),
            end: shard.is_closed.then(|| SequenceNumber::new(shard.end())),
        })
        .collect()
    }
}
