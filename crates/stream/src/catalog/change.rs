//! Catalog records: one change each. Layout: `docs/format.md`, "Catalog records".

use std::time::Duration;

use bytes::{Buf, BufMut, TryGetError};
use flumen_log::{LogKey, Stay, StayId, Stays, StaysFault, Voucher};
use flumen_record::{
    Durability, HashKey, HashRange, SequenceNumber, ShardEpoch, ShardId, ShardIndex, StreamId,
    Timestamp,
};

use crate::AutoScale;

use super::stream_info::{ShardInfo, ShardState, StreamInfo, StreamSettings};
use super::vouched::Vouched;

/// Version 1 has no automatic scaling, version 2 no vouchers, and no epochs and ends of stays.
const VERSION: u8 = 3;

/// One change of the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// A stream was created or changed: all that is known of it now.
    Stream(StreamInfo),
    /// A stream was deleted.
    Deleted(StreamId),
    /// Producer ids up to this one may have been issued.
    Producers { reserved: u64 },
    /// A snapshot of the whole catalog begins.
    SnapshotBegin { reserved: u64, next_stream: u32 },
    /// One stream of it.
    SnapshotStream(StreamInfo),
    /// It is complete, with this many streams: what came before it is not needed any more.
    SnapshotEnd { streams: u32 },
    /// Logs that hold nothing of these shards any more, as versions 1 and 2 said it.
    PlacementsDropped(Vec<(ShardId, LogKey)>),
    /// Stays of shards up to which nothing is kept any more.
    StaysDropped(Vec<StayId>),
    /// How far other logs have got.
    Vouch(Vec<(LogKey, Vouched)>),
    /// The same, of all logs, as part of a snapshot.
    SnapshotVouch(Vec<(LogKey, Vouched)>),
}

impl Change {
    /// Whether it changes what there is: no part of a snapshot, and nothing about other logs.
    pub(super) fn is_of_streams(&self) -> bool {
        match self {
            Self::Stream(_)
            | Self::Deleted(_)
            | Self::Producers { .. }
            | Self::PlacementsDropped(_)
            | Self::StaysDropped(_) => true,
            Self::SnapshotBegin { .. }
            | Self::SnapshotStream(_)
            | Self::SnapshotEnd { .. }
            | Self::Vouch(_)
            | Self::SnapshotVouch(_) => false,
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        match self {
            Self::Stream(stream) => {
                out.put_u8(1);
                encode_stream(stream, &mut out);
            }
            Self::Deleted(stream) => {
                out.put_u8(2);
                out.put_u32_le(stream.value());
            }
            Self::Producers { reserved } => {
                out.put_u8(3);
                out.put_u64_le(*reserved);
            }
            Self::SnapshotBegin {
                reserved,
                next_stream,
            } => {
                out.put_u8(4);
                out.put_u64_le(*reserved);
                out.put_u32_le(*next_stream);
            }
            Self::SnapshotStream(stream) => {
                out.put_u8(5);
                encode_stream(stream, &mut out);
            }
            Self::SnapshotEnd { streams } => {
                out.put_u8(6);
                out.put_u32_le(*streams);
            }
            Self::PlacementsDropped(dropped) => {
                out.put_u8(7);
                out.put_u32_le(count(dropped.len()));
                for (shard, log) in dropped {
                    out.put_u64_le(shard.value());
                    encode_log(*log, &mut out);
                }
            }
            Self::StaysDropped(dropped) => {
                out.put_u8(9);
                out.put_u32_le(count(dropped.len()));
                for stay in dropped {
                    out.put_u64_le(stay.shard.value());
                    out.put_u32_le(stay.epoch.value());
                }
            }
            Self::Vouch(vouched) => encode_vouched(0, vouched, &mut out),
            Self::SnapshotVouch(vouched) => encode_vouched(1, vouched, &mut out),
        }
        out
    }

    /// Reads one; the error says what is wrong with it.
    pub(super) fn decode(mut bytes: &[u8]) -> Result<Self, &'static str> {
        let change = read(&mut bytes).map_err(|fault| match fault {
            Fault::Short => "it ends too soon",
            Fault::Unknown(what) => what,
        })?;
        if bytes.is_empty() {
            Ok(change)
        } else {
            Err("it goes on after its end")
        }
    }
}

