//! A local directory as a store.
//!
//! `object_store` has one too, with which a lost outcome cannot be settled: it keeps no metadata, so
//! a file would have to be read to know whose it is. Here the cut id is an extended attribute
//! (`user.flumen-cut`) that is set before the file gets its name, and so is the CRC-32 of its bytes.
//! File systems without such attributes fall back to comparing contents.
//!
//! A file is written under `.flumen-tmp/`, synced, renamed without replacing, and then the folders
//! above it are synced: under its key it is whole and durable, or absent. What a crash leaves under
//! `.flumen-tmp/` is removed before the first write of the next process. Another process that writes
//! into the same directory at that moment fails once, and tries again. Symbolic links are followed:
//! where they lead is the operator's business, but `.flumen-tmp` must be on the same file system.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use object_store::PutPayload;
use object_store::path::Path as ObjectPath;
use rustix::fs::{CWD, RenameFlags, XattrFlags};
use rustix::io::Errno;

use super::{Found, StoreError, Tag};

/// Where files are until they are whole.
const UNFINISHED: &str = ".flumen-tmp";
/// Of files that a crash left, so many are removed at most; further ones the next time.
const SWEEP_MAX: usize = 10_000;
/// A name that is taken by another process's file: so many are tried.
const NAMES_MAX: usize = 1_000;
/// Linux's limit, in bytes.
const NAME_LEN_MAX: usize = 255;
const CUT_ATTRIBUTE: &str = "user.flumen-cut";
const CRC32_ATTRIBUTE: &str = "user.flumen-crc32";
/// Bytes of an attribute of ours at most.
const ATTRIBUTE_LEN_MAX: usize = 1024;

/// A directory that objects are files of.
#[derive(Debug)]
pub(crate) struct Directory {
    root: PathBuf,
    swept: OnceLock<()>,
    next: AtomicU64,
}

impl Directory {
    /// Nothing is touched yet.
    pub(crate) fn new(root: PathBuf) -> Self {
        Self {
            root,
            swept: OnceLock::new(),
            next: AtomicU64::new(0),
        }
    }

    /// Creates a file; `false`: there is one.
    pub(crate) async fn create(
        self: Arc<Self>,
        path: &ObjectPath,
        body: PutPayload,
        tag: &Tag,
    ) -> Result<bool, StoreError> {
        let (path, tag) = (path.clone(), tag.clone());
        blocking(move || self.create_now(&path, &body, &tag)).await
    }

    /// What is under the key.
    pub(crate) async fn look(
        self: Arc<Self>,
        path: &ObjectPath,
    ) -> Result<Option<Found>, StoreError> {
        let path = path.clone();
        blocking(move || self.look_now(&path)).await
    }

    /// A whole file.
    pub(crate) async fn read(
        self: Arc<Self>,
        path: &ObjectPath,
        max_bytes: u64,
    ) -> Result<Bytes, StoreError> {
        let path = path.clone();
        blocking(move || self.read_now(&path, max_bytes)).await
    }

    /// Makes a file durable that is there.
    pub(crate) async fn sync(self: Arc<Self>, path: &ObjectPath) -> Result<(), StoreError> {
        let path = path.clone();
        blocking(move || {
            let file = self.place(&path)?;
            File::open(&file)
                .and_then(|opened| opened.sync_all())
                .map_err(|source| failed("sync", &file, source))?;
            self.sync_folders(&file)
        })
        .await
    }

    /// Removes a file, and its folder if that was made for a probe and is empty.
    pub(crate) async fn remove(self: Arc<Self>, path: &ObjectPath) -> Result<(), StoreError> {
        let path = path.clone();
        blocking(move || {
            let file = self.place(&path)?;
            match std::fs::remove_file(&file) {
                Err(source) if source.kind() != ErrorKind::NotFound => {
                    return Err(failed("remove", &file, source));
                }
                _ => {}
            }
            if let Some(folder) = file.parent().filter(|folder| folder.ends_with("_probe")) {
                // Other probes may be in it.
                let _ = std::fs::remove_dir(folder);
            }
            Ok(())
        })
        .await
    }

    fn create_now(
        &self,
        path: &ObjectPath,
        body: &PutPayload,
        tag: &Tag,
    ) -> Result<bool, StoreError> {
        let target = self.place(path)?;
        self.swept.get_or_init(|| self.sweep());
        if std::fs::symlink_metadata(&target).is_ok() {
            return Ok(false);
        }
        let unfinished = self.write(body, tag)?;
        let folder = target.parent().unwrap_or(&self.root);
        let created = make_folder(folder)
            .and_then(|()| name_it(&unfinished.path, &target))
            .or_else(|error| match error.kind() {
                // Somebody removed the empty folder in between.
                ErrorKind::NotFound => {
                    make_folder(folder)?;
                    name_it(&unfinished.path, &target)
                }
                _ => Err(error),
            })
            .map_err(|source| failed("create", &target, source))?;
        if created {
            self.sync_folders(&target)?;
        }
        Ok(created)
    }

    /// A file with all that belongs to it, synced, under a name that means nothing.
    fn write(&self, body: &PutPayload, tag: &Tag) -> Result<Unfinished, StoreError> {
        let folder = self.root.join(UNFINISHED);
        make_folder(&folder).map_err(|source| failed("create", &folder, source))?;
        let (mut file, unfinished) = self.unfinished(&folder)?;
        let written = (|| {
            for piece in body {
                file.write_all(piece)?;
            }
            mark(&file, CUT_ATTRIBUTE, &tag.cut)?;
            mark(&file, CRC32_ATTRIBUTE, &format!("{:08x}", tag.crc32))?;
            file.sync_all()
        })();
        written.map_err(|source| failed("write", &unfinished.path, source))?;
        Ok(unfinished)
    }

