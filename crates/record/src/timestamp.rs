//! Points in time as Flumen stores and sends them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::TimestampError;

const MICROS_PER_SECOND: u64 = 1_000_000;
const SECONDS_PER_DAY: u64 = 86_400;

/// Microseconds since the Unix epoch, UTC. Never negative; what is before 1970 is refused at the edge.
/// Written as RFC 3339 in UTC (`2026-03-01T12:34:56.789000Z`) and read in any UTC offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The Unix epoch.
    pub const ZERO: Self = Self(0);
    /// The last time that can be written down.
    pub const MAX: Self = Self(u64::MAX);

    /// The last microsecond of the year 9999, the last that RFC 3339 can write.
    pub const LAST_WRITABLE: Self = Self(253_402_300_799_999_999);

    /// From microseconds since the Unix epoch.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Microseconds since the Unix epoch.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// This time moved forward, stopping at [`Timestamp::MAX`].
    #[must_use]
    pub fn saturating_add(self, by: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(by.as_micros()).unwrap_or(u64::MAX)),
        )
    }

    /// This time moved back, stopping at the epoch.
    #[must_use]
    pub fn saturating_sub(self, by: Duration) -> Self {
        Self(
            self.0
                .saturating_sub(u64::try_from(by.as_micros()).unwrap_or(u64::MAX)),
        )
    }

    /// How long after `earlier` this is; zero when it is not.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

/// RFC 3339 with microseconds; what lies after the year 9999 as `@` and microseconds since the
/// epoch.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self > Self::LAST_WRITABLE {
            return write!(f, "@{}us", self.0);
        }
        let (seconds, micros) = (self.0 / MICROS_PER_SECOND, self.0 % MICROS_PER_SECOND);
        let (days, second) = (seconds / SECONDS_PER_DAY, seconds % SECONDS_PER_DAY);
        let date = Date::from_days(days);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(
            f,
            "{:04}-{:02}-{:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z",
            date.year, date.month, date.day
        )
    }
}

/// RFC 3339: `Z` or an offset, any number of digits after the second. Digits beyond microseconds
/// are dropped, leap seconds refused.
impl FromStr for Timestamp {
    type Err = TimestampError;

    fn from_str(text: &str) -> Result<Self, TimestampError> {
        let mut text = Text {
            rest: text.as_bytes(),
        };
        let year = text.number(4)?;
        text.one_of(b"-")?;
        let month = text.number(2)?;
        text.one_of(b"-")?;
        let day = text.number(2)?;
        text.one_of(b"Tt ")?;
        let hour = text.number(2)?;
        text.one_of(b":")?;
        let minute = text.number(2)?;
        text.one_of(b":")?;
        let second = text.number(2)?;
        let micros = text.fraction()?;
        let offset_seconds = text.utc_offset()?;
        if !text.rest.is_empty() {
            return Err(TimestampError::Form);
        }
        if hour > 23 || minute > 59 || second > 59 {
            return Err(TimestampError::NoSuchTime);
        }
        let days = Date { year, month, day }.to_days()?;
        let local = days * SECONDS_PER_DAY.cast_signed()
            + (hour * 3600 + minute * 60 + second).cast_signed();
        let seconds = local - offset_seconds;
        let seconds = u64::try_from(seconds).map_err(|_negative| TimestampError::Year)?;
        let timestamp = Self(seconds * MICROS_PER_SECOND + micros);
        if timestamp > Self::LAST_WRITABLE {
            Err(TimestampError::Year)
        } else {
            Ok(timestamp)
        }
    }
}

/// A day of the Gregorian calendar, in years 0 to 9999.
struct Date {
    year: u64,
    month: u64,
    day: u64,
}

/// 400 years, after which the calendar repeats.
const DAYS_PER_ERA: u64 = 146_097;
/// From 0000-03-01, where eras begin, to 1970-01-01.
const DAYS_BEFORE_EPOCH: u64 = 719_468;

