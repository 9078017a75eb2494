//! Freeing segments in which every run is trimmed, copying those that are mostly dead.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use flumen_record::{SequenceNumber, Timestamp};

use super::{Housekeeper, HousekeepingReport, copies};
use crate::footer::FooterRow;
use crate::footer_cache::IndexLook;
use crate::segment::{FooterPlace, Look, Segment};
use crate::shared::{count, elapsed};

/// Segments looked at in one step.
const SEGMENTS_PER_STEP: usize = 64;
/// Looking at all segments again waits this long, however often something is trimmed.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// A sweep keeps the housekeeper busy for a twentieth of the time at most, if looking at a shard's
/// row takes half a microsecond.
const PAUSE_PER_ROW: Duration = Duration::from_micros(10);
/// However many rows there are, no more is written to the log between two sweeps than this, or …
const GROWTH_MIN: u64 = 64 << 20;
/// … than this part of what it holds.
const GROWTH_SHARE: u64 = 16;
/// What was found in a segment is believed this long, as the bytes that were trimmed are estimates.
const LOOK_AGAIN: Duration = Duration::from_secs(600);
/// Segments with less data than this are not worth a copy.
const COPY_FROM: u64 = 64 << 10;
/// Nor is one that will be free this soon if it is trimmed on as it was.
const FREE_SOON: Duration = Duration::from_secs(30);

/// Where the look through all segments is.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    /// The segment looked at last; `None`: no sweep is under way.
    at: Option<u64>,
    began: Timestamp,
    /// Rows looked at in this sweep, or the last one.
    pub(super) rows: u64,
    /// Those worth a copy so far: live bytes per mille, and which.
    worth_a_copy: Vec<(u64, u64)>,
}

impl Sweep {
    /// In how long the next one may begin:
    /// however many rows the last one looked at, by when the log has grown by too much (`growth`).
    pub(super) fn due(&self, now: Timestamp, below_floor: bool, growth: Duration) -> Duration {
        let rows = u32::try_from(self.rows).unwrap_or(u32::MAX);
        let pause = if below_floor {
            SWEEP_INTERVAL / 5
        } else {
            let by_rows = PAUSE_PER_ROW.saturating_mul(rows);
            by_rows.min(growth).max(SWEEP_INTERVAL)
        };
        pause.saturating_sub(elapsed(self.began, now))
    }
}

/// How much of a segment is still wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Liveness {
    pub(super) live: u64,
    pub(super) total: u64,
}

impl Housekeeper {
    /// Looks at the next few segments of a sweep, and acts on them.
    pub(super) fn reclaim(
        &mut self,
        now: Timestamp,
        report: &mut HousekeepingReport,
    ) -> io::Result<()> {
        let below_floor = self.is_below_floor();
        if self.has_leftovers() {
            return Ok(());
        }
        if self.sweep.at.is_none() && !self.begin_sweep(now, below_floor) {
            return self.copy_next(now, below_floor, report);
        }
        let from = self.sweep.at.unwrap_or(0);
        let segments = self.shared.all_segments();
        let last = segments.last().map_or(0, |segment| segment.id());
        let mut looked = 0;
        for segment in segments
            .iter()
            .filter(|segment| segment.id() > from && segment.id() < last)
        {
            self.sweep.at = Some(segment.id());
            if !below_floor && let Some(known) = self.known_liveness(segment, now) {
                self.consider_copy(segment, known, below_floor);
                continue;
            }
            let before = segment.last_look();
            if let Some(liveness) = self.liveness(segment, now)? {
                if liveness.live == 0 && self.may_free(segment) {
                    drop(segments);
                    report.more = true;
                    return self.free(report);
                }
                if below_floor || before.is_some_and(|before| lasts(&before, liveness, now)) {
                    self.consider_copy(segment, liveness, below_floor);
                } else if liveness.live * 2 < liveness.total {
                    // It may be trimmed further while it would be copied: look again first.
                    self.shared.work.lock().reclaim = true;
                }
            }
            looked += 1;
            if looked >= SEGMENTS_PER_STEP {
                report.more = true;
                return Ok(());
            }
        }
        drop(segments);
        self.sweep.at = None;
        let worth_a_copy = std::mem::take(&mut self.sweep.worth_a_copy);
        if !worth_a_copy.is_empty() {
            self.shared.work.lock().reclaim = true;
        }
        self.copies.plan(worth_a_copy);
        self.copy_next(now, below_floor, report)
    }

