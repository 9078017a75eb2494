//! A sealed segment's index, gathered again from its frames: what its footer says does not verify.

use std::io;
use std::sync::Arc;

use super::{Footer, FooterBuilder, FooterSummary, find_row};
use crate::index::Run;
use crate::recovery::{begin, extend};
use crate::round::{FoundFrames, RoundOwner, Window, mark_of, read_frames, read_header};
use crate::segment::Segment;
use crate::segment_header::SECTOR_BYTES;

/// What was gathered.
#[derive(Debug)]
pub(crate) struct Rebuilt {
    pub(crate) footer: Arc<Footer>,
    /// The first place where frames are damaged too. Nothing there is in the index, so that whoever
    /// reads it hears of the loss.
    pub(crate) damaged_at: Option<u64>,
}

/// Reads and verifies every round of a segment that ends as `summary` says. `known` is what of the
/// footer still verifies, rows and control marks; without it the segment that held a shard before is
/// not known, and `before` stands for it, from which readers search on.
pub(crate) fn rebuild(
    segment: &Segment,
    summary: FooterSummary,
    known: Option<&Footer>,
    before: u64,
) -> io::Result<Rebuilt> {
    let owner = RoundOwner::of(&segment.header);
    let mut window = Window::new(&*segment.file, summary.data_end);
    let mut gathering = Gathering {
        segment: segment.id(),
        known,
        before,
        builder: FooterBuilder::default(),
    };
    let mut damaged_at = None;
    let mut position = segment.header.rounds_at();
    while position < summary.data_end {
        let Some(found) = read_header(&mut window, owner, position)? else {
            damaged_at.get_or_insert(position);
            position += SECTOR_BYTES;
            continue;
        };
        let content = read_frames(&mut window, &found, position)?;
        if !content.is_intact() {
            damaged_at.get_or_insert(position);
        }
        if known.is_none() {
            gathering.builder.push_controls(&found.control);
        }
        gathering.round(&content);
        position += found.header.padded_bytes();
    }
    if let Some(known) = known {
        gathering.builder.push_controls(&known.controls);
    }
    Ok(Rebuilt {
        footer: gathering.builder.finish(summary),
        damaged_at,
    })
}

struct Gathering<'a> {
    segment: u64,
    known: Option<&'a Footer>,
    before: u64,
    builder: FooterBuilder,
}

impl Gathering<'_> {
    fn round(&mut self, content: &FoundFrames) {
        let mut run = None;
        for frame in &content.frames {
            if !run.as_mut().is_some_and(|run| extend(run, frame))
                && let Some(done) = run.replace(begin(frame))
            {
                self.run(&done);
            }
            let mark = mark_of(&frame.header, frame.batch.header());
            self.builder.push_batch(frame.header.shard, mark);
        }
        if let Some(done) = run {
            self.run(&done);
        }
    }

    fn run(&mut self, run: &crate::round::NewRun) {
        let known = self
            .known
            .and_then(|known| find_row(&known.rows, run.shard));
        let previous = known.map_or(self.before, |row| row.previous);
        let placed = Run::new(self.segment, run);
        self.builder
            .push_run(run.shard, placed, run.epoch, previous);
    }
}
