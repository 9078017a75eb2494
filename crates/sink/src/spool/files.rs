//! The files that spools are made of: those of a directory, or memory.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

/// An open file.
pub trait SpoolFile: Read + Write + Seek + Send + fmt::Debug {}

impl<T: Read + Write + Seek + Send + fmt::Debug> SpoolFile for T {}

/// Where spools lie. Folders are made when something is put into them. Blocks.
pub trait SpoolFiles: fmt::Debug + Send + Sync {
    /// A new file, to be written and read; what was there is gone.
    fn create(&self, path: &Path) -> io::Result<Box<dyn SpoolFile>>;
    /// A file that is there, to be read.
    fn open(&self, path: &Path) -> io::Result<Box<dyn SpoolFile>>;
    /// The names in a folder, in order.
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;
    /// Makes a file's content durable, or a folder's names.
    fn sync(&self, path: &Path) -> io::Result<()>;
    /// Gives a file or a folder another name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Takes a file away.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Takes a folder away, with everything in it.
    fn remove_dir(&self, dir: &Path) -> io::Result<()>;
}

/// Those of this machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DirectoryFiles;

impl SpoolFiles for DirectoryFiles {
    fn create(&self, path: &Path) -> io::Result<Box<dyn SpoolFile>> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true);
        Ok(Box::new(options.open(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn SpoolFile>> {
        Ok(Box::new(File::open(path)?))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let entries = fs::read_dir(dir)?.map(|entry| Ok(entry?.path()));
        let mut paths = entries.collect::<io::Result<Vec<_>>>()?;
        paths.sort();
        Ok(paths)
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        // The folder of a relative path's first name.
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        File::open(path)?.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        fs::remove_dir_all(dir)
    }
}
