//! Walking the frames of a run by their headers.

use std::ops::Range;

use flumen_record::{Batch, BatchHeader, FRAME_HEADER_BYTES, FrameHeader, SequenceNumber};

use crate::recovery::BatchMark;

/// What tells where a frame ends and what is in it: its header and its batch's.
pub(crate) const FRAME_FRONT: usize = FRAME_HEADER_BYTES + Batch::HEADER_BYTES;

/// One frame's place within a run.
#[derive(Debug, Clone)]
pub(crate) struct PlacedFrame {
    pub(crate) range: Range<usize>,
    pub(crate) header: FrameHeader,
    pub(crate) batch: BatchHeader,
}

impl PlacedFrame {
    /// The frame at `at` of a run of `run_bytes`, given at least [`FRAME_FRONT`] bytes of it.
    pub(crate) fn read(front: &[u8], at: usize, run_bytes: usize) -> Option<Self> {
        let header = FrameHeader::decode(front).ok()?;
        let end = at.checked_add(header.frame_bytes as usize)?;
        if end > run_bytes {
            return None;
        }
        let batch = BatchHeader::decode(front.get(FRAME_HEADER_BYTES..)?).ok()?;
        Some(Self {
            range: at..end,
            header,
            batch,
        })
    }

    /// First sequence number after it.
    pub(crate) fn end(&self) -> SequenceNumber {
        self.header.base.plus(u64::from(self.batch.count))
    }

    /// What producers' bookkeeping needs of it.
    pub(crate) fn mark(&self) -> BatchMark {
        mark_of(&self.header, &self.batch)
    }
}

/// What producers' bookkeeping needs of a frame.
pub(crate) fn mark_of(header: &FrameHeader, batch: &BatchHeader) -> BatchMark {
    BatchMark {
        producer: batch.producer,
        sequence: batch.sequence,
        base: header.base,
        count: batch.count,
        checksum: batch.checksum,
        arrival: header.arrival,
        frame_bytes: header.frame_bytes,
    }
}

/// Walks the frames of a run by their headers; nothing is verified. Ends early at what cannot be
/// a frame.
pub(crate) struct FrameWalk<'a> {
    run: &'a [u8],
    at: usize,
}

impl<'a> FrameWalk<'a> {
    pub(crate) fn new(run: &'a [u8]) -> Self {
        Self { run, at: 0 }
    }
}

impl Iterator for FrameWalk<'_> {
    type Item = PlacedFrame;

    fn next(&mut self) -> Option<PlacedFrame> {
        let frame = PlacedFrame::read(self.run.get(self.at..)?, self.at, self.run.len())?;
        self.at = frame.range.end;
        Some(frame)
    }
}
