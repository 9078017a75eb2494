//! Walking the chain of rounds through all segments: what is vouched, what is the tail, what is
//! damaged.

mod cut;
mod end;

use std::collections::VecDeque;
use std::io;

use super::inventory::{Candidate, FileLength, Inventory};
use super::restore::Restorer;
use super::search::search;
use super::tail::stays;
use crate::error::OpenError;
use crate::round::{
    COPIED, FoundFrames, FoundHeader, RoundOwner, Window, read_frames, read_header,
};
use crate::segment_header::{HEAD_BYTES, SECTOR_BYTES};
use crate::snapshot::Snapshot;
use crate::state::decode_table;
use crate::voucher::Voucher;

/// A page cache works in pages: what shares one with the tail is no safer than the tail.
const PAGE_BYTES: u64 = 4096;

/// A round that verifies, but for damaged frames where it is vouched.
#[derive(Debug)]
pub(super) struct ScannedRound {
    /// Index of its segment among those of the inventory.
    pub(super) segment: usize,
    pub(super) position: u64,
    pub(super) found: FoundHeader,
    pub(super) content: FoundFrames,
}

impl ScannedRound {
    pub(super) fn round(&self) -> u64 {
        self.found.header.round
    }

    pub(super) fn end(&self) -> u64 {
        self.position + self.found.header.padded_bytes()
    }

    fn is_loaded(&self) -> bool {
        !self.content.frames.is_empty() || !self.found.control.is_empty()
    }
}

/// What the walk found.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// The last round that stays where it is.
    pub(super) last_round: u64,
    pub(super) last_checksum: u32,
    /// The last round that something on disk names durable.
    pub(super) vouched: u64,
    pub(super) epoch: u32,
    /// The highest epoch of a round that stays where it is.
    pub(super) kept_epoch: u32,
    /// The last round that was seen, or that a segment continues after.
    pub(super) reached: u64,
    pub(super) catalog: u64,
    pub(super) clean: bool,
    /// Whether the log was read from its first round on.
    pub(super) complete: bool,
    /// Rounds to be written again: vouched ones that share a page with the tail, then the tail.
    pub(super) tail: Vec<ScannedRound>,
    pub(super) sealed_segments: u64,
    pub(super) scanned_bytes: u64,
    pub(super) discarded_bytes: u64,
    /// The newest segment the snapshot knows.
    pub(super) snapshot_segment: u64,
    /// Segments from this index on do not exist: they begin after the tail's end.
    pub(super) segments_end: usize,
}

/// Where the walk is.
struct Walk<'a, 'r> {
    inventory: &'a Inventory,
    restorer: &'a mut Restorer<'r>,
    scan: Scan,
    /// The next round.
    expected: u64,
    /// Header checksum of the round before, where known.
    previous: Option<u32>,
    /// Rounds up to this one are in the snapshot.
    covered: u64,
    /// Rounds up to this one were durable.
    vouched: u64,
    /// Whether all later segments were asked what they vouch for.
    asked_later: bool,
    /// Valid rounds that may have to be written again.
    line: VecDeque<ScannedRound>,
    /// Where the tail ends: segment and position, once an end was found.
    ended_at: Option<(usize, u64)>,
    /// Whether there were bytes of a write after it.
    torn: bool,
}

/// How a segment's rounds ended.
enum SegmentEnd {
    /// With everything it should hold.
    Whole,
    /// With the tail: nothing after this position exists.
    Tail,
}

