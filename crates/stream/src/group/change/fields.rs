//! What changes are made of: numbers, names, times.

use std::time::Duration;

use bytes::{Buf, BufMut};
use flumen_record::{SequenceNumber, ShardIndex, Timestamp};

use crate::group::{
    Checkpoint, Generation, GroupNumber, InitialPosition, InstanceId, MemberName, MemberNumber,
};
use crate::varint::{get_varint, put_varint};

pub(super) fn put(out: &mut Vec<u8>, kind: u8, fields: &[u64]) {
    out.put_u8(kind);
    for field in fields {
        put_varint(out, *field);
    }
}

pub(super) fn put_shard(out: &mut Vec<u8>, shard: ShardIndex) {
    put_varint(out, shard.value().into());
}

pub(super) fn put_checkpoint(out: &mut Vec<u8>, checkpoint: Checkpoint) {
    put_varint(out, checkpoint.next().value());
    put_varint(out, checkpoint.parts());
}

pub(super) fn put_begins(out: &mut Vec<u8>, begins: &[(ShardIndex, SequenceNumber)]) {
    put_varint(out, begins.len() as u64);
    for (index, position) in begins {
        put_shard(out, *index);
        put_varint(out, position.value());
    }
}

pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    out.put_u8(u8::try_from(text.len()).expect("BUG: a name has at most 128 bytes"));
    out.put_slice(text.as_bytes());
}

pub(super) fn put_process(
    out: &mut Vec<u8>,
    name: &MemberName,
    instance: InstanceId,
    session_timeout: Duration,
) {
    put_text(out, name.as_str());
    out.put_u64_le(instance.value());
    let millis = u64::try_from(session_timeout.as_millis()).unwrap_or(u64::MAX);
    put_varint(out, millis);
}

pub(super) fn put_start(out: &mut Vec<u8>, start: InitialPosition) {
    match start {
        InitialPosition::TrimHorizon => out.put_u8(0),
        InitialPosition::AtTimestamp(time) => {
            out.put_u8(1);
            out.put_u64_le(time.as_micros());
        }
        InitialPosition::Latest => unreachable!("BUG: a group begins at a time, not at an end"),
    }
}

pub(super) const SHORT: &str = "it ends too soon";

pub(super) fn number(bytes: &mut &[u8]) -> Result<u64, &'static str> {
    get_varint(bytes).ok_or("a number in it is not one, or it ends too soon")
}

pub(super) fn number_u32(bytes: &mut &[u8]) -> Result<u32, &'static str> {
    u32::try_from(number(bytes)?).map_err(|_| "a number in it is too large")
}

pub(super) fn group(bytes: &mut &[u8]) -> Result<GroupNumber, &'static str> {
    number(bytes).map(GroupNumber::new)
}

pub(super) fn member(bytes: &mut &[u8]) -> Result<MemberNumber, &'static str> {
    match number(bytes)? {
        0 => Err("a member in it has no number"),
        number => Ok(MemberNumber::new(number)),
    }
}

pub(super) fn shard(bytes: &mut &[u8]) -> Result<ShardIndex, &'static str> {
    number_u32(bytes).map(ShardIndex::new)
}

pub(super) fn generation(bytes: &mut &[u8]) -> Result<Generation, &'static str> {
    number(bytes).map(Generation::new)
}

pub(super) fn sequence_number(bytes: &mut &[u8]) -> Result<SequenceNumber, &'static str> {
    number(bytes).map(SequenceNumber::new)
}

pub(super) fn begins(bytes: &mut &[u8]) -> Result<Vec<(ShardIndex, SequenceNumber)>, &'static str> {
    let mut begins: Vec<(ShardIndex, SequenceNumber)> = Vec::new();
    for _ in 0..number(bytes)? {
        let index = shard(bytes)?;
        if begins.last().is_some_and(|(last, _)| *last >= index) {
            return Err("its shards are out of order");
        }
        begins.push((index, sequence_number(bytes)?));
    }
    Ok(begins)
}

pub(super) fn checkpoint(bytes: &mut &[u8]) -> Result<Checkpoint, &'static str> {
    let next = SequenceNumber::new(number(bytes)?);
    Ok(Checkpoint::from_parts(next, number(bytes)?))
}

pub(super) fn time(bytes: &mut &[u8]) -> Result<Timestamp, &'static str> {
    let micros = bytes.try_get_u64_le().map_err(|_| SHORT)?;
    Ok(Timestamp::from_micros(micros))
}

pub(super) fn flag(bytes: &mut &[u8]) -> Result<bool, &'static str> {
    match bytes.try_get_u8().map_err(|_| SHORT)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err("a flag in it is neither set nor not"),
    }
}

pub(super) fn start(bytes: &mut &[u8]) -> Result<InitialPosition, &'static str> {
    match bytes.try_get_u8().map_err(|_| SHORT)? {
        0 => Ok(InitialPosition::TrimHorizon),
        1 => Ok(InitialPosition::AtTimestamp(time(bytes)?)),
        _ => Err("its initial position is not known"),
    }
}

pub(super) fn text<T: std::str::FromStr>(bytes: &mut &[u8]) -> Result<T, &'static str> {
    let length = usize::from(bytes.try_get_u8().map_err(|_| SHORT)?);
    let (text, rest) = bytes.split_at_checked(length).ok_or(SHORT)?;
    *bytes = rest;
    let text = std::str::from_utf8(text).ok();
    text.and_then(|text| text.parse().ok())
        .ok_or("a name in it is not one")
}
