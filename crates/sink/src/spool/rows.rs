//! Rows that wait for their encoder.

use std::io::{self, SeekFrom};
use std::path::PathBuf;

use super::{CutSpool, SpoolError, SpoolFile};

/// A piece of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    at: u64,
    bytes: usize,
}

/// An append-only file.
#[derive(Debug)]
pub(crate) struct RowFile {
    file: Box<dyn SpoolFile>,
    path: PathBuf,
    cut: CutSpool,
    end: u64,
    /// Where the file stands.
    cursor: u64,
    buffer: Vec<u8>,
}

impl RowFile {
    pub(super) fn new(path: PathBuf, file: Box<dyn SpoolFile>, cut: CutSpool) -> Self {
        Self {
            file,
            path,
            cut,
            end: 0,
            cursor: 0,
            buffer: Vec::new(),
        }
    }

    fn seek(&mut self, to: u64) -> Result<(), SpoolError> {
        if self.cursor != to {
            let sought = self.file.seek(SeekFrom::Start(to));
            self.cursor = sought.map_err(SpoolError::io("seek in", &self.path))?;
        }
        Ok(())
    }

    /// Adds bytes at the end.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<Extent, SpoolError> {
        self.cut.folder.take(bytes.len() as u64)?;
        self.seek(self.end)?;
        let extent = Extent {
            at: self.end,
            bytes: bytes.len(),
        };
        // A write that fails leaves the cursor anywhere.
        self.cursor = u64::MAX;
        self.file
            .write_all(bytes)
            .map_err(SpoolError::io("write", &self.path))?;
        self.end += bytes.len() as u64;
        self.cursor = self.end;
        Ok(extent)
    }

    /// The bytes of a piece.
    pub(crate) fn read(&mut self, extent: Extent) -> Result<&[u8], SpoolError> {
        self.seek(extent.at)?;
        self.cursor = u64::MAX;
        self.buffer.resize(extent.bytes, 0);
        match self.file.read_exact(&mut self.buffer) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                let path = self.path.clone();
                return Err(SpoolError::Damaged { path });
            }
            read => read.map_err(SpoolError::io("read", &self.path))?,
        }
        self.cursor = extent.at + extent.bytes as u64;
        Ok(&self.buffer)
    }
}
