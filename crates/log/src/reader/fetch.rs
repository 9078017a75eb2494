//! Getting the bytes of planned runs: slices of the map for large ones, small ones gathered.

use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use flumen_record::{SequenceNumber, ShardId};

use super::cold::{ColdFault, Part, Wanted, read_part};
use super::cut::cut;
use super::{FoundFrames, LogReader, Plan};
use crate::error::ReadError;
use crate::index::Run;
use crate::segment::Segment;

/// Smaller pieces are copied together: a piece costs more than such a copy.
const GATHER_BELOW: usize = 4096;

/// Collects the pieces of an answer.
#[derive(Debug)]
struct Answer {
    found: FoundFrames,
    gathered: BytesMut,
    left: usize,
    from: SequenceNumber,
}

impl Answer {
    fn new(from: SequenceNumber, budget: usize) -> Self {
        Self {
            found: FoundFrames {
                pieces: Vec::new(),
                bytes: 0,
                next: from,
            },
            gathered: BytesMut::new(),
            left: budget,
            from,
        }
    }

    /// Adds what fits of a run's bytes. `false`: the answer is full.
    fn push(&mut self, run: &Run, bytes: &Bytes) -> bool {
        let first = self.is_empty();
        let whole = !first && run.base >= self.from && bytes.len() <= self.left;
        if whole {
            self.left -= bytes.len();
            self.put(bytes.clone());
            self.found.next = run.end;
            return true;
        }
        let Some((cut, left)) = cut(bytes, self.from, self.left, first) else {
            return false;
        };
        self.left = left;
        self.found.next = cut.next;
        self.put(bytes.slice(cut.range));
        cut.next == run.end
    }

    fn is_empty(&self) -> bool {
        self.found.bytes == 0
    }

    fn wanted(&self) -> Wanted {
        Wanted {
            from: self.from,
            bytes: self.left,
            first: self.is_empty(),
        }
    }

    /// Adds what was read of a run. `false`: the answer is full, or the rest of the run damaged.
    fn put_part(&mut self, run: &Run, part: Part) -> bool {
        self.left = part.left;
        self.found.next = part.next;
        self.put(part.bytes);
        part.next == run.end
    }

    fn put(&mut self, piece: Bytes) {
        self.found.bytes += piece.len();
        if piece.len() < GATHER_BELOW {
            self.gathered.extend_from_slice(&piece);
            return;
        }
        self.flush();
        self.found.pieces.push(piece);
    }

    fn flush(&mut self) {
        if !self.gathered.is_empty() {
            self.found.pieces.push(self.gathered.split().freeze());
        }
    }

    fn finish(mut self, next_when_empty: SequenceNumber) -> FoundFrames {
        self.flush();
        if self.found.pieces.is_empty() {
            self.found.next = next_when_empty;
        }
        self.found
    }
}

impl LogReader {
    pub(super) fn fetch_hot(
        &self,
        plan: &Plan,
        from: SequenceNumber,
        budget: usize,
    ) -> Result<Option<FoundFrames>, ReadError> {
        let mut answer = Answer::new(from, budget);
        for run in &plan.runs {
            let hot = plan
                .segment(run)
                .filter(|segment| self.is_hot(segment, run));
            let Some(segment) = hot else {
                if answer.is_empty() {
                    return Ok(None);
                }
                break;
            };
            let start = u64::from(run.position);
            let bytes = segment.file.slice(start..start + u64::from(run.bytes));
            if !answer.push(run, &bytes) {
                break;
            }
        }
        Ok(Some(answer.finish(plan.next)))
    }

    fn is_hot(&self, segment: &Segment, run: &Run) -> bool {
        let written = self.shared.written.load(Ordering::Relaxed);
        let hot_from = self.shared.hot_from.load(Ordering::Relaxed);
        segment.written_before.is_some_and(|before| {
            let rounds_at = segment.header.rounds_at();
            let place = before + u64::from(run.position).saturating_sub(rounds_at);
            place >= hot_from
                && written.saturating_sub(place) <= self.shared.config.hot_window_bytes
        })
    }

    /// `Ok(None)`: a segment is gone, look up again.
    pub(super) fn fetch_cold(
        &self,
        shard: ShardId,
        plan: &Plan,
        from: SequenceNumber,
        budget: usize,
    ) -> Result<Option<FoundFrames>, ReadError> {
        let mut answer = Answer::new(from, budget);
        for run in &plan.runs {
            let Some(segment) = plan.segment(run) else {
                if answer.is_empty() {
                    return Ok(None);
                }
                break;
            };
            match read_part(segment, run, &answer.wanted()) {
                Ok(Some(part)) => {
                    if !answer.put_part(run, part) {
                        break;
                    }
                }
                Ok(None) => break,
                Err(ColdFault::Io(source)) if answer.is_empty() => {
                    return Err(ReadError::Io {
                        segment: segment.file_name(),
                        source,
                    });
                }
                Err(ColdFault::Damaged { from: lost, to }) if answer.is_empty() => {
                    return Err(ReadError::DataLoss {
                        shard,
                        from: lost,
                        to,
                        segment: segment.file_name(),
                    });
                }
                // What was found so far is good; the next read meets the fault again.
                Err(_) => break,
            }
        }
        Ok(Some(answer.finish(plan.next)))
    }
}
