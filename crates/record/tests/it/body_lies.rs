//! Uncompressed bodies that lie: found by the check on append, and by who reads them.

use bytes::{BufMut, BytesMut};
use flumen_record::{
    Batch, BatchError, Compression, HashKey, Record, RecordError, RecordFault, RecordLimits,
};
use proptest::prelude::*;

use crate::lie::{Lie, RECORD, malformed};
use crate::made::{any_records, batch_of, record};

#[test]
fn a_record_that_is_cut_or_garbled_is_found_by_check_and_by_reading() {
    let endless = [0xff; 12];
    let table: [(&[u8], RecordFault); 12] = [
        (&[8, 1, b'k', 1, b'd'], RecordFault::Flags { flags: 8 }),
        (
            &[0xff, 1, b'k', 1, b'd'],
            RecordFault::Flags { flags: 0xff },
        ),
        (&[0, 5, b'k', 1, b'd'], RecordFault::Truncated),
        (&[0, 1, b'k', 2, b'd'], RecordFault::Truncated),
        (&[1, 1, b'k', 1, b'd'], RecordFault::Truncated),
        (&[2, 1, b'k', 0x80], RecordFault::Truncated),
        (&[4, 1, b'k', 1, b'd'], RecordFault::Truncated),
        (&[4, 1, b'k', 1, b'd', 0], RecordFault::NoHeaders),
        (
            &[4, 1, b'k', 1, b'd', 2, 1, b'n', 1, b'v'],
            RecordFault::Truncated,
        ),
        (&[0, 0x81, 0, b'k', 1, b'd'], RecordFault::Varint),
        (&endless, RecordFault::Flags { flags: 0xff }),
        (
            &[
                0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, b'd',
            ],
            RecordFault::Truncated,
        ),
    ];
    for (bytes, fault) in table {
        let body = [&RECORD, bytes].concat();
        // As many as there is room for: what cannot be found is an error as well.
        let lie = Lie::around(body.len() as u32 / 4, &body);
        let batch = lie.decode().unwrap();
        assert_eq!(
            batch.check_body(RecordLimits::default()),
            Err(malformed(1, fault))
        );
        let records = lie.records();
        assert_eq!(records.len(), batch.header().count as usize);
        assert_eq!(records[0], Ok(record("k", "d")));
        assert_eq!(records[1], Err(malformed(1, fault)), "{bytes:02x?}");
        let unreachable = RecordFault::Unreachable { damaged: 1 };
        for (index, after) in records.iter().enumerate().skip(2) {
            assert_eq!(*after, Err(malformed(index as u32, unreachable)));
        }
    }
}

/// A record with any key, as it lies in a body.
fn keyed(key: &[u8]) -> Vec<u8> {
    let mut bytes = BytesMut::from(&[0][..]);
    let length = key.len();
    if length < 0x80 {
        bytes.put_u8(length as u8);
    } else {
        bytes.put_slice(&[length as u8 | 0x80, (length >> 7) as u8]);
    }
    bytes.put_slice(key);
    bytes.put_slice(&[1, b'd']);
    bytes.to_vec()
}

#[test]
fn a_record_that_may_not_be_in_a_batch_is_one_error_and_the_rest_is_read() {
    let names = [&[4, 1, b'k', 1, b'd', 1, 1, 0xff, 0][..]].concat();
    let many = [&[4, 1, b'k', 1, b'd', 65][..], &[0; 130]].concat();
    let wide = [
        &[4, 1, b'k', 1, b'd', 1, 0, 0x81, 0x80, 1][..],
        &[0; 16_385],
    ]
    .concat();
    let table = [
        (
            keyed(b""),
            RecordError::PartitionKeyLength { characters: 0 },
        ),
        (
            keyed(&[b'k'; 257]),
            RecordError::PartitionKeyLength { characters: 257 },
        ),
        (
            keyed("ü".repeat(257).as_bytes()),
            RecordError::PartitionKeyLength { characters: 257 },
        ),
        (
            keyed(b"ab\xff"),
            RecordError::PartitionKeyUtf8 { valid_bytes: 2 },
        ),
        (names, RecordError::HeaderNameUtf8 { header: 0 }),
        (
            many,
            RecordError::Headers {
                count: 65,
                bytes: 0,
            },
        ),
        (
            wide,
            RecordError::Headers {
                count: 1,
                bytes: 16_385,
            },
        ),
    ];
    for (bytes, error) in table {
        let body = [&RECORD, bytes.as_slice(), &RECORD].concat();
        let lie = Lie::around(3, &body);
        let batch = lie.decode().unwrap();
        let error = BatchError::Record { index: 1, error };
        assert_eq!(batch.check_body(RecordLimits::default()), Err(error));
        let whole = || Ok(record("k", "d"));
        assert_eq!(lie.records(), [whole(), Err(error), whole()]);
    }
    let longest = [keyed(&[b'k'; 256]), keyed("ü".repeat(256).as_bytes())].concat();
    Lie::around(2, &longest)
        .decode()
        .unwrap()
        .check_body(RecordLimits::default())
        .unwrap();
}

