//! What is set comes through, what is not set has the defaults that the settings' own file has.

use std::time::Duration;

use flumen_record::Timestamp;

use super::*;

fn named(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

/// Nothing in it is a default.
fn full() -> DeliverySettings {
    let some = |text: &str| Some(text.to_owned());
    DeliverySettings {
        source: DeliverySource::Stream {
            stream: StreamNameText("clicks".parse().unwrap()),
            start: DeliveryStart::at(Timestamp::from_micros(7)),
        },
        destination: Destination::S3(S3Destination {
            bucket: "b".to_owned(),
            region: some("eu-west-1"),
            endpoint: some("http://127.0.0.1:7070"),
            path_style: Some(false),
            ca_file: Some("/etc/ca.pem".into()),
            profile: some("p"),
        }),
        buffering: BufferingHints {
            size_bytes: 1 << 20,
            interval_ms: 0,
        },
        processing: Processing {
            decompress: true,
            cloudwatch_logs: true,
            sub_records: Some(SubRecords::Delimited("|".to_owned())),
            transform: Some(HttpTransform {
                url: "http://localhost:1/t".to_owned(),
                headers: named(&[("a", "b")]),
                batch_bytes: 200_000,
                retries: 0,
                timeout_ms: 1,
            }),
            filter: some(".a"),
            map: some("{b: .a}"),
        },
        format: ObjectFormat::Parquet(ParquetSettings {
            columns: vec![ParquetColumn {
                name: "a".to_owned(),
                kind: ColumnType::Bigint,
                required: true,
            }],
            compression: ParquetCompression::Snappy,
            row_group_rows: 1,
            row_group_bytes: 2,
            page_bytes: 3,
            dictionary: false,
        }),
        compression: ObjectCompression::Zstd,
        keys: KeySettings {
            prefix: some("p/"),
            error_prefix: some("e/"),
            time_zone: some("Europe/Berlin"),
            file_extension: some(".x"),
            manifest_prefix: some("m/"),
        },
        object: ObjectSettings {
            storage_class: some("STANDARD_IA"),
            content_type: some("text/plain"),
            cache_control: some("no-store"),
            metadata: named(&[("k", "v")]),
        },
        partitioning: Some(Partitioning {
            keys: named(&[("user", ".user")]),
            partitions_max: 9,
        }),
        backup: Some(Backup {
            prefix: "raw/".to_owned(),
            compression: ObjectCompression::Gzip,
        }),
        dead_letters: Some(StreamNameText("dead".parse().unwrap())),
    }
}

fn travels(settings: &DeliverySettings) {
    assert_eq!(
        delivery_settings(wire_delivery_settings(settings)).as_ref(),
        Ok(settings)
    );
}

#[test]
fn every_setting_travels() {
    let mut settings = full();
    travels(&settings);
    for start in [DeliveryStart::TrimHorizon, DeliveryStart::Latest] {
        let stream = StreamNameText("clicks".parse().unwrap());
        settings.source = DeliverySource::Stream { stream, start };
        travels(&settings);
    }
    settings.source = DeliverySource::Direct { shards: 3 };
    for destination in [
        Destination::Directory { path: "/d".into() },
        Destination::Memory {
            name: "m".to_owned(),
        },
    ] {
        settings.destination = destination;
        travels(&settings);
    }
    let delimiter = "\r\n".to_owned();
    for format in [
        ObjectFormat::Verbatim,
        ObjectFormat::Delimited { delimiter },
        ObjectFormat::Ndjson,
    ] {
        settings.format = format;
        travels(&settings);
    }
    settings.processing.sub_records = Some(SubRecords::Json);
    for compression in [
        ObjectCompression::None,
        ObjectCompression::Gzip,
        ObjectCompression::Snappy,
    ] {
        settings.compression = compression;
        travels(&settings);
    }
    for kind in [
        ColumnType::Boolean,
        ColumnType::Int,
        ColumnType::Double,
        ColumnType::String,
        ColumnType::Date,
        ColumnType::Timestamp,
        ColumnType::Json,
    ] {
        for compression in [ParquetCompression::None, ParquetCompression::Zstd] {
            settings.format = ObjectFormat::Parquet(ParquetSettings {
                columns: vec![ParquetColumn {
                    name: "a".to_owned(),
                    kind,
                    required: false,
                }],
                compression,
                ..ParquetSettings::default()
            });
            travels(&settings);
        }
    }
}

/// The JSON form has its defaults beside the settings, the wire has them here: they are the same.
#[test]
fn what_is_not_set_has_the_defaults_of_the_json_form() {
    let from_json: DeliverySettings = serde_json::from_str(
        r#"{"source": {"kind": "direct"}, "destination": {"kind": "directory", "path": "/d"},
            "processing": {"transform": {"url": "http://t"}}, "partitioning": {"keys": {}}}"#,
    )
    .unwrap();
    let wire = v1::DeliverySettings {
        source: Some(wire::Source::Direct(v1::DirectSource::default())),
        destination: Some(wire::Destination::Directory(v1::DirectoryDestination {
            path: "/d".to_owned(),
        })),
        processing: Some(v1::Processing {
            transform: Some(v1::HttpTransform {
                url: "http://t".to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        }),
        partitioning: Some(v1::Partitioning::default()),
        ..Default::default()
    };
    assert_eq!(delivery_settings(wire), Ok(from_json.clone()));
    assert_eq!(from_json.buffering.interval(), Duration::from_secs(300));
    let parquet = of_parquet(v1::ParquetFormat::default());
    assert_eq!(parquet, Ok(ParquetSettings::default()));
}

#[test]
fn what_cannot_be_understood_is_refused_by_its_field() {
    let refused = |change: fn(&mut v1::DeliverySettings)| {
        let mut settings = wire_delivery_settings(&full());
        change(&mut settings);
        let error = delivery_settings(settings).unwrap_err();
        (error.field(), error.reason())
    };
    let missing = "FIELD_MISSING";
    assert_eq!(refused(|it| it.source = None), ("source", missing));
    assert_eq!(
        refused(|it| it.destination = None),
        ("destination", missing)
    );
    assert_eq!(
        refused(|it| it.compression = 77),
        ("compression", "VALUE_UNKNOWN")
    );
    assert_eq!(
        refused(|it| it.dead_letters = "a/b".to_owned()),
        ("dead_letters", "STREAM_NAME_INVALID")
    );
    assert_eq!(
        refused(|it| it.backup.as_mut().unwrap().compression = -1),
        ("backup.compression", "VALUE_UNKNOWN")
    );
    assert_eq!(
        refused(|it| it.processing.as_mut().unwrap().sub_records = Some(v1::SubRecords::default())),
        ("processing.sub_records.form", missing)
    );
    let column = |r#type| {
        of_parquet(v1::ParquetFormat {
            columns: vec![v1::ParquetColumn {
                r#type,
                ..Default::default()
            }],
            ..Default::default()
        })
    };
    let field = "parquet.columns.type";
    assert_eq!(column(0), Err(ConvertError::Missing { field }));
    assert_eq!(
        column(9),
        Err(ConvertError::Enumeration { field, value: 9 })
    );
    assert_eq!(
        refused(|it| {
            it.source = Some(wire::Source::Stream(v1::StreamSource {
                stream: "clicks".to_owned(),
                start: Some(v1::StartPosition {
                    position: Some(Position::AtSequenceNumber(1)),
                }),
            }));
        }),
        ("stream.start", "POSITION_INVALID")
    );
}
