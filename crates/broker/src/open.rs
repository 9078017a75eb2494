//! Opening a data directory: the catalog, every log that streams lie in, what the logs remember of
//! each shard; then lanes and housekeeping start.

mod history;
mod losses;
mod own_logs;
mod recover;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flumen_log::{IoFault, Log, LogConfig, LogKey, LogReader, Stay, Storage};
use flumen_record::ShardId;
use thiserror::Error;
use tokio::sync::Semaphore;

use crate::clock_watch;
use crate::groups::{self, Groups};
use crate::housekeeping::Housekeeping;
use crate::lane::{Control, Lane, LaneContext, OpenShard};
use crate::node::{BESIDE_MAX, Lanes, Node};
use crate::streams::{Place, ShardHandle, Streams};
use crate::{BrokerConfig, Clock, Error, Metrics};
use flumen_world::{SpawnError, Threads, World, lock};
pub(crate) use recover::Ignore;
use recover::{Recovered, RecoveredShard};

/// Why a node does not start.
#[derive(Debug, Error)]
pub enum OpenError {
    /// A log does not open.
    #[error(transparent)]
    Log(#[from] flumen_log::OpenError),
    /// The catalog does not open.
    #[error(transparent)]
    Catalog(#[from] flumen_stream::CatalogError),
    /// The log of delivery streams does not open.
    #[error(transparent)]
    Deliveries(#[from] flumen_stream::delivery::DeliveryLogError),
    /// Settings of a delivery stream that this program does not understand.
    #[error("the settings of delivery stream {delivery} are not understood: {reason}")]
    DeliverySettings {
        /// Whose.
        delivery: flumen_record::DeliveryName,
        /// What is wrong with them.
        reason: String,
    },
    /// The log of consumer groups does not open.
    #[error(transparent)]
    Groups(#[from] flumen_stream::group::GroupLogError),
    /// The system gives no thread.
    #[error(transparent)]
    NoThread(#[from] SpawnError),
    /// The process ends while it opens.
    #[error("the node was given up before it was open: the process ends")]
    GivenUp,
}

/// Opens a node on threads and the caller's tokio runtime.
pub(crate) async fn on_threads(
    storage: Arc<dyn Storage>,
    config: BrokerConfig,
    clock: Clock,
) -> Result<Arc<Node>, OpenError> {
    let world = Arc::new(Threads::new(clock.clone()));
    open(storage, config, clock, world).await
}

/// Opens a node.
pub(crate) async fn open(
    storage: Arc<dyn Storage>,
    config: BrokerConfig,
    clock: Clock,
    world: Arc<dyn World>,
) -> Result<Arc<Node>, OpenError> {
    let node_world = Arc::clone(&world);
    let opening = world.blocked(move || open_blocking(storage, config, clock, node_world));
    opening.await.unwrap_or(Err(OpenError::GivenUp))
}

fn open_blocking(
    storage: Arc<dyn Storage>,
    config: BrokerConfig,
    clock: Clock,
    world: Arc<dyn World>,
) -> Result<Arc<Node>, OpenError> {
    let mut config = config;
    config.stream.lanes_per_class = config.lanes_per_class.max(config.stream.lanes_per_class);
    let remembered = clock_watch::read(&*storage);
    let recovered = recover::recover(&storage, &config, &clock, remembered)?;
    clock_watch::report(&clock);
    let catalog = &recovered.catalog;
    let opened = own_logs::open_groups(&storage, &config, &clock, catalog)?;
    let catalog_record = Arc::new(AtomicU64::new(catalog.last_record()));
    let deliveries =
        own_logs::open_deliveries(&storage, &config, &clock, catalog, &catalog_record)?;
    let (stop, _) = tokio::sync::watch::channel(false);
    let node = Arc::new(Node {
        blocking_reads: Arc::new(Semaphore::new(config.blocking_reads_max.max(1) as usize)),
        catalog_record,
        issued: AtomicU64::new(recovered.catalog.producers_issued().value()),
        never_issued: recovered.catalog.producers_never_issued(),
        config,
        groups: Arc::new(Groups::new(clock.clone())),
        clock,
        world,
        storage,
        metrics: Metrics::default(),
        streams: Streams::default(),
        restless: Arc::clone(&deliveries.restless),
        deliveries,
        lanes: Lanes::default(),
        catalog: Mutex::new(None),
        catalog_housekeeping: Mutex::default(),
        groups_housekeeping: Mutex::default(),
        deliveries_housekeeping: Mutex::default(),
        changes: tokio::sync::Mutex::new(()),
        draining: AtomicBool::new(false),
        beside: Arc::new(Semaphore::new(BESIDE_MAX as usize)),
        stop,
    });
    node.metrics.attach(&node);
    node.keep_reserve();
    node.remember_clock();
    start(&node, recovered)?;
    if let Some(housekeeper) = node.deliveries.housekeeper() {
        let label = "deliveries".to_owned();
        let housekeeping = Housekeeping::start(&*node.world, housekeeper, label)?;
        *lock(&node.deliveries_housekeeping) = housekeeping;
    }
    match opened {
        Ok((log, coordinator)) => {
            let label = "groups".to_owned();
            let housekeeping = Housekeeping::start(&*node.world, log.housekeeper(), label)?;
            *lock(&node.groups_housekeeping) = housekeeping;
            groups::start(&node, log, coordinator)?;
        }
        Err(refusal) => node.groups.refuse(refusal),
    }
    // Nobody is served yet.
    node.vouch(true);
    crate::vouching::start(&node);
    groups::start_loads(&node);
    crate::retention::start(&node);
    crate::housekeeping::start_resting(&node);
    crate::place::start(&node);
    crate::auto_scale::start(&node);
    Ok(node)
}

/// Starts the lanes with their shards, and makes streams known.
fn start(node: &Arc<Node>, recovered: Recovered) -> Result<(), SpawnError> {
    let Recovered {
        catalog,
        logs,
        refused,
        mut shards,
    } = recovered;
    let mut homes: BTreeMap<LogKey, Vec<OpenShard>> = BTreeMap::new();
    let mut tails = BTreeMap::new();
    let mut left_behind: Vec<(LogKey, LogKey, ShardId, bytes::Bytes)> = Vec::new();
    for info in catalog.streams().flat_map(|stream| &stream.shards) {
        let RecoveredShard { shard, tail, home } = shards
            .remove(&info.id)
            .expect("BUG: recovery forgot a shard of the catalog");
        if info.stays.len() > 1 && !refused.contains_key(&home) {
            let logs: BTreeSet<LogKey> = info.stays.iter().map(Stay::log).collect();
            let state = shard.save();
            for log in logs.into_iter().filter(|log| *log != home) {
                left_behind.push((log, home, info.id, state.clone()));
            }
        }
        tails.insert(info.id, Arc::clone(&tail));
        homes
            .entry(home)
            .or_default()
            .push(OpenShard { shard, tail });
    }
    for (key, refusal) in refused {
        refuse_lane(node, key, refusal);
    }
    for (key, log) in logs {
        let shards = homes.remove(&key).unwrap_or_default();
        start_lane(node, key, log, shards)?;
    }
    for (log, home, shard, state) in left_behind {
        if let (Some(lane), Some(to)) = (node.lanes.get(log), node.lanes.get(home)) {
            lane.send(Control::Departed { shard, to, state });
        }
    }
    for info in catalog.streams() {
        let handle = |shard: &flumen_stream::ShardInfo| {
            let place = |stay: &Stay| Place {
                stay: *stay,
                lane: node
                    .lanes
                    .get(stay.log())
                    .expect("BUG: a log of the catalog is not open"),
            };
            Arc::new(ShardHandle {
                id: shard.id,
                info: shard.clone(),
                tail: tails
                    .remove(&shard.id)
                    .expect("BUG: a shard without a tail"),
                places: shard.stays.iter().map(place).collect(),
            })
        };
        let handles = info.shards.iter().map(handle).collect();
        node.streams.add(Arc::clone(info), handles);
    }
    let housekeeper = catalog.housekeeper();
    let housekeeping = Housekeeping::start(&*node.world, housekeeper, "catalog".to_owned())?;
    *lock(&node.catalog_housekeeping) = housekeeping;
    *lock(&node.catalog) = Some(catalog);
    Ok(())
}

fn start_lane(
    node: &Arc<Node>,
    key: LogKey,
    log: Log,
    shards: Vec<OpenShard>,
) -> Result<Arc<Lane>, SpawnError> {
    let housekeeper = log.housekeeper();
    let context = LaneContext {
        clock: node.clock.clone(),
        metrics: node.metrics.clone(),
        catalog_record: Arc::clone(&node.catalog_record),
        round_bytes_max: node.config.round_bytes_max.max(1),
        queue_bytes_max: node.config.lane_queue_bytes_max,
        memory_sync_interval: Duration::from_millis(node.config.log.memory_sync_interval_ms),
        unsynced_bytes_max: node.config.log.unsynced_bytes_max,
        idle_vouch: Duration::from_millis(node.config.log.idle_vouch_ms),
        world: Arc::clone(&node.world),
    };
    let lane = Lane::start(log, key, shards, context)?;
    match Housekeeping::start(&*node.world, housekeeper, lane.label()) {
        Ok(housekeeping) => {
            node.lanes.insert(Arc::clone(&lane), housekeeping);
            Ok(lane)
        }
        Err(refused) => {
            lane.send(Control::Stop);
            Err(refused)
        }
    }
}

/// Makes a log known that did not open: every question about it has an answer.
fn refuse_lane(node: &Node, key: LogKey, refusal: Error) {
    let storage = Arc::clone(&node.storage);
    let reader = LogReader::refused(storage, key, reason_of(&refusal));
    let lane = Lane::refused(key, reader, node.clock.clone(), refusal);
    node.lanes.insert(lane, Housekeeping::default());
}

fn reason_of(refusal: &Error) -> String {
    match refusal {
        Error::LogRefused { reason, .. } => reason.clone(),
        other => other.to_string(),
    }
}

/// What a log that does not open is answered with, when the rest can be served without it. `None`: the
/// node cannot start.
pub(crate) fn refusal_of(key: LogKey, error: &flumen_log::OpenError) -> Option<Error> {
    match error {
        flumen_log::OpenError::Short(_) => Some(refused(key, error)),
        // What a newer program wrote is not to be gone on with by half.
        flumen_log::OpenError::Foreign { .. } if !error.is_of_unknown_version() => {
            Some(refused(key, error))
        }
        _ => None,
    }
}

/// What a log is answered with that is not served.
pub(crate) fn refused(key: LogKey, why: &dyn std::fmt::Display) -> Error {
    let log = key.dir_name();
    tracing::error!(log, error = %why, "log refused; everything else is served");
    Error::LogRefused {
        log,
        reason: why.to_string(),
    }
}

/// Opens a log that no stream lay in when the node started. Blocks.
pub(crate) fn open_new_log(node: &Arc<Node>, key: LogKey) -> Result<Arc<Lane>, Error> {
    if let Some(lane) = node.lanes.get(key) {
        return Ok(lane);
    }
    let config = log_config(&node.config.log, key);
    let storage = Arc::clone(&node.storage);
    let opened = Log::open(storage, key, config, node.clock.now(), &mut Ignore);
    let (mut log, recovery) = opened.map_err(|error| {
        tracing::error!(%error, "a log does not open");
        match error {
            flumen_log::OpenError::Io { path, source } => Error::Io {
                segment: path,
                fault: IoFault::from(&source),
            },
            other => Error::Io {
                segment: other.to_string(),
                fault: IoFault::Damaged,
            },
        }
    })?;
    // Whatever it still held belonged to streams that are gone.
    recovery
        .shards
        .iter()
        .for_each(|shard| log.forget(shard.shard));
    node.vouch_for_new(key, &mut log)?;
    Ok(start_lane(node, key, log, Vec::new())?)
}

/// The settings of one log.
fn log_config(config: &LogConfig, key: LogKey) -> LogConfig {
    LogConfig {
        retention_class_hours: key.class_hours,
        ..config.clone()
    }
}
