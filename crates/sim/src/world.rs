//! A run: everything, tick by tick.

mod asking;
mod rounds;

use std::collections::BTreeMap;
use std::time::Duration;

use flumen_record::{ShardIndex, StreamId, Timestamp};
use flumen_stream::group::{
    Event, Generation, GroupName, InitialPosition, Join, MemberName, MemberNumber, RequestId,
    SessionId,
};

use crate::broker::{Broker, delay};
use crate::member::{Around, Member};
use crate::oracle::{Checked, Oracle, Violation};
use crate::random::{Dice, place};
use crate::stream::{KEYS, Stream};

pub(crate) const STREAM: StreamId = StreamId::new(1);
pub(crate) const GROUP: &str = "simulated";
/// Session timeout, in milliseconds as all times of a run.
pub(crate) const TIMEOUT: u64 = 10_000;
const TICK: u64 = 10;
/// Faults and appends end here …
const CALM_AT: u64 = 90_000;
/// … and by then everything is processed.
const REST_BY: u64 = 200_000;
/// A dead member's shards are someone else's this long after its timeout.
const FAIL_OVER: u64 = 1_000;

/// A rule that is broken on purpose, to see that it is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// Checkpoints are taken as if under the current generation.
    IgnoresGenerations,
    /// Members are told before the changes are durable.
    TellsBeforeDurable,
    /// Checkpoints are answered and not written.
    ForgetsCheckpoints,
    /// Children do not wait for their parents.
    ForgetsParents,
    /// Members go on when their session timeout is over.
    IgnoresDeadline,
    /// A silent member is not noticed.
    ForgetsTimeouts,
    /// Checkpoints and resets go beyond the end of a shard.
    TakesNonsense,
    /// What expires before it is read is not looked for.
    ForgetsHorizon,
    /// Shards that go take nothing along.
    ForgetsGone,
}

/// What happened in a run without a violation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// How long it took until all was processed, in simulated milliseconds.
    pub ended: u64,
    /// Records that were appended, processed and accepted.
    pub records: u64,
    /// Shards at the end, with those that were closed.
    pub shards: u64,
    /// Grants that were made.
    pub grants: u64,
    /// Hand-overs that were forced.
    pub forced: u64,
    /// Members that were silent for too long.
    pub silent: u64,
    /// Checkpoints that were refused as stale.
    pub stale: u64,
    /// Restarts of the broker.
    pub restarts: u64,
    /// Records that expired before they were processed.
    pub missed: u64,
    /// Times that the group was deleted.
    pub deleted: u64,
    /// Requests that make no sense, all refused.
    pub nonsense: u64,
}

struct World {
    dice: Dice,
    now: u64,
    /// What the wall clock is off by.
    wall_offset: u64,
    stream: Stream,
    broker: Broker,
    members: Vec<Member>,
    oracle: Oracle,
    broken: Option<Broken>,
    requests: BTreeMap<RequestId, (SessionId, ShardIndex, Generation, u64)>,
    next_request: u64,
    /// What is asked by somebody who is no member.
    admin: BTreeMap<RequestId, Asked>,
    /// When the broker last heard of a member.
    heard: BTreeMap<MemberName, u64>,
    /// The session a member joined on last, as the broker saw it.
    joined: BTreeMap<MemberName, SessionId>,
    /// Who has which number and which leases, by what is durable.
    names: BTreeMap<MemberNumber, MemberName>,
    leases: BTreeMap<ShardIndex, (MemberNumber, Generation)>,
    shards_changed: bool,
    report: Report,
}

/// What is asked by somebody who is no member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Beyond the end of a shard: never granted.
    Nonsense,
    /// To where it is.
    Reset,
    Delete,
}

