//! Processes that are killed at any moment, on both sides: each record is delivered once.
//!
//! `FLUMEN_TEST_SEED=7` runs the same moments again.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::Value;

use super::node::{Node, to};
use super::reading::{Delivered, bucket};
use crate::journal::Random;
use crate::kill::seed;
use crate::servers::{Kind, Server};

const RECORDS: u64 = 12_000;
/// One record in so many has no device, and so no partition.
const POISON: u64 = 400;
/// Objects of a cut, so that most of the time some are under way.
const DEVICES: u64 = 40;
/// Times that the node is killed while records come; at one of them the store is killed, too.
const KILLS: u64 = 10;

fn is_poison(n: u64) -> bool {
    n % POISON == POISON - 1
}

fn lines(numbers: std::ops::Range<u64>) -> Vec<u8> {
    let mut text = String::new();
    for n in numbers {
        let line = if is_poison(n) {
            writeln!(text, "{{\"n\":{n}}}")
        } else {
            writeln!(
                text,
                "{{\"n\":{n},\"device\":\"d{}\",\"text\":\"{}\"}}",
                n % DEVICES,
                "long ".repeat(200)
            )
        };
        line.unwrap();
    }
    text.into_bytes()
}

fn pause(random: &mut Random, most_ms: u64) {
    std::thread::sleep(Duration::from_millis(random.below(most_ms)));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_record_is_delivered_once_whoever_is_killed() {
    let Some(mut server) = Server::start(Kind::Versitygw).await else {
        return;
    };
    let mut random = Random::new(seed("delivery"));
    let mut node = Node::start();
    let settings = "--format ndjson --compression gzip --size 1MiB --partition d=.device \
                    --prefix d=!{partitionKeyFromQuery:d}/ \
                    --error-prefix errors/!{firehose:error-output-type}/";
    node.deliver("readings", 3, &format!("{} {settings}", to(&server)));
    let words =
        "--output json produce readings --format ndjson --key n --rate 4000 --retry-for 60s";
    let producing = node.begin(words, &lines(0..RECORDS));
    for kill in 0..KILLS {
        std::thread::sleep(Duration::from_millis(100));
        pause(&mut random, 350);
        if kill == KILLS / 2 {
            server.kill();
            pause(&mut random, 300);
        }
        node.kill();
        node.start_again();
        if kill == KILLS / 2 {
            pause(&mut random, 300);
            server.start_again().await;
        }
    }
    let report: Value = serde_json::from_str(producing.wait().good().trim()).unwrap();
    assert_eq!(
        (&report["records"], &report["errors"]),
        (&RECORDS.into(), &0.into())
    );
    // And once in the middle of a flush.
    let flushing = node.begin("delivery flush lake --wait 60s", b"");
    pause(&mut random, 150);
    node.kill();
    // Whether it was done by then or not.
    flushing.wait();
    node.start_again();
    node.flumen("delivery flush lake --wait 60s", b"").good();
    let described = node.describe_until("probed", |described| {
        described["guarantee"] == "create_if_absent"
    });
    assert_eq!(
        (&described["backlog_records"], &described["freshness_us"]),
        (&0.into(), &0.into()),
        "{described:#}"
    );
    let delivered = Delivered::read(&bucket(&server)).await;
    // A mebibyte each: there was always one under way.
    assert!(delivered.manifests.len() > 10, "{described:#}");
    assert_eq!(described["cuts"], delivered.manifests.len());
    expect_each_once(&delivered);
}

fn expect_each_once(delivered: &Delivered) {
    let mut numbers = Vec::new();
    for (row, object) in delivered.rows() {
        let device = row["device"].as_str().unwrap();
        assert_eq!(object.entry["partition"]["d"], device);
        let key = object.entry["key"].as_str().unwrap();
        assert!(key.starts_with(&format!("flumen/d={device}/")), "{key}");
        assert!(key.ends_with(".gz"), "{key}");
        numbers.push(row["n"].as_u64().unwrap());
    }
    numbers.sort_unstable();
    let good = (0..RECORDS).filter(|n| !is_poison(*n));
    assert!(numbers.iter().copied().eq(good), "{} rows", numbers.len());
    let failed = delivered.failed();
    let mut failed: Vec<_> = failed
        .iter()
        .map(|record| record["n"].as_u64().unwrap())
        .collect();
    failed.sort_unstable();
    let poison = (0..RECORDS).filter(|n| is_poison(*n));
    assert!(failed.iter().copied().eq(poison), "{failed:?}");
    // A probe that was killed cannot clean up; nothing else is without a manifest.
    let strays: Vec<_> = delivered
        .strays
        .iter()
        .filter(|key| !key.contains("_probe/"))
        .collect();
    assert!(strays.is_empty(), "{strays:?}");
}
