//! From what is typed to settings, without a broker.

use std::path::PathBuf;

use clap::Parser;
use flumen_broker::{
    Backup, ColumnType, Destination, HttpTransform, ParquetColumn, ParquetCompression,
    ParquetSettings, Partitioning, S3Destination, SubRecords,
};

use super::*;
use crate::failure::UsageError;

#[derive(Debug, Parser)]
struct Typed {
    #[command(subcommand)]
    verb: Verb,
}

/// Words between blanks; what is between quotes is one word.
fn words(text: &str) -> Vec<String> {
    let quoted = text.split('\'').enumerate();
    quoted
        .flat_map(|(index, part)| match index % 2 {
            0 => part.split_whitespace().map(str::to_owned).collect(),
            _ => vec![part.to_owned()],
        })
        .collect()
}

fn parse(text: &str) -> Result<Verb, clap::Error> {
    let arguments = ["delivery".to_owned()].into_iter().chain(words(text));
    Typed::try_parse_from(arguments).map(|typed| typed.verb)
}

#[track_caller]
fn create(text: &str) -> DeliverySettings {
    match parse(&format!("create sink {text}")) {
        Ok(Verb::Create(create)) => create.settings().expect("settings"),
        other => panic!("{text}: {other:?}"),
    }
}

/// What is said about it before a broker is asked.
#[track_caller]
fn refused(text: &str, says: &str) {
    let said = match parse(text) {
        Err(error) => error.to_string(),
        Ok(Verb::Create(create)) => {
            let error = create.settings().expect_err(text);
            assert!(error.is::<UsageError>(), "{error}");
            error.to_string()
        }
        Ok(other) => panic!("{other:?}"),
    };
    assert!(said.contains(says), "{text}: {said}");
}

#[track_caller]
fn update(settings: &DeliverySettings, text: &str) -> DeliverySettings {
    let mut settings = settings.clone();
    match parse(&format!("update sink {text}")) {
        Ok(Verb::Update(update)) => update.settings.apply(&mut settings).expect("settings"),
        other => panic!("{text}: {other:?}"),
    }
    settings
}

const LEAST: &str = "--stream clicks --to /out";

#[test]
fn the_least_has_the_defaults_of_the_json_form() {
    let least: DeliverySettings = serde_json::from_str(
        r#"{"source": {"kind": "stream", "stream": "clicks"},
            "destination": {"kind": "directory", "path": "/out"}}"#,
    )
    .unwrap();
    assert_eq!(create(LEAST), least);
}

#[test]
fn sources_are_streams_or_direct_puts() {
    let source = |text: &str| create(&format!("{text} --to /out")).source;
    let of = |start| DeliverySource::Stream {
        stream: StreamNameText("clicks".parse().unwrap()),
        start,
    };
    let at = |from: &str| source(&format!("--stream clicks --from {from}"));
    assert_eq!(at("trim-horizon"), of(DeliveryStart::TrimHorizon));
    assert_eq!(at("latest"), of(DeliveryStart::Latest));
    let time = of(DeliveryStart::AtTimestampUs(1_000_000));
    assert_eq!(at("1970-01-01T00:00:01Z"), time);
    assert_eq!(source("--direct"), DeliverySource::Direct { shards: 1 });
    let four = DeliverySource::Direct { shards: 4 };
    assert_eq!(source("--direct --shards 4"), four);
    refused("create sink --to /out", "--stream NAME, or --direct");
    refused(
        "create sink --stream a --direct --to /out",
        "cannot be used with",
    );
    refused(
        "create sink --direct --from latest --to /out",
        "cannot be used with",
    );
    refused(
        "create sink --stream a --shards 2 --to /out",
        "cannot be used with",
    );
    refused("create sink --shards 2 --to /out", "--direct");
    refused(
        "create sink --stream a --from at:7 --to /out",
        "places in one shard",
    );
}

