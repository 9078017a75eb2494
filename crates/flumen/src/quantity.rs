//! Sizes, durations and counts as people type and read them.

use std::time::Duration;

use flumen_client::HashKey;
use thiserror::Error;

/// Why a text is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum QuantityError {
    /// Not `64KiB`, `1MiB`, `4096`, ….
    #[error("not a size: use a whole number and B, KiB, MiB, GiB or TiB, as in 64KiB")]
    Size,
    /// Not `250ms`, `5s`, `12h`, `7d`, ….
    #[error("not a duration: use a whole number and us, ms, s, m, h or d, as in 250ms or 7d")]
    Duration,
    /// Not `170141183460469231731687303715884105728` or `0x8000…`.
    #[error("not a hash key: use a decimal number, or 0x and up to 32 hex digits")]
    HashKey,
    /// Larger than what can be counted.
    #[error("too large")]
    TooLarge,
}

const SIZES: &[(&str, u64)] = &[
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

const DURATIONS_US: &[(&str, u64)] = &[
    ("us", 1),
    ("ms", 1_000),
    ("s", 1_000_000),
    ("m", 60 * 1_000_000),
    ("h", 3_600 * 1_000_000),
    ("d", 86_400 * 1_000_000),
];

/// Reads `64KiB`, `1MiB`, `4096` as bytes.
pub(crate) fn parse_size(text: &str) -> Result<u64, QuantityError> {
    let (number, unit) = split_unit(text).ok_or(QuantityError::Size)?;
    let unit = if unit.is_empty() { "B" } else { unit };
    let factor = factor(SIZES, unit).ok_or(QuantityError::Size)?;
    number.checked_mul(factor).ok_or(QuantityError::TooLarge)
}

/// Reads `250ms`, `5s`, `12h`, `7d`. A unit is required, but for `0`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, QuantityError> {
    let (number, unit) = split_unit(text).ok_or(QuantityError::Duration)?;
    if number == 0 && unit.is_empty() {
        return Ok(Duration::ZERO);
    }
    let factor = factor(DURATIONS_US, unit).ok_or(QuantityError::Duration)?;
    let micros = number.checked_mul(factor).ok_or(QuantityError::TooLarge)?;
    Ok(Duration::from_micros(micros))
}

/// Reads a hash key: decimal, or hex behind `0x`.
pub(crate) fn parse_hash_key(text: &str) -> Result<HashKey, QuantityError> {
    let (digits, radix) = match text.strip_prefix("0x") {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    // A sign is none of the digits, though the parser would take it.
    if !digits.chars().all(|digit| digit.is_digit(radix)) {
        return Err(QuantityError::HashKey);
    }
    let key = u128::from_str_radix(digits, radix).map_err(|_| QuantityError::HashKey)?;
    Ok(HashKey::new(key))
}

fn factor(units: &[(&str, u64)], unit: &str) -> Option<u64> {
    units
        .iter()
        .find(|(name, _)| *name == unit)
        .map(|(_, factor)| *factor)
}

fn split_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits)?;
    Some((number.parse().ok()?, unit.trim_start()))
}

/// `152,965`.
pub(crate) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// `3.3 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    let steps: [(&str, u64); 4] = [
        ("TiB", 1 << 40),
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1 << 10),
    ];
    match steps.iter().find(|(_, unit)| bytes >= *unit) {
        #[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
        Some((name, unit)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} B"),
    }
}

/// `1.24 ms`, three digits that matter.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    let (value, unit) = if seconds < 1e-3 {
        (seconds * 1e6, "µs")
    } else if seconds < 1.0 {
        (seconds * 1e3, "ms")
    } else if seconds < 600.0 {
        (seconds, "s")
    } else if seconds < 86_400.0 * 2.0 {
        (seconds / 3600.0, "h")
    } else {
        (seconds / 86_400.0, "d")
    };
    let decimals = match value {
        v if v >= 100.0 || (v.fract() == 0.0 && v >= 1.0) => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.decimals$} {unit}")
}

/// The shortest text that [`parse_duration`] reads back, for settings: `7d`, `90m`, `250ms`.
pub(crate) fn setting_duration(duration: Duration) -> String {
    let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let exact = DURATIONS_US
        .iter()
        .rev()
        .find(|(_, unit)| micros.is_multiple_of(*unit));
    match exact {
        Some((name, unit)) if micros > 0 => format!("{}{name}", micros / unit),
        _ => "0".to_owned(),
    }
}

/// Events per second as a whole number; 0 for no time.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a rate for people and reports; saturates"
)]
pub(crate) fn per_second(amount: u64, time: Duration) -> u64 {
    if time.is_zero() {
        0
    } else {
        (amount as f64 / time.as_secs_f64()).round() as u64
    }
}

/// A duration as whole microseconds, saturating.
pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, expected) in [
            ("0", Ok(0)),
            ("4096", Ok(4096)),
            ("64KiB", Ok(65_536)),
            ("1MiB", Ok(1 << 20)),
            ("2 GB", Ok(2_000_000_000)),
            ("1K", Err(QuantityError::Size)),
            ("KiB", Err(QuantityError::Size)),
            ("-1", Err(QuantityError::Size)),
            ("", Err(QuantityError::Size)),
            ("99999999999TiB", Err(QuantityError::TooLarge)),
        ] {
            assert_eq!(parse_size(text), expected, "{text}");
        }
    }

    #[test]
    fn durations_are_read_and_written_back() {
        for (text, micros) in [
            ("250ms", 250_000),
            ("5s", 5_000_000),
            ("12h", 43_200_000_000),
            ("7d", 604_800_000_000),
        ] {
            let duration = Duration::from_micros(micros);
            assert_eq!(parse_duration(text), Ok(duration), "{text}");
            assert_eq!(setting_duration(duration), text);
        }
        assert_eq!(parse_duration("0"), Ok(Duration::ZERO));
        for text in ["5", "5 years", "s", "", "1.5s", "-5s"] {
            assert_eq!(parse_duration(text), Err(QuantityError::Duration), "{text}");
        }
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(152_965), "152,965");
        assert_eq!(count(1_000_000), "1,000,000");
        assert_eq!(size(512), "512 B");
        assert_eq!(size(3_450_000), "3.3 MiB");
        assert_eq!(duration(Duration::from_micros(7)), "7 µs");
        assert_eq!(duration(Duration::from_micros(1_240)), "1.24 ms");
        assert_eq!(duration(Duration::from_millis(12_345)), "12.3 s");
        assert_eq!(per_second(10, Duration::ZERO), 0);
        assert_eq!(per_second(10, Duration::from_millis(500)), 20);
    }
}
