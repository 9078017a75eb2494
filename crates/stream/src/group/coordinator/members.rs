//! Members: joining, coming back, being replaced, falling silent, leaving.

use std::time::Duration;

use flumen_record::{SequenceNumber, ShardIndex};

use super::Coordinator;
use crate::group::{
    Effect, FencedReason, Generation, GroupChange, GroupError, GroupName, GroupNumber,
    InitialPosition, Join, LostReason, MemberNumber, SessionId,
};

impl Coordinator {
    pub(super) fn join(&mut self, join: Join) {
        let session = join.session;
        if let Err(error) = self.let_in(join) {
            self.effect(Effect::Refused { session, error });
        }
    }

    fn let_in(&mut self, join: Join) -> Result<(), GroupError> {
        if let Some((group, member)) = self.sessions.get(&join.session) {
            let member = self.group(*group).members.get(member);
            let member = member.expect("BUG: a session of a member that is gone");
            let member = member.name.clone();
            return Err(GroupError::SessionInUse { member });
        }
        let timeout = self.session_timeout(join.session_timeout)?;
        let number = match self.state.find(join.stream, &join.group) {
            Some(number) => number,
            None => self.create(join.stream, &join.group, join.start, join.begins.as_deref())?,
        };
        let group = self.group(number);
        let known = group
            .member(&join.member)
            .map(|(member, known)| (member, known.instance, known.session_timeout));
        match known {
            Some((member, instance, before)) if instance == join.instance => {
                self.come_back(
                    number,
                    member,
                    &join,
                    (before != timeout).then_some(timeout),
                );
            }
            Some((predecessor, ..)) => self.replace(number, predecessor, &join, timeout),
            None => {
                let members = group.members.len() as u64 + 1;
                let max = u64::from(self.config.members_per_group_max);
                in_bounds("members of the group", members, 1, max)?;
                self.enter(number, &join, timeout);
                self.tell_joined(number, join.session, timeout);
            }
        }
        self.unbalanced.insert(number);
        Ok(())
    }

    fn session_timeout(&self, asked: Option<Duration>) -> Result<Duration, GroupError> {
        let config = &self.config;
        let millis = |asked: Duration| u64::try_from(asked.as_millis()).unwrap_or(u64::MAX);
        let asked = asked.map_or(config.session_timeout_ms, millis);
        let (min, max) = (config.session_timeout_ms_min, config.session_timeout_ms_max);
        in_bounds("the session timeout in ms", asked, min, max)?;
        Ok(Duration::from_millis(asked))
    }

    pub(super) fn create(
        &mut self,
        stream: flumen_record::StreamId,
        name: &GroupName,
        start: InitialPosition,
        found: Option<&[(ShardIndex, SequenceNumber)]>,
    ) -> Result<GroupNumber, GroupError> {
        let (begins, first_new_shard) = self.begins(stream, name, start, found)?;
        let groups = self.state.groups.len() as u64 + 1;
        in_bounds("groups", groups, 1, u64::from(self.config.groups_max))?;
        let group = self.state.last_group.next();
        // What arrives from now on, whoever reads it and when: a member that goes before its first
        // checkpoint must not take what arrived meanwhile with it.
        let start = match start {
            InitialPosition::Latest => InitialPosition::AtTimestamp(self.wall),
            start => start,
        };
        self.change(GroupChange::GroupCreated {
            group,
            stream,
            name: name.clone(),
            start,
            first_new_shard,
            begins: Some(begins),
        });
        Ok(group)
    }

    /// The same process on a new session: nothing of its leases changes.
    fn come_back(
        &mut self,
        number: GroupNumber,
        member: MemberNumber,
        join: &Join,
        timeout: Option<Duration>,
    ) {
        if let Some(session_timeout) = timeout {
            self.change(GroupChange::MemberJoined {
                group: number,
                member,
                name: join.member.clone(),
                instance: join.instance,
                session_timeout,
            });
        }
        self.end_session(number, member, FencedReason::Superseded);
        self.attach(number, member, join.session);
        let timeout = self.group(number).members.get(&member);
        let timeout = timeout.map(|member| member.session_timeout);
        self.tell_joined(number, join.session, timeout.unwrap_or_default());
    }

    /// Another process under the same name: it has the leases at once, under new generations.
    fn replace(
        &mut self,
        number: GroupNumber,
        predecessor: MemberNumber,
        join: &Join,
        timeout: Duration,
    ) {
        let shards = self.group(number).shards.iter();
        let held = shards.filter(|(_, shard)| shard.holder == Some(predecessor));
        // What was being handed over goes to whom it was meant for.
        let held: Vec<_> = held
            .map(|(index, shard)| (*index, shard.hand_over.and_then(|over| over.target)))
            .collect();
        self.remove(number, predecessor, FencedReason::Replaced);
        let member = self.enter(number, join, timeout);
        self.tell_joined(number, join.session, timeout);
        for (shard, target) in held {
            let there = target.filter(|target| self.session_of(number, *target).is_some());
            self.grant(number, shard, there.unwrap_or(member));
        }
    }

    fn enter(&mut self, number: GroupNumber, join: &Join, timeout: Duration) -> MemberNumber {
        let member = self.group(number).next_member;
        self.change(GroupChange::MemberJoined {
            group: number,
            member,
            name: join.member.clone(),
            instance: join.instance,
            session_timeout: timeout,
        });
        self.attach(number, member, join.session);
        member
    }

    fn attach(&mut self, number: GroupNumber, member: MemberNumber, session: SessionId) {
        self.sessions.insert(session, (number, member));
        let now = self.now;
        let Some(member) = self.group_mut(number).members.get_mut(&member) else {
            return;
        };
        member.session = Some(session);
        member.heard = now;
        let deadline = member.deadline();
        self.check_at(number, deadline);
    }

