//! The flags of what is set about a delivery stream, over settings that are there or read as JSON.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use flumen_broker::{
    Backup, DeliverySettings, Destination, ObjectCompression, ObjectFormat, ParquetColumn,
    ParquetCompression, ParquetSettings, Partitioning, S3Destination, StreamNameText,
};
use flumen_client::{DeliveryName, StreamName};
use serde_json::json;

use super::processing::ProcessingArgs;
use super::typed::{
    FormatKind, Pair, To, parse_column, parse_compression, parse_escaped, parse_format, parse_pair,
    parse_parquet_compression, parse_path, parse_to, refuse_glue, refuse_kms,
};
use crate::failure::usage;
use crate::quantity::{parse_duration, parse_size};

/// Settings as JSON are not longer than this.
const SETTINGS_BYTES_MAX: u64 = 1 << 20;

/// All flags of settings but the source. Of those that take text, nothing ('') takes the setting
/// away.
#[derive(Debug, Clone, PartialEq, Default, clap::Args)]
pub(super) struct SettingsArgs {
    /// All settings as JSON, as `describe` shows them; - is standard input. Other flags go over it
    #[arg(long, value_name = "FILE", help_heading = "Settings")]
    settings: Option<PathBuf>,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    cut: CutArgs,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    keys: KeyArgs,
    #[command(flatten)]
    processing: ProcessingArgs,
}

/// Where objects go.
#[derive(Debug, Clone, PartialEq, Default, clap::Args)]
#[command(next_help_heading = "Destination")]
struct PlaceArgs {
    /// A directory of the broker's machine (also file:///DIR), s3://BUCKET[/PREFIX], or memory:NAME
    #[arg(long, value_parser = parse_to, value_name = "WHERE")]
    to: Option<To>,
    /// The S3 server [default: the broker's AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, then AWS]
    #[arg(long, value_name = "URL")]
    s3_endpoint: Option<String>,
    /// Its region [default: the broker's AWS_REGION, its profile's, then us-east-1]
    #[arg(long)]
    region: Option<String>,
    /// The bucket in the path, not in the host name [default: with --s3-endpoint]
    #[arg(long, value_name = "true|false")]
    path_style: Option<bool>,
    /// Certificates (PEM) to trust besides the system's, on the broker's machine
    #[arg(long, value_name = "FILE")]
    ca_file: Option<String>,
    /// Profile of the broker's shared credentials file
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// x-amz-storage-class of objects
    #[arg(long, value_name = "CLASS")]
    storage_class: Option<String>,
    /// Content-Type of objects [default: as format and compression say]
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
    /// Cache-Control of objects
    #[arg(long, value_name = "TEXT")]
    cache_control: Option<String>,
    /// x-amz-meta-NAME of objects (may be given several times)
    #[arg(long, value_parser = parse_pair, value_name = "NAME=VALUE")]
    metadata: Vec<Pair>,
    #[arg(long, hide = true, value_parser = refuse_kms)]
    kms_key: Option<String>,
}

/// When a cut is closed.
#[derive(Debug, Clone, PartialEq, Default, clap::Args)]
#[command(next_help_heading = "Buffering")]
struct CutArgs {
    /// A cut is closed at so many bytes of records, 1MiB to 128MiB [default: 5MiB]
    #[arg(long, value_parser = parse_size, value_name = "SIZE")]
    size: Option<u64>,
    /// … or when its oldest record is this old, 0 to 15m [default: 5m]
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    interval: Option<Duration>,
}

/// How records become the bytes of an object.
#[derive(Debug, Clone, PartialEq, Default, clap::Args)]
#[command(next_help_heading = "Format")]
struct FormatArgs {
    /// verbatim (nothing between records), delimited, ndjson or parquet [default: verbatim]
    #[arg(long, value_parser = parse_format, value_name = "FORMAT")]
    format: Option<FormatKind>,
    /// With delimited: what follows each record [default: \n]
    #[arg(long, value_parser = parse_escaped, value_name = "TEXT")]
    delimiter: Option<String>,
    /// Of objects: none, gzip, snappy or zstd [default: none]
    #[arg(long, value_parser = parse_compression, value_name = "HOW")]
    compression: Option<ObjectCompression>,
    /// With parquet: a column, as in at:timestamp:required (may be given several times) [default:
    /// inferred from the records]
    #[arg(long, value_parser = parse_column, value_name = "NAME:TYPE[:required]")]
    column: Vec<ParquetColumn>,
    /// Of Parquet pages: zstd, snappy or none [default: zstd]
    #[arg(long, value_parser = parse_parquet_compression, value_name = "HOW")]
    parquet_compression: Option<ParquetCompression>,
    /// Of Parquet row groups, about, uncompressed: what a writer holds [default: 32MiB]
    #[arg(long, value_parser = parse_size, value_name = "SIZE")]
    row_group_size: Option<u64>,
    /// Of Parquet row groups, at most [default: 1000000]
    #[arg(long, value_name = "N")]
    row_group_rows: Option<u32>,
    /// Of Parquet pages, about [default: 1MiB]
    #[arg(long, value_parser = parse_size, value_name = "SIZE")]
    page_size: Option<u64>,
    /// No dictionaries in Parquet
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    no_dictionary: Option<bool>,
    #[arg(long, hide = true, value_parser = refuse_glue)]
    glue_table: Option<String>,
}

