//! What the tests share: nodes, streams, batches, sessions.

use std::future::poll_fn;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flumen_broker::{
    Ack, AckReceiver, AppendSender, Appended, Broker, BrokerConfig, Clock, Error, NewStream,
    ReadBudget, ReadReply, StartPosition, StreamSettings,
};
use flumen_log::{DiskStorage, MemoryStorage, Storage};
use flumen_record::{
    Batch, BatchBuilder, Compression, Durability, Frames, HashKey, ProducerId, ProducerSequence,
    Record, RecordLimits, SequenceNumber, ShardIndex, StreamName, Timestamp,
};

pub(crate) const WAIT: Duration = Duration::from_secs(20);

/// Settings with small files, so that tests see segments come and go.
pub(crate) fn config() -> BrokerConfig {
    let mut config = BrokerConfig::default();
    config.log.segment_bytes_min = 1 << 20;
    config.log.segment_bytes_max = 4 << 20;
    config.log.free_space_floor_bytes = Some(0);
    config
}

pub(crate) fn clock() -> Clock {
    Clock::manual(Timestamp::from_micros(1_800_000_000_000_000))
}

/// A node over memory.
pub(crate) async fn open(storage: &MemoryStorage) -> Broker {
    open_with(Arc::new(storage.clone()), config(), clock()).await
}

pub(crate) async fn open_with(
    storage: Arc<dyn Storage>,
    config: BrokerConfig,
    clock: Clock,
) -> Broker {
    // What these tests call now is so.
    clock.set_synchronised(true);
    let broker = open_doubting(storage, config, clock.clone()).await;
    clock.set_synchronised(false);
    broker
}

/// On a machine whose kernel does not say that its clock is right.
pub(crate) async fn open_doubting(
    storage: Arc<dyn Storage>,
    config: BrokerConfig,
    clock: Clock,
) -> Broker {
    Broker::open(storage, config, clock)
        .await
        .expect("the node opens")
}

/// A node over a real directory.
pub(crate) async fn open_dir(dir: &Path) -> Broker {
    let storage = DiskStorage::open(dir, WAIT).expect("the directory opens");
    open_with(Arc::new(storage), config(), Clock::system()).await
}

pub(crate) fn name(name: &str) -> StreamName {
    name.parse().unwrap()
}

pub(crate) fn shard(index: u32) -> ShardIndex {
    ShardIndex::new(index)
}

pub(crate) fn number(value: u64) -> SequenceNumber {
    SequenceNumber::new(value)
}

pub(crate) fn level(durability: Durability) -> StreamSettings {
    StreamSettings {
        durability,
        ..StreamSettings::default()
    }
}

pub(crate) async fn create(
    broker: &Broker,
    stream: &str,
    shards: u32,
    settings: StreamSettings,
) -> StreamName {
    let name = name(stream);
    let new = NewStream {
        name: name.clone(),
        shards,
        settings,
    };
    broker
        .create_stream(new)
        .await
        .expect("the stream is created");
    name
}

pub(crate) fn record(key: &str, data: impl Into<Bytes>) -> Record {
    Record {
        partition_key: Bytes::copy_from_slice(key.as_bytes()),
        explicit_hash_key: None,
        data: data.into(),
        client_timestamp: None,
        headers: Vec::new(),
    }
}

/// A record that falls into shard `index` of `of`.
pub(crate) fn record_for(index: u32, of: u32, data: impl Into<Bytes>) -> Record {
    let start = u128::MAX / u128::from(of) * u128::from(index);
    Record {
        explicit_hash_key: Some(HashKey::new(start + 1000)),
        ..record("key", data)
    }
}

pub(crate) fn batch(records: &[Record], producer: ProducerId, sequence: u64) -> Batch {
    let mut builder = BatchBuilder::new(RecordLimits {
        max_record_bytes: 10 << 20,
    });
    for record in records {
        builder.push(record, record.hash_key()).unwrap();
    }
    builder.finish(producer, ProducerSequence::new(sequence), Compression::None)
}

