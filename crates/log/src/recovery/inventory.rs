//! What files a log's folder holds, and which of them are segments of its chain.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::LogKey;
use crate::error::{OpenError, SEGMENT_VERSION};
use crate::footer::{TRAILER_BYTES, Trailer};
use crate::round::{ROUND_HEADER_BYTES, RoundOwner, Window, read_header};
use crate::segment::SegmentName;
use crate::segment_header::{
    HEAD_BYTES, HeaderSector, SECOND_COPY, SECTOR, SECTOR_BYTES, SegmentHeader,
};
use crate::shared::Shared;
use crate::storage::SegmentFile;

/// A file that may be a segment.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub(super) name: SegmentName,
    pub(super) path: String,
    pub(super) file: Arc<dyn SegmentFile>,
    pub(super) header: SegmentHeader,
    /// Both copies of the header are damaged; it was rebuilt from the rounds.
    pub(super) header_rebuilt: bool,
    /// The trailer, when it verifies.
    pub(super) trailer: Option<Trailer>,
    /// Rounds after this one do not exist: a later segment continues after it.
    pub(super) exists_until: u64,
    /// The segment after this one says that this one failed.
    pub(super) failed: bool,
    /// Whether the file is as long as its header says.
    pub(super) length: FileLength,
}

/// How long a segment's file is, beside what its header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileLength {
    Right,
    /// Its end is gone, with what was there.
    Cut,
    /// Something was added that is not its own.
    Extended,
}

impl Candidate {
    /// What is wrong with its length.
    pub(super) fn odd_length(&self) -> Option<String> {
        let (found, told) = (self.file.bytes(), self.header.file_bytes);
        match self.length {
            FileLength::Right => None,
            FileLength::Cut => Some(format!(
                "the file was cut: it has {found} bytes, its header says {told}"
            )),
            FileLength::Extended => Some(format!(
                "the file was extended: it has {found} bytes, its header says {told}"
            )),
        }
    }

    /// The round its first round would have.
    pub(super) fn first_round(&self) -> u64 {
        self.header.continues_after.saturating_add(1)
    }
}

/// A file that is not part of the log: ready and unused, superseded, or given up half written.
#[derive(Debug, Clone)]
pub(super) struct Leftover {
    pub(super) name: SegmentName,
    pub(super) path: String,
    pub(super) file: Arc<dyn SegmentFile>,
    /// It has a header: it was part of the log once.
    pub(super) superseded: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Inventory {
    pub(super) key: LogKey,
    /// Ascending; one generation of each id.
    pub(super) segments: Vec<Candidate>,
    pub(super) leftovers: Vec<Leftover>,
    /// No new segment gets this id or a lower one.
    pub(super) highest_id: u64,
}

impl Inventory {
    /// Opens all of them, `writable` or only to be looked at.
    pub(super) fn take(shared: &Shared, writable: bool) -> Result<Self, OpenError> {
        let mut found: BTreeMap<u64, Candidate> = BTreeMap::new();
        let mut leftovers = Vec::new();
        let mut highest_id = 0;
        let files = shared
            .storage
            .list(&shared.dir)
            .map_err(|source| OpenError::Io {
                path: shared.dir.clone(),
                source,
            })?;
        for entry in files {
            let Some(name) = SegmentName::parse(&entry.name) else {
                continue;
            };
            highest_id = highest_id.max(name.segment);
            let path = shared.path(&entry.name);
            let file = shared
                .storage
                .open(&path, writable)
                .map_err(|source| OpenError::Io {
                    path: path.clone(),
                    source,
                })?;
            match examine(shared, name, path.clone(), &file)? {
                // The list ascends, so a later generation of an id comes later.
                Some(candidate) => {
                    if let Some(older) = found.insert(name.segment, candidate) {
                        leftovers.push(Leftover {
                            name: older.name,
                            path: older.path,
                            file: older.file,
                            superseded: true,
                        });
                    }
                }
                None => leftovers.push(Leftover {
                    name,
                    path,
                    file,
                    superseded: false,
                }),
            }
        }
        let mut inventory = Self {
            key: shared.key,
            segments: found.into_values().collect(),
            leftovers,
            highest_id,
        };
        inventory.supersede();
        Ok(inventory)
    }

    /// Makes footers, and the headers of copies, durable: the process that wrote them may have been
    /// killed before it had, and what they replace is removed on the strength of them.
    pub(super) fn sync_sealed(&self) -> Result<(), OpenError> {
        let sealed = self.segments.iter().filter(|one| one.trailer.is_some());
        for segment in sealed {
            segment.file.sync().map_err(|source| OpenError::Io {
                path: segment.path.clone(),
                source,
            })?;
        }
        Ok(())
    }

