//! The state of the in-memory disk: what a process sees, and what the platters hold.

#![expect(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "bounds are checked by the handle; a wrong one is a bug of the twin, and files fit in memory"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::fault::Script;
use crate::error::Gone;
use crate::storage::open_files::OpenFiles;

/// What the kernel writes back as one piece.
pub(super) const PAGE_BYTES: u64 = 4096;
/// What a disk writes as one piece.
pub(super) const SECTOR_BYTES: u64 = 512;

/// One page's bytes; `None` is a hole, which reads as zero and takes no space.
pub(super) type Page = Option<Arc<[u8; PAGE_BYTES as usize]>>;

/// A page that was written and is not known to be on the platters.
#[derive(Debug, Clone)]
pub(super) struct UnsyncedPage {
    /// Its contents after each write since it was last durable, oldest first. Write-back may have
    /// put any of them on the platters.
    pub(super) versions: Vec<Page>,
    /// A sync of it failed: the kernel holds it for clean, no later sync will write it.
    pub(super) given_up: bool,
}

/// A file, whatever its name.
#[derive(Debug, Clone, Default)]
pub(super) struct Inode {
    /// Length as a process sees it.
    pub(super) bytes: u64,
    /// Length on the platters.
    pub(super) durable_bytes: u64,
    /// Contents as a process sees them.
    pub(super) live: Vec<Page>,
    /// Contents on the platters.
    pub(super) durable: Vec<Page>,
    pub(super) unsynced: BTreeMap<usize, UnsyncedPage>,
}

fn pages_of(range: &Range<u64>) -> Range<usize> {
    let page = |position: u64| usize::try_from(position).expect("BUG: a file larger than memory");
    page(range.start / PAGE_BYTES)..page(range.end.div_ceil(PAGE_BYTES))
}

impl Inode {
    /// What is on the platters when a machine starts.
    pub(super) fn settled(bytes: u64, pages: Vec<Page>) -> Self {
        Self {
            bytes,
            durable_bytes: bytes,
            durable: pages.clone(),
            live: pages,
            ..Self::default()
        }
    }

    pub(super) fn allocated_bytes(&self) -> u64 {
        self.live.iter().filter(|page| page.is_some()).count() as u64 * PAGE_BYTES
    }

    /// Gives it `bytes` of zeroes.
    pub(super) fn allocate(&mut self, bytes: u64, zeroes: &Page) {
        assert!(self.live.is_empty(), "BUG: a file is allocated once");
        let pages = pages_of(&(0..bytes)).end;
        self.bytes = bytes;
        self.live = vec![zeroes.clone(); pages];
        self.durable = vec![zeroes.clone(); pages];
    }

    /// Copies `source` in at `position`. The caller has checked the bounds.
    pub(super) fn write(&mut self, position: u64, source: &[u8]) {
        let range = position..position + source.len() as u64;
        let mut rest = source;
        for index in pages_of(&range) {
            let start = index as u64 * PAGE_BYTES;
            let skip = position.saturating_sub(start) as usize;
            let take = rest.len().min(PAGE_BYTES as usize - skip);
            let (now, later) = rest.split_at(take);
            rest = later;
            let mut page = self.live[index]
                .as_deref()
                .copied()
                .unwrap_or([0; PAGE_BYTES as usize]);
            page[skip..skip + take].copy_from_slice(now);
            self.set_page(index, Some(Arc::new(page)));
        }
    }

    /// Takes the blocks that lie wholly inside, zeroes the rest.
    pub(super) fn punch(&mut self, range: Range<u64>) {
        for index in pages_of(&range) {
            let start = index as u64 * PAGE_BYTES;
            let from = range.start.saturating_sub(start).min(PAGE_BYTES) as usize;
            let to = (range.end - start).min(PAGE_BYTES) as usize;
            let Some(page) = self.live[index].as_deref() else {
                continue;
            };
            let mut page = *page;
            page[from..to].fill(0);
            let hole = to - from == PAGE_BYTES as usize;
            self.set_page(index, if hole { None } else { Some(Arc::new(page)) });
        }
    }

