//! The power is cut after every operation of a trace, and during recovery from what that leaves.
//!
//! What may be on the platters then is built and opened: every combination of the unsynced 4 KiB
//! pages, each in any of its versions, and of the unsynced 512-byte sectors (torn writes), where
//! there are at most [`SUBSETS_MAX`] combinations. Where there are more, as few as possible and
//! counted: all combinations of as many units as that allows, chosen by seed, the others kept or
//! lost, and [`SEEDED`] images drawn at large. Of some images after each operation recovery itself
//! is cut, after each of its operations, and what that leaves is opened again.

use std::collections::HashSet;

use flumen_log::{
    Fault, FaultError, Grain, LogKey, MemoryStorage, OperationKind, Storage, UnsyncedKind,
};

use crate::fixture::{DISK, MEMORY};
use crate::machine::{Machine, Stop, tiny_segments};

/// All subsets of 12 units.
const SUBSETS_MAX: usize = 1 << 12;
const SEEDED: u64 = 64;
/// Recoveries that are cut, by operation of the trace and grain.
const RECOVERIES: usize = 2;
/// Every so many images the housekeeper works before the power is cut again.
const HOUSE_STRIDE: usize = 8;

/// How much a suite looked at.
#[derive(Debug, Default)]
struct Extent {
    operations: u64,
    images: usize,
    recovery_images: usize,
    sampled_points: usize,
}

/// Where a promise was broken.
#[derive(Debug)]
struct Broken {
    after: u64,
    what: String,
}

/// Rounds of all sizes, trims, a deletion, housekeeping, snapshots, a sync that fails once, the end
/// of the process, and a close.
pub(crate) fn trace(machine: &mut Machine, is_memory: bool) -> Result<(), Stop> {
    machine.open_cut()?;
    for turn in 0..3_u64 {
        for step in 0..7_u64 {
            let size = 150 + 400 * (step as usize % 3);
            let parts = [(1, 1, size), (2, 2, 40), (10 + turn, 1, 700)];
            put(machine, is_memory, &parts[..1 + (step as usize + 1) % 3])?;
            if step == 2 {
                put(machine, is_memory, &[(2, 3, 2500)])?;
            }
            if step == 3 {
                machine.trim(1, 60);
                machine.trim(10 + turn, 40);
                put(machine, is_memory, &[])?;
            }
            machine.keep_house(1)?;
        }
        put(machine, is_memory, &[(1, 1, 20_000)])?;
        put(machine, is_memory, &[(2, 1, 300), (1, 1, 8_000)])?;
        if is_memory {
            machine.sync_beside(&[(1, 1, 500)])?;
            machine.sync()?;
        }
        machine.snapshot()?;
        put(machine, is_memory, &[(2, 1, 9_000)])?;
        machine.trim(1, 100);
        machine.trim(2, 80);
        put(machine, is_memory, &[])?;
        machine.sync()?;
        machine.keep_house(3)?;
        match turn {
            0 => {
                machine.twin.inject(Fault {
                    on: Some(OperationKind::Sync),
                    skip: 0,
                    times: 1,
                    error: FaultError::Io,
                });
                put(machine, is_memory, &[(1, 1, 600), (2, 1, 100)])?;
                machine.sync()?;
                put(machine, is_memory, &[(1, 1, 600)])?;
            }
            1 => {
                machine.forget(10);
                put(machine, is_memory, &[])?;
                machine.drop_log();
                machine.open_killed()?;
            }
            _ => {
                machine.close()?;
                machine.open_killed()?;
                put(machine, is_memory, &[(1, 1, 600)])?;
            }
        }
    }
    machine.close()
}

/// A round as the durability of the log has it: a `memory` log syncs every other time.
fn put(machine: &mut Machine, is_memory: bool, parts: &[crate::machine::Part]) -> Result<(), Stop> {
    if !is_memory {
        return machine.commit(parts);
    }
    machine.write(parts)?;
    if machine.ledger.rounds_begun().is_multiple_of(2) {
        machine.sync()?;
    }
    Ok(())
}

