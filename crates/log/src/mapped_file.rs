//! A segment file: written through the descriptor, read through the map. The only `unsafe` here is.
//!
//! Writing through the map would be slower (each sync write-protects the pages again), could not
//! report an error, and would turn a full disk into a signal. So the map is read-only and shared,
//! and the kernel keeps it coherent with what is written.
//!
//! Invariants, named by the `SAFETY` comments:
//!
//! 1. **Published bytes never change.** `published` only moves forward; a write or a punched hole
//!    below it is refused here by an assertion, and publishing waits for writes under way. There is
//!    one writing handle per file or only reading ones, slices included ([`OpenFiles`]), and other
//!    processes are kept out by the directory's lock.
//! 2. **The map covers the file, and the file never gets shorter.** Its length is taken from the
//!    descriptor when it is opened, nothing here truncates, and the blocks are real, so that no
//!    page behind the map is missing. A bad disk can still fault: cold ranges are read through the
//!    descriptor or populated first, both of which return errors.
//! 3. **The map outlives every slice.** A slice owns a share of it; the last one unmaps. No
//!    reference to mapped memory leaves except inside `Bytes`.
#![expect(unsafe_code, reason = "the mmap fence: slices of a map without a copy")]

use std::fs::File;
use std::io::{self, IoSlice};
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use memmap2::{Advice, MmapOptions, MmapRaw};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::{Errno, ReadWriteFlags, pwritev2};

use crate::storage::SegmentFile;
use crate::storage::open_files::OpenFile;

/// Live maps of this process; the kernel allows 65,530 by default, and others need some.
static LIVE_MAPS: AtomicUsize = AtomicUsize::new(0);
const LIVE_MAPS_MAX: usize = 16_384;

/// Buffers one system call takes (`IOV_MAX`).
const BUFFERS_MAX: usize = 1024;

/// Whether this kernel and file system know a write that is durable when it returns.
static DURABLE_WRITES: AtomicBool = AtomicBool::new(true);

/// A read-only shared map of a whole file.
#[derive(Debug)]
struct Map {
    raw: MmapRaw,
    /// The file stays claimed while a slice lives, also when its handle is gone.
    _open: Arc<OpenFile>,
}

impl Map {
    fn new(file: &File, bytes: usize, open: &Arc<OpenFile>) -> io::Result<Self> {
        if LIVE_MAPS.fetch_add(1, Ordering::Relaxed) >= LIVE_MAPS_MAX {
            LIVE_MAPS.fetch_sub(1, Ordering::Relaxed);
            return Err(Errno::NOMEM.into());
        }
        match MmapOptions::new().len(bytes).map_raw_read_only(file) {
            Ok(raw) => Ok(Self {
                raw,
                _open: Arc::clone(open),
            }),
            Err(error) => {
                LIVE_MAPS.fetch_sub(1, Ordering::Relaxed);
                Err(error)
            }
        }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        LIVE_MAPS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A published range of a map: what a `Bytes` owns.
struct View {
    map: Arc<Map>,
    start: usize,
    len: usize,
}

impl View {
    /// `range` is published: the caller has checked.
    fn new(map: Arc<Map>, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= map.raw.len(),
            "BUG: a view of {range:?} in a map of {} bytes",
            map.raw.len(),
        );
        Self {
            map,
            start: range.start,
            len: range.end - range.start,
        }
    }
}

impl AsRef<[u8]> for View {
    fn as_ref(&self) -> &[u8] {
        let start = self.map.raw.as_ptr().wrapping_add(self.start);
        // SAFETY: `new` checked that the range lies in the map, whose pages are all backed
        // (invariant 2); nobody changes these bytes while the view lives (invariant 1); the
        // reference borrows `self`, which owns a share of the map (invariant 3).
        unsafe { std::slice::from_raw_parts(start, self.len) }
    }
}

/// One segment's file.
#[derive(Debug)]
pub(crate) struct MappedFile {
    file: File,
    /// For messages.
    path: String,
    bytes: u64,
    writable: bool,
    /// Slices are copies: another process may be writing.
    copies: bool,
    published: AtomicU64,
    /// Shared by writes under way, exclusive while `published` moves (invariant 1).
    writes: RwLock<()>,
    /// Made when first needed.
    map: RwLock<Option<Arc<Map>>>,
    open: Arc<OpenFile>,
}

impl MappedFile {
    /// Takes over an open file of `bytes`. `copies`: never map it, another process may be writing.
    pub(crate) fn new(
        file: File,
        path: &str,
        bytes: u64,
        writable: bool,
        copies: bool,
        open: OpenFile,
    ) -> Self {
        Self {
            file,
            path: path.to_owned(),
            bytes,
            writable,
            copies,
            published: AtomicU64::new(0),
            writes: RwLock::new(()),
            map: RwLock::new(None),
            open: Arc::new(open),
        }
    }

