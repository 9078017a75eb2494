//! The readings that the demo replays: real ones that ship with the binary, or CSV files.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;

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

/// One device: its rows as they stand in its file.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) name: String,
    /// The number of its first reading among all.
    pub(super) first: usize,
    pub(super) rows: Vec<Bytes>,
}

impl Telemetry {
    /// What ships with the binary.
    pub(super) fn bundled() -> Result<Self> {
        let tar = zstd::decode_all(BUNDLED).context("BUG: the telemetry in this binary")?;
        let mut files = Vec::new();
        let mut rest = tar.as_slice();
        while let Some(file) = next_file(rest)? {
            if let Some(name) = file.name.strip_suffix(".csv") {
                let rows = rows(file.contents).with_context(|| name.to_owned())?;
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
            files.push((name, rows(BufReader::new(file)).context(shown)?));
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

/// The rows of a telemetry file, checked to be one.
fn rows(input: impl std::io::BufRead) -> Result<Vec<Bytes>> {
    let mut csv = Rows::open(input)?;
    ensure!(
        csv.columns() == COLUMNS,
        "line 1: not telemetry: the header is {:?}, not \"timestamp,value\"",
        csv.columns().join(",")
    );
    let mut rows = Vec::new();
    while let Some(row) = csv.next_row()? {
        let value = fields(&row)?.pop().unwrap_or_default();
        let number = value.trim().parse::<f64>();
        ensure!(
            number.is_ok(),
            "line {}: {value:?} is not a number",
            csv.line()
        );
        rows.push(Bytes::from(row));
    }
    Ok(rows)
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
    let files = files.map(|(name, text)| ((*name).to_owned(), rows(text.as_bytes()).unwrap()));
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
        assert_eq!(taxi.rows.first().unwrap(), "2014-07-01 00:00:00,10844");
        assert!(BUNDLED.len() < 1 << 20);
    }

    #[test]
    fn devices_are_numbered_through() {
        let header = "timestamp,value\n";
        let two = of_text(&[
            ("a", &format!("{header}t,1\r\nt,2")),
            ("b", &format!("{header}t,3\n")),
        ]);
        assert_eq!((two.readings, two.bytes), (3, 9));
        assert_eq!(
            two.devices
                .iter()
                .map(|device| device.first)
                .collect::<Vec<_>>(),
            [0, 2]
        );
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
            ("", "it is empty"),
        ] {
            let found = format!("{:#}", rows(text.as_bytes()).unwrap_err());
            assert!(found.starts_with(refusal), "{found}");
        }
        assert!(next_file(b"short").unwrap().is_none());
    }
}
