//! What comes in goes out: once, in cuts that manifests name.

use flumen_broker::{DeliveryEnd, DeliveryPhase, Reshard};
use flumen_log::MemoryStorage;
use flumen_record::ShardIndex;

use crate::fixture::{Delivered, Rig, WAIT, create_stream, deliver, flush, memory, put, settings};

#[tokio::test(flavor = "multi_thread")]
async fn each_record_is_delivered_once() {
    let (storage, objects, spool) = (MemoryStorage::new(), memory(), tempfile::tempdir().unwrap());
    let rig = Rig::start(&storage, objects.clone(), spool.path()).await;
    let stream = create_stream(&rig.broker, "s", 3).await;
    put(&rig.broker, &stream, 0..1000).await;
    let name = deliver(&rig.broker, settings(&stream)).await;
    put(&rig.broker, &stream, 1000..2000).await;
    let described = flush(&rig.broker, &name).await;
    assert_eq!(described.report.phase, DeliveryPhase::Running);
    assert_eq!(described.backlog.records, 0);
    Delivered::read(&*objects).await.expect_numbers(0..2000);
    rig.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn delivery_goes_on_after_a_restart_where_it_stood() {
    let (mut storage, objects, spool) =
        (MemoryStorage::new(), memory(), tempfile::tempdir().unwrap());
    for round in 0..3_u64 {
        let rig = Rig::start(&storage, objects.clone(), spool.path()).await;
        let stream = match round {
            0 => create_stream(&rig.broker, "s", 2).await,
            _ => crate::fixture::stream_name("s"),
        };
        if round == 0 {
            deliver(&rig.broker, settings(&stream)).await;
        }
        put(&rig.broker, &stream, round * 500..round * 500 + 500).await;
        if round == 1 {
            // Killed wherever it is.
            let killed = storage.kill();
            rig.kill().await;
            storage = killed;
        } else {
            flush(&rig.broker, &crate::fixture::delivery_name("d")).await;
            rig.shutdown().await;
        }
    }
    Delivered::read(&*objects).await.expect_numbers(0..1500);
}

#[tokio::test(flavor = "multi_thread")]
async fn splits_and_merges_are_followed() {
    let (storage, objects, spool) = (MemoryStorage::new(), memory(), tempfile::tempdir().unwrap());
    let rig = Rig::start(&storage, objects.clone(), spool.path()).await;
    let stream = create_stream(&rig.broker, "s", 1).await;
    let name = deliver(&rig.broker, settings(&stream)).await;
    put(&rig.broker, &stream, 0..300).await;
    let split = Reshard::Split {
        shard: ShardIndex::new(0),
        at: None,
    };
    rig.broker.reshard(&stream, split).await.unwrap();
    put(&rig.broker, &stream, 300..600).await;
    let merge = Reshard::Merge {
        shard: ShardIndex::new(1),
        adjacent: ShardIndex::new(2),
    };
    rig.broker.reshard(&stream, merge).await.unwrap();
    put(&rig.broker, &stream, 600..900).await;
    flush(&rig.broker, &name).await;
    Delivered::read(&*objects).await.expect_numbers(0..900);
    rig.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_delivers_what_is_left() {
    let (storage, objects, spool) = (MemoryStorage::new(), memory(), tempfile::tempdir().unwrap());
    let rig = Rig::start(&storage, objects.clone(), spool.path()).await;
    let stream = create_stream(&rig.broker, "s", 2).await;
    let mut lazy = settings(&stream);
    lazy.buffering.interval_ms = 900_000;
    let name = deliver(&rig.broker, lazy).await;
    put(&rig.broker, &stream, 0..700).await;
    rig.broker
        .delete_delivery(&name, DeliveryEnd::Flush, WAIT)
        .await
        .unwrap();
    Delivered::read(&*objects).await.expect_numbers(0..700);
    assert!(rig.broker.describe_delivery(&name).is_err());
    // Its stream is free again.
    rig.broker.delete_stream(&stream).await.unwrap();
    rig.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_one_reads_nothing_until_it_is_resumed() {
    let (storage, objects, spool) = (MemoryStorage::new(), memory(), tempfile::tempdir().unwrap());
    let rig = Rig::start(&storage, objects.clone(), spool.path()).await;
    let stream = create_stream(&rig.broker, "s", 1).await;
    let name = deliver(&rig.broker, settings(&stream)).await;
    put(&rig.broker, &stream, 0..10).await;
    flush(&rig.broker, &name).await;
    rig.broker.pause_delivery(&name).await.unwrap();
    put(&rig.broker, &stream, 10..20).await;
    let refused = rig.broker.flush_delivery(&name, WAIT).await.unwrap_err();
    assert_eq!(refused.reason(), "DELIVERY_PAUSED");
    rig.broker.resume_delivery(&name).await.unwrap();
    flush(&rig.broker, &name).await;
    Delivered::read(&*objects).await.expect_numbers(0..20);
    rig.shutdown().await;
}
