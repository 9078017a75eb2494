//! Reads the shards of a stream, and goes on exactly where it was.
//!
//! There is no task behind it: [`Consumer::next`] pulls from one subscription, so that a consumer
//! that is not asked costs a flow control window and nothing else. What is where is in `cursor`; what
//! to do about failures in `recover`.

mod batch;
mod cursor;
mod read;
mod recover;

use std::time::Duration;

use flumen_api::v1;
use flumen_record::{Frames, SequenceNumber, ShardIndex, StreamIncarnation, StreamName, Timestamp};
use tokio::time::Instant;
use tonic::Streaming;

pub(crate) use cursor::wire;
use cursor::{Cursor, ready};
use recover::Patience;

pub use batch::{ConsumedBatch, ConsumedRecord, ConsumedRecords, MalformedRecord};
pub use read::{ReadBudget, ReadReply};

use crate::{Client, ConsumeError, ConsumerConfig, Error, ReadUntil, StreamDescription};

/// Where reading begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartPosition {
    /// The oldest record kept.
    TrimHorizon,
    /// After the last readable record at the time of the call.
    Latest,
    /// At this record.
    At(SequenceNumber),
    /// After this record.
    After(SequenceNumber),
    /// The first record that arrived at or after this time.
    AtTimestamp(Timestamp),
}

/// Reads one stream. Rides out broken connections and restarts of the broker: no record is lost,
/// repeated or reordered within its shard.
#[derive(Debug)]
pub struct Consumer {
    client: Client,
    stream: StreamName,
    /// Which of that name: positions are places in it alone.
    incarnation: StreamIncarnation,
    config: ConsumerConfig,
    /// By shard.
    cursors: Vec<Cursor>,
    session: Option<Session>,
    /// What is left of the last response.
    pending: Option<Pending>,
    patience: Patience,
    /// A shard has ended in children that are not known yet.
    children_unknown: bool,
    stats: ConsumerStats,
}

#[derive(Debug)]
struct Session {
    responses: Streaming<v1::ReadResponse>,
    opened: Instant,
    /// Frame bytes that came for shards of which nothing more is wanted.
    unwanted_bytes: u64,
}

/// One response, partly read.
#[derive(Debug)]
struct Pending {
    shard: ShardIndex,
    frames: Frames,
    next: SequenceNumber,
    /// The shard ends after these frames; its children.
    end: Option<Vec<ShardIndex>>,
}

/// What a consumer did so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConsumerStats {
    /// Records returned.
    pub records: u64,
    /// Frame bytes returned.
    pub frame_bytes: u64,
    /// Sessions opened.
    pub sessions_opened: u64,
    /// Sequence numbers skipped because their records were trimmed or damaged
    /// ([`crate::GapPolicy::Skip`]).
    pub numbers_skipped: u64,
}

/// A session that brings more than this for shards that are done is replaced by one without them.
const UNWANTED_BYTES_MAX: u64 = 4 << 20;
/// A consumer that reads to the end looks whether it is there when nothing came for this long: there
/// may be no record at the end, only a gap in the numbers.
const PROBE_AFTER: Duration = Duration::from_millis(250);

impl Consumer {
    /// Learns the stream's shards and resolves the start positions. Waits for a broker that is not
    /// there yet, up to `retry_for`.
    ///
    /// # Errors
    /// When the stream or a shard does not exist, another stream has the name now
    /// ([`ConsumerConfig::incarnation`]), or the broker does not answer.
    pub async fn open(
        client: &Client,
        stream: &StreamName,
        config: ConsumerConfig,
    ) -> Result<Self, ConsumeError> {
        let mut patience = Patience::new(config.retry_for);
        let known = config.incarnation.unwrap_or_default();
        let description = loop {
            match client.describe_known(stream, known).await {
                Ok(description) => break description,
                Err(error) => patience.failed(error)?,
            }
            patience.wait().await;
        };
        patience.succeeded();
        let mut consumer = Self {
            client: client.clone(),
            stream: stream.clone(),
            incarnation: description.incarnation,
            config,
            cursors: Vec::new(),
            session: None,
            pending: None,
            patience,
            children_unknown: false,
            stats: ConsumerStats::default(),
        };
        consumer.add_shards(&description)?;
        Ok(consumer)
    }

