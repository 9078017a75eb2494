//! Reading a run from disk, no further than an answer needs it, and verifying what is handed out.

use std::io;
use std::ops::Range;

use bytes::Bytes;
use flumen_record::{FRAME_HEADER_BYTES, SequenceNumber};

use crate::index::Run;
use crate::round::{FRAME_FRONT, FrameWalk, PlacedFrame, verify_frame};
use crate::segment::Segment;

/// Runs from here on are populated and sliced piece by piece, smaller ones read into a buffer.
const SLICE_FROM: u32 = 64 << 10;
/// Bytes made ready at a time.
const AHEAD: usize = 256 << 10;

/// What an answer still wants.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// Frames from the one that holds this number.
    pub(super) from: SequenceNumber,
    /// At most so many bytes of them …
    pub(super) bytes: usize,
    /// … beyond the first one, when the answer is empty so far.
    pub(super) first: bool,
}

/// Verified frames.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) bytes: Bytes,
    /// First sequence number after them.
    pub(super) next: SequenceNumber,
    /// What is left of the bytes that were wanted.
    pub(super) left: usize,
}

/// Why a run gives nothing.
#[derive(Debug)]
pub(super) enum ColdFault {
    Io(io::Error),
    /// Damaged from this sequence number up to that one.
    Damaged {
        from: SequenceNumber,
        to: SequenceNumber,
    },
}

/// A run of which a part is in memory.
struct ColdRun<'a> {
    segment: &'a Segment,
    run: &'a Run,
    ready: Range<usize>,
    /// The ready part.
    bytes: Bytes,
    sliced: bool,
}

impl<'a> ColdRun<'a> {
    fn new(segment: &'a Segment, run: &'a Run) -> Self {
        let end = u64::from(run.position) + u64::from(run.bytes);
        let published = segment.data_end() >= end || segment.last_round() == u64::MAX;
        Self {
            segment,
            run,
            ready: 0..0,
            bytes: Bytes::new(),
            sliced: run.bytes >= SLICE_FROM && published,
        }
    }

    fn len(&self) -> usize {
        self.run.bytes as usize
    }

    /// `None` beyond the run's end.
    fn get(&mut self, range: Range<usize>) -> io::Result<Option<Bytes>> {
        if range.end > self.len() {
            return Ok(None);
        }
        if range.start < self.ready.start || range.end > self.ready.end {
            let ready = if self.sliced {
                range.start..range.end.max(range.start + AHEAD).min(self.len())
            } else {
                0..self.len()
            };
            self.bytes = self.load(ready.clone())?;
            self.ready = ready;
        }
        let (start, end) = (range.start - self.ready.start, range.end - self.ready.start);
        Ok(Some(self.bytes.slice(start..end)))
    }

    fn load(&self, range: Range<usize>) -> io::Result<Bytes> {
        let start = u64::from(self.run.position) + range.start as u64;
        if self.sliced {
            let place = start..start + range.len() as u64;
            self.segment.file.populate(place.clone())?;
            return Ok(self.segment.file.slice(place));
        }
        let mut buffer = vec![0; range.len()];
        self.segment.file.read_at(&mut buffer, start)?;
        Ok(buffer.into())
    }

    /// The frame at `at`, by its headers; `None` when there can be none.
    fn frame(&mut self, at: usize) -> io::Result<Option<PlacedFrame>> {
        let front = self.get(at..at + FRAME_FRONT)?;
        let length = self.len();
        Ok(front.and_then(|front| PlacedFrame::read(&front, at, length)))
    }

    fn verifies(&mut self, frame: &PlacedFrame) -> io::Result<bool> {
        let Some(bytes) = self.get(frame.range.clone())? else {
            return Ok(false);
        };
        let position = u64::from(self.run.position) + frame.range.start as u64;
        let body = bytes.slice(FRAME_HEADER_BYTES..);
        let salt = self.segment.header.salt;
        Ok(verify_frame(&frame.header, body, salt, position).is_some())
    }

    /// All of a verified range: it was made ready piece by piece.
    fn whole(&self, range: Range<usize>) -> Bytes {
        let start = u64::from(self.run.position) + range.start as u64;
        if self.sliced {
            return self.segment.file.slice(start..start + range.len() as u64);
        }
        self.bytes.slice(range)
    }

    /// The sequence number of the first frame after the damaged one at `at` that verifies: the
    /// damaged one hides itself, and what follows unless its length leads to such a frame.
    fn resume(&mut self, at: usize) -> io::Result<Option<SequenceNumber>> {
        let Some(rest) = self.get(at..self.len())? else {
            return Ok(None);
        };
        for mut frame in FrameWalk::new(&rest).skip(1) {
            frame.range = at + frame.range.start..at + frame.range.end;
            if self.verifies(&frame)? {
                return Ok(Some(frame.header.base));
            }
        }
        Ok(None)
    }
}

/// What is `wanted` of a run, every frame of it verified, those before it walked by their headers.
/// Good frames before a damaged one are a part; `Ok(None)`: the first wanted one does not fit.
pub(super) fn read_part(
    segment: &Segment,
    run: &Run,
    wanted: &Wanted,
) -> Result<Option<Part>, ColdFault> {
    let mut cold = ColdRun::new(segment, run);
    let (mut left, mut free) = (wanted.bytes, wanted.first);
    let mut next = run.base;
    let mut at = 0;
    let mut taken: Option<Range<usize>> = None;
    while at < cold.len() {
        let frame = cold.frame(at).map_err(ColdFault::Io)?;
        let Some(frame) = frame.filter(|frame| frame.header.base == next) else {
            break;
        };
        let (start, end) = (at, frame.range.end);
        if frame.end() > wanted.from {
            if !std::mem::take(&mut free) {
                let Some(rest) = left.checked_sub(frame.range.len()) else {
                    return Ok(taken.map(|taken| part(&cold, taken, next, left)));
                };
                left = rest;
            }
            if !cold.verifies(&frame).map_err(ColdFault::Io)? {
                break;
            }
            let from = taken.map_or(start, |taken| taken.start);
            taken = Some(from..end);
        }
        next = frame.end();
        at = end;
    }
    match taken {
        Some(taken) => Ok(Some(part(&cold, taken, next, left))),
        None => {
            let resumed = cold.resume(at).map_err(ColdFault::Io)?;
            let to = resumed.unwrap_or(run.end);
            let from = next.max(wanted.from.min(to));
            Err(ColdFault::Damaged { from, to })
        }
    }
}

fn part(cold: &ColdRun<'_>, taken: Range<usize>, next: SequenceNumber, left: usize) -> Part {
    Part {
        bytes: cold.whole(taken),
        next,
        left,
    }
}
