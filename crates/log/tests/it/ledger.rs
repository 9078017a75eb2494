//! What a log was told and what it has promised; and whether a log that was opened keeps it.

use std::collections::{BTreeMap, BTreeSet};

use flumen_log::{LogKey, LogReader, NewFrame, Recovery};
use flumen_record::{Durability, Frames};

use crate::fixture::{Seen, number, shard};

/// How far a shard jumps when numbers may have been given out and lost.
pub(crate) const JUMP: u64 = 1 << 32;

/// A stored batch, told apart from every other that could be in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) base: u64,
    pub(crate) count: u32,
    checksum: u32,
    arrival: u64,
}

impl Stored {
    pub(crate) fn of(frame: &NewFrame) -> Self {
        Self {
            base: frame.base.value(),
            count: frame.batch.header().count,
            checksum: frame.batch.header().checksum,
            arrival: frame.arrival.as_micros(),
        }
    }

    pub(crate) fn end(&self) -> u64 {
        self.base + u64::from(self.count)
    }
}

/// Where a shard stands, and the batches at or above its trim horizon.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) horizon: u64,
    pub(crate) end: u64,
    pub(crate) batches: Vec<Stored>,
}

impl Standing {
    fn trim(&mut self, before: u64) {
        self.horizon = self.horizon.max(before);
        let horizon = self.horizon;
        self.batches.retain(|stored| stored.end() > horizon);
    }
}

/// All shards after one round.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) shards: BTreeMap<u64, Standing>,
    /// The round says that the log was closed in order.
    closed: bool,
}

/// What travels in the next round besides frames.
#[derive(Debug, Clone, Default)]
struct Waiting {
    trims: BTreeMap<u64, u64>,
    forgets: BTreeSet<u64>,
    /// Where numbers go on after a jump.
    jumps: BTreeMap<u64, u64>,
}

impl Waiting {
    fn apply(&self, state: &mut State) {
        for (shard, to) in &self.jumps {
            if let Some(standing) = state.shards.get_mut(shard) {
                standing.end = standing.end.max(*to);
            }
        }
        for (shard, before) in &self.trims {
            if let Some(standing) = state.shards.get_mut(shard) {
                standing.trim(*before);
            }
        }
        for shard in &self.forgets {
            state.shards.remove(shard);
        }
    }
}

/// How an opened log was found: after so many rounds, and as this.
#[derive(Debug, Clone)]
pub(crate) struct Match {
    rounds: usize,
    state: State,
}

/// See the module. Rounds are whole or not there at all, and none is there without those before
/// it: what a log holds is always the state after one of them.
#[derive(Debug, Clone)]
pub(crate) struct Ledger {
    key: LogKey,
    /// The state before the first round, then after each.
    states: Vec<State>,
    /// Rounds that survive a power cut.
    durable: usize,
    /// Rounds that survive the end of the process.
    written: usize,
    waiting: Waiting,
    /// What waited before the last round was begun.
    waited: Waiting,
    /// Shards that opening named. The others have no past: they begin with their first batch.
    named: BTreeSet<u64>,
    /// Sequence numbers up to which a snapshot's states know all batches, as far as it was begun.
    snapshots: BTreeSet<(u64, u64)>,
    /// What a snapshot says of trims and deletions may be found before the round that carries them.
    saved: Waiting,
}

impl Ledger {
    pub(crate) fn new(key: LogKey) -> Self {
        Self {
            key,
            states: vec![State::default()],
            durable: 0,
            written: 0,
            waiting: Waiting::default(),
            waited: Waiting::default(),
            named: BTreeSet::new(),
            snapshots: BTreeSet::new(),
            saved: Waiting::default(),
        }
    }

    fn is_memory(&self) -> bool {
        self.key.durability == Durability::Memory
    }

    /// How many rounds are durable, and how many were begun: tells situations apart.
    pub(crate) fn progress(&self) -> (usize, usize, usize) {
        (self.durable, self.written, self.states.len())
    }

    /// A round is handed to the log: whether it is there is unknown from here on.
    pub(crate) fn begin_round(&mut self, frames: &[NewFrame], closed: bool) {
        self.waited = self.waiting.clone();
        let waiting = std::mem::take(&mut self.waiting);
        let mut next = self.states.last().unwrap().clone();
        next.closed = closed;
        waiting.apply(&mut next);
        for frame in frames {
            let stored = Stored::of(frame);
            let id = frame.shard.value();
            let standing = next.shards.entry(id).or_insert_with(|| Standing {
                horizon: if self.named.contains(&id) {
                    0
                } else {
                    stored.base
                },
                ..Standing::default()
            });
            standing.end = stored.end();
            standing.batches.push(stored);
        }
        self.states.push(next);
    }

    /// The log refused it: nothing of it may ever be there.
    pub(crate) fn refuse_round(&mut self) {
        self.states.pop();
        self.waiting = self.waited.clone();
    }

    /// The last round, and all before it, was written.
    pub(crate) fn round_is_written(&mut self) {
        self.written = self.states.len() - 1;
    }

