//! Any bytes as a batch: first as they are, then with the length and checksum they should have,
//! so that the fuzzer reaches the body.
#![no_main]

use bytes::{Bytes, BytesMut};
use flumen_record::{Batch, BatchBuilder, Compression, HashKeyCache, Record, RecordLimits};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    exercise(Bytes::copy_from_slice(data));
    if data.len() >= Batch::HEADER_BYTES {
        exercise(sealed(data));
    }
});

fn sealed(data: &[u8]) -> Bytes {
    let mut bytes = BytesMut::from(data);
    bytes[..4].copy_from_slice(&(data.len() as u32).to_le_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..4]);
    hasher.update(&bytes[8..]);
    bytes[4..8].copy_from_slice(&hasher.finalize().to_le_bytes());
    bytes.freeze()
}

fn exercise(bytes: Bytes) {
    let Ok(batch) = Batch::decode(bytes) else {
        return;
    };
    let items: Vec<_> = batch.records().collect();
    assert_eq!(items.len(), batch.header().count as usize);

    let verdict = batch.check_body(RecordLimits::MAX);
    assert_eq!(
        batch.check_body_with(RecordLimits::MAX, &mut HashKeyCache::new(4)),
        verdict
    );
    if batch.header().compression != Compression::None || verdict.is_err() {
        return;
    }
    let records: Vec<Record> = items
        .into_iter()
        .map(|item| item.expect("checked"))
        .collect();
    let mut builder = BatchBuilder::new(RecordLimits::MAX);
    for record in &records {
        builder
            .push_within(record, batch.header().span)
            .expect("checked");
    }
    let (producer, sequence) = (batch.header().producer, batch.header().sequence);
    assert_eq!(builder.finish(producer, sequence, Compression::None), batch);
}
