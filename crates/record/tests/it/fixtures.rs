//! Bytes written once and for all: what earlier versions stored must be read for ever.
//!
//! `FLUMEN_TEST_FIXTURES=write cargo test -p flumen-record --test it fixtures` writes them anew, which
//! is right only together with a new format version (`docs/format.md`).

use std::fs;
use std::path::PathBuf;

use bytes::Bytes;
use flumen_record::{
    Batch, Compression, Frame, FrameHeader, Frames, HashKey, ProducerId, ProducerSequence, Record,
    RecordLimits, SequenceNumber, ShardEpoch, ShardId, ShardIndex, StreamId, Timestamp,
};

use crate::made::{builder_of, header, record};

const SEED: u64 = 0x0123_4567_89ab_cdef;

/// One of each: plain, every field set, the longest key, non-ASCII, no data, data to compress.
fn records() -> Vec<Record> {
    let full = Record {
        explicit_hash_key: Some(HashKey::new(0x0123_4567_89ab_cdef_0011_2233_4455_6677)),
        client_timestamp: Some(Timestamp::from_micros(1_700_000_000_123_456)),
        headers: vec![
            header("content-type", "application/json"),
            header("empty", ""),
        ],
        ..record("sensor-2", r#"{"temperature":21.5}"#)
    };
    vec![
        record("sensor-1", r#"{"temperature":20.0}"#),
        full,
        record(&"k".repeat(256), "longest key"),
        record("größe-温度", &b"\x00\xff\x80"[..]),
        record("no data", ""),
        record("sensor-1", vec![b'0'; 2_000]),
    ]
}

fn batch(compression: Compression) -> Batch {
    let (producer, sequence) = (ProducerId::new(11), ProducerSequence::new(12));
    builder_of(&records()).finish(producer, sequence, compression)
}

fn frames() -> Bytes {
    let mut bytes = Vec::new();
    let mut base = 1_000;
    for _ in 0..2 {
        let batch = batch(Compression::None);
        let header = FrameHeader {
            frame_bytes: 0,
            checksum: 0,
            shard: ShardId::new(StreamId::new(3), ShardIndex::new(4)),
            epoch: ShardEpoch::new(5),
            base: SequenceNumber::new(base),
            arrival: Timestamp::from_micros(1_700_000_000_000_000 + base),
        };
        let (bytes_of_batch, checksum) = (batch.header().encoded_bytes, batch.header().checksum);
        bytes.extend_from_slice(&header.encode(bytes_of_batch, checksum, SEED));
        bytes.extend_from_slice(batch.bytes());
        base += u64::from(batch.header().count);
    }
    Bytes::from(bytes)
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

/// The stored bytes; stores `encoded` first when asked to.
fn stored(name: &str, encoded: &[u8]) -> Bytes {
    if std::env::var("FLUMEN_TEST_FIXTURES").is_ok_and(|wish| wish == "write") {
        fs::create_dir_all(path("")).unwrap();
        fs::write(path(name), encoded).unwrap();
        fs::write(path(&format!("{name}.md5")), md5(encoded)).unwrap();
    }
    let bytes = fs::read(path(name)).unwrap();
    let listed = fs::read_to_string(path(&format!("{name}.md5"))).unwrap();
    assert_eq!(
        md5(&bytes),
        listed,
        "{name} is not the file that was reviewed"
    );
    Bytes::from(bytes)
}

fn md5(bytes: &[u8]) -> String {
    format!("{:032x}\n", HashKey::of(bytes).value())
}

#[test]
fn batches_without_compression_are_byte_for_byte_what_they_were() {
    let batch = batch(Compression::None);
    assert_eq!(stored("batch_none.bin", batch.bytes()), batch.bytes());
    batch.check_body(RecordLimits::default()).unwrap();
}

/// A newer compressor may find other bytes, but what an older one wrote must be read.
#[test]
fn stored_batches_decode_to_their_records() {
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
        let encoded = batch(compression);
        let name = format!("batch_{compression}.bin");
        let batch = Batch::decode(stored(&name, encoded.bytes())).unwrap();
        let (found, expected) = (batch.header(), encoded.header());
        assert_eq!(found.compression, compression);
        assert_eq!(found.count, expected.count);
        assert_eq!(found.uncompressed_bytes, expected.uncompressed_bytes);
        assert_eq!(
            (found.producer, found.sequence),
            (expected.producer, expected.sequence)
        );
        assert_eq!(found.span, expected.span);
        let decoded: Vec<Record> = batch.records().map(Result::unwrap).collect();
        assert_eq!(decoded, records());
    }
}

#[test]
fn frames_are_byte_for_byte_what_they_were() {
    let bytes = frames();
    let stored = stored("frames.bin", &bytes);
    assert_eq!(stored, bytes);
    let frames: Vec<Frame> = Frames::new(stored).map(Result::unwrap).collect();
    assert_eq!(frames.len(), 2);
    for (frame, base) in frames.iter().zip([1_000, 1_006]) {
        assert_eq!(frame.header.base, SequenceNumber::new(base));
        let checksum = frame.batch.header().checksum;
        assert_eq!(
            frame.header.expected_checksum(checksum, SEED),
            frame.header.checksum
        );
    }
}
