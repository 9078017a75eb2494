//! Delivery streams: records of a stream into objects, each exactly once.
//!
//! Their settings are the messages of `proto/flumen/v1/delivery.proto` as they are, re-exported here:
//! what is not set has the default that is written there. [`into`] makes the least of them.

use std::time::Duration;

use flumen_api::convert::{self, ConvertError};
use flumen_api::v1;
use flumen_record::{DeliveryName, StreamName, Timestamp};

use crate::{Client, Error};

pub use flumen_api::v1::delivery_settings::{Destination, Format, Source};
pub use flumen_api::v1::{
    Backup, BufferingHints, ColumnType, DelimitedFormat, DeliveryCounts, DeliverySettings,
    DeliveryStatus, DirectSource, DirectoryDestination, HttpTransform, MemoryDestination,
    NdjsonFormat, ObjectAttributes, ObjectCompression, ObjectKeys, ParquetColumn,
    ParquetCompression, ParquetFormat, Partitioning, Processing, S3Destination, StoreGuarantee,
    StreamSource, SubRecords, VerbatimFormat,
};

/// A stream that is there already, from its oldest record.
pub fn from_stream(stream: &StreamName) -> Source {
    Source::Stream(StreamSource {
        stream: stream.to_string(),
        start: None,
    })
}

/// Direct puts into `delivery.<name>`, a stream that is created and deleted with the delivery stream.
pub fn direct(shards: u32) -> Source {
    Source::Direct(DirectSource {
        shards: Some(shards),
    })
}

/// A directory of the broker's machine; the path is absolute.
pub fn directory(path: impl Into<String>) -> Destination {
    Destination::Directory(DirectoryDestination { path: path.into() })
}

/// A bucket of AWS, or of a server (`http://HOST:PORT`) that speaks its protocol. Credentials are the
/// broker's.
pub fn bucket(bucket: impl Into<String>, endpoint: Option<String>) -> Destination {
    Destination::S3(S3Destination {
        bucket: bucket.into(),
        endpoint,
        ..Default::default()
    })
}

/// From there to there, verbatim, with the broker's defaults for everything else.
pub fn into(source: Source, destination: Destination) -> DeliverySettings {
    DeliverySettings {
        source: Some(source),
        destination: Some(destination),
        ..Default::default()
    }
}

/// A delivery stream and how it does.
#[derive(Debug, Clone, PartialEq)]
pub struct DeliveryDescription {
    /// Its name.
    pub name: DeliveryName,
    /// Its number on its node.
    pub id: u64,
    /// The stream it reads; producers of a direct source put there.
    pub stream: StreamName,
    /// Counts changes of the settings, from 1.
    pub version: u64,
    /// Its settings.
    pub settings: DeliverySettings,
    /// Whether it is paused.
    pub paused: bool,
    /// When it was created.
    pub created: Timestamp,
    /// When its settings last changed.
    pub updated: Timestamp,
    /// What it is doing.
    pub status: DeliveryStatus,
    /// What its destination promises about create-if-absent.
    pub guarantee: StoreGuarantee,
    /// Age of the oldest record that is not in a committed cut; zero when all are.
    pub freshness: Duration,
    /// What is not delivered yet.
    pub backlog: DeliveryBacklog,
    /// Cuts committed, ever.
    pub cuts: u64,
    /// Of cuts planned and not committed: how many.
    pub cuts_open: u32,
    /// The last object.
    pub last_object: Option<LastObject>,
    /// The last error, kept after success.
    pub last_error: Option<LastError>,
    /// What it has done since the broker started.
    pub counts: DeliveryCounts,
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
    pub expired_records: u64,
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
    /// Stable, for programs.
    pub reason: String,
    /// For a person, with what to try.
    pub text: String,
    /// When it was last seen.
    pub at: Timestamp,
    /// How often since the last success.
    pub times: u64,
}

