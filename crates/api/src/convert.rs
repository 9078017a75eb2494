//! Between the words of the wire and those of `flumen-record`.
//!
//! What may have come from a stranger converts with a [`ConvertError`] that names the field and the
//! refused value; what is ours converts without one. Limits of records (sizes, counts) are not
//! checked here: the batch encoder does.

use std::str::FromStr;

use bytes::Bytes;
use flumen_record::{
    DeliveryName, Durability, GroupName, HashKey, HashRange, Header, MemberName, NameError, Record,
    StreamName, Timestamp,
};
use thiserror::Error;

use crate::v1;

/// Characters of a refused text that are repeated to its sender.
const SHOWN_CHARACTERS: usize = 64;

/// A field that does not say what it should.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConvertError {
    /// It must be set and is not.
    #[error("{field} is missing")]
    Missing {
        /// Which.
        field: &'static str,
    },
    /// It is not a stream's name.
    #[error("{field} {shown:?}: {error}")]
    StreamName {
        /// Which.
        field: &'static str,
        /// What it says, the beginning of it when it is long.
        shown: String,
        /// What is wrong with it.
        error: NameError,
    },
    /// It is not the name of a group, a member or a delivery stream.
    #[error("{field} {shown:?}: {error}")]
    Name {
        /// Which.
        field: &'static str,
        /// What it says, the beginning of it when it is long.
        shown: String,
        /// What is wrong with it.
        error: NameError,
    },
    /// Groups and delivery streams begin at a time or an end, not at a number.
    #[error(
        "{field} is a sequence number, which is a place in one shard; take trim_horizon, latest or a time"
    )]
    Position {
        /// Which.
        field: &'static str,
    },
    /// A hash key has 16 bytes.
    #[error("{field} has {bytes} bytes, a hash key has 16")]
    HashKeyLength {
        /// Which.
        field: &'static str,
        /// How many it has.
        bytes: usize,
    },
    /// A range that ends before it starts.
    #[error("{field} ends before it starts")]
    EmptyRange {
        /// Which.
        field: &'static str,
        /// The range.
        range: HashRange,
    },
    /// A number that stands for no durability level.
    #[error("{field} {value} is not a durability level")]
    Durability {
        /// Which.
        field: &'static str,
        /// The number.
        value: i32,
    },
    /// A number that stands for none of the values of an enum.
    #[error(
        "{field} {value} is none of the values there are; is the broker older than the client?"
    )]
    Enumeration {
        /// Which.
        field: &'static str,
        /// The number.
        value: i32,
    },
    /// Text on the wire is UTF-8, these bytes are not.
    #[error("{field} is not UTF-8")]
    NotUtf8 {
        /// Which.
        field: &'static str,
    },
}

impl ConvertError {
    /// The field that was refused, as `proto/` names it.
    pub fn field(&self) -> &'static str {
        match self {
            Self::Missing { field }
            | Self::StreamName { field, .. }
            | Self::Name { field, .. }
            | Self::Position { field }
            | Self::HashKeyLength { field, .. }
            | Self::EmptyRange { field, .. }
            | Self::Durability { field, .. }
            | Self::Enumeration { field, .. }
            | Self::NotUtf8 { field } => field,
        }
    }

    /// A stable name for programs (`docs/errors.md` lists them).
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "FIELD_MISSING",
            Self::StreamName { .. } => "STREAM_NAME_INVALID",
            Self::Name { .. } => "NAME_INVALID",
            Self::Position { .. } => "POSITION_INVALID",
            Self::HashKeyLength { .. } => "HASH_KEY_INVALID",
            Self::EmptyRange { .. } => "HASH_RANGE_INVALID",
            Self::Durability { .. } => "DURABILITY_INVALID",
            Self::Enumeration { .. } => "VALUE_UNKNOWN",
            Self::NotUtf8 { .. } => "TEXT_INVALID",
        }
    }

    /// The field and the refused value, by name, for programs.
    pub fn metadata(&self) -> Vec<(&'static str, String)> {
        let mut metadata = vec![("field", self.field().to_owned())];
        match self {
            Self::Missing { .. } | Self::NotUtf8 { .. } | Self::Position { .. } => {}
            Self::StreamName { shown, .. } | Self::Name { shown, .. } => {
                metadata.push(("value", shown.clone()))
            }
            Self::HashKeyLength { bytes, .. } => metadata.push(("bytes", bytes.to_string())),
            Self::EmptyRange { range, .. } => {
                metadata.push(("start", format!("{:032x}", range.start.value())));
                metadata.push(("end", format!("{:032x}", range.end.value())));
            }
            Self::Durability { value, .. } | Self::Enumeration { value, .. } => {
                metadata.push(("value", value.to_string()))
            }
        }
        metadata
    }
}

