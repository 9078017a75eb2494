//! What programs need to know about an error: kind, stable reason, refused values, when to retry.
//! `docs/errors.md` is compared with these tables by a test.

use std::time::Duration;

use flumen_stream::group::{CheckpointError, GroupError};

use super::records::{batch_metadata, batch_reason, record_metadata, record_reason};
use super::{Error, ErrorKind};

/// How long to wait where waiting helps and nobody knows better.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Every reason there is, with its kind.
pub(crate) const REASONS: &[(&str, ErrorKind)] = &[
    ("STREAM_NOT_FOUND", ErrorKind::NotFound),
    ("STREAM_REPLACED", ErrorKind::Conflict),
    ("STREAM_EXISTS", ErrorKind::AlreadyExists),
    ("SHARD_NOT_FOUND", ErrorKind::NotFound),
    ("OUT_OF_BOUNDS", ErrorKind::Invalid),
    ("RECORD_TOO_LARGE", ErrorKind::Invalid),
    ("RECORD_INVALID", ErrorKind::Invalid),
    ("BATCH_TOO_LARGE", ErrorKind::Invalid),
    ("BATCH_CHECKSUM", ErrorKind::Invalid),
    ("BATCH_UNSUPPORTED", ErrorKind::Invalid),
    ("BATCH_MALFORMED", ErrorKind::Invalid),
    ("WRONG_SHARD", ErrorKind::Conflict),
    ("NO_SHARD", ErrorKind::Conflict),
    ("SHARD_CLOSED", ErrorKind::Conflict),
    ("SHARDS_NOT_ADJACENT", ErrorKind::Invalid),
    ("SPLIT_OUTSIDE", ErrorKind::Invalid),
    ("OUT_OF_SEQUENCE", ErrorKind::Conflict),
    ("SEQUENCE_REUSED", ErrorKind::Conflict),
    ("PRODUCER_STATE_LOST", ErrorKind::Conflict),
    ("UNKNOWN_PRODUCER", ErrorKind::Invalid),
    ("THROTTLED", ErrorKind::Throttled),
    ("QUEUE_FULL", ErrorKind::Throttled),
    ("STORAGE_FULL", ErrorKind::Full),
    ("TRIMMED", ErrorKind::Expired),
    ("BEYOND_END", ErrorKind::Invalid),
    ("DATA_LOSS", ErrorKind::Corrupt),
    ("LOG_REFUSED", ErrorKind::Unavailable),
    ("ALREADY_APPENDED", ErrorKind::Conflict),
    ("OUTCOME_UNKNOWN", ErrorKind::Poisoned),
    ("POISONED", ErrorKind::Poisoned),
    ("STORAGE_GONE", ErrorKind::Poisoned),
    ("DISK_STUCK", ErrorKind::Unavailable),
    ("SESSION_ENDED", ErrorKind::Conflict),
    ("GROUP_NOT_FOUND", ErrorKind::NotFound),
    ("GROUP_IN_USE", ErrorKind::Conflict),
    ("CHECKPOINT_BEHIND", ErrorKind::Conflict),
    ("CHECKPOINT_BEYOND_END", ErrorKind::Invalid),
    ("STALE_LEASE", ErrorKind::Conflict),
    ("MEMBER_REPLACED", ErrorKind::Conflict),
    ("MEMBER_EXPIRED", ErrorKind::Conflict),
    ("MEMBER_UNREAD", ErrorKind::Unavailable),
    ("SHARD_OPEN", ErrorKind::Conflict),
    ("GROUPS_FAILED", ErrorKind::Unavailable),
    ("GROUPS_UNANSWERED", ErrorKind::Unavailable),
    ("DELIVERY_NOT_FOUND", ErrorKind::NotFound),
    ("DELIVERY_EXISTS", ErrorKind::AlreadyExists),
    ("DELIVERY_SETTING", ErrorKind::Invalid),
    ("DELIVERY_VERSION", ErrorKind::Conflict),
    ("DELIVERY_IMMUTABLE", ErrorKind::Invalid),
    ("DELIVERY_PAUSED", ErrorKind::Conflict),
    ("DELIVERY_ENDING", ErrorKind::Conflict),
    ("DELIVERY_UNFINISHED", ErrorKind::Unavailable),
    ("DELIVERIES_UNAVAILABLE", ErrorKind::Unavailable),
    ("DELIVERIES_FAILED", ErrorKind::Unavailable),
    ("STREAM_IN_USE", ErrorKind::Conflict),
    ("DRAINING", ErrorKind::Unavailable),
    ("CATALOG_FAILED", ErrorKind::Internal),
    ("NO_THREAD", ErrorKind::Unavailable),
    ("DISK_FAILED", ErrorKind::Unavailable),
    ("IO", ErrorKind::Internal),
];

