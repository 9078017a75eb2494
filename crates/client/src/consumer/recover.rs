//! What a consumer does about failures: wait and subscribe again, step over a gap, or say why not.

use flumen_record::{FrameError, SequenceNumber, ShardIndex};
use tokio::time::{Duration, Instant, sleep_until};

use super::Consumer;
use crate::retry::{Backoff, RetryPolicy, random_seed};
use crate::{ConsumeError, Error, GapPolicy, reason};

/// A session that lived this long was no failed attempt.
const SESSION_LIVED: Duration = Duration::from_secs(1);
/// The same damage, this many times in a row, is not the wire's.
const DAMAGE_ATTEMPTS: u32 = 3;

/// How long an outage has lasted and when to try again.
#[derive(Debug)]
pub(super) struct Patience {
    budget: Duration,
    backoff: Backoff,
    since: Option<Instant>,
    resume_at: Option<Instant>,
    damage: Option<(ShardIndex, SequenceNumber, u32)>,
}

impl Patience {
    pub(super) fn new(budget: Duration) -> Self {
        let backoff = Backoff::new(RetryPolicy::default(), random_seed());
        Self {
            budget,
            backoff,
            since: None,
            resume_at: None,
            damage: None,
        }
    }

    /// An attempt failed; an error when there will not be another.
    pub(super) fn failed(&mut self, error: Error) -> Result<(), ConsumeError> {
        if !error.is_retryable() {
            return Err(ConsumeError::Refused(error));
        }
        let now = Instant::now();
        let since = *self.since.get_or_insert(now);
        let next = now + self.backoff.next(error.retry_after());
        self.resume_at = Some(next);
        if next.saturating_duration_since(since) > self.budget {
            // Whoever asks again starts a new outage.
            self.since = None;
            let waited = now.saturating_duration_since(since);
            return Err(ConsumeError::Unavailable {
                waited,
                last: error,
            });
        }
        Ok(())
    }

    /// Waits until the next attempt may be made. Cancel-safe.
    pub(super) async fn wait(&mut self) {
        if let Some(at) = self.resume_at {
            sleep_until(at).await;
            self.resume_at = None;
        }
    }

    /// A response came.
    pub(super) fn heard(&mut self) {
        self.since = None;
    }

    /// A response was good.
    pub(super) fn succeeded(&mut self) {
        self.since = None;
        self.damage = None;
        self.backoff.reset();
    }

    /// A frame was damaged; an error when it was so each time it was asked for.
    pub(super) fn damaged(
        &mut self,
        shard: ShardIndex,
        next: SequenceNumber,
        error: FrameError,
    ) -> Result<(), ConsumeError> {
        let before = self
            .damage
            .filter(|(at, number, _)| (*at, *number) == (shard, next));
        let attempts = before.map_or(0, |(.., attempts)| attempts) + 1;
        self.damage = Some((shard, next, attempts));
        self.resume_at = Some(Instant::now() + self.backoff.next(None));
        if attempts >= DAMAGE_ATTEMPTS {
            self.damage = None;
            return Err(ConsumeError::Damaged { shard, next, error });
        }
        Ok(())
    }
}

impl Consumer {
    /// A session or a call failed.
    pub(super) async fn recover(&mut self, error: Error) -> Result<(), ConsumeError> {
        let lived = self
            .session
            .as_ref()
            .map(|session| session.opened.elapsed());
        self.drop_session();
        if lived.is_some_and(|lived| lived >= SESSION_LIVED) {
            self.patience.succeeded();
        }
        match error.reason() {
            reason::TRIMMED => self.trimmed(error).await,
            reason::DATA_LOSS => self.data_loss(error),
            _ => self.patience.failed(error),
        }
    }

    /// A position is below the trim horizon: the broker's description says which.
    async fn trimmed(&mut self, error: Error) -> Result<(), ConsumeError> {
        let known = self.client.describe_known(&self.stream, self.incarnation);
        let description = match known.await {
            Ok(description) => description,
            Err(error) => return self.patience.failed(error),
        };
        let mut found = false;
        for cursor in self.cursors.iter_mut().filter(|cursor| !cursor.is_done()) {
            let shard = cursor.shard;
            let described = description
                .shards
                .iter()
                .find(|described| described.index == shard);
            let horizon = described.map(|described| described.trim_horizon);
            let Some((asked, horizon)) = cursor.next().zip(horizon).filter(|(n, h)| n < h) else {
                continue;
            };
            if self.config.gaps == GapPolicy::Fail {
                return Err(ConsumeError::Trimmed {
                    shard,
                    asked,
                    horizon,
                });
            }
            self.stats.numbers_skipped += cursor.skip_to(horizon);
            found = true;
        }
        if found {
            Ok(())
        } else {
            Err(ConsumeError::Refused(error))
        }
    }

    /// The broker names the range that is lost.
    fn data_loss(&mut self, error: Error) -> Result<(), ConsumeError> {
        let named = |name| {
            error
                .metadata(name)
                .and_then(|value| value.parse::<u64>().ok())
        };
        let (shard, from, to) = (named("shard"), named("from"), named("to"));
        let shard = shard
            .and_then(|shard| u32::try_from(shard).ok())
            .map(ShardIndex::new);
        let (Some(shard), Some(from), Some(to)) = (shard, from, to) else {
            return Err(ConsumeError::Refused(error));
        };
        let (from, to) = (SequenceNumber::new(from), SequenceNumber::new(to));
        let cursor = self.cursors.iter_mut().find(|cursor| cursor.shard == shard);
        match (self.config.gaps, cursor) {
            (GapPolicy::Skip, Some(cursor)) if cursor.next().is_none_or(|next| next < to) => {
                cursor.resolved(from);
                self.stats.numbers_skipped += cursor.skip_to(to);
                Ok(())
            }
            _ => Err(ConsumeError::DataLoss { shard, from, to }),
        }
    }
}
