//! Putting together where every shard stands, from states, footers and rounds.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use flumen_record::{SequenceNumber, ShardId};

use super::inventory::{Candidate, Inventory};
use super::scan::{Scan, ScannedRound};
use super::{Quarantined, Recovery, Replay, ShardRecovery};
use crate::control::Control;
use crate::footer::{FooterBuilder, FooterRow, FooterSummary, Trailer};
use crate::footer_cache::{read_all_producers, read_rows};
use crate::index::{Mark, Run, ShardCell};
use crate::log::writer::{Writer, WriterShard};
use crate::round::{FoundFrame, NewRun, mark_of};
use crate::segment::{FooterPlace, Segment};
use crate::shared::{DamagedRange, Shared};
use crate::snapshot::Snapshot;
use crate::state::{Gap, ShardStanding, add_gap, drop_gaps_below, uncovered};

/// How far a shard jumps when numbers may have been given out and lost.
const JUMP: u64 = 1 << 32;

/// What is known of a shard so far.
#[derive(Debug)]
struct Restored {
    standing: ShardStanding,
    marks: Vec<Mark>,
    /// How many damages of unknown extent its latest run is behind.
    damages_seen: u64,
    /// Its latest frame is damaged.
    hidden: bool,
}

impl Restored {
    fn new(standing: ShardStanding, damages_seen: u64) -> Self {
        Self {
            standing,
            marks: Vec::new(),
            damages_seen,
            hidden: false,
        }
    }
}

/// A segment without a footer, while its rounds come in.
#[derive(Debug)]
struct Open {
    builder: FooterBuilder,
    summary: FooterSummary,
    damaged: bool,
}

/// Sequence numbers between two runs of a shard.
#[derive(Debug)]
struct Hole {
    shard: ShardId,
    from: SequenceNumber,
    to: SequenceNumber,
    /// The damage found last before it.
    damage: Option<usize>,
    segment: String,
}

/// See the module.
pub(super) struct Restorer<'r> {
    shared: Arc<Shared>,
    replay: &'r mut dyn Replay,
    shards: BTreeMap<ShardId, Restored>,
    /// By index in the inventory.
    open: BTreeMap<usize, Open>,
    trailers: BTreeMap<usize, Trailer>,
    current: (usize, String),
    /// Damages that may have hidden runs of any shard.
    damages: u64,
    quarantined: Vec<Quarantined>,
    holes: Vec<Hole>,
    jumped: BTreeMap<ShardId, SequenceNumber>,
    /// Rounds up to this one are in the snapshot.
    covered: u64,
    /// Where shards ended in the snapshot.
    covered_ends: BTreeMap<ShardId, SequenceNumber>,
}

impl<'r> Restorer<'r> {
    pub(super) fn new(
        shared: &Arc<Shared>,
        replay: &'r mut dyn Replay,
        snapshot: Option<&Snapshot>,
    ) -> Self {
        let mut shards = BTreeMap::new();
        let mut covered_ends = BTreeMap::new();
        for shard in snapshot
            .map(|snapshot| snapshot.shards.as_slice())
            .unwrap_or_default()
        {
            covered_ends.insert(shard.standing.shard, shard.standing.end);
            let mut restored = Restored::new(shard.standing.clone(), 0);
            restored.marks.extend_from_slice(&shard.marks);
            shards.insert(shard.standing.shard, restored);
        }
        for (shard, state) in snapshot
            .map(|snapshot| snapshot.states.as_slice())
            .unwrap_or_default()
        {
            replay.state(*shard, state.clone());
        }
        Self {
            shared: Arc::clone(shared),
            replay,
            shards,
            covered: snapshot.map_or(0, |snapshot| snapshot.chain.round),
            covered_ends,
            open: BTreeMap::new(),
            trailers: BTreeMap::new(),
            current: (0, String::new()),
            damages: 0,
            quarantined: Vec::new(),
            holes: Vec::new(),
            jumped: BTreeMap::new(),
        }
    }