/// A batch of one record for a stream with one shard.
pub(crate) fn one(data: impl Into<Bytes>, producer: ProducerId, sequence: u64) -> Batch {
    batch(&[record("key", data)], producer, sequence)
}

/// Both halves of a session.
pub(crate) struct Session {
    pub(crate) sender: AppendSender,
    pub(crate) receiver: AckReceiver,
}

impl Session {
    pub(crate) fn open(broker: &Broker, stream: &StreamName) -> Self {
        let (sender, receiver) = broker.append_session(stream).expect("the session opens");
        Self { sender, receiver }
    }

    /// Appends to shard 0 and waits for the ack.
    pub(crate) async fn append(&mut self, batch: Batch) -> Result<Appended, Error> {
        self.append_to(shard(0), batch).await
    }

    pub(crate) async fn append_to(
        &mut self,
        shard: ShardIndex,
        batch: Batch,
    ) -> Result<Appended, Error> {
        self.sender.append(7, shard, batch);
        // What it refuses is told by the ack.
        let _ = self.sender.flush().await;
        let acks = self.acks(1).await;
        assert_eq!(acks[0].request, 7);
        acks.into_iter().next().unwrap().outcome
    }

    /// Waits for exactly `count` acks.
    pub(crate) async fn acks(&mut self, count: usize) -> Vec<Ack> {
        let mut acks = Vec::new();
        while acks.len() < count {
            let before = acks.len();
            let polled = poll_fn(|cx| self.receiver.poll_acks(cx, &mut acks));
            tokio::time::timeout(WAIT, polled).await.expect("acks come");
            assert!(
                acks.len() > before,
                "the session ended after {before} of {count} acks"
            );
        }
        assert_eq!(acks.len(), count);
        acks
    }
}

pub(crate) const BUDGET: ReadBudget = ReadBudget {
    bytes: 1 << 20,
    records: u64::MAX,
};

/// Records of a reply, with their numbers; those below the start are left out.
pub(crate) fn records(reply: &ReadReply) -> Vec<(u64, Record)> {
    let mut records = Vec::new();
    for piece in &reply.pieces {
        for frame in Frames::new(piece.clone()) {
            let frame = frame.expect("a frame is whole");
            for (number, record) in (frame.header.base.value()..).zip(frame.batch.records()) {
                if number >= reply.start.value() {
                    records.push((number, record.expect("a record is whole")));
                }
            }
        }
    }
    records
}

/// The data of all records from `from` to the durable end, checked to be dense but for jumps.
pub(crate) async fn read_all(
    broker: &Broker,
    stream: &StreamName,
    shard: ShardIndex,
) -> Vec<(u64, Bytes)> {
    let mut start = StartPosition::TrimHorizon;
    let mut found = Vec::new();
    loop {
        let reply = broker
            .read(stream, shard, start, BUDGET, Duration::ZERO)
            .await
            .expect("it reads");
        found.extend(
            records(&reply)
                .into_iter()
                .map(|(number, record)| (number, record.data)),
        );
        if reply.pieces.is_empty() {
            assert!(
                reply.next >= reply.durable_end,
                "{} < {}",
                reply.next,
                reply.durable_end
            );
            return found;
        }
        start = StartPosition::At(reply.next);
    }
}

/// Data that counts from 0, as [`read_all`] returns it.
pub(crate) fn counted(range: std::ops::Range<u64>) -> Vec<(u64, Bytes)> {
    range
        .map(|number| (number, Bytes::from(number.to_string())))
        .collect()
}

/// Moves the clock on, second by second, until it is so: idle rounds, sweeps and snapshots are due
/// by the clock.
pub(crate) async fn eventually(clock: &Clock, what: &str, mut is_so: impl FnMut() -> bool) {
    let mut waited = Duration::ZERO;
    while !is_so() {
        assert!(waited < WAIT, "in vain: {what}");
        clock.advance(Duration::from_secs(1));
        tokio::time::sleep(Duration::from_millis(50)).await;
        waited += Duration::from_millis(50);
    }
}
