//! A member of a consumer group: it reads the shards that the broker leases to it, calls a handler
//! with their records, and checkpoints what the handler has processed.
//!
//! One task (`driver`) speaks with the broker (in a `session`): joins, heartbeats, checkpoints,
//! releases. Every leased shard has a task of its own (`worker`), so a slow or failing handler holds
//! up its shard and no other. What is leased, and what is to be saved, is in `leases`; what to do
//! about a failing handler in `failure`; both are pure. `events` is how users hear of it.
//!
//! A handler is stopped (its future is dropped) when its lease is lost, and at the latest
//! [`GroupConfig::margin`] before the broker may give the shard to somebody else: the session timeout
//! after the last heartbeat that the broker has confirmed was sent. So only a hand-over that was
//! forced, or a crash between processing and checkpoint, repeats records.

mod admin;
mod dead_letter;
mod driver;
mod events;
mod failure;
mod leases;
mod session;
mod worker;

use std::error::Error as StdError;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use flumen_record::{GroupName, MemberName, SequenceNumber, ShardIndex, StreamName};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::{Client, ConsumeError, ConsumedRecord, GapPolicy, StartPosition};

pub use admin::{
    GroupDescription, GroupSummary, Lag, MemberDescription, ResetScope, ShardLease, ShardProgress,
    ShardReset,
};
pub use failure::{FailurePolicy, GiveUp};

/// Events that nobody has taken yet; beyond it new ones are dropped, but for those of shards that stand
/// still.
const EVENTS_MAX: usize = 1024;

/// How a member joins, reads and checkpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupConfig {
    /// The group. It comes into being with its first member.
    pub group: GroupName,
    /// Who this is. A name of its own per process that stays the same over restarts lets a restarted
    /// process have its shards back at once. `None`: a random name.
    pub member: Option<MemberName>,
    /// Where shards begin that have no checkpoint.
    pub start: StartPosition,
    /// Silent for this long, the member is gone for the broker. 1 s to 5 min.
    pub session_timeout: Duration,
    /// Handlers stop this long before the broker may give their shards away.
    pub margin: Duration,
    /// Records that a handler gets at once, at most.
    pub records_max: usize,
    /// Bytes of one read, at most (at least one frame). Two reads per shard are held: one being
    /// processed and the next.
    pub read_bytes_max: u64,
    /// What was processed is checkpointed this often.
    pub checkpoint_interval: Duration,
    /// What to do when the handler fails.
    pub on_failure: FailurePolicy,
    /// What to do about records that are gone: trimmed, or quarantined as damaged.
    pub gaps: GapPolicy,
    /// How long an outage is ridden out.
    pub retry_for: Duration,
}

impl GroupConfig {
    /// The defaults, for this group.
    pub fn new(group: GroupName) -> Self {
        Self {
            group,
            member: None,
            start: StartPosition::TrimHorizon,
            session_timeout: Duration::from_secs(10),
            margin: Duration::from_secs(1),
            records_max: 500,
            read_bytes_max: 1 << 20,
            checkpoint_interval: Duration::from_secs(1),
            on_failure: FailurePolicy::default(),
            gaps: GapPolicy::Fail,
            retry_for: Duration::from_secs(60),
        }
    }
}

/// What a handler gets: records of one shard, in order.
#[derive(Debug, Clone)]
pub struct GroupBatch {
    /// The shard.
    pub shard: ShardIndex,
    /// Of the lease: a later holder of the shard has a higher one. Stores that must not take anything
    /// from a member that was replaced can fence with it.
    pub generation: u64,
    /// The first try is 1.
    pub attempt: u32,
    /// At least one.
    pub records: Arc<Vec<ConsumedRecord>>,
}

/// Why a handler failed.
pub type HandlerError = Box<dyn StdError + Send + Sync>;

/// Processes records. Shards are handled at the same time; one shard's batches one after the other.
/// `Ok` means that all records are processed and may be checkpointed.
pub trait Handler: Send + Sync + 'static {
    /// Processes these records. The future may be dropped: see the module.
    fn handle(&self, batch: GroupBatch) -> impl Future<Output = Result<(), HandlerError>> + Send;
}

impl<F, R> Handler for F
where
    F: Fn(GroupBatch) -> R + Send + Sync + 'static,
    R: Future<Output = Result<(), HandlerError>> + Send,
{
    fn handle(&self, batch: GroupBatch) -> impl Future<Output = Result<(), HandlerError>> + Send {
        self(batch)
    }
}

