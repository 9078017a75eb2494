//! What a power cut may leave of the in-memory disk.

#![expect(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "sectors of a page; a wrong bound is a bug of the twin, and files fit in memory"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::MemoryStorage;
use super::disk::{
    Disk, Inode, InodeId, NameChange, Names, PAGE_BYTES, Page, SECTOR_BYTES, parent,
};
use super::fault::Script;
use crate::storage::open_files::OpenFiles;

/// How finely a power cut tears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grain {
    /// A 4 KiB page is on the platters or not.
    Page,
    /// A 512-byte sector is on the platters or not.
    Sector,
}

const BLANK: [u8; PAGE_BYTES as usize] = [0; PAGE_BYTES as usize];

/// What may or may not have reached the platters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnsyncedKind {
    /// A created, renamed or removed name, or a directory.
    Name,
    /// The length of a file that is being created.
    Length,
    /// Bytes at this position: a page or a sector.
    Bytes(u64),
}

/// One thing a power cut keeps or loses, independently of all others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsynced {
    /// The file's name when it still has one.
    pub path: String,
    /// What of it.
    pub kind: UnsyncedKind,
    /// How many different states later than the durable one it went through: keeping 0 is losing
    /// it, keeping this many is keeping the newest.
    pub versions: usize,
}

/// A small deterministic generator (SplitMix64); tests and the simulator replay by seed.
#[derive(Debug, Clone)]
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }
}

/// Asks the caller about one thing after the other, in an order that only the disk's state decides.
struct Keeper<'a> {
    asked: usize,
    keep: &'a mut dyn FnMut(usize, &Unsynced) -> usize,
}

impl Keeper<'_> {
    fn ask(&mut self, path: &str, kind: UnsyncedKind, versions: usize) -> usize {
        let unsynced = Unsynced {
            path: path.to_owned(),
            kind,
            versions,
        };
        let kept = (self.keep)(self.asked, &unsynced);
        self.asked += 1;
        kept.min(versions)
    }
}

impl MemoryStorage {
    /// Everything a power cut now would be free to keep or lose, in the order in which
    /// [`MemoryStorage::crash`] asks.
    pub fn unsynced(&self, grain: Grain) -> Vec<Unsynced> {
        let mut all = Vec::new();
        self.image(grain, &mut |_, unsynced| {
            all.push(unsynced.clone());
            0
        });
        all
    }

    /// The power is cut: what is left, as a machine that starts again finds it. `keep` says for
    /// each thing (its index in [`MemoryStorage::unsynced`]) how many of its versions arrived.
    /// Any number of different images can be taken; this storage has no power from now on.
    pub fn crash(&self, grain: Grain, mut keep: impl FnMut(usize, &Unsynced) -> usize) -> Self {
        self.lock().script.dead = true;
        self.image(grain, &mut keep)
    }

    /// As [`MemoryStorage::crash`]: thing `i` is kept (its newest version) when bit `i` is set.
    pub fn crash_keeping(&self, grain: Grain, bits: u64) -> Self {
        self.crash(grain, |index, _| {
            if index < 64 && bits >> index & 1 == 1 {
                usize::MAX
            } else {
                0
            }
        })
    }

    /// As [`MemoryStorage::crash`], each thing in any of its versions, by seed.
    pub fn crash_seeded(&self, grain: Grain, seed: u64) -> Self {
        let mut dice = Dice(seed);
        // Seeds lean one way or the other, so that nearly all and nearly nothing occur too.
        let lean = dice.roll(5);
        self.crash(grain, |_, unsynced| match dice.roll(4) {
            pick if pick < lean => usize::MAX,
            3 if unsynced.versions > 1 => dice.roll(unsynced.versions as u64 + 1) as usize,
            _ => 0,
        })
    }

    /// The process dies, the machine does not: everything written is still visible, and what was
    /// not synced can still be lost by a later power cut. This storage is dead from now on.
    pub fn kill(&self) -> Self {
        self.lock().script.dead = true;
        self.duplicate()
    }

