//! Writing the tail again into a fresh segment, and what is left over.

use std::io;
use std::sync::Arc;

use flumen_record::Timestamp;

use super::inventory::{Inventory, Leftover};
use super::restore::Restorer;
use super::scan::{Scan, ScannedRound};
use crate::control::Control;
use crate::error::{OpenError, WriteError};
use crate::log::active::{self, Active};
use crate::log::fresh::{FreshSegment, OldRound};
use crate::log::writer::Writer;
use crate::round::FoundFrame;
use crate::work::PreparedFile;

/// Writes the tail again. Returns how many rounds that were.
pub(super) fn rewrite(
    writer: &mut Writer,
    restorer: &mut Restorer<'_>,
    scan: &Scan,
    now: Timestamp,
) -> Result<u64, OpenError> {
    if scan.tail.is_empty() {
        return Ok(0);
    }
    let shared = Arc::clone(&writer.shared);
    let at = |source: io::Error| OpenError::Io {
        path: shared.dir.clone(),
        source,
    };
    let old_rounds: Vec<OldRound> = scan.tail.iter().map(old_round).collect();
    let bytes: u64 = old_rounds.iter().map(OldRound::bytes).sum();
    let frames = old_rounds.iter().map(|round| round.frames.len()).sum();
    let controls = old_rounds.iter().map(|round| round.controls.len()).sum();
    let needed = active::segment_bytes_for(&shared, bytes, frames, controls);
    let prepared =
        active::next_file(&shared, needed, writer.next_bytes, true).map_err(|refused| {
            at(match refused {
                WriteError::NoSegment { source } => source,
                other => io::Error::new(io::ErrorKind::StorageFull, other),
            })
        })?;
    let active = Active::new(&shared, prepared, writer.chain, 0, now);
    let mut fresh = FreshSegment::begin(active, writer.chain).map_err(at)?;
    let mut puts = Vec::with_capacity(old_rounds.len());
    for old in &old_rounds {
        puts.push(fresh.push(old).map_err(at)?);
    }
    let (active, chain) = fresh.finish().map_err(at)?;
    for old in &old_rounds {
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
            let later = tail.iter().skip(number);
            let mut frames = later.flat_map(|round| &round.content.frames);
            match frames.find(|frame| frame.header.shard == shard) {
                Some(first) => {
                    if let Some(known) = writer.shards.get(&shard) {
                        known.cell.lock().trim(first.header.base);
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
