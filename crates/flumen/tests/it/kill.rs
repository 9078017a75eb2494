//! `kill -9` at any time, also during recovery: nothing acknowledged is lost at either level.
//!
//! `FLUMEN_TEST_KILL_CYCLES=10000 FLUMEN_TEST_SEED=7 cargo test --release -p flumen --test it kill -- --nocapture`
//! runs more of it, or the same again.

use std::time::Duration;

use flumen_api::v1::Durability;
use tokio::sync::watch;

use crate::journal::{Journal, Random};
use crate::process::BrokerProcess;

/// A number from the environment, for longer runs.
pub(crate) fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// A seed that differs from run to run and is printed, unless one is given.
pub(crate) fn seed(suite: &str) -> u64 {
    let seed = setting("FLUMEN_TEST_SEED", u64::from(std::process::id()));
    println!("{suite}: FLUMEN_TEST_SEED={seed}");
    seed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_the_process_is_killed() {
    let cycles = setting("FLUMEN_TEST_KILL_CYCLES", 300);
    let seed = seed("kill -9");
    let mut random = Random::new(seed);
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut broker = BrokerProcess::start(&data);
    let streams = [("disk", Durability::Disk), ("memory", Durability::Memory)];
    let mut journal = Journal::open(&broker.endpoint, &streams, seed)
        .await
        .unwrap();
    let (mut busy, mut in_flight, mut during_recovery) = (0, 0, 0);
    for cycle in 0..cycles {
        let endpoint = broker.endpoint.clone();
        let (_go_on, stop) = watch::channel(false);
        let alive = Duration::from_millis(5 + random.below(60));
        let (outcome, ()) = tokio::join!(journal.load(&endpoint, stop), async {
            tokio::time::sleep(alive).await;
            broker.kill();
        });
        outcome.unwrap_or_else(|what| panic!("cycle {cycle}, seed {seed}: {what}"));
        busy += u64::from(journal.in_flight() > 0);
        in_flight += journal.in_flight();
        while random.below(4) == 0 {
            // Recovery must bear being killed itself, at any point and again.
            let mut starting = BrokerProcess::spawn(&data);
            tokio::time::sleep(Duration::from_micros(random.below(60_000))).await;
            starting.kill();
            during_recovery += 1;
        }
        broker = BrokerProcess::start(&data);
        if cycle % 50 == 49 || cycle + 1 == cycles {
            journal.forget_checked();
        }
        let outcome = journal.verify(&broker.endpoint).await;
        outcome.unwrap_or_else(|what| panic!("cycle {cycle}, seed {seed}: {what}"));
    }
    println!(
        "kill -9: {cycles} cycles, {} batches acknowledged, {in_flight} in flight at {busy} kills, \
         {during_recovery} more kills during recovery",
        journal.acked()
    );
    assert!(
        busy * 10 >= cycles * 9,
        "only {busy} of {cycles} kills met batches in flight"
    );
    assert!(during_recovery > 0 || cycles < 20);
}
