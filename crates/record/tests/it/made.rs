//! Batches and records to test with.

use bytes::Bytes;
use flumen_record::{
    Batch, BatchBuilder, Compression, HashKey, Header, ProducerId, ProducerSequence, Record,
    RecordLimits, Timestamp,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

pub(crate) const COMPRESSIONS: [Compression; 3] =
    [Compression::None, Compression::Lz4, Compression::Zstd];

pub(crate) fn record(partition_key: &str, data: impl Into<Bytes>) -> Record {
    Record {
        partition_key: Bytes::copy_from_slice(partition_key.as_bytes()),
        explicit_hash_key: None,
        data: data.into(),
        client_timestamp: None,
        headers: Vec::new(),
    }
}

pub(crate) fn header(name: &str, value: impl Into<Bytes>) -> Header {
    Header {
        name: Bytes::copy_from_slice(name.as_bytes()),
        value: value.into(),
    }
}

pub(crate) fn builder_of(records: &[Record]) -> BatchBuilder {
    let mut builder = BatchBuilder::new(RecordLimits::MAX);
    for record in records {
        builder.push(record, record.hash_key()).unwrap();
    }
    builder
}

pub(crate) fn batch_of(records: &[Record], compression: Compression) -> Batch {
    builder_of(records).finish(ProducerId::new(7), ProducerSequence::new(42), compression)
}

fn any_header() -> impl Strategy<Value = Header> {
    ("\\PC{0,12}", vec(any::<u8>(), 0..40)).prop_map(|(name, value)| header(&name, value))
}

fn any_data() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(any::<u8>(), 0..300),
        // Something to compress, of lengths that need two and three bytes to write.
        (any::<u8>(), 0usize..20_000).prop_map(|(byte, bytes)| vec![byte; bytes]),
    ]
}

pub(crate) fn any_record() -> impl Strategy<Value = Record> {
    let timestamp = option::of(any::<u64>().prop_map(Timestamp::from_micros));
    let hash_key = option::of(any::<u128>().prop_map(HashKey::new));
    (
        "\\PC{1,256}",
        hash_key,
        any_data(),
        timestamp,
        vec(any_header(), 0..4),
    )
        .prop_map(
            |(key, explicit_hash_key, data, client_timestamp, headers)| Record {
                partition_key: Bytes::from(key),
                explicit_hash_key,
                data: Bytes::from(data),
                client_timestamp,
                headers,
            },
        )
}

pub(crate) fn any_records() -> impl Strategy<Value = Vec<Record>> {
    vec(any_record(), 1..12)
}

pub(crate) fn any_compression() -> impl Strategy<Value = Compression> {
    prop::sample::select(COMPRESSIONS.as_slice())
}
