//! Rows of JSON objects in columns: Parquet.
//!
//! Values go from where they stand in a row into the array of their column; arrays are handed to
//! the Parquet writer before they grow large, and a row group ends when the writer holds enough.

use std::io::{self, Write};
use std::sync::Arc;

use arrow_array::builder::{
    ArrayBuilder, BooleanBuilder, Date32Builder, Float64Builder, Int32Builder, Int64Builder,
    StringBuilder, TimestampMicrosecondBuilder,
};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field, SchemaRef, TimeUnit};
use flumen_broker::{ColumnType, ParquetCompression, ParquetSettings};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::admit::{self, ROW_BYTES_MAX};
use super::fields::Fields;
use super::json::{self, Kind, Value};
use super::schema::Schema;
use super::values;

/// Rows of a batch at most.
const BATCH_ROWS_MAX: usize = 8_192;
/// Values of a batch at most, missing ones included.
const BATCH_VALUES_MAX: usize = 256 << 10;
/// Bytes of rows in a batch, about: it ends with the row that reaches this.
const BATCH_BYTES: usize = 1 << 20;
/// What a dictionary takes before it has a value.
const DICTIONARY_BYTES: usize = 74 << 10;
/// The part of a row group's bytes that dictionaries may take at the start: of many columns the
/// first ones with text get theirs, then others.
const DICTIONARIES_PART: usize = 2;
/// A row group does not end before this part of its bytes came as rows, whatever many columns cost:
/// a file has a bounded number of row groups.
const GROUP_ROWS_PART: usize = 8;
/// Memory of an array's value beside text, about.
const VALUE_BYTES: usize = 9;

/// Writes rows in columns.
pub(super) struct ColumnWriter<W: Write + Send> {
    writer: ArrowWriter<W>,
    arrow: SchemaRef,
    fields: Fields,
    columns: Vec<Column>,
    /// Type of each column, and whether it must have a value.
    kinds: Vec<(ColumnType, bool)>,
    infers: bool,
    batch_rows_max: usize,
    batch_rows: usize,
    batch_bytes: usize,
    group_bytes_max: usize,
    /// Bytes of rows that the current row group was given.
    group_rows_bytes: usize,
    /// What the writer held after the last batch.
    writer_bytes: usize,
}

impl<W: Write + Send> ColumnWriter<W> {
    /// `infers`: rows that are offered may bring other columns, and are not taken then.
    pub(super) fn new(
        settings: &ParquetSettings,
        schema: &Schema,
        infers: bool,
        out: W,
    ) -> io::Result<Self> {
        let mut schema = schema.clone();
        if schema.columns().is_empty() {
            // All rows of the first cut are empty: readers want a column to count them.
            schema.push(String::from("_"), ColumnType::Boolean);
        }
        let arrow: SchemaRef = Arc::new(arrow_schema::Schema::new(
            (schema.columns().iter())
                .map(|c| Field::new(&c.name, data_type(c.kind), !c.required))
                .collect::<Vec<_>>(),
        ));
        let width = schema.columns().len();
        let options = ArrowWriterOptions::new()
            .with_properties(properties(settings, &schema)?)
            .with_skip_arrow_metadata(true);
        let batch_rows_max = (BATCH_VALUES_MAX / width).clamp(1, BATCH_ROWS_MAX);
        let columns = schema.columns().iter();
        Ok(Self {
            writer: ArrowWriter::try_new_with_options(out, Arc::clone(&arrow), options)?,
            fields: Fields::new(&schema, infers),
            kinds: (schema.columns().iter())
                .map(|c| (c.kind, c.required))
                .collect(),
            infers,
            columns: columns.map(|c| Column::new(c.kind)).collect(),
            arrow,
            batch_rows_max,
            batch_rows: 0,
            batch_bytes: 0,
            group_bytes_max: usize::try_from(settings.row_group_bytes).unwrap_or(usize::MAX),
            group_rows_bytes: 0,
            writer_bytes: 0,
        })
    }

