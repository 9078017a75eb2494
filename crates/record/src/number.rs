//! Identities and counters: what streams, shards, producers and records are numbered by.

use std::fmt;

use crate::Timestamp;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name($inner);

        impl $name {
            /// From its plain value.
            pub const fn new(value: $inner) -> Self {
                Self(value)
            }

            /// Its plain value.
            pub const fn value(self) -> $inner {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number! {
    /// A stream's number on this node: given at creation, never reused, also not for a stream of the same name.
    StreamId(u32)
}
number! {
    /// Which stream of a name: two that had one name after each other, here or in a copy of this data
    /// directory, differ in it. Never 0.
    StreamIncarnation(u64)
}
number! {
    /// A delivery stream's number on this node: given at creation, never reused.
    DeliveryId(u64)
}
number! {
    /// A shard's number within its stream, from 0, never reused; children of a reshard get new ones.
    ShardIndex(u32)
}
number! {
    /// The place of a record in its shard: dense from 0, but for recorded jumps.
    SequenceNumber(u64)
}
number! {
    /// Counts the owners a shard has had; a frame of an older epoch is never newer data.
    ShardEpoch(u32)
}
number! {
    /// A producer's number, issued by the broker, increasing, never reused. 0 means "no producer".
    ProducerId(u64)
}
number! {
    /// Counts a producer's batches per shard, from 0 without gaps.
    ProducerSequence(u64)
}

impl StreamIncarnation {
    /// Of the stream with this number that was created then: a number is never given twice in one data
    /// directory, and in a copy of it at another moment.
    pub const fn of(id: StreamId, created: Timestamp) -> Self {
        // SplitMix64's finalizer, twice: every bit of both counts.
        let mixed = mix(created.as_micros() ^ mix(id.0 as u64 + 1));
        // 0 means "whichever has the name" on the wire.
        Self(if mixed == 0 { 1 } else { mixed })
    }

    /// From 16 hexadecimal digits, as people see it.
    pub fn from_hex(text: &str) -> Option<Self> {
        let digits = text.len() == 16 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
        let value = u64::from_str_radix(text, 16).ok().filter(|_| digits)?;
        (value > 0).then_some(Self(value))
    }

    /// As 16 hexadecimal digits.
    pub fn to_hex(self) -> String {
        format!("{:016x}", self.0)
    }
}

const fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

impl SequenceNumber {
    /// The first record of a shard.
    pub const ZERO: Self = Self(0);
    /// Where a position beyond every record stands.
    pub const MAX: Self = Self(u64::MAX);

    /// This number moved up by `count` records; saturates, so that a hostile count cannot wrap.
    #[must_use]
    pub const fn plus(self, count: u64) -> Self {
        Self(self.0.saturating_add(count))
    }
}

impl ProducerId {
    /// A batch sent without a producer id: at-least-once.
    pub const NONE: Self = Self(0);
}

/// One shard, unique on its node: the stream's number above, the shard's index below.
///
/// The log knows nothing else of streams and shards than this number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(u64);

impl ShardId {
    /// The shard `index` of `stream`.
    pub const fn new(stream: StreamId, index: ShardIndex) -> Self {
        Self(((stream.0 as u64) << 32) | index.0 as u64)
    }

    /// From the number written in a frame.
    pub const fn from_value(value: u64) -> Self {
        Self(value)
    }

    /// The number written in a frame.
    pub const fn value(self) -> u64 {
        self.0
    }

    /// The stream it belongs to.
    pub const fn stream(self) -> StreamId {
        StreamId((self.0 >> 32) as u32)
    }

    /// Its index within the stream.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the lower half of the number"
    )]
    pub const fn index(self) -> ShardIndex {
        ShardIndex(self.0 as u32)
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.stream(), self.index())
    }
}

/// What an acknowledgement promises, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Durability {
    /// Written, synced in the background about every 50 ms: survives the process, not a power cut.
    Memory,
    /// Synced to this node's disk before the ack: survives a power cut. The default.
    Disk,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// These values are known to clients and stand in files: they never change.
    #[test]
    fn incarnations_are_what_they_always_were() {
        let of = |id, created| {
            let created = Timestamp::from_micros(created);
            StreamIncarnation::of(StreamId::new(id), created)
        };
        let known = of(7, 1_795_905_736_598_397);
        assert_eq!(known.to_hex(), "e8b686a643613381");
        assert_eq!(StreamIncarnation::from_hex("e8b686a643613381"), Some(known));
        for other in [of(8, 1_795_905_736_598_397), of(7, 1_795_905_736_598_398)] {
            assert_ne!(other, known);
        }
        for wrong in [
            "",
            "1",
            "+000000000000001",
            "0000000000000000",
            "000000000000000g",
        ] {
            assert_eq!(StreamIncarnation::from_hex(wrong), None, "{wrong}");
        }
    }
}
