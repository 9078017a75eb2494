//! The names of objects (rows F4 to F6): prefixes with `!{…}` expressions, and what follows them.
use flumen_broker::DeliverySettings;
use flumen_record::{DeliveryName, Timestamp};

use crate::refused::SettingRefused;
use crate::unit::ErrorType;

/// What the keys of one object are made of; equal parts make equal keys.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeyParts<'a> {
    /// Arrival of the oldest record in the object.
    pub(crate) oldest: Timestamp,
    /// Version of the settings.
    pub(crate) version: u64,
    /// Derived from what the object holds; everything that looks random derives from it.
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
    #[error("the transform gave no partition key {name:?}, which the prefix needs")]
    NoValue {
        /// Its name.
        name: String,
    },
    /// The key is too long.
    #[error("the key would be {bytes} bytes long, of at most 1024")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// The key has a segment `.` or `..`.
    #[error("the key would have a segment of dots only")]
    Dots,
}

/// Names objects as the settings say.
#[derive(Debug, Clone)]
pub(crate) struct ObjectKeys {
    name: DeliveryName,
}

impl ObjectKeys {
    /// Reads the settings.
    pub(crate) fn compile(
        name: &DeliveryName,
        settings: &DeliverySettings,
    ) -> Result<Self, SettingRefused> {
        let _ = settings;
        Ok(Self { name: name.clone() })
    }

    /// An object of records.
    pub(crate) fn data(&self, at: &KeyParts<'_>) -> Result<String, KeyRefused> {
        Ok(format!("{}/{:032x}", self.name, at.unique))
    }

    /// An object of records that failed.
    pub(crate) fn error(&self, kind: ErrorType, at: &KeyParts<'_>) -> Result<String, KeyRefused> {
        let _ = kind;
        self.data(at)
    }

    /// An object of records as they came.
    pub(crate) fn backup(&self, at: &KeyParts<'_>) -> Result<String, KeyRefused> {
        self.data(at)
    }

    /// The manifest of a cut.
    pub(crate) fn manifest(&self, incarnation: &str, cut: u64) -> String {
        format!("{}/_manifest/{incarnation}-{cut:020}.json", self.name)
    }

    pub(crate) fn manifest_prefix(&self) -> &str {
        self.name.as_str()
    }

    pub(crate) fn uses_transform_key(&self, _: &str) -> bool {
        false
    }
}
