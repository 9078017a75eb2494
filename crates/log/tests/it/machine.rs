//! A log, its housekeeper and its in-memory disk, driven step by step beside the ledger of what
//! was promised.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use flumen_log::{
    Housekeeper, Log, LogConfig, LogKey, LogReader, MemoryStorage, NewFrame, Storage, Voucher,
    WriteError,
};

use crate::fixture::{Seen, at, frame, number, shard};
use crate::ledger::{Ledger, Match, Opened};

/// Why a machine went no further.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The disk is dead, a write was refused, or the log is poisoned.
    Halted,
    /// A promise was broken.
    Broken(String),
}

impl Stop {
    /// Says where a promise was broken.
    pub(crate) fn when(self, when: &str) -> Self {
        match self {
            Self::Halted => Self::Halted,
            Self::Broken(what) => Self::Broken(format!("{when}: {what}")),
        }
    }
}

/// A batch to append: shard, records, data bytes of each.
pub(crate) type Part = (u64, u32, usize);

/// Very small segments, so that a short trace rolls, frees and copies.
pub(crate) fn tiny_segments() -> LogConfig {
    LogConfig {
        segment_bytes_min: 40 << 10,
        segment_bytes_max: 80 << 10,
        free_space_floor_bytes: Some(0),
        hot_window_bytes: 0,
        ..LogConfig::default()
    }
}

/// See the module.
pub(crate) struct Machine {
    pub(crate) twin: MemoryStorage,
    pub(crate) ledger: Ledger,
    pub(crate) millis: u64,
    key: LogKey,
    config: LogConfig,
    log: Option<Log>,
    keeper: Option<Housekeeper>,
    reader: Option<LogReader>,
    /// Next sequence number by shard.
    next: BTreeMap<u64, u64>,
    /// What another log remembers of this one, at its best: whatever a cut leaves is no less.
    vouched: Option<Voucher>,
}

impl Machine {
    /// A machine whose log was not opened yet.
    pub(crate) fn new(key: LogKey, config: LogConfig) -> Self {
        Self::with(MemoryStorage::new(), key, config)
    }

    pub(crate) fn with(twin: MemoryStorage, key: LogKey, config: LogConfig) -> Self {
        Self {
            twin,
            ledger: Ledger::new(key),
            millis: 1000,
            key,
            config,
            log: None,
            keeper: None,
            reader: None,
            next: BTreeMap::new(),
            vouched: None,
        }
    }

    /// Somebody else writes down how far the log has got, which must be on disk.
    fn vouch(&mut self) {
        self.vouched = self.vouched.max(self.reader().voucher());
    }

    /// The machine that starts from an image of this one's disk.
    pub(crate) fn restarted(&self, twin: MemoryStorage) -> Self {
        Self {
            ledger: self.ledger.clone(),
            millis: self.millis + 10_000,
            next: self.next.clone(),
            vouched: self.vouched,
            ..Self::with(twin, self.key, self.config.clone())
        }
    }

    fn now(&mut self) -> flumen_record::Timestamp {
        self.millis += 1;
        at(self.millis)
    }

    pub(crate) fn log(&mut self) -> &mut Log {
        self.log.as_mut().expect("the log is open")
    }

    pub(crate) fn reader(&self) -> &LogReader {
        self.reader.as_ref().expect("the log is open")
    }

    /// The next sequence number of a shard.
    pub(crate) fn next_of(&self, id: u64) -> u64 {
        self.next.get(&id).copied().unwrap_or_default()
    }

    /// Opens the log after a power cut (or the first time), and holds it against the ledger.
    pub(crate) fn open_cut(&mut self) -> Result<(), Stop> {
        self.open(|ledger, opened| ledger.check_cut(opened))
    }

    /// As [`Machine::open_cut`], after the end of the process only.
    pub(crate) fn open_killed(&mut self) -> Result<(), Stop> {
        self.open(|ledger, opened| ledger.check_kill(opened))
    }

