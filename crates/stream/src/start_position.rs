//! Where reading begins.

use flumen_record::{SequenceNumber, Timestamp};

/// A start position as users name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartPosition {
    /// The oldest record kept.
    TrimHorizon,
    /// After the last readable record at the time of the call.
    Latest,
    /// At this record. Below the trim horizon it is refused as trimmed.
    At(SequenceNumber),
    /// After this record.
    After(SequenceNumber),
    /// The first record that arrived at or after this time; before the horizon: the horizon.
    AtTimestamp(Timestamp),
}

/// A start position resolved against a shard's bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Begin here.
    At(SequenceNumber),
    /// Look the time up in the index first.
    FindTime(Timestamp),
    /// Asked below the horizon.
    Trimmed {
        /// What was asked.
        asked: SequenceNumber,
        /// The trim horizon.
        horizon: SequenceNumber,
    },
    /// Asked beyond the end of what was ever given out.
    Beyond {
        /// What was asked.
        asked: SequenceNumber,
        /// The durable end.
        end: SequenceNumber,
    },
}

impl StartPosition {
    /// Resolves against the two readable ends. `At` exactly the end is fine: it waits there. So is
    /// `After` the last record, and `After` the one just below the horizon.
    pub fn resolve(self, horizon: SequenceNumber, durable_end: SequenceNumber) -> Start {
        let end = durable_end;
        match self {
            Self::TrimHorizon => Start::At(horizon),
            Self::Latest => Start::At(end),
            Self::AtTimestamp(time) => Start::FindTime(time),
            Self::At(asked) if asked > end => Start::Beyond { asked, end },
            Self::At(asked) if asked < horizon => Start::Trimmed { asked, horizon },
            Self::At(asked) => Start::At(asked),
            Self::After(asked) if asked >= end => Start::Beyond { asked, end },
            Self::After(asked) if asked.plus(1) < horizon => Start::Trimmed { asked, horizon },
            Self::After(asked) => Start::At(asked.plus(1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(value: u64) -> SequenceNumber {
        SequenceNumber::new(value)
    }

    fn at(value: u64) -> Start {
        Start::At(number(value))
    }

    fn trimmed(asked: u64, horizon: u64) -> Start {
        let (asked, horizon) = (number(asked), number(horizon));
        Start::Trimmed { asked, horizon }
    }

    fn beyond(asked: u64, end: u64) -> Start {
        let (asked, end) = (number(asked), number(end));
        Start::Beyond { asked, end }
    }

    #[track_caller]
    fn check(position: StartPosition, horizon: u64, end: u64, expected: Start) {
        assert_eq!(position.resolve(number(horizon), number(end)), expected);
    }

    #[test]
    fn the_two_ends() {
        check(StartPosition::TrimHorizon, 0, 0, at(0));
        check(StartPosition::TrimHorizon, 10, 20, at(10));
        check(StartPosition::TrimHorizon, 20, 20, at(20));
        check(StartPosition::Latest, 0, 0, at(0));
        check(StartPosition::Latest, 10, 20, at(20));
    }

    #[test]
    fn at_a_sequence_number() {
        for (asked, expected) in [
            (9, trimmed(9, 10)),
            (0, trimmed(0, 10)),
            (10, at(10)),
            (15, at(15)),
            (20, at(20)),
            (21, beyond(21, 20)),
            (u64::MAX, beyond(u64::MAX, 20)),
        ] {
            check(StartPosition::At(number(asked)), 10, 20, expected);
        }
        check(StartPosition::At(number(0)), 0, 0, at(0));
        check(StartPosition::At(number(1)), 0, 0, beyond(1, 0));
    }

    #[test]
    fn after_a_sequence_number() {
        for (asked, expected) in [
            (8, trimmed(8, 10)),
            (9, at(10)),
            (10, at(11)),
            (19, at(20)),
            (20, beyond(20, 20)),
            (u64::MAX, beyond(u64::MAX, 20)),
        ] {
            check(StartPosition::After(number(asked)), 10, 20, expected);
        }
        check(StartPosition::After(number(0)), 0, 0, beyond(0, 0));
        check(StartPosition::After(number(19)), 20, 20, at(20));
        check(StartPosition::After(number(18)), 20, 20, trimmed(18, 20));
        check(
            StartPosition::After(SequenceNumber::MAX),
            0,
            u64::MAX,
            beyond(u64::MAX, u64::MAX),
        );
    }

    #[test]
    fn a_time_is_looked_up() {
        let time = Timestamp::from_micros(7);
        check(
            StartPosition::AtTimestamp(time),
            10,
            20,
            Start::FindTime(time),
        );
    }
}
