//! The unit of delivery: which records one set of objects and one manifest stand for.

use std::fmt;

use flumen_record::{SequenceNumber, ShardIndex, Timestamp};
use md5::{Digest, Md5};
use serde::{Deserialize, Serialize};

/// One life of a delivery stream: a deleted one that is made again, here or on another node, shares
/// no object name with the first; nor does one that goes on after its state has forked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Incarnation {
    /// When it began.
    #[serde(rename = "began_us", with = "micros")]
    pub(crate) began: Timestamp,
    /// Its number on its node, of one that was created; a random one, of one that goes on.
    pub(crate) number: u64,
}

impl fmt::Display for Incarnation {
    /// Of fixed width, so that names sort by time.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:014x}-{:04x}", self.began.as_micros(), self.number)
    }
}

/// One run of the sink: a random number that each start draws, so that two data directories of which
/// one is a copy never give the same name to different cuts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Epoch(pub(crate) u64);

impl fmt::Display for Epoch {
    /// 16 hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl From<Epoch> for String {
    fn from(epoch: Epoch) -> Self {
        epoch.to_string()
    }
}

impl TryFrom<String> for Epoch {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let digits = text.len() == 16 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
        let epoch = u64::from_str_radix(&text, 16).ok().filter(|_| digits);
        epoch.map(Self).ok_or("an epoch has 16 hexadecimal digits")
    }
}

/// One shard's part of a cut: `from` up to, not including, `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutRange {
    /// The shard.
    #[serde(with = "shard")]
    pub shard: ShardIndex,
    /// First record.
    #[serde(with = "sequence")]
    pub from: SequenceNumber,
    /// First record after it.
    #[serde(with = "sequence")]
    pub to: SequenceNumber,
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
    /// The run that planned it: what tells it apart from a cut of the same number that a copy of this
    /// data directory plans. Missing in what earlier versions planned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) epoch: Option<Epoch>,
    /// How often it was made anew, because its spool was lost and somebody said so, or because what was
    /// written of it is not what it becomes now: names derive from it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) again: u32,
    /// The run that made it anew last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) remade: Option<Epoch>,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Cut {
    /// Arrival of its oldest record.
    pub(crate) fn oldest(&self) -> Timestamp {
        Timestamp::from_micros(self.oldest_us)
    }

    /// What everything that is written of it is named after.
    pub(crate) fn name(&self, incarnation: Incarnation) -> CutName {
        CutName {
            incarnation,
            number: self.number,
            epoch: self.epoch,
            again: self.again,
            remade: self.remade,
        }
    }

    /// It is made anew, under other names: what was written of it before is not a part of it.
    pub(crate) fn remake(&mut self, epoch: Epoch) {
        self.spooled = false;
        self.again += 1;
        self.remade = Some(epoch);
    }
}

/// Which cut, made for which time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CutName {
    /// Of the delivery stream.
    pub(crate) incarnation: Incarnation,
    /// Its number.
    pub(crate) number: u64,
    /// [`Cut::epoch`].
    pub(crate) epoch: Option<Epoch>,
    /// [`Cut::again`].
    pub(crate) again: u32,
    /// [`Cut::remade`].
    pub(crate) remade: Option<Epoch>,
}

impl CutName {
    /// The name of a cut in the metadata of everything that is written for it.
    pub(crate) fn id(&self, version: u64) -> String {
        let mut id = format!("{}-{}-{version}", self.incarnation, self.number);
        let mut add = |part: String| {
            id.push('-');
            id.push_str(&part);
        };
        if let Some(epoch) = self.epoch {
            add(epoch.to_string());
        }
        if self.again > 0 {
            add(self.again.to_string());
        }
        if let Some(epoch) = self.remade {
            add(epoch.to_string());
        }
        id
    }
}

/// 128 bits that stand for one object of a cut: everything in its key that looks random derives from
/// them. `what` tells objects of one cut apart.
pub(crate) fn unique(cut_id: &str, what: &[&str]) -> u128 {
    let mut hash = Md5::new();
    for part in std::iter::once(&cut_id).chain(what) {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    u128::from_le_bytes(hash.finalize().into())
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
pub(crate) mod micros {
    use flumen_record::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(at: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(at.as_micros())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Timestamp, D::Error> {
        u64::deserialize(from).map(Timestamp::from_micros)
    }
}

/// Times that may be missing, in microseconds.
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
        let of = |began, number| {
            Incarnation {
                began: Timestamp::from_micros(began),
                number,
            }
            .to_string()
        };
        assert!(of(9, 7) < of(10, 1));
        assert!(of(1_790_000_000_000_000, 1) < of(1_790_000_000_000_001, 1));
        assert_ne!(of(1, 1), of(1, 2));
    }

    /// Two data directories, one of which is a copy, plan a cut of the same number.
    #[test]
    fn cuts_of_one_number_are_told_apart_by_the_run_that_planned_them() {
        let name = |epoch, again, remade| CutName {
            incarnation: Incarnation {
                began: Timestamp::from_micros(9),
                number: 1,
            },
            number: 3,
            epoch,
            again,
            remade,
        };
        let id = |epoch, again, remade| name(epoch, again, remade).id(2);
        let (one, other) = (Some(Epoch(1)), Some(Epoch(2)));
        assert_eq!(id(None, 0, None), "00000000000009-0001-3-2", "as it was");
        assert_eq!(id(None, 1, None), "00000000000009-0001-3-2-1", "as it was");
        assert_ne!(id(one, 0, None), id(other, 0, None));
        assert_ne!(id(one, 1, one), id(one, 1, other));
        assert_ne!(id(one, 0, None), id(None, 0, None));
        let text = String::from(Epoch(0xa));
        assert_eq!(text, "000000000000000a");
        assert_eq!(Epoch::try_from(text), Ok(Epoch(10)));
        for wrong in ["", "a", "+00000000000000a", "000000000000000g"] {
            assert!(Epoch::try_from(wrong.to_owned()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_tells_objects_apart_is_not_ambiguous() {
        assert_ne!(unique("a", &["bc", "d"]), unique("a", &["b", "cd"]));
        assert_ne!(unique("a", &["b"]), unique("ab", &[]));
        assert_eq!(unique("a", &["b"]), unique("a", &["b"]));
    }
}
