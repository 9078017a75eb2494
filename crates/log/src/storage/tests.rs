//! One suite for both implementations, and what only a real directory can do.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::OFlags;

use super::*;
use crate::OpenError;
use crate::mapped_file::write_all;

/// Runs `check` against an empty directory of either kind.
fn on_both(check: impl Fn(&dyn Storage)) {
    check(&MemoryStorage::new());
    let dir = tempfile::tempdir().unwrap();
    check(&open(dir.path()).unwrap());
}

fn open(path: &Path) -> Result<DiskStorage, OpenError> {
    DiskStorage::open(path, Duration::ZERO)
}

fn write(file: &dyn SegmentFile, position: u64, contents: &[u8]) {
    file.write_at(&[IoSlice::new(contents)], position).unwrap();
}

fn read(file: &dyn SegmentFile, range: Range<u64>) -> Vec<u8> {
    let mut buffer = vec![0; usize::try_from(range.end - range.start).unwrap()];
    file.read_at(&mut buffer, range.start).unwrap();
    buffer
}

fn kind<T>(result: io::Result<T>) -> io::ErrorKind {
    result.err().expect("an error").kind()
}

#[test]
fn a_file_is_created_written_and_found_again() {
    on_both(|storage| {
        storage.create_dir("log-1").unwrap();
        storage.create_dir("log-1").unwrap();
        for (name, preparation) in [
            ("log-1/b", Preparation::Allocated),
            ("log-1/a", Preparation::Written),
        ] {
            let file = storage.create(name, 3 << 20, preparation).unwrap();
            storage.sync_dir("log-1").unwrap();
            assert_eq!(file.bytes(), 3 << 20);
            assert_eq!(read(&*file, 0..9), [0; 9]);
            write(&*file, 4090, b"over the page");
            file.write_durable_at(&[IoSlice::new(b"one"), IoSlice::new(b"two")], 100)
                .unwrap();
            file.sync().unwrap();
            assert_eq!(
                kind(storage.create(name, 1, preparation)),
                io::ErrorKind::AlreadyExists
            );
        }
        let listed = storage.list("log-1").unwrap();
        assert_eq!(
            listed,
            [
                DirEntry {
                    name: "a".into(),
                    bytes: 3 << 20
                },
                DirEntry {
                    name: "b".into(),
                    bytes: 3 << 20
                },
            ]
        );
        assert_eq!(storage.list_dirs("").unwrap(), ["log-1"]);
        assert_eq!(storage.list("").unwrap(), []);
        let file = storage.open("log-1/a", false).unwrap();
        assert_eq!(read(&*file, 4088..4105), b"\0\0over the page\0\0");
        assert_eq!(read(&*file, 99..107), b"\0onetwo\0");
        let refused = file.write_at(&[IoSlice::new(b"x")], 0);
        assert!(refused.is_err(), "opened for reading");
        assert_eq!(
            kind(file.read_at(&mut [0; 2], (3 << 20) - 1)),
            io::ErrorKind::UnexpectedEof
        );
    });
}

#[test]
fn names_come_and_go() {
    on_both(|storage| {
        assert_eq!(kind(storage.list("none")), io::ErrorKind::NotFound);
        assert_eq!(kind(storage.open("a", true)), io::ErrorKind::NotFound);
        assert_eq!(kind(storage.remove("a")), io::ErrorKind::NotFound);
        assert_eq!(kind(storage.rename("a", "b")), io::ErrorKind::NotFound);
        let create = |path| storage.create(path, 4096, Preparation::Allocated);
        assert_eq!(kind(create("none/a")), io::ErrorKind::NotFound);
        write(&*create("a").unwrap(), 0, b"a");
        write(&*create("b").unwrap(), 0, b"b");
        storage.rename("a", "b").unwrap();
        storage.sync_dir("").unwrap();
        assert_eq!(read(&*storage.open("b", false).unwrap(), 0..1), b"a");
        storage.remove("b").unwrap();
        storage.sync_dir("").unwrap();
        assert_eq!(storage.list("").unwrap(), []);
    });
}

