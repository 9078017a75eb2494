//! What is done to the node, drawn by weight.

use std::sync::Arc;
use std::time::Duration;

use flumen_broker::{
    BrokerConfig, NewStream, ReadBudget, Reshard, StartPosition, StreamSettings, StreamUpdate,
};
use flumen_record::{Durability, HashRange, SequenceNumber, ShardIndex, StreamName, Timestamp};
use flumen_world::lock;

use super::admin::{self, Asked};
use super::faults::{self, End};
use super::model::StreamModel;
use super::producer::{self, Producer, Session};
use super::reading::{self, Target};
use super::{DAY, Life};
use crate::random::{Dice, place};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const HOUR: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);
const PRODUCERS: u32 = 6;

/// Settings of a node with small files, so that they come and go.
pub(super) fn settings(dice: &mut Dice) -> BrokerConfig {
    let mut config = BrokerConfig::default();
    let log = &mut config.log;
    log.segment_bytes_min = 64 << 10 << dice.below(2);
    log.segment_bytes_max = log.segment_bytes_min << dice.below(3);
    log.segment_runs_max = dice.pick([16, 64, 1 << 18]);
    log.free_space_floor_bytes = Some(256 << 10);
    log.hot_window_bytes = dice.pick([0, 32 << 10, 1 << 20]);
    log.snapshot_seals = u32::try_from(dice.between(1, 6)).unwrap_or(1);
    log.snapshot_interval_ms = dice.pick([5_000, 30_000, 600_000]);
    config.retention_interval_ms = dice.pick([60_000, 300_000, 900_000]);
    config.round_bytes_max = dice.pick([8 << 10, 4 << 20]);
    config.reply_bytes_max = dice.pick([4 << 10, 64 << 10, 4 << 20]);
    config.stream.batches_per_producer = dice.pick([8, 64]);
    config.stream.producer_id_block = dice.pick([1, 16]);
    config.stream.catalog_snapshot_records = dice.pick([4, 64]);
    config.lanes_per_class = dice.pick([1, 1, 2]);
    config
}

#[derive(Debug, Clone, Copy)]
enum Operation {
    Produce,
    Put,
    Read,
    Create,
    Delete,
    Update,
    Reshard,
    Scale,
    Look,
    Retention,
    Join,
    Groups,
    ResetGroup,
    DeleteGroup,
    Deliver,
    Touch,
    Undeliver,
    End(End),
    EndSoon(End),
    Wall,
    Full,
    Fail,
    Rot,
    RotTail,
}

/// Kinds of operations by name.
#[expect(clippy::indexing_slicing, reason = "a wrong index does not compile")]
pub const KINDS: [&str; 30] = {
    let mut names = [""; 30];
    let mut at = 0;
    while at < names.len() {
        names[at] = WEIGHTS[at].0;
        at += 1;
    }
    names
};

/// How often each is drawn.
const WEIGHTS: [(&str, Operation, u64); 30] = [
    ("produce", Operation::Produce, 340),
    ("put", Operation::Put, 120),
    ("read", Operation::Read, 200),
    ("create", Operation::Create, 20),
    ("delete", Operation::Delete, 6),
    ("update", Operation::Update, 40),
    ("reshard", Operation::Reshard, 20),
    ("scale", Operation::Scale, 4),
    ("look", Operation::Look, 20),
    ("retention", Operation::Retention, 20),
    ("join", Operation::Join, 60),
    ("groups", Operation::Groups, 15),
    ("reset", Operation::ResetGroup, 5),
    ("delete-group", Operation::DeleteGroup, 3),
    ("deliver", Operation::Deliver, 10),
    ("touch", Operation::Touch, 10),
    ("undeliver", Operation::Undeliver, 2),
    ("shutdown", Operation::End(End::Shutdown), 8),
    ("kill", Operation::End(End::Kill), 10),
    ("cut", Operation::End(End::Cut), 8),
    ("kill-soon", Operation::EndSoon(End::Kill), 6),
    ("cut-soon", Operation::EndSoon(End::Cut), 12),
    ("wall", Operation::Wall, 6),
    ("full", Operation::Full, 3),
    ("fail", Operation::Fail, 3),
    ("rot", Operation::Rot, 1),
    ("rot-tail", Operation::RotTail, 2),
    // Parts of others, that can be left out by themselves.
    ("nonsense", Operation::Join, 0),
    ("time", Operation::Read, 0),
    ("downtime", Operation::End(End::Shutdown), 0),
];

