//! Members of consumer groups: well-behaved ones, careless ones, and ones that talk nonsense.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::time::Duration;

use flumen_broker::{
    Broker, Checkpoint, Error, InitialPosition, JoinGroup, MemberLease, MemberWord, Membership,
    ReadBudget, SaveCheckpoint, StartPosition,
};
use flumen_record::{SequenceNumber, ShardIndex, StreamId, StreamName};
use flumen_world::{Clock, lock};

use crate::life::model::{GroupKey, Model};
use crate::life::reading::{self, Shared, Target};
use crate::random::Dice;

/// A heartbeat that is not answered for this long is one too many.
const MUTE_AFTER: Duration = Duration::from_secs(60);

/// How a member is.
#[derive(Debug, Clone)]
pub(crate) struct MemberPlan {
    pub(crate) stream: StreamName,
    pub(crate) id: StreamId,
    pub(crate) group: String,
    pub(crate) name: String,
    pub(crate) instance: u64,
    pub(crate) start: InitialPosition,
    /// How long it works.
    pub(crate) lives: Duration,
    /// It goes without a word at the end.
    pub(crate) dies: bool,
    /// It saves what makes no sense.
    pub(crate) talks_nonsense: bool,
}

/// A lease that it works on.
#[derive(Debug, Clone, Copy)]
struct Work {
    generation: u64,
    start: StartPosition,
    /// Where it goes on, once it has begun.
    next: Option<u64>,
    saved: Option<u64>,
    is_over: bool,
    ends_at: Option<u64>,
}

struct Member {
    broker: Broker,
    clock: Clock,
    shared: Shared,
    plan: MemberPlan,
    key: GroupKey,
    dice: Dice,
    work: BTreeMap<u32, Work>,
    beat: u64,
    /// The oldest heartbeat without an answer.
    unanswered: Option<Duration>,
    request: u64,
    /// Checkpoints on their way: shard and number of each.
    saving: BTreeMap<u64, Vec<(u32, u64)>>,
    is_over: bool,
}

/// Works as a member.
pub(crate) async fn work(
    broker: Broker,
    clock: Clock,
    shared: Shared,
    plan: MemberPlan,
    dice: Dice,
) {
    let (Ok(group), Ok(member)) = (plan.group.parse(), plan.name.parse()) else {
        return;
    };
    let timeout = Duration::from_secs(60);
    let join = JoinGroup {
        group,
        member,
        instance: plan.instance,
        session_timeout: Some(timeout),
        start: plan.start,
    };
    let joined = broker.join_group(&plan.stream, join).await;
    let mut membership = match joined {
        Ok(membership) => membership,
        Err(error) => {
            let mut model = lock(&shared);
            if !model.allows(&error) {
                model.check(Err(format!("{plan:?} was not let in: {error:?}")));
            }
            return;
        }
    };
    let key = (plan.id, plan.group.clone());
    let mut member = Member {
        broker,
        clock,
        shared,
        key,
        dice,
        plan,
        work: BTreeMap::new(),
        beat: 0,
        unanswered: None,
        request: 0,
        saving: BTreeMap::new(),
        is_over: false,
    };
    lock(&member.shared).count("members");
    member.run(&mut membership, timeout / 3).await;
}

impl Member {
    async fn run(&mut self, membership: &mut Membership, every: Duration) {
        let until = self.clock.monotonic() + self.plan.lives;
        while !self.is_over && self.clock.monotonic() < until {
            self.beat(membership);
            self.read_all(membership).await;
            let pause = Duration::from_secs(self.dice.between(1, every.as_secs()));
            let over = self.clock.monotonic() + pause;
            while !self.is_over {
                let left = over.saturating_sub(self.clock.monotonic());
                let word = poll_fn(|cx| membership.poll_word(cx));
                match self.clock.timeout(left, word).await {
                    Ok(word) => self.hear(membership, word),
                    Err(_) => break,
                }
            }
        }
        if self.is_over || self.plan.dies {
            return;
        }
        self.save_all(membership);
        let _ = membership.leave();
        let patience = self.clock.monotonic() + MUTE_AFTER;
        while !self.is_over {
            let left = patience.saturating_sub(self.clock.monotonic());
            let word = poll_fn(|cx| membership.poll_word(cx));
            let Ok(word) = self.clock.timeout(left, word).await else {
                return self.mute("leaving");
            };
            self.hear(membership, word);
        }
    }

    fn mute(&self, what: &str) {
        let mut model = lock(&self.shared);
        if !model.is_failing && !model.is_ending {
            let plan = &self.plan;
            model.check(Err(format!("{what} of {plan:?} is not answered")));
        }
    }

