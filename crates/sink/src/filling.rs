//! Filling one cut: records in, rows by partition, objects in the spool out. Synchronous: it runs on
//! threads that may block.
//!
//! Rows of one partition whose encoder can be had at once go straight into it. All others are kept,
//! in memory up to a bound and in the spool beyond, and encoded one partition after the other when the
//! cut is closed: so the number of partitions costs no encoders.

mod parts;
mod piece;
mod values;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use flumen_record::{Frames, Record, Timestamp};
use thiserror::Error;

use crate::bundle::{Bundle, ObjectKind, PartName};
use crate::cut::CutName;
use crate::encode::{Admission, Encoder, Schema};
use crate::error_record::{dead_letter, error_line};
use crate::rows::{KeptRows, RowStore};
use crate::spool::{CutSpool, SpoolError, SpoolWriter};
use crate::transform::TransformOutcome;
use crate::unit::{ErrorType, Failure, Shaped, Unit};
use piece::unit;
pub(crate) use piece::{Piece, Taken};

use values::PartValues;
pub(crate) use values::{Filled, FilledObject, Tally};

/// Objects of one partition that a cut begins because columns change, at most: each holds an encoder.
const PIECES_MAX: u32 = 3;

/// Why a cut cannot be filled now.
#[derive(Debug, Error)]
pub(crate) enum FillError {
    /// The spool does not take it.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// An encoder could not write.
    #[error("writing to the spool: {0}")]
    Io(#[from] io::Error),
}

/// A cut that is being filled.
#[derive(Debug)]
pub(crate) struct Filling {
    bundle: Arc<Bundle>,
    name: CutName,
    spool: CutSpool,
    admission: Admission,
    known: Option<Schema>,
    rows: RowStore,
    parts: Vec<Part>,
    index: HashMap<PartValues, usize>,
    /// The part that was looked up last: often the next one too.
    last: Option<(PartValues, usize)>,
    /// The part that rows of stored records may be offered to as they are, and the columns it has.
    direct: Option<usize>,
    direct_schema: Schema,
    /// Objects of that partition so far, but for the first.
    pieces: u32,
    /// Partitions among `parts`.
    partitions: u32,
    tally: Tally,
    size_max: u64,
    dead_letters: Vec<Record>,
    /// When this began: what error records say.
    now: Timestamp,
}

#[derive(Debug)]
struct Part {
    kind: ObjectKind,
    name: PartName,
    oldest: Timestamp,
    records: u64,
    rows: Rows,
}

#[derive(Debug)]
enum Rows {
    Encoded(Box<Encoder<SpoolWriter>>),
    Kept(KeptRows),
}

impl Filling {
    /// An empty cut. `schema` are the columns known before it.
    pub(crate) fn new(
        bundle: &Arc<Bundle>,
        name: CutName,
        spool: &CutSpool,
        schema: Schema,
        rows_bytes_max: u64,
        now: Timestamp,
    ) -> Self {
        Self {
            known: bundle.encoding.infers_schema().then(|| schema.clone()),
            admission: bundle.encoding.admission(schema),
            bundle: Arc::clone(bundle),
            name,
            rows: RowStore::new(
                spool.clone(),
                usize::try_from(rows_bytes_max).unwrap_or(usize::MAX),
            ),
            spool: spool.clone(),
            parts: Vec::new(),
            index: HashMap::new(),
            last: None,
            direct: None,
            direct_schema: Schema::default(),
            pieces: 0,
            partitions: 0,
            tally: Tally::default(),
            size_max: bundle.settings.buffering.size_bytes,
            dead_letters: Vec::new(),
            now,
        }
    }

    /// Takes all of its records, however large it becomes: of a cut that is planned already.
    pub(crate) fn without_limit(mut self) -> Self {
        self.size_max = u64::MAX;
        self
    }

    /// What went in so far.
    pub(crate) fn tally(&self) -> Tally {
        self.tally
    }

    /// Partitions so far.
    pub(crate) fn partitions(&self) -> u32 {
        self.partitions
    }

    /// Records for the dead-letter stream since this was last asked.
    pub(crate) fn dead_letters(&mut self) -> Vec<Record> {
        std::mem::take(&mut self.dead_letters)
    }

