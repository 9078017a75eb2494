//! What opening a log found, and hands to whoever knows what shards mean.

mod inspect;
mod inventory;
mod loss;
mod restore;
mod runs;
mod scan;
mod search;
mod settle;
mod standings;
mod tail;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use flumen_record::{ProducerId, ProducerSequence, SequenceNumber, ShardEpoch, ShardId, Timestamp};

use crate::config::{LogConfig, LogKey};
use crate::error::{OpenError, SNAPSHOT_VERSION};
use crate::index::ShardMap;
use crate::log::Expected;
use crate::log::active::ChainEnd;
use crate::log::writer::{Writer, WriterShard};
use crate::round::RoundEncoder;
use crate::segment::FooterPlace;
use crate::shared::{Shared, count};
use crate::snapshot::{SNAPSHOT_NAME, Snapshot, SnapshotFault};
use crate::storage::Storage;
use crate::voucher::{Shortfall, Voucher};
pub use inspect::{LogInspection, inspect};
use inventory::Inventory;
use restore::Restorer;
pub(crate) use runs::{begin, extend};
use scan::Scan;

/// One stored batch, as far as producers' bookkeeping needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchMark {
    /// Who sent it.
    pub producer: ProducerId,
    /// Its place among this producer's batches for the shard.
    pub sequence: ProducerSequence,
    /// Sequence number of its first record.
    pub base: SequenceNumber,
    /// Records in it.
    pub count: u32,
    /// The batch's CRC-32.
    pub checksum: u32,
    /// Arrival time.
    pub arrival: Timestamp,
    /// Data bytes as stored (frame header included).
    pub frame_bytes: u32,
}

/// Receives, in log order per shard, what a log holds beyond its snapshot. Called while opening.
pub trait Replay {
    /// The state saved for a shard in the snapshot, as it was given to [`crate::Log::snapshot`]. At
    /// most once per shard and before its batches.
    fn state(&mut self, shard: ShardId, state: Bytes);
    /// A batch later than the snapshot. From a footer only each producer's last batch is known
    /// (`partial`); from an unsealed segment every batch comes.
    fn batch(&mut self, shard: ShardId, mark: &BatchMark, partial: bool);
}

/// Where one shard stands after recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardRecovery {
    /// The shard.
    pub shard: ShardId,
    /// First sequence number kept.
    pub trim_horizon: SequenceNumber,
    /// Next sequence number to assign (already jumped where it had to be).
    pub next: SequenceNumber,
    /// Highest epoch found; the caller opens a higher one.
    pub epoch: ShardEpoch,
    /// Arrival time of the last batch.
    pub last_arrival: Timestamp,
    /// `Some(first number after the jump)` when numbers may have been given out and lost at this open.
    pub jumped: Option<SequenceNumber>,
}

/// A range of acknowledged data that is damaged: kept as it is, answered with a data-loss error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// File name of the segment.
    pub segment: String,
    /// Shards known to be touched, with the hidden range.
    pub shards: Vec<(ShardId, SequenceNumber, SequenceNumber)>,
    /// What is wrong with it.
    pub reason: String,
}

/// What opening did. Logged once by the caller, and counted.
#[derive(Debug, Clone, Default)]
pub struct Recovery {
    /// Whether the last process closed the log in order.
    pub clean: bool,
    /// Whether every producer that ever wrote is in what was replayed: a valid snapshot was read,
    /// or the log from its first round on.
    pub complete: bool,
    /// Every shard this log holds or has held and not forgotten.
    pub shards: Vec<ShardRecovery>,
    /// Segments that stood by their footers.
    pub sealed_segments: u64,
    /// Bytes of segments read round by round.
    pub scanned_bytes: u64,
    /// Rounds of the tail written again into a fresh segment.
    pub tail_rounds_rewritten: u64,
    /// Bytes after the last valid round that were not a round.
    pub discarded_bytes: u64,
    /// Damaged ranges.
    pub quarantined: Vec<Quarantined>,
    /// When its newest round was written.
    pub written: Timestamp,
    /// Highest catalog record named by a round of this log: a catalog that ends below it is damaged.
    pub catalog_named: u64,
    /// Of a shard that existed until then and is not among `shards`, acknowledged data may be hidden
    /// by damage all the same.
    pub hidden_until: Option<Timestamp>,
}

