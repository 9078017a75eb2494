//! What can be set about a client, a producer and a consumer. Every queue has its bound here.

use std::time::Duration;

use flumen_record::{Compression, ShardIndex, StreamIncarnation};

use crate::StartPosition;

/// How to reach a broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientConfig {
    /// `http://HOST:PORT` of the gRPC listener.
    pub endpoint: String,
    /// Bound of one attempt to connect, and of opening a session.
    pub connect_timeout: Duration,
    /// Bound of an administrative call.
    pub call_timeout: Duration,
    /// A ping goes out this often, also while nothing else moves; a peer that does not answer one
    /// within the same time is gone.
    pub keepalive_interval: Duration,
    /// Flow control window of one session, in bytes: what a slow consumer buffers at most.
    pub session_window_bytes: u32,
    /// Flow control window of the connection, in bytes.
    pub connection_window_bytes: u32,
    /// Largest HTTP/2 frame, in bytes.
    pub frame_bytes_max: u32,
    /// Largest message either way, in bytes.
    pub message_bytes_max: usize,
}

impl ClientConfig {
    /// The defaults, for this endpoint.
    pub fn new(endpoint: impl Into<String>) -> Self {
        Self {
            endpoint: endpoint.into(),
            ..Self::default()
        }
    }
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            endpoint: "http://127.0.0.1:4500".to_owned(),
            connect_timeout: Duration::from_secs(5),
            call_timeout: Duration::from_secs(30),
            keepalive_interval: Duration::from_secs(10),
            session_window_bytes: 8 << 20,
            connection_window_bytes: 16 << 20,
            frame_bytes_max: 1 << 20,
            message_bytes_max: 17 << 20,
        }
    }
}

/// How a producer gathers, sends and retries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProducerConfig {
    /// A batch leaves at the latest this long after its first record. Zero: as soon as the session
    /// can take it.
    pub linger: Duration,
    /// A batch leaves when it has about this many bytes before compression (a larger record goes
    /// alone). At most 8 MiB.
    pub batch_bytes: usize,
    /// And when it has this many records; 0: any number.
    pub batch_records: u32,
    /// How batches are compressed.
    pub compression: Compression,
    /// Batches of one shard that may be sent and unacknowledged, 1 to 64 (the broker remembers the
    /// places of a producer's last 64).
    pub max_in_flight_batches: usize,
    /// Bound of the records held, in bytes, from `send` until their ack: `send` waits beyond it. At
    /// most 3 GiB.
    pub memory_bytes: usize,
    /// How long an outage, or a shard that refuses or does not answer, is ridden out before what
    /// waits is given up. Not less than 10 ms.
    pub retry_for: Duration,
    /// Retries are recognised by the broker: each record is stored once. Without it records are
    /// stored at least once.
    pub idempotent: bool,
}

impl Default for ProducerConfig {
    fn default() -> Self {
        Self {
            linger: Duration::from_millis(2),
            batch_bytes: 1 << 20,
            batch_records: 0,
            compression: Compression::None,
            max_in_flight_batches: 8,
            memory_bytes: 64 << 20,
            retry_for: Duration::from_secs(60),
            idempotent: true,
        }
    }
}

impl ProducerConfig {
    /// Every setting within its bounds.
    pub(crate) fn clamped(mut self) -> Self {
        self.batch_bytes = self.batch_bytes.clamp(1, 8 << 20);
        self.max_in_flight_batches = self.max_in_flight_batches.clamp(1, 64);
        self.memory_bytes = self.memory_bytes.clamp(1 << 10, 3 << 30);
        self.retry_for = self.retry_for.max(Duration::from_millis(10));
        self
    }
}

/// What a consumer reads, from where, until when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerConfig {
    /// Where each shard begins that `positions` does not name.
    pub start: StartPosition,
    /// Shards with positions of their own: what [`crate::Consumer::positions`] gave.
    pub positions: Vec<(ShardIndex, StartPosition)>,
    /// The stream that the positions are places in: what [`crate::Consumer::incarnation`] gave. Another
    /// one that has its name now is refused ([`crate::reason::STREAM_REPLACED`]). `None`: whichever has
    /// the name.
    pub incarnation: Option<StreamIncarnation>,
    /// Only these shards; empty: all of the stream, and the children they split or merge into.
    pub shards: Vec<ShardIndex>,
    /// When it ends.
    pub until: ReadUntil,
    /// What to do about records that are gone.
    pub gaps: GapPolicy,
    /// Bytes the broker puts into one response at most (at least one frame); 0: the broker's
    /// default of 1 MiB.
    pub response_bytes_max: u64,
    /// How long an outage is ridden out.
    pub retry_for: Duration,
}

impl Default for ConsumerConfig {
    fn default() -> Self {
        Self {
            start: StartPosition::TrimHorizon,
            positions: Vec::new(),
            incarnation: None,
            shards: Vec::new(),
            until: ReadUntil::Forever,
            gaps: GapPolicy::Fail,
            response_bytes_max: 0,
            retry_for: Duration::from_secs(60),
        }
    }
}

/// When a consumer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReadUntil {
    /// It follows the stream until dropped (or until every shard has ended).
    #[default]
    Forever,
    /// At what was the end of each shard when the consumer began.
    CurrentEnd,
}

/// What a consumer does where records it should read next are gone: trimmed, or quarantined as
/// damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GapPolicy {
    /// It says so: an error with the range.
    #[default]
    Fail,
    /// It goes on behind the gap and counts the numbers skipped in its statistics.
    Skip,
}
