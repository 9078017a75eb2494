//! When to try again: exponential, with jitter, within a budget. [`Backoff`] is pure: its randomness
//! is a seed.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

use crate::Error;

/// How fast retries follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Delay before the first retry, before jitter.
    pub first: Duration,
    /// Longest delay, before jitter.
    pub longest: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(20),
            longest: Duration::from_secs(2),
        }
    }
}

/// The delays of one row of failures: doubling, each between half and all of its nominal length.
#[derive(Debug, Clone)]
pub struct Backoff {
    policy: RetryPolicy,
    failures: u32,
    random: u64,
}

impl Backoff {
    /// No failures yet. Equal seeds give equal delays.
    pub fn new(policy: RetryPolicy, seed: u64) -> Self {
        Self {
            policy,
            failures: 0,
            random: seed,
        }
    }

    /// The delay after one more failure. `asked` is what the broker wants waited: never less.
    pub fn next(&mut self, asked: Option<Duration>) -> Duration {
        let doubled = self.policy.first.saturating_mul(1 << self.failures.min(20));
        self.failures = self.failures.saturating_add(1);
        let nominal = doubled.min(self.policy.longest);
        let jittered = nominal.mul_f64(0.5 + 0.5 * self.fraction());
        jittered.max(asked.unwrap_or_default())
    }

    /// Something succeeded: the next delay is the first again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Failures since the last success.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// The next number in [0, 1) of a SplitMix64 generator (Steele, Lea, Flood 2014).
    fn fraction(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        f64::from(u32::try_from((z ^ (z >> 31)) >> 32).unwrap_or(0)) / f64::from(u32::MAX)
    }
}

/// One thing tried again and again, until it works, is hopeless or takes too long.
#[derive(Debug)]
pub(crate) struct Retry {
    backoff: Backoff,
    deadline: Instant,
}

impl Retry {
    /// Failures are ridden out until `budget` after `now`.
    pub(crate) fn new(seed: u64, budget: Duration, now: Instant) -> Self {
        Self {
            backoff: Backoff::new(RetryPolicy::default(), seed),
            deadline: now + budget,
        }
    }

    /// Tries until it works; the first hopeless failure, or the last within the budget.
    pub(crate) async fn run<T, F>(&mut self, mut attempt: impl FnMut() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        loop {
            match attempt().await {
                Ok(value) => return Ok(value),
                Err(error) if error.is_retryable() => self.wait(error).await?,
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits before the next attempt after this failure; the failure itself once the budget is used
    /// up.
    pub(crate) async fn wait(&mut self, error: Error) -> Result<(), Error> {
        let next = Instant::now() + self.backoff.next(error.retry_after());
        if next > self.deadline {
            return Err(error);
        }
        tokio::time::sleep_until(next).await;
        Ok(())
    }
}

/// A seed that differs from process to process and call to call.
pub(crate) fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0_u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delays(seed: u64, n: usize, asked: Option<Duration>) -> Vec<Duration> {
        let mut backoff = Backoff::new(RetryPolicy::default(), seed);
        (0..n).map(|_| backoff.next(asked)).collect()
    }

    #[test]
    fn delays_double_up_to_the_longest_and_keep_between_half_and_all() {
        for seed in 0..100 {
            for (i, delay) in delays(seed, 40, None).into_iter().enumerate() {
                let nominal = Duration::from_millis(20)
                    .saturating_mul(1 << i.min(20))
                    .min(Duration::from_secs(2));
                assert!(
                    delay >= nominal / 2 && delay <= nominal,
                    "failure {i}: {delay:?}"
                );
            }
        }
    }

    #[test]
    fn equal_seeds_give_equal_delays_and_others_differ() {
        assert_eq!(delays(7, 10, None), delays(7, 10, None));
        assert_ne!(delays(7, 10, None), delays(8, 10, None));
    }

    #[test]
    fn what_the_broker_asks_is_the_least() {
        let asked = Duration::from_secs(5);
        assert_eq!(delays(1, 3, Some(asked)), vec![asked; 3]);
    }

    #[test]
    fn a_success_starts_over() {
        let mut backoff = Backoff::new(RetryPolicy::default(), 1);
        for _ in 0..10 {
            backoff.next(None);
        }
        backoff.reset();
        assert!(backoff.next(None) <= Duration::from_millis(20));
    }
}
