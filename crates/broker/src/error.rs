//! Everything the broker refuses or fails at, as facts.

mod facts;
mod from;
mod records;
#[cfg(test)]
mod tests;

use std::time::Duration;

use flumen_log::IoFault;
use flumen_record::{
    BatchError, DeliveryName, GroupName, HashKey, HashRange, ProducerId, ProducerSequence,
    RecordError, SequenceNumber, ShardIndex, StreamIncarnation, StreamName,
};
use flumen_stream::group::{CheckpointError, GroupError};
use thiserror::Error;

pub(crate) use facts::REASONS;

/// What a caller should do about an [`Error`]; edges map it to their status codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Bad input.
    Invalid,
    /// No such stream or shard.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// The state forbids it: wrong shard, closed shard, out of sequence, producer state lost.
    Conflict,
    /// Quota or queue: wait and retry.
    Throttled,
    /// Disk full: retry when space is freed.
    Full,
    /// The position is trimmed.
    Expired,
    /// Acknowledged data is damaged.
    Corrupt,
    /// Starting or draining: retry elsewhere or later.
    Unavailable,
    /// The log is poisoned: the outcome is unknown; retry under the same producer sequence.
    Poisoned,
    /// Our own fault or the file system's.
    Internal,
}

/// Why the broker did not do what was asked. Cheap to clone: one failure may answer many waiters.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Error {
    /// No stream of this name.
    #[error("stream {stream} does not exist; create it with `flumen stream create {stream}`")]
    StreamNotFound {
        /// The name.
        stream: StreamName,
    },
    /// The stream of this name is another one than the caller means.
    #[error(
        "stream {stream} was deleted and created anew since it was last seen (incarnation \
         {:016x}, now {:016x}): positions, producers and members of the old one mean nothing in the new \
         one; begin anew, from a start position", expected.value(), found.value()
    )]
    StreamReplaced {
        /// The name.
        stream: StreamName,
        /// The one that is meant.
        expected: StreamIncarnation,
        /// The one that is there.
        found: StreamIncarnation,
    },
    /// A stream of this name is there already.
    #[error("stream {stream} exists already")]
    StreamExists {
        /// The name.
        stream: StreamName,
    },
    /// No such shard in this stream.
    #[error("stream {stream} has no shard {shard}")]
    ShardNotFound {
        /// The stream.
        stream: StreamName,
        /// The index asked for.
        shard: ShardIndex,
    },
    /// A setting outside its bounds.
    #[error("{setting} is {value}, allowed is {min} to {max}")]
    OutOfBounds {
        /// Which.
        setting: &'static str,
        /// What was asked.
        value: u64,
        /// Least allowed.
        min: u64,
        /// Most allowed.
        max: u64,
    },
    /// A record that cannot be stored.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Bytes that are not a batch, or a batch that lies about its records.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// A record's hash key is outside the shard.
    #[error("hash keys {:032x}..={:032x} are outside shard {shard} ({:032x}..={:032x}); describe the stream again", span.start.value(), span.end.value(), range.start.value(), range.end.value())]
    WrongShard {
        /// The shard.
        shard: ShardIndex,
        /// The batch's span.
        span: HashRange,
        /// The shard's range.
        range: HashRange,
    },
    /// No open shard owns this key (only while a reshard is under way).
    #[error("no open shard owns hash key {:032x}", key.value())]
    NoShard {
        /// The key.
        key: HashKey,
    },
    /// The shard is closed; the batch was not appended.
    #[error("shard {shard} is closed; describe the stream again and go on at its children")]
    ShardClosed {
        /// The shard.
        shard: ShardIndex,
        /// First number it never gave out.
        end: SequenceNumber,
    },
    /// Shards that are to be merged, and are no neighbours.
    #[error(
        "shards {shard} and {other} are not neighbours; merge two open shards whose hash keys touch"
    )]
    NotAdjacent {
        /// One shard.
        shard: ShardIndex,
        /// The other.
        other: ShardIndex,
    },
    /// A split there would leave one half without keys.
    #[error("shard {shard} cannot be split at hash key {key}; it takes one above {} and up to {}", range.start, range.end)]
    SplitOutside {
        /// The shard.
        shard: ShardIndex,
        /// The key asked for.
        key: HashKey,
        /// The shard's range.
        range: HashRange,
    },
    /// An earlier batch of this producer is missing; this one was not attempted.
    #[error("producer sequence {got} came where {expected} was next; send that first")]
    OutOfSequence {
        /// What would be accepted.
        expected: ProducerSequence,
        /// What came.
        got: ProducerSequence,
    },
    /// This sequence was appended before with other bytes.
    #[error("producer sequence {sequence} was appended before with other bytes")]
    SequenceReused {
        /// The sequence.
        sequence: ProducerSequence,
    },
    /// The shard cannot know any more what this producer sent.
    #[error("the shard has forgotten producer {producer}; go on under a new producer id")]
    ProducerStateLost {
        /// The producer.
        producer: ProducerId,
    },
    /// A producer id that was never issued.
    #[error("producer id {producer} was never issued; open a producer first")]
    UnknownProducer {
        /// The id.
        producer: ProducerId,
    },
    /// A quota is used up.
    #[error("quota exceeded; retry after {} ms", retry_after.as_millis())]
    Throttled {
        /// When it may succeed.
        retry_after: Duration,
    },
    /// The lane's queue is full.
    #[error("the write queue is full; retry after {} ms", retry_after.as_millis())]
    QueueFull {
        /// When it may succeed.
        retry_after: Duration,
    },
    /// Below the free-space floor.
    #[error(
        "storage full: {free_bytes} bytes free, of which {floor_bytes} are kept in reserve; free space, shorten retention or delete streams"
    )]
    StorageFull {
        /// Bytes free.
        free_bytes: u64,
        /// The floor.
        floor_bytes: u64,
    },
    /// The position was trimmed.
    #[error("sequence number {asked} is trimmed; the oldest kept is {horizon}")]
    Trimmed {
        /// What was asked.
        asked: SequenceNumber,
        /// The trim horizon.
        horizon: SequenceNumber,
    },
    /// A sequence number that was never given out.
    #[error("sequence number {asked} was never given out; the shard ends at {end}")]
    BeyondEnd {
        /// What was asked.
        asked: SequenceNumber,
        /// The durable end.
        end: SequenceNumber,
    },
    /// Acknowledged data in this range is damaged.
    #[error(
        "data loss: records {from} up to {to} of shard {shard} are quarantined ({segment}); run `flumen doctor`"
    )]
    DataLoss {
        /// The shard.
        shard: ShardIndex,
        /// First that cannot be served.
        from: SequenceNumber,
        /// First after it that can.
        to: SequenceNumber,
        /// File name of the damaged segment.
        segment: String,
    },
    /// A log did not open, because it is less than what is known of it: nothing of it is served and
    /// nothing is written to it. Nothing was attempted.
    #[error("not served: {reason}; then start the broker again")]
    LogRefused {
        /// The log's folder.
        log: String,
        /// Why, and what to do.
        reason: String,
    },
    /// Appended before, too long ago to say where. Not a failure: the record is stored once.
    #[error("already appended: producer sequence {sequence} is older than what is remembered")]
    AlreadyAppended {
        /// The sequence.
        sequence: ProducerSequence,
    },
    /// The log is poisoned: this batch may or may not be stored.
    #[error(
        "outcome unknown: the log failed to sync; retry with the same producer sequence after a restart"
    )]
    OutcomeUnknown,
    /// The log is poisoned: nothing was attempted.
    #[error("the log is poisoned after failed syncs; reads go on, appends need a restart")]
    Poisoned,
    /// The data directory is not where it was: nothing was attempted.
    #[error(
        "storage gone: {path} was removed, moved, replaced or unmounted while the broker ran; nothing is written any more: put it back, then restart"
    )]
    StorageGone {
        /// The name that leads nowhere, or elsewhere.
        path: String,
    },
    /// The disk has not answered for a long time: new appends are not attempted meanwhile.
    #[error("the disk has not finished a sync for {} s; appends are refused until it does", waited.as_secs())]
    DiskStuck {
        /// How long the sync has been running.
        waited: Duration,
    },
    /// An earlier batch of this session without a producer id was refused; this one was not attempted.
    #[error(
        "an earlier batch of this session was refused, this one was not attempted; open a new session"
    )]
    SessionEnded,
    /// The stream has no group of this name.
    #[error("stream {stream} has no group {group}; a group comes into being with its first member")]
    GroupNotFound {
        /// The stream.
        stream: StreamName,
        /// The name asked for.
        group: GroupName,
    },
    /// Members are in the way.
    #[error(transparent)]
    GroupInUse(GroupError),
    /// A position beyond the end of a closed shard.
    #[error(transparent)]
    GroupBeyondEnd(GroupError),
    /// A checkpoint that is not taken.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A read for a lease that is over.
    #[error("the lease of shard {shard} under generation {generation} is over; stop processing it")]
    StaleLease {
        /// The shard.
        shard: ShardIndex,
        /// The generation that was named.
        generation: u64,
    },
    /// Another instance is the member now.
    #[error("another instance has joined as this member; give each process a name of its own")]
    MemberReplaced,
    /// The member was silent for too long, or is unknown.
    #[error("the member was silent for its session timeout; join again")]
    MemberExpired,
    /// The member has taken nothing of what it was told for too long.
    #[error("the member has not read what it was told: join again, and read while you work")]
    MemberUnread,
    /// The end of a shard that has none was to be checkpointed.
    #[error("shard {shard} is open: it has no end yet")]
    ShardOpen {
        /// The shard.
        shard: ShardIndex,
    },
    /// The log of consumer groups has failed.
    #[error("the log of consumer groups has failed; groups need a restart of the broker")]
    GroupsFailed,
    /// What was asked of consumer groups is not decided; it may be yet.
    #[error("consumer-group ledger: no answer for {} s (disk full or slow); what was asked may happen yet: look, then ask again", waited.as_secs())]
    GroupsUnanswered {
        /// How long it was waited for.
        waited: Duration,
    },
    /// No delivery stream of this name.
    #[error("delivery stream {delivery} does not exist")]
    DeliveryNotFound {
        /// The name.
        delivery: DeliveryName,
    },
    /// A delivery stream of this name is there already.
    #[error("delivery stream {delivery} exists already")]
    DeliveryExists {
        /// The name.
        delivery: DeliveryName,
    },
    /// A setting of a delivery stream that cannot be run.
    #[error("{setting}: {reason}")]
    DeliverySetting {
        /// Which, as a path: `keys.prefix`.
        setting: &'static str,
        /// Why, with what is allowed.
        reason: String,
    },
    /// The settings were changed by somebody else meanwhile.
    #[error("the settings are at version {current}, not {expected}; look at them again")]
    DeliveryVersion {
        /// What was named.
        expected: u64,
        /// What is current.
        current: u64,
    },
    /// A setting that stays as it was created.
    #[error("{setting} of a delivery stream cannot be changed; create another one")]
    DeliveryImmutable {
        /// Which.
        setting: &'static str,
    },
    /// A paused delivery stream delivers nothing.
    #[error("delivery stream {delivery} is paused; resume it first")]
    DeliveryPaused {
        /// The name.
        delivery: DeliveryName,
    },
    /// The delivery stream is being deleted.
    #[error("delivery stream {delivery} is being deleted")]
    DeliveryEnding {
        /// The name.
        delivery: DeliveryName,
    },
    /// A flush or a deletion has begun, goes on, and was not waited for any longer.
    #[error("the {work} of delivery stream {delivery} goes on and is not done after {} ms{}", waited.as_millis(), last(last_error.as_deref()))]
    DeliveryUnfinished {
        /// The name.
        delivery: DeliveryName,
        /// `flush` or `deletion`.
        work: &'static str,
        /// How long it was waited for.
        waited: Duration,
        /// What last went wrong, if anything did.
        last_error: Option<String>,
    },
    /// Nothing runs delivery streams on this node.
    #[error("this broker does not run delivery streams; start it with the sink enabled")]
    DeliveriesUnavailable,
    /// The log of delivery streams has failed.
    #[error(
        "the log of delivery streams has failed; delivery streams need a restart of the broker"
    )]
    DeliveriesFailed,
    /// A delivery stream reads this stream, or writes to it.
    #[error("delivery stream {delivery} uses stream {stream}; delete the delivery stream first")]
    StreamInUse {
        /// The stream.
        stream: StreamName,
        /// The first delivery stream that uses it, by name.
        delivery: DeliveryName,
    },
    /// The system gives no thread for what was to be started.
    #[error("the system refuses a thread for {name}; raise its limit of threads and try again")]
    NoThread {
        /// What it was for.
        name: String,
    },
    /// The node is draining.
    #[error("the broker is shutting down")]
    Draining,
    /// The catalog is damaged or does not open any more: streams cannot be changed.
    #[error("the catalog cannot be changed: {reason}")]
    Catalog {
        /// Why.
        reason: &'static str,
    },
    /// The file system failed.
    #[error("{segment}: {fault}")]
    Io {
        /// Which file.
        segment: String,
        /// What the system said.
        fault: IoFault,
    },
}

fn last(error: Option<&str>) -> String {
    error.map_or_else(String::new, |error| format!("; last error: {error}"))
}
