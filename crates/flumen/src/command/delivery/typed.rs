//! What is typed about delivery streams, word by word: destinations, formats, columns, pairs.

use std::io;
use std::path::{Path, PathBuf};

use flumen_broker::{ColumnType, ObjectCompression, ParquetColumn, ParquetCompression, SubRecords};
use thiserror::Error;

/// Why a word is not understood, with what is.
#[derive(Debug, Error)]
pub(super) enum TypedError {
    /// A destination of another kind.
    #[error(
        "{scheme}:// is not supported; use s3://BUCKET[/PREFIX], a directory, file:///DIR or memory:NAME"
    )]
    Scheme {
        /// What was typed.
        scheme: String,
    },
    /// `s3://` and nothing.
    #[error("a bucket is missing, as in s3://BUCKET or s3://BUCKET/PREFIX")]
    Bucket,
    /// `memory:` and nothing.
    #[error("a name is missing, as in memory:NAME")]
    Memory,
    /// A host, or a relative path.
    #[error("file:// takes an absolute path of the broker's machine, as in file:///var/objects")]
    FileUrl,
    /// The working directory is not known.
    #[error("the directory cannot be made absolute: {0}")]
    Absolute(#[from] io::Error),
    /// The protobuf that carries it is text.
    #[error("paths are UTF-8")]
    NotUtf8,
    /// Firehose has it.
    #[error("{asked} is not supported; gzip, snappy, zstd are")]
    CompressionUnsupported {
        /// Which.
        asked: String,
    },
    /// Nobody has it.
    #[error("use none, gzip, snappy or zstd")]
    Compression,
    /// Firehose has it for Parquet.
    #[error("use zstd, snappy or none: Parquet's own compressions")]
    ParquetCompression,
    /// Firehose has it.
    #[error("orc is not supported; parquet is, and verbatim, delimited and ndjson")]
    Orc,
    /// Nobody has it.
    #[error("use verbatim, delimited, ndjson or parquet")]
    Format,
    /// Not `NAME:TYPE` or `NAME:TYPE:required`.
    #[error(
        "write NAME:TYPE or NAME:TYPE:required; types are boolean, int, bigint, double, string, date, timestamp and json"
    )]
    Column,
    /// Not `NAME=VALUE`.
    #[error("write NAME=VALUE")]
    Pair,
    /// Not `NAME:VALUE`.
    #[error("write NAME:VALUE")]
    Header,
    /// A backslash and something else.
    #[error("\\{0} is no escape; \\n, \\r, \\t, \\0 and \\\\ are")]
    Escape(String),
    /// Not a way to take records apart.
    #[error("use json, delimited:TEXT, or none")]
    SubRecords,
    /// Firehose's processor takes GZIP only, too.
    #[error("records can be gzip: use gzip, or none")]
    Decompress,
    /// Firehose has it.
    #[error(
        "schemas from Glue are not supported; name columns with --column, or let them be inferred"
    )]
    Glue,
    /// Firehose has it.
    #[error("KMS keys are not supported; set the default encryption of the bucket")]
    Kms,
}

/// Where objects go, as typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum To {
    /// A bucket, and what its keys begin with; empty, or with a slash at its end.
    S3 {
        /// The bucket.
        bucket: String,
        /// The beginning of keys.
        prefix: String,
    },
    /// An absolute path.
    Directory(PathBuf),
    /// The broker's memory.
    Memory(String),
}

/// Reads `s3://bucket/prefix`, `file:///dir`, `memory:name`, or a directory.
pub(super) fn parse_to(text: &str) -> Result<To, TypedError> {
    if let Some(name) = text.strip_prefix("memory:") {
        let name = name.trim_start_matches("//");
        return match name {
            "" => Err(TypedError::Memory),
            name => Ok(To::Memory(name.to_owned())),
        };
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        return parse_path(text).map(To::Directory);
    };
    match scheme {
        "s3" => {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            if bucket.is_empty() {
                return Err(TypedError::Bucket);
            }
            let prefix = prefix.trim_matches('/');
            Ok(To::S3 {
                bucket: bucket.to_owned(),
                prefix: match prefix {
                    "" => String::new(),
                    prefix => format!("{prefix}/"),
                },
            })
        }
        "file" if rest.starts_with('/') => Ok(To::Directory(rest.into())),
        "file" => Err(TypedError::FileUrl),
        scheme => Err(TypedError::Scheme {
            scheme: scheme.to_owned(),
        }),
    }
}

/// A path as the broker can use it: it does not know where this command was started.
pub(super) fn parse_path(text: &str) -> Result<PathBuf, TypedError> {
    let path = std::path::absolute(Path::new(text))?;
    match path.to_str() {
        Some(_) => Ok(path),
        None => Err(TypedError::NotUtf8),
    }
}

/// Reads `none`, `gzip`, `snappy`, `zstd`.
pub(super) fn parse_compression(text: &str) -> Result<ObjectCompression, TypedError> {
    match text {
        "none" => Ok(ObjectCompression::None),
        "gzip" => Ok(ObjectCompression::Gzip),
        "snappy" => Ok(ObjectCompression::Snappy),
        "zstd" => Ok(ObjectCompression::Zstd),
        other => match other.to_ascii_lowercase().replace('_', "-").as_str() {
            "zip" | "hadoop-snappy" | "lz4" | "bzip2" | "lzo" | "xz" => {
                Err(TypedError::CompressionUnsupported {
                    asked: other.to_owned(),
                })
            }
            _ => Err(TypedError::Compression),
        },
    }
}

