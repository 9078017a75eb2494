//! What to do when a handler fails. Pure.

use std::time::Duration;

use flumen_record::StreamName;

use crate::RetryPolicy;

/// What to do when a handler fails: try again, narrow it down, and in the end never skip silently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailurePolicy {
    /// How often the same records are tried, at least 1.
    pub attempts: u32,
    /// How long to wait between tries.
    pub backoff: RetryPolicy,
    /// Whether records that failed together are halved and the halves tried by themselves, down to
    /// the one that fails.
    pub bisect: bool,
    /// What becomes of what still fails.
    pub then: GiveUp,
}

/// What becomes of records that fail for good.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum GiveUp {
    /// The shard stands still, and that is said: [`crate::GroupEvent::Stopped`], a log line, growing
    /// lag. Nothing is skipped.
    #[default]
    Stop,
    /// They are written to this stream, with the reason in their headers, and the shard goes on once
    /// that is durable.
    DeadLetter(StreamName),
}

impl Default for FailurePolicy {
    /// Stop at the first failure.
    fn default() -> Self {
        Self {
            attempts: 1,
            backoff: RetryPolicy {
                first: Duration::from_millis(100),
                longest: Duration::from_secs(10),
            },
            bisect: false,
            then: GiveUp::Stop,
        }
    }
}

/// The next step after a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NextStep<'a> {
    /// The same records again, after a pause.
    Retry,
    /// The first this many by themselves, then the others.
    Halve(usize),
    /// To the dead-letter stream.
    DeadLetter(&'a StreamName),
    /// No further.
    Stop,
}

impl FailurePolicy {
    /// What follows when `records` records have failed together `attempts` times.
    pub(super) fn next_step(&self, records: usize, attempts: u32) -> NextStep<'_> {
        if attempts < self.attempts {
            return NextStep::Retry;
        }
        if self.bisect && records > 1 {
            return NextStep::Halve(records / 2);
        }
        match &self.then {
            GiveUp::Stop => NextStep::Stop,
            GiveUp::DeadLetter(stream) => NextStep::DeadLetter(stream),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_policy_goes_its_way() {
        let dead: StreamName = "dead".parse().unwrap();
        let policy = |attempts, bisect, letter: bool| FailurePolicy {
            attempts,
            bisect,
            then: if letter {
                GiveUp::DeadLetter(dead.clone())
            } else {
                GiveUp::Stop
            },
            ..FailurePolicy::default()
        };
        for (policy, records, attempts, expected) in [
            (FailurePolicy::default(), 500, 1, NextStep::Stop),
            (policy(3, false, false), 5, 1, NextStep::Retry),
            (policy(3, false, false), 5, 2, NextStep::Retry),
            (policy(3, false, false), 5, 3, NextStep::Stop),
            (policy(1, true, false), 5, 1, NextStep::Halve(2)),
            (policy(2, true, false), 2, 2, NextStep::Halve(1)),
            (policy(1, true, false), 1, 1, NextStep::Stop),
            (policy(1, true, true), 1, 1, NextStep::DeadLetter(&dead)),
            (policy(1, false, true), 9, 1, NextStep::DeadLetter(&dead)),
            // A policy of zero attempts is one of one.
            (policy(0, false, false), 1, 1, NextStep::Stop),
        ] {
            assert_eq!(policy.next_step(records, attempts), expected, "{policy:?}");
        }
    }
}
