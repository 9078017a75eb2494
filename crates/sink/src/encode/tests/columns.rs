//! Columns: given and inferred, read back with the Parquet reader.

use std::collections::BTreeMap;

use arrow_array::cast::AsArray;
use arrow_array::types::{Date32Type, Float64Type, Int32Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, RecordBatch};
use arrow_schema::{DataType, TimeUnit};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::metadata::ParquetMetaData;
use serde_json::Value as Json;

use super::super::schema::normal;
use super::*;

fn inferring() -> Encoding {
    encoding(
        ObjectFormat::Parquet(parquet(vec![])),
        ObjectCompression::None,
    )
}

fn giving(columns: &[(&str, ColumnType, bool)]) -> Encoding {
    let columns = columns
        .iter()
        .map(|(name, kind, required)| column(name, *kind, *required));
    let settings = parquet(columns.collect());
    encoding(ObjectFormat::Parquet(settings), ObjectCompression::None)
}

fn read(object: Vec<u8>) -> (Vec<RecordBatch>, ParquetMetaData) {
    let builder = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(object)).unwrap();
    let metadata = builder.metadata().as_ref().clone();
    let batches = builder.build().unwrap().collect::<Result<_, _>>();
    (batches.unwrap(), metadata)
}

/// A value as JSON; dates and times as their numbers.
fn cell(array: &dyn Array, row: usize) -> Json {
    if array.is_null(row) {
        return Json::Null;
    }
    match array.data_type() {
        DataType::Boolean => array.as_boolean().value(row).into(),
        DataType::Int32 => array.as_primitive::<Int32Type>().value(row).into(),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(row).into(),
        DataType::Float64 => array.as_primitive::<Float64Type>().value(row).into(),
        DataType::Utf8 => array.as_string::<i32>().value(row).into(),
        DataType::Date32 => array.as_primitive::<Date32Type>().value(row).into(),
        DataType::Timestamp(TimeUnit::Microsecond, Some(zone)) if &**zone == "UTC" => array
            .as_primitive::<TimestampMicrosecondType>()
            .value(row)
            .into(),
        other => panic!("{other}"),
    }
}

fn cells(object: Vec<u8>) -> Vec<Vec<Json>> {
    let row = |batch: &RecordBatch, row| batch.columns().iter().map(|c| cell(c, row)).collect();
    let (batches, _) = read(object);
    batches
        .iter()
        .flat_map(|b| (0..b.num_rows()).map(move |r| row(b, r)))
        .collect()
}

fn admit(admission: &mut Admission, row: &str) -> Result<Bytes, RowRefused> {
    admission.admit(Bytes::copy_from_slice(row.as_bytes()))
}

fn columns_of(schema: &Schema) -> Vec<(&str, ColumnType)> {
    schema
        .columns()
        .iter()
        .map(|c| (c.name.as_str(), c.kind))
        .collect()
}

#[test]
fn given_columns() {
    use ColumnType::{Bigint, Boolean, Date, Double, Int, Json as Any, String, Timestamp};
    let encoding = giving(&[
        ("flag", Boolean, false),
        ("small", Int, false),
        ("Large", Bigint, false),
        ("real", Double, false),
        ("text", String, true),
        ("day", Date, false),
        ("at", Timestamp, false),
        ("any.thing", Any, false),
    ]);
    let mut admission = encoding.admission(Schema::default());
    let rows = [
        r#"{"flag":true,"small":-1,"large":9223372036854775807,"real":1,"text":"a\u00e9\n","day":"2014-07-01","at":"2014-07-01 00:00:00","any.thing":{"a": [1]}}"#,
        r#"{"TEXT":5,"any_thing":"x","unknown":{"b":1}}"#,
        r#"{"text":false,"text":"last","Any_Thing":null,"real":-0.5}"#,
    ];
    let rows = rows.map(|row| admit(&mut admission, row).unwrap());
    let expected = [
        json!([
            true,
            -1,
            i64::MAX,
            1.0,
            "aé\n",
            16_252,
            1_404_172_800_000_000_i64,
            r#"{"a": [1]}"#
        ]),
        json!([null, null, null, null, "5", null, null, "\"x\""]),
        json!([null, null, null, -0.5, "last", null, null, null]),
    ];
    let bytes = object(&encoding, admission.schema(), &rows);
    assert_eq!(
        bytes,
        object(&encoding, &Schema::default(), &rows),
        "given is given"
    );
    assert_eq!(
        cells(bytes.clone())
            .into_iter()
            .map(Json::from)
            .collect::<Vec<_>>(),
        expected
    );
    let (batches, _) = read(bytes);
    let fields = batches[0].schema();
    let fields: Vec<_> = fields
        .fields()
        .iter()
        .map(|f| (f.name().clone(), f.is_nullable()))
        .collect();
    assert_eq!(fields[2], ("Large".to_owned(), true));
    assert_eq!(fields[4], ("text".to_owned(), false));
}

