//! Where a partition key falls in the key space that shards divide among themselves.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use md5::{Digest, Md5};

use crate::HashKeyError;

/// A place in the 128-bit key space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct HashKey(u128);

impl HashKey {
    /// The lowest place.
    pub const MIN: Self = Self(0);
    /// The highest place.
    pub const MAX: Self = Self(u128::MAX);

    /// From its plain value.
    pub const fn new(value: u128) -> Self {
        Self(value)
    }

    /// Its plain value.
    pub const fn value(self) -> u128 {
        self.0
    }

    /// Where a partition key falls: the MD5 of its UTF-8 bytes as a big-endian number
    /// (`PutRecord` in the Kinesis API reference).
    #[expect(
        clippy::big_endian_bytes,
        reason = "Kinesis reads the digest as big-endian"
    )]
    pub fn of(partition_key: &[u8]) -> Self {
        Self(u128::from_be_bytes(Md5::digest(partition_key).into()))
    }

    /// Sixteen bytes that sort as the keys do.
    #[expect(clippy::big_endian_bytes, reason = "bytes that sort as the keys do")]
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// From what [`HashKey::to_bytes`] gave.
    #[expect(clippy::big_endian_bytes, reason = "bytes that sort as the keys do")]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }
}

/// Decimal, as Kinesis writes it.
impl fmt::Display for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Decimal, `0|([1-9]\d{0,38})` as Kinesis has it (`HashKeyRange` in its API reference).
impl FromStr for HashKey {
    type Err = HashKeyError;

    fn from_str(text: &str) -> Result<Self, HashKeyError> {
        let plain = match text.as_bytes() {
            [b'0'] => true,
            [b'1'..=b'9', rest @ ..] => rest.len() < 39 && rest.iter().all(u8::is_ascii_digit),
            _ => false,
        };
        if !plain {
            return Err(HashKeyError::NotDecimal);
        }
        text.parse()
            .map(Self)
            .map_err(|_overflow| HashKeyError::TooLarge)
    }
}

/// The slice of the key space a shard owns; both ends belong to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HashRange {
    /// The first place that belongs to it.
    pub start: HashKey,
    /// The last place that belongs to it.
    pub end: HashKey,
}

impl HashRange {
    /// The whole key space.
    pub const FULL: Self = Self {
        start: HashKey::MIN,
        end: HashKey::MAX,
    };

    /// Whether `key` falls into it.
    pub fn contains(&self, key: HashKey) -> bool {
        self.start <= key && key <= self.end
    }

    /// Whether all of `other` falls into it.
    pub fn covers(&self, other: &Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// The whole key space in `count` slices of equal size, in order; the last takes what does
    /// not divide evenly.
    pub fn even_slices(count: NonZeroU32) -> impl ExactSizeIterator<Item = Self> {
        let count = count.get();
        let width = slice_width(u128::from(count));
        (0..count).map(move |index| {
            let start = width.wrapping_mul(u128::from(index));
            let end = if index + 1 == count {
                u128::MAX
            } else {
                start.wrapping_add(width - 1)
            };
            Self {
                start: HashKey(start),
                end: HashKey(end),
            }
        })
    }
}

/// `floor(2^128 / count)`; 2^128 itself, for one slice, is written as 0.
const fn slice_width(count: u128) -> u128 {
    let (quotient, remainder) = (u128::MAX / count, u128::MAX % count);
    if remainder + 1 == count {
        quotient.wrapping_add(1)
    } else {
        quotient
    }
}

/// `start..=end` in decimal, both inclusive.
impl fmt::Display for HashRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..={}", self.start, self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<HashKey, HashKeyError> {
        text.parse()
    }

    #[test]
    fn the_hash_key_of_a_partition_key_is_its_md5_read_big_endian() {
        // From the MD5 test suite, RFC 1321 section A.5.
        let key = HashKey::of(b"abc");
        assert_eq!(key.value(), 0x9001_5098_3cd2_4fb0_d696_3f7d_28e1_7f72);
        assert_eq!(key.to_bytes()[0], 0x90);
        assert_eq!(HashKey::from_bytes(key.to_bytes()), key);
    }

    #[test]
    fn hash_keys_are_written_in_decimal_and_read_back() {
        let largest = "340282366920938463463374607431768211455";
        for (text, value) in [("0", 0), ("1", 1), ("120", 120), (largest, u128::MAX)] {
            assert_eq!(parse(text), Ok(HashKey::new(value)), "{text}");
            assert_eq!(HashKey::new(value).to_string(), text);
        }
    }

    #[test]
    fn what_is_not_a_hash_key_is_refused() {
        let forty_digits = "1".repeat(40);
        for text in [
            "",
            "00",
            "01",
            "+1",
            "-1",
            " 1",
            "1 ",
            "0x1",
            "1_0",
            "١",
            &forty_digits,
        ] {
            assert_eq!(parse(text), Err(HashKeyError::NotDecimal), "{text:?}");
        }
        for text in ["340282366920938463463374607431768211456", &"9".repeat(39)] {
            assert_eq!(parse(text), Err(HashKeyError::TooLarge), "{text:?}");
        }
    }

    #[test]
    fn even_slices_cover_the_key_space_without_gap_or_overlap() {
        for count in [1, 2, 3, 4, 5, 7, 16, 100, 1_000, 10_000] {
            let slices: Vec<_> = HashRange::even_slices(NonZeroU32::new(count).unwrap()).collect();
            assert_eq!(slices.len(), count as usize);
            assert_eq!(slices[0].start, HashKey::MIN);
            assert_eq!(slices[slices.len() - 1].end, HashKey::MAX);
            for pair in slices.windows(2) {
                assert_eq!(pair[0].end.value() + 1, pair[1].start.value());
            }
            let width = |slice: &HashRange| slice.end.value() - slice.start.value();
            let (last, others) = slices.split_last().unwrap();
            for slice in others {
                assert_eq!(width(slice), width(&slices[0]));
            }
            // The remainder is smaller than the number of slices.
            assert!(width(last) - width(&slices[0]) < u128::from(count));
        }
    }

    #[test]
    fn three_slices_are_where_kinesis_puts_them() {
        let slices: Vec<_> = HashRange::even_slices(NonZeroU32::new(3).unwrap()).collect();
        let third = u128::MAX / 3;
        assert_eq!(slices[0].end.value(), third - 1);
        assert_eq!(slices[1].start.value(), third);
        assert_eq!(slices[2].start.value(), 2 * third);
    }
}
