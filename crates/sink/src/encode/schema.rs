//! The columns of an object: given, or known so far.
//!
//! A field belongs to a column by its name; case does not count, nor `.` against `_`. Of a row's
//! fields that mean the same column the last one counts. Fields without a column are left out where
//! columns are given; where they are inferred, the first value that is not `null` makes a column at
//! the end:
//!
//! | value | column | later values that fit | what others make of it |
//! |---|---|---|---|
//! | `true`, `false` | boolean | the same | json |
//! | whole number of 64 bits | bigint | the same | double for other numbers, else json |
//! | other number that is finite | double | numbers | json |
//! | string | string | strings | json |
//! | array, object, number that is too large | json | all | |
//!
//! A json column is text that is JSON: a string in it has its quotes. So a column may change its
//! type from one object to the next, but only in these directions, and readers that unite objects
//! find each value again.

use std::collections::HashMap;

use flumen_broker::{ColumnType, ParquetColumn};
use serde::{Deserialize, Serialize};

/// Columns at most.
pub(super) const COLUMNS_MAX: usize = 1_000;
/// Bytes of a column's name at most.
pub(super) const NAME_BYTES_MAX: usize = 256;

/// The columns of an object, in order. Empty at first; kept (as JSON) from cut to cut when columns
/// are inferred: one that is there once stays where it is and is never narrowed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "Vec<ParquetColumn>", into = "Vec<ParquetColumn>")]
pub struct Schema {
    columns: Vec<ParquetColumn>,
}

/// Why columns cannot be a schema.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SchemaInvalid {
    /// Too many.
    #[error("{given} columns; at most {COLUMNS_MAX} are possible")]
    TooMany {
        /// How many.
        given: usize,
    },
    /// A name that is empty or too long.
    #[error("the name {name:?} has {} bytes; give 1 to {NAME_BYTES_MAX}", name.len())]
    Name {
        /// The name.
        name: String,
    },
    /// Two names that fields do not tell apart.
    #[error(
        "{first:?} and {second:?} name the same fields: case does not count, nor `.` against `_`; keep one"
    )]
    Twice {
        /// The one.
        first: String,
        /// The other.
        second: String,
    },
}

impl TryFrom<Vec<ParquetColumn>> for Schema {
    type Error = SchemaInvalid;

    fn try_from(columns: Vec<ParquetColumn>) -> Result<Self, SchemaInvalid> {
        if columns.len() > COLUMNS_MAX {
            let given = columns.len();
            return Err(SchemaInvalid::TooMany { given });
        }
        let mut names = HashMap::new();
        for column in &columns {
            let name = &column.name;
            if name.is_empty() || name.len() > NAME_BYTES_MAX {
                return Err(SchemaInvalid::Name { name: name.clone() });
            }
            if let Some(first) = names.insert(normal(name), name) {
                return Err(SchemaInvalid::Twice {
                    first: first.clone(),
                    second: name.clone(),
                });
            }
        }
        Ok(Self { columns })
    }
}

impl From<Schema> for Vec<ParquetColumn> {
    fn from(schema: Schema) -> Self {
        schema.columns
    }
}

impl Schema {
    /// The columns, in order.
    pub fn columns(&self) -> &[ParquetColumn] {
        &self.columns
    }

    /// As it is when columns are inferred: no column is required.
    pub(super) fn optional(mut self) -> Self {
        for column in &mut self.columns {
            column.required = false;
        }
        self
    }

    /// Adds a column at the end; the caller has checked its name and how many there are.
    pub(super) fn push(&mut self, name: String, kind: ColumnType) {
        debug_assert!(self.columns.len() < COLUMNS_MAX && name.len() <= NAME_BYTES_MAX);
        self.columns.push(ParquetColumn {
            name,
            kind,
            required: false,
        });
    }

    pub(super) fn column_mut(&mut self, column: usize) -> Option<&mut ParquetColumn> {
        self.columns.get_mut(column)
    }
}

/// What names are compared by: case does not count, nor `.` against `_`, as with the SerDes that
/// read JSON into columns elsewhere.
pub(super) fn normal(name: &str) -> String {
    if name.is_empty() {
        return String::from("_");
    }
    name.to_lowercase().replace('.', "_")
}

/// The name of a column that is inferred from a field: dots would read as a path into a column.
pub(super) fn column_name(field: &str) -> String {
    if field.is_empty() {
        return String::from("_");
    }
    field.replace('.', "_")
}