    fn unfinished(&self, folder: &Path) -> Result<(File, Unfinished), StoreError> {
        let mut last = folder.to_owned();
        for _ in 0..NAMES_MAX {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            last = folder.join(format!("{}-{number}.tmp", std::process::id()));
            match File::create_new(&last) {
                Ok(file) => return Ok((file, Unfinished { path: last })),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed("create", &last, error)),
            }
        }
        Err(failed("create", &last, ErrorKind::AlreadyExists.into()))
    }

    fn look_now(&self, path: &ObjectPath) -> Result<Option<Found>, StoreError> {
        let target = self.place(path)?;
        let file = match File::open(&target) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("open", &target, error)),
        };
        let metadata = file
            .metadata()
            .map_err(|source| failed("look at", &target, source))?;
        Ok(Some(Found {
            bytes: metadata.len(),
            cut: marked(&file, CUT_ATTRIBUTE),
            crc32: marked(&file, CRC32_ATTRIBUTE)
                .and_then(|crc32| u32::from_str_radix(&crc32, 16).ok()),
            e_tag: None,
            content_type: None,
            content_encoding: None,
        }))
    }

    fn read_now(&self, path: &ObjectPath, max_bytes: u64) -> Result<Bytes, StoreError> {
        let target = self.place(path)?;
        let file = match File::open(&target) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let key = path.to_string();
                return Err(StoreError::Missing { key });
            }
            Err(error) => return Err(failed("open", &target, error)),
        };
        let unreadable = |source| failed("read", &target, source);
        let bytes = file.metadata().map_err(unreadable)?.len();
        if bytes > max_bytes {
            return Err(StoreError::TooLarge {
                key: path.to_string(),
                bytes,
                bytes_max: max_bytes,
            });
        }
        let mut content = Vec::new();
        file.take(bytes)
            .read_to_end(&mut content)
            .map_err(unreadable)?;
        Ok(content.into())
    }

    /// The file of a key. Keys are checked before they come here: no `..`, nothing absolute.
    fn place(&self, path: &ObjectPath) -> Result<PathBuf, StoreError> {
        let refused = |why| StoreError::BadKey {
            key: path.to_string(),
            why,
        };
        let mut place = self.root.clone();
        for part in path.as_ref().split('/') {
            if part.len() > NAME_LEN_MAX {
                return Err(refused("a directory takes 255 bytes between `/`"));
            }
            place.push(part);
        }
        if path.as_ref().split('/').next() == Some(UNFINISHED) {
            return Err(refused("`.flumen-tmp` is taken"));
        }
        Ok(place)
    }

    /// Makes names durable, from the file's folder up to the directory itself. All of them each
    /// time: whoever made a folder may not have lived to sync it.
    fn sync_folders(&self, file: &Path) -> Result<(), StoreError> {
        let above = file
            .ancestors()
            .skip(1)
            .take_while(|folder| folder.starts_with(&self.root));
        for folder in above {
            sync_folder(folder).map_err(|source| failed("sync", folder, source))?;
        }
        Ok(())
    }

    /// Removes what a crash left. What cannot be removed does no harm.
    fn sweep(&self) {
        let Ok(listing) = std::fs::read_dir(self.root.join(UNFINISHED)) else {
            return;
        };
        let removed = listing
            .take(SWEEP_MAX)
            .flatten()
            .map(|file| file.path())
            .filter(|path| path.extension().is_some_and(|ending| ending == "tmp"))
            .filter(|path| std::fs::remove_file(path).is_ok())
            .count();
        if removed > 0 {
            tracing::info!(directory = %self.root.display(), removed, "removed unfinished files");
        }
    }
}

/// A file that has no name yet. It is removed unless it got one.
#[derive(Debug)]
struct Unfinished {
    path: PathBuf,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Renamed, it is not there.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Gives a file its name, unless that is taken.
fn name_it(unfinished: &Path, target: &Path) -> io::Result<bool> {
    let renamed = rustix::fs::renameat_with(CWD, unfinished, CWD, target, RenameFlags::NOREPLACE);
    match renamed {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        // The file system does not know how: network file systems, mostly.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
            match std::fs::hard_link(unfinished, target) {
                Ok(()) => Ok(true),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
                Err(error) => Err(error),
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// Sets an attribute, where there are any.
fn mark(file: &File, name: &str, value: &str) -> io::Result<()> {
    match rustix::fs::fsetxattr(file, name, value.as_bytes(), XattrFlags::empty()) {
        Ok(()) | Err(Errno::NOTSUP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn marked(file: &File, name: &str) -> Option<String> {
    let mut value = vec![0; ATTRIBUTE_LEN_MAX];
    let length = rustix::fs::fgetxattr(file, name, value.as_mut_slice()).ok()?;
    value.truncate(length);
    String::from_utf8(value).ok()
}

/// Makes a folder and those above it; the names of new ones are synced.
fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let Some(above) = folder.parent() else {
        return Ok(());
    };
    make_folder(above)?;
    match std::fs::create_dir(folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => sync_folder(above),
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn failed(doing: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Io {
        doing,
        path: path.to_owned(),
        source,
    }
}

/// Runs what waits for disks where waiting harms nobody.
async fn blocking<T: Send + 'static>(
    run: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(run)
        .await
        .unwrap_or_else(|error| {
            Err(StoreError::Unreachable {
                detail: error.to_string(),
                sent: true,
            })
        })
}

#[cfg(test)]
mod tests;
