//! Whether the format takes a row, and what its columns are.

use std::collections::HashMap;
use std::fmt;

use bytes::Bytes;
use flumen_broker::ColumnType;

use super::fields::Fields;
use super::json::{self, JsonInvalid, Value};
use super::schema::{self, COLUMNS_MAX, NAME_BYTES_MAX, Schema};
use super::values;
use crate::unit::{ErrorType, Failure};

/// Bytes of a row at most where rows are read: offsets within a batch of columns have 32 bits.
pub(super) const ROW_BYTES_MAX: usize = 64 << 20;
/// Characters of a value that a message shows.
const SHOWN_CHARACTERS: usize = 40;

/// Why a format does not take a row.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RowRefused {
    /// Not JSON.
    #[error("the record is not one json value: {why}")]
    Invalid {
        /// What is wrong, and where.
        why: String,
    },
    /// JSON, but not an object.
    #[error("the record is json but not an object, which a row of columns is made from")]
    NotAnObject,
    /// Longer than rows may be.
    #[error("the record has {bytes} bytes; a row of json has {ROW_BYTES_MAX} at most")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// A value that its column does not take.
    #[error("column {column:?} takes {wanted}, not {value}; change the column or the record")]
    Mismatch {
        /// The column.
        column: String,
        /// What it takes.
        wanted: &'static str,
        /// The value, shortened.
        value: String,
    },
    /// A required column without a value.
    #[error("column {column:?} is required and the record has no value for it")]
    Missing {
        /// The column.
        column: String,
    },
    /// Fields beyond the columns that are possible.
    #[error(
        "field {field:?} would be one column too many; {COLUMNS_MAX} are possible: give the columns that are wanted"
    )]
    TooManyColumns {
        /// The field.
        field: String,
    },
    /// A field whose name is too long to be a column's.
    #[error(
        "a field's name has {bytes} bytes; {NAME_BYTES_MAX} are possible for an inferred column: give the columns that are wanted"
    )]
    NameTooLong {
        /// Its length.
        bytes: usize,
    },
}

impl RowRefused {
    /// Stable, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Invalid { .. } => "Json.Invalid",
            Self::NotAnObject => "Json.NotAnObject",
            Self::TooLarge { .. } => "Json.TooLarge",
            Self::Mismatch { .. } => "Schema.Mismatch",
            Self::Missing { .. } => "Schema.Missing",
            Self::TooManyColumns { .. } => "Schema.TooManyColumns",
            Self::NameTooLong { .. } => "Schema.NameTooLong",
        }
    }
}

impl From<JsonInvalid> for RowRefused {
    fn from(invalid: JsonInvalid) -> Self {
        let why = invalid.to_string();
        Self::Invalid { why }
    }
}

impl From<RowRefused> for Failure {
    fn from(refused: RowRefused) -> Self {
        Self {
            kind: ErrorType::FormatConversionFailed,
            code: refused.code(),
            message: refused.to_string(),
            attempts: 1,
        }
    }
}

/// Looks at the rows of one cut.
pub struct Admission {
    takes: Takes,
    schema: Schema,
}

enum Takes {
    Anything,
    JsonLine,
    /// Objects that fit the schema.
    Given(Fields),
    /// Objects; the schema is made to fit.
    Inferring(Fields),
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission")
            .field("schema", &self.schema)
            .finish_non_exhaustive()
    }
}

impl Admission {
    pub(super) fn anything(schema: Schema) -> Self {
        let takes = Takes::Anything;
        Self { takes, schema }
    }

    pub(super) fn json_line(schema: Schema) -> Self {
        let takes = Takes::JsonLine;
        Self { takes, schema }
    }

    pub(super) fn given(schema: Schema) -> Self {
        let takes = Takes::Given(Fields::new(&schema, false));
        Self { takes, schema }
    }

    pub(super) fn inferring(known: Schema) -> Self {
        let schema = known.optional();
        let takes = Takes::Inferring(Fields::new(&schema, true));
        Self { takes, schema }
    }

    /// The row as an encoder takes it: as it came, except that JSON on several lines is put on one.
    /// A row that is refused leaves no trace in the schema.
    ///
    /// # Errors
    /// Why the format does not take it.
    pub fn admit(&mut self, row: Bytes) -> Result<Bytes, RowRefused> {
        if !matches!(self.takes, Takes::Anything) && row.len() > ROW_BYTES_MAX {
            return Err(RowRefused::TooLarge { bytes: row.len() });
        }
        match &mut self.takes {
            Takes::Anything => Ok(row),
            Takes::JsonLine => json_line(&row),
            Takes::Given(fields) => fit(fields, &self.schema, &row).map(|()| row),
            Takes::Inferring(fields) => grow(fields, &mut self.schema, &row).map(|()| row),
        }
    }

