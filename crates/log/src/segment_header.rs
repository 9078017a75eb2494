//! The first bytes of a segment file: which segment it is and what it continues. Layout:
//! `docs/format.md`, "Log files".

use bytes::{Buf, BufMut};
use flumen_record::Timestamp;

use crate::checksum;

/// A header takes one sector; a power cut tears between sectors, never inside one.
pub(crate) const SECTOR_BYTES: u64 = 512;
/// The header is stored twice, a page apart, so that one bad page does not take both.
pub(crate) const SECOND_COPY: u64 = 4096;
/// Where the state table begins, and after it the first round.
pub(crate) const HEAD_BYTES: u64 = 8192;

/// The same as lengths in memory.
pub(crate) const SECTOR: usize = 512;
pub(crate) const HEAD: usize = 8192;
const _: () = assert!(SECTOR as u64 == SECTOR_BYTES && HEAD as u64 == HEAD_BYTES);
/// Where the second copy ends.
pub(crate) const COPIES: usize = HEAD / 2 + SECTOR;
const _: () = assert!(COPIES as u64 == SECOND_COPY + SECTOR_BYTES);

const CHECKSUM_AT: usize = SECTOR - 4;
const MAGIC: u64 = u64::from_le_bytes(*b"flumenSG");
const SPARE_MAGIC: u64 = u64::from_le_bytes(*b"flumenSP");
const VERSION: u16 = 1;

/// Header flag: the segment before this one failed a write or a sync; it is never to be trusted
/// with a footer nor used again.
pub(crate) const PREDECESSOR_FAILED: u16 = 1;

/// What a segment's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) flags: u16,
    /// [`crate::LogKey::id`].
    pub(crate) log: u64,
    pub(crate) segment: u64,
    /// Rises when live runs are copied into a new file.
    pub(crate) generation: u32,
    /// The log's epoch: one per open.
    pub(crate) epoch: u32,
    pub(crate) salt: u64,
    pub(crate) file_bytes: u64,
    /// The round before this segment's first. Bytes of later rounds in older files do not exist.
    pub(crate) continues_after: u64,
    /// Last durable round when this header was written.
    pub(crate) last_durable: u64,
    /// Header checksum of the round before this segment's first; 0 when it was given up.
    pub(crate) previous_checksum: u32,
    pub(crate) state_bytes: u32,
    pub(crate) state_checksum: u32,
    pub(crate) created: Timestamp,
}

/// What the header sectors of a file hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeaderSector {
    /// A segment's header.
    Segment(SegmentHeader),
    /// The mark of a file that was made ready and not used yet.
    Spare,
    /// A header of a version this program does not know.
    UnknownVersion,
    /// Neither.
    Invalid,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; SECTOR] {
        let mut sector = [0; SECTOR];
        let mut fields = sector.as_mut_slice();
        fields.put_u64_le(MAGIC);
        fields.put_u16_le(VERSION);
        fields.put_u16_le(self.flags);
        fields.put_u32_le(self.generation);
        fields.put_u64_le(self.log);
        fields.put_u64_le(self.segment);
        fields.put_u64_le(self.salt);
        fields.put_u64_le(self.file_bytes);
        fields.put_u64_le(self.continues_after);
        fields.put_u64_le(self.last_durable);
        fields.put_u64_le(self.created.as_micros());
        fields.put_u32_le(self.epoch);
        fields.put_u32_le(self.previous_checksum);
        fields.put_u32_le(self.state_bytes);
        fields.put_u32_le(self.state_checksum);
        seal(sector)
    }

    fn decode_fields(mut fields: &[u8]) -> Self {
        let flags = fields.get_u16_le();
        let generation = fields.get_u32_le();
        Self {
            flags,
            generation,
            log: fields.get_u64_le(),
            segment: fields.get_u64_le(),
            salt: fields.get_u64_le(),
            file_bytes: fields.get_u64_le(),
            continues_after: fields.get_u64_le(),
            last_durable: fields.get_u64_le(),
            created: Timestamp::from_micros(fields.get_u64_le()),
            epoch: fields.get_u32_le(),
            previous_checksum: fields.get_u32_le(),
            state_bytes: fields.get_u32_le(),
            state_checksum: fields.get_u32_le(),
        }
    }

    /// Checksum of the state table.
    pub(crate) fn state_sum(&self, state: &[u8]) -> u32 {
        checksum::seeded(checksum::seed(self.salt, HEAD_BYTES), &[state])
    }

    /// Where the first round begins.
    pub(crate) fn rounds_at(&self) -> u64 {
        HEAD_BYTES + u64::from(self.state_bytes).next_multiple_of(SECTOR_BYTES)
    }
}

