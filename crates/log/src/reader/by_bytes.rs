//! Adding up the stored bytes of a shard, from its end back.

use flumen_record::{SequenceNumber, ShardId};

use super::search::PlacedRun;
use super::{LOOKS, LogReader, SearchAnswer};
use crate::error::ReadError;
use crate::index::{Run, ShardCell};
use crate::round::{FrameWalk, PlacedFrame};
use crate::stay::Stay;

/// What was added up so far.
#[derive(Debug)]
struct Sum {
    /// Bytes from `boundary` to the end that were found; at most `limit`.
    bytes: u64,
    limit: u64,
    /// First number of what they are.
    boundary: SequenceNumber,
    horizon: SequenceNumber,
}

/// Whether adding up goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Added {
    /// There was room.
    Whole,
    /// The limit lies within, or the horizon does.
    Part,
    /// What it lies in is gone: to be looked up again.
    Gone,
}

impl Sum {
    fn is_over(&self) -> bool {
        self.boundary <= self.horizon
    }

    fn add(&mut self, base: SequenceNumber, bytes: u64) -> bool {
        let fits = bytes <= self.limit - self.bytes;
        if fits {
            self.bytes += bytes;
            self.boundary = self.boundary.min(base);
        }
        fits
    }

    /// Adds a run in front of what was added so far; of one that the horizon or the limit lies in,
    /// what follows them.
    fn add_run(
        &mut self,
        run: &Run,
        placed: impl FnOnce() -> PlacedRun,
    ) -> Result<Added, ReadError> {
        if run.end > self.boundary {
            return Ok(Added::Whole);
        }
        if run.base >= self.horizon && self.add(run.base, u64::from(run.bytes)) {
            return Ok(Added::Whole);
        }
        let placed = placed();
        let Some(bytes) = placed.bytes()? else {
            return Ok(Added::Gone);
        };
        let frames: Vec<PlacedFrame> = FrameWalk::new(&bytes)
            .take_while(|frame| placed.vouches_for(frame))
            .collect();
        let mut end = run.end;
        for frame in frames.iter().rev() {
            // Behind one that does not verify nobody knows what is how long.
            let follows = frame.end() == end && frame.header.base >= self.horizon;
            let length = frame.range.len() as u64;
            if !follows || !self.add(frame.header.base, length) {
                break;
            }
            end = frame.header.base;
        }
        Ok(Added::Part)
    }
}

impl LogReader {
    /// The first batch boundary such that at most `limit` bytes of the stay follow it.
    pub(super) fn search_bytes_from_end(
        &self,
        shard: ShardId,
        stay: &Stay,
        limit: u64,
    ) -> Result<SearchAnswer, ReadError> {
        let sum = self.add_up(shard, stay, limit)?;
        Ok(sum.map_or(SearchAnswer::Unknown, |sum| {
            SearchAnswer::At(sum.boundary.max(sum.horizon))
        }))
    }

    /// Stored bytes that are kept of a stay. Where they are all there are of the shard they replace the
    /// estimate. `None`: the index moved on all the time.
    pub(super) fn add_up_all(&self, shard: ShardId, stay: &Stay) -> Result<Option<u64>, ReadError> {
        let cell = self.cell(shard)?;
        let (horizon, estimate) = {
            let state = cell.lock();
            (state.horizon, state.stored_bytes)
        };
        let Some(sum) = self.add_up(shard, stay, u64::MAX)? else {
            return Ok(None);
        };
        let mut state = cell.lock();
        let is_all = stay.from() <= horizon && stay.to().is_none_or(|to| to >= state.end);
        // What was appended meanwhile is in one or the other; it is looked at again.
        if is_all && state.horizon == horizon && state.stored_bytes == estimate {
            state.stored_bytes = sum.bytes;
            state.bytes_are_exact = true;
        }
        Ok(Some(sum.bytes))
    }

    fn add_up(&self, shard: ShardId, stay: &Stay, limit: u64) -> Result<Option<Sum>, ReadError> {
        let cell = self.cell(shard)?;
        for _ in 0..LOOKS {
            if let Some(sum) = self.try_to_add_up(&cell, stay, limit)? {
                return Ok(Some(sum));
            }
        }
        Ok(None)
    }

    /// `Ok(None)`: the index moved meanwhile, look again.
    fn try_to_add_up(
        &self,
        cell: &ShardCell,
        stay: &Stay,
        limit: u64,
    ) -> Result<Option<Sum>, ReadError> {
        let (mut sum, before, partial) = {
            let state = cell.lock();
            let mut sum = Sum {
                bytes: 0,
                limit,
                boundary: stay.to().map_or(state.end, |to| to.min(state.end)),
                horizon: state.horizon.max(stay.from()),
            };
            let mut partial = None;
            for run in state.recent.iter().rev() {
                if sum.is_over() || run.end <= sum.horizon {
                    return Ok(Some(sum));
                }
                if run.end > sum.boundary {
                    continue;
                }
                if run.base < sum.horizon || !sum.add(run.base, u64::from(run.bytes)) {
                    partial = Some(self.place(run));
                    break;
                }
            }
            (sum, state.before_recent, partial)
        };
        if let Some(placed) = partial {
            let run = placed.run;
            let added = sum.add_run(&run, || placed)?;
            return Ok((added != Added::Gone).then_some(sum));
        }
        let mut id = before;
        while id != 0 && !sum.is_over() && cell.lock().may_hold_before(sum.boundary) {
            let Some(found) = self.row(id, cell.shard)? else {
                id = self.shared.segment_before(id);
                continue;
            };
            id = found.row.previous;
            let row = &found.row;
            if row.base >= sum.horizon && row.end <= sum.boundary && sum.add(row.base, row.bytes) {
                continue;
            }
            for run in self.runs(&found)?.iter().rev() {
                if run.end <= sum.horizon {
                    return Ok(Some(sum));
                }
                let segment = Some(std::sync::Arc::clone(&found.segment));
                let added = sum.add_run(run, || PlacedRun { run: *run, segment })?;
                match added {
                    Added::Whole => {}
                    Added::Part => return Ok(Some(sum)),
                    Added::Gone => return Ok(None),
                }
            }
        }
        Ok(Some(sum))
    }
}
