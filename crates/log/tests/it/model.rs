//! Any sequence of what a log can be asked and can suffer, held against the ledger.

use flumen_log::{Fault, FaultError, Grain, LogKey, OperationKind};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::fixture::{DISK, MEMORY};
use crate::machine::{Machine, Part, Stop, tiny_segments};

#[derive(Debug, Clone)]
enum Op {
    /// One round over several shards, durable as its log has it.
    Put(Vec<Part>),
    /// As many small rounds: segments roll and fill.
    Fill(u8, usize),
    Sync,
    /// A round while a background sync is under way.
    SyncBeside(Vec<Part>),
    Trim(u64, u64),
    Forget(u64),
    KeepHouse(u8),
    Snapshot,
    /// So much time passes, in hours: segments roll by age.
    Wait(u8),
    /// An ordered end, and a start.
    Close,
    /// The process ends; what it wrote is still in the page cache.
    Kill,
    /// A write or a sync to come fails once.
    Fail(OperationKind, u64),
    /// The power is cut; of what was not synced something stays.
    Cut(Grain, u64),
}

fn parts() -> impl Strategy<Value = Vec<Part>> {
    let bytes = prop_oneof![8 => 0..600_usize, 2 => 600..6_000_usize, 1 => 6_000..30_000_usize];
    vec((1..6_u64, 1..4_u32, bytes), 1..5)
}

fn op() -> impl Strategy<Value = Op> {
    let grain = prop_oneof![Just(Grain::Page), Just(Grain::Sector)];
    prop_oneof![
        12 => parts().prop_map(Op::Put),
        3 => (1..12_u8, 0..3_000_usize).prop_map(|(rounds, bytes)| Op::Fill(rounds, bytes)),
        3 => Just(Op::Sync),
        2 => parts().prop_map(Op::SyncBeside),
        4 => (1..6_u64, 0..=100_u64).prop_map(|(shard, percent)| Op::Trim(shard, percent)),
        1 => (1..6_u64).prop_map(Op::Forget),
        4 => (1..5_u8).prop_map(Op::KeepHouse),
        2 => Just(Op::Snapshot),
        1 => (1..9_u8).prop_map(Op::Wait),
        1 => Just(Op::Close),
        1 => Just(Op::Kill),
        2 => (grain, any::<u64>()).prop_map(|(grain, seed)| Op::Cut(grain, seed)),
    ]
}

/// Does one thing, and checks what readers see after it.
fn step(machine: &mut Machine, is_memory: bool, op: Op) -> Result<(), Stop> {
    match op {
        Op::Put(parts) if is_memory => machine.write(&parts)?,
        Op::Put(parts) => machine.commit(&parts)?,
        Op::Fill(rounds, bytes) => {
            for round in 0..u64::from(rounds) {
                machine.commit(&[(1 + round % 5, 1, bytes), (7, 1, 40)])?;
            }
        }
        Op::Sync => machine.sync()?,
        Op::SyncBeside(parts) if is_memory => machine.sync_beside(&parts)?,
        Op::SyncBeside(parts) => machine.commit(&parts)?,
        Op::Trim(shard, percent) => machine.trim(shard, percent),
        Op::Forget(shard) => machine.forget(shard),
        Op::KeepHouse(steps) => machine.keep_house(u32::from(steps))?,
        Op::Snapshot => machine.snapshot()?,
        Op::Wait(hours) => machine.millis += u64::from(hours) * 3_600_000,
        Op::Close => {
            machine.close()?;
            machine.open_killed()?;
        }
        Op::Kill => {
            machine.drop_log();
            *machine = machine.restarted(machine.twin.kill());
            machine.open_killed()?;
        }
        Op::Fail(on, skip) => machine.twin.inject(Fault {
            on: Some(on),
            skip,
            times: 1,
            error: FaultError::Io,
        }),
        Op::Cut(grain, seed) => {
            machine.drop_log();
            *machine = machine.restarted(machine.twin.crash_seeded(grain, seed));
            machine.open_cut()?;
        }
    }
    let live = machine.ledger.check_live(machine.reader());
    live.map_err(|what| Stop::Broken(what).when("live"))
}

/// As [`op`], on a disk that fails now and then. Not at the names of a directory: after that the twin
/// may keep both names of a file that was renamed, which no real file system does.
fn failing_op() -> impl Strategy<Value = Op> {
    let kind = prop_oneof![
        Just(OperationKind::Sync),
        Just(OperationKind::Write),
        Just(OperationKind::Create),
        Just(OperationKind::Allocate),
        Just(OperationKind::Remove),
        Just(OperationKind::Rename),
    ];
    prop_oneof![
        12 => op(),
        1 => (kind, 0..12_u64).prop_map(|(on, skip)| Op::Fail(on, skip)),
    ]
}

fn run_failing(key: LogKey, ops: Vec<Op>) -> Result<(), TestCaseError> {
    let mut machine = Machine::new(key, tiny_segments());
    prop_assert_eq!(machine.open_cut(), Ok(()));
    for (number, op) in ops.into_iter().enumerate() {
        let shown = format!("{op:?}");
        let done = step(&mut machine, key == MEMORY, op);
        // A disk that fails while it is opened is no promise broken.
        let refused =
            matches!(&done, Err(Stop::Broken(what)) if what.starts_with("it does not open"));
        if done == Err(Stop::Halted) || refused {
            machine.twin.clear_faults();
            machine.drop_log();
            machine.twin.drop_caches();
            machine = machine.restarted(machine.twin.kill());
            let again = machine.open_cut();
            prop_assert_eq!(again, Ok(()), "after operation {}: {}", number, shown);
            continue;
        }
        prop_assert_eq!(done, Ok(()), "operation {}: {}", number, shown);
    }
    Ok(())
}

