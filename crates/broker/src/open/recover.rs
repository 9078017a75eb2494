//! What catalog and logs remember, brought together per shard.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use flumen_log::{
    BatchMark, Expected, Log, LogKey, LogStays, Recovery, Replay, ShardRecovery, Storage, list_logs,
};
use flumen_record::{Durability, ProducerId, SequenceNumber, ShardEpoch, ShardId, Timestamp};
use flumen_stream::retention::RETENTION_MIN;
use flumen_stream::{Catalog, Shard, ShardInfo, ShardState, StreamInfo, Vouched};

use super::history::{Building, History, Listen};
use super::losses::{FAR_JUMP, Found, JUMP, Jump, first_here, not_served, opened};
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
    let stays = stays_by_log(catalog);
    let mut keys: BTreeSet<LogKey> = stays.keys().copied().collect();
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
        let none = LogStays::default();
        let expected = Expected {
            voucher: vouched.and_then(Vouched::voucher),
            stays: Some(stays.get(&key).unwrap_or(&none)),
        };
        let storage = Arc::clone(storage);
        let opened = Log::open_expecting(storage, key, settings, now, &mut replay, expected);
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

/// Which stays of shards each log holds. The last one of a closed shard ends where it does.
fn stays_by_log(catalog: &Catalog) -> BTreeMap<LogKey, LogStays> {
    let mut logs: BTreeMap<LogKey, LogStays> = BTreeMap::new();
    for info in catalog.streams().flat_map(|stream| &stream.shards) {
        for stay in info.stays.iter() {
            let stay = match info.state {
                ShardState::Open => *stay,
                ShardState::Closed { end, .. } => stay.closed_at(end),
            };
            logs.entry(stay.log()).or_default().add(info.id, stay);
        }
    }
    logs
}

/// Deleted streams, and shards that moved away and have expired where they were.
fn forget_unwanted(catalog: &Catalog, logs: &mut [(LogKey, Log)], found: &BTreeMap<LogKey, Found>) {
    let shards = catalog.streams().flat_map(|stream| &stream.shards);
    let wanted: HashSet<(LogKey, ShardId)> = shards
        .flat_map(|info| {
            let stays = info.stays.iter();
            stays.map(|stay| (stay.log(), info.id))
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
    info.stays.last().log()
}

/// Whether nothing of a shard can have expired yet, so that a log which knows nothing of it never kept
/// anything of it.
fn is_young(stream: &StreamInfo, shard: &ShardInfo, now: Timestamp) -> bool {
    let stayed = shard.stays.len() == 1 && first_here(shard) == SequenceNumber::ZERO;
    stayed
        && stream.settings.retention_bytes.is_none()
        && opened(stream, shard).is_some_and(|at| now.since(at) < RETENTION_MIN)
}

/// Ends a shard's recovery with what the logs of its stays remember.
fn bring_together(
    info: &ShardInfo,
    (young, opened): (bool, Option<Timestamp>),
    history: &mut History,
    found: &BTreeMap<LogKey, Found>,
    issued: ProducerId,
) -> (Shard, Option<Jump>) {
    let mut building = history.take(info);
    let known = add_stays_up(info, found);
    let told = building.told;
    // What a saved state knows all of, no log needs to remember.
    let complete = !building.lost
        && info.stays.iter().all(|stay| {
            let is_told = told.is_some_and(|next| stay.to().is_some_and(|to| to <= next));
            is_told || found.get(&stay.log()).is_some_and(|log| log.complete)
        });
    let last = info.stays.last();
    let log = found.get(&last.log());
    let lost = log.is_some_and(|log| log.may_have_lost(info, opened));
    if let ShardState::Closed { end, .. } = info.state {
        // A log that knows nothing of an old one has expired all of it.
        let nothing_kept = end == SequenceNumber::ZERO || young;
        let complete = complete && (known.is_some() || told.is_some() || nothing_kept) && !lost;
        return (closed(building, known, end, complete, issued), None);
    }
    let held = log.is_some_and(|log| log.shards.contains_key(&info.id));
    let clean = log.is_none_or(|log| log.clean);
    // Whatever was acknowledged there may be gone without a trace.
    let gone = !held && !clean && last.log().durability == Durability::Memory;
    if lost || gone {
        let before = known.unwrap_or_else(|| untouched(info.id, last.from()));
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
    if let Some(known) = known {
        building.shard.recovered(&known, complete, issued);
    } else if told.is_some() || last.from() > SequenceNumber::ZERO {
        // It moved here, nothing was written since, and where it was all has expired.
        let next = last.from().max(building.shard.next());
        let recovery = ShardRecovery {
            epoch: last.epoch(),
            ..untouched(info.id, next)
        };
        let complete = complete && told.is_some();
        building.shard.recovered(&recovery, complete, issued);
    }
    (building.shard, None)
}

/// Where a shard stands by all the logs that it lies in: it goes on where its last stay says, or the
/// log of that. `None`: none of them knows it.
fn add_stays_up(info: &ShardInfo, found: &BTreeMap<LogKey, Found>) -> Option<ShardRecovery> {
    let mut all: Option<ShardRecovery> = None;
    for stay in info.stays.iter() {
        let log = found.get(&stay.log());
        let Some(here) = log.and_then(|log| log.shards.get(&info.id)) else {
            if let Some(all) = &mut all {
                (all.next, all.jumped) = (all.next.max(stay.from()), None);
                all.epoch = all.epoch.max(stay.epoch());
            }
            continue;
        };
        let all = all.get_or_insert(ShardRecovery {
            trim_horizon: SequenceNumber::MAX,
            ..*here
        });
        let kept_from = here.trim_horizon.max(stay.from());
        let end = stay.to().unwrap_or(here.next);
        if stay.to().is_none_or(|to| kept_from < to) {
            all.trim_horizon = all.trim_horizon.min(kept_from);
        }
        all.next = end.max(stay.from());
        all.jumped = here.jumped.filter(|_| stay.to().is_none());
        all.epoch = all.epoch.max(here.epoch).max(stay.epoch());
        all.last_arrival = all.last_arrival.max(here.last_arrival);
    }
    all.map(|all| ShardRecovery {
        trim_horizon: all.trim_horizon.min(all.next),
        ..all
    })
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
