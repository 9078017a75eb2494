//! Producers: batches under a producer id that are sent again until they are answered, and plain puts.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use flumen_broker::{Ack, Appended, Broker, Error};
use flumen_record::{
    Batch, BatchBuilder, Compression, FRAME_HEADER_BYTES, HashKey, HashRange, ProducerId,
    ProducerSequence, Record, RecordLimits, ShardIndex, StreamId, StreamName,
};
use flumen_world::{Clock, lock};

use crate::life::model::{BATCH_RECORDS_MAX, Place, RecordId};
use crate::life::reading::Shared;
use crate::random::Dice;

/// Batches of one session at most.
const WINDOW: u64 = 6;
/// A batch that is refused again and again is given up.
const TRIES_MAX: u32 = 40;

/// A batch on its way.
#[derive(Debug, Clone)]
struct Pending {
    shard: u32,
    sequence: u64,
    batch: Batch,
    records: Vec<(RecordId, HashKey)>,
    tries: u32,
}

/// What a producer remembers, also over the broker's restarts.
#[derive(Debug)]
pub(crate) struct Producer {
    pub(crate) name: u32,
    stream: StreamName,
    /// The life of the stream that everything below is about.
    id: Option<StreamId>,
    producer: Option<ProducerId>,
    next: BTreeMap<u32, u64>,
    pending: Vec<Pending>,
    /// It has a session.
    pub(crate) is_busy: bool,
    dice: Dice,
}

/// A producer that several tasks know.
pub(crate) type SharedProducer = Arc<Mutex<Producer>>;

/// How a session of a producer goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Session {
    /// New batches.
    pub(crate) batches: u64,
    /// Acks are not read: the connection breaks.
    pub(crate) loses_acks: bool,
    /// Bytes of a record's data at most.
    pub(crate) data_max: u64,
}

/// What an answer means for a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// It is not stored by this attempt; another may succeed.
    Later,
    /// Nobody knows.
    Unknown,
    /// The shard has never stored it: its records go to the children.
    Elsewhere,
    /// The producer is forgotten: another id, and nobody knows what became of this.
    Forgotten,
    /// It was stored long ago.
    Stored,
    /// It will never be stored.
    Never,
}

fn meaning(error: &Error) -> Meaning {
    match error {
        Error::ShardClosed { .. } | Error::WrongShard { .. } => Meaning::Elsewhere,
        Error::ProducerStateLost { .. } => Meaning::Forgotten,
        Error::AlreadyAppended { .. } => Meaning::Stored,
        Error::OutcomeUnknown | Error::Poisoned => Meaning::Unknown,
        Error::StreamNotFound { .. } | Error::ShardNotFound { .. } => Meaning::Never,
        _ => Meaning::Later,
    }
}

impl Producer {
    pub(crate) fn new(name: u32, stream: StreamName, dice: Dice) -> SharedProducer {
        Arc::new(Mutex::new(Self {
            name,
            stream,
            id: None,
            producer: None,
            next: BTreeMap::new(),
            pending: Vec::new(),
            is_busy: false,
            dice,
        }))
    }

    /// Batches that are not answered.
    pub(crate) fn unanswered(&self) -> usize {
        self.pending.len()
    }

    pub(crate) fn stream(&self) -> &StreamName {
        &self.stream
    }

    /// The stream has begun another life, or the producer a new one.
    fn begin_anew(&mut self, id: Option<StreamId>, shared: &Shared) {
        let mut model = lock(shared);
        for pending in self.pending.drain(..) {
            for (record, _) in pending.records {
                model.not_acked(record, true);
            }
        }
        self.id = id;
        self.producer = None;
        self.next.clear();
    }

    /// Encodes a batch for a shard, next in sequence.
    fn add(&mut self, shard: u32, records: Vec<(RecordId, HashKey)>, bytes: u64) {
        let Some(producer) = self.producer else {
            return;
        };
        let sequence = self.next.entry(shard).or_default();
        let batch = encode(&records, bytes, producer, *sequence);
        self.pending.push(Pending {
            shard,
            sequence: *sequence,
            batch,
            records,
            tries: 0,
        });
        *sequence += 1;
    }
}

