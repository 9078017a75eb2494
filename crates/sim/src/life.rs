//! Lives of a whole node: months of one, from a seed, in a second.

mod admin;
mod allowed;
mod delivering;
mod driver;
mod faults;
mod grouping;
mod member;
mod model;
mod operations;
mod producer;
mod reading;
mod trace;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flumen_broker::{Broker, BrokerConfig, ReadBudget, StartPosition};
use flumen_log::MemoryStorage;
use flumen_record::{SequenceNumber, Timestamp};
use flumen_sink::Sink;
use flumen_sink::fault::FaultyStore;
use flumen_world::{Clock, lock};
use object_store::memory::InMemory;

use crate::random::Dice;
use driver::Driver;
use faults::End;
use model::Model;
use producer::SharedProducer;
use reading::{Shared, Target};

/// When lives begin.
const START: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);
/// Whatever is asked is answered within this, unless the disk fails.
const PATIENCE: Duration = Duration::from_secs(120);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// What is lived.
#[derive(Debug, Clone, Copy)]
pub struct LifeOptions {
    /// How long, in days.
    pub days: u64,
    /// Whether the trace is written to standard output, line by line.
    pub tell_trace: bool,
    /// Kinds of operations that are left out, by their bits in [`KINDS`]: to find what a failure
    /// needs.
    pub without: u64,
}

pub use operations::KINDS;

impl Default for LifeOptions {
    fn default() -> Self {
        Self {
            days: 90,
            tell_trace: false,
            without: 0,
        }
    }
}

/// What happened in a life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LifeReport {
    /// Its seed.
    pub seed: u64,
    /// Operations.
    pub steps: u64,
    /// Starts of the node.
    pub starts: u64,
    /// What was done and what went wrong, by kind.
    pub counts: BTreeMap<&'static str, u64>,
    /// Over all lines of its trace.
    pub fingerprint: u64,
    /// The lines that were kept.
    pub trace: Vec<String>,
}

/// A life in which a promise was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LifeFailure {
    /// Its seed.
    pub seed: u64,
    /// The operation.
    pub step: u64,
    /// What is wrong.
    pub what: String,
    /// What happened before.
    pub trace: Vec<String>,
}

impl fmt::Display for LifeFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            seed,
            step,
            what,
            trace,
        } = self;
        for line in trace {
            writeln!(f, "  {line}")?;
        }
        write!(f, "seed {seed}, step {step}: {what}")
    }
}

/// Lives the life of a seed.
pub fn live(seed: u64, options: LifeOptions) -> Result<LifeReport, Box<LifeFailure>> {
    let begun = Life::new(seed, options);
    let mut life = begun.map_err(|what| {
        Box::new(LifeFailure {
            seed,
            step: 0,
            what,
            trace: Vec::new(),
        })
    })?;
    let lived = life.live();
    life.driver.end();
    (life.broker, life.sink) = (None, None);
    let mut model = lock(&life.shared);
    if let Err(what) = lived {
        model.check(Err(what));
    }
    let trace = model.trace.lines();
    if let Some(what) = model.violation.clone() {
        return Err(Box::new(LifeFailure {
            seed,
            step: life.steps,
            what,
            trace,
        }));
    }
    Ok(LifeReport {
        seed,
        steps: life.steps,
        starts: life.starts,
        counts: model.counts.clone(),
        fingerprint: model.trace.fingerprint(),
        trace,
    })
}

/// One life.
struct Life {
    options: LifeOptions,
    dice: Dice,
    driver: Driver,
    /// The simulation's time at which the process's clock began.
    base: Duration,
    storage: MemoryStorage,
    config: BrokerConfig,
    broker: Option<Broker>,
    shared: Shared,
    producers: Vec<SharedProducer>,
    /// The object store outlives the node.
    objects: Arc<InMemory>,
    store: Option<FaultyStore>,
    sink: Option<Sink>,
    spool: tempfile::TempDir,
    steps: u64,
    starts: u64,
    /// The disk's size before it was made full.
    full_until: Option<(Duration, u64)>,
    /// The wall clock goes wrong until then.
    wrong_until: Option<Duration>,
}

