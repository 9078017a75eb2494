//! Changes of streams, and what describe has to say after them.

use std::collections::BTreeMap;

use flumen_broker::{
    Broker, Error, NewStream, Reshard, ShardDescription, StreamDescription, StreamSettings,
    StreamUpdate,
};
use flumen_record::{HashKey, StreamName};
use flumen_world::lock;

use crate::life::model::{Change, Checked, Model, StreamModel};
use crate::life::reading::Shared;

/// Something to ask of the broker.
#[derive(Debug, Clone)]
pub(crate) enum Asked {
    Create(NewStream),
    Delete(StreamName),
    Update(StreamName, StreamUpdate),
    Reshard(StreamName, Reshard),
    Scale(StreamName, u32),
}

impl Asked {
    fn name(&self) -> &StreamName {
        match self {
            Self::Create(new) => &new.name,
            Self::Delete(name)
            | Self::Update(name, _)
            | Self::Reshard(name, _)
            | Self::Scale(name, _) => name,
        }
    }
}

/// Whether a change of this stream is under way.
pub(crate) fn is_changing(model: &Model, name: &StreamName) -> bool {
    model.creating.contains_key(name) || model.stream(name).is_some_and(|it| it.pending.is_some())
}

/// Asks for what has begun, and compares the answer.
pub(crate) async fn ask(broker: Broker, shared: Shared, asked: Asked) {
    let answer = match &asked {
        Asked::Create(new) => broker.create_stream(new.clone()).await.map(Some),
        Asked::Delete(name) => broker.delete_stream(name).await.map(|()| None),
        Asked::Update(name, update) => broker.update_stream(name, update.clone()).await.map(Some),
        Asked::Reshard(name, step) => broker.reshard(name, *step).await.map(Some),
        Asked::Scale(name, shards) => broker.scale_stream(name, *shards).await.map(Some),
    };
    let mut model = lock(&shared);
    model.say(|| match &answer {
        Ok(_) => format!("done {}", asked.name()),
        Err(error) => format!("refused {}: {error}", asked.name()),
    });
    let checked = end(&mut model, &asked, &answer);
    model.check(checked.map_err(|why| format!("{asked:?}: {why}")));
}

/// Notes what an answer, or none, may lead to.
pub(crate) fn begin(model: &mut Model, asked: &Asked) {
    model.say(|| format!("ask {asked:?}"));
    model.count("changes");
    let name = asked.name().clone();
    if let Asked::Create(new) = asked {
        model.creating.insert(name, new.settings.clone());
        return;
    }
    let id = model.names.get(&name).copied();
    let Some(stream) = id.and_then(|id| model.streams.get_mut(&id)) else {
        return;
    };
    stream.pending = Some(match asked {
        Asked::Create(_) => Change::Create,
        Asked::Delete(_) => Change::Delete,
        Asked::Update(_, update) => Change::Update(Box::new(update.applied_to(&stream.settings))),
        Asked::Reshard(..) | Asked::Scale(..) => Change::Reshard,
    });
    stream.note_settings();
}

fn end(
    model: &mut Model,
    asked: &Asked,
    answer: &Result<Option<StreamDescription>, Error>,
) -> Checked {
    let name = asked.name();
    match answer {
        Ok(described) => {
            model.creating.remove(name);
            if let Asked::Delete(_) = asked {
                model.forget(name);
                return Ok(());
            }
            let id = model.names.get(name).copied();
            if let Some(stream) = id.and_then(|id| model.streams.get_mut(&id))
                && let Some(Change::Update(settings)) = stream.pending.take()
            {
                stream.settings = *settings;
            }
            let Some(described) = described else {
                return Ok(());
            };
            model.see_stream(described)
        }
        Err(error) => refused(model, asked, error),
    }
}

fn refused(model: &mut Model, asked: &Asked, error: &Error) -> Checked {
    let name = asked.name();
    let unknown = matches!(error, Error::OutcomeUnknown | Error::Poisoned);
    let legal = match (asked, error) {
        (Asked::Create(_), Error::StreamExists { .. }) => model.names.contains_key(name),
        // A shard may have been closed, or be too narrow; scaling ends where that happens.
        (
            Asked::Reshard(..) | Asked::Scale(..),
            Error::ShardClosed { .. }
            | Error::ShardNotFound { .. }
            | Error::NotAdjacent { .. }
            | Error::SplitOutside { .. }
            | Error::OutOfBounds { .. },
        ) => true,
        (Asked::Delete(_), Error::StreamInUse { .. }) => true,
        _ => model.allows(error),
    };
    if !unknown {
        model.creating.remove(name);
        let id = model.names.get(name).copied();
        if let Some(stream) = id.and_then(|id| model.streams.get_mut(&id)) {
            // What a change of several steps has done by then stays done: describe tells.
            stream.pending = None;
        }
    }
    if legal {
        Ok(())
    } else {
        Err(format!("refused: {error:?}"))
    }
}

/// What is compared of settings: those that nobody but an operator changes.
fn same(a: &StreamSettings, b: &StreamSettings) -> bool {
    a == b
}

impl Model {
    /// A stream is gone.
    pub(crate) fn forget(&mut self, name: &StreamName) {
        if let Some(id) = self.names.remove(name)
            && let Some(stream) = self.streams.get_mut(&id)
        {
            stream.is_deleted = true;
            stream.pending = None;
        }
    }

