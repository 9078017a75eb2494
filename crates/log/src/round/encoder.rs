//! Lays a round out for one gathered write: small frames are copied together, large ones are
//! written from where they are.

use std::io::IoSlice;
use std::ops::Range;

use flumen_record::{
    FRAME_HEADER_BYTES, FrameHeader, ProducerId, SequenceNumber, ShardEpoch, ShardId, Timestamp,
};

use super::{ROUND_HEADER_BYTES, RoundHeader};
use crate::checksum;
use crate::control::{CONTROL_BYTES, Control};
use crate::log::NewFrame;
use crate::segment_header::SECTOR_BYTES;

/// Batches below this are copied behind their header: cheaper than two more buffers for the kernel.
const COPY_BELOW: usize = 4096;
/// `IOV_MAX` is 1024: a round should fit into one call.
const BUFFERS_MAX: usize = 1000;
/// Scratch space is given back beyond this.
const SCRATCH_KEPT: usize = 8 << 20;

/// One shard's frames within the round being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NewRun {
    pub(crate) shard: ShardId,
    pub(crate) epoch: ShardEpoch,
    pub(crate) base: SequenceNumber,
    pub(crate) end: SequenceNumber,
    pub(crate) arrival: Timestamp,
    pub(crate) last_arrival: Timestamp,
    pub(crate) position: u64,
    pub(crate) bytes: u32,
    /// At most this many producers' last batches are in it.
    pub(crate) producers: u32,
}

#[derive(Debug, Clone)]
enum Piece {
    Scratch(Range<usize>),
    Batch(usize),
}

/// Encodes rounds; keeps its buffers.
#[derive(Debug, Default)]
pub(crate) struct RoundEncoder {
    scratch: Vec<u8>,
    pieces: Vec<Piece>,
    runs: Vec<NewRun>,
    sums: Vec<u8>,
    /// Of the last frame of the last run.
    producer: ProducerId,
    checksum: u32,
    bytes: u64,
}

impl RoundEncoder {
    /// Bytes such a round takes, padding included.
    pub(crate) fn bytes_of(controls: usize, frames: &[NewFrame]) -> u64 {
        let frames: u64 = frames
            .iter()
            .map(|frame| (frame.batch.bytes().len() + FRAME_HEADER_BYTES) as u64)
            .sum();
        let front = ROUND_HEADER_BYTES + controls * CONTROL_BYTES;
        (front as u64 + frames).next_multiple_of(SECTOR_BYTES)
    }

    /// Lays `frames` out at `position`. `header`'s sizes, counts and checksums are filled in here.
    pub(crate) fn encode(
        &mut self,
        header: RoundHeader,
        controls: &[Control],
        frames: &[NewFrame],
        position: u64,
    ) {
        self.clear();
        self.scratch.resize(ROUND_HEADER_BYTES, 0);
        for control in controls {
            control.encode(&mut self.scratch);
        }
        let front = self.scratch.len();
        let copy_below = copy_below(frames);
        let mut at = position + front as u64;
        let mut piece_start = 0;
        for (index, frame) in frames.iter().enumerate() {
            let length = self.push_frame(frame, header.salt, at);
            let batch = frame.batch.bytes();
            if batch.len() < copy_below {
                self.scratch.extend_from_slice(batch);
            } else {
                self.pieces
                    .push(Piece::Scratch(piece_start..self.scratch.len()));
                self.pieces.push(Piece::Batch(index));
                piece_start = self.scratch.len();
            }
            at += u64::from(length);
        }
        let bytes = at - position;
        self.bytes = bytes.next_multiple_of(SECTOR_BYTES);
        let padding = usize::try_from(self.bytes - bytes).expect("BUG: padding is below 512");
        self.scratch.resize(self.scratch.len() + padding, 0);
        self.pieces
            .push(Piece::Scratch(piece_start..self.scratch.len()));
        self.finish(header, bytes, front, frames.len(), position);
    }

    fn clear(&mut self) {
        if self.scratch.capacity() > SCRATCH_KEPT {
            self.scratch = Vec::new();
        }
        self.scratch.clear();
        self.pieces.clear();
        self.runs.clear();
        self.sums.clear();
    }

