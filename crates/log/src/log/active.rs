//! The segment a log appends to: taking the next one, its head, and the room left in it.

use std::io;
use std::sync::Arc;

use flumen_record::Timestamp;

use crate::checksum;
use crate::control::{Control, GatheredControls};
use crate::error::WriteError;
use crate::footer::{FooterSummary, footer_bytes};
use crate::io_fault::IoFault;
use crate::reserve;
use crate::round::NewRun;
use crate::segment::{FooterPlace, Segment, SegmentName};
use crate::segment_header::{COPIES, HEAD, HEAD_BYTES, SECTOR, SegmentHeader};
use crate::shared::{Shared, count};
use crate::state::{ShardStanding, encode_table};
use crate::storage::Preparation;
use crate::work::{PreparedFile, Sealing, Touched};

/// Segment files are a multiple of this.
const FILE_ALIGN: u64 = 4096;

/// One part in so many of a segment is for rounds without frames. What frees space, trims and
/// forgotten shards, travels in them, and must find room when no new segment can be made.
const INTERNAL_SHARE: u64 = 64;

/// Size of a segment that is made below the floor for rounds without frames.
const INTERNAL_BYTES: u64 = 1 << 20;

/// What the node itself remembers takes one part in so many of the free space for its next segment.
const NODE_SHARE: u64 = 16;

/// The segment being appended to.
#[derive(Debug)]
pub(crate) struct Active {
    pub(crate) segment: Arc<Segment>,
    /// Header and state, until they are written with the first round.
    pub(crate) head: Option<Vec<u8>>,
    /// Where the next round goes.
    pub(crate) position: u64,
    pub(crate) touched: Vec<Touched>,
    controls: GatheredControls,
    runs: u64,
    producers: u64,
    first_round: u64,
    catalog: u64,
}

/// Where a log is in its chain of rounds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ChainEnd {
    pub(crate) round: u64,
    pub(crate) checksum: u32,
    pub(crate) durable: u64,
    pub(crate) epoch: u32,
}

impl Active {
    /// A segment in `prepared` that continues after `chain.round`. Nothing is written yet.
    pub(crate) fn new(
        shared: &Shared,
        prepared: PreparedFile,
        chain: ChainEnd,
        flags: u16,
        now: Timestamp,
    ) -> Self {
        let standings: Vec<ShardStanding> = shared
            .index
            .all()
            .iter()
            .map(|cell| cell.lock().standing(cell.shard))
            .collect();
        Self::with_state(shared, prepared, chain, flags, now, &standings)
    }

    /// As [`Active::new`], with the state to write at its head.
    pub(crate) fn with_state(
        shared: &Shared,
        prepared: PreparedFile,
        chain: ChainEnd,
        flags: u16,
        now: Timestamp,
        standings: &[ShardStanding],
    ) -> Self {
        let mut state = Vec::new();
        encode_table(standings, &mut state);
        let SegmentName {
            segment,
            generation,
        } = prepared.name;
        let header = SegmentHeader {
            flags,
            log: shared.key.id(),
            segment,
            generation,
            epoch: chain.epoch,
            salt: checksum::new_salt(
                shared.key,
                segment,
                generation,
                chain.epoch,
                now.as_micros(),
            ),
            file_bytes: prepared.file.bytes(),
            continues_after: chain.round,
            last_durable: chain.durable,
            previous_checksum: chain.checksum,
            state_bytes: u32::try_from(state.len()).expect("BUG: shards per log are bounded"),
            state_checksum: 0,
            created: now,
        };
        let header = SegmentHeader {
            state_checksum: header.state_sum(&state),
            ..header
        };
        let written_before = shared.written.load(std::sync::atomic::Ordering::Relaxed);
        let segment = Segment::new(
            prepared.path,
            prepared.file,
            header,
            Some(written_before),
            FooterPlace::Recent,
        );
        Self {
            position: header.rounds_at(),
            head: Some(head_bytes(&header, &state)),
            segment: Arc::new(segment),
            touched: Vec::new(),
            controls: GatheredControls::default(),
            runs: 0,
            producers: 0,
            first_round: chain.round + 1,
            catalog: 0,
        }
    }

