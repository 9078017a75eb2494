//! Reading one shard: where to begin, frames from wherever they lie, waiting for more.
//!
//! What was written last is read on the caller's thread, as slices of the map. Everything else goes
//! to a bounded number of threads that may block.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use flumen_log::{FoundFrames, LogReader, ReadError, SearchAnswer};
use flumen_record::{FrameHeader, SequenceNumber, ShardIndex, Timestamp};
use flumen_stream::{Start, StartPosition};
use flumen_world::Sleep;

use crate::node::{Node, on_blocking_thread};
use crate::streams::{Place, ShardHandle, StreamRef, StreamState};
use crate::tail::ReadySet;
use crate::{Error, ReadBudget, ReadReply};

/// A gap this wide in one read is a jump, not records.
const JUMP: u64 = 1 << 32;

impl Node {
    /// [`crate::Broker::read`].
    pub(crate) async fn read(
        self: &Arc<Self>,
        stream: StreamRef<'_>,
        index: ShardIndex,
        start: StartPosition,
        budget: ReadBudget,
        wait: Duration,
    ) -> Result<ReadReply, Error> {
        self.check_serving()?;
        let stream = self.streams.get(stream)?;
        let shard = stream.shard(index)?;
        let start = self.resolve(&shard, start).await?;
        let budget = self.clamp(budget);
        let wait = wait.min(Duration::from_millis(self.config.read_wait_ms_max));
        let mut waiting: Option<Waiting> = None;
        let mut from = start;
        let mut over = wait.is_zero();
        loop {
            // Of one state, so that a shard which has closed meanwhile comes with its children.
            let state = stream.state();
            let shard = stream.shard_of(&state, index)?;
            let found = match self.read_hot(&shard, from, budget)? {
                Some(found) => found,
                None => self.read_cold(&shard, from, budget).await?,
            };
            from = found.next.max(from);
            let ends = shard.closed_at().is_some_and(|end| from >= end);
            if !found.pieces.is_empty() || ends || over {
                return Ok(reply(&state, &shard, start, found, from));
            }
            match &mut waiting {
                // Armed, and looked at once more, before it waits.
                Some(waiting) => over = !waiting.woken().await,
                none => *none = Some(Waiting::new(Arc::clone(&shard), self.clock.sleep(wait))),
            }
            stream.check_exists()?;
            self.check_serving()?;
        }
    }

    /// A budget that the configuration allows.
    pub(crate) fn clamp(&self, budget: ReadBudget) -> ReadBudget {
        ReadBudget {
            bytes: budget.bytes.clamp(1, self.config.reply_bytes_max.max(1)),
            records: budget.records.max(1),
        }
    }

    /// The sequence number at which a reader begins.
    pub(crate) async fn resolve(
        self: &Arc<Self>,
        shard: &Arc<ShardHandle>,
        start: StartPosition,
    ) -> Result<SequenceNumber, Error> {
        let bounds = shard.bounds();
        let at = match start.resolve(bounds.trim_horizon, bounds.durable_end) {
            Start::At(at) => return Ok(at),
            Start::Trimmed { asked, horizon } => return Err(Error::Trimmed { asked, horizon }),
            Start::Beyond { asked, end } => {
                // Where it ends is known only to the log that takes its appends.
                shard.lane().check_open()?;
                return Err(Error::BeyondEnd { asked, end });
            }
            Start::FindTime(at) => at,
        };
        let shard = Arc::clone(shard);
        let found = self
            .blocking_read(move || find_time(&shard, at, bounds.durable_end))
            .await?;
        Ok(found.max(bounds.trim_horizon))
    }

