//! How rows become the bytes of an object: verbatim, delimited, JSON lines or Parquet, compressed.
//!
//! Rows pass twice. [`Admission`] looks at each row of a cut as it is gathered: it refuses what the
//! format does not take, and learns the columns where they are inferred. When the cut is closed, an
//! [`Encoder`] per partition writes the rows with what was learnt. A row that was admitted never
//! makes an encoder fail, and equal rows give equal bytes. Nothing here waits, reads a clock or
//! opens a file.

mod admit;
mod columns;
mod compress;
mod fields;
mod json;
mod schema;
mod values;

use std::fmt;
use std::io::{self, Write};
use std::ops::RangeInclusive;
use std::sync::Arc;

use flumen_broker::{
    DeliverySettings, ObjectCompression, ObjectFormat, ParquetCompression, ParquetSettings,
    SettingRefused,
};

pub use admit::{Admission, RowRefused};
use columns::ColumnWriter;
use compress::Compressor;
pub use schema::{Schema, SchemaInvalid};

/// The setting.
const DELIMITER: &str = "format.delimiter";
/// Bytes of a delimiter at most.
const DELIMITER_BYTES_MAX: usize = 16;
/// What `row_group_bytes` may be.
const ROW_GROUP_BYTES: RangeInclusive<u64> = (1 << 20)..=(256 << 20);
/// What `page_bytes` may be.
const PAGE_BYTES: RangeInclusive<u64> = (64 << 10)..=(16 << 20);
/// What `row_group_rows` may be: a file has 32,767 row groups at most, so small ones would not hold
/// the rows of a cut.
const ROW_GROUP_ROWS: RangeInclusive<u64> = 10_000..=100_000_000;
/// Small rows are gathered up to this many bytes before a compressor or the output sees them.
const GATHER_BYTES: usize = 64 << 10;

/// How rows become the bytes of an object. Compiled once from the settings; a clone is cheap.
#[derive(Debug, Clone)]
pub struct Encoding {
    plan: Arc<Plan>,
}

#[derive(Debug)]
struct Plan {
    rows: Rows,
    compression: ObjectCompression,
}

#[derive(Debug)]
enum Rows {
    /// One after the other.
    Plain {
        /// After each row; empty: nothing.
        delimiter: Vec<u8>,
        /// Whether a row must be JSON, on one line.
        json: bool,
    },
    /// In columns.
    Columns {
        /// How they are written.
        settings: ParquetSettings,
        /// The columns that are given; `None`: inferred.
        given: Option<Schema>,
    },
}

impl Encoding {
    /// Checks what `settings` say about format and compression.
    ///
    /// # Errors
    /// What cannot be used, with what could be.
    pub fn compile(settings: &DeliverySettings) -> Result<Self, SettingRefused> {
        let plain = |delimiter: Vec<u8>, json| Rows::Plain { delimiter, json };
        let rows = match &settings.format {
            ObjectFormat::Verbatim => plain(Vec::new(), false),
            ObjectFormat::Delimited { delimiter } => plain(delimiter_bytes(delimiter)?, false),
            ObjectFormat::Ndjson => plain(b"\n".to_vec(), true),
            ObjectFormat::Parquet(parquet) => {
                if settings.compression != ObjectCompression::None {
                    return Err(refused(
                        "compression",
                        "parquet compresses its own pages: leave this at none and choose format.compression",
                    ));
                }
                columns_plan(parquet)?
            }
        };
        let compression = settings.compression;
        Ok(Self {
            plan: Arc::new(Plan { rows, compression }),
        })
    }

    /// Rows one after the other, nothing between them: backups and error objects.
    pub fn verbatim(compression: ObjectCompression) -> Self {
        let rows = Rows::Plain {
            delimiter: Vec::new(),
            json: false,
        };
        Self {
            plan: Arc::new(Plan { rows, compression }),
        }
    }