    fn set_page(&mut self, index: usize, page: Page) {
        let unsynced = self.unsynced.entry(index).or_insert_with(|| UnsyncedPage {
            versions: Vec::new(),
            given_up: false,
        });
        unsynced.given_up = false;
        unsynced.versions.push(page.clone());
        self.live[index] = page;
    }

    pub(super) fn read(&self, position: u64, target: &mut [u8]) {
        let range = position..position + target.len() as u64;
        let mut rest = target;
        for index in pages_of(&range) {
            let start = index as u64 * PAGE_BYTES;
            let skip = position.saturating_sub(start) as usize;
            let take = rest.len().min(PAGE_BYTES as usize - skip);
            let (now, later) = rest.split_at_mut(take);
            rest = later;
            match &self.live[index] {
                Some(page) => now.copy_from_slice(&page[skip..skip + take]),
                None => now.fill(0),
            }
        }
    }

    /// What was written to the pages of `range` is on the platters now.
    pub(super) fn settle(&mut self, range: &Range<u64>) {
        for index in pages_of(range) {
            if self.unsynced.get(&index).is_some_and(|page| !page.given_up) {
                self.unsynced.remove(&index);
                self.durable[index] = self.live[index].clone();
            }
        }
        self.durable_bytes = self.bytes;
    }

    /// A sync failed: nobody knows what is on the platters, and no later sync will tell.
    pub(super) fn give_up(&mut self, range: &Range<u64>) {
        for (_, page) in self.unsynced.range_mut(pages_of(range)) {
            page.given_up = true;
        }
    }

    /// Clean pages leave memory; what a failed sync gave up is read from the platters from now on.
    pub(super) fn evict(&mut self, range: &Range<u64>) {
        for index in pages_of(range) {
            if self.unsynced.get(&index).is_some_and(|page| page.given_up) {
                self.unsynced.remove(&index);
                self.live[index] = self.durable[index].clone();
            }
        }
    }
}

/// Names an inode.
pub(super) type InodeId = u64;

/// A change of names that a power cut may lose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NameChange {
    MakeDir {
        dir: String,
    },
    Link {
        path: String,
        inode: InodeId,
    },
    Rename {
        from: String,
        to: String,
        inode: InodeId,
    },
    Unlink {
        path: String,
        inode: InodeId,
    },
}

#[derive(Debug, Clone)]
pub(super) struct UnsyncedName {
    pub(super) change: NameChange,
    /// The directories that have to be synced before it is durable.
    pub(super) dirs: BTreeSet<String>,
    /// A sync of a directory of it failed.
    pub(super) given_up: bool,
}

/// Directories and file names.
#[derive(Debug, Clone, Default)]
pub(super) struct Names {
    pub(super) dirs: BTreeSet<String>,
    pub(super) files: BTreeMap<String, InodeId>,
}

impl Names {
    pub(super) fn apply(&mut self, change: &NameChange) {
        match change {
            NameChange::MakeDir { dir } => {
                self.dirs.insert(dir.clone());
            }
            NameChange::Link { path, inode } => {
                self.files.insert(path.clone(), *inode);
            }
            NameChange::Rename { from, to, inode } => {
                self.files.remove(from);
                self.files.insert(to.clone(), *inode);
            }
            NameChange::Unlink { path, .. } => {
                self.files.remove(path);
            }
        }
    }
}

/// The part before the last `/`; empty for the data directory itself.
pub(super) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

/// The whole disk and its one process.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) script: Script,
    pub(super) live: Names,
    pub(super) durable: Names,
    pub(super) unsynced: Vec<UnsyncedName>,
    pub(super) inodes: BTreeMap<InodeId, Inode>,
    pub(super) next_inode: InodeId,
    pub(super) files: OpenFiles,
    pub(super) total_bytes: u64,
    pub(super) without_sync: bool,
    /// Names lead nowhere any more.
    pub(super) moved_away: bool,
    pub(super) gone: Option<Gone>,
    pub(super) zeroes: Page,
}

