//! The twin breaks what it may and nothing else.

use std::collections::BTreeSet;
use std::io::IoSlice;

use super::*;

fn write(file: &dyn SegmentFile, position: u64, contents: &[u8]) -> io::Result<()> {
    file.write_at(&[IoSlice::new(contents)], position)
}

fn read(storage: &MemoryStorage, path: &str) -> Vec<u8> {
    storage.read_small(path).unwrap().to_vec()
}

/// A durable file of `pages` pages, its handle, and a second one to look through.
fn prepared(pages: u64) -> (MemoryStorage, Arc<dyn SegmentFile>) {
    let storage = MemoryStorage::new();
    storage.create_dir("log").unwrap();
    let file = storage
        .create("log/a", pages * 4096, Preparation::Allocated)
        .unwrap();
    storage.sync_dir("log").unwrap();
    (storage, file)
}

fn fail(on: OperationKind, times: u64, error: FaultError) -> Fault {
    Fault {
        on: Some(on),
        skip: 0,
        times,
        error,
    }
}

#[test]
fn a_power_cut_keeps_any_subset_of_unsynced_pages() {
    let (storage, file) = prepared(4);
    write(&*file, 0, &[1; 3 * 4096]).unwrap();
    assert_eq!(storage.unsynced(Grain::Page).len(), 3);
    let mut images = BTreeSet::new();
    for bits in 0..8 {
        let image = read(&storage.crash_keeping(Grain::Page, bits), "log/a");
        for page in 0..3 {
            assert_eq!(image[page * 4096], u8::from(bits >> page & 1 == 1));
        }
        images.insert(image);
    }
    assert_eq!(images.len(), 8);
}

#[test]
fn sectors_tear_only_where_they_changed() {
    let (storage, file) = prepared(1);
    write(&*file, 512, &[7; 1024]).unwrap();
    let unsynced = storage.unsynced(Grain::Sector);
    assert_eq!(unsynced.len(), 2);
    assert_eq!(unsynced[1].kind, UnsyncedKind::Bytes(1024));
    let torn = read(&storage.crash_keeping(Grain::Sector, 0b10), "log/a");
    assert_eq!((torn[512], torn[1024], torn[1536]), (0, 7, 0));
}

#[test]
fn what_was_synced_stays_and_older_versions_may_come_back() {
    let (storage, file) = prepared(1);
    write(&*file, 0, b"durable").unwrap();
    file.sync().unwrap();
    write(&*file, 0, b"second!").unwrap();
    write(&*file, 0, b"third!!").unwrap();
    let image = |kept| read(&storage.crash(Grain::Page, |_, _| kept), "log/a");
    assert_eq!(&image(0)[..7], b"durable");
    assert_eq!(&image(1)[..7], b"second!");
    assert_eq!(&image(2)[..7], b"third!!");
}

#[test]
fn a_durable_write_settles_only_its_own_pages() {
    let (storage, file) = prepared(4);
    write(&*file, 0, &[1; 10]).unwrap();
    file.write_durable_at(&[IoSlice::new(&[2; 5]), IoSlice::new(&[3; 5])], 8192)
        .unwrap();
    let image = read(&storage.crash_keeping(Grain::Page, 0), "log/a");
    assert_eq!((image[0], image[8192], image[8199]), (0, 2, 3));
}

#[test]
fn a_failed_sync_is_final() {
    let (storage, file) = prepared(1);
    storage.inject(fail(OperationKind::Sync, 1, FaultError::Io));
    write(&*file, 0, b"acked?").unwrap();
    file.sync().unwrap_err();
    file.sync().unwrap();
    let lost = storage.crash_keeping(Grain::Page, 0);
    assert_eq!(
        read(&lost, "log/a")[0],
        0,
        "the second sync said OK and did nothing"
    );
    let kept = storage.crash_keeping(Grain::Page, 1);
    assert_eq!(
        read(&kept, "log/a")[0],
        b'a',
        "but some of it may have arrived"
    );
    let killed = storage.kill();
    assert_eq!(read(&killed, "log/a")[0], b'a', "the page cache has it");
    killed.drop_caches();
    assert_eq!(read(&killed, "log/a")[0], 0, "until it does not");
}

#[test]
fn a_page_written_again_after_a_failed_sync_is_dirty_again() {
    let (storage, file) = prepared(1);
    storage.inject(fail(OperationKind::Sync, 1, FaultError::Io));
    write(&*file, 0, b"one").unwrap();
    file.sync().unwrap_err();
    write(&*file, 512, b"two").unwrap();
    file.sync().unwrap();
    let image = read(&storage.crash_keeping(Grain::Page, 0), "log/a");
    assert_eq!((image[0], image[512]), (b'o', b't'));
}

#[test]
fn names_are_at_risk_until_their_directory_is_synced() {
    let (storage, _file) = prepared(1);
    storage.create("log/b", 4096, Preparation::Written).unwrap();
    storage.rename("log/a", "log/c").unwrap();
    assert_eq!(storage.unsynced(Grain::Page).len(), 2);
    let names = |image: &MemoryStorage| -> Vec<String> {
        image
            .list("log")
            .unwrap()
            .into_iter()
            .map(|file| file.name)
            .collect()
    };
    assert_eq!(names(&storage.crash_keeping(Grain::Page, 0b00)), ["a"]);
    assert_eq!(names(&storage.crash_keeping(Grain::Page, 0b01)), ["a", "b"]);
    assert_eq!(names(&storage.crash_keeping(Grain::Page, 0b10)), ["c"]);
    let (storage, _file) = prepared(1);
    storage.rename("log/a", "log/c").unwrap();
    storage.sync_dir("log").unwrap();
    assert_eq!(names(&storage.crash_keeping(Grain::Page, 0)), ["c"]);
}

