//! The readings that the demo replays: real ones that ship with the binary, or CSV files. Each becomes
//! a JSON object, `{"device":…,"row":…,"timestamp":…,"value":…}`.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::csv::{Rows, fields};

/// 31 CSV files of the Numenta Anomaly Benchmark in an ordinary tar.zst (`data/README.md`).
const BUNDLED: &[u8] = include_bytes!("../../../data/telemetry.tar.zst");

/// The header of every file.
const COLUMNS: [&str; 2] = ["timestamp", "value"];

/// Readings by device.
#[derive(Debug)]
pub(super) struct Telemetry {
    pub(super) devices: Vec<Device>,
    pub(super) readings: u64,
    pub(super) bytes: u64,
}

/// One device: its readings in the order of its file.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) name: String,
    /// The number of its first reading among all.
    pub(super) first: usize,
    pub(super) rows: Vec<Bytes>,
}

/// One reading as it is sent.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Reading<'a> {
    #[serde(borrow)]
    device: Cow<'a, str>,
    /// Its row in the file of its device, from 0.
    row: usize,
    #[serde(borrow)]
    timestamp: Cow<'a, str>,
    /// As it stands in the file, wherever that is JSON; `null` for what is not a number (NaN).
    value: Cow<'a, RawValue>,
}

impl<'a> Reading<'a> {
    /// From its bytes.
    pub(super) fn of(bytes: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }

    /// Whether a row of columns holds the same and nothing else; a number is the same whatever the
    /// type of its column.
    pub(super) fn is(&self, row: &Map<String, Value>) -> bool {
        let text = |name| row.get(name).and_then(Value::as_str);
        let value = row.get("value");
        let same = match (self.value.get(), value) {
            ("null", None) => true,
            (number, Some(value)) => number.parse().ok() == value.as_f64(),
            (_, None) => false,
        };
        same && text("device") == Some(&*self.device)
            && text("timestamp") == Some(&*self.timestamp)
            && row.get("row") == Some(&Value::from(self.row))
            && row.len() == 3 + usize::from(value.is_some())
    }
}

impl Telemetry {
    /// What ships with the binary.
    pub(super) fn bundled() -> Result<Self> {
        let tar = zstd::decode_all(BUNDLED).context("BUG: the telemetry in this binary")?;
        let mut files = Vec::new();
        let mut rest = tar.as_slice();
        while let Some(file) = next_file(rest)? {
            if let Some(name) = file.name.strip_suffix(".csv") {
                let rows = rows(name, file.contents).with_context(|| name.to_owned())?;
                files.push((name.to_owned(), rows));
            }
            rest = file.after;
        }
        Self::of(files)
    }

    /// Files, and every `.csv` in folders.
    pub(super) fn of_paths(paths: &[PathBuf]) -> Result<Self> {
        let mut found = Vec::new();
        for path in paths {
            find(path, &mut found).with_context(|| path.display().to_string())?;
        }
        ensure!(!found.is_empty(), "no CSV files in what --data names");
        let stem = |path: &Path| {
            path.file_stem()
                .map(|stem| stem.to_string_lossy().into_owned())
                .unwrap_or_default()
        };
        let stems: BTreeSet<_> = found.iter().map(|path| stem(path)).collect();
        let mut files = Vec::new();
        for path in &found {
            // The file is the device; with its folders where names repeat.
            let name = if stems.len() == found.len() {
                stem(path)
            } else {
                path.with_extension("").to_string_lossy().into_owned()
            };
            let shown = path.display().to_string();
            ensure!(
                name.chars().count() <= 256,
                "{shown}: the name is too long for a partition key"
            );
            let file = File::open(path).with_context(|| shown.clone())?;
            let rows = rows(&name, BufReader::new(file)).context(shown)?;
            files.push((name, rows));
        }
        Self::of(files)
    }

    fn of(files: Vec<(String, Vec<Bytes>)>) -> Result<Self> {
        let mut first = 0;
        let mut devices = Vec::with_capacity(files.len());
        for (name, rows) in files {
            let next = first + rows.len();
            devices.push(Device { name, first, rows });
            first = next;
        }
        let bytes = devices
            .iter()
            .flat_map(|device| &device.rows)
            .map(|row| row.len() as u64);
        let telemetry = Self {
            readings: first as u64,
            bytes: bytes.sum(),
            devices,
        };
        ensure!(
            telemetry.readings > 0,
            "there are no readings in these files"
        );
        Ok(telemetry)
    }
}

fn find(path: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    if !path.metadata()?.is_dir() {
        found.push(path.to_owned());
        return Ok(());
    }
    let mut inside = std::fs::read_dir(path)?.collect::<Result<Vec<_>, _>>()?;
    inside.sort_by_key(std::fs::DirEntry::path);
    for found_here in inside {
        let path = found_here.path();
        let csv = path
            .extension()
            .is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
        if found_here.file_type()?.is_dir() || csv {
            find(&path, found)?;
        }
    }
    Ok(())
}

/// The readings of a telemetry file, checked to be one.
fn rows(device: &str, input: impl std::io::BufRead) -> Result<Vec<Bytes>> {
    let mut csv = Rows::open(input)?;
    ensure!(
        csv.columns() == COLUMNS,
        "line 1: not telemetry: the header is {:?}, not \"timestamp,value\"",
        csv.columns().join(",")
    );
    let mut rows = Vec::new();
    while let Some(row) = csv.next_row()? {
        let mut fields = fields(&row)?;
        let value = fields.pop().unwrap_or_default();
        let Some(number) = number(value.trim()) else {
            bail!("line {}: {value:?} is not a number", csv.line());
        };
        let reading = Reading {
            device: device.into(),
            row: rows.len(),
            timestamp: fields.pop().unwrap_or_default().into(),
            value: Cow::Owned(number),
        };
        let reading = serde_json::to_vec(&reading).context("BUG: a reading is JSON")?;
        rows.push(Bytes::from(reading));
    }
    Ok(rows)
}

