//! `kill -9` at any time, also during recovery: nothing acknowledged is lost at either level.
//!
//! `FLUMEN_TEST_KILL_CYCLES=10000 FLUMEN_TEST_SEED=7 cargo test --release -p flumen --test it kill -- --nocapture`
//! runs more of it, or the same again. Lives are longer in a second suite, with
//! `FLUMEN_TEST_LONG_KILL_CYCLES`: between two kills its segments are sealed, copied, freed and
//! recycled, its streams trimmed by their bound in bytes and moved between levels and classes.

use std::time::Duration;

use flumen_api::v1::admin_client::AdminClient;
use flumen_api::v1::{Durability, UpdateStreamRequest};
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

/// Otherwise a life is over before retention looks once.
const RETENTION_OFTEN: &[&str] = &["broker.retention_interval_ms=100"];

/// Changes a stream's level or retention class, until the broker is gone.
async fn move_around(endpoint: String, streams: &[&str], mut random: Random) -> u64 {
    let Ok(mut admin) = AdminClient::connect(endpoint).await else {
        return 0;
    };
    let mut moves = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(20 + random.below(250))).await;
        let stream = streams[usize::try_from(random.below(streams.len() as u64)).unwrap()];
        let durability = [Durability::Disk, Durability::Memory][usize::from(random.below(2) == 0)];
        let hours = [1, 6, 24][usize::try_from(random.below(3)).unwrap()];
        let update = UpdateStreamRequest {
            stream: stream.to_owned(),
            durability: (random.below(3) > 0).then_some(i32::from(durability)),
            retention_us: (random.below(3) == 0).then_some(hours * 3_600_000_000),
            ..UpdateStreamRequest::default()
        };
        match admin.update_stream(update).await {
            Ok(_) => moves += 1,
            // It was killed. Anything else must not be.
            Err(status) => {
                let is_gone = matches!(
                    status.code(),
                    tonic::Code::Unavailable | tonic::Code::Unknown | tonic::Code::Cancelled
                );
                assert!(is_gone, "a move of {stream} is refused: {status}");
                return moves;
            }
        }
    }
}

/// Lives long enough for segments to be sealed, copied, freed and recycled, for retention by bytes,
/// and for streams that come back to logs in which they were before: acknowledged records were once
/// lost that way, and batches stored twice, with every shorter suite green.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_over_long_lives_between_kills() {
    let cycles = setting("FLUMEN_TEST_LONG_KILL_CYCLES", 20);
    let seed = seed("long lives");
    let mut random = Random::new(seed);
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut broker = BrokerProcess::start_with(&data, RETENTION_OFTEN);
    let streams = [("one", Durability::Disk), ("two", Durability::Memory)];
    let mut journal = Journal::open_bounded(&broker.endpoint, &streams, seed, 6 << 20)
        .await
        .unwrap();
    let mut moves = 0;
    for cycle in 0..cycles {
        let endpoint = broker.endpoint.clone();
        let (_go_on, stop) = watch::channel(false);
        let alive = Duration::from_millis(100 + random.below(1_500));
        let mover = move_around(
            endpoint.clone(),
            &["one", "two"],
            Random::new(random.next()),
        );
        let (outcome, moved, ()) = tokio::join!(journal.load(&endpoint, stop), mover, async {
            tokio::time::sleep(alive).await;
            if random.below(4) == 0 {
                assert_eq!(broker.terminate(), Some(0), "cycle {cycle}, seed {seed}");
            } else {
                broker.kill();
            }
        });
        outcome.unwrap_or_else(|what| panic!("cycle {cycle}, seed {seed}: {what}"));
        moves += moved;
        broker = BrokerProcess::start_with(&data, RETENTION_OFTEN);
        if cycle % 10 == 9 || cycle + 1 == cycles {
            journal.forget_checked();
        }
        let outcome = journal.verify(&broker.endpoint).await;
        outcome.unwrap_or_else(|what| panic!("cycle {cycle}, seed {seed}: {what}"));
    }
    println!(
        "long lives: {cycles} cycles, {} batches acknowledged, {moves} moves, {} records trimmed",
        journal.acked(),
        journal.trimmed
    );
    assert!(moves > cycles, "only {moves} moves in {cycles} cycles");
    assert!(journal.trimmed > 0, "retention by bytes had nothing to do");
}
