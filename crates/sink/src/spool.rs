//! Files between the log and the store: objects that are encoded and not uploaded yet, and rows that
//! wait for their encoder.
//!
//! ```text
//! <spool>/<delivery stream>/<cut>/      object-<n>, rows, and index.json of a cut that is kept
//! <spool>/<delivery stream>/<cut>.<k>/  the same while it is filled, for the k-th time
//! ```
//! All but kept cuts can be made again, so nothing is synced but those, and what a process left behind
//! is removed when the next begins. Synchronous: used on threads that may block.

pub(crate) mod files;
mod memory;
mod object;
mod rows;

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;
use tokio::sync::watch;

#[cfg(test)]
use files::DirectoryFiles;
pub use files::{SpoolFile, SpoolFiles};
pub use memory::MemorySpools;
pub(crate) use object::{SpoolWriter, SpooledObject};
pub(crate) use rows::{Extent, RowFile};

/// Why the spool does not do what it should.
#[derive(Debug, Error)]
pub(crate) enum SpoolError {
    /// It holds as much as it may.
    #[error(
        "the spool holds {bytes_max} bytes, as much as sink.spool_bytes_max allows; a smaller \
         buffering size takes less"
    )]
    Full {
        /// Its bound.
        bytes_max: u64,
    },
    /// The file system does not take or give it.
    #[error("the spool cannot {doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What was written there is not there any more.
    #[error("the spool file {path} is damaged")]
    Damaged {
        /// Which.
        path: PathBuf,
    },
}

impl SpoolError {
    fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            doing,
            path,
            source,
        }
    }

    /// Whether what was written is gone, rather than not to be had now.
    pub(crate) fn is_loss(&self) -> bool {
        match self {
            Self::Damaged { .. } => true,
            Self::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::Full { .. } => false,
        }
    }

    /// Stable, for programs.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Full { .. } => "spool_full",
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => "disk_full",
            Self::Io { .. } => "spool",
            Self::Damaged { .. } => "spool_damaged",
        }
    }
}

/// How much one delivery stream may have in its spool.
#[derive(Debug)]
pub(crate) struct Room {
    used: AtomicU64,
    bytes_max: u64,
    /// Cuts somebody has in hand.
    in_hand: watch::Sender<usize>,
}

impl Room {
    /// Takes room, or says that there is none.
    fn take(&self, bytes: u64) -> Result<(), SpoolError> {
        let used = self.used.fetch_add(bytes, Ordering::Relaxed);
        if used.saturating_add(bytes) > self.bytes_max {
            self.give_back(bytes);
            return Err(SpoolError::Full {
                bytes_max: self.bytes_max,
            });
        }
        Ok(())
    }

    fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The spool of one delivery stream. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Spool {
    files: Arc<dyn SpoolFiles>,
    dir: Arc<PathBuf>,
    room: Arc<Room>,
    fillings: Arc<AtomicU64>,
}

impl Spool {
    /// In this directory, which is made when something is written.
    #[cfg(test)]
    pub(crate) fn new(dir: PathBuf, bytes_max: u64) -> Self {
        Self::over(Arc::new(DirectoryFiles), dir, bytes_max)
    }

    /// In this directory of these files.
    pub(crate) fn over(files: Arc<dyn SpoolFiles>, dir: PathBuf, bytes_max: u64) -> Self {
        Self {
            files,
            dir: Arc::new(dir),
            room: Arc::new(Room {
                used: AtomicU64::new(0),
                bytes_max,
                in_hand: watch::Sender::default(),
            }),
            fillings: Arc::new(AtomicU64::new(0)),
        }
    }

    /// Room for one cut. What is written there goes when the last handle does, unless it is kept.
    pub(crate) fn cut(&self, number: u64) -> CutSpool {
        let filling = self.fillings.fetch_add(1, Ordering::Relaxed);
        self.room.in_hand.send_modify(|cuts| *cuts += 1);
        CutSpool {
            folder: Arc::new(Folder {
                files: Arc::clone(&self.files),
                temporary: self.dir.join(format!("{number}.{filling}")),
                kept: self.dir.join(number.to_string()),
                room: Arc::clone(&self.room),
                used: AtomicU64::new(0),
            }),
        }
    }