/// A group's name.
pub fn group_name(field: &'static str, text: &str) -> Result<GroupName, ConvertError> {
    name(field, text)
}

/// A delivery stream's name.
pub fn delivery_name(field: &'static str, text: &str) -> Result<DeliveryName, ConvertError> {
    name(field, text)
}

/// A member's name.
pub fn member_name(field: &'static str, text: &str) -> Result<MemberName, ConvertError> {
    name(field, text)
}

fn name<N: FromStr<Err = NameError>>(field: &'static str, text: &str) -> Result<N, ConvertError> {
    if text.is_empty() {
        return Err(ConvertError::Missing { field });
    }
    text.parse().map_err(|error| ConvertError::Name {
        field,
        shown: text.chars().take(SHOWN_CHARACTERS).collect(),
        error,
    })
}

/// A stream's name.
pub fn stream_name(field: &'static str, text: &str) -> Result<StreamName, ConvertError> {
    if text.is_empty() {
        return Err(ConvertError::Missing { field });
    }
    text.parse().map_err(|error| ConvertError::StreamName {
        field,
        shown: text.chars().take(SHOWN_CHARACTERS).collect(),
        error,
    })
}

/// A hash key: 16 bytes, big-endian.
pub fn hash_key(field: &'static str, bytes: &[u8]) -> Result<HashKey, ConvertError> {
    let digits = bytes.try_into().map_err(|_| ConvertError::HashKeyLength {
        field,
        bytes: bytes.len(),
    })?;
    Ok(HashKey::from_bytes(digits))
}

/// A hash key as it travels.
pub fn hash_key_bytes(key: HashKey) -> Bytes {
    Bytes::copy_from_slice(&key.to_bytes())
}

/// A slice of the key space, both ends belonging to it.
pub fn hash_range(
    field: &'static str,
    range: Option<&v1::HashRange>,
) -> Result<HashRange, ConvertError> {
    let range = range.ok_or(ConvertError::Missing { field })?;
    let range = HashRange {
        start: hash_key(field, &range.start)?,
        end: hash_key(field, &range.end)?,
    };
    if range.start > range.end {
        return Err(ConvertError::EmptyRange { field, range });
    }
    Ok(range)
}

/// A durability level; `None` where the wire says "unspecified".
pub fn durability(field: &'static str, value: i32) -> Result<Option<Durability>, ConvertError> {
    match v1::Durability::try_from(value) {
        Ok(v1::Durability::Unspecified) => Ok(None),
        Ok(v1::Durability::Memory) => Ok(Some(Durability::Memory)),
        Ok(v1::Durability::Disk) => Ok(Some(Durability::Disk)),
        Err(_) => Err(ConvertError::Durability { field, value }),
    }
}

impl From<Durability> for v1::Durability {
    fn from(level: Durability) -> Self {
        match level {
            Durability::Memory => Self::Memory,
            Durability::Disk => Self::Disk,
        }
    }
}

impl From<HashRange> for v1::HashRange {
    fn from(range: HashRange) -> Self {
        Self {
            start: hash_key_bytes(range.start),
            end: hash_key_bytes(range.end),
        }
    }
}

impl TryFrom<v1::PutRecord> for Record {
    type Error = ConvertError;

    fn try_from(put: v1::PutRecord) -> Result<Self, ConvertError> {
        let explicit_hash_key = if put.explicit_hash_key.is_empty() {
            None
        } else {
            Some(hash_key("explicit_hash_key", &put.explicit_hash_key)?)
        };
        Ok(Self {
            partition_key: put.partition_key.into(),
            explicit_hash_key,
            data: put.data,
            client_timestamp: put.client_timestamp_us.map(Timestamp::from_micros),
            headers: put.headers.into_iter().map(Header::from).collect(),
        })
    }
}

/// Refuses what is not UTF-8 where the wire says text.
impl TryFrom<Record> for v1::PutRecord {
    type Error = ConvertError;

    fn try_from(record: Record) -> Result<Self, ConvertError> {
        let headers = record.headers.into_iter().map(v1::Header::try_from);
        Ok(Self {
            partition_key: text("partition_key", record.partition_key)?,
            explicit_hash_key: record
                .explicit_hash_key
                .map(hash_key_bytes)
                .unwrap_or_default(),
            data: record.data,
            client_timestamp_us: record.client_timestamp.map(Timestamp::as_micros),
            headers: headers.collect::<Result<_, _>>()?,
        })
    }
}

