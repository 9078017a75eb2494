//! Delivery streams as objects of the node: what they are, where they stand, how they do.
//!
//! The node keeps them (`flumen_stream::delivery`), answers the edges, and holds retention back for
//! what is planned. What runs them is the sink, another edge: it takes the one [`DeliverySeat`], and
//! has a [`DeliveryDesk`] for each. Settings and how a delivery stream is doing are plain values.

mod changes;
mod describing;
mod registry;
mod report;
mod saving;
mod seat;
mod settings;
mod waiting;

use std::sync::Arc;

use flumen_record::{DeliveryId, DeliveryName, StreamName, Timestamp};

pub(crate) use registry::Deliveries;
pub use report::{
    DeliveryBacklog, DeliveryCounters, DeliveryCounts, DeliveryPhase, DeliveryReport, LastError,
    LastObject, StoreGuarantee,
};
pub use seat::{DeliveryDesk, DeliverySeat};
pub use settings::{
    Backup, BufferingHints, ColumnType, DeliverySettings, DeliverySource, DeliveryStart,
    Destination, HttpTransform, KeySettings, ObjectCompression, ObjectFormat, ObjectSettings,
    ParquetColumn, ParquetCompression, ParquetSettings, Partitioning, Processing, S3Destination,
    StreamNameText, SubRecords,
};

/// A delivery stream that is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDelivery {
    /// Its name.
    pub name: DeliveryName,
    /// Its settings.
    pub settings: DeliverySettings,
}

/// How a delivery stream is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeliveryEnd {
    /// What is there is delivered first.
    Flush,
    /// At once; what is not delivered is not going to be. Cuts that are planned are left as they are.
    Drop,
}

/// What the runner of a delivery stream is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryOrders {
    /// Counts changes of the settings, from 1.
    pub version: u64,
    /// The settings.
    pub settings: Arc<DeliverySettings>,
    /// Nothing is read or written while this holds.
    pub paused: bool,
    /// Counts resumes and updates: whoever has stopped tries again when it changes.
    pub tries: u64,
    /// Counts requests to flush; answered in [`DeliveryReport::flushed`].
    pub flush: u64,
    /// Counts requests to go on under a new incarnation; answered in [`DeliveryReport::renewed`].
    pub renew: u64,
    /// It is being deleted.
    pub ending: Option<DeliveryEnd>,
}

/// A delivery stream as users see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryDescription {
    /// Its number.
    pub id: DeliveryId,
    /// Its name.
    pub name: DeliveryName,
    /// The stream it reads.
    pub stream: StreamName,
    /// Counts changes of the settings, from 1.
    pub version: u64,
    /// The settings.
    pub settings: Arc<DeliverySettings>,
    /// Whether it is paused.
    pub paused: bool,
    /// When it was created.
    pub created: Timestamp,
    /// When its settings last changed.
    pub updated: Timestamp,
    /// What its runner says.
    pub report: DeliveryReport,
    /// What is not delivered yet.
    pub backlog: DeliveryBacklog,
    /// What it has done since this process started.
    pub counts: DeliveryCounts,
}

/// A setting that is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {reason}")]
pub struct SettingRefused {
    /// Which, as a path: `keys.prefix`.
    pub setting: &'static str,
    /// Why, for a person, with what is allowed.
    pub reason: String,
}

impl SettingRefused {
    /// Refuses a setting.
    pub fn new(setting: &'static str, reason: impl Into<String>) -> Self {
        Self {
            setting,
            reason: reason.into(),
        }
    }
}

/// What knows whether settings can be run. Implemented by the sink.
pub trait DeliveryChecks: Send + Sync + std::fmt::Debug {
    /// Looks at the settings only: no destination is asked.
    fn check(&self, name: &DeliveryName, settings: &DeliverySettings)
    -> Result<(), SettingRefused>;
}
