//! Where a delivery stream stands: what its runner keeps durably, and how it moves on. Pure.

use std::collections::BTreeMap;

use flumen_broker::DeliverySettings;
use flumen_record::{SequenceNumber, ShardIndex, StreamIncarnation, Timestamp};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::cut::{Cut, CutRange, CutStage, Epoch, Incarnation};
use crate::encode::Schema;

/// The version of the stored form (`docs/format.md`). Form 1 has no incarnation, no last manifest
/// and no stream, and its cuts no epoch.
const FORM: u32 = 2;

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
    /// Which stream of its name the positions are places in; missing in what earlier versions stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stream: Option<String>,
    /// Its life, once it is not the one that it was created with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    incarnation: Option<Incarnation>,
    /// Cuts that were committed in lives before this one.
    #[serde(default, skip_serializing_if = "is_zero")]
    committed_before: u64,
    /// The manifest that was written last in this life.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last: Option<LastManifest>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The manifest that was written last, so that it is noticed when it is another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LastManifest {
    /// Of this cut.
    pub(crate) cut: u64,
    /// Its size.
    pub(crate) bytes: u64,
    /// CRC-32 of its bytes.
    pub(crate) crc32: u32,
    /// Where its ranges begin, by shard: where another life goes on when it is lost.
    pub(crate) from: BTreeMap<u32, u64>,
}

/// Why stored progress is not taken.
#[derive(Debug, Error)]
pub(crate) enum ProgressError {
    /// Not what is written there.
    #[error("the stored progress does not decode: {0}")]
    Json(#[from] serde_json::Error),
    /// Of a later version.
    #[error("the stored progress has form {found}; this version of Flumen knows forms 1 to {FORM}")]
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
            stream: None,
            incarnation: None,
            committed_before: 0,
            last: None,
        }
    }

    /// From its stored form.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, ProgressError> {
        #[derive(Deserialize)]
        struct Form {
            form: u32,
        }
        let Form { form } = serde_json::from_slice(bytes)?;
        if !(1..=FORM).contains(&form) {
            return Err(ProgressError::Form { found: form });
        }
        Ok(Self {
            form: FORM,
            ..serde_json::from_slice(bytes)?
        })
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
        let here = self.next_cut.saturating_sub(self.cuts.len() as u64);
        self.committed_before.saturating_add(here)
    }

    /// Whether the positions are places in this stream; one that is known for the first time is noted.
    pub(crate) fn reads(&mut self, stream: StreamIncarnation) -> bool {
        *self.stream.get_or_insert_with(|| stream.to_hex()) == stream.to_hex()
    }

    /// Which stream the positions are places in.
    pub(crate) fn stream(&self) -> Option<StreamIncarnation> {
        self.stream.as_deref().and_then(StreamIncarnation::from_hex)
    }

    /// Which of its lives this is; `created` is the one that it was created with.
    pub(crate) fn incarnation(&self, created: Incarnation) -> Incarnation {
        self.incarnation.unwrap_or(created)
    }

    /// The manifest that was written last in this life.
    pub(crate) fn last(&self) -> Option<&LastManifest> {
        self.last.as_ref()
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

    /// The first planned cut has its manifest, which is `last`; `schema` are the columns known after
    /// it, and `expired` what was gone of its records.
    pub(crate) fn commit(&mut self, schema: Schema, expired: u64, last: LastManifest) {
        if !self.cuts.is_empty() {
            self.cuts.remove(0);
        }
        self.last = Some(last);
        self.expired = self.expired.saturating_add(expired);
        if self.cuts.is_empty() {
            self.settings = None;
            self.schema_before = Schema::default();
            // Made anew with other settings, it may have other columns than when it was planned.
            self.schema = schema;
        } else {
            self.schema_before = schema;
        }
    }

    /// Plans cuts that nothing but objects was written of again, with other settings: those objects
    /// stay behind, and no manifest names them. They are other cuts from here on: a copy of this data
    /// directory may give them other settings under the same version. `false`: a manifest may be there
    /// already.
    pub(crate) fn replan(
        &mut self,
        version: u64,
        settings: &DeliverySettings,
        epoch: Epoch,
    ) -> bool {
        let sealed = |cut: &Cut| cut.stage == CutStage::Sealing;
        if self.cuts.is_empty() || self.cuts.iter().any(sealed) {
            return false;
        }
        for cut in &mut self.cuts {
            cut.version = version;
            cut.spooled = false;
            cut.epoch = Some(epoch);
        }
        self.settings = Some(settings.clone());
        true
    }

    /// What the spool held of planned cuts is made anew, under other names: what was uploaded of the
    /// first answer must not be taken for a part of the second.
    pub(crate) fn forgive_spool(&mut self, epoch: Epoch) {
        for cut in self.cuts.iter_mut().filter(|cut| cut.spooled) {
            cut.remake(epoch);
        }
    }

    /// What was written of the first planned cut is not what it becomes now: it is made anew.
    pub(crate) fn remake(&mut self, epoch: Epoch) {
        if let Some(cut) = self.cuts.first_mut() {
            cut.remake(epoch);
        }
    }

    /// Goes on under another life, with what is in no manifest of this one: what is planned, and what
    /// was in the last manifest, if that `is_lost`.
    pub(crate) fn go_on_as(&mut self, life: Incarnation, is_lost: bool) {
        let lost = u64::from(is_lost && self.last.is_some());
        self.committed_before = self.committed().saturating_sub(lost);
        let mut from = self.undelivered_from();
        if let Some(last) = self.last.take().filter(|_| is_lost) {
            for (shard, begins) in last.from {
                let at = from.entry(ShardIndex::new(shard)).or_default();
                *at = SequenceNumber::new(begins);
            }
        }
        self.positions = from
            .into_iter()
            .map(|(shard, at)| (shard.value(), at.value()))
            .collect();
        self.cuts.clear();
        self.settings = None;
        self.schema_before = Schema::default();
        self.next_cut = 0;
        self.incarnation = Some(life);
    }

    /// The first planned cut is in the spool from here on, and is not made anew.
    pub(crate) fn spooled(&mut self) {
        if let Some(cut) = self.cuts.first_mut() {
            cut.spooled = true;
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

#[cfg(test)]
mod tests;
