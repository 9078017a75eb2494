//! Whether recovery has seen everything that was ever appended to a shard. Where it has not,
//! producers may be unknown that were known once.

use flumen_log::{BatchMark, ShardRecovery};
use flumen_record::SequenceNumber;

/// How far numbers jump where some may have been given out and lost (`docs/format.md`).
const JUMP: u64 = 1 << 32;

/// What recovery has seen of a shard, while it runs.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct History {
    /// Everything below is accounted for, but for what the other fields say.
    seen: SequenceNumber,
    /// The last batch came from a footer: batches before and after it may not come, as only each
    /// producer's last one is in there.
    sparse: bool,
    /// Where the first footer may have begun.
    sparse_from: Option<SequenceNumber>,
    /// Batches are missing.
    gap: bool,
    /// Where numbers went on after the last jump that was seen.
    resumed_at: Option<SequenceNumber>,
}

/// What recovery has found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Findings {
    /// Batches are missing that nobody remembers.
    pub(super) incomplete: bool,
    /// Where numbers went on after a jump that the saved state does not know.
    pub(super) resumed_at: Option<SequenceNumber>,
}

impl History {
    /// A saved state accounts for everything below `next`.
    pub(super) fn restored(&mut self, next: SequenceNumber) {
        *self = Self {
            seen: next,
            ..Self::default()
        };
    }

    /// A saved state is there and cannot be read.
    pub(super) fn lost(&mut self) {
        self.gap = true;
    }

    pub(super) fn batch(&mut self, mark: &BatchMark, partial: bool) {
        if partial {
            // Nothing lies within a jump that could have been freed.
            let jumped = mark.base.value().saturating_sub(self.seen.value()) >= JUMP;
            let from = if jumped {
                self.seen.plus(JUMP)
            } else {
                self.seen
            };
            self.sparse_from.get_or_insert(from);
        }
        let tolerated = partial || self.sparse;
        self.reached(mark.base, tolerated);
        self.sparse = partial;
        self.seen = self.seen.max(mark.base.plus(u64::from(mark.count)));
    }

    /// Numbers go on here. A hole is `tolerated` beside a footer.
    fn reached(&mut self, number: SequenceNumber, tolerated: bool) {
        match number.value().saturating_sub(self.seen.value()) {
            0 => {}
            JUMP.. => self.resumed_at = Some(number),
            _ => self.gap |= !tolerated,
        }
    }

    pub(super) fn end(mut self, recovery: &ShardRecovery) -> Findings {
        if let Some(resumed_at) = recovery.jumped {
            self.resumed_at = Some(resumed_at);
        } else {
            self.reached(recovery.next, self.sparse);
        }
        let freed = self
            .sparse_from
            .is_some_and(|from| recovery.trim_horizon > from);
        Findings {
            incomplete: self.gap || freed,
            resumed_at: self.resumed_at,
        }
    }
}