    /// What the name of an object ends with, with its dot; may be empty.
    pub fn extension(&self) -> &'static str {
        match (&self.plan.rows, self.plan.compression) {
            (Rows::Columns { .. }, _) => ".parquet",
            (_, ObjectCompression::None) => "",
            (_, ObjectCompression::Gzip) => ".gz",
            (_, ObjectCompression::Snappy) => ".snappy",
            (_, ObjectCompression::Zstd) => ".zst",
        }
    }

    /// What manifests call the format.
    pub(crate) fn format_name(&self) -> &'static str {
        match &self.plan.rows {
            Rows::Plain { json: true, .. } => "ndjson",
            Rows::Plain { delimiter, .. } if delimiter.is_empty() => "verbatim",
            Rows::Plain { .. } => "delimited",
            Rows::Columns { .. } => "parquet",
        }
    }

    /// What manifests call the compression; within Parquet it is Parquet's own.
    pub(crate) fn compression_name(&self) -> &'static str {
        match (&self.plan.rows, self.plan.compression) {
            (Rows::Columns { settings, .. }, _) => match settings.compression {
                ParquetCompression::None => "none",
                ParquetCompression::Snappy => "snappy",
                ParquetCompression::Zstd => "zstd",
            },
            (_, ObjectCompression::None) => "none",
            (_, ObjectCompression::Gzip) => "gzip",
            (_, ObjectCompression::Snappy) => "snappy",
            (_, ObjectCompression::Zstd) => "zstd",
        }
    }

    /// The `Content-Type` of an object.
    pub fn content_type(&self) -> &'static str {
        match &self.plan.rows {
            Rows::Plain { json: false, .. } => "application/octet-stream",
            Rows::Plain { json: true, .. } => "application/x-ndjson",
            Rows::Columns { .. } => "application/vnd.apache.parquet",
        }
    }

    /// The `Content-Encoding` of an object (row F3).
    pub fn content_encoding(&self) -> Option<&'static str> {
        match self.plan.compression {
            ObjectCompression::None => None,
            ObjectCompression::Gzip => Some("gzip"),
            ObjectCompression::Snappy => Some("snappy-java"),
            ObjectCompression::Zstd => Some("zstd"),
        }
    }

    /// Whether columns are learnt from the rows: then [`Admission::schema`] is only final when the
    /// cut is closed, and is to be kept for the next cut.
    pub fn infers_schema(&self) -> bool {
        matches!(&self.plan.rows, Rows::Columns { given: None, .. })
    }

    /// Looks at the rows of a cut. `known`: the columns that earlier cuts ended with, when they are
    /// inferred; not used otherwise.
    pub fn admission(&self, known: Schema) -> Admission {
        match &self.plan.rows {
            Rows::Plain { json: false, .. } => Admission::anything(known),
            Rows::Plain { json: true, .. } => Admission::json_line(known),
            Rows::Columns { given: None, .. } => Admission::inferring(known),
            Rows::Columns { given: Some(s), .. } => Admission::given(s.clone()),
        }
    }

    /// Writes the rows of one object to `out`. `schema`: what the admission of the cut ended with;
    /// not used unless columns are inferred.
    ///
    /// # Errors
    /// `out` fails.
    pub fn encoder<W: Write + Send>(&self, schema: &Schema, out: W) -> io::Result<Encoder<W>> {
        let sink = match &self.plan.rows {
            Rows::Plain { delimiter, json } => Sink::Plain(Box::new(PlainWriter {
                out: Compressor::new(self.plan.compression, out)?,
                delimiter: delimiter.clone(),
                json: *json,
                gathered: Vec::with_capacity(GATHER_BYTES),
            })),
            Rows::Columns { settings, given } => {
                let infers = given.is_none();
                let schema = given.as_ref().unwrap_or(schema);
                Sink::Columns(Box::new(ColumnWriter::new(settings, schema, infers, out)?))
            }
        };
        Ok(Encoder {
            sink,
            encoded: Encoded::default(),
        })
    }
}

fn refused(setting: &'static str, reason: impl Into<String>) -> SettingRefused {
    let reason = reason.into();
    SettingRefused { setting, reason }
}

/// Checks that a number is within bounds.
fn bounded(
    setting: &'static str,
    given: u64,
    bounds: &RangeInclusive<u64>,
) -> Result<(), SettingRefused> {
    if bounds.contains(&given) {
        return Ok(());
    }
    let (min, max) = (bounds.start(), bounds.end());
    Err(refused(setting, format!("{given}; give {min} to {max}")))
}

fn columns_plan(settings: &ParquetSettings) -> Result<Rows, SettingRefused> {
    let rows = settings.row_group_rows.into();
    bounded(
        "format.row_group_bytes",
        settings.row_group_bytes,
        &ROW_GROUP_BYTES,
    )?;
    bounded("format.row_group_rows", rows, &ROW_GROUP_ROWS)?;
    bounded("format.page_bytes", settings.page_bytes, &PAGE_BYTES)?;
    let given = match settings.columns.as_slice() {
        [] => None,
        columns => {
            let schema = Schema::try_from(columns.to_vec());
            Some(schema.map_err(|invalid| refused("format.columns", invalid.to_string()))?)
        }
    };
    let settings = settings.clone();
    Ok(Rows::Columns { settings, given })
}

