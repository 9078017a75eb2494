//! Durable changes of groups, byte by byte (`docs/format.md`, "Group records").

mod fields;
mod image;

use std::time::Duration;

use bytes::{Buf, BufMut};
use flumen_record::{SequenceNumber, ShardIndex, StreamId};

use self::fields::{
    SHORT, begins, checkpoint, flag, generation, group, member, number, number_u32, put,
    put_begins, put_checkpoint, put_process, put_shard, put_start, put_text, sequence_number,
    shard, start, text,
};
use self::image::image;
pub(super) use self::image::{GroupImage, encode_group};
use super::{
    Checkpoint, Generation, GroupName, GroupNumber, InitialPosition, InstanceId, MemberName,
    MemberNumber,
};
use crate::varint::put_varint;

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
        /// Where it begins in each shard that was there, by index. `None`: of a group from before that
        /// was written down.
        begins: Option<Vec<(ShardIndex, SequenceNumber)>>,
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
    /// It was found where the group begins in a shard, of a group from before that was written down.
    Began {
        /// In which group.
        group: GroupNumber,
        /// Of which shard.
        shard: ShardIndex,
        /// Where.
        position: SequenceNumber,
    },
    /// Records expired, or were lost, before the group had processed them: it goes on behind them.
    ExpiredUnread {
        /// In which group.
        group: GroupNumber,
        /// Of which shard.
        shard: ShardIndex,
        /// The first that is not among them.
        to: SequenceNumber,
        /// How many.
        records: u64,
    },
    /// A shard is no more, and what the group knew of it is forgotten.
    ShardExpired {
        /// In which group.
        group: GroupNumber,
        /// Which.
        shard: ShardIndex,
        /// Records of it that the group had not processed, if that is known.
        unread: Option<u64>,
    },
    /// Shards that came after the group are no more, and nobody was told when they went.
    ShardsMissed {
        /// In which group.
        group: GroupNumber,
        /// How many.
        shards: u32,
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
const GROUP_BEGAN: u8 = 12;
const BEGAN: u8 = 13;
const EXPIRED_UNREAD: u8 = 14;
const SHARD_EXPIRED_UNREAD: u8 = 15;
const SHARDS_MISSED: u8 = 16;
const SNAPSHOT_GROUP_BEGAN: u8 = 17;

impl GroupChange {
    /// The group it is inside of; `None`: it is about all of them, or a whole group.
    pub(super) fn group(&self) -> Option<GroupNumber> {
        match self {
            Self::MemberJoined { group, .. }
            | Self::MemberLeft { group, .. }
            | Self::Granted { group, .. }
            | Self::Freed { group, .. }
            | Self::Checkpointed { group, .. }
            | Self::Began { group, .. }
            | Self::ExpiredUnread { group, .. }
            | Self::ShardExpired { group, .. }
            | Self::ShardsMissed { group, .. } => Some(*group),
            _ => None,
        }
    }

    /// About how many bytes it takes.
    pub(super) fn weight(&self) -> u64 {
        let more = match self {
            Self::GroupCreated { begins, .. } => {
                160 + 12 * begins.as_ref().map_or(0, |begins| begins.len() as u64)
            }
            Self::MemberJoined { .. } => 160,
            _ => 0,
        };
        16 + more
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
                begins,
            } => {
                let kind = if begins.is_some() {
                    GROUP_BEGAN
                } else {
                    GROUP_CREATED
                };
                put(out, kind, &[group.value(), stream.value().into()]);
                put_text(out, name.as_str());
                put_start(out, *start);
                put_shard(out, *first_new_shard);
                if let Some(begins) = begins {
                    put_begins(out, begins);
                }
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
            Self::SnapshotBegin {
                last_group: last,
                generation_floor: floor,
            } => put(out, SNAPSHOT_BEGIN, &[last.value(), floor.value()]),
            Self::SnapshotGroup(image) => encode_group(image.number, &image.group, out),
            Self::SnapshotEnd { groups } => put(out, SNAPSHOT_END, &[*groups]),
            _ => self.encode_position(out),
        }
    }

    /// Of one that is about where a group stands.
    fn encode_position(&self, out: &mut Vec<u8>) {
        match self {
            Self::Checkpointed {
                group,
                shard,
                checkpoint,
            } => {
                put(out, CHECKPOINTED, &[group.value(), shard.value().into()]);
                put_checkpoint(out, *checkpoint);
            }
            Self::Began {
                group,
                shard,
                position,
            } => {
                put(out, BEGAN, &[group.value(), shard.value().into()]);
                put_varint(out, position.value());
            }
            Self::ExpiredUnread {
                group,
                shard,
                to,
                records,
            } => {
                put(out, EXPIRED_UNREAD, &[group.value(), shard.value().into()]);
                put_varint(out, to.value());
                put_varint(out, *records);
            }
            Self::ShardExpired {
                group,
                shard,
                unread: None,
            } => put(out, SHARD_EXPIRED, &[group.value(), shard.value().into()]),
            Self::ShardExpired {
                group,
                shard,
                unread: Some(unread),
            } => {
                let fields = [group.value(), shard.value().into(), *unread];
                put(out, SHARD_EXPIRED_UNREAD, &fields);
            }
            Self::ShardsMissed { group, shards } => {
                put(out, SHARDS_MISSED, &[group.value(), (*shards).into()]);
            }
            _ => unreachable!("BUG: a change that is about no position"),
        }
    }

    /// Takes one from the front of a record; the error says what is wrong with it.
    pub fn decode(bytes: &mut &[u8]) -> Result<Self, &'static str> {
        let kind = bytes.try_get_u8().map_err(|_| SHORT)?;
        Ok(match kind {
            GROUP_CREATED | GROUP_BEGAN => Self::GroupCreated {
                group: group(bytes)?,
                stream: StreamId::new(number_u32(bytes)?),
                name: text(bytes)?,
                start: start(bytes)?,
                first_new_shard: shard(bytes)?,
                begins: match kind {
                    GROUP_BEGAN => Some(begins(bytes)?),
                    _ => None,
                },
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
            SNAPSHOT_BEGIN => Self::SnapshotBegin {
                last_group: group(bytes)?,
                generation_floor: generation(bytes)?,
            },
            SNAPSHOT_GROUP => Self::SnapshotGroup(Box::new(image(bytes, false)?)),
            SNAPSHOT_GROUP_BEGAN => Self::SnapshotGroup(Box::new(image(bytes, true)?)),
            SNAPSHOT_END => Self::SnapshotEnd {
                groups: number(bytes)?,
            },
            _ => return Self::decode_position(kind, bytes),
        })
    }

    /// One that is about where a group stands.
    fn decode_position(kind: u8, bytes: &mut &[u8]) -> Result<Self, &'static str> {
        Ok(match kind {
            CHECKPOINTED => Self::Checkpointed {
                group: group(bytes)?,
                shard: shard(bytes)?,
                checkpoint: checkpoint(bytes)?,
            },
            BEGAN => Self::Began {
                group: group(bytes)?,
                shard: shard(bytes)?,
                position: sequence_number(bytes)?,
            },
            EXPIRED_UNREAD => Self::ExpiredUnread {
                group: group(bytes)?,
                shard: shard(bytes)?,
                to: sequence_number(bytes)?,
                records: number(bytes)?,
            },
            SHARD_EXPIRED | SHARD_EXPIRED_UNREAD => Self::ShardExpired {
                group: group(bytes)?,
                shard: shard(bytes)?,
                unread: match kind {
                    SHARD_EXPIRED_UNREAD => Some(number(bytes)?),
                    _ => None,
                },
            },
            SHARDS_MISSED => Self::ShardsMissed {
                group: group(bytes)?,
                shards: number_u32(bytes)?,
            },
            _ => return Err("its kind is not known; it was written by a newer Flumen"),
        })
    }
}
