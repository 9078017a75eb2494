//! The decisions: what follows from what happens, and from nothing happening.

mod balance;
mod members;
mod positions;
mod requests;
mod shards;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use flumen_record::{ShardIndex, StreamId, Timestamp};

use super::bounds::NoBounds;
use super::change::GroupChange;
use super::shards::Stream;
use super::state::{Group, State};
use super::{
    Assignment, Balanced, BoundsOf, Effect, Event, GroupConfig, GroupNumber, LostReason,
    MemberNumber, SessionId, Step, Strategy,
};

/// About what an effect takes.
const EFFECT_BYTES: u64 = 64;

/// All consumer groups of a node.
///
/// The caller makes the changes of a step durable before it sends the effects and before it asks
/// for the next step. When that fails for good, or its outcome is unknown, the coordinator is
/// ahead of the log and must not be used any more.
#[derive(Debug)]
pub struct Coordinator {
    config: GroupConfig,
    strategy: Box<dyn Strategy>,
    bounds: Arc<dyn BoundsOf>,
    pub(super) state: State,
    pub(super) streams: BTreeMap<StreamId, Stream>,
    sessions: BTreeMap<SessionId, (GroupNumber, MemberNumber)>,
    /// When which group's deadlines are looked at: each group at most once, never too late.
    timers: BTreeSet<(Duration, GroupNumber)>,
    /// Groups whose balance may have changed in this step.
    unbalanced: BTreeSet<GroupNumber>,
    /// Leases that ended because their member was silent or late, since this was made.
    pub(super) leases_lost: u64,
    now: Duration,
    wall: Timestamp,
    step: Step,
    /// About the size of `step`.
    decided_bytes: u64,
}

impl Coordinator {
    /// A node without groups.
    pub fn new(config: GroupConfig) -> Self {
        Self::recover(config, State::default(), Timestamp::ZERO, Duration::ZERO)
    }

    /// Goes on from what the log adds up to, whose last record was written `at`. Every member has
    /// one session timeout from `now` to come back. Until the caller has told the shards of a
    /// stream ([`Coordinator::streams`]) nothing of it is granted.
    pub(super) fn recover(config: GroupConfig, state: State, at: Timestamp, now: Duration) -> Self {
        let mut coordinator = Self {
            config,
            strategy: Box::new(Balanced),
            bounds: Arc::new(NoBounds),
            state,
            streams: BTreeMap::new(),
            sessions: BTreeMap::new(),
            timers: BTreeSet::new(),
            unbalanced: BTreeSet::new(),
            leases_lost: 0,
            now,
            wall: at,
            step: Step {
                at,
                ..Step::default()
            },
            decided_bytes: 0,
        };
        for (number, group) in &mut coordinator.state.groups {
            for member in group.members.values_mut() {
                member.heard = now;
                member.session = None;
            }
            if let Some(deadline) = next_deadline(group) {
                group.check_at = Some(deadline);
                coordinator.timers.insert((deadline, *number));
            }
        }
        coordinator
    }

    /// Distributes shards by another strategy.
    #[must_use]
    pub fn with_strategy(mut self, strategy: Box<dyn Strategy>) -> Self {
        self.strategy = strategy;
        self
    }

    /// Asks these where shards stand. Without, nothing is known of any: no group comes into being and
    /// no checkpoint is taken.
    #[must_use]
    pub fn with_bounds(mut self, bounds: Arc<dyn BoundsOf>) -> Self {
        self.bounds = bounds;
        self
    }

    /// Takes what happened since the last step, in order, and what is due at `now`. `now` is
    /// monotonic; `wall` is the time of day.
    pub fn step(
        &mut self,
        now: Duration,
        wall: Timestamp,
        events: impl IntoIterator<Item = Event>,
    ) -> Step {
        self.begin(now, wall);
        for event in events {
            self.take(event);
        }
        self.end()
    }

    /// As [`Coordinator::step`], up to `step_bytes_max`: what is left in `events` is for the next step.
    /// Whoever gave a sign of life in it must have been [`Coordinator::heard`] before.
    pub fn step_bounded(
        &mut self,
        now: Duration,
        wall: Timestamp,
        events: &mut dyn Iterator<Item = Event>,
    ) -> Step {
        self.begin(now, wall);
        while self.decided_bytes < self.config.step_bytes_max
            && let Some(event) = events.next()
        {
            self.take(event);
        }
        self.end()
    }

    /// A sign of life that waits for its turn.
    pub fn heard(&mut self, now: Duration, session: SessionId) {
        self.now = self.now.max(now);
        self.touch(session);
    }

    fn begin(&mut self, now: Duration, wall: Timestamp) {
        self.now = self.now.max(now);
        self.wall = wall;
        self.step.at = self.step.at.max(wall);
        self.decided_bytes = 0;
    }

    fn end(&mut self) -> Step {
        // After the events: a sign of life that waited in a queue is one.
        self.expire();
        self.balance();
        let at = self.step.at;
        let next = Step {
            at,
            ..Step::default()
        };
        std::mem::replace(&mut self.step, next)
    }

