//! The last round before a crash: after a moment of rest something vouches for it, so that a bit that
//! flips in it is damage, and no torn tail. And what is less than another log vouches for.

use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

use flumen_log::{
    Log, LogKey, MemoryStorage, OpenError, OperationKind, ReadError, Recovery, Storage, Voucher,
};
use flumen_record::Timestamp;

use crate::fixture::{
    DISK, MEMORY, Seen, at, frame, frames_of, number, open, shard, small_segments,
};

fn memory() -> (MemoryStorage, Arc<dyn Storage>) {
    let storage = MemoryStorage::new();
    (storage.clone(), Arc::new(storage))
}

/// One round, acknowledged as the log's level has it, and in the background made durable.
fn put(log: &mut Log, key: LogKey, shard_number: u64, base: u64, now: Timestamp) {
    let frames = [frame(shard_number, base, 2, 60, now)];
    if key == DISK {
        log.commit(&frames, 0, now).unwrap().unwrap();
    } else {
        log.write(&frames, 0, now).unwrap();
        sync(log, now);
    }
}

fn sync(log: &mut Log, now: Timestamp) {
    if let Some(job) = log.begin_sync() {
        log.finish_sync(job.run(), now).unwrap();
    }
}

/// What a lane does when nothing comes: waits as long as the log says, and writes what is due. How many
/// rounds that were.
fn rest(log: &mut Log, now: &mut Timestamp) -> u32 {
    let mut rounds = 0;
    while let Some(wait) = log.idle_round_in(*now) {
        assert!(wait <= Duration::from_millis(250), "{wait:?}");
        *now = now.saturating_add(wait);
        if log.idle_round_due(*now) {
            log.write(&[], 0, *now).unwrap();
            sync(log, *now);
            rounds += 1;
        }
        assert!(rounds < 10, "it does not come to rest");
    }
    rounds
}

#[test]
fn after_a_moment_of_rest_one_empty_round_is_written_and_then_nothing() {
    for key in [DISK, MEMORY] {
        let (storage, shared) = memory();
        let (mut log, ..) = open(&shared, key, &small_segments(), at(0));
        // Nothing to vouch for.
        let mut now = at(0);
        assert_eq!(rest(&mut log, &mut now), 0);
        // Rounds that come more often than that vouch for each other.
        for n in 0..20 {
            let now = at(n * 240);
            assert!(!log.idle_round_due(now), "{n}");
            put(&mut log, key, 1, 2 * n, now);
        }
        let mut now = at(19 * 240);
        assert_eq!(rest(&mut log, &mut now), 1, "{key:?}");
        assert_eq!(now, at(19 * 240 + 250));
        storage.start_trace();
        assert_eq!(rest(&mut log, &mut at(90_000_000)), 0);
        let writes = storage.trace().into_iter();
        assert_eq!(writes.filter(|o| o.kind == OperationKind::Write).count(), 0);
        // The last one stands for all of them: whoever vouches for this log names it.
        let voucher = log.reader().voucher().unwrap();
        assert_eq!(
            voucher,
            Voucher {
                epoch: 1,
                round: 20
            }
        );
    }
}

/// A `memory` log acknowledges before it syncs: an empty round that is written before the sync has
/// ended names nothing durable.
#[test]
fn a_round_that_is_not_synced_yet_is_not_vouched_for_in_vain() {
    let (_, shared) = memory();
    let (mut log, ..) = open(&shared, MEMORY, &small_segments(), at(0));
    put(&mut log, MEMORY, 1, 0, at(0));
    log.write(&[frame(1, 2, 2, 60, at(1))], 0, at(1)).unwrap();
    let job = log.begin_sync().unwrap();
    assert!(!log.idle_round_due(at(1000)));
    assert!(
        log.idle_round_in(at(1000)).is_some(),
        "it is looked at again"
    );
    log.finish_sync(job.run(), at(1001)).unwrap();
    assert!(log.idle_round_due(at(1001)));
    assert_eq!(rest(&mut log, &mut at(1001)), 1);
}

