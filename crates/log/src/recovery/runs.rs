//! The runs that the frames of a round were written as.

use crate::round::{FoundFrame, NewRun};

/// A run of this one frame.
pub(crate) fn begin(frame: &FoundFrame) -> NewRun {
    NewRun {
        shard: frame.header.shard,
        epoch: frame.header.epoch,
        base: frame.header.base,
        end: frame.end(),
        arrival: frame.header.arrival,
        last_arrival: frame.header.arrival,
        position: frame.position,
        bytes: frame.header.frame_bytes,
        producers: 1,
    }
}

/// Adds a frame to a run that it continues.
pub(crate) fn extend(run: &mut NewRun, frame: &FoundFrame) -> bool {
    let next_to = run.position + u64::from(run.bytes) == frame.position;
    if run.shard != frame.header.shard || run.end != frame.header.base || !next_to {
        return false;
    }
    run.end = frame.end();
    run.last_arrival = run.last_arrival.max(frame.header.arrival);
    run.epoch = run.epoch.max(frame.header.epoch);
    run.bytes += frame.header.frame_bytes;
    true
}
