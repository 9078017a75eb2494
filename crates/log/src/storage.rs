//! The narrow seam between the log and the file system.
//!
//! Two implementations: mapped files in a real directory, and an in-memory twin that drops, tears
//! and fails what was not synced. Paths are relative to the data directory, `/` between parts.

mod disk;
mod memory;
pub(crate) mod open_files;
#[cfg(test)]
mod tests;

use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::Gone;

pub use disk::DiskStorage;
pub use memory::{
    Fault, FaultError, Grain, MemoryStorage, Operation, OperationKind, Unsynced, UnsyncedKind,
};

/// How a new file gets its blocks. Never sparse: a full disk must be an error here, not a fault later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preparation {
    /// `fallocate`: quick, but every first sync of a block converts its extent.
    Allocated,
    /// Zeroes written and synced: slow once, 2 to 4 times faster rounds afterwards.
    Written,
}

/// One file in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// File name without the directory.
    pub name: String,
    /// Length in bytes.
    pub bytes: u64,
}

/// The file system under the data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes an unprivileged process may still use.
    pub free_bytes: u64,
    /// Size of the file system.
    pub total_bytes: u64,
}

/// The largest small file: more is neither read nor to be written.
pub(crate) const SMALL_BYTES_MAX: u64 = 256 << 20;

/// The name under which a small file is written before it gets its own.
pub(crate) fn unfinished(path: &str) -> String {
    format!("{path}.unfinished")
}

/// Whether a name is one of those: never listed, replaced by the next attempt.
fn is_unfinished(path: &str) -> bool {
    path.ends_with(".unfinished")
}

/// A data directory, held exclusively by this process.
pub trait Storage: Send + Sync + Debug {
    /// Creates a directory and makes its name durable; an existing one is fine.
    fn create_dir(&self, dir: &str) -> io::Result<()>;
    /// The directories in `dir` ("" is the data directory itself), sorted.
    fn list_dirs(&self, dir: &str) -> io::Result<Vec<String>>;
    /// The files in `dir`, sorted by name.
    fn list(&self, dir: &str) -> io::Result<Vec<DirEntry>>;
    /// Creates a file of `bytes` with real blocks, removing it again when that fails. Its length and
    /// blocks are durable on return, its name only after [`Storage::sync_dir`].
    fn create(
        &self,
        path: &str,
        bytes: u64,
        preparation: Preparation,
    ) -> io::Result<Arc<dyn SegmentFile>>;
    /// Opens an existing file. `writable: false` never changes it (also for `doctor`). A file has one
    /// writable handle, or any number of others; a slice counts as its handle. Else `ResourceBusy`.
    fn open(&self, path: &str, writable: bool) -> io::Result<Arc<dyn SegmentFile>>;
    /// Renames within the data directory, replacing `to`; durable after [`Storage::sync_dir`].
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Unlinks; open slices stay readable. Durable after [`Storage::sync_dir`].
    fn remove(&self, path: &str) -> io::Result<()>;
    /// Makes names created, renamed and removed in `dir` durable.
    fn sync_dir(&self, dir: &str) -> io::Result<()>;
    /// A whole small file (snapshots), at most 256 MiB; `FileTooLarge` when it is larger.
    fn read_small(&self, path: &str) -> io::Result<Bytes>;
    /// Replaces a small file atomically and durably: written beside it, synced, renamed, directory synced.
    fn replace_small(&self, path: &str, contents: &[u8]) -> io::Result<()>;
    /// Looks whether the names of the data directory, of its lock and of `path` in it ("": nothing
    /// more) still lead to what is open here. `Ok` also where that cannot be told.
    fn look(&self, path: &str) -> Result<(), Gone>;
    /// Whether somebody else can take the data directory away at all.
    fn has_a_place(&self) -> bool;
    /// Remembers that something is gone, for everybody who shares this storage and for good: while
    /// it was away anything may have happened to it.
    fn lose(&self, gone: Gone);
    /// What is gone, if anything is.
    fn gone(&self) -> Option<Gone>;
    /// Free and total space.
    fn space(&self) -> io::Result<Space>;
}

/// One segment's file: written through the file descriptor (so that errors are errors), read
/// through the map (hot) or the file descriptor (cold).
pub trait SegmentFile: Send + Sync + Debug {
    /// Length in bytes; never changes while open.
    fn bytes(&self) -> u64;
    /// One gathered write. `Err` also when less than everything was written. Buffers beyond the
    /// system's limit per call are written with several calls.
    fn write_at(&self, buffers: &[IoSlice<'_>], position: u64) -> io::Result<()>;
    /// As `write_at`, and durable when it returns (decision 0001 says how). Only these bytes are:
    /// what other writes left needs [`SegmentFile::sync`].
    fn write_durable_at(&self, buffers: &[IoSlice<'_>], position: u64) -> io::Result<()>;
    /// Makes everything written durable. After an error never trust this file again.
    fn sync(&self) -> io::Result<()>;
    /// Reads through the file descriptor: a bad disk is an error, a page fault happens here.
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<()>;
    /// Says that bytes below `end` will never change again; only those can be sliced, and writing
    /// them is a panic. Never moves back. A file that was opened again starts at 0.
    fn publish(&self, end: u64);
    /// A slice of the map without a copy; it holds the file (see [`SegmentFile::is_held`]).
    /// May fault to disk when cold: see [`SegmentFile::populate`].
    ///
    /// # Panics
    /// When the range is not published.
    fn slice(&self, range: Range<u64>) -> Bytes;
    /// Reads the range into memory now, so that slicing it will not fault. An error is a bad disk.
    fn populate(&self, range: Range<u64>) -> io::Result<()>;
    /// Gives blocks back (a punched hole); the bytes read as zero afterwards. Never over data.
    fn punch_hole(&self, range: Range<u64>) -> io::Result<()>;
    /// Drops what the kernel caches of the range (for benchmarks and `doctor`); best effort.
    fn discard_cache(&self, range: Range<u64>);
    /// Whether slices that came from this handle are alive.
    fn is_held(&self) -> bool;
}
