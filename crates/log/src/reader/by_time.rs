//! Looking up when records arrived: where the first batch lies that arrived at or after a time.
//!
//! An answer is proven, as records are deleted by it: the batch before the one that is named arrived
//! earlier, or nothing that is kept lies before it. Where records are missing in between, those count
//! as having arrived later.

use flumen_record::{SequenceNumber, ShardId, Timestamp};

use super::search::PlacedRun;
use super::{LOOKS, LogReader, SearchAnswer};
use crate::error::ReadError;
use crate::index::{ColdStart, ShardCell, TimePlace};
use crate::round::{FrameWalk, PlacedFrame};
use crate::stay::Stay;

impl LogReader {
    pub(super) fn search_time(
        &self,
        shard: ShardId,
        stay: &Stay,
        at: Timestamp,
    ) -> Result<SearchAnswer, ReadError> {
        let cell = self.cell(shard)?;
        for _ in 0..LOOKS {
            match self.look_for_time(&cell, at)? {
                Some(SearchAnswer::At(number)) if stay.to().is_some_and(|to| number >= to) => {
                    return Ok(SearchAnswer::AllOlder);
                }
                Some(SearchAnswer::At(number)) => {
                    return Ok(SearchAnswer::At(number.max(stay.from())));
                }
                Some(answer) => return Ok(answer),
                None => {}
            }
        }
        Ok(SearchAnswer::Unknown)
    }

    /// `Ok(None)`: the index moved meanwhile, look again.
    fn look_for_time(
        &self,
        cell: &ShardCell,
        at: Timestamp,
    ) -> Result<Option<SearchAnswer>, ReadError> {
        let (place, placed, in_memory_from) = {
            let state = cell.lock();
            let place = state.place_of_time(at, self.shared.opened);
            let placed = match &place {
                TimePlace::In(run) => Some(self.place(run)),
                _ => None,
            };
            (place, placed, state.before_recent)
        };
        match place {
            TimePlace::AllOlder => Ok(Some(SearchAnswer::AllOlder)),
            TimePlace::At(number) => Ok(Some(SearchAnswer::At(number))),
            TimePlace::In(_) => match placed {
                Some(placed) => answer_in(cell, &placed, at),
                None => Ok(None),
            },
            TimePlace::Cold(start) => self.look_for_time_cold(cell, start, in_memory_from, at),
        }
    }

    /// As [`LogReader::look_for_time`], where nothing in memory is known to be older.
    fn look_for_time_cold(
        &self,
        cell: &ShardCell,
        start: ColdStart,
        in_memory_from: u64,
        at: Timestamp,
    ) -> Result<Option<SearchAnswer>, ReadError> {
        let (older, next) = self.walk_back(cell, start, |row| row.arrival >= at)?;
        let later = self.row(next, cell.shard)?;
        if next != 0 && later.is_none() {
            return Ok(None);
        }
        let mut before = None;
        let mut candidate = None;
        for found in [older, later].into_iter().flatten() {
            let runs = self.runs(&found)?;
            let place = runs.partition_point(|run| run.last_arrival < at);
            let last = place.checked_sub(1).and_then(|last| runs.get(last));
            before = last.map(|run| run.end).or(before);
            if let Some(run) = runs.get(place) {
                candidate = Some(PlacedRun {
                    run: *run,
                    segment: Some(found.segment),
                });
                break;
            }
        }
        let candidate = {
            let state = cell.lock();
            if candidate.is_none() && state.before_recent != in_memory_from {
                // Runs left memory meanwhile: what comes next may be among them.
                return Ok(None);
            }
            let from = before.unwrap_or(state.horizon).max(state.horizon);
            let candidate = candidate.or_else(|| state.recent.front().map(|run| self.place(run)));
            let base = candidate
                .as_ref()
                .map_or(state.end, |placed| placed.run.base);
            if let Some(missing) = state.lost_between(from, base) {
                return Ok(Some(SearchAnswer::At(missing)));
            }
            candidate
        };
        match candidate {
            Some(placed) if placed.run.last_arrival >= at => answer_in(cell, &placed, at),
            // The runs in memory have moved on meanwhile.
            Some(_) => Ok(None),
            None => Ok(Some(SearchAnswer::AllOlder)),
        }
    }
}

/// The answer that a run holds whose last batch arrived at or after `at`, and before which nothing
/// did. `Ok(None)`: its segment is gone.
fn answer_in(
    cell: &ShardCell,
    placed: &PlacedRun,
    at: Timestamp,
) -> Result<Option<SearchAnswer>, ReadError> {
    let Some(found) = frame_at_time(placed, at)? else {
        return Ok(None);
    };
    let state = cell.lock();
    let found = found.max(state.horizon).min(state.end);
    Ok(Some(SearchAnswer::At(found)))
}

/// The first batch of a run that arrived at or after `at`. What does not verify counts as later.
/// `Ok(None)`: its segment is gone.
fn frame_at_time(placed: &PlacedRun, at: Timestamp) -> Result<Option<SequenceNumber>, ReadError> {
    let run = &placed.run;
    if run.arrival >= at {
        return Ok(Some(run.base));
    }
    let Some(bytes) = placed.bytes()? else {
        return Ok(None);
    };
    // First number of what is not known to be older.
    let mut found = run.base;
    let is_older = |frame: &PlacedFrame| frame.header.arrival < at && placed.vouches_for(frame);
    for frame in FrameWalk::new(&bytes).take_while(is_older) {
        found = frame.end();
    }
    Ok(Some(found.min(run.end)))
}
