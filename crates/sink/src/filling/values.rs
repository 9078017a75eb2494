//! What came into a cut, and what comes out: plain values that filling, keeping and committing share.

use flumen_record::Timestamp;
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

impl Filled {
    /// A partition has several objects. Where one ends depends on settings of the node too, which
    /// may be others when the records are read again.
    pub(crate) fn has_pieces(&self) -> bool {
        self.objects.iter().any(|object| object.part.piece > 0)
    }
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

/// What tells partitions apart. Looked up for every row, so without the keys' names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct PartValues {
    pub(super) kind: ObjectKind,
    pub(super) by_query: Vec<String>,
    pub(super) by_transform: Vec<(String, String)>,
}

impl PartValues {
    /// All of a kind.
    pub(super) fn whole(kind: ObjectKind) -> Self {
        Self {
            kind,
            by_query: Vec::new(),
            by_transform: Vec::new(),
        }
    }
}
