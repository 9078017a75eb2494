//! A log under test, from inside: small segments over memory, frames, the time.

use std::sync::Arc;

use bytes::Bytes;
use flumen_record::{
    BatchBuilder, Compression, Durability, HashKey, ProducerId, ProducerSequence, Record,
    RecordLimits, SequenceNumber, ShardEpoch, ShardId, Timestamp,
};

use crate::config::{LogConfig, LogKey};
use crate::housekeeper::Housekeeper;
use crate::log::{Log, NewFrame};
use crate::recovery::{BatchMark, Replay};
use crate::storage::{MemoryStorage, Storage};

pub(crate) const KEY: LogKey = LogKey {
    durability: Durability::Disk,
    class_hours: 24,
    lane: 0,
};

/// Segments so small that tests roll, and no window that keeps runs in memory.
pub(crate) fn config() -> LogConfig {
    LogConfig {
        segment_bytes_min: 128 << 10,
        segment_bytes_max: 256 << 10,
        free_space_floor_bytes: Some(0),
        hot_window_bytes: 0,
        ..LogConfig::default()
    }
}

struct Deaf;

impl Replay for Deaf {
    fn state(&mut self, _: ShardId, _: Bytes) {}
    fn batch(&mut self, _: ShardId, _: &BatchMark, _: bool) {}
}

pub(crate) fn open(storage: &MemoryStorage, config: &LogConfig) -> Log {
    open_as(storage, KEY, config)
}

pub(crate) fn open_as(storage: &MemoryStorage, key: LogKey, config: &LogConfig) -> Log {
    let storage: Arc<dyn Storage> = Arc::new(storage.clone());
    let (log, _) = Log::open(storage, key, config.clone(), at(0), &mut Deaf).unwrap();
    log
}

/// Places between two steps of one thread where a test lets another thread come in.
pub(crate) mod seam {
    use std::cell::RefCell;

    /// Which.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) enum Seam {
        /// A reader, or the housekeeper, has seen where a segment's footer is.
        FooterSeen,
        /// After a failed sync: the fresh segment is there, the index still names the failed one.
        FreshTakenOver,
    }

    type Guest = Box<dyn FnMut()>;

    thread_local! {
        static GUEST: RefCell<Option<(Seam, Guest)>> = const { RefCell::new(None) };
    }

    /// Runs `guest` each time this thread passes `seam`, but not within itself.
    pub(crate) fn at(seam: Seam, guest: impl FnMut() + 'static) {
        GUEST.with_borrow_mut(|slot| *slot = Some((seam, Box::new(guest))));
    }

    /// Nobody comes in any more.
    pub(crate) fn clear() {
        GUEST.take();
    }

    pub(crate) fn pass(seam: Seam) {
        let Some((at, mut guest)) = GUEST.take() else {
            return;
        };
        if at == seam {
            guest();
        }
        GUEST.with_borrow_mut(|slot| {
            slot.get_or_insert((at, guest));
        });
    }
}

/// A point in time, in milliseconds of the test.
pub(crate) fn at(millis: u64) -> Timestamp {
    Timestamp::from_micros(1_700_000_000_000_000 + millis * 1000)
}

pub(crate) fn shard(value: u64) -> ShardId {
    ShardId::from_value(value)
}

pub(crate) fn number(value: u64) -> SequenceNumber {
    SequenceNumber::new(value)
}

/// A batch of one record of `data_bytes`.
pub(crate) fn frame(shard_value: u64, base: u64, data_bytes: usize) -> NewFrame {
    let mut builder = BatchBuilder::new(RecordLimits::default());
    let record = Record {
        partition_key: Bytes::from_static(b"key"),
        explicit_hash_key: None,
        data: vec![b'x'; data_bytes].into(),
        client_timestamp: None,
        headers: Vec::new(),
    };
    builder.push(&record, HashKey::of(b"key")).unwrap();
    NewFrame {
        shard: shard(shard_value),
        epoch: ShardEpoch::new(1),
        base: number(base),
        arrival: at(base),
        batch: builder.finish(
            ProducerId::new(9),
            ProducerSequence::new(base),
            Compression::None,
        ),
    }
}

/// Steps until nothing is left to do, two seconds apart.
pub(crate) fn keep_house(keeper: &mut Housekeeper, millis: &mut u64) {
    let mut idle = 0;
    while idle < 3 {
        *millis += 2000;
        let report = keeper.step(at(*millis)).unwrap();
        let busy = report.more || report.sealed + report.freed + report.copied > 0;
        idle = if busy { 0 } else { idle + 1 };
    }
}
