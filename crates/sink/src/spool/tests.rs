//! Files of a cut: room, keeping, damage.

use std::fs;

use super::*;

fn object(cut: &CutSpool, place: usize, bytes: &[u8]) -> io::Result<SpooledObject> {
    let mut writer = cut.object(place).unwrap();
    writer.write_all(bytes)?;
    writer.finish()
}

fn content(object: &SpooledObject) -> Result<Vec<u8>, SpoolError> {
    Ok(object.read()?.iter().flatten().copied().collect())
}

#[test]
fn what_is_written_is_read_and_gone_with_its_cut() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::new(dir.path().join("1"), 1 << 20);
    let cut = spool.cut(7);
    let large = vec![b'x'; 600 << 10];
    let written = object(&cut, 0, &large).unwrap();
    assert_eq!(
        (written.bytes(), written.crc32()),
        (600 << 10, crc32fast::hash(&large))
    );
    assert_eq!(content(&written).unwrap(), large);
    drop((cut, written));
    assert_eq!(fs::read_dir(dir.path().join("1")).unwrap().count(), 0);
}

#[test]
fn its_bound_is_kept_and_room_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::new(dir.path().join("1"), 1000);
    let cut = spool.cut(0);
    let first = object(&cut, 0, &[0; 700]).unwrap();
    let full = object(&spool.cut(1), 0, &[0; 400]).unwrap_err();
    assert_eq!(full.kind(), io::ErrorKind::QuotaExceeded);
    let mut rows = cut.rows().unwrap();
    assert_eq!(rows.append(&[0; 301]).unwrap_err().reason(), "spool_full");
    rows.append(&[0; 300]).unwrap();
    drop((cut, first, rows));
    object(&spool.cut(2), 0, &[0; 1000]).unwrap();
}

#[test]
fn a_kept_cut_outlives_its_process_and_damage_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("1");
    let spool = Spool::new(path.clone(), 1 << 20);
    let cut = spool.cut(3);
    let written = object(&cut, 0, b"content").unwrap();
    cut.rows().unwrap().append(b"rows").unwrap();
    cut.keep(b"index").unwrap();
    assert_eq!(
        content(&written).unwrap(),
        b"content",
        "also under its new name"
    );
    drop(cut);
    let spool = Spool::new(path.clone(), 1 << 20);
    let (cut, index) = spool.kept(3).unwrap();
    assert_eq!(index, b"index");
    assert!(!path.join("3").join(ROWS).exists());
    let kept = |bytes, crc32| SpooledObject::kept(&cut, "object-0".to_owned(), bytes, crc32);
    assert_eq!(content(&kept(7, written.crc32())).unwrap(), b"content");
    for (bytes, crc32) in [(8, written.crc32()), (7, 0)] {
        let damaged = content(&kept(bytes, crc32)).unwrap_err();
        assert!(damaged.is_loss(), "{damaged}");
    }
    fs::remove_file(path.join("3").join("object-0")).unwrap();
    assert!(content(&kept(7, written.crc32())).unwrap_err().is_loss());
    cut.let_go();
    assert!(spool.kept(3).unwrap_err().is_loss());
}

#[test]
fn keeping_a_cut_again_takes_the_place_of_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::new(dir.path().join("1"), 1 << 20);
    for content in [b"first", b"later"] {
        let cut = spool.cut(3);
        object(&cut, 0, content).unwrap();
        cut.keep(content).unwrap();
    }
    assert_eq!(spool.kept(3).unwrap().1, b"later");
    spool.sweep().unwrap();
    assert!(!dir.path().join("1").exists());
    spool.sweep().unwrap();
}

#[tokio::test]
async fn it_is_idle_when_nobody_has_a_cut_in_hand() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::new(dir.path().join("1"), 1 << 20);
    spool.idle().await;
    let cut = spool.cut(0);
    let written = object(&cut, 0, b"x").unwrap();
    drop(cut);
    let mut idle = tokio_test(spool.idle());
    assert!(!idle(), "an object is a hand on its cut");
    drop(written);
    assert!(idle());
}

/// Polls a future once per call: whether it is done.
fn tokio_test(future: impl Future<Output = ()>) -> impl FnMut() -> bool {
    let mut future = Box::pin(future);
    move || {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        future.as_mut().poll(&mut context).is_ready()
    }
}

/// A power cut leaves what was synced, under names that were synced; a cut that is kept is both.
#[test]
fn in_memory_a_kept_cut_outlives_a_power_cut_and_nothing_else_does() {
    let disk = MemorySpools::default();
    let over =
        |disk: &MemorySpools| Spool::over(Arc::new(disk.clone()), "spools/1".into(), 1 << 20);
    let spool = over(&disk);
    let (kept, lost) = (spool.cut(3), spool.cut(4));
    let written = object(&kept, 0, b"content").unwrap();
    object(&lost, 0, b"lost").unwrap();
    kept.rows().unwrap().append(b"rows").unwrap();
    kept.keep(b"index").unwrap();
    assert_eq!(content(&written).unwrap(), b"content");
    let cut = over(&disk.power_cut());
    let (again, index) = cut.kept(3).unwrap();
    assert_eq!(index, b"index");
    let there = SpooledObject::kept(&again, "object-0".to_owned(), 7, written.crc32());
    assert_eq!(content(&there).unwrap(), b"content");
    assert!(cut.kept(4).unwrap_err().is_loss());
    let killed = disk.kill();
    assert!(killed.list(Path::new("spools/1/4.1")).is_ok());
    over(&killed).sweep().unwrap();
    assert!(killed.list(Path::new("spools/1")).is_err());
    assert!(disk.list(Path::new("spools/1")).is_ok());
}

/// What was renamed or written and not synced is gone, or as it was before.
#[test]
fn in_memory_what_was_not_synced_is_as_it_was() {
    let disk = MemorySpools::default();
    let put = |path: &str, bytes: &[u8]| {
        let mut file = disk.create(Path::new(path)).unwrap();
        file.write_all(bytes).unwrap();
    };
    let read = |disk: &MemorySpools, path: &str| {
        let mut bytes = Vec::new();
        let mut file = disk.open(Path::new(path)).ok()?;
        file.read_to_end(&mut bytes).unwrap();
        Some(bytes)
    };
    put("a", b"first");
    put("b", b"never synced");
    disk.sync(Path::new("a")).unwrap();
    disk.sync(Path::new("")).unwrap();
    put("a", b"later");
    disk.rename(Path::new("b"), Path::new("c")).unwrap();
    assert_eq!(read(&disk, "a").unwrap(), b"later");
    let after = disk.power_cut();
    assert_eq!(read(&after, "a").unwrap(), b"first");
    assert_eq!(read(&after, "b").unwrap(), b"");
    assert_eq!(read(&after, "c"), None);
    assert_eq!(read(&disk.kill(), "c").unwrap(), b"never synced");
}
