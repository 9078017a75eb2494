//! Rows that wait for their encoder: in memory up to a bound, in the spool beyond it.

use std::io;

use crate::spool::{CutSpool, Extent, RowFile, SpoolError};

/// What is written to the spool at once at least, unless it is all there is: reading back takes one
/// look per piece.
const SPILL_BYTES: usize = 16 << 10;

/// The rows of one partition, each behind its length (4 bytes, little-endian).
#[derive(Debug, Default)]
pub(crate) struct KeptRows {
    /// In the spool, in order.
    extents: Vec<Extent>,
    /// What follows them.
    memory: Vec<u8>,
}

/// Where the rows of all partitions of one cut are kept.
#[derive(Debug)]
pub(crate) struct RowStore {
    spool: CutSpool,
    file: Option<RowFile>,
    in_memory: usize,
    memory_max: usize,
}

impl RowStore {
    /// An empty one, with at most about `memory_max` bytes in memory.
    pub(crate) fn new(spool: CutSpool, memory_max: usize) -> Self {
        Self {
            spool,
            file: None,
            in_memory: 0,
            memory_max,
        }
    }

    /// Keeps a row. `true`: there is too much in memory now, and [`RowStore::spill`] is due.
    pub(crate) fn keep(&mut self, rows: &mut KeptRows, row: &[u8]) -> bool {
        let length = u32::try_from(row.len()).unwrap_or(u32::MAX);
        rows.memory.extend_from_slice(&length.to_le_bytes());
        rows.memory.extend_from_slice(row);
        self.in_memory += 4 + row.len();
        self.in_memory > self.memory_max
    }

    /// Writes what is in memory to the spool: of partitions that have much first; if none has, of all.
    pub(crate) fn spill<'a>(
        &mut self,
        all: impl Iterator<Item = &'a mut KeptRows>,
    ) -> Result<(), SpoolError> {
        let (large, small): (Vec<_>, Vec<_>) =
            all.partition(|rows| rows.memory.len() >= SPILL_BYTES);
        for rows in large {
            self.write(rows)?;
        }
        if self.in_memory > self.memory_max / 2 {
            for rows in small.into_iter().filter(|rows| !rows.memory.is_empty()) {
                self.write(rows)?;
            }
        }
        Ok(())
    }

    fn write(&mut self, rows: &mut KeptRows) -> Result<(), SpoolError> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(self.spool.rows()?),
        };
        rows.extents.push(file.append(&rows.memory)?);
        self.in_memory = self.in_memory.saturating_sub(rows.memory.len());
        // Its room is used again.
        rows.memory.clear();
        Ok(())
    }

    /// Hands a partition's rows out, in order.
    pub(crate) fn read(
        &mut self,
        rows: KeptRows,
        each: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), io::Error> {
        for extent in rows.extents {
            let Some(file) = &mut self.file else {
                return Err(io::Error::other("BUG: an extent without a file"));
            };
            walk(file.read(extent).map_err(io::Error::other)?, each)?;
        }
        walk(&rows.memory, each)?;
        self.in_memory = self.in_memory.saturating_sub(rows.memory.len());
        Ok(())
    }
}

fn walk(mut bytes: &[u8], each: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let torn = || io::Error::new(io::ErrorKind::InvalidData, "the spool is damaged");
    while let Some((length, rest)) = bytes.split_first_chunk() {
        let length = u32::from_le_bytes(*length) as usize;
        let (row, rest) = rest.split_at_checked(length).ok_or_else(torn)?;
        each(row)?;
        bytes = rest;
    }
    if bytes.is_empty() {
        Ok(())
    } else {
        Err(torn())
    }
}

#[cfg(test)]
mod tests;
