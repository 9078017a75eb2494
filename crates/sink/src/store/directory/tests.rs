//! A directory as a store: names, attributes, crashes, races.

use flumen_broker::{Destination, ObjectSettings, StoreGuarantee};
use futures_util::future::join_all;

use super::*;
use crate::store::{Destinations, RealDestinations, Store, StoreConfig, Stored};

fn open(path: &Path) -> Store {
    open_with(&RealDestinations::new(|_| None), path)
}

fn open_with(destinations: &RealDestinations, path: &Path) -> Store {
    let destination = Destination::Directory {
        path: path.to_owned(),
    };
    destinations
        .open(
            &destination,
            &ObjectSettings::default(),
            &StoreConfig::default(),
        )
        .unwrap()
}

async fn create(store: &Store, key: &str, cut: &str, body: &str) -> Result<Stored, StoreError> {
    let tag = Tag {
        cut: cut.to_owned(),
        crc32: crc32fast::hash(body.as_bytes()),
        bytes: body.len() as u64,
        content_type: "text/plain".to_owned(),
        content_encoding: None,
    };
    store.create(key, body.to_owned().into(), &tag).await
}

/// As on a file system without extended attributes.
fn unmark(path: &Path) {
    for name in [CUT_ATTRIBUTE, CRC32_ATTRIBUTE] {
        let _ = rustix::fs::removexattr(path, name);
    }
}

#[tokio::test]
async fn a_file_is_created_once_in_folders_that_are_made() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("made/when/needed");
    let store = open(&root);
    assert_eq!(store.look("a/b#1/c d.json").await.unwrap(), None);
    assert!(!root.exists());
    let stored = create(&store, "a/b#1/c d.json", "d1-7-1", "body")
        .await
        .unwrap();
    assert!(!stored.was_there);
    let file = root.join("a/b#1/c d.json");
    assert_eq!(std::fs::read(&file).unwrap(), b"body");
    assert_eq!(
        store.read("a/b#1/c d.json", 4).await.unwrap().as_ref(),
        b"body"
    );
    assert!(
        create(&store, "a/b#1/c d.json", "d1-7-1", "body")
            .await
            .unwrap()
            .was_there
    );
    let error = store.read("a/b#1/c d.json", 3).await.unwrap_err();
    assert_eq!(error.reason(), "too_large");
    assert_eq!(
        store.read("a/none", 3).await.unwrap_err().reason(),
        "missing"
    );
    assert_eq!(std::fs::read_dir(root.join(UNFINISHED)).unwrap().count(), 0);
    assert_eq!(store.describe(), format!("file://{}", root.display()));
}

#[tokio::test]
async fn the_cut_id_is_with_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    create(&store, "k", "d1-7-1", "body").await.unwrap();
    let file = dir.path().join("k");
    if rustix::fs::setxattr(&file, "user.test", b"x", XattrFlags::empty()) == Err(Errno::NOTSUP) {
        // This file system has no attributes; contents are compared, as the next test sees.
        return;
    }
    let found = store.look("k").await.unwrap().unwrap();
    assert_eq!(found.cut.as_deref(), Some("d1-7-1"));
    assert_eq!(found.crc32, Some(crc32fast::hash(b"body")));
    let again = create(&store, "k", "d1-7-1", "body").await.unwrap();
    assert_eq!((again.was_there, again.bytes), (true, 4));
    // The same cut with other content, of another size or the same; another cut with the same.
    for (cut, body) in [
        ("d1-7-1", "longer body"),
        ("d1-7-1", "bodi"),
        ("d1-8-1", "body"),
    ] {
        let error = create(&store, "k", cut, body).await.unwrap_err();
        assert_eq!(error.reason(), "conflict", "{cut} {body}");
    }
}

#[tokio::test]
async fn without_attributes_contents_are_compared() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    create(&store, "k", "d1-7-1", "body").await.unwrap();
    unmark(&dir.path().join("k"));
    assert!(
        create(&store, "k", "d1-7-1", "body")
            .await
            .unwrap()
            .was_there
    );
    for other in ["bodi", "longer body"] {
        let error = create(&store, "k", "d1-7-1", other).await.unwrap_err();
        assert_eq!(error.reason(), "conflict");
    }
    std::fs::write(dir.path().join("of another program"), "x").unwrap();
    let error = create(&store, "of another program", "d1-7-1", "body")
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "conflict");
}

#[tokio::test]
async fn what_a_crash_left_is_removed_before_the_first_write() {
    let dir = tempfile::tempdir().unwrap();
    let unfinished = dir.path().join(UNFINISHED);
    std::fs::create_dir(&unfinished).unwrap();
    std::fs::write(unfinished.join("1-0.tmp"), "half").unwrap();
    std::fs::write(unfinished.join("notes"), "of a person").unwrap();
    let destinations = RealDestinations::new(|_| None);
    let store = open_with(&destinations, dir.path());
    create(&store, "k", "d1-7-1", "body").await.unwrap();
    let left = || {
        let listing = std::fs::read_dir(&unfinished).unwrap();
        let mut names: Vec<_> = listing.map(|file| file.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(left(), ["notes"]);
    // Another user of the directory in this process does not remove what the first is writing.
    std::fs::write(unfinished.join("2-0.tmp"), "being written").unwrap();
    let second = open_with(&destinations, dir.path());
    create(&second, "l", "d1-7-1", "body").await.unwrap();
    assert_eq!(left(), ["2-0.tmp", "notes"]);
}

#[tokio::test]
async fn of_racing_creates_one_wins() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for round in 0..20 {
        let key = format!("folder {round}/k");
        let cuts: Vec<String> = (0..8).map(|racer| format!("d1-{racer}-1")).collect();
        let racing = cuts.iter().map(|cut| create(&store, &key, cut, cut));
        let results = join_all(racing).await;
        let won: Vec<&String> = results
            .iter()
            .zip(&cuts)
            .filter(|(result, _)| result.is_ok())
            .map(|(_, cut)| cut)
            .collect();
        assert_eq!(won.len(), 1, "{results:?}");
        let stored = store.read(&key, 100).await.unwrap();
        assert_eq!(stored.as_ref(), won[0].as_bytes());
    }
    let guarantee = store.probe("lake/", 7).await.unwrap();
    assert_eq!(guarantee, StoreGuarantee::CreateIfAbsent);
    assert!(!dir.path().join("lake/_probe").exists());
}

#[tokio::test]
async fn no_key_leads_out_of_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let store = open(&root);
    let long = "n".repeat(256);
    let keys = [
        "../k",
        "a/../../k",
        "/etc/k",
        "a/./k",
        "a//k",
        ".flumen-tmp/k",
        &long,
    ];
    for key in keys {
        let error = create(&store, key, "d1-7-1", "body").await.unwrap_err();
        assert_eq!(error.reason(), "bad_key", "{key}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    let relative = Destination::Directory {
        path: "relative".into(),
    };
    let refused = RealDestinations::new(|_| None)
        .open(
            &relative,
            &ObjectSettings::default(),
            &StoreConfig::default(),
        )
        .unwrap_err();
    assert_eq!(refused.setting, "destination.path");
}

#[tokio::test]
async fn what_the_file_system_refuses_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    std::fs::write(&root, "a file").unwrap();
    let store = open(&root);
    let error = create(&store, "k", "d1-7-1", "body").await.unwrap_err();
    assert_eq!(error.reason(), "io", "{error}");
    assert!(!error.is_permanent());
    std::fs::remove_file(&root).unwrap();
    create(&store, "k", "d1-7-1", "body").await.unwrap();
}
