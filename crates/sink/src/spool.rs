//! Files of one delivery stream on their way into a store.
//!
//! Objects are encoded into files, so that memory does not grow with them; those are made again
//! after a crash and go away with their owner. Rows that could come out differently the second time
//! (what a transform answered) are appended to files that stay until they are removed by name, and
//! are synced before anything is written that depends on them.
//!
//! All of it is synchronous, for threads that may wait. All files together stay within a budget.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use md5::{Digest, Md5};
use object_store::PutPayload;

/// What is written at a time.
const WRITE_BYTES: usize = 256 << 10;
/// What is read at a time, and one piece of a payload.
const READ_BYTES: usize = 1 << 20;
/// Files of one delivery stream at most: more are not listed.
const FILES_MAX: usize = 100_000;
/// How names of objects end. No name of rows may.
const OBJECT: &str = ".object";

/// Why a spool file cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpoolError {
    /// The disk is full.
    #[error("the disk is full: cannot write {}; make room, it is tried again", path.display())]
    Full {
        /// Which file was written.
        path: PathBuf,
    },
    /// The files of this delivery stream may not grow further.
    #[error(
        "spool files would exceed {bytes_max} bytes; raise `spool_bytes_max`, or make cuts smaller"
    )]
    Budget {
        /// The limit.
        bytes_max: u64,
    },
    /// A file does not hold what was written.
    #[error("{} does not hold what was written to it", path.display())]
    Corrupt {
        /// Which.
        path: PathBuf,
    },
    /// The file system failed.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl SpoolError {
    fn of(doing: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        if matches!(
            source.kind(),
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded
        ) {
            return Self::Full { path };
        }
        match source.downcast::<Self>() {
            Ok(ours) => ours,
            Err(source) => Self::Io {
                doing,
                path,
                source,
            },
        }
    }

    /// Stable, for programs.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Full { .. } => "disk_full",
            Self::Budget { .. } => "spool_full",
            Self::Corrupt { .. } => "spool_corrupt",
            Self::Io { .. } => "spool_io",
        }
    }

    /// What an encoder ran into when it wrote to an [`ObjectWriter`].
    pub(crate) fn from_writing(error: io::Error) -> Self {
        Self::of("write", Path::new("a spool file"), error)
    }
}

/// Bytes of files that are there, and may be.
#[derive(Debug)]
struct Budget {
    used: AtomicU64,
    bytes_max: u64,
}

impl Budget {
    fn take(&self, bytes: u64) -> Result<(), SpoolError> {
        let within = |used: u64| {
            let used = used.checked_add(bytes)?;
            (used <= self.bytes_max).then_some(used)
        };
        match self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, within)
        {
            Ok(_) => Ok(()),
            Err(_) => Err(SpoolError::Budget {
                bytes_max: self.bytes_max,
            }),
        }
    }

    fn give_back(&self, bytes: u64) {
        let without = |used: u64| Some(used.saturating_sub(bytes));
        let _ = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, without);
    }
}

/// The folder of one delivery stream's files.
#[derive(Debug, Clone)]
pub(crate) struct Spool {
    dir: PathBuf,
    budget: Arc<Budget>,
    /// Objects so far: their names.
    objects: Arc<AtomicU64>,
}

impl Spool {
    /// Makes the folder if it is not there. What is in it counts.
    pub(crate) fn open(dir: &Path, bytes_max: u64) -> Result<Self, SpoolError> {
        std::fs::create_dir_all(dir).map_err(|source| SpoolError::of("create", dir, source))?;
        let spool = Self {
            dir: dir.to_owned(),
            budget: Arc::new(Budget {
                used: AtomicU64::new(0),
                bytes_max,
            }),
            objects: Arc::default(),
        };
        let there = spool.list()?.iter().map(|(_, bytes)| bytes).sum();
        spool.budget.used.store(there, Ordering::Relaxed);
        Ok(spool)
    }

    /// Bytes of its files.
    pub(crate) fn used(&self) -> u64 {
        self.budget.used.load(Ordering::Relaxed)
    }

    /// A new file for an object.
    pub(crate) fn object(&self) -> Result<ObjectWriter, SpoolError> {
        let number = self.objects.fetch_add(1, Ordering::Relaxed);
        let (path, file) = self.create(&format!("{number}{OBJECT}"))?;
        Ok(ObjectWriter {
            file: io::BufWriter::with_capacity(WRITE_BYTES, file),
            object: SpooledObject {
                path,
                bytes: 0,
                crc32: 0,
                md5: String::new(),
                budget: Arc::clone(&self.budget),
            },
            crc32: crc32fast::Hasher::new(),
            md5: Md5::new(),
        })
    }