    /// Takes records up to the end of the piece, or until the cut is full.
    pub(crate) fn take(&mut self, piece: &Piece) -> Result<Taken, FillError> {
        let bundle = Arc::clone(&self.bundle);
        let mut placed = Ok(());
        let taken = self.walk(piece, &mut |filling, unit| {
            if placed.is_ok() {
                placed = filling.shape(&bundle, &unit);
            }
        })?;
        placed.map(|()| taken)
    }

    /// The same in two steps, for a transform between them: what the piece holds.
    pub(crate) fn unpack(&mut self, piece: &Piece) -> Result<(Taken, Vec<Unit>), FillError> {
        let mut units = Vec::new();
        let taken = self.walk(piece, &mut |_, unit| units.push(unit))?;
        Ok((taken, units))
    }

    /// And what the transform made of it.
    pub(crate) fn place(
        &mut self,
        transformed: Vec<(Unit, TransformOutcome)>,
    ) -> Result<(), FillError> {
        let bundle = Arc::clone(&self.bundle);
        for (mut unit, outcome) in transformed {
            match outcome {
                TransformOutcome::Ok { data, keys } => {
                    (unit.data, unit.keys) = (data, keys);
                    self.shape(&bundle, &unit)?;
                }
                TransformOutcome::Dropped => self.tally.dropped += 1,
                TransformOutcome::Failed(failure) => self.fail(&unit, &failure)?,
            }
        }
        Ok(())
    }

    /// Hands out what the piece holds, unpacked; what does not unpack fails.
    fn walk(
        &mut self,
        piece: &Piece,
        each: &mut dyn FnMut(&mut Self, Unit),
    ) -> Result<Taken, FillError> {
        let bundle = Arc::clone(&self.bundle);
        let mut next = piece.from;
        for frame in piece.frames.iter().cloned().flat_map(Frames::new) {
            // The broker has verified it; what does not decode now was damaged on the way.
            let frame = frame.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            let mut sequence = frame.header.base;
            let mut records = frame.batch.records();
            while let Some(record) = records.next_ref() {
                let at = sequence;
                sequence = at.plus(1);
                if at < piece.from {
                    continue;
                }
                if at >= piece.to {
                    return Ok(Taken {
                        next: piece.to,
                        is_full: false,
                    });
                }
                if self.tally.bytes >= self.size_max {
                    return Ok(Taken {
                        next,
                        is_full: true,
                    });
                }
                next = at.plus(1);
                self.count(
                    frame.header.arrival,
                    record.as_ref().map_or(0, |record| record.data().len()),
                );
                if let Ok(record) = &record
                    && self.offer(frame.header.arrival, record.data())?
                {
                    continue;
                }
                let record = record.map(|record| record.to_record());
                let (unit, broken) = unit(piece.shard, at, frame.header.arrival, record);
                self.keep_backup(&bundle, &unit)?;
                if let Some(failure) = broken {
                    self.fail(&unit, &failure)?;
                    continue;
                }
                let mut failed = Ok(());
                bundle
                    .processor
                    .unpack(unit, &mut |unpacked| match unpacked {
                        Ok(unit) => each(self, unit),
                        Err((unit, failure)) if failed.is_ok() => {
                            failed = self.fail(&unit, &failure)
                        }
                        Err(_) => {}
                    });
                failed?;
            }
        }
        let is_full = self.tally.bytes >= self.size_max;
        Ok(Taken {
            next: if is_full { next } else { piece.to },
            is_full,
        })
    }

    /// The short way: a record whose data is a row as it stands goes straight into its object. `false`:
    /// it does not, or it takes more to know.
    fn offer(&mut self, arrival: Timestamp, data: &[u8]) -> Result<bool, FillError> {
        let Some(part) = self.direct.and_then(|direct| self.parts.get_mut(direct)) else {
            return Ok(false);
        };
        let Rows::Encoded(encoder) = &mut part.rows else {
            return Ok(false);
        };
        if !self.bundle.processor.passes(data) || !encoder.offer(data)? {
            return Ok(false);
        }
        part.records += 1;
        part.oldest = part.oldest.min(arrival);
        self.tally.rows += 1;
        self.tally.row_bytes += data.len() as u64;
        Ok(true)
    }

    fn count(&mut self, arrival: Timestamp, bytes: usize) {
        let tally = &mut self.tally;
        tally.records += 1;
        tally.bytes += bytes as u64;
        tally.oldest = Some(tally.oldest.map_or(arrival, |oldest| oldest.min(arrival)));
        tally.newest = tally.newest.max(Some(arrival));
    }

