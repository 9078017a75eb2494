//! One shard: what lies at which number, and how its two ends move.

use std::collections::{BTreeMap, BTreeSet};

use flumen_broker::ShardDescription;
use flumen_record::{HashKey, HashRange, Timestamp};

use super::{Checked, RecordId};

/// Where a record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) shard: u32,
    pub(crate) number: u64,
    pub(crate) arrival: Timestamp,
}

/// What is known of a shard.
#[derive(Debug, Default)]
pub(crate) struct ShardModel {
    pub(crate) range: Option<HashRange>,
    pub(crate) parents: Vec<u32>,
    /// The number after its last, once it is closed.
    pub(crate) closed_at: Option<u64>,
    /// It has left its stream: all of it has expired.
    pub(crate) is_dropped: bool,
    /// What ever lay at a number. A number is given out once.
    pub(crate) numbers: BTreeMap<u64, (RecordId, Timestamp)>,
    /// Numbers of records that were lost, as their level allows.
    pub(crate) lost: BTreeSet<u64>,
    /// The highest horizon that anybody was told, and the one when bytes were last looked at.
    pub(crate) horizon: u64,
    pub(crate) horizon_before: u64,
    /// The highest end that anybody was told.
    pub(crate) end: u64,
    /// Ranges that are answered as data loss.
    pub(crate) damage: Vec<(u64, u64)>,
}

impl ShardModel {
    pub(crate) fn is_open(&self) -> bool {
        self.closed_at.is_none() && !self.is_dropped
    }

    /// Whether what lay at a number is not there any more.
    pub(crate) fn is_gone(&self, number: u64) -> bool {
        number < self.horizon || self.lost.contains(&number)
    }

    /// Something lies at a number.
    pub(super) fn put(&mut self, id: RecordId, key: HashKey, place: Place) -> Checked {
        if let Some(range) = self.range
            && !range.contains(key)
        {
            return Err(format!(
                "record {id} at {place:?} has a key outside {range:?}"
            ));
        }
        if let Some(end) = self.closed_at
            && place.number >= end
        {
            return Err(format!(
                "record {id} at {place:?} lies beyond the end {end}"
            ));
        }
        let stamp = (id, place.arrival);
        if let Some(before) = self.numbers.insert(place.number, stamp)
            && before != stamp
        {
            return Err(format!(
                "number {} of shard {} was given to record {} and to record {id}",
                place.number, place.shard, before.0
            ));
        }
        self.lost.remove(&place.number);
        let before = self.numbers.range(..place.number).next_back();
        let after = self.numbers.range(place.number + 1..).next();
        if before.is_some_and(|(_, (_, at))| *at > place.arrival)
            || after.is_some_and(|(_, (_, at))| *at < place.arrival)
        {
            return Err(format!(
                "record {id} at {place:?}: arrival times of a shard decrease ({before:?}, {after:?})"
            ));
        }
        Ok(())
    }

    /// A closed shard stays closed, and has one end.
    pub(super) fn close(&mut self, index: u32, end: u64) -> Checked {
        match self.closed_at {
            Some(before) if before != end => {
                return Err(format!(
                    "shard {index} was closed at {before}, now at {end}"
                ));
            }
            _ => self.closed_at = Some(end),
        }
        match self.numbers.last_key_value() {
            Some((last, _)) if *last >= end => Err(format!(
                "shard {index} is closed at {end}, and a record lies at {last}"
            )),
            _ => Ok(()),
        }
    }

    /// What describe says of it; its ends are looked at elsewhere.
    pub(crate) fn describe(&mut self, described: &ShardDescription) -> Checked {
        let index = described.index.value();
        let parents: Vec<u32> = described.parents.iter().map(|it| it.value()).collect();
        if self.range.is_some_and(|range| range != described.range) {
            return Err(format!("shard {index} has another range than before"));
        }
        self.range = Some(described.range);
        self.parents = parents;
        if !described.open {
            return self.close(index, described.durable_end.value());
        }
        match self.closed_at {
            Some(end) => Err(format!(
                "shard {index} was closed at {end} and is open again"
            )),
            None => Ok(()),
        }
    }

    /// Readers may see up to here.
    pub(crate) fn see_end(&mut self, index: u32, end: u64) -> Checked {
        if end < self.end {
            let before = self.end;
            return Err(format!(
                "the end of shard {index} went back from {before} to {end}"
            ));
        }
        self.end = end;
        Ok(())
    }
}
