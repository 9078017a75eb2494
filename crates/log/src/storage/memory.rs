//! The in-memory twin of a data directory: it drops, tears and fails what was not synced.
//!
//! For tests and the simulator; deterministic. A file has the contents its process sees and those
//! on the platters; a write changes the first, a sync copies to the second. [`MemoryStorage::kill`]
//! ends the process (what was written stays visible), [`MemoryStorage::crash`] cuts the power (what
//! was not synced survives as the caller says, page by page or sector by sector). A crash test runs
//! its work once per operation with [`MemoryStorage::crash_after`], then opens every image.
//!
//! Metadata: a name that was created, renamed or removed is at risk until its directory is synced,
//! each independently of all others but those of the same name or file (ext4 keeps all of them in
//! order, not every file system does). A rename is atomic. Length and blocks of a created file are
//! durable when `create` returns.
//!
//! A slice is a copy here, but the rules of the map are checked: bytes below the published end must
//! not be written, and a file has one writable handle or only others, slices included.

mod crash;
mod disk;
mod fault;
mod file;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::error::Gone;

pub use crash::{Grain, Unsynced, UnsyncedKind};
use disk::{Disk, Inode, InodeId, NameChange, parent};
use fault::{Fate, Script};
pub use fault::{Fault, FaultError, Operation, OperationKind};
use file::MemoryFile;

use super::{DirEntry, Preparation, SegmentFile, Space, Storage, is_unfinished, unfinished};

/// A data directory in memory. Clones are handles to the same one.
#[derive(Debug, Clone)]
pub struct MemoryStorage {
    disk: Arc<Mutex<Disk>>,
}

impl Default for MemoryStorage {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStorage {
    /// An empty one of 1 TiB.
    pub fn new() -> Self {
        Self::from_disk(Disk::new(1 << 40))
    }