fn run(key: LogKey, ops: Vec<Op>) -> Result<(), TestCaseError> {
    let mut machine = Machine::new(key, tiny_segments());
    let mut all = vec![Op::Put(vec![(1, 1, 10)])];
    all.extend(ops);
    let opened = machine.open_cut();
    prop_assert_eq!(opened, Ok(()));
    for (number, op) in all.into_iter().enumerate() {
        let shown = format!("{op:?}");
        // Nothing fails here by itself, so nothing may be refused.
        let done = step(&mut machine, key == MEMORY, op);
        prop_assert_eq!(done, Ok(()), "operation {}: {}", number, shown);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_disk_log_is_what_the_ledger_says(ops in vec(op(), 1..60)) {
        run(DISK, ops)?;
    }

    #[test]
    fn a_memory_log_is_what_the_ledger_says(ops in vec(op(), 1..60)) {
        run(MEMORY, ops)?;
    }

    #[test]
    fn a_disk_log_on_a_failing_disk_keeps_its_promises(ops in vec(failing_op(), 1..60)) {
        run_failing(DISK, ops)?;
    }

    #[test]
    fn a_memory_log_on_a_failing_disk_keeps_its_promises(ops in vec(failing_op(), 1..60)) {
        run_failing(MEMORY, ops)?;
    }
}

/// A shard that goes and comes back within one segment: its footer must not forget it.
#[test]
fn a_shard_that_comes_back_stays() {
    for key in [DISK, MEMORY] {
        let mut machine = Machine::new(key, tiny_segments());
        machine.open_cut().unwrap();
        machine.commit(&[(1, 3, 100), (2, 1, 10)]).unwrap();
        machine.forget(1);
        machine.commit(&[(2, 1, 10)]).unwrap();
        machine.commit(&[(1, 2, 100)]).unwrap();
        // Full, sealed, and no snapshot that knows better.
        for _ in 0..8 {
            machine.commit(&[(2, 1, 9_000)]).unwrap();
        }
        machine.keep_house(6).unwrap();
        machine.sync().unwrap();
        let mut cut = machine.restarted(machine.twin.crash_keeping(Grain::Page, 0));
        cut.open_cut().unwrap();
        let kept = cut.reader().bounds(crate::fixture::shard(1)).unwrap();
        assert_eq!(kept.trim_horizon.value(), 3);
    }
}

/// A round too large for the file that was made ready goes into one with a later id.
#[test]
fn a_segment_that_was_left_out_is_no_end() {
    let mut machine = Machine::new(MEMORY, tiny_segments());
    machine.open_cut().unwrap();
    machine.write(&[(1, 1, 10)]).unwrap();
    machine.write(&[(1, 1, 10)]).unwrap();
    machine.keep_house(1).unwrap();
    machine.write(&[(1, 1, 60_000)]).unwrap();
    machine.drop_log();
    machine = machine.restarted(machine.twin.kill());
    assert_eq!(machine.open_killed(), Ok(()));
}

/// The rounds of a segment that is gone would be looked for at the end of the one before it, as long
/// as that has no footer.
#[test]
fn no_segment_is_freed_before_the_one_before_it_is_sealed() {
    let mut machine = Machine::new(DISK, tiny_segments());
    machine.open_cut().unwrap();
    machine.commit(&[(2, 1, 17_000)]).unwrap();
    machine.commit(&[(1, 2, 4_500)]).unwrap();
    machine.commit(&[(1, 4, 600)]).unwrap();
    machine.commit(&[(1, 1, 9_000)]).unwrap();
    machine.trim(1, 80);
    machine.commit(&[(1, 1, 10)]).unwrap();
    for steps in 1..6 {
        let mut killed = machine.restarted(machine.twin.kill());
        killed.open_killed().unwrap();
        killed.keep_house(steps).unwrap();
        killed.close().unwrap();
        assert_eq!(killed.open_killed(), Ok(()), "after {steps} steps");
    }
}

/// A file whose rounds were written again elsewhere would stand for them again, if what replaced it
/// were freed first.
#[test]
fn nothing_is_freed_before_what_it_replaced_is_gone() {
    let mut machine = Machine::new(DISK, tiny_segments());
    machine.open_cut().unwrap();
    machine.commit(&[(1, 1, 10)]).unwrap();
    machine.commit(&[(1, 1, 1_800)]).unwrap();
    machine.drop_log();
    machine = machine.restarted(machine.twin.kill());
    machine.open_killed().unwrap();
    machine.forget(1);
    machine.close().unwrap();
    machine.open_killed().unwrap();
    machine.commit(&[(1, 3, 5_000)]).unwrap();
    machine.close().unwrap();
    machine.open_killed().unwrap();
    for _ in 0..6 {
        machine.keep_house(1).unwrap();
        let mut killed = machine.restarted(machine.twin.kill());
        assert_eq!(killed.open_killed(), Ok(()));
    }
}

/// Rounds that are written again behind a segment that is gone keep their numbers: else they would
/// seem to follow the one before it, and what the lost one said of shards would be forgotten.
#[test]
fn what_a_freed_segment_said_is_not_forgotten() {
    let mut machine = Machine::new(MEMORY, tiny_segments());
    machine.open_cut().unwrap();
    machine.write(&[(1, 1, 10)]).unwrap();
    machine.write(&[(1, 1, 200), (1, 5, 3_700)]).unwrap();
    machine.trim(1, 15);
    machine.close().unwrap();
    machine.open_killed().unwrap();
    machine.write(&[(1, 1, 18_000)]).unwrap();
    machine.keep_house(3).unwrap();
    machine.drop_log();
    machine = machine.restarted(machine.twin.kill());
    machine.open_killed().unwrap();
    machine.close().unwrap();
    assert_eq!(machine.open_killed(), Ok(()));
}