impl Client {
    /// Creates a delivery stream; it is durable when this returns, and delivers from then on.
    ///
    /// # Errors
    /// When the name is taken, a setting cannot be run, or the broker runs no delivery streams.
    pub async fn create_delivery(
        &self,
        name: &DeliveryName,
        settings: DeliverySettings,
    ) -> Result<DeliveryDescription, Error> {
        let mut delivery = self.delivery();
        let call = delivery.create_delivery(v1::CreateDeliveryRequest {
            delivery: name.to_string(),
            settings: Some(settings),
        });
        let response = self.call(self.config().call_timeout, call).await?;
        self.delivers(response.delivery)
    }

    /// Describes a delivery stream.
    ///
    /// # Errors
    /// When there is none of this name.
    pub async fn describe_delivery(
        &self,
        name: &DeliveryName,
    ) -> Result<DeliveryDescription, Error> {
        let mut delivery = self.delivery();
        let call = delivery.describe_delivery(v1::DescribeDeliveryRequest {
            delivery: name.to_string(),
        });
        let response = self.call(self.config().call_timeout, call).await?;
        self.delivers(response.delivery)
    }

    /// Up to `limit` delivery streams (0: 100) after `after`, by name, and whether there are more.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn list_deliveries(
        &self,
        after: Option<&DeliveryName>,
        limit: u32,
    ) -> Result<(Vec<DeliveryDescription>, bool), Error> {
        let mut delivery = self.delivery();
        let after = after.map(ToString::to_string).unwrap_or_default();
        let call = delivery.list_deliveries(v1::ListDeliveriesRequest { after, limit });
        let response = self.call(self.config().call_timeout, call).await?;
        let found = response.deliveries.into_iter();
        let found = found.map(|one| self.delivers(Some(one)));
        Ok((found.collect::<Result<_, _>>()?, response.more))
    }

    /// Replaces all settings, if they are at `version` (`None`: whatever they are). The source, and
    /// whether records are partitioned, stay.
    ///
    /// # Errors
    /// When there is no such delivery stream, the settings are at another version, or a setting cannot
    /// be run.
    pub async fn update_delivery(
        &self,
        name: &DeliveryName,
        version: Option<u64>,
        settings: DeliverySettings,
    ) -> Result<DeliveryDescription, Error> {
        let mut delivery = self.delivery();
        let call = delivery.update_delivery(v1::UpdateDeliveryRequest {
            delivery: name.to_string(),
            settings: Some(settings),
            version: version.unwrap_or_default(),
        });
        let response = self.call(self.config().call_timeout, call).await?;
        self.delivers(response.delivery)
    }

    /// Nothing is read or written until it is resumed.
    ///
    /// # Errors
    /// When there is no such delivery stream.
    pub async fn pause_delivery(&self, name: &DeliveryName) -> Result<DeliveryDescription, Error> {
        let mut delivery = self.delivery();
        let call = delivery.pause_delivery(v1::PauseDeliveryRequest {
            delivery: name.to_string(),
        });
        let response = self.call(self.config().call_timeout, call).await?;
        self.delivers(response.delivery)
    }

    /// It goes on; one that has stopped tries again.
    ///
    /// # Errors
    /// When there is no such delivery stream.
    pub async fn resume_delivery(&self, name: &DeliveryName) -> Result<DeliveryDescription, Error> {
        let mut delivery = self.delivery();
        let call = delivery.resume_delivery(v1::ResumeDeliveryRequest {
            delivery: name.to_string(),
            new_incarnation: false,
            wait_us: None,
        });
        let response = self.call(self.config().call_timeout, call).await?;
        self.delivers(response.delivery)
    }

    /// It goes on under a new incarnation, with what the broker has that is in no manifest of the one
    /// before: for a data directory that was copied, or restored from a backup. Returns when that is
    /// durable.
    ///
    /// # Errors
    /// When there is no such delivery stream, or it is not done within `wait` (up to 1 h); it goes on
    /// then.
    pub async fn renew_delivery(
        &self,
        name: &DeliveryName,
        wait: Duration,
    ) -> Result<DeliveryDescription, Error> {
        let mut delivery = self.delivery();
        let call = delivery.resume_delivery(v1::ResumeDeliveryRequest {
            delivery: name.to_string(),
            new_incarnation: true,
            wait_us: Some(crate::description::micros(wait)),
        });
        let bound = self.config().call_timeout.saturating_add(wait);
        let response = self.call(bound, call).await?;
        self.delivers(response.delivery)
    }

    /// Delivers what is there now, without waiting for the buffering hints, and returns when it is
    /// done.
    ///
    /// # Errors
    /// When there is no such delivery stream, it is paused, or it is not done within `wait` (up to
    /// 1 h); then it goes on, and the error says what last went wrong.
    pub async fn flush_delivery(
        &self,
        name: &DeliveryName,
        wait: Duration,
    ) -> Result<DeliveryDescription, Error> {
        let mut delivery = self.delivery();
        let call = delivery.flush_delivery(v1::FlushDeliveryRequest {
            delivery: name.to_string(),
            wait_us: Some(crate::description::micros(wait)),
        });
        let bound = self.config().call_timeout.saturating_add(wait);
        let response = self.call(bound, call).await?;
        self.delivers(response.delivery)
    }

    /// Deletes a delivery stream, after what is there is delivered unless that is to be dropped.
    ///
    /// # Errors
    /// When there is no such delivery stream, or it is not gone within `wait` (up to 1 h); then the
    /// deletion goes on.
    pub async fn delete_delivery(
        &self,
        name: &DeliveryName,
        drop: bool,
        wait: Duration,
    ) -> Result<(), Error> {
        let mut delivery = self.delivery();
        let call = delivery.delete_delivery(v1::DeleteDeliveryRequest {
            delivery: name.to_string(),
            drop,
            wait_us: Some(crate::description::micros(wait)),
        });
        let bound = self.config().call_timeout.saturating_add(wait);
        self.call(bound, call).await.map(|_| ())
    }

    fn delivers(
        &self,
        delivery: Option<v1::DeliveryDescription>,
    ) -> Result<DeliveryDescription, Error> {
        delivery
            .ok_or(ConvertError::Missing { field: "delivery" })
            .and_then(DeliveryDescription::try_from)
            .map_err(|error| Error::nonsense(self.endpoint(), &error.to_string()))
    }
}

