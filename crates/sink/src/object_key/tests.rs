//! Keys: prefixes, dates, zones, names, and what is refused.

use flumen_broker::{Backup, Partitioning};

use super::*;

const DELIVERY: &str = "orders";
/// 2026-03-01T12:34:56.789012Z.
const OLDEST: Timestamp = Timestamp::from_micros(1_772_368_496_789_012);

fn settings() -> DeliverySettings {
    serde_json::from_str(
        r#"{"source":{"kind":"direct"},"destination":{"kind":"memory","name":"m"}}"#,
    )
    .unwrap()
}

fn with_prefix(prefix: &str, error_prefix: &str) -> DeliverySettings {
    let mut settings = settings();
    settings.keys.prefix = Some(prefix.to_owned());
    settings.keys.error_prefix = (!error_prefix.is_empty()).then(|| error_prefix.to_owned());
    settings.processing.transform = Some(serde_json::from_str(r#"{"url":"http://h/"}"#).unwrap());
    settings
}

fn with_keys(mut settings: DeliverySettings, keys: &[&str]) -> DeliverySettings {
    let keys = keys
        .iter()
        .map(|key| ((*key).to_owned(), ".".to_owned()))
        .collect();
    settings.partitioning = Some(Partitioning {
        keys,
        partitions_max: 5,
    });
    settings
}

fn compile(settings: &DeliverySettings) -> Result<ObjectKeys, SettingRefused> {
    ObjectKeys::compile(&DELIVERY.parse().unwrap(), settings)
}

fn pairs(of: &[(&str, &str)]) -> Vec<(String, String)> {
    of.iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

fn parts<'a>(
    partition: &'a [(String, String)],
    transform_keys: &'a [(String, String)],
) -> KeyParts<'a> {
    KeyParts {
        oldest: OLDEST,
        version: 3,
        unique: 42,
        partition,
        transform_keys,
    }
}

/// A key without what stands for the number of the object.
fn stem(key: &str) -> String {
    let at = key.find("-34-56-").unwrap() + 7;
    let (stem, rest) = key.split_at(at);
    let (uuid, extension) = rest.split_at(36);
    assert!(
        uuid.chars().enumerate().all(|(at, c)| match at {
            8 | 13 | 18 | 23 => c == '-',
            14 => c == '8',
            19 => "89ab".contains(c),
            _ => c.is_ascii_hexdigit(),
        }),
        "{uuid}"
    );
    format!("{stem}*{extension}")
}

#[test]
fn prefixes_are_evaluated() {
    let error = "e/!{firehose:error-output-type}/";
    for (prefix, error_prefix, data, failed) in [
        ("", "", "2026/03/01/12/", "processing-failed/2026/03/01/12/"),
        (
            "logs/",
            "",
            "logs/2026/03/01/12/",
            "logs/processing-failed/2026/03/01/12/",
        ),
        (
            "logs",
            "",
            "logs2026/03/01/12/",
            "logsprocessing-failed/2026/03/01/12/",
        ),
        (
            "logs/",
            "bad/",
            "logs/2026/03/01/12/",
            "bad/processing-failed/2026/03/01/12/",
        ),
        (
            "y=!{timestamp:yyyy}/d=!{timestamp:DDD}/",
            error,
            "y=2026/d=060/",
            "e/processing-failed/2026/03/01/12/",
        ),
        (
            "!{timestamp:'year='yyyy'/month='MM}/",
            error,
            "year=2026/month=03/",
            "e/processing-failed/2026/03/01/12/",
        ),
        (
            "d=!{partitionKeyFromLambda:dev}/",
            error,
            "d=a%2Fb/",
            "e/processing-failed/2026/03/01/12/",
        ),
        (
            "a!b/",
            "!{firehose:error-output-type}/!{timestamp:yyyy}/",
            "a!b/2026/03/01/12/",
            "processing-failed/2026/",
        ),
    ] {
        let keys = compile(&with_prefix(prefix, error_prefix)).unwrap();
        let lambda = pairs(&[("dev", "a/b")]);
        let at = parts(&[], &lambda);
        let name = "orders-3-2026-03-01-12-34-56-*";
        assert_eq!(
            stem(&keys.data(&at).unwrap()),
            format!("{data}{name}"),
            "{prefix}"
        );
        let key = keys.error(ErrorType::ProcessingFailed, &at).unwrap();
        assert_eq!(stem(&key), format!("{failed}{name}.json"), "{prefix}");
    }
}

#[test]
fn random_strings_derive_from_the_object() {
    let keys = compile(&with_prefix(
        "!{firehose:random-string}/!{firehose:random-string}/",
        "!{firehose:error-output-type}",
    ))
    .unwrap();
    let key = keys.data(&parts(&[], &[])).unwrap();
    let segments: Vec<&str> = key.split('/').collect();
    for random in &segments[..2] {
        assert!(
            random.len() == 11 && random.bytes().all(|b| b.is_ascii_alphanumeric()),
            "{key}"
        );
    }
    assert_ne!(segments[0], segments[1]);
    assert_eq!(segments[2..6], ["2026", "03", "01", "12"]);
    assert_eq!(keys.data(&parts(&[], &[])).unwrap(), key);
    let other = KeyParts {
        unique: 43,
        ..parts(&[], &[])
    };
    assert_ne!(
        keys.data(&other).unwrap().split('/').next(),
        key.split('/').next()
    );
}

#[test]
fn objects_of_one_cut_never_share_a_key() {
    let mut settings = settings();
    settings.keys.prefix = Some("x/".to_owned());
    settings.backup = Some(Backup {
        prefix: "x/".to_owned(),
        compression: ObjectCompression::None,
    });
    let keys = compile(&settings).unwrap();
    let at = parts(&[], &[]);
    assert_eq!(
        stem(&keys.data(&at).unwrap()),
        stem(&keys.backup(&at).unwrap())
    );
    assert_ne!(keys.data(&at).unwrap(), keys.backup(&at).unwrap());
}

#[test]
fn times_are_in_the_zone() {
    let mut settings = settings();
    settings.keys.time_zone = Some("Asia/Kolkata".to_owned());
    let key = compile(&settings).unwrap().data(&parts(&[], &[])).unwrap();
    assert!(
        key.starts_with("2026/03/01/18/orders-3-2026-03-01-18-04-56-"),
        "{key}"
    );
    settings.keys.time_zone = Some("Mars/Base".to_owned());
    assert_eq!(compile(&settings).unwrap_err().setting, "keys.time_zone");
    let late = KeyParts {
        oldest: Timestamp::MAX,
        ..parts(&[], &[])
    };
    assert!(
        compile(&self::settings())
            .unwrap()
            .data(&late)
            .unwrap()
            .starts_with("9999/12/")
    );
}

#[test]
fn values_stay_within_their_segment() {
    let settings = with_keys(
        with_prefix(
            "k=!{partitionKeyFromQuery:k}/!{partitionKeyFromQuery:j}/",
            "!{firehose:error-output-type}/",
        ),
        &["k", "j"],
    );
    let keys = compile(&settings).unwrap();
    for (value, segment) in [
        ("plain", "plain"),
        ("", "__empty__"),
        ("..", "%2E%2E"),
        (".", "%2E"),
        ("../../etc", "..%2F..%2Fetc"),
        ("a\\b\n%\u{85}", "a%5Cb%0A%25%C2%85"),
        ("ü ", "ü "),
    ] {
        let partition = pairs(&[("k", "1"), ("j", value)]);
        let key = keys.data(&parts(&partition, &[])).unwrap();
        assert_eq!(key.split('/').nth(1).unwrap(), segment, "{key}");
        assert_eq!(key.split('/').count(), 3, "{key}");
    }
    let partition = pairs(&[("k", "1")]);
    let refused = keys.data(&parts(&partition, &[])).unwrap_err();
    assert_eq!(
        refused,
        KeyRefused::NoValue {
            name: "j".to_owned()
        }
    );
    let partition = pairs(&[("k", "1"), ("j", &"x".repeat(1000))]);
    assert!(matches!(
        keys.data(&parts(&partition, &[])),
        Err(KeyRefused::TooLong { .. })
    ));
}

#[test]
fn extensions_say_what_is_in_it() {
    let plain = settings();
    let gz = DeliverySettings {
        compression: ObjectCompression::Gzip,
        ..settings()
    };
    let zst = DeliverySettings {
        compression: ObjectCompression::Zstd,
        ..settings()
    };
    let snappy = DeliverySettings {
        compression: ObjectCompression::Snappy,
        format: ObjectFormat::Ndjson,
        ..settings()
    };
    let parquet = DeliverySettings {
        format: ObjectFormat::Parquet(Default::default()),
        ..settings()
    };
    for (settings, extension) in [
        (plain, ""),
        (gz.clone(), ".gz"),
        (zst, ".zst"),
        (snappy, ".snappy"),
        (parquet, ".parquet"),
    ] {
        let key = compile(&settings).unwrap().data(&parts(&[], &[])).unwrap();
        assert!(stem(&key).ends_with(&format!("*{extension}")), "{key}");
    }
    for (given, good) in [
        ("", true),
        (".json.gz", true),
        (".a(b)'*!-_", true),
        ("json", false),
        (".", false),
        (".JSON", false),
        (".a/b", false),
    ] {
        let mut settings = gz.clone();
        settings.keys.file_extension = Some(given.to_owned());
        match compile(&settings) {
            Ok(keys) => assert!(
                good && stem(&keys.data(&parts(&[], &[])).unwrap()).ends_with(&format!("*{given}"))
            ),
            Err(refused) => assert!(!good && refused.setting == "keys.file_extension"),
        }
    }
}

#[test]
fn manifests_sort_as_cuts_do() {
    let mut settings = settings();
    assert_eq!(
        compile(&settings).unwrap().manifest("i", 7),
        "orders/_manifest/i-00000000000000000007.json"
    );
    settings.keys.manifest_prefix = Some(String::new());
    assert_eq!(
        compile(&settings).unwrap().manifest("i", u64::MAX),
        "_manifest/i-18446744073709551615.json"
    );
}

#[test]
fn settings_that_cannot_be_are_refused() {
    let error = "!{firehose:error-output-type}/";
    for (prefix, error_prefix, setting) in [
        ("!{timestamp:yyyy}/", "", "keys.error_prefix"),
        (
            "!{timestamp:yyyy}/",
            "e/!{timestamp:yyyy}/",
            "keys.error_prefix",
        ),
        (
            "x/",
            "!{firehose:error-output-type}/!{partitionKeyFromLambda:k}/",
            "keys.error_prefix",
        ),
        ("!{firehose:error-output-type}/", error, "keys.prefix"),
        ("!{timestamp:bb}/", error, "keys.prefix"),
        ("!{timestamp:}/", error, "keys.prefix"),
        ("!{timestamp:yyyy", error, "keys.prefix"),
        ("!{nothing}/", error, "keys.prefix"),
        ("!{firehose:nothing}/", error, "keys.prefix"),
        ("!{partitionKeyFromQuery:k}/", error, "keys.prefix"),
        ("!{partitionKeyFromQuery:}/", error, "keys.prefix"),
        ("../x/", error, "keys.prefix"),
        ("x/./", error, "keys.prefix"),
        ("/x/", error, "keys.prefix"),
        ("x//", error, "keys.prefix"),
        ("x\n/", error, "keys.prefix"),
        (&"x".repeat(1025), error, "keys.prefix"),
        (&"x".repeat(1000), error, "keys.prefix"),
        ("x/", "../", "keys.error_prefix"),
    ] {
        let refused = compile(&with_prefix(prefix, error_prefix)).unwrap_err();
        assert_eq!(
            refused.setting, setting,
            "{prefix} {error_prefix}: {refused}"
        );
    }
    let unused = with_keys(
        with_prefix("!{partitionKeyFromQuery:a}/", error),
        &["a", "b"],
    );
    assert!(compile(&unused).unwrap_err().reason.contains("\"b\""));
    assert_eq!(
        compile(&with_keys(settings(), &["a"])).unwrap_err().setting,
        "keys.prefix"
    );
    for prefix in ["../", "!{timestamp:yyyy}/", "a//"] {
        let mut settings = settings();
        settings.keys.manifest_prefix = Some(prefix.to_owned());
        assert_eq!(
            compile(&settings).unwrap_err().setting,
            "keys.manifest_prefix"
        );
    }
    let mut backup = settings();
    backup.backup = Some(Backup {
        prefix: "!{partitionKeyFromQuery:a}/".to_owned(),
        compression: ObjectCompression::None,
    });
    assert_eq!(compile(&backup).unwrap_err().setting, "backup.prefix");
    let dots = ObjectKeys::compile(&"..".parse().unwrap(), &settings()).unwrap_err();
    assert_eq!(dots.setting, "keys.manifest_prefix");
}

proptest::proptest! {
    #[test]
    fn no_value_leaves_its_segment(value: String) {
        let settings = with_keys(with_prefix("a/!{partitionKeyFromQuery:k}/", "!{firehose:error-output-type}/"), &["k"]);
        let partition = pairs(&[("k", &value)]);
        if let Ok(key) = compile(&settings).unwrap().data(&parts(&partition, &[])) {
            assert_eq!(key.split('/').count(), 3);
            assert!(key.split('/').all(|segment| !matches!(segment, "" | "." | "..")));
        }
    }

    #[test]
    fn no_prefix_panics(prefix in "[a-z/.!{}:']{0,20}") {
        let _ = compile(&with_prefix(&prefix, "!{firehose:error-output-type}/"));
    }
}
