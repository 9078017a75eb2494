//! The coordinator's decisions, event by event, and its log.

mod checkpoints;
mod expiry;
mod log;
mod members;
mod model;
mod resets;
mod shards;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flumen_record::{SequenceNumber, ShardIndex, StreamId, Timestamp};

use super::*;

const STREAM: StreamId = StreamId::new(7);
const TIMEOUT: Duration = Duration::from_secs(10);
const DRAIN: Duration = Duration::from_secs(30);

const FAR: SequenceNumber = SequenceNumber::new(1 << 41);

/// Where shards stand: from 0 to far away, unless it is said.
#[derive(Debug, Default)]
struct Bounds(Mutex<BTreeMap<(StreamId, ShardIndex), ShardBounds>>);

impl BoundsOf for Bounds {
    fn bounds(&self, stream: StreamId, shard: ShardIndex) -> Option<ShardBounds> {
        let known = self.0.lock().unwrap().get(&(stream, shard)).copied();
        Some(known.unwrap_or(ShardBounds {
            horizon: SequenceNumber::ZERO,
            end: FAR,
        }))
    }
}

/// A coordinator, the time, and what the last step told whom.
struct Node {
    bounds: Arc<Bounds>,
    coordinator: Coordinator,
    now: Duration,
    last_session: u64,
    last: Step,
    /// Everything ever granted, by (group, generation).
    granted: Vec<(GroupNumber, Generation)>,
    /// All changes so far, with when they were decided.
    history: Vec<(Timestamp, Vec<GroupChange>)>,
}

fn group() -> GroupName {
    "billing".parse().unwrap()
}

fn shard(index: u32) -> ShardIndex {
    ShardIndex::new(index)
}

fn number(value: u64) -> SequenceNumber {
    SequenceNumber::new(value)
}

fn at(value: u64) -> Checkpoint {
    Checkpoint::at(number(value))
}