#[test]
fn destinations_are_directories_buckets_and_memory() {
    let to = |text: &str| create(&format!("--direct --to {text}")).destination;
    let directory = |path: &str| Destination::Directory { path: path.into() };
    assert_eq!(to("/out"), directory("/out"));
    assert_eq!(to("file:///out/a"), directory("/out/a"));
    let here = std::env::current_dir().unwrap().join("out");
    assert_eq!(to("out"), Destination::Directory { path: here });
    let name = "m".to_owned();
    assert_eq!(to("memory:m"), Destination::Memory { name });
    let words = "s3://b --s3-endpoint http://127.0.0.1:7070 --region eu-west-1 --path-style true \
                 --ca-file /ca.pem --profile p";
    let s3 = Destination::S3(S3Destination {
        bucket: "b".to_owned(),
        region: Some("eu-west-1".to_owned()),
        endpoint: Some("http://127.0.0.1:7070".to_owned()),
        path_style: Some(true),
        ca_file: Some(PathBuf::from("/ca.pem")),
        profile: Some("p".to_owned()),
    });
    assert_eq!(to(words), s3);
    refused("create sink --direct", "--to DIR");
    refused("create sink --direct --to s3://", "a bucket is missing");
    refused("create sink --direct --to memory:", "a name is missing");
    refused("create sink --direct --to file://here/out", "absolute path");
    refused(
        "create sink --direct --to gs://b",
        "gs:// is not supported; use s3://",
    );
    refused(
        "create sink --direct --to /out --region x",
        "--to s3://BUCKET",
    );
}

/// Whatever lies under the bucket's path lies there whole: objects, failures, backups, manifests.
#[test]
fn a_path_behind_a_bucket_begins_every_prefix() {
    let keys = create("--direct --to s3://b/team/a/").keys;
    assert_eq!(keys.prefix.as_deref(), Some("team/a/"));
    assert_eq!(keys.error_prefix, None);
    assert_eq!(keys.manifest_prefix.as_deref(), Some("team/a/sink/"));
    let settings = create(
        "--direct --to s3://b/a --prefix p/ --error-prefix e/ --manifest-prefix m/ --backup-prefix raw/",
    );
    let keys = settings.keys;
    assert_eq!(keys.prefix.as_deref(), Some("a/p/"));
    assert_eq!(keys.error_prefix.as_deref(), Some("a/e/"));
    assert_eq!(keys.manifest_prefix.as_deref(), Some("a/m/"));
    assert_eq!(settings.backup.unwrap().prefix, "a/raw/");
    assert_eq!(create("--direct --to s3://b").keys, KeySettings::default());
    // A second time would begin them twice.
    let Ok(Verb::Update(update)) = parse("update sink --to s3://b/a") else {
        panic!("an update");
    };
    let error = update.settings.check_update().unwrap_err();
    assert!(
        error.to_string().contains("--to s3://b, with --prefix"),
        "{error}"
    );
}

#[test]
fn cuts_formats_and_compressions_are_read() {
    let made = |text: &str| create(&format!("{LEAST} {text}"));
    let hints = made("--size 64MiB --interval 90s").buffering;
    assert_eq!((hints.size_bytes, hints.interval_ms), (64 << 20, 90_000));
    assert_eq!(made("--interval 0").buffering.interval_ms, 0);
    assert_eq!(made("--format ndjson").format, ObjectFormat::Ndjson);
    let delimited = |delimiter: &str| ObjectFormat::Delimited {
        delimiter: delimiter.to_owned(),
    };
    assert_eq!(made("--format delimited").format, delimited("\n"));
    let both = made(r"--format delimited --delimiter '\r\n\\|'").format;
    assert_eq!(both, delimited("\r\n\\|"));
    for (word, compression) in [
        ("none", ObjectCompression::None),
        ("gzip", ObjectCompression::Gzip),
        ("snappy", ObjectCompression::Snappy),
        ("zstd", ObjectCompression::Zstd),
    ] {
        assert_eq!(
            made(&format!("--compression {word}")).compression,
            compression
        );
    }
    let parquet = made(
        "--format parquet --column at:timestamp:required --column a:b:bigint --parquet-compression \
         snappy --row-group-size 8MiB --row-group-rows 10 --page-size 64KiB --no-dictionary",
    );
    let column = |name: &str, kind, required| ParquetColumn {
        name: name.to_owned(),
        kind,
        required,
    };
    let expected = ObjectFormat::Parquet(ParquetSettings {
        columns: vec![
            column("at", ColumnType::Timestamp, true),
            column("a:b", ColumnType::Bigint, false),
        ],
        compression: ParquetCompression::Snappy,
        row_group_rows: 10,
        row_group_bytes: 8 << 20,
        page_bytes: 64 << 10,
        dictionary: false,
    });
    assert_eq!(parquet.format, expected);
}

