//! From who should have which shard to grants and revocations.

use std::collections::BTreeMap;

use flumen_record::ShardIndex;

use super::Coordinator;
use crate::group::state::HandOver;
use crate::group::{Effect, GroupNumber, MemberNumber, ShardLoad};

impl Coordinator {
    /// Balances every group in which something changed.
    pub(super) fn balance(&mut self) {
        while let Some(number) = self.unbalanced.pop_first() {
            if self.state.groups.contains_key(&number) {
                self.balance_group(number);
            }
        }
    }

    fn balance_group(&mut self, number: GroupNumber) {
        let members = self.group(number).members.iter();
        let present = members.filter(|(_, member)| member.session.is_some());
        let present: Vec<MemberNumber> = present.map(|(member, _)| *member).collect();
        if present.is_empty() {
            return;
        }
        let shards = self.loads(number, &present);
        let owners = self.strategy.assign(&shards, present.len());
        for (load, owner) in shards.iter().zip(owners) {
            if let Some(owner) = present.get(owner).copied()
                && load.owner.and_then(|owner| present.get(owner)) != Some(&owner)
            {
                self.give(number, load.shard, owner);
            }
        }
    }

    /// The shards that can be given to the members that are present. Those of members who may come
    /// back stay where they are.
    fn loads(&self, number: GroupNumber, present: &[MemberNumber]) -> Vec<ShardLoad> {
        let group = self.group(number);
        let Some(stream) = self.streams.get(&group.stream) else {
            return Vec::new();
        };
        let places: BTreeMap<_, _> = present.iter().copied().zip(0..).collect();
        let mut loads = Vec::with_capacity(group.ready.len());
        for index in &group.ready {
            let shard = group.shards.get(index);
            let holder = shard.and_then(|shard| shard.holder);
            let hand_over = shard.and_then(|shard| shard.hand_over);
            let owner = match (holder, hand_over) {
                (_, Some(hand_over)) => hand_over.target.and_then(|member| places.get(&member)),
                (Some(holder), None) => match places.get(&holder) {
                    None => continue,
                    present => present,
                },
                (None, None) => None,
            };
            let load = stream.loads.get(index).copied().unwrap_or(0);
            loads.push(ShardLoad {
                shard: *index,
                weight: load.saturating_add(self.config.shard_weight.max(1)),
                owner: owner.copied(),
            });
        }
        loads
    }

    /// Grants a free shard, or has its holder drain it first.
    fn give(&mut self, number: GroupNumber, index: ShardIndex, target: MemberNumber) {
        let deadline = self.now.saturating_add(self.config.drain_deadline());
        let shard = self.group_mut(number).shards.get_mut(&index);
        let held = shard.and_then(|shard| Some((shard.holder?, shard)));
        let Some((holder, shard)) = held else {
            return self.grant(number, index, target);
        };
        if let Some(hand_over) = &mut shard.hand_over {
            hand_over.target = Some(target);
            return;
        }
        shard.hand_over = Some(HandOver {
            deadline,
            target: Some(target),
        });
        let generation = shard.generation;
        self.check_at(number, deadline);
        if let Some(session) = self.session_of(number, holder) {
            self.effect(Effect::Revoked {
                session,
                shard: index,
                generation,
                deadline,
            });
        }
    }
}
