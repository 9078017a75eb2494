//! Any events in any order against a model that knows only what members were told.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop, prop_oneof, proptest};

use super::*;

#[derive(Debug, Clone)]
enum Op {
    Join {
        member: u8,
        instance: u8,
    },
    Leave {
        member: u8,
    },
    Break {
        member: u8,
    },
    Beat {
        member: u8,
    },
    Release {
        member: u8,
        nth: u8,
    },
    Checkpoint {
        shard: u8,
        back: u8,
        up: u8,
        plain: bool,
    },
    Finish {
        shard: u8,
    },
    Split {
        shard: u8,
    },
    Merge {
        one: u8,
        other: u8,
    },
    Expire {
        shard: u8,
    },
    Reset {
        shard: u8,
        to: u8,
        force: bool,
    },
    Put {
        shard: u8,
        records: u8,
    },
    Trim {
        shard: u8,
        records: u8,
    },
    Nonsense {
        shard: u8,
        beyond: u8,
    },
    Delete {
        force: bool,
    },
    DeleteStream,
    Load {
        seed: u8,
    },
    Wait {
        seconds: u8,
    },
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    let byte = any::<u8>;
    prop_oneof![
        4 => (0_u8..5, 0_u8..2).prop_map(|(member, instance)| Op::Join { member, instance }),
        1 => (0_u8..5).prop_map(|member| Op::Leave { member }),
        1 => (0_u8..5).prop_map(|member| Op::Break { member }),
        4 => (0_u8..5).prop_map(|member| Op::Beat { member }),
        4 => (0_u8..5, byte()).prop_map(|(member, nth)| Op::Release { member, nth }),
        6 => (byte(), 0_u8..3, byte(), prop::bool::weighted(0.1))
            .prop_map(|(shard, back, up, plain)| Op::Checkpoint { shard, back, up, plain }),
        3 => byte().prop_map(|shard| Op::Finish { shard }),
        1 => byte().prop_map(|shard| Op::Split { shard }),
        6 => (byte(), 0_u8..9).prop_map(|(shard, records)| Op::Put { shard, records }),
        3 => (byte(), 0_u8..9).prop_map(|(shard, records)| Op::Trim { shard, records }),
        1 => (byte(), byte()).prop_map(|(shard, beyond)| Op::Nonsense { shard, beyond }),
        1 => any::<bool>().prop_map(|force| Op::Delete { force }),
        1 => prop::bool::weighted(0.2).prop_map(|deletes| if deletes {
            Op::DeleteStream
        } else {
            Op::Wait { seconds: 1 }
        }),
        1 => (byte(), byte()).prop_map(|(one, other)| Op::Merge { one, other }),
        1 => byte().prop_map(|shard| Op::Expire { shard }),
        1 => (byte(), byte(), any::<bool>())
            .prop_map(|(shard, to, force)| Op::Reset { shard, to, force }),
        1 => byte().prop_map(|seed| Op::Load { seed }),
        4 => (0_u8..15).prop_map(|seconds| Op::Wait { seconds }),
        1 => Just(Op::Restart),
    ]
}

/// What the outside knows.
struct World {
    node: Node,
    facts: BTreeMap<u32, ShardFacts>,
    next_shard: u32,
    /// Per member: its session, instance, and what it holds by what it was told.
    members: BTreeMap<u8, (SessionId, u8)>,
    held: BTreeMap<SessionId, BTreeMap<u32, u64>>,
    checkpoints: BTreeMap<u32, Checkpoint>,
    /// Records of each shard: those that are kept are between the two.
    records: BTreeMap<u32, (u64, u64)>,
    /// Where the group goes on, if it is there, in shards that it has begun; in others at their first
    /// record.
    positions: Option<BTreeMap<u32, u64>>,
    /// What it has missed.
    expired: u64,
}

impl World {
    fn new() -> Self {
        let node = Node::new(3);
        let facts = (0..3).map(|index| (index, open(index, &[]))).collect();
        let mut world = Self {
            node,
            facts,
            next_shard: 3,
            members: BTreeMap::new(),
            held: BTreeMap::new(),
            checkpoints: BTreeMap::new(),
            records: (0..3).map(|index| (index, (0, 5))).collect(),
            positions: None,
            expired: 0,
        };
        world.stand();
        world.settle();
        world
    }

    fn pick(&self, dice: u8) -> u32 {
        let at = usize::from(dice) % self.facts.len();
        *self.facts.keys().nth(at).unwrap()
    }