    /// Frames that can be had without touching the disk; `None` when they cannot.
    pub(crate) fn read_hot(
        &self,
        shard: &ShardHandle,
        from: SequenceNumber,
        budget: ReadBudget,
    ) -> Result<Option<FoundFrames>, Error> {
        let bytes = usize::try_from(budget.bytes).unwrap_or(usize::MAX);
        let found = walk(shard, from, |reader, from| {
            reader.read_hot(shard.id, from, bytes)
        })?;
        let Some(mut found) = found else {
            return Ok(None);
        };
        if !found.pieces.is_empty() {
            self.metrics.hot_read();
            self.account(&mut found, from, budget);
        }
        Ok(Some(found))
    }

    /// Frames from wherever they are, on a thread that may block.
    pub(crate) async fn read_cold(
        self: &Arc<Self>,
        shard: &Arc<ShardHandle>,
        from: SequenceNumber,
        budget: ReadBudget,
    ) -> Result<FoundFrames, Error> {
        let bytes = usize::try_from(budget.bytes).unwrap_or(usize::MAX);
        let (node, shard) = (Arc::clone(self), Arc::clone(shard));
        self.blocking_read(move || {
            let began = node.clock.monotonic();
            let found = walk(&shard, from, |reader, from| {
                reader.read_cold(shard.id, from, bytes).map(Some)
            });
            node.metrics
                .cold_read(node.clock.monotonic().saturating_sub(began));
            let mut found = found?.unwrap_or_default();
            node.account(&mut found, from, budget);
            Ok(found)
        })
        .await
    }

    /// Applies the bound in records, and counts what is delivered.
    fn account(&self, found: &mut FoundFrames, from: SequenceNumber, budget: ReadBudget) {
        let records = found.next.value().saturating_sub(from.value());
        if records > budget.records {
            cut_below(found, from.plus(budget.records));
        }
        let records = found.next.value().saturating_sub(from.value());
        let records = if records >= JUMP {
            records % JUMP
        } else {
            records
        };
        self.metrics.delivered(records, found.bytes as u64);
    }

    pub(crate) async fn blocking_read<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let permit = Arc::clone(&self.blocking_reads).acquire_owned().await;
        let permit = permit.map_err(|_closed| Error::Draining)?;
        on_blocking_thread(&*self.world, move || {
            let result = read();
            drop(permit);
            result
        })
        .await
    }
}

