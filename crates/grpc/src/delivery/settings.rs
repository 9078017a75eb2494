//! The settings of a delivery stream between the wire and the broker, both ways. Whether they can be
//! run is not looked at here: the broker asks who runs them.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use flumen_api::convert::{ConvertError, stream_name};
use flumen_api::v1;
use flumen_api::v1::delivery_settings as wire;
use flumen_api::v1::start_position::{Newest, Oldest, Position};
use flumen_api::v1::sub_records::{Form, Json};
use flumen_broker::{
    Backup, BufferingHints, ColumnType, DeliverySettings, DeliverySource, DeliveryStart,
    Destination, HttpTransform, KeySettings, ObjectCompression, ObjectFormat, ObjectSettings,
    ParquetColumn, ParquetCompression, ParquetSettings, Partitioning, Processing, S3Destination,
    StartPosition, StreamNameText, SubRecords,
};

use crate::consumer::start_position;

/// Partitions of one cut when the caller does not say how many.
const PARTITIONS_MAX: u32 = 500;
/// Record bytes of a request to a transform when the caller does not say how many.
const TRANSFORM_BATCH_BYTES: u64 = 1_000_000;
/// Attempts after the first when the caller does not say how many.
const TRANSFORM_RETRIES: u32 = 3;
/// Of one attempt when the caller does not say how long.
const TRANSFORM_TIMEOUT_MS: u64 = 60_000;

/// What the wire says, with defaults where it says nothing.
///
/// # Errors
/// When source or destination is missing, or a name, a start or a value of an enum is none.
pub fn delivery_settings(settings: v1::DeliverySettings) -> Result<DeliverySettings, ConvertError> {
    let dead_letters = match settings.dead_letters.as_str() {
        "" => None,
        name => Some(StreamNameText(stream_name("dead_letters", name)?)),
    };
    let destination = settings.destination.ok_or(ConvertError::Missing {
        field: "destination",
    })?;
    Ok(DeliverySettings {
        source: source(settings.source)?,
        destination: of_destination(destination),
        buffering: settings.buffering.map(buffering).unwrap_or_default(),
        processing: settings
            .processing
            .map(processing)
            .transpose()?
            .unwrap_or_default(),
        format: settings.format.map(format).transpose()?.unwrap_or_default(),
        compression: compression("compression", settings.compression)?,
        keys: settings.keys.map(keys).unwrap_or_default(),
        object: settings.object.map(object).unwrap_or_default(),
        partitioning: settings.partitioning.map(|one| Partitioning {
            keys: ordered(one.keys),
            partitions_max: one.partitions_max.unwrap_or(PARTITIONS_MAX),
        }),
        backup: settings.backup.map(backup).transpose()?,
        dead_letters,
    })
}

fn ordered(map: HashMap<String, String>) -> BTreeMap<String, String> {
    map.into_iter().collect()
}

fn source(source: Option<wire::Source>) -> Result<DeliverySource, ConvertError> {
    match source.ok_or(ConvertError::Missing { field: "source" })? {
        wire::Source::Stream(from) => Ok(DeliverySource::Stream {
            stream: StreamNameText(stream_name("stream.stream", &from.stream)?),
            start: match &from.start {
                None => DeliveryStart::default(),
                some => start(start_position("stream.start", some.as_ref())?)?,
            },
        }),
        wire::Source::Direct(direct) => Ok(DeliverySource::Direct {
            shards: direct.shards.unwrap_or(1),
        }),
    }
}

/// Not at a number, which is a place in one shard.
fn start(start: StartPosition) -> Result<DeliveryStart, ConvertError> {
    match start {
        StartPosition::TrimHorizon => Ok(DeliveryStart::TrimHorizon),
        StartPosition::Latest => Ok(DeliveryStart::Latest),
        StartPosition::AtTimestamp(at) => Ok(DeliveryStart::at(at)),
        StartPosition::At(_) | StartPosition::After(_) => Err(ConvertError::Position {
            field: "stream.start",
        }),
    }
}

fn of_destination(destination: wire::Destination) -> Destination {
    match destination {
        wire::Destination::S3(s3) => Destination::S3(S3Destination {
            bucket: s3.bucket,
            region: s3.region,
            endpoint: s3.endpoint,
            path_style: s3.path_style,
            ca_file: s3.ca_file.map(PathBuf::from),
            profile: s3.profile,
        }),
        wire::Destination::Directory(directory) => Destination::Directory {
            path: directory.path.into(),
        },
        wire::Destination::Memory(memory) => Destination::Memory { name: memory.name },
    }
}