/// What Firehose has and this has not is refused by name, with what there is instead.
#[test]
fn what_is_not_supported_says_what_is() {
    for (flags, says) in [
        (
            "--compression zip",
            "zip is not supported; gzip, snappy, zstd are",
        ),
        (
            "--compression ZIP",
            "ZIP is not supported; gzip, snappy, zstd are",
        ),
        (
            "--compression hadoop-snappy",
            "hadoop-snappy is not supported; gzip",
        ),
        (
            "--compression HADOOP_SNAPPY",
            "HADOOP_SNAPPY is not supported; gzip",
        ),
        (
            "--backup-prefix b/ --backup-compression zip",
            "zip is not supported",
        ),
        ("--compression much", "use none, gzip, snappy or zstd"),
        ("--format orc", "orc is not supported; parquet is"),
        ("--format csv", "use verbatim, delimited, ndjson or parquet"),
        (
            "--format parquet --parquet-compression gzip",
            "use zstd, snappy or none",
        ),
        ("--format parquet --glue-table t", "Glue are not supported"),
        ("--kms-key k", "KMS keys are not supported"),
        ("--decompress zstd", "use gzip"),
        ("--sub-records xml", "json, delimited:TEXT"),
        (r"--format delimited --delimiter '\q'", r"\q is no escape"),
        ("--delimiter ,", "--format delimited"),
        (
            "--format parquet --column at:time",
            "types are boolean, int",
        ),
        ("--format parquet --column at", "NAME:TYPE"),
        ("--row-group-rows 7", "--format parquet"),
        ("--no-dictionary", "--format parquet"),
        ("--metadata k", "NAME=VALUE"),
        ("--partitions-max 7", "--partition NAME=JQ"),
        ("--backup-compression gzip", "--backup-prefix"),
        ("--transform-retries 1", "--transform-url"),
        ("--dead-letters a/b", "a name is made of"),
        ("--size much", "not a size"),
        ("--interval 5", "not a duration"),
    ] {
        refused(&format!("create sink {LEAST} {flags}"), says);
    }
}

#[test]
fn names_partitions_and_processing_are_read() {
    let pairs = |name: &str, value: &str| [(name.to_owned(), value.to_owned())].into();
    let some = |text: &str| Some(text.to_owned());
    let settings = create(
        "--stream clicks --to s3://b --prefix 'p/!{timestamp:yyyy}/' --error-prefix e/ --time-zone \
         Europe/Berlin --file-extension .x --manifest-prefix m/ --storage-class STANDARD_IA \
         --content-type text/plain --cache-control no-store --metadata k=v=w --partition \
         'user=.a | .b' --partitions-max 9 --filter '.a > 1' --map '{a: .a}' --decompress gzip \
         --cloudwatch-logs --sub-records 'delimited:\\n' --transform-url http://t --transform-header \
         'a: b' --transform-batch-size 1MB --transform-retries 0 --transform-timeout 5s \
         --backup-prefix raw/ --backup-compression gzip --dead-letters dead",
    );
    let keys = KeySettings {
        prefix: some("p/!{timestamp:yyyy}/"),
        error_prefix: some("e/"),
        time_zone: some("Europe/Berlin"),
        file_extension: some(".x"),
        manifest_prefix: some("m/"),
    };
    assert_eq!(settings.keys, keys);
    let object = ObjectSettings {
        storage_class: some("STANDARD_IA"),
        content_type: some("text/plain"),
        cache_control: some("no-store"),
        metadata: pairs("k", "v=w"),
    };
    assert_eq!(settings.object, object);
    let partitioning = Partitioning {
        keys: pairs("user", ".a | .b"),
        partitions_max: 9,
    };
    assert_eq!(settings.partitioning, Some(partitioning));
    let processing = Processing {
        decompress: true,
        cloudwatch_logs: true,
        sub_records: Some(SubRecords::Delimited("\n".to_owned())),
        transform: Some(HttpTransform {
            url: "http://t".to_owned(),
            headers: pairs("a", "b"),
            batch_bytes: 1_000_000,
            retries: 0,
            timeout_ms: 5_000,
        }),
        filter: some(".a > 1"),
        map: some("{a: .a}"),
    };
    assert_eq!(settings.processing, processing);
    let backup = Backup {
        prefix: "raw/".to_owned(),
        compression: ObjectCompression::Gzip,
    };
    assert_eq!(settings.backup, Some(backup));
    assert_eq!(settings.dead_letters.unwrap().0.as_str(), "dead");
}