    /// A new file for rows. A file of this name is replaced: nobody else may have it open.
    pub(crate) fn rows(&self, name: &str) -> Result<RowFile, SpoolError> {
        assert!(!name.ends_with(OBJECT), "BUG: {name} is an object's");
        let (path, file) = self.create(name)?;
        Ok(RowFile {
            path,
            file,
            written: 0,
            buffer: Vec::new(),
            budget: Arc::clone(&self.budget),
        })
    }

    /// The file for rows of this name from before a restart, if it is there; it goes on at its end.
    pub(crate) fn rows_again(&self, name: &str) -> Result<Option<RowFile>, SpoolError> {
        let path = self.path(name);
        let opened = File::options().read(true).write(true).open(&path);
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(SpoolError::of("open", &path, source)),
        };
        let metadata = file
            .metadata()
            .map_err(|source| SpoolError::of("look at", &path, source))?;
        Ok(Some(RowFile {
            path,
            file,
            written: metadata.len(),
            buffer: Vec::new(),
            budget: Arc::clone(&self.budget),
        }))
    }

    /// Removes what an earlier process left, but for the names to keep. Before anything is written.
    pub(crate) fn sweep(&self, keep: impl Fn(&str) -> bool) -> Result<u64, SpoolError> {
        let mut removed = 0;
        for (name, bytes) in self.list()? {
            if keep(&name) {
                continue;
            }
            let path = self.dir.join(&name);
            std::fs::remove_file(&path)
                .map_err(|source| SpoolError::of("remove", &path, source))?;
            self.budget.give_back(bytes);
            removed += 1;
        }
        Ok(removed)
    }

    /// Removes everything, and the folder: the delivery stream is deleted.
    pub(crate) fn remove(self) -> Result<(), SpoolError> {
        match std::fs::remove_dir_all(&self.dir) {
            Err(source) if source.kind() != ErrorKind::NotFound => {
                Err(SpoolError::of("remove", &self.dir, source))
            }
            _ => Ok(()),
        }
    }

    fn create(&self, name: &str) -> Result<(PathBuf, File), SpoolError> {
        let path = self.path(name);
        if let Ok(before) = std::fs::metadata(&path) {
            self.budget.give_back(before.len());
        }
        let created = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path);
        match created {
            Ok(file) => Ok((path, file)),
            Err(source) => Err(SpoolError::of("create", &path, source)),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        assert!(
            !name.is_empty() && !name.starts_with('.') && name.chars().all(plain),
            "BUG: `{name}` is no name of a spool file"
        );
        self.dir.join(name)
    }

    fn list(&self) -> Result<Vec<(String, u64)>, SpoolError> {
        let failed = |source| SpoolError::of("list", &self.dir, source);
        let mut files = Vec::new();
        for file in std::fs::read_dir(&self.dir)
            .map_err(failed)?
            .take(FILES_MAX)
        {
            let file = file.map_err(failed)?;
            let metadata = file.metadata().map_err(failed)?;
            if metadata.is_file() {
                let name = file.file_name().to_string_lossy().into_owned();
                files.push((name, metadata.len()));
            }
        }
        Ok(files)
    }
}

/// An object that is being encoded. Dropped before it is finished, it is removed.
#[derive(Debug)]
pub(crate) struct ObjectWriter {
    file: io::BufWriter<File>,
    object: SpooledObject,
    crc32: crc32fast::Hasher,
    md5: Md5,
}

impl ObjectWriter {
    /// Bytes so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.object.bytes
    }

    /// Everything is written. It is not synced: a crash makes the object again.
    pub(crate) fn finish(self) -> Result<SpooledObject, SpoolError> {
        let Self {
            mut file,
            mut object,
            crc32,
            md5,
        } = self;
        file.flush()
            .map_err(|source| SpoolError::of("write", &object.path, source))?;
        object.crc32 = crc32.finalize();
        object.md5 = md5
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Ok(object)
    }
}