#[test]
fn rows_that_do_not_fit_given_columns() {
    let encoding = giving(&[
        ("n", ColumnType::Int, true),
        ("s", ColumnType::String, false),
    ]);
    let mut admission = encoding.admission(Schema::default());
    let refusals = [
        (
            r#"{"n":"1"}"#,
            "Schema.Mismatch",
            "column \"n\" takes whole numbers of 32 bits, not \"1\"; change the column or the record",
        ),
        (
            r#"{"n":1,"s":[2]}"#,
            "Schema.Mismatch",
            "column \"s\" takes strings, numbers, true and false, not [2]; change the column or the record",
        ),
        (
            r#"{"s":"a"}"#,
            "Schema.Missing",
            "column \"n\" is required and the record has no value for it",
        ),
        (
            r#"{"n":1,"N":null}"#,
            "Schema.Missing",
            "column \"n\" is required and the record has no value for it",
        ),
        (
            "[1]",
            "Json.NotAnObject",
            "the record is json but not an object, which a row of columns is made from",
        ),
        (
            "{\"n\":1}{\"n\":2}",
            "Json.Invalid",
            "the record is not one json value: more after the value at byte 7",
        ),
    ];
    for (row, code, says) in refusals {
        let refused = admit(&mut admission, row).unwrap_err();
        assert_eq!(
            (refused.code(), refused.to_string().as_str()),
            (code, says),
            "{row}"
        );
    }
    // What was not admitted is an error and no panic.
    let mut encoder = encoding.encoder(&Schema::default(), Vec::new()).unwrap();
    let error = encoder.row(br#"{"n":"1"}"#).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    let mut encoder = encoding.encoder(&Schema::default(), Vec::new()).unwrap();
    encoder.row(b"{}").unwrap();
    assert_eq!(
        encoder.finish().unwrap_err().kind(),
        io::ErrorKind::InvalidData
    );
}

#[test]
fn inferred_columns_grow_and_never_shrink() {
    use ColumnType::{Bigint, Boolean, Double, Json as Any, String};
    let mut admission = inferring().admission(Schema::default());
    let steps: [(&str, &[(&str, ColumnType)]); 8] = [
        ("{}", &[]),
        (r#"{"a":null}"#, &[]),
        (r#"{"b.c":"x","a":1}"#, &[("b_c", String), ("a", Bigint)]),
        (
            r#"{"A":2,"B_C":"y","d":true}"#,
            &[("b_c", String), ("a", Bigint), ("d", Boolean)],
        ),
        (
            r#"{"a":1.5}"#,
            &[("b_c", String), ("a", Double), ("d", Boolean)],
        ),
        (
            r#"{"a":7,"d":0}"#,
            &[("b_c", String), ("a", Double), ("d", Any)],
        ),
        (
            r#"{"a":"text","":{"n":1}}"#,
            &[("b_c", String), ("a", Any), ("d", Any), ("_", Any)],
        ),
        (
            r#"{"e":1,"E":"x"}"#,
            &[
                ("b_c", String),
                ("a", Any),
                ("d", Any),
                ("_", Any),
                ("e", Any),
            ],
        ),
    ];
    for (row, columns) in steps {
        admit(&mut admission, row).unwrap();
        assert_eq!(columns_of(admission.schema()), columns, "{row}");
        let kept = serde_json::to_string(admission.schema()).unwrap();
        let kept: Schema = serde_json::from_str(&kept).unwrap();
        assert_eq!(&kept, admission.schema());
        admission = inferring().admission(kept);
    }
    let refused = [r#"{"z":1,"b_c":2"#, "[]", r#"{"y":1}}"#];
    for row in refused {
        let before = admission.schema().clone();
        assert!(admit(&mut admission, row).is_err(), "{row}");
        assert_eq!(admission.schema(), &before, "{row}");
    }
    let form = r#"[{"name":"a","type":"bigint"},{"name":"b","type":"string"}]"#;
    let schema: Schema = serde_json::from_str(form).unwrap();
    assert_eq!(
        serde_json::to_string(&schema).unwrap(),
        form,
        "this is stored"
    );
    let twice = r#"[{"name":"a","type":"bigint"},{"name":"A","type":"string"}]"#;
    assert!(serde_json::from_str::<Schema>(twice).is_err());
}

#[test]
fn columns_that_were_given_once_may_be_what_is_known() {
    let known: Schema = serde_json::from_value(json!([
        {"name": "n", "type": "int", "required": true},
        {"name": "at", "type": "timestamp"},
    ]))
    .unwrap();
    let mut admission = inferring().admission(known);
    let rows = [r#"{"n":5,"at":"2014-07-01 00:00:00"}"#, "{}"];
    let rows = rows.map(|row| admit(&mut admission, row).unwrap());
    let kinds = [("n", ColumnType::Int), ("at", ColumnType::Timestamp)];
    assert_eq!(columns_of(admission.schema()), kinds);
    let cells = cells(object(&inferring(), admission.schema(), &rows));
    assert_eq!(cells[1], [Json::Null, Json::Null]);
    admit(&mut admission, r#"{"n":5000000000,"at":"noon"}"#).unwrap();
    let kinds = [("n", ColumnType::Json), ("at", ColumnType::Json)];
    assert_eq!(columns_of(admission.schema()), kinds);
}

#[test]
fn columns_have_a_bound() {
    let mut admission = inferring().admission(Schema::default());
    let wide = |from: usize, to: usize| {
        let fields: Vec<_> = (from..to).map(|i| format!("\"c{i}\":{i}")).collect();
        format!("{{{}}}", fields.join(","))
    };
    admit(&mut admission, &wide(0, 999)).unwrap();
    let refused = admit(&mut admission, &wide(999, 1_001)).unwrap_err();
    assert_eq!(refused.code(), "Schema.TooManyColumns");
    assert_eq!(admission.schema().columns().len(), 999, "all or none");
    admit(&mut admission, r#"{"last":1}"#).unwrap();
    assert_eq!(
        admit(&mut admission, r#"{"more":1}"#).unwrap_err().code(),
        "Schema.TooManyColumns"
    );
    admit(&mut admission, r#"{"more":null,"C7":"x"}"#).unwrap();
    let name = "n".repeat(257);
    let mut admission = inferring().admission(Schema::default());
    let refused = admit(&mut admission, &format!("{{\"{name}\":1}}")).unwrap_err();
    assert_eq!(refused.code(), "Schema.NameTooLong");
}

#[test]
fn nothing_but_empty_rows_is_rows_all_the_same() {
    let mut admission = inferring().admission(Schema::default());
    let rows = ["{}", r#"{"a":null}"#].map(|row| admit(&mut admission, row).unwrap());
    let bytes = object(&inferring(), admission.schema(), &rows);
    assert_eq!(cells(bytes), [[Json::Null], [Json::Null]]);
    assert_eq!(
        cells(object::<&str>(&inferring(), &Schema::default(), &[])),
        Vec::<Vec<Json>>::new()
    );
}

#[test]
fn row_groups_end_by_rows_and_by_bytes() {
    let mut settings = parquet(vec![
        column("n", ColumnType::Bigint, false),
        column("s", ColumnType::String, false),
    ]);
    settings.row_group_rows = 10_000;
    settings.compression = ParquetCompression::None;
    settings.dictionary = false;
    let groups = |settings: &ParquetSettings, rows: &[String]| {
        let encoding = encoding(
            ObjectFormat::Parquet(settings.clone()),
            ObjectCompression::None,
        );
        let (_, metadata) = read(object(&encoding, &Schema::default(), rows));
        assert_eq!(metadata.file_metadata().created_by(), Some("flumen"));
        let groups = metadata.row_groups();
        assert!(
            groups
                .iter()
                .all(|g| g.columns().iter().all(|c| c.statistics().is_some()))
        );
        groups.iter().map(|g| g.num_rows()).collect::<Vec<_>>()
    };
    let rows: Vec<_> = (0..25_000).map(|i| format!("{{\"n\":{i}}}")).collect();
    assert_eq!(groups(&settings, &rows), [10_000, 10_000, 5_000]);
    settings.row_group_bytes = 1 << 20;
    let text = "x".repeat(1_000);
    let rows: Vec<_> = (0..8_000)
        .map(|i| format!("{{\"n\":{i},\"s\":\"{text}\"}}"))
        .collect();
    let by_bytes = groups(&settings, &rows);
    assert!((4..=8).contains(&by_bytes.len()), "{by_bytes:?}");
}

#[test]
fn a_thousand_columns_stay_within_their_memory() {
    let names: Vec<_> = (0..1_000).map(|i| format!("c{i}")).collect();
    let columns = names
        .iter()
        .map(|name| column(name, ColumnType::Double, false))
        .collect();
    let settings = ParquetSettings {
        row_group_bytes: 1 << 20,
        ..parquet(columns)
    };
    let encoding = encoding(ObjectFormat::Parquet(settings), ObjectCompression::None);
    let mut encoder = encoding.encoder(&Schema::default(), Vec::new()).unwrap();
    let mut held = 0;
    for i in 0..30_000 {
        encoder
            .row(format!("{{\"c{}\":{i}}}", i % 1_000).as_bytes())
            .unwrap();
        held = held.max(encoder.buffered_bytes());
    }
    let (bytes, _) = encoder.finish().unwrap();
    let (batches, metadata) = read(bytes);
    assert_eq!(
        batches.iter().map(RecordBatch::num_rows).sum::<usize>(),
        30_000
    );
    assert!(
        metadata.num_row_groups() < 10,
        "{}",
        metadata.num_row_groups()
    );
    assert!(held < 8 << 20, "{held}");
}

/// Names that meet each other.
fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => prop::sample::select(vec!["a", "A", "b", "c.d", "c_d", "C.D", "", "_", "é", "É", "e\"\n"])
            .prop_map(str::to_owned),
        1 => any::<String>().prop_filter("short", |name| name.len() < 200),
    ]
}

fn value() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        any::<u64>().prop_map(Json::from),
        (-5i64..5).prop_map(Json::from),
        any::<f64>().prop_map(Json::from),
        any::<String>().prop_map(Json::from),
        prop::sample::select(vec!["2014-07-01", "2014-07-01 00:00:00", "1"]).prop_map(Json::from),
    ];
    leaf.prop_recursive(3, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Json::from),
            prop::collection::btree_map(name(), inner, 0..3)
                .prop_map(|fields| Json::Object(fields.into_iter().collect())),
        ]
    })
}

/// Fields in order, names perhaps more than once.
type Fields = Vec<(String, Json)>;

fn rows() -> impl Strategy<Value = Vec<(Fields, bool)>> {
    let row = prop::collection::vec((name(), value()), 0..6);
    prop::collection::vec((row, any::<bool>()), 0..20)
}

fn text(fields: &Fields, space: bool) -> String {
    let quote = |name| serde_json::to_string(&Json::String(name)).unwrap();
    let fields = fields.iter().map(|(name, value)| {
        if space {
            format!(" {} :\n {:#}", quote(name.clone()), value)
        } else {
            format!("{}:{value}", quote(name.clone()))
        }
    });
    format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
}

/// Whether a cell of a column of this type says the same as the value of the record.
fn same(kind: ColumnType, cell: &Json, value: &Json) -> bool {
    match kind {
        _ if value.is_null() || cell.is_null() => cell == value,
        ColumnType::Double => cell.as_f64() == value.as_f64(),
        ColumnType::Json => {
            // serde_json reads decimals nearly, but always alike.
            let reread: Json = serde_json::from_str(&value.to_string()).unwrap();
            serde_json::from_str::<Json>(cell.as_str().unwrap()).unwrap() == reread
        }
        _ => cell == value,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_admitted_is_read_back(cuts in prop::collection::vec(rows(), 1..4)) {
        let encoding = inferring();
        let mut known = Schema::default();
        for cut in cuts {
            let mut admission = encoding.admission(known.clone());
            let admitted: Vec<_> = cut
                .iter()
                .map(|(fields, space)| admit(&mut admission, &text(fields, *space)).unwrap())
                .collect();
            let schema = admission.schema().clone();
            prop_assert!(schema.columns().len() >= known.columns().len());
            for (before, after) in known.columns().iter().zip(schema.columns()) {
                prop_assert_eq!(&before.name, &after.name);
                let wider = before.kind == after.kind
                    || after.kind == ColumnType::Json
                    || (before.kind, after.kind) == (ColumnType::Bigint, ColumnType::Double);
                prop_assert!(wider, "{:?} to {:?}", before, after);
            }
            // The same rows again, after a crash.
            let mut again = encoding.admission(known.clone());
            for row in &admitted {
                prop_assert_eq!(again.admit(row.clone()), Ok(row.clone()));
            }
            prop_assert_eq!(again.schema(), &schema);

            let cells = cells(object(&encoding, &schema, &admitted));
            prop_assert_eq!(cells.len(), cut.len());
            for ((fields, _), cells) in cut.iter().zip(cells) {
                let last: BTreeMap<_, _> = fields.iter().map(|(name, v)| (normal(name), v)).collect();
                for (column, cell) in schema.columns().iter().zip(cells) {
                    let value = last.get(&normal(&column.name)).copied().unwrap_or(&Json::Null);
                    prop_assert!(same(column.kind, &cell, value), "{:?}: {} and {}", column, cell, value);
                }
                let all = last.iter().filter(|(_, value)| !value.is_null());
                let names: Vec<_> = schema.columns().iter().map(|c| normal(&c.name)).collect();
                prop_assert!(all.into_iter().all(|(name, _)| names.contains(name)));
            }
            known = schema;
        }
    }

    #[test]
    fn what_given_columns_admit_can_be_encoded(rows in rows(), damage in any::<(prop::sample::Index, u8)>()) {
        use ColumnType::{Bigint, Boolean, Date, Double, Int, Json as Any, String, Timestamp};
        for kind in [Boolean, Int, Bigint, Double, String, Date, Timestamp, Any] {
            let encoding = giving(&[("a", kind, true), ("c_d", kind, false)]);
            let mut admission = encoding.admission(Schema::default());
            let mut admitted = Vec::new();
            for (fields, space) in &rows {
                let mut bytes = text(fields, *space).into_bytes();
                if let Ok(row) = admission.admit(bytes.clone().into()) {
                    admitted.push(row);
                }
                let at = damage.0.index(bytes.len());
                bytes[at] = damage.1;
                if let Ok(row) = admission.admit(bytes.into()) {
                    admitted.push(row);
                }
            }
            let cells = cells(object(&encoding, &Schema::default(), &admitted));
            prop_assert_eq!(cells.len(), admitted.len());
            prop_assert!(cells.iter().all(|row| !row[0].is_null()));
        }
    }
}