/// One run from a seed. Equal seeds give equal runs.
pub fn run(seed: u64, broken: Option<Broken>) -> Result<Report, Violation> {
    let mut dice = Dice::new(seed);
    let shards = dice.between(1, 5);
    let members = dice.between(1, 5);
    let name = |index: u64| {
        let name = format!("member-{index}").parse();
        name.expect("BUG: a member's name is not one")
    };
    let mut world = World {
        stream: Stream::new(shards),
        broker: Broker::new(broken),
        members: (0..members).map(|index| Member::new(name(index))).collect(),
        oracle: Oracle::new(),
        now: 0,
        wall_offset: 50_000_000_000,
        broken,
        requests: BTreeMap::new(),
        next_request: 0,
        admin: BTreeMap::new(),
        heard: BTreeMap::new(),
        joined: BTreeMap::new(),
        names: BTreeMap::new(),
        leases: BTreeMap::new(),
        shards_changed: false,
        report: Report::default(),
        dice,
    };
    while !world.is_at_rest() {
        world.now += TICK;
        world.tick().map_err(|what| Violation {
            seed,
            at: world.now,
            what,
        })?;
    }
    world.report.ended = world.now;
    world.report.records = world.oracle.accepted;
    world.report.shards = world.stream.shards.len() as u64;
    world.report.restarts = world.broker.restarts;
    world.report.missed = world.oracle.missed;
    world.check_missed().map_err(|what| Violation {
        seed,
        at: world.now,
        what,
    })?;
    Ok(world.report)
}

fn group() -> GroupName {
    GROUP.parse().expect("BUG: the group's name is not one")
}

impl World {
    fn has_faults(&self) -> bool {
        self.now < CALM_AT
    }

    fn is_at_rest(&self) -> bool {
        let is_done = |shard: &crate::stream::Shard| {
            let all = self.oracle.position(shard.index) == shard.end();
            let is_done =
                all && (!shard.is_closed || self.oracle.is_finished(&self.stream, shard.index));
            is_done || shard.has_expired
        };
        !self.has_faults() && self.stream.shards.iter().all(is_done)
    }

    fn wall(&self) -> Timestamp {
        Timestamp::from_micros((self.wall_offset + self.now) * 1_000)
    }

    fn tick(&mut self) -> Checked {
        if self.now > REST_BY {
            return Err(self.unrest());
        }
        if self.has_faults() {
            self.append();
            self.reshard();
            self.disturb();
        }
        self.broker.stand(self.stream.bounds());
        for member in 0..self.members.len() {
            self.run_member(member)?;
        }
        self.run_broker()
    }

    /// Why it has not come to rest.
    fn unrest(&self) -> String {
        let described = self.broker.coordinator();
        let described = described.and_then(|coordinator| coordinator.describe(STREAM, &group()));
        let Some(described) = described else {
            return "it does not come to rest, nobody ever joined".to_owned();
        };
        let shards = described.shards.iter().filter(|shard| !shard.is_finished);
        let shards = shards.map(|shard| {
            let checkpoint = shard.checkpoint.map(|(checkpoint, _)| checkpoint);
            let (index, end) = (shard.shard, self.stream.shard(shard.shard).end());
            let holder = &shard.holder;
            format!("\n  shard {index} of {end}: {checkpoint:?}, held by {holder:?}")
        });
        let shards: String = shards.collect();
        format!("it does not come to rest:{shards}\n  {:?}", self.members)
    }

    fn append(&mut self) {
        if self.dice.once_in(4) {
            let key = self.dice.below(KEYS);
            self.stream.append(key);
        }
    }

    fn reshard(&mut self) {
        let open = self.stream.shards.iter().filter(|shard| !shard.is_closed);
        let open = open.count();
        if self.dice.once_in(700) && open < 8 {
            let nth = self.dice.next();
            self.stream.split(nth);
            self.shards_changed = true;
        } else if self.dice.once_in(700) {
            let nth = self.dice.next();
            self.stream.merge(nth);
            self.shards_changed = true;
        } else if self.dice.once_in(1_500) {
            // What is closed expires sooner or later.
            let nth = self.dice.next();
            self.shards_changed |= self.stream.expire(nth);
        } else if self.dice.once_in(300) {
            let (nth, records) = (self.dice.next(), self.dice.between(1, 40));
            self.stream.trim(nth, records);
        }
    }