    fn beat(&mut self, membership: &Membership) {
        let now = self.clock.monotonic();
        if self
            .unanswered
            .is_some_and(|since| now.saturating_sub(since) > MUTE_AFTER)
        {
            self.mute("a heartbeat");
            self.is_over = true;
        }
        self.beat += 1;
        if membership.heartbeat(self.beat).is_ok() {
            self.unanswered.get_or_insert(now);
        }
    }

    fn hear(&mut self, membership: &mut Membership, word: MemberWord) {
        match word {
            MemberWord::Joined { kept, .. } => {
                for lease in kept {
                    self.take(&lease, true);
                }
            }
            MemberWord::Heartbeat(_) => self.unanswered = None,
            MemberWord::Assigned(lease) => self.take(&lease, false),
            MemberWord::Revoked {
                shard, generation, ..
            } => {
                self.save(membership, shard.value(), None);
                self.work.remove(&shard.value());
                let _ = membership.release(vec![(shard, generation)]);
            }
            MemberWord::Lost {
                shard, generation, ..
            } => {
                let over = self.work.get(&shard.value());
                if over.is_some_and(|work| work.generation == generation) {
                    self.work.remove(&shard.value());
                }
            }
            MemberWord::Saved { request, outcomes } => {
                let saving = self.saving.remove(&request).unwrap_or_default();
                for ((shard, next), saved) in saving.into_iter().zip(outcomes) {
                    self.saved(shard, next, &saved.outcome);
                }
            }
            MemberWord::Left => self.is_over = true,
            MemberWord::Ended(error) => {
                self.is_over = true;
                let mut model = lock(&self.shared);
                model.say(|| format!("member {} is ended: {error}", self.plan.name));
                let legal = matches!(
                    error,
                    Error::MemberReplaced | Error::MemberExpired | Error::GroupNotFound { .. }
                ) || model.allows(&error)
                    || matches!(error, Error::StreamNotFound { .. });
                if !legal {
                    let plan = &self.plan;
                    model.check(Err(format!("{plan:?} is ended: {error:?}")));
                }
            }
        }
    }

    fn take(&mut self, lease: &MemberLease, kept: bool) {
        let mut model = lock(&self.shared);
        model.count("leases");
        model.say(|| {
            let (name, shard) = (&self.plan.name, lease.shard);
            let (generation, start) = (lease.generation, lease.start);
            format!("member {name} has shard {shard} under {generation} from {start:?}")
        });
        let checked = model.leased(&self.key, lease, kept);
        model.check(checked);
        let work = Work {
            generation: lease.generation,
            start: lease.start,
            next: None,
            saved: None,
            is_over: false,
            ends_at: None,
        };
        self.work.insert(lease.shard.value(), work);
    }

    async fn read_all(&mut self, membership: &mut Membership) {
        for shard in self.work.keys().copied().collect::<Vec<_>>() {
            for _ in 0..4 {
                if !self.read_on(shard).await {
                    break;
                }
            }
            if self.dice.once_in(2) {
                self.save(membership, shard, None);
            }
            if self.plan.talks_nonsense && self.dice.once_in(3) {
                let beyond = self.dice.between(1, 1 << 20);
                self.save(membership, shard, Some(beyond));
            }
        }
    }

    /// Reads a piece of a shard; whether there may be more.
    async fn read_on(&mut self, shard: u32) -> bool {
        let Some(work) = self.work.get(&shard).copied().filter(|it| !it.is_over) else {
            return false;
        };
        let Ok(group) = self.plan.group.parse() else {
            return false;
        };
        let index = ShardIndex::new(shard);
        let guard = self
            .broker
            .lease(&self.plan.stream, &group, index, work.generation);
        let Ok(guard) = guard else {
            return false;
        };
        let target = Target {
            stream: self.plan.stream.clone(),
            id: self.plan.id,
            shard,
        };
        let start = match work.next {
            Some(next) => StartPosition::At(SequenceNumber::new(next)),
            None => work.start,
        };
        let budget = ReadBudget {
            bytes: 64 << 10,
            records: 1_000,
        };
        let seen = reading::read(
            &self.broker,
            &self.shared,
            &target,
            start,
            budget,
            Duration::ZERO,
        )
        .await;
        if guard.check().is_err() {
            return false;
        }
        let Some(seen) = seen else {
            self.skip(&target);
            return false;
        };
        let mut model = lock(&self.shared);
        let begun = model.begins(&self.key, shard, seen.start);
        model.check(begun);
        model.processed(&self.key, shard, seen.next);
        drop(model);
        let Some(work) = self.work.get_mut(&shard) else {
            return false;
        };
        let moved = work.next != Some(seen.next);
        work.next = Some(seen.next);
        if seen.end_of_shard.is_some() {
            work.is_over = true;
            work.ends_at = Some(seen.next);
        }
        moved && !work.is_over
    }

