//! What must be true, whatever happens.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;

use flumen_record::{SequenceNumber, ShardIndex};
use flumen_stream::group::{Generation, MemberName};

use crate::random::place;
use crate::stream::{KEYS, Stream};

/// A promise that was broken. Times are milliseconds since the run began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Of which run.
    pub seed: u64,
    /// When.
    pub at: u64,
    /// What happened.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}, at {} ms: {}", self.seed, self.at, self.what)
    }
}

pub(crate) type Checked = Result<(), String>;

/// From when to when a record was in a handler.
type Span = (u64, u64);

#[derive(Debug)]
pub(crate) struct Oracle {
    /// Per key: the first record that was not accepted, and none after it; and when the last one left
    /// its handler.
    next: Vec<u64>,
    left: Vec<u64>,
    /// What was processed under which lease, accepted or not.
    processed: BTreeMap<(ShardIndex, Generation), BTreeMap<u64, Span>>,
    checkpoints: BTreeMap<ShardIndex, u64>,
    /// Where the group goes on, in shards that it has begun.
    positions: BTreeMap<ShardIndex, u64>,
    /// Records that expired before the group had processed them.
    pub(crate) missed: u64,
    /// Shards went while the broker was not there: how much was in them is not known.
    pub(crate) is_unsure: bool,
    current: BTreeMap<ShardIndex, Generation>,
    granted: BTreeSet<Generation>,
    /// Generations that members were told of.
    told: BTreeMap<Generation, (ShardIndex, MemberName)>,
    /// Leases that were taken from silent members.
    silent: BTreeSet<(ShardIndex, Generation)>,
    pub(crate) accepted: u64,
    /// Records that members passed over, because they had expired; and what they said of it.
    skipped: u64,
    said: u64,
}

impl Oracle {
    pub(crate) fn new() -> Self {
        Self {
            next: vec![0; place(KEYS)],
            left: vec![0; place(KEYS)],
            processed: BTreeMap::new(),
            checkpoints: BTreeMap::new(),
            positions: BTreeMap::new(),
            missed: 0,
            is_unsure: false,
            current: BTreeMap::new(),
            granted: BTreeSet::new(),
            told: BTreeMap::new(),
            silent: BTreeSet::new(),
            accepted: 0,
            skipped: 0,
            said: 0,
        }
    }

    pub(crate) fn checkpoint(&self, shard: ShardIndex) -> u64 {
        self.checkpoints.get(&shard).copied().unwrap_or(0)
    }

    pub(crate) fn position(&self, shard: ShardIndex) -> u64 {
        self.positions.get(&shard).copied().unwrap_or(0)
    }

    /// The group comes into being.
    pub(crate) fn came(
        &mut self,
        stream: &Stream,
        begins: &[(ShardIndex, SequenceNumber)],
        is_now: bool,
    ) -> Checked {
        for (index, at) in begins {
            let horizon = stream.shard(*index).horizon;
            if at.value() > horizon || (is_now && at.value() < horizon) {
                return Err(format!(
                    "the group begins shard {index} at {at}, its oldest record is {horizon}"
                ));
            }
            self.positions.insert(*index, at.value());
        }
        Ok(())
    }

    /// A checkpoint was set to where the group is.
    pub(crate) fn reset(&mut self, index: ShardIndex, to: u64) -> Checked {
        let position = self.position(index);
        if to != position {
            return Err(format!(
                "shard {index} was reset to {to} and is at {position}"
            ));
        }
        self.checkpoints.insert(index, to);
        Ok(())
    }

    /// The group is gone, and another one of its name may read everything again.
    pub(crate) fn forget(&mut self) {
        self.next.fill(0);
        self.checkpoints.clear();
        self.positions.clear();
        self.current.clear();
        self.missed = 0;
        self.is_unsure = false;
    }

    /// It is counted what expired: as the shard is given out, or with a checkpoint.
    pub(crate) fn expire(
        &mut self,
        stream: &Stream,
        index: ShardIndex,
        to: u64,
        records: u64,
    ) -> Checked {
        let from = self.position(index);
        if to > from {
            let horizon = stream.shard(index).horizon;
            if to > horizon || records != to - from {
                return Err(format!(
                    "{records} records of shard {index} are said to have expired from {from} to \
                     {to}, its oldest record is {horizon}"
                ));
            }
            self.positions.insert(index, to);
            self.missed += records;
        } else {
            // With a checkpoint, which was looked through as it was accepted.
            self.said += records;
            self.missed += records;
        }
        Ok(())
    }

    /// A shard is no more.
    pub(crate) fn lose(
        &mut self,
        stream: &Stream,
        index: ShardIndex,
        unread: Option<u64>,
    ) -> Checked {
        let left = stream.shard(index).end() - self.position(index);
        match unread {
            Some(unread) if unread == left => self.missed += left,
            None => self.is_unsure = true,
            Some(unread) => {
                return Err(format!(
                    "{unread} records of shard {index} are said to have expired with it, {left} \
                     were left"
                ));
            }
        }
        Ok(())
    }

