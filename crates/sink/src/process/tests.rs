//! Records unpacked, filtered, mapped and partitioned.

use std::io::Write;

use flumen_broker::{DeliverySettings, Partitioning, SubRecords};

use super::*;
use crate::unit::tests::unit;

/// Settings with nothing set.
pub(crate) fn settings() -> DeliverySettings {
    serde_json::from_str(
        r#"{"source":{"kind":"direct"},"destination":{"kind":"memory","name":"m"}}"#,
    )
    .unwrap()
}

fn processor(change: impl FnOnce(&mut DeliverySettings)) -> Processor {
    let mut settings = settings();
    change(&mut settings);
    Processor::compile(&settings).unwrap()
}

fn partitioned(keys: &[(&str, &str)]) -> Option<Partitioning> {
    let keys = keys
        .iter()
        .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
    Some(Partitioning {
        keys: keys.collect(),
        partitions_max: 10,
    })
}

/// What becomes of a record: rows with their partitions, `dropped`, or the code of a failure.
fn shaped(processor: &Processor, data: &str) -> Vec<String> {
    let mut out = Vec::new();
    processor.shape(&unit(data.as_bytes()), &mut |shaped| {
        out.push(match shaped {
            Shaped::Row { data, partition } => {
                let data = String::from_utf8(data.to_vec()).unwrap();
                format!("{data} {}", partition.join("/"))
                    .trim_end()
                    .to_owned()
            }
            Shaped::Dropped => "dropped".to_owned(),
            Shaped::Failed(failure) => {
                assert_eq!(failure.kind, crate::unit::ErrorType::ProcessingFailed);
                failure.code.to_owned()
            }
        });
    });
    out
}

fn unpacked(processor: &Processor, unit: Unit) -> Vec<(u64, Result<Vec<u8>, &'static str>)> {
    let mut out = Vec::new();
    processor.unpack(unit, &mut |outcome| {
        out.push(match outcome {
            Ok(unit) => (unit.sub, Ok(unit.data.to_vec())),
            Err((unit, failure)) => (unit.sub, Err(failure.code)),
        });
    });
    out
}

#[test]
fn data_passes_unread_when_nothing_looks_at_it() {
    let processor = processor(|_settings| {});
    let record = unit(b"\xff not JSON");
    processor.shape(&record, &mut |shaped| {
        let Shaped::Row { data, partition } = shaped else {
            panic!("{shaped:?}")
        };
        assert!(partition.is_empty());
        assert_eq!(data.as_ptr(), record.data.as_ptr(), "not even copied");
    });
    assert!(processor.is_deterministic());
}