    /// Copies the deadest segment that waits for it, if the disk has been left alone for long enough.
    fn copy_next(
        &mut self,
        now: Timestamp,
        below_floor: bool,
        report: &mut HousekeepingReport,
    ) -> io::Result<()> {
        let written = self.shared.written.load(Ordering::Relaxed);
        let rate = (!below_floor).then(|| copies::rate(self.pace.look(now, written)));
        let Some(id) = self.copies.next(now, rate) else {
            return Ok(());
        };
        report.more |= self.copies.are_waiting();
        let Some(segment) = self.shared.segment(id) else {
            return Ok(());
        };
        // It may have been trimmed further since.
        match self.liveness(&segment, now)? {
            Some(Liveness { live: 0, .. }) | None => {
                self.shared.work.lock().reclaim = true;
                Ok(())
            }
            Some(Liveness { live, total }) => {
                drop(segment);
                self.copies.spend(live.saturating_add(total));
                self.copy(id, report)
            }
        }
    }

    /// Whether there are files which later segments have replaced: they would stand for those again
    /// if those were gone first.
    pub(super) fn has_leftovers(&self) -> bool {
        let work = self.shared.work.lock();
        !work.discarded.is_empty() || !work.superseded.is_empty() || !work.doomed.is_empty()
    }

    /// Starts a sweep when something may have become reclaimable.
    fn begin_sweep(&mut self, now: Timestamp, below_floor: bool) -> bool {
        let growth = self.growth();
        let mut work = self.shared.work.lock();
        if !work.reclaim || !self.sweep.due(now, below_floor, growth).is_zero() {
            return false;
        }
        work.reclaim = false;
        // What the active segment holds can only be freed once it is not the active one any more.
        let wanted = self.shared.roll.swap(below_floor, Ordering::AcqRel);
        drop(work);
        if below_floor
            && !wanted
            && let Some(writer) = self.shared.work.writer.get()
        {
            writer.wake();
        }
        self.sweep.at = Some(0);
        self.sweep.began = now;
        self.sweep.rows = 0;
        self.sweep.worth_a_copy.clear();
        true
    }

    /// How long it takes the log to grow by so much that what is dead of it must be looked for.
    pub(super) fn growth(&self) -> Duration {
        let growth = GROWTH_MIN.max(self.shared.file_bytes() / GROWTH_SHARE);
        Duration::from_secs(growth / self.pace.rate().max(1))
    }

    /// What the last look found, unless enough was trimmed since that the segment may have become
    /// free, or worth a copy. Looking means reading every row.
    fn known_liveness(&self, segment: &Segment, now: Timestamp) -> Option<Liveness> {
        let look = segment.last_look()?;
        let trimmed = &self.shared.trimmed;
        let bytes = trimmed.bytes.load(Ordering::Relaxed) - look.trimmed_bytes;
        let shards = trimmed.shards.load(Ordering::Relaxed) - look.forgotten_shards;
        let to_copy = look.live.saturating_sub(look.total / 2);
        let missing = if to_copy > 0 { to_copy } else { look.live };
        let stale = shards > 0 || bytes >= missing / 4 || elapsed(look.at, now) >= LOOK_AGAIN;
        (!stale).then_some(Liveness {
            live: look.live,
            total: look.total,
        })
    }

    /// `None` while the segment has no footer.
    fn liveness(&mut self, segment: &Arc<Segment>, now: Timestamp) -> io::Result<Option<Liveness>> {
        let trimmed = &self.shared.trimmed;
        let trimmed_bytes = trimmed.bytes.load(Ordering::Relaxed);
        let forgotten_shards = trimmed.shards.load(Ordering::Relaxed);
        let mut sum = Liveness { live: 0, total: 0 };
        let Some(index) = self.shared.index_of(segment)? else {
            return Ok(None);
        };
        for row in index.rows() {
            sum.total += row.bytes;
            sum.live += self.live_bytes(segment, &index, row)?;
        }
        self.sweep.rows += index.rows().len() as u64;
        segment.set_look(Look {
            at: now,
            live: sum.live,
            total: sum.total,
            trimmed_bytes,
            forgotten_shards,
        });
        Ok(Some(sum))
    }

    fn live_bytes(
        &self,
        segment: &Arc<Segment>,
        index: &IndexLook,
        row: &FooterRow,
    ) -> io::Result<u64> {
        let horizon = self.live_from(row);
        if horizon >= row.end {
            return Ok(0);
        }
        if horizon <= row.base {
            return Ok(row.bytes);
        }
        let runs = self.shared.runs_of(segment, index, row)?;
        let live = runs.iter().filter(|run| run.end > horizon);
        Ok(live.map(|run| u64::from(run.bytes)).sum())
    }