    /// The group comes into being, if it is not there.
    fn begin(&mut self) {
        let kept = self.facts.keys();
        let kept = kept.map(|index| (*index, self.records[index].0));
        if self.positions.is_none() {
            self.positions = Some(kept.collect());
        }
    }

    fn position(&self, index: u32) -> u64 {
        let positions = self.positions.as_ref();
        let known = positions.and_then(|positions| positions.get(&index));
        known.copied().unwrap_or(0)
    }

    fn go_on(&mut self, index: u32, to: u64) {
        let positions = self.positions.as_mut().expect("a group");
        positions.insert(index, to);
    }

    fn forget_group(&mut self) {
        self.checkpoints.clear();
        self.positions = None;
        self.expired = 0;
    }

    fn stand(&self) {
        for (index, (horizon, end)) in &self.records {
            self.node.stands(*index, *horizon, *end);
        }
    }

    fn tell_shards(&mut self) {
        let shards = self.facts.values().cloned().collect();
        self.node.shards(shards);
    }

    /// Takes the last step's effects in, and checks that everything told is what is.
    fn settle(&mut self) {
        let step = std::mem::take(&mut self.node.last);
        for effect in step.effects {
            match effect {
                Effect::Joined {
                    session, leases, ..
                } => {
                    let leases = leases.iter();
                    let leases =
                        leases.map(|lease| (lease.shard.value(), lease.generation.value()));
                    self.held.insert(session, leases.collect());
                }
                Effect::Assigned { session, lease } => {
                    let (shard, generation) = (lease.shard.value(), lease.generation.value());
                    let held = self.held.get_mut(&session).expect("joined before");
                    assert!(held.insert(shard, generation).is_none(), "assigned twice");
                    let (position, horizon) = (self.position(shard), self.records[&shard].0);
                    let missed = horizon.saturating_sub(position);
                    let from = ReadFrom::At(number(position.max(horizon)));
                    assert_eq!((lease.from, lease.expired), (from, Some(missed)));
                    self.go_on(shard, position.max(horizon));
                    self.expired += missed;
                }
                Effect::Lost {
                    session,
                    shard,
                    generation,
                    ..
                } => {
                    let held = self.held.get_mut(&session).expect("joined before");
                    assert_eq!(held.remove(&shard.value()), Some(generation.value()));
                }
                Effect::Revoked {
                    session,
                    shard,
                    generation,
                    ..
                } => {
                    let held = self.held.get(&session).expect("joined before");
                    assert_eq!(held.get(&shard.value()), Some(&generation.value()));
                }
                Effect::Fenced { session, .. } | Effect::Left { session } => {
                    self.held.remove(&session);
                    self.members.retain(|_, (known, _)| *known != session);
                }
                _ => {}
            }
        }
        self.check();
    }

    fn check(&self) {
        let Some(description) = self.node.coordinator.describe(STREAM, &group()) else {
            return;
        };
        let shards = description.shards.iter();
        let expired = shards.fold(description.expired, |all, shard| {
            all.and(shard.position.expired)
        });
        assert_eq!(expired.exactly(), Some(self.expired));
        for shard in &description.shards {
            let at = number(self.position(shard.shard.value()));
            assert_eq!(shard.position.from, ReadFrom::At(at), "of {}", shard.shard);
        }
        self.check_lined_up();
        let told: BTreeSet<_> = self.held.values().flatten().collect();
        let present: BTreeSet<_> = description
            .members
            .iter()
            .filter(|member| member.is_present)
            .map(|member| member.name.clone())
            .collect();
        let mut granted = BTreeSet::new();
        for shard in &description.shards {
            let index = shard.shard.value();
            let facts = &self.facts[&index];
            let is_finished = |index: u32| {
                self.facts.get(&index).is_none_or(|facts| {
                    let reached = self.checkpoints.get(&index);
                    facts
                        .end
                        .is_some_and(|end| reached.is_some_and(|at| at.next() >= end))
                })
            };
            assert_eq!(shard.is_finished, is_finished(index));
            let parents = facts.parents.iter();
            let is_due = parents.clone().all(|parent| is_finished(parent.value()));
            assert_eq!(
                shard.checkpoint.map(|(at, _)| at),
                self.checkpoints.get(&index).copied()
            );
            match &shard.holder {
                Some(holder) => {
                    assert!(is_due, "{index} is held before its parents are finished");
                    assert!(
                        !shard.is_finished,
                        "{index} is held although it is finished"
                    );
                    if present.contains(holder) {
                        granted.insert((index, shard.generation.value()));
                    }
                }
                None => assert!(
                    present.is_empty() || shard.is_finished || !is_due,
                    "{index} is nobody's although members are there"
                ),
            }
        }
        let granted: BTreeSet<_> = granted
            .iter()
            .map(|(shard, generation)| (shard, generation))
            .collect();
        assert_eq!(
            told, granted,
            "what members were told is not what they hold"
        );
        for member in &description.members {
            assert!(
                member.deadline > self.node.now,
                "{member:?} is silent for too long"
            );
        }
    }

