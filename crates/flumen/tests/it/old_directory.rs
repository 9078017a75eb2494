//! A data directory that an earlier version wrote opens unchanged, and reads back exactly. The recipe
//! stands in `fixtures/data-directory-1.md`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use flumen_broker::{Broker, BrokerConfig, Clock, ReadBudget, StartPosition};
use flumen_log::DiskStorage;
use flumen_record::{Frames, StreamName, Timestamp};
use serde_json::Value;

const ARCHIVE: &[u8] = include_bytes!("../fixtures/data-directory-1.tar.zst");

/// Soon after it was written, so that nothing of it has expired.
const OPENED_AT: &str = "2026-11-28T22:40:00Z";

/// Unpacks the archive: `data`, and what the program that wrote it said was in it, by file name.
fn unpack(into: &Path) -> BTreeMap<String, String> {
    let archive = zstd::decode_all(ARCHIVE).unwrap();
    let mut expected = BTreeMap::new();
    let mut rest = archive.as_slice();
    while let Some((header, after)) = rest.split_at_checked(512).filter(|(h, _)| h[0] != 0) {
        let text = |range: std::ops::Range<usize>| {
            let field = header[range].split(|byte| *byte == 0).next().unwrap();
            std::str::from_utf8(field).unwrap().trim().to_owned()
        };
        let name = text(0..100);
        let bytes = usize::from_str_radix(&text(124..136), 8).unwrap();
        let contents = &after[..bytes];
        rest = &after[bytes.next_multiple_of(512)..];
        if let Some(name) = name
            .strip_prefix("expected/")
            .filter(|name| !name.is_empty())
        {
            let contents = String::from_utf8(contents.to_vec()).unwrap();
            expected.insert(name.to_owned(), contents);
        } else if name.ends_with('/') {
            std::fs::create_dir_all(into.join(name)).unwrap();
        } else if name.starts_with("data/") {
            std::fs::write(into.join(name), contents).unwrap();
        }
    }
    expected
}

/// The settings it was written with.
fn settings() -> BrokerConfig {
    let mut config = BrokerConfig::default();
    config.log.segment_bytes_min = 128 << 10;
    config.log.segment_bytes_max = 128 << 10;
    config.log.hot_window_bytes = 0;
    config.log.free_space_floor_bytes = Some(0);
    config
}

async fn open(data: &Path) -> Broker {
    let now: Timestamp = OPENED_AT.parse().unwrap();
    let storage = DiskStorage::open(data, Duration::from_secs(10)).unwrap();
    Broker::open(Arc::new(storage), settings(), Clock::manual(now))
        .await
        .unwrap()
}

/// One record: shard, number, key, arrival time, data.
type Line = (u64, u64, String, Timestamp, String);

fn expected_lines(text: &str) -> Vec<Line> {
    let line = |line: &str| {
        let value: Value = serde_json::from_str(line).unwrap();
        let text = |name: &str| value[name].as_str().unwrap().to_owned();
        (
            value["shard"].as_u64().unwrap(),
            value["sequence_number"].as_u64().unwrap(),
            text("partition_key"),
            text("arrival_time").parse().unwrap(),
            text("data"),
        )
    };
    let mut lines: Vec<Line> = text.lines().map(line).collect();
    lines.sort();
    lines
}

async fn lines_of(broker: &Broker, stream: &StreamName) -> Vec<Line> {
    let mut lines = Vec::new();
    for shard in broker.describe_stream(stream).unwrap().shards {
        let mut from = shard.trim_horizon;
        while from < shard.durable_end {
            let budget = ReadBudget {
                bytes: 1 << 20,
                records: u64::MAX,
            };
            let start = StartPosition::At(from);
            let read = broker.read(stream, shard.index, start, budget, Duration::ZERO);
            let reply = read.await.unwrap();
            assert!(
                reply.next > from,
                "{stream} {}: no end at {from}",
                shard.index
            );
            for frame in reply.pieces.into_iter().flat_map(Frames::new) {
                let frame = frame.unwrap();
                for (place, record) in (0..).zip(frame.batch.records()) {
                    let record = record.unwrap();
                    lines.push((
                        u64::from(shard.index.value()),
                        frame.header.base.value() + place,
                        String::from_utf8(record.partition_key.to_vec()).unwrap(),
                        frame.header.arrival,
                        String::from_utf8(record.data.to_vec()).unwrap(),
                    ));
                }
            }
            from = reply.next;
        }
    }
    lines.sort();
    lines
}

async fn check(broker: &Broker, expected: &BTreeMap<String, String>) {
    for stream in ["plain", "quick", "tree", "moved"] {
        let lines = expected_lines(&expected[&format!("{stream}.ndjson")]);
        let found = lines_of(broker, &stream.parse().unwrap()).await;
        assert!(
            found == lines,
            "{stream}: {} of {}",
            found.len(),
            lines.len()
        );
        let described: Value = serde_json::from_str(&expected[&format!("{stream}.json")]).unwrap();
        let shards = described["shard_map"].as_array().unwrap().len();
        let now = broker.describe_stream(&stream.parse().unwrap()).unwrap();
        assert_eq!(now.shards.len(), shards, "{stream}");
    }
    for (stream, group) in [("plain", "readers"), ("tree", "part")] {
        let described: Value = serde_json::from_str(&expected[&format!("{group}.json")]).unwrap();
        let state = broker
            .describe_group(&stream.parse().unwrap(), &group.parse().unwrap())
            .await
            .unwrap();
        for (shard, was) in state
            .shards
            .iter()
            .zip(described["shard_map"].as_array().unwrap())
        {
            let last = shard
                .checkpoint
                .and_then(|(checkpoint, _)| checkpoint.last());
            let through = last.map(|(number, _)| number.value());
            assert_eq!(
                through,
                was["sequence_number"].as_u64(),
                "{group} {shard:?}"
            );
        }
    }
    let was: Value = serde_json::from_str(&expected["files.json"]).unwrap();
    let files = broker.describe_delivery(&"files".parse().unwrap()).unwrap();
    assert_eq!(files.stream.to_string(), "plain");
    assert_eq!(files.id.to_string(), was["id"].to_string());
    assert_eq!(files.version, was["version"].as_u64().unwrap());
    assert_eq!(
        serde_json::to_value(&*files.settings).unwrap(),
        was["settings"]
    );
    let created: Timestamp = was["created_time"].as_str().unwrap().parse().unwrap();
    assert_eq!(files.created, created);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_of_an_earlier_version_opens_and_reads_back_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let expected = unpack(dir.path());
    let data = dir.path().join("data");
    // As it was left, by a kill; then closed in order; then from what this version has written.
    for _ in 0..3 {
        let broker = open(&data).await;
        check(&broker, &expected).await;
        broker.shutdown().await.unwrap();
    }
}