    /// One unit becomes rows, or fails, or is dropped.
    fn shape(&mut self, bundle: &Bundle, unit: &Unit) -> Result<(), FillError> {
        let mut placed = Ok(());
        bundle.processor.shape(unit, &mut |shaped| {
            if placed.is_ok() {
                placed = match shaped {
                    Shaped::Row { data, partition } => self.row(bundle, unit, data, partition),
                    Shaped::Dropped => {
                        self.tally.dropped += 1;
                        Ok(())
                    }
                    Shaped::Failed(failure) => self.fail(unit, &failure),
                };
            }
        });
        placed
    }

    fn row(
        &mut self,
        bundle: &Bundle,
        unit: &Unit,
        data: Bytes,
        partition: Vec<String>,
    ) -> Result<(), FillError> {
        let row = match self.admission.admit(data) {
            Ok(row) => row,
            Err(refused) => return self.fail(unit, &refused.into()),
        };
        if self.direct.is_some()
            && self.bundle.encoding.infers_schema()
            && self.direct_schema != *self.admission.schema()
        {
            // The row changes the columns, and an object has the same from beginning to end.
            self.index.remove(&PartValues::whole(ObjectKind::Data));
            (self.direct, self.last) = (None, None);
            self.pieces += 1;
        }
        let values = PartValues {
            kind: ObjectKind::Data,
            by_query: partition,
            by_transform: bundle.used_keys(&unit.keys),
        };
        let part = match self.part(values, unit.arrival)? {
            Ok(part) => part,
            Err(failure) => {
                self.tally.overflows +=
                    u64::from(failure.kind == ErrorType::ActivePartitionExceeded);
                return self.fail(unit, &failure);
            }
        };
        self.tally.rows += 1;
        self.tally.row_bytes += row.len() as u64;
        self.put(part, unit.arrival, &row)
    }

    /// A record goes to the error prefix, and to the dead-letter stream if there is one.
    fn fail(&mut self, unit: &Unit, failure: &Failure) -> Result<(), FillError> {
        self.tally.failed += 1;
        let bundle = Arc::clone(&self.bundle);
        if bundle.settings.dead_letters.is_some() {
            let letter = dead_letter(unit, failure, &bundle.name, &bundle.stream);
            self.dead_letters.push(letter);
        }
        let kind = ObjectKind::Error(failure.kind);
        let line = error_line(unit, failure, self.now);
        match self.part(PartValues::whole(kind), unit.arrival)? {
            Ok(part) => self.put(part, unit.arrival, &line),
            // Its key is too long whatever the records: refused when the settings are made.
            Err(refused) => Err(io::Error::other(refused.message).into()),
        }
    }

    fn keep_backup(&mut self, bundle: &Bundle, unit: &Unit) -> Result<(), FillError> {
        if bundle.backup.is_none() {
            return Ok(());
        }
        match self.part(PartValues::whole(ObjectKind::Backup), unit.arrival)? {
            Ok(part) => self.put(part, unit.arrival, &unit.data),
            Err(refused) => Err(io::Error::other(refused.message).into()),
        }
    }

    /// Closes the cut: everything is encoded, one partition after the other.
    pub(crate) fn finish(mut self) -> Result<Filled, FillError> {
        let schema = self.admission.schema().clone();
        let has_new_columns = self.known.is_some_and(|known| known != schema);
        let mut objects = Vec::with_capacity(self.parts.len());
        for (place, part) in self.parts.into_iter().enumerate() {
            let encoder = match part.rows {
                Rows::Encoded(encoder) => *encoder,
                Rows::Kept(kept) => {
                    let encoding = self.bundle.encoding(part.kind);
                    let mut encoder = encoding.encoder(&schema, self.spool.object(place)?)?;
                    self.rows.read(kept, &mut |row| encoder.row(row))?;
                    encoder
                }
            };
            let (out, _) = encoder.finish()?;
            let key = self
                .bundle
                .key(part.kind, self.name, &part.name, part.oldest);
            objects.push(FilledObject {
                kind: part.kind,
                key: key.map_err(io::Error::other)?,
                part: part.name,
                oldest: part.oldest,
                records: part.records,
                object: out.finish()?,
            });
        }
        Ok(Filled {
            objects,
            schema,
            tally: self.tally,
            is_bound_to_order: self.tally.overflows > 0 || has_new_columns,
        })
    }
}

#[cfg(test)]
mod tests;