fn draw(dice: &mut Dice) -> (usize, Operation) {
    let total: u64 = WEIGHTS.iter().map(|(_, _, weight)| weight).sum();
    let mut left = dice.below(total);
    for (at, (_, operation, weight)) in WEIGHTS.into_iter().enumerate() {
        if left < weight {
            return (at, operation);
        }
        left -= weight;
    }
    (0, Operation::Look)
}

impl Life {
    /// One operation, and some time.
    pub(super) fn operate(&mut self) -> Result<(), String> {
        let (kind, operation) = draw(&mut self.dice);
        if !self.is_left_out(kind) {
            self.carry_out(operation)?;
        }
        let time = self.some_time();
        self.pass(time)?;
        self.end_troubles()
    }

    fn carry_out(&mut self, operation: Operation) -> Result<(), String> {
        match operation {
            Operation::Produce => {
                let at = place(self.dice.below(u64::from(PRODUCERS)));
                let batches = self.dice.between(1, 6);
                self.produce(at, batches)?;
            }
            Operation::Put => self.put()?,
            Operation::Read => self.read()?,
            Operation::Create => self.create()?,
            Operation::Delete => {
                self.change(|_, stream| Some(Asked::Delete(stream.name.clone())))?
            }
            Operation::Update => self.change(|dice, stream| Some(update(dice, stream)))?,
            Operation::Reshard => self.change(reshard)?,
            Operation::Scale => self.change(|dice, stream| {
                let shards = u32::try_from(dice.between(1, 4)).unwrap_or(1);
                Some(Asked::Scale(stream.name.clone(), shards))
            })?,
            Operation::Look => self.look()?,
            Operation::Retention => {
                let broker = self.broker()?;
                let applied = async move { broker.apply_retention().await };
                let applied = self.wait("retention", applied)?;
                if let Err(error) = applied {
                    let model = lock(&self.shared);
                    if !model.allows(&error) && !model.is_damaged {
                        return Err(format!("retention fails: {error:?}"));
                    }
                }
            }
            Operation::Join => self.join()?,
            Operation::Groups => self.look_at_groups()?,
            Operation::ResetGroup => self.reset_group()?,
            Operation::DeleteGroup => self.delete_group()?,
            Operation::Deliver => self.create_delivery()?,
            Operation::Touch => self.touch_delivery()?,
            Operation::Undeliver => self.delete_delivery()?,
            Operation::End(end) => self.again(end)?,
            Operation::EndSoon(end) => self.end_soon(end)?,
            Operation::Wall => self.step_wall(),
            Operation::Full => self.fill(),
            Operation::Fail => self.fail(),
            Operation::Rot => self.rot()?,
            Operation::RotTail => self.rot_tail()?,
        }
        Ok(())
    }

    fn is_left_out(&self, kind: usize) -> bool {
        self.options.without >> kind & 1 == 1
    }

    /// Whether a kind of operation is left out.
    pub(super) fn leaves_out(&self, kind: &str) -> bool {
        let at = KINDS.iter().position(|it| *it == kind);
        at.is_some_and(|at| self.is_left_out(at))
    }

    /// Mostly little, sometimes days.
    fn some_time(&mut self) -> Duration {
        let dice = &mut self.dice;
        match dice.below(100) {
            0..20 => Duration::ZERO,
            20..50 => Duration::from_millis(dice.below(2_000)),
            50..72 => Duration::from_secs(dice.below(300)),
            72..96 => MINUTE * u32::try_from(dice.between(5, 180)).unwrap_or(5),
            _ => HOUR * u32::try_from(dice.between(3, 48)).unwrap_or(3),
        }
    }

    pub(super) fn some_stream(&mut self) -> Option<(StreamName, flumen_record::StreamId)> {
        let model = lock(&self.shared);
        let at = place(self.dice.below(model.names.len() as u64));
        let (name, id) = model.names.iter().nth(at)?;
        Some((name.clone(), *id))
    }

    fn some_name(&mut self) -> Option<StreamName> {
        NAMES
            .get(place(self.dice.below(NAMES.len() as u64)))?
            .parse()
            .ok()
    }

