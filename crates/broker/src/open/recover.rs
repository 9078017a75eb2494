//! What catalog and logs remember, brought together per shard.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use flumen_log::{BatchMark, Log, LogKey, Recovery, Replay, ShardRecovery, Storage, list_logs};
use flumen_record::{
    Durability, HashRange, ProducerId, SequenceNumber, ShardEpoch, ShardId, Timestamp,
};
use flumen_stream::retention::RETENTION_MIN;
use flumen_stream::{Catalog, Shard, ShardInfo, ShardState, StreamConfig, StreamInfo, Vouched};

use super::losses::{
    FAR_JUMP, Found, JUMP, Jump, first_here, mark_left_behind, not_served, opened,
};
use super::{OpenError, log_config, refusal_of};
use crate::tail::Tail;
use crate::vouching::begin_logs;
use crate::{BrokerConfig, Clock, Error};
use flumen_world::Remembered;

/// Everything there is, before threads are started.
pub(super) struct Recovered {
    pub(super) catalog: Catalog,
    pub(super) logs: Vec<(LogKey, Log)>,
    /// Logs that did not open, and what they are answered with.
    pub(super) refused: BTreeMap<LogKey, Error>,
    pub(super) shards: HashMap<ShardId, RecoveredShard>,
}

/// One shard of the catalog.
pub(super) struct RecoveredShard {
    pub(super) shard: Shard,
    pub(super) tail: Arc<Tail>,
    /// The log that takes its appends.
    pub(super) home: LogKey,
}

/// Opens the catalog and all logs there are. Blocks.
pub(super) fn recover(
    storage: &Arc<dyn Storage>,
    config: &BrokerConfig,
    clock: &Clock,
    remembered: Option<Remembered>,
) -> Result<Recovered, OpenError> {
    // Known better with each log that is open.
    let resume = |written| {
        clock.resume(remembered, written);
        clock.now()
    };
    let now = resume(Timestamp::ZERO);
    let (catalog, recovery) = Catalog::open(Arc::clone(storage), config.stream.clone(), now)?;
    report(LogKey::CATALOG, &recovery);
    let now = resume(recovery.written);
    let mut history = History::of(&catalog, config);
    let (mut logs, found, mut refused) = open_logs(storage, config, &catalog, &mut history, now)?;
    let written = found.values().map(|found| found.written).max();
    let now = resume(written.unwrap_or_default().max(recovery.written));
    let issued = catalog.producers_issued();
    let mut shards = HashMap::new();
    let all = catalog.streams();
    for (stream, info) in
        all.flat_map(|stream| stream.shards.iter().map(move |info| (stream, info)))
    {
        let home = home(info);
        if refused.contains_key(&home) {
            shards.insert(info.id, not_served(info, config));
            continue;
        }
        let young = is_young(stream, info, now);
        mark_left_behind(info, opened(stream, info), &mut logs, &found);
        let since = (young, opened(stream, info));
        let (shard, jump) = bring_together(info, since, &mut history, &found, issued);
        let mut log = logs.iter_mut().find(|(key, _)| *key == home);
        if let (Some((_, log)), Some(jump)) = (&mut log, jump) {
            // Where the shard is, so that readers step over it, or are told.
            log.jump(info.id, jump.from, jump.to, jump.lost);
        }
        let end = match log.and_then(|(_, log)| log.reader().bounds(info.id)) {
            Some(bounds) => bounds.durable_end,
            None => shard.next(),
        };
        let tail = Arc::new(Tail::new(end));
        shards.insert(info.id, RecoveredShard { shard, tail, home });
    }
    forget_unwanted(&catalog, &mut logs, &found);
    refused.extend(begin_logs(&mut logs, &catalog, now));
    Ok(Recovered {
        catalog,
        logs,
        refused,
        shards,
    })
}

type Logs = (
    Vec<(LogKey, Log)>,
    BTreeMap<LogKey, Found>,
    BTreeMap<LogKey, Error>,
);

