//! A stored batch with the broker's header before it: what consumers receive.

use bytes::{Buf, BufMut, Bytes};

use crate::{Batch, FrameError, SequenceNumber, ShardEpoch, ShardId, Timestamp};

/// Size of a frame header.
pub const FRAME_HEADER_BYTES: usize = 40;

/// The version this program writes, and the only one it reads.
const VERSION: u16 = 1;
const MIN_FRAME_BYTES: usize = FRAME_HEADER_BYTES + Batch::HEADER_BYTES;
const MAX_FRAME_BYTES: usize = FRAME_HEADER_BYTES + Batch::MAX_ENCODED_BYTES;

/// The broker's part of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Header and batch, in bytes.
    pub frame_bytes: u32,
    /// CRC-32 seeded by the caller (segment salt and position), over the rest of the header and
    /// the batch's own checksum.
    pub checksum: u32,
    /// The shard it belongs to.
    pub shard: ShardId,
    /// The shard's epoch when it was written.
    pub epoch: ShardEpoch,
    /// Sequence number of the batch's first record; record `i` has `base + i`.
    pub base: SequenceNumber,
    /// The arrival time of all its records; never decreasing in a shard.
    pub arrival: Timestamp,
}

impl FrameHeader {
    /// Writes the header for a batch of `batch_bytes` bytes with `batch_checksum`, its checksum
    /// seeded with `seed`. `self.frame_bytes` and `self.checksum` are computed, not read.
    pub fn encode(
        &self,
        batch_bytes: u32,
        batch_checksum: u32,
        seed: u64,
    ) -> [u8; FRAME_HEADER_BYTES] {
        debug_assert!(
            batch_bytes as usize <= Batch::MAX_ENCODED_BYTES,
            "BUG: no such batch"
        );
        #[expect(clippy::cast_possible_truncation, reason = "it is 40")]
        let frame_bytes = batch_bytes.saturating_add(FRAME_HEADER_BYTES as u32);
        let sized = Self {
            frame_bytes,
            ..*self
        };
        let checksum = sized.expected_checksum(batch_checksum, seed);
        Self { checksum, ..sized }.bytes()
    }

    fn bytes(&self) -> [u8; FRAME_HEADER_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        let mut fields = bytes.as_mut_slice();
        fields.put_u32_le(self.frame_bytes);
        fields.put_u32_le(self.checksum);
        fields.put_u64_le(self.shard.value());
        fields.put_u32_le(self.epoch.value());
        fields.put_u16_le(VERSION);
        fields.put_u16_le(0);
        fields.put_u64_le(self.base.value());
        fields.put_u64_le(self.arrival.as_micros());
        bytes
    }

    /// Reads a header without verifying its checksum (a consumer does not know the seed).
    pub fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        let found = bytes.len() as u64;
        let needed = FRAME_HEADER_BYTES as u64;
        let mut fields = bytes
            .get(..FRAME_HEADER_BYTES)
            .ok_or(FrameError::Truncated { needed, found })?;
        let frame_bytes = fields.get_u32_le();
        let checksum = fields.get_u32_le();
        let shard = ShardId::from_value(fields.get_u64_le());
        let epoch = ShardEpoch::new(fields.get_u32_le());
        let version = fields.get_u16_le();
        let flags = fields.get_u16_le();
        if version != VERSION {
            return Err(FrameError::Version { version });
        }
        if flags != 0 {
            return Err(FrameError::Reserved { flags });
        }
        if !(MIN_FRAME_BYTES..=MAX_FRAME_BYTES).contains(&(frame_bytes as usize)) {
            return Err(FrameError::Length {
                bytes: u64::from(frame_bytes),
            });
        }
        let base = SequenceNumber::new(fields.get_u64_le());
        let arrival = Timestamp::from_micros(fields.get_u64_le());
        Ok(Self {
            frame_bytes,
            checksum,
            shard,
            epoch,
            base,
            arrival,
        })
    }

    /// The checksum these fields should carry in front of a batch with `batch_checksum`, given
    /// `seed`.
    pub fn expected_checksum(&self, batch_checksum: u32, seed: u64) -> u32 {
        let header = Self {
            checksum: 0,
            ..*self
        }
        .bytes();
        let (length, rest) = header.split_at(4);
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&seed.to_le_bytes());
        hasher.update(length);
        hasher.update(rest.get(4..).unwrap_or_default());
        hasher.update(&batch_checksum.to_le_bytes());
        hasher.finalize()
    }
}

/// One frame, its batch verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The broker's part.
    pub header: FrameHeader,
    /// The producer's part.
    pub batch: Batch,
}

/// Walks consecutive frames, verifying each batch's checksum; zero-copy. Ends after the first
/// error: what follows a damaged frame cannot be trusted to begin where it says.
#[derive(Debug)]
pub struct Frames {
    rest: Bytes,
}

impl Frames {
    /// Over bytes that hold whole frames only.
    pub fn new(bytes: Bytes) -> Self {
        Self { rest: bytes }
    }

    /// Takes the frame at the front, whatever `rest` holds.
    fn cut(rest: &mut Bytes) -> Result<Frame, FrameError> {
        let header = FrameHeader::decode(rest)?;
        let (needed, found) = (u64::from(header.frame_bytes), rest.len() as u64);
        if found < needed {
            return Err(FrameError::Truncated { needed, found });
        }
        let mut frame = rest.split_to(header.frame_bytes as usize);
        frame.advance(FRAME_HEADER_BYTES);
        Ok(Frame {
            header,
            batch: Batch::decode(frame)?,
        })
    }
}

impl Iterator for Frames {
    type Item = Result<Frame, FrameError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let frame = Self::cut(&mut self.rest);
        if frame.is_err() {
            self.rest = Bytes::new();
        }
        Some(frame)
    }
}

impl std::iter::FusedIterator for Frames {}
