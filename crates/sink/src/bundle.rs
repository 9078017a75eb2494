//! One version of a delivery stream's settings, compiled: everything but the store.

use std::sync::Arc;

use flumen_broker::{Clock, DeliverySettings, DeliverySource, ObjectCompression, SettingRefused};
use flumen_record::{DeliveryName, StreamName};
use serde::{Deserialize, Serialize};

use crate::cut::{CutName, unique};
use crate::encode::Encoding;
use crate::object_key::{KeyParts, KeyRefused, ObjectKeys};
use crate::process::Processor;
use crate::transform::{Transform, TransformSource};
use crate::unit::ErrorType;

/// The settings, ready to run.
#[derive(Debug)]
pub(crate) struct Bundle {
    pub(crate) name: DeliveryName,
    pub(crate) version: u64,
    pub(crate) settings: Arc<DeliverySettings>,
    /// The stream it reads, for error records.
    pub(crate) stream: StreamName,
    /// Names of the partition keys by jq, in order.
    query_keys: Vec<String>,
    pub(crate) keys: ObjectKeys,
    pub(crate) processor: Processor,
    pub(crate) transform: Option<Transform>,
    pub(crate) encoding: Encoding,
    pub(crate) backup: Option<Encoding>,
    /// Error objects: lines, as they are.
    pub(crate) errors: Encoding,
}

/// What an object of a cut holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ObjectKind {
    /// Rows.
    Data,
    /// Records that failed.
    Error(ErrorType),
    /// Records as they came.
    Backup,
}

impl ObjectKind {
    /// As manifests call it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Error(_) => "error",
            Self::Backup => "backup",
        }
    }
}

impl Bundle {
    /// Compiles settings, or says which of them is not right.
    pub(crate) fn compile(
        name: &DeliveryName,
        version: u64,
        settings: Arc<DeliverySettings>,
        clock: &Clock,
    ) -> Result<Self, SettingRefused> {
        check_buffering(&settings)?;
        let processor = Processor::compile(&settings)?;
        let query_keys = processor.partition_keys().map(str::to_owned).collect();
        let backup = settings.backup.as_ref();
        Ok(Self {
            name: name.clone(),
            version,
            stream: source_stream(name, &settings.source),
            query_keys,
            keys: ObjectKeys::compile(name, &settings)?,
            processor,
            transform: match &settings.processing.transform {
                Some(transform) => Some(Transform::compile(
                    transform,
                    arns(name, &settings.source),
                    clock.clone(),
                )?),
                None => None,
            },
            encoding: Encoding::compile(&settings)?,
            backup: backup.map(|backup| Encoding::verbatim(backup.compression)),
            errors: Encoding::verbatim(ObjectCompression::None),
            settings,
        })
    }

    /// Which partition these values of the partition keys by jq are, in their order.
    pub(crate) fn part_name(
        &self,
        by_query: &[String],
        by_transform: &[(String, String)],
    ) -> PartName {
        PartName {
            by_query: std::iter::zip(&self.query_keys, by_query)
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
            by_transform: by_transform.to_vec(),
            piece: 0,
        }
    }

    /// Of the keys that a transform gave a record, those that stand in the prefix.
    pub(crate) fn used_keys(&self, given: &[(String, String)]) -> Vec<(String, String)> {
        let mut used: Vec<_> = given
            .iter()
            .filter(|(name, _)| self.keys.uses_transform_key(name))
            .cloned()
            .collect();
        used.sort();
        used
    }

    /// Whether all rows of a cut go into one partition.
    pub(crate) fn has_one_object(&self) -> bool {
        self.settings.partitioning.is_none() && self.transform.is_none()
    }

    /// Whether the same records become the same rows a second time.
    pub(crate) fn is_deterministic(&self) -> bool {
        self.transform.is_none() && self.processor.is_deterministic()
    }

    /// How objects of a kind are written.
    pub(crate) fn encoding(&self, kind: ObjectKind) -> &Encoding {
        match kind {
            ObjectKind::Data => &self.encoding,
            ObjectKind::Error(_) => &self.errors,
            ObjectKind::Backup => self.backup.as_ref().unwrap_or(&self.errors),
        }
    }

    /// The key of an object of a cut: nothing but the arguments goes into it.
    pub(crate) fn key(
        &self,
        kind: ObjectKind,
        cut: CutName,
        part: &PartName,
        oldest: flumen_record::Timestamp,
    ) -> Result<String, KeyRefused> {
        let id = cut.id(self.version);
        let mut what = vec![kind.as_str()];
        if let ObjectKind::Error(error) = kind {
            what.push(error.as_str());
        }
        for (name, value) in part.by_query.iter().chain(&part.by_transform) {
            what.extend([name.as_str(), value.as_str()]);
        }
        let piece = part.piece.to_string();
        if part.piece > 0 {
            what.push(&piece);
        }
        let at = KeyParts {
            oldest,
            version: self.version,
            unique: unique(&id, &what),
            partition: &part.by_query,
            transform_keys: &part.by_transform,
        };
        match kind {
            ObjectKind::Data => self.keys.data(&at),
            ObjectKind::Error(error) => self.keys.error(error, &at),
            ObjectKind::Backup => self.keys.backup(&at),
        }
    }
}

/// Which partition: names and values.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct PartName {
    /// By jq.
    pub(crate) by_query: Vec<(String, String)>,
    /// By the transform.
    pub(crate) by_transform: Vec<(String, String)>,
    /// Counts the objects of this partition in the cut: a column that changes begins another.
    pub(crate) piece: u32,
}

/// What a transform is told about where records come from. There is no account, and a region is the
/// destination's: a place to write them is all the Lambda contract asks for.
fn arns(name: &DeliveryName, source: &DeliverySource) -> TransformSource {
    let stream_arn = match source {
        DeliverySource::Stream { stream, .. } => Some(format!(
            "arn:aws:kinesis:local:000000000000:stream/{}",
            stream.0
        )),
        DeliverySource::Direct { .. } => None,
    };
    TransformSource {
        delivery_arn: format!("arn:aws:firehose:local:000000000000:deliverystream/{name}"),
        stream_arn,
        region: "local".to_owned(),
    }
}

/// The stream that is read: `delivery.<name>` for direct puts.
fn source_stream(name: &DeliveryName, source: &DeliverySource) -> StreamName {
    match source {
        DeliverySource::Stream { stream, .. } => stream.0.clone(),
        DeliverySource::Direct { .. } => format!("delivery.{name}")
            .parse()
            .expect("BUG: a delivery stream's name is short"),
    }
}

/// Row F1.
fn check_buffering(settings: &DeliverySettings) -> Result<(), SettingRefused> {
    let refuse = |setting, reason: &str| {
        Err(SettingRefused {
            setting,
            reason: reason.to_owned(),
        })
    };
    let hints = settings.buffering;
    if !((1 << 20)..=(128 << 20)).contains(&hints.size_bytes) {
        return refuse("buffering.size_bytes", "it takes 1 MiB to 128 MiB");
    }
    if hints.interval_ms > 900_000 {
        return refuse("buffering.interval_ms", "it takes 0 to 900 s");
    }
    if hints.interval_ms == 0 && settings.partitioning.is_some() {
        return refuse(
            "buffering.interval_ms",
            "records are not partitioned without buffering; it takes 1 s or more then",
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests;
