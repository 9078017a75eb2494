//! What a JSON value is in a column of a type; `None` where the type does not take it. Admission
//! and encoders ask the same functions, so that what was admitted can be encoded.

use flumen_broker::ColumnType;

use super::json::{Kind, Value};

/// Digits that fit 64 bits whatever they are.
const DIGITS_SAFE: usize = 18;
/// The length of a number without exponent that is finite whatever it is.
const DECIMAL_SAFE: usize = 300;
/// Integers up to here are what they are in floating point.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
const MICROS_PER_SECOND: i64 = 1_000_000;
const SECONDS_PER_DAY: i64 = 86_400;

/// Where the value is.
#[inline]
pub(super) fn span(value: Value, row: &str) -> &str {
    row.get(value.start..value.end).unwrap_or_default()
}

/// What stands between the quotes of a string, escapes as they are.
#[inline]
pub(super) fn inner(value: Value, row: &str) -> &str {
    let inner = (value.start + 1)..value.end.saturating_sub(1);
    row.get(inner).unwrap_or_default()
}

/// The type of a column that is inferred from this value, which is not `null`.
#[inline]
pub(super) fn inferred(value: Value, row: &str) -> ColumnType {
    match value.kind {
        Kind::Boolean => ColumnType::Boolean,
        Kind::Text | Kind::EscapedText => ColumnType::String,
        Kind::Integer if value.end - value.start <= DIGITS_SAFE => ColumnType::Bigint,
        Kind::Integer if span(value, row).parse::<i64>().is_ok() => ColumnType::Bigint,
        Kind::Integer | Kind::Decimal | Kind::Scientific if is_finite(value, row) => {
            ColumnType::Double
        }
        _ => ColumnType::Json,
    }
}

/// Whether a column of this type takes the value, which is not `null`.
pub(super) fn fits(kind: ColumnType, value: Value, row: &str) -> bool {
    match kind {
        ColumnType::Boolean => value.kind == Kind::Boolean,
        ColumnType::Int => int(value, row).is_some(),
        ColumnType::Bigint => bigint(value, row).is_some(),
        ColumnType::Double => is_finite(value, row),
        ColumnType::String => value.kind != Kind::Nested,
        ColumnType::Date => date(value, row).is_some(),
        ColumnType::Timestamp => timestamp(value, row).is_some(),
        ColumnType::Json => true,
    }
}

/// What a type takes, for messages.
pub(super) fn wanted(kind: ColumnType) -> &'static str {
    match kind {
        ColumnType::Boolean => "true or false",
        ColumnType::Int => "whole numbers of 32 bits",
        ColumnType::Bigint => "whole numbers of 64 bits",
        ColumnType::Double => "numbers",
        ColumnType::String => "strings, numbers, true and false",
        ColumnType::Date => "dates like \"2014-07-01\"",
        ColumnType::Timestamp => {
            "times like \"2014-07-01T00:00:00Z\" or \"2014-07-01 00:00:00\", or milliseconds since 1970"
        }
        ColumnType::Json => "any value",
    }
}

pub(super) fn boolean(value: Value, row: &str) -> Option<bool> {
    (value.kind == Kind::Boolean).then(|| span(value, row) == "true")
}

pub(super) fn int(value: Value, row: &str) -> Option<i32> {
    i32::try_from(bigint(value, row)?).ok()
}

/// A whole number, also as `5.0` or `5e3`: that is how some languages write those.
#[inline]
pub(super) fn bigint(value: Value, row: &str) -> Option<i64> {
    match value.kind {
        Kind::Integer => span(value, row).parse().ok(),
        Kind::Decimal | Kind::Scientific => whole(span(value, row).parse().ok()?),
        _ => None,
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a whole number within what both types hold exactly"
)]
fn whole(number: f64) -> Option<i64> {
    (number.fract() == 0.0 && number.abs() <= EXACT_MAX).then_some(number as i64)
}

#[inline]
pub(super) fn double(value: Value, row: &str) -> Option<f64> {
    match value.kind {
        Kind::Integer | Kind::Decimal | Kind::Scientific => {
            let number: f64 = span(value, row).parse().ok()?;
            number.is_finite().then_some(number)
        }
        _ => None,
    }
}

