//! Encoded objects.

use std::io::{self, BufWriter, Read, Write};
use std::path::PathBuf;

use bytes::{Bytes, BytesMut};
use object_store::PutPayload;

use super::{CutSpool, SpoolError, SpoolFile};

/// Pieces an object is read back in.
const PIECE_BYTES: usize = 1 << 20;
/// What is gathered before the file system sees it.
const WRITE_BYTES: usize = 256 << 10;

/// An object that is being written.
#[derive(Debug)]
pub(crate) struct SpoolWriter {
    out: BufWriter<Counted>,
}

#[derive(Debug)]
struct Counted {
    file: Box<dyn SpoolFile>,
    path: PathBuf,
    cut: CutSpool,
    crc32: crc32fast::Hasher,
    bytes: u64,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.cut.folder.take(bytes.len() as u64);
        room.map_err(|full| io::Error::new(io::ErrorKind::QuotaExceeded, full))?;
        let written = self.file.write(bytes)?;
        self.bytes += written as u64;
        if let Some(written) = bytes.get(..written) {
            self.crc32.update(written);
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl SpoolWriter {
    pub(super) fn new(path: PathBuf, file: Box<dyn SpoolFile>, cut: CutSpool) -> Self {
        Self {
            out: BufWriter::with_capacity(
                WRITE_BYTES,
                Counted {
                    file,
                    path,
                    cut,
                    crc32: crc32fast::Hasher::new(),
                    bytes: 0,
                },
            ),
        }
    }

    /// Ends the object.
    pub(crate) fn finish(self) -> io::Result<SpooledObject> {
        let Counted {
            path,
            cut,
            crc32,
            bytes,
            ..
        } = self
            .out
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        Ok(SpooledObject {
            name: name.unwrap_or_default(),
            cut,
            bytes,
            crc32: crc32.finalize(),
        })
    }
}

impl Write for SpoolWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// An object in the spool. Cheap to clone; it is there as long as its cut.
#[derive(Debug, Clone)]
pub(crate) struct SpooledObject {
    name: String,
    cut: CutSpool,
    bytes: u64,
    crc32: u32,
}

impl SpooledObject {
    /// One of a cut that was kept.
    pub(crate) fn kept(cut: &CutSpool, name: String, bytes: u64, crc32: u32) -> Self {
        Self {
            name,
            cut: cut.clone(),
            bytes,
            crc32,
        }
    }

    /// Its file's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its size.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// CRC-32 of its bytes.
    pub(crate) fn crc32(&self) -> u32 {
        self.crc32
    }

    /// Reads it, whole: it is in memory from here until it is uploaded. Verified.
    pub(crate) fn read(&self) -> Result<PutPayload, SpoolError> {
        let folder = &self.cut.folder;
        let (mut path, mut opened) = (folder.temporary.join(&self.name), None);
        for dir in [&folder.temporary, &folder.kept] {
            path = dir.join(&self.name);
            match folder.files.open(&path) {
                Ok(file) => {
                    opened = Some(file);
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(SpoolError::io("open", &path)(error)),
            }
        }
        let Some(mut file) = opened else {
            return Err(SpoolError::Damaged { path });
        };
        let (mut pieces, mut left, mut crc32) = (Vec::new(), self.bytes, crc32fast::Hasher::new());
        while left > 0 {
            let length = usize::try_from(left).unwrap_or(usize::MAX).min(PIECE_BYTES);
            let mut piece = BytesMut::zeroed(length);
            match file.read_exact(&mut piece) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(SpoolError::Damaged { path });
                }
                read => read.map_err(SpoolError::io("read", &path))?,
            }
            crc32.update(&piece);
            pieces.push(Bytes::from(piece));
            left -= length as u64;
        }
        if crc32.finalize() != self.crc32 {
            return Err(SpoolError::Damaged { path });
        }
        Ok(PutPayload::from_iter(pieces))
    }
}