impl Write for ObjectWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let bytes = data.len() as u64;
        self.object.budget.take(bytes).map_err(io::Error::other)?;
        // Counted before it is written: that much is given back when the file goes.
        self.object.bytes += bytes;
        self.file.write_all(data).map_err(|source| {
            io::Error::other(SpoolError::of("write", &self.object.path, source))
        })?;
        self.crc32.update(data);
        self.md5.update(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// An object that is encoded. Its file goes with it.
#[derive(Debug)]
pub(crate) struct SpooledObject {
    path: PathBuf,
    /// Its size.
    pub(crate) bytes: u64,
    /// CRC-32 of its bytes.
    pub(crate) crc32: u32,
    /// MD5 of its bytes, hexadecimal.
    pub(crate) md5: String,
    budget: Arc<Budget>,
}

impl SpooledObject {
    /// All of it, in pieces, checked against what was written.
    pub(crate) fn read(&self) -> Result<PutPayload, SpoolError> {
        let failed = |source| SpoolError::of("read", &self.path, source);
        let corrupt = || SpoolError::Corrupt {
            path: self.path.clone(),
        };
        let mut file = File::open(&self.path).map_err(failed)?;
        let mut crc32 = crc32fast::Hasher::new();
        let mut pieces = Vec::new();
        let mut left = self.bytes;
        while left > 0 {
            let bytes = usize::try_from(left).map_or(READ_BYTES, |left| left.min(READ_BYTES));
            let mut piece = vec![0; bytes];
            file.read_exact(&mut piece)
                .map_err(|error| match error.kind() {
                    ErrorKind::UnexpectedEof => corrupt(),
                    _ => failed(error),
                })?;
            crc32.update(&piece);
            pieces.push(Bytes::from(piece));
            left -= bytes as u64;
        }
        if crc32.finalize() != self.crc32 {
            return Err(corrupt());
        }
        Ok(pieces.into_iter().collect())
    }
}

impl Drop for SpooledObject {
    fn drop(&mut self) {
        // What stays is swept at the next start.
        if std::fs::remove_file(&self.path).is_ok() {
            self.budget.give_back(self.bytes);
        }
    }
}

/// Where a row stands in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Byte place of its first byte.
    pub(crate) position: u64,
    /// Its bytes.
    pub(crate) bytes: u32,
}

/// Rows after each other in a file. It stays until it is removed.
#[derive(Debug)]
pub(crate) struct RowFile {
    path: PathBuf,
    file: File,
    /// Bytes in the file.
    written: u64,
    /// What comes after them.
    buffer: Vec<u8>,
    budget: Arc<Budget>,
}

impl RowFile {
    /// Bytes so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    /// Adds a row.
    pub(crate) fn append(&mut self, row: &[u8]) -> Result<Extent, SpoolError> {
        let bytes = u32::try_from(row.len()).map_err(|_| SpoolError::Budget {
            bytes_max: u64::from(u32::MAX),
        })?;
        self.budget.take(u64::from(bytes))?;
        let extent = Extent {
            position: self.bytes(),
            bytes,
        };
        self.buffer.extend_from_slice(row);
        if self.buffer.len() >= WRITE_BYTES {
            self.flush()?;
        }
        Ok(extent)
    }

    /// A row, whether it is synced or not.
    pub(crate) fn read(&mut self, extent: Extent) -> Result<Bytes, SpoolError> {
        let end = extent.position.saturating_add(u64::from(extent.bytes));
        if end > self.bytes() {
            return Err(SpoolError::Corrupt {
                path: self.path.clone(),
            });
        }
        if end > self.written {
            self.flush()?;
        }
        let mut row = vec![0; extent.bytes as usize];
        self.file
            .read_exact_at(&mut row, extent.position)
            .map_err(|source| SpoolError::of("read", &self.path, source))?;
        Ok(row.into())
    }

    /// Makes everything durable that was added, and the file's name.
    pub(crate) fn sync(&mut self) -> Result<(), SpoolError> {
        self.flush()?;
        let synced = self
            .file
            .sync_all()
            .and_then(|()| match self.path.parent() {
                Some(folder) => File::open(folder)?.sync_all(),
                None => Ok(()),
            });
        synced.map_err(|source| SpoolError::of("sync", &self.path, source))
    }

