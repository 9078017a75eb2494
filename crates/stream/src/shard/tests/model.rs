//! Admission against a model: producers that retry, skip and change their bytes; rounds that are
//! written, refused, or cut off by a crash; snapshots; jumps. The model keeps every batch for ever.

use std::collections::BTreeMap;

use flumen_record::ShardEpoch;
use proptest::prelude::*;

use super::*;

const PRODUCERS: usize = 3;
const REMEMBERED: usize = 4;
const RESTING: usize = 1;
/// Ids in play: more than the table holds.
const IDS: u64 = 6;
const JUMP: u64 = 1 << 32;

#[derive(Debug, Clone)]
enum Step {
    /// A batch this far from what its producer's table row expects next.
    Send {
        producer: u64,
        ahead: i64,
        count: u32,
        changed: bool,
    },
    /// The first so many batches in flight are durable.
    Durable(usize),
    /// All but the first so many batches in flight were not written.
    Abandon(usize),
    Save,
    /// A crash: so many batches in flight were written, and the saved state is there, or not.
    Crash {
        written: usize,
        saved: bool,
    },
    /// A crash that loses so many durable batches.
    Lose(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let send = (0..=IDS, -7..3_i64, 1..4_u32, prop::bool::weighted(0.1));
    prop_oneof![
        30 => send.prop_map(|(producer, ahead, count, changed)| {
            // Mostly the next one, as clients do.
            let ahead = if ahead < -4 { 0 } else { ahead };
            Step::Send { producer, ahead, count, changed }
        }),
        6 => (0..8_usize).prop_map(Step::Durable),
        2 => (0..4_usize).prop_map(Step::Abandon),
        2 => Just(Step::Save),
        2 => (0..8_usize, any::<bool>()).prop_map(|(written, saved)| Step::Crash { written, saved }),
        1 => (0..4_usize).prop_map(Step::Lose),
    ]
}

/// A batch in the log.
#[derive(Debug, Clone, Copy)]
struct Stored {
    producer: u64,
    sequence: u64,
    base: u64,
    count: u32,
    arrival: u64,
}

impl Stored {
    fn end(&self) -> u64 {
        self.base + u64::from(self.count)
    }

    fn mark(&self) -> BatchMark {
        BatchMark {
            producer: ProducerId::new(self.producer),
            sequence: ProducerSequence::new(self.sequence),
            base: number(self.base),
            count: self.count,
            checksum: checksum(self.producer, self.sequence),
            arrival: at(self.arrival),
            frame_bytes: 100,
        }
    }
}

/// All batches of a producer; how many of them it had when it came back from rest.
#[derive(Debug, Clone, Default)]
struct Row {
    batches: Vec<Stored>,
    before: usize,
}

impl Row {
    fn last(&self) -> Stored {
        *self.batches.last().unwrap()
    }
}

type Rows = BTreeMap<u64, Row>;

fn oldest(rows: &Rows) -> u64 {
    *rows
        .iter()
        .min_by_key(|(_, row)| row.last().base)
        .unwrap()
        .0
}

/// What a table with bounds remembers: of each producer all batches it ever had.
#[derive(Debug, Clone, Default)]
struct Table {
    known: Rows,
    resting: Rows,
    watermark: u64,
}

impl Table {
    fn row(&self, producer: u64) -> Option<&Row> {
        self.known
            .get(&producer)
            .or_else(|| self.resting.get(&producer))
    }

    fn learn(&mut self, batch: Stored) {
        if batch.producer == 0 {
            return;
        }
        if let Some(mut row) = self.resting.remove(&batch.producer) {
            row.before = row.batches.len();
            self.known.insert(batch.producer, row);
        }
        let row = self.known.entry(batch.producer).or_default();
        row.batches.push(batch);
    }

    /// Everything below `end` is durable.
    fn settle(&mut self, end: u64) {
        while self.known.len() > PRODUCERS {
            let oldest = oldest(&self.known);
            if self.known[&oldest].last().base >= end {
                return;
            }
            let row = self.known.remove(&oldest).unwrap();
            self.rest(oldest, row);
        }
    }

