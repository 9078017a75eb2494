//! Plain `Read`: one shard, once.

use std::time::Duration;

use flumen_api::v1;
use flumen_record::{
    Frames, GroupName, SequenceNumber, ShardIndex, StreamIncarnation, StreamName, Timestamp,
};

use super::StartPosition;
use super::batch::ConsumedBatch;
use super::cursor::wire;
use crate::description::micros;
use crate::{Client, Error};

/// What one [`Client::read`] may return, and how long it may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReadBudget {
    /// About this many bytes at most (at least one frame); 0: 1 MiB.
    pub max_bytes: u64,
    /// The frame that reaches this many records is the last; 0: no bound.
    pub max_records: u64,
    /// How long to wait for a first record when there is none, at most 30 s.
    pub max_wait: Duration,
}

/// What one [`Client::read`] returned.
#[derive(Debug, Clone)]
pub struct ReadReply {
    /// Which stream of its name was read; unset when the broker does not say.
    pub stream: StreamIncarnation,
    /// The start position, resolved.
    pub start: SequenceNumber,
    /// Where to go on.
    pub next: SequenceNumber,
    /// First sequence number kept.
    pub trim_horizon: SequenceNumber,
    /// First sequence number readers may not see yet.
    pub durable_end: SequenceNumber,
    /// Arrival time of the shard's last readable record.
    pub last_arrival: Timestamp,
    /// The shard is closed and `next` is its end: its children, if any.
    pub end_of_shard: Option<Vec<ShardIndex>>,
    /// The batches, in order, each verified; the first begins at `start` or after it.
    pub batches: Vec<ConsumedBatch>,
}

impl Client {
    /// Reads one shard once: whole frames from `start`.
    ///
    /// # Errors
    /// When the position is trimmed or beyond the end, or there is no such shard or stream.
    pub async fn read(
        &self,
        stream: &StreamName,
        shard: ShardIndex,
        start: StartPosition,
        budget: ReadBudget,
    ) -> Result<ReadReply, Error> {
        let whichever = StreamIncarnation::default();
        self.read_once((stream, whichever), shard, start, budget, None)
            .await
    }

    /// [`Client::read`] of a stream that the caller has read before ([`ReadReply::stream`]): positions
    /// are places in it alone.
    ///
    /// # Errors
    /// Also when another stream has the name now ([`crate::reason::STREAM_REPLACED`]).
    pub async fn read_known(
        &self,
        stream: &StreamName,
        known: StreamIncarnation,
        shard: ShardIndex,
        start: StartPosition,
        budget: ReadBudget,
    ) -> Result<ReadReply, Error> {
        self.read_once((stream, known), shard, start, budget, None)
            .await
    }

    /// [`Client::read`] as the holder of a lease: refused, or answered early with a refusal, when it
    /// is not the current one.
    pub(crate) async fn read_leased(
        &self,
        stream: (&StreamName, StreamIncarnation),
        shard: ShardIndex,
        start: StartPosition,
        budget: ReadBudget,
        group: &GroupName,
        generation: u64,
    ) -> Result<ReadReply, Error> {
        let lease = v1::ReadLease {
            group: group.to_string(),
            generation,
        };
        self.read_once(stream, shard, start, budget, Some(lease))
            .await
    }

    async fn read_once(
        &self,
        (stream, known): (&StreamName, StreamIncarnation),
        shard: ShardIndex,
        start: StartPosition,
        budget: ReadBudget,
        lease: Option<v1::ReadLease>,
    ) -> Result<ReadReply, Error> {
        let mut consumer = self.consumer();
        let call = consumer.read(v1::ReadRequest {
            stream: stream.to_string(),
            shard: shard.value(),
            start: Some(wire(start)),
            max_bytes: budget.max_bytes,
            max_records: budget.max_records,
            max_wait_us: micros(budget.max_wait),
            lease,
            stream_incarnation: known.value(),
        });
        let bound = self.config().call_timeout + budget.max_wait;
        let response = self.call(bound, call).await?;
        let found = StreamIncarnation::new(response.stream_incarnation);
        self.check_incarnation(stream, known, found)?;
        let start = SequenceNumber::new(response.start);
        let mut batches = Vec::new();
        for frame in Frames::new(response.frames) {
            let frame =
                frame.map_err(|error| Error::nonsense(self.endpoint(), &error.to_string()))?;
            let (base, count) = (frame.header.base, frame.batch.header().count);
            let below = start.value().saturating_sub(base.value());
            let first = u32::try_from(below).unwrap_or(count).min(count);
            if first < count {
                batches.push(ConsumedBatch::new(frame, first, count));
            }
        }
        let children = response.children.into_iter().map(ShardIndex::new);
        Ok(ReadReply {
            stream: found,
            start,
            next: SequenceNumber::new(response.next),
            trim_horizon: SequenceNumber::new(response.trim_horizon),
            durable_end: SequenceNumber::new(response.durable_end),
            last_arrival: Timestamp::from_micros(response.last_arrival_us),
            end_of_shard: response.end_of_shard.then(|| children.collect()),
            batches,
        })
    }
}
