//! Settings as a flat table of keys, each with its value and the layer it came from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{Config, ConfigError};
use crate::quantity::{parse_duration, parse_size};

/// Variables with this prefix are settings …
const PREFIX: &str = "FLUMEN_";
/// … but for these, which are about the command, not the node …
const NOT_SETTINGS: &[&str] = &["FLUMEN_CONFIG", "FLUMEN_ENDPOINT"];
/// … and what tests and container platforms put there (Kubernetes describes a service called
/// `flumen` in such variables).
const FOREIGN: &[&str] = &["FLUMEN_TEST_", "FLUMEN_SERVICE_", "FLUMEN_PORT"];

/// Where a setting came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Nobody said otherwise.
    Default,
    /// A configuration file.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
    /// A flag.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(file) => write!(f, "{}", file.display()),
            Self::Environment(name) | Self::Flag(name) => f.write_str(name),
        }
    }
}

/// The table: every key there is, by name, its type shown by its default.
#[derive(Debug, Clone)]
pub(crate) struct Layers {
    settings: BTreeMap<String, Setting>,
}

#[derive(Debug, Clone)]
struct Setting {
    default: Value,
    value: Value,
    origin: Origin,
}

impl Layers {
    /// The bottom layer.
    pub(crate) fn defaults(config: &Config) -> Self {
        let tree = serde_json::to_value(config).expect("BUG: settings are plain data");
        let mut leaves = Vec::new();
        flatten("", tree, &mut leaves);
        let setting = |value: Value| Setting {
            default: value.clone(),
            value,
            origin: Origin::Default,
        };
        Self {
            settings: leaves
                .into_iter()
                .map(|(key, value)| (key, setting(value)))
                .collect(),
        }
    }

    /// Lays a configuration file over it.
    pub(crate) fn file(&mut self, file: &Path, text: &str) -> Result<(), ConfigError> {
        let table: toml::Table = toml::from_str(text).map_err(|error| ConfigError::Syntax {
            file: file.to_owned(),
            reason: place(text, &error),
        })?;
        let origin = Origin::File(file.to_owned());
        let tree = serde_json::to_value(table).map_err(|error| ConfigError::Syntax {
            file: file.to_owned(),
            reason: error.to_string(),
        })?;
        let mut leaves = Vec::new();
        flatten("", tree, &mut leaves);
        leaves
            .into_iter()
            .try_for_each(|(key, value)| self.set(&key, value, &origin))
    }

