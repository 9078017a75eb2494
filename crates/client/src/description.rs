//! What administrative calls take and return.

use std::time::Duration;

use flumen_api::convert::{self, ConvertError};
use flumen_api::v1;

use flumen_record::{
    Durability, HashRange, SequenceNumber, ShardIndex, StreamId, StreamIncarnation, StreamName,
    Timestamp,
};

use crate::{AutoScale, AutoScaleUpdate};

/// A stream to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewStream {
    /// Its name.
    pub name: StreamName,
    /// Shards, 1 to 10,000.
    pub shards: u32,
    /// What an ack promises; `None`: the broker's default (`disk`).
    pub durability: Option<Durability>,
    /// Records are kept this long, 1 h to 8760 h; `None`: 168 h.
    pub retention: Option<Duration>,
    /// And at most about this many stored bytes; `None`: no bound.
    pub retention_bytes: Option<u64>,
    /// Data, key and headers of one record, up to 10 MiB; `None`: 1 MiB.
    pub max_record_bytes: Option<u64>,
    /// Shards are split and merged by load; `None`: by hand. At least one rate is set.
    pub auto_scale: Option<AutoScaleUpdate>,
}

impl NewStream {
    /// One shard and the broker's defaults.
    pub fn new(name: StreamName) -> Self {
        Self {
            name,
            shards: 1,
            durability: None,
            retention: None,
            retention_bytes: None,
            max_record_bytes: None,
            auto_scale: None,
        }
    }
}

/// What to change about a stream; `None` leaves a setting as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StreamUpdate {
    /// New level.
    pub durability: Option<Durability>,
    /// New retention.
    pub retention: Option<Duration>,
    /// New bound in bytes; `Some(None)` lifts it.
    pub retention_bytes: Option<Option<u64>>,
    /// New record limit.
    pub max_record_bytes: Option<u64>,
    /// Splitting and merging by load.
    pub auto_scale: Option<AutoScaleUpdate>,
}

/// One stream as the broker describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamDescription {
    /// Its name.
    pub name: StreamName,
    /// Its number on its node.
    pub id: StreamId,
    /// What tells it from another stream of its name, before it or after it.
    pub incarnation: StreamIncarnation,
    /// What an ack promises.
    pub durability: Durability,
    /// How long records are kept.
    pub retention: Duration,
    /// And at most about this many stored bytes.
    pub retention_bytes: Option<u64>,
    /// Data, key and headers of one record.
    pub max_record_bytes: u64,
    /// Shards are split and merged by load; `None`: by hand.
    pub auto_scale: Option<AutoScale>,
    /// When it was created.
    pub created: Timestamp,
    /// Changes with every change of the stream: the version of its shard map.
    pub version: u64,
    /// Its shards, by index.
    pub shards: Vec<ShardDescription>,
}

/// One shard as the broker describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardDescription {
    /// Its index within the stream.
    pub index: ShardIndex,
    /// Its slice of the key space.
    pub range: HashRange,
    /// Whether it takes appends.
    pub open: bool,
    /// The shards it came from.
    pub parents: Vec<ShardIndex>,
    /// First sequence number kept.
    pub trim_horizon: SequenceNumber,
    /// First sequence number readers may not see yet.
    pub durable_end: SequenceNumber,
    /// Arrival time of the last readable record; zero when there is none.
    pub last_arrival: Timestamp,
    /// Stored bytes.
    pub stored_bytes: u64,
}

impl From<NewStream> for v1::CreateStreamRequest {
    fn from(new: NewStream) -> Self {
        Self {
            stream: new.name.to_string(),
            shards: new.shards,
            durability: level(new.durability) as i32,
            retention_us: new.retention.map_or(0, micros),
            retention_bytes: new.retention_bytes.unwrap_or(0),
            max_record_bytes: new.max_record_bytes.unwrap_or(0),
            auto_scale: new.auto_scale.map(v1::AutoScaleUpdate::from),
        }
    }
}

impl StreamUpdate {
    pub(crate) fn request(self, name: &StreamName) -> v1::UpdateStreamRequest {
        v1::UpdateStreamRequest {
            stream: name.to_string(),
            durability: self
                .durability
                .map(|durability| level(Some(durability)) as i32),
            retention_us: self.retention.map(micros),
            retention_bytes: self.retention_bytes.map(Option::unwrap_or_default),
            max_record_bytes: self.max_record_bytes,
            auto_scale: self.auto_scale.map(v1::AutoScaleUpdate::from),
            stream_incarnation: 0,
        }
    }
}

impl TryFrom<v1::Stream> for StreamDescription {
    type Error = ConvertError;

    fn try_from(stream: v1::Stream) -> Result<Self, ConvertError> {
        let durability = convert::durability("durability", stream.durability)?;
        let shards = stream.shards.into_iter().map(ShardDescription::try_from);
        Ok(Self {
            name: convert::stream_name("name", &stream.name)?,
            id: StreamId::new(stream.id),
            incarnation: StreamIncarnation::new(stream.incarnation),
            durability: durability.ok_or(ConvertError::Missing {
                field: "durability",
            })?,
            retention: Duration::from_micros(stream.retention_us),
            retention_bytes: (stream.retention_bytes > 0).then_some(stream.retention_bytes),
            max_record_bytes: stream.max_record_bytes,
            auto_scale: stream.auto_scale.map(AutoScale::from),
            created: Timestamp::from_micros(stream.created_us),
            version: stream.version,
            shards: shards.collect::<Result<_, _>>()?,
        })
    }
}

impl TryFrom<v1::Shard> for ShardDescription {
    type Error = ConvertError;

    fn try_from(shard: v1::Shard) -> Result<Self, ConvertError> {
        Ok(Self {
            index: ShardIndex::new(shard.shard),
            range: convert::hash_range("range", shard.range.as_ref())?,
            open: shard.open,
            parents: shard.parents.into_iter().map(ShardIndex::new).collect(),
            trim_horizon: SequenceNumber::new(shard.trim_horizon),
            durable_end: SequenceNumber::new(shard.durable_end),
            last_arrival: Timestamp::from_micros(shard.last_arrival_us),
            stored_bytes: shard.stored_bytes,
        })
    }
}

fn level(durability: Option<Durability>) -> v1::Durability {
    durability.map_or(v1::Durability::Unspecified, v1::Durability::from)
}

/// Durations travel as microseconds; longer than they can say is as long as they can say.
pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