#[test]
fn small_files_are_replaced_whole() {
    on_both(|storage| {
        storage.create_dir("d").unwrap();
        assert_eq!(kind(storage.read_small("d/state")), io::ErrorKind::NotFound);
        for contents in [&b"first"[..], b"", &[7; 100_000]] {
            storage.replace_small("d/state", contents).unwrap();
            assert_eq!(storage.read_small("d/state").unwrap(), contents);
        }
        assert_eq!(storage.list("d").unwrap().len(), 1);
    });
}

#[test]
fn slices_hold_their_file() {
    on_both(|storage| {
        let file = storage
            .create("a", 1 << 20, Preparation::Allocated)
            .unwrap();
        write(&*file, 0, &[1; 5000]);
        file.publish(5000);
        file.publish(100);
        assert!(!file.is_held());
        let slice = file.slice(10..5000);
        let part = slice.slice(..5);
        assert!(file.is_held());
        drop(slice);
        assert!(file.is_held());
        write(&*file, 5000, &[2; 5000]);
        assert_eq!(kind(storage.open("a", true)), io::ErrorKind::ResourceBusy);
        assert_eq!(kind(storage.open("a", false)), io::ErrorKind::ResourceBusy);
        storage.remove("a").unwrap();
        drop(file);
        assert_eq!(part, [1; 5][..], "the file is gone, the slice is not");
    });
}

#[test]
fn a_file_has_one_writer_or_readers() {
    on_both(|storage| {
        drop(storage.create("a", 4096, Preparation::Allocated).unwrap());
        let reader = storage.open("a", false).unwrap();
        let other = storage.open("a", false).unwrap();
        assert_eq!(kind(storage.open("a", true)), io::ErrorKind::ResourceBusy);
        other.publish(10);
        let slice = other.slice(0..10);
        drop((reader, other));
        assert_eq!(kind(storage.open("a", true)), io::ErrorKind::ResourceBusy);
        drop(slice);
        storage.rename("a", "b").unwrap();
        storage.open("b", true).unwrap();
    });
}

#[test]
fn what_is_written_later_shows_in_the_map() {
    on_both(|storage| {
        let file = storage.create("a", 64 << 10, Preparation::Written).unwrap();
        for round in 0..16_u8 {
            let position = u64::from(round) * 4000;
            file.write_durable_at(&[IoSlice::new(&[round; 4000])], position)
                .unwrap();
            file.publish(position + 4000);
            assert_eq!(file.slice(position..position + 4000), [round; 4000][..]);
        }
        file.populate(0..64 << 10).unwrap();
        assert_eq!(
            kind(file.populate(0..(64 << 10) + 1)),
            io::ErrorKind::UnexpectedEof
        );
        file.discard_cache(0..64 << 10);
        assert_eq!(file.slice(3999..4001), [0, 1][..]);
        assert!(file.slice(7..7).is_empty());
    });
}

#[test]
fn many_buffers_are_one_write() {
    on_both(|storage| {
        let file = storage
            .create("a", 1 << 20, Preparation::Allocated)
            .unwrap();
        let pieces: Vec<[u8; 3]> = (0..5000_u16)
            .map(|n| [n.to_le_bytes()[0], n.to_le_bytes()[1], 9])
            .collect();
        let buffers: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        file.write_durable_at(&buffers, 77).unwrap();
        file.write_at(&buffers, 20_000).unwrap();
        for position in [77, 20_000] {
            assert_eq!(read(&*file, position..position + 15_000), pieces.concat());
        }
        file.write_at(&[], 0).unwrap();
        file.write_durable_at(&[IoSlice::new(&[])], 0).unwrap();
    });
}

