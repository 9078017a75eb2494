//! Aggregates of the Kinesis Producer Library: several records in one (row S26).
//!
//! The four magic bytes, a protobuf, and the MD5 of the protobuf. Anything else is a record as it is.

use bytes::Bytes;
use md5::{Digest, Md5};
use prost::Message;

const MAGIC: [u8; 4] = [0xF3, 0x89, 0x9A, 0xC2];
const DIGEST_BYTES: usize = 16;

#[derive(Clone, PartialEq, Message)]
struct AggregatedRecord {
    #[prost(string, repeated, tag = "1")]
    partition_keys: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    explicit_hash_keys: Vec<String>,
    #[prost(message, repeated, tag = "3")]
    records: Vec<AggregatedPart>,
}

#[derive(Clone, PartialEq, Message)]
struct AggregatedPart {
    #[prost(uint64, tag = "1")]
    partition_key: u64,
    #[prost(uint64, optional, tag = "2")]
    explicit_hash_key: Option<u64>,
    #[prost(bytes = "bytes", tag = "3")]
    data: Bytes,
}

/// One record of an aggregate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    /// Its partition key.
    pub(crate) partition_key: Bytes,
    /// Its data, a slice of the aggregate.
    pub(crate) data: Bytes,
}

/// Whether this begins as an aggregate does.
pub(crate) fn may_be(data: &[u8]) -> bool {
    data.starts_with(&MAGIC)
}

/// The records of an aggregate in their order; nothing if this is none.
pub(crate) fn parts(data: &Bytes) -> Option<Vec<Part>> {
    let rest = data.strip_prefix(&MAGIC)?;
    let end = data.len().checked_sub(DIGEST_BYTES)?;
    let message = data.get(MAGIC.len()..end)?;
    let digest = rest.get(message.len()..)?;
    if Md5::digest(message).as_slice() != digest {
        return None;
    }
    let aggregate = AggregatedRecord::decode(data.slice(MAGIC.len()..end)).ok()?;
    // Many records may share one long key: each is kept once.
    let keys = aggregate.partition_keys.into_iter().map(Bytes::from);
    let keys: Vec<Bytes> = keys.collect();
    let parts = aggregate.records.into_iter().map(|part| {
        let index = usize::try_from(part.partition_key).ok()?;
        let partition_key = keys.get(index)?;
        if let Some(index) = part.explicit_hash_key {
            // Where it was routed; of no use here, but an aggregate that points nowhere is none.
            let index = usize::try_from(index).ok()?;
            aggregate.explicit_hash_keys.get(index)?;
        }
        Some(Part {
            partition_key: partition_key.clone(),
            data: part.data,
        })
    });
    parts.collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An aggregate of these records: partition key and data.
    pub(crate) fn aggregate(parts: &[(&str, &[u8])]) -> Bytes {
        let mut message = AggregatedRecord {
            explicit_hash_keys: vec!["340282366920938463463374607431768211455".to_owned()],
            ..AggregatedRecord::default()
        };
        for (index, (key, data)) in parts.iter().enumerate() {
            message.partition_keys.push((*key).to_owned());
            message.records.push(AggregatedPart {
                partition_key: index as u64,
                explicit_hash_key: (index == 0).then_some(0),
                data: Bytes::copy_from_slice(data),
            });
        }
        sealed(&message.encode_to_vec())
    }

    fn sealed(message: &[u8]) -> Bytes {
        let digest = Md5::digest(message);
        [&MAGIC[..], message, digest.as_slice()].concat().into()
    }

    #[test]
    fn an_aggregate_is_taken_apart() {
        let parts = parts(&aggregate(&[("a", b"one"), ("b", b""), ("c", b"three")])).unwrap();
        let parts: Vec<(&[u8], &[u8])> = parts
            .iter()
            .map(|p| (&p.partition_key[..], &p.data[..]))
            .collect();
        assert_eq!(
            parts,
            [(&b"a"[..], &b"one"[..]), (b"b", b""), (b"c", b"three")]
        );
    }

    /// As the producer library's own documentation lays it out, byte for byte.
    #[test]
    fn the_layout_is_that_of_the_producer_library() {
        let message = b"\x0a\x01k\x1a\x08\x08\x00\x1a\x04data";
        let parts = parts(&sealed(message)).unwrap();
        assert_eq!(parts.len(), 1);
        assert_eq!(
            (&parts[0].partition_key[..], &parts[0].data[..]),
            (&b"k"[..], &b"data"[..])
        );
    }

    #[test]
    fn anything_else_is_none() {
        let good = aggregate(&[("a", b"one")]);
        for cut in 0..good.len() {
            assert_eq!(parts(&good.slice(..cut)), None, "{cut}");
            let mut bent = good.to_vec();
            bent[cut] ^= 1;
            assert_eq!(parts(&Bytes::from(bent)), None, "{cut}");
        }
        let points_nowhere = b"\x0a\x01k\x1a\x08\x08\x01\x1a\x04data";
        assert_eq!(parts(&sealed(points_nowhere)), None);
        let no_hash_key = b"\x0a\x01k\x1a\x0a\x08\x00\x10\x00\x1a\x04data";
        assert_eq!(parts(&sealed(no_hash_key)), None);
    }

    /// Each record had a copy of its key: an aggregate of a mebibyte became gigabytes.
    #[test]
    fn records_that_share_a_key_share_its_bytes() {
        let mut message = AggregatedRecord {
            partition_keys: vec!["k".repeat(500_000)],
            ..AggregatedRecord::default()
        };
        let part = AggregatedPart {
            partition_key: 0,
            explicit_hash_key: None,
            data: Bytes::from_static(b"d"),
        };
        message.records = vec![part; 1_000];
        let parts = parts(&sealed(&message.encode_to_vec())).unwrap();
        let places = parts.iter().map(|part| part.partition_key.as_ptr());
        let places: std::collections::BTreeSet<_> = places.collect();
        assert_eq!((parts.len(), places.len()), (1_000, 1));
    }

    proptest::proptest! {
        /// Under a right seal may be anything.
        #[test]
        fn no_message_panics(
            edits in proptest::collection::vec((0_usize..64, proptest::num::u8::ANY), 0..6),
        ) {
            let good = aggregate(&[("a", b"one"), ("key", b""), ("c", b"three")]);
            let mut message = good[MAGIC.len()..good.len() - DIGEST_BYTES].to_vec();
            for (at, byte) in edits {
                let at = at % message.len();
                message[at] = byte;
            }
            if let Some(parts) = parts(&sealed(&message)) {
                let bytes: usize = parts.iter().map(|part| part.data.len()).sum();
                assert!(bytes <= message.len());
            }
        }
    }
}
