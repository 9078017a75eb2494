//! What one read brings into a cut.

use bytes::Bytes;
use flumen_record::{BatchError, Record, SequenceNumber, ShardIndex, Timestamp};

use crate::unit::{ErrorType, Failure, Unit};

/// How far a piece was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Taken {
    /// The record after the last that was taken.
    pub(crate) next: SequenceNumber,
    /// The cut is full: the rest of the piece belongs to the next.
    pub(crate) is_full: bool,
}

/// Frames of one shard, and which of their records are meant.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    /// The shard.
    pub(crate) shard: ShardIndex,
    /// First record.
    pub(crate) from: SequenceNumber,
    /// First record after it.
    pub(crate) to: SequenceNumber,
    /// Whole frames.
    pub(crate) frames: Vec<Bytes>,
    /// The shard is closed and ends with it.
    pub(crate) ends_shard: bool,
}

/// A stored record as it is processed; one that does not decode fails as it is.
pub(super) fn unit(
    shard: ShardIndex,
    sequence: SequenceNumber,
    arrival: Timestamp,
    record: Result<Record, BatchError>,
) -> (Unit, Option<Failure>) {
    let (record, failure) = match record {
        Ok(record) => (Some(record), None),
        Err(error) => (
            None,
            Some(Failure {
                kind: ErrorType::ProcessingFailed,
                code: "Record.Malformed",
                message: error.to_string(),
                attempts: 1,
            }),
        ),
    };
    let (partition_key, headers, data) = record
        .map(|record| (record.partition_key, record.headers, record.data))
        .unwrap_or_default();
    let unit = Unit {
        shard,
        sequence,
        sub: 0,
        arrival,
        partition_key,
        headers,
        data,
        keys: Vec::new(),
    };
    (unit, failure)
}