/// Reads `zstd`, `snappy`, `none`.
pub(super) fn parse_parquet_compression(text: &str) -> Result<ParquetCompression, TypedError> {
    match text {
        "none" => Ok(ParquetCompression::None),
        "snappy" => Ok(ParquetCompression::Snappy),
        "zstd" => Ok(ParquetCompression::Zstd),
        _ => Err(TypedError::ParquetCompression),
    }
}

/// The kind of a format; what else there is to it has flags of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FormatKind {
    /// Nothing between records.
    Verbatim,
    /// Something after each.
    Delimited,
    /// A line of JSON each.
    Ndjson,
    /// Rows.
    Parquet,
}

/// Reads `verbatim`, `delimited`, `ndjson`, `parquet`.
pub(super) fn parse_format(text: &str) -> Result<FormatKind, TypedError> {
    match text {
        "verbatim" => Ok(FormatKind::Verbatim),
        "delimited" => Ok(FormatKind::Delimited),
        "ndjson" => Ok(FormatKind::Ndjson),
        "parquet" => Ok(FormatKind::Parquet),
        other if other.eq_ignore_ascii_case("orc") => Err(TypedError::Orc),
        _ => Err(TypedError::Format),
    }
}

/// Reads `NAME:TYPE` or `NAME:TYPE:required`; a name may have colons.
pub(super) fn parse_column(text: &str) -> Result<ParquetColumn, TypedError> {
    let (text, required) = match text.strip_suffix(":required") {
        Some(text) => (text, true),
        None => (text, false),
    };
    let (name, kind) = text.rsplit_once(':').ok_or(TypedError::Column)?;
    let kind = match kind {
        "boolean" => ColumnType::Boolean,
        "int" => ColumnType::Int,
        "bigint" => ColumnType::Bigint,
        "double" => ColumnType::Double,
        "string" => ColumnType::String,
        "date" => ColumnType::Date,
        "timestamp" => ColumnType::Timestamp,
        "json" => ColumnType::Json,
        _ => return Err(TypedError::Column),
    };
    if name.is_empty() {
        return Err(TypedError::Column);
    }
    Ok(ParquetColumn {
        name: name.to_owned(),
        kind,
        required,
    })
}

/// A name and what belongs to it; `None` takes all of them away.
pub(super) type Pair = Option<(String, String)>;

/// Reads `NAME=VALUE`; nothing at all takes all of them away.
pub(super) fn parse_pair(text: &str) -> Result<Pair, TypedError> {
    split(text, '=', TypedError::Pair)
}

/// Reads `NAME:VALUE`; nothing at all takes all of them away.
pub(super) fn parse_header(text: &str) -> Result<Pair, TypedError> {
    let pair = split(text, ':', TypedError::Header)?;
    Ok(pair.map(|(name, value)| (name, value.trim_start().to_owned())))
}

fn split(text: &str, at: char, error: TypedError) -> Result<Pair, TypedError> {
    if text.is_empty() {
        return Ok(None);
    }
    match text.split_once(at) {
        Some((name, value)) if !name.is_empty() => Ok(Some((name.to_owned(), value.to_owned()))),
        _ => Err(error),
    }
}

/// Reads text with `\n`, `\r`, `\t`, `\0` and `\\` in it.
pub(super) fn parse_escaped(text: &str) -> Result<String, TypedError> {
    let mut read = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character != '\\' {
            read.push(character);
            continue;
        }
        read.push(match characters.next() {
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('0') => '\0',
            Some('\\') => '\\',
            other => {
                let other = other.map(String::from).unwrap_or_default();
                return Err(TypedError::Escape(other));
            }
        });
    }
    Ok(read)
}

/// How records are taken apart; `None`: they are not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Apart(pub(super) Option<SubRecords>);

/// Reads `json`, `delimited:TEXT`, `none`.
pub(super) fn parse_sub_records(text: &str) -> Result<Apart, TypedError> {
    match text.split_once(':') {
        None if text == "json" => Ok(Apart(Some(SubRecords::Json))),
        None if text == "none" || text.is_empty() => Ok(Apart(None)),
        Some(("delimited", delimiter)) if !delimiter.is_empty() => {
            let delimiter = parse_escaped(delimiter)?;
            Ok(Apart(Some(SubRecords::Delimited(delimiter))))
        }
        _ => Err(TypedError::SubRecords),
    }
}

/// Reads `gzip`, `none`.
pub(super) fn parse_decompress(text: &str) -> Result<bool, TypedError> {
    match text {
        "gzip" => Ok(true),
        "none" | "" => Ok(false),
        _ => Err(TypedError::Decompress),
    }
}

/// There is no value for this one.
pub(super) fn refuse_glue(_: &str) -> Result<String, TypedError> {
    Err(TypedError::Glue)
}

/// There is no value for this one.
pub(super) fn refuse_kms(_: &str) -> Result<String, TypedError> {
    Err(TypedError::Kms)
}
