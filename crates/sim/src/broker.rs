//! The broker: the real coordinator and its real log, sessions, crashes and restarts.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flumen_log::{Grain, MemoryStorage, Storage};
use flumen_record::{SequenceNumber, ShardIndex, StreamId, Timestamp};
use flumen_stream::group::{
    BoundsOf, Coordinator, Effect, Event, GroupChange, GroupConfig, GroupLog, SessionId,
    ShardBounds, Step,
};

use crate::random::{Dice, place};
use crate::world::{Broken, STREAM, TIMEOUT};

/// What a new process finds on its monotonic clock: anything but zero.
const CLOCK_AT_BOOT: u64 = 5_000_000;

/// One session and what is under way on it, each way in order.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) member: usize,
    pub(crate) up: VecDeque<(u64, Event)>,
    pub(crate) down: VecDeque<(u64, Effect)>,
    /// The member has closed it; the broker notices then.
    pub(crate) broker_notices: Option<u64>,
    /// The broker is gone; the member notices then.
    pub(crate) member_notices: Option<u64>,
}

/// How a step ended.
pub(crate) enum Outcome {
    /// Durable; the effects are to be sent.
    Told(Step),
    /// The broker crashed. Whether the changes are durable is seen when it opens again.
    Crashed(Step),
}

/// Where shards stand, as the coordinator is told when it asks.
#[derive(Debug, Default)]
struct Bounds(Mutex<BTreeMap<ShardIndex, ShardBounds>>);

impl BoundsOf for Bounds {
    fn bounds(&self, _: StreamId, shard: ShardIndex) -> Option<ShardBounds> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&shard).copied()
    }
}

#[derive(Debug)]
struct Running {
    log: GroupLog,
    coordinator: Coordinator,
    booted_at: u64,
}

#[derive(Debug)]
pub(crate) struct Broker {
    storage: MemoryStorage,
    bounds: Arc<Bounds>,
    running: Option<Running>,
    pub(crate) up_at: u64,
    pub(crate) restarts: u64,
    pub(crate) links: BTreeMap<SessionId, Link>,
    next_session: u64,
    records: u64,
    /// A step that was being written when the broker crashed.
    uncertain: Option<Step>,
    broken: Option<Broken>,
}

impl Broker {
    pub(crate) fn new(broken: Option<Broken>) -> Self {
        Self {
            storage: MemoryStorage::new(),
            bounds: Arc::default(),
            running: None,
            up_at: 0,
            restarts: 0,
            links: BTreeMap::new(),
            next_session: 0,
            records: 0,
            uncertain: None,
            broken,
        }
    }

    pub(crate) fn coordinator(&self) -> Option<&Coordinator> {
        self.running.as_ref().map(|running| &running.coordinator)
    }

    /// Shards stand like that from now on.
    pub(crate) fn stand(&self, mut bounds: BTreeMap<ShardIndex, ShardBounds>) {
        for bounds in bounds.values_mut() {
            match self.broken {
                Some(Broken::TakesNonsense) => bounds.end = SequenceNumber::MAX,
                Some(Broken::ForgetsHorizon) => bounds.horizon = SequenceNumber::ZERO,
                _ => {}
            }
        }
        *self.bounds.0.lock().unwrap_or_else(PoisonError::into_inner) = bounds;
    }

    /// When the process that runs began.
    pub(crate) fn booted_at(&self) -> Option<u64> {
        self.running.as_ref().map(|running| running.booted_at)
    }

    /// Opens again. Hands out a step that was in doubt and turns out to be durable.
    pub(crate) fn open(&mut self, now: u64, wall: Timestamp) -> Result<Option<Step>, String> {
        let config = GroupConfig {
            session_timeout_ms: TIMEOUT,
            drain_deadline_ms: 6_000,
            snapshot_bytes_min: 3_000,
            snapshot_growth: 1,
            snapshot_piece_bytes: 150,
            ..GroupConfig::default()
        };
        let storage: Arc<dyn Storage> = Arc::new(self.storage.clone());
        let (log, coordinator, _) =
            GroupLog::open(storage, config, wall, Duration::from_millis(CLOCK_AT_BOOT))
                .map_err(|error| format!("the groups' log does not open: {error}"))?;
        let uncertain = self.uncertain.take();
        let settled = uncertain.filter(|_| log.records() > self.records);
        self.records = log.records();
        let bounds = Arc::clone(&self.bounds) as Arc<dyn BoundsOf>;
        self.running = Some(Running {
            log,
            coordinator: coordinator.with_bounds(bounds),
            booted_at: now,
        });
        Ok(settled)
    }

    pub(crate) fn connect(&mut self, member: usize) -> Option<SessionId> {
        self.running.as_ref()?;
        self.next_session += 1;
        let session = SessionId::new(self.next_session);
        let link = Link {
            member,
            up: VecDeque::new(),
            down: VecDeque::new(),
            broker_notices: None,
            member_notices: None,
        };
        self.links.insert(session, link);
        Some(session)
    }