/// What a power cut may leave of this disk, without repetition. Says whether that is all of it.
fn images(twin: &MemoryStorage, grain: Grain) -> (Vec<MemoryStorage>, bool) {
    let units = twin.unsynced(grain);
    let sizes: Vec<usize> = units.iter().map(|unit| unit.versions + 1).collect();
    // The same for the same disk: after a write, and after the sync that would have followed.
    let seed = units.iter().fold(units.len() as u64, |seed, unit| {
        let place = match unit.kind {
            UnsyncedKind::Bytes(position) => position / 512 + 1,
            UnsyncedKind::Name | UnsyncedKind::Length => 0,
        };
        (seed * 31 + place) % 1_000_003
    });
    // The units whose combinations are all tried.
    let mut chosen = vec![false; sizes.len()];
    let mut combinations = 1;
    let offset = seed as usize % sizes.len().max(1);
    for index in (0..sizes.len()).map(|index| (index + offset) % sizes.len()) {
        if combinations * sizes[index] <= SUBSETS_MAX {
            combinations *= sizes[index];
            chosen[index] = true;
        }
    }
    let all = chosen.iter().all(|chosen| *chosen);
    let mut found = Vec::new();
    let rest = if seed.is_multiple_of(2) {
        usize::MAX
    } else {
        0
    };
    for combination in 0..combinations {
        let mut left = combination;
        found.push(twin.crash(grain, |index, unit| {
            if !chosen[index] {
                return rest;
            }
            let kept = left % (unit.versions + 1);
            left /= unit.versions + 1;
            kept
        }));
    }
    if !all {
        found.extend((0..SEEDED).map(|draw| twin.crash_seeded(grain, seed * SEEDED + draw)));
    }
    (found, all)
}

/// Opens an image, appends, cuts the power again and looks once more: what was found and what was
/// acknowledged since must be there, whatever else that machine had not synced.
fn check_image(before: &Machine, image: MemoryStorage, thorough: bool) -> Result<(), Stop> {
    let mut machine = before.restarted(image);
    machine.open_cut()?;
    check_opened(&mut machine, thorough)
}

fn check_opened(machine: &mut Machine, thorough: bool) -> Result<(), Stop> {
    // What was read once must be read again.
    let untouched = machine.twin.duplicate().crash_keeping(Grain::Page, 0);
    let mut again = machine.restarted(untouched);
    again
        .open_cut()
        .map_err(|stop| stop.when("cut once more"))?;
    if thorough {
        machine.keep_house(6)?;
    }
    machine.commit(&[(1, 1, 90), (77, 1, 900)])?;
    machine
        .ledger
        .check_live(machine.reader())
        .map_err(|what| Stop::Broken(what).when("live"))?;
    if thorough {
        machine.keep_house(6)?;
    }
    let cut = machine.twin.crash_keeping(Grain::Page, 0);
    let mut again = machine.restarted(cut);
    again
        .open_cut()
        .map_err(|stop| stop.when("after an append"))
}

/// Others take all the space that is left.
fn fill(twin: &MemoryStorage) {
    let space = twin.space().unwrap();
    twin.set_total_bytes(space.total_bytes - space.free_bytes);
}

