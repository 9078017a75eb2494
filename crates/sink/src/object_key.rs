//! The names of objects (rows F4 to F6): a prefix with `!{…}` expressions, then name, version, time
//! and a number that derives from what the object holds.
//!
//! Equal parts make equal keys: nothing here is random, whatever it is called. Keys never leave the
//! place they are under: values of partition keys stay within a segment, segments of dots are refused.

mod date_pattern;
mod expression;

use std::fmt::Write as _;

use flumen_broker::{DeliverySettings, ObjectCompression, ObjectFormat};
use flumen_record::{DeliveryName, Timestamp};
use jiff::tz::TimeZone;

use crate::unit::ErrorType;
use date_pattern::{DatePattern, zoned};
use expression::{Class, Expression, Part, derived};
use flumen_broker::SettingRefused;

/// The longest key, in bytes, as S3 has it.
const MAX_KEY_BYTES: usize = 1024;
/// As long as any incarnation is when it is written.
const LONGEST_INCARNATION: &str = "00000000000000-0000000000000000";
/// The longest file extension, in bytes.
const MAX_EXTENSION_BYTES: usize = 128;

/// What the keys of one object are made of; equal parts make equal keys.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeyParts<'a> {
    /// Arrival of the oldest record in the object.
    pub(crate) oldest: Timestamp,
    /// Version of the settings.
    pub(crate) version: u64,
    /// Derived from what the object holds (delivery stream, cut, partition, part); everything that
    /// looks random derives from it.
    pub(crate) unique: u128,
    /// Partition keys by query: name and value.
    pub(crate) partition: &'a [(String, String)],
    /// Partition keys by transform: name and value.
    pub(crate) transform_keys: &'a [(String, String)],
}

/// An object cannot be named.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KeyRefused {
    /// A partition key of the prefix has no value.
    #[error("there is no value for partition key {name:?}, which the prefix needs")]
    NoValue {
        /// Its name.
        name: String,
    },
    /// The key is too long.
    #[error("the key would be {bytes} bytes long, of at most {MAX_KEY_BYTES}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// A segment of the key is empty or of dots only: stores and directories disagree on these.
    #[error("the key would have a segment {segment:?} between slashes")]
    Segment {
        /// The segment.
        segment: String,
    },
}

/// Names objects as the settings say. Send and Sync.
#[derive(Debug, Clone)]
pub(crate) struct ObjectKeys {
    name: DeliveryName,
    zone: TimeZone,
    time_in_name: DatePattern,
    data: Expression,
    error: Expression,
    backup: Option<Expression>,
    data_extension: String,
    backup_extension: &'static str,
    manifest_prefix: String,
}

impl ObjectKeys {
    /// Reads the settings.
    pub(crate) fn compile(
        name: &DeliveryName,
        settings: &DeliverySettings,
    ) -> Result<Self, SettingRefused> {
        let keys = &settings.keys;
        let zone_name = keys.time_zone.as_deref().unwrap_or("UTC");
        let zone = TimeZone::get(zone_name).map_err(|_unknown| {
            SettingRefused::new(
                "keys.time_zone",
                format!("{zone_name:?} is no time zone; take a name like Europe/Berlin"),
            )
        })?;
        let data = data_prefix(settings)?;
        let backup = settings.backup.as_ref();
        let manifest_prefix = keys.manifest_prefix.clone();
        let compiled = Self {
            name: name.clone(),
            zone,
            time_in_name: DatePattern::parse("yyyy-MM-dd-HH-mm-ss")
                .map_err(|refused| SettingRefused::new("keys.prefix", refused.to_string()))?,
            error: error_prefix(settings, &data)?,
            backup: backup.map(|of| backup_prefix(&of.prefix)).transpose()?,
            data,
            data_extension: extension(settings)?,
            backup_extension: backup.map_or("", |of| compressed(of.compression)),
            manifest_prefix: manifest_prefix.unwrap_or_else(|| format!("{name}/")),
        };
        compiled.try_out()?;
        Ok(compiled)
    }