/// The names of objects.
#[derive(Debug, Clone, PartialEq, Default, clap::Args)]
#[command(next_help_heading = "Names of objects")]
struct KeyArgs {
    /// What goes before the name, as in 'logs/!{timestamp:yyyy/MM/dd}/' [default: yyyy/MM/dd/HH/]
    #[arg(long)]
    prefix: Option<String>,
    /// The same for records that failed; needed when --prefix has expressions [default:
    /// PREFIX!{firehose:error-output-type}/yyyy/MM/dd/HH/]
    #[arg(long, value_name = "PREFIX")]
    error_prefix: Option<String>,
    /// Zone of timestamps in prefixes, as in Europe/Berlin [default: UTC]
    #[arg(long, value_name = "ZONE")]
    time_zone: Option<String>,
    /// In place of what format and compression say, with its dot
    #[arg(long, value_name = ".EXT")]
    file_extension: Option<String>,
    /// Manifests are in PREFIX_manifest/ [default: the name of the delivery stream and /]
    #[arg(long, value_name = "PREFIX")]
    manifest_prefix: Option<String>,
    /// Objects by part of the record: !{partitionKeyFromQuery:NAME} in a prefix is what the jq
    /// filter gives (may be given several times)
    #[arg(long, value_parser = parse_pair, value_name = "NAME=JQ")]
    partition: Vec<Pair>,
    /// Partitions of one cut, 1 to 5000; records of further ones go to the error prefix [default:
    /// 500]
    #[arg(long, value_name = "N")]
    partitions_max: Option<u32>,
    /// Records as they came, beside, under this prefix
    #[arg(long, value_name = "PREFIX")]
    backup_prefix: Option<String>,
    /// Of those: none, gzip, snappy or zstd [default: none]
    #[arg(long, value_parser = parse_compression, value_name = "HOW")]
    backup_compression: Option<ObjectCompression>,
    /// A stream that gets records which could not be processed, too
    #[arg(long, value_name = "STREAM")]
    dead_letters: Option<String>,
}

/// Text that is given, or taken away by nothing.
pub(super) fn set(place: &mut Option<String>, given: Option<&String>) {
    if let Some(text) = given {
        *place = (!text.is_empty()).then(|| text.clone());
    }
}

/// Pairs that are given, all of them anew.
pub(super) fn set_pairs(place: &mut BTreeMap<String, String>, given: &[Pair]) {
    if !given.is_empty() {
        *place = given.iter().flatten().cloned().collect();
    }
}

impl SettingsArgs {
    /// Whether any is given.
    pub(super) fn says_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// Where objects go, as typed.
    pub(super) fn to(&self) -> Option<Destination> {
        self.place.to.as_ref().map(destination)
    }

    /// The settings of the file, if there is one.
    pub(super) fn file(&self) -> Result<Option<DeliverySettings>> {
        self.settings.as_deref().map(read_settings).transpose()
    }

    /// A path behind a bucket becomes the beginning of every prefix of a delivery stream that is new.
    pub(super) fn begin_prefixes(&self, name: &DeliveryName, settings: &mut DeliverySettings) {
        let Some(To::S3 { prefix, .. }) = &self.place.to else {
            return;
        };
        if prefix.is_empty() {
            return;
        }
        let begin = |after: &str| Some(format!("{prefix}{after}"));
        let keys = &mut settings.keys;
        keys.prefix = begin(keys.prefix.as_deref().unwrap_or_default());
        // Unset, it follows the prefix.
        keys.error_prefix = keys.error_prefix.as_deref().and_then(begin);
        let manifests = keys.manifest_prefix.take();
        keys.manifest_prefix = begin(&manifests.unwrap_or_else(|| format!("{name}/")));
        if let Some(backup) = &mut settings.backup {
            backup.prefix.insert_str(0, prefix);
        }
    }

