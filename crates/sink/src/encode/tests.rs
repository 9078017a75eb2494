//! What settings mean, and objects read back: plain ones here, columns and other programs below.

mod columns;
mod tools;

use std::io::Read;

use bytes::Bytes;
use flumen_broker::{ColumnType, ParquetColumn, ParquetCompression};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::unit::{ErrorType, Failure};

/// Settings of which only format and compression count.
fn settings(format: ObjectFormat, compression: ObjectCompression) -> DeliverySettings {
    let rest = json!({
        "source": {"kind": "direct"},
        "destination": {"kind": "memory", "name": "m"},
    });
    DeliverySettings {
        format,
        compression,
        ..serde_json::from_value(rest).unwrap()
    }
}

fn encoding(format: ObjectFormat, compression: ObjectCompression) -> Encoding {
    Encoding::compile(&settings(format, compression)).unwrap()
}

fn refusal(format: ObjectFormat, compression: ObjectCompression) -> String {
    let refused = Encoding::compile(&settings(format, compression));
    refused.unwrap_err().to_string()
}

fn delimited(delimiter: &str) -> ObjectFormat {
    let delimiter = delimiter.to_owned();
    ObjectFormat::Delimited { delimiter }
}

fn column(name: &str, kind: ColumnType, required: bool) -> ParquetColumn {
    let name = name.to_owned();
    ParquetColumn {
        name,
        kind,
        required,
    }
}

fn parquet(columns: Vec<ParquetColumn>) -> ParquetSettings {
    ParquetSettings {
        columns,
        ..ParquetSettings::default()
    }
}

fn object<R: AsRef<[u8]>>(encoding: &Encoding, schema: &Schema, rows: &[R]) -> Vec<u8> {
    let mut encoder = encoding.encoder(schema, Vec::new()).unwrap();
    for row in rows {
        encoder.row(row.as_ref()).unwrap();
    }
    let (object, encoded) = encoder.finish().unwrap();
    assert_eq!(encoded.rows, rows.len() as u64);
    let raw_bytes: usize = rows.iter().map(|row| row.as_ref().len()).sum();
    assert_eq!(encoded.raw_bytes, raw_bytes as u64);
    object
}

