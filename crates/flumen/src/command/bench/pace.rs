//! The clock of an open loop: says when batches are due, to the session whose turn it is.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

/// When batches are due: number `k` at `k` intervals after the start, sessions taking turns.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    /// Between two batches of all sessions together.
    interval_ns: u64,
    batch: u32,
    records: u64,
    /// Batches in all.
    batches: u64,
    turns: Vec<Arc<Semaphore>>,
}

impl Pace {
    /// `rate` records per second in batches of `batch`, `records` in all.
    pub(super) fn new(rate: u64, batch: u32, records: u64, sessions: u32) -> Self {
        let interval_ns = 1_000_000_000_u64.saturating_mul(u64::from(batch)) / rate.max(1);
        let turns = (0..sessions).map(|_| Arc::new(Semaphore::new(0))).collect();
        Self {
            interval_ns,
            batch,
            records,
            batches: records.div_ceil(u64::from(batch.max(1))),
            turns,
        }
    }

    fn number(&self, session: u32, turn: u64) -> u64 {
        turn.saturating_mul(self.turns.len() as u64) + u64::from(session)
    }

    /// Records of batch `turn` of session `session`: the last one of all may have fewer.
    pub(super) fn records(&self, session: u32, turn: u64) -> u32 {
        let before = self
            .number(session, turn)
            .saturating_mul(u64::from(self.batch));
        let left = self.records.saturating_sub(before);
        u32::try_from(left).unwrap_or(u32::MAX).min(self.batch)
    }

    /// When batch `turn` of session `session` is due.
    pub(super) fn due(&self, begun: Instant, session: u32, turn: u64) -> Instant {
        let number = self.number(session, turn);
        begun + Duration::from_nanos(number.saturating_mul(self.interval_ns))
    }

    /// Batches of one session.
    pub(super) fn batches_of(&self, session: u32) -> u64 {
        let sessions = self.turns.len() as u64;
        (self.batches + sessions - 1).saturating_sub(u64::from(session)) / sessions.max(1)
    }

    /// What a session waits on: one permit per batch that is due.
    pub(super) fn turn(&self, session: u32) -> Option<Arc<Semaphore>> {
        self.turns.get(session as usize).map(Arc::clone)
    }

    /// Gives the turns out. Runs on a thread of its own: the runtime's timers are a millisecond
    /// wide, a sleeping thread is woken within some 60 µs.
    pub(super) fn run(&self, begun: Instant) {
        for number in 0..self.batches {
            let due = begun + Duration::from_nanos(number.saturating_mul(self.interval_ns));
            let early = due.saturating_duration_since(Instant::now());
            if !early.is_zero() {
                std::thread::sleep(early);
            }
            let turn = usize::try_from(number % self.turns.len().max(1) as u64).unwrap_or(0);
            if let Some(session) = self.turns.get(turn) {
                session.add_permits(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_shared_out_and_due_in_order() {
        let pace = Pace::new(1_000, 10, 65, 3);
        assert_eq!([0, 1, 2].map(|session| pace.batches_of(session)), [3, 2, 2]);
        assert_eq!((pace.records(2, 1), pace.records(0, 2)), (10, 5));
        let begun = Instant::now();
        let due = |session, turn| pace.due(begun, session, turn) - begun;
        assert_eq!(due(0, 0), Duration::ZERO);
        assert_eq!(due(2, 0), Duration::from_millis(20));
        assert_eq!(due(0, 2), Duration::from_millis(60));
    }
}
