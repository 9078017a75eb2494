//! Where every shard stands, while footers, rounds and controls come in.

use std::collections::{BTreeMap, BTreeSet};

use flumen_record::{FrameHeader, SequenceNumber, ShardId, Timestamp};

use crate::control::Control;
use crate::footer::FooterRow;
use crate::index::Mark;
use crate::round::NewRun;
use crate::snapshot::Snapshot;
use crate::state::{Gap, ShardStanding, add_gap, drop_gaps_below, uncovered};

/// What is known of a shard so far.
#[derive(Debug)]
pub(super) struct Restored {
    pub(super) standing: ShardStanding,
    pub(super) marks: Vec<Mark>,
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

    /// One of which nothing is known before `at`.
    fn beginning_at(shard: ShardId, at: SequenceNumber, damages_seen: u64) -> Self {
        let mut standing = ShardStanding::new(shard);
        standing.horizon = at;
        standing.end = at;
        Self::new(standing, damages_seen)
    }

    /// Runs from `base` up to `end` are here: a gap that reaches over where they begin was recorded by
    /// mistake, while the shard lay elsewhere. Those that begin behind are between the runs.
    fn make_way(&mut self, base: SequenceNumber, end: SequenceNumber) {
        if base >= self.standing.end {
            return;
        }
        let gaps = &mut self.standing.gaps;
        let over = gaps
            .iter()
            .position(|gap| gap.from <= base && base < gap.to);
        let Some(over) = over else {
            return;
        };
        let gap = gaps.remove(over);
        let after = Gap {
            from: end.max(gap.from),
            ..gap
        };
        let before = Gap { to: base, ..gap };
        for part in [before, after] {
            add_gap(gaps, part);
        }
    }

    /// Drops the marks from `base` on. Returns the segment that holds what is before it.
    fn drop_marks_from(&mut self, base: SequenceNumber) -> u64 {
        let mut previous = self.standing.last_segment;
        while let Some(mark) = self.marks.pop_if(|mark| mark.base >= base) {
            previous = mark.previous;
        }
        previous
    }
}

/// The first run of a shard that stands elsewhere now.
#[derive(Debug, Clone, Copy)]
pub(super) struct MovedRun {
    pub(super) shard: ShardId,
    pub(super) base: SequenceNumber,
    pub(super) arrival: Timestamp,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Standings {
    shards: BTreeMap<ShardId, Restored>,
    /// Damages that may have hidden runs of any shard.
    damages: u64,
    /// Rounds or frames are gone, and may have been the first ones of shards.
    beginnings: Hidden,
}

/// Whether damage may have hidden the first runs of shards, and until when.
#[derive(Debug, Default)]
struct Hidden {
    /// Since then no whole round was found.
    open: bool,
    /// When the first whole round after the last such damage was written.
    until: Option<Timestamp>,
}

impl Standings {
    /// What the table of all shards takes, were it written now.
    pub(super) fn state_bytes(&self) -> u64 {
        let bytes = |restored: &Restored| restored.standing.encoded_bytes() as u64;
        self.shards.values().map(bytes).sum()
    }

    pub(super) fn new(snapshot: Option<&Snapshot>) -> Self {
        let mut standings = Self::default();
        for shard in snapshot
            .map(|snapshot| snapshot.shards.as_slice())
            .unwrap_or_default()
        {
            let mut restored = Restored::new(shard.standing.clone(), 0);
            restored.standing.drop_gaps_beyond();
            restored.marks.extend_from_slice(&shard.marks);
            standings.shards.insert(shard.standing.shard, restored);
        }
        standings
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&ShardId, &mut Restored)> {
        self.shards.iter_mut()
    }

    /// Damage of unknown extent: any shard may have lost what follows its latest run.
    pub(super) fn damage(&mut self) {
        self.damages += 1;
    }

    /// Rounds are gone: shards may have begun in them.
    pub(super) fn hide_beginnings(&mut self) {
        self.beginnings.open = true;
    }

    /// A whole round, or a segment of them, that was written at this time.
    pub(super) fn whole(&mut self, written: Timestamp) {
        if std::mem::take(&mut self.beginnings.open) {
            self.beginnings.until = self.beginnings.until.max(Some(written));
        }
    }

    /// Shards that existed until then may have begun where nothing can be read any more.
    pub(super) fn hidden_until(&self, now: Timestamp) -> Option<Timestamp> {
        if self.beginnings.open {
            Some(now)
        } else {
            self.beginnings.until
        }
    }

    /// Where a shard begins whose first known run begins at `base`.
    fn beginning_of(&self, base: SequenceNumber) -> SequenceNumber {
        let hidden = self.beginnings.open || self.beginnings.until.is_some();
        if hidden { SequenceNumber::ZERO } else { base }
    }