    /// Refuses what makes sense for a new delivery stream only.
    pub(super) fn check_update(&self) -> Result<()> {
        match &self.place.to {
            Some(To::S3 { bucket, prefix }) if !prefix.is_empty() => Err(usage(format!(
                "prefixes are there already: use --to s3://{bucket}, with --prefix and \
                 --manifest-prefix for what is to change"
            ))),
            _ => Ok(()),
        }
    }

    /// Changes what is given.
    pub(super) fn apply(&self, settings: &mut DeliverySettings) -> Result<()> {
        self.place.apply(settings)?;
        self.cut.apply(settings);
        self.format.apply(settings)?;
        self.keys.apply(settings)?;
        self.processing.apply(&mut settings.processing)
    }
}

fn read_settings(file: &Path) -> Result<DeliverySettings> {
    let mut text = String::new();
    let (shown, read) = if file == Path::new("-") {
        let input = std::io::stdin().lock().take(SETTINGS_BYTES_MAX);
        (
            "standard input".to_owned(),
            { input }.read_to_string(&mut text),
        )
    } else {
        let shown = file.display().to_string();
        let input = std::fs::File::open(file).with_context(|| format!("opening {shown}"))?;
        (
            shown,
            input.take(SETTINGS_BYTES_MAX).read_to_string(&mut text),
        )
    };
    read.with_context(|| format!("reading {shown}"))?;
    serde_json::from_str(&text).map_err(|error| {
        usage(format!(
            "{shown} is not the settings of a delivery stream: {error}; `flumen --output json \
             delivery describe NAME` shows some"
        ))
    })
}

fn destination(to: &To) -> Destination {
    match to {
        To::S3 { bucket, .. } => Destination::S3(S3Destination {
            bucket: bucket.clone(),
            ..S3Destination::default()
        }),
        To::Directory(path) => Destination::Directory { path: path.clone() },
        To::Memory(name) => Destination::Memory { name: name.clone() },
    }
}

impl PlaceArgs {
    fn apply(&self, settings: &mut DeliverySettings) -> Result<()> {
        if let Some(to) = &self.to {
            match (&mut settings.destination, to) {
                // How it is reached stays.
                (Destination::S3(s3), To::S3 { bucket, .. }) => s3.bucket.clone_from(bucket),
                (there, to) => *there = destination(to),
            }
        }
        let object = &mut settings.object;
        set(&mut object.storage_class, self.storage_class.as_ref());
        set(&mut object.content_type, self.content_type.as_ref());
        set(&mut object.cache_control, self.cache_control.as_ref());
        set_pairs(&mut object.metadata, &self.metadata);
        if let Destination::S3(s3) = &mut settings.destination {
            set(&mut s3.endpoint, self.s3_endpoint.as_ref());
            set(&mut s3.region, self.region.as_ref());
            set(&mut s3.profile, self.profile.as_ref());
            s3.path_style = self.path_style.or(s3.path_style);
            match self.ca_file.as_deref() {
                None => {}
                Some("") => s3.ca_file = None,
                Some(file) => s3.ca_file = Some(parse_path(file)?),
            }
            return Ok(());
        }
        let of_s3 = [
            ("--s3-endpoint", self.s3_endpoint.is_some()),
            ("--region", self.region.is_some()),
            ("--path-style", self.path_style.is_some()),
            ("--ca-file", self.ca_file.is_some()),
            ("--profile", self.profile.is_some()),
        ];
        match of_s3.iter().find(|(_, given)| *given) {
            Some((flag, _)) => Err(usage(format!(
                "{flag} is about S3, and objects go elsewhere: use --to s3://BUCKET"
            ))),
            None => Ok(()),
        }
    }
}

impl CutArgs {
    fn apply(&self, settings: &mut DeliverySettings) {
        let hints = &mut settings.buffering;
        hints.size_bytes = self.size.unwrap_or(hints.size_bytes);
        if let Some(interval) = self.interval {
            hints.interval_ms = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
        }
    }
}

impl FormatArgs {
    fn apply(&self, settings: &mut DeliverySettings) -> Result<()> {
        let format = &mut settings.format;
        match (self.format, &*format) {
            (Some(FormatKind::Verbatim), _) => *format = ObjectFormat::Verbatim,
            (Some(FormatKind::Ndjson), _) => *format = ObjectFormat::Ndjson,
            // What else is set about it stays.
            (Some(FormatKind::Delimited), ObjectFormat::Delimited { .. })
            | (Some(FormatKind::Parquet), ObjectFormat::Parquet(_))
            | (None, _) => {}
            (Some(FormatKind::Delimited), _) => {
                *format = ObjectFormat::Delimited {
                    delimiter: "\n".to_owned(),
                };
            }
            (Some(FormatKind::Parquet), _) => {
                *format = ObjectFormat::Parquet(ParquetSettings::default());
                // It is of objects that are no Parquet.
                settings.compression = ObjectCompression::None;
            }
        }
        match (&self.delimiter, &mut *format) {
            (Some(given), ObjectFormat::Delimited { delimiter }) => delimiter.clone_from(given),
            (Some(_), _) => return Err(usage("--delimiter needs --format delimited")),
            (None, _) => {}
        }
        match format {
            ObjectFormat::Parquet(parquet) => {
                if self
                    .compression
                    .is_some_and(|how| how != ObjectCompression::None)
                {
                    return Err(usage(
                        "parquet compresses its own pages: --parquet-compression says how",
                    ));
                }
                self.apply_parquet(parquet);
            }
            _ => self.check_no_parquet()?,
        }
        settings.compression = self.compression.unwrap_or(settings.compression);
        Ok(())
    }