/// The first record that arrived at or after `at`; the end when it is known that none did.
fn find_time(
    shard: &ShardHandle,
    at: Timestamp,
    durable_end: SequenceNumber,
) -> Result<SequenceNumber, Error> {
    for Place { stay, lane } in &shard.places {
        match lane.reader().find_time(shard.id, stay, at) {
            Ok(SearchAnswer::At(number)) => return Ok(number),
            Ok(SearchAnswer::AllOlder) | Err(ReadError::UnknownShard { .. }) => {}
            Ok(SearchAnswer::Unknown) => {
                return Err(Error::Io {
                    segment: format!("{}: the index moves on; ask again", lane.label()),
                    fault: std::io::ErrorKind::ResourceBusy.into(),
                });
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(durable_end)
}

/// What a reader gets.
pub(crate) fn reply(
    state: &StreamState,
    shard: &ShardHandle,
    start: SequenceNumber,
    found: FoundFrames,
    next: SequenceNumber,
) -> ReadReply {
    let bounds = shard.bounds();
    let ends = shard.closed_at().is_some_and(|end| next >= end);
    ReadReply {
        stream: state.info.incarnation(),
        pieces: found.pieces,
        start,
        next,
        trim_horizon: bounds.trim_horizon,
        durable_end: bounds.durable_end,
        last_arrival: bounds.last_arrival,
        end_of_shard: ends.then(|| state.children(shard.id.index())),
    }
}

/// Reads from the log that holds `from`; at the end of one that was left, from the next. What an error
/// names as the place to go on at can be read: it lies where the shard goes on, or is its end.
fn walk(
    shard: &ShardHandle,
    mut from: SequenceNumber,
    read: impl Fn(&LogReader, SequenceNumber) -> Result<Option<FoundFrames>, ReadError>,
) -> Result<Option<FoundFrames>, Error> {
    loop {
        let place = shard.place_of(from);
        let next_place = place.stay.to();
        // Where what this log has of the shard surely ends. Its own word for that may be another: it
        // jumps when later numbers may be hidden, and has lost what it does not reach.
        let until = next_place.or_else(|| shard.closed_at());
        if until.is_some_and(|until| from >= until) {
            return Ok(Some(at_end(from)));
        }
        let mut found = match (read(place.lane.reader(), from), until) {
            (Ok(None), _) => return Ok(None),
            (Ok(Some(found)), _) => found,
            (Err(ReadError::DataLoss { from, .. }), Some(until)) if from >= until => at_end(until),
            (Err(error), Some(until)) if !matches!(error, ReadError::UnknownShard { .. }) => {
                return Err(bounded(error, until).into());
            }
            // All that lay in a log that was left has expired.
            (Err(ReadError::UnknownShard { .. }), Some(horizon)) => {
                return Err(Error::Trimmed {
                    asked: from,
                    horizon,
                });
            }
            // Nothing was written to the newest log yet.
            (Err(ReadError::UnknownShard { .. }), None) => return Ok(Some(at_end(from))),
            (Err(error), _) => return Err(error.into()),
        };
        if let Some(until) = until.filter(|_| found.pieces.is_empty()) {
            let missing = until.value().saturating_sub(found.next.value());
            // No log loses as many records as a jump is wide.
            if missing > 0 && missing < JUMP {
                return Err(Error::DataLoss {
                    shard: shard.id.index(),
                    from: found.next.max(from),
                    to: until,
                    segment: place.lane.key().dir_name(),
                });
            }
            found.next = found.next.min(until);
        }
        let Some(next_from) = next_place else {
            return Ok(Some(found));
        };
        if !found.pieces.is_empty() && found.next < next_from {
            return Ok(Some(found));
        }
        cut_below(&mut found, next_from);
        if !found.pieces.is_empty() {
            found.next = next_from;
            return Ok(Some(found));
        }
        from = next_from;
    }
}

/// Nothing, at `next`.
fn at_end(next: SequenceNumber) -> FoundFrames {
    FoundFrames {
        next,
        ..FoundFrames::default()
    }
}

/// An error whose way on leads no further than `until`.
fn bounded(error: ReadError, until: SequenceNumber) -> ReadError {
    match error {
        ReadError::DataLoss {
            shard,
            from,
            to,
            segment,
        } => ReadError::DataLoss {
            shard,
            from,
            to: to.min(until),
            segment,
        },
        ReadError::Trimmed { asked, horizon } => ReadError::Trimmed {
            asked,
            horizon: horizon.min(until),
        },
        other => other,
    }
}

/// Drops the frames that begin at or above `limit`.
fn cut_below(found: &mut FoundFrames, limit: SequenceNumber) {
    let mut kept: Vec<Bytes> = Vec::with_capacity(found.pieces.len());
    let mut kept_bytes = 0;
    for piece in &found.pieces {
        let (keep, cut_at) = frames_below(piece, limit);
        if keep > 0 {
            kept.push(piece.slice(..keep));
            kept_bytes += keep;
        }
        if let Some(cut_at) = cut_at {
            found.next = cut_at;
            break;
        }
    }
    found.pieces = kept;
    found.bytes = kept_bytes;
}

/// How many bytes of a piece are frames that begin below `limit`, and where the first other begins.
fn frames_below(piece: &Bytes, limit: SequenceNumber) -> (usize, Option<SequenceNumber>) {
    let mut at = 0;
    while let Some(rest) = piece.get(at..).filter(|rest| !rest.is_empty()) {
        // A frame was verified or written here; what cannot be walked is left to the consumer.
        let Ok(header) = FrameHeader::decode(rest) else {
            break;
        };
        if header.base >= limit {
            return (at, Some(header.base));
        }
        at += header.frame_bytes as usize;
    }
    (piece.len(), None)
}

/// A long poll on one shard.
struct Waiting {
    shard: Arc<ShardHandle>,
    ready: Arc<ReadySet>,
    time_out: Sleep,
}

impl Waiting {
    fn new(shard: Arc<ShardHandle>, time_out: Sleep) -> Self {
        let ready = Arc::default();
        shard.tail.arm(&ready, 0);

        Self {
            shard,
            ready,
            time_out,
        }
    }

    /// Waits until the shard is worth another look, and is armed for the one after; `false` when
    /// time is up.
    async fn woken(&mut self) -> bool {
        let (ready, time_out) = (&self.ready, &mut self.time_out);
        let mut tokens = Vec::new();
        let woken = poll_fn(|cx| match ready.poll(cx, &mut tokens) {
            Poll::Ready(()) => Poll::Ready(true),
            Poll::Pending => Pin::new(&mut *time_out).poll(cx).map(|()| false),
        })
        .await;
        if woken {
            self.shard.tail.arm(&self.ready, 0);
        }
        woken
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.shard.tail.disarm(&self.ready);
    }
}

#[cfg(test)]
mod tests {
    use flumen_record::{
        BatchBuilder, Compression, ProducerId, ProducerSequence, Record, RecordLimits, ShardEpoch,
        ShardId, Timestamp,
    };

    use super::*;

    /// Frames of three records each, from `bases`.
    fn frames(bases: &[u64]) -> (Bytes, usize) {
        let mut bytes = Vec::new();
        let mut one = 0;
        for &base in bases {
            let mut batch = BatchBuilder::new(RecordLimits::default());
            for _ in 0..3 {
                let record = Record {
                    partition_key: Bytes::from_static(b"key"),
                    explicit_hash_key: None,
                    data: Bytes::from_static(b"data"),
                    client_timestamp: None,
                    headers: Vec::new(),
                };
                batch.push(&record, record.hash_key()).unwrap();
            }
            let batch = batch.finish(
                ProducerId::NONE,
                ProducerSequence::new(0),
                Compression::None,
            );
            let header = FrameHeader {
                frame_bytes: 0,
                checksum: 0,
                shard: ShardId::from_value(1),
                epoch: ShardEpoch::new(1),
                base: SequenceNumber::new(base),
                arrival: Timestamp::ZERO,
            };
            let before = bytes.len();
            let length = u32::try_from(batch.bytes().len()).unwrap();
            bytes.extend_from_slice(&header.encode(length, batch.header().checksum, 0));
            bytes.extend_from_slice(batch.bytes());
            one = bytes.len() - before;
        }
        (Bytes::from(bytes), one)
    }

    fn check(pieces: &[&[u64]], limit: u64, expected_frames: &[usize], expected_next: u64) {
        let (_, one) = frames(&[0]);
        let mut found = FoundFrames {
            pieces: pieces.iter().map(|bases| frames(bases).0).collect(),
            bytes: pieces.iter().map(|bases| bases.len() * one).sum(),
            next: SequenceNumber::new(100),
        };
        cut_below(&mut found, SequenceNumber::new(limit));
        let lengths: Vec<usize> = found.pieces.iter().map(Bytes::len).collect();
        let expected: Vec<usize> = expected_frames.iter().map(|frames| frames * one).collect();
        assert_eq!(lengths, expected);
        assert_eq!(found.bytes, expected.iter().sum::<usize>());
        assert_eq!(found.next.value(), expected_next);
    }

    #[test]
    fn cuts_whole_frames_by_where_they_begin() {
        check(&[&[0, 3], &[6, 9]], 100, &[2, 2], 100);
        check(&[&[0, 3], &[6, 9]], 7, &[2, 1], 9);
        check(&[&[0, 3], &[6, 9]], 6, &[2], 6);
        check(&[&[0, 3], &[6, 9]], 1, &[1], 3);
        check(&[&[0, 3]], 0, &[], 0);
    }
}