    /// Another machine in the same state, page cache and all.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        let disk = self.lock();
        Self::from_disk(Disk {
            script: Script::default(),
            live: disk.live.clone(),
            durable: disk.durable.clone(),
            unsynced: disk.unsynced.clone(),
            inodes: disk.inodes.clone(),
            next_inode: disk.next_inode,
            files: OpenFiles::default(),
            total_bytes: disk.total_bytes,
            without_sync: disk.without_sync,
            moved_away: false,
            gone: None,
            zeroes: disk.zeroes.clone(),
        })
    }

    /// Tells images apart: names, lengths and contents as a process sees them.
    pub fn fingerprint(&self) -> u64 {
        let disk = self.lock();
        let mut halves = [
            crc32fast::Hasher::new(),
            crc32fast::Hasher::new_with_initial(1),
        ];
        let mut add = |bytes: &[u8]| halves.iter_mut().for_each(|half| half.update(bytes));
        for (path, id) in &disk.live.files {
            let inode = disk.inode(*id);
            add(path.as_bytes());
            add(&inode.bytes.to_le_bytes());
            for (index, page) in inode.live.iter().enumerate() {
                // Zeroes and holes read the same; most of a segment is one or the other.
                if let Some(page) = page
                    && **page != BLANK
                {
                    add(&index.to_le_bytes());
                    add(&**page);
                }
            }
        }
        let [low, high] = halves.map(|half| u64::from(half.finalize()));
        high << 32 | low
    }

    fn image(&self, grain: Grain, keep: &mut dyn FnMut(usize, &Unsynced) -> usize) -> Self {
        let disk = self.lock();
        let mut keeper = Keeper { asked: 0, keep };
        let names = surviving_names(&disk, &mut keeper);
        let named: BTreeSet<InodeId> = names.files.values().copied().collect();
        // Also what loses its name is asked about: the order of questions must not depend on answers.
        let mut inodes = BTreeMap::new();
        for (id, path) in disk.recoverable() {
            let inode = surviving_inode(disk.inode(id), path, grain, &mut keeper);
            if named.contains(&id) {
                inodes.insert(id, inode);
            }
        }
        Self::from_disk(Disk {
            script: Script::default(),
            live: names.clone(),
            durable: names,
            unsynced: Vec::new(),
            inodes,
            next_inode: disk.next_inode,
            files: OpenFiles::default(),
            total_bytes: disk.total_bytes,
            without_sync: disk.without_sync,
            moved_away: false,
            gone: None,
            zeroes: disk.zeroes.clone(),
        })
    }
}

/// A change survives only with the earlier changes of the same names and files.
fn surviving_names(disk: &Disk, keeper: &mut Keeper<'_>) -> Names {
    let mut names = disk.durable.clone();
    let mut lost_paths = BTreeSet::new();
    let mut lost_inodes = BTreeSet::new();
    for name in &disk.unsynced {
        let (paths, inode) = match &name.change {
            NameChange::MakeDir { dir } => (vec![dir], None),
            NameChange::Rename { from, to, inode } => (vec![to, from], Some(*inode)),
            NameChange::Link { path, inode } | NameChange::Unlink { path, inode } => {
                (vec![path], Some(*inode))
            }
        };
        let Some(&shown) = paths.first() else {
            continue;
        };
        let kept = keeper.ask(shown, UnsyncedKind::Name, 1) == 1;
        let possible = !paths.iter().any(|path| lost_paths.contains(*path))
            && !inode.is_some_and(|inode| lost_inodes.contains(&inode));
        if kept && possible {
            names.apply(&name.change);
        } else {
            lost_paths.extend(paths);
            lost_inodes.extend(inode);
        }
    }
    let dirs = names.dirs.clone();
    names.files.retain(|path, _| dirs.contains(parent(path)));
    names
}

fn surviving_inode(inode: &Inode, path: &str, grain: Grain, keeper: &mut Keeper<'_>) -> Inode {
    let mut bytes = inode.durable_bytes;
    if inode.bytes != inode.durable_bytes {
        bytes = match keeper.ask(path, UnsyncedKind::Length, 2) {
            0 => inode.durable_bytes,
            1 => u64::midpoint(inode.durable_bytes, inode.bytes),
            _ => inode.bytes,
        };
    }
    let mut pages = inode.durable.clone();
    for (&index, page) in &inode.unsynced {
        let position = index as u64 * PAGE_BYTES;
        let Some(slot) = pages.get_mut(index) else {
            continue;
        };
        match grain {
            Grain::Page => {
                let kind = UnsyncedKind::Bytes(position);
                let kept = keeper.ask(path, kind, page.versions.len());
                if let Some(version) = kept.checked_sub(1).and_then(|at| page.versions.get(at)) {
                    slot.clone_from(version);
                }
            }
            Grain::Sector => *slot = tear(slot, &page.versions, position, path, keeper),
        }
    }
    cut(&mut pages, bytes);
    Inode::settled(bytes, pages)
}

/// One page, each of its sectors from any version.
fn tear(
    durable: &Page,
    versions: &[Page],
    position: u64,
    path: &str,
    keeper: &mut Keeper<'_>,
) -> Page {
    let mut torn = durable.as_deref().copied().unwrap_or(BLANK);
    for (number, sector) in torn.chunks_exact_mut(SECTOR_BYTES as usize).enumerate() {
        let start = number * SECTOR_BYTES as usize;
        // Only versions that differ here count: the others left no choice.
        let mut states: Vec<&[u8]> = vec![&*sector];
        for version in versions {
            let bytes = version.as_deref().unwrap_or(&BLANK);
            let bytes = &bytes[start..start + SECTOR_BYTES as usize];
            if states.last() != Some(&bytes) {
                states.push(bytes);
            }
        }
        if states.len() > 1 {
            let kind = UnsyncedKind::Bytes(position + start as u64);
            let kept = keeper.ask(path, kind, states.len() - 1);
            let state = states[kept].to_vec();
            sector.copy_from_slice(&state);
        }
    }
    Some(Arc::new(torn))
}

/// Nothing lies beyond the end of a file.
fn cut(pages: &mut Vec<Page>, bytes: u64) {
    pages.resize(bytes.div_ceil(PAGE_BYTES) as usize, None);
    let tail = (bytes % PAGE_BYTES) as usize;
    if let Some(Some(last)) = pages.last_mut()
        && tail != 0
    {
        Arc::make_mut(last)[tail..].fill(0);
    }
}
