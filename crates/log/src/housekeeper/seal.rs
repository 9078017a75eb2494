//! Giving full segments their footers, and taking their runs out of memory.

use std::io::{self, IoSlice};
use std::sync::Arc;

use super::{Housekeeper, HousekeepingReport, Resident};
use crate::footer::{FOOTER_ALIGN, Footer, FooterBuilder, TRAILER_BYTES};
use crate::index::Run;
use crate::round::FrameWalk;
use crate::segment::{FooterPlace, Segment};
use crate::work::Sealing;

/// Runs of sealed segments kept in memory, however large the hot window is.
const RESIDENT_RUNS_MAX: usize = 1 << 20;
/// A rest smaller than this is not given back: a hole costs more than it brings.
const HOLE_MIN: u64 = 1 << 20;

impl Housekeeper {
    /// Seals the oldest full segment, if all of it is durable.
    pub(super) fn seal_next(&mut self, report: &mut HousekeepingReport) -> io::Result<()> {
        let (sealing, more) = {
            let work = self.shared.work.lock();
            let Some(front) = work.sealing.front() else {
                return Ok(());
            };
            (front.clone(), work.sealing.len() > 1)
        };
        // Until a later segment is in use the end of this one says how the last process ended.
        let is_last = self
            .shared
            .last_segment_id()
            .is_none_or(|id| id <= sealing.segment.id());
        if is_last || sealing.summary.last_round > self.shared.durable_round() {
            return Ok(());
        }
        let resident = matches!(sealing.segment.footer(), FooterPlace::Recent);
        let footer = self.footer_of(&sealing);
        let runs = footer.runs.len();
        let place = if sealing.segment.is_failed() {
            FooterPlace::Pinned(footer)
        } else {
            self.write_footer(&sealing.segment, &footer)
        };
        sealing.segment.set_footer(place);
        report.sealed += 1;
        report.more |= more;
        let mut work = self.shared.work.lock();
        if work
            .sealing
            .front()
            .is_some_and(|front| Arc::ptr_eq(&front.segment, &sealing.segment))
        {
            work.sealing.pop_front();
        }
        work.reclaim = true;
        drop(work);
        if resident {
            self.resident.push_back(Resident {
                segment: sealing.segment,
                touched: sealing.touched,
                runs,
            });
        }
        Ok(())
    }

    /// Gathers a segment's footer from the runs in memory and the frames in the file.
    fn footer_of(&self, sealing: &Sealing) -> Arc<Footer> {
        if let FooterPlace::Pinned(footer) = sealing.segment.footer() {
            return footer;
        }
        let mut builder = FooterBuilder::default();
        builder.push_controls(&sealing.controls);
        let id = sealing.segment.id();
        let mut runs: Vec<Run> = Vec::new();
        for touched in &sealing.touched {
            let epoch = {
                let state = touched.cell.lock();
                let from = state.recent.partition_point(|run| run.segment < id);
                runs.clear();
                runs.extend(
                    state
                        .recent
                        .range(from..)
                        .take_while(|run| run.segment == id),
                );
                state.epoch
            };
            let shard = touched.cell.shard;
            for run in &runs {
                builder.push_run(shard, *run, epoch, touched.previous);
                let start = u64::from(run.position);
                let bytes = sealing
                    .segment
                    .file
                    .slice(start..start + u64::from(run.bytes));
                for frame in FrameWalk::new(&bytes) {
                    builder.push_batch(shard, frame.mark());
                }
            }
        }
        builder.finish(sealing.summary)
    }

    /// Writes a footer behind the data. When that fails the segment is not trusted any more, and
    /// its footer stays in memory.
    fn write_footer(&self, segment: &Segment, footer: &Arc<Footer>) -> FooterPlace {
        let result = put_footer(segment, footer);
        match result {
            Ok(Some(place)) => place,
            Ok(None) => FooterPlace::Pinned(Arc::clone(footer)),
            Err(error) => {
                tracing::error!(segment = %segment.path, %error, "the footer was not written");
                segment.set_failed();
                FooterPlace::Pinned(Arc::clone(footer))
            }
        }
    }

    /// Takes the runs of sealed segments beyond the hot window out of memory, oldest first.
    pub(super) fn release_memory(&mut self) {
        let window = self.shared.config.hot_window_bytes;
        let mut runs: usize = self.resident.iter().map(|resident| resident.runs).sum();
        while let Some(oldest) = self.resident.front() {
            let size = oldest.segment.data_end();
            let hot = self.age_in_bytes(&oldest.segment).saturating_sub(size) <= window;
            if hot && runs <= RESIDENT_RUNS_MAX {
                break;
            }
            if let Some(oldest) = self.resident.pop_front() {
                runs -= oldest.runs;
                oldest.release();
            }
        }
    }
}

impl Resident {
    /// Its footer serves readers from now on.
    pub(super) fn release(self) {
        let id = self.segment.id();
        for touched in self.touched {
            touched.cell.lock().release(id);
        }
    }
}

/// Writes the footer, and once it is durable the trailer: a trailer that verifies has the whole
/// footer before it. `Ok(None)`: there is no room.
pub(super) fn put_footer(segment: &Segment, footer: &Footer) -> io::Result<Option<FooterPlace>> {
    let footer_at = footer.summary.data_end.next_multiple_of(FOOTER_ALIGN);
    let (bytes, mut trailer) = footer.encode(&segment.header, footer_at);
    let trailer_at = segment.file.bytes() - TRAILER_BYTES;
    let end = footer_at + bytes.len() as u64;
    if end > trailer_at {
        return Ok(None);
    }
    let hole = end.next_multiple_of(FOOTER_ALIGN)..trailer_at - trailer_at % FOOTER_ALIGN;
    let punch = hole.end.saturating_sub(hole.start) >= HOLE_MIN;
    trailer.has_hole = punch;
    segment.file.write_at(&[IoSlice::new(&bytes)], footer_at)?;
    segment.file.sync()?;
    let sector = trailer.encode(segment.header.salt);
    segment
        .file
        .write_durable_at(&[IoSlice::new(&sector)], trailer_at)?;
    if punch {
        // Space that stays taken is no reason to distrust the segment.
        if let Err(error) = segment.file.punch_hole(hole) {
            tracing::warn!(segment = %segment.path, %error, "the unused rest was not given back");
        }
    }
    Ok(Some(FooterPlace::Disk(trailer)))
}
