//! After a failed sync or a short write: what is not durable goes once into a fresh segment, or the
//! log is poisoned.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use flumen_record::Timestamp;

use super::NewFrame;
use super::active::{self, Active, ChainEnd};
use super::fresh::{FreshSegment, OldRound};
use super::writer::{Writer, WrittenRound};
use crate::error::{SyncError, WriteError};
use crate::index::Run;
use crate::round::{RoundOwner, Window, read_frames, read_header};
use crate::segment::Segment;
use crate::segment_header::PREDECESSOR_FAILED;
use crate::shared::count;
use crate::work::{Sealing, Touched};

/// A round that could not be written where it should have been.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unwritten<'a> {
    pub(crate) frames: &'a [NewFrame],
    pub(crate) flags: u16,
}

/// Failed segments that hold rounds which are about to stand elsewhere.
#[derive(Debug, Default)]
struct Shed {
    /// They hold something durable too: full, and in want of a footer.
    sealing: Vec<Sealing>,
    /// They hold nothing durable.
    doomed: Vec<Arc<Segment>>,
}

impl Writer {
    /// Takes everything beyond the last durable round, and `unwritten` after it, into a fresh
    /// segment. Everything is durable on `Ok`; on `Err` the log is poisoned.
    pub(crate) fn move_to_fresh(
        &mut self,
        unwritten: Option<Unwritten<'_>>,
        now: Timestamp,
        cause: &io::Error,
    ) -> Result<(), SyncError> {
        count(&self.shared.counters.failed_syncs, 1);
        tracing::error!(log = %self.shared.dir, error = %cause, "a write or sync failed: moving on into a fresh segment");
        match self.try_fresh(unwritten, now) {
            Ok(()) => Ok(()),
            Err(source) => {
                count(&self.shared.counters.failed_syncs, 1);
                self.shared.poisoned.store(true, Ordering::Release);
                tracing::error!(log = %self.shared.dir, error = %source, "the log is poisoned");
                Err(SyncError::Poisoned { source })
            }
        }
    }

    fn try_fresh(&mut self, unwritten: Option<Unwritten<'_>>, now: Timestamp) -> io::Result<()> {
        let mut old_rounds = Vec::with_capacity(self.unsettled.len() + 1);
        for written in &self.unsettled {
            written.segment.set_failed();
            old_rounds.push(read_back(written)?);
        }
        if let Some(unwritten) = unwritten {
            self.prepare_shards(unwritten.frames);
            old_rounds.push(OldRound {
                frames: unwritten.frames.to_vec(),
                controls: self.take_controls(),
                catalog: self.catalog,
                written: now,
                flags: unwritten.flags,
            });
        }
        let chain = ChainEnd {
            round: self.chain.durable,
            checksum: self.durable_checksum,
            ..self.chain
        };
        let (fresh, chain, puts) = self.write_fresh(chain, &old_rounds, now)?;
        let shed = self.take_over(fresh, chain);
        #[cfg(test)]
        crate::testing::seam::pass(crate::testing::seam::Seam::FreshTakenOver);
        self.retarget(old_rounds, puts);
        self.let_go(shed);
        self.settle(self.chain.round);
        Ok(())
    }

    fn write_fresh(
        &self,
        chain: ChainEnd,
        old_rounds: &[OldRound],
        now: Timestamp,
    ) -> io::Result<(Active, ChainEnd, Vec<super::fresh::PutRound>)> {
        let bytes: u64 = old_rounds.iter().map(OldRound::bytes).sum();
        let frames = old_rounds.iter().map(|round| round.frames.len()).sum();
        let controls = old_rounds.iter().map(|round| round.controls.len()).sum();
        let needed = active::segment_bytes_for(&self.shared, bytes, frames, controls);
        let prepared =
            active::next_file(&self.shared, needed, self.next_bytes, true).map_err(|refused| {
                match refused {
                    WriteError::NoSegment { source } => source,
                    other => io::Error::other(other),
                }
            })?;
        let active = Active::new(&self.shared, prepared, chain, PREDECESSOR_FAILED, now);
        let mut fresh = FreshSegment::begin(active, chain)?;
        let mut puts = Vec::with_capacity(old_rounds.len());
        for old in old_rounds {
            puts.push(fresh.push(old)?);
        }
        let (active, chain) = fresh.finish()?;
        Ok((active, chain, puts))
    }

    /// The fresh segment is the active one; the failed ones keep what was durable before. Readers look
    /// for the rest in them until [`Writer::retarget`] has said where it is: they go only then.
    fn take_over(&mut self, fresh: Active, chain: ChainEnd) -> Shed {
        let durable = ChainEnd {
            round: self.chain.durable,
            checksum: self.durable_checksum,
            ..self.chain
        };
        let first_lost = self
            .unsettled
            .front()
            .map(|written| (Arc::clone(&written.segment), written.position));
        self.shared.insert_segment(Arc::clone(&fresh.segment));
        let mut shed = Shed::default();
        if let Some(failed) = self.active.replace(fresh) {
            failed.segment.set_failed();
            shed = self.shed(failed, durable, first_lost);
        }
        self.chain = ChainEnd {
            durable: durable.durable,
            ..chain
        };
        shed
    }