    /// The state at the head of a segment whose predecessors are gone: it names all shards.
    pub(super) fn state(&mut self, table: &[ShardStanding]) {
        let named: std::collections::BTreeSet<ShardId> =
            table.iter().map(|standing| standing.shard).collect();
        self.shards.retain(|shard, _| named.contains(shard));
        for standing in table {
            let damages = self.damages;
            self.shards
                .entry(standing.shard)
                .or_insert_with(|| Restored::new(ShardStanding::new(standing.shard), damages))
                .standing
                .merge(standing);
        }
    }

    /// Damage of unknown extent: any shard may have lost what follows its latest run.
    pub(super) fn damage(&mut self, segment: &str, reason: String) {
        self.damages += 1;
        self.note(segment, reason);
    }

    /// Damage that will be found shard by shard.
    pub(super) fn note(&mut self, segment: &str, reason: String) {
        if let Some(open) = self.open.get_mut(&self.current.0) {
            open.damaged = true;
        }
        self.quarantined.push(Quarantined {
            segment: segment.to_owned(),
            shards: Vec::new(),
            reason,
        });
    }

    /// A segment that stands by its footer, and is in the snapshot.
    pub(super) fn covered(&mut self, index: usize, trailer: &Trailer) {
        self.trailers.insert(index, *trailer);
    }

    /// Whether a batch is in the snapshot.
    fn is_covered(&self, shard: ShardId, base: SequenceNumber) -> bool {
        self.covered_ends.get(&shard).is_some_and(|end| base < *end)
    }

    /// A segment that stands by its footer.
    pub(super) fn sealed(
        &mut self,
        index: usize,
        candidate: &Candidate,
        trailer: &Trailer,
    ) -> io::Result<()> {
        let footer = read_rows(&*candidate.file, &candidate.header, trailer)?;
        let producers =
            read_all_producers(&*candidate.file, &candidate.header, trailer, &footer.rows)?;
        self.current = (index, candidate.name.to_string());
        let id = candidate.name.segment;
        let forgets = |control: &&Control| matches!(control, Control::Forget { .. });
        let others: Vec<Control> = footer
            .controls
            .iter()
            .filter(|control| !forgets(control))
            .copied()
            .collect();
        self.controls(&others);
        for row in &footer.rows {
            self.row(id, row);
        }
        for (shard, mark) in producers {
            if !self.is_covered(shard, mark.base) {
                self.replay.batch(shard, &mark, true);
            }
        }
        // A shard that was forgotten never comes back.
        let forgets: Vec<Control> = footer.controls.iter().filter(forgets).copied().collect();
        self.controls(&forgets);
        self.trailers.insert(index, *trailer);
        Ok(())
    }

    fn row(&mut self, segment: u64, row: &FooterRow) {
        if self
            .covered_ends
            .get(&row.shard)
            .is_some_and(|end| row.end <= *end)
        {
            return;
        }
        self.hole(row.shard, row.base);
        let restored = self.shard(row.shard, row.base);
        let known = restored.standing.last_segment == segment;
        restored.standing.end = restored.standing.end.max(row.end);
        restored.standing.last_arrival = restored.standing.last_arrival.max(row.last_arrival);
        restored.standing.epoch = restored.standing.epoch.max(row.epoch);
        restored.standing.last_segment = segment;
        if known {
            return;
        }
        restored.standing.stored_bytes += row.bytes;
        restored.marks.push(Mark {
            base: row.base,
            arrival: row.arrival,
            segment,
            previous: row.previous,
        });
    }

    fn shard(&mut self, shard: ShardId, base: SequenceNumber) -> &mut Restored {
        let damages = self.damages;
        let restored = self.shards.entry(shard).or_insert_with(|| {
            let mut standing = ShardStanding::new(shard);
            standing.horizon = base;
            standing.end = base;
            Restored::new(standing, damages)
        });
        restored.damages_seen = damages;
        restored.hidden = false;
        restored
    }

