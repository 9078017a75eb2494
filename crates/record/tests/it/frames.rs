//! Frames that are cut, garbled or from another version.

use bytes::{Bytes, BytesMut};
use flumen_record::{
    BatchError, Compression, FRAME_HEADER_BYTES, Frame, FrameError, FrameHeader, Frames,
    SequenceNumber, ShardEpoch, ShardId, Timestamp,
};

use crate::made::{batch_of, record};

fn frame(key: &str) -> BytesMut {
    let batch = batch_of(&[record(key, "data")], Compression::None);
    let header = FrameHeader {
        frame_bytes: 0,
        checksum: 0,
        shard: ShardId::from_value(1),
        epoch: ShardEpoch::new(2),
        base: SequenceNumber::new(3),
        arrival: Timestamp::from_micros(4),
    };
    let facts = batch.header();
    let mut bytes = BytesMut::from(&header.encode(facts.encoded_bytes, facts.checksum, 5)[..]);
    bytes.extend_from_slice(batch.bytes());
    bytes
}

fn walk(bytes: impl Into<Bytes>) -> Vec<Result<Frame, FrameError>> {
    Frames::new(bytes.into()).collect()
}

/// What the walk says about a frame of which the bytes from `place` on are `change`.
fn check(place: usize, change: &[u8], error: FrameError) {
    let mut bytes = frame("a");
    bytes[place..place + change.len()].copy_from_slice(change);
    assert_eq!(walk(bytes), [Err(error)]);
}

#[test]
fn headers_that_lie_are_refused() {
    check(20, &[0, 0], FrameError::Version { version: 0 });
    check(20, &[2, 0], FrameError::Version { version: 2 });
    check(22, &[1, 0], FrameError::Reserved { flags: 1 });
    check(22, &[0, 1], FrameError::Reserved { flags: 256 });
    check(0, &111u32.to_le_bytes(), FrameError::Length { bytes: 111 });
    check(
        0,
        &[0xff; 4],
        FrameError::Length {
            bytes: u64::from(u32::MAX),
        },
    );
    let (needed, found) = (1 << 24, frame("a").len() as u64);
    check(
        0,
        &(1u32 << 24).to_le_bytes(),
        FrameError::Truncated { needed, found },
    );
}

#[test]
fn a_batch_that_does_not_fill_its_frame_is_an_error() {
    let batch_bytes = frame("a").len() as u64 - FRAME_HEADER_BYTES as u64;
    let mut longer = frame("a");
    let frame_bytes = longer.len() as u32 + 1;
    longer.extend_from_slice(&[0]);
    longer[..4].copy_from_slice(&frame_bytes.to_le_bytes());
    let error = BatchError::Excess {
        needed: batch_bytes,
        excess: 1,
    };
    assert_eq!(walk(longer), [Err(FrameError::Batch(error))]);
}

#[test]
fn what_follows_a_damaged_frame_is_not_walked() {
    let mut bytes = BytesMut::new();
    bytes.extend_from_slice(&frame("a"));
    let damaged = bytes.len() + FRAME_HEADER_BYTES + 75;
    bytes.extend_from_slice(&frame("b"));
    bytes.extend_from_slice(&frame("c"));
    assert_eq!(
        walk(bytes.clone())
            .into_iter()
            .filter(Result::is_ok)
            .count(),
        3
    );
    bytes[damaged] ^= 1;
    let frames = walk(bytes);
    assert!(matches!(
        frames.as_slice(),
        [Ok(_), Err(FrameError::Batch(BatchError::Checksum { .. }))]
    ));
}

#[test]
fn every_cut_is_an_error_or_whole_frames() {
    let whole = [frame("a"), frame("b")].concat();
    let first = whole.len() / 2;
    for cut in 0..whole.len() {
        let frames = walk(whole[..cut].to_vec());
        let complete = cut / first;
        assert_eq!(
            frames.iter().filter(|frame| frame.is_ok()).count(),
            complete,
            "cut at {cut}"
        );
        let left = cut % first > 0;
        assert_eq!(frames.len(), complete + usize::from(left), "cut at {cut}");
    }
}

/// The checksum covers every byte of the header, the batch's checksum and the seed.
#[test]
fn a_checksum_belongs_to_one_header_one_batch_and_one_place() {
    let bytes = frame("a");
    let header = FrameHeader::decode(&bytes).unwrap();
    let batch = walk(bytes.clone()).remove(0).unwrap().batch;
    let checksum = batch.header().checksum;
    assert_eq!(header.expected_checksum(checksum, 5), header.checksum);
    assert_ne!(header.expected_checksum(checksum, 6), header.checksum);
    assert_ne!(header.expected_checksum(checksum ^ 1, 5), header.checksum);
    for place in (0..FRAME_HEADER_BYTES).filter(|place| !(4..8).contains(place)) {
        let mut changed = bytes.clone();
        changed[place] ^= 1;
        if let Ok(changed) = FrameHeader::decode(&changed) {
            assert_ne!(
                changed.expected_checksum(checksum, 5),
                header.checksum,
                "byte {place}"
            );
        }
    }
}