#[test]
fn holes_read_as_zero_and_give_space_back() {
    on_both(|storage| {
        let file = storage.create("a", 1 << 20, Preparation::Written).unwrap();
        write(&*file, 0, &[5; 10_000]);
        file.sync().unwrap();
        file.publish(9000);
        file.punch_hole(9000..1 << 20).unwrap();
        file.punch_hole(10_000..10_000).unwrap();
        assert_eq!(read(&*file, 8999..9002), [5, 0, 0]);
        assert_eq!(file.bytes(), 1 << 20);
        let space = storage.space().unwrap();
        assert!(0 < space.free_bytes && space.free_bytes < space.total_bytes);
    });
}

#[test]
fn broken_promises_of_the_log_are_bugs() {
    let panics = |act: &dyn Fn(&dyn SegmentFile)| {
        on_both(|storage| {
            let file = storage.create("a", 8192, Preparation::Allocated).unwrap();
            file.publish(4096);
            let act = std::panic::AssertUnwindSafe(|| act(&*file));
            let panic = std::panic::catch_unwind(act).unwrap_err();
            assert!(panic.downcast_ref::<String>().unwrap().starts_with("BUG: "));
        });
    };
    panics(&|file| write(file, 4095, b"x"));
    panics(&|file| write(file, 8191, b"xx"));
    panics(&|file| write(file, u64::MAX, b"x"));
    panics(&|file| file.punch_hole(0..4096).unwrap());
    panics(&|file| file.publish(8193));
    panics(&|file| drop(file.slice(0..4097)));
}

#[test]
fn a_second_process_is_kept_out_and_told_by_whom() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path()).unwrap();
    let error = open(dir.path()).unwrap_err();
    let line = error.to_string();
    assert!(matches!(error, OpenError::Locked { .. }));
    assert!(line.ends_with(&format!(
        "in use by another process (pid {})",
        std::process::id()
    )));
    assert_eq!(
        DiskStorage::open_read_only(dir.path()).unwrap().holder(),
        Some(&*format!("pid {}", std::process::id()))
    );
    drop(first);
    assert_eq!(
        DiskStorage::open_read_only(dir.path()).unwrap().holder(),
        None
    );
    open(dir.path()).unwrap();
}

#[test]
fn the_lock_of_a_killed_process_is_free() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()).unwrap());
    let Ok(mut child) = Command::new("flock")
        .args([
            "--no-fork",
            "LOCK",
            "sh",
            "-c",
            "echo locked; exec sleep 60",
        ])
        .current_dir(dir.path())
        .stdout(Stdio::piped())
        .spawn()
    else {
        return println!("skipped: no flock(1) here");
    };
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert!(matches!(open(dir.path()), Err(OpenError::Locked { .. })));
    let waiting = std::thread::spawn({
        let path = dir.path().to_owned();
        move || DiskStorage::open(&path, Duration::from_secs(20)).map(drop)
    });
    child.kill().unwrap();
    child.wait().unwrap();
    waiting.join().unwrap().unwrap();
}

#[test]
fn a_directory_is_made_for_its_owner_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("above/data/");
    let storage = open(&path).unwrap();
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o700
    );
    drop(storage.create("a", 1, Preparation::Allocated).unwrap());
    assert_eq!(
        fs::metadata(path.join("a")).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    fs::create_dir(empty.join("lost+found")).unwrap();
    let storage = open(&empty).unwrap();
    assert_eq!(
        fs::metadata(&empty).unwrap().permissions().mode() & 0o777,
        0o700
    );
    assert!(storage.list_dirs("").unwrap().is_empty());
}