    /// Records are missing before `base` unless a jump or the horizon explains it. The horizon is
    /// known in the end only.
    fn hole(&mut self, shard: ShardId, base: SequenceNumber) {
        let Some(restored) = self.shards.get(&shard) else {
            return;
        };
        let standing = &restored.standing;
        let from = standing.end.max(standing.horizon);
        if let Some(from) = uncovered(&standing.gaps, from, base) {
            self.holes.push(Hole {
                shard,
                from,
                to: base,
                damage: self.quarantined.len().checked_sub(1),
                segment: self.current.1.clone(),
            });
        }
    }

    /// Reports the holes that nothing explains.
    fn report_holes(&mut self) {
        for hole in std::mem::take(&mut self.holes) {
            let Some(cell) = self.shared.index.get(hole.shard) else {
                continue;
            };
            let horizon = cell.lock().horizon;
            if hole.to > horizon {
                self.lost(&hole, hole.from.max(horizon));
            }
        }
    }

    fn lost(&mut self, hole: &Hole, from: SequenceNumber) {
        let damage = hole.damage.unwrap_or_else(|| {
            self.quarantined.push(Quarantined {
                segment: hole.segment.clone(),
                shards: Vec::new(),
                reason: "records before this segment are missing".to_owned(),
            });
            self.quarantined.len() - 1
        });
        if let Some(damage) = self.quarantined.get_mut(damage) {
            damage.shards.push((hole.shard, from, hole.to));
            self.shared.damaged().push(DamagedRange {
                shard: hole.shard,
                from,
                to: hole.to,
                segment: damage.segment.clone(),
            });
        }
    }

    /// A segment whose rounds come next.
    pub(super) fn begin_segment(&mut self, index: usize, candidate: &Candidate) {
        self.current = (index, candidate.name.to_string());
        self.open.entry(index).or_insert_with(|| Open {
            builder: FooterBuilder::default(),
            summary: FooterSummary {
                first_round: candidate.first_round(),
                last_round: candidate.header.continues_after,
                last_checksum: candidate.header.previous_checksum,
                data_end: candidate.header.rounds_at(),
                catalog: 0,
                last_written: candidate.header.created,
            },
            damaged: candidate.header_rebuilt,
        });
    }

    /// A round that stays where it is.
    pub(super) fn round(&mut self, round: &ScannedRound, segment: u64) {
        let header = &round.found.header;
        if let Some(open) = self.open.get_mut(&round.segment) {
            open.summary.last_round = header.round;
            open.summary.last_checksum = round.found.checksum;
            open.summary.data_end = round.end();
            open.summary.catalog = open.summary.catalog.max(header.catalog);
            open.summary.last_written = header.written;
            open.builder.push_controls(&round.found.control);
            open.damaged |= !round.content.is_intact();
        }
        let covered = header.round <= self.covered;
        if !covered {
            self.controls(&round.found.control);
        }
        let mut damaged = round.content.damaged.iter().peekable();
        let mut run: Option<NewRun> = None;
        for (index, frame) in round.content.frames.iter().enumerate() {
            while let Some(spot) = damaged.next_if(|spot| spot.before <= index) {
                self.hide(spot.shard);
            }
            if !run.as_mut().is_some_and(|run| extend(run, frame)) {
                if let Some(done) = run.replace(begin(frame)) {
                    self.run(round.segment, segment, &done, covered);
                }
            }
            self.batch(round.segment, frame, covered);
        }
        if let Some(done) = run {
            self.run(round.segment, segment, &done, covered);
        }
        for spot in damaged {
            self.hide(spot.shard);
        }
    }

    fn hide(&mut self, shard: Option<ShardId>) {
        match shard.map(|shard| self.shards.get_mut(&shard)) {
            Some(Some(restored)) => restored.hidden = true,
            Some(None) => {}
            None => self.damages += 1,
        }
    }

    fn run(&mut self, index: usize, segment: u64, run: &NewRun, covered: bool) {
        let previous = if covered {
            self.previous_of(run.shard, segment)
        } else {
            self.stand(run, segment)
        };
        if let Some(open) = self.open.get_mut(&index) {
            open.builder
                .push_run(run.shard, Run::new(segment, run), run.epoch, previous);
        }
    }

