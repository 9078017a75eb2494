//! Where a delivery stream stands: what its runner keeps durably, and how it moves on. Pure.

use std::collections::BTreeMap;

use flumen_broker::DeliverySettings;
use flumen_record::{SequenceNumber, ShardIndex, Timestamp};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::cut::{Cut, CutRange, CutStage};
use crate::encode::Schema;

/// The version of the stored form (`docs/format.md`).
const FORM: u32 = 1;

/// Where a delivery stream stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Progress {
    form: u32,
    /// Number of the next cut.
    next_cut: u64,
    /// Where the next cut begins, by shard. A shard that is not named has not been begun.
    positions: BTreeMap<u32, u64>,
    /// Cuts that are planned and not committed, oldest first.
    cuts: Vec<Cut>,
    /// The settings of `cuts`, all of which have the same version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    settings: Option<DeliverySettings>,
    /// Columns known before the first of `cuts`, and after the last.
    schema_before: Schema,
    schema: Schema,
    /// Records that expired before they were delivered, ever.
    #[serde(default)]
    expired: u64,
}

/// Why stored progress is not taken.
#[derive(Debug, Error)]
pub(crate) enum ProgressError {
    /// Not what is written there.
    #[error("the stored progress does not decode: {0}")]
    Json(#[from] serde_json::Error),
    /// Of a later version.
    #[error("the stored progress has form {found}; this version of Flumen knows form {FORM}")]
    Form {
        /// Its form.
        found: u32,
    },
}

impl Progress {
    /// Of a delivery stream that begins at these places.
    pub(crate) fn begin(starts: impl IntoIterator<Item = (ShardIndex, SequenceNumber)>) -> Self {
        Self {
            form: FORM,
            next_cut: 0,
            positions: starts
                .into_iter()
                .map(|(shard, at)| (shard.value(), at.value()))
                .collect(),
            cuts: Vec::new(),
            settings: None,
            schema_before: Schema::default(),
            schema: Schema::default(),
            expired: 0,
        }
    }

    /// From its stored form.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, ProgressError> {
        #[derive(Deserialize)]
        struct Form {
            form: u32,
        }
        let Form { form } = serde_json::from_slice(bytes)?;
        if form != FORM {
            return Err(ProgressError::Form { found: form });
        }
        Ok(serde_json::from_slice(bytes)?)
    }

    /// Its stored form.
    pub(crate) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("BUG: progress has no map that JSON cannot write")
    }

    /// Where the next cut begins, by shard.
    pub(crate) fn positions(&self) -> BTreeMap<ShardIndex, SequenceNumber> {
        self.positions
            .iter()
            .map(|(shard, at)| (ShardIndex::new(*shard), SequenceNumber::new(*at)))
            .collect()
    }

    /// The number of the next cut.
    pub(crate) fn next_cut(&self) -> u64 {
        self.next_cut
    }

    /// Cuts committed, ever.
    pub(crate) fn committed(&self) -> u64 {
        self.next_cut.saturating_sub(self.cuts.len() as u64)
    }

    /// Columns known to the next cut.
    pub(crate) fn schema(&self) -> &Schema {
        &self.schema
    }

    /// Planned cuts, oldest first.
    pub(crate) fn cuts(&self) -> &[Cut] {
        &self.cuts
    }

    /// The settings of the planned cuts.
    pub(crate) fn settings(&self) -> Option<&DeliverySettings> {
        self.settings.as_ref()
    }

    /// Columns known to the first planned cut when it was planned.
    pub(crate) fn schema_before(&self) -> &Schema {
        &self.schema_before
    }

    /// Records that expired before they were delivered, ever.
    pub(crate) fn expired(&self) -> u64 {
        self.expired
    }

    /// Plans the next cut. `schema` are the columns known after it.
    pub(crate) fn plan(&mut self, cut: Cut, settings: &DeliverySettings, schema: Schema) {
        assert!(
            cut.number == self.next_cut,
            "BUG: cut {} is planned where {} is next",
            cut.number,
            self.next_cut
        );
        for range in &cut.ranges {
            let at = self.positions.entry(range.shard.value()).or_default();
            *at = (*at).max(range.to.value());
        }
        if self.cuts.is_empty() {
            self.schema_before = std::mem::replace(&mut self.schema, schema);
            self.settings = Some(settings.clone());
        } else {
            self.schema = schema;
        }
        self.next_cut += 1;
        self.cuts.push(cut);
    }

    /// The first planned cut is about to get its manifest.
    pub(crate) fn seal(&mut self) {
        if let Some(cut) = self.cuts.first_mut() {
            cut.stage = CutStage::Sealing;
        }
    }

    /// The first planned cut has its manifest; `schema` are the columns known after it, and `expired`
    /// what was gone of its records.
    pub(crate) fn commit(&mut self, schema: Schema, expired: u64) {
        if !self.cuts.is_empty() {
            self.cuts.remove(0);
        }
        self.expired = self.expired.saturating_add(expired);
        self.schema_before = schema;
        if self.cuts.is_empty() {
            self.settings = None;
            self.schema_before = Schema::default();
        }
    }

    /// Plans cuts that nothing but objects was written of again, with other settings: those objects
    /// stay behind, and no manifest names them. `false`: a manifest may be there already.
    pub(crate) fn replan(&mut self, version: u64, settings: &DeliverySettings) -> bool {
        let sealed = |cut: &Cut| cut.stage == CutStage::Sealing;
        if self.cuts.is_empty() || self.cuts.iter().any(sealed) {
            return false;
        }
        for cut in &mut self.cuts {
            cut.version = version;
            cut.spooled = false;
        }
        self.settings = Some(settings.clone());
        true
    }

    /// What the spool held of planned cuts is made anew.
    pub(crate) fn forgive_spool(&mut self) {
        for cut in &mut self.cuts {
            cut.spooled = false;
        }
    }

    /// Lets go of shards that the stream has let go of.
    pub(crate) fn forget(&mut self, is_gone: impl Fn(ShardIndex) -> bool) {
        self.positions
            .retain(|shard, _| !is_gone(ShardIndex::new(*shard)));
    }

    /// What is not in a committed cut yet begins here.
    pub(crate) fn undelivered_from(&self) -> BTreeMap<ShardIndex, SequenceNumber> {
        let mut from = self.positions();
        for range in self.ranges() {
            let at = from.entry(range.shard).or_insert(range.from);
            *at = (*at).min(range.from);
        }
        from
    }

    /// What retention is to wait for.
    pub(crate) fn held(&self) -> Vec<(ShardIndex, SequenceNumber)> {
        let mut held = BTreeMap::new();
        for range in self.ranges().filter(|range| range.from < range.to) {
            let at = held.entry(range.shard).or_insert(range.from);
            *at = (*at).min(range.from);
        }
        held.into_iter().collect()
    }

    /// Arrival of the oldest record in a planned cut.
    pub(crate) fn oldest(&self) -> Option<Timestamp> {
        self.cuts
            .iter()
            .filter(|cut| cut.records > 0)
            .map(Cut::oldest)
            .min()
    }

    fn ranges(&self) -> impl Iterator<Item = &CutRange> {
        self.cuts.iter().flat_map(|cut| &cut.ranges)
    }
}
