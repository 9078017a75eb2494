//! Putting together where every shard stands, from states, footers and rounds.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use flumen_record::{SequenceNumber, ShardId, Timestamp};

use super::inventory::{Candidate, Inventory};
use super::loss::Losses;
use super::runs::{begin, extend};
use super::scan::{Scan, ScannedRound};
use super::standings::{MovedRun, Standings};
use super::{Recovery, Replay, ShardRecovery};
use crate::control::Control;
use crate::footer::{FooterBuilder, FooterRow, FooterSummary, Trailer};
use crate::footer_cache::{read_all_producers, read_rows};
use crate::index::{Run, ShardCell};
use crate::log::writer::{Writer, WriterShard};
use crate::round::{FoundFrame, NewRun, mark_of};
use crate::segment::{FooterPlace, Segment};
use crate::shared::Shared;
use crate::snapshot::Snapshot;
use crate::state::ShardStanding;

/// A segment without a footer, while its rounds come in.
#[derive(Debug)]
struct Open {
    builder: FooterBuilder,
    summary: FooterSummary,
    damaged: bool,
}

/// See the module.
pub(super) struct Restorer<'r> {
    pub(super) shared: Arc<Shared>,
    replay: &'r mut dyn Replay,
    pub(super) standings: Standings,
    pub(super) losses: Losses,
    /// By index in the inventory.
    open: BTreeMap<usize, Open>,
    trailers: BTreeMap<usize, Trailer>,
    pub(super) current: (usize, String),
    pub(super) jumped: BTreeMap<ShardId, SequenceNumber>,
    /// Rounds up to this one are in the snapshot.
    covered: u64,
    /// The newest segment the snapshot knows. Its rounds that stand in a later one were written
    /// again after it was captured.
    covered_segment: u64,
    /// Where shards ended in the snapshot.
    covered_ends: BTreeMap<ShardId, SequenceNumber>,
}

impl<'r> Restorer<'r> {
    pub(super) fn new(
        shared: &Arc<Shared>,
        replay: &'r mut dyn Replay,
        snapshot: Option<&Snapshot>,
    ) -> Self {
        let covered_ends = snapshot
            .map(|snapshot| snapshot.shards.as_slice())
            .unwrap_or_default()
            .iter()
            .map(|shard| (shard.standing.shard, shard.standing.end))
            .collect();
        for (shard, state) in snapshot
            .map(|snapshot| snapshot.states.as_slice())
            .unwrap_or_default()
        {
            replay.state(*shard, state.clone());
        }
        Self {
            shared: Arc::clone(shared),
            replay,
            standings: Standings::new(snapshot),
            losses: Losses::default(),
            covered: snapshot.map_or(0, |snapshot| snapshot.chain.round),
            covered_segment: snapshot.map_or(0, |snapshot| snapshot.segment),
            covered_ends,
            open: BTreeMap::new(),
            trailers: BTreeMap::new(),
            current: (0, String::new()),
            jumped: BTreeMap::new(),
        }
    }

    /// About what the table of all shards takes at the head of a segment.
    pub(super) fn state_bytes(&self) -> u64 {
        self.standings.state_bytes()
    }

    /// The state at the head of a segment whose predecessors are gone: it names all shards.
    pub(super) fn state(&mut self, table: &[ShardStanding]) {
        self.standings.take_over(table);
    }

    /// Damage of unknown extent: any shard may have lost what follows its latest run.
    pub(super) fn damage(&mut self, segment: &str, reason: String) {
        self.standings.damage();
        self.note(segment, reason);
    }

    /// As [`Restorer::damage`], of rounds that are gone: any shard may have begun in them.
    pub(super) fn lose_rounds(&mut self, segment: &str, reason: String) {
        self.standings.hide_beginnings();
        self.damage(segment, reason);
    }

    /// Damage that will be found shard by shard.
    pub(super) fn note(&mut self, segment: &str, reason: String) {
        if let Some(open) = self.open.get_mut(&self.current.0) {
            open.damaged = true;
        }
        self.losses.damage(segment, reason);
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
        self.standings.whole(trailer.summary.last_written);
        // A shard that jumped in its first segment has what stands before the jump, which may be
        // nothing.
        let mut begin: BTreeMap<ShardId, SequenceNumber> = BTreeMap::new();
        for row in &footer.rows {
            begin.insert(row.shard, row.base);
        }
        for control in &others {
            if let Control::Jump { shard, from, .. } = control
                && let Some(begin) = begin.get_mut(shard)
            {
                *begin = (*begin).min(*from);
            }
        }
        for (shard, at) in begin {
            self.standings.begin(shard, at);
        }
        self.standings.controls(&others);
        for row in &footer.rows {
            self.row(id, row);
        }
        for (shard, mark) in producers {
            if !self.is_covered(shard, mark.base) {
                self.replay.batch(shard, &mark, true);
            }
        }
        // Of a shard that came back only a trim remains, so these are gone for good.
        let forgets: Vec<Control> = footer.controls.iter().filter(forgets).copied().collect();
        self.standings.controls(&forgets);
        self.trailers.insert(index, *trailer);
        Ok(())
    }