    /// A session of a producer, unless it has one.
    pub(super) fn produce(&mut self, at: usize, batches: u64) -> Result<(), String> {
        while self.producers.len() <= at {
            let name = u32::try_from(self.producers.len()).unwrap_or(0);
            let stream = NAMES.get(self.producers.len() % NAMES.len());
            let Some(Ok(stream)) = stream.map(|name| name.parse()) else {
                return Ok(());
            };
            let dice = Dice::new(self.dice.next());
            self.producers.push(Producer::new(name, stream, dice));
        }
        let Some(producer) = self.producers.get(at).cloned() else {
            return Ok(());
        };
        {
            let mut producer = lock(&producer);
            let known = lock(&self.shared).names.contains_key(producer.stream());
            if producer.is_busy || !known {
                return Ok(());
            }
            producer.is_busy = true;
        }
        let session = Session {
            batches,
            loses_acks: batches > 0 && self.dice.once_in(12),
            data_max: self.dice.pick([64, 700, 6_000]),
        };
        let clock = self.driver.clock().clone();
        let (broker, shared) = (self.broker()?, Arc::clone(&self.shared));
        self.driver.spawn(
            "producer",
            producer::produce(broker, clock, shared, producer, session),
        );
        Ok(())
    }

    fn put(&mut self) -> Result<(), String> {
        let Some((name, _)) = self.some_stream() else {
            return Ok(());
        };
        let (broker, shared) = (self.broker()?, Arc::clone(&self.shared));
        let dice = Dice::new(self.dice.next());
        let count = self.dice.between(1, 8);
        let data_max = self.dice.pick([64, 3_000]);
        self.driver.spawn(
            "put",
            producer::put(broker, shared, name, dice, count, data_max),
        );
        Ok(())
    }

    fn read(&mut self) -> Result<(), String> {
        let Some((stream, id)) = self.some_stream() else {
            return Ok(());
        };
        let (target, start) = {
            let model = lock(&self.shared);
            let Some(known) = model.streams.get(&id) else {
                return Ok(());
            };
            let shards: Vec<u32> = {
                let there = known.shards.iter().filter(|(_, it)| !it.is_dropped);
                there.map(|(index, _)| *index).collect()
            };
            let at = place(self.dice.below(shards.len() as u64));
            let Some(shard) = shards.get(at).copied() else {
                return Ok(());
            };
            let start = start_in(&mut self.dice, known, shard, model.now);
            let start = match start {
                StartPosition::AtTimestamp(_) if self.leaves_out("time") => StartPosition::Latest,
                start => start,
            };
            (Target { stream, id, shard }, start)
        };
        let budget = ReadBudget {
            bytes: self.dice.pick([1, 2_000, 1 << 20]),
            records: self.dice.pick([1, 10, 10_000]),
        };
        let wait = match self.dice.below(4) {
            0 => Duration::from_secs(self.dice.below(40)),
            _ => Duration::ZERO,
        };
        let (broker, shared) = (self.broker()?, Arc::clone(&self.shared));
        self.driver.spawn("read", async move {
            reading::read(&broker, &shared, &target, start, budget, wait).await;
        });
        Ok(())
    }

    pub(super) fn create(&mut self) -> Result<(), String> {
        let Some(name) = self.some_name() else {
            return Ok(());
        };
        if admin::is_changing(&lock(&self.shared), &name) {
            return Ok(());
        }
        let dice = &mut self.dice;
        let settings = StreamSettings {
            durability: some_level(dice),
            retention: some_retention(dice),
            retention_bytes: some_bound(dice),
            ..StreamSettings::default()
        };
        let new = NewStream {
            name,
            shards: u32::try_from(dice.between(1, 3)).unwrap_or(1),
            settings,
        };
        self.ask(Asked::Create(new))
    }

    /// A change of a stream that no other change is under way for.
    fn change(
        &mut self,
        asked: impl Fn(&mut Dice, &StreamModel) -> Option<Asked>,
    ) -> Result<(), String> {
        let Some((name, _)) = self.some_stream() else {
            return Ok(());
        };
        let asked = {
            let model = lock(&self.shared);
            if admin::is_changing(&model, &name) {
                return Ok(());
            }
            model.stream(&name).and_then(|it| asked(&mut self.dice, it))
        };
        asked.map_or(Ok(()), |asked| self.ask(asked))
    }

    fn ask(&mut self, asked: Asked) -> Result<(), String> {
        let (broker, shared) = (self.broker()?, Arc::clone(&self.shared));
        admin::begin(&mut lock(&shared), &asked);
        self.driver
            .spawn("change", admin::ask(broker, shared, asked));
        Ok(())
    }