#[test]
fn a_record_above_the_streams_limit_is_refused() {
    let batch = Lie::around(1, &RECORD).decode().unwrap();
    let check = |max_record_bytes| batch.check_body(RecordLimits { max_record_bytes });
    assert_eq!(check(2), Ok(()));
    let error = RecordError::TooLarge { bytes: 2, limit: 1 };
    assert_eq!(check(1), Err(BatchError::Record { index: 0, error }));
}

#[test]
fn a_hash_key_outside_the_span_is_found() {
    let hash_key = HashKey::of(b"k");
    let value = hash_key.value();
    let table = [
        ((value, value), Ok(())),
        ((0, value), Ok(())),
        ((value, u128::MAX), Ok(())),
        (
            (0, value - 1),
            Err(BatchError::OutsideSpan { index: 0, hash_key }),
        ),
        (
            (value + 1, u128::MAX),
            Err(BatchError::OutsideSpan { index: 0, hash_key }),
        ),
    ];
    for (span, verdict) in table {
        let batch = Lie {
            span,
            ..Lie::around(1, &RECORD)
        }
        .decode()
        .unwrap();
        assert_eq!(batch.check_body(RecordLimits::default()), verdict);
    }
    // An explicit hash key counts instead of the partition key's.
    let explicit = [&[1, 1, b'k'][..], &5u128.to_le_bytes(), &[1, b'd']].concat();
    let batch = Lie {
        span: (5, 5),
        ..Lie::around(1, &explicit)
    }
    .decode()
    .unwrap();
    assert_eq!(batch.check_body(RecordLimits::default()), Ok(()));
}

#[test]
fn a_count_that_is_too_low_or_too_high_is_found() {
    let body = [RECORD, RECORD].concat();
    let low = Lie::around(1, &body);
    let trailing = malformed(0, RecordFault::TrailingBytes { bytes: 5 });
    assert_eq!(
        low.decode().unwrap().check_body(RecordLimits::default()),
        Err(trailing)
    );
    assert_eq!(low.records(), [Err(trailing)]);

    let long = [[0, 1, b'k', 6].as_slice(), b"123456"].concat();
    let high = Lie::around(2, &long);
    let missing = malformed(1, RecordFault::Truncated);
    assert_eq!(
        high.decode().unwrap().check_body(RecordLimits::default()),
        Err(missing)
    );
    assert_eq!(high.records(), [Ok(record("k", "123456")), Err(missing)]);
}

/// A last record with two things wrong with it: the broker and a consumer name the same one.
#[test]
fn a_bad_key_before_trailing_bytes_is_the_same_error_for_all() {
    let lie = Lie::around(1, &[0, 1, 0x80, 0, 9, 9]);
    let batch = lie.decode().unwrap();
    let refused = batch.check_body(RecordLimits::MAX).unwrap_err();
    assert!(matches!(refused, BatchError::Record { .. }), "{refused:?}");
    assert_eq!(batch.records().next(), Some(Err(refused)));
}

proptest! {
    /// What passes the check is exactly what its records encode to: no two bodies say the same.
    #[test]
    fn a_garbled_body_with_a_right_checksum_is_refused_or_exact(
        records in any_records(),
        place: prop::sample::Index,
        change in 1u8..,
        count in prop::option::weighted(0.2, 1u32..20),
    ) {
        let batch = batch_of(&records, Compression::None);
        let mut lie = Lie::around(batch.header().count, &batch.bytes()[Batch::HEADER_BYTES..]);
        lie.count = count.unwrap_or(lie.count);
        let place = place.index(lie.body.len());
        lie.body[place] ^= change;
        let Ok(batch) = lie.decode() else { return Ok(()) };
        let decoded: Vec<_> = batch.records().collect();
        prop_assert_eq!(decoded.len(), batch.header().count as usize);
        let verdict = batch.check_body(RecordLimits::MAX);
        match decoded.into_iter().collect::<Result<Vec<Record>, _>>() {
            Ok(records) => {
                prop_assert_eq!(verdict, Ok(()));
                let again = batch_of(&records, Compression::None);
                prop_assert_eq!(&again.bytes()[Batch::HEADER_BYTES..], lie.body.as_slice());
            }
            Err(error) => prop_assert_eq!(verdict, Err(error)),
        }
    }

    #[test]
    fn any_body_with_a_right_checksum_keeps_its_count(
        body in prop::collection::vec(prop_oneof![0u8..8, any::<u8>()], 4..200),
        compression in 0u8..3,
        count in 1u32..40,
        declared in 4u32..100_000,
    ) {
        let declared = if compression == 0 { body.len() as u32 } else { declared };
        let lie = Lie::compressed(count, declared as usize, compression, body);
        if let Ok(batch) = lie.decode() {
            prop_assert_eq!(batch.records().count(), count as usize);
            let verdict = batch.check_body(RecordLimits::MAX);
            let refused = batch.records().find_map(Result::err);
            prop_assert!(compression != 0 || verdict.err() == refused);
        }
    }
}
