//! What all changes add up to, and beside it what only this process knows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flumen_record::{SequenceNumber, ShardIndex, StreamId, Timestamp};

use super::change::{GroupChange, GroupImage};
use super::{
    Checkpoint, Expired, Generation, GroupName, GroupNumber, InitialPosition, InstanceId,
    MemberName, MemberNumber, ReadFrom, SessionId, ShardPosition,
};

/// Tells readers which generation of one shard in one group is current, without asking. It may say
/// that a lease is over a moment before the member is told; it never says so of one that is not.
#[derive(Debug, Clone, Default)]
pub struct LeaseWatch(Arc<AtomicU64>);

impl LeaseWatch {
    /// Whether the lease of this generation still stands.
    pub fn is_current(&self, generation: Generation) -> bool {
        generation.value() > 0 && self.0.load(Ordering::Acquire) == generation.value()
    }

    pub(super) fn set(&self, generation: Generation) {
        self.0.store(generation.value(), Ordering::Release);
    }
}

/// A member that was told to give a lease up.
#[derive(Debug, Clone, Copy)]
pub(super) struct HandOver {
    pub(super) deadline: Duration,
    /// Who gets it then; `None` when that one has gone.
    pub(super) target: Option<MemberNumber>,
}

/// One shard in a group.
#[derive(Debug, Clone)]
pub(super) struct Shard {
    /// Of the last grant, also when it is over.
    pub(super) generation: Generation,
    pub(super) holder: Option<MemberNumber>,
    /// When it was last granted or freed.
    pub(super) since: Timestamp,
    pub(super) checkpoint: Option<(Checkpoint, Timestamp)>,
    /// Where reading goes on: behind the checkpoint, where the group began, or behind what expired.
    /// `None`: not known, of a group from before that was written down.
    pub(super) position: Option<SequenceNumber>,
    /// Of what lies before the position.
    pub(super) expired: Expired,
    /// Not durable: after a restart the balance decides again.
    pub(super) hand_over: Option<HandOver>,
    pub(super) watch: LeaseWatch,
}

impl Shard {
    /// One that nobody has had, at this position.
    pub(super) fn at(position: Option<SequenceNumber>, expired: Expired) -> Self {
        Self {
            generation: Generation::default(),
            holder: None,
            since: Timestamp::ZERO,
            checkpoint: None,
            position,
            expired,
            hand_over: None,
            watch: LeaseWatch::default(),
        }
    }

    pub(super) fn is_held_under(&self, generation: Generation) -> bool {
        self.holder.is_some() && self.generation == generation
    }

    /// 0 while nobody holds it.
    pub(super) fn current(&self) -> Generation {
        if self.holder.is_some() {
            self.generation
        } else {
            Generation::default()
        }
    }

    pub(super) fn is_finished(&self, end: Option<SequenceNumber>) -> bool {
        self.checkpoint
            .is_some_and(|(checkpoint, _)| checkpoint.finishes(end))
    }

    fn free(&mut self, at: Timestamp) {
        self.holder = None;
        self.hand_over = None;
        self.since = at;
        self.watch.set(Generation::default());
    }
}

/// One member.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) name: MemberName,
    pub(super) instance: InstanceId,
    pub(super) session_timeout: Duration,
    pub(super) joined: Timestamp,
    /// Not durable: everything below.
    pub(super) session: Option<SessionId>,
    pub(super) heard: Duration,
}

impl Member {
    pub(super) fn deadline(&self) -> Duration {
        self.heard.saturating_add(self.session_timeout)
    }
}

/// One group.
#[derive(Debug, Clone)]
pub(super) struct Group {
    pub(super) stream: StreamId,
    pub(super) name: GroupName,
    pub(super) created: Timestamp,
    /// Never [`InitialPosition::Latest`]: that is a time once the group is there.
    pub(super) start: InitialPosition,
    /// Shards from this one on came into being after the group.
    pub(super) first_new_shard: ShardIndex,
    /// The highest generation that was granted.
    pub(super) generation: Generation,
    pub(super) next_member: MemberNumber,
    /// Hand-overs that were not released in time.
    pub(super) forced: u64,
    pub(super) members: BTreeMap<MemberNumber, Member>,
    pub(super) names: BTreeMap<MemberName, MemberNumber>,
    pub(super) shards: BTreeMap<ShardIndex, Shard>,
    /// Of shards that are no more.
    pub(super) expired: Expired,
    /// Shards that came after the group and are no more.
    pub(super) gone_children: u32,
    /// Not durable: the shards that a member may read, held or not.
    pub(super) ready: BTreeSet<ShardIndex>,
    /// Not durable: when its deadlines are looked at next.
    pub(super) check_at: Option<Duration>,
}

impl Group {
    /// Where the group stands in a shard: what leases, lag and lists go by.
    pub(super) fn position(&self, index: ShardIndex) -> ShardPosition {
        let untouched = ShardPosition::untouched(self.start, self.first_new_shard, index);
        let Some(shard) = self.shards.get(&index) else {
            return untouched;
        };
        ShardPosition {
            from: shard.position.map_or(untouched.from, ReadFrom::At),
            checkpoint: shard.checkpoint.map(|(checkpoint, _)| checkpoint),
            expired: shard.expired,
        }
    }