    fn row(&mut self, segment: u64, row: &FooterRow) {
        if self.is_covered(row.shard, row.base) && segment > self.covered_segment {
            let moved = MovedRun {
                shard: row.shard,
                base: row.base,
                arrival: row.arrival,
            };
            self.standings.move_run(segment, &moved);
        }
        let covered_end = self.covered_ends.get(&row.shard);
        if covered_end.is_none_or(|end| row.end > *end) {
            self.note_hole(row.shard, row.base);
            self.standings.stand_by_row(segment, row);
        }
    }

    /// Notes it when records are missing before `base`.
    fn note_hole(&mut self, shard: ShardId, base: SequenceNumber) {
        if let Some(from) = self.standings.missing_before(shard, base) {
            self.losses.hole(shard, from, base, &self.current.1);
        }
    }

    /// Reports the holes that nothing explains.
    pub(super) fn report_holes(&mut self) {
        let index = &self.shared.index;
        let horizon = |shard| index.get(shard).map(|cell| cell.lock().horizon);
        let lost = self.losses.settle(horizon);
        self.shared.damaged().extend(lost);
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
        self.standings.whole(header.written);
        if !covered {
            self.standings.controls(&round.found.control);
        }
        let mut damaged = round.content.damaged.iter().peekable();
        let mut run: Option<NewRun> = None;
        for (index, frame) in round.content.frames.iter().enumerate() {
            while let Some(spot) = damaged.next_if(|spot| spot.before <= index) {
                self.hide(spot.shard, covered);
            }
            if !run.as_mut().is_some_and(|run| extend(run, frame))
                && let Some(done) = run.replace(begin(frame))
            {
                self.run(round.segment, segment, &done, covered);
            }
            self.batch(round.segment, frame, covered);
        }
        if let Some(done) = run {
            self.run(round.segment, segment, &done, covered);
        }
        for spot in damaged {
            self.hide(spot.shard, covered);
        }
    }

    /// A damaged frame may have been a shard's last, unless the snapshot says how far that got.
    fn hide(&mut self, shard: Option<ShardId>, covered: bool) {
        if !covered {
            self.standings.hide(shard);
        }
    }

    fn run(&mut self, index: usize, segment: u64, run: &NewRun, covered: bool) {
        let previous = if covered && segment > self.covered_segment {
            let moved = MovedRun {
                shard: run.shard,
                base: run.base,
                arrival: run.arrival,
            };
            self.standings.move_run(segment, &moved)
        } else if covered {
            self.standings.previous_of(run.shard, segment)
        } else {
            self.note_hole(run.shard, run.base);
            self.standings.stand_by_run(segment, run)
        };
        if let Some(open) = self.open.get_mut(&index) {
            open.builder
                .push_run(run.shard, Run::new(segment, run), run.epoch, previous);
        }
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

    /// Rounds of the tail that are in the snapshot are about to stand elsewhere: their shards stand
    /// where they did before them.
    pub(super) fn take_back_tail(&mut self, scan: &Scan) {
        let rounds = scan
            .tail
            .iter()
            .filter(|round| round.round() > self.covered);
        for round in rounds {
            self.standings.whole(round.found.header.written);
            if self.standings.hidden_until(Timestamp::ZERO).is_some() {
                for frame in &round.content.frames {
                    self.standings.begin(frame.header.shard, frame.header.base);
                }
            }
        }
        let covered = scan
            .tail
            .iter()
            .filter(|round| round.round() <= self.covered);
        for round in covered.rev() {
            for frame in round.content.frames.iter().rev() {
                self.standings.take_back(&frame.header);
            }
        }
    }

    /// Hands shards and segments over to the writer and the readers.
    pub(super) fn install(&mut self, writer: &mut Writer, inventory: &Inventory, scan: &Scan) {
        let segments = inventory.segments.iter().take(scan.segments_end);
        let there: BTreeSet<u64> = segments.map(|one| one.name.segment).collect();
        for (shard, restored) in self.standings.iter_mut() {
            // A snapshot may name segments that were lost since.
            restored.marks.retain(|mark| there.contains(&mark.segment));
            let cell = ShardCell::new(&restored.standing);
            {
                let mut state = cell.lock();
                for mark in restored.marks.drain(..) {
                    state.add_mark(mark);
                }
                state.drop_dead_marks();
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

    /// Hands on the batches of a round of the tail.
    pub(super) fn tail_round(&mut self, round: &ScannedRound) {
        if round.round() <= self.covered {
            return;
        }
        for frame in &round.content.frames {
            let mark = mark_of(&frame.header, frame.batch.header());
            self.replay.batch(frame.header.shard, &mark, false);
        }
    }

    pub(super) fn report(
        self,
        writer: &Writer,
        scan: &Scan,
        tail_rounds: u64,
        now: Timestamp,
    ) -> Recovery {
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
            quarantined: self.losses.into_quarantined(),
            written: Timestamp::ZERO,
            catalog_named: writer.catalog,
            hidden_until: self.standings.hidden_until(now),
        }
    }
}