    /// Names something, so that what could never be named is refused now.
    fn try_out(&self) -> Result<(), SettingRefused> {
        let refused =
            |setting| move |refused: KeyRefused| SettingRefused::new(setting, refused.to_string());
        let names = |query: bool| {
            let parts = self.data.0.iter().filter_map(move |part| match part {
                Part::Query(name) if query => Some((name.clone(), "value".to_owned())),
                Part::Transform(name) if !query => Some((name.clone(), "value".to_owned())),
                _ => None,
            });
            parts.collect::<Vec<_>>()
        };
        let at = KeyParts {
            oldest: Timestamp::ZERO,
            version: u64::MAX,
            unique: 0,
            partition: &names(true),
            transform_keys: &names(false),
        };
        self.data(&at).map_err(refused("keys.prefix"))?;
        self.error(ErrorType::FormatConversionFailed, &at)
            .map_err(refused("keys.error_prefix"))?;
        self.backup(&at).map_err(refused("backup.prefix"))?;
        let manifest = checked(self.manifest(LONGEST_INCARNATION, u64::MAX))
            .map_err(refused("keys.manifest_prefix"))?;
        if manifest.contains("!{") || manifest.contains(char::is_control) {
            let what = "expressions and control characters cannot be in it";
            return Err(SettingRefused::new("keys.manifest_prefix", what));
        }
        Ok(())
    }

    /// An object of records.
    pub(crate) fn data(&self, at: &KeyParts<'_>) -> Result<String, KeyRefused> {
        self.key(&self.data, &self.data_extension, Class::Data, at)
    }

    /// An object of records that failed.
    pub(crate) fn error(&self, kind: ErrorType, at: &KeyParts<'_>) -> Result<String, KeyRefused> {
        self.key(&self.error, &self.data_extension, Class::Error(kind), at)
    }

    /// An object of records as they came. Without a backup: what would be its name under no prefix.
    pub(crate) fn backup(&self, at: &KeyParts<'_>) -> Result<String, KeyRefused> {
        let nothing = Expression(Vec::new());
        let prefix = self.backup.as_ref().unwrap_or(&nothing);
        self.key(prefix, self.backup_extension, Class::Backup, at)
    }

    /// The manifest of a cut. Names of manifests sort as cuts do.
    pub(crate) fn manifest(&self, incarnation: &str, cut: u64) -> String {
        format!(
            "{}_manifest/{incarnation}-{cut:020}.json",
            self.manifest_prefix
        )
    }

    /// What stands before `_manifest/`.
    pub(crate) fn manifest_prefix(&self) -> &str {
        &self.manifest_prefix
    }

    /// Whether the prefix has `!{partitionKeyFromLambda:NAME}`.
    pub(crate) fn uses_transform_key(&self, name: &str) -> bool {
        self.data
            .any(|part| matches!(part, Part::Transform(used) if used == name))
    }

    fn key(
        &self,
        prefix: &Expression,
        extension: &str,
        class: Class,
        at: &KeyParts<'_>,
    ) -> Result<String, KeyRefused> {
        let time = zoned(at.oldest, &self.zone);
        let mut key = String::new();
        prefix.write(at, &time, class, &mut key)?;
        // Writing to a String cannot fail.
        let _ = write!(key, "{}-{}-", self.name, at.version);
        self.time_in_name.write(&time, &mut key);
        key.push('-');
        key.push_str(&uuid(derived(at.unique, class, 0)));
        key.push_str(extension);
        checked(key)
    }
}

/// A UUID of version 8: whoever makes it says what is in it.
fn uuid(bytes: [u8; 16]) -> String {
    let bits = u128::from_le_bytes(bytes);
    let bits = bits & !(0xf << 76) & !(0x3 << 62) | (0x8 << 76) | (0x2 << 62);
    let digits = format!("{bits:032x}");
    let part = |from, to| digits.get(from..to).unwrap_or_default();
    [
        part(0, 8),
        part(8, 12),
        part(12, 16),
        part(16, 20),
        part(20, 32),
    ]
    .join("-")
}

fn checked(key: String) -> Result<String, KeyRefused> {
    if key.len() > MAX_KEY_BYTES {
        return Err(KeyRefused::TooLong { bytes: key.len() });
    }
    let odd = |segment: &&str| segment.bytes().all(|byte| byte == b'.');
    match key.split('/').find(odd) {
        Some(segment) => Err(KeyRefused::Segment {
            segment: segment.to_owned(),
        }),
        None => Ok(key),
    }
}

fn parsed(setting: &'static str, text: &str) -> Result<Expression, SettingRefused> {
    Expression::parse(text).map_err(|reason| SettingRefused::new(setting, reason))
}

fn has_time(prefix: &Expression) -> bool {
    prefix.any(|part| matches!(part, Part::Time(_)))
}

fn has_partition_keys(prefix: &Expression) -> bool {
    prefix.any(|part| matches!(part, Part::Query(_) | Part::Transform(_)))
}

