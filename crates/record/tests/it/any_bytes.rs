//! Whatever the bytes: they are what was encoded, or a typed error.

use bytes::Bytes;
use flumen_record::{Batch, Frames, RecordLimits};
use proptest::prelude::*;

use crate::made::{any_compression, any_records, batch_of};

/// Decodes as far as it goes; nothing of it may panic, and the number of records is kept.
fn exercise(bytes: Bytes) {
    if let Ok(batch) = Batch::decode(bytes.clone()) {
        let _verdict = batch.check_body(RecordLimits::default());
        assert_eq!(batch.records().count(), batch.header().count as usize);
    }
    for frame in Frames::new(bytes).flatten() {
        assert_eq!(
            frame.batch.records().count(),
            frame.batch.header().count as usize
        );
    }
}

proptest! {
    #[test]
    fn one_changed_byte_is_an_error(
        records in any_records(),
        compression in any_compression(),
        place: prop::sample::Index,
        change in 1u8..,
    ) {
        let mut bytes = batch_of(&records, compression).bytes().to_vec();
        let place = place.index(bytes.len());
        bytes[place] ^= change;
        prop_assert!(Batch::decode(Bytes::from(bytes)).is_err());
    }

    #[test]
    fn every_length_but_its_own_is_an_error(
        records in any_records(),
        compression in any_compression(),
        place: prop::sample::Index,
        excess in prop::collection::vec(any::<u8>(), 1..100),
    ) {
        let batch = batch_of(&records, compression);
        let cut = batch.bytes().slice(..place.index(batch.bytes().len()));
        prop_assert!(Batch::decode(cut).is_err());
        let longer = [batch.bytes(), excess.as_slice()].concat();
        prop_assert!(Batch::decode(Bytes::from(longer)).is_err());
    }

    #[test]
    fn arbitrary_bytes_are_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        exercise(Bytes::from(bytes));
    }
}