    /// Describes a stream that nobody changes, and compares.
    fn look(&mut self) -> Result<(), String> {
        let Some((name, _)) = self.some_stream() else {
            return Ok(());
        };
        let broker = self.broker()?;
        let mut model = lock(&self.shared);
        if admin::is_changing(&model, &name) {
            return Ok(());
        }
        match broker.describe_stream(&name) {
            Ok(described) => model.see_stream(&described),
            Err(error) => Err(format!("{name} is not described: {error:?}")),
        }
    }

    /// The node ends and starts again, now or after a while.
    fn again(&mut self, end: End) -> Result<(), String> {
        self.end(end)?;
        if self.dice.once_in(4) && !self.leaves_out("downtime") {
            let time = self.some_time();
            self.stand_still(time);
            self.tick()?;
        }
        if self.dice.once_in(5) {
            self.config = settings(&mut self.dice);
        }
        self.start()
    }

    /// It ends in the middle of what it does.
    fn end_soon(&mut self, end: End) -> Result<(), String> {
        for _ in 0..self.dice.below(4) {
            let at = place(self.dice.below(u64::from(PRODUCERS)));
            self.produce(at, 3)?;
        }
        if self.dice.once_in(3) {
            self.change(|dice, stream| Some(update(dice, stream)))?;
        }
        if self.dice.once_in(4) {
            self.change(reshard)?;
        }
        if end == End::Cut {
            lock(&self.shared).is_dying = true;
            self.storage.crash_after(self.dice.between(1, 60));
        }
        let steps = match self.dice.below(3) {
            0 => self.dice.below(30),
            1 => self.dice.below(300),
            _ => self.dice.below(3_000),
        };
        self.driver.some(steps, Duration::from_secs(20))?;
        // A process whose disk is gone says all sorts of things.
        if !self.storage.is_dead() {
            self.tick()?;
        }
        self.again(end)
    }

    /// The wall clock is set wrong, or a little otherwise.
    fn step_wall(&mut self) {
        let dice = &mut self.dice;
        let minutes = i64::try_from(dice.below(9)).unwrap_or(0) - 4;
        let mut micros = minutes * 60_000_000;
        if dice.once_in(2) {
            let days = i64::try_from(dice.between(1, 40)).unwrap_or(1);
            let sign = if dice.once_in(2) { -1 } else { 1 };
            micros = sign * days * 86_400_000_000;
            let hours = u32::try_from(dice.between(1, 20)).unwrap_or(1);
            self.wrong_until = Some(self.now() + HOUR * hours);
        }
        self.set_wall(micros);
    }

    pub(super) fn set_wall(&mut self, offset: i64) {
        let now = self.now();
        let mut model = lock(&self.shared);
        model.say(|| format!("the wall clock is {offset} us beside the time"));
        model.count("wall clock steps");
        model.wall.set(now, offset);
        self.driver.clock().jump_to(model.wall.shown(now));
    }

    fn fill(&mut self) {
        if self.full_until.is_some() {
            return;
        }
        let leaves = self.dice.below(600 << 10);
        let Some(total) = faults::fill(&self.storage, leaves) else {
            return;
        };
        let minutes = u32::try_from(self.dice.between(1, 20)).unwrap_or(1);
        self.full_until = Some((self.now() + MINUTE * minutes, total));
        let mut model = lock(&self.shared);
        model.is_failing = true;
        model.say(|| format!("the disk takes {leaves} bytes more"));
        model.count("full disks");
    }

    fn fail(&mut self) {
        let fault = faults::fail(&self.storage, &mut self.dice);
        let mut model = lock(&self.shared);
        model.is_failing = true;
        model.say(|| format!("I/O will fail: {fault:?}"));
        model.count("I/O faults");
    }

    fn rot(&mut self) -> Result<(), String> {
        self.pass(MINUTE)?;
        let Some((path, position)) = faults::rot(&self.storage, &mut self.dice) else {
            return Ok(());
        };
        let mut model = lock(&self.shared);
        model.is_damaged = true;
        model.say(|| format!("a bit flips in {path} at {position}"));
        model.count("flipped bits");
        Ok(())
    }

