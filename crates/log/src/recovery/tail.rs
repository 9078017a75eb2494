//! Writing the tail again into a fresh segment, and what is left over.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::Arc;

use flumen_record::{SequenceNumber, ShardId, Timestamp};

use super::inventory::{Inventory, Leftover};
use super::restore::Restorer;
use super::scan::{Scan, ScannedRound};
use crate::control::Control;
use crate::error::{OpenError, WriteError};
use crate::io_fault::IoFault;
use crate::log::active::{self, Active};
use crate::log::fresh::{FreshSegment, OldRound};
use crate::log::writer::Writer;
use crate::round::FoundFrame;
use crate::shared::Shared;
use crate::storage::SegmentFile;
use crate::work::PreparedFile;

/// What one more shard takes in a segment's table of shards, at most.
const STATE_ROW_BYTES: u64 = 256;

/// The file for a tail that is to be written again; `None`: there is no tail, or no space for one.
pub(super) fn make_room(
    shared: &Shared,
    restorer: &Restorer<'_>,
    scan: &Scan,
) -> Result<Option<PreparedFile>, OpenError> {
    if scan.tail.is_empty() {
        return Ok(None);
    }
    let old_rounds: Vec<OldRound> = scan.tail.iter().map(old_round).collect();
    let bytes: u64 = old_rounds.iter().map(OldRound::bytes).sum();
    let frames: usize = old_rounds.iter().map(|round| round.frames.len()).sum();
    let controls = old_rounds.iter().map(|round| round.controls.len()).sum();
    // Any of the frames may be of a shard that is not known yet.
    let state = restorer.state_bytes() + frames as u64 * STATE_ROW_BYTES;
    let needed = active::segment_bytes_for(shared, bytes + state, frames, controls);
    match active::spare_file(shared, needed, shared.config.segment_bytes_min, true) {
        Ok(prepared) => Ok(Some(prepared)),
        Err(WriteError::NoSegment { source }) if IoFault::from(&source) != IoFault::Full => {
            Err(OpenError::Io {
                path: shared.dir.clone(),
                source,
            })
        }
        Err(error) => {
            tracing::warn!(log = %shared.dir, %error, "log: the last rounds are not copied for want of space; they are made durable where they are");
            Ok(None)
        }
    }
}

/// Makes the tail durable where it stands, for want of space for a copy: every byte of it is written
/// over itself and synced, because a page cache that still has it proves nothing. Nothing vouches for
/// it afterwards either, so that the next start looks at it again.
pub(super) fn stay(
    inventory: &Inventory,
    restorer: &mut Restorer<'_>,
    scan: &mut Scan,
) -> Result<(), OpenError> {
    let tail = std::mem::take(&mut scan.tail);
    let candidate = |round: &ScannedRound| {
        let candidate = inventory.segments.get(round.segment);
        candidate.expect("BUG: a round of no segment")
    };
    for rounds in tail.chunk_by(|one, next| one.segment == next.segment) {
        let Some(segment) = rounds.first().map(candidate) else {
            continue;
        };
        let written = rounds
            .iter()
            .try_for_each(|round| write_over(&*segment.file, round.position..round.end()))
            .and_then(|()| segment.file.sync());
        written.map_err(|source| OpenError::Io {
            path: segment.path.clone(),
            source,
        })?;
    }
    for round in &tail {
        let segment = candidate(round).name.segment;
        stays(scan, restorer, round, segment);
    }
    Ok(())
}

/// A round, the next after the last one, stays where it is.
pub(super) fn stays(
    scan: &mut Scan,
    restorer: &mut Restorer<'_>,
    round: &ScannedRound,
    segment: u64,
) {
    let header = &round.found.header;
    scan.last_round = header.round;
    scan.last_checksum = round.found.checksum;
    scan.epoch = scan.epoch.max(header.epoch);
    scan.kept_epoch = scan.kept_epoch.max(header.epoch);
    scan.catalog = scan.catalog.max(header.catalog);
    restorer.round(round, segment);
}

fn write_over(file: &dyn SegmentFile, range: Range<u64>) -> io::Result<()> {
    let length = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    file.read_at(&mut bytes, range.start)?;
    file.write_at(&[IoSlice::new(&bytes)], range.start)
}

