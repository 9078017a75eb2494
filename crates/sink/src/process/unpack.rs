//! Taking a record apart: gzip, CloudWatch Logs envelopes, sub-records.

use std::io::Read;

use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;
use flumen_broker::SubRecords;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::jq::check_bounds;
use crate::unit::{ErrorType, Failure};
use flumen_broker::SettingRefused;

/// What a record may unzip to, in bytes.
pub(crate) const MAX_UNZIPPED_BYTES: u64 = 64 << 20;
/// Records in a record.
pub(crate) const MAX_SUB_RECORDS: usize = 100_000;

/// How records hold records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Inner {
    /// JSON values after each other, or in an array.
    Json,
    /// With these bytes between them.
    Delimited(Vec<u8>),
}

impl Inner {
    /// Reads the setting.
    pub(crate) fn compile(setting: &SubRecords) -> Result<Self, SettingRefused> {
        match setting {
            SubRecords::Json => Ok(Self::Json),
            SubRecords::Delimited(text) => {
                let delimiter = unescaped(text).ok_or_else(|| {
                    SettingRefused::new(
                        "processing.sub_records",
                        format!("the delimiter {text:?} is empty or ends in the middle of an escape; \\n, \\r, \\t, \\0, \\\\ and \\uXXXX are known"),
                    )
                })?;
                Ok(Self::Delimited(delimiter))
            }
        }
    }
}

/// Text with escapes as Java has them.
pub(crate) fn unescaped(text: &str) -> Option<Vec<u8>> {
    let mut out = String::new();
    let mut rest = text.chars();
    while let Some(character) = rest.next() {
        if character != '\\' {
            out.push(character);
            continue;
        }
        out.push(match rest.next()? {
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            '0' => '\0',
            known @ ('\\' | '"' | '\'') => known,
            'u' => {
                let digits: String = rest.by_ref().take(4).collect();
                let whole = digits.len() == 4 && digits.bytes().all(|b| b.is_ascii_hexdigit());
                char::from_u32(whole.then(|| u32::from_str_radix(&digits, 16).ok())??)?
            }
            _ => return None,
        });
    }
    (!out.is_empty()).then(|| out.into_bytes())
}

/// A failure of processing.
pub(crate) fn failure(code: &'static str, message: impl Into<String>) -> Failure {
    Failure {
        kind: ErrorType::ProcessingFailed,
        code,
        message: message.into(),
        attempts: 1,
    }
}

