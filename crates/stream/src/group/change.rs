//! Durable changes of groups, byte by byte (`docs/format.md`, "Group records").

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Buf, BufMut};
use flumen_record::{SequenceNumber, ShardIndex, StreamId, Timestamp};

use super::state::{Group, Member, Shard};
use super::{
    Checkpoint, Generation, GroupName, GroupNumber, InitialPosition, InstanceId, MemberName,
    MemberNumber,
};
use crate::varint::{get_varint, put_varint};

/// One durable change.
#[derive(Debug, Clone)]
pub enum GroupChange {
    /// A group came into being.
    GroupCreated {
        /// Its number.
        group: GroupNumber,
        /// Its stream.
        stream: StreamId,
        /// Its name.
        name: GroupName,
        /// Where it begins in the shards that were there.
        start: InitialPosition,
        /// Shards from this one on came later.
        first_new_shard: ShardIndex,
    },
    /// A group was deleted.
    GroupDeleted {
        /// Which.
        group: GroupNumber,
        /// The highest generation it granted.
        generation: Generation,
    },
    /// A member joined, or came back with another session timeout.
    MemberJoined {
        /// Of which group.
        group: GroupNumber,
        /// Its number.
        member: MemberNumber,
        /// Its name.
        name: MemberName,
        /// Its process.
        instance: InstanceId,
        /// How long it may be silent.
        session_timeout: Duration,
    },
    /// A member is gone, and its leases with it.
    MemberLeft {
        /// Of which group.
        group: GroupNumber,
        /// Which.
        member: MemberNumber,
    },
    /// A lease was granted, whoever held the shard before.
    Granted {
        /// In which group.
        group: GroupNumber,
        /// Of which shard.
        shard: ShardIndex,
        /// Under which generation, higher than any before.
        generation: Generation,
        /// To whom.
        member: MemberNumber,
    },
    /// A lease ended.
    Freed {
        /// In which group.
        group: GroupNumber,
        /// Of which shard.
        shard: ShardIndex,
        /// Its member did not release it by the deadline.
        forced: bool,
    },
    /// A checkpoint was set.
    Checkpointed {
        /// In which group.
        group: GroupNumber,
        /// Of which shard.
        shard: ShardIndex,
        /// How far.
        checkpoint: Checkpoint,
    },
    /// A shard is no more, and what the group knew of it is forgotten.
    ShardExpired {
        /// In which group.
        group: GroupNumber,
        /// Which.
        shard: ShardIndex,
    },
    /// A snapshot begins. Other changes may lie between its parts.
    SnapshotBegin {
        /// The highest number a group has had.
        last_group: GroupNumber,
        /// The highest generation of groups that are gone.
        generation_floor: Generation,
    },
    /// One group of it as it is now.
    SnapshotGroup(Box<GroupImage>),
    /// It is complete, and so many groups there are: what came before its beginning is not needed
    /// any more.
    SnapshotEnd {
        /// How many.
        groups: u64,
    },
}

/// All of one group.
#[derive(Debug, Clone)]
pub struct GroupImage {
    pub(super) number: GroupNumber,
    pub(super) group: Group,
}

const GROUP_CREATED: u8 = 1;
const GROUP_DELETED: u8 = 2;
const MEMBER_JOINED: u8 = 3;
const MEMBER_LEFT: u8 = 4;
const GRANTED: u8 = 5;
const FREED: u8 = 6;
const CHECKPOINTED: u8 = 7;
const SHARD_EXPIRED: u8 = 8;
const SNAPSHOT_BEGIN: u8 = 9;
const SNAPSHOT_GROUP: u8 = 10;
const SNAPSHOT_END: u8 = 11;

impl GroupChange {
    /// The group it is inside of; `None`: it is about all of them, or a whole group.
    pub(super) fn group(&self) -> Option<GroupNumber> {
        match self {
            Self::MemberJoined { group, .. }
            | Self::MemberLeft { group, .. }
            | Self::Granted { group, .. }
            | Self::Freed { group, .. }
            | Self::Checkpointed { group, .. }
            | Self::ShardExpired { group, .. } => Some(*group),
            _ => None,
        }
    }