    fn from_disk(disk: Disk) -> Self {
        Self {
            disk: Arc::new(Mutex::new(disk)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        // A broken promise panics while it is held; the state is still good for looking at.
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the size of the file system; free is what no file takes.
    pub fn set_total_bytes(&self, bytes: u64) {
        self.lock().total_bytes = bytes;
    }

    /// Somebody moves the data directory away: what is open stays open, its names lead nowhere.
    pub fn move_away(&self) {
        self.lock().moved_away = true;
    }

    /// Makes every sync do nothing and say OK: a suite that still passes proves nothing.
    pub fn set_without_sync(&self, without_sync: bool) {
        self.lock().without_sync = without_sync;
    }

    /// The power goes during the `operations`-th operation from now (1 is the next): it may or may
    /// not have reached the platters, it returns an error, and so does everything after it.
    pub fn crash_after(&self, operations: u64) {
        let script = &mut self.lock().script;
        script.crash_at = Some(script.operations + operations);
    }

    /// Whether the power is gone.
    pub fn is_dead(&self) -> bool {
        self.lock().script.dead
    }

    /// Bytes of segments that were read or populated so far; slices cost nothing.
    pub fn read_bytes(&self) -> u64 {
        self.lock().script.read_bytes
    }

    /// Operations so far; reads are not counted.
    pub fn operations(&self) -> u64 {
        self.lock().script.operations
    }

    /// Operations so far by kind.
    pub fn counts(&self) -> BTreeMap<OperationKind, u64> {
        self.lock().script.counts.clone()
    }

    /// Starts to keep a trace.
    pub fn start_trace(&self) {
        self.lock().script.trace.get_or_insert_default();
    }

    /// The operations since [`MemoryStorage::start_trace`], reads left out.
    pub fn trace(&self) -> Vec<Operation> {
        self.lock().script.trace.clone().unwrap_or_default()
    }

    /// Makes operations fail. Several can wait; the first that matches wins.
    pub fn inject(&self, fault: Fault) {
        self.lock().script.faults.push(fault);
    }

    /// No more failures from now on.
    pub fn clear_faults(&self) {
        self.lock().script.faults.clear();
    }

    /// Pauses the next read of a file, does `meanwhile`, then lets the read go on: what another thread
    /// would have to be lucky for.
    pub fn before_next_read(&self, meanwhile: impl FnOnce() + Send + 'static) {
        self.lock().script.read_hook.0 = Some(Box::new(meanwhile));
    }

    fn pause_read(&self) {
        let hook = self.lock().script.read_hook.0.take();
        if let Some(hook) = hook {
            hook();
        }
    }

    /// The kernel drops its cache: what a failed sync gave up is read from the platters now.
    pub fn drop_caches(&self) {
        for inode in self.lock().inodes.values_mut() {
            let all = 0..inode.bytes;
            inode.evict(&all);
        }
    }

    /// Changes bytes of a file on the platters, as rot does: no operation, no rule.
    ///
    /// # Panics
    /// When there is no such file, or the bytes lie beyond it.
    pub fn rot(&self, path: &str, position: u64, change: impl FnOnce(&mut [u8]), bytes: usize) {
        let mut disk = self.lock();
        let id = disk.lookup(path).expect("the file to damage exists");
        let inode = disk.inode_mut(id);
        assert!(
            position + bytes as u64 <= inode.bytes,
            "the damage lies beyond the file"
        );
        let mut contents = vec![0; bytes];
        inode.read(position, &mut contents);
        change(&mut contents);
        inode.write(position, &contents);
        let all = 0..inode.bytes;
        inode.settle(&all);
    }

    fn handle(
        &self,
        disk: &Disk,
        path: &str,
        inode: InodeId,
        writable: bool,
    ) -> io::Result<Arc<dyn SegmentFile>> {
        Ok(Arc::new(MemoryFile {
            storage: self.clone(),
            path: path.to_owned(),
            inode,
            writable,
            bytes: disk.inode(inode).bytes,
            published: AtomicU64::new(0),
            open: Arc::new(disk.files.claim((0, inode), writable)?),
            held: Arc::new(()),
        }))
    }

    /// A new, empty file of this name. `Err` when it was not made.
    fn link(disk: &mut Disk, path: &str) -> io::Result<InodeId> {
        let fate = disk.script.step(OperationKind::Create, path, 0..0)?;
        if let Fate::Fail(error) = fate {
            return Err(error.to_io());
        }
        if !disk.live.dirs.contains(parent(path)) {
            return Err(rustix::io::Errno::NOENT.into());
        }
        let inode = disk.next_inode;
        disk.next_inode += 1;
        disk.inodes.insert(inode, Inode::default());
        disk.change_names(NameChange::Link {
            path: path.to_owned(),
            inode,
        });
        if fate == Fate::Cut {
            Err(Script::cut_error())
        } else {
            Ok(inode)
        }
    }

    /// Gives a new file its length and blocks; takes its name away again when that fails.
    fn allocate(disk: &mut Disk, path: &str, id: InodeId, bytes: u64) -> io::Result<()> {
        let mut fate = disk.script.step(OperationKind::Allocate, path, 0..bytes)?;
        if fate == Fate::Done && bytes > disk.free_bytes() {
            fate = Fate::Fail(FaultError::NoSpace);
        }
        if let Fate::Fail(error) = fate {
            // The name may still come back after a power cut, like any unlinked one.
            disk.change_names(NameChange::Unlink {
                path: path.to_owned(),
                inode: id,
            });
            return Err(error.to_io());
        }
        let zeroes = disk.zeroes.clone();
        let inode = disk.inode_mut(id);
        inode.allocate(bytes, &zeroes);
        if fate == Fate::Cut {
            return Err(Script::cut_error());
        }
        inode.durable_bytes = bytes;
        Ok(())
    }
}

impl Storage for MemoryStorage {
    fn create_dir(&self, dir: &str) -> io::Result<()> {
        let mut disk = self.lock();
        if !disk.live.dirs.contains(dir) {
            let fate = disk.script.step(OperationKind::CreateDir, dir, 0..0)?;
            if let Fate::Fail(error) = fate {
                return Err(error.to_io());
            }
            if !disk.live.dirs.contains(parent(dir)) {
                return Err(rustix::io::Errno::NOENT.into());
            }
            disk.change_names(NameChange::MakeDir {
                dir: dir.to_owned(),
            });
            if fate == Fate::Cut {
                return Err(Script::cut_error());
            }
        }
        drop(disk);
        self.sync_dir(parent(dir))
    }

    fn list_dirs(&self, dir: &str) -> io::Result<Vec<String>> {
        let mut disk = self.lock();
        read_step(&mut disk, dir)?;
        let within = |name: &&String| !name.is_empty() && parent(name) == dir;
        let names = disk.live.dirs.iter().filter(within);
        Ok(names
            .map(|name| name.rsplit('/').next().unwrap_or(name).to_owned())
            .collect())
    }

    fn list(&self, dir: &str) -> io::Result<Vec<DirEntry>> {
        let mut disk = self.lock();
        read_step(&mut disk, dir)?;
        if !disk.live.dirs.contains(dir) {
            return Err(rustix::io::Errno::NOENT.into());
        }
        let files = disk.live.files.iter();
        let within = files.filter(|(path, _)| parent(path) == dir && !is_unfinished(path));
        Ok(within
            .map(|(path, id)| DirEntry {
                name: path.rsplit('/').next().unwrap_or(path).to_owned(),
                bytes: disk.inode(*id).bytes,
            })
            .collect())
    }

    fn create(&self, path: &str, bytes: u64, _: Preparation) -> io::Result<Arc<dyn SegmentFile>> {
        let mut disk = self.lock();
        if disk.live.files.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = Self::link(&mut disk, path)?;
        Self::allocate(&mut disk, path, inode, bytes)?;
        self.handle(&disk, path, inode, true)
    }

    fn open(&self, path: &str, writable: bool) -> io::Result<Arc<dyn SegmentFile>> {
        let mut disk = self.lock();
        read_step(&mut disk, path)?;
        let inode = disk.lookup(path)?;
        self.handle(&disk, path, inode, writable)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.lock();
        let inode = disk.lookup(from)?;
        let fate = disk.script.step(OperationKind::Rename, from, 0..0)?;
        if let Fate::Fail(error) = fate {
            return Err(error.to_io());
        }
        if !disk.live.dirs.contains(parent(to)) {
            return Err(rustix::io::Errno::NOENT.into());
        }
        disk.change_names(NameChange::Rename {
            from: from.to_owned(),
            to: to.to_owned(),
            inode,
        });
        if fate == Fate::Cut {
            Err(Script::cut_error())
        } else {
            Ok(())
        }
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let mut disk = self.lock();
        let inode = disk.lookup(path)?;
        let fate = disk.script.step(OperationKind::Remove, path, 0..0)?;
        if let Fate::Fail(error) = fate {
            return Err(error.to_io());
        }
        disk.change_names(NameChange::Unlink {
            path: path.to_owned(),
            inode,
        });
        if fate == Fate::Cut {
            Err(Script::cut_error())
        } else {
            Ok(())
        }
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let mut disk = self.lock();
        match disk.script.step(OperationKind::SyncDir, dir, 0..0)? {
            Fate::Cut => Err(Script::cut_error()),
            Fate::Fail(error) => {
                disk.give_up_names(dir);
                Err(error.to_io())
            }
            Fate::Done if disk.without_sync => Ok(()),
            Fate::Done => {
                disk.settle_names(dir);
                Ok(())
            }
        }
    }

    fn read_small(&self, path: &str) -> io::Result<Bytes> {
        let mut disk = self.lock();
        read_step(&mut disk, path)?;
        let inode = disk.inode(disk.lookup(path)?);
        let bytes = usize::try_from(inode.bytes).expect("BUG: files of the twin fit in memory");
        let mut contents = vec![0; bytes];
        inode.read(0, &mut contents);
        Ok(contents.into())
    }

    fn replace_small(&self, path: &str, contents: &[u8]) -> io::Result<()> {
        let beside = unfinished(path);
        let bytes = contents.len() as u64;
        let file = {
            let mut disk = self.lock();
            if let Ok(inode) = disk.lookup(&beside) {
                disk.change_names(NameChange::Unlink {
                    path: beside.clone(),
                    inode,
                });
            }
            let inode = Self::link(&mut disk, &beside)?;
            Self::allocate(&mut disk, &beside, inode, bytes)?;
            // Unlike a segment's, this length is durable only with the sync below.
            disk.inode_mut(inode).durable_bytes = 0;
            self.handle(&disk, &beside, inode, true)?
        };
        let written = file
            .write_at(&[io::IoSlice::new(contents)], 0)
            .and_then(|()| file.sync())
            .and_then(|()| self.rename(&beside, path));
        if let Err(error) = written {
            // Best effort: what is left of it is neither listed nor in the way of the next one.
            let _ = self.remove(&beside);
            return Err(error);
        }
        self.sync_dir(parent(path))
    }

    fn look(&self, path: &str) -> Result<(), Gone> {
        let disk = self.lock();
        let is_there = path.is_empty() || disk.lookup(path).is_ok();
        if is_there && !disk.moved_away {
            return Ok(());
        }
        let path = path.to_owned();
        Err(Gone { path })
    }

    fn has_a_place(&self) -> bool {
        false
    }

    fn lose(&self, gone: Gone) {
        self.lock().gone.get_or_insert(gone);
    }

    fn gone(&self) -> Option<Gone> {
        self.lock().gone.clone()
    }

    fn space(&self) -> io::Result<Space> {
        let mut disk = self.lock();
        read_step(&mut disk, "")?;
        Ok(Space {
            free_bytes: disk.free_bytes(),
            total_bytes: disk.total_bytes,
        })
    }
}

fn read_step(disk: &mut Disk, path: &str) -> io::Result<()> {
    match disk.script.step(OperationKind::Read, path, 0..0)? {
        Fate::Fail(error) => Err(error.to_io()),
        Fate::Done | Fate::Cut => Ok(()),
    }
}
