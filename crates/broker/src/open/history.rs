//! What logs remember of shards, heard in the order in which it happened.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use flumen_log::{BatchMark, LogKey, Replay, Stays};
use flumen_record::{HashRange, SequenceNumber, ShardId};
use flumen_stream::{Catalog, Shard, ShardInfo, StreamConfig};

use crate::BrokerConfig;

/// The shards of the catalog while logs tell about them.
pub(super) struct History {
    building: HashMap<ShardId, Building>,
    /// What logs told of shards that have lain in more than one, to be heard in the right order.
    told: BTreeMap<(LogKey, ShardId), Vec<Told>>,
    config: StreamConfig,
}

/// One shard while logs tell about it.
pub(super) struct Building {
    pub(super) shard: Shard,
    /// Its saved state was not usable.
    pub(super) lost: bool,
    /// A saved state was: all batches below this number are in it.
    pub(super) told: Option<SequenceNumber>,
    /// Where it lies. What others tell is out of date: it has left them, and they have not forgotten
    /// it yet.
    stays: Stays,
    range: HashRange,
}

#[derive(Debug)]
pub(super) enum Told {
    State(Bytes),
    Batch(BatchMark, bool),
}

impl History {
    pub(super) fn of(catalog: &Catalog, config: &BrokerConfig) -> Self {
        let config = config.stream.clone();
        let building = |info: &ShardInfo| {
            let building = Building {
                shard: Shard::new(info.id, info.range, &config),
                lost: false,
                told: None,
                stays: info.stays.clone(),
                range: info.range,
            };
            (info.id, building)
        };
        let shards = catalog.streams().flat_map(|stream| &stream.shards);
        let building = shards.map(building).collect();
        Self {
            building,
            told: BTreeMap::new(),
            config,
        }
    }

    /// The shard with all that was told about it. A state knows all that came before it, whichever
    /// log remembers it: the latest is heard first, and then the batches after it, by their numbers.
    pub(super) fn take(&mut self, info: &ShardInfo) -> Building {
        let mut building = self
            .building
            .remove(&info.id)
            .expect("BUG: a shard the catalog did not have before");
        let (mut states, mut batches) = (Vec::new(), Vec::new());
        for (at, stay) in info.stays.iter().enumerate() {
            let told = self.told.remove(&(stay.log(), info.id));
            for told in told.unwrap_or_default() {
                match told {
                    Told::State(state) => states.push((Shard::saved_next(&state), at, state)),
                    Told::Batch(mark, partial) => batches.push((mark, partial)),
                }
            }
        }
        // Of those that know as much, the one of the later stay.
        states.sort_by_key(|(next, at, _)| (*next, *at));
        for (_, _, state) in states {
            building.hear(Told::State(state), &self.config);
        }
        batches.sort_by_key(|(mark, _)| mark.base);
        for (mark, partial) in batches {
            building.hear(Told::Batch(mark, partial), &self.config);
        }
        building
    }

    /// Forgets what a log told that turned out not to be one.
    pub(super) fn unhear(&mut self, log: LogKey) {
        self.told.retain(|(by, _), _| *by != log);
    }

    pub(super) fn hear(&mut self, log: LogKey, shard: ShardId, told: Told) {
        // Of a stream that is gone.
        let Some(building) = self.building.get_mut(&shard) else {
            return;
        };
        let is_here = match &told {
            Told::State(_) => building.stays.iter().any(|stay| stay.log() == log),
            Told::Batch(mark, _) => {
                let stay = building.stays.at(mark.base);
                stay.log() == log && stay.holds(mark.base)
            }
        };
        if !is_here {
            return;
        }
        if building.stays.len() > 1 {
            self.told.entry((log, shard)).or_default().push(told);
        } else {
            building.hear(told, &self.config);
        }
    }
}

impl Building {
    fn hear(&mut self, told: Told, config: &StreamConfig) {
        match told {
            Told::State(state) => match self.shard.restore(&state) {
                Ok(()) => (self.lost, self.told) = (false, Shard::saved_next(&state)),
                Err(reason) => {
                    tracing::warn!(shard = %self.shard.id(), reason, "the saved state of a shard is not usable; its producers go on under new ids");
                    self.shard = Shard::new(self.shard.id(), self.range, config);
                    (self.lost, self.told) = (true, None);
                }
            },
            Told::Batch(mark, _) if self.told.is_some_and(|next| mark.base < next) => {}
            Told::Batch(mark, partial) => self.shard.replay(&mark, partial),
        }
    }
}

/// Listens to one log.
pub(super) struct Listen<'a> {
    pub(super) key: LogKey,
    pub(super) history: &'a mut History,
}

