//! Where reading begins, as typed.

use flumen_client::StartPosition;
use flumen_record::{SequenceNumber, Timestamp};
use thiserror::Error;

use crate::time::TypedTime;

/// A start position as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    /// The oldest record kept.
    TrimHorizon,
    /// After the newest.
    Latest,
    /// At a record.
    At(SequenceNumber),
    /// After a record.
    After(SequenceNumber),
    /// At a time.
    Time(TypedTime),
}

/// Why a text is not a start position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("use trim-horizon, latest, at:SEQ, after:SEQ, a time as in 2026-11-23T12:00:00Z, or -15m")]
pub(crate) struct FromError;

impl From {
    /// Reads one.
    pub(crate) fn parse(text: &str) -> Result<Self, FromError> {
        let number = |text: &str| text.parse().map(SequenceNumber::new).map_err(|_| FromError);
        match text.split_once(':') {
            None if text == "trim-horizon" => Ok(Self::TrimHorizon),
            None if text == "latest" => Ok(Self::Latest),
            Some(("at", sequence)) => number(sequence).map(Self::At),
            Some(("after", sequence)) => number(sequence).map(Self::After),
            _ => TypedTime::parse(text)
                .map(Self::Time)
                .map_err(|_| FromError),
        }
    }

    /// The first record to read, when it is named by its number.
    pub(crate) fn names_a_record(self) -> Option<SequenceNumber> {
        match self {
            Self::At(sequence) => Some(sequence),
            Self::After(sequence) => Some(sequence.plus(1)),
            Self::TrimHorizon | Self::Latest | Self::Time(_) => None,
        }
    }

    /// What it means at `now`.
    pub(crate) fn resolve(self, now: Timestamp) -> StartPosition {
        match self {
            Self::TrimHorizon => StartPosition::TrimHorizon,
            Self::Latest => StartPosition::Latest,
            Self::At(sequence) => StartPosition::At(sequence),
            Self::After(sequence) => StartPosition::After(sequence),
            Self::Time(time) => StartPosition::AtTimestamp(time.resolve(now)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read() {
        let now = Timestamp::from_micros(5_000_000);
        let read = |text| From::parse(text).map(|from| from.resolve(now));
        assert_eq!(read("trim-horizon"), Ok(StartPosition::TrimHorizon));
        assert_eq!(read("latest"), Ok(StartPosition::Latest));
        assert_eq!(read("at:7"), Ok(StartPosition::At(SequenceNumber::new(7))));
        assert_eq!(
            read("after:0"),
            Ok(StartPosition::After(SequenceNumber::ZERO))
        );
        let at = |micros| Ok(StartPosition::AtTimestamp(Timestamp::from_micros(micros)));
        assert_eq!(read("-2s"), at(3_000_000));
        assert_eq!(read("1970-01-01T00:00:01Z"), at(1_000_000));
        for bad in [
            "",
            "oldest",
            "at:",
            "at:x",
            "after:-1",
            "at:99999999999999999999",
            "TRIM",
        ] {
            assert_eq!(read(bad), Err(FromError), "{bad}");
        }
    }
}