    /// Appends it to a record.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::GroupCreated {
                group,
                stream,
                name,
                start,
                first_new_shard,
            } => {
                put(out, GROUP_CREATED, &[group.value(), stream.value().into()]);
                put_text(out, name.as_str());
                put_start(out, *start);
                put_shard(out, *first_new_shard);
            }
            Self::GroupDeleted { group, generation } => {
                put(out, GROUP_DELETED, &[group.value(), generation.value()]);
            }
            Self::MemberJoined {
                group,
                member,
                name,
                instance,
                session_timeout,
            } => {
                put(out, MEMBER_JOINED, &[group.value(), member.value()]);
                put_process(out, name, *instance, *session_timeout);
            }
            Self::MemberLeft { group, member } => {
                put(out, MEMBER_LEFT, &[group.value(), member.value()]);
            }
            Self::Granted {
                group,
                shard,
                generation,
                member,
            } => {
                put(out, GRANTED, &[group.value(), shard.value().into()]);
                put_varint(out, generation.value());
                put_varint(out, member.value());
            }
            Self::Freed {
                group,
                shard,
                forced,
            } => {
                put(out, FREED, &[group.value(), shard.value().into()]);
                out.put_u8(u8::from(*forced));
            }
            Self::Checkpointed {
                group,
                shard,
                checkpoint,
            } => {
                put(out, CHECKPOINTED, &[group.value(), shard.value().into()]);
                put_checkpoint(out, *checkpoint);
            }
            Self::ShardExpired { group, shard } => {
                put(out, SHARD_EXPIRED, &[group.value(), shard.value().into()]);
            }
            Self::SnapshotBegin {
                last_group: last,
                generation_floor: floor,
            } => put(out, SNAPSHOT_BEGIN, &[last.value(), floor.value()]),
            Self::SnapshotGroup(image) => encode_group(image.number, &image.group, out),
            Self::SnapshotEnd { groups } => put(out, SNAPSHOT_END, &[*groups]),
        }
    }

    /// Takes one from the front of a record; the error says what is wrong with it.
    pub fn decode(bytes: &mut &[u8]) -> Result<Self, &'static str> {
        let kind = bytes.try_get_u8().map_err(|_| SHORT)?;
        Ok(match kind {
            GROUP_CREATED => Self::GroupCreated {
                group: group(bytes)?,
                stream: StreamId::new(number_u32(bytes)?),
                name: text(bytes)?,
                start: start(bytes)?,
                first_new_shard: shard(bytes)?,
            },
            GROUP_DELETED => Self::GroupDeleted {
                group: group(bytes)?,
                generation: generation(bytes)?,
            },
            MEMBER_JOINED => Self::MemberJoined {
                group: group(bytes)?,
                member: member(bytes)?,
                name: text(bytes)?,
                instance: InstanceId::new(bytes.try_get_u64_le().map_err(|_| SHORT)?),
                session_timeout: Duration::from_millis(number(bytes)?),
            },
            MEMBER_LEFT => Self::MemberLeft {
                group: group(bytes)?,
                member: member(bytes)?,
            },
            GRANTED => Self::Granted {
                group: group(bytes)?,
                shard: shard(bytes)?,
                generation: generation(bytes)?,
                member: member(bytes)?,
            },
            FREED => Self::Freed {
                group: group(bytes)?,
                shard: shard(bytes)?,
                forced: flag(bytes)?,
            },
            CHECKPOINTED => Self::Checkpointed {
                group: group(bytes)?,
                shard: shard(bytes)?,
                checkpoint: checkpoint(bytes)?,
            },
            SHARD_EXPIRED => Self::ShardExpired {
                group: group(bytes)?,
                shard: shard(bytes)?,
            },
            SNAPSHOT_BEGIN => Self::SnapshotBegin {
                last_group: group(bytes)?,
                generation_floor: generation(bytes)?,
            },
            SNAPSHOT_GROUP => Self::SnapshotGroup(Box::new(image(bytes)?)),
            SNAPSHOT_END => Self::SnapshotEnd {
                groups: number(bytes)?,
            },
            _ => return Err("its kind is not known; it was written by a newer Flumen"),
        })
    }
}

fn put(out: &mut Vec<u8>, kind: u8, fields: &[u64]) {
    out.put_u8(kind);
    for field in fields {
        put_varint(out, *field);
    }
}

