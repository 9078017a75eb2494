//! Delivery streams with nothing to do do nothing.

use flumen_broker::{DeliveryPhase, NewDelivery};
use flumen_log::MemoryStorage;
use flumen_sink::fault::{FaultPlan, FaultyStore};
use std::sync::Arc;
use std::time::Duration;

use crate::fixture::{Rig, create_stream, delivery_name, memory, put, settings, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_that_have_nothing_to_do_do_nothing() {
    let (storage, spool) = (MemoryStorage::new(), tempfile::tempdir().unwrap());
    let store = FaultyStore::new(memory(), FaultPlan::default());
    let rig = Rig::start(&storage, Arc::new(store.clone()), spool.path()).await;
    let stream = create_stream(&rig.broker, "s", 4).await;
    put(&rig.broker, &stream, 0..10).await;
    let names: Vec<_> = (0..100).map(|n| delivery_name(&format!("d{n}"))).collect();
    for name in &names {
        let settings = settings(&stream);
        let new = NewDelivery {
            name: name.clone(),
            settings,
        };
        rig.broker.create_delivery(new).await.unwrap();
    }
    for name in &names {
        until(&rig.broker, name, |described| {
            described.report.phase == DeliveryPhase::Running && described.backlog.records == 0
        })
        .await;
    }
    let looked = || (storage.operations(), store.counts().operations);
    // Nothing is to happen, once each log has vouched for its last round: there is nothing that could
    // be awaited.
    let mut before = looked();
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        if looked() == before {
            break;
        }
        before = looked();
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(looked(), before);
    rig.shutdown().await;
}