/// Unzips, members one after the other, and takes the size off `left`.
pub(crate) fn unzip(data: &[u8], left: &mut u64) -> Result<Bytes, Failure> {
    let mut out = Vec::new();
    let decoder = MultiGzDecoder::new(data);
    let read = decoder.take(left.saturating_add(1)).read_to_end(&mut out);
    if let Err(error) = read {
        let what = format!("the data is not gzip: {error}");
        return Err(failure("Gzip.Invalid", what));
    }
    let Some(after) = left.checked_sub(out.len() as u64) else {
        let what = format!("the record unzips to more than {MAX_UNZIPPED_BYTES} bytes");
        return Err(failure("Gzip.TooLarge", what));
    };
    *left = after;
    Ok(Bytes::from(out))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LogsEnvelope {
    message_type: String,
    #[serde(default)]
    log_events: Vec<LogLine>,
}

#[derive(Deserialize)]
struct LogLine {
    message: String,
}

/// The log lines of a CloudWatch Logs envelope; none of a control envelope.
pub(crate) fn log_lines(data: &[u8]) -> Result<Vec<Bytes>, Failure> {
    let envelope: LogsEnvelope = serde_json::from_slice(data).map_err(|error| {
        failure(
            "CloudWatchLogs.Invalid",
            format!("the data is no CloudWatch Logs envelope: {error}"),
        )
    })?;
    match envelope.message_type.as_str() {
        "DATA_MESSAGE" => {
            bounded(envelope.log_events.len())?;
            let lines = envelope.log_events.into_iter();
            Ok(lines.map(|line| Bytes::from(line.message)).collect())
        }
        "CONTROL_MESSAGE" => Ok(Vec::new()),
        other => {
            let other: String = other.chars().take(64).collect();
            Err(failure(
                "CloudWatchLogs.Invalid",
                format!("unknown type of envelope {other:?}"),
            ))
        }
    }
}

fn bounded(count: usize) -> Result<(), Failure> {
    if count > MAX_SUB_RECORDS {
        return Err(too_many());
    }
    Ok(())
}

/// A record holds further records than allowed.
pub(crate) fn too_many() -> Failure {
    failure(
        "SubRecords.TooMany",
        format!("the record holds more than {MAX_SUB_RECORDS} records"),
    )
}

/// The records in a record: slices of it.
pub(crate) fn sub_records(inner: &Inner, data: &Bytes) -> Result<Vec<Bytes>, Failure> {
    match inner {
        Inner::Json => json_values(data),
        Inner::Delimited(delimiter) => delimited(delimiter, data),
    }
}

fn json_values(data: &Bytes) -> Result<Vec<Bytes>, Failure> {
    let invalid = |what: String| failure("Json.Invalid", what);
    let text = std::str::from_utf8(data).map_err(|error| invalid(error.to_string()))?;
    check_bounds(data).map_err(|error| invalid(error.to_string()))?;
    let mut values = Vec::new();
    let mut take = |value: &RawValue| {
        values.push(data.slice_ref(value.get().as_bytes()));
        bounded(values.len())
    };
    for value in serde_json::Deserializer::from_str(text).into_iter::<&RawValue>() {
        let value = value.map_err(|error| invalid(error.to_string()))?;
        if value.get().starts_with('[') {
            let items: Vec<&RawValue> =
                serde_json::from_str(value.get()).map_err(|error| invalid(error.to_string()))?;
            items.into_iter().try_for_each(&mut take)?;
        } else {
            take(value)?;
        }
    }
    Ok(values)
}

/// Parts between delimiters; what is empty is none, so that a trailing delimiter adds nothing.
fn delimited(delimiter: &[u8], data: &Bytes) -> Result<Vec<Bytes>, Failure> {
    let mut parts = Vec::new();
    let mut rest = data.clone();
    while !rest.is_empty() {
        let at = rest
            .windows(delimiter.len())
            .position(|here| here == delimiter);
        let part = rest.split_to(at.unwrap_or(rest.len()));
        // Only what was found is dropped.
        drop(rest.split_to(if at.is_some() { delimiter.len() } else { 0 }));
        if !part.is_empty() {
            parts.push(part);
            bounded(parts.len())?;
        }
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn gzip_is_unzipped_member_by_member_within_bounds() {
        let two = [gzip(b"one"), gzip(b"two")].concat();
        let mut left = 10;
        assert_eq!(unzip(&two, &mut left).unwrap(), &b"onetwo"[..]);
        assert_eq!(left, 4);
        assert_eq!(unzip(&two, &mut left).unwrap_err().code, "Gzip.TooLarge");
        for bad in [&b"plain"[..], &two[..two.len() - 3], b""] {
            assert_eq!(unzip(bad, &mut 1000).unwrap_err().code, "Gzip.Invalid");
        }
        let bomb = gzip(&vec![0; usize::try_from(MAX_UNZIPPED_BYTES).unwrap() + 1]);
        let refused = unzip(&bomb, &mut MAX_UNZIPPED_BYTES.clone()).unwrap_err();
        assert_eq!(refused.code, "Gzip.TooLarge");
    }

    #[test]
    fn log_lines_are_records() {
        let envelope = br#"{"messageType":"DATA_MESSAGE","owner":"1","logGroup":"g","logStream":"s","subscriptionFilters":["f"],"logEvents":[{"id":"1","timestamp":1,"message":"a\nb"},{"id":"2","timestamp":2,"message":"{\"x\":1}"}]}"#;
        assert_eq!(log_lines(envelope).unwrap(), [&b"a\nb"[..], b"{\"x\":1}"]);
        let control = br#"{"messageType":"CONTROL_MESSAGE","logEvents":[{"message":"checking"}]}"#;
        assert!(log_lines(control).unwrap().is_empty());
        for bad in [&b"x"[..], b"{}", br#"{"messageType":"OTHER"}"#] {
            assert_eq!(log_lines(bad).unwrap_err().code, "CloudWatchLogs.Invalid");
        }
    }

    #[test]
    fn json_values_are_records() {
        for (data, values) in [
            (
                r#"{"a":1}{"b":[2]} 3 "x""#,
                &[r#"{"a":1}"#, r#"{"b":[2]}"#, "3", r#""x""#][..],
            ),
            (r#"[{"a":1}, 2 , [3]]"#, &[r#"{"a":1}"#, "2", "[3]"]),
            (r#"[1] [2]"#, &["1", "2"]),
            (" \n", &[]),
            ("[]", &[]),
        ] {
            let parts = sub_records(&Inner::Json, &Bytes::from(data)).unwrap();
            assert_eq!(parts, values, "{data}");
        }
        for bad in ["{", "1 x", "{\"a\":}", &"[".repeat(100_000)] {
            let refused = sub_records(&Inner::Json, &Bytes::from(bad.to_owned())).unwrap_err();
            assert_eq!(refused.code, "Json.Invalid");
        }
        let many = Bytes::from("1 ".repeat(MAX_SUB_RECORDS + 1));
        assert_eq!(
            sub_records(&Inner::Json, &many).unwrap_err().code,
            "SubRecords.TooMany"
        );
    }

    #[test]
    fn delimiters_are_dropped() {
        for (delimiter, data, parts) in [
            ("\\n", "a\nb\n\nc\n", &["a", "b", "c"][..]),
            ("||", "a||b|c||", &["a", "b|c"]),
            ("\\t", "abc", &["abc"]),
            (",", "", &[]),
            ("\\u0041", "xAy", &["x", "y"]),
        ] {
            let inner = Inner::compile(&SubRecords::Delimited(delimiter.to_owned())).unwrap();
            assert_eq!(
                sub_records(&inner, &Bytes::from(data)).unwrap(),
                parts,
                "{delimiter}"
            );
        }
        for bad in ["", "\\", "\\x", "\\u00", "\\ud800", "\\u+041"] {
            assert!(
                Inner::compile(&SubRecords::Delimited(bad.to_owned())).is_err(),
                "{bad}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(data: Vec<u8>, delimiter in "[a-c\\\\n]{1,3}") {
            let data = Bytes::from(data);
            let _ = (unzip(&data, &mut 1000), log_lines(&data), json_values(&data));
            if let Ok(inner) = Inner::compile(&SubRecords::Delimited(delimiter)) {
                let parts = sub_records(&inner, &data).unwrap();
                assert!(parts.iter().map(Bytes::len).sum::<usize>() <= data.len());
            }
        }
    }
}