    /// Moves a shard on to the end of `run`. Returns the segment that held it before this one.
    fn stand(&mut self, run: &NewRun, segment: u64) -> u64 {
        self.hole(run.shard, run.base);
        let restored = self.shard(run.shard, run.base);
        let previous = restored.standing.last_segment;
        if previous != segment {
            restored.marks.push(Mark {
                base: run.base,
                arrival: run.arrival,
                segment,
                previous,
            });
        }
        let standing = &mut restored.standing;
        standing.end = standing.end.max(run.end);
        standing.last_arrival = standing.last_arrival.max(run.last_arrival);
        standing.epoch = standing.epoch.max(run.epoch);
        standing.stored_bytes += u64::from(run.bytes);
        standing.last_segment = segment;
        previous
    }

    /// The segment before `segment` that holds a shard, for one that is in the snapshot: by its
    /// marks, or just the one before, from which readers search on.
    fn previous_of(&self, shard: ShardId, segment: u64) -> u64 {
        let marks = self
            .shards
            .get(&shard)
            .map(|restored| restored.marks.as_slice());
        marks
            .unwrap_or_default()
            .iter()
            .find(|mark| mark.segment == segment)
            .map_or(segment - 1, |mark| mark.previous)
    }

    fn batch(&mut self, index: usize, frame: &FoundFrame, covered: bool) {
        let mark = mark_of(&frame.header, frame.batch.header());
        if let Some(open) = self.open.get_mut(&index) {
            open.builder.push_batch(frame.header.shard, mark);
        }
        if !covered {
            self.replay.batch(frame.header.shard, &mark, false);
        }
    }

    fn controls(&mut self, controls: &[Control]) {
        for control in controls {
            match *control {
                Control::Trim { shard, before } => {
                    let standing = &mut self.shard_of(shard, before).standing;
                    standing.horizon = standing.horizon.max(before);
                    standing.end = standing.end.max(before);
                    drop_gaps_below(&mut standing.gaps, before);
                }
                Control::Forget { shard } => {
                    self.shards.remove(&shard);
                }
                Control::Jump {
                    shard,
                    from,
                    to,
                    lost,
                } => {
                    let standing = &mut self.shard_of(shard, from).standing;
                    add_gap(&mut standing.gaps, Gap { from, to, lost });
                    standing.end = standing.end.max(to);
                }
            }
        }
    }

    fn shard_of(&mut self, shard: ShardId, at: SequenceNumber) -> &mut Restored {
        let damages = self.damages;
        self.shards.entry(shard).or_insert_with(|| {
            let mut standing = ShardStanding::new(shard);
            standing.horizon = at;
            standing.end = at;
            Restored::new(standing, damages)
        })
    }

    /// Hands shards and segments over to the writer and the readers.
    pub(super) fn install(&mut self, writer: &mut Writer, inventory: &Inventory, scan: &Scan) {
        for (shard, restored) in &mut self.shards {
            let cell = ShardCell::new(&restored.standing);
            {
                let mut state = cell.lock();
                for mark in restored.marks.drain(..) {
                    state.add_mark(mark);
                }
            }
            self.shared.index.insert(Arc::clone(&cell));
            let end = restored.standing.end;
            writer.shards.insert(*shard, WriterShard { cell, end });
        }
        for (index, candidate) in inventory
            .segments
            .iter()
            .enumerate()
            .take(scan.segments_end)
        {
            let (place, summary, damaged) =
                match (self.trailers.get(&index), self.open.remove(&index)) {
                    (Some(trailer), _) => (FooterPlace::Disk(*trailer), trailer.summary, false),
                    (None, Some(open)) => {
                        let footer = open.builder.finish(open.summary);
                        (FooterPlace::Pinned(footer), open.summary, open.damaged)
                    }
                    (None, None) => continue,
                };
            let segment = Segment::new(
                candidate.path.clone(),
                Arc::clone(&candidate.file),
                candidate.header,
                None,
                place,
            );
            segment.file.publish(summary.data_end);
            segment.set_end(summary.data_end, summary.last_round);
            if candidate.failed || damaged {
                segment.set_failed();
            }
            self.shared.insert_segment(Arc::new(segment));
        }
    }

