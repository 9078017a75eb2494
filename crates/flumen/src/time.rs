//! Points in time as people type them: RFC 3339, or `-15m` for a while ago.

use std::time::Duration;

use flumen_record::Timestamp;
use thiserror::Error;

use crate::quantity::parse_duration;

/// A time as typed: what "ago" means is decided when the command runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TypedTime {
    /// A point in time.
    At(Timestamp),
    /// This long before now.
    Ago(Duration),
}

/// Why a text is not a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not a time: use RFC 3339 as in 2026-11-23T12:00:00Z, or a while ago as in -15m")]
pub(crate) struct TimeError;

impl TypedTime {
    /// Reads one.
    pub(crate) fn parse(text: &str) -> Result<Self, TimeError> {
        match text.strip_prefix('-') {
            Some(ago) => parse_duration(ago).map(Self::Ago).map_err(|_| TimeError),
            None => text.parse().map(Self::At).map_err(|_| TimeError),
        }
    }

    /// The point in time it means at `now`.
    pub(crate) fn resolve(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(time) => time,
            Self::Ago(ago) => now.saturating_sub(ago),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_point_or_a_while_ago() {
        let now = Timestamp::from_micros(10_000_000);
        let at = |text: &str| TypedTime::parse(text).map(|time| time.resolve(now).as_micros());
        assert_eq!(at("1970-01-01T00:00:01.5Z"), Ok(1_500_000));
        assert_eq!(at("-3s"), Ok(7_000_000));
        assert_eq!(at("-1d"), Ok(0));
        for text in ["yesterday", "-soon", "-", "", "15m", "2026-11-23"] {
            assert_eq!(at(text), Err(TimeError), "{text}");
        }
    }
}
