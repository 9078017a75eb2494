//! The HTTP transform against a server that answers what it is told to.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::unit::tests::unit;

/// What the server does with one request.
#[derive(Clone)]
enum Act {
    /// Answers with this.
    Reply(u16, String),
    /// Answers with what this makes of the records.
    Records(fn(&Value) -> Value),
    /// Never answers.
    Silence,
    /// Closes in the middle of the answer.
    Cut,
}

type Seen = Arc<Mutex<Vec<(String, Value)>>>;

/// A server that acts in turn, the last act again and again.
async fn server(acts: Vec<Act>) -> (String, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/transform", listener.local_addr().unwrap());
    let seen = Seen::default();
    let all = Arc::clone(&seen);
    tokio::spawn(async move {
        let mut open = Vec::new();
        for turn in 0.. {
            let (mut stream, _from) = listener.accept().await.unwrap();
            let (head, body) = request(&mut stream).await;
            all.lock().unwrap().push((head, body.clone()));
            match acts.get(turn).or_else(|| acts.last()).unwrap() {
                Act::Silence => open.push(stream),
                Act::Cut => {
                    let text = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{";
                    stream.write_all(text.as_bytes()).await.unwrap();
                }
                Act::Reply(status, text) => reply(&mut stream, *status, text).await,
                Act::Records(of) => {
                    let records: Vec<Value> =
                        body["records"].as_array().unwrap().iter().map(of).collect();
                    reply(
                        &mut stream,
                        200,
                        &json!({"records": records, "more": 1}).to_string(),
                    )
                    .await;
                }
            }
        }
    });
    (url, seen)
}

async fn request(stream: &mut TcpStream) -> (String, Value) {
    let mut bytes = Vec::new();
    loop {
        let mut more = [0; 4096];
        let count = stream.read(&mut more).await.unwrap();
        bytes.extend_from_slice(&more[..count]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let head = head.to_ascii_lowercase();
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "));
            if body.len() == length.unwrap().parse::<usize>().unwrap() {
                return (head, serde_json::from_str(body).unwrap());
            }
        }
        assert_ne!(count, 0, "the request is cut");
    }
}

async fn reply(stream: &mut TcpStream, status: u16, text: &str) {
    let length = text.len();
    let head = format!(
        "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nLocation: /\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // A client that has read enough closes.
    let _ = stream.write_all(text.as_bytes()).await;
}

fn settings(url: &str, retries: u32) -> HttpTransform {
    let settings =
        json!({"url": url, "retries": retries, "headers": {"x-key": "secret"}, "timeout_ms": 5000});
    serde_json::from_value(settings).unwrap()
}

fn transform(settings: &HttpTransform) -> Transform {
    let source = TransformSource {
        delivery_arn: "arn:d".to_owned(),
        stream_arn: Some("arn:s".to_owned()),
        region: "local".to_owned(),
    };
    // Pauses pass as fast as they are asked for.
    let clock = Clock::manual(flumen_record::Timestamp::ZERO);
    let moved = clock.clone();
    tokio::spawn(async move {
        loop {
            moved.advance(Duration::from_secs(1));
            tokio::task::yield_now().await;
        }
    });
    Transform::compile(settings, source, clock).unwrap()
}

fn echo(record: &Value) -> Value {
    json!({"recordId": record["recordId"], "result": "Ok", "data": record["data"]})
}

async fn invoke(acts: Vec<Act>, retries: u32) -> (Invocation, Vec<(String, Value)>) {
    let (url, seen) = server(acts).await;
    let invocation = transform(&settings(&url, retries))
        .run("i-1", vec![unit(b"one"), unit(b"two")])
        .await;
    let seen = seen.lock().unwrap().clone();
    (invocation, seen)
}

fn codes(invocation: &Invocation) -> Vec<&str> {
    let codes = invocation
        .outcomes
        .iter()
        .map(|(_unit, outcome)| match outcome {
            TransformOutcome::Ok { .. } => "ok",
            TransformOutcome::Dropped => "dropped",
            TransformOutcome::Failed(failure) => {
                assert_eq!(
                    (failure.kind, failure.attempts),
                    (ErrorType::ProcessingFailed, invocation.attempts)
                );
                failure.code
            }
        });
    codes.collect()
}

#[tokio::test]
async fn records_are_handed_over_and_come_back() {
    let (invocation, seen) = invoke(
        vec![Act::Records(|record| match record["data"].as_str() {
            Some("b25l") => json!({
                "recordId": record["recordId"], "result": "Ok", "data": "eA==",
                "metadata": {"partitionKeys": {"b": 1, "a": "x", "c": true}, "other": []},
            }),
            _ => json!({"recordId": record["recordId"], "result": "Dropped"}),
        })],
        0,
    )
    .await;
    let keys = [("a", "x"), ("b", "1"), ("c", "true")].map(|(n, v)| (n.to_owned(), v.to_owned()));
    let outcomes: Vec<TransformOutcome> = invocation
        .outcomes
        .into_iter()
        .map(|(_unit, of)| of)
        .collect();
    let data = Bytes::from_static(b"x");
    assert_eq!(
        outcomes,
        [
            TransformOutcome::Ok {
                data,
                keys: keys.into()
            },
            TransformOutcome::Dropped
        ]
    );
    assert_eq!((invocation.attempts, invocation.error), (1, None));

    let [(head, body)] = &seen[..] else {
        panic!("{seen:?}")
    };
    assert!(head.starts_with("post /transform http/1.1"), "{head}");
    assert!(
        head.contains("x-key: secret") && head.contains("content-type: application/json"),
        "{head}"
    );
    let record = |(index, data): (usize, &str)| {
        json!({
            "recordId": format!("{index:020}"),
            "approximateArrivalTimestamp": 1_772_368_496_789_u64,
            "data": data,
            "kinesisRecordMetadata": {
                "sequenceNumber": "7", "subsequenceNumber": "0", "partitionKey": "pk",
                "shardId": "shardId-000000000002",
                "approximateArrivalTimestamp": 1_772_368_496_789_u64,
            },
        })
    };
    let records: Vec<Value> = ["b25l", "dHdv"]
        .into_iter()
        .enumerate()
        .map(record)
        .collect();
    assert_eq!(
        *body,
        json!({
            "invocationId": "i-1", "deliveryStreamArn": "arn:d", "region": "local",
            "sourceKinesisStreamArn": "arn:s", "records": records,
        })
    );
}

#[tokio::test]
async fn what_may_pass_is_tried_again() {
    for act in [
        Act::Reply(503, String::new()),
        Act::Reply(429, String::new()),
        Act::Reply(408, String::new()),
        Act::Cut,
    ] {
        let (invocation, seen) = invoke(vec![act.clone(), act, Act::Records(echo)], 2).await;
        assert_eq!(codes(&invocation), ["ok", "ok"], "{:?}", invocation.error);
        assert_eq!((invocation.attempts, seen.len()), (3, 3));
        assert!(invocation.error.is_some());
        assert_eq!(seen[0].1, seen[2].1, "the same request");
    }
}

#[tokio::test]
async fn after_that_records_fail() {
    let (invocation, _seen) = invoke(vec![Act::Reply(500, "x".to_owned())], 2).await;
    assert_eq!(codes(&invocation), ["Transform.InvocationFailed"; 2]);
    assert_eq!(invocation.attempts, 3);
    assert!(invocation.error.unwrap().is_away());

    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", nobody.local_addr().unwrap());
    drop(nobody);
    let invocation = transform(&settings(&url, 1))
        .run("i", vec![unit(b"x")])
        .await;
    assert_eq!(codes(&invocation), ["Transform.InvocationFailed"]);
    assert!(matches!(
        invocation.error,
        Some(InvocationError::Unreachable { .. })
    ));

    let (url, _seen) = server(vec![Act::Silence]).await;
    let mut short = settings(&url, 1);
    short.timeout_ms = 50;
    let invocation = transform(&short).run("i", vec![unit(b"x")]).await;
    assert_eq!(codes(&invocation), ["Transform.Timeout"]);
    assert_eq!(invocation.attempts, 2);
}

#[tokio::test]
async fn what_is_wrong_is_not_tried_again() {
    for (act, code) in [
        (Act::Reply(400, String::new()), "Transform.InvocationFailed"),
        (Act::Reply(302, String::new()), "Transform.InvocationFailed"),
        (
            Act::Reply(200, "not JSON".to_owned()),
            "Transform.InvalidReply",
        ),
        (
            Act::Reply(200, r#"{"records":[]}"#.to_owned()),
            "Transform.InvalidReply",
        ),
        (
            Act::Reply(200, "x".repeat(MAX_BODY_BYTES + 1)),
            "Transform.InvalidReply",
        ),
        (
            Act::Records(
                |_record| json!({"recordId": "00000000000000000000", "result": "Dropped"}),
            ),
            "Transform.InvalidReply",
        ),
        (
            Act::Records(|_record| json!({"recordId": "5", "result": "Dropped"})),
            "Transform.InvalidReply",
        ),
    ] {
        let (invocation, seen) = invoke(vec![act], 3).await;
        assert_eq!(codes(&invocation), [code; 2], "{:?}", invocation.error);
        assert_eq!((seen.len(), invocation.attempts), (1, 1));
        assert!(!invocation.error.unwrap().is_away());
    }
}

/// All are there, and one of them twice.
#[tokio::test]
async fn a_record_is_answered_once() {
    let records: Vec<Value> = [0, 1, 1]
        .into_iter()
        .map(|index: usize| json!({"recordId": format!("{index:020}"), "result": "Dropped"}))
        .collect();
    let text = json!({"records": records}).to_string();
    let (invocation, _seen) = invoke(vec![Act::Reply(200, text)], 0).await;
    assert_eq!(codes(&invocation), ["Transform.InvalidReply"; 2]);
    assert!(
        invocation
            .error
            .unwrap()
            .to_string()
            .contains("there twice")
    );
}

#[tokio::test]
async fn one_record_fails_alone() {
    for (of, code) in [
        (
            (|record| json!({"result": "ProcessingFailed", "data": record["data"]}))
                as fn(&Value) -> Value,
            "Transform.RecordFailed",
        ),
        (
            |_record| json!({"result": "Ok", "data": "%"}),
            "Transform.InvalidReply",
        ),
        (|_record| json!({"result": "Ok"}), "Transform.InvalidReply"),
        (
            |_record| json!({"result": "okay", "data": ""}),
            "Transform.InvalidReply",
        ),
        (
            |_record| json!({"result": "Ok", "data": "", "metadata": {"partitionKeys": {"a": null}}}),
            "Transform.InvalidReply",
        ),
    ] {
        let records: Vec<Value> = [json!({"result": "Dropped"}), of(&json!({"data": "eA=="}))]
            .into_iter()
            .enumerate()
            .map(|(index, mut record)| {
                record["recordId"] = json!(format!("{index:020}"));
                record
            })
            .rev()
            .collect();
        let (invocation, _seen) = invoke(
            vec![Act::Reply(200, json!({"records": records}).to_string())],
            3,
        )
        .await;
        assert_eq!(codes(&invocation), ["dropped", code]);
    }
}

#[tokio::test]
async fn batches_are_within_bounds() {
    let transform = transform(&settings("http://localhost/", 0));
    let sizes =
        |units: Vec<Unit>| -> Vec<usize> { transform.split(units).iter().map(Vec::len).collect() };
    assert_eq!(sizes(vec![unit(&[0; 400_000]); 5]), [2, 2, 1]);
    assert_eq!(
        sizes(vec![unit(&[0; 2_000_000]), unit(b"x"), unit(b"y")]),
        [1, 2]
    );
    assert_eq!(
        sizes(vec![unit(b""); MAX_BATCH_RECORDS + 1]),
        [MAX_BATCH_RECORDS, 1]
    );
    assert!(sizes(Vec::new()).is_empty());
    let mut odd = unit(b"x");
    odd.partition_key = Bytes::from("\u{1}".repeat(256));
    for batch in transform.split(vec![odd; 9000]) {
        let body = wire::request("i", &transform.source, &batch);
        assert!(body.len() <= MAX_BODY_BYTES, "{}", body.len());
    }
    let large = transform.run("i", vec![unit(&vec![0; 5 << 20])]).await;
    assert_eq!(
        (codes(&large), large.attempts),
        (vec!["Transform.TooLarge"], 0)
    );
}

#[tokio::test]
async fn settings_that_cannot_be_are_refused() {
    let source = || TransformSource {
        delivery_arn: String::new(),
        stream_arn: None,
        region: String::new(),
    };
    for (name, value) in [
        ("url", json!("ftp://host/")),
        ("url", json!("nonsense")),
        ("batch_bytes", json!(1)),
        ("batch_bytes", json!(4 << 20)),
        ("retries", json!(301)),
        ("timeout_ms", json!(0)),
        ("timeout_ms", json!(300_001)),
        ("headers", json!({"a b": "c"})),
        ("headers", json!({"a": "b\nc"})),
    ] {
        let mut settings = json!({"url": "http://localhost/"});
        settings[name] = value;
        let settings: HttpTransform = serde_json::from_value(settings).unwrap();
        let refused = Transform::compile(&settings, source(), Clock::system()).unwrap_err();
        assert_eq!(refused.setting, "processing.transform", "{name}");
    }
}

#[test]
fn pauses_grow_and_differ() {
    let first = pause("a", 1);
    assert!(first >= FIRST_PAUSE / 2 && first <= FIRST_PAUSE);
    assert_ne!(first, pause("b", 1));
    assert!(pause("a", 300) <= LONGEST_PAUSE && pause("a", 300) >= LONGEST_PAUSE / 2);
}
