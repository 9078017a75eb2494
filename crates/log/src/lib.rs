//! Append-only logs in one data directory: segments on mapped files, rounds, index, recovery,
//! sync, reclaiming space.
//!
//! Synchronous. It knows shard numbers, not what a stream is; it never reads a clock. The only
//! `unsafe` in Flumen is in `mapped_file.rs`. Bytes on disk: `docs/format.md`.

mod backlog;
mod checksum;
mod config;
mod control;
mod directory;
mod error;
#[cfg(test)]
mod fixtures;
mod footer;
mod footer_cache;
mod housekeeper;
mod index;
mod io_fault;
mod log;
mod mapped_file;
mod reader;
mod recovery;
mod reserve;
mod round;
mod sealed_index;
mod segment;
mod segment_header;
mod shared;
mod snapshot;
mod state;
mod stay;
mod storage;
#[cfg(test)]
mod testing;
mod voucher;
mod work;

pub use backlog::Backlog;
pub use config::{LogConfig, LogKey, list_logs};
pub use error::{Gone, OpenError, ReadError, SyncError, WriteError};
pub use housekeeper::{Bell, Housekeeper, HousekeepingReport, WriterBell};
pub use io_fault::IoFault;
pub use log::{Expected, Log, LogStats, NewFrame, RoundNumber, SyncDone, SyncJob};
pub use reader::{FoundFrames, LogReader, SearchAnswer, ShardBounds};
pub use recovery::{
    BatchMark, LogInspection, Quarantined, Recovery, Replay, ShardRecovery, inspect,
};
pub use reserve::keep_reserve;
pub use snapshot::SnapshotJob;
pub use stay::{LogStays, Stay, StayId, Stays, StaysFault};
pub use storage::{DirEntry, Preparation, SegmentFile, Space, Storage};
pub use storage::{
    DiskStorage, Fault, FaultError, Grain, MemoryStorage, Operation, OperationKind, Unsynced,
    UnsyncedKind,
};
pub use voucher::{Shortfall, Voucher};
