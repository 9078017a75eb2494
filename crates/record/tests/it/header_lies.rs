//! Headers that lie: one typed error per lie, from `Batch::decode`.

use bytes::BytesMut;
use flumen_record::{Batch, BatchError, BatchHeader, HashKey, HashRange, RecordLimits};

use crate::lie::{Lie, RECORD};

fn check(lie: impl Fn(&mut Lie), error: BatchError) {
    let mut batch = Lie::around(1, &RECORD);
    lie(&mut batch);
    assert_eq!(batch.decode(), Err(error));
}

#[test]
fn versions_and_reserved_fields_of_the_future_are_refused() {
    check(|lie| lie.version = 0, BatchError::Version { version: 0 });
    check(|lie| lie.version = 2, BatchError::Version { version: 2 });
    check(
        |lie| lie.compression = 3,
        BatchError::Compression { code: 3 },
    );
    check(
        |lie| lie.flags = 1,
        BatchError::Reserved { flags: 1, key: 0 },
    );
    check(|lie| lie.key = 9, BatchError::Reserved { flags: 0, key: 9 });
}

#[test]
fn counts_that_no_body_can_hold_are_refused() {
    for count in [0, 2, u32::MAX] {
        check(
            |lie| lie.count = count,
            BatchError::Count {
                count,
                body_bytes: 5,
            },
        );
    }
    let empty = |lie: &mut Lie| {
        lie.body.clear();
        lie.uncompressed_bytes = 0;
    };
    check(
        empty,
        BatchError::Count {
            count: 1,
            body_bytes: 0,
        },
    );
}

#[test]
fn lengths_that_are_not_so_are_refused() {
    let declared = BatchError::BodyLength {
        declared: 4,
        found: 5,
    };
    check(|lie| lie.uncompressed_bytes = 4, declared);
    check(
        |lie| lie.encoded_bytes = Some(71),
        BatchError::TooSmall { bytes: 71 },
    );
    let sized = |encoded_bytes, uncompressed_bytes| {
        move |lie: &mut Lie| {
            lie.encoded_bytes = Some(encoded_bytes);
            lie.uncompressed_bytes = uncompressed_bytes;
        }
    };
    check(
        sized(76, 4),
        BatchError::Excess {
            needed: 76,
            excess: 1,
        },
    );
    check(
        sized(78, 6),
        BatchError::Truncated {
            needed: 78,
            found: 77,
        },
    );
    let limit = 16 << 20;
    check(
        sized(limit + 1, 5),
        BatchError::TooLarge {
            bytes: 16_777_217,
            limit: 16_777_216,
        },
    );
    let body = |lie: &mut Lie| {
        lie.compression = 1;
        lie.uncompressed_bytes = (64 << 20) + 1;
    };
    check(
        body,
        BatchError::BodyTooLarge {
            bytes: 67_108_865,
            limit: 67_108_864,
        },
    );
}

#[test]
fn a_span_that_ends_before_it_starts_is_refused() {
    let span = HashRange {
        start: HashKey::new(2),
        end: HashKey::new(1),
    };
    check(|lie| lie.span = (2, 1), BatchError::Span { span });
}

#[test]
fn a_batch_without_lies_is_taken_and_any_shorter_one_is_not() {
    let bytes = Lie::around(1, &RECORD).bytes();
    let batch = Batch::decode(bytes.clone()).unwrap();
    batch.check_body(RecordLimits::default()).unwrap();
    let needed = Batch::HEADER_BYTES as u64;
    for found in 0..needed {
        let cut = bytes.slice(..found as usize);
        assert_eq!(
            BatchHeader::decode(&cut),
            Err(BatchError::Truncated { needed, found })
        );
        assert_eq!(
            Batch::decode(cut),
            Err(BatchError::Truncated { needed, found })
        );
    }
}

#[test]
fn a_forged_checksum_is_found() {
    let mut bytes = BytesMut::from(&*Lie::around(1, &RECORD).bytes());
    let found = BatchHeader::decode(&bytes).unwrap().checksum;
    bytes[4] ^= 1;
    let expected = found ^ 1;
    assert_eq!(
        Batch::decode(bytes.freeze()),
        Err(BatchError::Checksum { expected, found })
    );
}
