//! What records become: partitions, rows that wait in the spool, columns; over several cuts and deaths.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use flumen_broker::{Broker, Clock, DeliverySettings, ObjectFormat, ParquetSettings, Partitioning};
use flumen_log::MemoryStorage;
use flumen_record::{Record, StreamName};
use flumen_sink::SinkConfig;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use serde_json::{Value, json};

use crate::fixture::{
    Delivered, Only, Rig, create_stream, deliver, delivery_name, flush, memory, put, settings,
};
use crate::watched::Watched;

/// Five partitions, of which three fit into a cut.
fn crowded(stream: &StreamName) -> DeliverySettings {
    let mut settings = settings(stream);
    settings.buffering.interval_ms = 900_000;
    settings.keys.prefix = Some("p=!{partitionKeyFromQuery:p}/".to_owned());
    settings.keys.error_prefix = Some("errors/!{firehose:error-output-type}/".to_owned());
    settings.partitioning = Some(Partitioning {
        keys: [("p".to_owned(), ".n % 5".to_owned())].into(),
        partitions_max: 3,
    });
    settings
}

async fn rows(broker: &Broker, stream: &StreamName, rows: impl IntoIterator<Item = Value>) {
    for row in rows {
        let record = Record {
            partition_key: Bytes::from(row["n"].to_string()),
            explicit_hash_key: None,
            data: Bytes::from(row.to_string()),
            client_timestamp: None,
            headers: Vec::new(),
        };
        for outcome in broker.put(stream, vec![record]).await.unwrap() {
            outcome.unwrap();
        }
    }
}

