//! Records that a batch does not take.

use bytes::Bytes;
use flumen_record::{
    Batch, BatchBuilder, Compression, HashKey, Header, ProducerId, ProducerSequence, Record,
    RecordError, RecordLimits,
};

use crate::made::{header, record};

#[test]
fn a_refused_record_leaves_the_batch_as_it_was() {
    let wide = vec![0u8; 16 << 10];
    let with_headers = |headers| Record {
        headers,
        ..record("k", "d")
    };
    let key = |bytes: &'static [u8]| Record {
        partition_key: Bytes::from_static(bytes),
        ..record("k", "d")
    };
    let name = |bytes: &'static [u8]| {
        let header = header("", "");
        with_headers(vec![Header {
            name: Bytes::from_static(bytes),
            ..header
        }])
    };
    let table = [
        (key(b""), RecordError::PartitionKeyLength { characters: 0 }),
        (
            record(&"ü".repeat(257), "d"),
            RecordError::PartitionKeyLength { characters: 257 },
        ),
        (
            key(b"\xc3"),
            RecordError::PartitionKeyUtf8 { valid_bytes: 0 },
        ),
        (name(b"\xc3"), RecordError::HeaderNameUtf8 { header: 0 }),
        (
            with_headers(vec![header("n", "v"); 65]),
            RecordError::Headers {
                count: 65,
                bytes: 130,
            },
        ),
        (
            with_headers(vec![header("n", wide)]),
            RecordError::Headers {
                count: 1,
                bytes: 16_385,
            },
        ),
        (
            record("k", vec![0; 1 << 20]),
            RecordError::TooLarge {
                bytes: (1 << 20) + 1,
                limit: 1 << 20,
            },
        ),
    ];
    let mut builder = BatchBuilder::new(RecordLimits::default());
    builder
        .push(&record("k", "first"), HashKey::of(b"k"))
        .unwrap();
    let before = (builder.count(), builder.encoded_bytes(), builder.span());
    for (record, error) in table {
        assert_eq!(builder.push(&record, HashKey::MIN), Err(error));
        assert_eq!(
            (builder.count(), builder.encoded_bytes(), builder.span()),
            before
        );
    }
}

#[test]
fn a_batch_takes_records_until_it_is_full() {
    let mut builder = BatchBuilder::new(RecordLimits::MAX);
    let large = record("k", vec![0; 5 << 20]);
    for _ in 0..3 {
        builder.push(&large, large.hash_key()).unwrap();
    }
    let bytes = (72 + 4 * (1 + 2 + 4 + (5 << 20))) as u64;
    let full = RecordError::BatchFull {
        bytes,
        limit: 16 << 20,
    };
    assert_eq!(builder.push(&large, large.hash_key()), Err(full));
    let rest = Batch::MAX_ENCODED_BYTES - builder.encoded_bytes() - 1 - 2 - 3;
    let last = record("k", vec![0; rest]);
    builder.push(&last, last.hash_key()).unwrap();
    let batch = builder.finish(
        ProducerId::NONE,
        ProducerSequence::new(0),
        Compression::None,
    );
    assert_eq!(batch.bytes().len(), Batch::MAX_ENCODED_BYTES);
    let batch = Batch::decode(batch.bytes().clone()).unwrap();
    batch.check_body(RecordLimits::MAX).unwrap();
    builder.push(&large, large.hash_key()).unwrap();
}
