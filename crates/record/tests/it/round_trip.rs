//! What is encoded is what is decoded.

use bytes::{Bytes, BytesMut};
use flumen_record::{
    Batch, BatchBuilder, Compression, FRAME_HEADER_BYTES, Frame, FrameHeader, Frames, HashKey,
    HashKeyCache, HashRange, ProducerId, ProducerSequence, Record, RecordLimits, SequenceNumber,
    ShardEpoch, ShardId, Timestamp,
};
use proptest::prelude::*;

use crate::made::{COMPRESSIONS, any_compression, any_records, batch_of, builder_of, record};

proptest! {
    #[test]
    fn any_records_come_out_as_they_went_in(
        records in any_records(),
        compression in any_compression(),
        producer in any::<u64>(),
        sequence in any::<u64>(),
    ) {
        let (producer, sequence) = (ProducerId::new(producer), ProducerSequence::new(sequence));
        let mut builder = builder_of(&records);
        let uncompressed_bytes = builder.encoded_bytes() - Batch::HEADER_BYTES;
        let encoded = builder.finish(producer, sequence, compression);
        let batch = Batch::decode(encoded.bytes().clone())?;
        prop_assert_eq!(&batch, &encoded);

        let header = batch.header();
        prop_assert_eq!(header.count as usize, records.len());
        prop_assert_eq!(header.uncompressed_bytes as usize, uncompressed_bytes);
        prop_assert_eq!((header.producer, header.sequence), (producer, sequence));
        let hash_keys = || records.iter().map(Record::hash_key);
        prop_assert_eq!(Some(header.span.start), hash_keys().min());
        prop_assert_eq!(Some(header.span.end), hash_keys().max());
        prop_assert!(header.compression == compression || header.compression == Compression::None);

        batch.check_body(RecordLimits::MAX)?;
        batch.check_body_with(RecordLimits::MAX, &mut HashKeyCache::new(2))?;
        let decoded: Vec<Record> = batch.records().collect::<Result<_, _>>()?;
        prop_assert_eq!(decoded, records);
    }

    #[test]
    fn frames_come_out_as_they_went_in(
        batches in prop::collection::vec((any_records(), any_compression()), 0..4),
        numbers: [u64; 4],
        epoch: u32,
    ) {
        let [shard, base, arrival, seed] = numbers;
        let header = FrameHeader {
            frame_bytes: 0,
            checksum: 0,
            shard: ShardId::from_value(shard),
            epoch: ShardEpoch::new(epoch),
            base: SequenceNumber::new(base),
            arrival: Timestamp::from_micros(arrival),
        };
        let mut bytes = BytesMut::new();
        let mut expected = Vec::new();
        for (records, compression) in batches {
            let batch = batch_of(&records, compression);
            let (encoded_bytes, checksum) =
                (batch.header().encoded_bytes, batch.header().checksum);
            let encoded = header.encode(encoded_bytes, checksum, seed);
            bytes.extend_from_slice(&encoded);
            bytes.extend_from_slice(batch.bytes());
            let decoded = FrameHeader::decode(&encoded)?;
            let frame_bytes = encoded_bytes + FRAME_HEADER_BYTES as u32;
            prop_assert_eq!(decoded, FrameHeader { frame_bytes, checksum: decoded.checksum, ..header });
            prop_assert_eq!(decoded.checksum, decoded.expected_checksum(checksum, seed));
            prop_assert_ne!(decoded.checksum, decoded.expected_checksum(checksum, !seed));
            prop_assert_ne!(decoded.checksum, decoded.expected_checksum(!checksum, seed));
            expected.push(Frame { header: decoded, batch });
        }
        let frames: Vec<Frame> = Frames::new(bytes.freeze()).collect::<Result<_, _>>()?;
        prop_assert_eq!(frames, expected);
    }
}

#[test]
fn a_builder_starts_afresh_after_each_batch() {
    for compression in COMPRESSIONS {
        let mut builder = BatchBuilder::new(RecordLimits::default());
        let mut batches = Vec::new();
        for round in 0..4u8 {
            assert_eq!(
                (builder.count(), builder.encoded_bytes()),
                (0, Batch::HEADER_BYTES)
            );
            assert!(builder.is_empty());
            let records: Vec<Record> = (0..=round)
                .map(|i| record(&format!("{round}-{i}"), vec![round; 1000 * usize::from(i)]))
                .collect();
            for record in &records {
                builder.push(record, record.hash_key()).unwrap();
            }
            assert_eq!(builder.count(), u32::from(round) + 1);
            let sequence = ProducerSequence::new(u64::from(round));
            batches.push((
                records,
                builder.finish(ProducerId::new(1), sequence, compression),
            ));
        }
        for (records, batch) in batches {
            batch.check_body(RecordLimits::default()).unwrap();
            let decoded: Vec<Record> = batch.records().map(Result::unwrap).collect();
            assert_eq!(decoded, records);
        }
    }
}

#[test]
fn a_restamped_batch_differs_in_its_producer_only() {
    for compression in COMPRESSIONS {
        let batch = batch_of(&[record("key", vec![7; 500])], compression);
        let (producer, sequence) = (ProducerId::new(77), ProducerSequence::new(0));
        let restamped = batch.restamped(producer, sequence);
        let expected = builder_of(&[record("key", vec![7; 500])]);
        assert_eq!(
            restamped,
            { expected }.finish(producer, sequence, compression)
        );
        assert_eq!(Batch::decode(restamped.bytes().clone()), Ok(restamped));
        assert_eq!(batch.header().producer, ProducerId::new(7));
    }
}

#[test]
fn builders_and_batches_may_move_between_threads() {
    fn may_move<T: Send + 'static>() {}
    may_move::<BatchBuilder>();
    may_move::<HashKeyCache>();
    may_move::<Batch>();
    may_move::<Frames>();
}

#[test]
fn decoded_records_share_the_bytes_of_their_batch() {
    let batch = batch_of(&[record("key", vec![9; 100])], Compression::None);
    let decoded = batch.records().next().unwrap().unwrap();
    let within = batch.bytes().as_ptr_range();
    assert!(within.contains(&decoded.data.as_ptr()));
    assert!(within.contains(&decoded.partition_key.as_ptr()));
}

#[test]
fn what_does_not_compress_is_stored_as_it_is() {
    for compression in COMPRESSIONS {
        let small = batch_of(&[record("k", Bytes::new())], compression);
        assert_eq!(small.header().compression, Compression::None);
        let repetitive = batch_of(&[record("k", vec![b'x'; 10_000])], compression);
        assert_eq!(repetitive.header().compression, compression);
    }
}

#[test]
fn records_pushed_within_a_range_span_all_of_it() {
    let mut builder = BatchBuilder::new(RecordLimits::default());
    builder
        .push_within(&record("a", "1"), HashRange::FULL)
        .unwrap();
    builder.push(&record("b", "2"), HashKey::of(b"b")).unwrap();
    let batch = builder.finish(
        ProducerId::NONE,
        ProducerSequence::new(0),
        Compression::None,
    );
    assert_eq!(batch.header().span, HashRange::FULL);
    batch.check_body(RecordLimits::default()).unwrap();
}
