//! Records in by `produce`, out by `consume`, through restarts of the broker.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::Value;

use crate::cli::{run, start};
use crate::process::BrokerProcess;

fn lines(count: usize) -> String {
    (0..count).fold(String::new(), |mut text, n| {
        writeln!(text, "line {n}").expect("text");
        text
    })
}

#[test]
fn what_goes_in_comes_out_in_every_form() {
    let dir = tempfile::tempdir().unwrap();
    let broker = BrokerProcess::start(&dir.path().join("data"));
    let at = format!("--endpoint {}", broker.endpoint);
    let flumen = |words: &str, input: &[u8]| run(dir.path(), &format!("{at} {words}"), input);
    flumen("stream create forms", b"").good();
    let sent = flumen("produce forms --key-fixed k", b"one\ntwo\n\nfour").good();
    assert!(sent.starts_with("4 records"), "{sent}");

    let all = |words: &str| flumen(&format!("consume forms {words}"), b"").good();
    assert_eq!(all(""), "one\ntwo\n\nfour\n");
    assert_eq!(all("--format raw"), "onetwofour");
    assert_eq!(
        all("--format %s:%k:%d:%S:%b\\n --max 2"),
        "0:k:one:0:3\n1:k:two:0:3\n"
    );
    assert_eq!(all("--from at:1 --format %d,"), "two,,four,");
    assert_eq!(all("--from after:1 --shard 0"), "\nfour\n");
    assert_eq!(all("--from latest"), "");
    assert_eq!(all("--from -1h --max 1"), "one\n");
    assert_eq!(all("--from 2000-01-01T00:00:00Z --max 1"), "one\n");
    let json = all("--output json --max 1");
    let record: Value = serde_json::from_str(json.trim()).unwrap();
    let keys: Vec<_> = record
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    let expected = [
        "arrival_time",
        "data",
        "headers",
        "partition_key",
        "sequence_number",
        "shard",
        "stream",
        "subsequence",
    ];
    assert_eq!(keys, expected);
    assert_eq!(
        (&record["data"], &record["partition_key"]),
        (&"one".into(), &"k".into())
    );

    flumen("produce forms", b"\xff\xfe\n").good();
    let binary = all("--from at:4 --output json");
    assert_eq!(
        serde_json::from_str::<Value>(binary.trim()).unwrap()["data_base64"],
        "//4="
    );
}

#[test]
fn formats_give_keys() {
    let dir = tempfile::tempdir().unwrap();
    let broker = BrokerProcess::start(&dir.path().join("data"));
    let at = format!("--endpoint {}", broker.endpoint);
    let flumen = |words: &str, input: &[u8]| run(dir.path(), &format!("{at} {words}"), input);
    flumen("stream create keyed", b"").good();
    std::fs::write(dir.path().join("a.csv"), "id,value\nx,1\ny,\"2\n3\"\n").unwrap();
    flumen("produce keyed a.csv --format csv --key id", b"").good();
    flumen(
        "produce keyed --format ndjson --key device.id",
        b"{\"device\":{\"id\":7}}\n",
    )
    .good();
    flumen("produce keyed --key-separator =", b"k=v\n").good();
    let out = flumen("consume keyed --format %k|%d;", b"").good();
    assert_eq!(out, "x|x,1;y|y,\"2\n3\";7|{\"device\":{\"id\":7}};k|v;");

    // What stands before the mistake is stored, and the mistake has a line.
    std::fs::write(dir.path().join("b.csv"), "id,value\nx,1\nx\n").unwrap();
    let bad = flumen(
        "--output json produce keyed b.csv --format csv --compression zstd",
        b"",
    );
    assert_eq!(bad.code, Some(1));
    assert!(
        bad.err
            .contains("b.csv: line 3: 1 fields where the header names 2"),
        "{bad:?}"
    );
    let report: Value = serde_json::from_str(bad.out.trim()).unwrap();
    assert_eq!(
        (&report["records"], &report["errors"]),
        (&1.into(), &0.into())
    );
    flumen("produce keyed --format ndjson", b"{}\nnot json\n").refused(1, "line 2: not JSON");
    flumen("produce keyed missing.txt", b"").refused(1, "missing.txt");
}

