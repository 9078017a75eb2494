//! What is set about a delivery stream. Stored as JSON, so names here are a format
//! (`docs/format.md`); what the parts mean in detail is the sink's to check and to do.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use flumen_record::{StreamName, Timestamp};
use serde::{Deserialize, Serialize};

/// Everything that is set about a delivery stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeliverySettings {
    /// What it reads. Cannot be changed.
    pub source: DeliverySource,
    /// Where objects go.
    pub destination: Destination,
    /// When a cut is closed.
    #[serde(default)]
    pub buffering: BufferingHints,
    /// What is done to records before they are written.
    #[serde(default, skip_serializing_if = "is_default")]
    pub processing: Processing,
    /// How records become the bytes of an object.
    #[serde(default)]
    pub format: ObjectFormat,
    /// How those are compressed. Parquet compresses itself and takes `None` here.
    #[serde(default)]
    pub compression: ObjectCompression,
    /// The names of objects.
    #[serde(default)]
    pub keys: KeySettings,
    /// What else a store is told about an object.
    #[serde(default, skip_serializing_if = "is_default")]
    pub object: ObjectSettings,
    /// Records by parts of themselves into objects of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partitioning: Option<Partitioning>,
    /// Records as they came, beside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<Backup>,
    /// A stream that takes records which could not be processed, beside the error prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letters: Option<StreamNameText>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A stream's name, checked when it is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StreamNameText(pub StreamName);

impl TryFrom<String> for StreamNameText {
    type Error = flumen_record::NameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self)
    }
}

impl From<StreamNameText> for String {
    fn from(name: StreamNameText) -> Self {
        name.0.as_str().to_owned()
    }
}

/// What a delivery stream reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case", tag = "kind")]
pub enum DeliverySource {
    /// A stream that is there already.
    Stream {
        /// Its name.
        stream: StreamNameText,
        /// Where delivery begins.
        #[serde(default)]
        start: DeliveryStart,
    },
    /// Direct puts: a stream of its own, `delivery.<name>`, created and deleted with it.
    Direct {
        /// Shards of that stream to begin with.
        #[serde(default = "one")]
        shards: u32,
    },
}

fn one() -> u32 {
    1
}

/// Where delivery begins in each shard there is at first; children of a reshard are read whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryStart {
    /// With what is there.
    #[default]
    TrimHorizon,
    /// With what comes next.
    Latest,
    /// With the first record that arrived at this time or later, in microseconds since 1970.
    AtTimestampUs(u64),
}

impl DeliveryStart {
    /// From a time.
    pub fn at(time: Timestamp) -> Self {
        Self::AtTimestampUs(time.as_micros())
    }
}

/// Where objects go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case", tag = "kind")]
pub enum Destination {
    /// S3, or a store that speaks its protocol. Credentials come from the usual chain
    /// (environment, profile, web identity, container, instance), never from here.
    S3(S3Destination),
    /// A local directory.
    Directory {
        /// Its absolute path; created when it is not there.
        path: PathBuf,
    },
    /// The memory of this process, gone with it: for tests.
    Memory {
        /// Which of them; equal names share what they hold.
        name: String,
    },
}

/// A bucket.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3Destination {
    /// Its name.
    pub bucket: String,
    /// Its region; unset: `AWS_REGION`, then the profile's, then `us-east-1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The server; unset: `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, then AWS. Plain `http://` is taken as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The bucket in the path instead of the host name; unset: wherever `endpoint` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_style: Option<bool>,
    /// PEM file with certificates to trust besides the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Profile of the shared credentials file; unset: `AWS_PROFILE`, then `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
}

/// When a cut is closed: whichever comes first (row F1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BufferingHints {
    /// Bytes of records as they came, uncompressed: 1 MiB to 128 MiB.
    pub size_bytes: u64,
    /// Age of the oldest record, in milliseconds: 0 to 900 s. 0: as soon as there is something.
    pub interval_ms: u64,
}

impl Default for BufferingHints {
    /// 5 MiB, 300 s.
    fn default() -> Self {
        Self {
            size_bytes: 5 << 20,
            interval_ms: 300_000,
        }
    }
}

impl BufferingHints {
    /// The age as a duration.
    pub fn interval(&self) -> Duration {
        Duration::from_millis(self.interval_ms)
    }
}

/// What is done to records, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Processing {
    /// A record's data is gzip (the Decompression processor of row F8).
    #[serde(skip_serializing_if = "is_default")]
    pub decompress: bool,
    /// A record's data is a CloudWatch Logs envelope: its messages are the records
    /// (CloudWatchLogProcessing with DataMessageExtraction).
    #[serde(skip_serializing_if = "is_default")]
    pub cloudwatch_logs: bool,
    /// A record's data holds several records (RecordDeAggregation). KPL aggregates are unpacked
    /// always.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sub_records: Option<SubRecords>,
    /// An HTTP endpoint that is handed records in batches and answers with what becomes of each
    /// (row F9).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transform: Option<HttpTransform>,
    /// A jq filter: a record whose first output is `false`, `null` or missing is dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// A jq filter: each output takes the record's place, as JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub map: Option<String>,
}

