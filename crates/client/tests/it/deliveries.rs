//! Delivery streams through the client, over a real node. What runs them is played by the test, so
//! that it says itself what is heard.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use flumen_broker::{
    DeliveryChecks, DeliveryDesk, DeliveryOrders, DeliveryPhase, DeliveryReport, DeliverySeat,
    DeliverySettings as BrokerSettings, LastError, LastObject, SettingRefused,
    StoreGuarantee as Guarantee,
};
use flumen_client::delivery::{
    DeliverySettings, DeliveryStatus, Format, NdjsonFormat, StoreGuarantee, bucket, direct,
    directory, from_stream, into,
};
use flumen_client::{Client, Code, DeliveryName, NewStream, Record, StreamName, reason};
use flumen_record::Timestamp;

use crate::node::Node;

/// Refuses buckets, whatever they are.
#[derive(Debug)]
struct NoBuckets;

impl DeliveryChecks for NoBuckets {
    fn check(&self, _: &DeliveryName, settings: &BrokerSettings) -> Result<(), SettingRefused> {
        match &settings.destination {
            flumen_broker::Destination::S3(_) => Err(SettingRefused {
                setting: "destination.bucket",
                reason: "no buckets here".to_owned(),
            }),
            _ => Ok(()),
        }
    }
}

/// A node with a stream `s` of two records, and the seat of its sink.
struct Stage {
    node: Node,
    client: Client,
    seat: DeliverySeat,
    _directory: tempfile::TempDir,
}

impl Stage {
    async fn set() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let node = Node::start(directory.path()).await;
        let client = node.client();
        let stream = stream("s");
        client
            .create_stream(NewStream::new(stream.clone()))
            .await
            .unwrap();
        let record = |data: &'static str| Record {
            partition_key: "k".into(),
            explicit_hash_key: None,
            data: data.into(),
            client_timestamp: None,
            headers: Vec::new(),
        };
        let puts = client.put(&stream, vec![record("a"), record("b")]).await;
        puts.unwrap();
        let seat = node
            .broker()
            .attach_deliveries(Arc::new(NoBuckets))
            .unwrap();
        Self {
            node,
            client,
            seat,
            _directory: directory,
        }
    }

    fn desk(&self, name: &str) -> DeliveryDesk {
        let mut desks = self.seat.desks().into_iter();
        desks.find(|desk| desk.name().as_str() == name).unwrap()
    }

    /// What the runner of this one is told, once this holds.
    async fn told(&self, name: &str, holds: impl FnMut(&Arc<DeliveryOrders>) -> bool) -> u64 {
        let mut orders = self.desk(name).orders();
        let orders = orders.wait_for(holds).await.unwrap();
        orders.flush
    }
}

fn name(text: &str) -> DeliveryName {
    text.parse().unwrap()
}

fn stream(text: &str) -> StreamName {
    text.parse().unwrap()
}

