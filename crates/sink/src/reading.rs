//! Reading the source: whatever shard has something, parents to their end before their children; and
//! once more the ranges of a cut that is planned.

use std::collections::BTreeMap;

use flumen_broker::{Broker, Error, ReadBudget, StartPosition, StreamDescription, Subscription};
use flumen_record::{SequenceNumber, ShardIndex, StreamName};
use tokio::sync::watch;

use crate::cut::CutRange;
use crate::filling::Piece;
use crate::lineage::{Positions, Shard, readable};

/// What reading brought.
#[derive(Debug)]
pub(crate) enum Found {
    /// Records.
    Piece(Piece),
    /// These are gone: they expired before they were read. Reading goes on behind them.
    Expired(CutRange),
    /// These are damaged and cannot be served. Reading goes on behind them.
    Damaged(CutRange),
}

/// A shard as it was last seen.
#[derive(Debug, Clone, Copy)]
struct Known {
    trim_horizon: SequenceNumber,
    end: SequenceNumber,
    is_closed: bool,
}

/// Reads a stream from where it stands, following splits and merges.
#[derive(Debug)]
pub(crate) struct Reading {
    broker: Broker,
    stream: StreamName,
    budget: ReadBudget,
    positions: Positions,
    /// The shards of the stream when it was last looked at, and their ends then.
    known: BTreeMap<ShardIndex, Known>,
    changes: watch::Receiver<u64>,
    subscription: Option<Subscription>,
    /// What `subscription` reads.
    subscribed: Vec<ShardIndex>,
    /// Handed out and not taken whole.
    left: Option<Piece>,
}

impl Reading {
    /// Goes on at these positions.
    pub(crate) fn new(
        broker: &Broker,
        stream: &StreamName,
        positions: Positions,
        read_bytes: u64,
    ) -> Self {
        Self {
            changes: broker.stream_changes(),
            broker: broker.clone(),
            stream: stream.clone(),
            budget: ReadBudget {
                bytes: read_bytes,
                records: u64::MAX,
            },
            positions,
            known: BTreeMap::new(),
            subscription: None,
            subscribed: Vec::new(),
            left: None,
        }
    }

    /// Where reading is.
    pub(crate) fn positions(&self) -> &Positions {
        &self.positions
    }

    /// The next piece; waits for one. Dropping the future loses nothing. An error is about the whole
    /// stream.
    pub(crate) async fn next(&mut self) -> Result<Found, Error> {
        loop {
            if let Some(left) = self.left.take() {
                return Ok(Found::Piece(left));
            }
            if self.subscription.is_none()
                && let Some(gone) = self.subscribe().await?
            {
                return Ok(Found::Expired(gone));
            }
            let Some(subscription) = &mut self.subscription else {
                // All shards are read to their ends, or wait for such.
                self.wait_for_change().await?;
                continue;
            };
            let delivered = tokio::select! {
                biased;
                delivered = subscription.next() => delivered,
                changed = self.changes.changed() => {
                    changed.map_err(|_| Error::Draining)?;
                    self.look_again()?;
                    continue;
                }
            };
            let failed_shard = subscription.failed_shard();
            match delivered {
                None => self.subscription = None,
                Some(Ok(delivery)) => {
                    let at = self.positions.get(&delivery.shard).copied();
                    return Ok(Found::Piece(Piece {
                        shard: delivery.shard,
                        from: at.unwrap_or(delivery.reply.start),
                        to: delivery.reply.next,
                        frames: delivery.reply.pieces,
                        ends_shard: delivery.reply.end_of_shard.is_some(),
                    }));
                }
                Some(Err(error)) => {
                    self.subscription = None;
                    if let Some(found) = self.pass_over(failed_shard, error)? {
                        return Ok(found);
                    }
                }
            }
        }
    }

    /// Takes note of how far a piece was taken: the rest comes again.
    pub(crate) fn taken(&mut self, piece: Piece, next: SequenceNumber) {
        self.positions.insert(piece.shard, next);
        if next < piece.to {
            self.left = Some(Piece {
                from: next,
                ..piece
            });
        } else if piece.ends_shard {
            // Its children may be read now.
            self.subscription = None;
        }
    }

