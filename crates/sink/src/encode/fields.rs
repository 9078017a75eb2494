//! Which field of a row is which column.

use std::collections::HashMap;

use super::json::{self, JsonInvalid, Kind, Value};
use super::schema::{Schema, normal};

/// Fields of a row whose columns are remembered by position.
const SHAPE_FIELDS_MAX: usize = 1_024;
/// Names whose columns are remembered, as they stand in rows.
const NAMES_MAX: usize = 4_096;
/// Bytes of a name that is remembered at most.
const NAME_BYTES_MAX: usize = 1_024;

/// Reads a row's fields into the places of their columns. Of fields that mean the same column the
/// last one counts, as with names that are there twice elsewhere.
pub(super) struct Fields {
    /// By the normal form of names.
    columns: HashMap<String, usize>,
    /// By names as they stand in rows; `None`: no column.
    names: HashMap<Box<[u8]>, Option<usize>>,
    /// The fields of the last row that had as many: rows of a stream tend to look alike, and then a
    /// name is compared once and not looked up.
    shape: Vec<(Box<[u8]>, Option<usize>)>,
    /// The row's values, by column.
    values: Vec<Option<Value>>,
    /// Whether fields without a column are of interest.
    infers: bool,
    /// Those, if they have a value.
    fresh: Vec<(String, Value)>,
}

impl Fields {
    pub(super) fn new(schema: &Schema, infers: bool) -> Self {
        let columns = schema.columns().iter().enumerate();
        Self {
            columns: columns.map(|(i, c)| (normal(&c.name), i)).collect(),
            names: HashMap::new(),
            shape: Vec::new(),
            values: vec![None; schema.columns().len()],
            infers,
            fresh: Vec::new(),
        }
    }

    /// Reads a row; `false`: it is JSON, but not an object.
    pub(super) fn read<'r>(&mut self, row: &'r [u8]) -> Result<(&'r str, bool), JsonInvalid> {
        let text = json::text(row)?;
        self.values.fill(None);
        self.fresh.clear();
        let mut position = 0;
        let object = json::fields(row, |name, value| {
            self.place(position, name, value);
            position += 1;
        })?;
        Ok((text, object))
    }

    /// The values of the last row by column; no value for `null`.
    pub(super) fn values(&self) -> &[Option<Value>] {
        &self.values
    }

    /// Fields of the last row that have a value and no column.
    pub(super) fn fresh(&self) -> &[(String, Value)] {
        &self.fresh
    }

    /// A column more. The last row's values are not moved into it.
    pub(super) fn add_column(&mut self, normal: String) {
        self.columns.insert(normal, self.values.len());
        self.values.push(None);
        self.names.clear();
        self.shape.clear();
    }

    #[inline]
    fn place(&mut self, position: usize, name: &[u8], value: Value) {
        let column = match self.shape.get(position) {
            Some((known, column)) if **known == *name => *column,
            _ => self.learn(position, name),
        };
        let value = (value.kind != Kind::Null).then_some(value);
        if let Some(place) = column.and_then(|column| self.values.get_mut(column)) {
            *place = value;
        } else if let (true, Some(value)) = (self.infers, value) {
            self.fresh.push((unescaped(name), value));
        }
    }

    fn learn(&mut self, position: usize, name: &[u8]) -> Option<usize> {
        let column = match self.names.get(name) {
            Some(column) => *column,
            None => self.columns.get(&normal(&unescaped(name))).copied(),
        };
        if name.len() > NAME_BYTES_MAX {
            return column;
        }
        if self.names.len() >= NAMES_MAX {
            self.names.clear();
        }
        self.names.insert(name.into(), column);
        if let Some(place) = self.shape.get_mut(position) {
            *place = (name.into(), column);
        } else if self.shape.len() < SHAPE_FIELDS_MAX {
            self.shape.push((name.into(), column));
        }
        column
    }
}

/// A name as it is meant. The row is UTF-8, and a name begins and ends at quotes: nothing is lost.
fn unescaped(name: &[u8]) -> String {
    let mut unescaped = String::with_capacity(name.len());
    json::unescape(&String::from_utf8_lossy(name), |piece| {
        unescaped.push_str(piece);
    });
    unescaped
}