    fn tell_joined(&mut self, number: GroupNumber, session: SessionId, session_timeout: Duration) {
        let Some((_, member)) = self.sessions.get(&session).copied() else {
            return;
        };
        let shards = self.group(number).shards.iter();
        let held = shards.filter(|(_, shard)| shard.holder == Some(member));
        let leases = held
            // What had expired was told with the grant.
            .filter_map(|(index, _)| self.assignment(number, *index, Some(0)))
            .collect();
        self.effect(Effect::Joined {
            session,
            session_timeout,
            leases,
        });
    }

    /// Whose session it is, and a sign of life from it.
    pub(super) fn touch(&mut self, session: SessionId) -> Option<(GroupNumber, MemberNumber)> {
        let (number, member) = *self.sessions.get(&session)?;
        let now = self.now;
        let known = self.group_mut(number).members.get_mut(&member)?;
        known.heard = now;
        Some((number, member))
    }

    fn refuse_stranger(&mut self, session: SessionId) {
        self.effect(Effect::Fenced {
            session,
            reason: FencedReason::NotMember,
        });
    }

    pub(super) fn heartbeat(&mut self, session: SessionId, beat: u64) {
        if self.touch(session).is_some() {
            self.effect(Effect::HeartbeatAnswered { session, beat });
        } else {
            self.refuse_stranger(session);
        }
    }

    pub(super) fn release(&mut self, session: SessionId, leases: &[(ShardIndex, Generation)]) {
        let Some((number, member)) = self.touch(session) else {
            return self.refuse_stranger(session);
        };
        for (index, generation) in leases {
            let Some(shard) = self.group(number).shards.get(index) else {
                continue;
            };
            if shard.holder != Some(member) || shard.generation != *generation {
                continue;
            }
            let target = shard.hand_over.and_then(|hand_over| hand_over.target);
            self.change(GroupChange::Freed {
                group: number,
                shard: *index,
                forced: false,
            });
            self.hand_on(number, *index, target);
        }
    }

    /// A lease that was handed over goes to whom it was meant for, if that one is still there.
    fn hand_on(&mut self, number: GroupNumber, shard: ShardIndex, target: Option<MemberNumber>) {
        let there = target.filter(|target| self.session_of(number, *target).is_some());
        match there {
            Some(target) if self.is_assignable(number, shard) => self.grant(number, shard, target),
            _ => {
                self.unbalanced.insert(number);
            }
        }
    }

    pub(super) fn leave(&mut self, session: SessionId) {
        let Some((number, member)) = self.sessions.remove(&session) else {
            return self.refuse_stranger(session);
        };
        self.change(GroupChange::MemberLeft {
            group: number,
            member,
        });
        self.effect(Effect::Left { session });
        self.unbalanced.insert(number);
    }

    pub(super) fn session_lost(&mut self, session: SessionId) {
        let Some((number, member)) = self.sessions.remove(&session) else {
            return;
        };
        if let Some(member) = self.group_mut(number).members.get_mut(&member) {
            member.session = None;
        }
    }

    fn end_session(&mut self, number: GroupNumber, member: MemberNumber, reason: FencedReason) {
        if let Some(session) = self.session_of(number, member) {
            self.sessions.remove(&session);
            self.effect(Effect::Fenced { session, reason });
        }
    }

    fn remove(&mut self, number: GroupNumber, member: MemberNumber, reason: FencedReason) {
        self.end_session(number, member, reason);
        self.change(GroupChange::MemberLeft {
            group: number,
            member,
        });
    }

    /// Deletes a group; its members are told.
    pub(super) fn remove_group(&mut self, number: GroupNumber) {
        let members: Vec<_> = self.group(number).members.keys().copied().collect();
        for member in members {
            self.end_session(number, member, FencedReason::Deleted);
        }
        let group = self.group(number);
        let (generation, check_at) = (group.generation, group.check_at);
        if let Some(at) = check_at {
            self.timers.remove(&(at, number));
        }
        self.unbalanced.remove(&number);
        self.change(GroupChange::GroupDeleted {
            group: number,
            generation,
        });
    }

    /// Members that were silent for too long are gone.
    pub(super) fn expire_members(&mut self, number: GroupNumber) {
        let now = self.now;
        let silent = |member: &crate::group::state::Member| member.deadline() <= now;
        let members = self.group(number).members.iter();
        let silent: Vec<_> = members
            .filter(|(_, member)| silent(member))
            .map(|(member, _)| *member)
            .collect();
        for member in silent {
            let shards = self.group(number).shards.values();
            let held = shards.filter(|shard| shard.holder == Some(member));
            self.leases_lost += held.count() as u64;
            self.remove(number, member, FencedReason::Silent);
            self.unbalanced.insert(number);
        }
    }

    /// Leases that were not released in time are taken.
    pub(super) fn expire_hand_overs(&mut self, number: GroupNumber) {
        let now = self.now;
        let shards = self.group(number).shards.iter();
        let over = shards.filter_map(|(index, shard)| {
            let hand_over = shard.hand_over?;
            (hand_over.deadline <= now).then_some((*index, hand_over.target))
        });
        let over: Vec<_> = over.collect();
        for (shard, target) in over {
            self.take_lease(number, shard, LostReason::Forced);
            self.hand_on(number, shard, target);
        }
    }
}

pub(super) fn in_bounds(
    setting: &'static str,
    value: u64,
    min: u64,
    max: u64,
) -> Result<(), GroupError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(GroupError::OutOfBounds {
        setting,
        value,
        min,
        max,
    })
}