impl Life {
    fn new(seed: u64, options: LifeOptions) -> Result<Self, String> {
        let mut dice = Dice::new(seed);
        let shared: Shared = Arc::new(Mutex::new(Model::new(START, options.tell_trace)));
        let driver = Driver::new(Clock::manual(START), Dice::new(dice.next()));
        let storage = MemoryStorage::new();
        storage.set_total_bytes(1 << 30);
        let config = operations::settings(&mut dice);
        Ok(Self {
            options,
            dice,
            driver,
            base: Duration::ZERO,
            storage,
            config,
            broker: None,
            shared,
            producers: Vec::new(),
            objects: Arc::default(),
            store: None,
            sink: None,
            spool: tempfile::tempdir().map_err(|error| error.to_string())?,
            steps: 0,
            starts: 0,
            full_until: None,
            wrong_until: None,
        })
    }

    fn now(&self) -> Duration {
        self.base + self.driver.clock().monotonic()
    }

    fn broker(&self) -> Result<Broker, String> {
        self.broker
            .clone()
            .ok_or_else(|| "the node does not run".to_owned())
    }

    /// The model's time is the executor's.
    fn tick(&mut self) -> Result<(), String> {
        let now = self.now();
        let mut model = lock(&self.shared);
        model.time_passed(now);
        match &model.violation {
            None => Ok(()),
            Some(what) => Err(what.clone()),
        }
    }

    fn say(&self, line: impl FnOnce() -> String) {
        lock(&self.shared).say(line);
    }

    fn count(&self, what: &'static str) {
        lock(&self.shared).count(what);
    }

    /// Lets time pass, a model's look at a time.
    fn pass(&mut self, time: Duration) -> Result<(), String> {
        self.driver.pass(time)?;
        self.tick()
    }

    fn wait<T: Send + 'static>(
        &mut self,
        what: &str,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, String> {
        let done = self.driver.wait(what, PATIENCE, future);
        self.tick()?;
        done
    }

    fn live(&mut self) -> Result<(), String> {
        self.adopt_clock();
        self.start()?;
        for _ in 0..3 {
            self.create()?;
            self.pass(Duration::from_secs(10))?;
        }
        let until = DAY * u32::try_from(self.options.days).unwrap_or(u32::MAX);
        while self.now() < until {
            self.steps += 1;
            self.operate()?;
        }
        self.come_to_rest()?;
        if self.dice.once_in(2) {
            self.lose_a_log()?;
        }
        Ok(())
    }

    /// Its segments are gone: nobody is told that there was nothing.
    fn lose_a_log(&mut self) -> Result<(), String> {
        self.end(End::Kill)?;
        let Some(lost) = faults::lose_log(&self.storage, &mut self.dice) else {
            return Ok(());
        };
        self.say(|| format!("{lost} is emptied"));
        self.count("lost logs");
        lock(&self.shared).lost_log = true;
        let opened = self.driver.open(&self.storage, &self.config)?;
        let broker = opened.map_err(|why| format!("without {lost} it does not start: {why}"))?;
        self.broker = Some(broker.clone());
        self.scan()?;
        let groups = !lock(&self.shared).groups.is_empty();
        if lost == "groups" && groups {
            let listed = async move { broker.list_groups(None, None, 100).await };
            if let Ok((listed, _)) = self.wait("listing groups", listed)? {
                return Err(format!(
                    "the groups' log is lost, and these are listed: {listed:?}"
                ));
            }
        }
        self.tick()
    }

    /// Starts the node on what the disk holds, and looks at all of it.
    fn start(&mut self) -> Result<(), String> {
        self.starts += 1;
        self.say(|| "start".to_owned());
        let broker = self.driver.open(&self.storage, &self.config)?;
        let broker = broker.map_err(|why| format!("the node does not start: {why}"))?;
        self.broker = Some(broker.clone());
        self.tick()?;
        {
            let mut model = lock(&self.shared);
            admin::look(&broker, &mut model)?;
        }
        self.start_sink()?;
        self.scan()
    }

