//! A disk that fails writes: an ext4 file system on a loop device whose sparse image lies on a
//! memory file system that is full, so that what needs a new block of it is an I/O error. Needs root.
//!
//! What is on this disk afterwards proves nothing: in one of five tries, without any broker, such a
//! stack dropped the end of the last write that it had reported as synced. That nothing acknowledged
//! is lost after a failed sync is proved on the in-memory storage; here the process is looked at.

use flumen_api::v1::Durability;
use tokio::sync::watch;

use crate::cli::run;
use crate::disk::{Disk, Ram};
use crate::journal::Journal;
use crate::kill::seed;
use crate::process::BrokerProcess;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_sync_ends_appends_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let Some(ram) = Ram::new(folder.path(), 48 << 20) else {
        return;
    };
    let Some(disk) = Disk::new(&ram.mounted, 256 << 20) else {
        return;
    };
    let mut broker = BrokerProcess::start(&disk.mounted.join("data"));
    let at = format!("--quiet --endpoint {}", broker.endpoint);
    let streams = [("failing", Durability::Disk)];
    let journal = Journal::open(&broker.endpoint, &streams, seed("failing disk"));
    let mut journal = journal.await.unwrap();
    // The image grows until the memory behind it is used up. A pipeline that is refused as
    // `UNAVAILABLE` ends without a complaint, and any other refusal is one.
    let (_go_on, stop) = watch::channel(false);
    journal.load(&broker.endpoint, stop).await.unwrap();
    assert!(journal.acked() > 1_000, "{}", journal.acked());

    // All that was acknowledged is read, and nothing else is taken.
    journal.verify(&broker.endpoint).await.unwrap();
    let words = format!("{at} produce failing --retry-for 200ms");
    run(folder.path(), &words, b"x\n").refused(1, "the log is poisoned");
    let metrics = broker.get("/metrics");
    let has = |line: &str| metrics.lines().any(|found| found == line);
    assert!(has("flumen_poisoned{log=\"disk-168h-0\"} 1.0"), "{metrics}");
    let failed = "flumen_failed_syncs_total{log=\"disk-168h-0\"} 0";
    assert!(
        metrics.contains("flumen_failed_syncs_total") && !has(failed),
        "{metrics}"
    );
    let health = broker.get("/readyz");
    assert!(
        health.contains("a log is poisoned after failed syncs"),
        "{health}"
    );
    assert_eq!(broker.terminate(), Some(1), "it did not close in order");
}
