//! Spools in memory, which forget what was not synced when the power is cut: for tests and simulations.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use flumen_world::lock;

use super::files::{SpoolFile, SpoolFiles};

/// A disk for spools. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct MemorySpools {
    tree: Arc<Mutex<Tree>>,
}

/// Files and folders by number; the root is 0.
#[derive(Debug, Default)]
struct Tree {
    nodes: BTreeMap<u64, Node>,
    root: Folder,
    last: u64,
}

#[derive(Debug)]
enum Node {
    /// Whoever has it open holds it too.
    File(Arc<Mutex<Content>>),
    Folder(Folder),
}

/// What is there, and what a power cut leaves.
#[derive(Debug, Clone, Default)]
struct Content {
    bytes: Vec<u8>,
    synced: Vec<u8>,
}

#[derive(Debug, Clone, Default)]
struct Folder {
    names: BTreeMap<OsString, u64>,
    synced: BTreeMap<OsString, u64>,
}

const ROOT: u64 = 0;

fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

fn names(path: &Path) -> impl Iterator<Item = OsString> + '_ {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        _ => None,
    })
}

impl MemorySpools {
    /// What a power cut leaves: the synced content of files whose names were synced. What is written
    /// here afterwards is not seen there.
    #[must_use]
    pub fn power_cut(&self) -> Self {
        self.copy(|folder| &folder.synced, |content| &content.synced)
    }

    /// What the end of a process leaves: everything. What is written here afterwards is not seen there.
    #[must_use]
    pub fn kill(&self) -> Self {
        self.copy(|folder| &folder.names, |content| &content.bytes)
    }

    fn copy(
        &self,
        names: impl Fn(&Folder) -> &BTreeMap<OsString, u64>,
        bytes: impl Fn(&Content) -> &Vec<u8>,
    ) -> Self {
        let tree = self.tree();
        // Numbers stay what they are: nothing refers to what is left out.
        let kept = |folder: &Folder| Folder {
            names: names(folder).clone(),
            synced: folder.synced.clone(),
        };
        let nodes = tree.nodes.iter().map(|(id, node)| {
            let node = match node {
                Node::File(content) => {
                    let content = lock(content);
                    Node::File(Arc::new(Mutex::new(Content {
                        bytes: bytes(&content).clone(),
                        synced: content.synced.clone(),
                    })))
                }
                Node::Folder(folder) => Node::Folder(kept(folder)),
            };
            (*id, node)
        });
        let mut copy = Tree {
            nodes: nodes.collect(),
            root: kept(&tree.root),
            last: tree.last,
        };
        copy.forget_lost();
        Self {
            tree: Arc::new(Mutex::new(copy)),
        }
    }

    fn tree(&self) -> MutexGuard<'_, Tree> {
        lock(&self.tree)
    }
}

impl Tree {
    fn folder(&mut self, id: u64) -> io::Result<&mut Folder> {
        match self.nodes.get_mut(&id) {
            _ if id == ROOT => Ok(&mut self.root),
            Some(Node::Folder(folder)) => Ok(folder),
            Some(Node::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
            None => Err(missing()),
        }
    }

    fn content(&self, id: u64) -> io::Result<Arc<Mutex<Content>>> {
        match self.nodes.get(&id) {
            Some(Node::File(content)) => Ok(Arc::clone(content)),
            _ => Err(missing()),
        }
    }

    fn find(&mut self, path: &Path) -> io::Result<u64> {
        let mut at = ROOT;
        for name in names(path) {
            at = *self.folder(at)?.names.get(&name).ok_or_else(missing)?;
        }
        Ok(at)
    }

    fn add(&mut self, folder: u64, name: OsString, node: Node) -> io::Result<u64> {
        self.last += 1;
        let id = self.last;
        self.nodes.insert(id, node);
        self.folder(folder)?.names.insert(name, id);
        Ok(id)
    }

    /// The folder of a path, which is made, and its name there.
    fn place(&mut self, path: &Path) -> io::Result<(u64, OsString)> {
        let mut parts: Vec<OsString> = names(path).collect();
        let name = parts.pop().ok_or_else(missing)?;
        let mut at = ROOT;
        for part in parts {
            at = match self.folder(at)?.names.get(&part) {
                Some(id) => *id,
                None => self.add(at, part, Node::Folder(Folder::default()))?,
            };
        }
        Ok((at, name))
    }

    /// Drops what has no name any more, nor would have one after a power cut.
    fn forget_lost(&mut self) {
        let mut named = BTreeMap::new();
        let mut folders = vec![&self.root];
        while let Some(folder) = folders.pop() {
            for id in folder.names.values().chain(folder.synced.values()) {
                if named.insert(*id, ()).is_none()
                    && let Some(Node::Folder(inner)) = self.nodes.get(id)
                {
                    folders.push(inner);
                }
            }
        }
        self.nodes.retain(|id, _| named.contains_key(id));
    }

    fn take_away(&mut self, path: &Path) -> io::Result<u64> {
        let id = self.find(path)?;
        let (folder, name) = self.place(path)?;
        // Whoever has it open goes on with it.
        self.folder(folder)?.names.remove(&name);
        Ok(id)
    }
}

impl SpoolFiles for MemorySpools {
    fn create(&self, path: &Path) -> io::Result<Box<dyn SpoolFile>> {
        let mut tree = self.tree();
        let (folder, name) = tree.place(path)?;
        let content: Arc<Mutex<Content>> = Arc::default();
        tree.add(folder, name, Node::File(Arc::clone(&content)))?;
        tree.forget_lost();
        Ok(Box::new(MemoryFile { content, at: 0 }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn SpoolFile>> {
        let mut tree = self.tree();
        let id = tree.find(path)?;
        let content = tree.content(id)?;
        Ok(Box::new(MemoryFile { content, at: 0 }))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let mut tree = self.tree();
        let id = tree.find(dir)?;
        let names = tree.folder(id)?.names.keys();
        Ok(names.map(|name| dir.join(name)).collect())
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        let mut tree = self.tree();
        let id = tree.find(path)?;
        if let Ok(content) = tree.content(id) {
            let mut content = lock(&content);
            content.synced = content.bytes.clone();
            return Ok(());
        }
        let folder = tree.folder(id)?;
        folder.synced.clone_from(&folder.names);
        tree.forget_lost();
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut tree = self.tree();
        let (folder, name) = tree.place(to)?;
        let id = tree.take_away(from)?;
        tree.folder(folder)?.names.insert(name, id);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut tree = self.tree();
        tree.take_away(path)?;
        tree.forget_lost();
        Ok(())
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        self.remove(dir)
    }
}

#[derive(Debug)]
struct MemoryFile {
    content: Arc<Mutex<Content>>,
    at: usize,
}

impl Read for MemoryFile {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let content = lock(&self.content);
        let mut rest = content.bytes.get(self.at..).unwrap_or(&[]);
        let read = rest.read(into)?;
        self.at += read;
        Ok(read)
    }
}

impl Write for MemoryFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let content = &mut lock(&self.content).bytes;
        let end = self.at + bytes.len();
        if content.len() < end {
            content.resize(end, 0);
        }
        if let Some(place) = content.get_mut(self.at..end) {
            place.copy_from_slice(bytes);
        }
        self.at = end;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for MemoryFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let end = lock(&self.content).bytes.len() as u64;
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => end.checked_add_signed(by),
            SeekFrom::Current(by) => (self.at as u64).checked_add_signed(by),
        };
        let at = at.ok_or(io::ErrorKind::InvalidInput)?;
        self.at = usize::try_from(at).map_err(|_| io::ErrorKind::InvalidInput)?;
        Ok(at)
    }
}