fn generation(value: u64) -> Generation {
    Generation::new(value)
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn open(index: u32, parents: &[u32]) -> ShardFacts {
    ShardFacts {
        shard: shard(index),
        parents: parents.iter().copied().map(ShardIndex::new).collect(),
        end: None,
    }
}

fn closed(index: u32, parents: &[u32], end: u64) -> ShardFacts {
    ShardFacts {
        end: Some(number(end)),
        ..open(index, parents)
    }
}

impl Node {
    /// A node with one stream of so many open shards.
    fn new(shards: u32) -> Self {
        let mut node = Self {
            coordinator: Coordinator::new(GroupConfig::default()),
            bounds: Arc::default(),
            now: seconds(100),
            last_session: 0,
            last: Step::default(),
            granted: Vec::new(),
            history: Vec::new(),
        };
        node.coordinator = Coordinator::new(GroupConfig::default()).with_bounds(node.bounds());
        node.shards((0..shards).map(|index| open(index, &[])).collect());
        node
    }

    fn wall(&self) -> Timestamp {
        Timestamp::from_micros(1_000_000_000).saturating_add(self.now)
    }

    fn bounds(&self) -> Arc<dyn BoundsOf> {
        Arc::clone(&self.bounds) as Arc<dyn BoundsOf>
    }

    /// Records of a shard that can be read.
    fn stands(&self, index: u32, horizon: u64, end: u64) {
        let bounds = ShardBounds {
            horizon: number(horizon),
            end: number(end),
        };
        let mut known = self.bounds.0.lock().unwrap();
        known.insert((STREAM, shard(index)), bounds);
    }

    fn step(&mut self, events: Vec<Event>) -> &Step {
        let wall = self.wall();
        self.last = self.coordinator.step(self.now, wall, events);
        for change in &self.last.changes {
            if let GroupChange::Granted {
                group, generation, ..
            } = change
            {
                let mut before = self.granted.iter();
                assert!(
                    before.all(|(other, before)| other != group || before < generation),
                    "generation {generation} was granted before"
                );
                self.granted.push((*group, *generation));
            }
        }
        let (at, changes) = (self.last.at, self.last.changes.clone());
        self.history.push((at, changes));
        &self.last
    }

    /// Time passes, second by second; what is told on the way is `last`'s.
    fn wait(&mut self, time: Duration) {
        let until = self.now + time;
        let mut effects = Vec::new();
        while self.now < until {
            self.now = (self.now + seconds(1)).min(until);
            self.step(Vec::new());
            effects.append(&mut self.last.effects);
        }
        self.last.effects = effects;
    }

    /// As [`Node::wait`] while these sessions give signs of life.
    fn wait_alive(&mut self, time: Duration, alive: &[SessionId]) {
        let until = self.now + time;
        let mut effects = Vec::new();
        while self.now < until {
            self.now = (self.now + seconds(1)).min(until);
            let beats = alive.iter().map(|session| Event::Heartbeat {
                session: *session,
                beat: 0,
            });
            self.step(beats.collect());
            effects.append(&mut self.last.effects);
        }
        self.last.effects = effects;
    }

    fn shards(&mut self, shards: Vec<ShardFacts>) {
        self.step(vec![Event::ShardsChanged {
            stream: STREAM,
            shards,
        }]);
    }

    /// The broker starts again, from what is durable alone, and finds these shards.
    fn restart(&mut self, shards: Vec<ShardFacts>) {
        let mut state = state::State::default();
        for (at, changes) in &self.history {
            for change in changes {
                let mut bytes = Vec::new();
                change.encode(&mut bytes);
                let change = GroupChange::decode(&mut bytes.as_slice()).unwrap();
                state.apply(&change, *at).unwrap();
            }
        }
        self.now = seconds(100 + self.now.as_secs() % 50);
        let (config, wall) = (GroupConfig::default(), self.wall());
        self.coordinator =
            Coordinator::recover(config, state, wall, self.now).with_bounds(self.bounds());
        self.shards(shards);
    }

    fn join_as(&mut self, name: &str, instance: u64) -> SessionId {
        self.last_session += 1;
        let session = SessionId::new(self.last_session);
        self.step(vec![Event::Join(Join {
            session,
            stream: STREAM,
            group: group(),
            member: name.parse().unwrap(),
            instance: InstanceId::new(instance),
            session_timeout: None,
            start: InitialPosition::TrimHorizon,
            begins: None,
        })]);
        session
    }

    fn join(&mut self, name: &str) -> SessionId {
        self.join_as(name, 1)
    }

    fn checkpoint(
        &mut self,
        shard: u32,
        generation: Option<u64>,
        checkpoint: Checkpoint,
    ) -> Result<(), CheckpointError> {
        let item = CheckpointItem {
            shard: ShardIndex::new(shard),
            generation: generation.map(Generation::new),
            checkpoint,
            skipped: Vec::new(),
        };
        let request = Request::Checkpoint {
            session: None,
            items: vec![item],
        };
        match self.request(request).unwrap() {
            Answer::Checkpoints(answers) => answers.into_iter().next().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn request(&mut self, request: Request) -> Result<Answer, GroupError> {
        let id = RequestId(self.now.as_secs());
        self.step(vec![Event::Request {
            id,
            stream: STREAM,
            group: group(),
            request,
        }]);
        let mut answers = self.last.effects.iter().filter_map(|effect| match effect {
            Effect::Answered { id: found, answer } if *found == id => Some(answer.clone()),
            _ => None,
        });
        answers.next_back().expect("the request is answered")
    }

    fn release(&mut self, session: SessionId, shard: u32, generation: u64) {
        self.step(vec![Event::Release {
            session,
            leases: vec![(ShardIndex::new(shard), Generation::new(generation))],
        }]);
    }

    /// What the last step told, in short, answers to heartbeats and requests left out.
    fn told(&self) -> Vec<String> {
        let leases = |leases: &[Assignment]| {
            let leases = leases.iter();
            let leases = leases.map(|lease| format!("{}@{}", lease.shard, lease.generation));
            leases.collect::<Vec<_>>().join(" ")
        };
        let short = |effect: &Effect| match effect {
            Effect::Joined {
                session,
                leases: kept,
                ..
            } => Some(format!("{session} joined [{}]", leases(kept))),
            Effect::Refused { session, error } => Some(format!("{session} refused: {error}")),
            Effect::Assigned { session, lease } => Some(format!(
                "{session} assigned {}",
                leases(std::slice::from_ref(lease))
            )),
            Effect::Revoked {
                session,
                shard,
                generation,
                ..
            } => Some(format!("{session} revoked {shard}@{generation}")),
            Effect::Lost {
                session,
                shard,
                generation,
                reason,
            } => Some(format!("{session} lost {shard}@{generation} {reason:?}")),
            Effect::Fenced { session, reason } => Some(format!("{session} fenced {reason:?}")),
            Effect::Left { session } => Some(format!("{session} left")),
            Effect::HeartbeatAnswered { .. } | Effect::Answered { .. } => None,
        };
        self.last.effects.iter().filter_map(short).collect()
    }

    #[track_caller]
    fn check_told(&self, expected: &[&str]) {
        assert_eq!(self.told(), expected);
    }

    fn describe(&self) -> GroupDescription {
        self.coordinator.describe(STREAM, &group()).unwrap()
    }

    /// Who holds which shard under which generation: `a:1 -:0`.
    fn leases(&self) -> String {
        let shards = self.describe().shards;
        let lease = |shard: &ShardDescription| {
            let holder = shard.holder.as_ref().map_or("-", |holder| holder.as_str());
            format!("{holder}:{}", shard.generation)
        };
        shards.iter().map(lease).collect::<Vec<_>>().join(" ")
    }

    #[track_caller]
    fn check_leases(&self, expected: &str) {
        assert_eq!(self.leases(), expected);
    }
}
