//! Any bytes as consecutive frames: what comes out is what went in, frame by frame.
#![no_main]

use bytes::Bytes;
use flumen_record::{FRAME_HEADER_BYTES, Frames};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut rest = data;
    for frame in Frames::new(Bytes::copy_from_slice(data)) {
        let Ok(frame) = frame else { return };
        let (taken, left) = rest.split_at(frame.header.frame_bytes as usize);
        let (header, batch) = taken.split_at(FRAME_HEADER_BYTES);
        assert_eq!(batch, frame.batch.bytes());
        let facts = frame.batch.header();
        let mut again = frame.header.encode(facts.encoded_bytes, facts.checksum, 0);
        again[4..8].copy_from_slice(&header[4..8]);
        assert_eq!(again, header);
        rest = left;
    }
    assert!(rest.is_empty());
});
