//! Searching bytes that are not the round that must come next for later rounds.

use std::io;

use crate::round::{RoundOwner, Window, read_header};
use crate::segment_header::SECTOR_BYTES;

/// What a search for round headers found.
#[derive(Debug, Default)]
pub(super) struct Later {
    /// The highest round that one of them names durable.
    pub(super) vouched: u64,
    /// Place and number of the first.
    pub(super) first: Option<(u64, u64)>,
    /// The highest number of one.
    pub(super) last: u64,
    /// Where the last one's round ends.
    pub(super) end: u64,
}

/// Looks at every sector from `position` on for a valid header of round `from` or a later one.
pub(super) fn search(
    window: &mut Window<'_>,
    owner: RoundOwner,
    position: u64,
    from: u64,
) -> io::Result<Later> {
    let mut later = Later::default();
    let mut at = position;
    while at < window.end() {
        let Some(found) = read_header(window, owner, at)? else {
            at += SECTOR_BYTES;
            continue;
        };
        let header = &found.header;
        if header.round >= from {
            later.vouched = later.vouched.max(header.last_durable);
            later.first.get_or_insert((at, header.round));
            later.last = later.last.max(header.round);
            later.end = later.end.max(at + header.padded_bytes());
        }
        at += SECTOR_BYTES;
    }
    Ok(later)
}
