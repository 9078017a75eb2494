//! A transform that answers differently each time it is asked: what it said first about a planned cut is
//! what is delivered, whatever happens in between.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flumen_broker::{
    Broker, Clock, DeliveryPhase, DeliverySettings, HttpTransform, ReadBudget, StartPosition,
    StreamNameText,
};
use flumen_log::MemoryStorage;
use flumen_record::{Frames, ShardIndex, StreamName};
use flumen_sink::SinkConfig;
use object_store::memory::InMemory;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::fixture::{
    Delivered, Only, Rig, create_stream, deliver, delivery_name, flush, memory, put, settings,
    until, until_failed,
};
use crate::watched::Watched;

const RECORDS: u64 = 40;

/// A transform: of ten records one is dropped and one fails, the others are numbered by call, and put
/// into one of two partitions by number and call.
struct Server {
    url: String,
    calls: Arc<AtomicU64>,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let calls = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&calls);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let calls = Arc::clone(&counted);
                tokio::spawn(async move {
                    let mut stream = stream;
                    while let Some(request) = request(&mut stream).await {
                        let call = calls.fetch_add(1, Ordering::Relaxed);
                        let records = request["records"].as_array().unwrap().iter();
                        let records: Vec<_> = records.map(|record| answer(record, call)).collect();
                        let body = json!({ "records": records }).to_string();
                        let head =
                            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
                        let reply = format!("{head}{body}");
                        if stream.write_all(reply.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { url, calls }
    }
}

async fn request(stream: &mut TcpStream) -> Option<Value> {
    let mut bytes = Vec::new();
    loop {
        let mut more = vec![0; 16 << 10];
        let count = stream
            .read(&mut more)
            .await
            .ok()
            .filter(|count| *count > 0)?;
        bytes.extend_from_slice(&more[..count]);
        let text = std::str::from_utf8(&bytes).unwrap();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let head = head.to_ascii_lowercase();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        if body.len() == length.unwrap().parse::<usize>().unwrap() {
            return Some(serde_json::from_str(body).unwrap());
        }
    }
}

fn answer(record: &Value, call: u64) -> Value {
    let id = &record["recordId"];
    let data = STANDARD.decode(record["data"].as_str().unwrap()).unwrap();
    let n = serde_json::from_slice::<Value>(&data).unwrap()["n"]
        .as_u64()
        .unwrap();
    match n % 10 {
        7 => json!({ "recordId": id, "result": "Dropped" }),
        8 => json!({ "recordId": id, "result": "ProcessingFailed" }),
        _ => json!({
            "recordId": id,
            "result": "Ok",
            "data": STANDARD.encode(json!({ "n": n, "call": call }).to_string()),
            "metadata": { "partitionKeys": { "p": ((n + call) % 2).to_string() } },
        }),
    }
}

fn transformed(stream: &StreamName, url: &str) -> DeliverySettings {
    let mut settings = settings(stream);
    settings.buffering.interval_ms = 900_000;
    settings.keys.prefix = Some("p=!{partitionKeyFromLambda:p}/".to_owned());
    settings.keys.error_prefix = Some("errors/!{firehose:error-output-type}/".to_owned());
    settings.processing.transform = Some(HttpTransform {
        url: url.to_owned(),
        headers: [].into(),
        batch_bytes: 1_000_000,
        retries: 3,
        timeout_ms: 10_000,
    });
    settings
}

async fn start(storage: &MemoryStorage, store: Watched, spool: &Path) -> Rig {
    let only = Arc::new(Only(Arc::new(store)));
    Rig::start_with(storage, only, spool, Clock::system(), SinkConfig::default()).await
}

/// The numbers of records in error objects, sorted.
fn failed(delivered: &Delivered) -> Vec<u64> {
    let lines = delivered.lines("error");
    let number = |line: &String| {
        let line: Value = serde_json::from_str(line).unwrap();
        let data = STANDARD.decode(line["rawData"].as_str().unwrap()).unwrap();
        serde_json::from_slice::<Value>(&data).unwrap()["n"]
            .as_u64()
            .unwrap()
    };
    let mut numbers: Vec<_> = lines.iter().map(number).collect();
    numbers.sort_unstable();
    numbers
}

/// Each record once, where it belongs, and what is of one cut is of one answer.
fn check(delivered: &Delivered) {
    let of = |last: fn(u64) -> bool| (0..RECORDS).filter(|n| last(n % 10)).collect::<Vec<_>>();
    assert_eq!(delivered.numbers(), of(|last| last != 7 && last != 8));
    assert_eq!(failed(delivered), of(|last| last == 8));
    delivered.expect_contiguous();
    for manifest in delivered.manifests.values() {
        let mut calls = BTreeSet::new();
        for object in manifest["objects"].as_array().unwrap() {
            let key = (
                "data".to_owned(),
                object["key"].as_str().unwrap().to_owned(),
            );
            let Some(bytes) = delivered.objects.get(&key) else {
                continue;
            };
            for line in std::str::from_utf8(bytes).unwrap().lines() {
                let row: Value = serde_json::from_str(line).unwrap();
                let (n, call) = (row["n"].as_u64().unwrap(), row["call"].as_u64().unwrap());
                let partition = format!("p={}/", (n + call) % 2);
                assert!(
                    key.1.starts_with(&partition),
                    "{n} of call {call} in {}",
                    key.1
                );
                calls.insert(call);
            }
        }
        assert_eq!(calls.len(), 1, "answers are mixed");
        assert_eq!(manifest["dropped"], RECORDS / 10);
        assert_eq!(manifest["failed"], RECORDS / 10);
    }
}

/// Delivers in one cut to a store that dies at its `at`-th create. What is left; `None` when it lived.
async fn live_and_die(
    server: &Server,
    objects: &Arc<InMemory>,
    spool: &Path,
    (at, after_effect): (usize, bool),
) -> Option<MemoryStorage> {
    let storage = MemoryStorage::new();
    let store = Watched::dying(objects.clone(), at, after_effect);
    let rig = start(&storage, store.clone(), spool).await;
    let stream = create_stream(&rig.broker, "s", 1).await;
    put(&rig.broker, &stream, 0..RECORDS).await;
    let name = deliver(&rig.broker, transformed(&stream, &server.url)).await;
    let lived = tokio::select! {
        _ = flush(&rig.broker, &name) => true,
        () = store.died() => false,
    };
    let left = storage.kill();
    rig.kill().await;
    (!lived).then_some(left)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_at_any_create_changes_no_answer() {
    let server = Server::start().await;
    let mut deaths = 0;
    for at in 0.. {
        let mut lived = false;
        for after_effect in [false, true] {
            let (objects, spool) = (memory(), tempfile::tempdir().unwrap());
            let died = (at, after_effect);
            let Some(storage) = live_and_die(&server, &objects, spool.path(), died).await else {
                check(&Delivered::read(&*objects).await);
                lived = true;
                continue;
            };
            deaths += 1;
            let asked = server.calls.load(Ordering::Relaxed);
            let rig = Rig::start(&storage, objects.clone(), spool.path()).await;
            flush(&rig.broker, &delivery_name("d")).await;
            rig.shutdown().await;
            check(&Delivered::read(&*objects).await);
            assert_eq!(
                server.calls.load(Ordering::Relaxed),
                asked,
                "it is not asked again"
            );
        }
        if lived {
            break;
        }
    }
    // Two data objects, one with errors, the manifest.
    assert_eq!(deaths, 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_spool_stops_it_and_what_is_made_anew_is_whole() {
    let server = Server::start().await;
    for at in 0..4 {
        for after_effect in [false, true] {
            let (objects, spool) = (memory(), tempfile::tempdir().unwrap());
            let died = (at, after_effect);
            let storage = live_and_die(&server, &objects, spool.path(), died)
                .await
                .unwrap();
            std::fs::remove_dir_all(spool.path()).unwrap();
            let name = delivery_name("d");
            let rig = Rig::start(&storage, objects.clone(), spool.path()).await;
            // Its manifest is there: nothing has to be made anew.
            let is_committed = died == (3, true);
            if !is_committed {
                until_failed(&rig.broker, &name, DeliveryPhase::Stopped, "spool_lost").await;
            }
            let asked = server.calls.load(Ordering::Relaxed);
            if !is_committed {
                rig.broker.resume_delivery(&name).await.unwrap();
            }
            // It dies once more, at the second create: the second answer stands from here on.
            flush(&rig.broker, &name).await;
            rig.shutdown().await;
            check(&Delivered::read(&*objects).await);
            let asked = server.calls.load(Ordering::Relaxed) - asked;
            assert_eq!(asked, u64::from(!is_committed), "{died:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_made_anew_is_not_made_anew_again() {
    let server = Server::start().await;
    let (objects, spool) = (memory(), tempfile::tempdir().unwrap());
    let storage = live_and_die(&server, &objects, spool.path(), (1, false))
        .await
        .unwrap();
    std::fs::remove_dir_all(spool.path()).unwrap();
    let name = delivery_name("d");
    // Dies again, after one object of the second answer.
    let store = Watched::dying(objects.clone(), 1, false);
    let rig = start(&storage, store.clone(), spool.path()).await;
    until_failed(&rig.broker, &name, DeliveryPhase::Stopped, "spool_lost").await;
    rig.broker.resume_delivery(&name).await.unwrap();
    store.died().await;
    let storage = storage.kill();
    rig.kill().await;
    let asked = server.calls.load(Ordering::Relaxed);
    let rig = Rig::start(&storage, objects.clone(), spool.path()).await;
    flush(&rig.broker, &name).await;
    rig.shutdown().await;
    check(&Delivered::read(&*objects).await);
    assert_eq!(server.calls.load(Ordering::Relaxed), asked);
}

async fn dead_letters(broker: &Broker, stream: &StreamName) -> Vec<(u64, Vec<String>)> {
    let budget = ReadBudget {
        bytes: 1 << 20,
        records: u64::MAX,
    };
    let (shard, start) = (ShardIndex::new(0), StartPosition::TrimHorizon);
    let reply = broker
        .read(stream, shard, start, budget, Duration::ZERO)
        .await
        .unwrap();
    let mut letters = Vec::new();
    for frame in reply.pieces.into_iter().flat_map(Frames::new) {
        for record in frame.unwrap().batch.records() {
            let record = record.unwrap();
            let row: Value = serde_json::from_slice(&record.data).unwrap();
            let names = record.headers.iter();
            let names = names.map(|header| String::from_utf8(header.name.to_vec()).unwrap());
            letters.push((row["n"].as_u64().unwrap(), names.collect()));
        }
    }
    letters
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_is_told_in_the_error_object_and_the_dead_letter_stream() {
    let server = Server::start().await;
    let (storage, objects, spool) = (MemoryStorage::new(), memory(), tempfile::tempdir().unwrap());
    let rig = Rig::start(&storage, objects.clone(), spool.path()).await;
    let stream = create_stream(&rig.broker, "s", 1).await;
    let letters = create_stream(&rig.broker, "letters", 1).await;
    put(&rig.broker, &stream, 0..RECORDS).await;
    let mut settings = transformed(&stream, &server.url);
    settings.dead_letters = Some(StreamNameText(letters.clone()));
    let name = deliver(&rig.broker, settings).await;
    let described = flush(&rig.broker, &name).await;
    let delivered = Delivered::read(&*objects).await;
    check(&delivered);
    for line in delivered.lines("error") {
        let line: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(line["errorCode"], "Transform.RecordFailed");
        assert_eq!(line["attemptsMade"], 1);
        assert_eq!(line["shardId"], "shardId-000000000000");
        assert_eq!(line["subSequenceNumber"], 0);
        for field in ["arrivalTimestamp", "attemptEndingTimestamp"] {
            assert!(line[field].as_u64().unwrap() > 1_700_000_000_000, "{field}");
        }
        for field in ["errorMessage", "sequenceNumber", "partitionKey"] {
            assert!(line[field].is_string(), "{field}");
        }
    }
    let (_, key) = delivered
        .objects
        .keys()
        .find(|(kind, _)| kind == "error")
        .unwrap();
    assert!(key.starts_with("errors/processing-failed/"), "{key}");
    let dead = dead_letters(&rig.broker, &letters).await;
    let numbers: BTreeSet<_> = dead.iter().map(|(n, _)| *n).collect();
    assert_eq!(numbers, [8, 18, 28, 38].into());
    assert!(
        dead.iter()
            .all(|(_, names)| names.contains(&"flumen-error-code".to_owned()))
    );
    let counts = described.counts;
    assert_eq!((counts.dropped_records, counts.failed_records), (4, 4));
    assert_eq!(counts.processing_successes, 1);
    rig.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transform_that_is_away_sends_its_records_to_the_error_prefix() {
    let (storage, objects, spool) = (MemoryStorage::new(), memory(), tempfile::tempdir().unwrap());
    let rig = Rig::start(&storage, objects.clone(), spool.path()).await;
    let stream = create_stream(&rig.broker, "s", 1).await;
    put(&rig.broker, &stream, 0..RECORDS).await;
    // Nobody listens there any more.
    let gone = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let mut settings = transformed(&stream, &format!("http://{gone}/"));
    settings.processing.transform.as_mut().unwrap().retries = 0;
    let name = deliver(&rig.broker, settings).await;
    flush(&rig.broker, &name).await;
    let delivered = Delivered::read(&*objects).await;
    assert_eq!(failed(&delivered), (0..RECORDS).collect::<Vec<_>>());
    let described = until(&rig.broker, &name, |described| {
        described.report.last_error.is_some()
    });
    assert_eq!(
        described.await.report.last_error.unwrap().reason,
        "transform"
    );
    rig.shutdown().await;
}
