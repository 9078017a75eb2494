//! What can go wrong with the log of delivery streams.

use flumen_log::{OpenError, ReadError, SyncError, WriteError};
use flumen_record::{DeliveryId, DeliveryName, RecordError};
use thiserror::Error;

/// Why a change was refused, or the log failed.
#[derive(Debug, Error)]
pub enum DeliveryLogError {
    /// No delivery stream has this number. Nothing was changed.
    #[error("delivery stream number {id} does not exist")]
    NotFound {
        /// The number.
        id: DeliveryId,
    },
    /// Another has this name. Nothing was changed.
    #[error("delivery stream {name} exists already")]
    NameTaken {
        /// The name.
        name: DeliveryName,
    },
    /// More, or larger, than is allowed. Nothing was changed.
    #[error("{setting} is {value}, allowed is {min} to {max}")]
    OutOfBounds {
        /// What, as users write it.
        setting: &'static str,
        /// What was asked.
        value: u64,
        /// Least allowed.
        min: u64,
        /// Most allowed.
        max: u64,
    },
    /// A record that is not one, is of an unknown version, or does not follow from those before.
    #[error("delivery record {record}: {reason}")]
    Damaged {
        /// Its number, from 1.
        record: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// The log does not open.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The change was not written, but for [`WriteError::Unknown`].
    #[error(transparent)]
    Write(#[from] WriteError),
    /// Whether the change was written is unknown: the log must not be used any more.
    #[error(transparent)]
    Sync(#[from] SyncError),
    /// The records cannot be read.
    #[error("the log of delivery streams cannot be read: {0}; run `flumen doctor`")]
    Read(#[from] ReadError),
    /// A change that is larger than a record may be. Nothing was changed.
    #[error("the change does not fit into a record: {0}")]
    Record(#[from] RecordError),
}

impl DeliveryLogError {
    /// Whether nothing was changed, and the log goes on as it was.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::NotFound { .. }
            | Self::NameTaken { .. }
            | Self::OutOfBounds { .. }
            | Self::Record(_)
            | Self::Write(WriteError::Full { .. } | WriteError::NoSegment { .. }) => true,
            Self::Damaged { .. }
            | Self::Open(_)
            | Self::Write(
                WriteError::Poisoned | WriteError::Gone(_) | WriteError::Unknown { .. },
            )
            | Self::Sync(_)
            | Self::Read(_) => false,
        }
    }
}