impl From<v1::Header> for Header {
    fn from(header: v1::Header) -> Self {
        Self {
            name: header.name.into(),
            value: header.value,
        }
    }
}

impl TryFrom<Header> for v1::Header {
    type Error = ConvertError;

    fn try_from(header: Header) -> Result<Self, ConvertError> {
        Ok(Self {
            name: text("headers.name", header.name)?,
            value: header.value,
        })
    }
}

fn text(field: &'static str, bytes: Bytes) -> Result<String, ConvertError> {
    String::from_utf8(bytes.into()).map_err(|_| ConvertError::NotUtf8 { field })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_keys_are_sixteen_big_endian_bytes() {
        let key = HashKey::new(0x0102);
        let bytes = hash_key_bytes(key);
        assert_eq!(bytes[..], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(hash_key("start", &bytes), Ok(key));
        for bytes in [0, 1, 15, 17, 32] {
            let refused = hash_key("start", &vec![0; bytes]);
            assert_eq!(
                refused,
                Err(ConvertError::HashKeyLength {
                    field: "start",
                    bytes
                })
            );
        }
    }

    #[test]
    fn ranges_travel_and_inverted_ones_do_not() {
        let range = HashRange {
            start: HashKey::new(7),
            end: HashKey::MAX,
        };
        assert_eq!(hash_range("range", Some(&range.into())), Ok(range));
        let inverted = HashRange {
            start: range.end,
            end: range.start,
        };
        assert_eq!(
            hash_range("range", Some(&inverted.into())),
            Err(ConvertError::EmptyRange {
                field: "range",
                range: inverted
            })
        );
        let missing = hash_range("range", None);
        assert_eq!(missing, Err(ConvertError::Missing { field: "range" }));
    }

    #[test]
    fn durability_levels_travel_and_unknown_numbers_do_not() {
        for level in [Durability::Memory, Durability::Disk] {
            let wire = v1::Durability::from(level) as i32;
            assert_eq!(durability("durability", wire), Ok(Some(level)));
        }
        assert_eq!(durability("durability", 0), Ok(None));
        let refused = durability("durability", 9).unwrap_err();
        assert_eq!(refused.reason(), "DURABILITY_INVALID");
        assert_eq!(
            refused.metadata(),
            [
                ("field", "durability".to_owned()),
                ("value", "9".to_owned())
            ]
        );
    }

    #[test]
    fn a_refused_name_is_repeated_up_to_a_length() {
        let refused = stream_name("stream", &"é".repeat(10_000)).unwrap_err();
        let ConvertError::StreamName { shown, .. } = &refused else {
            panic!("{refused}");
        };
        assert_eq!(shown.chars().count(), SHOWN_CHARACTERS);
        let empty = stream_name("stream", "");
        assert_eq!(empty, Err(ConvertError::Missing { field: "stream" }));
        assert_eq!(
            stream_name("stream", "a.b-c_1").unwrap().as_str(),
            "a.b-c_1"
        );
    }

    #[test]
    fn records_travel_with_everything_in_them() {
        let record = Record {
            partition_key: Bytes::from_static("schlüssel".as_bytes()),
            explicit_hash_key: Some(HashKey::new(42)),
            data: Bytes::from_static(b"\0data"),
            client_timestamp: Some(Timestamp::from_micros(9)),
            headers: vec![Header {
                name: Bytes::from_static(b"name"),
                value: Bytes::from_static(b"\xff"),
            }],
        };
        let put = v1::PutRecord::try_from(record.clone()).unwrap();
        assert_eq!(Record::try_from(put), Ok(record.clone()));

        let plain = Record {
            explicit_hash_key: None,
            client_timestamp: None,
            headers: Vec::new(),
            ..record.clone()
        };
        let put = v1::PutRecord::try_from(plain.clone()).unwrap();
        assert!(put.explicit_hash_key.is_empty());
        assert_eq!(Record::try_from(put), Ok(plain));

        let binary = Record {
            partition_key: Bytes::from_static(b"\xff"),
            ..record
        };
        let refused = v1::PutRecord::try_from(binary);
        assert_eq!(
            refused,
            Err(ConvertError::NotUtf8 {
                field: "partition_key"
            })
        );
    }
}
