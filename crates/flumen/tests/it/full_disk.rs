//! A file system that is really full: appends are refused for a reason, everything else goes on,
//! and freed space is all it takes to go on. Needs root.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use flumen_api::v1;
use flumen_api::v1::Durability;
use tokio::sync::watch;
use tonic::Code;

use crate::cli::{Ran, run};
use crate::disk::Disk;
use crate::journal::Journal;
use crate::kill::seed;
use crate::process::BrokerProcess;
use crate::wire::{Refused, Wire};

/// What is kept free for the broker's own rounds (the test's stand-in for 256 MiB and more).
const FLOOR_BYTES: u64 = 4 << 20;
const SETTINGS: &[&str] = &[
    "broker.log.segment_bytes_max=1MiB",
    "broker.log.free_space_floor_bytes=4MiB",
    "broker.retention_interval_ms=200",
];
/// As long as it may take until freed space is noticed.
const PATIENT: &str = "--retry-for 60s";

/// A broker on a disk of 64 MiB, and a journal of what it has acknowledged on `keep`.
struct Stage {
    broker: BrokerProcess,
    journal: Journal,
    data: PathBuf,
    disk: Disk,
    folder: tempfile::TempDir,
}

impl Stage {
    async fn set(name: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::new(folder.path(), 64 << 20)?;
        let data = disk.mounted.join("data");
        let broker = BrokerProcess::start_with(&data, SETTINGS);
        let streams = [("keep", Durability::Disk)];
        let journal = Journal::open(&broker.endpoint, &streams, seed(name)).await;
        let stage = Self {
            broker,
            journal: journal.unwrap(),
            data,
            disk,
            folder,
        };
        let numbers: Vec<_> = (0..20_000).map(|n| format!("{n:0>1000}\n")).collect();
        std::fs::write(stage.folder.path().join("20MB"), numbers.concat()).unwrap();
        Some(stage)
    }

    fn flumen(&self, words: &str, input: &[u8]) -> Ran {
        let at = format!("--endpoint {} --quiet", self.broker.endpoint);
        run(self.folder.path(), &format!("{at} {words}"), input)
    }

    /// 20 MB in a stream that is there for its space.
    fn fill_spare(&self) {
        self.flumen("stream create spare", b"").good();
        self.flumen("produce spare 20MB --key-fixed k", b"").good();
    }

    /// Appends to `keep` until every one of its pipelines is refused for the full disk.
    async fn fill(&mut self) {
        let (_go_on, stop) = watch::channel(false);
        let endpoint = self.broker.endpoint.clone();
        let refused = self.journal.load(&endpoint, stop).await;
        let refused = refused.expect_err("the disk takes everything");
        assert!(refused.contains("STORAGE_FULL"), "{refused}");
        self.journal.verify(&endpoint).await.unwrap();
    }

    /// Waits until a record is taken again, without any help.
    #[track_caller]
    fn resumes(&self) {
        let words = format!("produce probe --key-fixed k {PATIENT}");
        self.flumen(&words, b"again\n").good();
    }

    /// All that was ever acknowledged on `keep` is there.
    async fn verify_all(&mut self) {
        self.journal.forget_checked();
        let endpoint = self.broker.endpoint.clone();
        self.journal.verify(&endpoint).await.unwrap();
    }
}