/// Writes the tail again. Returns how many rounds that were.
pub(super) fn rewrite(
    writer: &mut Writer,
    restorer: &mut Restorer<'_>,
    scan: &Scan,
    prepared: PreparedFile,
    now: Timestamp,
) -> Result<u64, OpenError> {
    let shared = Arc::clone(&writer.shared);
    let at = |source: io::Error| OpenError::Io {
        path: shared.dir.clone(),
        source,
    };
    let old_rounds: Vec<OldRound> = scan.tail.iter().map(old_round).collect();
    let active = Active::new(&shared, prepared, writer.chain, 0, now);
    let mut fresh = FreshSegment::begin(active, writer.chain).map_err(at)?;
    let mut puts = Vec::with_capacity(old_rounds.len());
    for old in &old_rounds {
        puts.push(fresh.push(old).map_err(at)?);
    }
    let (active, chain) = fresh.finish().map_err(at)?;
    for old in &old_rounds {
        writer.prepare_jumping(&old.controls);
        writer.prepare_shards(&old.frames);
    }
    writer.jumps.clear();
    shared.insert_segment(Arc::clone(&active.segment));
    writer.active = Some(active);
    let durable = writer.chain.durable;
    writer.chain = chain;
    writer.chain.durable = durable;
    let count = old_rounds.len() as u64;
    writer.retarget(old_rounds, puts);
    writer.settle(chain.round);
    forget(writer, &scan.tail);
    for round in &scan.tail {
        restorer.tail_round(round);
        writer.catalog = writer.catalog.max(round.found.header.catalog);
    }
    Ok(count)
}

fn old_round(round: &ScannedRound) -> OldRound {
    OldRound {
        frames: round
            .content
            .frames
            .iter()
            .map(FoundFrame::to_new)
            .collect(),
        controls: round.found.control.clone(),
        catalog: round.found.header.catalog,
        written: round.found.header.written,
        flags: 0,
    }
}

/// Shards that the tail forgets are gone, but for what it holds of those that came back.
fn forget(writer: &mut Writer, tail: &[ScannedRound]) {
    for (number, round) in tail.iter().enumerate() {
        for control in &round.found.control {
            let Control::Forget { shard } = *control else {
                continue;
            };
            // What it jumped over before it was forgotten is in the marks of the same round.
            let here = first_frame(round, shard);
            let mut later = tail.iter().skip(number + 1);
            match here.or_else(|| later.find_map(|round| comes_back(round, shard))) {
                Some(at) => {
                    if let Some(known) = writer.shards.get(&shard) {
                        known.cell.lock().trim(at);
                    }
                }
                None => {
                    writer.shards.remove(&shard);
                    writer.shared.index.remove(shard);
                }
            }
        }
    }
}

/// Where a shard that was forgotten begins again in a round: in front of a jump, or at its first frame.
fn comes_back(round: &ScannedRound, shard: ShardId) -> Option<SequenceNumber> {
    let jump = round
        .found
        .control
        .iter()
        .find_map(|control| match *control {
            Control::Jump {
                shard: jumping,
                from,
                ..
            } if jumping == shard => Some(from),
            _ => None,
        });
    jump.or_else(|| first_frame(round, shard))
}

fn first_frame(round: &ScannedRound, shard: ShardId) -> Option<SequenceNumber> {
    let mut frames = round.content.frames.iter();
    let frame = frames.find(|frame| frame.header.shard == shard)?;
    Some(frame.header.base)
}

/// Sorts the files that are not part of the log: those without a header can go at once, the others
/// once a later header is on disk, because until then they may be what vouches for older rounds.
pub(super) fn sort_leftovers(writer: &Writer, inventory: &Inventory, scan: &Scan) {
    let prepared = |leftover: &Leftover| PreparedFile {
        name: leftover.name,
        path: leftover.path.clone(),
        file: Arc::clone(&leftover.file),
    };
    let mut work = writer.shared.work.lock();
    for leftover in &inventory.leftovers {
        if leftover.superseded {
            work.superseded.push(prepared(leftover));
        } else {
            work.discarded.push(prepared(leftover));
        }
    }
    for dropped in inventory.segments.iter().skip(scan.segments_end) {
        work.superseded.push(PreparedFile {
            name: dropped.name,
            path: dropped.path.clone(),
            file: Arc::clone(&dropped.file),
        });
    }
    if writer.active.is_some() {
        let mut superseded = std::mem::take(&mut work.superseded);
        work.discarded.append(&mut superseded);
    }
}
