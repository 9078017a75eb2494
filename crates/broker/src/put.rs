//! Putting plain records: the broker is the encoder. One batch per shard, unless it grows too large.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use flumen_record::{
    Batch, BatchBuilder, Compression, ProducerId, ProducerSequence, RecordError, RecordLimits,
    ShardIndex, StreamIncarnation,
};

use crate::node::Node;
use crate::session::{self, AckReceiver};
use crate::streams::{Stream, StreamRef, StreamState};
use crate::{Ack, Appended, Error, PutOutcome, PutRecord};

/// A put does not wait longer for room in a lane's queue.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often records are sent on because their shard was closed meanwhile.
const REROUTES_MAX: u32 = 64;

type Outcome = Result<PutOutcome, Error>;

impl Node {
    /// [`crate::Broker::put_into`].
    pub(crate) async fn put(
        self: &Arc<Self>,
        stream: StreamRef<'_>,
        records: Vec<PutRecord>,
    ) -> Result<(StreamIncarnation, Vec<Outcome>), Error> {
        self.check_serving()?;
        let stream = self.streams.get(stream)?;
        let mut outcomes: Vec<Option<Outcome>> = vec![None; records.len()];
        let mut records: Vec<(usize, PutRecord)> = records.into_iter().enumerate().collect();
        for reroutes in 0..=REROUTES_MAX {
            let mut encoded = encode(&stream.state(), records, &mut outcomes);
            self.send(&stream, &mut encoded).await;
            records = settle(encoded, &mut outcomes, reroutes < REROUTES_MAX);
            if records.is_empty() {
                break;
            }
        }
        // Whatever was never answered belongs to a lane that has ended.
        let outcomes = outcomes.into_iter();
        let outcomes = outcomes.map(|outcome| outcome.unwrap_or(Err(Error::OutcomeUnknown)));
        Ok((stream.incarnation, outcomes.collect()))
    }

    /// Sends batches and waits for their answers.
    async fn send(self: &Arc<Self>, stream: &Arc<Stream>, batches: &mut [EncodedBatch]) {
        let (mut sender, mut receiver) = session::open(self, Arc::clone(stream), false);
        for (request, batch) in batches.iter().enumerate() {
            sender.gather(request as u64, batch.shard, batch.batch.clone());
        }
        sender.set_patience(PATIENCE);
        // What could not be handed over is among the acks.
        let _ = sender.flush().await;
        drop(sender);
        while let Some(acks) = next_acks(&mut receiver).await {
            for ack in acks {
                let at = usize::try_from(ack.request).ok();
                if let Some(batch) = at.and_then(|at| batches.get_mut(at)) {
                    batch.outcome = Some(ack.outcome);
                }
            }
        }
    }
}

/// The acks that are ready; `None` when all were fetched.
async fn next_acks(receiver: &mut AckReceiver) -> Option<Vec<Ack>> {
    let mut acks = Vec::new();
    poll_fn(|cx| receiver.poll_acks(cx, &mut acks)).await;
    (!acks.is_empty()).then_some(acks)
}

/// Records of one shard on their way, and what became of them.
#[derive(Debug)]
struct EncodedBatch {
    shard: ShardIndex,
    batch: Batch,
    /// Which records it holds.
    records: Vec<usize>,
    outcome: Option<Result<Appended, Error>>,
}

/// Tells what became of each record. Those whose shard was closed, or does not own them any more,
/// are given back with `reroute`, in their order: they were not stored.
fn settle(
    batches: Vec<EncodedBatch>,
    outcomes: &mut [Option<Outcome>],
    reroute: bool,
) -> Vec<(usize, PutRecord)> {
    let mut again = Vec::new();
    for batch in batches {
        let elsewhere = matches!(
            batch.outcome,
            Some(Err(Error::ShardClosed { .. }
                | Error::ShardNotFound { .. }
                | Error::WrongShard { .. }))
        );
        if elsewhere && reroute {
            let records = batch.batch.records();
            let records =
                records.map(|record| record.expect("BUG: encoded here, and does not decode"));
            again.extend(batch.records.iter().copied().zip(records));
            continue;
        }
        for (index, &record) in (0..).zip(&batch.records) {
            if let (Some(outcome), Some(told)) = (outcomes.get_mut(record), &batch.outcome) {
                let told = told.clone();
                *outcome = Some(told.map(|appended| put_outcome(batch.shard, &appended, index)));
            }
        }
    }
    again.sort_unstable_by_key(|(record, _)| *record);
    again
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

/// Encodes records for the shards that own them now; what cannot be is answered.
fn encode(
    state: &StreamState,
    records: Vec<(usize, PutRecord)>,
    outcomes: &mut [Option<Outcome>],
) -> Vec<EncodedBatch> {
    let limits = session::limits(state);
    let mut growing: BTreeMap<ShardIndex, Growing> = BTreeMap::new();
    let mut batches = Vec::new();
    for (at, record) in records {
        let mut refuse = |error| {
            if let Some(outcome) = outcomes.get_mut(at) {
                *outcome = Some(Err(error));
            }
        };
        let hash_key = record.hash_key();
        let shard = match state.route(hash_key) {
            Ok(shard) => shard.id.index(),
            Err(error) => {
                refuse(error);
                continue;
            }
        };
        let batch = growing.entry(shard).or_insert_with(|| Growing::new(limits));
        let pushed = match batch.builder.push(&record, hash_key) {
            Err(RecordError::BatchFull { .. }) if !batch.builder.is_empty() => {
                batches.push(batch.finish(shard));
                batch.builder.push(&record, hash_key)
            }
            pushed => pushed,
        };
        match pushed {
            Ok(()) => batch.records.push(at),
            Err(error) => refuse(error.into()),
        }
    }
    for (shard, mut batch) in growing {
        if !batch.builder.is_empty() {
            batches.push(batch.finish(shard));
        }
    }
    batches
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
            batch,
            records: std::mem::take(&mut self.records),
            outcome: None,
        }
    }
}
