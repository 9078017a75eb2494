//! Footers read from disk, kept within a budget of bytes.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use flumen_record::ShardId;

use crate::control::Control;
use crate::footer::{
    Footer, FooterRow, FooterSummary, TRAILER_BYTES, Trailer, decode_producers, decode_rows,
    decode_runs, find_row,
};
use crate::index::Run;
use crate::recovery::BatchMark;
use crate::segment::{FooterPlace, Segment, SegmentName};
use crate::segment_header::{SECTOR, SegmentHeader};
use crate::storage::SegmentFile;

/// Memory for rows and runs of sealed segments, per log.
const BUDGET_BYTES: usize = 16 << 20;

/// Rows, or one shard's runs, of one generation of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Part {
    Rows,
    Runs(ShardId),
}

/// Segment, generation, and the checksum of the rows: a footer that was written anew is another one.
type Key = (u64, u32, u32, Part);

#[derive(Debug, Clone)]
enum Kept {
    Rows(Arc<[FooterRow]>),
    Runs(Arc<[Run]>),
}

impl Kept {
    fn bytes(&self) -> usize {
        64 + match self {
            Self::Rows(rows) => size_of_val::<[FooterRow]>(rows),
            Self::Runs(runs) => size_of_val::<[Run]>(runs),
        }
    }
}

#[derive(Debug, Default)]
struct Cache {
    kept: HashMap<Key, (Kept, u64)>,
    bytes: usize,
    uses: u64,
}

/// Least recently used parts leave first.
#[derive(Debug, Default)]
pub(crate) struct FooterCache {
    cache: Mutex<Cache>,
}

fn key(segment: &Segment, trailer: &Trailer, part: Part) -> Key {
    let SegmentName {
        segment,
        generation,
    } = segment.name;
    (segment, generation, trailer.rows_checksum, part)
}

fn damaged(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// What one look at a sealed segment found of its index. Runs that are asked for later are those of
/// its rows, whatever has become of the segment's footer since: while readers are under way a footer
/// goes from memory to disk, and its rows there carry checksums that those in memory lack.
#[derive(Debug, Clone)]
pub(crate) enum IndexLook {
    /// All of it, in memory.
    Pinned(Arc<Footer>),
    /// Its rows; the runs are on disk.
    Disk(Trailer, Arc<[FooterRow]>),
}

impl IndexLook {
    /// Ascending by shard.
    pub(crate) fn rows(&self) -> &[FooterRow] {
        match self {
            Self::Pinned(footer) => &footer.rows,
            Self::Disk(_, rows) => rows,
        }
    }

    pub(crate) fn row(&self, shard: ShardId) -> Option<&FooterRow> {
        find_row(self.rows(), shard)
    }

    pub(crate) fn summary(&self) -> FooterSummary {
        match self {
            Self::Pinned(footer) => footer.summary,
            Self::Disk(trailer, _) => trailer.summary,
        }
    }

    /// Where it was found.
    pub(crate) fn place(&self) -> FooterPlace {
        match self {
            Self::Pinned(footer) => FooterPlace::Pinned(Arc::clone(footer)),
            Self::Disk(trailer, _) => FooterPlace::Disk(*trailer),
        }
    }

    pub(crate) fn control_count(&self) -> u64 {
        match self {
            Self::Pinned(footer) => footer.controls.len() as u64,
            Self::Disk(trailer, _) => u64::from(trailer.controls),
        }
    }

    /// The control marks of `segment`, which was looked at.
    pub(crate) fn controls(&self, segment: &Segment) -> io::Result<Vec<Control>> {
        match self {
            Self::Pinned(footer) => Ok(footer.controls.clone()),
            Self::Disk(trailer, _) => {
                Ok(read_rows(&*segment.file, &segment.header, trailer)?.controls)
            }
        }
    }
}

impl FooterCache {
    /// A segment's index, at `place`. `Ok(None)`: it is in the shards' recent runs. `InvalidData`: what
    /// is on disk does not verify.
    pub(crate) fn look(
        &self,
        segment: &Segment,
        place: &FooterPlace,
    ) -> io::Result<Option<IndexLook>> {
        match place {
            FooterPlace::Recent => Ok(None),
            FooterPlace::Pinned(footer) => Ok(Some(IndexLook::Pinned(Arc::clone(footer)))),
            FooterPlace::Disk(trailer) => {
                let rows = self.rows(segment, trailer)?;
                Ok(Some(IndexLook::Disk(*trailer, rows)))
            }
        }
    }

    /// One shard's runs in a sealed segment, given what a look at it found: its index, and the
    /// shard's row in that. `InvalidData`: what is on disk does not verify.
    pub(crate) fn runs(
        &self,
        segment: &Segment,
        look: &IndexLook,
        row: &FooterRow,
    ) -> io::Result<Arc<[Run]>> {
        let trailer = match look {
            IndexLook::Pinned(footer) => return Ok(footer.runs_of(row).into()),
            IndexLook::Disk(trailer, _) => trailer,
        };
        let key = key(segment, trailer, Part::Runs(row.shard));
        if let Some(Kept::Runs(runs)) = self.get(key) {
            return Ok(runs);
        }
        let (at, length) = trailer.runs_place(row);
        let mut bytes = vec![0; length];
        segment.file.read_at(&mut bytes, at)?;
        let runs: Arc<[Run]> = decode_runs(&bytes, trailer, row, segment.header.salt)
            .ok_or_else(|| damaged("the runs in a footer do not verify"))?
            .into();
        self.put(key, Kept::Runs(Arc::clone(&runs)));
        Ok(runs)
    }

    /// All rows of a footer on disk.
    fn rows(&self, segment: &Segment, trailer: &Trailer) -> io::Result<Arc<[FooterRow]>> {
        let key = key(segment, trailer, Part::Rows);
        if let Some(Kept::Rows(rows)) = self.get(key) {
            return Ok(rows);
        }
        let rows: Arc<[FooterRow]> = read_rows(&*segment.file, &segment.header, trailer)?
            .rows
            .into();
        self.put(key, Kept::Rows(Arc::clone(&rows)));
        Ok(rows)
    }

    /// Forgets what is kept of a segment.
    pub(crate) fn forget(&self, segment: u64) {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let Cache { kept, bytes, .. } = &mut *cache;
        kept.retain(|key, (part, _)| {
            let keep = key.0 != segment;
            if !keep {
                *bytes -= part.bytes();
            }
            keep
        });
    }

    fn get(&self, key: Key) -> Option<Kept> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.uses += 1;
        let uses = cache.uses;
        let (kept, used) = cache.kept.get_mut(&key)?;
        *used = uses;
        Some(kept.clone())
    }

    fn put(&self, key: Key, part: Kept) {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.uses += 1;
        let uses = cache.uses;
        cache.bytes += part.bytes();
        if let Some((old, _)) = cache.kept.insert(key, (part, uses)) {
            cache.bytes -= old.bytes();
        }
        if cache.bytes > BUDGET_BYTES {
            cache.thin();
        }
    }
}

