//! What the edges hand in and get back.

use std::borrow::Cow;

use bytes::Bytes;
use flumen_record::{
    Durability, HashRange, Record, SequenceNumber, ShardIndex, StreamId, StreamIncarnation,
    StreamName, Timestamp,
};
use flumen_stream::StreamSettings;

/// One record to put.
pub type PutRecord = Record;

/// Where a put record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PutOutcome {
    /// Its shard.
    pub shard: ShardIndex,
    /// Its sequence number.
    pub sequence_number: SequenceNumber,
    /// Its arrival time.
    pub arrival: Timestamp,
    /// What the ack promises.
    pub durability: Durability,
}

/// What one read may return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadBudget {
    /// Stop after about this many bytes (at least one frame comes).
    pub bytes: u64,
    /// Stop after the frame that reaches this many records from the start.
    pub records: u64,
}

/// Frames read.
#[derive(Debug, Clone)]
pub struct ReadReply {
    /// Of which stream of its name.
    pub stream: StreamIncarnation,
    /// Pieces of whole frames, in order (`flumen_record::Frames` walks them).
    pub pieces: Vec<Bytes>,
    /// Where the reader asked to begin, resolved: records below it in the first frame are to be skipped.
    pub start: SequenceNumber,
    /// Where to go on.
    pub next: SequenceNumber,
    /// The shard's trim horizon now.
    pub trim_horizon: SequenceNumber,
    /// The shard's durable end now.
    pub durable_end: SequenceNumber,
    /// Arrival time of the last readable record (for lag in time).
    pub last_arrival: Timestamp,
    /// The shard is closed and `next` is its end; its children, if any.
    pub end_of_shard: Option<Vec<ShardIndex>>,
}

/// One shard, for describe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardDescription {
    /// Its index.
    pub index: ShardIndex,
    /// Its slice of the key space.
    pub range: HashRange,
    /// Whether it takes appends.
    pub open: bool,
    /// The shards it came from.
    pub parents: Vec<ShardIndex>,
    /// First sequence number kept.
    pub trim_horizon: SequenceNumber,
    /// First one readers may not see yet.
    pub durable_end: SequenceNumber,
    /// Arrival time of the last readable record.
    pub last_arrival: Timestamp,
    /// Stored bytes.
    pub stored_bytes: u64,
}

/// One stream, for describe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamDescription {
    /// Its number.
    pub id: StreamId,
    /// What tells it from another stream of its name.
    pub incarnation: StreamIncarnation,
    /// Its name.
    pub name: StreamName,
    /// Its settings.
    pub settings: StreamSettings,
    /// When it was created.
    pub created: Timestamp,
    /// Changes with every change of the stream (the shard map's version).
    pub version: u64,
    /// Its shards, by index.
    pub shards: Vec<ShardDescription>,
}

/// Whether the node serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Serving,
    /// It serves in part: a log is refused or poisoned, or the disk is full or stuck.
    Degraded(Cow<'static, str>),
    /// It reads what it has open, and writes nothing any more before a restart: do not send work.
    Failed(Cow<'static, str>),
    /// It is shutting down.
    Draining,
}