    /// The shard's durable horizon: what is below may go.
    pub(super) fn live_from(&self, row: &FooterRow) -> SequenceNumber {
        match self.shared.index.get(row.shard) {
            Some(cell) => cell.lock().durable_horizon,
            None if self.shared.forgetting().contains(&row.shard) => SequenceNumber::ZERO,
            None => SequenceNumber::MAX,
        }
    }

    /// A segment can go once a later one has taken over what it says of shards, the disk says that
    /// all of it was durable, and the one before it has a footer: without one, what follows it is
    /// where its end is looked for, and that it failed is said there only.
    fn may_free(&self, segment: &Segment) -> bool {
        let segments = self.shared.all_segments();
        let place = segments.partition_point(|other| other.id() < segment.id());
        let vouched = self.shared.vouched_round.load(Ordering::Acquire);
        let later = segments.get(place + 1).is_some_and(|later| {
            let header = &later.header;
            header.continues_after < self.shared.durable_round()
                && header.continues_after <= header.last_durable.max(vouched)
        });
        let before = place.checked_sub(1).and_then(|before| segments.get(before));
        let sealed = |before: &Arc<Segment>| matches!(before.footer(), FooterPlace::Disk(_));
        later && before.is_none_or(sealed)
    }

    /// Takes the segment of the sweep out of the log.
    fn free(&mut self, report: &mut HousekeepingReport) -> io::Result<()> {
        let id = self.sweep.at.unwrap_or(0);
        if let Some(place) = self
            .resident
            .iter()
            .position(|kept| kept.segment.id() == id)
            && let Some(resident) = self.resident.remove(place)
        {
            // Shards that rest since would keep the runs for ever.
            resident.release();
        }
        if let Some(segment) = self.shared.remove_segment(id) {
            self.shared.footers.forget(id);
            report.freed += 1;
            self.retire(segment, report)?;
        }
        Ok(())
    }

    /// Uses the file of a segment that left the log again, or unlinks it.
    pub(super) fn retire(
        &mut self,
        segment: Arc<Segment>,
        report: &mut HousekeepingReport,
    ) -> io::Result<()> {
        let has_hole = matches!(segment.footer(), FooterPlace::Disk(trailer) if trailer.has_hole);
        let usable = !segment.is_failed() && !has_hole && self.wants_file_of(segment.file.bytes());
        let path = segment.path.clone();
        match Arc::try_unwrap(segment) {
            Ok(segment) if usable && !segment.file.is_held() => {
                drop(segment);
                if let Some(prepared) = self.recycle(&path)? {
                    count(&self.shared.counters.segments_recycled, 1);
                    self.put_prepared(prepared, report);
                    return Ok(());
                }
            }
            Ok(segment) => self.retired.push(Arc::new(segment)),
            Err(segment) => self.retired.push(segment),
        }
        self.shared.storage.remove(&path)?;
        self.shared.storage.sync_dir(&self.shared.dir)
    }

    /// Lets go of unlinked segments that nobody reads any more, and counts the others.
    pub(super) fn drop_retired(&mut self) {
        self.retired
            .retain(|segment| Arc::strong_count(segment) > 1 || segment.file.is_held());
        let pinned = self
            .retired
            .iter()
            .map(|segment| segment.file.bytes())
            .sum();
        self.shared
            .counters
            .pinned_bytes
            .store(pinned, Ordering::Relaxed);
    }

    fn consider_copy(&mut self, segment: &Segment, liveness: Liveness, below_floor: bool) {
        let mostly_dead = liveness.live * 2 < liveness.total;
        let worth = below_floor && liveness.live < liveness.total;
        let resident = self
            .resident
            .iter()
            .any(|kept| kept.segment.id() == segment.id());
        if segment.is_failed() || resident || liveness.total < COPY_FROM {
            return;
        }
        let Some(share) = (liveness.live * 1000).checked_div(liveness.total) else {
            return;
        };
        if mostly_dead || worth {
            self.sweep.worth_a_copy.push((share, segment.id()));
        }
    }
}

/// Whether what is live of a segment will be for a while, by what was trimmed of it since the look
/// before: what is about to be free needs no copy.
fn lasts(before: &Look, now_live: Liveness, now: Timestamp) -> bool {
    let trimmed = u128::from(before.live.saturating_sub(now_live.live));
    let passed = elapsed(before.at, now).as_millis();
    trimmed * FREE_SOON.as_millis() <= u128::from(now_live.live) * passed
}
