//! Giving full segments their footers, and taking their runs out of memory.

use std::io::{self, IoSlice};
use std::sync::Arc;

use flumen_record::ShardId;

use super::{Housekeeper, HousekeepingReport, Resident};
use crate::footer::{FOOTER_ALIGN, Footer, FooterBuilder, TRAILER_BYTES};
use crate::index::Run;
use crate::round::{FRAME_FRONT, PlacedFrame, Window};
use crate::segment::{FooterPlace, Segment};
use crate::work::Sealing;

/// Runs of sealed segments kept in memory, however large the hot window is.
const RESIDENT_RUNS_MAX: usize = 1 << 20;
/// A rest smaller than this is not given back: a hole costs more than it brings …
const HOLE_MIN: u64 = 1 << 20;
/// … nor one that is a smaller part of the file than this: a file with a hole is not used again,
/// and writing a new one ahead costs more than such a rest.
const HOLE_SHARE: u64 = 4;

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

    /// Gathers a segment's footer from the runs in memory and the frames in the file. A file that
    /// cannot be read gets no footer on disk: who its producers were stays in the rounds.
    fn footer_of(&self, sealing: &Sealing) -> Arc<Footer> {
        if let FooterPlace::Pinned(footer) = sealing.segment.footer() {
            return footer;
        }
        let segment = &sealing.segment;
        let mut builder = FooterBuilder::default();
        let mut all: Vec<(ShardId, Run)> = Vec::new();
        for touched in &sealing.touched {
            let (epoch, from) = {
                let state = touched.cell.lock();
                let id = segment.id();
                let first = state.recent.partition_point(|run| run.segment < id);
                let from = all.len();
                let runs = state.recent.range(first..);
                let runs = runs.take_while(|run| run.segment == id);
                all.extend(runs.map(|run| (touched.cell.shard, *run)));
                (state.epoch, from)
            };
            for (shard, run) in all.iter().skip(from) {
                builder.push_run(*shard, *run, epoch, touched.previous);
            }
        }
        // In the order of the file: the disk reads ahead, and a shard's batches stay in order.
        all.sort_unstable_by_key(|(_, run)| run.position);
        if let Err(error) = push_batches(segment, sealing.summary.data_end, &all, &mut builder) {
            tracing::error!(segment = %segment.path, %error, "it cannot be read, and gets no footer");
            segment.set_failed();
        }
        // After all runs: in memory a shard that came back has a trim in place of its end.
        builder.push_controls(&sealing.controls);
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

/// Walks the frames of `runs` by their headers, through the descriptor: most pages of a segment
/// that took a day to fill are not in memory any more.
fn push_batches(
    segment: &Segment,
    data_end: u64,
    runs: &[(ShardId, Run)],
    builder: &mut FooterBuilder,
) -> io::Result<()> {
    let mut window = Window::new(&*segment.file, data_end);
    for (shard, run) in runs {
        let mut at = 0;
        while let Some(front) = window.get(u64::from(run.position) + at as u64, FRAME_FRONT)? {
            let Some(frame) = PlacedFrame::read(&front, at, run.bytes as usize) else {
                break;
            };
            builder.push_batch(*shard, frame.mark());
            at = frame.range.end;
            if at >= run.bytes as usize {
                break;
            }
        }
    }
    Ok(())
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
    let rest = hole.end.saturating_sub(hole.start);
    let punch = rest >= HOLE_MIN.max(segment.file.bytes() / HOLE_SHARE);
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