    pub(super) fn row(&mut self, row: &[u8]) -> io::Result<()> {
        let (text, object) = self.fields.read(row).map_err(not_admitted)?;
        if !object {
            return Err(not_admitted("not an object"));
        }
        self.push(row.len(), text)
    }

    /// Adds a row if all of its columns are known and take it as they are.
    pub(super) fn offer(&mut self, row: &[u8]) -> io::Result<bool> {
        if row.len() > ROW_BYTES_MAX {
            return Ok(false);
        }
        let Ok((text, true)) = self.fields.read(row) else {
            return Ok(false);
        };
        if !self.fields.fresh().is_empty() {
            return Ok(false);
        }
        for ((kind, required), value) in self.kinds.iter().zip(self.fields.values()) {
            let is_taken = match value {
                Some(value) => admit::is_taken(*kind, self.infers, *value, text),
                None => !required,
            };
            if !is_taken {
                return Ok(false);
            }
        }
        self.push(row.len(), text)?;
        Ok(true)
    }

    /// Adds the row whose fields were read last.
    fn push(&mut self, row_bytes: usize, text: &str) -> io::Result<()> {
        for (column, value) in self.columns.iter_mut().zip(self.fields.values()) {
            match value {
                None => column.push_null(),
                Some(value) => {
                    let pushed = column.push(*value, text);
                    pushed.ok_or_else(|| not_admitted(values::span(*value, text)))?;
                }
            }
        }
        self.batch_rows += 1;
        self.batch_bytes += row_bytes;
        if self.batch_rows >= self.batch_rows_max || self.batch_bytes >= BATCH_BYTES {
            self.end_batch()?;
        }
        Ok(())
    }

    fn end_batch(&mut self) -> io::Result<()> {
        let arrays = self.columns.iter_mut().map(Column::finish).collect();
        let batch = RecordBatch::try_new(Arc::clone(&self.arrow), arrays).map_err(not_admitted)?;
        self.writer.write(&batch)?;
        self.group_rows_bytes += self.batch_bytes;
        self.batch_rows = 0;
        self.batch_bytes = 0;
        self.writer_bytes = self.writer.memory_size();
        if self.writer_bytes >= self.group_bytes_max
            && self.group_rows_bytes >= self.group_bytes_max / GROUP_ROWS_PART
        {
            self.writer.flush()?;
            self.group_rows_bytes = 0;
            self.writer_bytes = 0;
        }
        Ok(())
    }

    pub(super) fn held_bytes(&self) -> usize {
        let values = self.batch_rows * self.columns.len() * VALUE_BYTES;
        self.writer_bytes + self.batch_bytes + values
    }

    pub(super) fn finish(mut self) -> io::Result<W> {
        if self.batch_rows > 0 {
            self.end_batch()?;
        }
        Ok(self.writer.into_inner()?)
    }
}

