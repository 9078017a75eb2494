//! What `doctor` finds, what the broker serves all the same, and what `doctor repair` makes of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::bad_input::{data_at_rest, flumen};
use crate::cli::run;
use crate::process::BrokerProcess;

/// All files below a folder.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(contents(&path));
        } else if path.file_name().is_some_and(|name| name != "LOCK") {
            let bytes = std::fs::read(&path).unwrap();
            all.insert(path, bytes);
        }
    }
    all
}

fn put_back(files: &BTreeMap<PathBuf, Vec<u8>>) {
    for (path, bytes) in files {
        std::fs::write(path, bytes).unwrap();
    }
}

/// Flips a bit of the place in a folder's files where `what` stands last.
fn damage(dir: &Path, what: &[u8]) {
    let mut found = None;
    for (path, bytes) in contents(dir) {
        let at = bytes.windows(what.len()).rposition(|window| window == what);
        found = at.map(|at| (path, at)).or(found);
    }
    let (path, at) = found.expect("it is there");
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at as u64).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at as u64).unwrap();
}

/// `doctor` names the file, and says what is wrong, what that means and what to do.
#[track_caller]
fn doctor_names(dir: &Path, what: &str, name: &str) {
    let found = run(dir, "doctor --data-dir data", b"");
    assert_eq!(found.code, Some(1), "{what}: {found:?}");
    assert!(found.out.contains(name), "{what}: {found:?}");
    let json = run(dir, "--output json doctor --data-dir data", b"");
    let first: Value = serde_json::from_str(json.out.lines().next().unwrap()).unwrap();
    for field in ["file", "problem", "meaning", "advice"] {
        assert!(
            first[field].as_str().is_some_and(|text| !text.is_empty()),
            "{first}"
        );
    }
}

/// Missing, emptied, zeroed, cut and extended segments were "no damage", or kept the broker from
/// starting.
#[test]
fn segments_that_are_not_what_they_were_are_found_and_the_rest_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let (data, segments) = data_at_rest(dir.path());
    let before = contents(&data);
    let all = 4_000;
    // Files made ready follow it.
    let last = 3;
    let zeroes = |path: &Path| {
        let bytes = std::fs::metadata(path).unwrap().len();
        std::fs::write(path, vec![0; usize::try_from(bytes).unwrap()]).unwrap();
    };
    let set_len = |path: &Path, change: i64| {
        let file = File::options().write(true).open(path).unwrap();
        let bytes = file.metadata().unwrap().len();
        file.set_len(bytes.checked_add_signed(change).unwrap())
            .unwrap();
    };
    type Change<'a> = &'a dyn Fn(&Path);
    let changes: [(&str, usize, Change<'_>, bool); 7] = [
        (
            "missing",
            1,
            &|path| std::fs::remove_file(path).unwrap(),
            true,
        ),
        (
            "emptied",
            1,
            &|path| drop(File::create(path).unwrap()),
            true,
        ),
        ("zeroed", 1, &zeroes, true),
        ("cut", 1, &|path| set_len(path, -(600 << 10)), true),
        ("a footer cut off", 1, &|path| set_len(path, -4096), false),
        ("extended", 1, &|path| set_len(path, 4096), false),
        (
            "the last one cut",
            last,
            &|path| set_len(path, -4096),
            false,
        ),
    ];
    for (what, segment, change, loses) in changes {
        put_back(&before);
        let name = segments[segment].file_name().unwrap().to_str().unwrap();
        change(&segments[segment]);
        doctor_names(dir.path(), what, name);
        let mut broker = BrokerProcess::start(&data);
        let words = "--quiet consume s --skip-gaps";
        let read = flumen(dir.path(), &broker, words, b"").good();
        let records = read.lines().count();
        if loses {
            assert!((2_000..all).contains(&records), "{what}: {records}");
        } else {
            assert_eq!(records, all, "{what}");
        }
        // Nothing is given out twice.
        flumen(dir.path(), &broker, "produce s --key-fixed k", b"new\n").good();
        let read = flumen(dir.path(), &broker, words, b"").good();
        assert_eq!(read.lines().count(), records + 1, "{what}");
        assert_eq!(read.lines().last(), Some("new"), "{what}");
        broker.terminate();
        std::fs::remove_dir_all(&data).unwrap();
        for folder in before.keys().filter_map(|path| path.parent()) {
            std::fs::create_dir_all(folder).unwrap();
        }
    }
}

