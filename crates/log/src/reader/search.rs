//! Looking older runs up in footers: by sequence number, by time, by bytes from the end.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use flumen_record::{SequenceNumber, ShardId, Timestamp};

use super::{LOOKS, LogReader, Lookup, Plan, take_runs};
use crate::error::ReadError;
use crate::footer::FooterRow;
use crate::footer_cache::IndexLook;
use crate::index::{ColdStart, Run};
use crate::round::FrameWalk;
use crate::segment::Segment;

/// A shard's part of one older segment, as one look found it.
pub(super) struct Found {
    pub(super) segment: Arc<Segment>,
    index: IndexLook,
    row: FooterRow,
}

/// What one look for a shard in an older segment brought.
pub(super) enum RowLook {
    /// The segment is not there: it was freed, so that it held trimmed runs only.
    Gone,
    /// It is there, and holds nothing of the shard.
    Without,
    Found(Box<Found>),
}

impl RowLook {
    fn found(self) -> Option<Found> {
        match self {
            Self::Found(found) => Some(*found),
            Self::Gone | Self::Without => None,
        }
    }
}

/// A run with the segment it was found in, held: a copy has its bytes elsewhere.
struct PlacedRun {
    run: Run,
    segment: Option<Arc<Segment>>,
}

fn io_error(segment: &Segment, source: io::Error) -> ReadError {
    ReadError::Io {
        segment: segment.file_name(),
        source,
    }
}

impl LogReader {
    pub(super) fn row(&self, id: u64, shard: ShardId) -> Result<RowLook, ReadError> {
        let Some(segment) = self.shared.segment(id) else {
            return Ok(RowLook::Gone);
        };
        let index = self
            .shared
            .footers
            .look(&segment)
            .map_err(|source| io_error(&segment, source))?;
        let found = index.and_then(|index| {
            let row = *index.row(shard)?;
            Some(Found {
                segment,
                index,
                row,
            })
        });
        Ok(found.map_or(RowLook::Without, |found| RowLook::Found(Box::new(found))))
    }

    pub(super) fn runs(&self, found: &Found) -> Result<Arc<[Run]>, ReadError> {
        self.shared
            .footers
            .runs(&found.segment, &found.index, &found.row)
            .map_err(|source| io_error(&found.segment, source))
    }

    /// Walks back from `start` while `is_after` says that a segment begins after what is looked
    /// for. Returns the segment where to look and the one after it, as far as there are any.
    fn walk_back(
        &self,
        shard: ShardId,
        start: ColdStart,
        is_after: impl Fn(&FooterRow) -> bool,
    ) -> Result<(Option<Found>, u64), ReadError> {
        let mut id = start.from_segment;
        let mut next = start.next_segment;
        let mut exact = true;
        while id != 0 {
            let found = match self.row(id, shard)? {
                RowLook::Found(found) => *found,
                RowLook::Gone if exact => break,
                // It was named for want of a better one.
                RowLook::Gone | RowLook::Without => {
                    exact = false;
                    id = self.shared.segment_before(id);
                    continue;
                }
            };
            if !is_after(&found.row) {
                return Ok((Some(found), next));
            }
            exact = true;
            next = id;
            id = found.row.previous;
        }
        Ok((None, next))
    }

    /// The run that holds `from`, or the next after it; `None` at the end.
    pub(crate) fn first_run(
        &self,
        shard: ShardId,
        from: SequenceNumber,
    ) -> Result<Option<Run>, ReadError> {
        for _ in 0..LOOKS {
            let plan = match self.look_up(shard, from, 1)? {
                Lookup::Recent(plan) => Some(plan),
                Lookup::Cold => self.look_up_cold(shard, from, 1)?,
            };
            if let Some(plan) = plan {
                return Ok(plan.runs.first().copied());
            }
        }
        Err(self.keeps_moving())
    }

    /// The runs from `from` on, by footers. `Ok(None)`: the index moved meanwhile, look up again.
    pub(super) fn look_up_cold(
        &self,
        shard: ShardId,
        from: SequenceNumber,
        budget: usize,
    ) -> Result<Option<Plan>, ReadError> {
        let cell = self.cell(shard)?;
        let (start, in_memory_from) = {
            let state = cell.lock();
            (state.cold_start(from), state.before_recent)
        };
        let (found, next) = self.walk_back(shard, start, |row| row.base > from)?;
        let mut runs = Vec::new();
        let mut segments = Vec::new();
        if let Some(found) = found
            && found.row.end > from
        {
            runs = self.runs_from(&found, from, budget)?;
            segments = vec![found.segment];
        }
        if runs.is_empty() && next != 0 {
            let Some(found) = self.row(next, shard)?.found() else {
                return Ok(None);
            };
            runs = self.runs_from(&found, from, budget)?;
            segments = vec![found.segment];
        }
        let state = cell.lock();
        if from < state.horizon {
            // Trimmed meanwhile, and what held it may be freed: that is no loss.
            return Err(ReadError::Trimmed {
                asked: from,
                horizon: state.horizon,
            });
        }
        if runs.is_empty() {
            if state.before_recent != in_memory_from {
                // Runs left memory meanwhile: what comes next may be among them.
                return Ok(None);
            }
            let Some(first) = state.recent.front() else {
                // Nothing is left above: a jump, or what is hidden.
                return self.plan(shard, &state, from, runs, segments).map(Some);
            };
            if first.end <= from {
                return Ok(None);
            }
            runs = take_runs(state.recent.iter(), budget);
            segments = self.segments_of(&runs);
        }
        self.plan(shard, &state, from, runs, segments).map(Some)
    }

