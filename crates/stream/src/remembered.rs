//! The moment that a node remembers beyond its end, byte by byte (`docs/format.md`, "Clock").

use std::time::Duration;

use bytes::{Buf, BufMut};
use flumen_record::Timestamp;

const VERSION: u8 = 1;
const CHECKSUM_BYTES: usize = 4;
const BYTES: usize = CHECKSUM_BYTES + 1 + 8 + 16 + 8;

/// What the time was, in which start of the machine, and how long that had been up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RememberedMoment {
    /// The time.
    pub wall: Timestamp,
    /// Which start of the machine it was in; 0: unknown.
    pub boot: u128,
    /// How long the machine had been up, its sleep included.
    pub uptime: Duration,
}

impl RememberedMoment {
    /// The bytes of the file.
    pub fn encode(&self) -> Vec<u8> {
        let mut fields = Vec::with_capacity(BYTES);
        fields.put_u8(VERSION);
        fields.put_u64_le(self.wall.as_micros());
        fields.put_u128_le(self.boot);
        fields.put_u64_le(u64::try_from(self.uptime.as_micros()).unwrap_or(u64::MAX));
        let mut bytes = Vec::with_capacity(BYTES);
        bytes.put_u32_le(crc32fast::hash(&fields));
        bytes.extend(fields);
        bytes
    }

    /// Reads it back; `None`: it is damaged, or of a version that this program does not know.
    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        if bytes.len() != BYTES {
            return None;
        }
        let checksum = bytes.get_u32_le();
        if crc32fast::hash(bytes) != checksum || bytes.get_u8() != VERSION {
            return None;
        }
        Some(Self {
            wall: Timestamp::from_micros(bytes.get_u64_le()),
            boot: bytes.get_u128_le(),
            uptime: Duration::from_micros(bytes.get_u64_le()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_back_and_damage_is_noticed() {
        let moment = RememberedMoment {
            wall: Timestamp::from_micros(1_800_000_000_000_000),
            boot: 0x1234_5678_9abc_def0_1234_5678_9abc_def0,
            uptime: Duration::from_secs(77),
        };
        let bytes = moment.encode();
        // As in docs/format.md.
        assert_eq!(bytes.len(), 37);
        assert_eq!(bytes[4..13], [1, 0, 0x80, 0x98, 0x28, 0x17, 0x65, 6, 0][..]);
        assert_eq!(RememberedMoment::decode(&bytes), Some(moment));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(RememberedMoment::decode(&flipped), None);
        }
        for length in 0..bytes.len() {
            assert_eq!(RememberedMoment::decode(&bytes[..length]), None);
        }
    }
}