/// How a record is taken apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubRecords {
    /// JSON values after each other, or in an array.
    Json,
    /// Split at these bytes, which are dropped.
    Delimited(String),
}

/// An HTTP transform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpTransform {
    /// `http://` or `https://`.
    pub url: String,
    /// Further request headers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Record bytes per request at most: 200 kB to 3 MB.
    #[serde(default = "transform_batch_bytes")]
    pub batch_bytes: u64,
    /// Attempts after the first: 0 to 300. Then the records go to the error prefix.
    #[serde(default = "transform_retries")]
    pub retries: u32,
    /// Of one attempt, in milliseconds: up to 300 s.
    #[serde(default = "transform_timeout_ms")]
    pub timeout_ms: u64,
}

fn transform_batch_bytes() -> u64 {
    1_000_000
}

fn transform_retries() -> u32 {
    3
}

fn transform_timeout_ms() -> u64 {
    60_000
}

/// How records become the bytes of an object.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case", tag = "kind")]
pub enum ObjectFormat {
    /// The records' bytes one after the other, nothing between them (row F2).
    #[default]
    Verbatim,
    /// The same, with these bytes after each (`AppendDelimiterToRecord`).
    Delimited {
        /// What follows each record.
        delimiter: String,
    },
    /// One JSON value per line; what is not JSON goes to the error prefix.
    Ndjson,
    /// Rows of JSON objects in columns (row F11).
    Parquet(ParquetSettings),
}

/// How Parquet is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ParquetSettings {
    /// Columns; empty: inferred from the records, and added to as new fields come.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub columns: Vec<ParquetColumn>,
    /// How pages are compressed.
    pub compression: ParquetCompression,
    /// Rows of a row group at most.
    pub row_group_rows: u32,
    /// Bytes of a row group, about, uncompressed in memory: this is what a writer holds.
    pub row_group_bytes: u64,
    /// Bytes of a page, about.
    pub page_bytes: u64,
    /// Whether columns with few values get a dictionary.
    pub dictionary: bool,
}

impl Default for ParquetSettings {
    fn default() -> Self {
        Self {
            columns: Vec::new(),
            compression: ParquetCompression::Zstd,
            row_group_rows: 1_000_000,
            row_group_bytes: 32 << 20,
            page_bytes: 1 << 20,
            dictionary: true,
        }
    }
}

/// How Parquet pages are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParquetCompression {
    /// Not at all.
    None,
    /// Snappy.
    Snappy,
    /// Zstandard.
    Zstd,
}

/// A column that is given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParquetColumn {
    /// Its name, and the field of the record it comes from.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: ColumnType,
    /// A record without it (or with `null`) goes to the error prefix.
    #[serde(default, skip_serializing_if = "is_default")]
    pub required: bool,
}

/// The type of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ColumnType {
    /// `true` or `false`.
    Boolean,
    /// 32 bits, signed.
    Int,
    /// 64 bits, signed.
    Bigint,
    /// 64-bit floating point.
    Double,
    /// Text.
    String,
    /// Days since 1970, from `YYYY-MM-DD`.
    Date,
    /// Microseconds UTC, from RFC 3339 or `YYYY-MM-DD HH:MM:SS`, or a number of milliseconds.
    Timestamp,
    /// Any JSON value, as text.
    Json,
}

/// How an object is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectCompression {
    /// Not at all.
    #[default]
    None,
    /// gzip, `.gz`.
    Gzip,
    /// Snappy as snappy-java streams it, `.snappy` (row F3).
    Snappy,
    /// Zstandard, `.zst`.
    Zstd,
}

/// The names of objects (rows F4–F6).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KeySettings {
    /// What goes before the name, with `!{…}` expressions; unset: `yyyy/MM/dd/HH/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// The same for records that failed; unset: `<prefix>!{firehose:error-output-type}/yyyy/MM/dd/HH/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_prefix: Option<String>,
    /// IANA name of the zone of `!{timestamp:…}`; unset: UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
    /// Takes the place of what format and compression say, with its dot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_extension: Option<String>,
    /// Where manifests are: `<manifest_prefix>_manifest/`; unset: `<name of the delivery stream>/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifest_prefix: Option<String>,
}

/// What else a store is told about an object.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ObjectSettings {
    /// `x-amz-storage-class`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_class: Option<String>,
    /// `Content-Type`; unset: as format and compression say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// `Cache-Control`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_control: Option<String>,
    /// Further `x-amz-meta-` values.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

/// Records by parts of themselves into objects of their own (row F7). Only set at creation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Partitioning {
    /// `!{partitionKeyFromQuery:NAME}`: name and jq filter, at most 50. A record without a value
    /// goes to the error prefix.
    pub keys: BTreeMap<String, String>,
    /// Partitions of one cut at most, 1 to 5000; records of further ones go to the error prefix.
    #[serde(default = "partitions_max")]
    pub partitions_max: u32,
}

fn partitions_max() -> u32 {
    500
}

/// Records as they came, beside (row F16).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backup {
    /// As [`KeySettings::prefix`].
    pub prefix: String,
    /// How these objects are compressed.
    #[serde(default)]
    pub compression: ObjectCompression,
}
