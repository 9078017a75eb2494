//! What a lane may answer to a batch before it enters a round.

use std::time::Duration;

use flumen_record::{HashRange, ProducerId, ProducerSequence, SequenceNumber, Timestamp};

/// The decision about one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It goes into the next round with these stamps.
    Append {
        /// Sequence number of its first record.
        base: SequenceNumber,
        /// Its arrival time.
        arrival: Timestamp,
    },
    /// It is a duplicate of a durable batch (or of one admitted and not yet durable, when
    /// `durable` is false: its ack waits for that one).
    Duplicate {
        /// Where the original lies.
        base: SequenceNumber,
        /// The original's arrival time.
        arrival: Timestamp,
        /// Whether the original is durable.
        durable: bool,
    },
    /// A duplicate older than what is remembered: it was appended, where is forgotten.
    AlreadyAppended,
    /// Nothing was done; why.
    Refused(Refusal),
}

/// Why a batch was not appended. Nothing of it was attempted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// A gap in the producer's sequence: an earlier batch is missing. Send that first.
    OutOfSequence {
        /// What would be accepted.
        expected: ProducerSequence,
        /// What came.
        got: ProducerSequence,
    },
    /// This sequence was appended before with other bytes.
    ChecksumDiffers {
        /// The sequence.
        sequence: ProducerSequence,
    },
    /// The shard cannot know any more what this producer sent; go on under a new id.
    ProducerStateLost {
        /// The producer.
        producer: ProducerId,
    },
    /// A record's hash key is outside the shard: the shard map is stale.
    WrongShard {
        /// The batch's span.
        span: HashRange,
        /// The shard's range.
        range: HashRange,
    },
    /// The shard is closed and this batch was not appended to it.
    Closed {
        /// First number it never gave out.
        end: SequenceNumber,
    },
    /// A quota is used up; try again after a while.
    Throttled {
        /// When it may succeed.
        retry_after: Duration,
    },
}