fn buffering(hints: v1::BufferingHints) -> BufferingHints {
    let defaults = BufferingHints::default();
    BufferingHints {
        size_bytes: hints.size_bytes.unwrap_or(defaults.size_bytes),
        interval_ms: hints.interval_ms.unwrap_or(defaults.interval_ms),
    }
}

fn processing(processing: v1::Processing) -> Result<Processing, ConvertError> {
    let sub_records = match processing.sub_records {
        None => None,
        Some(sub_records) => Some(match sub_records.form {
            Some(Form::Json(Json {})) => SubRecords::Json,
            Some(Form::Delimited(delimiter)) => SubRecords::Delimited(delimiter),
            None => {
                return Err(ConvertError::Missing {
                    field: "processing.sub_records.form",
                });
            }
        }),
    };
    let transform = processing.transform.map(|transform| HttpTransform {
        url: transform.url,
        headers: ordered(transform.headers),
        batch_bytes: transform.batch_bytes.unwrap_or(TRANSFORM_BATCH_BYTES),
        retries: transform.retries.unwrap_or(TRANSFORM_RETRIES),
        timeout_ms: transform.timeout_ms.unwrap_or(TRANSFORM_TIMEOUT_MS),
    });
    Ok(Processing {
        decompress: processing.decompress,
        cloudwatch_logs: processing.cloudwatch_logs,
        sub_records,
        transform,
        filter: processing.filter,
        map: processing.map,
    })
}

fn format(format: wire::Format) -> Result<ObjectFormat, ConvertError> {
    Ok(match format {
        wire::Format::Verbatim(v1::VerbatimFormat {}) => ObjectFormat::Verbatim,
        wire::Format::Delimited(delimited) => ObjectFormat::Delimited {
            delimiter: delimited.delimiter,
        },
        wire::Format::Ndjson(v1::NdjsonFormat {}) => ObjectFormat::Ndjson,
        wire::Format::Parquet(parquet) => ObjectFormat::Parquet(of_parquet(parquet)?),
    })
}

