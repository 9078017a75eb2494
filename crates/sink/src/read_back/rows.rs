//! The rows of an object, from Parquet and from JSON lines.

use std::fmt::Display;
use std::io::{BufRead, BufReader, Read};

use arrow_array::cast::AsArray;
use arrow_array::types::{Date32Type, Float64Type, Int32Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, RecordBatch};
use arrow_schema::{DataType, TimeUnit};
use bytes::{Buf, Bytes};
use flate2::read::MultiGzDecoder;
use jiff::{Span, Timestamp, civil};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Map, Value};

use super::ReadBackError;
use crate::manifest::ManifestObject;

/// Hands out the rows.
pub(super) fn read(
    object: &ManifestObject,
    bytes: Bytes,
    each: &mut dyn FnMut(Map<String, Value>),
) -> Result<(), ReadBackError> {
    let unreadable = |detail: String| ReadBackError::Unreadable {
        key: object.key.clone(),
        detail,
    };
    match (object.encoding.as_str(), object.compression.as_str()) {
        ("parquet", _) => columns(bytes, each).map_err(unreadable),
        ("ndjson", "none") => lines(bytes.reader(), each).map_err(unreadable),
        ("ndjson", "gzip") => lines(MultiGzDecoder::new(bytes.reader()), each).map_err(unreadable),
        ("ndjson", "zstd") => zstd::Decoder::new(bytes.reader())
            .map_err(text)
            .and_then(|decoder| lines(decoder, each))
            .map_err(unreadable),
        (encoding, compression) => Err(ReadBackError::NoRows {
            key: object.key.clone(),
            encoding: encoding.to_owned(),
            compression: compression.to_owned(),
        }),
    }
}

fn text(error: impl Display) -> String {
    error.to_string()
}

fn lines(input: impl Read, each: &mut dyn FnMut(Map<String, Value>)) -> Result<(), String> {
    let mut input = BufReader::new(input);
    let mut line = Vec::new();
    // A row has a bound where it is admitted.
    while input.read_until(b'\n', &mut line).map_err(text)? > 0 {
        each(serde_json::from_slice(&line).map_err(text)?);
        line.clear();
    }
    Ok(())
}

fn columns(bytes: Bytes, each: &mut dyn FnMut(Map<String, Value>)) -> Result<(), String> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(text)?;
    for batch in builder.build().map_err(text)? {
        let batch = batch.map_err(text)?;
        let mut rows = vec![Map::new(); batch.num_rows()];
        fill(&batch, &mut rows)?;
        rows.into_iter().for_each(&mut *each);
    }
    Ok(())
}

/// Puts the values of a batch into its rows, column by column.
fn fill(batch: &RecordBatch, rows: &mut [Map<String, Value>]) -> Result<(), String> {
    let schema = batch.schema_ref();
    for (field, array) in schema.fields().iter().zip(batch.columns()) {
        let values = values(&**array).ok_or_else(|| {
            format!(
                "column {} is {}, which is not written here",
                field.name(),
                field.data_type()
            )
        })?;
        for (row, value) in rows.iter_mut().zip(values) {
            if let Some(value) = value {
                row.insert(field.name().clone(), value);
            }
        }
    }
    Ok(())
}

/// A column's values; `None`: of a type that the sink does not write.
fn values(array: &dyn Array) -> Option<Vec<Option<Value>>> {
    fn all<T>(
        values: impl Iterator<Item = Option<T>>,
        value: impl Fn(T) -> Value,
    ) -> Vec<Option<Value>> {
        values.map(|found| found.map(&value)).collect()
    }
    Some(match array.data_type() {
        DataType::Boolean => all(array.as_boolean_opt()?.iter(), Value::from),
        DataType::Int32 => all(array.as_primitive_opt::<Int32Type>()?.iter(), Value::from),
        DataType::Int64 => all(array.as_primitive_opt::<Int64Type>()?.iter(), Value::from),
        DataType::Float64 => all(array.as_primitive_opt::<Float64Type>()?.iter(), Value::from),
        DataType::Utf8 => all(array.as_string_opt::<i32>()?.iter(), Value::from),
        DataType::Date32 => all(array.as_primitive_opt::<Date32Type>()?.iter(), date),
        DataType::Timestamp(TimeUnit::Microsecond, _) => all(
            array.as_primitive_opt::<TimestampMicrosecondType>()?.iter(),
            time,
        ),
        _ => return None,
    })
}

/// `YYYY-MM-DD`; beyond the year 9999 the number of days.
fn date(days: i32) -> Value {
    let date = Span::new()
        .try_days(days)
        .and_then(|days| civil::date(1970, 1, 1).checked_add(days));
    date.map_or_else(|_far| Value::from(days), |date| date.to_string().into())
}

/// RFC 3339; beyond the year 9999 the number of microseconds.
fn time(micros: i64) -> Value {
    let time = Timestamp::from_microsecond(micros);
    time.map_or_else(|_far| Value::from(micros), |time| time.to_string().into())
}