/// After a crash the last rounds are written again, and nothing follows them.
#[test]
fn what_is_written_again_at_a_start_is_vouched_for_too() {
    let (storage, shared) = memory();
    let (mut log, ..) = open(&shared, DISK, &small_segments(), at(0));
    put(&mut log, DISK, 1, 0, at(0));
    drop(log);
    let shared: Arc<dyn Storage> = Arc::new(storage.kill());
    let (mut log, recovery, _) = open(&shared, DISK, &small_segments(), at(10));
    assert_eq!(recovery.tail_rounds_rewritten, 1);
    assert_eq!(rest(&mut log, &mut at(1000)), 1);
    assert_eq!(log.reader().voucher().unwrap().round, 1);
}

/// Changes every byte of a segment, one at a time, from `from` on. What opening each found.
fn each_flipped(
    storage: &MemoryStorage,
    key: LogKey,
    mut check: impl FnMut(usize, &Log, &Recovery),
    (from, to): (u64, u64),
) {
    let dir = key.dir_name();
    let files = storage.list(&dir).unwrap();
    let segment = files.iter().find(|file| file.name != "snapshot").unwrap();
    let path = format!("{dir}/{}", segment.name);
    for at_byte in from..to {
        let image = storage.duplicate();
        let file = image.open(&path, true).unwrap();
        let mut byte = [0];
        file.read_at(&mut byte, at_byte).unwrap();
        byte[0] ^= 0x10;
        file.write_at(&[IoSlice::new(&byte)], at_byte).unwrap();
        file.sync().unwrap();
        drop(file);
        let shared: Arc<dyn Storage> = Arc::new(image.clone());
        let (log, recovery, _) = open(&shared, key, &small_segments(), at(90_000));
        check(at_byte as usize, &log, &recovery);
        // Opening has written the rounds after it again. The process ends before it says more.
        drop(log);
        let shared: Arc<dyn Storage> = Arc::new(image.kill());
        let (log, recovery, _) = open(&shared, key, &small_segments(), at(95_000));
        check(at_byte as usize, &log, &recovery);
    }
}

/// Writes some rounds, rests or not, and is killed. The disk, and where the last round that carries
/// records lies in the only segment.
fn killed(key: LogKey, last_shard: u64, rests: bool) -> (MemoryStorage, (u64, u64)) {
    let (storage, shared) = memory();
    let (mut log, ..) = open(&shared, key, &small_segments(), at(0));
    for n in 0..3 {
        put(&mut log, key, 1, 2 * n, at(n));
    }
    storage.start_trace();
    let base = if last_shard == 1 { 6 } else { 0 };
    put(&mut log, key, last_shard, base, at(10));
    let mut written = storage.trace().into_iter();
    let last = written.rfind(|o| o.kind == OperationKind::Write).unwrap();
    if rests {
        assert_eq!(rest(&mut log, &mut at(10)), 1);
    }
    drop(log);
    (storage.kill(), (last.range.start, last.range.end))
}

/// A flip in the last acknowledged round: records that are answered as lost, and numbers that are not
/// given out again, wherever it is. Never a silent end.
#[test]
fn a_bit_that_flips_in_the_last_round_is_damage_once_the_log_has_rested() {
    for key in [DISK, MEMORY] {
        let (storage, range) = killed(key, 1, true);
        let mut lost = 0;
        each_flipped(
            &storage,
            key,
            |byte, log, recovery| {
                let reader = log.reader();
                let found = recovery.shards.iter().find(|found| found.shard == shard(1));
                let next = found.unwrap().next;
                assert!(next >= number(8), "{key:?}, byte {byte}: {next:?}");
                match reader.read_cold(shard(1), number(6), 1000) {
                    Err(ReadError::DataLoss { from, .. }) => {
                        assert_eq!(from, number(6), "{key:?}, byte {byte}");
                        assert!(!recovery.quarantined.is_empty(), "{key:?}, byte {byte}");
                        lost += 1;
                    }
                    // Padding, or what nothing depends on.
                    found => assert_eq!(found.unwrap().next, number(8), "{key:?}, byte {byte}"),
                }
                let before = reader.read_cold(shard(1), number(0), 1).unwrap();
                assert_eq!(frames_of(&before)[0], (0, 2), "{key:?}, byte {byte}");
            },
            range,
        );
        assert!(lost > 200, "{lost}");
    }
}