    /// All rounds are durable.
    pub(crate) fn all_is_durable(&mut self) {
        self.durable_up_to(self.states.len() - 1);
    }

    pub(crate) fn durable_up_to(&mut self, rounds: usize) {
        self.durable = self.durable.max(rounds);
        self.written = self.written.max(rounds);
    }

    pub(crate) fn rounds_begun(&self) -> usize {
        self.states.len() - 1
    }

    pub(crate) fn trim(&mut self, shard: u64, before: u64) {
        let waiting = self.waiting.trims.entry(shard).or_default();
        *waiting = before.max(*waiting);
    }

    pub(crate) fn forget(&mut self, shard: u64) {
        self.waiting.trims.remove(&shard);
        self.waiting.jumps.remove(&shard);
        self.waiting.forgets.insert(shard);
        self.named.remove(&shard);
    }

    /// Whether shards were forgotten and no round says so yet.
    pub(crate) fn has_forgotten(&self) -> bool {
        !self.waiting.forgets.is_empty()
    }

    pub(crate) fn begin_snapshot(&mut self, states: &[(u64, u64)]) {
        self.snapshots.extend(states);
        self.saved = self.waiting.clone();
    }

    /// What readers of the running log see.
    pub(crate) fn visible(&self) -> State {
        let rounds = if self.is_memory() {
            self.written
        } else {
            self.durable
        };
        let mut visible = self.states[rounds].clone();
        self.waiting.apply(&mut visible);
        visible
    }

    /// Whether the running log shows what it should.
    pub(crate) fn check_live(&self, reader: &LogReader) -> Result<(), String> {
        let visible = self.visible();
        for (id, expected) in &visible.shards {
            let bounds = reader
                .bounds(shard(*id))
                .ok_or_else(|| format!("shard {id} is not there"))?;
            let (horizon, end) = (bounds.trim_horizon.value(), bounds.durable_end.value());
            if (horizon, end) != (expected.horizon, expected.end) {
                return Err(format!(
                    "shard {id} is readable in {horizon}..{end}, not in {}..{}",
                    expected.horizon, expected.end
                ));
            }
            let found = read_batches(reader, *id, horizon)?;
            if found != expected.batches {
                return Err(format!(
                    "shard {id} has {found:?}, not {:?}",
                    expected.batches
                ));
            }
        }
        Ok(())
    }

    /// Whether a log that was opened after the power was cut holds what was promised; as which
    /// round left it.
    pub(crate) fn check_cut(&self, opened: &Opened<'_>) -> Result<Match, String> {
        self.check_opened(opened, self.durable)
    }

    /// Whether a log that was opened after its process ended holds what was promised.
    pub(crate) fn check_kill(&self, opened: &Opened<'_>) -> Result<Match, String> {
        self.check_opened(opened, self.written)
    }

    fn check_opened(&self, opened: &Opened<'_>, at_least: usize) -> Result<Match, String> {
        if !opened.recovery.quarantined.is_empty() {
            return Err(format!("damage: {:?}", opened.recovery.quarantined));
        }
        let found = opened
            .read()
            .map_err(|what| format!("{what} ({:?})", opened.recovery))?;
        let mut differences = Vec::new();
        for rounds in (at_least..self.states.len()).rev() {
            for state in [self.states[rounds].clone(), self.saved_with(rounds)] {
                match self.compare(&state, &found, opened) {
                    Ok(()) => {
                        self.check_replay(&state, opened)?;
                        return Ok(Match { rounds, state });
                    }
                    Err(difference) => {
                        differences.push(format!("not round {rounds}: {difference}"));
                    }
                }
            }
        }
        Err(differences.join("; "))
    }

    /// The state after so many rounds, with what a snapshot then said of what the next round would
    /// have carried.
    fn saved_with(&self, rounds: usize) -> State {
        let mut state = self.states[rounds].clone();
        self.saved.apply(&mut state);
        state
    }

    /// How far all shards have jumped at this opening.
    fn jump(&self, opened: &Opened<'_>) -> u64 {
        if self.is_memory() && !opened.recovery.clean {
            JUMP
        } else {
            0
        }
    }

    fn compare(
        &self,
        expected: &State,
        found: &BTreeMap<u64, Standing>,
        opened: &Opened<'_>,
    ) -> Result<(), String> {
        let clean = opened.recovery.clean;
        if clean && !expected.closed && !expected.shards.is_empty() {
            return Err("it was not closed".to_owned());
        }
        let jump = self.jump(opened);
        let mut expected = expected.shards.clone();
        for standing in expected.values_mut() {
            standing.end += jump;
        }
        if expected == *found {
            return self.check_numbers(found);
        }
        let differs = |id: &&u64| expected.get(id) != found.get(id);
        let ids: BTreeSet<&u64> = expected.keys().chain(found.keys()).collect();
        let id = ids.into_iter().find(differs).copied().unwrap_or_default();
        Err(format!(
            "shard {id} is {:?} instead of {:?}",
            found.get(&id),
            expected.get(&id)
        ))
    }

