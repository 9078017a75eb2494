//! All of one group, byte by byte: what snapshots are made of.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::{Buf, BufMut};
use flumen_record::{ShardIndex, StreamId};

use super::SNAPSHOT_GROUP_BEGAN;
use super::fields::{
    SHORT, checkpoint, flag, generation, group, member, number, number_u32, put, put_checkpoint,
    put_process, put_shard, put_start, put_text, sequence_number, shard, start, text, time,
};
use crate::group::state::{Group, Member, Shard};
use crate::group::{Expired, GroupNumber, InstanceId, MemberNumber, ReadFrom};
use crate::varint::put_varint;

/// All of one group.
#[derive(Debug, Clone)]
pub struct GroupImage {
    pub(in crate::group) number: GroupNumber,
    pub(in crate::group) group: Group,
}

/// Appends all of a group: [`GroupChange::SnapshotGroup`] without a copy of it.
pub(in crate::group) fn encode_group(number: GroupNumber, group: &Group, out: &mut Vec<u8>) {
    put(
        out,
        SNAPSHOT_GROUP_BEGAN,
        &[number.value(), group.stream.value().into()],
    );
    put_text(out, group.name.as_str());
    out.put_u64_le(group.created.as_micros());
    put_start(out, group.start);
    put_shard(out, group.first_new_shard);
    put_varint(out, group.generation.value());
    put_varint(out, group.next_member.value());
    put_varint(out, group.forced);
    put_varint(out, group.members.len() as u64);
    for (number, member) in &group.members {
        put_varint(out, number.value());
        put_process(out, &member.name, member.instance, member.session_timeout);
        out.put_u64_le(member.joined.as_micros());
    }
    put_varint(out, group.shards.len() as u64);
    for (index, shard) in &group.shards {
        put_shard(out, *index);
        put_varint(out, shard.generation.value());
        // Members are numbered from 1.
        put_varint(out, shard.holder.map_or(0, MemberNumber::value));
        out.put_u64_le(shard.since.as_micros());
        out.put_u8(u8::from(shard.checkpoint.is_some()));
        if let Some((checkpoint, at)) = shard.checkpoint {
            put_checkpoint(out, checkpoint);
            out.put_u64_le(at.as_micros());
        }
        out.put_u8(u8::from(shard.position.is_some()));
        if let Some(position) = shard.position {
            put_varint(out, position.value());
        }
        put_expired(out, shard.expired);
    }
    put_expired(out, group.expired);
    put_varint(out, group.gone_children.into());
}

fn put_expired(out: &mut Vec<u8>, expired: Expired) {
    put_varint(out, expired.records);
    out.put_u8(u8::from(expired.is_exact));
}

fn expired(bytes: &mut &[u8]) -> Result<Expired, &'static str> {
    Ok(Expired {
        records: number(bytes)?,
        is_exact: flag(bytes)?,
    })
}

/// Takes one from the front of a record. One from before it was written down where groups begin
/// (not `is_begun`) says nothing of what expired.
pub(super) fn image(bytes: &mut &[u8], is_begun: bool) -> Result<GroupImage, &'static str> {
    let own_number = group(bytes)?;
    let mut group = Group {
        stream: StreamId::new(number_u32(bytes)?),
        name: text(bytes)?,
        created: time(bytes)?,
        start: start(bytes)?,
        first_new_shard: shard(bytes)?,
        generation: generation(bytes)?,
        next_member: member(bytes)?,
        forced: number(bytes)?,
        members: BTreeMap::new(),
        names: BTreeMap::new(),
        shards: BTreeMap::new(),
        expired: Expired::UNKNOWN,
        gone_children: 0,
        ready: BTreeSet::new(),
        check_at: None,
    };
    for _ in 0..number(bytes)? {
        let (of_member, member) = read_member(bytes)?;
        group.names.insert(member.name.clone(), of_member);
        let ascends = group
            .members
            .last_key_value()
            .is_none_or(|(last, _)| *last < of_member);
        group.members.insert(of_member, member);
        if !ascends || of_member >= group.next_member || group.names.len() != group.members.len() {
            return Err("its members are out of order");
        }
    }
    for _ in 0..number(bytes)? {
        let (index, shard) = read_shard(bytes, &group, is_begun)?;
        let ascends = group
            .shards
            .last_key_value()
            .is_none_or(|(last, _)| *last < index);
        let held_by_nobody = shard
            .holder
            .is_some_and(|holder| !group.members.contains_key(&holder));
        if !ascends || held_by_nobody || shard.generation > group.generation {
            return Err("its shards contradict it");
        }
        group.shards.insert(index, shard);
    }
    if is_begun {
        group.expired = expired(bytes)?;
        group.gone_children = number_u32(bytes)?;
    }
    Ok(GroupImage {
        number: own_number,
        group,
    })
}

fn read_member(bytes: &mut &[u8]) -> Result<(MemberNumber, Member), &'static str> {
    Ok((
        member(bytes)?,
        Member {
            name: text(bytes)?,
            instance: InstanceId::new(bytes.try_get_u64_le().map_err(|_| SHORT)?),
            session_timeout: Duration::from_millis(number(bytes)?),
            joined: time(bytes)?,
            session: None,
            heard: Duration::ZERO,
        },
    ))
}

fn read_shard(
    bytes: &mut &[u8],
    group: &Group,
    is_begun: bool,
) -> Result<(ShardIndex, Shard), &'static str> {
    let index = shard(bytes)?;
    let generation = generation(bytes)?;
    let holder = Some(number(bytes)?)
        .filter(|holder| *holder > 0)
        .map(MemberNumber::new);
    let since = time(bytes)?;
    let checkpoint = if flag(bytes)? {
        Some((checkpoint(bytes)?, time(bytes)?))
    } else {
        None
    };
    let (position, expired) = match (is_begun, checkpoint, group.position(index).from) {
        (true, ..) if flag(bytes)? => (Some(sequence_number(bytes)?), expired(bytes)?),
        (true, ..) => (None, expired(bytes)?),
        (false, Some((checkpoint, _)), _) => (Some(checkpoint.next()), Expired::UNKNOWN),
        (false, None, ReadFrom::At(position)) => (Some(position), Expired::NONE),
        (false, None, _) => (None, Expired::UNKNOWN),
    };
    let shard = Shard {
        generation,
        holder,
        since,
        checkpoint,
        ..Shard::at(position, expired)
    };
    shard.watch.set(shard.current());
    Ok((index, shard))
}