    /// Subscribes to what may be read now. A shard whose next record is gone is told, once.
    async fn subscribe(&mut self) -> Result<Option<CutRange>, Error> {
        self.changes.mark_unchanged();
        let stream = self.broker.describe_stream(&self.stream)?;
        if let Some(gone) = self.gone(&stream) {
            return Ok(Some(gone));
        }
        let shards = shards(&stream);
        let open = readable(&shards, &self.positions);
        for (shard, at) in &open {
            let horizon = shards.iter().find(|known| known.index == *shard);
            let horizon = horizon.map_or(*at, |known| known.trim_horizon);
            if horizon > *at {
                self.positions.insert(*shard, horizon);
                return Ok(Some(CutRange {
                    shard: *shard,
                    from: *at,
                    to: horizon,
                }));
            }
        }
        self.subscribed = open.iter().map(|(shard, _)| *shard).collect();
        if open.is_empty() {
            return Ok(None);
        }
        let starts = open
            .into_iter()
            .map(|(shard, at)| (shard, StartPosition::At(at)))
            .collect();
        match self
            .broker
            .subscribe(&self.stream, starts, self.budget)
            .await
        {
            Ok(subscription) => self.subscription = Some(subscription),
            // The horizon moved, or a shard went, since the look above.
            Err(Error::Trimmed { .. } | Error::ShardNotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(None)
    }

    /// The stream has changed: other shards may be read.
    fn look_again(&mut self) -> Result<(), Error> {
        let stream = self.broker.describe_stream(&self.stream)?;
        let has_lost = |index: &ShardIndex| stream.shards.iter().all(|shard| shard.index != *index);
        if self.known.keys().any(has_lost) {
            self.subscription = None;
            return Ok(());
        }
        self.know(&stream);
        let shards = shards(&stream);
        let open = readable(&shards, &self.positions);
        let is_new = |(shard, _): &(ShardIndex, _)| !self.subscribed.contains(shard);
        if open.iter().any(is_new) {
            self.subscription = None;
        }
        Ok(())
    }

    /// Keeps track of shards while nothing is read, without end: how far one goes that is closed is
    /// not to be known any more once it has expired. Dropping the future loses nothing.
    pub(crate) async fn watch(&mut self) -> Error {
        loop {
            if self.changes.changed().await.is_err() {
                return Error::Draining;
            }
            // Other shards may be read then.
            self.subscription = None;
            match self.broker.describe_stream(&self.stream) {
                Ok(stream) => self.know(&stream),
                Err(error) => return error,
            }
        }
    }

    /// Takes note of the shards there are; those that are gone are kept until they are told.
    fn know(&mut self, stream: &StreamDescription) {
        let known = stream.shards.iter().map(|shard| {
            let known = Known {
                trim_horizon: shard.trim_horizon,
                end: shard.durable_end,
                is_closed: !shard.open,
            };
            (shard.index, known)
        });
        self.known.extend(known);
    }

    /// A shard that expired as a whole before it was read to its end, as far as its end was seen; each
    /// is told once.
    fn gone(&mut self, stream: &StreamDescription) -> Option<CutRange> {
        let has_gone = |index: &ShardIndex| stream.shards.iter().all(|shard| shard.index != *index);
        while let Some(shard) = self.known.keys().copied().find(has_gone) {
            let Some(known) = self.known.remove(&shard) else {
                continue;
            };
            let from = self.positions.get(&shard).copied();
            let from = from.unwrap_or(known.trim_horizon);
            if from < known.end || !known.is_closed {
                let to = known.end.max(from);
                self.positions.insert(shard, to);
                return Some(CutRange { shard, from, to });
            }
        }
        self.know(stream);
        None
    }

    async fn wait_for_change(&mut self) -> Result<(), Error> {
        self.changes.changed().await.map_err(|_| Error::Draining)
    }

    /// One shard cannot go on where it is.
    fn pass_over(
        &mut self,
        shard: Option<ShardIndex>,
        error: Error,
    ) -> Result<Option<Found>, Error> {
        let Some(shard) = shard else {
            return Err(error);
        };
        let at = self.positions.get(&shard).copied().unwrap_or_default();
        match error {
            // Found out when it is subscribed to again.
            Error::Trimmed { .. } | Error::ShardNotFound { .. } => Ok(None),
            Error::DataLoss { from, to, .. } => {
                self.positions.insert(shard, to.max(at));
                Ok(Some(Found::Damaged(CutRange {
                    shard,
                    from: from.max(at),
                    to,
                })))
            }
            error => Err(error),
        }
    }
}

/// What is known of the shards of a stream.
pub(crate) fn shards(stream: &StreamDescription) -> Vec<Shard> {
    stream
        .shards
        .iter()
        .map(|shard| Shard {
            index: shard.index,
            parents: shard.parents.clone(),
            closed_at: (!shard.open).then_some(shard.durable_end),
            trim_horizon: shard.trim_horizon,
        })
        .collect()
}

/// The next piece of a planned range, from `at`; `None` at its end.
pub(crate) async fn read_range(
    broker: &Broker,
    stream: &StreamName,
    range: CutRange,
    at: SequenceNumber,
    read_bytes: u64,
) -> Result<Option<Found>, Error> {
    if at >= range.to {
        return Ok(None);
    }
    let budget = ReadBudget {
        bytes: read_bytes,
        records: u64::MAX,
    };
    let start = StartPosition::At(at);
    let part = |to: SequenceNumber| CutRange {
        shard: range.shard,
        from: at,
        to: to.min(range.to),
    };
    match broker
        .read(
            stream,
            range.shard,
            start,
            budget,
            std::time::Duration::ZERO,
        )
        .await
    {
        Ok(reply) if reply.next <= at => {
            // Nothing follows; what was planned there is not there any more.
            Ok(Some(Found::Expired(part(range.to))))
        }
        Ok(reply) => Ok(Some(Found::Piece(Piece {
            shard: range.shard,
            from: at,
            to: reply.next.min(range.to),
            frames: reply.pieces,
            ends_shard: false,
        }))),
        Err(Error::Trimmed { horizon, .. }) => Ok(Some(Found::Expired(part(horizon)))),
        Err(Error::ShardNotFound { .. }) => Ok(Some(Found::Expired(part(range.to)))),
        Err(Error::DataLoss { to, .. }) => Ok(Some(Found::Damaged(part(to)))),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
