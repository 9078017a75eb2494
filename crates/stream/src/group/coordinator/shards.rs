//! What happens to the streams below the groups.

use flumen_record::{ShardIndex, StreamId};

use super::Coordinator;
use crate::group::{GroupChange, GroupNumber, LostReason, ShardFacts};

impl Coordinator {
    pub(super) fn shards_changed(&mut self, stream: StreamId, shards: Vec<ShardFacts>) {
        let known = self.streams.entry(stream).or_default();
        known.shards = shards
            .into_iter()
            .map(|facts| (facts.shard, facts))
            .collect();
        let shards = &known.shards;
        known.loads.retain(|shard, _| shards.contains_key(shard));
        for number in self.state.of_stream(stream) {
            self.settle(number, stream);
            self.unbalanced.insert(number);
        }
    }

    /// Ends what a group holds of shards that are no more, or that it has read to their end.
    fn settle(&mut self, number: GroupNumber, stream: StreamId) {
        let Some(known) = self.streams.get(&stream) else {
            return;
        };
        let (mut expired, mut finished) = (Vec::new(), Vec::new());
        for (index, shard) in &self.group(number).shards {
            if !known.shards.contains_key(index) {
                expired.push(*index);
            } else if shard.holder.is_some() && shard.is_finished(known.end(*index)) {
                finished.push(*index);
            }
        }
        for shard in expired {
            self.take_lease(number, shard, LostReason::Expired);
            self.change(GroupChange::ShardExpired {
                group: number,
                shard,
            });
        }
        for shard in finished {
            self.take_lease(number, shard, LostReason::Finished);
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
