//! The background work of a log: footers, segments made ready, space reclaimed.

mod copies;
mod copy;
mod due;
mod hot;
mod prepare;
mod reclaim;
mod seal;
#[cfg(test)]
mod tests;
mod verify;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use flumen_record::Timestamp;

use crate::error::OpenError;
use crate::segment::Segment;
use crate::shared::Shared;
use crate::work::Touched;

pub use due::{Bell, WriterBell};

/// What one step of housekeeping did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HousekeepingReport {
    /// Segments freed (recycled or unlinked).
    pub freed: u32,
    /// Segments copied, live runs only.
    pub copied: u32,
    /// Segments made ready.
    pub prepared: u32,
    /// Segments that got their footer.
    pub sealed: u32,
    /// More to do at once.
    pub more: bool,
}

/// Prepares segments ahead, frees dead ones, copies half-dead ones, watches free space. One per
/// log, in a loop of its own ([`Housekeeper::turn`]); never slows the writer.
#[derive(Debug)]
pub struct Housekeeper {
    shared: Arc<Shared>,
    /// Sealed segments whose runs are still in memory, ascending.
    resident: VecDeque<Resident>,
    /// Segments that left the log and are still held by readers.
    retired: Vec<Arc<Segment>>,
    sweep: reclaim::Sweep,
    copies: copies::Copies,
    pace: prepare::Pace,
    hot: hot::HotClock,
    verified: verify::Verified,
    /// What was written, and the last durable round, when it last came to rest.
    seen: (u64, u64),
}

/// A sealed segment whose runs are still in memory.
#[derive(Debug)]
struct Resident {
    segment: Arc<Segment>,
    touched: Vec<Touched>,
    runs: usize,
}

impl Housekeeper {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            resident: VecDeque::new(),
            retired: Vec::new(),
            sweep: reclaim::Sweep::default(),
            copies: copies::Copies::default(),
            pace: prepare::Pace::default(),
            hot: hot::HotClock::default(),
            verified: verify::Verified::default(),
            seen: (0, 0),
        }
    }

    /// One bounded step. Blocks on the disk.
    pub fn step(&mut self, now: Timestamp) -> Result<HousekeepingReport, OpenError> {
        let mut report = HousekeepingReport::default();
        if self.shared.look_when_due(now).is_err() {
            return Ok(report);
        }
        self.shared.refresh_space();
        self.run_step(now, &mut report)
            .map_err(|source| OpenError::Io {
                path: self.shared.dir.clone(),
                source,
            })?;
        Ok(report)
    }

    fn run_step(&mut self, now: Timestamp, report: &mut HousekeepingReport) -> io::Result<()> {
        self.hot.tick(&self.shared, now);
        self.seal_next(report)?;
        self.release_memory();
        self.verify_next();
        self.drop_files(report)?;
        self.reclaim(now, report)?;
        self.drop_retired();
        // Space that comes back goes first: it may be the next segment, and writing one ahead takes
        // seconds, in which a busy log would fill more than is freed.
        if report.freed == 0 {
            self.prepare(now, report)?;
        }
        Ok(())
    }

    fn is_below_floor(&self) -> bool {
        self.shared.free_bytes() < self.shared.floor_bytes()
    }

    /// How far back the log was at the start of a segment of this process, seen from now.
    fn age_in_bytes(&self, segment: &Segment) -> u64 {
        let written = self.shared.written.load(Ordering::Relaxed);
        segment
            .written_before
            .map_or(u64::MAX, |before| written.saturating_sub(before))
    }
}
