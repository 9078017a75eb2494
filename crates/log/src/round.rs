//! Rounds: what one commit writes. The header and its checksum, and reading a round back.

mod encoder;
mod walk;
mod window;

use std::io;

use bytes::{Buf, BufMut, Bytes};
use flumen_record::{Batch, FRAME_HEADER_BYTES, FrameHeader, SequenceNumber, ShardId, Timestamp};

use crate::checksum;
use crate::control::{CONTROL_BYTES, Control};
use crate::log::NewFrame;
use crate::segment_header::{SECTOR_BYTES, SegmentHeader};

pub(crate) use encoder::{NewRun, RoundEncoder};
pub(crate) use walk::{FRAME_FRONT, FrameWalk, PlacedFrame, mark_of};
pub(crate) use window::Window;

/// Size of a round's header, control marks not counted.
pub(crate) const ROUND_HEADER_BYTES: usize = 96;
/// Flag: the last round of a process that closed the log in order.
pub(crate) const CLOSED: u16 = 1;
/// Flag: gathered from rounds of an older generation; ends at this number, others may be missing.
pub(crate) const COPIED: u16 = 2;

const MAGIC: u32 = u32::from_le_bytes(*b"FLrd");
const VERSION: u16 = 1;

/// What a round's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RoundHeader {
    pub(crate) flags: u16,
    /// Header, control marks and frames; the padding after them not counted.
    pub(crate) bytes: u32,
    pub(crate) control_bytes: u32,
    pub(crate) frame_count: u32,
    pub(crate) log: u64,
    pub(crate) segment: u64,
    pub(crate) salt: u64,
    pub(crate) round: u64,
    /// Last durable round when this one was written: vouches for it.
    pub(crate) last_durable: u64,
    /// Last durable record of the catalog when this one was written.
    pub(crate) catalog: u64,
    pub(crate) written: Timestamp,
    pub(crate) epoch: u32,
    /// Header checksum of the round before.
    pub(crate) previous_checksum: u32,
    /// CRC-32 over the checksums of the frames, in order.
    pub(crate) frames_checksum: u32,
}

impl RoundHeader {
    /// Encodes, and returns the checksum over header and control marks too.
    pub(crate) fn encode(&self, control: &[u8], position: u64) -> ([u8; ROUND_HEADER_BYTES], u32) {
        let mut bytes = [0; ROUND_HEADER_BYTES];
        let mut fields = bytes.as_mut_slice();
        fields.put_u32_le(MAGIC);
        fields.put_u16_le(VERSION);
        fields.put_u16_le(self.flags);
        fields.put_u32_le(self.bytes);
        fields.put_u32_le(self.control_bytes);
        fields.put_u64_le(self.log);
        fields.put_u64_le(self.segment);
        fields.put_u64_le(self.salt);
        fields.put_u64_le(self.round);
        fields.put_u64_le(self.last_durable);
        fields.put_u64_le(self.catalog);
        fields.put_u64_le(self.written.as_micros());
        fields.put_u32_le(self.frame_count);
        fields.put_u32_le(self.epoch);
        fields.put_u32_le(self.previous_checksum);
        fields.put_u32_le(self.frames_checksum);
        let (covered, mut place) = bytes.split_at_mut(ROUND_HEADER_BYTES - 4);
        let sum = checksum::seeded(checksum::seed(self.salt, position), &[covered, control]);
        place.put_u32_le(sum);
        (bytes, sum)
    }

    /// Reads the fields and the stored checksum; nothing is verified but magic and version.
    fn decode(bytes: &[u8]) -> Option<(Self, u32)> {
        let mut fields = bytes.get(..ROUND_HEADER_BYTES)?;
        if fields.get_u32_le() != MAGIC || fields.get_u16_le() != VERSION {
            return None;
        }
        let flags = fields.get_u16_le();
        let round_bytes = fields.get_u32_le();
        let control_bytes = fields.get_u32_le();
        let header = Self {
            flags,
            bytes: round_bytes,
            control_bytes,
            log: fields.get_u64_le(),
            segment: fields.get_u64_le(),
            salt: fields.get_u64_le(),
            round: fields.get_u64_le(),
            last_durable: fields.get_u64_le(),
            catalog: fields.get_u64_le(),
            written: Timestamp::from_micros(fields.get_u64_le()),
            frame_count: fields.get_u32_le(),
            epoch: fields.get_u32_le(),
            previous_checksum: fields.get_u32_le(),
            frames_checksum: fields.get_u32_le(),
        };
        fields.advance(4);
        Some((header, fields.try_get_u32_le().ok()?))
    }

    /// Bytes from this round's start to the next one's.
    pub(crate) fn padded_bytes(&self) -> u64 {
        u64::from(self.bytes).next_multiple_of(SECTOR_BYTES)
    }

    /// Where the frames begin, seen from the round's start.
    pub(crate) fn frames_at(&self) -> usize {
        ROUND_HEADER_BYTES.saturating_add(self.control_bytes as usize)
    }
}

/// A header that verified, with what it covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FoundHeader {
    pub(crate) header: RoundHeader,
    pub(crate) checksum: u32,
    pub(crate) control: Vec<Control>,
}

/// Which rounds a file may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RoundOwner {
    pub(crate) log: u64,
    pub(crate) segment: u64,
    /// `None` when the file's own header is lost: then a round's own is believed.
    pub(crate) salt: Option<u64>,
}

impl RoundOwner {
    pub(crate) fn of(header: &SegmentHeader) -> Self {
        Self {
            log: header.log,
            segment: header.segment,
            salt: Some(header.salt),
        }
    }
}

