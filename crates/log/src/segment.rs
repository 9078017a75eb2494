//! One segment of a log: a file, what its header says, and where its index is.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use flumen_record::Timestamp;

use crate::footer::{Footer, Trailer};
use crate::segment_header::SegmentHeader;
use crate::storage::SegmentFile;

/// A segment's file name without its folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SegmentName {
    pub(crate) segment: u64,
    pub(crate) generation: u32,
}

impl SegmentName {
    /// Reads a file name; `None` when it is not a segment's.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let (segment, generation) = name.strip_suffix(".seg")?.split_once('-')?;
        let parsed = Self {
            segment: segment.parse().ok()?,
            generation: generation.parse().ok()?,
        };
        (parsed.segment > 0 && parsed.to_string() == name).then_some(parsed)
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:012}-{}.seg", self.segment, self.generation)
    }
}

/// Where a segment's index is.
#[derive(Debug, Clone)]
pub(crate) enum FooterPlace {
    /// In the shards' recent runs.
    Recent,
    /// In memory, as long as the segment lives: it has no footer on disk.
    Pinned(Arc<Footer>),
    /// On disk.
    Disk(Trailer),
}

/// One segment. Readers hold it while they use it.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) name: SegmentName,
    /// Path below the data directory.
    pub(crate) path: String,
    pub(crate) file: Arc<dyn SegmentFile>,
    pub(crate) header: SegmentHeader,
    /// What this process had written to the log before this segment; `None`: an older process
    /// wrote it.
    pub(crate) written_before: Option<u64>,
    /// Never to be trusted again: no footer, not recycled.
    pub(crate) failed: AtomicBool,
    footer: RwLock<FooterPlace>,
    /// Where its data ends, once nothing is appended any more.
    data_end: AtomicU64,
    /// Its last round, once nothing is appended any more.
    last_round: AtomicU64,
    /// What the last look for live bytes found.
    look: Mutex<Option<Look>>,
}

/// How much of a segment was live when it was last looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look {
    pub(crate) at: Timestamp,
    pub(crate) live: u64,
    pub(crate) total: u64,
    /// What had been trimmed and forgotten in the log by then.
    pub(crate) trimmed_bytes: u64,
    pub(crate) forgotten_shards: u64,
}

impl Segment {
    pub(crate) fn new(
        path: String,
        file: Arc<dyn SegmentFile>,
        header: SegmentHeader,
        written_before: Option<u64>,
        footer: FooterPlace,
    ) -> Self {
        Self {
            name: SegmentName {
                segment: header.segment,
                generation: header.generation,
            },
            path,
            file,
            header,
            written_before,
            failed: AtomicBool::new(false),
            footer: RwLock::new(footer),
            data_end: AtomicU64::new(0),
            last_round: AtomicU64::new(u64::MAX),
            look: Mutex::new(None),
        }
    }

    pub(crate) fn id(&self) -> u64 {
        self.name.segment
    }

    pub(crate) fn file_name(&self) -> String {
        self.name.to_string()
    }

    /// Where its index is now. It goes from memory to disk while readers are under way: one look is
    /// carried through, see [`crate::footer_cache::IndexLook`].
    pub(crate) fn footer(&self) -> FooterPlace {
        let place = self
            .footer
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        #[cfg(test)]
        crate::testing::seam::pass(crate::testing::seam::Seam::FooterSeen);
        place
    }

    pub(crate) fn set_footer(&self, place: FooterPlace) {
        *self.footer.write().unwrap_or_else(PoisonError::into_inner) = place;
    }

    /// Nothing is appended any more: its data ends at `data_end` with `last_round`.
    pub(crate) fn set_end(&self, data_end: u64, last_round: u64) {
        self.data_end.store(data_end, Ordering::Release);
        self.last_round.store(last_round, Ordering::Release);
    }

    /// Where its data ends; 0 while it is appended to.
    pub(crate) fn data_end(&self) -> u64 {
        self.data_end.load(Ordering::Acquire)
    }

    /// Its last round; `u64::MAX` while it is appended to.
    pub(crate) fn last_round(&self) -> u64 {
        self.last_round.load(Ordering::Acquire)
    }

    pub(crate) fn last_look(&self) -> Option<Look> {
        *self.look.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_look(&self, look: Look) {
        *self.look.lock().unwrap_or_else(PoisonError::into_inner) = Some(look);
    }

    pub(crate) fn is_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    pub(crate) fn set_failed(&self) {
        self.failed.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_and_nothing_else_is_one() {
        let name = SegmentName {
            segment: 42,
            generation: 3,
        };
        assert_eq!(name.to_string(), "000000000042-3.seg");
        assert_eq!(SegmentName::parse("000000000042-3.seg"), Some(name));
        for other in [
            "42-3.seg",
            "000000000042-03.seg",
            "000000000042.seg",
            "snapshot",
            "-.seg",
            "000000000000-0.seg",
        ] {
            assert_eq!(SegmentName::parse(other), None, "{other}");
        }
    }
}