    /// When [`Coordinator::step`] has something to do even if nothing happens.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.timers.first().map(|(at, _)| *at)
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Join(join) => self.join(join),
            Event::Heartbeat { session, beat } => self.heartbeat(session, beat),
            Event::Release { session, leases } => self.release(session, &leases),
            Event::Leave { session } => self.leave(session),
            Event::SessionLost { session } => self.session_lost(session),
            Event::Request {
                id,
                stream,
                group,
                request,
            } => {
                let answer = self.answer(stream, &group, request);
                self.effect(Effect::Answered { id, answer });
            }
            Event::ShardsChanged { stream, shards } => self.shards_changed(stream, shards),
            Event::StreamDeleted { stream } => self.stream_deleted(stream),
            Event::Began { group, begins } => self.began(group, &begins),
            Event::LoadObserved { stream, loads } => self.load_observed(stream, &loads),
        }
    }

    /// Decides a change: from now on it is true here, and in the log before anybody is told.
    fn change(&mut self, change: GroupChange) {
        let applied = self.state.apply(&change, self.step.at);
        applied.expect("BUG: a change was decided that cannot be made");
        match &change {
            GroupChange::GroupCreated { group, .. } => self.line_up(*group),
            GroupChange::Checkpointed { group, shard, .. } => self.follow(*group, *shard),
            _ => {}
        }
        self.decided_bytes += change.weight();
        self.step.changes.push(change);
    }

    fn effect(&mut self, effect: Effect) {
        self.decided_bytes += EFFECT_BYTES;
        self.step.effects.push(effect);
    }

    fn group(&self, number: GroupNumber) -> &Group {
        let group = self.state.groups.get(&number);
        group.expect("BUG: a group is gone that was just there")
    }

    fn group_mut(&mut self, number: GroupNumber) -> &mut Group {
        let group = self.state.groups.get_mut(&number);
        group.expect("BUG: a group is gone that was just there")
    }

    /// The session of a lease's holder, if it is there.
    fn session_of(&self, group: GroupNumber, member: MemberNumber) -> Option<SessionId> {
        let member = self.state.groups.get(&group)?.members.get(&member)?;
        member.session
    }

    /// Looks at a group's deadlines at `at`, or earlier if that was planned.
    fn check_at(&mut self, number: GroupNumber, at: Duration) {
        let group = self.group_mut(number);
        let planned = group.check_at;
        if planned.is_some_and(|planned| planned <= at) {
            return;
        }
        group.check_at = Some(at);
        if let Some(planned) = planned {
            self.timers.remove(&(planned, number));
        }
        self.timers.insert((at, number));
    }

    /// Ends what has reached its deadline.
    fn expire(&mut self) {
        while let Some((at, number)) = self.timers.first().copied() {
            if at > self.now {
                break;
            }
            self.timers.pop_first();
            let Some(group) = self.state.groups.get_mut(&number) else {
                continue;
            };
            group.check_at = None;
            self.expire_members(number);
            self.expire_hand_overs(number);
            if let Some(next) = next_deadline(self.group(number)) {
                self.check_at(number, next);
            }
        }
    }

    /// A lease as its holder is told of it.
    fn assignment(
        &self,
        number: GroupNumber,
        index: ShardIndex,
        expired: Option<u64>,
    ) -> Option<Assignment> {
        let group = self.state.groups.get(&number)?;
        let shard = group.shards.get(&index)?;
        let stream = self.streams.get(&group.stream);
        let position = group.position(index);
        Some(Assignment {
            shard: index,
            generation: shard.generation,
            from: position.from,
            checkpoint: position.checkpoint,
            expired,
            end: stream.and_then(|stream| stream.end(index)),
            watch: shard.watch.clone(),
            revoked: shard.hand_over.map(|hand_over| hand_over.deadline),
        })
    }

    fn grant(&mut self, number: GroupNumber, shard: ShardIndex, member: MemberNumber) {
        let expired = self.count_expired(number, shard);
        let generation = self.group(number).generation.next();
        self.change(GroupChange::Granted {
            group: number,
            shard,
            generation,
            member,
        });
        let session = self.session_of(number, member);
        if let (Some(session), Some(lease)) = (session, self.assignment(number, shard, expired)) {
            self.effect(Effect::Assigned { session, lease });
        }
    }

    /// Ends a lease and tells its member, if it is there.
    fn take_lease(&mut self, number: GroupNumber, index: ShardIndex, reason: LostReason) {
        let Some(shard) = self.group(number).shards.get(&index) else {
            return;
        };
        let Some(holder) = shard.holder else { return };
        let generation = shard.generation;
        if reason == LostReason::Forced {
            self.leases_lost += 1;
        }
        self.change(GroupChange::Freed {
            group: number,
            shard: index,
            forced: reason == LostReason::Forced,
        });
        if let Some(session) = self.session_of(number, holder) {
            self.effect(Effect::Lost {
                session,
                shard: index,
                generation,
                reason,
            });
        }
        self.unbalanced.insert(number);
    }
}

/// The earliest time at which something of a group is due.
fn next_deadline(group: &Group) -> Option<Duration> {
    let members = group.members.values().map(super::state::Member::deadline);
    let hand_overs = group.shards.values().filter_map(|shard| shard.hand_over);
    members
        .chain(hand_overs.map(|hand_over| hand_over.deadline))
        .min()
}