    /// What is written down of a shard, from now on if nothing was.
    fn shard_mut(&mut self, index: ShardIndex) -> &mut Shard {
        let (start, first_new_shard) = (self.start, self.first_new_shard);
        self.shards.entry(index).or_insert_with(|| {
            let untouched = ShardPosition::untouched(start, first_new_shard, index);
            let position = match untouched.from {
                ReadFrom::At(position) => Some(position),
                ReadFrom::TrimHorizon | ReadFrom::AtTimestamp(_) => None,
            };
            Shard::at(position, untouched.expired)
        })
    }

    pub(super) fn member(&self, name: &MemberName) -> Option<(MemberNumber, &Member)> {
        let number = *self.names.get(name)?;
        Some((number, self.members.get(&number)?))
    }

    /// Whose lease it is.
    pub(super) fn holder_name(&self, shard: ShardIndex) -> Option<&MemberName> {
        let holder = self.shards.get(&shard)?.holder?;
        self.members.get(&holder).map(|member| &member.name)
    }
}

/// All groups.
#[derive(Debug, Clone, Default)]
pub(super) struct State {
    pub(super) groups: BTreeMap<GroupNumber, Group>,
    pub(super) names: BTreeMap<StreamId, BTreeMap<GroupName, GroupNumber>>,
    /// The highest number a group has had.
    pub(super) last_group: GroupNumber,
    /// The highest generation of a group that is gone: new ones go on above it.
    pub(super) generation_floor: Generation,
    /// A snapshot is being read whose groups are not all known yet.
    pub(super) is_partial: bool,
}

const UNKNOWN_GROUP: &str = "it is about a group that does not exist";

impl State {
    pub(super) fn find(&self, stream: StreamId, name: &GroupName) -> Option<GroupNumber> {
        self.names.get(&stream)?.get(name).copied()
    }

    /// The groups of a stream.
    pub(super) fn of_stream(&self, stream: StreamId) -> Vec<GroupNumber> {
        let groups = self.names.get(&stream).map(BTreeMap::values);
        groups.into_iter().flatten().copied().collect()
    }

    /// Makes a change that was decided, or read from the log. The error says why it cannot follow
    /// from those before.
    pub(super) fn apply(
        &mut self,
        change: &GroupChange,
        at: Timestamp,
    ) -> Result<(), &'static str> {
        match change {
            GroupChange::GroupCreated {
                group,
                stream,
                name,
                start,
                first_new_shard,
                begins,
            } => self.put(
                *group,
                Group {
                    stream: *stream,
                    name: name.clone(),
                    created: at,
                    start: *start,
                    first_new_shard: *first_new_shard,
                    generation: self.generation_floor,
                    next_member: MemberNumber::new(1),
                    forced: 0,
                    members: BTreeMap::new(),
                    names: BTreeMap::new(),
                    shards: begun(begins.as_deref().unwrap_or_default()),
                    expired: match begins {
                        Some(_) => Expired::NONE,
                        None => Expired::UNKNOWN,
                    },
                    gone_children: 0,
                    ready: BTreeSet::new(),
                    check_at: None,
                },
            ),
            GroupChange::GroupDeleted { group, generation } => {
                self.generation_floor = self.generation_floor.max(*generation);
                self.remove(*group)
            }
            GroupChange::SnapshotBegin {
                last_group,
                generation_floor,
            } => {
                self.last_group = self.last_group.max(*last_group);
                self.generation_floor = self.generation_floor.max(*generation_floor);
                Ok(())
            }
            GroupChange::SnapshotGroup(image) => {
                let GroupImage { number, group } = &**image;
                self.put(*number, group.clone())
            }
            GroupChange::SnapshotEnd { groups } => {
                if self.groups.len() as u64 != *groups {
                    return Err("the snapshot it ends is not complete");
                }
                self.is_partial = false;
                Ok(())
            }
            _ => self.apply_within(change, at),
        }
    }

    /// A change was made from before what expires unread was written down: how much had until then is
    /// not known.
    pub(super) fn applied_old(&mut self, change: &GroupChange) {
        let GroupChange::Checkpointed { shard, .. } = change else {
            return;
        };
        let group = change
            .group()
            .and_then(|number| self.groups.get_mut(&number));
        if let Some(shard) = group.and_then(|group| group.shards.get_mut(shard)) {
            shard.expired.is_exact = false;
        }
    }

    fn put(&mut self, number: GroupNumber, group: Group) -> Result<(), &'static str> {
        let names = self.names.entry(group.stream).or_default();
        let taken = names.insert(group.name.clone(), number);
        if taken.is_some_and(|taken| taken != number) {
            return Err("another group has its name");
        }
        self.last_group = self.last_group.max(number);
        self.groups.insert(number, group);
        Ok(())
    }

    fn remove(&mut self, number: GroupNumber) -> Result<(), &'static str> {
        let Some(group) = self.groups.remove(&number) else {
            return if self.is_partial {
                Ok(())
            } else {
                Err(UNKNOWN_GROUP)
            };
        };
        for shard in group.shards.values() {
            shard.watch.set(Generation::default());
        }
        if let Some(names) = self.names.get_mut(&group.stream) {
            names.remove(&group.name);
            if names.is_empty() {
                self.names.remove(&group.stream);
            }
        }
        Ok(())
    }

    /// A change inside one group.
    fn apply_within(&mut self, change: &GroupChange, at: Timestamp) -> Result<(), &'static str> {
        let number = change.group().ok_or("it is about no group")?;
        let Some(group) = self.groups.get_mut(&number) else {
            // Its image follows in the snapshot, and has the change in it.
            return if self.is_partial {
                Ok(())
            } else {
                Err(UNKNOWN_GROUP)
            };
        };
        group.apply(change, at)
    }
}

