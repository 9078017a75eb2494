//! How a delivery stream is doing: what its runner says, and what is counted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flumen_record::Timestamp;

/// What a delivery stream is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeliveryPhase {
    /// Its destination is being probed for the first time.
    #[default]
    Starting,
    /// It delivers.
    Running,
    /// Its destination (or transform) fails; it tries again, without end.
    Retrying,
    /// Paused by hand.
    Paused,
    /// Stopped by something that trying again cannot mend; a resume or an update makes it try.
    Stopped,
    /// It delivers what is left, then goes.
    Deleting,
}

/// What the destination promises about create-if-absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StoreGuarantee {
    /// Not probed yet.
    #[default]
    Unknown,
    /// Of racing creates exactly one wins: objects and manifests are written once.
    CreateIfAbsent,
    /// Racing creates may all win, or conditions are ignored: exactly once holds for readers of the
    /// manifests, as long as this broker alone writes under the prefix.
    ManifestsOnly,
}

/// The last object that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastObject {
    /// Its key.
    pub key: String,
    /// Its size as stored.
    pub bytes: u64,
    /// Records in it.
    pub records: u64,
    /// When.
    pub at: Timestamp,
}

/// The last thing that went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastError {
    /// Stable, for programs: `slow_down`, `unreachable`, `denied`, `no_such_bucket`, `conflict`, ….
    pub reason: &'static str,
    /// One line for a person, with what to try.
    pub text: String,
    /// When it was last seen.
    pub at: Timestamp,
    /// How often since the last success.
    pub times: u64,
}

/// What is not delivered yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeliveryBacklog {
    /// Records.
    pub records: u64,
    /// Bytes as stored.
    pub bytes: u64,
    /// Arrival of the oldest.
    pub oldest: Option<Timestamp>,
    /// Records that expired before they were delivered, ever.
    pub expired: u64,
}

impl DeliveryBacklog {
    /// Data freshness: the age of the oldest record that is not in a committed cut; zero when all
    /// are.
    pub fn freshness(&self, now: Timestamp) -> Duration {
        self.oldest
            .map_or(Duration::ZERO, |oldest| now.since(oldest))
    }
}

/// What the runner of a delivery stream says about it, whole, whenever something changes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeliveryReport {
    /// What it is doing.
    pub phase: DeliveryPhase,
    /// What its store guarantees.
    pub guarantee: StoreGuarantee,
    /// Cuts committed, ever.
    pub cuts: u64,
    /// Of cuts planned and not committed: how many.
    pub cuts_open: u32,
    /// The last object.
    pub last_object: Option<LastObject>,
    /// The last error, kept after success.
    pub last_error: Option<LastError>,
    /// The last `flush` that is done: everything that was there when it was asked is committed.
    pub flushed: u64,
    /// The last request for a new incarnation that is done.
    pub renewed: u64,
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a delivery stream has done since this process started; names after row F20.
        #[derive(Debug, Default)]
        pub struct DeliveryCounters { $($(#[$doc])* pub $name: AtomicU64,)* }

        /// The counters at one moment.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct DeliveryCounts { $($(#[$doc])* pub $name: u64,)* }

        impl DeliveryCounters {
            /// Their values now.
            pub fn read(&self) -> DeliveryCounts {
                DeliveryCounts { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Bytes read from the source (`DataReadFromKinesisStream.Bytes`, `IncomingBytes`).
    incoming_bytes,
    /// Records read from the source (`DataReadFromKinesisStream.Records`, `IncomingRecords`).
    incoming_records,
    /// Objects written (`DeliveryToS3.Success` counts these; errors beside).
    delivered_objects,
    /// Bytes of objects as stored (`DeliveryToS3.Bytes`).
    delivered_bytes,
    /// Records in objects (`DeliveryToS3.Records`).
    delivered_records,
    /// Requests to the destination that failed.
    delivery_failures,
    /// Backup objects (`BackupToS3.Success`).
    backup_objects,
    /// Bytes of backup objects as stored (`BackupToS3.Bytes`).
    backup_bytes,
    /// Records in backup objects (`BackupToS3.Records`).
    backup_records,
    /// Requests to the transform that succeeded (`ExecuteProcessing.Success`).
    processing_successes,
    /// Requests to the transform that failed.
    processing_failures,
    /// Microseconds in the transform (`ExecuteProcessing.Duration`).
    processing_us,
    /// Records that came out of processing (`SucceedProcessing.Records`).
    processed_records,
    /// Their bytes (`SucceedProcessing.Bytes`).
    processed_bytes,
    /// Records dropped by the filter or the transform.
    dropped_records,
    /// Records that went to the error prefix.
    failed_records,
    /// Records that went to the error prefix because there were too many partitions
    /// (`ActivePartitionsLimit` is exceeded).
    partition_overflows,
    /// Partitions of the cut that is being filled (`PartitionCount`); a gauge.
    partitions,
    /// Requests that the destination asked to slow down (`ThrottledRecords` has no meaning here).
    throttled,
}
