//! The pieces every layout is made of: little-endian numbers and varints, read without panics.

use bytes::BytesMut;

use crate::RecordFault;

/// The longest varint: 64 bits in groups of 7.
const MAX_VARINT_BYTES: usize = 10;

/// Reads from the front of a slice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WireReader<'a> {
    rest: &'a [u8],
}

impl<'a> WireReader<'a> {
    pub(crate) const EMPTY: Self = Self { rest: &[] };

    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// What has not been read yet.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    #[inline]
    pub(crate) fn byte(&mut self) -> Result<u8, RecordFault> {
        let (&first, rest) = self.rest.split_first().ok_or(RecordFault::Truncated)?;
        self.rest = rest;
        Ok(first)
    }

    /// The next `count` bytes; `count` may be any number somebody wrote down.
    #[inline]
    pub(crate) fn take(&mut self, count: u64) -> Result<&'a [u8], RecordFault> {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let (taken, rest) = self
            .rest
            .split_at_checked(count)
            .ok_or(RecordFault::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    #[inline]
    pub(crate) fn u128(&mut self) -> Result<u128, RecordFault> {
        let (bytes, rest) = self
            .rest
            .split_first_chunk()
            .ok_or(RecordFault::Truncated)?;
        self.rest = rest;
        Ok(u128::from_le_bytes(*bytes))
    }

    /// A varint: 7 bits a byte, lowest first, the high bit says that more follow; the shortest
    /// form only, so that equal records have equal bytes.
    #[inline]
    pub(crate) fn varint(&mut self) -> Result<u64, RecordFault> {
        match *self.rest {
            [low, ref rest @ ..] if low < 0x80 => {
                self.rest = rest;
                Ok(u64::from(low))
            }
            [low, high, ref rest @ ..] if high < 0x80 && high != 0 => {
                self.rest = rest;
                Ok(u64::from(low & 0x7f) | u64::from(high) << 7)
            }
            _ => self.long_varint(),
        }
    }

    fn long_varint(&mut self) -> Result<u64, RecordFault> {
        let mut value = 0u64;
        for (index, &byte) in self.rest.iter().take(MAX_VARINT_BYTES).enumerate() {
            if index + 1 == MAX_VARINT_BYTES && byte > 1 {
                return Err(RecordFault::Varint);
            }
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte < 0x80 {
                if byte == 0 && index > 0 {
                    return Err(RecordFault::Varint);
                }
                self.take(index as u64 + 1)?;
                return Ok(value);
            }
        }
        Err(RecordFault::Truncated)
    }
}

/// How many bytes `value` takes as a varint.
#[inline]
pub(crate) const fn varint_bytes(value: u64) -> usize {
    let bits = 64 - (value | 1).leading_zeros();
    bits.div_ceil(7) as usize
}

/// Appends `value` as a varint.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "seven bits at a time")]
pub(crate) fn put_varint(out: &mut BytesMut, mut value: u64) {
    if (0x80..0x4000).contains(&value) {
        return out.extend_from_slice(&[value as u8 | 0x80, (value >> 7) as u8]);
    }
    while value >= 0x80 {
        out.extend_from_slice(&[value as u8 | 0x80]);
        value >>= 7;
    }
    out.extend_from_slice(&[value as u8]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<(u64, usize), RecordFault> {
        let mut reader = WireReader::new(bytes);
        let value = reader.varint()?;
        Ok((value, reader.rest().len()))
    }

    #[test]
    fn varints_of_every_length_are_read_as_they_were_written() {
        for bits in 0..64 {
            let power = 1u64 << bits;
            for value in [power - 1, power, power + 1, u64::MAX - power, u64::MAX] {
                let mut bytes = BytesMut::new();
                put_varint(&mut bytes, value);
                assert_eq!(bytes.len(), varint_bytes(value), "{value}");
                assert_eq!(read(&bytes), Ok((value, 0)));
                bytes.extend_from_slice(&[0xff; 3]);
                assert_eq!(read(&bytes), Ok((value, 3)));
                for cut in 0..varint_bytes(value) {
                    assert_eq!(read(&bytes[..cut]), Err(RecordFault::Truncated), "{value}");
                }
            }
        }
    }

    #[test]
    fn longer_than_shortest_and_larger_than_64_bits_are_refused() {
        let too_large = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02];
        for bytes in [
            &[0x80, 0x00][..],
            &[0xff, 0x80, 0x00],
            &too_large,
            &[0x80; 11],
            &[0xff; 10],
        ] {
            assert_eq!(read(bytes), Err(RecordFault::Varint), "{bytes:02x?}");
        }
    }
}