    /// Finds out how far each segment exists, and drops those that do not exist at all.
    fn supersede(&mut self) {
        let mut until = u64::MAX;
        let mut failed = false;
        for segment in self.segments.iter_mut().rev() {
            segment.exists_until = until;
            segment.failed |= failed;
            until = until.min(segment.header.continues_after);
            failed = segment.header.flags & crate::segment_header::PREDECESSOR_FAILED != 0;
        }
        let (segments, superseded) = std::mem::take(&mut self.segments)
            .into_iter()
            .partition(|segment| segment.header.continues_after < segment.exists_until);
        self.segments = segments;
        self.leftovers
            .extend(superseded.into_iter().map(|old: Candidate| Leftover {
                name: old.name,
                path: old.path,
                file: old.file,
                superseded: true,
            }));
    }
}

/// Reads a file's header and trailer. `None`: it is not a segment of this log (any more, or yet).
fn examine(
    shared: &Shared,
    name: SegmentName,
    path: String,
    file: &Arc<dyn SegmentFile>,
) -> Result<Option<Candidate>, OpenError> {
    let foreign = |reason| OpenError::Foreign {
        path: path.clone(),
        reason,
    };
    let io = |source| OpenError::Io {
        path: path.clone(),
        source,
    };
    if file.bytes() < HEAD_BYTES {
        return Ok(None);
    }
    let mut header = None;
    let mut spare = true;
    for position in [0, SECOND_COPY] {
        let mut sector = [0; SECTOR];
        file.read_at(&mut sector, position).map_err(io)?;
        match HeaderSector::decode(&sector) {
            HeaderSector::Segment(found) => {
                header.get_or_insert(found);
            }
            HeaderSector::Spare => {}
            HeaderSector::UnknownVersion => {
                return Err(foreign(SEGMENT_VERSION));
            }
            HeaderSector::Invalid => spare = false,
        }
    }
    let header_rebuilt = header.is_none();
    let header = match header {
        Some(header) => header,
        None if spare => return Ok(None),
        None => match rebuild_header(shared, name, &**file).map_err(io)? {
            Some(header) => header,
            None => return Ok(None),
        },
    };
    if header.log != shared.key.id() {
        return Err(foreign("a segment of another log"));
    }
    if header.segment != name.segment || header.generation != name.generation {
        return Err(foreign("a segment under a wrong name"));
    }
    let length = match header.file_bytes.cmp(&file.bytes()) {
        Ordering::Equal => FileLength::Right,
        Ordering::Greater => FileLength::Cut,
        Ordering::Less => FileLength::Extended,
    };
    let trailer_at = header.file_bytes.checked_sub(TRAILER_BYTES);
    let mut trailer = None;
    if let Some(trailer_at) = trailer_at.filter(|_| length != FileLength::Cut) {
        let mut sector = [0; SECTOR];
        file.read_at(&mut sector, trailer_at).map_err(io)?;
        trailer = Trailer::decode(&sector, &header);
    }
    Ok(Some(Candidate {
        name,
        path,
        file: Arc::clone(file),
        header,
        header_rebuilt,
        trailer,
        exists_until: u64::MAX,
        failed: length != FileLength::Right,
        length,
    }))
}

/// Whether the end of a cut file stands where a round begins, or in one.
pub(super) fn cut_through_round(
    window: &mut Window<'_>,
    header: &SegmentHeader,
    position: u64,
) -> std::io::Result<bool> {
    let front = window.get(position, ROUND_HEADER_BYTES)?;
    Ok(front.is_none_or(|front| RoundOwner::of(header).may_own(&front)))
}

/// A file without a valid header is a segment all the same when a round in it vouches for an
/// earlier one in it: then it was used, and its header was damaged later.
fn rebuild_header(
    shared: &Shared,
    name: SegmentName,
    file: &dyn SegmentFile,
) -> std::io::Result<Option<SegmentHeader>> {
    let mut window = Window::new(file, file.bytes());
    let mut owner = RoundOwner {
        log: shared.key.id(),
        segment: name.segment,
        salt: None,
    };
    let mut first = None;
    let mut position = HEAD_BYTES;
    while position < file.bytes() {
        let Some(found) = read_header(&mut window, owner, position)? else {
            position += SECTOR_BYTES;
            continue;
        };
        let header = found.header;
        owner.salt = Some(header.salt);
        let (at, first) = *first.get_or_insert((position, header));
        if header.last_durable >= first.round {
            let state_bytes = u32::try_from(at - HEAD_BYTES).unwrap_or(0);
            return Ok(Some(SegmentHeader {
                flags: 0,
                log: header.log,
                segment: name.segment,
                generation: name.generation,
                epoch: first.epoch,
                salt: first.salt,
                file_bytes: file.bytes(),
                continues_after: first.round.saturating_sub(1),
                last_durable: first.last_durable,
                previous_checksum: first.previous_checksum,
                state_bytes,
                state_checksum: 0,
                created: first.written,
            }));
        }
        position += header.padded_bytes();
    }
    Ok(None)
}
