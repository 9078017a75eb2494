//! A load that remembers every ack, and the check of what a broker kept.
//!
//! A [`Pipeline`] sends batches whose bytes follow from (seed, pipeline, sequence), so that nothing
//! but acks has to be remembered. [`Journal::verify`] reads what is new since the last time and
//! holds it against the acks: nothing acknowledged is lost, moved or changed, an idempotent
//! pipeline's batches stand exactly once and in order, a batch sent without a producer id at most once.
//! What lies below a shard's horizon may be gone, when its stream is bounded in bytes and keeps as
//! much as its bound.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use flumen_api::v1::admin_client::AdminClient;
use flumen_api::v1::consumer_client::ConsumerClient;
use flumen_api::v1::producer_client::ProducerClient;
use flumen_api::v1::{
    AppendBatch, AppendRequest, CreateStreamRequest, DescribeStreamRequest, Durability,
    OpenProducerRequest, ReadRequest, StartPosition, start_position::Position,
};
use flumen_record::{
    Batch, BatchBuilder, Compression, Frames, HashKey, ProducerId, ProducerSequence, Record,
    RecordLimits,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::Channel;

const LIMITS: RecordLimits = RecordLimits {
    max_record_bytes: 1 << 20,
};
const MESSAGE_BYTES_MAX: usize = 17 << 20;
/// What a stream may keep less than its bound: what is trimmed ends with a whole round.
const TRIM_STEP: u64 = 1 << 20;
/// Numbers are dense but for jumps of at least this much, where some may have been given out and lost.
const JUMP: u64 = 1 << 32;

/// A small generator: the same seed gives the same run.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number (splitmix64).
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// One producer sending to one shard.
#[derive(Debug)]
pub(crate) struct Pipeline {
    seed: u64,
    /// Its place among the journal's pipelines.
    number: u64,
    stream: String,
    shard: u32,
    /// A place in the shard's slice of the key space.
    hash_key: HashKey,
    /// `NONE` for at-least-once: what is not acknowledged is never sent again.
    producer: ProducerId,
    /// Where each acknowledged batch lies, by its number; `None` where the broker no longer knows
    /// (a sealed segment remembers each producer's last batch only).
    acked: BTreeMap<u64, Option<u64>>,
    /// First number never sent.
    sent: u64,
}

impl Pipeline {
    /// The batch with this number: 1 to 8 records of up to 700 bytes.
    fn batch(&self, number: u64) -> Batch {
        let mut random = Random::new(self.seed ^ (self.number << 48) ^ number);
        let mut builder = BatchBuilder::new(LIMITS);
        for place in 0..=random.below(8) {
            let mut data = Vec::with_capacity(1024);
            data.extend_from_slice(&self.number.to_le_bytes());
            data.extend_from_slice(&number.to_le_bytes());
            data.extend_from_slice(&place.to_le_bytes());
            for _ in 0..random.below(84) {
                data.extend_from_slice(&random.next().to_le_bytes());
            }
            let record = Record {
                partition_key: Bytes::from_static(b"k"),
                explicit_hash_key: Some(self.hash_key),
                data: Bytes::from(data),
                client_timestamp: None,
                headers: Vec::new(),
            };
            builder
                .push(&record, self.hash_key)
                .expect("a record within its limits");
        }
        let sequence = if self.producer == ProducerId::NONE {
            0
        } else {
            number
        };
        builder.finish(
            self.producer,
            ProducerSequence::new(sequence),
            Compression::None,
        )
    }

    /// First batch to send: an idempotent producer begins with what is not acknowledged.
    fn first(&self) -> u64 {
        if self.producer == ProducerId::NONE {
            return self.sent;
        }
        (0..)
            .find(|number| !self.acked.contains_key(number))
            .expect("an end")
    }

    /// Batches sent whose fate is not known.
    pub(crate) fn in_flight(&self) -> u64 {
        self.sent.saturating_sub(self.first())
    }

    /// Sends with up to 32 batches in flight until the broker is gone or `stop` changes. A refusal
    /// is returned: none is expected.
    async fn send(&mut self, channel: Channel, stop: watch::Receiver<bool>) -> Result<(), String> {
        let (messages, queue) = mpsc::channel(32);
        let open = AppendRequest {
            stream: self.stream.clone(),
            batches: Vec::new(),
            stream_incarnation: 0,
        };
        messages.send(open).await.expect("room for the first");
        let mut client = ProducerClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let Ok(session) = client.append(ReceiverStream::new(queue)).await else {
            return Ok(());
        };
        let mut acks = session.into_inner();
        let mut next = self.first();
        let mut stop = stop;
        while !*stop.borrow() {
            while next < self.first() + 32 {
                let batch = AppendBatch {
                    request: next,
                    shard: self.shard,
                    batch: self.batch(next).bytes().clone(),
                };
                let message = AppendRequest {
                    stream: String::new(),
                    batches: vec![batch],
                    stream_incarnation: 0,
                };
                if messages.try_send(message).is_err() {
                    break;
                }
                next += 1;
                self.sent = self.sent.max(next);
            }
            let response = tokio::select! {
                response = acks.message() => response,
                _ = stop.changed() => return Ok(()),
            };
            let Ok(Some(response)) = response else {
                return Ok(());
            };
            for ack in response.acks {
                match ack.refusal {
                    None => {
                        let before = self.acked.insert(ack.request, Some(ack.base));
                        if before.flatten().is_some_and(|base| base != ack.base) {
                            return Err(format!(
                                "batch {} acknowledged at two places",
                                ack.request
                            ));
                        }
                    }
                    Some(refusal) if refusal.reason == "ALREADY_APPENDED" => {
                        self.acked.entry(ack.request).or_insert(None);
                    }
                    // The node is going down: what it refused it did not do, or says it cannot know.
                    Some(refusal) if refusal.code == i32::from(Code::Unavailable) => {
                        return Ok(());
                    }
                    Some(refusal) => return Err(format!("{}: {refusal:?}", self.stream)),
                }
            }
        }
        Ok(())
    }
}

/// How far one shard has been checked.
#[derive(Debug, Default)]
struct Checked {
    /// Where to go on.
    next: u64,
    /// Per pipeline, the first batch number not seen yet.
    seen: BTreeMap<u64, u64>,
    /// First number that the shard keeps.
    horizon: u64,
    /// Pipelines whose next batch may be a later one, because the horizon went past some.
    behind: BTreeSet<u64>,
}

/// All pipelines of a run, and how far their shards have been checked.
#[derive(Debug)]
pub(crate) struct Journal {
    pub(crate) pipelines: Vec<Pipeline>,
    checked: BTreeMap<(String, u32), Checked>,
    /// Streams are trimmed to this many stored bytes; 0: nothing is trimmed.
    bound: u64,
    /// Records that were found trimmed.
    pub(crate) trimmed: u64,
}

impl Journal {
    /// Creates `streams` with two shards each, and per shard two idempotent pipelines and one without
    /// a producer id.
    pub(crate) async fn open(
        endpoint: &str,
        streams: &[(&str, Durability)],
        seed: u64,
    ) -> Result<Self, tonic::Status> {
        Self::open_bounded(endpoint, streams, seed, 0).await
    }

    /// As [`Journal::open`], each stream bounded to this many stored bytes.
    pub(crate) async fn open_bounded(
        endpoint: &str,
        streams: &[(&str, Durability)],
        seed: u64,
        bound: u64,
    ) -> Result<Self, tonic::Status> {
        let channel = connect(endpoint)
            .await
            .map_err(|error| tonic::Status::unavailable(error.to_string()))?;
        let mut admin = AdminClient::new(channel.clone());
        let mut producer = ProducerClient::new(channel);
        let mut pipelines = Vec::new();
        for (stream, durability) in streams {
            let created = admin
                .create_stream(CreateStreamRequest {
                    stream: (*stream).to_owned(),
                    shards: 2,
                    durability: i32::from(*durability),
                    retention_bytes: bound,
                    ..CreateStreamRequest::default()
                })
                .await?
                .into_inner();
            for shard in created.stream.unwrap_or_default().shards {
                let start = shard.range.unwrap_or_default().start;
                let start = HashKey::from_bytes(start.as_ref().try_into().expect("16 bytes"));
                for idempotent in [true, true, false] {
                    let id = if idempotent {
                        producer
                            .open_producer(OpenProducerRequest {})
                            .await?
                            .into_inner()
                            .producer_id
                    } else {
                        0
                    };
                    pipelines.push(Pipeline {
                        seed,
                        number: pipelines.len() as u64,
                        stream: (*stream).to_owned(),
                        shard: shard.shard,
                        hash_key: start,
                        producer: ProducerId::new(id),
                        acked: BTreeMap::new(),
                        sent: 0,
                    });
                }
            }
        }
        Ok(Self {
            pipelines,
            checked: BTreeMap::new(),
            bound,
            trimmed: 0,
        })
    }

    /// Runs all pipelines until the broker is gone or `stop` changes.
    pub(crate) async fn load(
        &mut self,
        endpoint: &str,
        stop: watch::Receiver<bool>,
    ) -> Result<(), String> {
        let Ok(channel) = connect(endpoint).await else {
            return Ok(());
        };
        let running: Vec<_> = self
            .pipelines
            .drain(..)
            .map(|mut pipeline| {
                let (channel, stop) = (channel.clone(), stop.clone());
                tokio::spawn(async move {
                    let outcome = pipeline.send(channel, stop).await;
                    (pipeline, outcome)
                })
            })
            .collect();
        let mut first = Ok(());
        for pipeline in running {
            let (pipeline, outcome) = pipeline.await.expect("a pipeline does not panic");
            self.pipelines.push(pipeline);
            first = first.and(outcome);
        }
        first
    }

    /// Acknowledged batches of all pipelines.
    pub(crate) fn acked(&self) -> usize {
        self.pipelines
            .iter()
            .map(|pipeline| pipeline.acked.len())
            .sum()
    }

    /// Batches of all pipelines whose fate is not known.
    pub(crate) fn in_flight(&self) -> u64 {
        self.pipelines.iter().map(Pipeline::in_flight).sum()
    }

    /// Checks from the beginning again at the next [`Journal::verify`].
    pub(crate) fn forget_checked(&mut self) {
        self.checked.clear();
    }

    /// Reads what is new and holds it against the acks.
    pub(crate) async fn verify(&mut self, endpoint: &str) -> Result<(), String> {
        let channel = connect(endpoint).await.map_err(|error| error.to_string())?;
        let shards: Vec<(String, u32)> = {
            let all = self
                .pipelines
                .iter()
                .map(|pipeline| (pipeline.stream.clone(), pipeline.shard));
            let mut all: Vec<_> = all.collect();
            all.sort();
            all.dedup();
            all
        };
        for (stream, shard) in shards {
            let mut checked = self
                .checked
                .remove(&(stream.clone(), shard))
                .unwrap_or_default();
            self.verify_shard(&channel, &stream, shard, &mut checked)
                .await
                .map_err(|what| format!("{stream}/{shard} at {}: {what}", checked.next))?;
            self.checked.insert((stream, shard), checked);
        }
        Ok(())
    }

    async fn verify_shard(
        &mut self,
        channel: &Channel,
        stream: &str,
        shard: u32,
        checked: &mut Checked,
    ) -> Result<(), String> {
        let mut end = self.look(channel, stream, shard, checked).await?;
        let mut consumer =
            ConsumerClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        while checked.next < end {
            let request = ReadRequest {
                stream: stream.to_owned(),
                shard,
                start: Some(StartPosition {
                    position: Some(Position::AtSequenceNumber(checked.next)),
                }),
                max_bytes: 4 << 20,
                ..ReadRequest::default()
            };
            let reply = match consumer.read(request).await {
                Ok(reply) => reply.into_inner(),
                // The horizon passed in between.
                Err(status) if self.bound > 0 && status.code() == Code::OutOfRange => {
                    let from = checked.next;
                    end = self.look(channel, stream, shard, checked).await?;
                    if checked.next == from {
                        return Err(format!(
                            "trimmed, it says, but the horizon is not: {status}"
                        ));
                    }
                    continue;
                }
                Err(status) => return Err(status.to_string()),
            };
            let from = checked.next;
            for frame in Frames::new(reply.frames) {
                let frame = frame.map_err(|error| error.to_string())?;
                self.verify_frame(&frame, stream, shard, checked)?;
            }
            // A jump at the end of the shard leaves nothing to read below it.
            checked.next = checked.next.max(reply.next);
            if checked.next == from {
                return Err(format!("nothing to read below the end {end}"));
            }
        }
        self.all_acked_seen(stream, shard, checked)
    }

    /// The shard's durable end. When its horizon went past what is next, the check goes on there, if
    /// the stream may be trimmed and keeps enough.
    async fn look(
        &mut self,
        channel: &Channel,
        stream: &str,
        shard: u32,
        checked: &mut Checked,
    ) -> Result<u64, String> {
        let described = AdminClient::new(channel.clone())
            .describe_stream(DescribeStreamRequest {
                stream: stream.to_owned(),
            })
            .await
            .map_err(|status| status.to_string())?
            .into_inner();
        let described = described.stream.unwrap_or_default();
        let stored: u64 = described
            .shards
            .iter()
            .map(|shard| shard.stored_bytes)
            .sum();
        let found = described.shards.iter().find(|found| found.shard == shard);
        let found = found.ok_or("the shard is gone")?;
        if found.trim_horizon < checked.horizon {
            return Err(format!(
                "the horizon went back from {} to {}",
                checked.horizon, found.trim_horizon
            ));
        }
        checked.horizon = found.trim_horizon;
        if found.trim_horizon > checked.next {
            if self.bound == 0 || stored + TRIM_STEP < self.bound {
                return Err(format!(
                    "trimmed up to {}, with {stored} bytes kept of {} allowed",
                    found.trim_horizon, self.bound
                ));
            }
            self.trimmed += found.trim_horizon - checked.next;
            checked.next = found.trim_horizon;
            let all = self.pipelines.iter().map(|pipeline| pipeline.number);
            checked.behind = all.collect();
        }
        Ok(found.durable_end)
    }

    fn verify_frame(
        &self,
        frame: &flumen_record::Frame,
        stream: &str,
        shard: u32,
        checked: &mut Checked,
    ) -> Result<(), String> {
        let base = frame.header.base.value();
        if base != checked.next && base < checked.next + JUMP {
            return Err(format!("frame at {base}, where {} was next", checked.next));
        }
        let first = frame
            .batch
            .records()
            .next()
            .ok_or("an empty batch")?
            .map_err(|e| e.to_string())?;
        let word = |at: usize| {
            let bytes = first
                .data
                .get(at..at + 8)
                .and_then(|bytes| bytes.try_into().ok());
            bytes
                .map(u64::from_le_bytes)
                .ok_or("a record that no pipeline sent")
        };
        let (pipeline, number) = (word(0)?, word(8)?);
        let sender = self
            .pipelines
            .iter()
            .find(|sender| {
                sender.number == pipeline && sender.stream == stream && sender.shard == shard
            })
            .ok_or("a record that no pipeline of this shard sent")?;
        let expected = checked.seen.entry(pipeline).or_default();
        let may_skip = checked.behind.remove(&pipeline) || sender.producer == ProducerId::NONE;
        if number < *expected || (number > *expected && !may_skip) {
            return Err(format!(
                "pipeline {pipeline}: batch {number}, where {expected} was next"
            ));
        }
        let mut passed = sender.acked.range(*expected..number);
        if let Some((lost, at)) = passed.find(|(_, at)| is_kept(**at, checked.horizon)) {
            return Err(format!(
                "pipeline {pipeline}: acknowledged batch {lost} is not at {at:?}"
            ));
        }
        *expected = number + 1;
        if sender
            .acked
            .get(&number)
            .is_some_and(|acked| acked.is_some_and(|at| at != base))
        {
            return Err(format!(
                "pipeline {pipeline}: batch {number} is at {base}, acknowledged elsewhere"
            ));
        }
        if frame.batch.bytes() != sender.batch(number).bytes() {
            return Err(format!(
                "pipeline {pipeline}: batch {number} at {base} has changed"
            ));
        }
        checked.next = base + u64::from(frame.batch.header().count);
        Ok(())
    }

    fn all_acked_seen(&self, stream: &str, shard: u32, checked: &Checked) -> Result<(), String> {
        let here = |sender: &&Pipeline| sender.stream == stream && sender.shard == shard;
        for sender in self.pipelines.iter().filter(here) {
            let seen = checked
                .seen
                .get(&sender.number)
                .copied()
                .unwrap_or_default();
            let mut rest = sender.acked.range(seen..);
            if let Some((lost, at)) = rest.find(|(_, at)| is_kept(**at, checked.horizon)) {
                return Err(format!(
                    "pipeline {}: acknowledged batch {lost} at {at:?} is lost",
                    sender.number
                ));
            }
        }
        Ok(())
    }
}

/// Whether a batch that was acknowledged there must still be there. Where it lies is not known of
/// one that was acknowledged as "already appended": it may have been trimmed as well.
fn is_kept(at: Option<u64>, horizon: u64) -> bool {
    at.map_or(horizon == 0, |at| at >= horizon)
}

async fn connect(endpoint: &str) -> Result<Channel, tonic::transport::Error> {
    Channel::from_shared(endpoint.to_owned())
        .expect("an URL")
        .connect()
        .await
}
