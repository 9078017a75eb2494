//! What is ordered while it delivers: other settings, another start, an end.

use std::sync::Arc;

use flumen_broker::{
    Backup, Clock, DeliveryEnd, DeliveryPhase, DeliverySource, DeliveryStart, ObjectCompression,
    StreamNameText,
};
use flumen_log::MemoryStorage;
use flumen_record::Timestamp;
use flumen_sink::SinkConfig;
use flumen_sink::fault::{Fault, FaultPlan, FaultyStore, Outage};

use crate::fixture::{
    Delivered, Only, Rig, WAIT, create_stream, deliver, delivery_name, flush, memory, put,
    settings, stream_name, until, until_failed,
};
use crate::watched::{Fate, Watched};

#[tokio::test(flavor = "multi_thread")]
async fn an_update_applies_to_later_cuts_and_planned_ones_keep_their_settings() {
    let (storage, objects, spool) = (MemoryStorage::new(), memory(), tempfile::tempdir().unwrap());
    let store = Watched::new(objects.clone(), |key| match key.starts_with("one/") {
        true => Fate::Wait,
        false => Fate::Go,
    });
    let only = Arc::new(Only(Arc::new(store.clone())));
    let (clock, config) = (Clock::system(), SinkConfig::default());
    let rig = Rig::start_with(&storage, only, spool.path(), clock, config).await;
    let stream = create_stream(&rig.broker, "s", 2).await;
    let mut first = settings(&stream);
    first.keys.prefix = Some("one/".to_owned());
    let name = deliver(&rig.broker, first.clone()).await;
    put(&rig.broker, &stream, 0..100).await;
    store.asked("one/").await;
    let mut second = first.clone();
    second.keys.prefix = Some("two/".to_owned());
    let updated = rig
        .broker
        .update_delivery(&name, Some(1), second)
        .await
        .unwrap();
    assert_eq!(updated.version, 2);
    let late = rig.broker.update_delivery(&name, Some(1), first).await;
    assert_eq!(late.unwrap_err().reason(), "DELIVERY_VERSION");
    put(&rig.broker, &stream, 100..200).await;
    store.open();
    flush(&rig.broker, &name).await;
    let delivered = Delivered::read(&*objects).await;
    delivered.expect_numbers(0..200);
    let mut versions = Vec::new();
    for manifest in delivered.manifests.values() {
        let version = manifest["settings_version"].as_u64().unwrap();
        versions.push(version);
        for object in manifest["objects"].as_array().unwrap() {
            let key = object["key"].as_str().unwrap();
            assert!(key.starts_with(["one/", "two/"][usize::try_from(version - 1).unwrap()]));
            assert!(
                key.contains(&format!("/d-{version}-")),
                "{key} of version {version}"
            );
        }
    }
    assert_eq!((versions[0], versions.last()), (1, Some(&2)));
    assert!(versions.is_sorted());
    rig.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn latest_is_what_came_after_the_creation_also_after_a_death() {
    let (storage, objects, spool) = (MemoryStorage::new(), memory(), tempfile::tempdir().unwrap());
    let rig = Rig::start(&storage, objects.clone(), spool.path()).await;
    let stream = create_stream(&rig.broker, "s", 2).await;
    put(&rig.broker, &stream, 0..50).await;
    let mut latest = settings(&stream);
    latest.source = DeliverySource::Stream {
        stream: StreamNameText(stream.clone()),
        start: DeliveryStart::Latest,
    };
    let name = deliver(&rig.broker, latest).await;
    // Nobody waits until it has begun.
    put(&rig.broker, &stream, 50..60).await;
    let storage = storage.kill();
    rig.kill().await;
    let rig = Rig::start(&storage, objects.clone(), spool.path()).await;
    put(&rig.broker, &stream, 60..100).await;
    flush(&rig.broker, &name).await;
    Delivered::read(&*objects).await.expect_numbers(50..100);
    rig.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn delivery_begins_at_a_time() {
    let (storage, objects, spool) = (MemoryStorage::new(), memory(), tempfile::tempdir().unwrap());
    let clock = Clock::manual(Timestamp::from_micros(1_800_000_000_000_000));
    let rig = Rig::start_at(&storage, objects.clone(), spool.path(), clock).await;
    let stream = create_stream(&rig.broker, "s", 2).await;
    put(&rig.broker, &stream, 0..50).await;
    rig.clock.advance(WAIT);
    let start = DeliveryStart::at(rig.clock.now());
    put(&rig.broker, &stream, 50..100).await;
    let mut later = settings(&stream);
    later.source = DeliverySource::Stream {
        stream: StreamNameText(stream.clone()),
        start,
    };
    let name = deliver(&rig.broker, later).await;
    let described = flush(&rig.broker, &name).await;
    assert_eq!(described.backlog.records, 0);
    Delivered::read(&*objects).await.expect_numbers(50..100);
    rig.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_hold_records_as_they_came() {
    let (storage, objects, spool) = (MemoryStorage::new(), memory(), tempfile::tempdir().unwrap());
    let rig = Rig::start(&storage, objects.clone(), spool.path()).await;
    let stream = create_stream(&rig.broker, "s", 1).await;
    let mut backed = settings(&stream);
    backed.processing.filter = Some(".n >= 90".to_owned());
    backed.backup = Some(Backup {
        prefix: "raw/".to_owned(),
        compression: ObjectCompression::None,
    });
    let name = deliver(&rig.broker, backed).await;
    put(&rig.broker, &stream, 0..100).await;
    let described = flush(&rig.broker, &name).await;
    let delivered = Delivered::read(&*objects).await;
    delivered.expect_numbers(90..100);
    let mut raw = Vec::new();
    for ((kind, key), bytes) in &delivered.objects {
        if kind == "backup" {
            assert!(key.starts_with("raw/"), "{key}");
            raw.extend_from_slice(bytes);
        }
    }
    let expected: String = (0..100).map(|n| format!("{{\"n\":{n}}}")).collect();
    assert_eq!(String::from_utf8(raw).unwrap(), expected);
    let counts = described.counts;
    assert_eq!((counts.backup_records, counts.dropped_records), (100, 90));
    rig.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn direct_puts_have_a_stream_that_goes_with_the_delivery_stream() {
    let (storage, objects, spool) = (MemoryStorage::new(), memory(), tempfile::tempdir().unwrap());
    let rig = Rig::start(&storage, objects.clone(), spool.path()).await;
    let stream = stream_name("delivery.d");
    let mut direct = settings(&stream);
    direct.source = DeliverySource::Direct { shards: 2 };
    let name = deliver(&rig.broker, direct).await;
    put(&rig.broker, &stream, 0..100).await;
    rig.broker
        .delete_delivery(&name, DeliveryEnd::Flush, WAIT)
        .await
        .unwrap();
    Delivered::read(&*objects).await.expect_numbers(0..100);
    assert_eq!(
        rig.broker.describe_stream(&stream).unwrap_err().reason(),
        "STREAM_NOT_FOUND"
    );
    rig.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_cannot_deliver_is_dropped_at_once_and_leaves_no_spool() {
    let (storage, objects, spool) = (MemoryStorage::new(), memory(), tempfile::tempdir().unwrap());
    let store = FaultyStore::new(
        objects.clone(),
        FaultPlan {
            outages: vec![Outage {
                from: 0,
                operations: u64::MAX,
                fault: Fault::ServerError,
            }],
            ..FaultPlan::default()
        },
    );
    let rig = Rig::start(&storage, Arc::new(store), spool.path()).await;
    let stream = create_stream(&rig.broker, "s", 1).await;
    let name = deliver(&rig.broker, settings(&stream)).await;
    put(&rig.broker, &stream, 0..10).await;
    until_failed(&rig.broker, &name, DeliveryPhase::Retrying, "server_error").await;
    rig.broker
        .delete_delivery(&name, DeliveryEnd::Drop, WAIT)
        .await
        .unwrap();
    assert_eq!(std::fs::read_dir(spool.path()).unwrap().count(), 0);
    assert!(Delivered::read(&*objects).await.manifests.is_empty());
    // Its name is free for another life, which shares nothing with the first.
    let name = deliver(&rig.broker, settings(&stream)).await;
    until_failed(&rig.broker, &name, DeliveryPhase::Retrying, "server_error").await;
    rig.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_one_knows_its_backlog_after_a_restart() {
    let (storage, objects, spool) = (MemoryStorage::new(), memory(), tempfile::tempdir().unwrap());
    let rig = Rig::start(&storage, objects.clone(), spool.path()).await;
    let stream = create_stream(&rig.broker, "s", 1).await;
    let name = deliver(&rig.broker, settings(&stream)).await;
    put(&rig.broker, &stream, 0..30).await;
    let flushed = flush(&rig.broker, &name).await;
    rig.broker.pause_delivery(&name).await.unwrap();
    put(&rig.broker, &stream, 30..40).await;
    rig.shutdown().await;
    let rig = Rig::start(&storage, objects.clone(), spool.path()).await;
    let described = until(&rig.broker, &delivery_name("d"), |described| {
        described.report.phase == DeliveryPhase::Paused
    })
    .await;
    assert_eq!(described.backlog.records, 10);
    assert_eq!(described.report.cuts, flushed.report.cuts);
    rig.shutdown().await;
}