/// Years are counted from March, so that the leap day is their last. After Howard Hinnant,
/// "chrono-compatible low-level date algorithms".
impl Date {
    fn from_days(since_epoch: u64) -> Self {
        let days = since_epoch + DAYS_BEFORE_EPOCH;
        let (era, day_of_era) = (days / DAYS_PER_ERA, days % DAYS_PER_ERA);
        let leap_days = day_of_era / 1_460 + day_of_era / (DAYS_PER_ERA - 1);
        let year_of_era = (day_of_era + day_of_era / 36_524 - leap_days) / 365;
        let day_of_year = day_of_era - days_before_year(year_of_era);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - days_before_month(month_from_march) + 1;
        let (month, january_or_later) = match month_from_march {
            0..=9 => (month_from_march + 3, 0),
            _ => (month_from_march - 9, 1),
        };
        Self {
            year: era * 400 + year_of_era + january_or_later,
            month,
            day,
        }
    }

    /// Days since the epoch, negative before it.
    fn to_days(&self) -> Result<i64, TimestampError> {
        let leap = self.year.is_multiple_of(4)
            && (!self.year.is_multiple_of(100) || self.year.is_multiple_of(400));
        let days_in_month = match self.month {
            1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
            4 | 6 | 9 | 11 => 30,
            2 if leap => 29,
            2 => 28,
            _ => 0,
        };
        if self.day == 0 || self.day > days_in_month {
            return Err(TimestampError::NoSuchTime);
        }
        // One era on, so that January of the year 0 has a year before it.
        let (year, month_from_march) = match self.month {
            1 | 2 => (self.year + 399, self.month + 9),
            _ => (self.year + 400, self.month - 3),
        };
        let (era, year_of_era) = (year / 400, year % 400);
        let day_of_year = days_before_month(month_from_march) + self.day - 1;
        let days = era * DAYS_PER_ERA + days_before_year(year_of_era) + day_of_year;
        Ok(days.cast_signed() - (DAYS_PER_ERA + DAYS_BEFORE_EPOCH).cast_signed())
    }
}

/// Days of an era before its `year`-th, counted from March.
const fn days_before_year(year: u64) -> u64 {
    year * 365 + year / 4 - year / 100
}

/// Days of a year before its `month`-th, counted from March.
const fn days_before_month(month: u64) -> u64 {
    (153 * month + 2) / 5
}

/// What is left to read of a time.
struct Text<'a> {
    rest: &'a [u8],
}

impl Text<'_> {
    fn one_of(&mut self, allowed: &[u8]) -> Result<u8, TimestampError> {
        match self.rest.split_first() {
            Some((first, rest)) if allowed.contains(first) => {
                self.rest = rest;
                Ok(*first)
            }
            _ => Err(TimestampError::Form),
        }
    }

    fn digit(&mut self) -> Result<u64, TimestampError> {
        self.one_of(b"0123456789")
            .map(|digit| u64::from(digit - b'0'))
    }

    /// Exactly so many digits.
    fn number(&mut self, digits: u32) -> Result<u64, TimestampError> {
        (0..digits).try_fold(0, |number, _| Ok(number * 10 + self.digit()?))
    }

    /// Nothing, or a dot and digits; in microseconds.
    fn fraction(&mut self) -> Result<u64, TimestampError> {
        if self.one_of(b".").is_err() {
            return Ok(0);
        }
        let mut micros = self.digit()? * 100_000;
        let mut unit = 10_000;
        while let Ok(digit) = self.digit() {
            micros += digit * unit;
            unit /= 10;
        }
        Ok(micros)
    }

    /// `Z` or `+hh:mm`, in seconds east of UTC.
    fn utc_offset(&mut self) -> Result<i64, TimestampError> {
        let sign = match self.one_of(b"Zz+-")? {
            b'+' => 1,
            b'-' => -1,
            _ => return Ok(0),
        };
        let hours = self.number(2)?;
        self.one_of(b":")?;
        let minutes = self.number(2)?;
        if hours > 23 || minutes > 59 {
            return Err(TimestampError::NoSuchTime);
        }
        Ok(sign * (hours * 3600 + minutes * 60).cast_signed())
    }
}

#[cfg(test)]
mod tests;