    /// The columns: given, or what is known after the rows so far.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }
}

/// A JSON value on one line; copied only if it is on several.
fn json_line(row: &Bytes) -> Result<Bytes, RowRefused> {
    json::text(row)?;
    let placed = json::value(row)?;
    let value = row.slice(placed.range);
    if placed.lines {
        return Ok(json::compact(&value).into());
    }
    Ok(value)
}

/// Whether a row is one JSON value on one line, and nothing else.
pub(super) fn is_json_line(row: &[u8]) -> bool {
    row.len() <= ROW_BYTES_MAX
        && json::text(row).is_ok()
        && json::value(row).is_ok_and(|placed| !placed.lines && placed.range == (0..row.len()))
}

/// Whether a column of a row group may take a value as it is: of a given column, or of an inferred
/// one that would not change its type by it.
pub(super) fn is_taken(kind: ColumnType, infers: bool, value: Value, text: &str) -> bool {
    let fits = || values::fits(kind, value, text);
    match infers {
        true => grown(kind, values::inferred(value, text), fits) == kind,
        false => fits(),
    }
}

fn read<'r>(fields: &mut Fields, row: &'r [u8]) -> Result<&'r str, RowRefused> {
    let (text, object) = fields.read(row)?;
    if object {
        Ok(text)
    } else {
        Err(RowRefused::NotAnObject)
    }
}

fn fit(fields: &mut Fields, schema: &Schema, row: &[u8]) -> Result<(), RowRefused> {
    let text = read(fields, row)?;
    for (column, value) in schema.columns().iter().zip(fields.values()) {
        match value {
            Some(value) if !values::fits(column.kind, *value, text) => {
                return Err(RowRefused::Mismatch {
                    column: column.name.clone(),
                    wanted: values::wanted(column.kind),
                    value: shown(values::span(*value, text)),
                });
            }
            None if column.required => {
                return Err(RowRefused::Missing {
                    column: column.name.clone(),
                });
            }
            _ => (),
        }
    }
    Ok(())
}

fn shown(value: &str) -> String {
    match value.char_indices().nth(SHOWN_CHARACTERS) {
        Some((end, _)) => format!("{}…", value.get(..end).unwrap_or_default()),
        None => value.to_owned(),
    }
}

fn grow(fields: &mut Fields, schema: &mut Schema, row: &[u8]) -> Result<(), RowRefused> {
    let text = read(fields, row)?;
    if !fields.fresh().is_empty() {
        add_columns(fields, schema, text)?;
    }
    for (index, value) in fields.values().iter().enumerate() {
        if let (Some(value), Some(column)) = (value, schema.column_mut(index)) {
            let known = column.kind;
            column.kind = grown(known, values::inferred(*value, text), || {
                values::fits(known, *value, text)
            });
        }
    }
    Ok(())
}

/// Makes columns of fields that have a value and no column yet; all or none.
fn add_columns(fields: &mut Fields, schema: &mut Schema, text: &str) -> Result<(), RowRefused> {
    let mut added: Vec<(String, ColumnType)> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for (name, value) in fields.fresh() {
        let kind = values::inferred(*value, text);
        let column = schema::column_name(name);
        if column.len() > NAME_BYTES_MAX {
            let bytes = column.len();
            return Err(RowRefused::NameTooLong { bytes });
        }
        // A field may be there twice, or two fields may mean the same column.
        let place = *places.entry(schema::normal(name)).or_insert(added.len());
        if let Some((_, known)) = added.get_mut(place) {
            *known = grown(*known, kind, || false);
            continue;
        }
        if schema.columns().len() + added.len() >= COLUMNS_MAX {
            let field = shown(name);
            return Err(RowRefused::TooManyColumns { field });
        }
        added.push((column, kind));
    }
    for (column, kind) in added {
        fields.add_column(schema::normal(&column));
        schema.push(column, kind);
    }
    Ok(())
}

/// The type of an inferred column that has been `known` and takes a value of `seen`: the same, or
/// one that takes all that was and this.
fn grown(known: ColumnType, seen: ColumnType, fits: impl Fn() -> bool) -> ColumnType {
    use ColumnType::{Bigint, Date, Double, Int, Json, Timestamp};
    match (known, seen) {
        (known, seen) if known == seen => known,
        (Bigint, Double) | (Double, Bigint) => Double,
        // Not inferred, but columns that were given once may be what is known.
        (Int | Date | Timestamp, _) if fits() => known,
        _ => Json,
    }
}
