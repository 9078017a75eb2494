//! What other programs read in our objects. Python is `FLUMEN_TEST_PYTHON` or `python3`, with
//! pyarrow, duckdb and cramjam. Where one is missing, CI fails and others are told.

use std::path::Path;
use std::process::Command;

use serde_json::Value as Json;

use super::*;

const ROWS: usize = 12_000;

const SNAPPY_JAVA: &str = r#"
import sys, struct, cramjam
data = open(sys.argv[1], "rb").read()
assert data[:8] == b"\x82SNAPPY\x00", data[:8]
assert struct.unpack(">II", data[8:16]) == (1, 1)
at = 16
while at < len(data):
    (size,) = struct.unpack(">I", data[at:at + 4])
    sys.stdout.buffer.write(bytes(cramjam.snappy.decompress_raw(data[at + 4:at + 4 + size])))
    at += 4 + size
assert at == len(data)
"#;

const PYARROW: &str = r#"
import sys, json, datetime, pyarrow.parquet as pq
file = pq.ParquetFile(sys.argv[1])
assert file.metadata.created_by == "flumen", file.metadata.created_by
epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
def plain(value):
    if isinstance(value, datetime.datetime):
        return (value - epoch) // datetime.timedelta(microseconds=1)
    return value.isoformat() if isinstance(value, datetime.date) else value
types = {field.name: str(field.type) for field in file.schema_arrow}
rows = [{k: plain(v) for k, v in row.items()} for row in file.read().to_pylist()]
json.dump({"types": types, "rows": rows}, sys.stdout)
"#;

const DUCKDB: &str = r#"
import sys, json, duckdb
query = """select device, epoch_us("timestamp"), value, strftime(day, '%Y-%m-%d'), ok, small, count, extra
    from read_parquet(?)"""
rows = duckdb.execute(query, [sys.argv[1]]).fetchall()
describe = duckdb.execute("describe select * from read_parquet(?)", [sys.argv[1]]).fetchall()
json.dump({"types": {row[0]: row[1] for row in describe}, "rows": rows}, sys.stdout)
"#;

const DUCKDB_LINES: &str = r#"
import sys, json, duckdb
query = "select count(*), sum(value), min(device) from read_json(?, format='newline_delimited', compression=?)"
json.dump(duckdb.execute(query, sys.argv[1:3]).fetchall(), sys.stdout)
"#;

fn python() -> String {
    std::env::var("FLUMEN_TEST_PYTHON").unwrap_or_else(|_| String::from("python3"))
}

/// Whether a tool answers; that it does not is a failure where everything must be there.
fn there(command: &mut Command) -> bool {
    let there = command.output().is_ok_and(|output| output.status.success());
    if !there {
        let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
        assert!(!ci, "{command:?} is needed here");
        eprintln!("{command:?} is missing; what it would read is not tested");
    }
    there
}

fn has_module(module: &str) -> bool {
    there(Command::new(python()).args(["-c", &format!("import {module}")]))
}

fn output(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    output.stdout
}

fn script(script: &str, arguments: &[&str]) -> Vec<u8> {
    output(Command::new(python()).args(["-c", script]).args(arguments))
}

fn rows() -> Vec<Bytes> {
    let row = |i: usize| {
        let value = (i * 7_919 % 100_003) as f64 / 8.0;
        format!(
            "{{\"device\":\"device-{:04} ☂\",\"timestamp\":\"2014-07-{:02} {:02}:{:02}:00\",\"value\":{value:?},\"day\":\"2014-07-01\",\"ok\":{},\"small\":{},\"count\":{},\"extra\":{{\"i\":{i}}}}}",
            i % 500,
            i % 31 + 1,
            i % 24,
            i % 60,
            i.is_multiple_of(2),
            i % 7,
            i * 1_000_003,
        )
    };
    let mut rows: Vec<_> = (0..ROWS).map(|i| Bytes::from(row(i))).collect();
    rows.push(Bytes::from_static(b"{\"device\":\"\"}"));
    rows
}

fn lines() -> Vec<u8> {
    let rows = rows();
    rows.iter()
        .flat_map(|row| [row.as_ref(), b"\n"])
        .collect::<Vec<_>>()
        .concat()
}

/// Writes the rows as lines into a file of its own and hands its path over.
fn with_lines(compression: ObjectCompression, test: impl Fn(&str)) {
    let encoding = encoding(ObjectFormat::Ndjson, compression);
    let bytes = object(&encoding, &Schema::default(), &rows());
    with_file(&bytes, encoding.extension(), test);
}

fn with_file(bytes: &[u8], extension: &str, test: impl Fn(&str)) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(format!("object{extension}"));
    std::fs::write(&path, bytes).unwrap();
    test(path_text(&path));
}

fn path_text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn gzip_reads_gzip() {
    if there(Command::new("gzip").arg("--version")) {
        with_lines(ObjectCompression::Gzip, |path| {
            assert!(output(Command::new("gzip").args(["-dc", path])) == lines());
        });
    }
}

#[test]
fn zstd_reads_zstd() {
    if there(Command::new("zstd").arg("--version")) {
        with_lines(ObjectCompression::Zstd, |path| {
            assert!(output(Command::new("zstd").args(["-dc", path])) == lines());
        });
    }
}