/// Cuts the power after each operation of the recovery from `image`, and after it. On a disk that is
/// `full` what should be written again stays where it is; then there is space again.
fn check_recovery(before: &Machine, image: &MemoryStorage, full: bool) -> Result<usize, Stop> {
    let image = image.duplicate();
    if full {
        fill(&image);
    }
    let mut whole = before.restarted(image.duplicate());
    whole.open_cut()?;
    if full {
        let cut = whole.twin.crash_keeping(Grain::Page, 0);
        cut.set_total_bytes(1 << 40);
        check_image(&whole, cut, true).map_err(|stop| stop.when("with space again"))?;
    }
    let operations = whole.twin.operations();
    let mut images = 0;
    for operation in 1..=operations {
        let mut machine = before.restarted(image.duplicate());
        machine.twin.crash_after(operation);
        if machine.open_cut() != Err(Stop::Halted) {
            return Err(Stop::Broken("it opened without power".to_owned()));
        }
        let twin = &machine.twin;
        let units = twin.unsynced(Grain::Page).len() as u32;
        let mut left: Vec<MemoryStorage> = (0..1 << units.min(5))
            .map(|bits| twin.crash_keeping(Grain::Page, bits))
            .collect();
        left.push(twin.crash_keeping(Grain::Page, u64::MAX));
        left.extend((0..6).map(|seed| twin.crash_seeded(Grain::Sector, seed)));
        for image in left {
            image.set_total_bytes(1 << 40);
            images += 1;
            let mut again = machine.restarted(image);
            let when = format!("operation {operation} of recovery");
            again.open_cut().map_err(|stop| stop.when(&when))?;
            again.commit(&[(1, 1, 90)])?;
            let cut = again.twin.crash_keeping(Grain::Page, 0);
            let mut last = again.restarted(cut);
            last.open_cut().map_err(|stop| stop.when(&when))?;
        }
    }
    Ok(images)
}

fn run(key: LogKey, without_sync: bool) -> Result<Extent, Broken> {
    let is_memory = key == MEMORY;
    let mut extent = Extent::default();
    let mut looked_at = HashSet::new();
    for after in 1.. {
        let mut machine = Machine::new(key, tiny_segments());
        machine.twin.set_without_sync(without_sync);
        machine.twin.crash_after(after);
        let broken = |stop| match stop {
            Stop::Broken(what) => Broken { after, what },
            Stop::Halted => Broken {
                after,
                what: "it went no further".to_owned(),
            },
        };
        match trace(&mut machine, is_memory) {
            Ok(()) => break,
            Err(Stop::Halted) => {}
            Err(stop) => return Err(broken(stop)),
        }
        machine.drop_log();
        assert!(
            machine.twin.is_dead(),
            "operation {after}: a live disk stopped the trace"
        );
        extent.operations = after;
        let mut killed = machine.restarted(machine.twin.kill());
        killed
            .open_killed()
            .and_then(|()| check_opened(&mut killed, true))
            .map_err(|stop| broken(stop.when("killed")))?;
        for grain in [Grain::Page, Grain::Sector] {
            let (images, all) = images(&machine.twin, grain);
            extent.sampled_points += usize::from(!all);
            let stride = images.len().div_ceil(RECOVERIES);
            for (number, image) in images.into_iter().enumerate() {
                let promised = machine.ledger.progress();
                if !looked_at.insert((image.fingerprint(), promised)) {
                    continue;
                }
                extent.images += 1;
                if (number + after as usize).is_multiple_of(stride) {
                    for full in [false, true] {
                        let checked = check_recovery(&machine, &image, full);
                        extent.recovery_images += checked.map_err(|stop| {
                            broken(if full {
                                stop.when("on a full disk")
                            } else {
                                stop
                            })
                        })?;
                    }
                }
                let thorough = extent.images % HOUSE_STRIDE == 0;
                check_image(&machine, image, thorough).map_err(broken)?;
            }
        }
    }
    Ok(extent)
}

fn check(key: LogKey) {
    let extent = run(key, false).unwrap_or_else(|broken| {
        panic!("after operation {}: {}", broken.after, broken.what);
    });
    println!("{key:?}: {extent:?}");
    assert!(extent.operations >= 200, "{extent:?}");
    assert!(extent.images >= 1000, "{extent:?}");
    assert!(extent.recovery_images >= 1000, "{extent:?}");
}

#[test]
fn no_power_cut_loses_what_a_disk_log_acknowledged() {
    check(DISK);
}

#[test]
fn no_power_cut_loses_what_a_memory_log_synced() {
    check(MEMORY);
}

/// The suite can fail: on a disk whose syncs do nothing it must find the loss.
#[test]
fn a_disk_without_sync_is_caught() {
    for key in [DISK, MEMORY] {
        let broken = run(key, true).unwrap_err();
        assert!(broken.after < 100, "{broken:?}");
    }
}
