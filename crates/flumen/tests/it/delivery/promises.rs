//! A store whose conditional puts are not atomic: it is found out, it is said, and readers of the
//! manifests have each record once all the same.

use std::fmt::Write as _;

use super::node::{Node, to};
use super::reading::{Delivered, bucket};
use crate::servers::{Kind, Server};

const RECORDS: u64 = 3_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_lets_racers_win_is_named_and_delivered_to() {
    let Some(server) = Server::start(Kind::S3sFs).await else {
        return;
    };
    let mut node = Node::start();
    let settings = "--format ndjson --compression zstd --interval 0";
    node.deliver("readings", 2, &format!("{} {settings}", to(&server)));
    for part in 0..3 {
        let numbers = part * RECORDS / 3..(part + 1) * RECORDS / 3;
        let text = numbers.fold(String::new(), |mut text, n| {
            writeln!(text, "{{\"n\":{n}}}").unwrap();
            text
        });
        node.flumen("produce readings", text.as_bytes()).good();
        if part == 1 {
            node.kill();
            node.start_again();
        }
    }
    node.flumen("delivery flush lake", b"").good();
    node.describe_until("manifests only", |described| {
        described["guarantee"] == "manifests_only"
    });
    let text = node.flumen("delivery describe lake", b"").good();
    let said = "exactly once for readers of the manifests, as long as only this broker writes";
    assert!(text.contains(said), "{text}");
    let delivered = Delivered::read(&bucket(&server)).await;
    let mut numbers: Vec<_> = delivered
        .rows()
        .iter()
        .map(|(row, _)| row["n"].as_u64().unwrap())
        .collect();
    numbers.sort_unstable();
    assert!(
        numbers.iter().copied().eq(0..RECORDS),
        "{} rows",
        numbers.len()
    );
    // It is a file, as the server keeps them.
    let key = delivered.objects[0].entry["key"].as_str().unwrap();
    assert_eq!(
        std::fs::read(server.file(key)).unwrap(),
        delivered.objects[0].bytes
    );
}