impl Replay for Listen<'_> {
    fn state(&mut self, shard: ShardId, state: Bytes) {
        self.history.hear(self.key, shard, Told::State(state));
    }

    fn batch(&mut self, shard: ShardId, mark: &BatchMark, partial: bool) {
        self.history
            .hear(self.key, shard, Told::Batch(*mark, partial));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use flumen_log::{MemoryStorage, ShardRecovery};
    use flumen_record::{
        BatchBuilder, Compression, Durability, ProducerId, ProducerSequence, Record, RecordLimits,
        ShardEpoch, ShardIndex, Timestamp,
    };
    use flumen_stream::{Admission, Move, NewStream, StreamSettings, StreamUpdate};

    use super::*;

    const NOW: Timestamp = Timestamp::from_micros(1);
    const PRODUCER: ProducerId = ProducerId::new(7);

    fn catalog() -> (Catalog, ShardInfo) {
        let storage = Arc::new(MemoryStorage::new());
        let (mut catalog, _) = Catalog::open(storage, StreamConfig::default(), NOW).unwrap();
        let new = NewStream {
            name: "readings".parse().unwrap(),
            shards: 1,
            settings: StreamSettings::default(),
        };
        let info = catalog.create(new, NOW).unwrap().shards[0].clone();
        (catalog, info)
    }

    fn move_to(catalog: &mut Catalog, durability: Durability, from: u64) -> ShardInfo {
        let update = StreamUpdate {
            durability: Some(durability),
            ..StreamUpdate::default()
        };
        let moves = [Move {
            shard: ShardIndex::new(0),
            from: SequenceNumber::new(from),
            epoch: ShardEpoch::new(0),
        }];
        let name = "readings".parse().unwrap();
        catalog.update(&name, &update, &moves, NOW).unwrap().shards[0].clone()
    }

    /// Batches of one record each, of one producer, under the numbers they have as sequences.
    fn batch(number: u64) -> flumen_record::Batch {
        let record = Record {
            partition_key: "key".into(),
            explicit_hash_key: None,
            data: number.to_string().into(),
            client_timestamp: None,
            headers: Vec::new(),
        };
        let mut builder = BatchBuilder::new(RecordLimits::default());
        builder.push(&record, record.hash_key()).unwrap();
        builder.finish(PRODUCER, ProducerSequence::new(number), Compression::None)
    }

    fn mark(number: u64) -> Told {
        let mark = BatchMark {
            producer: PRODUCER,
            sequence: ProducerSequence::new(number),
            base: SequenceNumber::new(number),
            count: 1,
            checksum: batch(number).header().checksum,
            arrival: NOW,
            frame_bytes: 100,
        };
        Told::Batch(mark, false)
    }

    fn recovery(shard: ShardId, next: u64) -> ShardRecovery {
        ShardRecovery {
            shard,
            trim_horizon: SequenceNumber::ZERO,
            next: SequenceNumber::new(next),
            epoch: ShardEpoch::new(1),
            last_arrival: NOW,
            jumped: None,
        }
    }

    fn state_ending_at(info: &ShardInfo, next: u64) -> Told {
        let mut shard = Shard::new(info.id, info.range, &StreamConfig::default());
        for number in 0..next {
            shard.admit(batch(number).header(), NOW);
        }
        shard.durable(SequenceNumber::new(next));
        Told::State(shard.save())
    }

    /// A log that a shard has left may still tell of it, when the node ended before it forgot.
    #[test]
    fn logs_that_a_shard_has_left_are_not_heard() {
        let (catalog, info) = catalog();
        let home = info.stays.last().log();
        let left = LogKey {
            class_hours: 720,
            ..home
        };
        let mut history = History::of(&catalog, &BrokerConfig::default());
        history.hear(home, info.id, state_ending_at(&info, 8));
        history.hear(left, info.id, state_ending_at(&info, 5));
        let building = history.take(&info);
        assert_eq!(building.shard.next(), SequenceNumber::new(8));
    }

    /// Each log tells all of its stays at once: they are heard in the order of their numbers, from the
    /// latest state on. Otherwise batches of the middle were forgotten, and sent again taken as new.
    #[test]
    fn a_shard_that_came_back_hears_its_batches_in_order() {
        let (mut catalog, info) = catalog();
        let disk = info.stays.last().log();
        move_to(&mut catalog, Durability::Memory, 5);
        let info = move_to(&mut catalog, Durability::Disk, 6);
        let memory = LogKey {
            durability: Durability::Memory,
            ..disk
        };
        // What is in a state, what of it in which log, is told once, or by both.
        let in_disk = || [0, 1, 2, 3, 4, 6, 7].map(mark);
        for states in [
            vec![],
            vec![(disk, 2)],
            vec![(memory, 5)],
            vec![(memory, 6), (disk, 3)],
        ] {
            let mut history = History::of(&catalog, &BrokerConfig::default());
            for told in in_disk() {
                history.hear(disk, info.id, told);
            }
            history.hear(memory, info.id, mark(5));
            // Of before it left, and of what it never held there.
            history.hear(memory, info.id, mark(7));
            for (log, next) in &states {
                history.hear(*log, info.id, state_ending_at(&info, *next));
            }
            let mut shard = history.take(&info).shard;
            shard.recovered(&recovery(info.id, 8), true, ProducerId::new(99));
            for number in 0..8 {
                let again = shard.admit(batch(number).header(), NOW);
                let base = SequenceNumber::new(number);
                let known = matches!(again, Admission::Duplicate { base: b, .. } if b == base);
                assert!(known, "{states:?} {number}: {again:?}");
            }
            let next = shard.admit(batch(8).header(), NOW);
            assert!(
                matches!(next, Admission::Append { .. }),
                "{states:?} {next:?}"
            );
        }
    }
}