    fn apply_parquet(&self, parquet: &mut ParquetSettings) {
        if !self.column.is_empty() {
            parquet.columns.clone_from(&self.column);
        }
        parquet.compression = self.parquet_compression.unwrap_or(parquet.compression);
        parquet.row_group_bytes = self.row_group_size.unwrap_or(parquet.row_group_bytes);
        parquet.row_group_rows = self.row_group_rows.unwrap_or(parquet.row_group_rows);
        parquet.page_bytes = self.page_size.unwrap_or(parquet.page_bytes);
        parquet.dictionary = self.no_dictionary.map_or(parquet.dictionary, |no| !no);
    }

    fn check_no_parquet(&self) -> Result<()> {
        let of_parquet = [
            ("--column", !self.column.is_empty()),
            ("--parquet-compression", self.parquet_compression.is_some()),
            ("--row-group-size", self.row_group_size.is_some()),
            ("--row-group-rows", self.row_group_rows.is_some()),
            ("--page-size", self.page_size.is_some()),
            ("--no-dictionary", self.no_dictionary.is_some()),
        ];
        match of_parquet.iter().find(|(_, given)| *given) {
            Some((flag, _)) => Err(usage(format!("{flag} needs --format parquet"))),
            None => Ok(()),
        }
    }
}

impl KeyArgs {
    fn apply(&self, settings: &mut DeliverySettings) -> Result<()> {
        let keys = &mut settings.keys;
        set(&mut keys.prefix, self.prefix.as_ref());
        set(&mut keys.error_prefix, self.error_prefix.as_ref());
        set(&mut keys.time_zone, self.time_zone.as_ref());
        set(&mut keys.file_extension, self.file_extension.as_ref());
        set(&mut keys.manifest_prefix, self.manifest_prefix.as_ref());
        self.apply_partitioning(settings)?;
        match (&self.backup_prefix, &mut settings.backup) {
            (Some(prefix), backup) if prefix.is_empty() => *backup = None,
            (Some(prefix), Some(backup)) => backup.prefix.clone_from(prefix),
            (Some(prefix), backup) => {
                *backup = Some(Backup {
                    prefix: prefix.clone(),
                    compression: ObjectCompression::None,
                });
            }
            (None, _) => {}
        }
        match (self.backup_compression, &mut settings.backup) {
            (Some(compression), Some(backup)) => backup.compression = compression,
            (Some(_), None) => return Err(usage("--backup-compression needs --backup-prefix")),
            (None, _) => {}
        }
        match self.dead_letters.as_deref() {
            None => {}
            Some("") => settings.dead_letters = None,
            Some(name) => {
                let name: StreamName = name
                    .parse()
                    .map_err(|error| usage(format!("--dead-letters {name}: {error}")))?;
                settings.dead_letters = Some(StreamNameText(name));
            }
        }
        Ok(())
    }

    fn apply_partitioning(&self, settings: &mut DeliverySettings) -> Result<()> {
        let keys: BTreeMap<_, _> = self.partition.iter().flatten().cloned().collect();
        match (self.partition.is_empty(), keys.is_empty()) {
            (true, _) => {}
            (false, true) => settings.partitioning = None,
            (false, false) => match &mut settings.partitioning {
                Some(partitioning) => partitioning.keys = keys,
                none => *none = Some(partitioning(keys)),
            },
        }
        match (self.partitions_max, &mut settings.partitioning) {
            (Some(most), Some(partitioning)) => partitioning.partitions_max = most,
            (Some(_), None) => return Err(usage("--partitions-max needs --partition NAME=JQ")),
            (None, _) => {}
        }
        Ok(())
    }
}

/// With the defaults of the JSON form.
fn partitioning(keys: BTreeMap<String, String>) -> Partitioning {
    serde_json::from_value(json!({ "keys": keys })).expect("BUG: keys are all that must be set")
}