    /// A member passes over records that have expired. One that was put out, and has its lease again
    /// under the same generation, may have processed them before: that counts for nothing now.
    pub(crate) fn pass_over(
        &mut self,
        index: ShardIndex,
        generation: Generation,
        records: Range<u64>,
    ) {
        if let Some(processed) = self.processed.get_mut(&(index, generation)) {
            processed.retain(|record, _| !records.contains(record));
        }
    }

    /// What members passed over they said, no more and no less.
    pub(crate) fn check_said(&self) -> Checked {
        if self.said == self.skipped {
            return Ok(());
        }
        let (said, skipped) = (self.said, self.skipped);
        Err(format!(
            "{said} records are said to be skipped, {skipped} were"
        ))
    }

    pub(crate) fn is_finished(&self, stream: &Stream, index: ShardIndex) -> bool {
        let shard = stream.shard(index);
        shard.is_closed && self.checkpoints.get(&index) == Some(&shard.end())
    }

    /// A grant is durable.
    pub(crate) fn grant(
        &mut self,
        stream: &Stream,
        index: ShardIndex,
        generation: Generation,
    ) -> Checked {
        if !self.granted.insert(generation) {
            return Err(format!("generation {generation} was granted twice"));
        }
        for parent in &stream.shard(index).parents {
            if !stream.shard(*parent).has_expired && !self.is_finished(stream, *parent) {
                return Err(format!(
                    "shard {index} was granted before its parent {parent} is finished"
                ));
            }
        }
        self.current.insert(index, generation);
        Ok(())
    }

    pub(crate) fn free(&mut self, index: ShardIndex) {
        self.current.remove(&index);
    }

    /// A silent member's lease was taken.
    pub(crate) fn silence(&mut self, index: ShardIndex, generation: Generation) {
        self.silent.insert((index, generation));
    }

    /// A member is told of a lease.
    pub(crate) fn tell(
        &mut self,
        index: ShardIndex,
        generation: Generation,
        member: &MemberName,
        from: u64,
    ) -> Checked {
        let lease = (index, member.clone());
        let known = self.told.entry(generation).or_insert_with(|| lease.clone());
        if *known != lease {
            return Err(format!(
                "generation {generation} was given to {member} for shard {index}, and before to \
                 {} for shard {}",
                known.1, known.0
            ));
        }
        let position = self.position(index);
        if from != position {
            return Err(format!(
                "{member} begins shard {index} at {from}, the group is at {position}"
            ));
        }
        Ok(())
    }

    /// A handler begins.
    pub(crate) fn begin(&self, index: ShardIndex, generation: Generation) -> Checked {
        if self.silent.contains(&(index, generation)) {
            return Err(format!(
                "a handler began under generation {generation} of shard {index}, which was taken \
                 from its member for being silent"
            ));
        }
        Ok(())
    }

    /// A handler has ended.
    pub(crate) fn process(
        &mut self,
        index: ShardIndex,
        generation: Generation,
        record: u64,
        span: Span,
    ) {
        let processed = self.processed.entry((index, generation)).or_default();
        processed.insert(record, span);
    }

    /// A checkpoint under a generation was accepted.
    pub(crate) fn accept(
        &mut self,
        stream: &Stream,
        index: ShardIndex,
        generation: Generation,
        to: u64,
    ) -> Checked {
        let from = self.position(index);
        let is_repeated_end = from == to && self.is_finished(stream, index);
        if self.current.get(&index) != Some(&generation) && !is_repeated_end {
            return Err(format!(
                "a checkpoint of shard {index} was accepted under generation {generation}, the \
                 current one is {:?}",
                self.current.get(&index)
            ));
        }
        if to < from {
            return Err(format!(
                "the checkpoint of shard {index} went from {from} to {to}"
            ));
        }
        for record in from..to {
            self.accept_record(stream, index, generation, record)?;
        }
        self.checkpoints.insert(index, to);
        self.positions.insert(index, to);
        Ok(())
    }

    fn accept_record(
        &mut self,
        stream: &Stream,
        index: ShardIndex,
        generation: Generation,
        at: u64,
    ) -> Checked {
        let processed = self.processed.get(&(index, generation));
        let span = processed.and_then(|processed| processed.get(&at));
        let Some((began, ended)) = span.copied() else {
            if at < stream.shard(index).horizon {
                self.skipped += 1;
                return Ok(());
            }
            return Err(format!(
                "record {at} of shard {index} was accepted under generation {generation}, \
                 which did not process it"
            ));
        };
        let Some(record) = stream.shard(index).records.get(place(at)) else {
            return Err(format!("record {at} of shard {index} does not exist"));
        };
        let key = place(record.key);
        let (Some(next), Some(left)) = (self.next.get_mut(key), self.left.get_mut(key)) else {
            return Err(format!("key {key} does not exist"));
        };
        let passed_over = (*next..record.nth).find(|nth| stream.is_kept(record.key, *nth));
        if record.nth < *next || passed_over.is_some() {
            return Err(format!(
                "of key {key} record {} was accepted when it was record {next}'s turn",
                record.nth
            ));
        }
        if began < *left {
            return Err(format!(
                "of key {key} record {next} was begun at {began}, before the one before it had \
                 ended at {left}"
            ));
        }
        *next = record.nth + 1;
        *left = ended;
        self.accepted += 1;
        Ok(())
    }
}