#[inline]
fn is_finite(value: Value, row: &str) -> bool {
    let short = value.end - value.start <= DECIMAL_SAFE;
    match value.kind {
        Kind::Integer | Kind::Decimal if short => true,
        _ => double(value, row).is_some(),
    }
}

/// Days since 1970.
pub(super) fn date(value: Value, row: &str) -> Option<i32> {
    if value.kind != Kind::Text {
        return None;
    }
    let mut reader = Digits(inner(value, row).as_bytes());
    let days = reader.date()?;
    reader.0.is_empty().then_some(days)
}

/// Microseconds since 1970, UTC.
pub(super) fn timestamp(value: Value, row: &str) -> Option<i64> {
    match value.kind {
        Kind::Text => Digits(inner(value, row).as_bytes()).timestamp(),
        Kind::Integer => bigint(value, row)?.checked_mul(1_000),
        Kind::Decimal | Kind::Scientific => whole((double(value, row)? * 1e3).round()),
        _ => None,
    }
}

/// Text that is read from the left.
struct Digits<'a>(&'a [u8]);

impl Digits<'_> {
    fn number(&mut self, digits: usize) -> Option<i32> {
        let (number, rest) = self.0.split_at_checked(digits)?;
        self.0 = rest;
        number.iter().try_fold(0, |number, digit| {
            let digit = char::from(*digit).to_digit(10)?;
            Some(number * 10 + i32::try_from(digit).ok()?)
        })
    }

    fn bounded(&mut self, max: i32) -> Option<i32> {
        self.number(2).filter(|number| *number <= max)
    }

    /// Passes one of these bytes.
    fn one_of(&mut self, bytes: &[u8]) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        let found = bytes.contains(first).then_some(*first)?;
        self.0 = rest;
        Some(found)
    }

    /// `YYYY-MM-DD`
    fn date(&mut self) -> Option<i32> {
        let year = self.number(4)?;
        self.one_of(b"-")?;
        let month = self.number(2)?;
        self.one_of(b"-")?;
        let day = self.number(2)?;
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let month_days = match month {
            1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
            4 | 6 | 9 | 11 => 30,
            2 if leap => 29,
            2 => 28,
            _ => return None,
        };
        if day == 0 || day > month_days {
            return None;
        }
        // Years begin in March, so that the day that comes and goes is their last.
        let (year, month) = if month > 2 {
            (year, month - 3)
        } else {
            (year - 1, month + 9)
        };
        let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
        let days_before_month = (153 * month + 2) / 5;
        Some(year * 365 + leap_days + days_before_month + day - 1 - 719_468)
    }

    /// `YYYY-MM-DD`, `T` or a space, `HH:MM:SS`, perhaps a fraction, perhaps `Z` or an offset; UTC
    /// without. A fraction is cut to microseconds, a leap second is the one before it.
    fn timestamp(mut self) -> Option<i64> {
        let days = self.date()?;
        self.one_of(b"Tt ")?;
        let hour = self.bounded(23)?;
        self.one_of(b":")?;
        let minute = self.bounded(59)?;
        self.one_of(b":")?;
        let second = self.bounded(60)?.min(59);
        let micros = match self.one_of(b".") {
            Some(_) => self.fraction()?,
            None => 0,
        };
        let offset = match self.one_of(b"Zz+-") {
            None | Some(b'Z' | b'z') => 0,
            Some(sign) => {
                let hours = self.bounded(23)?;
                self.one_of(b":");
                let seconds = (hours * 60 + self.bounded(59)?) * 60;
                if sign == b'-' { -seconds } else { seconds }
            }
        };
        if !self.0.is_empty() {
            return None;
        }
        let seconds = (hour * 60 + minute) * 60 + second - offset;
        let seconds = i64::from(days) * SECONDS_PER_DAY + i64::from(seconds);
        Some(seconds * MICROS_PER_SECOND + i64::from(micros))
    }

    fn fraction(&mut self) -> Option<i32> {
        let mut micros = 0;
        let mut digits = 0;
        while let Some(digit) = self.one_of(b"0123456789") {
            if digits < 6 {
                micros = micros * 10 + i32::from(digit - b'0');
            }
            digits += 1;
        }
        if !(1..=9).contains(&digits) {
            return None;
        }
        (digits..6).for_each(|_| micros *= 10);
        Some(micros)
    }
}

#[cfg(test)]
mod tests;
