//! What a producer counts.

/// What a producer did so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProducerStats {
    /// Records taken by `send`.
    pub records_taken: u64,
    /// Records acknowledged.
    pub records_stored: u64,
    /// Of these, records that an earlier attempt had stored (its ack was lost).
    pub records_duplicate: u64,
    /// Records given up or refused after they were taken.
    pub records_failed: u64,
    /// Data bytes acknowledged.
    pub bytes_stored: u64,
    /// Batches acknowledged.
    pub batches_stored: u64,
    /// Batches sent again after a refusal or a lost session, each time.
    pub batches_resent: u64,
    /// Records sent to the broker and not answered yet, also those whose session is lost.
    pub records_in_flight: u64,
    /// Batches sent to the broker and not answered yet, also those whose session is lost.
    pub batches_in_flight: u64,
    /// Sessions opened.
    pub sessions_opened: u64,
    /// Times a shard went on under a new producer id.
    pub producer_ids_replaced: u64,
}

impl ProducerStats {
    /// Records taken and not answered yet, sent or not.
    pub fn records_waiting(&self) -> u64 {
        self.records_taken - self.records_stored - self.records_failed
    }
}
