//! Unsigned integers in as few bytes as they need: 7 bits per byte, lowest first (`docs/format.md`).

use bytes::{Buf, BufMut};

/// Writes `value` in its shortest form.
pub(crate) fn put_varint(out: &mut impl BufMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8((value & 0x7f) as u8);
}

/// Reads one; `None` when the bytes end early, or it is not in its shortest form.
pub(crate) fn get_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        if !bytes.has_remaining() {
            return None;
        }
        let byte = bytes.get_u8();
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return None;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return (byte != 0 || shift == 0).then_some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_read_back_as_written() {
        for value in [0, 1, 127, 128, 300, 1 << 32, u64::MAX - 1, u64::MAX] {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            let mut rest = bytes.as_slice();
            assert_eq!(get_varint(&mut rest), Some(value));
            assert!(rest.is_empty());
            for length in 0..bytes.len() {
                assert_eq!(
                    get_varint(&mut &bytes[..length]),
                    None,
                    "{value} cut at {length}"
                );
            }
        }
    }

    #[test]
    fn only_the_shortest_form_is_read() {
        assert_eq!(get_varint(&mut [0x80, 0x00].as_slice()), None);
        let mut eleven = [0xff; 11];
        eleven[10] = 0;
        assert_eq!(get_varint(&mut eleven.as_slice()), None);
        let mut too_large = [0xff; 10];
        too_large[9] = 2;
        assert_eq!(get_varint(&mut too_large.as_slice()), None);
    }
}