/// Bytes that a record takes at most, with a batch and a frame of its own.
pub(crate) fn stored_bytes(data: u64) -> u64 {
    data.max(32) + FRAME_HEADER_BYTES as u64 + Batch::HEADER_BYTES as u64 + 64
}

/// A record with its number in it, as JSON.
pub(crate) fn record(id: RecordId, key: HashKey, bytes: u64) -> Record {
    let mut data = format!("{{\"n\":\"{id:012}\",\"p\":\"").into_bytes();
    let pad = usize::try_from(bytes).unwrap_or(0);
    data.resize(pad.saturating_sub(2).max(data.len()), b'x');
    data.extend_from_slice(b"\"}");
    Record {
        partition_key: Bytes::from_static(b"key"),
        explicit_hash_key: Some(key),
        data: data.into(),
        client_timestamp: None,
        headers: Vec::new(),
    }
}

fn encode(
    records: &[(RecordId, HashKey)],
    bytes: u64,
    producer: ProducerId,
    sequence: u64,
) -> Batch {
    let mut builder = BatchBuilder::new(RecordLimits::MAX);
    for (id, key) in records {
        let pushed = builder.push(&record(*id, *key, bytes), *key);
        assert!(pushed.is_ok(), "BUG: a small record does not fit");
    }
    builder.finish(producer, ProducerSequence::new(sequence), Compression::None)
}

/// A key somewhere in a range.
pub(crate) fn key_in(dice: &mut Dice, range: HashRange) -> HashKey {
    let width = range.end.value() - range.start.value();
    let drawn = u128::from(dice.next()) << 64 | u128::from(dice.next());
    let at = width.checked_add(1).map_or(drawn, |width| drawn % width);
    HashKey::new(range.start.value() + at)
}

/// One session of a producer: what is not answered is sent again first.
pub(crate) async fn produce(
    broker: Broker,
    clock: Clock,
    shared: Shared,
    producer: SharedProducer,
    session: Session,
) {
    let sent = send(&broker, &shared, &producer, session).await;
    if let Err(error) = sent {
        let mut model = lock(&shared);
        model.say(|| format!("session ended: {error}"));
        let allowed = model.allows(&error);
        if !allowed {
            model.check(Err(format!("a producer's session was refused: {error:?}")));
        }
    }
    // A while later it may try again.
    clock.sleep(Duration::from_millis(100)).await;
    lock(&producer).is_busy = false;
}

async fn send(
    broker: &Broker,
    shared: &Shared,
    producer: &SharedProducer,
    session: Session,
) -> Result<(), Error> {
    let stream = lock(producer).stream.clone();
    let described = broker.describe_stream(&stream)?;
    if lock(producer).id != Some(described.id) {
        lock(producer).begin_anew(Some(described.id), shared);
    }
    if lock(producer).producer.is_none() {
        let id = broker.open_producer().await?;
        lock(producer).producer = Some(id);
    }
    let open: Vec<(u32, HashRange)> = {
        let open = described.shards.iter().filter(|shard| shard.open);
        open.map(|shard| (shard.index.value(), shard.range))
            .collect()
    };
    fill(shared, producer, &open, described.id, session);
    let (mut sender, mut receiver) = broker.append_session(&stream)?;
    let window = {
        let mut producer = lock(producer);
        let mut model = lock(shared);
        for pending in &mut producer.pending {
            pending.tries += 1;
            for (record, _) in &pending.records {
                model.attempt(*record);
            }
        }
        producer.pending.clone()
    };
    for (request, pending) in window.iter().enumerate() {
        let shard = ShardIndex::new(pending.shard);
        sender.append(request as u64, shard, pending.batch.clone());
    }
    let flushed = sender.flush().await;
    drop(sender);
    if session.loses_acks {
        let mut model = lock(shared);
        model.count("lost acks");
        for pending in &window {
            for (record, _) in &pending.records {
                model.not_acked(*record, true);
            }
        }
        return flushed;
    }
    let mut answers: BTreeMap<usize, Result<Appended, Error>> = BTreeMap::new();
    loop {
        let mut acks: Vec<Ack> = Vec::new();
        poll_fn(|cx| receiver.poll_acks(cx, &mut acks)).await;
        if acks.is_empty() {
            break;
        }
        for ack in acks {
            let at = usize::try_from(ack.request).unwrap_or(usize::MAX);
            let Some(pending) = window.get(at) else {
                continue;
            };
            note(shared, described.id, pending, &ack.outcome);
            answers.insert(at, ack.outcome);
        }
    }
    settle(shared, producer, &window, &answers, &open);
    flushed
}

