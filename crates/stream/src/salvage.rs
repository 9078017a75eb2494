//! Opening what the node remembers although records of it are damaged: what is intact is added up, the
//! rest is named, and a new snapshot takes the place of both.
//!
//! Only `flumen doctor repair` does so: what a damaged record had changed is lost then.

use flumen_log::{Housekeeper, LogReader, OpenError, ReadError};
use flumen_record::{Frame, Frames, SequenceNumber, ShardId, Timestamp};

const READ_BYTES: usize = 1 << 20;
/// Steps of housekeeping after a repair, and how far apart: enough for segments that are damaged, and
/// not needed any more, to go.
const HOUSEKEEPING_STEPS: u64 = 64;
const STEP_MICROS: u64 = 2_000_000;

/// Records that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LostRecords {
    /// The first one's number, from 1.
    pub first: u64,
    /// The last one's.
    pub last: u64,
    /// What is wrong with them.
    pub reason: &'static str,
}

/// Adds records up as far as they are intact.
pub(crate) trait AddUp {
    /// The next record's number, from 0.
    fn next(&self) -> SequenceNumber;
    /// Goes on at `next`.
    fn skip_to(&mut self, next: SequenceNumber);
    /// Takes a frame, or says why not: nothing of it was taken then.
    fn take(&mut self, frame: &Frame) -> Result<(), &'static str>;
}

/// Adds up the records of `shard` up to `end`, leaving out what is damaged. Returns which those are.
pub(crate) fn add_up(
    reading: &mut impl AddUp,
    reader: &LogReader,
    shard: ShardId,
    end: SequenceNumber,
) -> Result<Vec<LostRecords>, ReadError> {
    let mut lost = Vec::new();
    while reading.next() < end {
        let from = reading.next();
        match reader.read_cold(shard, from, READ_BYTES) {
            Ok(found) if found.pieces.is_empty() => {
                let next = if found.next > from { found.next } else { end };
                lose(reading, from, next.min(end), "missing", &mut lost);
            }
            Ok(found) => {
                for frame in found.pieces.into_iter().flat_map(Frames::new) {
                    let Ok(frame) = frame else {
                        let at = reading.next();
                        lose(
                            reading,
                            at,
                            at.plus(1),
                            "its frame does not decode",
                            &mut lost,
                        );
                        break;
                    };
                    take(reading, &frame, &mut lost);
                }
            }
            Err(ReadError::DataLoss { to, .. }) => {
                lose(reading, from, to.min(end), "damaged", &mut lost);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(lost)
}

fn take(reading: &mut impl AddUp, frame: &Frame, lost: &mut Vec<LostRecords>) {
    let base = frame.header.base;
    if base < reading.next() {
        return;
    }
    let from = reading.next();
    if base > from {
        lose(reading, from, base, "missing", lost);
    }
    if let Err(reason) = reading.take(frame) {
        lose(reading, base, base.plus(1), reason, lost);
    }
}

fn lose(
    reading: &mut impl AddUp,
    from: SequenceNumber,
    to: SequenceNumber,
    reason: &'static str,
    lost: &mut Vec<LostRecords>,
) {
    lost.push(LostRecords {
        first: from.value() + 1,
        last: to.value(),
        reason,
    });
    reading.skip_to(to);
}

/// Lets segments go that hold nothing any more.
pub(crate) fn keep_house(mut housekeeper: Housekeeper, now: Timestamp) -> Result<(), OpenError> {
    for step in 1..=HOUSEKEEPING_STEPS {
        let micros = now.as_micros().saturating_add(step * STEP_MICROS);
        housekeeper.step(Timestamp::from_micros(micros))?;
    }
    Ok(())
}
