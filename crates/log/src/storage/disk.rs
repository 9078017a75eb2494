//! A data directory on a real file system.

use std::fs::File;
use std::io::{self, IoSlice, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::{FallocateFlags, FileType, OFlags};
use rustix::io::{Errno, ReadWriteFlags};

use super::open_files::OpenFiles;
use super::{DirEntry, Preparation, SMALL_BYTES_MAX, SegmentFile, Space, Storage, is_unfinished};
use crate::directory::{Directory, LOCK, LOST_AND_FOUND, MARKER};
use crate::error::{Gone, OpenError};
use crate::mapped_file::{MappedFile, write_all};

/// Zeroes written ahead at once, and the rest in between: about 150 MB/s, which costs a lane that
/// syncs meanwhile up to a quarter of its rounds; without a rest it costs more than half, with
/// stalls of 50 ms (decision 0001).
const AHEAD_BYTES: u64 = 1 << 20;
const AHEAD_PAUSE: Duration = Duration::from_millis(4);

/// A data directory that this process holds alone, or looks at without touching it.
#[derive(Debug)]
pub struct DiskStorage {
    directory: Directory,
    files: OpenFiles,
    /// Nothing is written; another process may.
    read_only: bool,
    holder: Option<String>,
    gone: OnceLock<Gone>,
}

impl DiskStorage {
    /// How long a second process waits for the first one to be gone, by default.
    pub const LOCK_WAIT: Duration = Duration::from_secs(2);

    /// Opens the data directory at `path` and locks it for as long as this value lives; makes it
    /// (mode 0700) when it is missing or empty.
    ///
    /// # Errors
    /// One clear line each: held by another process after `lock_wait`, somebody else's directory,
    /// another version's, read-only, a symbolic link.
    pub fn open(path: &Path, lock_wait: Duration) -> Result<Self, OpenError> {
        let directory = Directory::open(path, lock_wait)?;
        Ok(Self {
            directory,
            files: OpenFiles::default(),
            read_only: false,
            holder: None,
            gone: OnceLock::new(),
        })
    }

    /// Opens it for looking only: nothing is written, made or locked, and whoever holds it is not
    /// disturbed. Slices are copies.
    ///
    /// # Errors
    /// As for `open`, but for the lock: see [`DiskStorage::holder`].
    pub fn open_read_only(path: &Path) -> Result<Self, OpenError> {
        let (directory, holder) = Directory::open_read_only(path)?;
        Ok(Self {
            directory,
            files: OpenFiles::default(),
            read_only: true,
            holder,
            gone: OnceLock::new(),
        })
    }

    /// For a read-only one: the process that held the directory when it was opened, as its lock
    /// file names it (`pid 4711`).
    pub fn holder(&self) -> Option<&str> {
        self.holder.as_deref()
    }

    fn check_writable(&self) -> io::Result<()> {
        if self.read_only {
            Err(Errno::ROFS.into())
        } else {
            Ok(())
        }
    }

    fn segment_file(
        &self,
        file: File,
        path: &str,
        writable: bool,
    ) -> io::Result<Arc<dyn SegmentFile>> {
        let metadata = file.metadata()?;
        let open = self
            .files
            .claim((metadata.dev(), metadata.ino()), writable)?;
        let bytes = metadata.len();
        Ok(Arc::new(MappedFile::new(
            file,
            path,
            bytes,
            writable,
            self.read_only,
            open,
        )))
    }
}

impl Storage for DiskStorage {
    fn create_dir(&self, dir: &str) -> io::Result<()> {
        self.check_writable()?;
        self.directory.make_dir(dir)?;
        self.directory
            .sync(dir.rsplit_once('/').map_or("", |(parent, _)| parent))
    }

    fn list_dirs(&self, dir: &str) -> io::Result<Vec<String>> {
        let all = self.directory.list(dir)?.into_iter();
        let dirs = all
            .filter(|file| file.kind == FileType::Directory)
            .map(|file| file.name);
        Ok(dirs.filter(|name| name != LOST_AND_FOUND).collect())
    }

    fn list(&self, dir: &str) -> io::Result<Vec<DirEntry>> {
        let all = self.directory.list(dir)?.into_iter();
        let files = all.filter(|file| file.kind == FileType::RegularFile);
        let ours = files.filter(|file| {
            let about_the_directory = dir.is_empty() && [LOCK, MARKER].contains(&&*file.name);
            !about_the_directory && !is_unfinished(&file.name)
        });
        Ok(ours
            .map(|file| DirEntry {
                name: file.name,
                bytes: file.bytes,
            })
            .collect())
    }

    fn create(
        &self,
        path: &str,
        bytes: u64,
        preparation: Preparation,
    ) -> io::Result<Arc<dyn SegmentFile>> {
        self.check_writable()?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let file = self.directory.open_file(path, flags)?;
        let ready = allocate(&file, bytes, preparation)
            .and_then(|()| file.sync_all())
            .and_then(|()| self.segment_file(file, path, true));
        if ready.is_err() {
            // A failed `fallocate` keeps what it got. Best effort: the first error is the one to tell.
            let _ = self.directory.remove(path);
        }
        ready
    }

    fn open(&self, path: &str, writable: bool) -> io::Result<Arc<dyn SegmentFile>> {
        if writable {
            self.check_writable()?;
        }
        let flags = if writable {
            OFlags::RDWR
        } else {
            OFlags::RDONLY
        };
        self.segment_file(self.directory.open_file(path, flags)?, path, writable)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.check_writable()?;
        self.directory.rename(from, to)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.check_writable()?;
        self.directory.remove(path)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.check_writable()?;
        self.directory.sync(dir)
    }

    fn read_small(&self, path: &str) -> io::Result<Bytes> {
        let file = self.directory.open_file(path, OFlags::RDONLY)?;
        if file.metadata()?.len() > SMALL_BYTES_MAX {
            return Err(Errno::FBIG.into());
        }
        let mut contents = Vec::new();
        file.take(SMALL_BYTES_MAX + 1).read_to_end(&mut contents)?;
        if contents.len() as u64 > SMALL_BYTES_MAX {
            return Err(Errno::FBIG.into());
        }
        Ok(contents.into())
    }

    fn replace_small(&self, path: &str, contents: &[u8]) -> io::Result<()> {
        self.check_writable()?;
        self.directory.replace(path, contents)
    }

    fn look(&self, path: &str) -> Result<(), Gone> {
        self.directory
            .look(path, |identity| self.files.is_open(identity))
    }

    fn has_a_place(&self) -> bool {
        true
    }

    fn lose(&self, gone: Gone) {
        // The first loss is the one to tell.
        let _ = self.gone.set(gone);
    }

    fn gone(&self) -> Option<Gone> {
        self.gone.get().cloned()
    }

    fn space(&self) -> io::Result<Space> {
        let (free_bytes, total_bytes) = self.directory.space()?;
        Ok(Space {
            free_bytes,
            total_bytes,
        })
    }
}

/// Gives a new file its length and real blocks. The caller syncs.
fn allocate(file: &File, bytes: u64, preparation: Preparation) -> io::Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    let written = match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes) {
        Ok(()) => preparation == Preparation::Written,
        // A file system without it (NFS, some FUSE): only written blocks are real.
        Err(Errno::OPNOTSUPP) => true,
        Err(errno) => return Err(errno.into()),
    };
    if !written {
        return Ok(());
    }
    let zeroes = vec![0; usize::try_from(AHEAD_BYTES).expect("a MiB fits")];
    let mut position = 0;
    while position < bytes {
        let piece = (bytes - position).min(AHEAD_BYTES);
        let (piece, _) = zeroes.split_at(usize::try_from(piece).expect("BUG: at most a MiB"));
        let buffers = [IoSlice::new(piece)];
        match write_all(file, &buffers, position, ReadWriteFlags::DSYNC) {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::OPNOTSUPP) => {
                write_all(file, &buffers, position, ReadWriteFlags::empty())?;
                file.sync_data()?;
            }
            result => result?,
        }
        position += piece.len() as u64;
        if preparation == Preparation::Written && position < bytes {
            std::thread::sleep(AHEAD_PAUSE);
        }
    }
    Ok(())
}
