//! jq filters.
use jaq_json::Val;

use crate::refused::SettingRefused;

/// A compiled filter.
#[derive(Debug)]
pub(crate) struct Filter {
    deterministic: bool,
}

/// A filter has failed on a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct JqFailed {
    /// Stable, for programs.
    pub(crate) code: &'static str,
    /// For a person.
    pub(crate) message: String,
}

/// What filters know of a record besides its data.
#[derive(Debug, Clone)]
pub(crate) struct Globals(pub(crate) Vec<Val>);

impl Filter {
    /// Compiles `text`, the value of `setting`.
    pub(crate) fn compile(setting: &'static str, text: &str) -> Result<Self, SettingRefused> {
        Err(SettingRefused::new(setting, text))
    }

    /// Its outputs for `value`.
    pub(crate) fn run(&self, value: Val, globals: &Globals) -> Result<Vec<Val>, JqFailed> {
        let _ = globals;
        Ok(vec![value])
    }

    /// Whether equal records have equal outputs, always.
    pub(crate) fn is_deterministic(&self) -> bool {
        self.deterministic
    }
}