    fn check_write(&self, position: u64, bytes: u64) -> io::Result<()> {
        if !self.writable {
            return Err(Errno::BADF.into());
        }
        assert!(
            position
                .checked_add(bytes)
                .is_some_and(|end| end <= self.bytes),
            "BUG: {bytes} bytes at {position} of {} lie beyond its {} bytes",
            self.path,
            self.bytes,
        );
        let published = self.published.load(Ordering::Acquire);
        assert!(
            bytes == 0 || position >= published,
            "BUG: bytes at {position} of {} are published up to {published}",
            self.path,
        );
        Ok(())
    }

    fn check_read(&self, position: u64, bytes: u64) -> io::Result<()> {
        if position
            .checked_add(bytes)
            .is_none_or(|end| end > self.bytes)
        {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    fn write(&self, buffers: &[IoSlice<'_>], position: u64, durable: bool) -> io::Result<()> {
        let bytes = buffers.iter().map(|buffer| buffer.len() as u64).sum();
        let _writing = self.writes.read().unwrap_or_else(PoisonError::into_inner);
        self.check_write(position, bytes)?;
        let in_one_call = buffers.len() <= BUFFERS_MAX && DURABLE_WRITES.load(Ordering::Relaxed);
        if durable && in_one_call {
            match write_all(&self.file, buffers, position, ReadWriteFlags::DSYNC) {
                Err(error) if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => {
                    DURABLE_WRITES.store(false, Ordering::Relaxed);
                }
                result => return result,
            }
        }
        write_all(&self.file, buffers, position, ReadWriteFlags::empty())?;
        if durable {
            self.file.sync_data()
        } else {
            Ok(())
        }
    }

    fn map(&self) -> io::Result<Arc<Map>> {
        if let Some(map) = &*self.map.read().unwrap_or_else(PoisonError::into_inner) {
            return Ok(Arc::clone(map));
        }
        let mut slot = self.map.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(map) = &*slot {
            return Ok(Arc::clone(map));
        }
        let bytes = usize::try_from(self.bytes).map_err(|_| Errno::FBIG)?;
        let map = Arc::new(Map::new(&self.file, bytes, &self.open)?);
        *slot = Some(Arc::clone(&map));
        Ok(map)
    }

    /// A slice of the heap, for when there can be no map. An unreadable range becomes zeroes, which
    /// no checksum accepts: slicing has no way to fail.
    fn copy(&self, range: Range<u64>) -> Bytes {
        let len = usize::try_from(range.end - range.start).expect("BUG: a slice fits in memory");
        let mut copy = vec![0; len];
        if let Err(error) = self.file.read_exact_at(&mut copy, range.start) {
            tracing::error!(path = %self.path, ?range, %error, "cannot read a slice");
            copy.fill(0);
        }
        copy.into()
    }

    /// As populating the map, through a buffer: for kernels that cannot populate, and unmapped files.
    fn read_through(&self, range: Range<u64>) -> io::Result<()> {
        let mut scratch = vec![0; 256 << 10];
        let mut position = range.start;
        while position < range.end {
            let bytes = usize::try_from(range.end - position).unwrap_or(usize::MAX);
            let (piece, _) = scratch.split_at_mut(bytes.min(256 << 10));
            self.file.read_exact_at(piece, position)?;
            position += piece.len() as u64;
        }
        Ok(())
    }
}

impl SegmentFile for MappedFile {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn write_at(&self, buffers: &[IoSlice<'_>], position: u64) -> io::Result<()> {
        self.write(buffers, position, false)
    }

    fn write_durable_at(&self, buffers: &[IoSlice<'_>], position: u64) -> io::Result<()> {
        self.write(buffers, position, true)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<()> {
        self.check_read(position, buffer.len() as u64)?;
        self.file.read_exact_at(buffer, position)
    }

    fn publish(&self, end: u64) {
        assert!(
            end <= self.bytes,
            "BUG: {end} is beyond the end of {}",
            self.path
        );
        let _no_write = self.writes.write().unwrap_or_else(PoisonError::into_inner);
        self.published.fetch_max(end, Ordering::Release);
    }

    fn slice(&self, range: Range<u64>) -> Bytes {
        let published = self.published.load(Ordering::Acquire);
        assert!(
            range.start <= range.end && range.end <= published,
            "BUG: {range:?} of {} is published up to {published}",
            self.path,
        );
        if range.is_empty() {
            return Bytes::new();
        }
        if self.copies {
            return self.copy(range);
        }
        let Ok(map) = self.map() else {
            return self.copy(range);
        };
        let within = |position| usize::try_from(position).expect("BUG: the whole file is mapped");
        Bytes::from_owner(View::new(map, within(range.start)..within(range.end)))
    }

    fn populate(&self, range: Range<u64>) -> io::Result<()> {
        self.check_read(range.start, range.end.saturating_sub(range.start))?;
        if range.is_empty() {
            return Ok(());
        }
        let (Ok(start), Ok(bytes)) = (
            usize::try_from(range.start),
            usize::try_from(range.end - range.start),
        ) else {
            return Err(Errno::FBIG.into());
        };
        let map = if self.copies { None } else { self.map().ok() };
        let Some(map) = map else {
            return self.read_through(range);
        };
        match map.raw.advise_range(Advice::PopulateRead, start, bytes) {
            Ok(()) => Ok(()),
            // The descriptor says why, or works where the kernel is too old to populate.
            Err(_) => self.read_through(range),
        }
    }

    fn punch_hole(&self, range: Range<u64>) -> io::Result<()> {
        let bytes = range.end.saturating_sub(range.start);
        let _writing = self.writes.read().unwrap_or_else(PoisonError::into_inner);
        self.check_write(range.start, bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(&self.file, flags, range.start, bytes)?)
    }

    fn discard_cache(&self, range: Range<u64>) {
        if !self.is_held() {
            // Pages that are mapped stay in memory.
            *self.map.write().unwrap_or_else(PoisonError::into_inner) = None;
        }
        if let Some(bytes) = NonZeroU64::new(range.end.saturating_sub(range.start)) {
            let advice = rustix::fs::Advice::DontNeed;
            // Best effort, as promised.
            let _ = rustix::fs::fadvise(&self.file, range.start, Some(bytes), advice);
        }
    }

    fn is_held(&self) -> bool {
        let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        map.as_ref().is_some_and(|map| Arc::strong_count(map) > 1)
    }
}

/// Writes everything, with as many calls as it takes.
pub(crate) fn write_all(
    file: &File,
    buffers: &[IoSlice<'_>],
    position: u64,
    flags: ReadWriteFlags,
) -> io::Result<()> {
    let total: u64 = buffers.iter().map(|buffer| buffer.len() as u64).sum();
    let mut written = write_some(file, buffers, position, flags)?;
    if written == total {
        return Ok(());
    }
    let mut rest = buffers.to_vec();
    let mut rest = rest.as_mut_slice();
    IoSlice::advance_slices(
        &mut rest,
        usize::try_from(written).map_err(|_| Errno::FBIG)?,
    );
    while written < total {
        let more = write_some(file, rest, position + written, flags)?;
        if more == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut rest, usize::try_from(more).map_err(|_| Errno::FBIG)?);
        written += more;
    }
    Ok(())
}

fn write_some(
    file: &File,
    buffers: &[IoSlice<'_>],
    position: u64,
    flags: ReadWriteFlags,
) -> io::Result<u64> {
    let (now, _) = buffers.split_at(buffers.len().min(BUFFERS_MAX));
    loop {
        match pwritev2(file, now, position, flags) {
            Ok(written) => return Ok(written as u64),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
