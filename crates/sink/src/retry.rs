//! When to try again: back-off with jitter, and a budget that all delivery streams of a node share.
//! Pure: time and randomness are arguments.

use std::time::Duration;

/// The first pause.
const FIRST: Duration = Duration::from_millis(200);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(30);
/// Retries that may be made at once by all delivery streams of a node, and per second after that:
/// a store that comes back is not met by all of them in the same moment.
const BURST: f64 = 64.0;
const PER_SECOND: f64 = 32.0;

/// How long to wait after so many failures in a row (1 for the first); `random` is of 0 to 1. At
/// least half of the full pause, which doubles.
pub(crate) fn pause(failures: u32, random: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let full = FIRST.saturating_mul(1 << doublings).min(LONGEST);
    full.div_f64(2.0)
        .saturating_add(full.div_f64(2.0).mul_f64(random.clamp(0.0, 1.0)))
}

/// What is left of the shared budget.
#[derive(Debug)]
pub(crate) struct Budget {
    tokens: f64,
    at: Duration,
}

impl Budget {
    /// A full one. `now` is monotonic.
    pub(crate) fn full(now: Duration) -> Self {
        Self {
            tokens: BURST,
            at: now,
        }
    }

    /// Takes one retry out: how long it has to wait for its turn. Whoever asks has it.
    pub(crate) fn take(&mut self, now: Duration) -> Duration {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.tokens = (self.tokens + passed * PER_SECOND).min(BURST) - 1.0;
        Duration::from_secs_f64((-self.tokens).max(0.0) / PER_SECOND)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_are_never_short() {
        let bounds = [(1, 100, 200), (2, 200, 400), (3, 400, 800)];
        for (failures, least, most) in bounds {
            assert_eq!(pause(failures, 0.0), Duration::from_millis(least));
            assert_eq!(pause(failures, 1.0), Duration::from_millis(most));
        }
        assert_eq!(pause(u32::MAX, 1.0), LONGEST);
        assert_eq!(pause(40, 0.0), LONGEST / 2);
    }

    #[test]
    fn a_burst_goes_at_once_and_what_follows_is_spread() {
        let mut budget = Budget::full(Duration::ZERO);
        for _ in 0..64 {
            assert_eq!(budget.take(Duration::ZERO), Duration::ZERO);
        }
        let waits: Vec<_> = (0..32).map(|_| budget.take(Duration::ZERO)).collect();
        assert_eq!(waits[0], Duration::from_secs_f64(1.0 / 32.0));
        assert_eq!(waits[31], Duration::from_secs(1));
        // Time gives it back, up to the burst.
        assert_eq!(budget.take(Duration::from_secs(3600)), Duration::ZERO);
    }
}