/// Opens the logs that streams lie in, and those that are left of streams that are gone.
fn open_logs(
    storage: &Arc<dyn Storage>,
    config: &BrokerConfig,
    catalog: &Catalog,
    history: &mut History,
    now: Timestamp,
) -> Result<Logs, OpenError> {
    let placements = catalog
        .streams()
        .flat_map(|s| &s.shards)
        .flat_map(|s| &s.placements);
    let mut keys: BTreeSet<LogKey> = placements.map(|placement| placement.log).collect();
    let there = list_logs(&**storage).map_err(|source| flumen_log::OpenError::Io {
        path: "the data directory".to_owned(),
        source,
    })?;
    keys.extend(there.into_iter().filter(LogKey::holds_records));
    let vouched = catalog.all_vouched().keys().copied();
    keys.extend(vouched.filter(LogKey::holds_records));
    let (mut logs, mut found) = (Vec::new(), BTreeMap::new());
    let mut refused = BTreeMap::new();
    for key in keys {
        let mut replay = Listen { key, history };
        let settings = log_config(&config.log, key);
        let vouched = catalog.vouched(key);
        let voucher = vouched.and_then(Vouched::voucher);
        let storage = Arc::clone(storage);
        let opened = Log::open_vouched(storage, key, settings, now, &mut replay, voucher);
        let (log, recovery) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                let refusal = refusal_of(key, &error).ok_or(error)?;
                refused.insert(key, refusal);
                history.unhear(key);
                continue;
            }
        };
        report(key, &recovery);
        catalog.check_named(recovery.catalog_named)?;
        let (clean, complete) = (recovery.clean, recovery.complete);
        let hidden_until = recovery.hidden_until;
        let shards = recovery
            .shards
            .into_iter()
            .map(|shard| (shard.shard, shard))
            .collect();
        found.insert(
            key,
            Found {
                written: recovery.written,
                clean,
                complete,
                shards,
                hidden_until,
                loss_accepted: vouched == Some(Vouched::LossAccepted),
            },
        );
        logs.push((key, log));
    }
    Ok((logs, found, refused))
}

/// Deleted streams, and shards that moved away and have expired where they were.
fn forget_unwanted(catalog: &Catalog, logs: &mut [(LogKey, Log)], found: &BTreeMap<LogKey, Found>) {
    let shards = catalog.streams().flat_map(|stream| &stream.shards);
    let wanted: HashSet<(LogKey, ShardId)> = shards
        .flat_map(|info| {
            info.placements
                .iter()
                .map(|placement| (placement.log, info.id))
        })
        .collect();
    for (key, log) in logs {
        let held = found
            .get(key)
            .map(|found| found.shards.keys())
            .into_iter()
            .flatten();
        held.filter(|id| !wanted.contains(&(*key, **id)))
            .for_each(|id| log.forget(*id));
    }
}

/// The log that takes a shard's appends.
pub(super) fn home(info: &ShardInfo) -> LogKey {
    info.placements
        .last()
        .expect("BUG: a shard without a placement")
        .log
}

/// Whether nothing of a shard can have expired yet, so that a log which knows nothing of it never kept
/// anything of it.
fn is_young(stream: &StreamInfo, shard: &ShardInfo, now: Timestamp) -> bool {
    let stayed = matches!(&shard.placements[..], [only] if only.from == SequenceNumber::ZERO);
    stayed
        && stream.settings.retention_bytes.is_none()
        && opened(stream, shard).is_some_and(|at| now.since(at) < RETENTION_MIN)
}