    /// Removes the file.
    pub(crate) fn remove(self) -> Result<(), SpoolError> {
        std::fs::remove_file(&self.path)
            .map_err(|source| SpoolError::of("remove", &self.path, source))?;
        self.budget.give_back(self.written);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), SpoolError> {
        // A write that fails half-way is written again over itself.
        self.file
            .write_all_at(&self.buffer, self.written)
            .map_err(|source| SpoolError::of("write", &self.path, source))?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

impl Drop for RowFile {
    fn drop(&mut self) {
        // The file stays; what never came into it does not count.
        self.budget.give_back(self.buffer.len() as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(payload: PutPayload) -> Vec<u8> {
        Bytes::from(payload).to_vec()
    }

    #[test]
    fn an_object_comes_back_as_it_was_written_and_goes_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path(), 16 << 20).unwrap();
        let content: Vec<u8> = (0..3_000_000_u32).flat_map(|n| n.to_le_bytes()).collect();
        let mut writer = spool.object().unwrap();
        for piece in content.chunks(70_001) {
            writer.write_all(piece).unwrap();
        }
        assert_eq!(writer.bytes(), content.len() as u64);
        let object = writer.finish().unwrap();
        assert_eq!(object.crc32, crc32fast::hash(&content));
        assert_eq!(object.md5.len(), 32);
        let payload = object.read().unwrap();
        assert!(payload.iter().all(|piece| piece.len() <= READ_BYTES));
        assert_eq!(bytes(payload), content);
        assert_eq!(spool.used(), content.len() as u64);
        drop(object);
        assert_eq!(spool.used(), 0);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn md5_is_md5() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path(), 1 << 20).unwrap();
        let mut writer = spool.object().unwrap();
        writer.write_all(b"abc").unwrap();
        // RFC 1321, A.5.
        assert_eq!(
            writer.finish().unwrap().md5,
            "900150983cd24fb0d6963f7d28e17f72"
        );
    }

    #[test]
    fn an_object_that_changed_on_disk_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path(), 1 << 20).unwrap();
        let mut writer = spool.object().unwrap();
        writer.write_all(b"what was written").unwrap();
        let object = writer.finish().unwrap();
        std::fs::write(dir.path().join("0.object"), b"what was wrItten").unwrap();
        assert!(matches!(object.read(), Err(SpoolError::Corrupt { .. })));
        std::fs::write(dir.path().join("0.object"), b"what").unwrap();
        assert!(matches!(object.read(), Err(SpoolError::Corrupt { .. })));
    }

    #[test]
    fn rows_come_back_before_and_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path(), 16 << 20).unwrap();
        let mut rows = spool.rows("7.rows").unwrap();
        let row = |n: usize| vec![u8::try_from(n % 251).unwrap(); n * 37];
        let extents: Vec<Extent> = (0..300).map(|n| rows.append(&row(n)).unwrap()).collect();
        assert_eq!(rows.read(extents[299]).unwrap(), row(299));
        rows.sync().unwrap();
        let total = rows.bytes();
        drop(rows);

        let spool = Spool::open(dir.path(), 16 << 20).unwrap();
        assert_eq!(spool.used(), total);
        assert!(spool.rows_again("8.rows").unwrap().is_none());
        let mut rows = spool.rows_again("7.rows").unwrap().unwrap();
        for (n, extent) in extents.iter().enumerate() {
            assert_eq!(rows.read(*extent).unwrap(), row(n));
        }
        let added = rows.append(b"more").unwrap();
        assert_eq!(added.position, total);
        assert_eq!(rows.read(added).unwrap().as_ref(), b"more");
        let beyond = Extent {
            position: total,
            bytes: 5,
        };
        assert!(matches!(rows.read(beyond), Err(SpoolError::Corrupt { .. })));
        rows.remove().unwrap();
        assert_eq!(spool.used(), 0);
    }

    #[test]
    fn the_budget_holds_for_all_files_together() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path(), 100).unwrap();
        let mut rows = spool.rows("r").unwrap();
        rows.append(&[1; 60]).unwrap();
        let mut writer = spool.object().unwrap();
        writer.write_all(&[2; 40]).unwrap();
        let error = writer.write_all(&[2; 1]).unwrap_err();
        assert!(matches!(
            SpoolError::from_writing(error),
            SpoolError::Budget { bytes_max: 100 }
        ));
        assert!(matches!(
            rows.append(&[1; 1]),
            Err(SpoolError::Budget { .. })
        ));
        drop(writer);
        rows.append(&[1; 40]).unwrap();
        // Of the same name again: it replaces what was there.
        rows.sync().unwrap();
        drop(rows);
        let mut rows = spool.rows("r").unwrap();
        assert_eq!(spool.used(), 0);
        rows.append(&[1; 100]).unwrap();
    }

    #[test]
    fn what_a_crash_left_is_swept_but_what_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["1.object", "2.object", "2.rows"] {
            std::fs::write(dir.path().join(name), [0; 10]).unwrap();
        }
        let spool = Spool::open(dir.path(), 100).unwrap();
        assert_eq!(spool.sweep(|name| name.ends_with(".rows")).unwrap(), 2);
        assert_eq!(spool.used(), 10);
        assert!(spool.rows_again("2.rows").unwrap().is_some());
        spool.remove().unwrap();
        assert!(!dir.path().exists());
    }

    /// `/dev/full` is a disk without room.
    #[test]
    fn a_full_disk_is_told_from_other_failures() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path(), 1 << 20).unwrap();
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut rows = spool.rows("r").unwrap();
        rows.file = full.try_clone().unwrap();
        rows.append(b"row").unwrap();
        assert!(matches!(rows.sync(), Err(SpoolError::Full { .. })));
        drop(rows);
        let mut writer = spool.object().unwrap();
        writer.file = io::BufWriter::new(full);
        let error = writer.write_all(&[0; 20_000]).unwrap_err();
        let error = SpoolError::from_writing(error);
        let SpoolError::Full { path } = &error else {
            panic!("{error}");
        };
        assert!(path.ends_with("0.object"));
        assert_eq!(error.reason(), "disk_full");
        drop(writer);
        assert_eq!(spool.used(), 0);
    }
}
