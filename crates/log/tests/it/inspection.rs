//! Looking at a log from outside: it counts what is there, and finds what was changed.

use std::sync::Arc;

use flumen_log::{LogConfig, MemoryStorage, Storage, inspect};

use crate::fixture::{DISK, at, frame, open, small_segments};

/// A log of several sealed segments and an active one, at rest: 100 rounds of 3 records.
fn filled() -> MemoryStorage {
    let twin = MemoryStorage::new();
    let storage: Arc<dyn Storage> = Arc::new(twin.clone());
    let (mut log, ..) = open(&storage, DISK, &small_segments(), at(0));
    let mut keeper = log.housekeeper();
    for round in 0..100_u64 {
        let now = at(round);
        let frames = [
            frame(1, round, 1, 5000, now),
            frame(2, round * 2, 2, 20, now),
        ];
        log.commit(&frames, 0, now).unwrap().unwrap();
    }
    let mut quiet = 0;
    for step in 0.. {
        let report = keeper.step(at(1000 + step * 2000)).unwrap();
        quiet = if report.sealed > 0 || report.more {
            0
        } else {
            quiet + 1
        };
        if quiet == 3 {
            break;
        }
    }
    log.close(at(100_000)).unwrap();
    twin
}

fn files(twin: &MemoryStorage) -> Vec<(String, u64)> {
    let dir = DISK.dir_name();
    let entries = twin.list(&dir).unwrap();
    let path = |name: &str| format!("{dir}/{name}");
    entries
        .iter()
        .map(|entry| (path(&entry.name), entry.bytes))
        .collect()
}

#[test]
fn an_undamaged_log_is_counted_and_left_alone() {
    let twin = filled();
    let before = twin.operations();
    let found = inspect(Arc::new(twin.clone()), DISK, LogConfig::default()).unwrap();
    assert_eq!(found.damage, []);
    assert!(found.segments > 3 && found.clean, "{found:?}");
    assert_eq!(found.records, 300);
    assert!(found.rounds >= 100);
    assert_eq!(twin.operations(), before, "looking changes nothing");
}

/// Every sector that holds something is damaged in turn, one bit of it. What is found must be
/// found by looking, and nothing but the blank rest of a file may go unseen.
#[test]
fn a_changed_bit_anywhere_above_a_footer_is_found() {
    let twin = filled();
    let (mut found, mut harmless) = (0, 0);
    for (path, bytes) in files(&twin) {
        let segment = twin.open(&path, false).unwrap();
        let mut contents = vec![0; usize::try_from(bytes).unwrap()];
        segment.read_at(&mut contents, 0).unwrap();
        drop(segment);
        for (sector, old) in contents.chunks(512).enumerate() {
            // Blank sectors and the second copy of a header say nothing that could be missed.
            let Some(place) = old.iter().rposition(|byte| *byte != 0) else {
                continue;
            };
            let position = (sector * 512 + place) as u64;
            twin.rot(&path, position, |byte| byte[0] ^= 4, 1);
            match inspect(Arc::new(twin.clone()), DISK, LogConfig::default()) {
                Ok(log) if log.damage.is_empty() && log.clean => harmless += 1,
                Ok(_) | Err(_) => found += 1,
            }
            twin.rot(&path, position, |byte| byte[0] ^= 4, 1);
        }
    }
    // One copy of a header may be lost without a loss.
    assert!(
        found > 500 && harmless <= 40,
        "{found} found, {harmless} not"
    );
}
