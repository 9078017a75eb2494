//! The index of sealed segments as readers and the housekeeper ask for it: a footer that does not
//! verify is gathered again from the frames below it, once, and written anew.

use std::io::{self, ErrorKind};
use std::sync::{Arc, PoisonError};

use crate::control::Control;
use crate::footer::{FooterRow, Trailer, rebuild};
use crate::footer_cache::{IndexLook, read_rows};
use crate::index::Run;
use crate::segment::{FooterPlace, Segment};
use crate::shared::{Shared, count};
use crate::work::Sealing;

/// A footer that was written anew can be damaged again while it is looked at, so often.
const TRIES: usize = 4;

impl Shared {
    /// Looks at a segment's index, once. `Ok(None)`: it is in the shards' recent runs. An error is the
    /// disk's: damage is none. Blocks.
    pub(crate) fn index_of(&self, segment: &Arc<Segment>) -> io::Result<Option<IndexLook>> {
        for _ in 0..TRIES {
            let place = segment.footer();
            match self.footers.look(segment, &place) {
                Err(error) if error.kind() == ErrorKind::InvalidData => {
                    self.mend_index(segment, &place)?;
                }
                found => return found,
            }
        }
        Err(keeps_failing(segment))
    }

    /// One shard's runs in a sealed segment, given what a look at it found: its index, and the shard's
    /// row in that.
    pub(crate) fn runs_of(
        &self,
        segment: &Arc<Segment>,
        index: &IndexLook,
        row: &FooterRow,
    ) -> io::Result<Arc<[Run]>> {
        let mut seen = index.clone();
        let mut row = *row;
        for _ in 0..TRIES {
            match self.footers.runs(segment, &seen, &row) {
                Err(error) if error.kind() == ErrorKind::InvalidData => {
                    self.mend_index(segment, &seen.place())?;
                }
                found => return found,
            }
            let Some(now) = self.index_of(segment)? else {
                break;
            };
            let Some(found) = now.row(row.shard) else {
                // None of its frames is left.
                return Ok(Arc::default());
            };
            row = *found;
            seen = now;
        }
        Err(keeps_failing(segment))
    }

    /// The control marks of a sealed segment, given what a look at it found.
    pub(crate) fn controls_of(
        &self,
        segment: &Arc<Segment>,
        index: &IndexLook,
    ) -> io::Result<Vec<Control>> {
        match index.controls(segment) {
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                self.mend_index(segment, &index.place())?;
                let now = self.index_of(segment)?;
                now.map_or_else(|| Ok(Vec::new()), |now| now.controls(segment))
            }
            controls => controls,
        }
    }

    /// Gathers the index of a segment again whose footer, `seen` on disk, does not verify, unless
    /// another thread has done so. One segment at a time: each is read as a whole.
    pub(crate) fn mend_index(&self, segment: &Arc<Segment>, seen: &FooterPlace) -> io::Result<()> {
        let _one = self.mending.lock().unwrap_or_else(PoisonError::into_inner);
        let FooterPlace::Disk(seen) = seen else {
            return Ok(());
        };
        match segment.footer() {
            FooterPlace::Disk(now) if now == *seen => self.gather(segment, seen),
            _ => Ok(()),
        }
    }

    fn gather(&self, segment: &Arc<Segment>, trailer: &Trailer) -> io::Result<()> {
        let known = match read_rows(&*segment.file, &segment.header, trailer) {
            Ok(rows) => Some(rows),
            Err(error) if error.kind() == ErrorKind::InvalidData => None,
            Err(error) => return Err(error),
        };
        let before = self.segment_before(segment.id());
        let rebuilt = rebuild(segment, trailer.summary, known.as_ref(), before)?;
        count(&self.counters.indexes_rebuilt, 1);
        match rebuilt.damaged_at {
            None => tracing::warn!(
                segment = %segment.path,
                "segment footer: damaged; the index was gathered from the frames, no record is lost"
            ),
            Some(position) => {
                segment.set_failed();
                count(&self.counters.quarantined, 1);
                tracing::error!(
                    segment = %segment.path,
                    position,
                    "segment: frames are damaged, and its footer too; what they held is answered \
                     with a data-loss error; run `flumen doctor`"
                );
            }
        }
        segment.set_footer(FooterPlace::Pinned(rebuilt.footer));
        self.footers.forget(segment.id());
        if !segment.is_failed() {
            let mut work = self.work.lock();
            work.sealing.push_back(Sealing {
                segment: Arc::clone(segment),
                summary: trailer.summary,
                touched: Vec::new(),
                controls: Vec::new(),
            });
            self.work.wake(work);
        }
        Ok(())
    }
}

fn keeps_failing(segment: &Segment) -> io::Error {
    let what = format!(
        "the footer of {} fails as often as it is written",
        segment.path
    );
    io::Error::other(what)
}
