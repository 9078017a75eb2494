//! An open file of the in-memory disk.

#![expect(
    clippy::cast_possible_truncation,
    reason = "files of the twin fit in memory"
)]

use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::MemoryStorage;
use super::disk::InodeId;
use super::fault::{Fate, FaultError, OperationKind, Script};
use crate::storage::SegmentFile;
use crate::storage::open_files::OpenFile;

/// The handle.
#[derive(Debug)]
pub(super) struct MemoryFile {
    pub(super) storage: MemoryStorage,
    pub(super) path: String,
    pub(super) inode: InodeId,
    pub(super) writable: bool,
    pub(super) bytes: u64,
    pub(super) published: AtomicU64,
    /// Keeps the contents when the name goes.
    pub(super) open: Arc<OpenFile>,
    /// Cloned by every slice of this handle.
    pub(super) held: Arc<()>,
}

/// What a slice of the twin owns: a copy, and the file.
struct Slice {
    copy: Vec<u8>,
    _open: Arc<OpenFile>,
    _held: Arc<()>,
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        &self.copy
    }
}

impl MemoryFile {
    fn check_writable(&self, start: u64, bytes: u64) -> io::Result<()> {
        if !self.writable {
            return Err(rustix::io::Errno::BADF.into());
        }
        assert!(
            start
                .checked_add(bytes)
                .is_some_and(|end| end <= self.bytes),
            "BUG: {bytes} bytes at {start} of {} lie beyond its {} bytes",
            self.path,
            self.bytes,
        );
        let published = self.published.load(Ordering::Acquire);
        assert!(
            bytes == 0 || start >= published,
            "BUG: bytes at {start} of {} are published up to {published}",
            self.path,
        );
        Ok(())
    }

    fn check_readable(&self, range: &Range<u64>) -> io::Result<()> {
        if range.start > range.end || range.end > self.bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    /// Writes, and says where the write ends.
    fn write(&self, buffers: &[IoSlice<'_>], position: u64) -> io::Result<Range<u64>> {
        let mut contents = Vec::with_capacity(buffers.iter().map(|buffer| buffer.len()).sum());
        for buffer in buffers {
            contents.extend_from_slice(buffer);
        }
        self.check_writable(position, contents.len() as u64)?;
        let range = position..position + contents.len() as u64;
        let mut disk = self.storage.lock();
        let fate = disk
            .script
            .step(OperationKind::Write, &self.path, range.clone())?;
        match fate {
            Fate::Fail(FaultError::Short(kept)) => {
                let (kept, _) = contents.split_at(contents.len().min(kept as usize));
                disk.inode_mut(self.inode).write(position, kept);
                Err(FaultError::Short(0).to_io())
            }
            Fate::Fail(error) => Err(error.to_io()),
            Fate::Cut => {
                disk.inode_mut(self.inode).write(position, &contents);
                Err(Script::cut_error())
            }
            Fate::Done => {
                disk.inode_mut(self.inode).write(position, &contents);
                Ok(range)
            }
        }
    }

    fn sync_range(&self, range: &Range<u64>) -> io::Result<()> {
        let mut disk = self.storage.lock();
        let fate = disk
            .script
            .step(OperationKind::Sync, &self.path, range.clone())?;
        let without_sync = disk.without_sync;
        let inode = disk.inode_mut(self.inode);
        match fate {
            Fate::Cut => return Err(Script::cut_error()),
            Fate::Fail(error) => {
                inode.give_up(range);
                return Err(error.to_io());
            }
            Fate::Done if without_sync => {}
            Fate::Done => inode.settle(range),
        }
        Ok(())
    }
}

impl SegmentFile for MemoryFile {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn write_at(&self, buffers: &[IoSlice<'_>], position: u64) -> io::Result<()> {
        self.write(buffers, position).map(|_| ())
    }

    fn write_durable_at(&self, buffers: &[IoSlice<'_>], position: u64) -> io::Result<()> {
        let range = self.write(buffers, position)?;
        self.sync_range(&range)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_range(&(0..self.bytes))
    }

    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<()> {
        let range = position..position.saturating_add(buffer.len() as u64);
        self.check_readable(&range)?;
        self.storage.pause_read();
        let mut disk = self.storage.lock();
        match disk.script.step(OperationKind::Read, &self.path, range)? {
            Fate::Fail(error) => Err(error.to_io()),
            Fate::Done | Fate::Cut => {
                disk.inode(self.inode).read(position, buffer);
                Ok(())
            }
        }
    }

    fn publish(&self, end: u64) {
        assert!(
            end <= self.bytes,
            "BUG: {end} is beyond the end of {}",
            self.path
        );
        self.published.fetch_max(end, Ordering::AcqRel);
    }

    fn slice(&self, range: Range<u64>) -> Bytes {
        let published = self.published.load(Ordering::Acquire);
        assert!(
            range.start <= range.end && range.end <= published,
            "BUG: {range:?} of {} is published up to {published}",
            self.path,
        );
        let mut copy = vec![0; (range.end - range.start) as usize];
        self.storage
            .lock()
            .inode(self.inode)
            .read(range.start, &mut copy);
        Bytes::from_owner(Slice {
            copy,
            _open: Arc::clone(&self.open),
            _held: Arc::clone(&self.held),
        })
    }

    fn populate(&self, range: Range<u64>) -> io::Result<()> {
        self.check_readable(&range)?;
        match self
            .storage
            .lock()
            .script
            .step(OperationKind::Read, &self.path, range)?
        {
            Fate::Fail(error) => Err(error.to_io()),
            Fate::Done | Fate::Cut => Ok(()),
        }
    }

    fn punch_hole(&self, range: Range<u64>) -> io::Result<()> {
        self.check_writable(range.start, range.end.saturating_sub(range.start))?;
        let mut disk = self.storage.lock();
        match disk
            .script
            .step(OperationKind::PunchHole, &self.path, range.clone())?
        {
            Fate::Fail(error) => Err(error.to_io()),
            Fate::Cut => {
                disk.inode_mut(self.inode).punch(range);
                Err(Script::cut_error())
            }
            Fate::Done => {
                disk.inode_mut(self.inode).punch(range);
                Ok(())
            }
        }
    }

    fn discard_cache(&self, range: Range<u64>) {
        let end = range.end.min(self.bytes);
        let mut disk = self.storage.lock();
        disk.inode_mut(self.inode)
            .evict(&(range.start.min(end)..end));
    }

    fn is_held(&self) -> bool {
        Arc::strong_count(&self.held) > 1
    }
}