fn to_directory() -> DeliverySettings {
    into(from_stream(&stream("s")), directory("/objects"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_runner_says_is_what_the_client_hears() {
    let stage = Stage::set().await;
    let client = &stage.client;
    let created = client
        .create_delivery(&name("d"), to_directory())
        .await
        .unwrap();
    assert_eq!((created.version, created.paused), (1, false));
    assert_eq!(created.stream, stream("s"));
    assert_eq!(created.status, DeliveryStatus::Starting);
    assert_eq!(created.guarantee, StoreGuarantee::Unspecified);
    assert_eq!(created.backlog.records, 2);
    assert!(created.backlog.oldest.is_some() && created.freshness > Duration::ZERO);
    assert!(created.last_object.is_none() && created.last_error.is_none());
    let hints = created.settings.buffering.unwrap();
    assert_eq!(hints.interval_ms, Some(300_000));

    let desk = stage.desk("d");
    let at = Timestamp::from_micros;
    desk.report(DeliveryReport {
        phase: DeliveryPhase::Retrying,
        guarantee: Guarantee::ManifestsOnly,
        cuts: 7,
        cuts_open: 2,
        last_object: Some(LastObject {
            key: "d/1".to_owned(),
            bytes: 3,
            records: 4,
            at: at(5),
        }),
        last_error: Some(LastError {
            reason: "slow_down",
            text: "it asks to slow down".to_owned(),
            at: at(6),
            times: 8,
        }),
        flushed: 0,
        renewed: 0,
    });
    desk.counters().incoming_records.store(9, Ordering::Relaxed);
    desk.counters().throttled.store(10, Ordering::Relaxed);
    desk.expired(11);
    let described = client.describe_delivery(&name("d")).await.unwrap();
    assert_eq!(described.status, DeliveryStatus::Retrying);
    assert_eq!(described.guarantee, StoreGuarantee::ManifestsOnly);
    assert_eq!((described.cuts, described.cuts_open), (7, 2));
    let object = described.last_object.unwrap();
    assert_eq!(
        (&*object.key, object.bytes, object.records, object.at),
        ("d/1", 3, 4, at(5))
    );
    let error = described.last_error.unwrap();
    assert_eq!(
        (&*error.reason, error.times, error.at),
        ("slow_down", 8, at(6))
    );
    assert_eq!(error.text, "it asks to slow down");
    assert_eq!(described.counts.incoming_records, 9);
    assert_eq!(described.counts.throttled, 10);
    assert_eq!(described.backlog.expired_records, 11);
    assert_eq!(described.settings, created.settings);
    stage.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn delivery_streams_are_created_listed_and_changed() {
    let stage = Stage::set().await;
    let client = &stage.client;
    for other in ["b", "c"] {
        let settings = into(direct(1), directory("/objects"));
        let created = client
            .create_delivery(&name(other), settings)
            .await
            .unwrap();
        assert_eq!(created.stream.to_string(), format!("delivery.{other}"));
    }
    client
        .create_delivery(&name("d"), to_directory())
        .await
        .unwrap();
    let again = client
        .create_delivery(&name("d"), to_directory())
        .await
        .unwrap_err();
    assert_eq!(again.reason(), reason::DELIVERY_EXISTS);
    let nowhere = into(direct(1), bucket("b", None));
    let nowhere = client
        .create_delivery(&name("e"), nowhere)
        .await
        .unwrap_err();
    assert_eq!(
        (nowhere.code(), nowhere.reason()),
        (Code::InvalidArgument, reason::DELIVERY_SETTING)
    );
    assert_eq!(nowhere.metadata("setting"), Some("destination.bucket"));

    let (page, more) = client.list_deliveries(Some(&name("b")), 1).await.unwrap();
    assert_eq!((page[0].name.as_str(), page.len(), more), ("c", 1, true));
    let (page, more) = client.list_deliveries(Some(&name("c")), 0).await.unwrap();
    assert_eq!((page[0].name.as_str(), page.len(), more), ("d", 1, false));

    let ndjson = DeliverySettings {
        format: Some(Format::Ndjson(NdjsonFormat {})),
        ..to_directory()
    };
    let updated = client
        .update_delivery(&name("d"), Some(1), ndjson.clone())
        .await
        .unwrap();
    assert_eq!(
        (updated.version, updated.settings.format),
        (2, ndjson.format.clone())
    );
    let stale = client
        .update_delivery(&name("d"), Some(1), ndjson)
        .await
        .unwrap_err();
    assert_eq!(stale.reason(), reason::DELIVERY_VERSION);
    assert_eq!(stale.metadata("current"), Some("2"));
    stage.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_stream_is_paused_flushed_and_deleted() {
    let stage = Stage::set().await;
    let client = &stage.client;
    let direct = into(direct(1), directory("/objects"));
    for (which, settings) in [("c", direct), ("d", to_directory())] {
        client
            .create_delivery(&name(which), settings)
            .await
            .unwrap();
    }
    assert!(client.pause_delivery(&name("d")).await.unwrap().paused);
    let short = Duration::from_millis(1);
    let paused = client.flush_delivery(&name("d"), short).await.unwrap_err();
    assert_eq!(paused.reason(), reason::DELIVERY_PAUSED);
    assert!(!client.resume_delivery(&name("d")).await.unwrap().paused);

    // Nobody does what is asked: it is waited for as long as asked, then goes on.
    let unfinished = client.flush_delivery(&name("d"), short).await.unwrap_err();
    assert_eq!(unfinished.reason(), reason::DELIVERY_UNFINISHED);
    assert!(unfinished.is_retryable());
    let done = async {
        let flushed = stage.told("d", |orders| orders.flush == 2).await;
        stage.desk("d").report(DeliveryReport {
            flushed,
            cuts: 1,
            ..DeliveryReport::default()
        });
    };
    let d = name("d");
    let flush = client.flush_delivery(&d, Duration::from_secs(60));
    let (flushed, ()) = tokio::join!(flush, done);
    assert_eq!(flushed.unwrap().cuts, 1);

    for (which, drop) in [("d", false), ("c", true)] {
        let gone = async {
            stage.told(which, |orders| orders.ending.is_some()).await;
            stage.desk(which).remove().await.unwrap();
        };
        let which = name(which);
        let delete = client.delete_delivery(&which, drop, Duration::from_secs(60));
        let (deleted, ()) = tokio::join!(delete, gone);
        deleted.unwrap();
        let missing = client.describe_delivery(&which).await.unwrap_err();
        assert_eq!(
            (missing.code(), missing.reason()),
            (Code::NotFound, reason::DELIVERY_NOT_FOUND)
        );
    }
    stage.node.stop().await;
}

/// Without a sink there is nothing that could run one, and the answer says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_a_sink_refuses_them() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path()).await;
    let client = node.client();
    let refused = client
        .create_delivery(&name("d"), to_directory())
        .await
        .unwrap_err();
    assert_eq!(
        (refused.code(), refused.reason()),
        (Code::Unavailable, "DELIVERIES_UNAVAILABLE")
    );
    assert_eq!(
        client.list_deliveries(None, 0).await.unwrap(),
        (Vec::new(), false)
    );
    node.stop().await;
}