impl Scan {
    pub(super) fn run(
        inventory: &Inventory,
        restorer: &mut Restorer<'_>,
        snapshot: Option<&Snapshot>,
        voucher: Option<Voucher>,
    ) -> Result<Self, OpenError> {
        let sealed_end = |segment| sealed(segment).map_or(0, |trailer| trailer.summary.last_round);
        let segments = inventory.segments.iter();
        let vouched = segments.map(|segment| segment.header.last_durable.max(sealed_end(segment)));
        let vouched = vouched.max().unwrap_or(0);
        let segments = inventory.segments.iter();
        let reached = segments.map(|one| one.header.continues_after.max(sealed_end(one)));
        let epochs = inventory
            .segments
            .iter()
            .map(|segment| segment.header.epoch);
        let epoch = epochs
            .chain(snapshot.map(|snapshot| snapshot.chain.epoch))
            .max();
        let covered = snapshot.map_or(0, |snapshot| snapshot.chain.round);
        let mut walk = Walk {
            covered,
            vouched: vouched
                .max(covered)
                .max(voucher.map_or(0, |voucher| voucher.round)),
            inventory,
            restorer,
            scan: Self {
                epoch: epoch.unwrap_or(0),
                reached: reached.max().unwrap_or(0),
                segments_end: inventory.segments.len(),
                complete: snapshot.is_some()
                    || inventory
                        .segments
                        .first()
                        .is_none_or(|first| first.header.continues_after == 0),
                snapshot_segment: snapshot.map_or(0, |snapshot| snapshot.segment),
                catalog: snapshot.map_or(0, |snapshot| snapshot.catalog),
                ..Self::default()
            },
            expected: 1,
            previous: None,
            asked_later: false,
            line: VecDeque::new(),
            ended_at: None,
            torn: false,
        };
        for index in 0..inventory.segments.len() {
            if let SegmentEnd::Tail = walk.segment(index)? {
                break;
            }
        }
        if let Some(voucher) = voucher {
            walk.check(voucher)?;
        }
        walk.check_end();
        Ok(walk.finish())
    }
}

/// The trailer a segment stands by.
pub(super) fn sealed(segment: &Candidate) -> Option<&crate::footer::Trailer> {
    let trailer = segment.trailer.as_ref()?;
    (trailer.summary.last_round <= segment.exists_until).then_some(trailer)
}

fn io_at(segment: &Candidate) -> impl Fn(io::Error) -> OpenError {
    let path = segment.path.clone();
    move |source| OpenError::Io {
        path: path.clone(),
        source,
    }
}