/// Shards at which a new group begins.
fn begun(begins: &[(ShardIndex, SequenceNumber)]) -> BTreeMap<ShardIndex, Shard> {
    let each = begins.iter();
    let each = each.map(|(index, position)| {
        let shard = Shard::at(Some(*position), Expired::NONE);
        (*index, shard)
    });
    each.collect()
}

const UNKNOWN_MEMBER: &str = "it is about a member that does not exist";
const UNKNOWN_SHARD: &str = "it is about a lease that does not exist";

impl Group {
    fn apply(&mut self, change: &GroupChange, at: Timestamp) -> Result<(), &'static str> {
        match change {
            GroupChange::MemberJoined {
                member,
                name,
                instance,
                session_timeout,
                ..
            } => self.joined(*member, name, *instance, *session_timeout, at),
            GroupChange::MemberLeft { member, .. } => {
                let left = self.members.remove(member).ok_or(UNKNOWN_MEMBER)?;
                self.names.remove(&left.name);
                for shard in self.shards.values_mut() {
                    if shard.holder == Some(*member) {
                        shard.free(at);
                    } else if let Some(hand_over) = &mut shard.hand_over
                        && hand_over.target == Some(*member)
                    {
                        hand_over.target = None;
                    }
                }
                Ok(())
            }
            GroupChange::Granted {
                shard,
                generation,
                member,
                ..
            } => {
                if !self.members.contains_key(member) {
                    return Err(UNKNOWN_MEMBER);
                }
                if *generation <= self.generation {
                    return Err("its generation was granted before");
                }
                self.generation = *generation;
                let shard = self.shard_mut(*shard);
                shard.generation = *generation;
                shard.holder = Some(*member);
                shard.hand_over = None;
                shard.since = at;
                shard.watch.set(*generation);
                Ok(())
            }
            GroupChange::Freed { shard, forced, .. } => {
                let shard = self.shards.get_mut(shard).ok_or(UNKNOWN_SHARD)?;
                shard.free(at);
                self.forced = self.forced.saturating_add(u64::from(*forced));
                Ok(())
            }
            _ => self.go_on(change, at),
        }
    }

    /// A change of where the group stands.
    fn go_on(&mut self, change: &GroupChange, at: Timestamp) -> Result<(), &'static str> {
        match change {
            GroupChange::Checkpointed {
                shard, checkpoint, ..
            } => {
                let shard = self.shard_mut(*shard);
                shard.checkpoint = Some((*checkpoint, at));
                shard.position = Some(checkpoint.next());
                Ok(())
            }
            GroupChange::Began {
                shard, position, ..
            } => {
                self.shard_mut(*shard).position = Some(*position);
                Ok(())
            }
            GroupChange::ExpiredUnread {
                shard, to, records, ..
            } => {
                let shard = self.shard_mut(*shard);
                shard.position = Some(*to);
                shard.expired.records = shard.expired.records.saturating_add(*records);
                Ok(())
            }
            GroupChange::ShardExpired { shard, unread, .. } => {
                let before = self.position(*shard).expired;
                self.expired = self.expired.and(before).and((*unread).into());
                if *shard >= self.first_new_shard {
                    self.gone_children = self.gone_children.saturating_add(1);
                }
                self.ready.remove(shard);
                if let Some(mut expired) = self.shards.remove(shard) {
                    expired.free(at);
                }
                Ok(())
            }
            GroupChange::ShardsMissed { shards, .. } => {
                self.expired = self.expired.and(Expired::UNKNOWN);
                self.gone_children = self.gone_children.saturating_add(*shards);
                Ok(())
            }
            _ => Err("it is about no group"),
        }
    }

    fn joined(
        &mut self,
        number: MemberNumber,
        name: &MemberName,
        instance: InstanceId,
        session_timeout: Duration,
        at: Timestamp,
    ) -> Result<(), &'static str> {
        if self.names.get(name).is_some_and(|taken| *taken != number) {
            return Err("another member has its name");
        }
        self.next_member = self.next_member.max(number.next());
        self.names.insert(name.clone(), number);
        let member = self.members.entry(number).or_insert_with(|| Member {
            name: name.clone(),
            instance,
            session_timeout,
            joined: at,
            session: None,
            heard: Duration::ZERO,
        });
        member.session_timeout = session_timeout;
        Ok(())
    }
}
