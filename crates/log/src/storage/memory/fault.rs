//! What a test can see of, and do to, the operations of the in-memory disk.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

/// Kinds of operations, as they are counted and made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OperationKind {
    /// A directory comes into being.
    CreateDir,
    /// A file's name comes into being, still empty.
    Create,
    /// The file gets its length and its blocks.
    Allocate,
    /// Bytes are written.
    Write,
    /// A file, or what one durable write wrote, is made durable.
    Sync,
    /// The names in a directory are made durable.
    SyncDir,
    /// A file changes its name.
    Rename,
    /// A name goes away.
    Remove,
    /// A hole is punched.
    PunchHole,
    /// Bytes are read. Not numbered: it changes nothing, so a crash there is none of its own.
    Read,
}

/// One operation as it was traced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// From 1, over all operations but reads.
    pub number: u64,
    /// What it is.
    pub kind: OperationKind,
    /// The file or directory; for a rename the old name.
    pub path: String,
    /// The bytes touched; empty where there are none.
    pub range: Range<u64>,
}

/// How an operation fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultError {
    /// EIO. A sync that fails so marks its pages clean all the same: the next sync says OK, and
    /// whether they are on the disk nobody knows.
    Io,
    /// ENOSPC.
    NoSpace,
    /// A write that stops after so many bytes (those are written, not durable), then EIO.
    Short(u64),
}

impl FaultError {
    pub(super) fn to_io(self) -> io::Error {
        match self {
            Self::Io | Self::Short(_) => rustix::io::Errno::IO.into(),
            Self::NoSpace => rustix::io::Errno::NOSPC.into(),
        }
    }
}

/// A failure to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Which operations it hits; `None` is any, reads included.
    pub on: Option<OperationKind>,
    /// How many of those still succeed before.
    pub skip: u64,
    /// How many fail then; `u64::MAX` is always.
    pub times: u64,
    /// With what.
    pub error: FaultError,
}

/// What is to happen to one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It works.
    Done,
    /// The power goes while it is under way: it may have happened, nobody hears of it.
    Cut,
    /// It fails.
    Fail(FaultError),
}

/// What a test does while a read is under way.
#[derive(Default)]
pub(super) struct ReadHook(pub(super) Option<Box<dyn FnOnce() + Send>>);

impl std::fmt::Debug for ReadHook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ReadHook").field(&self.0.is_some()).finish()
    }
}

/// Counts operations and decides each one's fate.
#[derive(Debug, Default)]
pub(super) struct Script {
    pub(super) operations: u64,
    pub(super) counts: BTreeMap<OperationKind, u64>,
    /// Bytes of segments read or populated.
    pub(super) read_bytes: u64,
    pub(super) faults: Vec<Fault>,
    pub(super) crash_at: Option<u64>,
    pub(super) dead: bool,
    pub(super) trace: Option<Vec<Operation>>,
    pub(super) read_hook: ReadHook,
}

impl Script {
    pub(super) fn cut_error() -> io::Error {
        io::Error::other("the power is cut (simulated)")
    }

    /// Counts one operation; `Err` when this disk has no power any more.
    pub(super) fn step(
        &mut self,
        kind: OperationKind,
        path: &str,
        range: Range<u64>,
    ) -> io::Result<Fate> {
        if self.dead {
            return Err(Self::cut_error());
        }
        *self.counts.entry(kind).or_default() += 1;
        if kind == OperationKind::Read {
            self.read_bytes += range.end - range.start;
        } else {
            self.operations += 1;
            if let Some(trace) = &mut self.trace {
                trace.push(Operation {
                    number: self.operations,
                    kind,
                    path: path.to_owned(),
                    range,
                });
            }
            if self.crash_at == Some(self.operations) {
                self.dead = true;
                return Ok(Fate::Cut);
            }
        }
        for fault in self
            .faults
            .iter_mut()
            .filter(|fault| fault.on.is_none_or(|on| on == kind))
        {
            if fault.skip > 0 {
                fault.skip -= 1;
            } else if fault.times > 0 {
                fault.times = if fault.times == u64::MAX {
                    u64::MAX
                } else {
                    fault.times - 1
                };
                return Ok(Fate::Fail(fault.error));
            }
        }
        Ok(Fate::Done)
    }
}
