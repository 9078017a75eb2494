//! Writing rounds: admission, layout, the write itself, and what becomes readable.

mod shards;

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use flumen_record::{SequenceNumber, ShardId, Timestamp};

use super::active::{self, Active, ChainEnd};
use super::{NewFrame, RoundNumber};
use crate::control::Control;
use crate::error::WriteError;
use crate::index::{Run, ShardCell, ShardMap};
use crate::round::{NewRun, RoundEncoder, RoundHeader};
use crate::segment::{FooterPlace, Segment};
use crate::shared::{Shared, count};
use crate::state::Gap;
use crate::work::{Sealing, Touched};

/// Trims and deletions that travel in one round; the rest waits for the next.
const CONTROLS_PER_ROUND: usize = 16_384;

/// Segments made ready ahead for a busy log.
const PREPARED_MAX: usize = 2;

/// The writer's own view of a shard.
#[derive(Debug)]
pub(crate) struct WriterShard {
    pub(crate) cell: Arc<ShardCell>,
    /// Next sequence number of what was written.
    pub(crate) end: SequenceNumber,
}

/// A round that was written and is not durable, or not readable, yet.
#[derive(Debug)]
pub(crate) struct WrittenRound {
    pub(crate) round: u64,
    pub(crate) segment: Arc<Segment>,
    pub(crate) position: u64,
    pub(crate) bytes: u64,
    /// Its header's checksum.
    pub(crate) checksum: u32,
    /// The last durable round, by its header.
    pub(crate) vouches: u64,
    pub(crate) runs: Vec<NewRun>,
    pub(crate) controls: Vec<Control>,
    /// Whether its runs are readable already.
    pub(crate) published: bool,
}

/// Why a round was not written.
#[derive(Debug)]
pub(crate) enum PutError {
    /// Nothing was tried.
    Refused(WriteError),
    /// The file system failed in between.
    Failed(io::Error),
}

/// What the one writer of a log owns.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) shared: Arc<Shared>,
    pub(crate) shards: ShardMap<WriterShard>,
    pub(crate) active: Option<Active>,
    pub(crate) chain: ChainEnd,
    pub(crate) encoder: RoundEncoder,
    pub(crate) trims: ShardMap<SequenceNumber>,
    pub(crate) forgets: Vec<ShardId>,
    /// Jumps that travel in the next round, before any frame of their shards.
    pub(crate) jumps: Vec<Control>,
    /// Written, and not settled yet, in order.
    pub(crate) unsettled: std::collections::VecDeque<WrittenRound>,
    pub(crate) unsynced_bytes: u64,
    /// Header checksum of the last durable round.
    pub(crate) durable_checksum: u32,
    /// Size of the next segment.
    pub(crate) next_bytes: u64,
    pub(crate) last_written: Timestamp,
    /// The last round that carried something.
    pub(crate) last_loaded_round: u64,
    /// What the last round names durable.
    pub(crate) last_vouches: u64,
    pub(crate) catalog: u64,
    /// The highest catalog record that a round names.
    pub(crate) named_catalog: u64,
    /// The catalog record that some round has to name, also when nothing else is to be written.
    pub(crate) owed_catalog: u64,
    /// The last round when the log was opened.
    pub(crate) opened_after: u64,
}

impl Writer {
    /// Whether this process has written no round yet. Its first one is durable before anything of
    /// it is acknowledged, in a `memory` log too: it says that the last close is not the last word,
    /// and it carries the jumps, so that no number is given out twice.
    pub(crate) fn is_at_start(&self) -> bool {
        self.chain.round == self.opened_after
    }

    /// Whether no round names the last one that carried something.
    pub(crate) fn is_unvouched(&self) -> bool {
        self.last_vouches < self.last_loaded_round
    }

    /// What travels in the next round besides frames.
    pub(crate) fn take_controls(&mut self) -> Vec<Control> {
        let mut controls = std::mem::take(&mut self.jumps);
        if self.trims.is_empty() && self.forgets.is_empty() {
            return controls;
        }
        while controls.len() < CONTROLS_PER_ROUND
            && let Some(shard) = self.forgets.pop()
        {
            controls.push(Control::Forget { shard });
        }
        let room = CONTROLS_PER_ROUND.saturating_sub(controls.len());
        let taken: Vec<ShardId> = self.trims.keys().copied().take(room).collect();
        for shard in taken {
            if let Some(before) = self.trims.remove(&shard) {
                controls.push(Control::Trim { shard, before });
            }
        }
        controls
    }

    /// Gives back what a round that was not written should have carried.
    fn return_controls(&mut self, controls: &[Control]) {
        for control in controls {
            match *control {
                Control::Trim { shard, before } => {
                    let waiting = self.trims.entry(shard).or_insert(before);
                    *waiting = before.max(*waiting);
                }
                Control::Forget { shard } => self.forgets.push(shard),
                Control::Jump { .. } => self.jumps.push(*control),
            }
        }
    }

