//! The data directory taken away under a running broker: an open descriptor is not a place. It went
//! on acknowledging `disk`, and exited 0.

use std::path::Path;
use std::time::Duration;

use flumen_api::v1;
use tokio::time::Instant;
use tonic::Code;

use crate::cli::run;
use crate::disk::Ram;
use crate::process::BrokerProcess;
use crate::wire::{Refused, Wire};

/// Between two looks (`broker.log.place_look_ms`), and a little for reading two clocks.
const LOOK: Duration = Duration::from_millis(1_050);

fn put(wire: &Wire) -> Result<(), Box<Refused>> {
    let record = v1::PutRecord {
        partition_key: "k".to_owned(),
        data: vec![b'x'; 100].into(),
        ..Default::default()
    };
    let request = v1::PutRequest {
        stream: "kept".to_owned(),
        records: vec![record],
        stream_incarnation: 0,
    };
    let put = wire.good(wire.producer().put(request));
    match &put.results[0].refusal {
        None => Ok(()),
        Some(_) => Err(Box::new(Refused::of_put(&put.results[0]))),
    }
}

/// Puts records while `take_away` happens to the directory `data`.
fn nothing_is_acknowledged_after(data: &Path, take_away: impl FnOnce()) {
    let elsewhere = tempfile::tempdir().unwrap();
    let mut broker = BrokerProcess::start(data);
    let at = format!("--quiet --endpoint {}", broker.endpoint);
    run(elsewhere.path(), &format!("{at} stream create kept"), b"").good();
    let wire = Wire::to(&broker.endpoint);
    for _ in 0..10 {
        put(&wire).unwrap();
    }
    take_away();
    let gone = Instant::now();
    let refused = loop {
        let sent = gone.elapsed();
        match put(&wire) {
            Ok(()) => assert!(sent < LOOK, "acknowledged after {sent:?}"),
            Err(refused) => break refused,
        }
    };
    refused.says(Code::Unavailable, "STORAGE_GONE", &[]);
    for _ in 0..10 {
        let again = put(&wire).unwrap_err();
        again.says(Code::Unavailable, "STORAGE_GONE", &[]);
    }
    let health = broker.get("/readyz");
    assert!(
        health.starts_with("HTTP/1.1 503") && health.contains("the data directory was removed"),
        "{health}"
    );
    // Nothing durable is promised any more, streams included.
    let created = run(elsewhere.path(), &format!("{at} stream create more"), b"");
    created.refused(1, "storage gone");
    assert_eq!(broker.terminate(), Some(1), "it did not close in order");
}

#[test]
fn a_renamed_directory() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    nothing_is_acknowledged_after(&data, || {
        std::fs::rename(&data, folder.path().join("other")).unwrap();
    });
}

#[test]
fn a_removed_directory() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    nothing_is_acknowledged_after(&data, || std::fs::remove_dir_all(&data).unwrap());
}

/// Another broker would open it beside this one.
#[test]
fn a_removed_lock() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    nothing_is_acknowledged_after(&data, || std::fs::remove_file(data.join("LOCK")).unwrap());
}

#[test]
fn an_emptied_log() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    nothing_is_acknowledged_after(&data, || {
        for file in std::fs::read_dir(data.join("log-disk-168h-0")).unwrap() {
            std::fs::remove_file(file.unwrap().path()).unwrap();
        }
    });
}

/// Another directory stands where it was: of a restored backup, say.
#[test]
fn a_replaced_directory() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    nothing_is_acknowledged_after(&data, || {
        std::fs::rename(&data, folder.path().join("other")).unwrap();
        let copied = std::process::Command::new("cp")
            .arg("-r")
            .args([folder.path().join("other"), data.clone()])
            .status();
        assert!(copied.unwrap().success());
    });
}

/// Needs root.
#[test]
fn an_unmounted_file_system() {
    let folder = tempfile::tempdir().unwrap();
    let Some(ram) = Ram::new(folder.path(), 512 << 20) else {
        return;
    };
    nothing_is_acknowledged_after(&ram.mounted.join("data"), || ram.unmount_lazily());
}

/// A broker that nobody writes to says so, too, when it ends.
#[test]
fn an_idle_broker_ends_with_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut broker = BrokerProcess::start(&data);
    std::fs::rename(&data, folder.path().join("other")).unwrap();
    assert_eq!(broker.terminate(), Some(1));
    // Put back it is as it was.
    std::fs::rename(folder.path().join("other"), &data).unwrap();
    let mut broker = BrokerProcess::start(&data);
    assert_eq!(broker.terminate(), Some(0));
}