    /// The next batch of any shard; `None` at the end ([`ReadUntil`]), or when every shard has ended.
    /// Cancel-safe: a batch is either returned or comes again.
    ///
    /// # Errors
    /// Why it cannot go on. Calling again tries again from the same place.
    pub async fn next(&mut self) -> Result<Option<ConsumedBatch>, ConsumeError> {
        loop {
            if let Some(batch) = self.next_pending()? {
                self.stats.records += u64::from(batch.count());
                self.stats.frame_bytes += u64::from(batch.frame_bytes());
                return Ok(Some(batch));
            }
            if !self.children_unknown && self.cursors.iter().all(Cursor::is_done) {
                return Ok(None);
            }
            if let Err(error) = self.receive().await {
                self.recover(error).await?;
            }
        }
    }

    /// Where to go on after everything [`Consumer::next`] has returned, for
    /// [`ConsumerConfig::positions`] of a later consumer.
    pub fn positions(&self) -> Vec<(ShardIndex, StartPosition)> {
        self.cursors
            .iter()
            .map(|cursor| (cursor.shard, cursor.position()))
            .collect()
    }

    /// Which stream of its name it reads, for [`ConsumerConfig::incarnation`] of a later consumer: to be
    /// kept with [`Consumer::positions`].
    pub fn incarnation(&self) -> StreamIncarnation {
        self.incarnation
    }

    /// Counters so far.
    pub fn stats(&self) -> ConsumerStats {
        self.stats
    }

    /// Adds what the consumer is to read and does not know yet.
    fn add_shards(&mut self, stream: &StreamDescription) -> Result<(), ConsumeError> {
        let to_end = self.config.until == ReadUntil::CurrentEnd;
        let known = |shard: &ShardIndex| stream.shards.iter().any(|s| s.index == *shard);
        let first_look = self.cursors.is_empty();
        if let Some(shard) = self
            .config
            .shards
            .iter()
            .find(|shard| first_look && !known(shard))
        {
            return Err(ConsumeError::ShardNotFound { shard: *shard });
        }
        for shard in &stream.shards {
            let wanted = self.config.shards.is_empty() || self.config.shards.contains(&shard.index);
            if !wanted
                || self
                    .cursors
                    .iter()
                    .any(|cursor| cursor.shard == shard.index)
            {
                continue;
            }
            let own = self
                .config
                .positions
                .iter()
                .find(|(index, _)| *index == shard.index);
            let start = match (own, self.config.start) {
                (Some((_, start)), _) => *start,
                // It did not exist when the consumer began: all of it is new.
                (None, StartPosition::Latest) if !first_look => StartPosition::TrimHorizon,
                // A number is a place in one shard; descendants are read from their beginning.
                (None, StartPosition::At(_) | StartPosition::After(_))
                    if !shard.parents.is_empty() =>
                {
                    StartPosition::TrimHorizon
                }
                (None, start) => start,
            };
            self.cursors.push(Cursor::new(shard, start, to_end));
        }
        self.cursors.sort_unstable_by_key(|cursor| cursor.shard);
        Ok(())
    }

    /// The next records of the last response.
    fn next_pending(&mut self) -> Result<Option<ConsumedBatch>, ConsumeError> {
        while let Some(pending) = &mut self.pending {
            let shard = pending.shard;
            let Ok(index) = self
                .cursors
                .binary_search_by_key(&shard, |cursor| cursor.shard)
            else {
                self.pending = None;
                continue;
            };
            let cursor = self.cursors.get_mut(index).expect("BUG: found just now");
            let frame = match pending.frames.next() {
                Some(Ok(frame)) if frame.header.shard.index() == shard => frame,
                Some(Ok(_)) => {
                    self.drop_session();
                    let endpoint = self.client.endpoint();
                    return Err(ConsumeError::Refused(Error::nonsense(
                        endpoint,
                        "another shard's frame",
                    )));
                }
                Some(Err(error)) => {
                    let next = cursor.next().unwrap_or_default();
                    self.drop_session();
                    self.patience.damaged(shard, next, error)?;
                    return Ok(None);
                }
                None => {
                    cursor.step_to(pending.next);
                    let children = pending.end.take();
                    self.pending = None;
                    if let Some(children) = children {
                        self.end_of_shard(index, &children);
                    }
                    continue;
                }
            };
            self.patience.succeeded();
            let taken = cursor.take(frame.header.base, frame.batch.header().count);
            if taken.is_some() && cursor.is_done() {
                self.finished(shard);
            }
            match taken {
                Some((first, end)) => return Ok(Some(ConsumedBatch::new(frame, first, end))),
                None => self.unwanted(u64::from(frame.header.frame_bytes)),
            }
        }
        Ok(None)
    }

    fn unwanted(&mut self, bytes: u64) {
        let Some(session) = &mut self.session else {
            return;
        };
        session.unwanted_bytes += bytes;
        if session.unwanted_bytes > UNWANTED_BYTES_MAX && self.cursors.iter().any(Cursor::is_done) {
            self.drop_session();
        }
    }