#[test]
fn foreign_directories_are_refused_and_left_alone() {
    let check = |prepare: &dyn Fn(&Path), expected: &str| {
        let dir = tempfile::tempdir().unwrap();
        prepare(dir.path());
        let before = fs::read_dir(dir.path()).unwrap().count();
        for error in [
            open(dir.path()).unwrap_err(),
            DiskStorage::open_read_only(dir.path()).unwrap_err(),
        ] {
            let line = error.to_string();
            assert!(line.contains(expected) && !line.contains('\n'), "{line}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), before);
    };
    check(
        &|dir| fs::write(dir.join("photo.jpg"), "x").unwrap(),
        "not a Flumen data directory",
    );
    check(
        &|dir| fs::write(dir.join("flumen.version"), "42").unwrap(),
        "not a Flumen version",
    );
    let newer = "Flumen data directory, format 999\n";
    check(
        &|dir| fs::write(dir.join("flumen.version"), newer).unwrap(),
        "has format 999, this build knows format 1",
    );
    check(
        &|dir| symlink("/etc/hostname", dir.join("flumen.version")).unwrap(),
        "symbolic link",
    );
    check(
        &|dir| fs::create_dir(dir.join("flumen.version")).unwrap(),
        "not a regular file",
    );
    check(
        &|dir| {
            let path = dir.join("flumen.version");
            assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
        },
        "not a regular file",
    );
}

#[test]
fn an_interrupted_first_start_is_started_again() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("LOCK"), "pid 1").unwrap();
    fs::write(dir.path().join("flumen.version.unfinished"), "Flu").unwrap();
    drop(open(dir.path()).unwrap());
    assert_eq!(
        fs::read_to_string(dir.path().join("flumen.version")).unwrap(),
        "Flumen data directory, format 1\n"
    );
}

#[test]
fn links_are_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let storage = open(&data).unwrap();
    let elsewhere = dir.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    File::create(elsewhere.join("file"))
        .unwrap()
        .write_all(b"secret")
        .unwrap();

    symlink(&elsewhere, data.join("log")).unwrap();
    assert!(storage.open("log/file", true).is_err());
    assert!(
        storage
            .create("log/new", 1, Preparation::Allocated)
            .is_err()
    );
    assert!(storage.create_dir("log").is_err());
    assert!(
        storage.list("").is_err(),
        "data behind a link must not be overlooked"
    );
    fs::remove_file(data.join("log")).unwrap();

    symlink(elsewhere.join("file"), data.join("file")).unwrap();
    assert!(storage.open("file", true).is_err());
    assert!(storage.read_small("file").is_err());
    storage.replace_small("file", b"mine").unwrap();
    assert_eq!(fs::read(elsewhere.join("file")).unwrap(), b"secret");
    drop(storage);

    let link = dir.path().join("link");
    symlink(&data, &link).unwrap();
    for path in [link.clone(), link.join("")] {
        assert!(
            matches!(open(&path), Err(OpenError::Symlink { .. })),
            "{path:?}"
        );
        assert!(matches!(
            DiskStorage::open_read_only(&path),
            Err(OpenError::Symlink { .. })
        ));
    }
    fs::remove_file(data.join("LOCK")).unwrap();
    symlink(elsewhere.join("file"), data.join("LOCK")).unwrap();
    assert!(matches!(open(&data), Err(OpenError::Symlink { .. })));
    assert_eq!(fs::read(elsewhere.join("file")).unwrap(), b"secret");
}

#[test]
fn paths_that_cannot_be_a_directory_get_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    let line = open(&file).unwrap_err().to_string();
    assert!(line.ends_with("file: not a directory"), "{line}");
    let below = open(&file.join("data")).unwrap_err().to_string();
    assert!(below.contains("file/data: Not a directory"), "{below}");
    let missing = DiskStorage::open_read_only(&dir.path().join("none"))
        .unwrap_err()
        .to_string();
    assert!(
        missing.contains("none: No such file or directory"),
        "{missing}"
    );
}

