//! How a record is written.

use flumen_client::{ConsumedRecord, StreamName};
use serde::Serialize;
use serde_json::{Value, json};

use crate::output::{Output, OutputError};

/// A parsed `--format`, or JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Layout {
    /// One object per line.
    Json,
    /// Pieces of text, one after the other.
    Pieces(Vec<Piece>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    Text(Vec<u8>),
    Data,
    DataBytes,
    Key,
    SequenceNumber,
    Shard,
    ArrivalTime,
    ArrivalMicros,
    Headers,
    Stream,
}

#[derive(Serialize)]
struct Shown<'a> {
    stream: &'a str,
    shard: u32,
    sequence_number: u64,
    subsequence: u32,
    partition_key: String,
    arrival_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_base64: Option<String>,
    headers: Vec<Value>,
}

impl Layout {
    /// Data and a line end.
    pub(super) fn line() -> Self {
        Self::Pieces(vec![Piece::Data, Piece::Text(b"\n".to_vec())])
    }

    /// Reads a format.
    pub(super) fn parse(format: &str) -> Result<Self, String> {
        if format == "raw" {
            return Ok(Self::Pieces(vec![Piece::Data]));
        }
        let mut pieces = Vec::new();
        let mut text = Vec::new();
        let mut letters = format.chars();
        while let Some(letter) = letters.next() {
            let literal = match letter {
                '%' => match letters.next() {
                    Some('%') => '%',
                    directive => {
                        if !text.is_empty() {
                            pieces.push(Piece::Text(std::mem::take(&mut text)));
                        }
                        pieces.push(piece(directive)?);
                        continue;
                    }
                },
                '\\' => escaped(letters.next())?,
                plain => plain,
            };
            text.extend_from_slice(literal.encode_utf8(&mut [0; 4]).as_bytes());
        }
        if !text.is_empty() {
            pieces.push(Piece::Text(text));
        }
        Ok(Self::Pieces(pieces))
    }

    /// Writes one record.
    pub(super) fn write(
        &self,
        output: &mut Output,
        stream: &StreamName,
        record: &ConsumedRecord,
    ) -> Result<(), OutputError> {
        match self {
            Self::Json => output.json(&shown(stream, record)),
            Self::Pieces(pieces) => pieces
                .iter()
                .try_for_each(|piece| piece.write(output, stream, record)),
        }
    }
}

fn piece(directive: Option<char>) -> Result<Piece, String> {
    Ok(match directive {
        Some('d') => Piece::Data,
        Some('b') => Piece::DataBytes,
        Some('k') => Piece::Key,
        Some('s') => Piece::SequenceNumber,
        Some('S') => Piece::Shard,
        Some('t') => Piece::ArrivalTime,
        Some('T') => Piece::ArrivalMicros,
        Some('h') => Piece::Headers,
        Some('n') => Piece::Stream,
        Some(other) => {
            return Err(format!(
                "--format has no %{other}; there are %d %k %s %S %t %T %h %b %n %%"
            ));
        }
        None => return Err("--format ends in a single %; a percent sign is %%".to_owned()),
    })
}

fn escaped(letter: Option<char>) -> Result<char, String> {
    Ok(match letter {
        Some('n') => '\n',
        Some('t') => '\t',
        Some('r') => '\r',
        Some('0') => '\0',
        Some('\\') => '\\',
        Some(other) => {
            return Err(format!(
                "--format has no \\{other}; there are \\n \\t \\r \\0 \\\\"
            ));
        }
        None => return Err("--format ends in a single \\; a backslash is \\\\".to_owned()),
    })
}

impl Piece {
    fn write(
        &self,
        output: &mut Output,
        stream: &StreamName,
        record: &ConsumedRecord,
    ) -> Result<(), OutputError> {
        let text = match self {
            Self::Text(text) => return output.raw(text),
            Self::Data => return output.raw(&record.data),
            Self::Key => return output.raw(&record.partition_key),
            Self::Stream => return output.raw(stream.as_str().as_bytes()),
            Self::Headers => return headers(output, record),
            Self::DataBytes => record.data.len().to_string(),
            Self::SequenceNumber => record.sequence_number.to_string(),
            Self::Shard => record.shard.to_string(),
            Self::ArrivalTime => record.arrival.to_string(),
            Self::ArrivalMicros => record.arrival.as_micros().to_string(),
        };
        output.raw(text.as_bytes())
    }
}

fn headers(output: &mut Output, record: &ConsumedRecord) -> Result<(), OutputError> {
    for (index, header) in record.headers.iter().enumerate() {
        if index > 0 {
            output.raw(b",")?;
        }
        output.raw(&header.name)?;
        output.raw(b"=")?;
        output.raw(&header.value)?;
    }
    Ok(())
}

fn shown<'a>(stream: &'a StreamName, record: &'a ConsumedRecord) -> Shown<'a> {
    let data = std::str::from_utf8(&record.data).ok();
    Shown {
        stream: stream.as_str(),
        shard: record.shard.value(),
        sequence_number: record.sequence_number.value(),
        subsequence: record.subsequence,
        partition_key: String::from_utf8_lossy(&record.partition_key).into_owned(),
        arrival_time: record.arrival.to_string(),
        client_time: record.client_timestamp.map(|time| time.to_string()),
        data,
        data_base64: if data.is_none() {
            Some(base64(&record.data))
        } else {
            None
        },
        headers: record.headers.iter().map(header).collect(),
    }
}

fn header(header: &flumen_client::Header) -> Value {
    let name = String::from_utf8_lossy(&header.name);
    match std::str::from_utf8(&header.value) {
        Ok(value) => json!({ "name": name, "value": value }),
        Err(_) => json!({ "name": name, "value_base64": base64(&header.value) }),
    }
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let letter = |bits: u32| char::from(LETTERS.get(bits as usize & 63).copied().unwrap_or(b'='));
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let byte = |index: usize| u32::from(three.get(index).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        text.push(letter(bits >> 18));
        text.push(letter(bits >> 12));
        text.push(if three.len() > 1 {
            letter(bits >> 6)
        } else {
            '='
        });
        text.push(if three.len() > 2 { letter(bits) } else { '=' });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_read() {
        let text = |text: &str| Piece::Text(text.as_bytes().to_vec());
        let pieces = |format| match Layout::parse(format) {
            Ok(Layout::Pieces(pieces)) => pieces,
            other => panic!("{format}: {other:?}"),
        };
        let parsed = pieces(r"%s %k %d\n");
        let expected = [
            Piece::SequenceNumber,
            text(" "),
            Piece::Key,
            text(" "),
            Piece::Data,
            text("\n"),
        ];
        assert_eq!(parsed, expected);
        assert_eq!(pieces(r"100%% é\\"), [text(r"100% é\")]);
        assert_eq!(pieces("raw"), [Piece::Data]);
        assert_eq!(pieces(""), []);
        for bad in ["%q", "%", r"\x", r"\"] {
            assert!(Layout::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (plain, encoded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
        assert_eq!(base64(&[0xff, 0xfe, 0xfd]), "//79");
    }
}