    /// What is kept up to date change by change is what all of it adds up to.
    fn check_lined_up(&self) {
        let coordinator = &self.node.coordinator;
        for (number, group) in &coordinator.state.groups {
            let shards = self.facts.keys().map(|index| shard(*index));
            let ready = shards.filter(|index| coordinator.is_assignable(*number, *index));
            assert_eq!(ready.collect::<BTreeSet<_>>(), group.ready);
        }
    }

    fn run(&mut self, op: &Op) {
        match *op {
            Op::Join { member, instance } => {
                self.begin();
                let session = self.node.join_as(&format!("m{member}"), instance.into());
                // Fenced first, then in.
                self.settle();
                if self.held.contains_key(&session) {
                    self.members.insert(member, (session, instance));
                }
            }
            Op::Leave { member } => self.with(member, |session| Event::Leave { session }),
            Op::Beat { member } => {
                self.with(member, |session| Event::Heartbeat { session, beat: 1 })
            }
            Op::Break { member } => {
                if let Some((session, _)) = self.members.remove(&member) {
                    self.held.remove(&session);
                    self.node.step(vec![Event::SessionLost { session }]);
                }
            }
            Op::Release { member, nth } => self.release(member, nth),
            Op::Checkpoint {
                shard,
                back,
                up,
                plain,
            } => self.checkpoint(self.pick(shard), back, up, plain),
            Op::Finish { shard } => {
                let shard = self.pick(shard);
                if let Some(end) = self.facts[&shard].end {
                    self.checkpoint_at(shard, Checkpoint::at(end), false);
                }
            }
            Op::Split { shard } => {
                let shard = self.pick(shard);
                self.close(&[shard], 2);
            }
            Op::Merge { one, other } => {
                let (one, other) = (self.pick(one), self.pick(other));
                if one != other {
                    self.close(&[one, other], 1);
                }
            }
            Op::Expire { shard } => {
                let shard = self.pick(shard);
                if self.facts[&shard].end.is_some() {
                    if self.positions.is_some() {
                        let end = self.records[&shard].1;
                        self.expired += end.saturating_sub(self.position(shard));
                    }
                    self.facts.remove(&shard);
                    self.checkpoints.remove(&shard);
                    self.tell_shards();
                }
            }
            Op::Reset { shard, to, force } => self.reset(self.pick(shard), to, force),
            Op::Wait { seconds: time } => {
                self.node.wait(seconds(time.into()));
            }
            Op::Restart => self.restart(),
            _ => return self.run_beside(op),
        }
        self.settle();
    }

    /// What happens beside members.
    fn run_beside(&mut self, op: &Op) {
        match *op {
            Op::Put { shard, records } => {
                let shard = self.pick(shard);
                if self.facts[&shard].end.is_none() {
                    self.records.get_mut(&shard).unwrap().1 += u64::from(records);
                }
                self.stand();
            }
            Op::Trim { shard, records } => {
                let shard = self.pick(shard);
                let (horizon, end) = self.records.get_mut(&shard).unwrap();
                *horizon = (*horizon + u64::from(records)).min(*end);
                self.stand();
            }
            Op::Nonsense { shard, beyond } => {
                let shard = self.pick(shard);
                let end = self.records[&shard].1;
                for beyond in [1, u64::from(beyond) + 1, u64::MAX - end] {
                    self.checkpoint_at(shard, at(end + beyond), false);
                    self.settle();
                    self.reset_to(shard, end + beyond, true);
                    self.settle();
                }
            }
            Op::Delete { force } => {
                if self.node.request(Request::Delete { force }).is_ok() {
                    self.forget_group();
                }
            }
            Op::DeleteStream => {
                self.node
                    .step(vec![Event::StreamDeleted { stream: STREAM }]);
                self.settle();
                assert!(self.held.is_empty());
                assert_eq!(self.node.coordinator.group_count(), 0);
                // Another one, which is told before anything else is of it.
                *self = Self::new();
            }
            Op::Load { seed } => {
                let loads = self.facts.keys();
                let loads = loads.map(|index| {
                    let dice = u64::from(seed).wrapping_mul(u64::from(*index) + 7) % 11;
                    (shard(*index), dice * dice * 20_000)
                });
                let loads = loads.collect();
                self.node.step(vec![Event::LoadObserved {
                    stream: STREAM,
                    loads,
                }]);
            }
            _ => unreachable!("an operation of a member"),
        }
        self.settle();
    }