    /// A cut that was kept, and its index.
    pub(crate) fn kept(&self, number: u64) -> Result<(CutSpool, Vec<u8>), SpoolError> {
        let cut = self.cut(number);
        let index = cut.folder.kept.join(INDEX);
        let mut bytes = Vec::new();
        let read = self.files.open(&index);
        let read = read.and_then(|mut file| file.read_to_end(&mut bytes));
        read.map_err(SpoolError::io("read", &index))?;
        Ok((cut, bytes))
    }

    /// Waits until nobody has a cut in hand: a thread that was given up still writes to the end of
    /// what it was asked, and is not to find the next cut of that number.
    pub(crate) async fn idle(&self) {
        // Its sender is here.
        let _ = self
            .room
            .in_hand
            .subscribe()
            .wait_for(|cuts| *cuts == 0)
            .await;
    }

    /// Removes what is left behind. Nothing may be filled while it runs.
    pub(crate) fn sweep(&self) -> Result<(), SpoolError> {
        match self.files.remove_dir(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(SpoolError::io("empty", &self.dir)(error))
            }
            _ => Ok(()),
        }
    }
}

const INDEX: &str = "index.json";
const ROWS: &str = "rows";

/// What is spooled of one cut. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct CutSpool {
    folder: Arc<Folder>,
}

#[derive(Debug)]
struct Folder {
    files: Arc<dyn SpoolFiles>,
    temporary: PathBuf,
    kept: PathBuf,
    room: Arc<Room>,
    used: AtomicU64,
}

impl Folder {
    fn take(&self, bytes: u64) -> Result<(), SpoolError> {
        self.room.take(bytes)?;
        self.used.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        self.room.give_back(self.used.load(Ordering::Relaxed));
        // What is left is swept at the next start.
        let _ = self.files.remove_dir(&self.temporary);
        self.room.in_hand.send_modify(|cuts| *cuts -= 1);
    }
}

impl CutSpool {
    fn create(&self, name: &str) -> Result<(PathBuf, Box<dyn SpoolFile>), SpoolError> {
        let path = self.folder.temporary.join(name);
        let file = self.folder.files.create(&path);
        let file = file.map_err(SpoolError::io("create", &path))?;
        Ok((path, file))
    }

    /// A new object, the `place`-th of the cut.
    pub(crate) fn object(&self, place: usize) -> Result<SpoolWriter, SpoolError> {
        let (path, file) = self.create(&format!("object-{place}"))?;
        Ok(SpoolWriter::new(path, file, self.clone()))
    }

    /// The file of rows that wait.
    pub(crate) fn rows(&self) -> Result<RowFile, SpoolError> {
        let (path, file) = self.create(ROWS)?;
        Ok(RowFile::new(path, file, self.clone()))
    }

    /// Keeps all objects over a crash: synced, with an index, under the name of the cut. They are
    /// there until [`CutSpool::let_go`].
    pub(crate) fn keep(&self, index: &[u8]) -> Result<(), SpoolError> {
        let Folder {
            files,
            temporary,
            kept,
            ..
        } = &*self.folder;
        let (at, mut file) = self.create(INDEX)?;
        file.write_all(index)
            .map_err(SpoolError::io("write", &at))?;
        let rows = temporary.join(ROWS);
        if let Err(error) = files.remove(&rows)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(SpoolError::io("remove", &rows)(error));
        }
        let sync = |path: &Path| files.sync(path).map_err(SpoolError::io("sync", path));
        let paths = files.list(temporary);
        for path in paths.map_err(SpoolError::io("list", temporary))? {
            sync(&path)?;
        }
        sync(temporary)?;
        self.let_go();
        files
            .rename(temporary, kept)
            .map_err(SpoolError::io("rename", temporary))?;
        // The folder itself, and the one of all spools, were made for this cut, or by one before it.
        for dir in kept.ancestors().skip(1).take(3) {
            sync(dir)?;
        }
        Ok(())
    }

    /// Its index says something else than it should.
    pub(crate) fn damaged_index(&self) -> SpoolError {
        SpoolError::Damaged {
            path: self.folder.kept.join(INDEX),
        }
    }

    /// Removes what was kept.
    pub(crate) fn let_go(&self) {
        // What is left is swept at the next start.
        let _ = self.folder.files.remove_dir(&self.folder.kept);
    }
}

#[cfg(test)]
mod tests;
