//! Names, numbers and places of consumer groups.

use std::fmt;

use flumen_record::SequenceNumber;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(u64);

        impl $name {
            /// From its plain value.
            pub const fn new(value: u64) -> Self {
                Self(value)
            }

            /// Its plain value.
            pub const fn value(self) -> u64 {
                self.0
            }

            /// The one after it.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0.saturating_add(1))
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
    /// A group's number on this node: from 1, never used again, also not for a group of the same
    /// name.
    GroupNumber
}
number! {
    /// A member's number in its group: from 1, a new one for every instance.
    MemberNumber
}
number! {
    /// What a lease was granted under: rises in a group with every grant, never used again. 0 is
    /// nobody's.
    Generation
}
number! {
    /// A random number of one process: tells a member that comes back from another one under its
    /// name.
    InstanceId
}
number! {
    /// One open RPC of a member, numbered by the caller, never used again while the node runs.
    SessionId
}

/// How far a group has come in a shard: all records before [`Checkpoint::next`] are processed, and
/// the first [`Checkpoint::parts`] parts of that one (what a subsequence number counts in
/// aggregated records). Reading resumes there. At the end of a closed shard it finishes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Checkpoint {
    next: SequenceNumber,
    parts: u64,
}

impl Checkpoint {
    /// Everything before this number is processed. With a closed shard's end: all of it is.
    pub const fn at(next: SequenceNumber) -> Self {
        Self { next, parts: 0 }
    }

    /// This record is the last that was processed.
    pub const fn after(last: SequenceNumber) -> Self {
        Self::at(last.plus(1))
    }

    /// Of this record all parts up to `subsequence`, counted from 0, are processed.
    pub const fn after_part(record: SequenceNumber, subsequence: u64) -> Self {
        Self {
            next: record,
            parts: subsequence.saturating_add(1),
        }
    }

    pub(super) const fn from_parts(next: SequenceNumber, parts: u64) -> Self {
        Self { next, parts }
    }

    /// The first record that is not, or not wholly, processed.
    pub const fn next(self) -> SequenceNumber {
        self.next
    }

    /// How many parts of it are processed.
    pub const fn parts(self) -> u64 {
        self.parts
    }

    /// The last record processed, and its subsequence if it was not the whole record. `None`:
    /// nothing yet.
    pub fn last(self) -> Option<(SequenceNumber, Option<u64>)> {
        match self.parts.checked_sub(1) {
            Some(subsequence) => Some((self.next, Some(subsequence))),
            None => Some((SequenceNumber::new(self.next.value().checked_sub(1)?), None)),
        }
    }

    /// Whether a shard that closed at `end` is processed to it.
    pub fn reaches(self, end: SequenceNumber) -> bool {
        self.next >= end
    }

    /// Whether a shard is processed to its end, if it has closed at one. Beyond the end a checkpoint
    /// says nothing of the records before it.
    pub fn finishes(self, end: Option<SequenceNumber>) -> bool {
        end.is_some_and(|end| self.reaches(end) && !self.is_beyond(end))
    }

    /// Whether it names something beyond `end`.
    pub fn is_beyond(self, end: SequenceNumber) -> bool {
        self > Self::at(end)
    }
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.next, self.parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_are_ordered_by_what_is_processed() {
        let number = SequenceNumber::new;
        let ascending = [
            Checkpoint::at(number(0)),
            Checkpoint::after_part(number(0), 0),
            Checkpoint::after_part(number(0), 1),
            Checkpoint::after(number(0)),
            Checkpoint::after_part(number(1), 0),
            Checkpoint::after(number(1)),
        ];
        assert!(ascending.is_sorted_by(|a, b| a < b));
        let last = ascending.map(Checkpoint::last);
        let at = |record, part| Some((number(record), part));
        let expected = [
            None,
            at(0, Some(0)),
            at(0, Some(1)),
            at(0, None),
            at(1, Some(0)),
            at(1, None),
        ];
        assert_eq!(last, expected);
        let end = number(1);
        assert_eq!(
            ascending.map(|at| at.reaches(end)),
            [false, false, false, true, true, true]
        );
        assert_eq!(
            ascending.map(|at| at.is_beyond(end)),
            [false, false, false, false, true, true]
        );
    }
}