#[test]
fn a_change_of_a_name_survives_only_with_the_ones_before_it() {
    let (storage, _file) = prepared(1);
    storage.rename("log/a", "log/b").unwrap();
    storage.rename("log/b", "log/c").unwrap();
    let image = storage.crash_keeping(Grain::Page, 0b10);
    assert_eq!(image.list("log").unwrap()[0].name, "a");
}

#[test]
fn every_crash_of_a_small_file_leaves_the_old_or_the_new() {
    for operation in 1.. {
        let storage = MemoryStorage::new();
        storage.replace_small("state", b"old").unwrap();
        storage.crash_after(operation);
        let result = storage.replace_small("state", &[b'n'; 5000]);
        assert_eq!(result.is_err(), storage.is_dead());
        for seed in 0..200 {
            let image = storage.crash_seeded(Grain::Sector, seed);
            let found = read(&image, "state");
            assert!(
                found == b"old" || found == [b'n'; 5000],
                "{operation} {seed}"
            );
            if result.is_ok() {
                assert_eq!(found.len(), 5000);
            }
            assert_eq!(
                image.list("").unwrap().len(),
                1,
                "what is unfinished is not listed"
            );
            image.replace_small("state", b"next").unwrap();
        }
        if result.is_ok() {
            break;
        }
    }
}

#[test]
fn a_crash_while_creating_may_leave_a_short_file() {
    let lengths: BTreeSet<u64> = (0..100)
        .filter_map(|seed| {
            let storage = MemoryStorage::new();
            storage.crash_after(2);
            storage
                .create("a", 8192, Preparation::Allocated)
                .unwrap_err();
            let image = storage.crash_seeded(Grain::Page, seed);
            image.list("").unwrap().first().map(|file| file.bytes)
        })
        .collect();
    assert!(
        lengths.contains(&0) && lengths.contains(&8192),
        "{lengths:?}"
    );
}

#[test]
fn after_the_cut_everything_fails_and_after_a_kill_everything_is_there() {
    let (storage, file) = prepared(1);
    storage.crash_after(2);
    write(&*file, 0, b"one").unwrap();
    write(&*file, 512, b"two").unwrap_err();
    assert!(storage.is_dead());
    file.sync().unwrap_err();
    storage.list("log").unwrap_err();
    let killed = storage.kill();
    assert_eq!(&read(&killed, "log/a")[..3], b"one");
    assert_eq!(killed.unsynced(Grain::Sector).len(), 2, "still at risk");
}

#[test]
fn without_sync_nothing_is_durable() {
    let storage = MemoryStorage::new();
    storage.set_without_sync(true);
    let file = storage.create("a", 4096, Preparation::Written).unwrap();
    storage.sync_dir("").unwrap();
    file.write_durable_at(&[IoSlice::new(b"x")], 0).unwrap();
    assert_eq!(storage.crash_keeping(Grain::Page, 0).list("").unwrap(), []);
}

#[test]
fn a_short_write_leaves_a_prefix() {
    let (storage, file) = prepared(1);
    storage.inject(fail(OperationKind::Write, 1, FaultError::Short(2)));
    write(&*file, 0, b"four").unwrap_err();
    assert_eq!(&read(&storage, "log/a")[..4], b"fo\0\0");
    write(&*file, 0, b"four").unwrap();
}

#[test]
fn faults_count_what_they_skip() {
    let (storage, file) = prepared(1);
    storage.inject(Fault {
        on: None,
        skip: 2,
        times: u64::MAX,
        error: FaultError::NoSpace,
    });
    write(&*file, 0, b"a").unwrap();
    file.read_at(&mut [0], 0).unwrap();
    assert_eq!(file.sync().unwrap_err().kind(), io::ErrorKind::StorageFull);
    file.read_at(&mut [0], 0).unwrap_err();
    storage.clear_faults();
    file.sync().unwrap();
}

#[test]
fn a_full_disk_refuses_files_and_removed_ones_give_back() {
    let storage = MemoryStorage::new();
    storage.set_total_bytes(3 * 4096);
    let file = storage
        .create("a", 2 * 4096, Preparation::Allocated)
        .unwrap();
    assert_eq!(storage.space().unwrap().free_bytes, 4096);
    let full = storage
        .create("b", 2 * 4096, Preparation::Allocated)
        .unwrap_err();
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    assert_eq!(storage.list("").unwrap().len(), 1);
    storage.remove("a").unwrap();
    assert_eq!(storage.space().unwrap().free_bytes, 4096, "still open");
    drop(file);
    assert_eq!(storage.space().unwrap().free_bytes, 3 * 4096);
    let file = storage
        .create("b", 2 * 4096, Preparation::Allocated)
        .unwrap();
    file.punch_hole(4096..8192).unwrap();
    assert_eq!(storage.space().unwrap().free_bytes, 2 * 4096);
}

#[test]
#[should_panic(expected = "published")]
fn published_bytes_are_not_written() {
    let (_storage, file) = prepared(1);
    file.publish(512);
    let _ = write(&*file, 0, b"x");
}

#[test]
fn the_same_seed_leaves_the_same_image() {
    let (storage, file) = prepared(8);
    write(&*file, 100, &[9; 20_000]).unwrap();
    let image = |seed| read(&storage.crash_seeded(Grain::Sector, seed), "log/a");
    assert_eq!(image(5), image(5));
    assert!((0..20).map(image).collect::<BTreeSet<_>>().len() > 10);
}