    /// Reads everything there is, and knows afterwards what is lost.
    fn scan(&mut self) -> Result<(), String> {
        let targets: Vec<Target> = {
            let model = lock(&self.shared);
            let streams = model.streams.values().filter(|stream| !stream.is_deleted);
            let of = |stream: &model::StreamModel| {
                let shards = stream.shards.iter().filter(|(_, shard)| !shard.is_dropped);
                let target = |(index, _): (&u32, &model::ShardModel)| Target {
                    stream: stream.name.clone(),
                    id: stream.id,
                    shard: *index,
                };
                shards.map(target).collect::<Vec<_>>()
            };
            streams.flat_map(of).collect()
        };
        for target in targets {
            let (broker, shared) = (self.broker()?, Arc::clone(&self.shared));
            self.wait("reading", scan_shard(broker, shared, target))?;
        }
        self.count("scans");
        Ok(())
    }

    /// Ends this process of the node, and begins the next one's time.
    fn end(&mut self, end: End) -> Result<(), String> {
        self.say(|| format!("end: {end:?}"));
        self.count(match end {
            End::Shutdown => "shutdowns",
            End::Kill => "kills",
            End::Cut => "power cuts",
        });
        if end == End::Shutdown {
            lock(&self.shared).is_ending = true;
            let (broker, sink) = (self.broker()?, self.sink.take());
            let ending = async move {
                if let Some(sink) = sink {
                    sink.shutdown().await;
                }
                broker.shutdown().await
            };
            let ended = self.wait("shutdown", ending)?;
            let mut model = lock(&self.shared);
            if let Err(error) = ended
                && !model.is_failing
            {
                model.check(Err(format!("the shutdown failed: {error:?}")));
            }
        }
        let now = self.now();
        let dice = self.driver.end();
        (self.broker, self.sink) = (None, None);
        self.storage = faults::image(&self.storage, end, &mut self.dice);
        for producer in &self.producers {
            lock(producer).is_busy = false;
        }
        let mut model = lock(&self.shared);
        model.nobody_answers();
        model.ended(end == End::Cut);
        (model.is_ending, model.is_failing, model.is_dying) = (false, false, false);
        self.base = now;
        let shown = model.wall.shown(now);
        drop(model);
        self.full_until = None;
        self.storage.set_total_bytes(1 << 30);
        self.driver = Driver::new(Clock::manual(shown), dice);
        self.adopt_clock();
        Ok(())
    }

    /// Time passes while the node does not run.
    fn stand_still(&mut self, time: Duration) {
        self.base += time;
        let shown = lock(&self.shared).wall.shown(self.base);
        let dice = self.driver.end();
        self.driver = Driver::new(Clock::manual(shown), dice);
        self.adopt_clock();
    }

    /// The model goes by the clock of this process.
    fn adopt_clock(&self) {
        let mut model = lock(&self.shared);
        (model.base, model.clock) = (self.base, self.driver.clock().clone());
    }

    /// Faults end; after a while everything must be there, and be as it should.
    fn come_to_rest(&mut self) -> Result<(), String> {
        self.say(|| "faults end".to_owned());
        self.storage.clear_faults();
        self.set_wall(0);
        let settle = 2 * DAY + Duration::from_secs(3600);
        if lock(&self.shared).is_failing {
            self.end(End::Kill)?;
            self.start()?;
        }
        self.pass(settle)?;
        for _ in 0..3 {
            for at in 0..self.producers.len() {
                self.produce(at, 0)?;
                self.pass(Duration::from_secs(10))?;
            }
        }
        for producer in self.producers.clone() {
            let known = lock(&self.shared)
                .names
                .contains_key(lock(&producer).stream());
            let unanswered = if known {
                lock(&producer).unanswered()
            } else {
                0
            };
            if unanswered > 0 {
                let name = lock(&producer).name;
                return Err(format!(
                    "producer {name} has {unanswered} batches unanswered"
                ));
            }
        }
        let broker = self.broker()?;
        admin::look(&broker, &mut lock(&self.shared))?;
        self.check_deliveries()?;
        self.scan()?;
        self.check_expired()?;
        self.end(End::Shutdown)?;
        self.start()?;
        self.tick()
    }

