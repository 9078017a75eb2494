//! Cuts whose objects could come out differently a second time: what is kept of them in the spool.

use flumen_record::Timestamp;
use serde::{Deserialize, Serialize};

use crate::bundle::{ObjectKind, PartName};
use crate::cut::{Cut, CutRange};
use crate::encode::Schema;
use crate::filling::{Filled, FilledObject, Tally};
use crate::gather::GatheredCut;
use crate::spool::{Spool, SpoolError, SpooledObject};

/// The index of a kept cut.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Index {
    number: u64,
    ranges: Vec<CutRange>,
    expired: u64,
    damaged: Vec<CutRange>,
    schema: Schema,
    tally: Tally,
    objects: Vec<Object>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Object {
    kind: ObjectKind,
    part: PartName,
    key: String,
    oldest_us: u64,
    records: u64,
    file: String,
    bytes: u64,
    crc32: u32,
}

/// Keeps a cut over a crash. Blocks until it is synced.
pub(crate) fn keep(cut: &GatheredCut) -> Result<(), SpoolError> {
    let objects = cut.filled.objects.iter().map(|object| Object {
        kind: object.kind,
        part: object.part.clone(),
        key: object.key.clone(),
        oldest_us: object.oldest.as_micros(),
        records: object.records,
        file: object.object.name().to_owned(),
        bytes: object.object.bytes(),
        crc32: object.object.crc32(),
    });
    let index = Index {
        number: cut.number,
        ranges: cut.ranges.clone(),
        expired: cut.expired,
        damaged: cut.damaged.clone(),
        schema: cut.filled.schema.clone(),
        tally: cut.filled.tally,
        objects: objects.collect(),
    };
    let index =
        serde_json::to_vec(&index).expect("BUG: the index has no map that JSON cannot write");
    cut.spool.keep(&index)
}

/// Finds a cut that was kept, with the records that were planned. Blocks.
pub(crate) fn load(spool: &Spool, planned: &Cut) -> Result<GatheredCut, SpoolError> {
    let number = planned.number;
    let (cut, index) = spool.kept(number)?;
    let index: Index = match serde_json::from_slice(&index) {
        Ok(index) => index,
        Err(_) => return Err(cut.damaged_index()),
    };
    if index.number != number || index.ranges != planned.ranges {
        return Err(cut.damaged_index());
    }
    let objects = index.objects.into_iter().map(|object| FilledObject {
        kind: object.kind,
        part: object.part,
        key: object.key,
        oldest: Timestamp::from_micros(object.oldest_us),
        records: object.records,
        object: SpooledObject::kept(&cut, object.file, object.bytes, object.crc32),
    });
    Ok(GatheredCut {
        number,
        ranges: index.ranges,
        filled: Filled {
            objects: objects.collect(),
            schema: index.schema,
            tally: index.tally,
            is_bound_to_order: true,
        },
        spool: cut.clone(),
        expired: index.expired,
        damaged: index.damaged,
    })
}

#[cfg(test)]
mod tests;