impl<'a> Walk<'a, '_> {
    fn candidate(&self, index: usize) -> &'a Candidate {
        self.inventory
            .segments
            .get(index)
            .expect("BUG: an index of the inventory")
    }

    fn segment(&mut self, index: usize) -> Result<SegmentEnd, OpenError> {
        let candidate = self.candidate(index);
        // Ids may be left out: a file that was made ready can turn out to be too small.
        let follows = index > 0 && self.expected == candidate.first_round();
        if !follows {
            if !self.enter(index)? {
                self.scan.segments_end = index;
                self.torn = true;
                return Ok(SegmentEnd::Tail);
            }
            // What is written again keeps its number, so that its segment is entered again too.
            let header = &candidate.header;
            self.scan.last_round = header.continues_after;
            self.scan.last_checksum = header.previous_checksum;
            self.expected = candidate.first_round();
            self.previous = None;
        }
        if let Some(trailer) = sealed(candidate) {
            let trailer = *trailer;
            self.emit_all();
            let covered = trailer.summary.last_round <= self.covered
                && candidate.name.segment <= self.scan.snapshot_segment;
            if covered {
                self.restorer.covered(index, &trailer);
            }
            if covered || self.restorer.sealed(index, candidate, &trailer).is_ok() {
                self.scan.sealed_segments += 1;
                self.scan.kept_epoch = self.scan.kept_epoch.max(candidate.header.epoch);
                self.scan.last_round = trailer.summary.last_round;
                self.scan.last_checksum = trailer.summary.last_checksum;
                self.expected = trailer.summary.last_round + 1;
                self.previous = Some(trailer.summary.last_checksum);
                self.scan.catalog = self.scan.catalog.max(trailer.summary.catalog);
                return Ok(SegmentEnd::Whole);
            }
        }
        self.restorer.begin_segment(index, candidate);
        if candidate.header_rebuilt {
            let reason = "both copies of the header are damaged".to_owned();
            self.restorer.note(&candidate.name.to_string(), reason);
        }
        if let Some(reason) = candidate.odd_length() {
            self.restorer.note(&candidate.name.to_string(), reason);
        }
        let end = self.rounds(index).map_err(io_at(candidate))?;
        if candidate.length == FileLength::Cut && matches!(end, SegmentEnd::Tail) {
            self.cut_at_the_end(candidate).map_err(io_at(candidate))?;
        }
        Ok(end)
    }

    /// Takes over the state at the head of a segment whose predecessor is gone. `false`: not all of
    /// what it continues was durable, so that neither is anything in it, or in those after it.
    fn enter(&mut self, index: usize) -> Result<bool, OpenError> {
        let candidate = self.candidate(index);
        let continues_after = candidate.header.continues_after;
        if continues_after > self.vouched {
            self.ask_later(index).map_err(io_at(candidate))?;
        }
        if continues_after > self.vouched {
            return Ok(false);
        }
        self.emit_all();
        let length = candidate.header.state_bytes as usize;
        let mut table = None;
        let mut bytes = vec![0; length];
        if HEAD_BYTES + length as u64 <= candidate.file.bytes() && !candidate.header_rebuilt {
            candidate
                .file
                .read_at(&mut bytes, HEAD_BYTES)
                .map_err(io_at(candidate))?;
            if candidate.header.state_sum(&bytes) == candidate.header.state_checksum {
                table = decode_table(&bytes);
            }
        }
        match table {
            // The snapshot is newer.
            Some(_) if continues_after < self.covered => {}
            Some(table) => self.restorer.state(&table),
            None if self.vouched < candidate.first_round() => return Ok(false),
            None => {
                let reason = "the state table is damaged".to_owned();
                self.lost(&candidate.name.to_string(), reason, continues_after);
            }
        }
        Ok(true)
    }

    fn rounds(&mut self, index: usize) -> io::Result<SegmentEnd> {
        let candidate = self.candidate(index);
        let mut window = Window::new(&*candidate.file, candidate.file.bytes());
        let owner = RoundOwner::of(&candidate.header);
        let mut position = candidate.header.rounds_at();
        let result = loop {
            if self.expected > candidate.exists_until {
                break SegmentEnd::Whole;
            }
            let found = read_header(&mut window, owner, position)?;
            let found = found.filter(|found| self.is_next(found));
            let round = match found {
                Some(found) => {
                    let content = read_frames(&mut window, &found, position)?;
                    Some(ScannedRound {
                        segment: index,
                        position,
                        found,
                        content,
                    })
                }
                None => None,
            };
            position = match round {
                Some(round) if round.content.is_intact() => {
                    let end = round.end();
                    self.accept(round);
                    end
                }
                broken => {
                    let bad_at = position;
                    match self.broken(index, broken, bad_at, &mut window)? {
                        Some(next) => next,
                        None if self.ended_at.is_some() => break SegmentEnd::Tail,
                        None => break SegmentEnd::Whole,
                    }
                }
            };
        };
        self.scan.scanned_bytes += window.bytes_read();
        Ok(result)
    }

    /// Whether a header is the one that must come next.
    fn is_next(&self, found: &FoundHeader) -> bool {
        let header = &found.header;
        if header.flags & COPIED != 0 {
            return header.round >= self.expected;
        }
        header.round == self.expected
            && self
                .previous
                .is_none_or(|previous| previous == header.previous_checksum)
    }

    fn accept(&mut self, round: ScannedRound) {
        let header = &round.found.header;
        self.vouched = self.vouched.max(header.last_durable);
        self.scan.reached = self.scan.reached.max(header.round);
        // Whatever becomes of the round: the record that it names was durable before it was written.
        self.scan.catalog = self.scan.catalog.max(header.catalog);
        self.expected = header.round + 1;
        // After copied rounds the chain goes on with the checksum of a round that was left out.
        self.previous = (header.flags & COPIED == 0).then_some(round.found.checksum);
        let (segment, start) = (round.segment, round.position);
        self.line.push_back(round);
        let page = start - start % PAGE_BYTES;
        while self.line.front().is_some_and(|front| {
            front.round() <= self.vouched && (front.segment < segment || front.end() <= page)
        }) {
            self.emit_front();
        }
    }

    fn emit_front(&mut self) {
        if let Some(round) = self.line.pop_front() {
            let segment = self.candidate(round.segment).name.segment;
            stays(&mut self.scan, self.restorer, &round, segment);
        }
    }

    fn emit_all(&mut self) {
        while !self.line.is_empty() {
            self.emit_front();
        }
    }

    /// What stands at `position` is not the round that must come next. Returns where to go on, or
    /// `None` at the end of the segment or of the log.
    fn broken(
        &mut self,
        index: usize,
        round: Option<ScannedRound>,
        position: u64,
        window: &mut Window<'_>,
    ) -> io::Result<Option<u64>> {
        let candidate = self.candidate(index);
        let owner = RoundOwner::of(&candidate.header);
        let search_from = round
            .as_ref()
            .map_or(position + SECTOR_BYTES, ScannedRound::end);
        let later = search(window, owner, search_from, self.expected)?;
        let last_durable = round
            .as_ref()
            .map_or(0, |round| round.found.header.last_durable);
        self.vouched = self.vouched.max(later.vouched).max(last_durable);
        if self.expected > self.vouched {
            self.ask_later(index + 1)?;
        }
        if self.expected > self.vouched {
            let torn_end = round
                .as_ref()
                .map_or(position, ScannedRound::end)
                .max(later.end);
            self.scan.discarded_bytes += torn_end - position;
            self.torn = torn_end > position || self.page_is_dirty(candidate, position)?;
            self.end(index, position);
            return Ok(None);
        }
        let name = candidate.name.to_string();
        let (exists_until, until) = (candidate.exists_until, self.vouched);
        self.emit_all();
        if let Some(round) = round {
            let reason = format!("round {} at {position}: frames are damaged", self.expected);
            self.restorer.note(&name, reason);
            let end = round.end();
            self.accept(round);
            // It stays where it is, and so does the proof that something is missing: written again it
            // would be whole.
            self.emit_all();
            return Ok(Some(end));
        }
        let reason = format!("round {} is missing at {position}", self.expected);
        let last = exists_until.min(until);
        let lost_until = later.first.map_or(last, |(_, round)| round - 1);
        // Where nothing follows, more may have followed than the snapshot knows.
        let follows = later.first.is_some() || exists_until < u64::MAX;
        if lost_until <= self.covered && follows {
            self.restorer.note(&name, reason);
        } else {
            self.restorer.lose_rounds(&name, reason);
        }
        self.previous = None;
        if let Some((next, round)) = later.first {
            self.expected = round;
            // What is written again keeps its number: else it would take the place of what is missing.
            self.scan.last_round = round.saturating_sub(1);
            self.scan.last_checksum = 0;
            return Ok(Some(next));
        }
        self.scan.last_round = last;
        self.scan.last_checksum = 0;
        self.expected = last + 1;
        if exists_until > until {
            self.end(index, position);
            self.torn = true;
        }
        Ok(None)
    }

    /// Rounds up to `last` are lost: which shards they held records of nobody knows, unless all of them
    /// are in the snapshot, which says how far every shard had got.
    fn lost(&mut self, segment: &str, reason: String, last: u64) {
        if last <= self.covered {
            self.restorer.note(segment, reason);
        } else {
            self.restorer.damage(segment, reason);
        }
    }

    /// Asks the segments from `index` on what they vouch for.
    fn ask_later(&mut self, index: usize) -> io::Result<()> {
        if std::mem::replace(&mut self.asked_later, true) {
            return Ok(());
        }
        for later in self.inventory.segments.iter().skip(index) {
            if sealed(later).is_none() {
                let mut window = Window::new(&*later.file, later.file.bytes());
                let owner = RoundOwner::of(&later.header);
                let found = search(&mut window, owner, later.header.rounds_at(), 0)?;
                self.vouched = self.vouched.max(found.vouched);
            }
        }
        Ok(())
    }

    fn page_is_dirty(&self, candidate: &Candidate, position: u64) -> io::Result<bool> {
        let end = position
            .next_multiple_of(PAGE_BYTES)
            .min(candidate.file.bytes());
        let length = usize::try_from(end - position).map_err(io::Error::other)?;
        let mut rest = vec![0; length];
        candidate.file.read_at(&mut rest, position)?;
        Ok(rest.iter().any(|byte| *byte != 0))
    }

    fn end(&mut self, index: usize, position: u64) {
        self.ended_at = Some((index, position));
        self.scan.segments_end = index + 1;
    }
}