/// New batches for shards that are open.
fn fill(
    shared: &Shared,
    producer: &SharedProducer,
    open: &[(u32, HashRange)],
    id: StreamId,
    session: Session,
) {
    let mut producer = lock(producer);
    let mut model = lock(shared);
    let number = producer.producer.map_or(0, ProducerId::value);
    let room = WINDOW.saturating_sub(producer.pending.len() as u64);
    for _ in 0..session.batches.min(room) {
        let drawn = producer.dice.below(open.len() as u64);
        let Some((shard, range)) = open.get(crate::random::place(drawn)).copied() else {
            return;
        };
        let bytes = producer.dice.between(16, session.data_max.max(17));
        let count = producer.dice.between(1, BATCH_RECORDS_MAX);
        let records = (0..count).map(|_| {
            let key = key_in(&mut producer.dice, range);
            (model.new_record(id, key, number, stored_bytes(bytes)), key)
        });
        let records: Vec<_> = records.collect();
        producer.add(shard, records, bytes);
    }
}

/// What an answer says about the records of a batch.
fn note(shared: &Shared, id: StreamId, pending: &Pending, outcome: &Result<Appended, Error>) {
    let mut model = lock(shared);
    match outcome {
        Ok(appended) => {
            model.count(if appended.duplicate {
                "duplicates"
            } else {
                "appends"
            });
            if appended.count as usize != pending.records.len() {
                let told = appended.count;
                model.check(Err(format!(
                    "{told} records of {pending:?} are acknowledged"
                )));
            }
            for (number, (record, _)) in (appended.base.value()..).zip(&pending.records) {
                let place = Place {
                    shard: pending.shard,
                    number,
                    arrival: appended.arrival,
                };
                let checked = model.acked(*record, place, appended.durability);
                model.check(checked);
            }
        }
        Err(error) => {
            model.count("refused batches");
            let checked = match meaning(error) {
                Meaning::Elsewhere | Meaning::Never => model.refused_for_good(id, pending, error),
                Meaning::Later => {
                    pending
                        .records
                        .iter()
                        .for_each(|(it, _)| model.not_acked(*it, false));
                    Ok(())
                }
                Meaning::Unknown | Meaning::Forgotten | Meaning::Stored => {
                    pending
                        .records
                        .iter()
                        .for_each(|(it, _)| model.not_acked(*it, true));
                    Ok(())
                }
            };
            model.check(checked);
            let forgotten = model.may_have_forgotten(id, pending.shard, &pending.records);
            let legal = matches!(error, Error::ProducerStateLost { .. }) && forgotten;
            if !legal && !model.allows_append(id, error) {
                let what = (pending.shard, pending.sequence);
                model.check(Err(format!("a batch {what:?} was refused: {error:?}")));
            }
        }
    }
    model.say(|| {
        let told = match outcome {
            Ok(it) => format!(
                "{} ({})",
                it.base,
                if it.duplicate { "known" } else { "new" }
            ),
            Err(error) => error.reason().to_owned(),
        };
        let (shard, sequence) = (pending.shard, pending.sequence);
        let records = pending.records.len();
        format!(
            "append to {}/{shard} seq {sequence} x{records} -> {told}",
            id.value()
        )
    });
}