/// Everything in data and error objects: the numbers, sorted.
fn all_numbers(delivered: &Delivered) -> Vec<u64> {
    let number = |line: &str| {
        let row: Value = serde_json::from_str(line).unwrap();
        row["n"].as_u64().unwrap()
    };
    let errors = delivered.lines("error").into_iter().map(|line| {
        let line: Value = serde_json::from_str(&line).unwrap();
        let data = STANDARD.decode(line["rawData"].as_str().unwrap()).unwrap();
        number(std::str::from_utf8(&data).unwrap())
    });
    let mut numbers: Vec<_> = errors.collect();
    numbers.extend(delivered.lines("data").iter().map(|line| number(line)));
    numbers.sort_unstable();
    numbers
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_beyond_the_bound_go_to_the_error_prefix() {
    let (storage, objects, spool) = (MemoryStorage::new(), memory(), tempfile::tempdir().unwrap());
    let rig = Rig::start(&storage, objects.clone(), spool.path()).await;
    let stream = create_stream(&rig.broker, "s", 1).await;
    put(&rig.broker, &stream, 0..50).await;
    let name = deliver(&rig.broker, crowded(&stream)).await;
    let described = flush(&rig.broker, &name).await;
    let delivered = Delivered::read(&*objects).await;
    assert_eq!(all_numbers(&delivered), (0..50).collect::<Vec<_>>());
    assert_eq!(delivered.lines("error").len(), 20);
    let data = delivered
        .objects
        .keys()
        .filter(|(kind, _)| kind == "data")
        .count();
    assert_eq!(
        (data, delivered.manifests.len()),
        (3, 1),
        "one cut closes all partitions"
    );
    let (_, key) = delivered
        .objects
        .keys()
        .find(|(kind, _)| kind == "error")
        .unwrap();
    assert!(key.starts_with("errors/activePartitionExceeded/"), "{key}");
    assert_eq!(described.counts.partition_overflows, 20);
    assert_eq!(described.counts.partitions, 0, "nothing is being filled");
    rig.shutdown().await;
}

/// Which partitions fit is decided by which records come first, and read again they come in another
/// order.
#[tokio::test(flavor = "multi_thread")]
async fn a_death_does_not_change_which_partitions_fit() {
    for at in 0..5 {
        let (storage, objects) = (MemoryStorage::new(), memory());
        let spool = tempfile::tempdir().unwrap();
        let store = Watched::dying(objects.clone(), at, false);
        let rig = Rig::start(&storage, Arc::new(store.clone()), spool.path()).await;
        let stream = create_stream(&rig.broker, "s", 8).await;
        let name = deliver(&rig.broker, crowded(&stream)).await;
        // One after the other, so that the shards take turns.
        rows(&rig.broker, &stream, (0..40).map(|n| json!({ "n": n }))).await;
        tokio::select! {
            _ = flush(&rig.broker, &name) => {}
            () = store.died() => {}
        }
        let storage = storage.kill();
        rig.kill().await;
        let rig = Rig::start(&storage, objects.clone(), spool.path()).await;
        flush(&rig.broker, &name).await;
        rig.shutdown().await;
        let delivered = Delivered::read(&*objects).await;
        assert_eq!(
            all_numbers(&delivered),
            (0..40).collect::<Vec<_>>(),
            "died at {at}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_do_not_fit_into_memory_come_back_from_the_spool_in_order() {
    let (storage, objects, spool) = (MemoryStorage::new(), memory(), tempfile::tempdir().unwrap());
    let config = SinkConfig {
        rows_bytes_max: 100,
        ..SinkConfig::default()
    };
    let only = Arc::new(Only(objects.clone()));
    let rig = Rig::start_with(&storage, only, spool.path(), Clock::system(), config).await;
    let stream = create_stream(&rig.broker, "s", 1).await;
    put(&rig.broker, &stream, 0..5000).await;
    let mut settings = crowded(&stream);
    settings.partitioning.as_mut().unwrap().partitions_max = 500;
    let name = deliver(&rig.broker, settings).await;
    flush(&rig.broker, &name).await;
    let delivered = Delivered::read(&*objects).await;
    delivered.expect_numbers(0..5000);
    for ((_, key), bytes) in &delivered.objects {
        let lines = std::str::from_utf8(bytes).unwrap().lines();
        let numbers: Vec<u64> = lines
            .map(|line| {
                serde_json::from_str::<Value>(line).unwrap()["n"]
                    .as_u64()
                    .unwrap()
            })
            .collect();
        assert!(numbers.is_sorted(), "{key}");
    }
    rig.shutdown().await;
}

fn columns(bytes: &Bytes) -> Vec<String> {
    let reader = SerializedFileReader::new(bytes.clone()).unwrap();
    let schema = reader.metadata().file_metadata().schema_descr_ptr();
    schema
        .columns()
        .iter()
        .map(|column| column.name().to_owned())
        .collect()
}

/// All rows of Parquet objects, as JSON, by their number.
fn parquet_rows(delivered: &Delivered) -> BTreeMap<u64, Value> {
    let mut rows = BTreeMap::new();
    for ((kind, _), bytes) in &delivered.objects {
        if kind != "data" {
            continue;
        }
        let reader = SerializedFileReader::new(bytes.clone()).unwrap();
        for row in reader.get_row_iter(None).unwrap() {
            let row = row.unwrap();
            let fields = row.get_column_iter().filter_map(|(name, field)| {
                let value = match field {
                    Field::Long(value) => json!(value),
                    Field::Double(value) => json!(value),
                    Field::Str(value) => json!(value),
                    Field::Null => return None,
                    // Lists and the like: not looked at.
                    other => json!(other.to_string()),
                };
                Some((name.clone(), value))
            });
            let fields: serde_json::Map<_, _> = fields.collect();
            let n = fields["n"].as_u64().unwrap();
            assert!(
                rows.insert(n, Value::Object(fields)).is_none(),
                "{n} is there twice"
            );
        }
    }
    rows
}

fn in_columns(stream: &StreamName) -> DeliverySettings {
    let mut settings = settings(stream);
    settings.format = ObjectFormat::Parquet(ParquetSettings::default());
    settings.buffering.interval_ms = 900_000;
    settings
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_are_found_out_and_added_to_from_cut_to_cut() {
    let (storage, objects, spool) = (MemoryStorage::new(), memory(), tempfile::tempdir().unwrap());
    let rig = Rig::start(&storage, objects.clone(), spool.path()).await;
    let stream = create_stream(&rig.broker, "s", 1).await;
    let name = deliver(&rig.broker, in_columns(&stream)).await;
    let all: Vec<_> = (0..10)
        .map(|n| json!({ "n": n, "name": format!("name {n}") }))
        .chain((10..20).map(|n| json!({ "n": n, "name": "x", "size": 1.5 })))
        .chain((20..30).map(|n| json!({ "n": n })))
        .collect();
    for part in all.chunks(10) {
        rows(&rig.broker, &stream, part.iter().cloned()).await;
        flush(&rig.broker, &name).await;
    }
    rig.shutdown().await;
    let delivered = Delivered::read(&*objects).await;
    let found = parquet_rows(&delivered);
    assert_eq!(found.into_values().collect::<Vec<_>>(), all);
    let of_cut = |manifest: &Value| {
        let key = manifest["objects"][0]["key"].as_str().unwrap().to_owned();
        columns(&delivered.objects[&("data".to_owned(), key)])
    };
    let columns: Vec<_> = delivered.manifests.values().map(of_cut).collect();
    assert_eq!(columns.len(), 3);
    assert_eq!(columns[0], ["n", "name"]);
    assert_eq!(columns[1], ["n", "name", "size"]);
    assert_eq!(columns[2], columns[1], "what was found out is kept");
}

/// Who comes first has columns; when there are a thousand the others are refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_death_does_not_change_the_columns() {
    let mut seen = 0;
    for at in 0..3 {
        for after_effect in [false, true] {
            let (storage, objects) = (MemoryStorage::new(), memory());
            let spool = tempfile::tempdir().unwrap();
            let store = Watched::dying(objects.clone(), at, after_effect);
            let rig = Rig::start(&storage, Arc::new(store.clone()), spool.path()).await;
            let stream = create_stream(&rig.broker, "s", 8).await;
            let name = deliver(&rig.broker, in_columns(&stream)).await;
            let wide = |n: u64| {
                let fields = (0..30).map(|field| (format!("f{n}_{field}"), json!(field)));
                fields.chain([("n".to_owned(), json!(n))]).collect()
            };
            rows(&rig.broker, &stream, (0..40).map(wide)).await;
            tokio::select! {
                _ = flush(&rig.broker, &name) => {}
                () = store.died() => {}
            }
            let storage = storage.kill();
            rig.kill().await;
            let rig = Rig::start(&storage, objects.clone(), spool.path()).await;
            flush(&rig.broker, &delivery_name("d")).await;
            rig.shutdown().await;
            let delivered = Delivered::read(&*objects).await;
            let mut numbers: Vec<_> = parquet_rows(&delivered).into_keys().collect();
            let errors = delivered.lines("error");
            seen += errors.len();
            numbers.extend(errors.iter().map(|line| {
                let line: Value = serde_json::from_str(line).unwrap();
                let data = STANDARD.decode(line["rawData"].as_str().unwrap()).unwrap();
                serde_json::from_slice::<Value>(&data).unwrap()["n"]
                    .as_u64()
                    .unwrap()
            }));
            numbers.sort_unstable();
            assert_eq!(
                numbers,
                (0..40).collect::<Vec<_>>(),
                "died at {at}, {after_effect}"
            );
        }
    }
    assert!(
        seen > 0,
        "nothing was refused, so that the order decided nothing"
    );
}
