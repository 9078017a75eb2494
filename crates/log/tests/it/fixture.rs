//! A log under test: frames to write, what they should read back as, and the time.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use flumen_log::{
    BatchMark, FoundFrames, Log, LogConfig, LogKey, LogReader, NewFrame, Recovery, Replay, Stay,
    Storage,
};
use flumen_record::{
    BatchBuilder, Compression, Durability, Frames, HashKey, ProducerId, ProducerSequence, Record,
    RecordLimits, SequenceNumber, ShardEpoch, ShardId, Timestamp,
};

/// The usual log.
pub(crate) const DISK: LogKey = LogKey {
    durability: Durability::Disk,
    class_hours: 24,
    lane: 0,
};

/// One that acknowledges before it syncs.
pub(crate) const MEMORY: LogKey = LogKey {
    durability: Durability::Memory,
    class_hours: 24,
    lane: 0,
};

/// All that a log holds of a shard.
pub(crate) const ALL: Stay = Stay::new(DISK, ShardEpoch::new(0), SequenceNumber::ZERO, None);

/// Small segments, so that tests roll.
pub(crate) fn small_segments() -> LogConfig {
    LogConfig {
        segment_bytes_min: 128 << 10,
        segment_bytes_max: 256 << 10,
        free_space_floor_bytes: Some(0),
        ..LogConfig::default()
    }
}

/// A point in time, in milliseconds of the test.
pub(crate) fn at(millis: u64) -> Timestamp {
    Timestamp::from_micros(1_700_000_000_000_000 + millis * 1000)
}

pub(crate) fn shard(number: u64) -> ShardId {
    ShardId::from_value(number)
}

pub(crate) fn number(value: u64) -> SequenceNumber {
    SequenceNumber::new(value)
}

/// A batch of `count` records of `data_bytes` each.
pub(crate) fn frame(
    shard_number: u64,
    base: u64,
    count: u32,
    data_bytes: usize,
    now: Timestamp,
) -> NewFrame {
    let mut builder = BatchBuilder::new(RecordLimits::default());
    for index in 0..count {
        let seed = base + u64::from(index) + shard_number * 1000;
        let data: Vec<u8> = (0..data_bytes)
            .map(|byte| seed.wrapping_add(byte as u64).to_le_bytes()[0])
            .collect();
        let record = Record {
            partition_key: Bytes::from_static(b"key"),
            explicit_hash_key: None,
            data: data.into(),
            client_timestamp: None,
            headers: Vec::new(),
        };
        builder.push(&record, HashKey::of(b"key")).unwrap();
    }
    NewFrame {
        shard: shard(shard_number),
        epoch: ShardEpoch::new(1),
        base: number(base),
        arrival: now,
        batch: builder.finish(
            ProducerId::new(9),
            ProducerSequence::new(base),
            Compression::None,
        ),
    }
}

/// Remembers what opening handed back.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) states: BTreeMap<ShardId, Bytes>,
    pub(crate) batches: Vec<(ShardId, BatchMark, bool)>,
}

impl Replay for Seen {
    fn state(&mut self, shard: ShardId, state: Bytes) {
        assert!(
            self.states.insert(shard, state).is_none(),
            "a state comes once"
        );
    }

    fn batch(&mut self, shard: ShardId, mark: &BatchMark, partial: bool) {
        self.batches.push((shard, *mark, partial));
    }
}

pub(crate) fn open(
    storage: &Arc<dyn Storage>,
    key: LogKey,
    config: &LogConfig,
    now: Timestamp,
) -> (Log, Recovery, Seen) {
    let mut seen = Seen::default();
    let (log, recovery) =
        Log::open(Arc::clone(storage), key, config.clone(), now, &mut seen).unwrap();
    (log, recovery, seen)
}

/// Bases and counts of the frames in an answer, each verified.
pub(crate) fn frames_of(found: &FoundFrames) -> Vec<(u64, u32)> {
    let mut all = Vec::new();
    let mut bytes = 0;
    for piece in &found.pieces {
        bytes += piece.len();
        for frame in Frames::new(piece.clone()) {
            let frame = frame.unwrap();
            all.push((frame.header.base.value(), frame.batch.header().count));
        }
    }
    assert_eq!(bytes, found.bytes);
    all
}

/// Reads a shard from `from` to its end, cold, a few frames at a time; checks that the answers
/// follow one another.
pub(crate) fn read_all(reader: &LogReader, shard_number: u64, from: u64) -> Vec<(u64, u32)> {
    let mut all = Vec::new();
    let mut from = number(from);
    let end = reader.bounds(shard(shard_number)).unwrap().durable_end;
    while from < end {
        let found = reader.read_cold(shard(shard_number), from, 3000).unwrap();
        let frames = frames_of(&found);
        if let Some((base, count)) = frames.last() {
            assert_eq!(found.next.value(), base + u64::from(*count));
        }
        all.extend(frames);
        assert!(found.next > from, "no progress at {from}");
        from = found.next;
    }
    all
}
