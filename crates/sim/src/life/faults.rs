//! What goes wrong with the machine.

use flumen_log::{Fault, FaultError, Grain, MemoryStorage, OperationKind, Storage};

use crate::random::{Dice, place};

/// How a process of the node ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    /// In order.
    Shutdown,
    /// `kill -9`.
    Kill,
    /// The power is cut.
    Cut,
}

/// What is left of the disk after an end without order.
pub(crate) fn image(storage: &MemoryStorage, end: End, dice: &mut Dice) -> MemoryStorage {
    match end {
        End::Shutdown | End::Kill => storage.kill(),
        End::Cut => {
            let grain = match dice.once_in(2) {
                true => Grain::Page,
                false => Grain::Sector,
            };
            storage.crash_seeded(grain, dice.next())
        }
    }
}

/// Some operations to come fail.
pub(crate) fn fail(storage: &MemoryStorage, dice: &mut Dice) -> Fault {
    let kinds = [
        OperationKind::Create,
        OperationKind::Allocate,
        OperationKind::Write,
        OperationKind::Sync,
        OperationKind::SyncDir,
        OperationKind::Rename,
        OperationKind::Remove,
        OperationKind::PunchHole,
        OperationKind::Read,
    ];
    let on = kinds.get(place(dice.below(kinds.len() as u64))).copied();
    let error = match (on, dice.below(3)) {
        (Some(OperationKind::Write), 0) => FaultError::Short(dice.below(2000)),
        (Some(OperationKind::Create | OperationKind::Allocate | OperationKind::Write), 1) => {
            FaultError::NoSpace
        }
        _ => FaultError::Io,
    };
    let fault = Fault {
        on,
        skip: dice.below(20),
        times: dice.between(1, 3),
        error,
    };
    storage.inject(fault);
    fault
}

/// The disk takes only so much more.
pub(crate) fn fill(storage: &MemoryStorage, leaves: u64) -> Option<u64> {
    let space = storage.space().ok()?;
    let used = space.total_bytes.saturating_sub(space.free_bytes);
    storage.set_total_bytes(used + leaves);
    Some(space.total_bytes)
}

/// The logs' directories of a data directory.
fn logs(storage: &MemoryStorage) -> Vec<String> {
    let dirs = storage.list_dirs("").unwrap_or_default();
    let is_log = |dir: &String| dir.starts_with("log-") || dir == "groups" || dir == "deliveries";
    dirs.into_iter().filter(is_log).collect()
}

/// A log loses all its segments; which.
pub(crate) fn lose_log(storage: &MemoryStorage, dice: &mut Dice) -> Option<String> {
    let logs = logs(storage);
    let dir = logs.get(place(dice.below(logs.len() as u64)))?.clone();
    for file in storage.list(&dir).ok()? {
        storage.remove(&format!("{dir}/{}", file.name)).ok()?;
    }
    storage.sync_dir(&dir).ok()?;
    Some(dir)
}

/// A bit flips near the end of what is written to a log's newest segment; where.
pub(crate) fn rot_tail(storage: &MemoryStorage, dice: &mut Dice) -> Option<(String, u64)> {
    let mut dirs = logs(storage);
    dirs.retain(|dir| dir.starts_with("log-"));
    let dir = dirs.get(place(dice.below(dirs.len() as u64)))?;
    let mut newest = None;
    for file in storage.list(dir).ok()? {
        let path = format!("{dir}/{}", file.name);
        let bytes = usize::try_from(file.bytes).ok()?;
        let mut written = None;
        storage.rot(
            &path,
            0,
            |bytes| written = bytes.iter().rposition(|it| *it != 0),
            bytes,
        );
        // Only a header is in those that wait.
        if let Some(last) = written.filter(|last| *last > 8192) {
            newest = Some((path, last as u64));
        }
    }
    let (path, last) = newest?;
    let position = last - dice.below(4000);
    let bit = 1u8 << dice.below(8);
    storage.rot(
        &path,
        position,
        |byte| byte.iter_mut().for_each(|it| *it ^= bit),
        1,
    );
    Some((path, position))
}

/// A bit of a segment flips; where.
pub(crate) fn rot(storage: &MemoryStorage, dice: &mut Dice) -> Option<(String, u64)> {
    let mut files = Vec::new();
    for dir in storage.list_dirs("").ok()? {
        if !dir.starts_with("log-") {
            continue;
        }
        for file in storage.list(&dir).ok()? {
            if file.bytes > 0 {
                files.push((format!("{dir}/{}", file.name), file.bytes));
            }
        }
    }
    let (path, bytes) = files.get(place(dice.below(files.len() as u64)))?.clone();
    let position = dice.below(bytes);
    let bit = 1u8 << dice.below(8);
    storage.rot(
        &path,
        position,
        |byte| byte.iter_mut().for_each(|it| *it ^= bit),
        1,
    );
    Some((path, position))
}
