//! What happens to the streams below the groups.

use flumen_record::{SequenceNumber, ShardIndex, StreamId};

use super::Coordinator;
use crate::group::shards::ShardsDiff;
use crate::group::{GroupChange, GroupNumber, LostReason, ReadFrom, ShardFacts, records_between};

impl Coordinator {
    pub(super) fn shards_changed(&mut self, stream: StreamId, shards: Vec<ShardFacts>) {
        let is_new = !self.streams.contains_key(&stream);
        let diff = self.streams.entry(stream).or_default().replace(shards);
        for number in self.state.of_stream(stream) {
            if is_new {
                self.catch_up(number);
            } else {
                self.settle(number, &diff);
            }
            self.unbalanced.insert(number);
        }
    }

    /// Takes in what became different of the shards of a group: ends what it holds of shards that are
    /// no more, or that it has read to their end, and counts what it misses.
    fn settle(&mut self, number: GroupNumber, diff: &ShardsDiff) {
        for (shard, end) in &diff.gone {
            let unread = self.unread(number, *shard, *end);
            self.lose_shard(number, *shard, unread);
            self.follow(number, *shard);
        }
        for shard in &diff.closed {
            self.end_if_finished(number, *shard);
        }
        for shard in diff.new.iter().chain(&diff.closed) {
            self.follow(number, *shard);
        }
    }

    /// Takes in all shards of a group's stream, for the first time since the start.
    fn catch_up(&mut self, number: GroupNumber) {
        let group = self.group(number);
        let Some(known) = self.streams.get(&group.stream) else {
            return;
        };
        let is_there = |index: &ShardIndex| known.shards.contains_key(index);
        let written = group.shards.keys().copied();
        let (there, gone): (Vec<_>, Vec<_>) = written.partition(is_there);
        // Children that came and went without a trace.
        let next = known.shards.last_key_value();
        let next = next.map_or(0, |(last, _)| last.value().saturating_add(1));
        let came = next.saturating_sub(group.first_new_shard.value());
        let left = known.shards.range(group.first_new_shard..).count();
        let missing = came.saturating_sub(u32::try_from(left).unwrap_or(u32::MAX));
        for shard in gone {
            self.lose_shard(number, shard, None);
        }
        let missed = missing.saturating_sub(self.group(number).gone_children);
        if missed > 0 {
            self.change(GroupChange::ShardsMissed {
                group: number,
                shards: missed,
            });
        }
        for shard in there {
            self.end_if_finished(number, shard);
        }
        self.line_up(number);
    }

    /// Records that a group has not processed of a shard that ended there.
    fn unread(
        &self,
        number: GroupNumber,
        shard: ShardIndex,
        end: Option<SequenceNumber>,
    ) -> Option<u64> {
        match self.group(number).position(shard).from {
            ReadFrom::At(from) => end.map(|end| records_between(from, end)),
            ReadFrom::TrimHorizon | ReadFrom::AtTimestamp(_) => None,
        }
    }

    fn lose_shard(&mut self, number: GroupNumber, shard: ShardIndex, unread: Option<u64>) {
        self.take_lease(number, shard, LostReason::Expired);
        self.change(GroupChange::ShardExpired {
            group: number,
            shard,
            unread,
        });
    }

    fn end_if_finished(&mut self, number: GroupNumber, index: ShardIndex) {
        let group = self.group(number);
        let end = self.streams.get(&group.stream);
        let end = end.and_then(|stream| stream.end(index));
        let shard = group.shards.get(&index);
        if shard.is_some_and(|shard| shard.holder.is_some() && shard.is_finished(end)) {
            self.take_lease(number, index, LostReason::Finished);
        }
    }

    /// Finds the shards of a group that a member may read, of all.
    pub(super) fn line_up(&mut self, number: GroupNumber) {
        let stream = self.streams.get(&self.group(number).stream);
        let shards = stream.into_iter().flat_map(|stream| stream.shards.keys());
        let ready = shards.filter(|index| self.is_assignable(number, **index));
        let ready = ready.copied().collect();
        self.group_mut(number).ready = ready;
    }

    /// Something happened to a shard: whether a member may read it, or its children.
    pub(super) fn follow(&mut self, number: GroupNumber, index: ShardIndex) {
        let stream = self.streams.get(&self.group(number).stream);
        let children = stream.map_or(&[][..], |stream| stream.children(index));
        let touched: Vec<_> = children.iter().copied().chain([index]).collect();
        for index in touched {
            let is_ready = self.is_assignable(number, index);
            let ready = &mut self.group_mut(number).ready;
            if is_ready {
                ready.insert(index);
            } else {
                ready.remove(&index);
            }
        }
    }

    pub(super) fn stream_deleted(&mut self, stream: StreamId) {
        for number in self.state.of_stream(stream) {
            self.remove_group(number);
        }
        self.streams.remove(&stream);
    }

    pub(super) fn load_observed(&mut self, stream: StreamId, loads: &[(ShardIndex, u64)]) {
        let Some(known) = self.streams.get_mut(&stream) else {
            return;
        };
        for (shard, load) in loads {
            if known.shards.contains_key(shard) {
                // A short peak counts for half: it is over before its shard has moved.
                let before = known.loads.get(shard).copied().unwrap_or(*load);
                known.loads.insert(*shard, before / 2 + load / 2);
            }
        }
        for number in self.state.of_stream(stream) {
            if self.group(number).members.len() > 1 {
                self.unbalanced.insert(number);
            }
        }
    }

    /// Whether a member may read the shard: it is there, not finished, and each of its parents is
    /// finished or has expired.
    pub(in crate::group) fn is_assignable(&self, number: GroupNumber, index: ShardIndex) -> bool {
        let group = self.group(number);
        let Some(stream) = self.streams.get(&group.stream) else {
            return false;
        };
        let Some(facts) = stream.shards.get(&index) else {
            return false;
        };
        let is_finished = |index: &ShardIndex, facts: &ShardFacts| {
            let shard = group.shards.get(index);
            shard.is_some_and(|shard| shard.is_finished(facts.end))
        };
        let mut parents = facts.parents.iter();
        !is_finished(&index, facts)
            && parents.all(|parent| {
                let known = stream.shards.get(parent);
                known.is_none_or(|facts| is_finished(parent, facts))
            })
    }
}