    /// Whether a round of `bytes` with so many frames and controls still fits before the footer.
    pub(crate) fn has_room(&self, bytes: u64, frames: usize, controls: usize) -> bool {
        let file_bytes = self.segment.file.bytes();
        let kept = if frames == 0 {
            0
        } else {
            file_bytes / INTERNAL_SHARE
        };
        let frames = frames as u64;
        let footer = footer_bytes(
            self.touched.len() as u64 + frames,
            (self.controls.len() + controls) as u64,
            self.runs + frames,
            self.producers + frames,
        );
        self.position
            .saturating_add(bytes)
            .saturating_add(footer)
            .saturating_add(FILE_ALIGN)
            .saturating_add(kept)
            <= file_bytes
    }

    /// Whether a round was written into it.
    pub(crate) fn has_rounds(&self) -> bool {
        self.head.is_none()
    }

    /// Runs in it so far.
    pub(crate) fn runs(&self) -> u64 {
        self.runs
    }

    /// Size of the segment after this one, which filled before its age: as much as this one took
    /// when its number of runs was what filled it, else twice its size.
    pub(crate) fn next_bytes(&self, by_runs: bool) -> u64 {
        let bytes = self.segment.file.bytes();
        if !by_runs {
            return bytes.saturating_mul(2);
        }
        let controls = self.controls.len() as u64;
        let rows = self.touched.len() as u64;
        let footer = footer_bytes(rows, controls, self.runs, self.producers);
        (self.position + footer).next_power_of_two().min(bytes)
    }

    /// Accounts for a round that was written.
    pub(crate) fn advance(
        &mut self,
        bytes: u64,
        runs: &[NewRun],
        controls: &[Control],
        catalog: u64,
    ) {
        self.head = None;
        self.position += bytes;
        self.runs += runs.len() as u64;
        self.producers += runs.iter().map(|run| u64::from(run.producers)).sum::<u64>();
        self.controls.push(controls);
        for run in runs {
            self.controls.run(run.shard, run.base);
        }
        self.catalog = self.catalog.max(catalog);
    }

    /// Nothing more is appended; what is left is the footer.
    pub(crate) fn into_sealing(self, chain: ChainEnd, last_written: Timestamp) -> Sealing {
        self.segment.set_end(self.position, chain.round);
        Sealing {
            summary: FooterSummary {
                first_round: self.first_round,
                last_round: chain.round,
                last_checksum: chain.checksum,
                data_end: self.position,
                catalog: self.catalog,
                last_written,
            },
            segment: self.segment,
            touched: self.touched,
            controls: self.controls.into_marks(),
        }
    }
}

/// Header, its second copy, and the state table, ready to be written at the start of the file.
pub(crate) fn head_bytes(header: &SegmentHeader, state: &[u8]) -> Vec<u8> {
    let sector = header.encode();
    let mut bytes = vec![0; (HEAD + state.len()).next_multiple_of(SECTOR)];
    for (at, part) in [(0, &sector[..]), (COPIES - SECTOR, &sector), (HEAD, state)] {
        bytes
            .get_mut(at..at + part.len())
            .expect("BUG: the head is as long as its parts")
            .copy_from_slice(part);
    }
    bytes
}

/// Bytes a segment must have for one round of `bytes` with so many frames, and its footer.
pub(crate) fn segment_bytes_for(
    shared: &Shared,
    bytes: u64,
    frames: usize,
    controls: usize,
) -> u64 {
    let state: u64 = shared
        .index
        .all()
        .iter()
        .map(|cell| 56 + 24 * cell.lock().gaps.len() as u64)
        .sum();
    let frames = frames as u64;
    let footer = footer_bytes(frames, controls as u64, frames, frames);
    let used = HEAD_BYTES + state + bytes + footer + 3 * FILE_ALIGN;
    let kept = used.div_ceil(INTERNAL_SHARE - 1);
    (used + kept).next_multiple_of(FILE_ALIGN)
}