    /// A damaged frame, of this shard when its header could be read.
    pub(super) fn hide(&mut self, shard: Option<ShardId>) {
        match shard.map(|shard| self.shards.get_mut(&shard)) {
            Some(Some(restored)) => restored.hidden = true,
            Some(None) => self.hide_beginnings(),
            None => {
                self.damages += 1;
                self.hide_beginnings();
            }
        }
    }

    /// Whether damage may hide runs of a shard behind its latest one, unless it now `end`s later.
    pub(super) fn is_hidden(&self, shard: ShardId, end: SequenceNumber) -> bool {
        self.shards.get(&shard).is_some_and(|restored| {
            let written_since = end > restored.standing.end;
            (restored.hidden || restored.damages_seen < self.damages) && !written_since
        })
    }

    /// The state at the head of a segment whose predecessors are gone: it names all shards.
    pub(super) fn take_over(&mut self, table: &[ShardStanding]) {
        let named: BTreeSet<ShardId> = table.iter().map(|standing| standing.shard).collect();
        self.shards.retain(|shard, _| named.contains(shard));
        for standing in table {
            let mut standing = standing.clone();
            standing.drop_gaps_beyond();
            let damages = self.damages;
            self.shards
                .entry(standing.shard)
                .or_insert_with(|| Restored::new(ShardStanding::new(standing.shard), damages))
                .standing
                .merge(&standing);
        }
    }

    /// Where records are missing from before `base`, unless a jump explains it.
    pub(super) fn missing_before(
        &self,
        shard: ShardId,
        base: SequenceNumber,
    ) -> Option<SequenceNumber> {
        let Some(known) = self.shards.get(&shard) else {
            let from = self.beginning_of(base);
            return (from < base).then_some(from);
        };
        let standing = &known.standing;
        let from = standing.end.max(standing.horizon);
        uncovered(&standing.gaps, from, base)
    }

    /// Moves a shard on to the end of its runs in a sealed segment.
    pub(super) fn stand_by_row(&mut self, segment: u64, row: &FooterRow) {
        let restored = self.found(row.shard, row.base);
        restored.make_way(row.base, row.end);
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

    /// Moves a shard on to the end of `run`. Returns the segment that held it before this one.
    pub(super) fn stand_by_run(&mut self, segment: u64, run: &NewRun) -> u64 {
        let restored = self.found(run.shard, run.base);
        restored.make_way(run.base, run.end);
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

    /// A run that the snapshot knows stands in `segment`, where the snapshot does not know it: it was
    /// written again since. Returns the segment that held its shard before it.
    pub(super) fn move_run(&mut self, segment: u64, run: &MovedRun) -> u64 {
        let Some(restored) = self.shards.get_mut(&run.shard) else {
            return 0;
        };
        if restored.standing.last_segment == segment {
            return 0;
        }
        let previous = restored.drop_marks_from(run.base);
        restored.marks.push(Mark {
            base: run.base,
            arrival: run.arrival,
            segment,
            previous,
        });
        restored.standing.last_segment = segment;
        previous
    }

    /// Moves a shard back to before its last frame, which is about to stand elsewhere.
    pub(super) fn take_back(&mut self, frame: &FrameHeader) {
        let Some(restored) = self.shards.get_mut(&frame.shard) else {
            return;
        };
        restored.standing.last_segment = restored.drop_marks_from(frame.base);
        let standing = &mut restored.standing;
        standing.end = standing.end.min(frame.base);
        let bytes = u64::from(frame.frame_bytes);
        standing.stored_bytes = standing.stored_bytes.saturating_sub(bytes);
    }

    /// The segment before `segment` that holds a shard, for one that is in the snapshot: by its
    /// marks, or just the one before, from which readers search on.
    pub(super) fn previous_of(&self, shard: ShardId, segment: u64) -> u64 {
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

    pub(super) fn controls(&mut self, controls: &[Control]) {
        for control in controls {
            match *control {
                Control::Trim { shard, before } => {
                    let standing = &mut self.known(shard, before).standing;
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
                    let standing = &mut self.known(shard, from).standing;
                    add_gap(&mut standing.gaps, Gap { from, to, lost });
                    standing.end = standing.end.max(to);
                }
            }
        }
    }

    /// A shard that is not known yet begins at `base`, or before it, where nothing can be read.
    pub(super) fn begin(&mut self, shard: ShardId, base: SequenceNumber) {
        self.known(shard, self.beginning_of(base));
    }

    /// A shard of which a run was found: no damage so far hides what follows.
    fn found(&mut self, shard: ShardId, base: SequenceNumber) -> &mut Restored {
        let damages = self.damages;
        let restored = self.known(shard, self.beginning_of(base));
        restored.damages_seen = damages;
        restored.hidden = false;
        restored
    }

    fn known(&mut self, shard: ShardId, at: SequenceNumber) -> &mut Restored {
        let damages = self.damages;
        self.shards
            .entry(shard)
            .or_insert_with(|| Restored::beginning_at(shard, at, damages))
    }
}
