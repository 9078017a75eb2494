//! Latencies in buckets with fixed bounds.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds in microseconds; what is above the last is only in the count.
const BOUNDS_US: [u64; 20] = [
    20, 50, 100, 150, 200, 300, 500, 750, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000,
    200_000, 500_000, 1_000_000, 2_500_000, 10_000_000,
];

/// A latency histogram with fixed bounds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HistogramSnapshot {
    /// Upper bounds in seconds, with how many observations were at or below each (cumulative).
    pub buckets: Vec<(f64, u64)>,
    /// Sum of observations in seconds.
    pub sum_seconds: f64,
    /// Observations.
    pub count: u64,
}

/// The histogram while it is filled.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    buckets: [AtomicU64; BOUNDS_US.len()],
    sum_us: AtomicU64,
    count: AtomicU64,
}

impl Histogram {
    /// Counts `times` observations of the same latency.
    pub(super) fn observe(&self, latency: Duration, times: u64) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let at = BOUNDS_US.partition_point(|&bound| bound < us);
        if let Some(bucket) = self.buckets.get(at) {
            bucket.fetch_add(times, Ordering::Relaxed);
        }
        self.sum_us
            .fetch_add(us.saturating_mul(times), Ordering::Relaxed);
        self.count.fetch_add(times, Ordering::Relaxed);
    }

    #[expect(clippy::cast_precision_loss, reason = "seconds for a chart")]
    pub(super) fn snapshot(&self) -> HistogramSnapshot {
        let mut below = 0;
        let bucket = |(bound, count): (&u64, &AtomicU64)| {
            below += count.load(Ordering::Relaxed);
            (*bound as f64 / 1e6, below)
        };
        HistogramSnapshot {
            buckets: BOUNDS_US.iter().zip(&self.buckets).map(bucket).collect(),
            sum_seconds: self.sum_us.load(Ordering::Relaxed) as f64 / 1e6,
            count: self.count.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_include_their_bound() {
        let histogram = Histogram::default();
        histogram.observe(Duration::from_micros(20), 2);
        histogram.observe(Duration::from_micros(21), 1);
        histogram.observe(Duration::from_secs(60), 1);
        let found = histogram.snapshot();
        assert_eq!(found.buckets[..2], [(0.00002, 2), (0.00005, 3)]);
        assert_eq!(found.buckets.last(), Some(&(10.0, 3)));
        assert_eq!(found.count, 4);
        assert!((found.sum_seconds - 60.000_061).abs() < 1e-9);
    }
}