    /// A shard is read to its end: its children may begin.
    fn end_of_shard(&mut self, index: usize, children: &[ShardIndex]) {
        if let Some(cursor) = self.cursors.get_mut(index) {
            cursor.end();
        }
        let follows = self.config.shards.is_empty() && self.config.until == ReadUntil::Forever;
        let known = |child| self.cursors.iter().any(|cursor| cursor.shard == child);
        self.children_unknown |= follows && !children.iter().all(|child| known(*child));
        if self.children_unknown {
            self.drop_session();
        }
        if let Some(shard) = self.cursors.get(index).map(|cursor| cursor.shard) {
            self.finished(shard);
        }
    }

    /// Nothing more is wanted from a shard: whoever waited for that is subscribed to.
    fn finished(&mut self, shard: ShardIndex) {
        if self
            .cursors
            .iter()
            .any(|cursor| cursor.parents.contains(&shard))
        {
            self.drop_session();
        }
    }

    fn drop_session(&mut self) {
        self.session = None;
        self.pending = None;
    }

    /// Gets the next response, opening a session first where there is none.
    async fn receive(&mut self) -> Result<(), Error> {
        self.patience.wait().await;
        if self.children_unknown {
            let (stream, known) = (&self.stream, self.incarnation);
            let description = self.client.describe_known(stream, known).await?;
            // Only names that were asked for can be missing, and none was.
            let _ = self.add_shards(&description);
            self.children_unknown = false;
        }
        if self.session.is_none() {
            self.session = Some(self.subscribe().await?);
            self.stats.sessions_opened += 1;
        }
        let Some(session) = &mut self.session else {
            return Ok(());
        };
        let response = if self.config.until == ReadUntil::CurrentEnd {
            match tokio::time::timeout(PROBE_AFTER, session.responses.message()).await {
                Ok(response) => response,
                Err(_) => return self.probe().await,
            }
        } else {
            session.responses.message().await
        };
        let ended = || Error::session_ended(self.client.endpoint());
        let response = response
            .map_err(|status| self.client.failure(&status))?
            .ok_or_else(ended)?;
        let found = StreamIncarnation::new(response.stream_incarnation);
        let (stream, known) = (&self.stream, self.incarnation);
        self.client.check_incarnation(stream, known, found)?;
        self.accept(response);
        Ok(())
    }

    async fn subscribe(&self) -> Result<Session, Error> {
        let shards = ready(&self.cursors).map(|cursor| v1::ShardStart {
            shard: cursor.shard.value(),
            start: Some(wire(cursor.position())),
            lease: None,
        });
        let request = v1::SubscribeRequest {
            stream: self.stream.to_string(),
            shards: shards.collect(),
            start: None,
            max_bytes: self.config.response_bytes_max,
            stream_incarnation: self.incarnation.value(),
        };
        let mut consumer = self.client.consumer();
        let bound = self.client.config().connect_timeout;
        let responses = self.client.call(bound, consumer.subscribe(request)).await?;
        Ok(Session {
            responses,
            opened: Instant::now(),
            unwanted_bytes: 0,
        })
    }

    fn accept(&mut self, response: v1::ReadResponse) {
        let shard = ShardIndex::new(response.shard);
        if let Ok(index) = self
            .cursors
            .binary_search_by_key(&shard, |cursor| cursor.shard)
            && let Some(cursor) = self.cursors.get_mut(index)
        {
            cursor.resolved(SequenceNumber::new(response.start));
        }
        let children = response.children.into_iter().map(ShardIndex::new);
        self.pending = Some(Pending {
            shard,
            frames: Frames::new(response.frames),
            next: SequenceNumber::new(response.next),
            end: response.end_of_shard.then(|| children.collect()),
        });
        self.patience.heard();
    }

    /// Looks whether shards without a word are at their end already.
    async fn probe(&mut self) -> Result<(), Error> {
        let mut ended = false;
        for cursor in self.cursors.iter_mut().filter(|cursor| !cursor.is_done()) {
            let budget = ReadBudget {
                max_bytes: 1,
                max_records: 1,
                max_wait: Duration::ZERO,
            };
            let (shard, position) = (cursor.shard, cursor.position());
            let reply = self
                .client
                .read_known(&self.stream, self.incarnation, shard, position, budget)
                .await?;
            // A reply has a frame where there is one.
            if reply.batches.is_empty() {
                cursor.resolved(reply.start);
                cursor.step_to(reply.next);
                cursor.end();
            }
            ended |= cursor.is_done();
        }
        if ended {
            // Others may have waited for these; what the session had for the rest comes again.
            self.drop_session();
        }
        Ok(())
    }
}
