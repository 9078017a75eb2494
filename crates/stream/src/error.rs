//! What can go wrong with the catalog.

use flumen_log::{OpenError, ReadError, SyncError, WriteError};
use flumen_record::{RecordError, StreamName};
use thiserror::Error;

use crate::ReshardError;

/// Why the catalog refused or failed. (Extended: one variant per fact.)
#[derive(Debug, Error)]
pub enum CatalogError {
    /// No stream of this name.
    #[error("stream {name} does not exist")]
    NotFound {
        /// The name asked for.
        name: StreamName,
    },
    /// A stream of this name is there already.
    #[error("stream {name} exists already")]
    AlreadyExists {
        /// The name.
        name: StreamName,
    },
    /// A setting outside its bounds.
    #[error("{setting} is {value}, allowed is {min} to {max}")]
    OutOfBounds {
        /// Which setting, as users write it.
        setting: &'static str,
        /// What was asked.
        value: u64,
        /// Least allowed.
        min: u64,
        /// Most allowed.
        max: u64,
    },
    /// Shards that cannot be split or merged as asked.
    #[error("stream {stream}: {refusal}")]
    Reshard {
        /// The stream.
        stream: StreamName,
        /// Why not.
        refusal: ReshardError,
    },
    /// The catalog on disk ends below what a data log names: acknowledged changes are missing.
    #[error(
        "the catalog ends at record {found}, but a log names record {named}: run `flumen doctor`"
    )]
    Behind {
        /// Its last record.
        found: u64,
        /// What a log names.
        named: u64,
    },
    /// A catalog record that is not one, or of an unknown version.
    #[error("catalog record {record}: {reason}")]
    Damaged {
        /// Its number.
        record: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// The catalog's log does not open.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The change was not written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The change's outcome is unknown.
    #[error(transparent)]
    Sync(#[from] SyncError),
    /// The catalog's records cannot be read.
    #[error("the catalog cannot be read: {0}; run `flumen doctor`")]
    Read(#[source] ReadError),
    /// A stream with so many shards that its catalog record is too large.
    #[error("the change does not fit into a catalog record: {0}")]
    Record(#[from] RecordError),
}