/// A number as JSON has it: as it stands there, if that is one (`+5`, `.5` and `007` are not).
fn number(text: &str) -> Option<Box<RawValue>> {
    let number: f64 = text.parse().ok()?;
    let json = if number.is_nan() {
        "null".to_owned()
    } else if serde_json::from_str::<f64>(text).is_ok() {
        text.to_owned()
    } else {
        // Infinity is none.
        serde_json::Number::from_f64(number)?.to_string()
    };
    RawValue::from_string(json).ok()
}

/// A file in a tar.
#[derive(Debug)]
struct Archived<'a> {
    name: String,
    contents: &'a [u8],
    after: &'a [u8],
}

/// The next file of a tar (POSIX ustar).
fn next_file(tar: &[u8]) -> Result<Option<Archived<'_>>> {
    const UNIT: usize = 512;
    let Some((header, rest)) = tar.split_at_checked(UNIT) else {
        return Ok(None);
    };
    if header.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let text = |from: usize, to: usize| {
        let field = header.get(from..to).unwrap_or_default();
        let end = field
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(field.len());
        std::str::from_utf8(field.get(..end).unwrap_or_default()).context("a name in the archive")
    };
    let size = usize::from_str_radix(text(124, 136)?.trim(), 8).context("a size in the archive")?;
    let Some((contents, _)) = rest.split_at_checked(size) else {
        bail!("the archive ends within a file");
    };
    let padded = size.div_ceil(UNIT) * UNIT;
    let after = rest.get(padded..).unwrap_or_default();
    Ok(Some(Archived {
        name: text(0, 100)?.to_owned(),
        contents,
        after,
    }))
}

/// Reads a CSV of telemetry from memory, for tests of other modules.
#[cfg(test)]
pub(super) fn of_text(files: &[(&str, &str)]) -> Telemetry {
    let files = files.iter();
    let files =
        files.map(|(name, text)| ((*name).to_owned(), rows(name, text.as_bytes()).unwrap()));
    Telemetry::of(files.collect()).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundled_readings_are_all_there() {
        let telemetry = Telemetry::bundled().unwrap();
        assert_eq!(telemetry.devices.len(), 31);
        assert_eq!(telemetry.readings, 152_965);
        let taxi = telemetry
            .devices
            .iter()
            .find(|device| device.name.ends_with("nyc_taxi"));
        let taxi = taxi.unwrap();
        assert_eq!(taxi.rows.len(), 10_320);
        let first = r#"{"device":"realKnownCause/nyc_taxi","row":0,"timestamp":"2014-07-01 00:00:00","value":10844}"#;
        assert_eq!(taxi.rows.first().unwrap(), first);
        assert!(BUNDLED.len() < 1 << 20);
    }

    #[test]
    fn devices_are_numbered_through() {
        let header = "timestamp,value\n";
        let two = of_text(&[
            ("a", &format!("{header}t,1\r\nt,2")),
            ("b", &format!("{header}t,3\n")),
        ]);
        assert_eq!((two.readings, two.bytes), (3, 3 * 48));
        assert_eq!(
            two.devices
                .iter()
                .map(|device| device.first)
                .collect::<Vec<_>>(),
            [0, 2]
        );
    }

    /// What comes out of a column compares equal, whatever the number was written like.
    #[test]
    fn values_are_kept_as_they_stand_where_that_is_json() {
        let file = "timestamp,value\n\"a \"\"b\"\"\",1.50\nt, 7 \nt,+.5\nt,007\nt,NaN\nt,12345678901234567890\n";
        let device = of_text(&[("x\"/y", file)]).devices.remove(0);
        let values = ["1.50", "7", "0.5", "7.0", "null", "12345678901234567890"];
        assert_eq!(device.rows.len(), values.len());
        for (row, value) in device.rows.iter().zip(values) {
            assert!(
                row.ends_with(format!("\"value\":{value}}}").as_bytes()),
                "{row:?}"
            );
            let reading = Reading::of(row).unwrap();
            let mut seen: Map<_, _> = serde_json::from_slice(row).unwrap();
            if value == "null" {
                seen.remove("value");
            }
            assert!(reading.is(&seen), "{row:?}");
            seen.insert("value".to_owned(), Value::from(8.25));
            assert!(!reading.is(&seen), "{row:?}");
            seen.insert("more".to_owned(), Value::from(1));
            assert!(!reading.is(&seen), "{row:?}");
        }
        let first = Reading::of(&device.rows[0]).unwrap();
        assert_eq!((&*first.device, &*first.timestamp), ("x\"/y", "a \"b\""));
    }

    #[test]
    fn what_is_not_telemetry_is_named_with_its_line() {
        for (text, refusal) in [
            ("time,value\n1,2\n", "line 1: not telemetry"),
            (
                "timestamp,value\nt,1\nt,warm\n",
                "line 3: \"warm\" is not a number",
            ),
            (
                "timestamp,value\nt,1,2\n",
                "line 2: 3 fields where the header names 2",
            ),
            (
                "timestamp,value\nt,inf\n",
                "line 2: \"inf\" is not a number",
            ),
            ("", "it is empty"),
        ] {
            let found = format!("{:#}", rows("a", text.as_bytes()).unwrap_err());
            assert!(found.starts_with(refusal), "{found}");
        }
        assert!(next_file(b"short").unwrap().is_none());
    }
}
