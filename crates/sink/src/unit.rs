//! One record on its way from the log into an object, and why it may not get there.

use bytes::Bytes;
use flumen_record::{Header, SequenceNumber, ShardIndex, Timestamp};

/// A record as it is processed: what came from the log, or a part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unit {
    /// Its shard.
    pub(crate) shard: ShardIndex,
    /// The sequence number of the stored record.
    pub(crate) sequence: SequenceNumber,
    /// Which part of the stored record this is, from 0.
    pub(crate) sub: u64,
    /// When the stored record arrived.
    pub(crate) arrival: Timestamp,
    /// Its partition key.
    pub(crate) partition_key: Bytes,
    /// Its headers.
    pub(crate) headers: Vec<Header>,
    /// Its data.
    pub(crate) data: Bytes,
    /// What a transform says it is partitioned by (`!{partitionKeyFromLambda:…}`), by name.
    pub(crate) keys: Vec<(String, String)>,
}

/// What became of one unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Shaped {
    /// A row of an object.
    Row {
        /// Its bytes.
        data: Bytes,
        /// The values of the partition keys, in the order of their names; empty without partitioning.
        partition: Vec<String>,
    },
    /// Dropped on purpose: by a filter, or by the transform.
    Dropped,
    /// It goes to the error prefix.
    Failed(Failure),
}

/// Where records that fail go: `!{firehose:error-output-type}` (row F6).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ErrorType {
    /// Unpacking, jq or the transform.
    ProcessingFailed,
    /// Not what the format takes.
    FormatConversionFailed,
    /// Further partitions than allowed.
    ActivePartitionExceeded,
}

impl ErrorType {
    /// As it stands in keys.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::ProcessingFailed => "processing-failed",
            Self::FormatConversionFailed => "format-conversion-failed",
            Self::ActivePartitionExceeded => "activePartitionExceeded",
        }
    }
}

/// Why a record goes to the error prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Where it goes.
    pub(crate) kind: ErrorType,
    /// Stable, for programs: `Json.Invalid`, `Transform.Failed`, ….
    pub(crate) code: &'static str,
    /// For a person.
    pub(crate) message: String,
    /// Attempts that were made.
    pub(crate) attempts: u32,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A record with this data.
    pub(crate) fn unit(data: &[u8]) -> Unit {
        Unit {
            shard: ShardIndex::new(2),
            sequence: SequenceNumber::new(7),
            sub: 0,
            arrival: Timestamp::from_micros(1_772_368_496_789_012),
            partition_key: Bytes::from_static(b"pk"),
            headers: vec![Header {
                name: Bytes::from_static(b"name"),
                value: Bytes::from_static(b"value"),
            }],
            data: Bytes::copy_from_slice(data),
            keys: Vec::new(),
        }
    }
}