    /// Adds a frame's header to the scratch space and the frame to its run.
    fn push_frame(&mut self, frame: &NewFrame, salt: u64, at: u64) -> u32 {
        let batch = frame.batch.header();
        let unsealed = FrameHeader {
            frame_bytes: 0,
            checksum: 0,
            shard: frame.shard,
            epoch: frame.epoch,
            base: frame.base,
            arrival: frame.arrival,
        };
        let seed = checksum::seed(salt, at);
        let header = unsealed.encode(batch.encoded_bytes, batch.checksum, seed);
        self.sums
            .extend_from_slice(header.get(4..8).unwrap_or_default());
        self.scratch.extend_from_slice(&header);
        #[expect(clippy::cast_possible_truncation, reason = "it is 40")]
        let bytes = batch.encoded_bytes + FRAME_HEADER_BYTES as u32;
        let end = frame.base.plus(u64::from(batch.count));
        let before = std::mem::replace(&mut self.producer, batch.producer);
        let named = batch.producer != ProducerId::NONE;
        match self.runs.last_mut() {
            Some(run) if run.shard == frame.shard && run.end == frame.base => {
                run.end = end;
                run.last_arrival = frame.arrival;
                run.epoch = run.epoch.max(frame.epoch);
                run.bytes += bytes;
                run.producers += u32::from(named && batch.producer != before);
            }
            _ => self.runs.push(NewRun {
                shard: frame.shard,
                epoch: frame.epoch,
                base: frame.base,
                end,
                arrival: frame.arrival,
                last_arrival: frame.arrival,
                position: at,
                bytes,
                producers: u32::from(named),
            }),
        }
        bytes
    }

    fn finish(
        &mut self,
        header: RoundHeader,
        bytes: u64,
        front: usize,
        frames: usize,
        position: u64,
    ) {
        let sized = RoundHeader {
            bytes: u32::try_from(bytes).expect("BUG: a round is far below 4 GiB"),
            control_bytes: u32::try_from(front - ROUND_HEADER_BYTES)
                .expect("BUG: controls per round are bounded"),
            frame_count: u32::try_from(frames).expect("BUG: a round is far below 4 GiB"),
            frames_checksum: crc32fast::hash(&self.sums),
            ..header
        };
        let control = self
            .scratch
            .get(ROUND_HEADER_BYTES..front)
            .unwrap_or_default();
        let (encoded, sum) = sized.encode(control, position);
        self.checksum = sum;
        self.scratch
            .get_mut(..ROUND_HEADER_BYTES)
            .expect("BUG: the header's place was made first")
            .copy_from_slice(&encoded);
    }

    /// The runs of the round just encoded.
    pub(crate) fn runs(&self) -> &[NewRun] {
        &self.runs
    }

    /// Checksum of the header just encoded.
    pub(crate) fn checksum(&self) -> u32 {
        self.checksum
    }

    /// Bytes of the round just encoded, padding included.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What is to be written, in order; `frames` are those that were encoded.
    pub(crate) fn buffers<'a>(&'a self, frames: &'a [NewFrame], out: &mut Vec<IoSlice<'a>>) {
        out.extend(self.pieces.iter().map(|piece| {
            IoSlice::new(match piece {
                Piece::Scratch(range) => self.scratch.get(range.clone()).unwrap_or_default(),
                Piece::Batch(index) => frames
                    .get(*index)
                    .map(|frame| frame.batch.bytes())
                    .map_or(&[], |b| &**b),
            })
        }));
    }
}

/// From which size on batches of this round are not copied, so that the buffers fit one call.
fn copy_below(frames: &[NewFrame]) -> usize {
    let large = |limit: usize| {
        frames
            .iter()
            .filter(|f| f.batch.bytes().len() >= limit)
            .count()
    };
    let mut limit = COPY_BELOW;
    while frames.len() * 2 > BUFFERS_MAX && large(limit) * 2 > BUFFERS_MAX {
        limit *= 4;
    }
    limit
}