impl RoundOwner {
    /// Whether these bytes say that they begin a round of the file; nothing is verified.
    pub(crate) fn may_own(&self, front: &[u8]) -> bool {
        RoundHeader::decode(front).is_some_and(|(header, _)| self.owns(&header))
    }

    fn owns(&self, header: &RoundHeader) -> bool {
        header.log == self.log
            && header.segment == self.segment
            && self.salt.is_none_or(|salt| salt == header.salt)
    }
}

/// Reads and verifies the round header at `position`. `Ok(None)`: there is none.
pub(crate) fn read_header(
    window: &mut Window<'_>,
    owner: RoundOwner,
    position: u64,
) -> io::Result<Option<FoundHeader>> {
    let Some(front) = window.get(position, ROUND_HEADER_BYTES)? else {
        return Ok(None);
    };
    let Some((header, stored)) = RoundHeader::decode(&front) else {
        return Ok(None);
    };
    let fits = position
        .checked_add(u64::from(header.bytes))
        .is_some_and(|end| end <= window.end())
        && header.frames_at() <= header.bytes as usize
        && (header.control_bytes as usize).is_multiple_of(CONTROL_BYTES);
    if !fits || !owner.owns(&header) {
        return Ok(None);
    }
    let Some(whole) = window.get(position, header.frames_at())? else {
        return Ok(None);
    };
    let Some((covered, rest)) = whole.split_at_checked(ROUND_HEADER_BYTES - 4) else {
        return Ok(None);
    };
    let control = rest.get(4..).unwrap_or_default();
    let sum = checksum::seeded(checksum::seed(header.salt, position), &[covered, control]);
    if sum != stored {
        return Ok(None);
    }
    Ok(Control::decode_all(control).map(|control| FoundHeader {
        header,
        checksum: sum,
        control,
    }))
}

/// A frame found in a round.
#[derive(Debug, Clone)]
pub(crate) struct FoundFrame {
    pub(crate) position: u64,
    pub(crate) header: FrameHeader,
    pub(crate) batch: Batch,
}

impl FoundFrame {
    /// First sequence number after it.
    pub(crate) fn end(&self) -> SequenceNumber {
        self.header.base.plus(u64::from(self.batch.header().count))
    }

    /// To write it again elsewhere.
    pub(crate) fn to_new(&self) -> NewFrame {
        NewFrame {
            shard: self.header.shard,
            epoch: self.header.epoch,
            base: self.header.base,
            arrival: self.header.arrival,
            batch: self.batch.clone(),
        }
    }
}

/// A frame that does not verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DamagedFrame {
    /// How many good frames are before it.
    pub(crate) before: usize,
    /// Its shard, when its header verifies and only the batch does not.
    pub(crate) shard: Option<ShardId>,
}

/// What verifying a round's frames brought.
#[derive(Debug, Default)]
pub(crate) struct FoundFrames {
    /// Those that verified, in order.
    pub(crate) frames: Vec<FoundFrame>,
    pub(crate) damaged: Vec<DamagedFrame>,
}

impl FoundFrames {
    fn damage(&mut self, shard: Option<ShardId>) {
        self.damaged.push(DamagedFrame {
            before: self.frames.len(),
            shard,
        });
    }

    /// Whether nothing is missing.
    pub(crate) fn is_intact(&self) -> bool {
        self.damaged.is_empty()
    }
}

/// Reads and verifies all frames of the round at `position`. Damaged ones are left out; what
/// follows one is still found as long as its header says how long it is.
pub(crate) fn read_frames(
    window: &mut Window<'_>,
    found: &FoundHeader,
    position: u64,
) -> io::Result<FoundFrames> {
    let header = &found.header;
    let mut result = FoundFrames::default();
    let Some(bytes) = window.get(position, header.bytes as usize)? else {
        result.damage(None);
        return Ok(result);
    };
    let mut rest = bytes.slice(header.frames_at().min(bytes.len())..);
    let mut at = position + header.frames_at() as u64;
    let mut sums = crc32fast::Hasher::new();
    while !rest.is_empty() {
        let frame = FrameHeader::decode(&rest).ok();
        let Some(frame) = frame.filter(|frame| frame.frame_bytes as usize <= rest.len()) else {
            result.damage(None);
            return Ok(result);
        };
        let length = frame.frame_bytes as usize;
        let body = rest.split_to(length).slice(FRAME_HEADER_BYTES..);
        sums.update(&frame.checksum.to_le_bytes());
        match verify_frame(&frame, body.clone(), header.salt, at) {
            Some(batch) => result.frames.push(FoundFrame {
                position: at,
                header: frame,
                batch,
            }),
            None if header_verifies(&frame, &body, header.salt, at) => {
                result.damage(Some(frame.shard));
            }
            None => {
                result.damage(None);
                return Ok(result);
            }
        }
        at += length as u64;
    }
    let frames = result.frames.len() + result.damaged.len();
    if frames != header.frame_count as usize || sums.finalize() != header.frames_checksum {
        result.damage(None);
    }
    Ok(result)
}

/// Whether a frame's header is as it was written, whatever happened to its batch.
fn header_verifies(header: &FrameHeader, body: &[u8], salt: u64, position: u64) -> bool {
    let Some(mut sum) = body.get(4..8) else {
        return false;
    };
    header.expected_checksum(sum.get_u32_le(), checksum::seed(salt, position)) == header.checksum
}

/// The batch behind a frame header when both checksums hold.
pub(crate) fn verify_frame(
    header: &FrameHeader,
    body: Bytes,
    salt: u64,
    position: u64,
) -> Option<Batch> {
    let batch = Batch::decode(body).ok()?;
    let seed = checksum::seed(salt, position);
    (header.expected_checksum(batch.header().checksum, seed) == header.checksum).then_some(batch)
}