    /// What has expired or is damaged is skipped, as the client does.
    fn skip(&mut self, target: &Target) {
        let to = {
            let model = lock(&self.shared);
            let stream = model.streams.get(&target.id);
            let known = stream.and_then(|it| it.shards.get(&target.shard));
            known.map(|it| {
                let damage = it.damage.last().map_or(0, |(_, to)| *to);
                it.horizon.max(damage)
            })
        };
        if let (Some(to), Some(work)) = (to, self.work.get_mut(&target.shard))
            && work.next.is_none_or(|next| next < to)
        {
            work.next = Some(to);
            work.start = StartPosition::At(SequenceNumber::new(to));
        }
    }

    fn save_all(&mut self, membership: &mut Membership) {
        for shard in self.work.keys().copied().collect::<Vec<_>>() {
            self.save(membership, shard, None);
        }
    }

    /// Saves how far a shard is processed, or so much more.
    fn save(&mut self, membership: &mut Membership, shard: u32, beyond: Option<u64>) {
        let Some(work) = self.work.get(&shard).copied() else {
            return;
        };
        let Some(next) = work.next else { return };
        if beyond.is_none() && work.saved == Some(next) {
            return;
        }
        let at = next + beyond.unwrap_or(0);
        let checkpoint = match (beyond, work.ends_at) {
            (None, Some(_)) => None,
            _ => Some(Checkpoint::at(SequenceNumber::new(at))),
        };
        self.request += 1;
        let item = SaveCheckpoint {
            shard: ShardIndex::new(shard),
            generation: work.generation,
            checkpoint,
            skipped: Vec::new(),
        };
        if beyond.is_none() {
            lock(&self.shared).saving(&self.key, shard, at);
        }
        match membership.save(self.request, vec![item]) {
            Ok(()) => {
                self.saving.insert(self.request, vec![(shard, at)]);
                if let (Some(work), None) = (self.work.get_mut(&shard), beyond) {
                    work.saved = Some(next);
                }
            }
            Err(error) => {
                let mut model = lock(&self.shared);
                let legal = model.allows(&error)
                    || matches!(
                        error,
                        Error::StreamNotFound { .. } | Error::ShardNotFound { .. }
                    );
                if !legal {
                    model.check(Err(format!("a checkpoint was refused: {error:?}")));
                }
            }
        }
    }

    fn saved(&mut self, shard: u32, next: u64, outcome: &Result<(), Error>) {
        let mut model = lock(&self.shared);
        model.count("checkpoints");
        model.say(|| {
            let name = &self.plan.name;
            let told = outcome
                .as_ref()
                .map_or_else(|error| error.reason(), |()| "saved");
            format!("member {name} shard {shard} up to {next}: {told}")
        });
        let checked = match outcome {
            Ok(()) => {
                let wrong = model.is_beyond(&self.key, shard, next);
                model.saved(&self.key, shard, next).and(wrong)
            }
            Err(Error::Checkpoint(_) | Error::StaleLease { .. }) => Ok(()),
            Err(error) => {
                let legal = model.allows(error)
                    || matches!(
                        error,
                        Error::GroupNotFound { .. }
                            | Error::MemberExpired
                            | Error::MemberReplaced
                            | Error::StreamNotFound { .. }
                            | Error::GroupBeyondEnd(_)
                    );
                if legal {
                    Ok(())
                } else {
                    Err(format!(
                        "a checkpoint of {:?} was refused: {error:?}",
                        self.plan
                    ))
                }
            }
        };
        model.check(checked);
    }
}

impl Model {
    /// Whether a checkpoint lies beyond anything that was ever there.
    fn is_beyond(&self, key: &GroupKey, shard: u32, next: u64) -> Result<(), String> {
        let Some(stream) = self.streams.get(&key.0) else {
            return Ok(());
        };
        let Some(known) = stream.shards.get(&shard) else {
            return Ok(());
        };
        // Records that nobody was told of may lie behind.
        let unsure = self.records.iter().filter(|record| {
            record.stream == key.0 && record.place.is_none() && record.may_exist()
        });
        let last = known
            .numbers
            .last_key_value()
            .map_or(0, |(last, _)| last + 1);
        let end = last.max(known.end).max(known.horizon) + unsure.count() as u64;
        if next > end && !stream.may_jump {
            return Err(format!(
                "group {key:?} took a checkpoint at {next} of shard {shard}, which ends at {end}"
            ));
        }
        Ok(())
    }
}
