//! What a cut became, for readers: one JSON object per cut (`docs/delivery.md`).

use std::collections::BTreeMap;

use flumen_record::Timestamp;
use serde::{Deserialize, Serialize};

use crate::cut::{Cut, CutRange, Epoch};

/// What stands in `format`.
const FORMAT: &str = "flumen-manifest/1";

/// A manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// `flumen-manifest/1`.
    pub format: String,
    /// The delivery stream.
    pub delivery: String,
    /// Which of its lives.
    pub incarnation: String,
    /// The cut, from 0 without gaps.
    pub cut: u64,
    /// Which run of the sink planned it, 16 hexadecimal digits: cuts of the same number, of data
    /// directories of which one is a copy, differ in it. Missing in what earlier versions planned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<String>,
    /// The version of the settings it was written with.
    pub settings_version: u64,
    /// The stream it was read from.
    pub stream: String,
    /// Whose records: each shard once, parents first.
    pub ranges: Vec<CutRange>,
    /// Arrival of the oldest record; missing in a cut without records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_arrival: Option<String>,
    /// Arrival of the newest record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest_arrival: Option<String>,
    /// Stored records in the ranges.
    pub records: u64,
    /// Their bytes as they came.
    pub bytes: u64,
    /// Rows in objects of the kind `data`.
    pub rows: u64,
    /// Records dropped by filter or transform.
    pub dropped: u64,
    /// Records in objects of the kind `error`.
    pub failed: u64,
    /// Records of the ranges that had expired before they could be read.
    pub expired: u64,
    /// Parts of the ranges that were damaged and could not be read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damaged: Vec<CutRange>,
    /// The objects.
    pub objects: Vec<ManifestObject>,
}

/// One object of a cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestObject {
    /// `data`, `error` or `backup`.
    pub kind: String,
    /// Its key within the destination.
    pub key: String,
    /// Records (rows) in it.
    pub records: u64,
    /// Its size as the store has it.
    pub bytes: u64,
    /// What the store calls this content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub e_tag: Option<String>,
    /// CRC-32 (as gzip's) of its bytes, hexadecimal; missing when an earlier attempt wrote it and the
    /// store does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crc32: Option<String>,
    /// `verbatim`, `delimited`, `ndjson` or `parquet`.
    pub encoding: String,
    /// `none`, `gzip`, `snappy` or `zstd`; within Parquet it is Parquet's own.
    pub compression: String,
    /// Arrival of its oldest record.
    pub oldest_arrival: String,
    /// Partition keys, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub partition: BTreeMap<String, String>,
}

impl Manifest {
    /// What stands in `format`.
    pub(crate) fn format() -> String {
        FORMAT.to_owned()
    }

    /// Whether it stands for a planned cut, of which so many records can be read: planned as that one
    /// was, with no record less in it. It may have been written by an attempt before this one, which
    /// encoded objects differently, or found more that had not expired.
    pub(crate) fn stands_for(&self, cut: &Cut, incarnation: &str, records: u64) -> bool {
        self.is_known()
            && self.incarnation == incarnation
            && self.cut == cut.number
            && self.epoch == cut.epoch.map(|epoch: Epoch| epoch.to_string())
            && self.settings_version == cut.version
            && self.ranges == cut.ranges
            && self.records >= records
    }

    /// Whether this is a manifest that this version knows.
    pub(crate) fn is_known(&self) -> bool {
        self.format == FORMAT
    }

    /// What it is called, behind `_manifest/`.
    pub(crate) fn file_name(&self) -> String {
        file_name(&self.incarnation, self.cut)
    }

    /// Its bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self)
            .expect("BUG: a manifest has no map that JSON cannot write");
        bytes.push(b'\n');
        bytes
    }
}

/// What the manifest of a cut is called. Names sort as cuts do.
pub(crate) fn file_name(incarnation: &str, cut: u64) -> String {
    format!("{incarnation}-{cut:020}.json")
}

/// A time as manifests have it.
pub(crate) fn time(at: Timestamp) -> String {
    at.to_string()
}
