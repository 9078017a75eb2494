//! What is done to records before they are written: unpacking, filter, map, partition keys.
use flumen_broker::DeliverySettings;

use crate::refused::SettingRefused;
use crate::unit::{Failure, Shaped, Unit};

/// Does to records what the settings say.
#[derive(Debug)]
pub(crate) struct Processor {
    deterministic: bool,
}

impl Processor {
    /// Reads the settings.
    pub(crate) fn compile(settings: &DeliverySettings) -> Result<Self, SettingRefused> {
        let _ = settings;
        Ok(Self {
            deterministic: true,
        })
    }

    /// Takes a stored record apart.
    pub(crate) fn unpack(&self, unit: Unit, each: &mut dyn FnMut(Result<Unit, (Unit, Failure)>)) {
        each(Ok(unit));
    }

    /// Makes rows of a unit.
    pub(crate) fn shape(&self, unit: &Unit, each: &mut dyn FnMut(Shaped)) {
        each(Shaped::Row {
            data: unit.data.clone(),
            partition: Vec::new(),
        });
    }

    /// Whether equal records become equal rows, always.
    pub(crate) fn is_deterministic(&self) -> bool {
        self.deterministic
    }
}