fn put_shard(out: &mut Vec<u8>, shard: ShardIndex) {
    put_varint(out, shard.value().into());
}

fn put_checkpoint(out: &mut Vec<u8>, checkpoint: Checkpoint) {
    put_varint(out, checkpoint.next().value());
    put_varint(out, checkpoint.parts());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.put_u8(u8::try_from(text.len()).expect("BUG: a name has at most 128 bytes"));
    out.put_slice(text.as_bytes());
}

fn put_process(
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

fn put_start(out: &mut Vec<u8>, start: InitialPosition) {
    match start {
        InitialPosition::TrimHorizon => out.put_u8(0),
        InitialPosition::AtTimestamp(time) => {
            out.put_u8(1);
            out.put_u64_le(time.as_micros());
        }
        InitialPosition::Latest => unreachable!("BUG: a group begins at a time, not at an end"),
    }
}

/// Appends all of a group: [`GroupChange::SnapshotGroup`] without a copy of it.
pub(super) fn encode_group(number: GroupNumber, group: &Group, out: &mut Vec<u8>) {
    put(
        out,
        SNAPSHOT_GROUP,
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
    }
}

const SHORT: &str = "it ends too soon";

fn number(bytes: &mut &[u8]) -> Result<u64, &'static str> {
    get_varint(bytes).ok_or("a number in it is not one, or it ends too soon")
}

fn number_u32(bytes: &mut &[u8]) -> Result<u32, &'static str> {
    u32::try_from(number(bytes)?).map_err(|_| "a number in it is too large")
}

fn group(bytes: &mut &[u8]) -> Result<GroupNumber, &'static str> {
    number(bytes).map(GroupNumber::new)
}

fn member(bytes: &mut &[u8]) -> Result<MemberNumber, &'static str> {
    match number(bytes)? {
        0 => Err("a member in it has no number"),
        number => Ok(MemberNumber::new(number)),
    }
}

fn shard(bytes: &mut &[u8]) -> Result<ShardIndex, &'static str> {
    number_u32(bytes).map(ShardIndex::new)
}

fn generation(bytes: &mut &[u8]) -> Result<Generation, &'static str> {
    number(bytes).map(Generation::new)
}

fn checkpoint(bytes: &mut &[u8]) -> Result<Checkpoint, &'static str> {
    let next = SequenceNumber::new(number(bytes)?);
    Ok(Checkpoint::from_parts(next, number(bytes)?))
}

fn time(bytes: &mut &[u8]) -> Result<Timestamp, &'static str> {
    let micros = bytes.try_get_u64_le().map_err(|_| SHORT)?;
    Ok(Timestamp::from_micros(micros))
}

fn flag(bytes: &mut &[u8]) -> Result<bool, &'static str> {
    match bytes.try_get_u8().map_err(|_| SHORT)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err("a flag in it is neither set nor not"),
    }
}

fn start(bytes: &mut &[u8]) -> Result<InitialPosition, &'static str> {
    match bytes.try_get_u8().map_err(|_| SHORT)? {
        0 => Ok(InitialPosition::TrimHorizon),
        1 => Ok(InitialPosition::AtTimestamp(time(bytes)?)),
        _ => Err("its initial position is not known"),
    }
}

fn text<T: std::str::FromStr>(bytes: &mut &[u8]) -> Result<T, &'static str> {
    let length = usize::from(bytes.try_get_u8().map_err(|_| SHORT)?);
    let (text, rest) = bytes.split_at_checked(length).ok_or(SHORT)?;
    *bytes = rest;
    let text = std::str::from_utf8(text).ok();
    text.and_then(|text| text.parse().ok())
        .ok_or("a name in it is not one")
}

fn image(bytes: &mut &[u8]) -> Result<GroupImage, &'static str> {
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
        let (index, shard) = read_shard(bytes)?;
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

fn read_shard(bytes: &mut &[u8]) -> Result<(ShardIndex, Shard), &'static str> {
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
    let shard = Shard {
        generation,
        holder,
        since,
        checkpoint,
        ..Shard::default()
    };
    shard.watch.set(shard.current());
    Ok((index, shard))
}