/// A stream, a group that has read half of it, and a delivery stream.
fn filled(dir: &Path) -> PathBuf {
    let data = dir.join("data");
    let mut broker = BrokerProcess::start(&data);
    let at = |words: &str, input: &str| flumen(dir, &broker, words, input.as_bytes()).good();
    at("stream create before", "");
    at("stream create kept", "");
    let lines: String = (0..100).map(|n| format!("{n}\n")).collect();
    at("produce kept --key-fixed k", &lines);
    at("--quiet consume kept --group first --max 40", "");
    at("--quiet consume kept --group second --max 60", "");
    at("delivery create files --stream kept --to memory:x", "");
    at("delivery flush files", "");
    at("stream create after", "");
    assert_eq!(broker.terminate(), Some(0));
    data
}

/// One damaged byte of the groups or the delivery streams kept the whole broker from starting.
#[test]
fn damaged_groups_and_deliveries_are_refused_and_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let data = filled(dir.path());
    let at_rest = |words: &str| run(dir.path(), words, b"");
    for (folder, marker, asked) in [
        ("groups", &b"second"[..], "group list --stream kept"),
        ("deliveries", b"files", "delivery list"),
    ] {
        damage(&data.join(folder), marker);
        let found = at_rest("doctor --data-dir data");
        assert_eq!(found.code, Some(1), "{found:?}");
        assert!(
            found.out.contains(folder) && found.out.contains("LOG_REFUSED"),
            "{found:?}"
        );

        let mut broker = BrokerProcess::start(&data);
        let at = |words: &str| flumen(dir.path(), &broker, words, b"");
        assert_eq!(at("--quiet consume kept").good().lines().count(), 100);
        at(asked).refused(1, "flumen doctor repair");
        broker.terminate();

        let before = contents(&data);
        let shown = at_rest("doctor repair --data-dir data --dry-run").good();
        assert!(
            shown.contains("lost: record") && shown.contains("--dry-run"),
            "{shown}"
        );
        assert!(contents(&data) == before, "a dry run changes nothing");
        let done = at_rest("doctor repair --data-dir data").good();
        assert!(done.contains("repaired; copies are in repair-"), "{done}");
        for (path, bytes) in &before {
            let kept = contents(&data);
            let name = path.strip_prefix(&data).unwrap();
            let copied = name.starts_with(folder);
            let same = kept
                .iter()
                .any(|(now, kept)| now.ends_with(name) && kept == bytes);
            assert!(same || !copied, "{name:?} was not kept");
        }
        let found = at_rest("doctor --data-dir data");
        assert_eq!(found.code, Some(0), "{found:?}");

        let mut broker = BrokerProcess::start(&data);
        let at = |words: &str| flumen(dir.path(), &broker, words, b"");
        at(asked).good();
        assert_eq!(
            at("--quiet consume kept --group first")
                .good()
                .lines()
                .count(),
            60
        );
        let left = at("--quiet consume kept --group first").good();
        assert_eq!(left, "", "checkpoints are taken again");
        at("group reset kept first --shard 0 --to at:40").good();
        assert_eq!(broker.terminate(), Some(0));
    }
}

/// A damaged catalog named no way out.
#[test]
fn a_damaged_catalog_is_repaired_from_what_is_intact() {
    let dir = tempfile::tempdir().unwrap();
    let data = filled(dir.path());
    let at_rest = |words: &str| run(dir.path(), words, b"");
    let before = contents(&data);
    // A stream with records that no catalog knows is not dropped without a word.
    damage(&data.join("catalog"), b"kept");
    let blocked = at_rest("doctor repair --data-dir data");
    assert_eq!(blocked.code, Some(1), "{blocked:?}");
    assert!(blocked.out.contains("--accept-loss"), "{blocked:?}");
    put_back(&before);

    damage(&data.join("catalog"), b"before");
    let found = at_rest("doctor --data-dir data");
    assert_eq!(found.code, Some(1), "{found:?}");
    let started =
        at_rest("serve --data-dir data --listen-grpc 127.0.0.1:0 --listen-console 127.0.0.1:0");
    started.refused(1, "flumen doctor");
    let shown = at_rest("doctor repair --data-dir data --dry-run").good();
    assert!(shown.contains("lost: record"), "{shown}");
    at_rest("doctor repair --data-dir data").good();
    let mut broker = BrokerProcess::start(&data);
    let at = |words: &str| flumen(dir.path(), &broker, words, b"");
    let streams = at("stream list").good();
    assert!(
        streams.contains("kept") && streams.contains("after"),
        "{streams}"
    );
    assert!(!streams.contains("before"), "{streams}");
    assert_eq!(at("--quiet consume kept").good().lines().count(), 100);
    broker.terminate();
    // What is left is one snapshot: damaged itself, only a copy helps.
    damage(&data.join("catalog"), b"kept");
    at_rest("doctor repair --data-dir data").refused(1, "put the folder back as it was");
}