#[test]
fn another_snappy_reads_snappy_java_blocks() {
    if has_module("cramjam") {
        with_lines(ObjectCompression::Snappy, |path| {
            assert!(script(SNAPPY_JAVA, &[path]) == lines());
        });
    }
}

#[test]
fn duckdb_reads_json_lines() {
    if has_module("duckdb") {
        let sum: f64 = (0..ROWS).map(|i| (i * 7_919 % 100_003) as f64 / 8.0).sum();
        for (compression, name) in [
            (ObjectCompression::None, "none"),
            (ObjectCompression::Gzip, "gzip"),
            (ObjectCompression::Zstd, "zstd"),
        ] {
            with_lines(compression, |path| {
                let answer: Json =
                    serde_json::from_slice(&script(DUCKDB_LINES, &[path, name])).unwrap();
                assert_eq!(answer, json!([[ROWS + 1, sum, ""]]), "{name}");
            });
        }
    }
}

fn telemetry(compression: ParquetCompression, dictionary: bool) -> Encoding {
    use ColumnType::{Bigint, Boolean, Date, Double, Int, Json as Any, String, Timestamp};
    let columns = vec![
        column("device", String, true),
        column("timestamp", Timestamp, false),
        column("value", Double, false),
        column("day", Date, false),
        column("ok", Boolean, false),
        column("small", Int, false),
        column("count", Bigint, false),
        column("extra", Any, false),
    ];
    let settings = ParquetSettings {
        compression,
        dictionary,
        row_group_rows: 10_000,
        ..parquet(columns)
    };
    encoding(ObjectFormat::Parquet(settings), ObjectCompression::None)
}

/// The rows as they must be read: fields in the order of the columns.
fn expected() -> Vec<Vec<Json>> {
    let row = |row: &Bytes| {
        let mut row: Json = serde_json::from_slice(row).unwrap();
        let time = row["timestamp"].as_str().map(|time| {
            let time: jiff::Timestamp = format!("{time}Z").parse().unwrap();
            time.as_microsecond()
        });
        row["timestamp"] = time.into();
        row["extra"] = row.get("extra").map(Json::to_string).into();
        let names = [
            "device",
            "timestamp",
            "value",
            "day",
            "ok",
            "small",
            "count",
            "extra",
        ];
        names.map(|name| row[name].take()).to_vec()
    };
    rows().iter().map(row).collect()
}

fn with_parquet(test: impl Fn(&str)) {
    for (compression, dictionary) in [
        (ParquetCompression::None, true),
        (ParquetCompression::Snappy, false),
        (ParquetCompression::Zstd, true),
    ] {
        let encoding = telemetry(compression, dictionary);
        let bytes = object(&encoding, &Schema::default(), &rows());
        with_file(&bytes, ".parquet", &test);
    }
}

#[test]
fn pyarrow_reads_parquet() {
    if has_module("pyarrow") {
        with_parquet(|path| {
            let read: Json = serde_json::from_slice(&script(PYARROW, &[path])).unwrap();
            let types = json!({
                "device": "string", "timestamp": "timestamp[us, tz=UTC]", "value": "double", "day": "date32[day]",
                "ok": "bool", "small": "int32", "count": "int64", "extra": "string",
            });
            assert_eq!(read["types"], types);
            let names = [
                "device",
                "timestamp",
                "value",
                "day",
                "ok",
                "small",
                "count",
                "extra",
            ];
            let rows = read["rows"].as_array().unwrap().iter();
            let rows: Vec<Vec<Json>> = rows
                .map(|row| names.map(|name| row[name].clone()).to_vec())
                .collect();
            assert!(rows == expected());
        });
    }
}

#[test]
fn duckdb_reads_parquet() {
    if has_module("duckdb") {
        with_parquet(|path| {
            let read: Json = serde_json::from_slice(&script(DUCKDB, &[path])).unwrap();
            let types = json!({
                "device": "VARCHAR", "timestamp": "TIMESTAMP WITH TIME ZONE", "value": "DOUBLE", "day": "DATE",
                "ok": "BOOLEAN", "small": "INTEGER", "count": "BIGINT", "extra": "VARCHAR",
            });
            assert_eq!(read["types"], types);
            let rows: Vec<Vec<Json>> = serde_json::from_value(read["rows"].clone()).unwrap();
            assert!(rows == expected());
        });
    }
}

/// Empty objects, and rows without any column.
#[test]
fn duckdb_and_pyarrow_count_rows_of_nothing() {
    if has_module("duckdb") && has_module("pyarrow") {
        let inferring = encoding(
            ObjectFormat::Parquet(parquet(vec![])),
            ObjectCompression::None,
        );
        for rows in [0, 3] {
            let bytes = object(&inferring, &Schema::default(), &vec!["{}"; rows]);
            with_file(&bytes, ".parquet", |path| {
                let count = "import sys, duckdb, pyarrow.parquet as pq\nprint(duckdb.execute('select count(*) from read_parquet(?)', sys.argv[1:]).fetchall()[0][0], pq.read_table(sys.argv[1]).num_rows)";
                let counts = String::from_utf8(script(count, &[path])).unwrap();
                assert_eq!(counts.trim(), format!("{rows} {rows}"));
            });
        }
    }
}
