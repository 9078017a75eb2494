//! Which field of a row is which column.

use std::collections::HashMap;

use super::json::{self, JsonInvalid, Kind, Value, Visit};
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
    /// The fields of the last row that had as many, as [`Visit::guess`] has them: rows of a stream
    /// tend to look alike, and then a name is compared once and neither read nor looked up.
    shape: Vec<(Box<[u8]>, Option<usize>)>,
    /// Fields of the row that were read.
    position: usize,
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
            position: 0,
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
        self.position = 0;
        let object = json::fields(row, self)?;
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

    fn learn(&mut self, name: &[u8]) -> Option<usize> {
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
        let guess = [b"\"", name, b"\":"].concat().into();
        if let Some(place) = self.shape.get_mut(self.position) {
            *place = (guess, column);
        } else if self.shape.len() < SHAPE_FIELDS_MAX {
            self.shape.push((guess, column));
        }
        column
    }

    /// Puts a value where its column is; `false`: it has none and is of interest.
    #[inline]
    fn place(&mut self, column: Option<usize>, value: Value) -> bool {
        self.position += 1;
        let some = value.kind != Kind::Null;
        match column.and_then(|column| self.values.get_mut(column)) {
            Some(place) => *place = some.then_some(value),
            None => return !(self.infers && some),
        }
        true
    }
}

impl Visit for Fields {
    #[inline]
    fn guess(&self) -> &[u8] {
        let next = self.shape.get(self.position);
        next.map_or(&[], |(guess, _)| guess)
    }

    #[inline]
    fn guessed(&mut self, value: Value) {
        let known = self.shape.get(self.position);
        let column = known.and_then(|(_, column)| *column);
        if !self.place(column, value) {
            let guess = self.shape.get(self.position - 1).map(|(guess, _)| &**guess);
            let name = guess.and_then(|guess| guess.strip_prefix(b"\"")?.strip_suffix(b"\":"));
            self.fresh
                .push((unescaped(name.unwrap_or_default()), value));
        }
    }

    fn field(&mut self, name: &[u8], value: Value) {
        let column = self.learn(name);
        if !self.place(column, value) {
            self.fresh.push((unescaped(name), value));
        }
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
