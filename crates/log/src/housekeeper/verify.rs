//! Verifying the footers that opening took on trust: damage is found, and mended, before somebody
//! reads what it would hide.

use std::time::Duration;

use super::Housekeeper;
use crate::footer_cache::footer_verifies;
use crate::segment::FooterPlace;

/// How far that is: the segment looked at last.
#[derive(Debug, Default)]
pub(super) struct Verified(u64);

/// The next one waits this long, so that a start is not slowed by it.
const PAUSE: Duration = Duration::from_millis(250);

impl Housekeeper {
    /// In how long the next one is due; `None`: all are verified that can be.
    pub(super) fn verify_due(&self) -> Option<Duration> {
        let next = self.shared.segment_after(self.verified.0)?;
        (!matches!(next.footer(), FooterPlace::Recent)).then_some(PAUSE)
    }

    /// Verifies the footer of the next segment, one a step and each once. A disk that does not answer
    /// is no reason to leave other work: it is met again by whoever reads.
    pub(super) fn verify_next(&mut self) {
        let Some(segment) = self.shared.segment_after(self.verified.0) else {
            return;
        };
        let place = segment.footer();
        let FooterPlace::Disk(trailer) = &place else {
            if !matches!(place, FooterPlace::Recent) {
                self.verified.0 = segment.id();
            }
            return;
        };
        self.verified.0 = segment.id();
        let result = match footer_verifies(&*segment.file, &segment.header, trailer) {
            Ok(true) => Ok(()),
            Ok(false) => self.shared.mend_index(&segment, &place),
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            tracing::warn!(segment = %segment.path, %error, "segment footer: not verified, it cannot be read");
        }
    }
}