    /// Keeps of the failed segments what is durable.
    fn shed(
        &self,
        mut failed: Active,
        durable: ChainEnd,
        first_lost: Option<(Arc<Segment>, u64)>,
    ) -> Shed {
        let mut shed = Shed::default();
        let mut work = self.shared.work.lock();
        let full = std::mem::take(&mut work.sealing);
        let (whole, mut cut): (Vec<Sealing>, Vec<Sealing>) = full
            .into_iter()
            .partition(|full| full.summary.last_round <= durable.round);
        work.sealing = whole.into();
        if failed.has_rounds() {
            if let Some((segment, position)) = &first_lost
                && Arc::ptr_eq(segment, &failed.segment)
            {
                failed.position = *position;
            }
            cut.push(failed.into_sealing(durable, self.last_written));
        } else {
            // Its header may be there all the same.
            work.doomed.push(failed.segment);
        }
        for mut full in cut {
            if full.summary.first_round > durable.round {
                shed.doomed.push(full.segment);
                continue;
            }
            if full.summary.last_round > durable.round
                && let Some((_, position)) = &first_lost
            {
                full.summary.last_round = durable.round;
                full.summary.last_checksum = durable.checksum;
                full.summary.data_end = *position;
                full.segment.set_end(*position, durable.round);
            }
            shed.sealing.push(full);
        }
        self.shared.work.wake(work);
        shed
    }

    /// All of it that was readable is said to be elsewhere: no reader looks for it there any more, and
    /// no footer names it.
    fn let_go(&self, shed: Shed) {
        for segment in &shed.doomed {
            self.shared.remove_segment(segment.id());
        }
        let mut work = self.shared.work.lock();
        work.sealing.extend(shed.sealing);
        work.doomed.extend(shed.doomed);
        self.shared.work.wake(work);
    }

    /// Points the index at the rounds' new places, and puts those that were not readable yet into
    /// the queue of written ones.
    pub(crate) fn retarget(
        &mut self,
        old_rounds: Vec<OldRound>,
        puts: Vec<super::fresh::PutRound>,
    ) {
        let mut before = std::mem::take(&mut self.unsettled);
        self.unsynced_bytes = 0;
        let segment = Arc::clone(&self.active.as_ref().expect("BUG: just taken over").segment);
        for (old, put) in old_rounds.into_iter().zip(puts) {
            segment.file.publish(put.position + put.bytes);
            let published = before.pop_front().is_some_and(|written| written.published);
            for run in &put.runs {
                let Some(known) = self.shards.get_mut(&run.shard) else {
                    continue;
                };
                known.end = known.end.max(run.end);
                if !published {
                    continue;
                }
                let moved = known.cell.lock().move_run(Run::new(segment.id(), run));
                if let (Some(previous), Some(active)) = (moved, &mut self.active) {
                    active.touched.push(Touched {
                        cell: Arc::clone(&known.cell),
                        previous,
                    });
                }
            }
            self.unsynced_bytes += put.bytes;
            self.shared.written.fetch_add(put.bytes, Ordering::Relaxed);
            self.shared.work.stir();
            if !old.frames.is_empty() || !old.controls.is_empty() {
                self.last_loaded_round = self.last_loaded_round.max(put.round);
            }
            self.unsettled.push_back(WrittenRound {
                round: put.round,
                segment: Arc::clone(&segment),
                position: put.position,
                bytes: put.bytes,
                checksum: put.checksum,
                vouches: self.chain.durable,
                runs: put.runs,
                controls: old.controls,
                published,
            });
        }
    }
}

/// A written round as the page cache has it, verified.
fn read_back(written: &WrittenRound) -> io::Result<OldRound> {
    let end = written.position + written.bytes;
    let segment = &written.segment;
    let mut window = Window::new(&*segment.file, end);
    let damaged = || {
        let what = "an un-synced round does not verify in the page cache";
        io::Error::new(io::ErrorKind::InvalidData, what)
    };
    let found = read_header(
        &mut window,
        RoundOwner::of(&segment.header),
        written.position,
    )?
    .filter(|found| found.header.round == written.round && found.checksum == written.checksum)
    .ok_or_else(damaged)?;
    let frames = read_frames(&mut window, &found, written.position)?;
    if !frames.is_intact() {
        return Err(damaged());
    }
    Ok(OldRound {
        frames: frames
            .frames
            .iter()
            .map(crate::round::FoundFrame::to_new)
            .collect(),
        controls: found.control,
        catalog: found.header.catalog,
        written: found.header.written,
        flags: found.header.flags,
    })
}
