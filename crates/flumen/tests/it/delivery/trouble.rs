//! A store that goes away and comes back, as the metrics page and `describe` tell it.

use super::node::{Node, to};
use super::reading::{Delivered, bucket};
use crate::servers::{Kind, Server};

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_goes_away_raises_the_alarm_until_it_is_back() {
    let Some(mut server) = Server::start(Kind::Versitygw).await else {
        return;
    };
    let node = Node::start();
    let settings = format!("{} --format ndjson --interval 0", to(&server));
    node.deliver("readings", 1, &settings);
    node.flumen("produce readings", b"{\"n\":0}\n").good();
    node.flumen("delivery flush lake", b"").good();
    assert_eq!(node.metric("flumen_delivery_failing"), 0.0);
    assert_eq!(node.metric("flumen_delivery_delivered_records_total"), 1.0);
    assert_eq!(node.metric("flumen_delivery_data_freshness_seconds"), 0.0);

    server.kill();
    node.flumen("produce readings", b"{\"n\":1}\n{\"n\":2}\n")
        .good();
    let failing = node.describe_until("retrying", |described| described["status"] == "retrying");
    assert_eq!(
        failing["last_error"]["reason"], "unreachable",
        "{failing:#}"
    );
    assert_eq!(node.metric("flumen_delivery_failing"), 1.0);
    assert!(node.metric("flumen_delivery_data_freshness_seconds") > 0.0);
    assert_eq!(node.metric("flumen_delivery_backlog_records"), 2.0);
    assert!(node.metric("flumen_delivery_failures_total") >= 1.0);
    let short = node.flumen("delivery flush lake --wait 200ms", b"");
    short.refused(1, "flumen delivery describe");

    server.start_again().await;
    node.flumen("delivery flush lake", b"").good();
    assert_eq!(node.metric("flumen_delivery_failing"), 0.0);
    assert_eq!(node.metric("flumen_delivery_delivered_records_total"), 3.0);
    assert_eq!(node.metric("flumen_delivery_data_freshness_seconds"), 0.0);
    assert_eq!(Delivered::read(&bucket(&server)).await.rows().len(), 3);
}
