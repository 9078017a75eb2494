//! Errors of the layers below, in the broker's words.

use flumen_log::{Gone, IoFault, ReadError, SyncError, WriteError};
use flumen_record::{DeliveryName, StreamName};
use flumen_stream::CatalogError;
use flumen_stream::delivery::DeliveryLogError;
use flumen_stream::group::GroupError;

use super::Error;

impl From<ReadError> for Error {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Trimmed { asked, horizon } => Self::Trimmed { asked, horizon },
            ReadError::DataLoss {
                shard,
                from,
                to,
                segment,
            } => Self::DataLoss {
                shard: shard.index(),
                from,
                to,
                segment,
            },
            ReadError::Io { segment, source } => {
                // A client learns the kind; what exactly is wrong is for who looks after the disk.
                tracing::error!(%segment, error = %source, "a read failed");
                let fault = IoFault::from(&source);
                Self::Io { segment, fault }
            }
            ReadError::Refused { log, reason } => Self::LogRefused { log, reason },
            ReadError::UnknownShard { shard } => Self::Io {
                segment: format!("shard {shard}"),
                fault: IoFault::Missing,
            },
        }
    }
}

impl From<SyncError> for Error {
    fn from(SyncError::Poisoned { source }: SyncError) -> Self {
        tracing::error!(error = %source, "a sync failed twice");
        Self::OutcomeUnknown
    }
}

impl From<Gone> for Error {
    fn from(Gone { path }: Gone) -> Self {
        Self::StorageGone { path }
    }
}

impl From<WriteError> for Error {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Full {
                free_bytes,
                floor_bytes,
            } => Self::StorageFull {
                free_bytes,
                floor_bytes,
            },
            WriteError::NoSegment { source } if IoFault::from(&source) == IoFault::Full => {
                Self::StorageFull {
                    free_bytes: 0,
                    floor_bytes: 0,
                }
            }
            WriteError::NoSegment { source } => Self::Io {
                segment: "a new segment".to_owned(),
                fault: IoFault::from(&source),
            },
            WriteError::Poisoned => Self::Poisoned,
            WriteError::Gone(gone) => gone.into(),
            WriteError::Unknown { .. } => Self::OutcomeUnknown,
        }
    }
}

impl From<CatalogError> for Error {
    fn from(error: CatalogError) -> Self {
        match error {
            CatalogError::NotFound { name } => Self::StreamNotFound { stream: name },
            CatalogError::AlreadyExists { name } => Self::StreamExists { stream: name },
            CatalogError::OutOfBounds {
                setting,
                value,
                min,
                max,
            } => Self::OutOfBounds {
                setting,
                value,
                min,
                max,
            },
            CatalogError::Reshard { stream, refusal } => Self::of_reshard(&stream, refusal),
            CatalogError::Write(error) => error.into(),
            CatalogError::Read(error) => error.into(),
            CatalogError::Record(error) => error.into(),
            CatalogError::Sync(_) => Self::OutcomeUnknown,
            CatalogError::Behind { .. } => Self::Catalog {
                reason: "acknowledged changes are missing",
            },
            CatalogError::Damaged { reason, .. } => Self::Catalog { reason },
            CatalogError::Open(_) => Self::Catalog {
                reason: "its log does not open",
            },
        }
    }
}

impl Error {
    /// What the log of delivery streams refuses, or why it has failed.
    pub(crate) fn delivery(delivery: &DeliveryName, error: DeliveryLogError) -> Self {
        if !error.is_refusal() {
            return Self::DeliveriesFailed;
        }
        match error {
            DeliveryLogError::NotFound { .. } => Self::DeliveryNotFound {
                delivery: delivery.clone(),
            },
            DeliveryLogError::NameTaken { name } => Self::DeliveryExists { delivery: name },
            DeliveryLogError::OutOfBounds {
                setting,
                value,
                min,
                max,
            } => Self::OutOfBounds {
                setting,
                value,
                min,
                max,
            },
            DeliveryLogError::Record(error) => error.into(),
            DeliveryLogError::Write(error) => error.into(),
            DeliveryLogError::Damaged { .. }
            | DeliveryLogError::Open(_)
            | DeliveryLogError::Sync(_)
            | DeliveryLogError::Read(_) => Self::DeliveriesFailed,
        }
    }

    /// What the groups of a stream refuse.
    pub(crate) fn group(stream: &StreamName, error: GroupError) -> Self {
        let stream = stream.clone();
        match error {
            GroupError::NoStream { .. } => Self::StreamNotFound { stream },
            GroupError::NotFound { group } => Self::GroupNotFound { stream, group },
            GroupError::NoShard { shard } => Self::ShardNotFound { stream, shard },
            GroupError::OutOfBounds {
                setting,
                value,
                min,
                max,
            } => Self::OutOfBounds {
                setting,
                value,
                min,
                max,
            },
            error @ GroupError::Beyond { .. } => Self::GroupBeyondEnd(error),
            error @ (GroupError::SessionInUse { .. }
            | GroupError::Held { .. }
            | GroupError::HasMembers { .. }) => Self::GroupInUse(error),
        }
    }
}

impl From<flumen_world::SpawnError> for Error {
    fn from(refused: flumen_world::SpawnError) -> Self {
        tracing::error!(error = %refused, "a thread was not started");
        Self::NoThread { name: refused.name }
    }
}