    /// Whether all numbers that were given out in an acknowledged batch are behind: none may be given
    /// out again.
    fn check_numbers(&self, found: &BTreeMap<u64, Standing>) -> Result<(), String> {
        let given = &self.states[self.written].shards;
        for (id, standing) in found {
            let end = given.get(id).map_or(0, |given| given.end);
            if standing.end < end {
                let at = standing.end;
                return Err(format!("shard {id} goes on at {at}, {end} was given out"));
            }
        }
        Ok(())
    }

    /// Producers' bookkeeping must learn of each shard's last batch, and of none that is not there.
    fn check_replay(&self, expected: &State, opened: &Opened<'_>) -> Result<(), String> {
        let mut known: BTreeMap<u64, u64> = BTreeMap::new();
        for (shard, state) in &opened.seen.states {
            let next = u64::from_le_bytes(state.as_ref().try_into().unwrap());
            if !self.snapshots.contains(&(shard.value(), next)) {
                return Err(format!("shard {shard} has the state {next}, never saved"));
            }
            known.insert(shard.value(), next);
        }
        for (shard, mark, _) in &opened.seen.batches {
            let next = known.entry(shard.value()).or_default();
            if mark.base.value() < *next {
                return Err(format!("{mark:?} of shard {shard} comes after {next}"));
            }
            *next = mark.base.value() + u64::from(mark.count);
        }
        for (id, standing) in &expected.shards {
            let next = known.get(id).copied().unwrap_or_default();
            if let Some(last) = standing.batches.last()
                && next < last.end()
            {
                return Err(format!(
                    "batches of shard {id} are known up to {next}, it has {last:?}"
                ));
            }
        }
        for (shard, mark, _) in &opened.seen.batches {
            let Some(standing) = expected.shards.get(&shard.value()) else {
                continue;
            };
            let stored = Stored {
                base: mark.base.value(),
                count: mark.count,
                checksum: mark.checksum,
                arrival: mark.arrival.as_micros(),
            };
            if stored.end() > standing.horizon && !standing.batches.contains(&stored) {
                return Err(format!("{stored:?} of shard {shard} was replayed"));
            }
        }
        Ok(())
    }

    /// The log was opened and holds what the first `rounds` left: nothing else was ever there, and
    /// all of it is a promise now.
    pub(crate) fn reopened(&mut self, found: Match, recovery: &Recovery) {
        let rounds = found.rounds;
        self.states.truncate(rounds);
        self.states.push(found.state);
        self.states[rounds].closed &= recovery.clean;
        self.durable = rounds;
        self.written = rounds;
        self.waiting = Waiting::default();
        self.saved = Waiting::default();
        let named = recovery.shards.iter().map(|found| found.shard.value());
        self.named = named.collect();
        for found in &recovery.shards {
            if let Some(to) = found.jumped {
                self.waiting.jumps.insert(found.shard.value(), to.value());
            }
        }
    }
}

/// A log that was just opened.
pub(crate) struct Opened<'a> {
    pub(crate) recovery: &'a Recovery,
    pub(crate) seen: &'a Seen,
    pub(crate) reader: &'a LogReader,
}

impl Opened<'_> {
    fn read(&self) -> Result<BTreeMap<u64, Standing>, String> {
        let mut all = BTreeMap::new();
        for found in &self.recovery.shards {
            let id = found.shard.value();
            let bounds = self.reader.bounds(found.shard).ok_or("a shard is gone")?;
            if bounds.trim_horizon != found.trim_horizon || bounds.durable_end != found.next {
                return Err(format!("{bounds:?} differs from {found:?}"));
            }
            let standing = Standing {
                horizon: found.trim_horizon.value(),
                end: found.next.value(),
                batches: read_batches(self.reader, id, found.trim_horizon.value())?,
            };
            // A shard whose first round never came is named, and empty.
            let named_only = standing.batches.is_empty() && standing.end.is_multiple_of(JUMP);
            if !(named_only && standing.horizon == 0) {
                all.insert(id, standing);
            }
        }
        Ok(all)
    }
}

/// Reads a shard's batches from `from` to its end; whatever is read must verify.
pub(crate) fn read_batches(reader: &LogReader, id: u64, from: u64) -> Result<Vec<Stored>, String> {
    let end = reader.bounds(shard(id)).ok_or("no such shard")?.durable_end;
    let mut all = Vec::new();
    let mut from = number(from);
    while from < end {
        let found = reader
            .read_cold(shard(id), from, 64 << 10)
            .map_err(|error| error.to_string())?;
        for piece in found.pieces {
            for frame in Frames::new(piece) {
                let frame = frame.map_err(|error| error.to_string())?;
                all.push(Stored {
                    base: frame.header.base.value(),
                    count: frame.batch.header().count,
                    checksum: frame.batch.header().checksum,
                    arrival: frame.header.arrival.as_micros(),
                });
            }
        }
        if found.next <= from {
            return Err(format!("reading shard {id} does not go on at {from}"));
        }
        from = found.next;
    }
    Ok(all)
}
