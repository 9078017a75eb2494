//! The HTTP transform (row F9).
use bytes::Bytes;
use flumen_broker::{Clock, HttpTransform};

use crate::refused::SettingRefused;
use crate::unit::{Failure, Unit};

/// What the transform says about one unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TransformOutcome {
    /// New data and partition keys.
    Ok {
        /// The data.
        data: Bytes,
        /// Partition keys by name.
        keys: Vec<(String, String)>,
    },
    /// Dropped on purpose.
    Dropped,
    /// It goes to the error prefix.
    Failed(Failure),
}

/// An HTTP transform.
#[derive(Debug)]
pub(crate) struct Transform {
    clock: Clock,
}

impl Transform {
    /// Reads the settings.
    pub(crate) fn compile(settings: &HttpTransform, clock: Clock) -> Result<Self, SettingRefused> {
        let _ = settings;
        Ok(Self { clock })
    }

    pub(crate) fn split(&self, units: Vec<Unit>) -> Vec<Vec<Unit>> {
        vec![units]
    }

    /// Hands one batch over.
    #[expect(clippy::unused_async, reason = "signature first")]
    pub(crate) async fn run(
        &self,
        invocation_id: &str,
        units: Vec<Unit>,
    ) -> Vec<(Unit, TransformOutcome)> {
        let _ = (invocation_id, &self.clock);
        units
            .into_iter()
            .map(|unit| (unit, TransformOutcome::Dropped))
            .collect()
    }
}