fn not_admitted(why: impl std::fmt::Display) -> io::Error {
    let text = format!("a row that was not admitted under the schema of this object: {why}");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn properties(settings: &ParquetSettings, schema: &Schema) -> io::Result<WriterProperties> {
    let compression = match settings.compression {
        ParquetCompression::None => Compression::UNCOMPRESSED,
        ParquetCompression::Snappy => Compression::SNAPPY,
        ParquetCompression::Zstd => Compression::ZSTD(ZstdLevel::default()),
    };
    let page_bytes = usize::try_from(settings.page_bytes).map_err(io::Error::other)?;
    let group_bytes = usize::try_from(settings.row_group_bytes).map_err(io::Error::other)?;
    let rows = usize::try_from(settings.row_group_rows).map_err(io::Error::other)?;
    let mut builder = WriterProperties::builder()
        .set_created_by(String::from("flumen"))
        .set_compression(compression)
        .set_dictionary_enabled(false)
        .set_dictionary_page_size_limit(page_bytes)
        .set_data_page_size_limit(page_bytes)
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_max_row_group_row_count(Some(rows));
    if settings.dictionary {
        let is_text = |kind| matches!(kind, ColumnType::String | ColumnType::Json);
        let (text, other): (Vec<_>, Vec<_>) =
            schema.columns().iter().partition(|c| is_text(c.kind));
        let dictionaries = group_bytes / DICTIONARIES_PART / DICTIONARY_BYTES;
        for column in text.into_iter().chain(other).take(dictionaries) {
            let path = ColumnPath::new(vec![column.name.clone()]);
            builder = builder.set_column_dictionary_enabled(path, true);
        }
    }
    Ok(builder.build())
}

fn data_type(kind: ColumnType) -> DataType {
    match kind {
        ColumnType::Boolean => DataType::Boolean,
        ColumnType::Int => DataType::Int32,
        ColumnType::Bigint => DataType::Int64,
        ColumnType::Double => DataType::Float64,
        ColumnType::String | ColumnType::Json => DataType::Utf8,
        ColumnType::Date => DataType::Date32,
        ColumnType::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
    }
}

/// The array of a column that is being filled.
enum Column {
    Boolean(BooleanBuilder),
    Int(Int32Builder),
    Bigint(Int64Builder),
    Double(Float64Builder),
    Text(StringBuilder),
    Date(Date32Builder),
    Timestamp(TimestampMicrosecondBuilder),
    Json(StringBuilder),
}

impl Column {
    fn new(kind: ColumnType) -> Self {
        match kind {
            ColumnType::Boolean => Self::Boolean(BooleanBuilder::new()),
            ColumnType::Int => Self::Int(Int32Builder::new()),
            ColumnType::Bigint => Self::Bigint(Int64Builder::new()),
            ColumnType::Double => Self::Double(Float64Builder::new()),
            ColumnType::String => Self::Text(StringBuilder::new()),
            ColumnType::Date => Self::Date(Date32Builder::new()),
            ColumnType::Timestamp => {
                let builder = TimestampMicrosecondBuilder::new();
                Self::Timestamp(builder.with_timezone("UTC"))
            }
            ColumnType::Json => Self::Json(StringBuilder::new()),
        }
    }

    /// Adds a value of the row; `None`: the column does not take it.
    #[inline]
    fn push(&mut self, value: Value, row: &str) -> Option<()> {
        match self {
            Self::Boolean(to) => to.append_value(values::boolean(value, row)?),
            Self::Int(to) => to.append_value(values::int(value, row)?),
            Self::Bigint(to) => to.append_value(values::bigint(value, row)?),
            Self::Double(to) => to.append_value(values::double(value, row)?),
            Self::Date(to) => to.append_value(values::date(value, row)?),
            Self::Timestamp(to) => to.append_value(values::timestamp(value, row)?),
            Self::Json(to) => to.append_value(values::span(value, row)),
            Self::Text(to) => match value.kind {
                Kind::Text => to.append_value(values::inner(value, row)),
                Kind::EscapedText => {
                    json::unescape(values::inner(value, row), |piece| {
                        // Into memory: this does not fail.
                        let _ = std::fmt::Write::write_str(to, piece);
                    });
                    to.append_value("");
                }
                Kind::Nested => return None,
                _ => to.append_value(values::span(value, row)),
            },
        }
        Some(())
    }

    #[inline]
    fn push_null(&mut self) {
        match self {
            Self::Boolean(to) => to.append_null(),
            Self::Int(to) => to.append_null(),
            Self::Bigint(to) => to.append_null(),
            Self::Double(to) => to.append_null(),
            Self::Date(to) => to.append_null(),
            Self::Timestamp(to) => to.append_null(),
            Self::Text(to) | Self::Json(to) => to.append_null(),
        }
    }

    fn finish(&mut self) -> ArrayRef {
        match self {
            Self::Boolean(to) => ArrayBuilder::finish(to),
            Self::Int(to) => ArrayBuilder::finish(to),
            Self::Bigint(to) => ArrayBuilder::finish(to),
            Self::Double(to) => ArrayBuilder::finish(to),
            Self::Date(to) => ArrayBuilder::finish(to),
            Self::Timestamp(to) => ArrayBuilder::finish(to),
            Self::Text(to) | Self::Json(to) => ArrayBuilder::finish(to),
        }
    }
}
