//! Getting the bytes of planned runs: slices of the map for large ones, small ones gathered.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use flumen_record::{FRAME_HEADER_BYTES, FrameHeader, SequenceNumber, ShardId};

use super::cut::cut;
use super::{FoundFrames, LogReader, Plan};
use crate::error::ReadError;
use crate::index::Run;
use crate::round::{FrameWalk, verify_frame};
use crate::segment::Segment;

/// Smaller pieces are copied together: a piece costs more than such a copy.
const GATHER_BELOW: usize = 4096;
/// Cold runs from here on are populated and sliced, smaller ones are read into a buffer.
const SLICE_COLD_FROM: u32 = 64 << 10;

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
        let first = self.found.bytes == 0;
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

/// Why a cold run's bytes cannot be used.
enum ColdFault {
    Io(io::Error),
    /// Damaged from this sequence number up to that one; what is before is good.
    Damaged {
        good: Bytes,
        from: SequenceNumber,
        to: SequenceNumber,
    },
}

impl LogReader {
    pub(super) fn fetch_hot(
        &self,
        plan: &Plan,
        from: SequenceNumber,
        budget: usize,
    ) -> Result<Option<FoundFrames>, ReadError> {
        let mut answer = Answer::new(from, budget);
        let mut segment: Option<Arc<Segment>> = None;
        for run in &plan.runs {
            if segment
                .as_ref()
                .is_none_or(|segment| segment.id() != run.segment)
            {
                segment = self.shared.segment(run.segment);
            }
            let hot = segment.as_ref().filter(|segment| self.is_hot(segment, run));
            let Some(segment) = hot else {
                if answer.found.bytes == 0 {
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
        segment.written_before.is_some_and(|before| {
            let ago = written.saturating_sub(before + u64::from(run.position));
            ago <= self.shared.config.hot_window_bytes
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
            let Some(segment) = self.shared.segment(run.segment) else {
                if answer.found.bytes == 0 {
                    return Ok(None);
                }
                break;
            };
            match read_run(&segment, run, from) {
                Ok(bytes) => {
                    if !answer.push(run, &bytes) {
                        break;
                    }
                }
                Err(ColdFault::Io(source)) if answer.found.bytes == 0 => {
                    return Err(ReadError::Io {
                        segment: segment.file_name(),
                        source,
                    });
                }
                Err(ColdFault::Damaged {
                    good,
                    from: lost,
                    to,
                }) if answer.found.bytes == 0 => {
                    let cut_at = Run { end: lost, ..*run };
                    answer.push(&cut_at, &good);
                    if answer.found.bytes == 0 {
                        return Err(ReadError::DataLoss {
                            shard,
                            from: lost,
                            to,
                            segment: segment.file_name(),
                        });
                    }
                    break;
                }
                // What was found so far is good; the next read meets the fault again.
                Err(_) => break,
            }
        }
        Ok(Some(answer.finish(plan.next)))
    }
}

/// A run's bytes from disk, every frame from the one that holds `from` on verified.
fn read_run(segment: &Segment, run: &Run, from: SequenceNumber) -> Result<Bytes, ColdFault> {
    let start = u64::from(run.position);
    let range = start..start + u64::from(run.bytes);
    let published = segment.data_end() >= range.end || segment.last_round() == u64::MAX;
    let bytes = if run.bytes >= SLICE_COLD_FROM && published {
        segment
            .file
            .populate(range.clone())
            .map_err(ColdFault::Io)?;
        segment.file.slice(range)
    } else {
        let mut buffer = vec![0; run.bytes as usize];
        segment
            .file
            .read_at(&mut buffer, start)
            .map_err(ColdFault::Io)?;
        buffer.into()
    };
    verify_run(segment, run, bytes, from)
}

/// Passes a run's bytes on when everything from `from` on verifies. A damaged frame hides itself,
/// and what follows it in the run unless its length leads to a frame that verifies.
fn verify_run(
    segment: &Segment,
    run: &Run,
    bytes: Bytes,
    from: SequenceNumber,
) -> Result<Bytes, ColdFault> {
    let mut expected = run.base;
    let mut done = 0;
    for frame in FrameWalk::new(&bytes) {
        if frame.end() <= from && frame.header.base == expected {
            expected = frame.end();
            done = frame.range.end;
            continue;
        }
        if frame.header.base != expected || !verifies(segment, run, &bytes, &frame.range) {
            break;
        }
        expected = frame.end();
        done = frame.range.end;
    }
    if expected == run.end && done == bytes.len() {
        return Ok(bytes);
    }
    let to = resume(segment, run, &bytes, done).unwrap_or(run.end);
    Err(ColdFault::Damaged {
        good: bytes.slice(..done),
        from: expected.max(from.min(to)),
        to,
    })
}

fn verifies(segment: &Segment, run: &Run, bytes: &Bytes, range: &std::ops::Range<usize>) -> bool {
    let frame = bytes.slice(range.clone());
    let Ok(header) = FrameHeader::decode(&frame) else {
        return false;
    };
    let position = u64::from(run.position) + range.start as u64;
    let body = frame.slice(FRAME_HEADER_BYTES..);
    verify_frame(&header, body, segment.header.salt, position).is_some()
}

/// The sequence number of the first frame after the damaged one at `at` that verifies.
fn resume(segment: &Segment, run: &Run, bytes: &Bytes, at: usize) -> Option<SequenceNumber> {
    let rest = bytes.get(at..)?;
    FrameWalk::new(rest)
        .skip(1)
        .find(|frame| {
            let range = at + frame.range.start..at + frame.range.end;
            verifies(segment, run, bytes, &range)
        })
        .map(|frame| frame.header.base)
}