impl TryFrom<v1::DeliveryDescription> for DeliveryDescription {
    type Error = ConvertError;

    fn try_from(delivery: v1::DeliveryDescription) -> Result<Self, ConvertError> {
        let (status, guarantee) = (delivery.status(), delivery.guarantee());
        let missing = ConvertError::Missing { field: "settings" };
        Ok(Self {
            name: convert::delivery_name("name", &delivery.name)?,
            id: delivery.id,
            stream: convert::stream_name("stream", &delivery.stream)?,
            version: delivery.version,
            settings: delivery.settings.ok_or(missing)?,
            paused: delivery.paused,
            created: Timestamp::from_micros(delivery.created_us),
            updated: Timestamp::from_micros(delivery.updated_us),
            status,
            guarantee,
            freshness: Duration::from_micros(delivery.freshness_us),
            backlog: delivery.backlog.unwrap_or_default().into(),
            cuts: delivery.cuts,
            cuts_open: delivery.cuts_open,
            last_object: delivery.last_object.map(LastObject::from),
            last_error: delivery.last_error.map(LastError::from),
            counts: delivery.counts.unwrap_or_default(),
        })
    }
}

impl From<v1::DeliveryBacklog> for DeliveryBacklog {
    fn from(backlog: v1::DeliveryBacklog) -> Self {
        let oldest = backlog.oldest_us;
        Self {
            records: backlog.records,
            bytes: backlog.bytes,
            oldest: (oldest > 0).then(|| Timestamp::from_micros(oldest)),
            expired_records: backlog.expired_records,
        }
    }
}

impl From<v1::LastObject> for LastObject {
    fn from(last: v1::LastObject) -> Self {
        Self {
            key: last.key,
            bytes: last.bytes,
            records: last.records,
            at: Timestamp::from_micros(last.at_us),
        }
    }
}

impl From<v1::LastError> for LastError {
    fn from(last: v1::LastError) -> Self {
        Self {
            reason: last.reason,
            text: last.text,
            at: Timestamp::from_micros(last.at_us),
            times: last.times,
        }
    }
}