/// Ends a shard's recovery with what the logs it lies in remember, oldest first.
fn bring_together(
    info: &ShardInfo,
    (young, opened): (bool, Option<Timestamp>),
    history: &mut History,
    found: &BTreeMap<LogKey, Found>,
    issued: ProducerId,
) -> (Shard, Option<Jump>) {
    let mut building = history.take(info);
    let mut newest: Option<ShardRecovery> = None;
    let mut complete = !building.lost;
    for placement in &info.placements {
        let log = found.get(&placement.log);
        complete &= log.is_some_and(|log| log.complete);
        let here = log.and_then(|log| log.shards.get(&info.id)).copied();
        newest = match (here, newest) {
            (Some(here), Some(before)) => Some(ShardRecovery {
                next: here.next.max(placement.from),
                epoch: here.epoch.max(before.epoch),
                last_arrival: here.last_arrival.max(before.last_arrival),
                ..here
            }),
            (Some(here), None) => Some(here),
            // Nothing was written there yet: it goes on where the change said.
            (None, Some(before)) => Some(ShardRecovery {
                next: placement.from,
                jumped: None,
                ..before
            }),
            (None, None) => None,
        };
    }
    let home = home(info);
    let log = found.get(&home);
    let lost = log.is_some_and(|log| log.may_have_lost(info, opened));
    if let ShardState::Closed { end, .. } = info.state {
        let from = newest.map_or_else(|| first_here(info), |newest| newest.next);
        let jump = (lost && from < end).then_some(Jump {
            from,
            to: end,
            lost,
        });
        // A log that knows nothing of an old one has expired all of it.
        let nothing_kept = end == SequenceNumber::ZERO || young;
        let complete = complete && (newest.is_some() || building.told || nothing_kept) && !lost;
        return (closed(building, newest, end, complete, issued), jump);
    }
    let held = log.is_some_and(|log| log.shards.contains_key(&info.id));
    let clean = log.is_none_or(|log| log.clean);
    let moved_at = first_here(info);
    // Whatever was acknowledged there may be gone without a trace.
    let gone = !held && !clean && home.durability == Durability::Memory;
    if lost || gone {
        let before = newest.unwrap_or_else(|| untouched(info.id, moved_at));
        let far = log.is_some_and(|log| log.loss_accepted);
        let to = before.next.plus(if far { FAR_JUMP } else { JUMP });
        let jump = Jump {
            from: before.next,
            to,
            lost,
        };
        let recovery = ShardRecovery {
            next: to,
            jumped: Some(to),
            ..before
        };
        // Of an old shard it may be that all has expired, producers included. Of a young one only
        // what a power cut took can be missing, as of any other shard that jumps.
        let complete = complete && young && !lost;
        building.shard.recovered(&recovery, complete, issued);
        return (building.shard, Some(jump));
    }
    if let Some(newest) = newest {
        building.shard.recovered(&newest, complete, issued);
    } else if building.told || moved_at > SequenceNumber::ZERO {
        // It moved here, nothing was written since, and where it was all has expired.
        let next = moved_at.max(building.shard.next());
        let complete = complete && building.told;
        building
            .shard
            .recovered(&untouched(info.id, next), complete, issued);
    }
    (building.shard, None)
}

/// A closed shard. Everything it held was on disk before it was closed, so that it ends where the
/// catalog says, also where its log jumps because later numbers of others may be lost.
fn closed(
    mut building: Building,
    newest: Option<ShardRecovery>,
    end: SequenceNumber,
    complete: bool,
    issued: ProducerId,
) -> Shard {
    let recovery = ShardRecovery {
        next: end,
        jumped: None,
        ..newest.unwrap_or_else(|| untouched(building.shard.id(), end))
    };
    building.shard.recovered(&recovery, complete, issued);
    building.shard.close();
    building.shard
}

fn untouched(shard: ShardId, from: SequenceNumber) -> ShardRecovery {
    ShardRecovery {
        shard,
        trim_horizon: from,
        next: from,
        epoch: ShardEpoch::new(0),
        last_arrival: Timestamp::ZERO,
        jumped: None,
    }
}

/// The shards of the catalog while logs tell about them.
struct History {
    building: HashMap<ShardId, Building>,
    /// What logs told of shards that lie in more than one, to be heard in the right order.
    told: HashMap<(LogKey, ShardId), Vec<Told>>,
    config: StreamConfig,
}

/// One shard while logs tell about it.
struct Building {
    shard: Shard,
    /// Its saved state was not usable.
    lost: bool,
    /// A saved state was.
    told: bool,
    /// The logs it lies in. What others tell is out of date: it has left them, and they have not
    /// forgotten it yet.
    logs: Vec<LogKey>,
    range: HashRange,
}

enum Told {
    State(Bytes),
    Batch(BatchMark, bool),
}

impl History {
    fn of(catalog: &Catalog, config: &BrokerConfig) -> Self {
        let config = config.stream.clone();
        let building = |info: &ShardInfo| {
            let building = Building {
                shard: Shard::new(info.id, info.range, &config),
                lost: false,
                told: false,
                logs: info
                    .placements
                    .iter()
                    .map(|placement| placement.log)
                    .collect(),
                range: info.range,
            };
            (info.id, building)
        };
        let shards = catalog.streams().flat_map(|stream| &stream.shards);
        let building = shards.map(building).collect();
        Self {
            building,
            told: HashMap::new(),
            config,
        }
    }

    /// The shard with all that was told about it.
    fn take(&mut self, info: &ShardInfo) -> Building {
        let mut building = self
            .building
            .remove(&info.id)
            .expect("BUG: a shard the catalog did not have before");
        for placement in &info.placements {
            let told = self
                .told
                .remove(&(placement.log, info.id))
                .unwrap_or_default();
            told.into_iter()
                .for_each(|told| building.hear(told, &self.config));
        }
        building
    }