/// The next segment's file: a prepared one, or one made on the spot. What frees space, and what the
/// node itself remembers, may use the reserve for it.
pub(crate) fn next_file(
    shared: &Shared,
    needed: u64,
    wanted: u64,
    internal: bool,
) -> Result<PreparedFile, WriteError> {
    let urgent = internal || !shared.key.holds_records();
    let next = spare_file(shared, needed, wanted, internal);
    if !urgent || !matches!(next, Err(WriteError::Full { .. })) {
        return next;
    }
    let name = SegmentName {
        segment: shared.work.lock().take_id(),
        generation: 0,
    };
    let Some(reserved) = reserve::take(shared, name, needed) else {
        return next;
    };
    shared.work.lock().last_used = name.segment;
    Ok(reserved)
}

/// As [`next_file`], without the reserve.
pub(crate) fn spare_file(
    shared: &Shared,
    needed: u64,
    wanted: u64,
    internal: bool,
) -> Result<PreparedFile, WriteError> {
    let name = {
        let mut work = shared.work.lock();
        if let Some(prepared) = work.take_prepared(needed) {
            work.last_used = prepared.name.segment;
            shared.work.wake(work);
            return Ok(prepared);
        }
        SegmentName {
            segment: work.take_id(),
            generation: 0,
        }
    };
    let bytes = affordable(shared, needed, wanted, internal)?;
    let prepared = create_file(shared, name, bytes, Preparation::Allocated).map_err(|source| {
        if IoFault::from(&source) == IoFault::Full {
            full(shared)
        } else {
            // A folder that was removed takes no new file, and says no more than that.
            let gone = shared.look().err();
            gone.map_or(WriteError::NoSegment { source }, WriteError::Gone)
        }
    })?;
    // Every new segment is looked for under its name before it is used.
    if shared.config.place_look_ms > 0
        && let Err(gone) = shared.storage.look(&prepared.path)
    {
        return Err(WriteError::Gone(shared.lose(gone)));
    }
    count(&shared.counters.segments_unprepared, 1);
    shared.work.lock().last_used = name.segment;
    Ok(prepared)
}

pub(crate) fn full(shared: &Shared) -> WriteError {
    shared.refresh_space();
    WriteError::Full {
        free_bytes: shared.free_bytes(),
        floor_bytes: shared.floor_bytes(),
    }
}

/// How large the next segment may be without going below the floor; a small one may, for what is
/// `internal`.
fn affordable(
    shared: &Shared,
    needed: u64,
    wanted: u64,
    internal: bool,
) -> Result<u64, WriteError> {
    shared.refresh_space();
    let spare = shared.free_bytes().saturating_sub(shared.floor_bytes());
    let mut bytes = wanted;
    if !shared.key.holds_records() {
        // It has no floor: what is left when records are refused must last.
        bytes = bytes
            .min(shared.free_bytes() / NODE_SHARE)
            .max(INTERNAL_BYTES.min(wanted) / 4);
    }
    while bytes > spare && bytes / 2 >= shared.config.segment_bytes_min.min(wanted) {
        bytes /= 2;
    }
    let bytes = bytes.max(needed).next_multiple_of(FILE_ALIGN);
    match (bytes <= spare, internal) {
        (true, _) => Ok(bytes),
        // The reserve below the floor is for this, but it is not to be used up.
        (false, true) => {
            let small = INTERNAL_BYTES.min(shared.free_bytes() / 4).min(wanted);
            Ok(small.max(needed).next_multiple_of(FILE_ALIGN))
        }
        (false, false) => Err(full(shared)),
    }
}

/// Creates a segment's file and makes its name durable.
pub(crate) fn create_file(
    shared: &Shared,
    name: SegmentName,
    bytes: u64,
    preparation: Preparation,
) -> io::Result<PreparedFile> {
    let path = shared.path(&name.to_string());
    let file = shared.storage.create(&path, bytes, preparation)?;
    shared.storage.sync_dir(&shared.dir)?;
    Ok(PreparedFile { name, path, file })
}
