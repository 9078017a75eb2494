//! A moving window over a file: reads ahead in large pieces, hands out slices without a copy.

use std::io;

use bytes::Bytes;

use crate::storage::SegmentFile;

const READ_AHEAD: u64 = 1 << 20;

/// Reads a file through its descriptor, so that a bad disk is an error and not a fault.
#[derive(Debug)]
pub(crate) struct Window<'a> {
    file: &'a dyn SegmentFile,
    end: u64,
    start: u64,
    bytes: Bytes,
    read: u64,
}

impl<'a> Window<'a> {
    /// Over the first `end` bytes of `file`.
    pub(crate) fn new(file: &'a dyn SegmentFile, end: u64) -> Self {
        Self {
            file,
            end: end.min(file.bytes()),
            start: 0,
            bytes: Bytes::new(),
            read: 0,
        }
    }

    /// Where it ends.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// Bytes read from the file so far.
    pub(crate) fn bytes_read(&self) -> u64 {
        self.read
    }

    /// `length` bytes at `position`; `None` when they reach beyond the end.
    pub(crate) fn get(&mut self, position: u64, length: usize) -> io::Result<Option<Bytes>> {
        let Some(end) = position
            .checked_add(length as u64)
            .filter(|end| *end <= self.end)
        else {
            return Ok(None);
        };
        if position < self.start || end > self.start + self.bytes.len() as u64 {
            let ahead = (length as u64).max(READ_AHEAD).min(self.end - position);
            let size = usize::try_from(ahead).map_err(io::Error::other)?;
            let mut buffer = vec![0; size];
            self.file.read_at(&mut buffer, position)?;
            self.read += ahead;
            self.start = position;
            self.bytes = buffer.into();
        }
        let from = usize::try_from(position - self.start).map_err(io::Error::other)?;
        Ok(Some(self.bytes.slice(from..from + length)))
    }
}
