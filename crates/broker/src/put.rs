//! Putting plain records: the broker is the encoder. One batch per shard, unless it grows too large.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use flumen_record::{
    Batch, BatchBuilder, Compression, ProducerId, ProducerSequence, RecordError, RecordLimits,
    ShardIndex, StreamName,
};

use crate::node::Node;
use crate::session::{self, AckReceiver};
use crate::streams::StreamState;
use crate::{Ack, Appended, Error, PutOutcome, PutRecord};

/// A put does not wait longer for room in a lane's queue.
const PATIENCE: Duration = Duration::from_secs(5);

type Outcome = Result<PutOutcome, Error>;

impl Node {
    /// [`crate::Broker::put`].
    pub(crate) async fn put(
        self: &Arc<Self>,
        stream: &StreamName,
        records: Vec<PutRecord>,
    ) -> Result<Vec<Outcome>, Error> {
        self.check_serving()?;
        let stream = self.streams.get(stream)?;
        let mut encoded = encode(&stream.state(), &records);
        drop(records);
        let (mut sender, mut receiver) = session::open(self, stream, false);
        for (request, batch) in encoded.batches.iter_mut().enumerate() {
            if let Some(bytes) = batch.bytes.take() {
                sender.gather(request as u64, batch.shard, bytes);
            }
        }
        sender.set_patience(PATIENCE);
        // What could not be handed over is among the acks.
        let _ = sender.flush().await;
        drop(sender);
        while let Some(acks) = next_acks(&mut receiver).await {
            acks.into_iter().for_each(|ack| encoded.answer(ack));
        }
        // Whatever was never answered belongs to a lane that has ended.
        let outcomes = encoded.outcomes.into_iter();
        Ok(outcomes
            .map(|outcome| outcome.unwrap_or(Err(Error::OutcomeUnknown)))
            .collect())
    }
}

/// The acks that are ready; `None` when all were fetched.
async fn next_acks(receiver: &mut AckReceiver) -> Option<Vec<Ack>> {
    let mut acks = Vec::new();
    poll_fn(|cx| receiver.poll_acks(cx, &mut acks)).await;
    (!acks.is_empty()).then_some(acks)
}

/// Records on their way, and what became of each.
#[derive(Debug)]
struct Encoded {
    batches: Vec<EncodedBatch>,
    outcomes: Vec<Option<Outcome>>,
}

#[derive(Debug)]
struct EncodedBatch {
    shard: ShardIndex,
    /// Taken when it is sent.
    bytes: Option<Batch>,
    /// Which records it holds.
    records: Vec<usize>,
}

impl Encoded {
    fn answer(&mut self, ack: Ack) {
        let batch = usize::try_from(ack.request)
            .ok()
            .and_then(|at| self.batches.get(at));
        let Some(batch) = batch else { return };
        for (index, &record) in (0..).zip(&batch.records) {
            if let Some(outcome) = self.outcomes.get_mut(record) {
                *outcome = Some(
                    ack.outcome
                        .clone()
                        .map(|appended| put_outcome(batch.shard, &appended, index)),
                );
            }
        }
    }
}

fn put_outcome(shard: ShardIndex, appended: &Appended, index: u64) -> PutOutcome {
    PutOutcome {
        shard,
        sequence_number: appended.base.plus(index),
        arrival: appended.arrival,
        durability: appended.durability,
    }
}

/// A shard's batch while it grows.
struct Growing {
    builder: BatchBuilder,
    records: Vec<usize>,
}

fn encode(state: &StreamState, records: &[PutRecord]) -> Encoded {
    let limits = session::limits(state);
    let mut growing: BTreeMap<ShardIndex, Growing> = BTreeMap::new();
    let mut encoded = Encoded {
        batches: Vec::new(),
        outcomes: Vec::with_capacity(records.len()),
    };
    for (at, record) in records.iter().enumerate() {
        let hash_key = record.hash_key();
        let shard = match state.route(hash_key) {
            Ok(shard) => shard.id.index(),
            Err(error) => {
                encoded.outcomes.push(Some(Err(error)));
                continue;
            }
        };
        let batch = growing.entry(shard).or_insert_with(|| Growing::new(limits));
        let pushed = match batch.builder.push(record, hash_key) {
            Err(RecordError::BatchFull { .. }) if !batch.builder.is_empty() => {
                encoded.batches.push(batch.finish(shard));
                batch.builder.push(record, hash_key)
            }
            pushed => pushed,
        };
        encoded.outcomes.push(match pushed {
            Ok(()) => {
                batch.records.push(at);
                None
            }
            Err(error) => Some(Err(error.into())),
        });
    }
    for (shard, mut batch) in growing {
        if !batch.builder.is_empty() {
            encoded.batches.push(batch.finish(shard));
        }
    }
    encoded
}

impl Growing {
    fn new(limits: RecordLimits) -> Self {
        Self {
            builder: BatchBuilder::new(limits),
            records: Vec::new(),
        }
    }

    fn finish(&mut self, shard: ShardIndex) -> EncodedBatch {
        let batch = self.builder.finish(
            ProducerId::NONE,
            ProducerSequence::new(0),
            Compression::None,
        );
        EncodedBatch {
            shard,
            bytes: Some(batch),
            records: std::mem::take(&mut self.records),
        }
    }
}
