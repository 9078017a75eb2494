//! Every operation of a trace fails in turn, once or for good: no panic, no ack that rests on what
//! failed, and a log that opens as promised, whatever the kernel has dropped of it meanwhile.

use flumen_log::{Fault, FaultError, Grain, LogKey, OperationKind, ReadError};

use crate::crash_images::trace;
use crate::fixture::{DISK, MEMORY, number, shard};
use crate::ledger::read_batches;
use crate::machine::{Machine, Stop, tiny_segments};

fn fault(on: OperationKind, skip: u64, times: u64, error: FaultError) -> Fault {
    Fault {
        on: Some(on),
        skip,
        times,
        error,
    }
}

/// Runs the trace with a fault in it, then starts again from what the process, the kernel's cache
/// and the power leave.
fn check(key: LogKey, on: OperationKind, skip: u64, times: u64, error: FaultError) {
    let at = |stop: Stop, when: &str| match stop.when(when) {
        Stop::Broken(what) => panic!("{key:?}, {on:?} {skip}, {error:?} {times} times: {what}"),
        Stop::Halted => {
            panic!("{key:?}, {on:?} {skip}, {error:?} {times} times: {when}: no further")
        }
    };
    let mut machine = Machine::new(key, tiny_segments());
    machine.twin.inject(fault(on, skip, times, error));
    match trace(&mut machine, key == MEMORY) {
        Ok(()) | Err(Stop::Halted) => {}
        // It may refuse to open on a disk that fails; it opened, or it was never there.
        Err(Stop::Broken(what)) if what.starts_with("it does not open") => {}
        Err(stop) => at(stop, "live"),
    }
    machine.drop_log();
    machine.twin.clear_faults();
    let mut killed = machine.restarted(machine.twin.kill());
    killed.open_cut().unwrap_or_else(|stop| at(stop, "killed"));
    machine.twin.drop_caches();
    let mut forgotten = machine.restarted(machine.twin.kill());
    forgotten
        .open_cut()
        .unwrap_or_else(|stop| at(stop, "killed, and the cache dropped"));
    let mut cut = machine.restarted(machine.twin.crash_keeping(Grain::Page, 0));
    cut.open_cut()
        .and_then(|()| cut.commit(&[(1, 1, 90), (2, 1, 90)]))
        .unwrap_or_else(|stop| at(stop, "power cut"));
}

fn sweep(key: LogKey, times: u64) {
    let mut whole = Machine::new(key, tiny_segments());
    assert_eq!(trace(&mut whole, key == MEMORY), Ok(()));
    let counts = whole.twin.counts();
    assert!(counts.values().sum::<u64>() > 200, "{counts:?}");
    // A read that fails is an error where it is asked for.
    let changes = counts
        .into_iter()
        .filter(|(on, _)| *on != OperationKind::Read);
    for (on, count) in changes {
        let errors: &[FaultError] = match on {
            OperationKind::Write => &[FaultError::Io, FaultError::NoSpace, FaultError::Short(700)],
            OperationKind::Create | OperationKind::Allocate => {
                &[FaultError::Io, FaultError::NoSpace]
            }
            _ => &[FaultError::Io],
        };
        for (skip, error) in (0..count).flat_map(|skip| errors.iter().map(move |e| (skip, *e))) {
            check(key, on, skip, times, error);
        }
    }
}

#[test]
fn a_disk_log_survives_any_operation_that_fails_once() {
    sweep(DISK, 1);
}

#[test]
fn a_disk_log_survives_a_disk_that_fails_for_good() {
    sweep(DISK, u64::MAX);
}

#[test]
fn a_memory_log_survives_any_operation_that_fails_once() {
    sweep(MEMORY, 1);
}

#[test]
fn a_memory_log_survives_a_disk_that_fails_for_good() {
    sweep(MEMORY, u64::MAX);
}

/// A sync that fails once: the round goes into a fresh segment and is acknowledged there; nothing
/// rests on the old file, so that what the kernel dropped of it is not missed.
#[test]
fn an_ack_after_a_failed_sync_rests_on_a_fresh_segment() {
    for key in [DISK, MEMORY] {
        let mut machine = Machine::new(key, tiny_segments());
        machine.open_cut().unwrap();
        machine.commit(&[(1, 1, 100), (2, 1, 100)]).unwrap();
        machine.write(&[(2, 2, 100)]).unwrap();
        machine.sync().unwrap();
        machine
            .twin
            .inject(fault(OperationKind::Sync, 0, 1, FaultError::Io));
        machine.write(&[(1, 1, 100)]).unwrap();
        machine.sync().unwrap();
        assert_eq!(machine.log().stats().failed_syncs, 1);
        machine.commit(&[(1, 1, 100)]).unwrap();
        machine.drop_log();
        machine.twin.drop_caches();
        for twin in [
            machine.twin.kill(),
            machine.twin.crash_keeping(Grain::Page, 0),
        ] {
            let mut again = machine.restarted(twin);
            again.open_cut().unwrap();
            let kept = read_batches(again.reader(), 1, 0).unwrap();
            assert_eq!(kept.len(), 3, "{key:?}");
        }
    }
}

/// A sync that fails twice: its outcome is unknown, appends end, reads go on up to what is durable.
#[test]
fn a_log_whose_sync_fails_twice_is_poisoned_and_read() {
    let mut machine = Machine::new(DISK, tiny_segments());
    machine.open_cut().unwrap();
    machine.commit(&[(1, 2, 100)]).unwrap();
    machine
        .twin
        .inject(fault(OperationKind::Sync, 0, u64::MAX, FaultError::Io));
    assert_eq!(machine.commit(&[(1, 1, 100)]), Err(Stop::Halted));
    assert_eq!(machine.log().stats().poisoned, 1);
    machine.twin.clear_faults();
    let now = crate::fixture::at(machine.millis + 1);
    let frame = crate::fixture::frame(1, 2, 1, 10, now);
    let refused = machine.log().commit(&[frame], 0, now);
    assert!(matches!(refused, Ok(Err(flumen_log::WriteError::Poisoned))));
    let reader = machine.reader().clone();
    assert_eq!(read_batches(&reader, 1, 0).unwrap().len(), 1);
    assert_eq!(
        reader.bounds(shard(1)).unwrap().durable_end,
        number(2),
        "what nobody knows of is not read"
    );
    assert!(matches!(
        reader.read_cold(shard(9), number(0), 100),
        Err(ReadError::UnknownShard { .. })
    ));
    machine.drop_log();
    let mut again = machine.restarted(machine.twin.kill());
    again.open_cut().unwrap();
    again.commit(&[(1, 1, 100)]).unwrap();
}