/// Undoes the escapes of a delimiter.
fn delimiter_bytes(text: &str) -> Result<Vec<u8>, SettingRefused> {
    let mut bytes = Vec::new();
    let mut characters = text.chars().enumerate();
    while let Some((at, character)) = characters.next() {
        if character != '\\' {
            bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        let mut next = || characters.next().map(|(_, c)| c);
        let byte = match next() {
            Some('n') => Some(b'\n'),
            Some('t') => Some(b'\t'),
            Some('r') => Some(b'\r'),
            Some('\\') => Some(b'\\'),
            Some('x') => (|| {
                let (high, low) = (next()?.to_digit(16)?, next()?.to_digit(16)?);
                u8::try_from(high * 16 + low).ok()
            })(),
            _ => None,
        };
        bytes.push(byte.ok_or_else(|| {
            let known = r"use \n, \t, \r, \\ or \xHH with two hexadecimal digits";
            refused(
                DELIMITER,
                format!("no such escape at character {at}; {known}"),
            )
        })?);
    }
    if bytes.is_empty() || bytes.len() > DELIMITER_BYTES_MAX {
        let given = bytes.len();
        let reason = format!("{given} bytes; give 1 to {DELIMITER_BYTES_MAX}");
        return Err(refused(DELIMITER, reason));
    }
    Ok(bytes)
}

/// What an object holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Encoded {
    /// Rows.
    pub rows: u64,
    /// Bytes of those rows as they were handed over, without delimiters and before compression.
    pub raw_bytes: u64,
}

/// Writes the rows of one object.
pub struct Encoder<W: Write + Send> {
    sink: Sink<W>,
    encoded: Encoded,
}

enum Sink<W: Write + Send> {
    Plain(Box<PlainWriter<W>>),
    Columns(Box<ColumnWriter<W>>),
}

struct PlainWriter<W: Write> {
    out: Compressor<W>,
    delimiter: Vec<u8>,
    /// Rows are JSON, one line each.
    json: bool,
    gathered: Vec<u8>,
}

impl<W: Write + Send> fmt::Debug for Encoder<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let encoded = &self.encoded;
        f.debug_struct("Encoder")
            .field("encoded", encoded)
            .finish_non_exhaustive()
    }
}

impl<W: Write + Send> Encoder<W> {
    /// Adds a row that [`Admission::admit`] gave back. After an error the encoder is of no use.
    ///
    /// # Errors
    /// The output fails; or the row was not admitted under this schema (`InvalidData`).
    pub fn row(&mut self, row: &[u8]) -> io::Result<()> {
        match &mut self.sink {
            Sink::Plain(plain) => plain.row(row)?,
            Sink::Columns(columns) => columns.row(row)?,
        }
        self.encoded.rows += 1;
        self.encoded.raw_bytes += row.len() as u64;
        Ok(())
    }

    /// Adds a row that was not admitted, if it can be added as it is: the format takes it, its columns
    /// are known and stay as they are. It is read once then, and not twice. `false`: nothing was
    /// added, and [`Admission::admit`] says what becomes of it.
    ///
    /// # Errors
    /// The output fails.
    pub fn offer(&mut self, row: &[u8]) -> io::Result<bool> {
        let is_added = match &mut self.sink {
            Sink::Plain(plain) => plain.offer(row)?,
            Sink::Columns(columns) => columns.offer(row)?,
        };
        if is_added {
            self.encoded.rows += 1;
            self.encoded.raw_bytes += row.len() as u64;
        }
        Ok(is_added)
    }

    /// Bytes of memory that it holds, about.
    pub fn buffered_bytes(&self) -> usize {
        match &self.sink {
            Sink::Plain(plain) => plain.gathered.capacity() + plain.out.held_bytes(),
            Sink::Columns(columns) => columns.held_bytes(),
        }
    }

    /// Ends the object and gives the output back; it is not flushed further than that.
    ///
    /// # Errors
    /// As [`Self::row`].
    pub fn finish(self) -> io::Result<(W, Encoded)> {
        let out = match self.sink {
            Sink::Plain(plain) => plain.finish()?,
            Sink::Columns(columns) => columns.finish()?,
        };
        Ok((out, self.encoded))
    }
}

impl<W: Write> PlainWriter<W> {
    fn offer(&mut self, row: &[u8]) -> io::Result<bool> {
        let is_taken = !self.json || admit::is_json_line(row);
        if is_taken {
            self.row(row)?;
        }
        Ok(is_taken)
    }

    fn row(&mut self, row: &[u8]) -> io::Result<()> {
        if self.gathered.len() + row.len() + self.delimiter.len() > GATHER_BYTES {
            self.out.write_all(&self.gathered)?;
            self.gathered.clear();
        }
        if row.len() + self.delimiter.len() > GATHER_BYTES {
            self.out.write_all(row)?;
        } else {
            self.gathered.extend_from_slice(row);
        }
        self.gathered.extend_from_slice(&self.delimiter);
        Ok(())
    }

    fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&self.gathered)?;
        self.out.finish()
    }
}

#[cfg(test)]
mod tests;