    fn open(
        &mut self,
        check: impl Fn(&Ledger, &Opened<'_>) -> Result<Match, String>,
    ) -> Result<(), Stop> {
        let storage: Arc<dyn Storage> = Arc::new(self.twin.clone());
        let mut seen = Seen::default();
        let now = self.now();
        let config = self.config.clone();
        let opened = Log::open_vouched(storage, self.key, config, now, &mut seen, self.vouched);
        if self.twin.is_dead() {
            return Err(Stop::Halted);
        }
        let (log, recovery) =
            opened.map_err(|error| Stop::Broken(format!("it does not open: {error}")))?;
        let reader = log.reader();
        let found = check(
            &self.ledger,
            &Opened {
                recovery: &recovery,
                seen: &seen,
                reader: &reader,
            },
        )
        .map_err(Stop::Broken)?;
        self.ledger.reopened(found, &recovery);
        // Of shards that it does not know any more the numbers go on all the same.
        let found = recovery.shards.iter();
        self.next
            .extend(found.map(|found| (found.shard.value(), found.next.value())));
        self.keeper = Some(log.housekeeper());
        self.reader = Some(reader);
        self.log = Some(log);
        self.vouch();
        Ok(())
    }

    /// The process ends without a word.
    pub(crate) fn drop_log(&mut self) {
        self.log = None;
        self.keeper = None;
        self.reader = None;
    }

    fn frames(&mut self, parts: &[Part]) -> Vec<NewFrame> {
        let now = self.now();
        let mut sorted = parts.to_vec();
        sorted.sort_by_key(|(id, ..)| *id);
        let mut next = self.next.clone();
        sorted
            .iter()
            .map(|&(id, count, bytes)| {
                let base = next.entry(id).or_default();
                let made = frame(id, *base, count, bytes, now);
                *base += u64::from(count);
                made
            })
            .collect()
    }

    fn take_numbers(&mut self, frames: &[NewFrame]) {
        for frame in frames {
            let end = frame.base.value() + u64::from(frame.batch.header().count);
            self.next.insert(frame.shard.value(), end);
        }
    }

    /// One durable round.
    pub(crate) fn commit(&mut self, parts: &[Part]) -> Result<(), Stop> {
        let frames = self.frames(parts);
        let now = self.now();
        self.ledger.begin_round(&frames, false);
        match self.log().commit(&frames, 0, now) {
            Ok(Ok(_)) => {
                self.take_numbers(&frames);
                self.ledger.all_is_durable();
                self.vouch();
                Ok(())
            }
            Ok(Err(_refused)) => {
                self.ledger.refuse_round();
                Err(Stop::Halted)
            }
            Err(_unknown) => Err(Stop::Halted),
        }
    }

    /// One round, not synced.
    pub(crate) fn write(&mut self, parts: &[Part]) -> Result<(), Stop> {
        let frames = self.frames(parts);
        let now = self.now();
        self.ledger.begin_round(&frames, false);
        match self.log().write(&frames, 0, now) {
            Ok(_) => {
                self.take_numbers(&frames);
                self.ledger.round_is_written();
                Ok(())
            }
            Err(WriteError::Poisoned | WriteError::Unknown { .. }) => Err(Stop::Halted),
            Err(_refused) => {
                self.ledger.refuse_round();
                Err(Stop::Halted)
            }
        }
    }

    pub(crate) fn sync(&mut self) -> Result<(), Stop> {
        let now = self.now();
        self.log().sync(&[], now).map_err(|_| Stop::Halted)?;
        self.vouch();
        self.ledger.all_is_durable();
        Ok(())
    }

    /// A background sync with a round written while it is under way.
    pub(crate) fn sync_beside(&mut self, parts: &[Part]) -> Result<(), Stop> {
        let job = self.log().begin_sync();
        let rounds = self.ledger.rounds_begun();
        let written = self.write(parts);
        if let Some(job) = job {
            let now = self.now();
            let done = job.run();
            self.log()
                .finish_sync(done, now)
                .map_err(|_| Stop::Halted)?;
            self.vouch();
            self.ledger.durable_up_to(rounds);
        }
        written
    }

    /// Trims a shard to this share (of 100) of what it holds.
    pub(crate) fn trim(&mut self, id: u64, percent: u64) {
        let Some(bounds) = self.reader().bounds(shard(id)) else {
            return;
        };
        let (from, to) = (bounds.trim_horizon.value(), bounds.durable_end.value());
        // Not into a jump: that is a matter of its own.
        let before = if to - from > 1 << 20 {
            let last = self.ledger.visible();
            let last = last.shards.get(&id).and_then(|s| s.batches.last().copied());
            last.map_or(from, |last| last.base)
        } else {
            from + (to - from) * percent / 100
        };
        self.log().trim(shard(id), number(before));
        self.ledger.trim(id, before);
    }

    /// Forgets a shard. When it comes back its numbers go on: they are never given out twice.
    pub(crate) fn forget(&mut self, id: u64) {
        if self.is_known(id) {
            self.log().forget(shard(id));
            self.ledger.forget(id);
        }
    }

    pub(crate) fn is_known(&self, id: u64) -> bool {
        self.reader().bounds(shard(id)).is_some()
    }

    /// A few steps of housekeeping.
    pub(crate) fn keep_house(&mut self, steps: u32) -> Result<(), Stop> {
        for _ in 0..steps {
            self.millis += 2000;
            let now = self.now();
            let keeper = self.keeper.as_mut().expect("the log is open");
            keeper.step(now).map_err(|_| Stop::Halted)?;
        }
        Ok(())
    }

    /// Takes a snapshot after everything is durable. What it lets go of is said by a round first:
    /// else rounds that are written again may bring it back, for its owner to forget again.
    pub(crate) fn snapshot(&mut self) -> Result<(), Stop> {
        if self.ledger.has_forgotten() {
            self.commit(&[])?;
        }
        self.sync()?;
        let visible = self.ledger.visible();
        let states: Vec<(u64, u64)> = visible
            .shards
            .keys()
            .map(|id| (*id, self.next_of(*id)))
            .collect();
        self.ledger.begin_snapshot(&states);
        let states = states
            .iter()
            .map(|(id, next)| (shard(*id), Bytes::copy_from_slice(&next.to_le_bytes())))
            .collect();
        let now = self.now();
        let job = self.log().snapshot(states, now);
        job.run().map_err(|_| Stop::Halted)
    }

    /// Closes the log in order; it is not open afterwards.
    pub(crate) fn close(&mut self) -> Result<(), Stop> {
        let now = self.now();
        self.ledger.begin_round(&[], true);
        let log = self.log.take().expect("the log is open");
        self.keeper = None;
        let reader = self.reader.take().expect("the log is open");
        log.close(now).map_err(|_| Stop::Halted)?;
        if self.twin.is_dead() {
            return Err(Stop::Halted);
        }
        self.vouched = self.vouched.max(reader.voucher());
        self.ledger.all_is_durable();
        Ok(())
    }
}