/// Opens the log's folder and brings everything in it together.
pub(crate) fn recover(
    storage: Arc<dyn Storage>,
    key: LogKey,
    config: LogConfig,
    now: Timestamp,
    replay: &mut dyn Replay,
    expected: Expected<'_>,
) -> Result<(Writer, Recovery), OpenError> {
    let Expected { voucher, stays } = expected;
    let shared = Arc::new(Shared::new(storage, key, config, now));
    let at = |source| OpenError::Io {
        path: shared.dir.clone(),
        source,
    };
    match voucher {
        None => shared.storage.create_dir(&shared.dir).map_err(at)?,
        Some(vouched) => expect_dir(&shared, vouched)?,
    }
    shared.refresh_space();
    let inventory = Inventory::take(&shared, true)?;
    let snapshot = read_snapshot(&shared)?;
    let mut restorer = Restorer::new(&shared, replay, snapshot.as_ref());
    let mut scan = Scan::run(&inventory, &mut restorer, snapshot.as_ref(), voucher)?;
    if !scan.clean {
        inventory.sync_sealed()?;
    }
    begin_ids(&shared, &inventory, &scan);
    let fresh = tail::make_room(&shared, &restorer, &scan)?;
    if fresh.is_none() {
        tail::stay(&inventory, &mut restorer, &mut scan)?;
    }
    let mut writer = new_writer(&shared, &scan);
    restorer.take_back_tail(&scan);
    restorer.install(&mut writer, &inventory, &scan);
    let tail_rounds = match fresh {
        Some(fresh) => tail::rewrite(&mut writer, &mut restorer, &scan, fresh, now)?,
        None => 0,
    };
    tail::sort_leftovers(&writer, &inventory, &scan);
    restorer.settle(&mut writer, scan.clean, stays);
    writer.opened_after = writer.chain.round;
    shared
        .durable_round
        .store(writer.chain.durable, Ordering::Release);
    let recovery = Recovery {
        written: newest(&shared, &scan),
        ..restorer.report(&writer, &scan, tail_rounds, now)
    };
    count(
        &shared.counters.quarantined,
        recovery.quarantined.len() as u64,
    );
    Ok((writer, recovery))
}

/// When the newest round was written that recovery has found.
fn newest(shared: &Shared, scan: &Scan) -> Timestamp {
    let segments = shared.all_segments();
    let sealed = segments
        .iter()
        .filter_map(|segment| match segment.footer() {
            FooterPlace::Disk(trailer) => Some(trailer.summary.last_written),
            FooterPlace::Pinned(footer) => Some(footer.summary.last_written),
            FooterPlace::Recent => None,
        });
    let tail = scan.tail.iter().map(|round| round.found.header.written);
    sealed.chain(tail).max().unwrap_or_default()
}

/// A folder that must be there is not made anew.
fn expect_dir(shared: &Shared, vouched: Voucher) -> Result<(), OpenError> {
    match shared.storage.list(&shared.dir) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(OpenError::Short(Shortfall {
            log: shared.key,
            vouched,
            found: None,
        })),
        Err(source) => Err(OpenError::Io {
            path: shared.dir.clone(),
            source,
        }),
    }
}

/// A snapshot that does not verify is as good as none: everything it says is in the segments too.
fn read_snapshot(shared: &Shared) -> Result<Option<Snapshot>, OpenError> {
    let path = || shared.path(SNAPSHOT_NAME);
    let read = Snapshot::read(shared).map_err(|source| OpenError::Io {
        path: path(),
        source,
    })?;
    match read {
        Some(Ok(snapshot)) if snapshot.log == shared.key.id() => Ok(Some(snapshot)),
        Some(Ok(_)) => Err(OpenError::Foreign {
            path: path(),
            reason: "the snapshot of another log",
        }),
        Some(Err(SnapshotFault::UnknownVersion)) => Err(OpenError::Foreign {
            path: path(),
            reason: SNAPSHOT_VERSION,
        }),
        Some(Err(SnapshotFault::Damaged)) => {
            tracing::warn!(
                path = path(),
                "the snapshot is damaged: everything is read instead"
            );
            Ok(None)
        }
        None => Ok(None),
    }
}

/// From here on segments get new ids.
fn begin_ids(shared: &Shared, inventory: &Inventory, scan: &Scan) {
    let mut work = shared.work.lock();
    work.next_segment = inventory.highest_id.max(scan.snapshot_segment);
    work.last_used = work.next_segment;
    work.next_bytes = shared.config.segment_bytes_min;
}

fn new_writer(shared: &Arc<Shared>, scan: &Scan) -> Writer {
    // What is missing at the end is vouched by others, and no longer by what is here.
    let vouched = scan.vouched.min(scan.reached);
    shared.vouched_round.store(vouched, Ordering::Release);
    shared.epoch.store(scan.kept_epoch, Ordering::Release);
    let chain = ChainEnd {
        round: scan.last_round,
        checksum: scan.last_checksum,
        durable: scan.last_round,
        epoch: scan.epoch.saturating_add(1),
    };
    Writer {
        shared: Arc::clone(shared),
        shards: ShardMap::<WriterShard>::default(),
        active: None,
        chain,
        encoder: RoundEncoder::default(),
        trims: ShardMap::default(),
        forgets: Vec::new(),
        jumps: Vec::new(),
        unsettled: VecDeque::new(),
        unsynced_bytes: 0,
        durable_checksum: chain.checksum,
        next_bytes: shared.config.segment_bytes_min,
        last_written: Timestamp::ZERO,
        last_loaded_round: 0,
        last_vouches: 0,
        opened_after: scan.last_round,
        catalog: scan.catalog,
        named_catalog: scan.catalog,
        owed_catalog: 0,
    }
}