    fn with(&mut self, member: u8, event: impl FnOnce(SessionId) -> Event) {
        if let Some((session, _)) = self.members.get(&member) {
            let event = event(*session);
            self.node.step(vec![event]);
        }
    }

    fn release(&mut self, member: u8, nth: u8) {
        let Some((session, _)) = self.members.get(&member).copied() else {
            return;
        };
        let held = self.held.get_mut(&session).unwrap();
        if held.is_empty() {
            return;
        }
        let at = usize::from(nth) % held.len();
        let (index, generation) = held.iter().nth(at).map(|(a, b)| (*a, *b)).unwrap();
        held.remove(&index);
        self.node.release(session, index, generation);
    }

    fn checkpoint(&mut self, shard: u32, back: u8, up: u8, plain: bool) {
        let now = self
            .checkpoints
            .get(&shard)
            .map_or(0, |at| at.next().value());
        let value = (now + u64::from(up % 4)).saturating_sub(u64::from(back));
        self.checkpoint_at(shard, at(value), plain);
    }

    /// By the rules as they are written, not as they are coded.
    fn checkpoint_at(&mut self, shard: u32, asked: Checkpoint, plain: bool) {
        if self.node.coordinator.describe(STREAM, &group()).is_none() {
            return;
        }
        let described = self.node.describe().shards;
        let described = described
            .iter()
            .find(|found| found.shard.value() == shard)
            .unwrap();
        let is_held = described.holder.is_some();
        let latest = described.generation.value();
        let generation = if plain { None } else { Some(latest) };
        let end = self.facts[&shard].end;
        let current = self.checkpoints.get(&shard).copied();
        let is_repeated = described.is_finished && current == Some(asked) && !plain;
        let may = if plain {
            !is_held
        } else {
            is_held && latest > 0
        };
        let fits = asked <= at(self.records[&shard].1);
        let begun = at(self.position(shard));
        let is_ahead = current.is_none_or(|current| current <= asked) && begun <= asked;
        let expected = is_repeated || (may && fits && is_ahead);
        let answer = self.node.checkpoint(shard, generation, asked);
        assert_eq!(answer.is_ok(), expected, "{answer:?}");
        if expected {
            self.checkpoints.insert(shard, asked);
            self.go_on(shard, asked.next().value());
            if end.is_some_and(|end| asked.next() >= end) {
                // The lease is over in good order, which the member knows.
                for held in self.held.values_mut() {
                    if held.get(&shard) == Some(&latest) {
                        held.remove(&shard);
                    }
                }
            }
        }
        if !plain && latest > 1 {
            // Nobody else's generation is ever good.
            self.settle();
            let stale = self.node.checkpoint(shard, Some(latest - 1), asked);
            assert!(stale.is_err());
        }
    }

    fn close(&mut self, parents: &[u32], children: u32) {
        if self.facts.len() > 12
            || parents
                .iter()
                .any(|parent| self.facts[parent].end.is_some())
        {
            return;
        }
        for parent in parents {
            let facts = self.facts.get_mut(parent).unwrap();
            facts.end = Some(number(self.records[parent].1));
        }
        for _ in 0..children {
            self.records.insert(self.next_shard, (0, 0));
            self.facts
                .insert(self.next_shard, open(self.next_shard, parents));
            self.next_shard += 1;
        }
        self.stand();
        self.tell_shards();
    }

    fn reset(&mut self, index: u32, to: u8, force: bool) {
        let end = self.records[&index].1;
        self.reset_to(index, u64::from(to) % (end + 1), force);
    }

    fn reset_to(&mut self, index: u32, to: u64, force: bool) {
        let fits = to <= self.records[&index].1;
        let to = at(to);
        let answer = self.node.request(Request::Reset(Reset {
            shards: vec![(shard(index), to)],
            force,
            dry_run: false,
        }));
        assert!(fits || answer.is_err(), "{answer:?}");
        if answer.is_ok() {
            self.begin();
            self.checkpoints.insert(index, to);
            self.go_on(index, to.next().value());
        }
    }

    /// The broker starts again, from what is durable alone.
    fn restart(&mut self) {
        let shards = self.facts.values().cloned().collect();
        self.node.restart(shards);
        self.members.clear();
        self.held.clear();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn whatever_happens_members_hold_what_they_were_told(ops in prop::collection::vec(op(), 1..60)) {
        let mut world = World::new();
        for op in &ops {
            world.run(op);
        }
    }
}