impl HeaderSector {
    /// Reads one copy.
    pub(crate) fn decode(sector: &[u8]) -> Self {
        let Some((covered, mut stored)) = sector.split_at_checked(CHECKSUM_AT) else {
            return Self::Invalid;
        };
        let Ok(stored) = stored.try_get_u32_le() else {
            return Self::Invalid;
        };
        let mut fields = covered;
        let magic = fields.get_u64_le();
        if ![MAGIC, SPARE_MAGIC].contains(&magic) || checksum::seeded(magic, &[covered]) != stored {
            return Self::Invalid;
        }
        if fields.get_u16_le() != VERSION {
            return Self::UnknownVersion;
        }
        if magic == SPARE_MAGIC {
            return Self::Spare;
        }
        Self::Segment(SegmentHeader::decode_fields(fields))
    }

    /// The sector that marks a file as ready and unused.
    pub(crate) fn spare() -> [u8; SECTOR] {
        let mut sector = [0; SECTOR];
        let mut fields = sector.as_mut_slice();
        fields.put_u64_le(SPARE_MAGIC);
        fields.put_u16_le(VERSION);
        seal(sector)
    }
}

/// Puts the checksum into a sector's last bytes. Every version keeps it and the magic number where
/// they are, so that an unknown version can be told from damage.
fn seal(mut sector: [u8; SECTOR]) -> [u8; SECTOR] {
    let (covered, mut place) = sector.split_at_mut(CHECKSUM_AT);
    let magic = covered.as_ref().get_u64_le();
    place.put_u32_le(checksum::seeded(magic, &[covered]));
    sector
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SegmentHeader {
        SegmentHeader {
            flags: PREDECESSOR_FAILED,
            log: 7,
            segment: 12,
            generation: 3,
            epoch: 9,
            salt: 0xdead_beef_0123,
            file_bytes: 32 << 20,
            continues_after: 99,
            last_durable: 98,
            previous_checksum: 0x1234_5678,
            state_bytes: 513,
            state_checksum: 5,
            created: Timestamp::from_micros(1_700_000_000_000_000),
        }
    }

    #[test]
    fn a_header_reads_back_as_written() {
        assert_eq!(
            HeaderSector::decode(&header().encode()),
            HeaderSector::Segment(header())
        );
        assert_eq!(header().rounds_at(), 8192 + 1024);
        assert_eq!(
            HeaderSector::decode(&HeaderSector::spare()),
            HeaderSector::Spare
        );
    }

    #[test]
    fn any_changed_byte_is_seen() {
        let sector = header().encode();
        for position in 0..SECTOR {
            let mut changed = sector;
            changed[position] ^= 0x40;
            assert_eq!(
                HeaderSector::decode(&changed),
                HeaderSector::Invalid,
                "{position}"
            );
        }
        assert_eq!(HeaderSector::decode(&[0; SECTOR]), HeaderSector::Invalid);
        assert_eq!(HeaderSector::decode(&sector[..100]), HeaderSector::Invalid);
    }

    #[test]
    fn an_unknown_version_is_not_taken_for_damage() {
        let mut sector = header().encode();
        sector[8] = 2;
        assert_eq!(
            HeaderSector::decode(&seal(sector)),
            HeaderSector::UnknownVersion
        );
    }
}