#[test]
fn an_update_changes_what_is_given_and_nothing_takes_away() {
    let before = create(&format!(
        "{LEAST} --format parquet --column a:int --row-group-rows 7 --prefix p/ --filter .a \
         --transform-url http://t --transform-retries 9 --backup-prefix raw/ --backup-compression \
         gzip --dead-letters dead --metadata k=v --partition a=.a"
    ));
    assert_eq!(update(&before, "--prefix p/"), before);
    let after = update(&before, "--format parquet --page-size 64KiB --interval 7s");
    let ObjectFormat::Parquet(parquet) = &after.format else {
        panic!("{after:?}");
    };
    assert_eq!((parquet.row_group_rows, parquet.page_bytes), (7, 64 << 10));
    assert_eq!(after.buffering.interval_ms, 7_000);
    assert_eq!(after.keys, before.keys);
    let transform = update(&before, "--transform-url http://u")
        .processing
        .transform;
    let transform = transform.unwrap();
    assert_eq!((transform.url.as_str(), transform.retries), ("http://u", 9));
    let less = update(
        &before,
        "--prefix '' --filter '' --transform-url '' --backup-prefix '' --dead-letters '' --metadata \
         '' --partition '' --format ndjson --sub-records none",
    );
    assert_eq!(less.keys.prefix, None);
    assert_eq!(less.processing, Processing::default());
    assert_eq!((less.backup, less.dead_letters), (None, None));
    assert!(less.object.metadata.is_empty() && less.partitioning.is_none());
    assert_eq!(less.format, ObjectFormat::Ndjson);
    let s3 = create("--direct --to s3://b --region r");
    let Destination::S3(moved) = update(&s3, "--to s3://c").destination else {
        panic!("a bucket");
    };
    assert_eq!(
        (moved.bucket.as_str(), moved.region.as_deref()),
        ("c", Some("r"))
    );
}

#[test]
fn a_file_of_settings_is_what_flags_go_over() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("settings.json");
    let before = create(&format!(
        "{LEAST} --format ndjson --compression gzip --interval 9s"
    ));
    std::fs::write(&file, serde_json::to_string_pretty(&before).unwrap()).unwrap();
    let from = |flags: &str| create(&format!("--settings {} {flags}", file.display()));
    assert_eq!(from(""), before);
    let changed = from("--direct --to s3://b/a --compression none");
    assert_eq!(changed.source, DeliverySource::Direct { shards: 1 });
    assert_eq!(changed.keys.prefix.as_deref(), Some("a/"));
    assert_eq!(changed.format, ObjectFormat::Ndjson);
    assert_eq!(changed.compression, ObjectCompression::None);
    for (text, says) in [
        ("{", "is not the settings of a delivery stream"),
        (
            r#"{"destination": {"kind": "memory", "name": "m"}}"#,
            "missing field `source`",
        ),
        (
            r#"{"source": {"kind": "direct"}, "destination": {"kind": "memory", "name": "m"}, "compression": "zip"}"#,
            "unknown variant `zip`, expected one of `none`, `gzip`, `snappy`, `zstd`",
        ),
        (
            r#"{"source": {"kind": "direct"}, "destination": {"kind": "memory", "name": "m"}, "kms": 1}"#,
            "unknown field `kms`",
        ),
    ] {
        std::fs::write(&file, text).unwrap();
        refused(&format!("create sink --settings {}", file.display()), says);
    }
}

#[test]
fn deleting_drops_or_forces_and_not_both() {
    let Ok(Verb::Delete(delete)) = parse("delete sink --force --wait 1s") else {
        panic!("a deletion");
    };
    assert!(delete.force && !delete.drop);
    assert_eq!(delete.wait, Duration::from_secs(1));
    refused("delete sink --force --drop", "cannot be used with");
}

#[test]
fn parquet_takes_no_other_compression_and_says_which() {
    let compressed = format!("create sink {LEAST} --format parquet --compression gzip");
    refused(&compressed, "--parquet-compression says how");
    // What was said of objects that are no Parquet does not keep it from being Parquet.
    let lines = create(&format!("{LEAST} --format ndjson --compression gzip"));
    let parquet = update(&lines, "--format parquet");
    assert_eq!(parquet, create(&format!("{LEAST} --format parquet")));
}