/// What happened to a member, for whoever wants to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupEvent {
    /// The broker has it as a member. Also after every outage.
    Joined {
        /// Its name.
        member: MemberName,
        /// Shards it has kept.
        kept: usize,
    },
    /// A shard is to be read.
    Assigned {
        /// Which.
        shard: ShardIndex,
        /// Of the lease.
        generation: u64,
        /// Records that expired between where the group stood and what is kept: nobody has processed
        /// them. `None`: it is not known how many.
        expired_records: Option<u64>,
    },
    /// A shard goes to another member once its records in hand are processed.
    Revoked {
        /// Which.
        shard: ShardIndex,
    },
    /// A shard is gone. What was not checkpointed is processed again by its next holder.
    Lost {
        /// Which.
        shard: ShardIndex,
        /// Why.
        reason: String,
    },
    /// A closed shard is processed to its end.
    Finished {
        /// Which.
        shard: ShardIndex,
    },
    /// A handler failed for good: the shard stands still, its lag grows. It goes on from there when
    /// it is leased again (after a restart of this member, or by another).
    Stopped {
        /// Which.
        shard: ShardIndex,
        /// The first record that is not processed.
        at: SequenceNumber,
        /// What the handler said.
        reason: String,
    },
    /// A record was written to the dead-letter stream, durably, and is behind us.
    DeadLettered {
        /// Its shard.
        shard: ShardIndex,
        /// Its number.
        sequence_number: SequenceNumber,
        /// What the handler said.
        reason: String,
    },
    /// Records were gone before they could be read ([`GapPolicy::Skip`]).
    Skipped {
        /// The shard.
        shard: ShardIndex,
        /// The first of them.
        from: SequenceNumber,
        /// The first that is there.
        to: SequenceNumber,
    },
}

/// What a member did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GroupStats {
    /// Records that the handler has processed.
    pub records: u64,
    /// Attempts that failed.
    pub failures: u64,
    /// Records written to the dead-letter stream.
    pub dead_lettered: u64,
    /// Checkpoints that the broker has made durable.
    pub checkpoints: u64,
    /// Leases lost without a hand-over.
    pub lost: u64,
}

/// A running member. Dropping it leaves as a crash would: its shards are given away after the
/// session timeout. [`GroupConsumer::leave`] hands them over at once.
#[derive(Debug)]
pub struct GroupConsumer {
    stop: watch::Sender<bool>,
    driver: JoinHandle<Result<GroupStats, ConsumeError>>,
    events: events::Taken,
}

impl GroupConsumer {
    /// Joins the group and begins to process. Waits for a broker that is not there yet, up to
    /// `retry_for`.
    ///
    /// # Errors
    /// When the stream does not exist, the broker refuses the member, or does not answer.
    pub async fn join(
        client: &Client,
        stream: &StreamName,
        config: GroupConfig,
        handler: impl Handler,
    ) -> Result<Self, ConsumeError> {
        let (stop, stopping) = watch::channel(false);
        let (events, taken) = events::channel(EVENTS_MAX);
        let driver = driver::start(
            client.clone(),
            stream.clone(),
            config,
            handler,
            stopping,
            events,
        )
        .await?;
        Ok(Self {
            stop,
            driver: tokio::spawn(driver),
            events: taken,
        })
    }

    /// The next thing that happened; `None` once the member has ended. Cancel-safe.
    pub async fn event(&mut self) -> Option<GroupEvent> {
        self.events.next().await
    }

    /// Processes what is in hand, checkpoints, hands the shards over, and ends.
    ///
    /// # Errors
    /// Why the member has ended before.
    pub async fn leave(self) -> Result<GroupStats, ConsumeError> {
        self.stop.send_replace(true);
        self.ended().await
    }

    /// Waits until the member ends by itself: when the broker refuses it for good, or an outage is
    /// longer than `retry_for`.
    ///
    /// # Errors
    /// Why it has ended.
    pub async fn ended(mut self) -> Result<GroupStats, ConsumeError> {
        // Nobody takes events any more; the driver is not to wait for that.
        self.events.close();
        match (&mut self.driver).await {
            Ok(result) => result,
            Err(ended) if ended.is_panic() => std::panic::resume_unwind(ended.into_panic()),
            Err(_) => Ok(GroupStats::default()),
        }
    }
}

impl Drop for GroupConsumer {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
