//! A shard's state in the node snapshot, byte by byte (`docs/format.md`, "Shard states").

use std::collections::VecDeque;

use bytes::{Buf, BufMut};
use flumen_record::{ProducerId, SequenceNumber, Timestamp};

use super::producers::{Jump, Producers, Remembered};
use super::resting::Rest;
use crate::varint::{get_varint, put_varint};

/// Version 1 has no resting producers.
const VERSION: u8 = 2;
/// Checksum and version.
const HEADER_BYTES: usize = 5;
/// Of a batch: base, count and arrival take at least one byte each, the checksum four.
const BATCH_BYTES_MIN: usize = 7;

/// What is saved beside the producers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standing {
    /// Everything below is part of the state.
    pub(super) next: SequenceNumber,
    pub(super) last_arrival: Timestamp,
    pub(super) watermark: ProducerId,
    pub(super) jump: Jump,
}

/// One producer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SavedProducer {
    pub(super) id: ProducerId,
    pub(super) next: u64,
    /// Oldest first, at least one.
    pub(super) batches: VecDeque<Remembered>,
}

pub(super) fn encode(standing: &Standing, producers: &Producers) -> Vec<u8> {
    let mut out = vec![0; HEADER_BYTES];
    put_varint(&mut out, standing.next.value());
    put_varint(&mut out, standing.last_arrival.as_micros());
    put_varint(&mut out, standing.watermark.value());
    put_varint(&mut out, standing.jump.issued.value());
    put_varint(&mut out, standing.jump.resumed_at.value());
    for (id, next, batches) in producers.saved() {
        put_varint(&mut out, id.value());
        put_varint(&mut out, next);
        put_varint(&mut out, batches.len() as u64);
        let (mut base, mut arrival) = (0, 0);
        for batch in batches {
            put_varint(&mut out, batch.base.value() - base);
            put_varint(&mut out, batch.arrival.as_micros() - arrival);
            put_varint(&mut out, u64::from(batch.count));
            out.put_u32_le(batch.checksum);
            (base, arrival) = (batch.base.value(), batch.arrival.as_micros());
        }
    }
    for (id, rest) in producers.saved_resting() {
        put_varint(&mut out, id.value());
        put_varint(&mut out, rest.next);
        put_varint(&mut out, 0);
        put_varint(&mut out, rest.last.value());
    }
    if let Some((header, state)) = out.split_first_chunk_mut::<HEADER_BYTES>() {
        let checksum = checksum(VERSION, state);
        let mut fields = header.as_mut_slice();
        fields.put_u32_le(checksum);
        fields.put_u8(VERSION);
    }
    out
}

/// What a state says: of the shard, of producers with batches, of resting ones.
pub(super) type Saved = (Standing, Vec<SavedProducer>, Vec<(ProducerId, Rest)>);

pub(super) fn decode(mut bytes: &[u8]) -> Result<Saved, &'static str> {
    if bytes.len() < HEADER_BYTES {
        return Err("the saved state ends early");
    }
    let expected = bytes.get_u32_le();
    let version = bytes.get_u8();
    if checksum(version, bytes) != expected {
        return Err("the saved state's checksum differs");
    }
    if !(1..=VERSION).contains(&version) {
        return Err("the saved state is of an unknown version");
    }
    decode_fields(version, bytes).ok_or("the saved state is malformed")
}

fn decode_fields(version: u8, mut bytes: &[u8]) -> Option<Saved> {
    let bytes = &mut bytes;
    let standing = Standing {
        next: SequenceNumber::new(get_varint(bytes)?),
        last_arrival: Timestamp::from_micros(get_varint(bytes)?),
        watermark: ProducerId::new(get_varint(bytes)?),
        jump: Jump {
            issued: ProducerId::new(get_varint(bytes)?),
            resumed_at: SequenceNumber::new(get_varint(bytes)?),
        },
    };
    let (mut producers, mut resting) = (Vec::new(), Vec::new());
    while !bytes.is_empty() {
        let id = ProducerId::new(get_varint(bytes)?);
        let next = get_varint(bytes)?;
        let count = usize::try_from(get_varint(bytes)?).ok()?;
        if version > 1 && count == 0 {
            let last = SequenceNumber::new(get_varint(bytes)?);
            let possible = id != ProducerId::NONE && next > 0 && last < standing.next;
            resting.push(possible.then_some((id, Rest { next, last }))?);
        } else {
            producers.push(decode_producer(id, next, count, bytes, &standing)?);
        }
    }
    Some((standing, producers, resting))
}

fn decode_producer(
    id: ProducerId,
    next: u64,
    count: usize,
    bytes: &mut &[u8],
    standing: &Standing,
) -> Option<SavedProducer> {
    let possible = id != ProducerId::NONE && count > 0 && count as u64 <= next;
    if !possible || count > bytes.len() / BATCH_BYTES_MIN {
        return None;
    }
    let mut batches = VecDeque::with_capacity(count);
    let (mut end, mut base, mut arrival) = (0, 0_u64, 0_u64);
    for _ in 0..count {
        base = base.checked_add(get_varint(bytes)?)?;
        arrival = arrival.checked_add(get_varint(bytes)?)?;
        let records = u32::try_from(get_varint(bytes)?).ok()?;
        let checksum = (bytes.len() >= 4).then(|| bytes.get_u32_le())?;
        if base < end || records == 0 {
            return None;
        }
        end = base.checked_add(u64::from(records))?;
        batches.push_back(Remembered {
            base: SequenceNumber::new(base),
            arrival: Timestamp::from_micros(arrival),
            checksum,
            count: records,
        });
    }
    (end <= standing.next.value()).then_some(SavedProducer { id, next, batches })
}

/// Over everything behind itself.
fn checksum(version: u8, state: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[version]);
    hasher.update(state);
    hasher.finalize()
}