#[test]
fn rows_are_filtered_mapped_and_partitioned() {
    let processor = processor(|settings| {
        settings.processing.filter = Some(".level != \"debug\"".to_owned());
        settings.processing.map = Some(".items[] | {id, n: (.n * 2)}".to_owned());
        settings.partitioning = partitioned(&[("id", ".id"), ("big", ".n > 3")]);
    });
    for (data, rows) in [
        (
            r#"{"level":"info","items":[{"id":"a","n":1},{"id":2.50,"n":2}]}"#,
            &[
                r#"{"id":"a","n":2} false/a"#,
                r#"{"id":2.5,"n":4} true/2.5"#,
            ][..],
        ),
        (
            r#"{"level":"debug","items":[{"id":"a","n":1}]}"#,
            &["dropped"],
        ),
        (r#"{"items":[]}"#, &["dropped"]),
        (
            r#"{"items":[{"id":"a","n":1},{"n":1}]}"#,
            &["Partition.MissingKey"],
        ),
        (r#"{"items":[{"id":{},"n":1}]}"#, &["Partition.InvalidKey"]),
        (r#"{"items":5}"#, &["Jq.Failed"]),
        ("not JSON", &["Json.Invalid"]),
        ("{} {}", &["Json.Invalid"]),
    ] {
        assert_eq!(shaped(&processor, data), rows, "{data}");
    }
    let names: Vec<&str> = processor.partition_keys().collect();
    assert_eq!(names, ["big", "id"]);
}

#[test]
fn rows_keep_their_bytes_without_map() {
    let processor = processor(|settings| {
        settings.partitioning = partitioned(&[("k", ".a // $partition_key")]);
    });
    assert_eq!(
        shaped(&processor, r#"{ "a" : 1.0 }"#),
        [r#"{ "a" : 1.0 } 1"#]
    );
    assert_eq!(shaped(&processor, "{}"), ["{} pk"]);
    let long = format!(r#"{{"a":"{}"}}"#, "x".repeat(2000));
    assert_eq!(shaped(&processor, &long), ["Partition.InvalidKey"]);
}

#[test]
fn the_first_output_decides_and_errors_are_told() {
    let processor =
        processor(|settings| settings.processing.filter = Some("(.a, error)".to_owned()));
    assert_eq!(shaped(&processor, r#"{"a":0}"#), [r#"{"a":0}"#]);
    assert_eq!(shaped(&processor, r#"{"a":false}"#), ["dropped"]);
    assert_eq!(shaped(&processor, "1"), ["Jq.Failed"]);
}

#[test]
fn records_are_taken_apart_in_order() {
    let all = processor(|settings| {
        settings.processing.decompress = true;
        settings.processing.cloudwatch_logs = true;
        settings.processing.sub_records = Some(SubRecords::Delimited("\\n".to_owned()));
    });
    let envelope =
        br#"{"messageType":"DATA_MESSAGE","logEvents":[{"message":"a\nb"},{"message":"c"}]}"#;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(envelope).unwrap();
    let gzip = gzip.finish().unwrap();
    let three = [
        (0, Ok(b"a".to_vec())),
        (1, Ok(b"b".to_vec())),
        (2, Ok(b"c".to_vec())),
    ];
    assert_eq!(unpacked(&all, unit(&gzip)), three);
    assert_eq!(unpacked(&all, unit(b"x")), [(0, Err("Gzip.Invalid"))]);

    let mut record = unit(b"");
    record.data = kpl::tests::aggregate(&[("k1", &gzip), ("k2", b"bad"), ("k3", &gzip)]);
    let outcome = unpacked(&all, record.clone());
    assert_eq!(outcome.len(), 7);
    assert_eq!(outcome[3], (3, Err("Gzip.Invalid")));
    assert_eq!(outcome[6], (6, Ok(b"c".to_vec())));

    let plain = processor(|_settings| {});
    let mut keys = Vec::new();
    plain.unpack(record, &mut |outcome| {
        let unit = outcome.unwrap();
        keys.push((unit.partition_key, unit.sub, unit.headers.len()));
    });
    assert_eq!(
        keys,
        [
            ("k1".into(), 0, 1),
            ("k2".into(), 1, 1),
            ("k3".into(), 2, 1)
        ]
    );
    assert_eq!(
        unpacked(&plain, unit(b"\xf3\x89\x9a\xc2")),
        [(0, Ok(b"\xf3\x89\x9a\xc2".to_vec()))]
    );
}

/// Many small records that each hold as much as one may.
#[test]
fn bounds_are_for_the_stored_record() {
    let lines = processor(|settings| {
        settings.processing.sub_records = Some(SubRecords::Delimited(",".to_owned()));
    });
    let many = "x,".repeat(MAX_SUB_RECORDS / 2);
    let mut record = unit(b"");
    let many = many.as_bytes();
    record.data = kpl::tests::aggregate(&[("a", many), ("b", many), ("c", b"x")]);
    let outcome = unpacked(&lines, record);
    assert_eq!(outcome.len(), MAX_SUB_RECORDS + 1);
    let last = outcome.last().unwrap();
    assert_eq!(*last, (MAX_SUB_RECORDS as u64, Err("SubRecords.TooMany")));

    let small: Vec<(&str, &[u8])> = vec![("k", b"x"); MAX_SUB_RECORDS + 1];
    record = unit(b"");
    record.data = kpl::tests::aggregate(&small);
    let plain = processor(|_settings| {});
    assert_eq!(unpacked(&plain, record), [(0, Err("SubRecords.TooMany"))]);
}

#[test]
fn what_could_differ_is_known() {
    for (filter, deterministic) in [(".a", true), ("now > 1", false)] {
        let processor = processor(|settings| settings.processing.filter = Some(filter.to_owned()));
        assert_eq!(processor.is_deterministic(), deterministic);
    }
    let transformed = processor(|settings| {
        settings.processing.transform =
            Some(serde_json::from_str(r#"{"url":"http://localhost/"}"#).unwrap());
    });
    assert!(!transformed.is_deterministic());
}

#[test]
fn settings_that_cannot_be_are_refused() {
    let refused = |change: fn(&mut DeliverySettings)| {
        let mut settings = settings();
        change(&mut settings);
        Processor::compile(&settings).unwrap_err().setting
    };
    assert_eq!(
        refused(|s| s.processing.filter = Some("(".into())),
        "processing.filter"
    );
    assert_eq!(
        refused(|s| s.processing.map = Some("foo".into())),
        "processing.map"
    );
    assert_eq!(
        refused(|s| s.partitioning = partitioned(&[("a", "$b")])),
        "partitioning.keys"
    );
    assert_eq!(
        refused(|s| s.processing.sub_records = Some(SubRecords::Delimited(String::new()))),
        "processing.sub_records"
    );
    assert_eq!(
        refused(|s| {
            let keys: Vec<String> = (0..51).map(|n| format!("k{n}")).collect();
            let keys: Vec<(&str, &str)> = keys.iter().map(|name| (name.as_str(), ".")).collect();
            s.partitioning = partitioned(&keys);
        }),
        "partitioning.keys"
    );
}
