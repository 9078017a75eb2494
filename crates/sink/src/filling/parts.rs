//! Which part of a cut a row goes to, and how its rows are kept.

use std::sync::Arc;

use flumen_record::Timestamp;

use super::values::PartValues;
use super::{FillError, Filling, PIECES_MAX, Part, Rows};
use crate::bundle::ObjectKind;
use crate::rows::KeptRows;
use crate::unit::{ErrorType, Failure};

impl Filling {
    /// The part that rows of this kind and name go to; the inner error is about the record.
    pub(super) fn part(
        &mut self,
        values: PartValues,
        arrival: Timestamp,
    ) -> Result<Result<usize, Failure>, FillError> {
        if let Some((last, part)) = &self.last
            && *last == values
        {
            return Ok(Ok(*part));
        }
        if let Some(part) = self.index.get(&values).copied() {
            self.last = Some((values, part));
            return Ok(Ok(part));
        }
        let (bundle, kind) = (Arc::clone(&self.bundle), values.kind);
        if kind == ObjectKind::Data {
            let most = bundle.settings.partitioning.as_ref();
            let most = most.map_or(u32::MAX, |partitioning| partitioning.partitions_max);
            if self.partitions >= most {
                return Ok(Err(Failure {
                    kind: ErrorType::ActivePartitionExceeded,
                    code: "Partition.TooMany",
                    message: format!("this cut has {most} partitions already"),
                    attempts: 1,
                }));
            }
        }
        let mut name = bundle.part_name(&values.by_query, &values.by_transform);
        let is_data = kind == ObjectKind::Data;
        if is_data {
            name.piece = self.pieces;
        }
        if let Err(refused) = bundle.key(kind, self.name, &name, arrival) {
            return Ok(Err(Failure {
                kind: ErrorType::ProcessingFailed,
                code: "Key.Refused",
                message: refused.to_string(),
                attempts: 1,
            }));
        }
        let at_once = match kind {
            ObjectKind::Data => bundle.has_one_object() && self.knows_columns(),
            ObjectKind::Backup => true,
            ObjectKind::Error(_) => false,
        };
        let rows = if at_once {
            let encoding = bundle.encoding(kind);
            let out = self.spool.object(self.parts.len())?;
            Rows::Encoded(Box::new(encoding.encoder(self.admission.schema(), out)?))
        } else {
            Rows::Kept(KeptRows::default())
        };
        let part = self.parts.len();
        if at_once && is_data && bundle.backup.is_none() {
            self.direct = Some(part);
            self.direct_schema = self.admission.schema().clone();
        }
        self.parts.push(Part {
            kind,
            name,
            oldest: arrival,
            records: 0,
            rows,
        });
        self.index.insert(values, part);
        self.partitions += u32::from(is_data && self.pieces == 0);
        Ok(Ok(part))
    }

    /// Whether an object can be begun before all of its rows are there. Where columns are inferred:
    /// once some are known from cuts before, and while they do not change too often; otherwise rows
    /// wait, and no object is begun for every row that teaches something.
    fn knows_columns(&self) -> bool {
        let known = self.known.as_ref();
        let is_steady =
            self.pieces < PIECES_MAX && known.is_some_and(|known| !known.columns().is_empty());
        is_steady || !self.bundle.encoding.infers_schema()
    }

    pub(super) fn put(
        &mut self,
        place: usize,
        arrival: Timestamp,
        row: &[u8],
    ) -> Result<(), FillError> {
        let Some(part) = self.parts.get_mut(place) else {
            return Ok(());
        };
        part.records += 1;
        part.oldest = part.oldest.min(arrival);
        match &mut part.rows {
            Rows::Encoded(encoder) => encoder.row(row)?,
            Rows::Kept(kept) => {
                if self.rows.keep(kept, row) {
                    self.make_room(place)?;
                }
            }
        }
        Ok(())
    }

    /// Too many rows are in memory. Those of the first cut have taught their columns by now, if they all
    /// go into one object, which is begun with them; others wait in the spool.
    fn make_room(&mut self, place: usize) -> Result<(), FillError> {
        let bundle = Arc::clone(&self.bundle);
        let is_one = bundle.has_one_object() && bundle.backup.is_none();
        if let Some(part) = self.parts.get_mut(place)
            && let Rows::Kept(kept) = &mut part.rows
            && part.kind == ObjectKind::Data
            && is_one
            && self.pieces < PIECES_MAX
        {
            let kept = std::mem::take(kept);
            let schema = self.admission.schema();
            let out = self.spool.object(place)?;
            let mut encoder = bundle.encoding(part.kind).encoder(schema, out)?;
            self.rows.read(kept, &mut |row| encoder.row(row))?;
            part.rows = Rows::Encoded(Box::new(encoder));
            (self.direct, self.direct_schema) = (Some(place), schema.clone());
            return Ok(());
        }
        let kept = self
            .parts
            .iter_mut()
            .filter_map(|part| match &mut part.rows {
                Rows::Kept(kept) => Some(kept),
                Rows::Encoded(_) => None,
            });
        Ok(self.rows.spill(kept)?)
    }
}