    /// Nothing stays much longer than it should.
    fn check_expired(&mut self) -> Result<(), String> {
        let broker = self.broker()?;
        let applying = async move { broker.apply_retention().await };
        let applied = self.wait("retention", applying)?;
        applied.map_err(|error| format!("retention fails: {error:?}"))?;
        let broker = self.broker()?;
        let mut model = lock(&self.shared);
        admin::look(&broker, &mut model)?;
        model.nothing_stays()
    }
}

/// Reads a shard from its beginning to its end.
async fn scan_shard(broker: Broker, shared: Shared, target: Target) {
    let budget = ReadBudget {
        bytes: 1 << 20,
        records: 10_000,
    };
    let mut start = StartPosition::TrimHorizon;
    let mut losses = 0;
    let mut reached = None;
    loop {
        let seen = reading::read(&broker, &shared, &target, start, budget, Duration::ZERO).await;
        let from = match (&seen, lock(&shared).streams.get(&target.id)) {
            (Some(seen), _) => seen.next,
            // Behind what is damaged it goes on.
            (None, Some(stream)) => {
                losses += 1;
                let shard = stream.shards.get(&target.shard);
                match shard.and_then(|shard| shard.damage.last()) {
                    Some((_, to)) if losses < 50 => *to,
                    _ => return,
                }
            }
            (None, None) => return,
        };
        if seen.is_some() && reached == Some(from) {
            let mut model = lock(&shared);
            model.resolve(&target);
            return;
        }
        reached = Some(from);
        start = StartPosition::At(SequenceNumber::new(from));
        if lock(&shared).violation.is_some() {
            return;
        }
    }
}

impl Model {
    /// Everything of a shard was read: what was in doubt and was not found is lost.
    fn resolve(&mut self, target: &Target) {
        let stream = self.streams.get_mut(&target.id);
        let Some(shard) = stream.and_then(|it| it.shards.get_mut(&target.shard)) else {
            return;
        };
        for (number, (id, _)) in &shard.numbers {
            let at = usize::try_from(*id).unwrap_or(usize::MAX);
            if let Some(record) = self.records.get_mut(at)
                && record.doubtful
            {
                record.doubtful = false;
                record.lost = true;
                shard.lost.insert(*number);
            }
        }
    }

    /// A process of the node ended: what may be lost of `memory` logs is in doubt.
    fn ended(&mut self, power_cut: bool) {
        const SYNCED_AFTER: Duration = Duration::from_secs(60);
        let memory = model::level_code(flumen_record::Durability::Memory);
        for stream in self.streams.values_mut() {
            stream.may_jump |= stream.levels.contains(&memory);
        }
        if !power_cut {
            return;
        }
        let (now, failing) = (self.now, self.is_failing);
        for record in &mut self.records {
            let in_memory = match record.acked {
                Some((flumen_record::Durability::Memory, at)) => {
                    failing || now.saturating_sub(at) < SYNCED_AFTER
                }
                Some((flumen_record::Durability::Disk, _)) => false,
                // A reader saw it before anybody was told.
                None => record.place.is_some(),
            };
            record.doubtful |= in_memory && !record.lost;
        }
    }

    /// Whether anything is there that should have expired.
    fn nothing_stays(&mut self) -> Result<(), String> {
        const SLACK: Duration = Duration::from_secs(2 * 3600);
        // What was stamped by a wrong clock that was believed stays by as much longer.
        let now = self.look();
        let slack = SLACK + self.wall.bias(now);
        for stream in self.streams.values().filter(|stream| !stream.is_deleted) {
            let keeps = stream.settings.retention + stream.settings.retention / 500 + slack;
            let gone_before = self.now.saturating_sub(keeps);
            for (index, shard) in &stream.shards {
                let first = shard
                    .numbers
                    .range(shard.horizon..)
                    .find(|(number, (id, _))| {
                        !shard.lost.contains(number)
                            && self.record(*id).is_some_and(|it| it.must_exist())
                    });
                if let Some((number, (id, _))) = first
                    && let Some(record) = self.record(*id)
                    && let Some((_, acked)) = record.acked
                    && acked < gone_before
                {
                    return Err(format!(
                        "number {number} of shard {index} of {} was acknowledged at {acked:?} and is there still at {:?}, with a retention of {:?}",
                        stream.name, self.now, stream.settings.retention
                    ));
                }
            }
        }
        Ok(())
    }
}