    /// Whether there is something to do.
    pub(crate) fn is_due(&self, now: u64) -> bool {
        let deadline = self.running.as_ref().and_then(|running| {
            let deadline = running.coordinator.next_deadline()?;
            let deadline = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
            Some((running.booted_at + deadline).saturating_sub(CLOCK_AT_BOOT))
        });
        deadline.is_some_and(|deadline| deadline <= now)
    }

    /// One step and its commit. `crash` is how it ends, if not well.
    pub(crate) fn step(
        &mut self,
        now: u64,
        wall: Timestamp,
        events: Vec<Event>,
        crash: Option<u64>,
        dice: &mut Dice,
    ) -> Result<Option<Outcome>, String> {
        let Some(running) = &mut self.running else {
            return Ok(None);
        };
        let monotonic = Duration::from_millis(CLOCK_AT_BOOT + now - running.booted_at);
        let mut step = running.coordinator.step(monotonic, wall, events);
        match crash {
            // Before anything was written.
            Some(0) => {
                let told = self.broken == Some(Broken::TellsBeforeDurable);
                self.crash(now, dice);
                return Ok(Some(if told {
                    Outcome::Told(step)
                } else {
                    Outcome::Crashed(Step::default())
                }));
            }
            // In the middle of it.
            Some(1) => self.storage.crash_after(dice.between(1, 3)),
            _ => {}
        }
        let kept = step.changes.clone();
        if self.broken == Some(Broken::ForgetsCheckpoints) {
            let is_kept =
                |change: &GroupChange| !matches!(change, GroupChange::Checkpointed { .. });
            step.changes.retain(is_kept);
        }
        if self.broken == Some(Broken::ForgetsGone) {
            for change in &mut step.changes {
                if let GroupChange::ShardExpired { unread, .. } = change {
                    *unread = Some(0);
                }
            }
        }
        let committed = running.log.commit(&step, &running.coordinator, wall);
        step.changes = kept;
        if let Err(error) = committed {
            if !self.storage.is_dead() {
                return Err(format!("a commit failed: {error}"));
            }
            self.uncertain = Some(step);
            self.crash(now, dice);
            return Ok(Some(Outcome::Crashed(Step::default())));
        }
        self.records = running.log.records();
        if crash.is_some() {
            // Written, and nobody was told.
            self.crash(now, dice);
            return Ok(Some(Outcome::Crashed(step)));
        }
        Ok(Some(Outcome::Told(step)))
    }

    fn crash(&mut self, now: u64, dice: &mut Dice) {
        self.running = None;
        self.storage = if dice.once_in(2) {
            self.storage.kill()
        } else {
            self.storage.crash_seeded(Grain::Sector, dice.next())
        };
        self.restarts += 1;
        self.up_at = now + dice.between(10, 4_000);
        for link in self.links.values_mut() {
            link.up.clear();
            let arrived = place(dice.below(link.down.len() as u64 + 1));
            link.down.truncate(arrived);
            link.member_notices = Some(now + dice.between(1, 2_500));
        }
        self.links
            .retain(|_, link| link.broker_notices.is_none() || !link.down.is_empty());
    }

    /// What has arrived by now. Events of one session are in order.
    pub(crate) fn arrived(&mut self, now: u64) -> Vec<(usize, Event)> {
        let mut arrived = Vec::new();
        let mut lost = Vec::new();
        for (session, link) in &mut self.links {
            while link.up.front().is_some_and(|(at, _)| *at <= now) {
                let event = link.up.pop_front();
                arrived.extend(event.map(|(_, event)| (link.member, event)));
            }
            if link.broker_notices.is_some_and(|at| at <= now) {
                lost.push(*session);
            }
        }
        for session in lost {
            if let Some(link) = self.links.remove(&session) {
                arrived.push((link.member, Event::SessionLost { session }));
            }
        }
        arrived
    }

    /// Sends effects on their way.
    pub(crate) fn send(&mut self, now: u64, session: SessionId, effect: Effect, dice: &mut Dice) {
        if let Some(link) = self.links.get_mut(&session) {
            let after = link.down.back().map_or(0, |(at, _)| *at);
            let at = after.max(now + delay(dice));
            link.down.push_back((at, effect));
        }
    }
}

/// How long a message is under way.
pub(crate) fn delay(dice: &mut Dice) -> u64 {
    if dice.once_in(60) {
        dice.between(100, 1_500)
    } else {
        dice.between(1, 25)
    }
}

/// The session an effect goes to.
pub(crate) fn session_of(effect: &Effect) -> Option<SessionId> {
    match effect {
        Effect::Joined { session, .. }
        | Effect::Refused { session, .. }
        | Effect::HeartbeatAnswered { session, .. }
        | Effect::Assigned { session, .. }
        | Effect::Revoked { session, .. }
        | Effect::Lost { session, .. }
        | Effect::Fenced { session, .. }
        | Effect::Left { session } => Some(*session),
        Effect::Answered { .. } => None,
    }
}

/// What the broker is told of the shards.
pub(crate) fn shards(stream: &crate::stream::Stream, broken: Option<Broken>) -> Event {
    let mut shards = stream.facts();
    if broken == Some(Broken::ForgetsParents) {
        for shard in &mut shards {
            shard.parents.clear();
        }
    }
    Event::ShardsChanged {
        stream: STREAM,
        shards,
    }
}