impl Disk {
    pub(super) fn new(total_bytes: u64) -> Self {
        let mut names = Names::default();
        names.dirs.insert(String::new());
        Self {
            script: Script::default(),
            live: names.clone(),
            durable: names,
            unsynced: Vec::new(),
            inodes: BTreeMap::new(),
            next_inode: 1,
            files: OpenFiles::default(),
            total_bytes,
            without_sync: false,
            moved_away: false,
            gone: None,
            zeroes: Some(Arc::new([0; PAGE_BYTES as usize])),
        }
    }

    pub(super) fn lookup(&self, path: &str) -> io::Result<InodeId> {
        self.live
            .files
            .get(path)
            .copied()
            .ok_or_else(|| rustix::io::Errno::NOENT.into())
    }

    pub(super) fn inode(&self, id: InodeId) -> &Inode {
        self.inodes
            .get(&id)
            .expect("BUG: a file that is named or open has its contents")
    }

    pub(super) fn inode_mut(&mut self, id: InodeId) -> &mut Inode {
        self.inodes
            .get_mut(&id)
            .expect("BUG: a file that is named or open has its contents")
    }

    pub(super) fn change_names(&mut self, change: NameChange) {
        let dirs = match &change {
            NameChange::MakeDir { dir } => BTreeSet::from([parent(dir).to_owned()]),
            NameChange::Link { path, .. } | NameChange::Unlink { path, .. } => {
                BTreeSet::from([parent(path).to_owned()])
            }
            NameChange::Rename { from, to, .. } => {
                BTreeSet::from([parent(from).to_owned(), parent(to).to_owned()])
            }
        };
        self.live.apply(&change);
        self.unsynced.push(UnsyncedName {
            change,
            dirs,
            given_up: false,
        });
    }

    /// The names in `dir` are on the platters now.
    pub(super) fn settle_names(&mut self, dir: &str) {
        let mut kept = Vec::new();
        for mut name in std::mem::take(&mut self.unsynced) {
            if !name.given_up {
                name.dirs.remove(dir);
            }
            if name.dirs.is_empty() {
                self.durable.apply(&name.change);
            } else {
                kept.push(name);
            }
        }
        self.unsynced = kept;
    }

    pub(super) fn give_up_names(&mut self, dir: &str) {
        for name in self
            .unsynced
            .iter_mut()
            .filter(|name| name.dirs.contains(dir))
        {
            name.given_up = true;
        }
    }

    /// Every inode that may have a name after a power cut, with one of its names.
    pub(super) fn recoverable(&self) -> BTreeMap<InodeId, &str> {
        let mut names: BTreeMap<InodeId, &str> = self
            .durable
            .files
            .iter()
            .map(|(path, &id)| (id, path.as_str()))
            .collect();
        for name in &self.unsynced {
            if let NameChange::Link { path, inode }
            | NameChange::Rename {
                to: path, inode, ..
            } = &name.change
            {
                names.insert(*inode, path);
            }
        }
        names
    }

    /// Forgets what has no name anywhere and is not open; says what is still taken.
    pub(super) fn used_bytes(&mut self) -> u64 {
        let named: BTreeSet<InodeId> = self.live.files.values().copied().collect();
        let recoverable: BTreeSet<InodeId> = self.recoverable().into_keys().collect();
        let mut used = 0;
        self.inodes.retain(|id, inode| {
            let seen = named.contains(id) || self.files.is_open((0, *id));
            used += if seen { inode.allocated_bytes() } else { 0 };
            seen || recoverable.contains(id)
        });
        used
    }

    pub(super) fn free_bytes(&mut self) -> u64 {
        self.total_bytes.saturating_sub(self.used_bytes())
    }
}
