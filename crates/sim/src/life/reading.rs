//! Reading, and what it must answer.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use flumen_broker::{Broker, Error, ReadBudget, ReadReply, StartPosition};
use flumen_record::{Frame, Frames, SequenceNumber, ShardIndex, StreamId, StreamName, Timestamp};
use flumen_world::lock;

use crate::life::model::{Checked, Model, Place, RecordId};

/// A number that stands for a gap: fewer are records that are missing.
const JUMP: u64 = 1 << 32;

/// The model, as all parts of a life share it.
pub(crate) type Shared = Arc<Mutex<Model>>;

/// Which shard of which life of a stream.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) stream: StreamName,
    pub(crate) id: StreamId,
    pub(crate) shard: u32,
}

/// What was known when a read began.
#[derive(Debug)]
struct Before {
    horizon: u64,
    /// The number after the last record that was known to be readable.
    end: u64,
}

/// What a read brought.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) start: u64,
    pub(crate) next: u64,
    pub(crate) records: Vec<(u64, RecordId)>,
    pub(crate) end_of_shard: Option<Vec<u32>>,
}

/// The record that some data belongs to.
pub(crate) fn record_of(data: &[u8]) -> Option<RecordId> {
    std::str::from_utf8(data.get(6..18)?).ok()?.parse().ok()
}

/// Reads once and compares. `None`: refused, as it may be.
pub(crate) async fn read(
    broker: &Broker,
    shared: &Shared,
    target: &Target,
    start: StartPosition,
    budget: ReadBudget,
    wait: Duration,
) -> Option<Seen> {
    let before = {
        let model = lock(shared);
        let shard = model.streams.get(&target.id)?.shards.get(&target.shard);
        Before {
            horizon: shard.map_or(0, |shard| shard.horizon),
            end: model.readable_end(target),
        }
    };
    let index = ShardIndex::new(target.shard);
    let answer = broker
        .read(&target.stream, index, start, budget, wait)
        .await;
    let mut model = lock(shared);
    model.count("reads");
    let was = model.is_current(target);
    match answer {
        Ok(reply) => {
            if !was {
                // Another stream has the name by now; it is compared when it is read by itself.
                return None;
            }
            let compared = compare(&mut model, target, start, &before, &reply);
            let told = |why: String| format!("read of {target:?} from {start:?}: {why}");
            match compared {
                Ok(seen) => {
                    model.say(|| {
                        let (stream, shard) = (&target.stream, target.shard);
                        let records = seen.records.len();
                        format!(
                            "read {stream}/{shard} {start:?} -> {records} up to {}",
                            seen.next
                        )
                    });
                    Some(seen)
                }
                Err(why) => {
                    model.check(Err(told(why)));
                    None
                }
            }
        }
        Err(error) => {
            let checked = refusal(&mut model, target, start, &before, &error);
            model.say(|| {
                format!(
                    "read {}/{} {start:?} -> {error}",
                    target.stream, target.shard
                )
            });
            model.check(checked);
            None
        }
    }
}

impl Model {
    /// Whether a target still means what it did.
    pub(crate) fn is_current(&self, target: &Target) -> bool {
        self.names.get(&target.stream) == Some(&target.id)
    }

    /// The number after the last record that a reader must find now.
    fn readable_end(&self, target: &Target) -> u64 {
        let shard = self.streams.get(&target.id);
        let shard = shard.and_then(|stream| stream.shards.get(&target.shard));
        let Some(shard) = shard else { return 0 };
        let mut newest = shard.numbers.iter().rev();
        let last = newest.find(|(_, (id, _))| self.record(*id).is_some_and(|it| it.must_exist()));
        last.map_or(0, |(number, _)| number + 1)
    }
}

/// Compares a reply with what is known.
fn compare(
    model: &mut Model,
    target: &Target,
    start: StartPosition,
    before: &Before,
    reply: &ReadReply,
) -> Result<Seen, String> {
    let (from, next) = (reply.start.value(), reply.next.value());
    let horizon = reply.trim_horizon.value();
    model.see_horizon(target.id, target.shard, horizon)?;
    let found = frames(model, target, reply)?;
    check_start(model, target, start, before, reply)?;
    check_complete(model, target, (from.max(horizon), next), &found)?;
    let must = model.readable_end(target).min(before.end);
    if found.is_empty() && next < must && next <= from && from >= horizon {
        return Err(format!(
            "it stops at {next}, and records up to {must} are there"
        ));
    }
    let end = reply.durable_end.value();
    if end < must {
        return Err(format!(
            "the end is {end}, and records up to {must} are there"
        ));
    }
    if next > end.max(from) && reply.end_of_shard.is_none() {
        return Err(format!("it goes on at {next}, beyond the end {end}"));
    }
    let children = reply.end_of_shard.as_ref();
    let end_of_shard = children.map(|them| them.iter().map(|it| it.value()).collect());
    Ok(Seen {
        start: from,
        next: if reply.end_of_shard.is_some() {
            end
        } else {
            next
        },
        records: found,
        end_of_shard,
    })
}

/// The records of a reply, each noted where it lies.
fn frames(
    model: &mut Model,
    target: &Target,
    reply: &ReadReply,
) -> Result<Vec<(u64, RecordId)>, String> {
    let mut found = Vec::new();
    let mut last: Option<u64> = None;
    for piece in &reply.pieces {
        for frame in Frames::new(piece.clone()) {
            let frame = frame.map_err(|error| format!("a frame is broken: {error}"))?;
            let header = frame.header;
            let (base, count) = (header.base.value(), u64::from(frame.batch.header().count));
            if header.shard.stream() != target.id || header.shard.index().value() != target.shard {
                return Err(format!("a frame of {:?}", header.shard));
            }
            if last.is_some_and(|last| base < last) {
                return Err(format!("number {base} comes after {last:?}"));
            }
            last = Some(base + count);
            see_frame(model, target, &frame, reply.start, &mut found)?;
        }
    }
    Ok(found)
}

