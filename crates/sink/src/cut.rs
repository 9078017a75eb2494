//! The unit of delivery: which records one set of objects and one manifest stand for.

use std::fmt;

use flumen_record::{DeliveryId, SequenceNumber, ShardIndex, Timestamp};
use md5::{Digest, Md5};
use serde::{Deserialize, Serialize};

/// One life of a delivery stream: a deleted one that is made again, here or on another node, shares
/// no object name with the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation {
    /// When it was created.
    pub created: Timestamp,
    /// Its number on its node.
    pub id: DeliveryId,
}

impl fmt::Display for Incarnation {
    /// Of fixed width, so that names sort by time.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:014x}-{:04x}",
            self.created.as_micros(),
            self.id.value()
        )
    }
}

/// One shard's part of a cut: `from` up to, not including, `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CutRange {
    /// The shard.
    #[serde(with = "shard")]
    pub(crate) shard: ShardIndex,
    /// First record.
    #[serde(with = "sequence")]
    pub(crate) from: SequenceNumber,
    /// First record after it.
    #[serde(with = "sequence")]
    pub(crate) to: SequenceNumber,
}

/// How far a cut has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CutStage {
    /// Nothing but objects may have been written.
    Planned,
    /// Its manifest may have been written: its records, keys and settings stand for ever.
    Sealing,
}

/// A planned cut. Durable before anything of it is uploaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cut {
    /// Its number, from 0 without gaps.
    pub(crate) number: u64,
    /// The version of the settings it is written with.
    pub(crate) version: u64,
    /// Its records: each shard once, parents before their children.
    pub(crate) ranges: Vec<CutRange>,
    /// Arrival of its oldest record, in microseconds.
    pub(crate) oldest_us: u64,
    /// Stored records in it.
    pub(crate) records: u64,
    /// How far it has come.
    pub(crate) stage: CutStage,
    /// What it becomes could come out differently a second time: the spool holds it, synced.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) spooled: bool,
    /// How often its spool was lost and somebody said to make it anew: names derive from it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) again: u32,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Cut {
    /// Arrival of its oldest record.
    pub(crate) fn oldest(&self) -> Timestamp {
        Timestamp::from_micros(self.oldest_us)
    }
}

/// Which cut, made for which time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CutName {
    /// Of the delivery stream.
    pub(crate) incarnation: Incarnation,
    /// Its number.
    pub(crate) number: u64,
    /// [`Cut::again`].
    pub(crate) again: u32,
}

impl CutName {
    /// The name of a cut in the metadata of everything that is written for it.
    pub(crate) fn id(&self, version: u64) -> String {
        let Self {
            incarnation,
            number,
            again,
        } = self;
        match again {
            0 => format!("{incarnation}-{number}-{version}"),
            again => format!("{incarnation}-{number}-{version}-{again}"),
        }
    }
}

/// 128 bits that stand for one object of a cut: everything in its key that looks random derives from
/// them. `what` tells objects of one cut apart.
#[expect(
    clippy::big_endian_bytes,
    reason = "the digits of a hash, in the order they are written"
)]
pub(crate) fn unique(cut_id: &str, what: &[&str]) -> u128 {
    let mut hash = Md5::new();
    for part in std::iter::once(&cut_id).chain(what) {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    u128::from_be_bytes(hash.finalize().into())
}

/// Shard numbers in JSON.
pub(crate) mod shard {
    use flumen_record::ShardIndex;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(shard: &ShardIndex, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u32(shard.value())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<ShardIndex, D::Error> {
        u32::deserialize(from).map(ShardIndex::new)
    }
}

/// Sequence numbers in JSON: they go beyond what a double holds, and Rust reads them as they are.
pub(crate) mod sequence {
    use flumen_record::SequenceNumber;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(
        number: &SequenceNumber,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.serialize_u64(number.value())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<SequenceNumber, D::Error> {
        u64::deserialize(from).map(SequenceNumber::new)
    }
}

/// Times in JSON, in microseconds.
pub(crate) mod time {
    use flumen_record::Timestamp;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(
        at: &Option<Timestamp>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        at.map(Timestamp::as_micros).serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Timestamp>, D::Error> {
        Ok(Option::<u64>::deserialize(from)?.map(Timestamp::from_micros))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_incarnations_sort_by_time_and_differ_by_number() {
        let of = |created, id| {
            Incarnation {
                created: Timestamp::from_micros(created),
                id: DeliveryId::new(id),
            }
            .to_string()
        };
        assert!(of(9, 7) < of(10, 1));
        assert!(of(1_790_000_000_000_000, 1) < of(1_790_000_000_000_001, 1));
        assert_ne!(of(1, 1), of(1, 2));
    }

    #[test]
    fn what_tells_objects_apart_is_not_ambiguous() {
        assert_ne!(unique("a", &["bc", "d"]), unique("a", &["b", "cd"]));
        assert_ne!(unique("a", &["b"]), unique("ab", &[]));
        assert_eq!(unique("a", &["b"]), unique("a", &["b"]));
    }
}