/// Takes what space is left, as another process would.
fn take_all_space(file: &Path) {
    let mut ballast = File::create(file).unwrap();
    let piece = vec![0x5a; 64 << 10];
    // Until the file system says that it is full.
    while ballast.write_all(&piece).is_ok() {}
    // A part of it may not be allocated before it is written back.
    let _ = ballast.sync_all();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_appends_and_nothing_else() {
    let Some(mut stage) = Stage::set("full disk, refusals").await else {
        return;
    };
    stage.fill_spare();
    stage.flumen("stream create probe", b"").good();
    stage.fill().await;

    let large = vec![b'x'; 1 << 19];
    let full = stage.flumen("produce keep --retry-for 100ms", &large);
    full.refused(1, "storage full");
    let endpoint = stage.broker.endpoint.clone();
    let refused = tokio::task::spawn_blocking(move || {
        let wire = Wire::to(&endpoint);
        let record = v1::PutRecord {
            partition_key: "k".to_owned(),
            data: large.into(),
            ..Default::default()
        };
        let request = v1::PutRequest {
            stream: "keep".to_owned(),
            records: vec![record],
            stream_incarnation: 0,
        };
        let put = wire.good(wire.producer().put(request));
        Refused::of_put(&put.results[0])
    });
    let refused = refused.await.unwrap();
    let floor = FLOOR_BYTES.to_string();
    refused.says(
        Code::ResourceExhausted,
        "STORAGE_FULL",
        &[("floor_bytes", &floor)],
    );

    // Everything that needs no space for records goes on.
    assert_eq!(
        stage.flumen("consume spare --max 3", b"").good().len(),
        3 * 1001
    );
    assert!(
        stage
            .flumen("stream describe keep", b"")
            .good()
            .contains("open")
    );
    stage.flumen("stream create another", b"").good();
    stage.flumen("stream delete another", b"").good();
    let health = stage.broker.get("/readyz");
    assert!(
        health.starts_with("HTTP/1.1 200") && health.contains("the disk is full"),
        "{health}"
    );

    // So does trimming, which makes room.
    stage
        .flumen("stream update spare --retention-bytes 1MiB", b"")
        .good();
    stage.resumes();
    stage.fill().await;
    stage.verify_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_resume_when_space_is_freed() {
    let Some(mut stage) = Stage::set("full disk, recovery").await else {
        return;
    };
    stage.flumen("stream create probe", b"").good();
    let ballast = stage.disk.mounted.join("ballast");
    std::fs::write(&ballast, vec![0x5a; 8 << 20]).unwrap();
    stage.fill_spare();
    stage.fill().await;
    std::fs::remove_file(&ballast).unwrap();
    stage.resumes();
    stage.fill().await;
    stage.flumen("stream delete spare", b"").good();
    stage.resumes();
    stage.fill().await;
    stage.verify_all().await;
}

/// Deletes were carried by a round that a disk below its floor refused, so that nothing was ever
/// freed by them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_frees_space_when_others_took_all_of_it() {
    let Some(mut stage) = Stage::set("full disk, nothing left").await else {
        return;
    };
    stage.flumen("stream create probe", b"").good();
    stage.fill_spare();
    stage.fill().await;
    take_all_space(&stage.disk.mounted.join("ballast"));
    // The broker has noticed: nothing at all is taken any more.
    while stage
        .flumen("produce probe --key-fixed k --retry-for 1ms", b"x\n")
        .code
        == Some(0)
    {}
    stage.flumen("stream delete spare", b"").good();
    stage.resumes();
    stage.fill().await;
    stage.verify_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_on_a_full_disk_loses_nothing() {
    let Some(mut stage) = Stage::set("full disk, restarts").await else {
        return;
    };
    stage.flumen("stream create probe", b"").good();
    stage.fill_spare();
    stage.fill().await;
    for kill in [true, false, true] {
        if kill {
            stage.broker.kill();
        } else {
            assert_eq!(stage.broker.terminate(), Some(0));
        }
        stage.broker = BrokerProcess::start_with(&stage.data, SETTINGS);
        stage.verify_all().await;
        stage.fill().await;
    }
    stage.flumen("stream delete spare", b"").good();
    stage.resumes();
    stage.fill().await;
    stage.verify_all().await;
}

/// At 0 bytes free the broker did not start, so that nobody could read or delete.
async fn starts_without_any_space(name: &str, kill: bool) {
    let Some(mut stage) = Stage::set(name).await else {
        return;
    };
    stage.flumen("stream create probe", b"").good();
    stage.fill_spare();
    stage.fill().await;
    if kill {
        stage.broker.kill();
    } else {
        assert_eq!(stage.broker.terminate(), Some(0));
    }
    let ballast = stage.disk.mounted.join("ballast");
    for _ in 0..3 {
        take_all_space(&ballast);
        stage.broker = BrokerProcess::start_with(&stage.data, SETTINGS);
        stage.verify_all().await;
        let full = stage.flumen("produce keep --retry-for 100ms", b"x\n");
        full.refused(1, "storage full");
        let health = stage.broker.get("/readyz");
        assert!(
            health.starts_with("HTTP/1.1 200") && health.contains("the disk is full"),
            "{health}"
        );
        stage.broker.kill();
    }
    // A member reads, and what it has done is remembered.
    stage.broker = BrokerProcess::start_with(&stage.data, SETTINGS);
    let words = "consume spare --group readers --max 3";
    let read = stage.flumen(words, b"").good();
    assert_eq!(read.len(), 3 * 1001);
    let goes_on = stage.flumen(words, b"").good();
    assert_ne!(goes_on, read);
    // What deletes find is in the reserve, and what they free is all it takes to go on.
    stage.flumen("stream delete spare", b"").good();
    stage.resumes();
    stage.fill().await;
    stage.verify_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_broker_starts_without_any_space() {
    starts_without_any_space("full disk, killed", true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_broker_starts_without_any_space() {
    starts_without_any_space("full disk, closed", false).await;
}