    /// Writes one round, durable on return when `durable`. It is in [`Writer::unsettled`] then.
    pub(crate) fn put_round(
        &mut self,
        frames: &[NewFrame],
        now: Timestamp,
        flags: u16,
        durable: bool,
    ) -> Result<RoundNumber, PutError> {
        self.prepare_shards(frames);
        let controls = self.take_controls();
        let bytes = RoundEncoder::bytes_of(controls.len(), frames);
        if let Err(refused) = self.make_room(bytes, frames.len(), controls.len(), now) {
            self.return_controls(&controls);
            return Err(PutError::Refused(refused));
        }
        let result = self.write_round(&controls, frames, now, flags, durable);
        let (segment, position) = match result {
            Ok(place) => place,
            Err(source) => {
                self.return_controls(&controls);
                return Err(PutError::Failed(source));
            }
        };
        self.note_written(segment, position, controls, frames, now);
        Ok(RoundNumber(self.chain.round))
    }

    fn write_round(
        &mut self,
        controls: &[Control],
        frames: &[NewFrame],
        now: Timestamp,
        flags: u16,
        durable: bool,
    ) -> io::Result<(Arc<Segment>, u64)> {
        let active = self.active.as_ref().expect("BUG: room was made");
        let header = next_header(&active.segment, self.chain, self.catalog, now, flags);
        self.encoder
            .encode(header, controls, frames, active.position);
        let mut buffers: Vec<IoSlice<'_>> = Vec::with_capacity(16);
        let start = match &active.head {
            Some(head) => {
                buffers.push(IoSlice::new(head));
                0
            }
            None => active.position,
        };
        self.encoder.buffers(frames, &mut buffers);
        if durable {
            active.segment.file.write_durable_at(&buffers, start)?;
            count(&self.shared.counters.syncs, 1);
        } else {
            active.segment.file.write_at(&buffers, start)?;
        }
        Ok((Arc::clone(&active.segment), active.position))
    }

    /// Accounts for the round that was just written.
    fn note_written(
        &mut self,
        segment: Arc<Segment>,
        position: u64,
        controls: Vec<Control>,
        frames: &[NewFrame],
        now: Timestamp,
    ) {
        let bytes = self.encoder.bytes();
        let runs = self.encoder.runs().to_vec();
        let active = self.active.as_mut().expect("BUG: it was just written to");
        if active.head.is_some() {
            self.shared.insert_segment(Arc::clone(&active.segment));
            let mut work = self.shared.work.lock();
            let mut superseded = std::mem::take(&mut work.superseded);
            work.discarded.append(&mut superseded);
            work.wanted = (work.wanted + 1).min(PREPARED_MAX);
            self.shared.work.wake(work);
        }
        active.advance(bytes, &runs, &controls, self.catalog);
        for run in &runs {
            if let Some(shard) = self.shards.get_mut(&run.shard) {
                shard.end = run.end;
            }
        }
        self.chain.round += 1;
        self.chain.checksum = self.encoder.checksum();
        self.last_written = now;
        self.last_vouches = self.chain.durable;
        self.named_catalog = self.named_catalog.max(self.catalog);
        if !frames.is_empty() || !controls.is_empty() {
            self.last_loaded_round = self.chain.round;
        }
        self.unsynced_bytes += bytes;
        self.shared.written.fetch_add(bytes, Ordering::Relaxed);
        self.shared.work.stir();
        count(&self.shared.counters.rounds, 1);
        count(&self.shared.counters.round_bytes, bytes);
        self.unsettled.push_back(WrittenRound {
            round: self.chain.round,
            segment,
            position,
            bytes,
            checksum: self.chain.checksum,
            vouches: self.chain.durable,
            runs,
            controls,
            published: false,
        });
    }

    /// Makes the frames of the last written round readable.
    pub(crate) fn publish_last(&mut self) {
        let Some(mut written) = self.unsettled.pop_back() else {
            return;
        };
        self.publish(&mut written);
        self.unsettled.push_back(written);
    }

    fn publish(&mut self, written: &mut WrittenRound) {
        if std::mem::replace(&mut written.published, true) {
            return;
        }
        written
            .segment
            .file
            .publish(written.position + written.bytes);
        for control in &written.controls {
            if let Control::Jump {
                shard,
                from,
                to,
                lost,
            } = *control
                && let Some(known) = self.shards.get_mut(&shard)
            {
                known.end = known.end.max(to);
                known.cell.lock().jump(Gap { from, to, lost });
            }
        }
        let segment = written.segment.id();
        for run in &written.runs {
            let Some(known) = self.shards.get(&run.shard) else {
                continue;
            };
            let mark = known.cell.lock().append(Run::new(segment, run), run.epoch);
            if let (Some(mark), Some(active)) = (mark, &mut self.active) {
                active.touched.push(Touched {
                    cell: Arc::clone(&known.cell),
                    previous: mark.previous,
                });
            }
        }
    }

