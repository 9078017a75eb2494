//! What can go wrong with a log.

use std::io;

use flumen_record::{SequenceNumber, ShardId};
use thiserror::Error;

use crate::voucher::Shortfall;

/// Why a log does not open. (Extended: one variant per fact, naming the file.)
#[derive(Debug, Error)]
pub enum OpenError {
    /// Another process holds the data directory.
    #[error("{dir} is in use by another process{holder}")]
    Locked {
        /// The data directory.
        dir: String,
        /// Who holds it, as far as the lock file says: ` (pid 4711)`, or empty.
        holder: String,
    },
    /// The directory holds something that is not Flumen's, or of an unknown version.
    #[error("{path}: {reason}")]
    Foreign {
        /// The file.
        path: String,
        /// Why it is refused.
        reason: &'static str,
    },
    /// Written by another version of Flumen.
    #[error("{path}: the directory has format {found}, this build knows format {known}")]
    Version {
        /// The version marker.
        path: String,
        /// The version it names.
        found: u32,
        /// The version of this build.
        known: u32,
    },
    /// A link where a file or directory must be: what is behind it could be anybody's.
    #[error("{path} is a symbolic link, which is not followed; name what it points to")]
    Symlink {
        /// The link.
        path: String,
    },
    /// Another log vouches for more than is there: the folder was lost, emptied, or is an older copy.
    /// Nothing was changed.
    #[error("{0}")]
    Short(Shortfall),
    /// The data directory cannot be written.
    #[error("{dir} cannot be written: {source}")]
    ReadOnly {
        /// The data directory.
        dir: String,
        /// What the file system said.
        source: io::Error,
    },
    /// The file system said no.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What it said.
        source: io::Error,
    },
}

/// A name does not lead any more to what this process holds open: somebody removed, moved or replaced
/// it, or unmounted the file system. What is written to the open files from now on nobody finds again.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{path} was removed, moved, replaced or unmounted while it was in use")]
pub struct Gone {
    /// The name.
    pub path: String,
}

/// Reasons of [`OpenError::Foreign`] that a newer program is behind.
pub(crate) const SEGMENT_VERSION: &str = "a segment of a version this program does not know";
pub(crate) const SNAPSHOT_VERSION: &str = "a snapshot of a version this program does not know";

impl OpenError {
    /// Whether a newer program wrote it.
    pub fn is_of_unknown_version(&self) -> bool {
        match self {
            Self::Foreign { reason, .. } => [SEGMENT_VERSION, SNAPSHOT_VERSION].contains(reason),
            Self::Version { .. } => true,
            _ => false,
        }
    }
}

/// Why a round was not written. Nothing of it is in the log, but for [`WriteError::Unknown`].
#[derive(Debug, Error)]
pub enum WriteError {
    /// Free space is below the floor; reads, trims and deletes go on.
    #[error("storage full: {free_bytes} bytes free, the floor is {floor_bytes}")]
    Full {
        /// Bytes free at the last look.
        free_bytes: u64,
        /// The floor.
        floor_bytes: u64,
    },
    /// A new segment is needed and could not be created.
    #[error("no new segment: {source}")]
    NoSegment {
        /// What the file system said.
        source: io::Error,
    },
    /// The log failed twice in a row; it accepts nothing until the process is restarted.
    #[error("the log is poisoned: a sync failed, and so did the retry into a fresh segment")]
    Poisoned,
    /// The data directory is not where it was: nothing is written any more.
    #[error("{0}; put it back where it was, then restart")]
    Gone(#[from] Gone),
    /// The write failed, and so did the retry into a fresh segment: what is in either file nobody
    /// knows. The log is poisoned from here on.
    #[error("outcome unknown: the log is poisoned: {source}")]
    Unknown {
        /// The last error from the file system.
        source: io::Error,
    },
}

/// Why a round is not known to be durable.
#[derive(Debug, Error)]
pub enum SyncError {
    /// The outcome of everything not yet durable is unknown; the log is poisoned.
    #[error("outcome unknown: the log is poisoned: {source}")]
    Poisoned {
        /// The last error from the file system.
        source: io::Error,
    },
}

/// Why records cannot be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// Asked below the trim horizon.
    #[error("sequence number {asked} is trimmed; the oldest kept is {horizon}")]
    Trimmed {
        /// What was asked.
        asked: SequenceNumber,
        /// The trim horizon.
        horizon: SequenceNumber,
    },
    /// Acknowledged data in this range is damaged and quarantined.
    #[error("data loss: shard {shard} from {from} up to {to} is quarantined ({segment})")]
    DataLoss {
        /// The shard.
        shard: ShardId,
        /// First sequence number that cannot be served.
        from: SequenceNumber,
        /// First one after it that can.
        to: SequenceNumber,
        /// File name of the damaged segment.
        segment: String,
    },
    /// The log did not open: nothing of it is served, and nothing is known of what it holds.
    #[error("log {log} is refused: {reason}")]
    Refused {
        /// The log's folder.
        log: String,
        /// Why it did not open.
        reason: String,
    },
    /// This log never held the shard.
    #[error("shard {shard} is not in this log")]
    UnknownShard {
        /// The shard.
        shard: ShardId,
    },
    /// The disk said no.
    #[error("reading {segment}: {source}")]
    Io {
        /// File name of the segment.
        segment: String,
        /// What it said.
        source: io::Error,
    },
}