    fn rest(&mut self, producer: u64, row: Row) {
        self.resting.insert(producer, row);
        if self.resting.len() > RESTING {
            let forgotten = oldest(&self.resting);
            self.resting.remove(&forgotten);
            self.watermark = self.watermark.max(forgotten);
        }
    }

    /// Without the batches from `end` on.
    fn cut(&mut self, end: u64) {
        for (producer, mut row) in std::mem::take(&mut self.known) {
            row.batches.retain(|batch| batch.base < end);
            if row.batches.len() > row.before {
                self.known.insert(producer, row);
            } else if row.before > 0 && !row.batches.is_empty() {
                self.rest(producer, row);
            }
        }
    }
}

#[derive(Debug, Default)]
struct Model {
    /// Durable batches, then those in flight.
    log: Vec<Stored>,
    durable: usize,
    next: u64,
    last_arrival: u64,
    table: Table,
    /// Where numbers went on after the last jump.
    resumed_at: u64,
    saved: Option<Saved>,
}

#[derive(Debug)]
struct Saved {
    state: Bytes,
    batches: usize,
    table: Table,
}

impl Model {
    fn durable_end(&self) -> u64 {
        let last = self.durable.checked_sub(1).map(|last| self.log[last].end());
        last.unwrap_or(0).max(self.resumed_at)
    }

    fn expected(&self, producer: u64) -> u64 {
        let row = self.table.row(producer);
        row.map_or(0, |row| row.last().sequence + 1)
    }

    /// What a batch must be answered.
    fn answer(&self, batch: &BatchHeader, now: u64) -> Admission {
        let (producer, sequence) = (batch.producer.value(), batch.sequence.value());
        let append = appended(self.next, self.last_arrival.max(now));
        if producer == 0 {
            return append;
        }
        let expected = self.expected(producer);
        let Some(row) = self.table.row(producer) else {
            // Every id in play was issued before the jump.
            return match sequence {
                _ if producer <= self.table.watermark => lost(producer),
                0 => append,
                _ if self.resumed_at > 0 => lost(producer),
                _ => out_of_sequence(0, sequence),
            };
        };
        if sequence == expected {
            return append;
        }
        if sequence > expected {
            return if row.last().base < self.resumed_at {
                lost(producer)
            } else {
                out_of_sequence(expected, sequence)
            };
        }
        if self.table.resting.contains_key(&producer) {
            return Admission::AlreadyAppended;
        }
        let batches = &row.batches[row.before..];
        let durable_end = self.durable_end();
        let in_flight = batches
            .iter()
            .filter(|batch| batch.base >= durable_end)
            .count();
        let remembered = batches.iter().rev().take(REMEMBERED + in_flight);
        let Some(first) = remembered
            .into_iter()
            .find(|batch| batch.sequence == sequence)
        else {
            return Admission::AlreadyAppended;
        };
        if batch.checksum != checksum(producer, sequence) {
            let sequence = batch.sequence;
            return Admission::Refused(Refusal::ChecksumDiffers { sequence });
        }
        duplicate(first.base, first.arrival, first.base < durable_end)
    }

    fn append(&mut self, batch: &BatchHeader, now: u64) {
        self.last_arrival = self.last_arrival.max(now);
        let stored = Stored {
            producer: batch.producer.value(),
            sequence: batch.sequence.value(),
            base: self.next,
            count: batch.count,
            arrival: self.last_arrival,
        };
        self.log.push(stored);
        self.table.learn(stored);
        self.next = stored.end();
    }

    /// The log ends after `batches` batches.
    fn cut(&mut self, batches: usize) {
        self.log.truncate(batches);
        self.durable = self.durable.min(batches);
        let last = self.log.last().map_or(0, Stored::end);
        self.next = last.max(self.resumed_at);
        self.table.cut(self.next);
    }

