//! What goes into a cut, and what comes out: plain values that filling, keeping and committing share.

use bytes::Bytes;
use flumen_record::{SequenceNumber, ShardIndex, Timestamp};
use serde::{Deserialize, Serialize};

use crate::bundle::{ObjectKind, PartName};
use crate::encode::Schema;
use crate::spool::SpooledObject;

/// What went in so far.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Tally {
    /// Stored records.
    pub(crate) records: u64,
    /// Their bytes as they came, uncompressed.
    pub(crate) bytes: u64,
    /// Arrival of the oldest and the newest.
    #[serde(with = "crate::cut::time")]
    pub(crate) oldest: Option<Timestamp>,
    #[serde(with = "crate::cut::time")]
    pub(crate) newest: Option<Timestamp>,
    /// Rows in data objects.
    pub(crate) rows: u64,
    /// Dropped by filter or transform.
    pub(crate) dropped: u64,
    /// On the way to the error prefix.
    pub(crate) failed: u64,
    /// Of these, because there were too many partitions.
    pub(crate) overflows: u64,
    /// Bytes of rows, before they are encoded.
    pub(crate) row_bytes: u64,
}

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

/// A cut's objects, in the spool.
#[derive(Debug)]
pub(crate) struct Filled {
    pub(crate) objects: Vec<FilledObject>,
    /// Columns known now.
    pub(crate) schema: Schema,
    pub(crate) tally: Tally,
    /// Records in another order would have become other objects: which partitions there was still
    /// room for, or which type a new column got, was decided by who came first.
    pub(crate) is_bound_to_order: bool,
}

/// One object in the spool.
#[derive(Debug, Clone)]
pub(crate) struct FilledObject {
    pub(crate) kind: ObjectKind,
    pub(crate) part: PartName,
    pub(crate) key: String,
    pub(crate) oldest: Timestamp,
    pub(crate) records: u64,
    pub(crate) object: SpooledObject,
}