enum Fault {
    Short,
    Unknown(&'static str),
}

impl From<TryGetError> for Fault {
    fn from(_: TryGetError) -> Self {
        Self::Short
    }
}

fn read(bytes: &mut &[u8]) -> Result<Change, Fault> {
    let version = bytes.try_get_u8()?;
    if !(1..=VERSION).contains(&version) {
        return Err(Fault::Unknown(
            "its version is not known; it was written by a newer Flumen",
        ));
    }
    Ok(match bytes.try_get_u8()? {
        1 => Change::Stream(read_stream(version, bytes)?),
        2 => Change::Deleted(StreamId::new(bytes.try_get_u32_le()?)),
        3 => Change::Producers {
            reserved: bytes.try_get_u64_le()?,
        },
        4 => Change::SnapshotBegin {
            reserved: bytes.try_get_u64_le()?,
            next_stream: bytes.try_get_u32_le()?,
        },
        5 => Change::SnapshotStream(read_stream(version, bytes)?),
        6 => Change::SnapshotEnd {
            streams: bytes.try_get_u32_le()?,
        },
        7 => Change::PlacementsDropped(read_dropped(bytes)?),
        9 => Change::StaysDropped(read_dropped_stays(bytes)?),
        8 => match bytes.try_get_u8()? {
            0 => Change::Vouch(read_vouched(bytes)?),
            1 => Change::SnapshotVouch(read_vouched(bytes)?),
            _ => return Err(Fault::Unknown("what it vouches for is not known")),
        },
        _ => {
            return Err(Fault::Unknown(
                "its kind is not known; it was written by a newer Flumen",
            ));
        }
    })
}

fn encode_vouched(of_snapshot: u8, vouched: &[(LogKey, Vouched)], out: &mut Vec<u8>) {
    out.put_u8(8);
    out.put_u8(of_snapshot);
    out.put_u32_le(count(vouched.len()));
    for (log, vouched) in vouched {
        encode_log(*log, out);
        let (state, voucher) = match vouched {
            Vouched::Reached(voucher) => (1, *voucher),
            Vouched::LossAccepted => (2, Voucher::default()),
        };
        out.put_u8(state);
        out.put_u32_le(voucher.epoch);
        out.put_u64_le(voucher.round);
    }
}

fn encode_stream(stream: &StreamInfo, out: &mut Vec<u8>) {
    encode_stream_head(stream, out);
    for shard in &stream.shards {
        encode_shard(shard, out);
    }
}

fn encode_stream_head(stream: &StreamInfo, out: &mut Vec<u8>) {
    out.put_u32_le(stream.id.value());
    let name = stream.name.as_str().as_bytes();
    out.put_u8(u8::try_from(name.len()).expect("BUG: a name has at most 128 bytes"));
    out.put_slice(name);
    encode_durability(stream.settings.durability, out);
    out.put_u64_le(u64::try_from(stream.settings.retention.as_micros()).unwrap_or(u64::MAX));
    out.put_u64_le(stream.settings.retention_bytes.unwrap_or(0));
    out.put_u64_le(stream.settings.max_record_bytes);
    encode_auto_scale(stream.settings.auto_scale.as_ref(), out);
    out.put_u64_le(stream.created.as_micros());
    out.put_u64_le(stream.version);
    out.put_u32_le(count(stream.shards.len()));
}

fn encode_auto_scale(auto_scale: Option<&AutoScale>, out: &mut Vec<u8>) {
    let Some(auto_scale) = auto_scale else {
        return out.put_u8(0);
    };
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    out.put_u8(1);
    out.put_u32_le(auto_scale.shards_min);
    out.put_u32_le(auto_scale.shards_max);
    out.put_u64_le(auto_scale.shard_bytes_per_s.unwrap_or(0));
    out.put_u64_le(auto_scale.shard_records_per_s.unwrap_or(0));
    out.put_u32_le(auto_scale.split_above_percent);
    out.put_u64_le(micros(auto_scale.split_after));
    out.put_u32_le(auto_scale.merge_below_percent);
    out.put_u64_le(micros(auto_scale.merge_after));
    out.put_u64_le(micros(auto_scale.cool_down));
}

fn encode_shard(shard: &ShardInfo, out: &mut Vec<u8>) {
    encode_shard_head(shard, out);
    out.put_u32_le(count(shard.stays.len()));
    for stay in shard.stays.iter() {
        encode_log(stay.log(), out);
        out.put_u32_le(stay.epoch().value());
        out.put_u64_le(stay.from().value());
        match stay.to() {
            None => out.put_u8(0),
            Some(to) => {
                out.put_u8(1);
                out.put_u64_le(to.value());
            }
        }
    }
}

fn encode_shard_head(shard: &ShardInfo, out: &mut Vec<u8>) {
    out.put_u32_le(shard.id.index().value());
    out.put_u128_le(shard.range.start.value());
    out.put_u128_le(shard.range.end.value());
    match shard.state {
        ShardState::Open => out.put_u8(0),
        ShardState::Closed { end, at } => {
            out.put_u8(1);
            out.put_u64_le(end.value());
            out.put_u64_le(at.as_micros());
        }
    }
    out.put_u32_le(count(shard.parents.len()));
    for parent in &shard.parents {
        out.put_u32_le(parent.value());
    }
}

fn encode_log(log: LogKey, out: &mut Vec<u8>) {
    encode_durability(log.durability, out);
    out.put_u32_le(log.class_hours);
    out.put_u32_le(log.lane);
}

fn encode_durability(durability: Durability, out: &mut Vec<u8>) {
    out.put_u8(match durability {
        Durability::Memory => 1,
        Durability::Disk => 2,
    });
}

fn count(length: usize) -> u32 {
    u32::try_from(length).expect("BUG: shards, parents and stays are few")
}

fn read_stream(codec: u8, bytes: &mut &[u8]) -> Result<StreamInfo, Fault> {
    let id = StreamId::new(bytes.try_get_u32_le()?);
    let length = usize::from(bytes.try_get_u8()?);
    let (name, rest) = bytes.split_at_checked(length).ok_or(Fault::Short)?;
    *bytes = rest;
    let name = std::str::from_utf8(name)
        .ok()
        .and_then(|name| name.parse().ok());
    let name = name.ok_or(Fault::Unknown("its stream name is not one"))?;
    let settings = StreamSettings {
        durability: read_durability(bytes)?,
        retention: Duration::from_micros(bytes.try_get_u64_le()?),
        retention_bytes: Some(bytes.try_get_u64_le()?).filter(|bound| *bound > 0),
        max_record_bytes: bytes.try_get_u64_le()?,
        auto_scale: match codec {
            1 => None,
            _ => read_auto_scale(bytes)?,
        },
    };
    let created = Timestamp::from_micros(bytes.try_get_u64_le()?);
    let version = bytes.try_get_u64_le()?;
    let shards = bytes.try_get_u32_le()?;
    let shards = (0..shards)
        .map(|_| read_shard(codec, id, bytes))
        .collect::<Result<_, _>>()?;
    Ok(StreamInfo {
        id,
        name,
        settings,
        created,
        version,
        shards,
        routes: Vec::new(),
    }
    .arrange())
}

fn read_auto_scale(bytes: &mut &[u8]) -> Result<Option<AutoScale>, Fault> {
    match bytes.try_get_u8()? {
        0 => Ok(None),
        1 => Ok(Some(AutoScale {
            shards_min: bytes.try_get_u32_le()?,
            shards_max: bytes.try_get_u32_le()?,
            shard_bytes_per_s: Some(bytes.try_get_u64_le()?).filter(|rate| *rate > 0),
            shard_records_per_s: Some(bytes.try_get_u64_le()?).filter(|rate| *rate > 0),
            split_above_percent: bytes.try_get_u32_le()?,
            split_after: Duration::from_micros(bytes.try_get_u64_le()?),
            merge_below_percent: bytes.try_get_u32_le()?,
            merge_after: Duration::from_micros(bytes.try_get_u64_le()?),
            cool_down: Duration::from_micros(bytes.try_get_u64_le()?),
        })),
        _ => Err(Fault::Unknown("its automatic scaling is not known")),
    }
}

fn read_shard(version: u8, stream: StreamId, bytes: &mut &[u8]) -> Result<ShardInfo, Fault> {
    let index = ShardIndex::new(bytes.try_get_u32_le()?);
    let range = HashRange {
        start: HashKey::new(bytes.try_get_u128_le()?),
        end: HashKey::new(bytes.try_get_u128_le()?),
    };
    let state = match bytes.try_get_u8()? {
        0 => ShardState::Open,
        1 => ShardState::Closed {
            end: SequenceNumber::new(bytes.try_get_u64_le()?),
            at: Timestamp::from_micros(bytes.try_get_u64_le()?),
        },
        _ => {
            return Err(Fault::Unknown(
                "a shard in it is in a state that is not known",
            ));
        }
    };
    let parents = bytes.try_get_u32_le()?;
    let parents = (0..parents)
        .map(|_| Ok(ShardIndex::new(bytes.try_get_u32_le()?)))
        .collect::<Result<_, Fault>>()?;
    let stays = match version {
        1 | 2 => read_placements(bytes)?,
        _ => read_stays(bytes)?,
    };
    let stays = Stays::check(stays).map_err(|fault| Fault::Unknown(what_is_wrong(fault)))?;
    Ok(ShardInfo {
        id: ShardId::new(stream, index),
        range,
        state,
        parents,
        stays,
    })
}

/// What a shard lay in, as versions 1 and 2 say it: each log from a number on. Epochs count them.
fn read_placements(bytes: &mut &[u8]) -> Result<Vec<Stay>, Fault> {
    let count = bytes.try_get_u32_le()?;
    let placements = (0..count)
        .map(|_| {
            Ok((
                read_log(bytes)?,
                SequenceNumber::new(bytes.try_get_u64_le()?),
            ))
        })
        .collect::<Result<Vec<_>, Fault>>()?;
    let ends = placements.iter().skip(1).map(|(_, from)| Some(*from));
    let ranges = placements.iter().zip(ends.chain([None]));
    let numbered = (0..).map(ShardEpoch::new).zip(ranges);
    let stay = |(epoch, ((log, from), to)): (_, (&(LogKey, SequenceNumber), _))| {
        Stay::new(*log, epoch, *from, to)
    };
    Ok(numbered.map(stay).collect())
}

fn read_stays(bytes: &mut &[u8]) -> Result<Vec<Stay>, Fault> {
    let count = bytes.try_get_u32_le()?;
    (0..count)
        .map(|_| {
            let log = read_log(bytes)?;
            let epoch = ShardEpoch::new(bytes.try_get_u32_le()?);
            let from = SequenceNumber::new(bytes.try_get_u64_le()?);
            let to = match bytes.try_get_u8()? {
                0 => None,
                1 => Some(SequenceNumber::new(bytes.try_get_u64_le()?)),
                _ => return Err(Fault::Unknown("the end of a stay in it is not known")),
            };
            Ok(Stay::new(log, epoch, from, to))
        })
        .collect()
}

fn what_is_wrong(fault: StaysFault) -> &'static str {
    match fault {
        StaysFault::Empty => "a shard in it lies in no log",
        StaysFault::NotGapless => "numbers of a shard in it lie in no log, or in two",
        StaysFault::Backwards => "a stay of a shard in it ends before it begins",
        StaysFault::EpochNotRising => "the epochs of a shard in it do not rise",
        StaysFault::NotOnlyLastOpen => "a shard in it is open in another log than its last one",
    }
}

