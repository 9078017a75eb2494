//! The data directory: ours or refused, locked for life, every name opened without following links.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Access, AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Gone, OpenError};

/// Says that a directory is ours, and in which version of the format.
pub(crate) const MARKER: &str = "flumen.version";
/// Locked while a process has the directory; says which.
pub(crate) const LOCK: &str = "LOCK";
/// The version this code reads and writes.
const VERSION: u32 = 1;
const MARKER_INTRODUCTION: &str = "Flumen data directory, format ";
/// What an empty file system brings along.
pub(crate) const LOST_AND_FOUND: &str = "lost+found";

const LOCK_RETRY: Duration = Duration::from_millis(50);

/// An open data directory.
#[derive(Debug)]
pub(crate) struct Directory {
    root: OwnedFd,
    /// Unlocked by the kernel when the process ends, however it ends.
    lock: Option<File>,
    /// Where it was opened, from the root of the file system; `None`: that says nothing here.
    place: Option<PathBuf>,
}

/// What lies in a directory.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) name: String,
    pub(crate) kind: FileType,
    pub(crate) bytes: u64,
}

impl Directory {
    /// Opens the directory at `path` for this process alone, making it what it must be when it is
    /// missing or empty. Waits up to `lock_wait` for another process to go.
    pub(crate) fn open(path: &Path, lock_wait: Duration) -> Result<Self, OpenError> {
        let path = without_trailing_slash(path);
        let at = |source| io_error(&path, source);
        if let Err(source) = std::fs::symlink_metadata(&path) {
            if source.kind() != io::ErrorKind::NotFound {
                return Err(at(source));
            }
            make(&path).map_err(|source| refused(&path, source))?;
        }
        let mut directory = Self {
            root: open_root(&path)?,
            lock: None,
            place: None,
        };
        // Before anything is written: is it ours to write to?
        let fresh = !directory.check_marker(&path)?;
        directory.check_writable(&path)?;
        directory.lock = Some(directory.take_lock(&path, lock_wait)?);
        // Another process may have been first.
        if fresh && !directory.check_marker(&path)? {
            directory
                .write_marker()
                .map_err(|source| io_error(&path.join(MARKER), source))?;
        }
        directory.place = std::path::absolute(&path).ok();
        if directory.look("", |_| true).is_err() {
            tracing::warn!(path = %path.display(), "this file system gives one file several numbers: that the directory is removed or moved will not be noticed");
            directory.place = None;
        }
        Ok(directory)
    }