    /// The shard after a crash that left the log as it is.
    fn reopen(&mut self, config: &StreamConfig, jumps: bool, saved: bool) -> Shard {
        self.durable = self.log.len();
        self.saved = self
            .saved
            .take()
            .filter(|saved| saved.batches <= self.log.len());
        let mut shard = shard_with(config);
        self.table = Table::default();
        let mut from = 0;
        if let Some(saved) = self.saved.as_ref().filter(|_| saved) {
            shard.restore(&saved.state).unwrap();
            self.table = saved.table.clone();
            from = saved.batches;
        }
        for batch in &self.log[from..] {
            shard.replay(&batch.mark(), false);
            self.table.learn(*batch);
            self.table.settle(u64::MAX);
        }
        if jumps {
            self.next += JUMP;
            self.resumed_at = self.next;
        }
        let recovery = ShardRecovery {
            shard: shard.id(),
            trim_horizon: number(0),
            next: number(self.next),
            epoch: ShardEpoch::new(1),
            last_arrival: at(self.last_arrival),
            jumped: jumps.then_some(number(self.next)),
        };
        shard.recovered(&recovery, true, ProducerId::new(IDS));
        shard
    }

    /// Every producer's batches lie in the log once each, in order and without gaps, but for what
    /// was lost.
    fn check_log(&self) {
        let mut last: BTreeMap<u64, u64> = BTreeMap::new();
        for pair in self.log.windows(2) {
            assert!(pair[0].end() <= pair[1].base && pair[0].arrival <= pair[1].arrival);
        }
        for batch in self.log.iter().filter(|batch| batch.producer > 0) {
            let expected = last.get(&batch.producer).map_or(0, |last| last + 1);
            assert_eq!(batch.sequence, expected, "{:?}", self.log);
            last.insert(batch.producer, batch.sequence);
        }
    }
}

fn run(steps: &[Step]) {
    let config = StreamConfig {
        producers_per_shard_max: u32::try_from(PRODUCERS).unwrap(),
        resting_producers_per_shard_max: u32::try_from(RESTING).unwrap(),
        batches_per_producer: u32::try_from(REMEMBERED).unwrap(),
        ..StreamConfig::default()
    };
    let mut shard = shard_with(&config);
    let mut model = Model::default();
    for (now, step) in (0_u64..).zip(steps) {
        // The clock goes back now and then.
        let now = if now % 5 == 4 { now / 2 } else { now };
        match *step {
            Step::Send {
                producer,
                ahead,
                count,
                changed,
            } => {
                let sequence = model.expected(producer).checked_add_signed(ahead);
                let Some(sequence) = sequence else { continue };
                let mut batch = batch(producer, sequence, count);
                if changed && model.expected(producer) > sequence {
                    batch.checksum ^= 1 << 31;
                }
                let expected = model.answer(&batch, now);
                check(&mut shard, batch, now, expected);
                if let Admission::Append { .. } = expected {
                    model.append(&batch, now);
                }
            }
            Step::Durable(batches) => {
                model.durable = (model.durable + batches).min(model.log.len());
                model.table.settle(model.durable_end());
                shard.durable(number(model.durable_end()));
            }
            Step::Abandon(kept) => {
                let kept = (model.durable + kept).min(model.log.len());
                let from = model.log.get(kept).map_or(model.next, |batch| batch.base);
                model.cut(kept);
                shard.abandon(number(from));
            }
            Step::Save => {
                let mut table = model.table.clone();
                table.cut(model.durable_end());
                model.saved = Some(Saved {
                    state: shard.save(),
                    batches: model.durable,
                    table,
                });
            }
            Step::Crash { written, saved } => {
                model.cut((model.durable + written).min(model.log.len()));
                shard = model.reopen(&config, false, saved);
            }
            Step::Lose(batches) => {
                model.cut(model.durable.saturating_sub(batches));
                shard = model.reopen(&config, true, true);
            }
        }
        assert_eq!(shard.next(), number(model.next));
        model.check_log();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn admission_is_as_the_model_says(steps in prop::collection::vec(step(), 1..150)) {
        run(&steps);
    }
}