    /// Hands on a batch of the tail.
    pub(super) fn tail_batch(&mut self, frame: &FoundFrame) {
        self.replay.batch(
            frame.header.shard,
            &mark_of(&frame.header, frame.batch.header()),
            false,
        );
    }

    /// Makes those shards jump for which numbers may have been given out and lost. A jump is
    /// durable with the next round; until then opening again finds the same.
    pub(super) fn jump(&mut self, writer: &mut Writer, clean: bool) {
        self.report_holes();
        let unclean_memory = self.shared.is_memory() && !clean;
        let shards: Vec<(ShardId, Arc<ShardCell>)> = writer
            .shards
            .iter()
            .map(|(shard, known)| (*shard, Arc::clone(&known.cell)))
            .collect();
        for (shard, cell) in shards {
            let hidden = self.shards.get(&shard).is_some_and(|restored| {
                let written_since = cell.lock().end > restored.standing.end;
                (restored.hidden || restored.damages_seen < self.damages) && !written_since
            });
            if !hidden && !unclean_memory {
                continue;
            }
            let mut state = cell.lock();
            let (from, to) = (state.end, state.end.plus(JUMP));
            state.add_gap(Gap {
                from,
                to,
                lost: hidden,
            });
            state.end = to;
            drop(state);
            if hidden {
                let hole = Hole {
                    shard,
                    from,
                    to,
                    damage: self.quarantined.len().checked_sub(1),
                    segment: self.current.1.clone(),
                };
                self.lost(&hole, from);
            }
            self.jumped.insert(shard, to);
            if let Some(known) = writer.shards.get_mut(&shard) {
                known.end = to;
            }
            writer.jumps.push(Control::Jump {
                shard,
                from,
                to,
                lost: hidden,
            });
        }
    }

    pub(super) fn report(self, writer: &Writer, scan: &Scan, tail_rounds: u64) -> Recovery {
        let mut shards: Vec<ShardRecovery> = writer
            .shards
            .iter()
            .map(|(shard, known)| {
                let state = known.cell.lock();
                ShardRecovery {
                    shard: *shard,
                    trim_horizon: state.horizon,
                    next: state.end,
                    epoch: state.epoch,
                    last_arrival: state.last_arrival,
                    jumped: self.jumped.get(shard).copied(),
                }
            })
            .collect();
        shards.sort_unstable_by_key(|shard| shard.shard);
        Recovery {
            clean: scan.clean,
            complete: scan.complete,
            shards,
            sealed_segments: scan.sealed_segments,
            scanned_bytes: scan.scanned_bytes,
            tail_rounds_rewritten: tail_rounds,
            discarded_bytes: scan.discarded_bytes,
            quarantined: self.quarantined,
            catalog_named: writer.catalog,
        }
    }
}

fn begin(frame: &FoundFrame) -> NewRun {
    NewRun {
        shard: frame.header.shard,
        epoch: frame.header.epoch,
        base: frame.header.base,
        end: frame.end(),
        arrival: frame.header.arrival,
        last_arrival: frame.header.arrival,
        position: frame.position,
        bytes: frame.header.frame_bytes,
        producers: 1,
    }
}

/// Adds a frame to a run that it continues.
fn extend(run: &mut NewRun, frame: &FoundFrame) -> bool {
    let next_to = run.position + u64::from(run.bytes) == frame.position;
    if run.shard != frame.header.shard || run.end != frame.header.base || !next_to {
        return false;
    }
    run.end = frame.end();
    run.last_arrival = run.last_arrival.max(frame.header.arrival);
    run.epoch = run.epoch.max(frame.header.epoch);
    run.bytes += frame.header.frame_bytes;
    true
}