/// The prefix, with `yyyy/MM/dd/HH/` behind it unless it has a time or partition keys.
fn data_prefix(settings: &DeliverySettings) -> Result<Expression, SettingRefused> {
    let refused = |reason: String| Err(SettingRefused::new("keys.prefix", reason));
    let mut prefix = parsed("keys.prefix", settings.keys.prefix.as_deref().unwrap_or(""))?;
    if prefix.any(|part| *part == Part::ErrorType) {
        return refused("!{firehose:error-output-type} belongs into keys.error_prefix".to_owned());
    }
    let defined = settings.partitioning.iter().flat_map(|of| of.keys.keys());
    for part in &prefix.0 {
        match part {
            Part::Query(name) if !defined.clone().any(|key| key == name) => {
                return refused(format!("partitioning.keys has no {name:?}"));
            }
            Part::Transform(name) if settings.processing.transform.is_none() => {
                return refused(format!("there is no transform that could say {name:?}"));
            }
            _ => {}
        }
    }
    let is_used =
        |key: &String| prefix.any(|part| matches!(part, Part::Query(name) if name == key));
    if let Some(unused) = defined.clone().find(|key| !is_used(key)) {
        return refused(format!(
            "the partition key {unused:?} is not used; put !{{partitionKeyFromQuery:{unused}}} in"
        ));
    }
    if prefix.has_expressions() && settings.keys.error_prefix.is_none() {
        let reason = "required when keys.prefix has expressions";
        return Err(SettingRefused::new("keys.error_prefix", reason));
    }
    if !has_time(&prefix) && !has_partition_keys(&prefix) {
        prefix.0.extend(Expression::hourly());
    }
    Ok(prefix)
}

fn error_prefix(
    settings: &DeliverySettings,
    data: &Expression,
) -> Result<Expression, SettingRefused> {
    let setting = "keys.error_prefix";
    let Some(text) = &settings.keys.error_prefix else {
        // Only text then, and the hours behind it.
        let text = data
            .0
            .iter()
            .take_while(|part| matches!(part, Part::Text(_)));
        let text = text.cloned().collect();
        return Ok(typed_and_hourly(Expression(text)));
    };
    let prefix = parsed(setting, text)?;
    if !prefix.has_expressions() {
        return Ok(typed_and_hourly(prefix));
    }
    if has_partition_keys(&prefix) {
        let reason = "partition keys cannot be in it: a record may fail before it has any";
        return Err(SettingRefused::new(setting, reason));
    }
    if !prefix.any(|part| *part == Part::ErrorType) {
        let reason = "has expressions, so !{firehose:error-output-type} must be one of them";
        return Err(SettingRefused::new(setting, reason));
    }
    let mut prefix = prefix;
    if !has_time(&prefix) {
        prefix.0.extend(Expression::hourly());
    }
    Ok(prefix)
}

/// `<prefix><type>/yyyy/MM/dd/HH/`.
fn typed_and_hourly(mut prefix: Expression) -> Expression {
    prefix.0.push(Part::ErrorType);
    prefix.0.push(Part::Text("/".to_owned()));
    prefix.0.extend(Expression::hourly());
    prefix
}

fn backup_prefix(text: &str) -> Result<Expression, SettingRefused> {
    let mut prefix = parsed("backup.prefix", text)?;
    if has_partition_keys(&prefix) || prefix.any(|part| *part == Part::ErrorType) {
        let reason = "only !{timestamp:…} and !{firehose:random-string} can be in it";
        return Err(SettingRefused::new("backup.prefix", reason));
    }
    if !has_time(&prefix) {
        prefix.0.extend(Expression::hourly());
    }
    Ok(prefix)
}

fn extension(settings: &DeliverySettings) -> Result<String, SettingRefused> {
    let Some(given) = &settings.keys.file_extension else {
        return Ok(match settings.format {
            ObjectFormat::Parquet(_) => ".parquet",
            _ => compressed(settings.compression),
        }
        .to_owned());
    };
    let allowed = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"!-_.*'()".contains(&byte)
    };
    let good = match given.strip_prefix('.') {
        Some(rest) => !rest.is_empty() && rest.bytes().all(allowed),
        None => given.is_empty(),
    };
    if good && given.len() <= MAX_EXTENSION_BYTES {
        return Ok(given.clone());
    }
    Err(SettingRefused::new(
        "keys.file_extension",
        format!(
            "{given:?} is none: a dot, then a-z 0-9 ! - _ . * ' ( ), at most {MAX_EXTENSION_BYTES} characters"
        ),
    ))
}

fn compressed(compression: ObjectCompression) -> &'static str {
    match compression {
        ObjectCompression::None => "",
        ObjectCompression::Gzip => ".gz",
        ObjectCompression::Snappy => ".snappy",
        ObjectCompression::Zstd => ".zst",
    }
}

#[cfg(test)]
mod tests;
