//! Power cuts on a real file system: ext4 on a loop device, shut down by its own ioctl without
//! flushing the journal, unmounted and mounted again. Needs root.
//!
//! `FLUMEN_TEST_POWER_CUTS=5000 cargo test --release -p flumen --test it power_cut -- --nocapture`

use std::time::Duration;

use flumen_api::v1::Durability;
use tokio::sync::watch;

use crate::disk::Disk;
use crate::journal::{Journal, Random};
use crate::kill::{seed, setting};
use crate::process::BrokerProcess;

/// Cuts the power `cuts` times under load on streams of one level; the first loss that is found, if any.
async fn cut_under_load(level: Durability, cuts: u64, seed: u64) -> Option<Result<usize, String>> {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::new(folder.path(), 512 << 20)?;
    let data = disk.mounted.join("data");
    let mut random = Random::new(seed);
    let mut broker = BrokerProcess::start(&data);
    let mut journal = Journal::open(&broker.endpoint, &[("cut", level)], seed)
        .await
        .unwrap();
    for cut in 0..cuts {
        let endpoint = broker.endpoint.clone();
        let (stopper, stop) = watch::channel(false);
        let alive = Duration::from_millis(10 + random.below(80));
        let (outcome, ()) = tokio::join!(journal.load(&endpoint, stop), async {
            tokio::time::sleep(alive).await;
            // Frozen first: an ack that is sent while the file system goes down proves nothing,
            // because there a sync may report what it did not do.
            broker.freeze();
            stopper.send(true).ok();
        });
        if let Err(what) = outcome {
            return Some(Err(format!("cut {cut}: {what}")));
        }
        disk.cut_power();
        broker.kill();
        disk.unmount();
        disk.mount().expect("the file system comes back");
        broker = BrokerProcess::start(&data);
        if let Err(what) = journal.verify(&broker.endpoint).await {
            return Some(Err(format!("cut {cut}, seed {seed}: {what}")));
        }
    }
    journal.forget_checked();
    let whole = journal.verify(&broker.endpoint).await;
    drop(broker);
    Some(whole.map(|()| journal.acked()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_the_power_is_cut() {
    let cuts = setting("FLUMEN_TEST_POWER_CUTS", 50);
    let seed = seed("power cuts");
    if let Some(outcome) = cut_under_load(Durability::Disk, cuts, seed).await {
        let acked = outcome.unwrap_or_else(|what| panic!("{what}"));
        println!("power cuts: {cuts}, {acked} batches acknowledged, none lost");
    }
}

/// The positive control: acks that promise less than the disk are lost, and the same suite sees it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite_finds_what_a_power_cut_takes_from_acks_without_sync() {
    let seed = seed("power cuts, control");
    if let Some(outcome) = cut_under_load(Durability::Memory, 20, seed).await {
        let loss = outcome.expect_err("20 cuts of a level that does not sync lost nothing");
        assert!(
            loss.contains("lost") || loss.contains("is not at") || loss.contains("was next"),
            "{loss}"
        );
        println!("power cuts, control: found as it must be: {loss}");
    }
}
