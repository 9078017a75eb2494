//! What a cut became, for readers: one JSON object per cut (`docs/delivery.md`).

use std::collections::BTreeMap;

use flumen_record::Timestamp;
use serde::{Deserialize, Serialize};

use crate::cut::CutRange;

/// What stands in `format`.
const FORMAT: &str = "flumen-manifest/1";

/// A manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// [`FORMAT`].
    pub(crate) format: String,
    /// The delivery stream.
    pub(crate) delivery: String,
    /// Which of its lives.
    pub(crate) incarnation: String,
    /// The cut, from 0 without gaps.
    pub(crate) cut: u64,
    /// The version of the settings it was written with.
    pub(crate) settings_version: u64,
    /// The stream it was read from.
    pub(crate) stream: String,
    /// Whose records: each shard once, parents first.
    pub(crate) ranges: Vec<CutRange>,
    /// Arrival of the oldest and the newest record; missing in a cut without records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) oldest_arrival: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) newest_arrival: Option<String>,
    /// Stored records in the ranges, and their bytes as they came.
    pub(crate) records: u64,
    pub(crate) bytes: u64,
    /// Rows in objects of the kind `data`.
    pub(crate) rows: u64,
    /// Records dropped by filter or transform.
    pub(crate) dropped: u64,
    /// Records in objects of the kind `error`.
    pub(crate) failed: u64,
    /// Records of the ranges that had expired before they could be read.
    pub(crate) expired: u64,
    /// Parts of the ranges that were damaged and could not be read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) damaged: Vec<CutRange>,
    /// The objects.
    pub(crate) objects: Vec<ManifestObject>,
}

/// One object of a cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ManifestObject {
    /// `data`, `error` or `backup`.
    pub(crate) kind: String,
    /// Its key within the destination.
    pub(crate) key: String,
    /// Records (rows) in it.
    pub(crate) records: u64,
    /// Its size as the store has it.
    pub(crate) bytes: u64,
    /// What the store calls this content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) e_tag: Option<String>,
    /// CRC-32 (as gzip's) of its bytes, hexadecimal; missing when an earlier attempt wrote it and the
    /// store does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) crc32: Option<String>,
    /// `verbatim`, `delimited`, `ndjson` or `parquet`.
    pub(crate) encoding: String,
    /// `none`, `gzip`, `snappy` or `zstd`; within Parquet it is Parquet's own.
    pub(crate) compression: String,
    /// Arrival of its oldest record.
    pub(crate) oldest_arrival: String,
    /// Partition keys, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) partition: BTreeMap<String, String>,
}

impl Manifest {
    /// What stands in `format`.
    pub(crate) fn format() -> String {
        FORMAT.to_owned()
    }

    /// Its bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self)
            .expect("BUG: a manifest has no map that JSON cannot write");
        bytes.push(b'\n');
        bytes
    }
}

/// A time as manifests have it.
pub(crate) fn time(at: Timestamp) -> String {
    at.to_string()
}