    fn runs_from(
        &self,
        found: &Found,
        from: SequenceNumber,
        budget: usize,
    ) -> Result<Vec<Run>, ReadError> {
        let runs = self.runs(found)?;
        let place = runs.partition_point(|run| run.end <= from);
        Ok(take_runs(runs.iter().skip(place), budget))
    }

    pub(super) fn search_time(
        &self,
        shard: ShardId,
        at: Timestamp,
    ) -> Result<SequenceNumber, ReadError> {
        let cell = self.cell(shard)?;
        for _ in 0..16 {
            let (start, in_memory, end, horizon) = {
                let state = cell.lock();
                let recent_from = state.recent.front().map(|run| run.arrival);
                let cold = state.before_recent != 0 && recent_from.is_none_or(|first| first >= at);
                let place = state.recent.partition_point(|run| run.last_arrival < at);
                let run = state.recent.get(place).map(|run| self.place(run));
                let start = cold.then(|| state.cold_start_at(at));
                (start, run, state.end, state.horizon)
            };
            let mut run = in_memory;
            if let Some(start) = start {
                let Some(cold) = self.run_at_time(shard, start, at)? else {
                    continue;
                };
                run = cold.or(run);
            }
            let Some(run) = run else {
                return Ok(end.max(horizon));
            };
            if let Some(found) = frame_at_time(&run, at)? {
                return Ok(found.clamp(horizon, end));
            }
        }
        Ok(cell.lock().horizon)
    }

    /// The first older run whose last batch arrived at or after `at`. The outer `None`: the index
    /// moved meanwhile; the inner: there is none.
    fn run_at_time(
        &self,
        shard: ShardId,
        start: ColdStart,
        at: Timestamp,
    ) -> Result<Option<Option<PlacedRun>>, ReadError> {
        let (found, next) = self.walk_back(shard, start, |row| row.arrival >= at)?;
        for found in [found, self.row(next, shard)?.found()]
            .into_iter()
            .flatten()
        {
            let runs = self.runs(&found)?;
            let place = runs.partition_point(|run| run.last_arrival < at);
            if let Some(run) = runs.get(place) {
                return Ok(Some(Some(PlacedRun {
                    run: *run,
                    segment: Some(found.segment),
                })));
            }
        }
        Ok(Some(None))
    }

    /// A run in memory, with what it is in: the shard is locked, so that it is no copy.
    fn place(&self, run: &Run) -> PlacedRun {
        PlacedRun {
            run: *run,
            segment: self.shared.segment(run.segment),
        }
    }

    pub(super) fn search_bytes_from_end(
        &self,
        shard: ShardId,
        bytes: u64,
    ) -> Result<SequenceNumber, ReadError> {
        let cell = self.cell(shard)?;
        let (mut left, mut boundary, before, horizon, inside) = {
            let state = cell.lock();
            let mut left = bytes;
            let mut boundary = state.end;
            let mut inside = None;
            for run in state.recent.iter().rev() {
                if u64::from(run.bytes) > left {
                    inside = Some(self.place(run));
                    break;
                }
                left -= u64::from(run.bytes);
                boundary = run.base;
            }
            (left, boundary, state.before_recent, state.horizon, inside)
        };
        if let Some(run) = inside {
            return Ok(boundary_in(&run, left)?.unwrap_or(boundary).max(horizon));
        }
        let mut id = before;
        while id != 0 && boundary > horizon {
            let Some(found) = self.row(id, shard)?.found() else {
                id = self.shared.segment_before(id);
                continue;
            };
            id = found.row.previous;
            if found.row.bytes <= left {
                left -= found.row.bytes;
                boundary = found.row.base;
                continue;
            }
            for run in self.runs(&found)?.iter().rev() {
                if u64::from(run.bytes) > left {
                    let run = PlacedRun {
                        run: *run,
                        segment: Some(found.segment),
                    };
                    return Ok(boundary_in(&run, left)?.unwrap_or(boundary).max(horizon));
                }
                left -= u64::from(run.bytes);
                boundary = run.base;
            }
        }
        Ok(boundary.max(horizon))
    }
}

impl PlacedRun {
    /// `Ok(None)`: its segment is gone.
    fn bytes(&self) -> Result<Option<Bytes>, ReadError> {
        let Some(segment) = &self.segment else {
            return Ok(None);
        };
        let mut buffer = vec![0; self.run.bytes as usize];
        segment
            .file
            .read_at(&mut buffer, u64::from(self.run.position))
            .map_err(|source| io_error(segment, source))?;
        Ok(Some(buffer.into()))
    }
}

/// The first batch of a run that arrived at or after `at`. `Ok(None)`: its segment is gone.
fn frame_at_time(placed: &PlacedRun, at: Timestamp) -> Result<Option<SequenceNumber>, ReadError> {
    if placed.run.arrival >= at {
        return Ok(Some(placed.run.base));
    }
    let Some(bytes) = placed.bytes()? else {
        return Ok(None);
    };
    let frame = FrameWalk::new(&bytes).find(|frame| frame.header.arrival >= at);
    let found = frame.map_or(placed.run.end, |frame| frame.header.base);
    Ok(Some(found))
}

/// The first batch of a run from which on at most `left` bytes of it remain. `Ok(None)`: its
/// segment is gone.
fn boundary_in(placed: &PlacedRun, left: u64) -> Result<Option<SequenceNumber>, ReadError> {
    let Some(bytes) = placed.bytes()? else {
        return Ok(None);
    };
    let total = bytes.len() as u64;
    let frame = FrameWalk::new(&bytes)
        .find(|frame| total - frame.range.start as u64 <= left)
        .map(|frame| frame.header.base);
    Ok(Some(frame.unwrap_or(placed.run.end)))
}