    /// A bit flips in what was written last, while the node does not run.
    fn rot_tail(&mut self) -> Result<(), String> {
        // By then it is vouched for.
        self.pass(Duration::from_secs(15))?;
        self.end(End::Kill)?;
        if let Some((path, position)) = faults::rot_tail(&self.storage, &mut self.dice) {
            let mut model = lock(&self.shared);
            model.is_damaged = true;
            model.say(|| format!("a bit flips at the end of {path}, at {position}"));
            model.count("flipped last bits");
        }
        self.start()
    }

    /// What was wrong for a while is right again.
    fn end_troubles(&mut self) -> Result<(), String> {
        let now = self.now();
        if let Some((until, total)) = self.full_until
            && now >= until
        {
            self.full_until = None;
            self.storage.set_total_bytes(total);
            self.say(|| "the disk has room".to_owned());
        }
        if self.wrong_until.is_some_and(|until| now >= until) {
            self.wrong_until = None;
            self.set_wall(0);
        }
        Ok(())
    }
}

fn some_level(dice: &mut Dice) -> Durability {
    if dice.once_in(3) {
        Durability::Memory
    } else {
        Durability::Disk
    }
}

fn some_retention(dice: &mut Dice) -> Duration {
    let hours = [1, 3, 6, 20, 24, 100, 168, 400];
    HOUR * dice.pick(hours)
}

fn some_bound(dice: &mut Dice) -> Option<u64> {
    match dice.below(3) {
        0 => Some(dice.between(2_000, 100_000)),
        _ => None,
    }
}

fn update(dice: &mut Dice, stream: &StreamModel) -> Asked {
    let mut update = StreamUpdate::default();
    match dice.below(3) {
        0 => update.durability = Some(some_level(dice)),
        1 => update.retention = Some(some_retention(dice)),
        _ => update.retention_bytes = Some(some_bound(dice)),
    }
    if dice.once_in(5) {
        update.durability = Some(some_level(dice));
        update.retention = Some(some_retention(dice));
    }
    Asked::Update(stream.name.clone(), update)
}

fn reshard(dice: &mut Dice, stream: &StreamModel) -> Option<Asked> {
    let open = stream.open_shards();
    let some = |dice: &mut Dice| {
        let at = place(dice.below(open.len() as u64));
        open.get(at).copied().map(ShardIndex::new)
    };
    let shard = some(dice)?;
    let step = if open.len() > 1 && (open.len() > 4 || dice.once_in(2)) {
        let adjacent = some(dice)?;
        Reshard::Merge { shard, adjacent }
    } else {
        let range = stream.shards.get(&shard.value())?.range;
        let at = dice
            .once_in(2)
            .then(|| producer::key_in(dice, range.unwrap_or(HashRange::FULL)));
        Reshard::Split { shard, at }
    };
    Some(Asked::Reshard(stream.name.clone(), step))
}

/// Where a read begins: anywhere that makes sense, and some places that do not.
fn start_in(dice: &mut Dice, stream: &StreamModel, shard: u32, now: Duration) -> StartPosition {
    let Some(shard) = stream.shards.get(&shard) else {
        return StartPosition::TrimHorizon;
    };
    let numbers = shard.numbers.len() as u64;
    let some = |dice: &mut Dice| {
        let at = place(dice.below(numbers));
        shard
            .numbers
            .iter()
            .nth(at)
            .map(|(number, (_, at))| (*number, *at))
    };
    match dice.below(10) {
        0..3 => StartPosition::TrimHorizon,
        3 => StartPosition::Latest,
        4 => some(dice).map_or(StartPosition::Latest, |(number, _)| {
            StartPosition::At(SequenceNumber::new(number))
        }),
        5 => some(dice).map_or(StartPosition::Latest, |(number, _)| {
            StartPosition::After(SequenceNumber::new(number))
        }),
        6 => StartPosition::At(SequenceNumber::new(shard.horizon + dice.below(3))),
        7 => some(dice).map_or(StartPosition::Latest, |(_, at)| {
            let beside = Duration::from_micros(dice.below(3));
            StartPosition::AtTimestamp(at.saturating_add(beside))
        }),
        8 => {
            let ago = HOUR * u32::try_from(dice.below(200)).unwrap_or(0);
            let at = super::START.saturating_add(now.saturating_sub(ago));
            StartPosition::AtTimestamp(at)
        }
        _ => StartPosition::AtTimestamp(Timestamp::from_micros(dice.below(1 << 50))),
    }
}

const _: Duration = DAY;
