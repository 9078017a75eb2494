//! Looking older runs up in footers, by sequence number; what searches by time and by bytes share.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use flumen_record::{SequenceNumber, ShardId};

use super::{LOOKS, LogReader, Lookup, Plan, take_runs};
use crate::checksum;
use crate::error::ReadError;
use crate::footer::FooterRow;
use crate::footer_cache::IndexLook;
use crate::index::{ColdStart, Run, ShardCell};
use crate::round::PlacedFrame;
use crate::segment::Segment;

/// A shard's part of one older segment, as one look found it.
pub(super) struct Found {
    pub(super) segment: Arc<Segment>,
    index: IndexLook,
    pub(super) row: FooterRow,
}

/// A run with the segment it was found in, held: a copy has its bytes elsewhere.
pub(super) struct PlacedRun {
    pub(super) run: Run,
    pub(super) segment: Option<Arc<Segment>>,
}

fn io_error(segment: &Segment, source: io::Error) -> ReadError {
    ReadError::Io {
        segment: segment.file_name(),
        source,
    }
}

impl LogReader {
    /// A shard's part of segment `id`, by one look. `None`: it is gone, or holds nothing of the shard.
    pub(super) fn row(&self, id: u64, shard: ShardId) -> Result<Option<Found>, ReadError> {
        let Some(segment) = self.shared.segment(id) else {
            return Ok(None);
        };
        let index = self
            .shared
            .index_of(&segment)
            .map_err(|source| io_error(&segment, source))?;
        Ok(index.and_then(|index| {
            let row = *index.row(shard)?;
            Some(Found {
                segment,
                index,
                row,
            })
        }))
    }

    pub(super) fn runs(&self, found: &Found) -> Result<Arc<[Run]>, ReadError> {
        self.shared
            .runs_of(&found.segment, &found.index, &found.row)
            .map_err(|source| io_error(&found.segment, source))
    }

    /// Walks back from `start` while `is_after` says that a segment begins after what is looked
    /// for. Returns the segment where to look and the one after it, as far as there are any.
    pub(super) fn walk_back(
        &self,
        cell: &ShardCell,
        start: ColdStart,
        is_after: impl Fn(&FooterRow) -> bool,
    ) -> Result<(Option<Found>, u64), ReadError> {
        let mut id = start.from_segment;
        let mut next = start.next_segment;
        let mut upper = start.upper;
        while id != 0 && cell.lock().may_hold_before(upper) {
            let Some(found) = self.row(id, cell.shard)? else {
                // It is gone with what was trimmed, or was named for want of a better one.
                id = self.shared.segment_before(id);
                continue;
            };
            if !is_after(&found.row) {
                return Ok((Some(found), next));
            }
            next = id;
            upper = found.row.base;
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
        let (found, next) = self.walk_back(&cell, start, |row| row.base > from)?;
        let mut runs = Vec::new();
        let mut segments = Vec::new();
        if let Some(found) = found
            && found.row.end > from
        {
            runs = self.runs_from(&found, from, budget)?;
            segments = vec![found.segment];
        }
        if runs.is_empty() && next != 0 {
            let Some(found) = self.row(next, shard)? else {
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

    /// A run in memory, with what it is in: the shard is locked, so that it is no copy.
    pub(super) fn place(&self, run: &Run) -> PlacedRun {
        PlacedRun {
            run: *run,
            segment: self.shared.segment(run.segment),
        }
    }
}

impl PlacedRun {
    /// `Ok(None)`: its segment is gone.
    pub(super) fn bytes(&self) -> Result<Option<Bytes>, ReadError> {
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

    /// Whether the header of one of its frames is as it was written.
    pub(super) fn vouches_for(&self, frame: &PlacedFrame) -> bool {
        let Some(segment) = &self.segment else {
            return false;
        };
        let position = u64::from(self.run.position) + frame.range.start as u64;
        let seed = checksum::seed(segment.header.salt, position);
        let expected = frame.header.expected_checksum(frame.batch.checksum, seed);
        expected == frame.header.checksum
    }
}