impl Cache {
    /// Drops the less recently used parts until half the budget is free.
    fn thin(&mut self) {
        let mut by_use: Vec<(u64, Key)> = self
            .kept
            .iter()
            .map(|(key, (_, used))| (*used, *key))
            .collect();
        by_use.sort_unstable_by_key(|(used, _)| *used);
        for (_, key) in by_use {
            if self.bytes <= BUDGET_BYTES / 2 {
                break;
            }
            if let Some((part, _)) = self.kept.remove(&key) {
                self.bytes -= part.bytes();
            }
        }
    }
}

/// Reads rows and control marks of a footer on disk; runs and producers are left out.
pub(crate) fn read_rows(
    file: &dyn SegmentFile,
    header: &SegmentHeader,
    trailer: &Trailer,
) -> io::Result<Footer> {
    let length = usize::try_from(trailer.rows_bytes()).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    file.read_at(&mut bytes, trailer.footer_at)?;
    let (rows, controls) = decode_rows(&bytes, trailer, header.salt)
        .ok_or_else(|| damaged("the rows of a footer do not verify"))?;
    Ok(Footer {
        summary: trailer.summary,
        rows,
        controls,
        runs: Vec::new(),
        producers: Vec::new(),
    })
}

/// Whether every byte of a footer on disk is as it was written.
pub(crate) fn footer_verifies(
    file: &dyn SegmentFile,
    header: &SegmentHeader,
    trailer: &Trailer,
) -> io::Result<bool> {
    let mut sector = [0; SECTOR];
    file.read_at(&mut sector, header.file_bytes - TRAILER_BYTES)?;
    if Trailer::decode(&sector, header).as_ref() != Some(trailer) {
        return Ok(false);
    }
    let length = usize::try_from(trailer.footer_bytes()).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    file.read_at(&mut bytes, trailer.footer_at)?;
    let part = |(at, length): (u64, usize)| {
        let from = usize::try_from(at - trailer.footer_at).unwrap_or(usize::MAX);
        let end = from.checked_add(length)?;
        bytes.get(from..end)
    };
    let rows_bytes = usize::try_from(trailer.rows_bytes()).map_err(io::Error::other)?;
    let rows = part((trailer.footer_at, rows_bytes));
    let Some((rows, _)) = rows.and_then(|rows| decode_rows(rows, trailer, header.salt)) else {
        return Ok(false);
    };
    Ok(rows.iter().all(|row| {
        let runs = part(trailer.runs_place(row));
        let producers = part(trailer.producers_place(row));
        runs.is_some_and(|runs| decode_runs(runs, trailer, row, header.salt).is_some())
            && producers
                .is_some_and(|marks| decode_producers(marks, trailer, row, header.salt).is_some())
    }))
}

/// Reads the producers of all shards from a footer on disk.
pub(crate) fn read_all_producers(
    file: &dyn SegmentFile,
    header: &SegmentHeader,
    trailer: &Trailer,
    rows: &[FooterRow],
) -> io::Result<Vec<(ShardId, BatchMark)>> {
    let mut all = Vec::with_capacity(trailer.producers as usize);
    for row in rows.iter().filter(|row| row.producer_count > 0) {
        let (at, length) = trailer.producers_place(row);
        let mut bytes = vec![0; length];
        file.read_at(&mut bytes, at)?;
        let marks = decode_producers(&bytes, trailer, row, header.salt)
            .ok_or_else(|| damaged("the producers in a footer do not verify"))?;
        all.extend(marks.into_iter().map(|mark| (row.shard, mark)));
    }
    Ok(all)
}