#[test]
fn a_restart_loses_repeats_and_reorders_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut broker = BrokerProcess::start(&data);
    let at = format!("--endpoint {}", broker.endpoint);
    run(dir.path(), &format!("{at} stream create ride"), b"").good();
    let text = lines(3_000);
    let reading = start(
        dir.path(),
        &format!("{at} consume ride --follow --max 3000"),
        b"",
    );
    let words = format!("{at} --output json produce ride --key-fixed k --rate 2000");
    let sending = start(dir.path(), &words, text.as_bytes());
    for kill in [true, false] {
        std::thread::sleep(Duration::from_millis(400));
        if kill {
            broker.kill();
        } else {
            assert_eq!(broker.terminate(), Some(0));
        }
        broker = BrokerProcess::start_again(&data, &broker.endpoint);
    }
    let report: Value = serde_json::from_str(sending.wait().good().trim()).unwrap();
    assert_eq!(
        (&report["records"], &report["errors"]),
        (&3_000.into(), &0.into())
    );
    assert_eq!(reading.wait().good(), text);
    let again = run(dir.path(), &format!("{at} consume ride"), b"").good();
    assert_eq!(again, text);
}

#[test]
fn a_follower_ends_when_it_is_asked_to() {
    let dir = tempfile::tempdir().unwrap();
    let broker = BrokerProcess::start(&dir.path().join("data"));
    let at = format!("--endpoint {}", broker.endpoint);
    run(dir.path(), &format!("{at} stream create tailed"), b"").good();
    let tail = start(dir.path(), &format!("{at} tail tailed"), b"");
    // It sees only what comes after it: repeat until it does.
    for _ in 0..20 {
        run(dir.path(), &format!("{at} produce tailed"), b"tick\n").good();
        std::thread::sleep(Duration::from_millis(50));
    }
    tail.terminate();
    let seen = tail.wait().good();
    assert!(seen.starts_with("tick\n"), "{seen:?}");
}

#[test]
fn the_console_says_what_the_node_does() {
    let dir = tempfile::tempdir().unwrap();
    let broker = BrokerProcess::start(&dir.path().join("data"));
    assert!(broker.get("/healthz").starts_with("HTTP/1.1 200"));
    assert!(broker.get("/readyz").starts_with("HTTP/1.1 200"));
    let at = format!("--endpoint {}", broker.endpoint);
    run(dir.path(), &format!("{at} stream create counted"), b"").good();
    run(dir.path(), &format!("{at} produce counted"), b"one\ntwo\n").good();
    let metrics = broker.get("/metrics");
    for name in [
        "flumen_ready 1",
        "flumen_process_resident_bytes ",
        "flumen_build_info{version=",
    ] {
        assert!(metrics.contains(name), "{name} is missing in\n{metrics}");
    }
    let counted = |line: &&str| line.starts_with("flumen_records_in_total") && line.ends_with(" 2");
    assert!(metrics.lines().any(|line| counted(&line)), "{metrics}");
}

#[test]
fn a_terminated_broker_drains_and_ends_with_0() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut broker = BrokerProcess::start(&data);
    let at = format!("--endpoint {}", broker.endpoint);
    run(dir.path(), &format!("{at} stream create drained"), b"").good();
    // Sessions are open and busy when it is asked to end.
    let words = format!("{at} produce drained --key-fixed k --rate 5000 --retry-for 20s");
    let sending = start(dir.path(), &words, lines(4_000).as_bytes());
    let following = start(
        dir.path(),
        &format!("{at} consume drained --follow --max 4000"),
        b"",
    );
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(broker.terminate(), Some(0));
    let _again = BrokerProcess::start_again(&data, &broker.endpoint);
    sending.wait().good();
    assert_eq!(following.wait().good(), lines(4_000));
}
