//! Durable changes of delivery streams, byte by byte (`docs/format.md`, "Delivery records").

use bytes::{Buf, BufMut, Bytes};
use flumen_record::{DeliveryId, SequenceNumber, ShardId, Timestamp};

use super::{DeliveryDefinition, DeliveryEnding, DeliveryProgress, StoredDelivery};
use crate::varint::{get_varint, put_varint};

/// One durable change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeliveryChange {
    /// A delivery stream came into being, or is to do something else.
    Set {
        /// Its number.
        id: DeliveryId,
        /// What it is to do.
        definition: DeliveryDefinition,
    },
    /// A delivery stream came further.
    Progress {
        /// Which.
        id: DeliveryId,
        /// How far.
        progress: DeliveryProgress,
    },
    /// A delivery stream is gone.
    Removed {
        /// Which.
        id: DeliveryId,
    },
    /// A snapshot begins: the first change of a record.
    SnapshotBegin {
        /// The highest number ever given.
        last: DeliveryId,
    },
    /// All of a delivery stream.
    SnapshotDelivery {
        /// Its number.
        id: DeliveryId,
        /// What is remembered of it.
        stored: StoredDelivery,
    },
    /// A snapshot is complete.
    SnapshotEnd {
        /// How many there are.
        deliveries: u64,
    },
}

const SET: u8 = 1;
const PROGRESS: u8 = 2;
const REMOVED: u8 = 3;
const SNAPSHOT_BEGIN: u8 = 4;
const SNAPSHOT_DELIVERY: u8 = 5;
const SNAPSHOT_END: u8 = 6;

impl DeliveryChange {
    /// Appends it to a record.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Set { id, definition } => {
                put(out, SET, id.value());
                put_definition(out, definition);
            }
            Self::Progress { id, progress } => {
                put(out, PROGRESS, id.value());
                put_progress(out, progress);
            }
            Self::Removed { id } => put(out, REMOVED, id.value()),
            Self::SnapshotBegin { last } => put(out, SNAPSHOT_BEGIN, last.value()),
            Self::SnapshotDelivery { id, stored } => encode_stored(*id, stored, out),
            Self::SnapshotEnd { deliveries } => put(out, SNAPSHOT_END, *deliveries),
        }
    }

    /// Takes one from the front of a record; the error says what is wrong with it.
    pub fn decode(bytes: &mut &[u8]) -> Result<Self, &'static str> {
        let kind = bytes.try_get_u8().map_err(|_| SHORT)?;
        Ok(match kind {
            SET => Self::Set {
                id: id(bytes)?,
                definition: definition(bytes)?,
            },
            PROGRESS => Self::Progress {
                id: id(bytes)?,
                progress: progress(bytes)?,
            },
            REMOVED => Self::Removed { id: id(bytes)? },
            SNAPSHOT_BEGIN => Self::SnapshotBegin {
                last: DeliveryId::new(number(bytes)?),
            },
            SNAPSHOT_DELIVERY => Self::SnapshotDelivery {
                id: id(bytes)?,
                stored: StoredDelivery {
                    definition: definition(bytes)?,
                    progress: progress(bytes)?,
                },
            },
            SNAPSHOT_END => Self::SnapshotEnd {
                deliveries: number(bytes)?,
            },
            _ => return Err("its kind is not known; it was written by a newer Flumen"),
        })
    }
}

/// Appends all of a delivery stream: [`DeliveryChange::SnapshotDelivery`] without a copy of it.
pub(super) fn encode_stored(id: DeliveryId, stored: &StoredDelivery, out: &mut Vec<u8>) {
    put(out, SNAPSHOT_DELIVERY, id.value());
    put_definition(out, &stored.definition);
    put_progress(out, &stored.progress);
}

fn put(out: &mut Vec<u8>, kind: u8, field: u64) {
    out.put_u8(kind);
    put_varint(out, field);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.put_slice(bytes);
}

fn put_definition(out: &mut Vec<u8>, definition: &DeliveryDefinition) {
    let name = definition.name.as_str();
    out.put_u8(u8::try_from(name.len()).expect("BUG: a name has at most 64 bytes"));
    out.put_slice(name.as_bytes());
    out.put_u64_le(definition.created.as_micros());
    out.put_u64_le(definition.updated.as_micros());
    put_varint(out, definition.version);
    out.put_u8(u8::from(definition.paused));
    out.put_u8(match definition.ending {
        None => 0,
        Some(DeliveryEnding::Flush) => 1,
        Some(DeliveryEnding::Drop) => 2,
    });
    put_bytes(out, &definition.settings);
}

fn put_progress(out: &mut Vec<u8>, progress: &DeliveryProgress) {
    put_bytes(out, &progress.bytes);
    put_varint(out, progress.held.len() as u64);
    for (shard, from) in &progress.held {
        out.put_u64_le(shard.value());
        put_varint(out, from.value());
    }
}

const SHORT: &str = "it ends too soon";

fn number(bytes: &mut &[u8]) -> Result<u64, &'static str> {
    get_varint(bytes).ok_or("a number in it is not one, or it ends too soon")
}

fn id(bytes: &mut &[u8]) -> Result<DeliveryId, &'static str> {
    match number(bytes)? {
        0 => Err("a delivery stream in it has no number"),
        id => Ok(DeliveryId::new(id)),
    }
}

fn time(bytes: &mut &[u8]) -> Result<Timestamp, &'static str> {
    let micros = bytes.try_get_u64_le().map_err(|_| SHORT)?;
    Ok(Timestamp::from_micros(micros))
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Result<&'a [u8], &'static str> {
    let (taken, rest) = bytes.split_at_checked(length).ok_or(SHORT)?;
    *bytes = rest;
    Ok(taken)
}

fn opaque(bytes: &mut &[u8]) -> Result<Bytes, &'static str> {
    let length = usize::try_from(number(bytes)?).map_err(|_| SHORT)?;
    Ok(Bytes::copy_from_slice(take(bytes, length)?))
}

fn definition(bytes: &mut &[u8]) -> Result<DeliveryDefinition, &'static str> {
    let length = usize::from(bytes.try_get_u8().map_err(|_| SHORT)?);
    let name = std::str::from_utf8(take(bytes, length)?).ok();
    Ok(DeliveryDefinition {
        name: name
            .and_then(|name| name.parse().ok())
            .ok_or("a name in it is not one")?,
        created: time(bytes)?,
        updated: time(bytes)?,
        version: number(bytes)?,
        paused: match bytes.try_get_u8().map_err(|_| SHORT)? {
            0 => false,
            1 => true,
            _ => return Err("a flag in it is neither set nor not"),
        },
        ending: match bytes.try_get_u8().map_err(|_| SHORT)? {
            0 => None,
            1 => Some(DeliveryEnding::Flush),
            2 => Some(DeliveryEnding::Drop),
            _ => return Err("how it ends is not known; it was written by a newer Flumen"),
        },
        settings: opaque(bytes)?,
    })
}

fn progress(bytes: &mut &[u8]) -> Result<DeliveryProgress, &'static str> {
    let opaque = opaque(bytes)?;
    let mut held = Vec::new();
    for _ in 0..number(bytes)? {
        let shard = ShardId::from_value(bytes.try_get_u64_le().map_err(|_| SHORT)?);
        held.push((shard, SequenceNumber::new(number(bytes)?)));
    }
    Ok(DeliveryProgress {
        bytes: opaque,
        held,
    })
}