    /// Everything up to `round` is durable.
    pub(crate) fn settle(&mut self, round: u64) {
        let mut reclaim = false;
        while self
            .unsettled
            .front()
            .is_some_and(|written| written.round <= round)
        {
            let Some(mut written) = self.unsettled.pop_front() else {
                break;
            };
            self.publish(&mut written);
            self.unsynced_bytes -= written.bytes;
            self.durable_checksum = written.checksum;
            self.shared
                .vouched_round
                .fetch_max(written.vouches, Ordering::AcqRel);
            reclaim |= self.settle_controls(&written.controls);
        }
        self.chain.durable = self.chain.durable.max(round);
        self.shared.epoch.store(self.chain.epoch, Ordering::Release);
        self.shared
            .durable_round
            .store(self.chain.durable, Ordering::Release);
        self.shared.work.stir();
        if reclaim {
            let mut work = self.shared.work.lock();
            work.reclaim = true;
            self.shared.work.wake(work);
        }
    }

    fn settle_controls(&self, controls: &[Control]) -> bool {
        let mut reclaim = false;
        for control in controls {
            match *control {
                Control::Trim { shard, before } => {
                    reclaim = true;
                    if let Some(known) = self.shards.get(&shard) {
                        let mut state = known.cell.lock();
                        state.trim(before);
                        state.durable_horizon = state.durable_horizon.max(before);
                        let bytes = std::mem::take(&mut state.trimmed_bytes);
                        count(&self.shared.trimmed.bytes, bytes);
                    }
                }
                Control::Forget { shard } => {
                    reclaim = true;
                    self.shared.forgetting().remove(&shard);
                    count(&self.shared.trimmed.shards, 1);
                }
                Control::Jump { .. } => {}
            }
        }
        reclaim
    }

    /// Rolls to the next segment when the active one has no room for such a round.
    fn make_room(
        &mut self,
        bytes: u64,
        frames: usize,
        controls: usize,
        now: Timestamp,
    ) -> Result<(), WriteError> {
        let mut fits = false;
        if let Some(active) = &self.active {
            fits = active.has_room(bytes, frames, controls)
                && active.runs() < u64::from(self.shared.config.segment_runs_max);
            if fits && !self.should_roll_early(active, now) {
                return Ok(());
            }
        }
        let needed = active::segment_bytes_for(&self.shared, bytes, frames, controls);
        let prepared = match active::next_file(&self.shared, needed, self.next_bytes, frames == 0) {
            Ok(prepared) => prepared,
            // Rolling can wait for a disk that is not full; what frees space cannot.
            Err(WriteError::Full { .. }) if fits => return Ok(()),
            Err(refused) => return Err(refused),
        };
        let next = Active::new(&self.shared, prepared, self.chain, 0, now);
        if let Some(full) = self.active.replace(next) {
            self.retire(full, now);
        }
        Ok(())
    }

    fn should_roll_early(&self, active: &Active, now: Timestamp) -> bool {
        if !active.has_rounds() {
            return false;
        }
        let age = now.since(active.segment.header.created);
        let roll = self.shared.roll.load(Ordering::Acquire) && active.runs() > 0;
        roll || age >= self.shared.config.segment_age()
    }

    /// Hands the segments that opening had to read to the housekeeper, for their footers.
    pub(crate) fn queue_recovered(&self) {
        let mut work = self.shared.work.lock();
        for segment in self.shared.all_segments() {
            let FooterPlace::Pinned(footer) = segment.footer() else {
                continue;
            };
            if !segment.is_failed() {
                work.sealing.push_back(Sealing {
                    summary: footer.summary,
                    segment,
                    touched: Vec::new(),
                    controls: Vec::new(),
                });
            }
        }
        work.reclaim = true;
    }

    /// Hands a full segment to the housekeeper for its footer.
    fn retire(&mut self, full: Active, now: Timestamp) {
        let config = &self.shared.config;
        let age = now.since(full.segment.header.created);
        let by_wish = self.shared.roll.swap(false, Ordering::AcqRel);
        let is_usual = full.segment.file.bytes() >= config.segment_bytes_min;
        if full.has_rounds() && is_usual && age < config.segment_age() && !by_wish {
            let by_runs = full.runs() >= u64::from(config.segment_runs_max);
            let wanted = full.next_bytes(by_runs);
            self.next_bytes = wanted.clamp(config.segment_bytes_min, config.segment_bytes_max);
        }
        let mut work = self.shared.work.lock();
        work.next_bytes = self.next_bytes;
        if full.has_rounds() {
            work.sealing
                .push_back(full.into_sealing(self.chain, self.last_written));
        }
        self.shared.work.wake(work);
    }
}

/// The header of the round after `chain`, sizes and checksums open.
pub(crate) fn next_header(
    segment: &Segment,
    chain: ChainEnd,
    catalog: u64,
    now: Timestamp,
    flags: u16,
) -> RoundHeader {
    RoundHeader {
        flags,
        bytes: 0,
        control_bytes: 0,
        frame_count: 0,
        log: segment.header.log,
        segment: segment.header.segment,
        salt: segment.header.salt,
        round: chain.round + 1,
        last_durable: chain.durable,
        catalog,
        written: now,
        epoch: chain.epoch,
        previous_checksum: chain.checksum,
        frames_checksum: 0,
    }
}