    /// Forgets what a log told that turned out not to be one.
    fn unhear(&mut self, log: LogKey) {
        self.told.retain(|(by, _), _| *by != log);
    }

    fn hear(&mut self, log: LogKey, shard: ShardId, told: Told) {
        match self.building.get_mut(&shard) {
            Some(building) if !building.logs.contains(&log) => {}
            Some(building) if building.logs.len() > 1 => {
                self.told.entry((log, shard)).or_default().push(told);
            }
            Some(building) => building.hear(told, &self.config),
            // Of a stream that is gone.
            None => {}
        }
    }
}

impl Building {
    fn hear(&mut self, told: Told, config: &StreamConfig) {
        match told {
            // A later log's snapshot knows all that came before.
            Told::State(state) => match self.shard.restore(&state) {
                Ok(()) => (self.lost, self.told) = (false, true),
                Err(reason) => {
                    tracing::warn!(shard = %self.shard.id(), reason, "the saved state of a shard is not usable; its producers go on under new ids");
                    self.shard = Shard::new(self.shard.id(), self.range, config);
                    (self.lost, self.told) = (true, false);
                }
            },
            Told::Batch(mark, partial) => self.shard.replay(&mark, partial),
        }
    }
}

/// Listens to one log.
struct Listen<'a> {
    key: LogKey,
    history: &'a mut History,
}

impl Replay for Listen<'_> {
    fn state(&mut self, shard: ShardId, state: Bytes) {
        self.history.hear(self.key, shard, Told::State(state));
    }

    fn batch(&mut self, shard: ShardId, mark: &BatchMark, partial: bool) {
        self.history
            .hear(self.key, shard, Told::Batch(*mark, partial));
    }
}

/// For a log that no stream lies in.
pub(crate) struct Ignore;

impl Replay for Ignore {
    fn state(&mut self, _shard: ShardId, _state: Bytes) {}

    fn batch(&mut self, _shard: ShardId, _mark: &BatchMark, _partial: bool) {}
}

/// Tells once what opening a log found.
fn report(key: LogKey, recovery: &Recovery) {
    let jumped = recovery
        .shards
        .iter()
        .filter(|shard| shard.jumped.is_some())
        .count();
    tracing::info!(
        log = key.dir_name(),
        clean = recovery.clean,
        shards = recovery.shards.len(),
        sealed_segments = recovery.sealed_segments,
        scanned_bytes = recovery.scanned_bytes,
        tail_rounds_rewritten = recovery.tail_rounds_rewritten,
        discarded_bytes = recovery.discarded_bytes,
        jumped_shards = jumped,
        "opened a log"
    );
    for quarantined in &recovery.quarantined {
        tracing::error!(
            segment = %quarantined.segment,
            reason = %quarantined.reason,
            shards = quarantined.shards.len(),
            "acknowledged data is damaged and quarantined; run `flumen doctor`"
        );
    }
}

#[cfg(test)]
mod tests {
    use flumen_log::MemoryStorage;
    use flumen_stream::{NewStream, StreamSettings};

    use super::*;

    fn state_ending_at(info: &ShardInfo, next: u64) -> Told {
        let mut shard = Shard::new(info.id, info.range, &StreamConfig::default());
        let recovery = untouched(info.id, SequenceNumber::new(next));
        shard.recovered(&recovery, true, ProducerId::NONE);
        Told::State(shard.save())
    }

    /// A log that a shard has left may still tell of it, when the node ended before it forgot.
    #[test]
    fn logs_that_a_shard_has_left_are_not_heard() {
        let storage = Arc::new(MemoryStorage::new());
        let now = Timestamp::from_micros(1);
        let (mut catalog, _) = Catalog::open(storage, StreamConfig::default(), now).unwrap();
        let new = NewStream {
            name: "readings".parse().unwrap(),
            shards: 1,
            settings: StreamSettings::default(),
        };
        let stream = catalog.create(new, now).unwrap();
        let info = &stream.shards[0];
        let home = home(info);
        let left = LogKey {
            class_hours: 720,
            ..home
        };
        let mut history = History::of(&catalog, &BrokerConfig::default());
        history.hear(home, info.id, state_ending_at(info, 8));
        history.hear(left, info.id, state_ending_at(info, 5));
        let building = history.take(info);
        assert_eq!(building.shard.next(), SequenceNumber::new(8));
    }
}
