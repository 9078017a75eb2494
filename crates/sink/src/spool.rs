//! Files between the log and the store: objects that are encoded and not uploaded yet, and rows that
//! wait for their encoder.
//!
//! ```text
//! <spool>/<delivery stream>/<cut>.<begin>.<k>/   object-<n>, rows, and index.json of a cut that is kept
//! ```
//! A cut may be filled more than once, by an attempt that was given up and still runs: so each time
//! has a folder of its own, and the plan names the one that is kept. All but kept cuts can be made
//! again, so nothing is synced but those, and what is left behind is removed when work begins. Synchronous: used on threads that may block.

mod object;
mod rows;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use flumen_record::Timestamp;
use thiserror::Error;

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
    dir: Arc<PathBuf>,
    room: Arc<Room>,
    /// Tells folders apart from those of earlier attempts and processes.
    begin: u64,
    fillings: Arc<AtomicU64>,
}

impl Spool {
    /// In this directory, which is made when something is written. `begin` is the time.
    pub(crate) fn new(dir: PathBuf, bytes_max: u64, begin: Timestamp) -> Self {
        Self {
            dir: Arc::new(dir),
            room: Arc::new(Room {
                used: AtomicU64::new(0),
                bytes_max,
            }),
            begin: begin.as_micros(),
            fillings: Arc::new(AtomicU64::new(0)),
        }
    }

    /// Room for one cut. What is written there goes when the last handle does, unless it is kept.
    pub(crate) fn cut(&self, number: u64) -> CutSpool {
        let filling = self.fillings.fetch_add(1, Ordering::Relaxed);
        self.folder(format!("{number}.{}.{filling}", self.begin), false)
    }

    fn folder(&self, name: String, is_kept: bool) -> CutSpool {
        CutSpool {
            folder: Arc::new(Folder {
                path: self.dir.join(&name),
                name,
                is_kept: AtomicBool::new(is_kept),
                room: Arc::clone(&self.room),
                used: AtomicU64::new(0),
            }),
        }
    }

    /// A cut that was kept under this name, and its index.
    pub(crate) fn kept(&self, name: &str) -> Result<(CutSpool, Vec<u8>), SpoolError> {
        let cut = self.folder(name.to_owned(), true);
        let index = cut.folder.path.join(INDEX);
        let bytes = fs::read(&index).map_err(SpoolError::io("read", &index))?;
        Ok((cut, bytes))
    }

    /// Removes what another process left behind. Nothing may be filled while it runs.
    pub(crate) fn sweep(&self) -> Result<(), SpoolError> {
        match fs::remove_dir_all(&*self.dir) {
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
    path: PathBuf,
    name: String,
    /// It stays when this is dropped.
    is_kept: AtomicBool,
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
        if !self.is_kept.load(Ordering::Relaxed) {
            // What is left is swept at the next start.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

impl CutSpool {
    fn place(&self, name: &str) -> Result<PathBuf, SpoolError> {
        let dir = &self.folder.path;
        fs::create_dir_all(dir).map_err(SpoolError::io("create", dir))?;
        Ok(dir.join(name))
    }

    /// A new object, the `place`-th of the cut.
    pub(crate) fn object(&self, place: usize) -> Result<SpoolWriter, SpoolError> {
        SpoolWriter::create(self.place(&format!("object-{place}"))?, self.clone())
    }

    /// The file of rows that wait.
    pub(crate) fn rows(&self) -> Result<RowFile, SpoolError> {
        RowFile::create(self.place(ROWS)?, self.clone())
    }

    /// Its name, for the plan of a cut that is kept.
    pub(crate) fn name(&self) -> &str {
        &self.folder.name
    }

    /// Keeps all objects over a crash: synced, with an index. They are there until
    /// [`CutSpool::let_go`].
    pub(crate) fn keep(&self, index: &[u8]) -> Result<(), SpoolError> {
        let folder = &self.folder.path;
        let at = self.place(INDEX)?;
        fs::write(&at, index).map_err(SpoolError::io("write", &at))?;
        let rows = folder.join(ROWS);
        if let Err(error) = fs::remove_file(&rows)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(SpoolError::io("remove", &rows)(error));
        }
        let entries = fs::read_dir(folder).map_err(SpoolError::io("list", folder))?;
        for entry in entries {
            let path = entry.map_err(SpoolError::io("list", folder))?.path();
            sync(&path)?;
        }
        // The folders above were made for this cut, or by one before it.
        for dir in folder.ancestors().take(3) {
            sync(dir)?;
        }
        self.folder.is_kept.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Its index says something else than it should.
    pub(crate) fn damaged_index(&self) -> SpoolError {
        SpoolError::Damaged {
            path: self.folder.path.join(INDEX),
        }
    }

    /// What was kept goes with the last handle.
    pub(crate) fn let_go(&self) {
        self.folder.is_kept.store(false, Ordering::Relaxed);
    }
}

fn sync(path: &Path) -> Result<(), SpoolError> {
    let file = fs::File::open(path).map_err(SpoolError::io("open", path))?;
    file.sync_all().map_err(SpoolError::io("sync", path))
}
