//! Cutting whole frames out of a run.

use std::ops::Range;

use bytes::Bytes;
use flumen_record::SequenceNumber;

use crate::round::FrameWalk;

/// Part of a run: whole frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cut {
    /// Bytes within the run.
    pub(super) range: Range<usize>,
    /// First sequence number after them.
    pub(super) next: SequenceNumber,
}

/// The frames of `run` from the one that holds `from`, at most `limit` bytes of them. The first
/// frame of an answer is taken whatever its size: `limit` is `None` then, and the second value
/// says how much it was.
pub(super) fn cut(
    run: &Bytes,
    from: SequenceNumber,
    budget: usize,
    first_of_answer: bool,
) -> Option<(Cut, usize)> {
    let mut taken: Option<Cut> = None;
    let mut left = budget;
    let mut free = first_of_answer;
    for frame in FrameWalk::new(run) {
        if frame.end() <= from {
            continue;
        }
        let length = frame.range.len();
        if std::mem::replace(&mut free, false) {
            // The first frame is on the house.
        } else if length <= left {
            left -= length;
        } else {
            break;
        }
        match &mut taken {
            Some(cut) => {
                cut.range.end = frame.range.end;
                cut.next = frame.end();
            }
            None => {
                taken = Some(Cut {
                    next: frame.end(),
                    range: frame.range,
                });
            }
        }
    }
    taken.map(|cut| (cut, left))
}