#[test]
fn looking_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let storage = open(dir.path()).unwrap();
    let writer = storage.create("a", 4096, Preparation::Allocated).unwrap();
    write(&*writer, 0, b"abc");
    let looking = DiskStorage::open_read_only(dir.path()).unwrap();
    let file = looking.open("a", false).unwrap();
    file.publish(3);
    let slice = file.slice(0..3);
    file.populate(0..4096).unwrap();
    write(&*writer, 0, b"xyz");
    assert_eq!(slice, b"abc"[..], "a copy, since another process may write");
    assert_eq!(read(&*file, 0..3), b"xyz");
    assert_eq!(
        kind(looking.open("a", true)),
        io::ErrorKind::ReadOnlyFilesystem
    );
    assert_eq!(kind(looking.remove("a")), io::ErrorKind::ReadOnlyFilesystem);
    assert_eq!(
        kind(looking.replace_small("a", b"")),
        io::ErrorKind::ReadOnlyFilesystem
    );
    assert_eq!(
        kind(looking.create_dir("d")),
        io::ErrorKind::ReadOnlyFilesystem
    );
}

/// A file system of our own for `check`; skipped where we may not mount.
fn on_tmpfs(options: &str, check: impl FnOnce(&Path)) {
    let dir = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", options, "flumen-test"])
        .arg(dir.path())
        .stderr(Stdio::null())
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        return println!("skipped: mounting a tmpfs needs root");
    }
    let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(dir.path())));
    let unmounted = Command::new("umount")
        .arg("-l")
        .arg(dir.path())
        .status()
        .unwrap();
    assert!(unmounted.success());
    checked.unwrap();
}

#[test]
fn a_full_file_system_refuses_and_keeps_nothing() {
    on_tmpfs("size=8m", |path| {
        let storage = open(path).unwrap();
        let kept = storage
            .create("kept", 4 << 20, Preparation::Allocated)
            .unwrap();
        let free = storage.space().unwrap().free_bytes;
        for preparation in [Preparation::Allocated, Preparation::Written] {
            let full = storage.create("a", 6 << 20, preparation);
            assert_eq!(kind(full), io::ErrorKind::StorageFull);
        }
        assert_eq!(storage.list("").unwrap().len(), 1);
        assert_eq!(storage.space().unwrap().free_bytes, free);
        let full = storage.replace_small("small", &vec![1; 6 << 20]);
        assert_eq!(kind(full), io::ErrorKind::StorageFull);
        assert_eq!(
            storage.space().unwrap().free_bytes,
            free,
            "the unfinished one is gone"
        );
        write(&*kept, 0, &vec![3; 4 << 20]);
        kept.sync().unwrap();
    });
}

#[test]
fn a_read_only_file_system_gets_one_line() {
    on_tmpfs("size=1m", |path| {
        drop(open(path).unwrap());
        let remount = |options| {
            let status = Command::new("mount")
                .args(["-o", options])
                .arg(path)
                .status();
            assert!(status.unwrap().success());
        };
        remount("remount,ro");
        let error = open(path).unwrap_err();
        assert!(matches!(error, OpenError::ReadOnly { .. }), "{error}");
        assert!(
            error
                .to_string()
                .contains("cannot be written: Read-only file system")
        );
        DiskStorage::open_read_only(path).unwrap();
        let fresh = open(&path.join("new")).unwrap_err();
        assert!(matches!(fresh, OpenError::ReadOnly { .. }), "{fresh}");
    });
}

#[test]
fn a_directory_without_permission_gets_one_line() {
    if rustix::process::geteuid().is_root() {
        return println!("skipped: root may write everywhere");
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o500)).unwrap();
    let error = open(dir.path()).unwrap_err();
    assert!(matches!(error, OpenError::ReadOnly { .. }), "{error}");
}

#[test]
fn a_write_of_more_than_the_system_takes_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let _storage = open(dir.path()).unwrap();
    let directory = crate::directory::Directory::open_read_only(dir.path())
        .unwrap()
        .0;
    let file = directory
        .open_file("f", OFlags::RDWR | OFlags::CREATE)
        .unwrap();
    let buffers = vec![IoSlice::new(b"ab"); 3000];
    write_all(&file, &buffers, 0, rustix::io::ReadWriteFlags::empty()).unwrap();
    assert_eq!(fs::read(dir.path().join("f")).unwrap(), b"ab".repeat(3000));
}