    /// Members crash, pause, lose their sessions, leave; the wall clock jumps.
    fn disturb(&mut self) {
        let now = self.now;
        if self.dice.once_in(2_000) {
            // Months, in either direction.
            self.wall_offset = self.dice.between(40_000_000_000, 60_000_000_000);
        }
        for index in 0..self.members.len() {
            let what = self.dice.below(16_000);
            let Some(member) = self.members.get_mut(index) else {
                return;
            };
            if !member.is_awake(now) {
                continue;
            }
            match what {
                0..4 => {
                    let session = member.session;
                    member.crash(now + self.dice.between(100, 15_000));
                    self.close(session, true);
                }
                4..9 => {
                    member.paused_until = now + self.dice.between(500, 25_000);
                    member.deaf_until = member.paused_until + self.dice.below(400);
                }
                9..16 => {
                    let session = member.session;
                    member.lost_session(now + self.dice.between(10, 3_000));
                    self.close(session, false);
                }
                16..19 => member.is_leaving = true,
                _ => {}
            }
        }
    }

    /// A member's end of a session is gone; what it has sent may arrive or not.
    fn close(&mut self, session: Option<SessionId>, is_silent: bool) {
        let Some(link) = session.and_then(|session| self.broker.links.get_mut(&session)) else {
            return;
        };
        let arrives = place(self.dice.below(link.up.len() as u64 + 1));
        link.up.truncate(arrives);
        link.down.clear();
        // A process that dies with its machine says nothing, and a broken route neither.
        let notices = if is_silent && self.dice.once_in(2) {
            self.dice.between(15_000, 30_000)
        } else {
            self.dice.between(1, 2_000)
        };
        link.broker_notices = Some(self.now + notices);
    }

    fn run_member(&mut self, index: usize) -> Checked {
        let (now, has_faults) = (self.now, self.has_faults());
        let Some(member) = self.members.get_mut(index) else {
            return Ok(());
        };
        if !has_faults {
            member.paused_until = member.paused_until.min(now);
            member.deaf_until = member.deaf_until.min(now);
        }
        if !member.is_awake(now) {
            return Ok(());
        }
        let mut around = Around {
            now,
            stream: &self.stream,
            oracle: &mut self.oracle,
            dice: &mut self.dice,
            next_request: &mut self.next_request,
            has_faults,
            ignores_deadline: self.broken == Some(Broken::IgnoresDeadline),
            out: Vec::new(),
            requests: Vec::new(),
            closes: false,
        };
        let session = member.session;
        let hears = now >= member.deaf_until;
        let link = session.and_then(|session| self.broker.links.get_mut(&session));
        if let Some(link) = link.filter(|_| hears) {
            while link.down.front().is_some_and(|(at, _)| *at <= now) {
                if let Some((_, effect)) = link.down.pop_front() {
                    member.hear(effect, &mut around)?;
                }
            }
            if link.member_notices.is_some_and(|at| at <= now) {
                around.closes = true;
            }
        }
        if around.closes && session.is_some() && member.session == session {
            let again = now + around.dice.between(10, 1_500);
            member.lost_session(again);
        } else if member.is_awake(now) {
            member.act(&mut around)?;
        }
        let (closes, out, requests) = (around.closes, around.out, around.requests);
        if let Some(session) = session {
            for (id, shard, generation, to) in requests {
                self.requests.insert(id, (session, shard, generation, to));
            }
            for event in out {
                self.put_up(session, event);
            }
            if closes {
                let is_gone = self
                    .broker
                    .links
                    .get(&session)
                    .is_some_and(|link| link.member_notices.is_some());
                if is_gone {
                    self.broker.links.remove(&session);
                } else {
                    self.close(Some(session), false);
                }
            }
        }
        self.connect(index);
        Ok(())
    }

    fn put_up(&mut self, session: SessionId, event: Event) {
        let at = self.now + delay(&mut self.dice);
        if let Some(link) = self.broker.links.get_mut(&session) {
            let after = link.up.back().map_or(0, |(at, _)| *at);
            link.up.push_back((at.max(after), event));
        }
    }

    fn connect(&mut self, index: usize) {
        let now = self.now;
        let Some(member) = self.members.get_mut(index) else {
            return;
        };
        if member.session.is_some() || now < member.connect_at || !member.is_awake(now) {
            return;
        }
        let Some(session) = self.broker.connect(index) else {
            member.connect_at = now + 300;
            return;
        };
        member.opened(session, now);
        let join = Event::Join(Join {
            session,
            stream: STREAM,
            group: group(),
            member: member.name.clone(),
            instance: member.instance,
            session_timeout: Some(Duration::from_millis(TIMEOUT)),
            start: InitialPosition::TrimHorizon,
            begins: None,
        });
        self.put_up(session, join);
    }
}