    /// What describe says of a stream, compared with what is known.
    pub(crate) fn see_stream(&mut self, described: &StreamDescription) -> Checked {
        let (id, name) = (described.id, &described.name);
        if self.names.get(name).is_some_and(|known| *known != id) {
            return Err(format!("stream {name} has become another: {}", id.value()));
        }
        self.names.insert(name.clone(), id);
        let stream = self.streams.entry(id);
        let stream = stream.or_insert_with(|| StreamModel::new(described));
        if stream.is_deleted {
            return Err(format!("stream {name} is there, though it was deleted"));
        }
        let is_new = match &stream.pending {
            Some(Change::Update(settings)) => same(&described.settings, settings),
            _ => false,
        };
        if !is_new && !same(&described.settings, &stream.settings) {
            return Err(format!(
                "stream {name} has the settings {:?}, expected are {:?}",
                described.settings, stream.settings
            ));
        }
        self.see_shards(described)?;
        self.settle_bytes(id);
        Ok(())
    }

    fn see_shards(&mut self, described: &StreamDescription) -> Checked {
        let (id, name) = (described.id, &described.name);
        check_cover(described)?;
        let there: BTreeMap<u32, &ShardDescription> = {
            let shards = described.shards.iter();
            shards.map(|shard| (shard.index.value(), shard)).collect()
        };
        for (index, shard) in &there {
            self.see_horizon(id, *index, shard.trim_horizon.value())?;
            let Some(stream) = self.streams.get_mut(&id) else {
                return Ok(());
            };
            let known = stream.shard_mut(*index);
            if known.is_dropped {
                return Err(format!(
                    "shard {index} of {name} had expired and is there again"
                ));
            }
            known
                .describe(shard)
                .map_err(|why| format!("{name}: {why}"))?;
            known
                .see_end(*index, shard.durable_end.value())
                .map_err(|why| format!("{name}: {why}"))?;
        }
        let Some(stream) = self.streams.get(&id) else {
            return Ok(());
        };
        let gone: Vec<u32> = {
            let known = stream.shards.iter();
            let gone = known.filter(|(index, it)| !it.is_dropped && !there.contains_key(index));
            gone.map(|(index, _)| *index).collect()
        };
        for index in gone {
            self.see_dropped(described, index)?;
        }
        Ok(())
    }

    /// A shard is not in its stream any more: it was closed, and all of it may be gone.
    fn see_dropped(&mut self, described: &StreamDescription, index: u32) -> Checked {
        let name = &described.name;
        let stream = self.streams.get_mut(&described.id);
        let Some(shard) = stream.map(|stream| stream.shard_mut(index)) else {
            return Ok(());
        };
        let end = match shard.closed_at {
            Some(end) => end,
            // It was closed and expired since it was last looked at.
            None => shard
                .numbers
                .last_key_value()
                .map_or(0, |(last, _)| last + 1),
        };
        shard.is_dropped = true;
        shard.closed_at = Some(end);
        let horizon = end.max(shard.horizon);
        self.see_horizon(described.id, index, horizon)
            .map_err(|why| format!("shard {index} of {name} has left it: {why}"))
    }
}

/// Open shards own every key once.
fn check_cover(described: &StreamDescription) -> Checked {
    let open = described.shards.iter().filter(|shard| shard.open);
    let mut ranges: Vec<_> = open.map(|shard| shard.range).collect();
    ranges.sort();
    let mut next = Some(HashKey::MIN.value());
    for range in &ranges {
        if next != Some(range.start.value()) {
            return Err(format!(
                "shards of {} leave a gap: {ranges:?}",
                described.name
            ));
        }
        next = range.end.value().checked_add(1);
    }
    match next {
        None => Ok(()),
        Some(_) => Err(format!(
            "shards of {} leave the end: {ranges:?}",
            described.name
        )),
    }
}

/// Describes everything, and compares: nothing is under way.
pub(crate) fn look(broker: &Broker, model: &mut Model) -> Checked {
    let (streams, more) = broker.list_streams(None, 1_000);
    if more {
        return Err("there are more streams than were ever created".to_owned());
    }
    let there: BTreeMap<StreamName, &StreamDescription> =
        streams.iter().map(|it| (it.name.clone(), it)).collect();
    for name in model.names.keys().cloned().collect::<Vec<_>>() {
        let id = model.names.get(&name).copied();
        let stream = id.and_then(|id| model.streams.get(&id));
        let may_go = stream.is_some_and(|it| matches!(it.pending, Some(Change::Delete)));
        match there.get(&name) {
            Some(found) if Some(found.id) != id && may_go => model.forget(&name),
            Some(_) => {}
            None if may_go => model.forget(&name),
            None => return Err(format!("stream {name} is not there any more")),
        }
    }
    for (name, described) in there {
        let known = model.names.contains_key(&name);
        if !known && model.creating.remove(&name).is_none() {
            return Err(format!("stream {name} is there, and nobody created it"));
        }
        model.see_stream(described)?;
        if let Some(stream) = model.streams.get_mut(&described.id) {
            // Either it happened or it did not, and from here on that is known.
            stream.settings = described.settings.clone();
            stream.pending = None;
        }
    }
    model.creating.clear();
    Ok(())
}