/// Reads the stream format of snappy-java.
fn read_snappy_java(object: &[u8]) -> Vec<u8> {
    let mut blocks = object
        .strip_prefix(b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01")
        .unwrap();
    let mut bytes = Vec::new();
    while let Some((length, rest)) = blocks.split_first_chunk::<4>() {
        let length = length.iter().fold(0, |n, byte| n << 8 | usize::from(*byte));
        let block = snap::raw::Decoder::new()
            .decompress_vec(&rest[..length])
            .unwrap();
        assert!(block.len() <= 32 << 10 && !block.is_empty());
        bytes.extend(block);
        blocks = &rest[length..];
    }
    assert!(blocks.is_empty());
    bytes
}

fn decompressed(compression: ObjectCompression, object: &[u8]) -> Vec<u8> {
    match compression {
        ObjectCompression::None => object.to_vec(),
        ObjectCompression::Gzip => {
            let mut bytes = Vec::new();
            flate2::read::GzDecoder::new(object)
                .read_to_end(&mut bytes)
                .unwrap();
            bytes
        }
        ObjectCompression::Snappy => read_snappy_java(object),
        ObjectCompression::Zstd => zstd::decode_all(object).unwrap(),
    }
}

const COMPRESSIONS: [ObjectCompression; 4] = [
    ObjectCompression::None,
    ObjectCompression::Gzip,
    ObjectCompression::Snappy,
    ObjectCompression::Zstd,
];

#[test]
fn names_and_types_of_objects() {
    let expected = [
        ("", None),
        (".gz", Some("gzip")),
        (".snappy", Some("snappy-java")),
        (".zst", Some("zstd")),
    ];
    for (compression, (extension, content_encoding)) in COMPRESSIONS.into_iter().zip(expected) {
        let verbatim = encoding(ObjectFormat::Verbatim, compression);
        assert_eq!(verbatim.extension(), extension);
        assert_eq!(verbatim.content_encoding(), content_encoding);
        assert_eq!(verbatim.content_type(), "application/octet-stream");
        assert!(!verbatim.infers_schema());
        let lines = encoding(ObjectFormat::Ndjson, compression);
        assert_eq!(lines.content_type(), "application/x-ndjson");
    }
    let inferred = encoding(
        ObjectFormat::Parquet(parquet(vec![])),
        ObjectCompression::None,
    );
    assert_eq!(inferred.extension(), ".parquet");
    assert_eq!(inferred.content_encoding(), None);
    assert!(inferred.infers_schema());
    let given = vec![column("a", ColumnType::Int, false)];
    let given = encoding(
        ObjectFormat::Parquet(parquet(given)),
        ObjectCompression::None,
    );
    assert!(!given.infers_schema());
}

#[test]
fn delimiters() {
    let long = "x".repeat(16);
    let good: [(&str, &[u8]); 6] = [
        (r"\n", b"\n"),
        (r"\r\n\t\\", b"\r\n\t\\"),
        (r"\x00\xfF", b"\x00\xff"),
        ("|", b"|"),
        ("é", "é".as_bytes()),
        (&long, long.as_bytes()),
    ];
    for (text, bytes) in good {
        let encoding = encoding(delimited(text), ObjectCompression::None);
        let expected = [b"a", bytes, b"", bytes].concat();
        assert_eq!(
            object(&encoding, &Schema::default(), &["a", ""]),
            expected,
            "{text}"
        );
    }
    let escape = "use \\n, \\t, \\r, \\\\ or \\xHH with two hexadecimal digits";
    for (text, at) in [
        (r"a\q", 1),
        (r"\", 0),
        (r"\x1", 0),
        (r"\xgg", 0),
        (r"\x+1", 0),
    ] {
        assert_eq!(
            refusal(delimited(text), ObjectCompression::None),
            format!("format.delimiter: no such escape at character {at}; {escape}"),
        );
    }
    let bounds = "bytes; give 1 to 16";
    assert_eq!(
        refusal(delimited(""), ObjectCompression::None),
        format!("format.delimiter: 0 {bounds}")
    );
    assert_eq!(
        refusal(delimited(&"x".repeat(17)), ObjectCompression::None),
        format!("format.delimiter: 17 {bounds}")
    );
}

#[test]
fn parquet_settings_have_bounds() {
    let changed = |change: &dyn Fn(&mut ParquetSettings)| {
        let mut settings = ParquetSettings::default();
        change(&mut settings);
        refusal(ObjectFormat::Parquet(settings), ObjectCompression::None)
    };
    assert_eq!(
        changed(&|s| s.row_group_bytes = 1),
        "format.row_group_bytes: 1; give 1048576 to 268435456"
    );
    assert_eq!(
        changed(&|s| s.row_group_rows = 9_999),
        "format.row_group_rows: 9999; give 10000 to 100000000"
    );
    assert_eq!(
        changed(&|s| s.page_bytes = (16 << 20) + 1),
        "format.page_bytes: 16777217; give 65536 to 16777216"
    );
    let names = |names: &[&str]| {
        let columns = names
            .iter()
            .map(|name| column(name, ColumnType::Json, false));
        let columns: Vec<_> = columns.collect();
        changed(&move |s| s.columns.clone_from(&columns))
    };
    assert!(names(&[""]).starts_with("format.columns: the name \"\" has 0 bytes"));
    assert!(names(&["a.b", "A_B"]).contains("\"a.b\" and \"A_B\" name the same fields"));
    let many: Vec<_> = (0..1_001).map(|i| format!("c{i}")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    assert_eq!(
        names(&many),
        "format.columns: 1001 columns; at most 1000 are possible"
    );
    let format = ObjectFormat::Parquet(ParquetSettings::default());
    let both = refusal(format, ObjectCompression::Gzip);
    assert!(
        both.starts_with("compression: parquet compresses its own pages"),
        "{both}"
    );
}

#[test]
fn plain_objects_are_the_rows() {
    let large = vec![b'x'; 200_000];
    let rows: Vec<&[u8]> = vec![
        b"one",
        b"",
        b"two\n",
        &large,
        b"\x00\xff",
        &large[..65_536],
        b"end",
    ];
    for compression in COMPRESSIONS {
        let encoding = encoding(ObjectFormat::Verbatim, compression);
        let mut admission = encoding.admission(Schema::default());
        for row in &rows {
            let row = Bytes::copy_from_slice(row);
            assert_eq!(admission.admit(row.clone()), Ok(row));
        }
        let bytes = object(&encoding, &Schema::default(), &rows);
        assert_eq!(
            decompressed(compression, &bytes),
            rows.concat(),
            "{compression:?}"
        );
        assert_eq!(
            bytes,
            object(&encoding, &Schema::default(), &rows),
            "{compression:?}"
        );
        assert_eq!(
            bytes,
            object(&Encoding::verbatim(compression), &Schema::default(), &rows)
        );
        let nothing = object::<&[u8]>(&encoding, &Schema::default(), &[]);
        assert_eq!(decompressed(compression, &nothing), b"", "{compression:?}");
    }
}

#[test]
fn memory_of_an_encoder_does_not_grow_with_its_rows() {
    for compression in COMPRESSIONS {
        let encoding = encoding(delimited(r"\n"), compression);
        let mut encoder = encoding.encoder(&Schema::default(), io::sink()).unwrap();
        let before = encoder.buffered_bytes();
        for _ in 0..100 {
            encoder.row(&[b'x'; 100_000]).unwrap();
        }
        assert!(encoder.buffered_bytes() <= before + (1 << 10));
    }
}

#[test]
fn json_lines() {
    let encoding = encoding(ObjectFormat::Ndjson, ObjectCompression::None);
    let mut admission = encoding.admission(Schema::default());
    let cases = [
        ("{\"a\": 1}", "{\"a\": 1}"),
        ("  {\"a\":1}\r\n", "{\"a\":1}"),
        (
            "{\n  \"a\": \"b\\n c\",\n  \"d\": [1, 2e5]\n}\n",
            "{\"a\":\"b\\n c\",\"d\":[1,2e5]}",
        ),
        ("12345678901234567890123", "12345678901234567890123"),
        ("\"text\"", "\"text\""),
    ];
    let mut rows = Vec::new();
    for (row, expected) in cases {
        let given = Bytes::from_static(row.as_bytes());
        let admitted = admission.admit(given.clone()).unwrap();
        assert_eq!(admitted, expected);
        if !row.trim().contains('\n') {
            let within = given.as_ptr_range();
            assert!(within.contains(&admitted.as_ptr()), "copied: {row}");
        }
        rows.push(admitted);
    }
    let lines = object(&encoding, &Schema::default(), &rows);
    let lines = String::from_utf8(lines).unwrap();
    assert_eq!(
        lines.lines().collect::<Vec<_>>(),
        cases.map(|(_, line)| line)
    );
    assert!(lines.ends_with("\"text\"\n"));

    let refused = admission
        .admit(Bytes::from_static(b"{\"a\":1"))
        .unwrap_err();
    let failure = Failure {
        kind: ErrorType::FormatConversionFailed,
        code: "Json.Invalid",
        message: "the record is not one json value: it ends within a value at byte 6".to_owned(),
        attempts: 1,
    };
    assert_eq!(Failure::from(refused), failure);
    for row in ["", "a", "{} {}"] {
        let refused = admission
            .admit(Bytes::from_static(row.as_bytes()))
            .unwrap_err();
        assert_eq!(refused.code(), "Json.Invalid", "{row}");
    }
    let large = admission.admit(vec![b' '; (64 << 20) + 1].into());
    assert_eq!(large.unwrap_err().code(), "Json.TooLarge");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_compression_gives_the_rows_back(
        rows in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..2_000), 0..60),
        repeat in 1usize..40,
    ) {
        let rows: Vec<_> = std::iter::repeat_n(rows, repeat).flatten().collect();
        let expected = rows.iter().flat_map(|row| [row.as_slice(), b"\r\n"]).collect::<Vec<_>>().concat();
        for compression in COMPRESSIONS {
            let encoding = encoding(delimited(r"\r\n"), compression);
            let bytes = object(&encoding, &Schema::default(), &rows);
            prop_assert_eq!(&decompressed(compression, &bytes), &expected);
        }
    }
}