impl crate::life::model::Model {
    /// Whether nothing of a producer is kept in a shard: it may be forgotten then.
    fn may_have_forgotten(
        &self,
        id: StreamId,
        shard: u32,
        records: &[(RecordId, HashKey)],
    ) -> bool {
        let first = records.first().and_then(|(id, _)| self.record(*id));
        let producer = first.map_or(0, |record| record.producer);
        let shard = self.streams.get(&id).and_then(|it| it.shards.get(&shard));
        shard.is_none_or(|shard| {
            let mut kept = shard.numbers.range(shard.horizon..);
            !kept.any(|(_, (id, _))| {
                self.record(*id)
                    .is_some_and(|it| it.must_exist() && it.producer == producer)
            })
        })
    }

    fn refused_for_good(
        &mut self,
        id: StreamId,
        pending: &Pending,
        error: &Error,
    ) -> crate::life::model::Checked {
        let is_there = self.streams.get(&id).is_some_and(|stream| {
            !stream.is_deleted
                && !matches!(stream.pending, Some(crate::life::model::Change::Delete))
        });
        let certain = is_there && matches!(error, Error::ShardClosed { .. });
        for (record, _) in &pending.records {
            if certain {
                self.never_stored(*record, error.reason())?;
            } else {
                self.not_acked(*record, false);
            }
        }
        Ok(())
    }
}

/// What a producer does about the answers.
fn settle(
    shared: &Shared,
    producer: &SharedProducer,
    window: &[Pending],
    answers: &BTreeMap<usize, Result<Appended, Error>>,
    open: &[(u32, HashRange)],
) {
    let mut producer = lock(producer);
    let mut again = Vec::new();
    let mut forgotten = false;
    for (at, pending) in window.iter().enumerate() {
        match answers.get(&at) {
            Some(Ok(_)) => {}
            None => again.push(pending.clone()),
            Some(Err(error)) => match meaning(error) {
                Meaning::Later | Meaning::Unknown if pending.tries < TRIES_MAX => {
                    again.push(pending.clone());
                }
                Meaning::Later | Meaning::Unknown | Meaning::Forgotten => forgotten = true,
                // Its records are given up: the children get others.
                Meaning::Elsewhere | Meaning::Stored | Meaning::Never => {}
            },
        }
    }
    let _ = open;
    producer.pending = again;
    if forgotten {
        let id = producer.id;
        producer.begin_anew(id, shared);
    }
}

/// Puts records without a producer id.
pub(crate) async fn put(
    broker: Broker,
    shared: Shared,
    stream: StreamName,
    mut dice: Dice,
    count: u64,
    data_max: u64,
) {
    let Ok(described) = broker.describe_stream(&stream) else {
        return;
    };
    let mut ids = Vec::new();
    let mut records = Vec::new();
    {
        let mut model = lock(&shared);
        for _ in 0..count {
            let key = key_in(&mut dice, HashRange::FULL);
            let bytes = dice.between(16, data_max.max(17));
            let id = model.new_record(described.id, key, 0, stored_bytes(bytes));
            model.attempt(id);
            ids.push(id);
            records.push(record(id, key, bytes));
        }
    }
    let answer = broker.put(&stream, records).await;
    let mut model = lock(&shared);
    model.count("puts");
    let outcomes = match answer {
        Ok(outcomes) => outcomes,
        Err(error) => ids.iter().map(|_| Err(error.clone())).collect(),
    };
    let mut told = Vec::new();
    for (id, outcome) in ids.iter().zip(outcomes) {
        match outcome {
            Ok(put) => {
                let place = Place {
                    shard: put.shard.value(),
                    number: put.sequence_number.value(),
                    arrival: put.arrival,
                };
                told.push(format!("{}:{}", place.shard, place.number));
                let checked = model.acked(*id, place, put.durability);
                model.check(checked);
            }
            Err(error) => {
                told.push(error.reason().to_owned());
                model.not_acked(*id, meaning(&error) == Meaning::Unknown);
                if !model.allows_append(described.id, &error) {
                    model.check(Err(format!("record {id} was refused: {error:?}")));
                }
            }
        }
    }
    model.say(|| format!("put to {stream} -> {}", told.join(" ")));
}