/// The same when it is the first round of a shard: the log knows nothing of it any more, and says so.
#[test]
fn a_shard_whose_only_round_is_damaged_is_not_taken_for_one_that_never_was() {
    for key in [DISK, MEMORY] {
        let (storage, range) = killed(key, 5, true);
        let mut hidden = 0;
        each_flipped(
            &storage,
            key,
            |byte, _, recovery| {
                let found = recovery.shards.iter().find(|found| found.shard == shard(5));
                match found {
                    Some(found) => assert!(found.next >= number(2), "{key:?}, byte {byte}"),
                    None => {
                        let until = recovery.hidden_until;
                        assert!(until >= Some(at(10)), "{key:?}, byte {byte}: {until:?}");
                        assert!(until < Some(at(1000)), "{key:?}, byte {byte}: {until:?}");
                        hidden += 1;
                    }
                }
            },
            range,
        );
        assert!(hidden > 200, "{hidden}");
    }
}

/// The tests above can fail: before the log has rested nothing vouches for its last round.
#[test]
fn before_the_log_has_rested_a_flipped_bit_is_a_torn_tail() {
    let (storage, range) = killed(DISK, 1, false);
    let mut silent = 0;
    each_flipped(
        &storage,
        DISK,
        |_, _, recovery| {
            let found = recovery.shards.iter().find(|found| found.shard == shard(1));
            let is_silent = recovery.quarantined.is_empty() && found.unwrap().next == number(6);
            silent += u32::from(is_silent);
        },
        range,
    );
    assert!(silent > 200, "{silent}");
}

/// In order of a shutdown: what was acknowledged is vouched for by the last round of the close.
#[test]
fn a_log_that_is_closed_in_order_vouches_for_all_it_holds() {
    for key in [DISK, MEMORY] {
        let (storage, shared) = memory();
        let (mut log, ..) = open(&shared, key, &small_segments(), at(0));
        for n in 0..3 {
            put(&mut log, key, 1, 2 * n, at(n));
        }
        storage.start_trace();
        log.write(&[frame(1, 6, 2, 60, at(4))], 0, at(4)).unwrap();
        let mut written = storage.trace().into_iter();
        let last = written.rfind(|o| o.kind == OperationKind::Write).unwrap();
        let reader = log.reader();
        log.close(at(5)).unwrap();
        assert_eq!(reader.voucher().unwrap().round, 4);
        let range = (last.range.start, last.range.end);
        let mut lost = 0;
        each_flipped(
            &storage.kill(),
            key,
            |byte, log, recovery| {
                let found = recovery.shards.iter().find(|found| found.shard == shard(1));
                assert!(found.unwrap().next >= number(8), "{key:?}, byte {byte}");
                let read = log.reader().read_cold(shard(1), number(6), 1000);
                lost += u32::from(matches!(read, Err(ReadError::DataLoss { .. })));
            },
            range,
        );
        assert!(lost > 200, "{lost}");
    }
}

fn open_vouched(storage: &MemoryStorage, voucher: Voucher) -> Result<(Log, Recovery), OpenError> {
    let config = small_segments();
    let storage: Arc<dyn Storage> = Arc::new(storage.clone());
    Log::open_vouched(
        storage,
        DISK,
        config,
        at(500),
        &mut Seen::default(),
        Some(voucher),
    )
}

#[test]
fn a_log_that_is_less_than_is_vouched_for_does_not_open_and_is_left_as_it_is() {
    let (storage, _) = killed(DISK, 1, true);
    let vouched = Voucher { epoch: 1, round: 4 };
    drop(open_vouched(&storage.duplicate(), vouched).unwrap());
    for more in [
        Voucher { epoch: 1, round: 6 },
        Voucher { epoch: 2, round: 4 },
    ] {
        let image = storage.duplicate();
        let before = image.fingerprint();
        match open_vouched(&image, more) {
            Err(OpenError::Short(short)) => {
                assert_eq!(short.vouched, more);
                assert_eq!(short.found, Some(Voucher { epoch: 1, round: 5 }));
            }
            other => panic!("{:?}", other.map(drop)),
        }
        assert_eq!(image.fingerprint(), before);
    }
    let empty = MemoryStorage::new();
    for created in [false, true] {
        if created {
            empty.create_dir(&DISK.dir_name()).unwrap();
        }
        match open_vouched(&empty, Voucher::default()) {
            Err(OpenError::Short(short)) => assert_eq!(short.found, None),
            other => panic!("{:?}", other.map(drop)),
        }
        assert_eq!(empty.list_dirs("").unwrap().len(), usize::from(created));
    }
}