    /// Opens the directory at `path` without writing anything; says who holds it.
    pub(crate) fn open_read_only(path: &Path) -> Result<(Self, Option<String>), OpenError> {
        let path = without_trailing_slash(path);
        let directory = Self {
            root: open_root(&path)?,
            lock: None,
            place: None,
        };
        if !directory.check_marker(&path)? {
            let reason = "not a Flumen data directory (it is empty)";
            return Err(OpenError::Foreign {
                path: shown(&path),
                reason,
            });
        }
        let lock = match directory.open_file(LOCK, OFlags::RDONLY) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((directory, None)),
            Err(source) => return Err(link_or_io(&path.join(LOCK), source)),
        };
        let holder = match lock.try_lock_shared() {
            Ok(()) => None,
            Err(TryLockError::WouldBlock) => Some(holder(&lock)),
            Err(TryLockError::Error(source)) => return Err(io_error(&path.join(LOCK), source)),
        };
        Ok((directory, holder))
    }

    /// Whether the marker is there and right; `Err` when the directory is somebody else's.
    fn check_marker(&self, path: &Path) -> Result<bool, OpenError> {
        let marker = match self.open_file(MARKER, OFlags::RDONLY) {
            Ok(marker) => marker,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.check_empty(path)?;
                return Ok(false);
            }
            Err(source) => return Err(link_or_io(&path.join(MARKER), source)),
        };
        let mut text = Vec::new();
        marker
            .take(256)
            .read_to_end(&mut text)
            .map_err(|source| io_error(path, source))?;
        let foreign = |reason| OpenError::Foreign {
            path: shown(&path.join(MARKER)),
            reason,
        };
        let version: u32 = std::str::from_utf8(&text)
            .ok()
            .and_then(|text| text.strip_prefix(MARKER_INTRODUCTION))
            .and_then(|text| text.trim_end().parse().ok())
            .ok_or_else(|| foreign("not a Flumen version marker"))?;
        if version != VERSION {
            return Err(OpenError::Version {
                path: shown(&path.join(MARKER)),
                found: version,
                known: VERSION,
            });
        }
        Ok(true)
    }

    fn check_empty(&self, path: &Path) -> Result<(), OpenError> {
        let listed = self.list("").map_err(|source| io_error(path, source))?;
        let unfinished = crate::storage::unfinished(MARKER);
        let harmless = [LOCK, LOST_AND_FOUND, &unfinished];
        if listed
            .iter()
            .any(|file| !harmless.contains(&file.name.as_str()))
        {
            let reason = "not empty and not a Flumen data directory (no flumen.version in it)";
            return Err(OpenError::Foreign {
                path: shown(path),
                reason,
            });
        }
        Ok(())
    }

    fn check_writable(&self, path: &Path) -> Result<(), OpenError> {
        let wanted = Access::WRITE_OK | Access::EXEC_OK;
        rustix::fs::accessat(&self.root, ".", wanted, AtFlags::EACCESS)
            .map_err(|errno| refused(path, errno.into()))
    }

    fn take_lock(&self, path: &Path, wait: Duration) -> Result<File, OpenError> {
        let at = |source| io_error(&path.join(LOCK), source);
        let mut lock = self
            .open_file(LOCK, OFlags::RDWR | OFlags::CREATE)
            .map_err(|source| match Errno::from_io_error(&source) {
                Some(Errno::ROFS | Errno::ACCESS) => refused(path, source),
                _ => link_or_io(&path.join(LOCK), source),
            })?;
        let mut tries_left = wait.as_millis() / LOCK_RETRY.as_millis();
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(source)) => return Err(at(source)),
                Err(TryLockError::WouldBlock) if tries_left == 0 => {
                    let pid = holder(&lock);
                    let holder = if pid.is_empty() {
                        pid
                    } else {
                        format!(" ({pid})")
                    };
                    return Err(OpenError::Locked {
                        dir: shown(path),
                        holder,
                    });
                }
                Err(TryLockError::WouldBlock) => {
                    tries_left -= 1;
                    std::thread::sleep(LOCK_RETRY);
                }
            }
        }
        // Only for people, and a full disk may refuse it.
        let pid = format!("pid {}\n", std::process::id());
        if let Err(error) = name_holder(&mut lock, &pid) {
            tracing::warn!(%error, "the lock file does not say who holds it");
        }
        Ok(lock)
    }

    fn write_marker(&self) -> io::Result<()> {
        // Somebody else's volume may refuse; then its mode is theirs to choose.
        let _ = rustix::fs::fchmod(&self.root, Mode::RWXU);
        self.replace(
            MARKER,
            format!("{MARKER_INTRODUCTION}{VERSION}\n").as_bytes(),
        )
    }

    /// Writes a file beside `path`, syncs it, gives it the name, syncs the directory.
    pub(crate) fn replace(&self, path: &str, contents: &[u8]) -> io::Result<()> {
        let beside = crate::storage::unfinished(path);
        let written = (|| {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
            let mut file = self.open_file(&beside, flags)?;
            file.write_all(contents)?;
            file.sync_all()?;
            self.rename(&beside, path)
        })();
        if let Err(error) = written {
            // Best effort: what is left of it is neither listed nor in the way of the next one.
            let _ = self.remove(&beside);
            return Err(error);
        }
        self.sync(split(path).0)
    }

    /// Opens a regular file; no part of its path may be a link.
    pub(crate) fn open_file(&self, path: &str, flags: OFlags) -> io::Result<File> {
        let (dir, name) = split(path);
        // Not blocking: a named pipe must not hang the start.
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = File::from(rustix::fs::openat(self.dir(dir)?, name, flags, mode)?);
        if !file.metadata()?.is_file() {
            return Err(Errno::INVAL.into());
        }
        Ok(file)
    }

    /// Opens a directory; no part of its path may be a link.
    pub(crate) fn dir(&self, dir: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut at = rustix::fs::openat(&self.root, ".", flags, Mode::empty())?;
        for part in dir.split('/').filter(|part| !part.is_empty()) {
            at = rustix::fs::openat(&at, part, flags, Mode::empty())?;
        }
        Ok(at)
    }

    pub(crate) fn make_dir(&self, dir: &str) -> io::Result<()> {
        let (parent, name) = split(dir);
        match rustix::fs::mkdirat(self.dir(parent)?, name, Mode::RWXU) {
            // A file or link of this name is found out here.
            Err(Errno::EXIST) => self.dir(dir).map(|_| ()),
            result => Ok(result?),
        }
    }

    pub(crate) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let ((from_dir, from), (to_dir, to)) = (split(from), split(to));
        Ok(rustix::fs::renameat(
            self.dir(from_dir)?,
            from,
            self.dir(to_dir)?,
            to,
        )?)
    }

    pub(crate) fn remove(&self, path: &str) -> io::Result<()> {
        let (dir, name) = split(path);
        Ok(rustix::fs::unlinkat(
            self.dir(dir)?,
            name,
            AtFlags::empty(),
        )?)
    }

    pub(crate) fn sync(&self, dir: &str) -> io::Result<()> {
        Ok(rustix::fs::fsync(self.dir(dir)?)?)
    }

    /// Everything in `dir`, sorted by name. A link is an error: data behind it would be overlooked.
    pub(crate) fn list(&self, dir: &str) -> io::Result<Vec<Listed>> {
        let at = self.dir(dir)?;
        let mut all = Vec::new();
        for file in rustix::fs::Dir::read_from(&at)? {
            let file = file?;
            // Ours are ASCII; any other name is only ever compared.
            let name = file.file_name().to_string_lossy().into_owned();
            if name == "." || name == ".." {
                continue;
            }
            let stat = match rustix::fs::statat(&at, file.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                stat => stat?,
            };
            let kind = FileType::from_raw_mode(stat.st_mode);
            if kind == FileType::Symlink {
                return Err(Errno::LOOP.into());
            }
            let bytes = u64::try_from(stat.st_size).unwrap_or(0);
            all.push(Listed { name, kind, bytes });
        }
        all.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(all)
    }

    /// Whether the names of the directory, of its lock and of a file in it still lead to what this
    /// process holds open.
    pub(crate) fn look(
        &self,
        file: &str,
        is_open: impl Fn((u64, u64)) -> bool,
    ) -> Result<(), Gone> {
        let (Some(place), Some(lock)) = (&self.place, &self.lock) else {
            return Ok(());
        };
        leads_to(place, |found| {
            held(&self.root).is_none_or(|held| held == found)
        })?;
        leads_to(&place.join(LOCK), |found| {
            held(lock).is_none_or(|held| held == found)
        })?;
        if file.is_empty() {
            return Ok(());
        }
        leads_to(&place.join(file), is_open)
    }

    /// Free and total bytes of the file system.
    pub(crate) fn space(&self) -> io::Result<(u64, u64)> {
        let stat = rustix::fs::fstatvfs(&self.root)?;
        Ok((
            stat.f_bavail.saturating_mul(stat.f_frsize),
            stat.f_blocks.saturating_mul(stat.f_frsize),
        ))
    }
}