impl Error {
    /// What the caller should do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::StreamNotFound { .. }
            | Self::ShardNotFound { .. }
            | Self::GroupNotFound { .. }
            | Self::DeliveryNotFound { .. }
            | Self::Checkpoint(CheckpointError::NoShard { .. }) => ErrorKind::NotFound,
            Self::StreamExists { .. } | Self::DeliveryExists { .. } => ErrorKind::AlreadyExists,
            Self::OutOfBounds { .. }
            | Self::Record(_)
            | Self::Batch(_)
            | Self::BeyondEnd { .. }
            | Self::GroupBeyondEnd(_)
            | Self::Checkpoint(CheckpointError::Beyond { .. })
            | Self::NotAdjacent { .. }
            | Self::SplitOutside { .. }
            | Self::DeliverySetting { .. }
            | Self::DeliveryImmutable { .. }
            | Self::UnknownProducer { .. } => ErrorKind::Invalid,
            Self::WrongShard { .. }
            | Self::NoShard { .. }
            | Self::ShardClosed { .. }
            | Self::OutOfSequence { .. }
            | Self::SequenceReused { .. }
            | Self::ProducerStateLost { .. }
            | Self::AlreadyAppended { .. }
            | Self::GroupInUse(_)
            | Self::Checkpoint(_)
            | Self::StaleLease { .. }
            | Self::MemberReplaced
            | Self::MemberExpired
            | Self::ShardOpen { .. }
            | Self::DeliveryVersion { .. }
            | Self::DeliveryPaused { .. }
            | Self::DeliveryEnding { .. }
            | Self::StreamInUse { .. }
            | Self::StreamReplaced { .. }
            | Self::SessionEnded => ErrorKind::Conflict,
            Self::Throttled { .. } | Self::QueueFull { .. } => ErrorKind::Throttled,
            Self::StorageFull { .. } => ErrorKind::Full,
            Self::Trimmed { .. } => ErrorKind::Expired,
            Self::DataLoss { .. } => ErrorKind::Corrupt,
            Self::OutcomeUnknown | Self::Poisoned | Self::StorageGone { .. } => ErrorKind::Poisoned,
            Self::DiskStuck { .. }
            | Self::MemberUnread
            | Self::LogRefused { .. }
            | Self::GroupsFailed
            | Self::GroupsUnanswered { .. }
            | Self::DeliveryUnfinished { .. }
            | Self::DeliveriesUnavailable
            | Self::DeliveriesFailed
            | Self::NoThread { .. }
            | Self::Draining => ErrorKind::Unavailable,
            Self::Io { fault, .. } if fault.is_of_the_disk() => ErrorKind::Unavailable,
            Self::Catalog { .. } | Self::Io { .. } => ErrorKind::Internal,
        }
    }

    /// A stable name for programs: `STREAM_NOT_FOUND`, … (`docs/errors.md` lists them).
    pub fn reason(&self) -> &'static str {
        match self {
            Self::StreamNotFound { .. } => "STREAM_NOT_FOUND",
            Self::StreamReplaced { .. } => "STREAM_REPLACED",
            Self::StreamExists { .. } => "STREAM_EXISTS",
            Self::ShardNotFound { .. } => "SHARD_NOT_FOUND",
            Self::OutOfBounds { .. } => "OUT_OF_BOUNDS",
            Self::Record(error) => record_reason(error),
            Self::Batch(error) => batch_reason(error),
            Self::WrongShard { .. } => "WRONG_SHARD",
            Self::NoShard { .. } => "NO_SHARD",
            Self::ShardClosed { .. } => "SHARD_CLOSED",
            Self::NotAdjacent { .. } => "SHARDS_NOT_ADJACENT",
            Self::SplitOutside { .. } => "SPLIT_OUTSIDE",
            Self::OutOfSequence { .. } => "OUT_OF_SEQUENCE",
            Self::SequenceReused { .. } => "SEQUENCE_REUSED",
            Self::ProducerStateLost { .. } => "PRODUCER_STATE_LOST",
            Self::UnknownProducer { .. } => "UNKNOWN_PRODUCER",
            Self::Throttled { .. } => "THROTTLED",
            Self::QueueFull { .. } => "QUEUE_FULL",
            Self::StorageFull { .. } => "STORAGE_FULL",
            Self::Trimmed { .. } => "TRIMMED",
            Self::BeyondEnd { .. } => "BEYOND_END",
            Self::DataLoss { .. } => "DATA_LOSS",
            Self::LogRefused { .. } => "LOG_REFUSED",
            Self::AlreadyAppended { .. } => "ALREADY_APPENDED",
            Self::OutcomeUnknown => "OUTCOME_UNKNOWN",
            Self::Poisoned => "POISONED",
            Self::StorageGone { .. } => "STORAGE_GONE",
            Self::DiskStuck { .. } => "DISK_STUCK",
            Self::SessionEnded => "SESSION_ENDED",
            Self::GroupNotFound { .. } => "GROUP_NOT_FOUND",
            Self::GroupInUse(_) | Self::Checkpoint(CheckpointError::Held { .. }) => "GROUP_IN_USE",
            Self::Checkpoint(CheckpointError::Behind { .. }) => "CHECKPOINT_BEHIND",
            Self::GroupBeyondEnd(_) | Self::Checkpoint(CheckpointError::Beyond { .. }) => {
                "CHECKPOINT_BEYOND_END"
            }
            Self::Checkpoint(CheckpointError::NoShard { .. }) => "SHARD_NOT_FOUND",
            Self::StaleLease { .. } | Self::Checkpoint(CheckpointError::Stale { .. }) => {
                "STALE_LEASE"
            }
            Self::MemberReplaced => "MEMBER_REPLACED",
            Self::MemberExpired => "MEMBER_EXPIRED",
            Self::MemberUnread => "MEMBER_UNREAD",
            Self::ShardOpen { .. } => "SHARD_OPEN",
            Self::GroupsFailed => "GROUPS_FAILED",
            Self::GroupsUnanswered { .. } => "GROUPS_UNANSWERED",
            Self::DeliveryNotFound { .. } => "DELIVERY_NOT_FOUND",
            Self::DeliveryExists { .. } => "DELIVERY_EXISTS",
            Self::DeliverySetting { .. } => "DELIVERY_SETTING",
            Self::DeliveryVersion { .. } => "DELIVERY_VERSION",
            Self::DeliveryImmutable { .. } => "DELIVERY_IMMUTABLE",
            Self::DeliveryPaused { .. } => "DELIVERY_PAUSED",
            Self::DeliveryEnding { .. } => "DELIVERY_ENDING",
            Self::DeliveryUnfinished { .. } => "DELIVERY_UNFINISHED",
            Self::DeliveriesUnavailable => "DELIVERIES_UNAVAILABLE",
            Self::DeliveriesFailed => "DELIVERIES_FAILED",
            Self::StreamInUse { .. } => "STREAM_IN_USE",
            Self::Draining => "DRAINING",
            Self::Catalog { .. } => "CATALOG_FAILED",
            Self::NoThread { .. } => "NO_THREAD",
            Self::Io { fault, .. } if fault.is_of_the_disk() => "DISK_FAILED",
            Self::Io { .. } => "IO",
        }
    }

    /// The refused values, by name, for programs.
    pub fn metadata(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::StreamNotFound { stream } | Self::StreamExists { stream } => {
                vec![("stream", stream.to_string())]
            }
            Self::ShardNotFound { stream, shard } => {
                vec![("stream", stream.to_string()), ("shard", shard.to_string())]
            }
            Self::OutOfBounds {
                setting,
                value,
                min,
                max,
            } => vec![
                ("setting", (*setting).to_owned()),
                ("value", value.to_string()),
                ("min", min.to_string()),
                ("max", max.to_string()),
            ],
            Self::Record(error) => record_metadata(error),
            Self::Batch(error) => batch_metadata(error),
            Self::StorageFull {
                free_bytes,
                floor_bytes,
            } => vec![
                ("free_bytes", free_bytes.to_string()),
                ("floor_bytes", floor_bytes.to_string()),
            ],
            Self::Trimmed { asked, horizon } => {
                vec![
                    ("asked", asked.to_string()),
                    ("horizon", horizon.to_string()),
                ]
            }
            Self::BeyondEnd { asked, end } => {
                vec![("asked", asked.to_string()), ("end", end.to_string())]
            }
            Self::DataLoss {
                shard,
                from,
                to,
                segment,
            } => vec![
                ("shard", shard.to_string()),
                ("from", from.to_string()),
                ("to", to.to_string()),
                ("segment", segment.clone()),
            ],
            Self::DiskStuck { waited } | Self::GroupsUnanswered { waited } => {
                vec![("waited_ms", waited.as_millis().to_string())]
            }
            Self::GroupNotFound { .. }
            | Self::GroupInUse(_)
            | Self::GroupBeyondEnd(_)
            | Self::Checkpoint(_)
            | Self::StaleLease { .. }
            | Self::ShardOpen { .. } => self.group_metadata(),
            Self::DeliveryNotFound { .. }
            | Self::DeliveryExists { .. }
            | Self::DeliverySetting { .. }
            | Self::DeliveryVersion { .. }
            | Self::DeliveryImmutable { .. }
            | Self::DeliveryPaused { .. }
            | Self::DeliveryEnding { .. }
            | Self::DeliveryUnfinished { .. }
            | Self::StreamInUse { .. } => self.delivery_metadata(),
            other => other.append_metadata(),
        }
    }

    /// The refused values of what was asked of a delivery stream.
    fn delivery_metadata(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::DeliveryNotFound { delivery }
            | Self::DeliveryExists { delivery }
            | Self::DeliveryPaused { delivery }
            | Self::DeliveryEnding { delivery } => vec![("delivery", delivery.to_string())],
            Self::DeliverySetting { setting, .. } | Self::DeliveryImmutable { setting } => {
                vec![("setting", (*setting).to_owned())]
            }
            Self::DeliveryVersion { expected, current } => vec![
                ("expected", expected.to_string()),
                ("current", current.to_string()),
            ],
            Self::DeliveryUnfinished {
                delivery,
                work,
                waited,
                ..
            } => vec![
                ("delivery", delivery.to_string()),
                ("work", (*work).to_owned()),
                ("waited_ms", waited.as_millis().to_string()),
            ],
            Self::StreamInUse { stream, delivery } => vec![
                ("stream", stream.to_string()),
                ("delivery", delivery.to_string()),
            ],
            _ => Vec::new(),
        }
    }

    /// The refused values of what was asked of a group.
    fn group_metadata(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::GroupNotFound { stream, group } => {
                vec![("stream", stream.to_string()), ("group", group.to_string())]
            }
            Self::GroupInUse(GroupError::Held { shard, member })
            | Self::Checkpoint(CheckpointError::Held { shard, member }) => {
                vec![("shard", shard.to_string()), ("member", member.to_string())]
            }
            Self::GroupInUse(GroupError::HasMembers { group, members }) => {
                vec![
                    ("group", group.to_string()),
                    ("members", members.to_string()),
                ]
            }
            Self::GroupBeyondEnd(GroupError::Beyond { shard, asked, end })
            | Self::Checkpoint(CheckpointError::Beyond { shard, asked, end }) => vec![
                ("shard", shard.to_string()),
                ("asked", asked.to_string()),
                ("end", end.to_string()),
            ],
            Self::Checkpoint(CheckpointError::Stale {
                shard,
                asked,
                current,
            }) => vec![
                ("shard", shard.to_string()),
                ("generation", asked.to_string()),
                ("current", current.to_string()),
            ],
            Self::Checkpoint(CheckpointError::Behind {
                shard,
                asked,
                current,
            }) => vec![
                ("shard", shard.to_string()),
                ("asked", asked.to_string()),
                ("current", current.to_string()),
            ],
            Self::StaleLease { shard, generation } => vec![
                ("shard", shard.to_string()),
                ("generation", generation.to_string()),
            ],
            Self::ShardOpen { shard } | Self::Checkpoint(CheckpointError::NoShard { shard }) => {
                vec![("shard", shard.to_string())]
            }
            _ => Vec::new(),
        }
    }

    /// The refused values of an append, a reshard or a stream that was replaced; nothing where there is nothing to say.
    fn append_metadata(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::StorageGone { path } => vec![("path", path.clone())],
            Self::Io { segment, fault } => {
                let fault = fault.name().to_owned();
                vec![("segment", segment.clone()), ("kind", fault)]
            }
            Self::StreamReplaced {
                stream,
                expected,
                found,
            } => vec![
                ("stream", stream.to_string()),
                ("expected", expected.to_hex()),
                ("found", found.to_hex()),
            ],
            Self::WrongShard { shard, span, range } => vec![
                ("shard", shard.to_string()),
                ("span_start", hash_key(span.start)),
                ("span_end", hash_key(span.end)),
                ("range_start", hash_key(range.start)),
                ("range_end", hash_key(range.end)),
            ],
            Self::NoShard { key } => vec![("hash_key", hash_key(*key))],
            Self::ShardClosed { shard, end } => {
                vec![("shard", shard.to_string()), ("end", end.to_string())]
            }
            Self::NotAdjacent { shard, other } => {
                vec![("shard", shard.to_string()), ("other", other.to_string())]
            }
            Self::SplitOutside { shard, key, range } => vec![
                ("shard", shard.to_string()),
                ("hash_key", hash_key(*key)),
                ("range_start", hash_key(range.start)),
                ("range_end", hash_key(range.end)),
            ],
            Self::OutOfSequence { expected, got } => {
                vec![("expected", expected.to_string()), ("got", got.to_string())]
            }
            Self::SequenceReused { sequence } | Self::AlreadyAppended { sequence } => {
                vec![("sequence", sequence.to_string())]
            }
            Self::LogRefused { log, .. } => vec![("log", log.clone())],
            Self::ProducerStateLost { producer } | Self::UnknownProducer { producer } => {
                vec![("producer", producer.to_string())]
            }
            _ => Vec::new(),
        }
    }

    /// When a retry may succeed, where waiting helps.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Throttled { retry_after } | Self::QueueFull { retry_after } => Some(*retry_after),
            Self::StorageFull { .. }
            | Self::LogRefused { .. }
            | Self::DiskStuck { .. }
            | Self::MemberUnread
            | Self::GroupsFailed
            | Self::GroupsUnanswered { .. }
            | Self::DeliveryUnfinished { .. }
            | Self::DeliveriesFailed
            | Self::Draining => Some(RETRY_AFTER),
            _ => None,
        }
    }
}

pub(super) fn hash_key(key: flumen_record::HashKey) -> String {
    format!("{:032x}", key.value())
}