fn of_parquet(parquet: v1::ParquetFormat) -> Result<ParquetSettings, ConvertError> {
    let defaults = ParquetSettings::default();
    let columns = parquet.columns.into_iter().map(|column| {
        Ok(ParquetColumn {
            kind: column_type(column.r#type)?,
            name: column.name,
            required: column.required,
        })
    });
    Ok(ParquetSettings {
        columns: columns.collect::<Result<_, _>>()?,
        compression: parquet_compression(parquet.compression)?.unwrap_or(defaults.compression),
        row_group_rows: parquet.row_group_rows.unwrap_or(defaults.row_group_rows),
        row_group_bytes: parquet.row_group_bytes.unwrap_or(defaults.row_group_bytes),
        page_bytes: parquet.page_bytes.unwrap_or(defaults.page_bytes),
        dictionary: parquet.dictionary.unwrap_or(defaults.dictionary),
    })
}

fn column_type(value: i32) -> Result<ColumnType, ConvertError> {
    let field = "parquet.columns.type";
    match v1::ColumnType::try_from(value) {
        Ok(v1::ColumnType::Unspecified) => Err(ConvertError::Missing { field }),
        Ok(v1::ColumnType::Boolean) => Ok(ColumnType::Boolean),
        Ok(v1::ColumnType::Int) => Ok(ColumnType::Int),
        Ok(v1::ColumnType::Bigint) => Ok(ColumnType::Bigint),
        Ok(v1::ColumnType::Double) => Ok(ColumnType::Double),
        Ok(v1::ColumnType::String) => Ok(ColumnType::String),
        Ok(v1::ColumnType::Date) => Ok(ColumnType::Date),
        Ok(v1::ColumnType::Timestamp) => Ok(ColumnType::Timestamp),
        Ok(v1::ColumnType::Json) => Ok(ColumnType::Json),
        Err(_) => Err(ConvertError::Enumeration { field, value }),
    }
}

fn parquet_compression(value: i32) -> Result<Option<ParquetCompression>, ConvertError> {
    let field = "parquet.compression";
    match v1::ParquetCompression::try_from(value) {
        Ok(v1::ParquetCompression::Unspecified) => Ok(None),
        Ok(v1::ParquetCompression::None) => Ok(Some(ParquetCompression::None)),
        Ok(v1::ParquetCompression::Snappy) => Ok(Some(ParquetCompression::Snappy)),
        Ok(v1::ParquetCompression::Zstd) => Ok(Some(ParquetCompression::Zstd)),
        Err(_) => Err(ConvertError::Enumeration { field, value }),
    }
}

fn compression(field: &'static str, value: i32) -> Result<ObjectCompression, ConvertError> {
    match v1::ObjectCompression::try_from(value) {
        Ok(v1::ObjectCompression::Unspecified | v1::ObjectCompression::None) => {
            Ok(ObjectCompression::None)
        }
        Ok(v1::ObjectCompression::Gzip) => Ok(ObjectCompression::Gzip),
        Ok(v1::ObjectCompression::Snappy) => Ok(ObjectCompression::Snappy),
        Ok(v1::ObjectCompression::Zstd) => Ok(ObjectCompression::Zstd),
        Err(_) => Err(ConvertError::Enumeration { field, value }),
    }
}

fn keys(keys: v1::ObjectKeys) -> KeySettings {
    KeySettings {
        prefix: keys.prefix,
        error_prefix: keys.error_prefix,
        time_zone: keys.time_zone,
        file_extension: keys.file_extension,
        manifest_prefix: keys.manifest_prefix,
    }
}

fn object(object: v1::ObjectAttributes) -> ObjectSettings {
    ObjectSettings {
        storage_class: object.storage_class,
        content_type: object.content_type,
        cache_control: object.cache_control,
        metadata: ordered(object.metadata),
    }
}

fn backup(backup: v1::Backup) -> Result<Backup, ConvertError> {
    Ok(Backup {
        compression: compression("backup.compression", backup.compression)?,
        prefix: backup.prefix,
    })
}

/// The same settings on the wire, every one of them said.
pub fn wire_delivery_settings(settings: &DeliverySettings) -> v1::DeliverySettings {
    let DeliverySettings {
        source,
        destination,
        buffering,
        processing,
        format,
        compression,
        keys,
        object,
        partitioning,
        backup,
        dead_letters,
    } = settings;
    v1::DeliverySettings {
        source: Some(wire_source(source)),
        destination: Some(wire_destination(destination)),
        buffering: Some(v1::BufferingHints {
            size_bytes: Some(buffering.size_bytes),
            interval_ms: Some(buffering.interval_ms),
        }),
        processing: (*processing != Processing::default()).then(|| wire_processing(processing)),
        format: Some(wire_format(format)),
        compression: wire_compression(*compression).into(),
        keys: Some(v1::ObjectKeys {
            prefix: keys.prefix.clone(),
            error_prefix: keys.error_prefix.clone(),
            time_zone: keys.time_zone.clone(),
            file_extension: keys.file_extension.clone(),
            manifest_prefix: keys.manifest_prefix.clone(),
        }),
        object: (*object != ObjectSettings::default()).then(|| v1::ObjectAttributes {
            storage_class: object.storage_class.clone(),
            content_type: object.content_type.clone(),
            cache_control: object.cache_control.clone(),
            metadata: unordered(&object.metadata),
        }),
        partitioning: partitioning.as_ref().map(|one| v1::Partitioning {
            keys: unordered(&one.keys),
            partitions_max: Some(one.partitions_max),
        }),
        backup: backup.as_ref().map(|one| v1::Backup {
            prefix: one.prefix.clone(),
            compression: wire_compression(one.compression).into(),
        }),
        dead_letters: dead_letters
            .as_ref()
            .map(|name| name.0.to_string())
            .unwrap_or_default(),
    }
}

fn unordered(map: &BTreeMap<String, String>) -> HashMap<String, String> {
    map.iter()
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

fn wire_source(source: &DeliverySource) -> wire::Source {
    match source {
        DeliverySource::Stream { stream, start } => {
            let position = match *start {
                DeliveryStart::TrimHorizon => Position::TrimHorizon(Oldest {}),
                DeliveryStart::Latest => Position::Latest(Newest {}),
                DeliveryStart::AtTimestampUs(micros) => Position::AtTimestampUs(micros),
            };
            wire::Source::Stream(v1::StreamSource {
                stream: stream.0.to_string(),
                start: Some(v1::StartPosition {
                    position: Some(position),
                }),
            })
        }
        DeliverySource::Direct { shards } => wire::Source::Direct(v1::DirectSource {
            shards: Some(*shards),
        }),
    }
}

fn wire_destination(destination: &Destination) -> wire::Destination {
    match destination {
        Destination::S3(s3) => wire::Destination::S3(v1::S3Destination {
            bucket: s3.bucket.clone(),
            region: s3.region.clone(),
            endpoint: s3.endpoint.clone(),
            path_style: s3.path_style,
            ca_file: s3.ca_file.as_ref().map(|path| path.display().to_string()),
            profile: s3.profile.clone(),
        }),
        Destination::Directory { path } => wire::Destination::Directory(v1::DirectoryDestination {
            path: path.display().to_string(),
        }),
        Destination::Memory { name } => {
            wire::Destination::Memory(v1::MemoryDestination { name: name.clone() })
        }
    }
}

fn wire_processing(processing: &Processing) -> v1::Processing {
    let sub_records = processing.sub_records.as_ref().map(|form| {
        let form = match form {
            SubRecords::Json => Form::Json(Json {}),
            SubRecords::Delimited(delimiter) => Form::Delimited(delimiter.clone()),
        };
        v1::SubRecords { form: Some(form) }
    });
    let transform = processing.transform.as_ref().map(|one| v1::HttpTransform {
        url: one.url.clone(),
        headers: unordered(&one.headers),
        batch_bytes: Some(one.batch_bytes),
        retries: Some(one.retries),
        timeout_ms: Some(one.timeout_ms),
    });
    v1::Processing {
        decompress: processing.decompress,
        cloudwatch_logs: processing.cloudwatch_logs,
        sub_records,
        transform,
        filter: processing.filter.clone(),
        map: processing.map.clone(),
    }
}

fn wire_format(format: &ObjectFormat) -> wire::Format {
    match format {
        ObjectFormat::Verbatim => wire::Format::Verbatim(v1::VerbatimFormat {}),
        ObjectFormat::Delimited { delimiter } => wire::Format::Delimited(v1::DelimitedFormat {
            delimiter: delimiter.clone(),
        }),
        ObjectFormat::Ndjson => wire::Format::Ndjson(v1::NdjsonFormat {}),
        ObjectFormat::Parquet(parquet) => wire::Format::Parquet(wire_parquet(parquet)),
    }
}

fn wire_parquet(parquet: &ParquetSettings) -> v1::ParquetFormat {
    let compression = match parquet.compression {
        ParquetCompression::None => v1::ParquetCompression::None,
        ParquetCompression::Snappy => v1::ParquetCompression::Snappy,
        ParquetCompression::Zstd => v1::ParquetCompression::Zstd,
    };
    let columns = parquet.columns.iter().map(|column| {
        let kind = match column.kind {
            ColumnType::Boolean => v1::ColumnType::Boolean,
            ColumnType::Int => v1::ColumnType::Int,
            ColumnType::Bigint => v1::ColumnType::Bigint,
            ColumnType::Double => v1::ColumnType::Double,
            ColumnType::String => v1::ColumnType::String,
            ColumnType::Date => v1::ColumnType::Date,
            ColumnType::Timestamp => v1::ColumnType::Timestamp,
            ColumnType::Json => v1::ColumnType::Json,
        };
        v1::ParquetColumn {
            name: column.name.clone(),
            r#type: kind.into(),
            required: column.required,
        }
    });
    v1::ParquetFormat {
        columns: columns.collect(),
        compression: compression.into(),
        row_group_rows: Some(parquet.row_group_rows),
        row_group_bytes: Some(parquet.row_group_bytes),
        page_bytes: Some(parquet.page_bytes),
        dictionary: Some(parquet.dictionary),
    }
}

fn wire_compression(compression: ObjectCompression) -> v1::ObjectCompression {
    match compression {
        ObjectCompression::None => v1::ObjectCompression::None,
        ObjectCompression::Gzip => v1::ObjectCompression::Gzip,
        ObjectCompression::Snappy => v1::ObjectCompression::Snappy,
        ObjectCompression::Zstd => v1::ObjectCompression::Zstd,
    }
}

#[cfg(test)]
mod tests;