/// Device and number of an open file; `None` when the file system does not say.
fn held(file: impl AsFd) -> Option<(u64, u64)> {
    let stat = rustix::fs::fstat(file).ok()?;
    Some((stat.st_dev, stat.st_ino))
}

/// Whether a name leads to what `is_held` knows. That it cannot be told (the disk does not answer, a
/// folder above may not be searched any more) is no loss.
fn leads_to(path: &Path, is_held: impl FnOnce((u64, u64)) -> bool) -> Result<(), Gone> {
    let is_there = match rustix::fs::stat(path) {
        Ok(stat) => is_held((stat.st_dev, stat.st_ino)),
        Err(errno) => !matches!(
            errno,
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::STALE | Errno::NODEV
        ),
    };
    let path = shown(path);
    if is_there { Ok(()) } else { Err(Gone { path }) }
}

/// Directory and name.
fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

fn without_trailing_slash(path: &Path) -> PathBuf {
    path.components().collect()
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn io_error(path: &Path, source: io::Error) -> OpenError {
    OpenError::Io {
        path: shown(path),
        source,
    }
}

/// A refusal by the file system to change the directory at `path`.
fn refused(path: &Path, source: io::Error) -> OpenError {
    match Errno::from_io_error(&source) {
        Some(Errno::ROFS | Errno::ACCESS | Errno::PERM) => OpenError::ReadOnly {
            dir: shown(path),
            source,
        },
        _ => io_error(path, source),
    }
}

fn link_or_io(path: &Path, source: io::Error) -> OpenError {
    match Errno::from_io_error(&source) {
        Some(Errno::LOOP) => OpenError::Symlink { path: shown(path) },
        Some(Errno::INVAL) => OpenError::Foreign {
            path: shown(path),
            reason: "not a regular file",
        },
        _ => io_error(path, source),
    }
}

/// Makes a directory and those above it, only for us, its name durable.
fn make(path: &Path) -> io::Result<()> {
    let mut above = path.to_path_buf();
    // The nearest one that exists already holds the first new name.
    while above.pop() && !above.as_os_str().is_empty() && !above.exists() {}
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let top = if above.as_os_str().is_empty() {
        Path::new(".")
    } else {
        &above
    };
    for dir in path
        .ancestors()
        .skip(1)
        .take_while(|dir| !dir.as_os_str().is_empty())
    {
        File::open(dir)?.sync_all()?;
        if dir == top {
            return Ok(());
        }
    }
    File::open(top)?.sync_all()
}

fn open_root(path: &Path) -> Result<OwnedFd, OpenError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| {
        let kind = std::fs::symlink_metadata(path).map(|metadata| metadata.file_type());
        match kind {
            Ok(kind) if kind.is_symlink() => OpenError::Symlink { path: shown(path) },
            Ok(kind) if !kind.is_dir() => OpenError::Foreign {
                path: shown(path),
                reason: "not a directory",
            },
            _ => io_error(path, errno.into()),
        }
    })
}

/// Written over what is there, and only then cut: the block stays the file's own.
fn name_holder(lock: &mut File, pid: &str) -> io::Result<()> {
    lock.write_all(pid.as_bytes())?;
    lock.set_len(pid.len() as u64)
}

/// Who the lock file says holds it.
fn holder(mut lock: &File) -> String {
    let mut text = String::new();
    match lock.read_to_string(&mut text) {
        Ok(_) => text.trim().to_owned(),
        Err(_) => String::new(),
    }
}