fn see_frame(
    model: &mut Model,
    target: &Target,
    frame: &Frame,
    start: SequenceNumber,
    found: &mut Vec<(u64, RecordId)>,
) -> Checked {
    let base = frame.header.base.value();
    for (number, record) in (base..).zip(frame.batch.records()) {
        let record = record.map_err(|error| format!("number {number} is broken: {error}"))?;
        let id = record_of(&record.data).ok_or_else(|| format!("number {number} has no data"))?;
        let place = Place {
            shard: target.shard,
            number,
            arrival: frame.header.arrival,
        };
        model.seen(target.id, id, place)?;
        if number >= start.value() {
            found.push((number, id));
        }
    }
    Ok(())
}

/// Whether it begins where it has to.
fn check_start(
    model: &Model,
    target: &Target,
    start: StartPosition,
    before: &Before,
    reply: &ReadReply,
) -> Checked {
    let from = reply.start.value();
    let horizon = reply.trim_horizon.value();
    let wrong = |why: &str| Err(format!("it begins at {from}, {why}"));
    match start {
        StartPosition::TrimHorizon if from < before.horizon => wrong("before the horizon"),
        StartPosition::TrimHorizon if from > horizon => wrong("after the horizon"),
        StartPosition::Latest if from < before.end.min(model.readable_end(target)) => {
            wrong("before what was acknowledged already")
        }
        StartPosition::Latest if from > reply.durable_end.value() => wrong("beyond the end"),
        StartPosition::At(at) if at.value() != from => wrong("not where it was asked"),
        StartPosition::After(at) if at.value() + 1 != from => wrong("not where it was asked"),
        StartPosition::AtTimestamp(time) => check_time(model, target, time, from, horizon),
        _ => Ok(()),
    }
}

/// The first record that arrived at or after `time`, of those that are kept.
fn check_time(model: &Model, target: &Target, time: Timestamp, from: u64, horizon: u64) -> Checked {
    let shard = model.streams.get(&target.id);
    let Some(shard) = shard.and_then(|stream| stream.shards.get(&target.shard)) else {
        return Ok(());
    };
    let is_there = |id: &RecordId| model.record(*id).is_some_and(|it| it.must_exist());
    let mut skipped = shard.numbers.range(horizon..from.max(horizon));
    if let Some((number, (id, at))) = skipped.find(|(_, (id, at))| *at >= time && is_there(id)) {
        return Err(format!(
            "it begins at {from} and skips record {id}, number {number}, which arrived at {at} and not before {time}"
        ));
    }
    if from <= horizon {
        return Ok(());
    }
    match shard
        .numbers
        .range(from..)
        .find(|(_, (id, _))| is_there(id))
    {
        Some((number, (id, at))) if *at < time => Err(format!(
            "it begins at {from} with record {id}, number {number}, which arrived at {at}, before {time}"
        )),
        _ => Ok(()),
    }
}

/// Whether everything between two numbers was among what came, and every gap is one that can be.
fn check_complete(
    model: &Model,
    target: &Target,
    (from, next): (u64, u64),
    found: &[(u64, RecordId)],
) -> Checked {
    let Some(stream) = model.streams.get(&target.id) else {
        return Ok(());
    };
    let Some(shard) = stream.shards.get(&target.shard) else {
        return Ok(());
    };
    let mut expected = shard.numbers.range(from..next.max(from));
    let missing = expected.find(|(number, (id, _))| {
        model.record(*id).is_some_and(|it| it.must_exist())
            && found.binary_search_by_key(number, |(at, _)| at).is_err()
    });
    if let Some((number, (id, at))) = missing {
        let horizon = shard.horizon;
        return Err(format!(
            "record {id}, number {number}, of {at} is missing between {from} and {next}, horizon {horizon}"
        ));
    }
    let mut cursor = from;
    let ends = found.iter().map(|(number, _)| *number).chain([next]);
    for number in ends {
        let gap = number.saturating_sub(cursor);
        if gap > 0 && !(stream.may_jump && gap >= JUMP) {
            return Err(format!("there is nothing from {cursor} up to {number}"));
        }
        cursor = cursor.max(number + 1);
    }
    Ok(())
}

/// Whether it may be refused so.
fn refusal(
    model: &mut Model,
    target: &Target,
    start: StartPosition,
    before: &Before,
    error: &Error,
) -> Checked {
    let wrong = || {
        Err(format!(
            "read of {target:?} from {start:?} is refused: {error:?}"
        ))
    };
    match error {
        Error::StreamNotFound { .. } | Error::ShardNotFound { .. } => {
            let gone = !model.is_current(target) || model.may_be_gone(target);
            if gone { Ok(()) } else { wrong() }
        }
        Error::Trimmed { asked, horizon } => {
            if asked >= horizon {
                return wrong();
            }
            model.see_horizon(target.id, target.shard, horizon.value())
        }
        Error::BeyondEnd { asked, end } => {
            if asked.value() < before.end || end.value() < before.end {
                return wrong();
            }
            Ok(())
        }
        Error::DataLoss { from, to, .. } => {
            if !model.is_damaged || from >= to {
                return wrong();
            }
            model.see_loss(target, from.value(), to.value())
        }
        Error::Draining => Ok(()),
        Error::LogRefused { .. } if model.lost_log => Ok(()),
        _ if model.is_failing || model.is_dying => Ok(()),
        _ => wrong(),
    }
}