fn read_dropped_stays(bytes: &mut &[u8]) -> Result<Vec<StayId>, Fault> {
    let dropped = bytes.try_get_u32_le()?;
    (0..dropped)
        .map(|_| {
            Ok(StayId {
                shard: ShardId::from_value(bytes.try_get_u64_le()?),
                epoch: ShardEpoch::new(bytes.try_get_u32_le()?),
            })
        })
        .collect()
}

fn read_dropped(bytes: &mut &[u8]) -> Result<Vec<(ShardId, LogKey)>, Fault> {
    let dropped = bytes.try_get_u32_le()?;
    (0..dropped)
        .map(|_| {
            let shard = ShardId::from_value(bytes.try_get_u64_le()?);
            Ok((shard, read_log(bytes)?))
        })
        .collect()
}

fn read_vouched(bytes: &mut &[u8]) -> Result<Vec<(LogKey, Vouched)>, Fault> {
    let vouched = bytes.try_get_u32_le()?;
    (0..vouched)
        .map(|_| {
            let log = read_log(bytes)?;
            let state = bytes.try_get_u8()?;
            let voucher = Voucher {
                epoch: bytes.try_get_u32_le()?,
                round: bytes.try_get_u64_le()?,
            };
            match state {
                1 => Ok((log, Vouched::Reached(voucher))),
                2 => Ok((log, Vouched::LossAccepted)),
                _ => Err(Fault::Unknown("what it says of a log is not known")),
            }
        })
        .collect()
}

