//! Settings that cannot be done.

/// A setting of a delivery stream is refused; it says which and what would do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {reason}")]
pub(crate) struct SettingRefused {
    /// Where it stands in the settings: `keys.prefix`, `processing.map`, ….
    pub(crate) setting: &'static str,
    /// What is wrong and what would be right, for a person.
    pub(crate) reason: String,
}

impl SettingRefused {
    /// Refuses `setting`.
    pub(crate) fn new(setting: &'static str, reason: impl Into<String>) -> Self {
        Self {
            setting,
            reason: reason.into(),
        }
    }
}