    /// Lays `FLUMEN_*` over it: `FLUMEN_DATA_DIR`, `FLUMEN_BROKER__LOG__SEGMENT_BYTES_MAX`.
    pub(crate) fn environment(
        &mut self,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<(), ConfigError> {
        for (name, value) in variables {
            let Some(key) = name.strip_prefix(PREFIX) else {
                continue;
            };
            let foreign = FOREIGN.iter().any(|prefix| name.starts_with(prefix));
            if !foreign && !NOT_SETTINGS.contains(&name.as_str()) {
                let key = key.to_ascii_lowercase().replace("__", ".");
                self.text(&key, &value, &Origin::Environment(name.clone()))?;
            }
        }
        Ok(())
    }

    /// Lays one setting over it that is known only as text.
    pub(crate) fn text(
        &mut self,
        key: &str,
        text: &str,
        origin: &Origin,
    ) -> Result<(), ConfigError> {
        self.set(key, Value::String(text.to_owned()), origin)
    }

    fn set(&mut self, key: &str, value: Value, origin: &Origin) -> Result<(), ConfigError> {
        let Some(setting) = self.settings.get(key) else {
            return Err(ConfigError::UnknownKey {
                key: key.to_owned(),
                origin: origin.clone(),
                nearest: self.nearest(key),
            });
        };
        let value = fit(key, &setting.default, &value).map_err(|reason| {
            let value = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            ConfigError::Value {
                key: key.to_owned(),
                value,
                origin: origin.clone(),
                reason,
            }
        })?;
        let mut settings = self.settings.clone();
        let default = setting.default.clone();
        settings.insert(
            key.to_owned(),
            Setting {
                default,
                value,
                origin: origin.clone(),
            },
        );
        // One setting at a time meets the types, so that a refusal can name it.
        let laid = Self { settings };
        laid.config().map_err(|error| match error {
            ConfigError::Value { value, reason, .. } => ConfigError::Value {
                key: key.to_owned(),
                value,
                origin: origin.clone(),
                reason,
            },
            other => other,
        })?;
        *self = laid;
        Ok(())
    }

    /// The settings as the typed struct.
    pub(crate) fn config(&self) -> Result<Config, ConfigError> {
        let mut tree = Map::new();
        for (key, setting) in &self.settings {
            let mut branch = &mut tree;
            let mut parts = key.split('.').peekable();
            while let Some(part) = parts.next() {
                if parts.peek().is_none() {
                    branch.insert(part.to_owned(), setting.value.clone());
                    break;
                }
                let inner = branch
                    .entry(part.to_owned())
                    .or_insert_with(|| Value::Object(Map::new()));
                branch = inner
                    .as_object_mut()
                    .expect("BUG: a key is a leaf and a branch");
            }
        }
        serde_json::from_value(Value::Object(tree)).map_err(|error| {
            // The last one laid is the culprit; `set` fills in which.
            ConfigError::Value {
                key: String::new(),
                value: String::new(),
                origin: Origin::Default,
                reason: error.to_string(),
            }
        })
    }

    /// Every key with its value and origin.
    pub(crate) fn into_settings(self) -> Vec<(String, Value, Origin)> {
        let each = self.settings.into_iter();
        each.map(|(key, setting)| (key, setting.value, setting.origin))
            .collect()
    }

    /// The key that differs least, when it differs little.
    fn nearest(&self, key: &str) -> Option<String> {
        let distance = |known: &String| {
            let last = known.rsplit('.').next().unwrap_or(known);
            edits(key, known).min(if last == key { 1 } else { usize::MAX })
        };
        let nearest = self.settings.keys().min_by_key(|known| distance(known))?;
        (distance(nearest) <= key.len().div_ceil(4).min(3)).then(|| nearest.clone())
    }
}

fn flatten(prefix: &str, value: Value, leaves: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let key = if prefix.is_empty() {
                    name
                } else {
                    format!("{prefix}.{name}")
                };
                flatten(&key, value, leaves);
            }
        }
        leaf => leaves.push((prefix.to_owned(), leaf)),
    }
}

/// Brings a value to the type of its default: text to numbers, `64MiB` and `5s` to the unit that
/// the key names.
fn fit(key: &str, default: &Value, given: &Value) -> Result<Value, String> {
    let Value::String(text) = given else {
        let whole = given.as_u64().is_some() || !default.is_u64();
        return if whole {
            Ok(given.clone())
        } else {
            Err("not a whole number".to_owned())
        };
    };
    match default {
        Value::Number(_) => number(key, text).map(Value::from),
        Value::Bool(_) => match text.as_str() {
            "true" => Ok(Value::Bool(true)),
            "false" => Ok(Value::Bool(false)),
            _ => Err("true or false".to_owned()),
        },
        // An optional setting: its type shows in its name only.
        Value::Null => Ok(number(key, text).map_or_else(|_| given.clone(), Value::from)),
        _ => Ok(given.clone()),
    }
}

fn number(key: &str, text: &str) -> Result<u64, String> {
    if let Ok(plain) = text.parse() {
        return Ok(plain);
    }
    let name = key.rsplit('.').next().unwrap_or(key);
    let names = |unit: &str| name.split('_').any(|part| part == unit);
    if names("bytes") {
        return parse_size(text).map_err(|error| error.to_string());
    }
    let unit_us = [("us", 1), ("ms", 1_000), ("hours", 3_600_000_000)];
    let Some((_, unit_us)) = unit_us.iter().find(|(unit, _)| names(unit)) else {
        return Err("not a whole number".to_owned());
    };
    let duration = parse_duration(text).map_err(|error| error.to_string())?;
    u64::try_from(duration.as_micros() / unit_us).map_err(|_| "too large".to_owned())
}

/// `line 3: what is wrong`, without the drawing.
fn place(text: &str, error: &toml::de::Error) -> String {
    let before = error
        .span()
        .and_then(|span| text.get(..span.start))
        .unwrap_or_default();
    format!(
        "line {}: {}",
        before.matches('\n').count() + 1,
        error.message()
    )
}

/// Levenshtein distance.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, to) in row.iter_mut().skip(1).zip(b.chars()) {
            let substituted = diagonal + usize::from(from != to);
            diagonal = *cell;
            *cell = substituted.min(diagonal + 1).min(left + 1);
            left = *cell;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}