fn read_log(bytes: &mut &[u8]) -> Result<LogKey, Fault> {
    Ok(LogKey {
        durability: read_durability(bytes)?,
        class_hours: bytes.try_get_u32_le()?,
        lane: bytes.try_get_u32_le()?,
    })
}

fn read_durability(bytes: &mut &[u8]) -> Result<Durability, Fault> {
    match bytes.try_get_u8()? {
        1 => Ok(Durability::Memory),
        2 => Ok(Durability::Disk),
        _ => Err(Fault::Unknown("its durability level is not known")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream() -> StreamInfo {
        let log = LogKey {
            durability: Durability::Memory,
            class_hours: 24,
            lane: 1,
        };
        let shard = |index: u32, state: ShardState| ShardInfo {
            id: ShardId::new(StreamId::new(9), ShardIndex::new(index)),
            range: HashRange {
                start: HashKey::new(5),
                end: HashKey::MAX,
            },
            state,
            parents: vec![ShardIndex::new(3), ShardIndex::new(4)],
            stays: stays(&[(log, 3, 77, Some(80)), (LogKey::GROUPS, 5, 80, None)]),
        };
        let closed = ShardState::Closed {
            end: SequenceNumber::new(8),
            at: Timestamp::from_micros(6),
        };
        StreamInfo {
            id: StreamId::new(9),
            name: "device.readings_1".parse().unwrap(),
            settings: StreamSettings {
                retention_bytes: Some(5),
                ..StreamSettings::default()
            },
            created: Timestamp::from_micros(1),
            version: 4,
            shards: vec![shard(0, closed), shard(1, ShardState::Open)],
            routes: Vec::new(),
        }
        .arrange()
    }

    fn scaled() -> StreamInfo {
        let mut stream = stream();
        stream.settings.auto_scale = Some(AutoScale {
            shard_records_per_s: Some(9),
            ..AutoScale::default()
        });
        stream
    }

    /// As versions 1 and 2 wrote a stream: where shards lay was a log from each of these numbers on.
    fn encode_placements(version: u8, stream: &StreamInfo, placed: &[(LogKey, u64)]) -> Vec<u8> {
        let mut out = vec![version, 1];
        encode_stream_head(stream, &mut out);
        if version == 1 {
            // Version, kind, number, name, durability, retention, its bytes, record bytes.
            let name = stream.name.as_str().len();
            assert_eq!(out.remove(2 + 4 + 1 + name + 1 + 8 + 8 + 8), 0);
        }
        for shard in &stream.shards {
            encode_shard_head(shard, &mut out);
            out.put_u32_le(count(placed.len()));
            for (log, from) in placed {
                encode_log(*log, &mut out);
                out.put_u64_le(*from);
            }
        }
        out
    }

    fn stays(all: &[(LogKey, u32, u64, Option<u64>)]) -> Stays {
        let stay = |&(log, epoch, from, to): &(LogKey, u32, u64, Option<u64>)| {
            let (from, to) = (SequenceNumber::new(from), to.map(SequenceNumber::new));
            Stay::new(log, ShardEpoch::new(epoch), from, to)
        };
        Stays::check(all.iter().map(stay).collect()).unwrap()
    }

    /// Written before there was automatic scaling, and before stays had epochs and ends.
    #[test]
    fn versions_before_are_read() {
        let log = |lane| LogKey {
            durability: Durability::Disk,
            class_hours: 24,
            lane,
        };
        let (a, b) = (log(0), log(1));
        for (version, mut expected) in [(1, stream()), (2, stream()), (2, scaled())] {
            let mut check = |placed: &[(LogKey, u64)], found: Stays| {
                for shard in &mut expected.shards {
                    shard.stays = found.clone();
                }
                let bytes = encode_placements(version, &expected, placed);
                assert_eq!(Change::decode(&bytes), Ok(Change::Stream(expected.clone())));
            };
            check(&[(a, 7)], stays(&[(a, 0, 7, None)]));
            let back = stays(&[(a, 0, 0, Some(5)), (b, 1, 5, Some(6)), (a, 2, 6, None)]);
            check(&[(a, 0), (b, 5), (a, 6)], back);
        }
        for version in [1, 2] {
            let mut bytes = Change::Deleted(StreamId::new(5)).encode();
            bytes[0] = version;
            assert_eq!(
                Change::decode(&bytes),
                Ok(Change::Deleted(StreamId::new(5)))
            );
        }
        let backwards = encode_placements(2, &stream(), &[(a, 7), (b, 5)]);
        assert!(Change::decode(&backwards).is_err());
        assert!(Change::decode(&encode_placements(2, &stream(), &[])).is_err());
    }

    #[test]
    fn changes_read_back_as_written_and_nothing_shorter_or_longer_is_one() {
        let all = [
            Change::Stream(stream()),
            Change::Stream(scaled()),
            Change::Deleted(StreamId::new(5)),
            Change::Producers { reserved: 1024 },
            Change::SnapshotBegin {
                reserved: 7,
                next_stream: 8,
            },
            Change::SnapshotStream(stream()),
            Change::SnapshotEnd { streams: 1 },
            Change::PlacementsDropped(vec![
                (stream().shards[0].id, LogKey::CATALOG),
                (
                    stream().shards[1].id,
                    stream().shards[1].stays.first().log(),
                ),
            ]),
            Change::StaysDropped(vec![StayId {
                shard: stream().shards[0].id,
                epoch: ShardEpoch::new(3),
            }]),
            Change::Vouch(vec![
                (
                    LogKey::GROUPS,
                    Vouched::Reached(Voucher { epoch: 3, round: 9 }),
                ),
                (LogKey::DELIVERIES, Vouched::LossAccepted),
            ]),
            Change::SnapshotVouch(vec![(LogKey::GROUPS, Vouched::LossAccepted)]),
        ];
        for change in all {
            let mut bytes = change.encode();
            assert_eq!(Change::decode(&bytes).as_ref(), Ok(&change));
            for length in 0..bytes.len() {
                assert!(
                    Change::decode(&bytes[..length]).is_err(),
                    "{change:?} cut at {length}"
                );
            }
            bytes.push(0);
            assert!(
                Change::decode(&bytes).is_err(),
                "{change:?} and a byte more"
            );
        }
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let check = |at: usize, value: u8| {
            let mut bytes = Change::Deleted(StreamId::new(5)).encode();
            bytes[at] = value;
            assert!(Change::decode(&bytes).is_err());
        };
        check(0, 0);
        check(0, VERSION + 1);
        check(1, 99);
    }
}
