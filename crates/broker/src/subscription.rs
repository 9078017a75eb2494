//! Push reading of many shards by one consumer.
//!
//! It reads only when asked. Shards that have something take turns; a shard that is caught up is
//! armed and costs nothing until its lane marks it; what lies on disk is read ahead, a few reads at
//! a time, each marking its shard when it is done. So there is one thing to wait for.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex};

use flumen_log::FoundFrames;
use flumen_record::{SequenceNumber, ShardIndex};
use flumen_stream::StartPosition;

use crate::node::Node;
use crate::read::reply;
use crate::streams::{ShardHandle, Stream, StreamRef, StreamState};
use crate::tail::ReadySet;
use crate::{Error, ReadBudget, ReadReply};
use flumen_world::lock;

/// Reads from disk that one subscription has under way or fetched ahead.
const AHEAD_MAX: usize = 4;

/// One shard's next frames, or why that shard ended.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The shard.
    pub shard: ShardIndex,
    /// Frames (or, without pieces, the end of the shard).
    pub reply: ReadReply,
}

/// A subscription. Dropping it ends it. It reads only when asked, so a slow reader costs no memory.
#[derive(Debug)]
pub struct Subscription {
    node: Arc<Node>,
    stream: Arc<Stream>,
    state: Arc<StreamState>,
    budget: ReadBudget,
    shards: Vec<Reader>,
    /// Shards to look at, in turn.
    turns: VecDeque<u32>,
    /// Shards that have to be read from disk when another read is done.
    for_disk: VecDeque<u32>,
    /// Shards that have not ended.
    open: usize,
    ready: Arc<ReadySet>,
    marked: Vec<u32>,
    /// Reads ahead that are under way or not delivered yet.
    ahead: usize,
    /// The shard the last error was about.
    failed_shard: Option<ShardIndex>,
}

/// One shard of a subscription.
#[derive(Debug)]
struct Reader {
    shard: Arc<ShardHandle>,
    start: SequenceNumber,
    from: SequenceNumber,
    stage: Stage,
    /// Where the shard ended before it was last read.
    seen: SequenceNumber,
}

#[derive(Debug)]
enum Stage {
    /// In line to be looked at.
    InTurn,
    /// Caught up: its lane marks it.
    Armed,
    /// A read from disk is under way; it marks the shard when it is done.
    Ahead(Arc<ReadAhead>),
    /// Delivered to its end, or failed.
    Ended,
}

type ReadAhead = Mutex<Option<Result<FoundFrames, Error>>>;

/// What looking at a shard brought.
enum Look {
    Delivered(Delivery),
    Nothing,
}

impl Node {
    /// [`crate::Broker::subscribe`].
    pub(crate) async fn subscribe(
        self: &Arc<Self>,
        stream: StreamRef<'_>,
        shards: Vec<(ShardIndex, StartPosition)>,
        budget: ReadBudget,
    ) -> Result<Subscription, Error> {
        self.check_serving()?;
        let stream = self.streams.get(stream)?;
        let state = stream.state();
        let shards = if shards.is_empty() {
            // Nothing new comes to closed ones.
            let all = state
                .shards
                .iter()
                .filter(|shard| shard.closed_at().is_none());
            all.map(|shard| (shard.id.index(), StartPosition::Latest))
                .collect()
        } else {
            shards
        };
        let mut readers = Vec::with_capacity(shards.len());
        for (index, start) in shards {
            let shard = stream.shard(index)?;
            let start = self.resolve(&shard, start).await?;
            readers.push(Reader {
                shard,
                start,
                from: start,
                stage: Stage::InTurn,
                seen: SequenceNumber::ZERO,
            });
        }
        Ok(Subscription {
            node: Arc::clone(self),
            budget: self.clamp(budget),
            turns: (0..).take(readers.len()).collect(),
            for_disk: VecDeque::new(),
            open: readers.len(),
            shards: readers,
            stream,
            state,
            ready: Arc::default(),
            marked: Vec::new(),
            ahead: 0,
            failed_shard: None,
        })
    }
}

impl Subscription {
    /// The next frames of any shard that has some, shards taking turns; waits for one. `None` when
    /// all shards have ended. An error is about one shard ([`Subscription::failed_shard`]), which
    /// ends by it, or about all of them (the stream was deleted, the node drains). Dropping the
    /// future loses nothing.
    pub async fn next(&mut self) -> Option<Result<Delivery, Error>> {
        loop {
            if let Err(error) = self
                .node
                .check_serving()
                .and_then(|()| self.stream.check_exists())
            {
                return self.end(error);
            }
            self.ready.take(&mut self.marked);
            self.line_up_marked();
            while let Some(token) = self.turns.pop_front() {
                match self.look(token) {
                    Ok(Look::Delivered(delivery)) => return Some(Ok(delivery)),
                    Ok(Look::Nothing) => {}
                    Err(error) => {
                        let reader = self.shards.get_mut(token as usize)?;
                        self.failed_shard = Some(reader.shard.id.index());
                        self.end_shard(token);
                        return Some(Err(error));
                    }
                }
            }
            if self.open == 0 {
                return None;
            }
            let (ready, marked) = (&self.ready, &mut self.marked);
            poll_fn(|cx| ready.poll(cx, marked)).await;
        }
    }

    /// The shard that the last error of [`Subscription::next`] was about; `None` when it was about
    /// the whole stream.
    pub fn failed_shard(&self) -> Option<ShardIndex> {
        self.failed_shard
    }

    /// Ends everything with an error, told once.
    fn end(&mut self, error: Error) -> Option<Result<Delivery, Error>> {
        if self.open == 0 {
            return None;
        }
        self.failed_shard = None;
        self.open = 0;
        for reader in &mut self.shards {
            reader.stage = Stage::Ended;
        }
        Some(Err(error))
    }

    fn end_shard(&mut self, token: u32) {
        if let Some(reader) = self.shards.get_mut(token as usize)
            && !matches!(reader.stage, Stage::Ended)
        {
            if let Stage::Ahead(_) = std::mem::replace(&mut reader.stage, Stage::Ended) {
                self.ahead -= 1;
            }
            self.open -= 1;
        }
    }

    fn line_up_marked(&mut self) {
        for token in self.marked.drain(..) {
            let Some(reader) = self.shards.get_mut(token as usize) else {
                continue;
            };
            match &reader.stage {
                Stage::Armed => reader.stage = Stage::InTurn,
                Stage::Ahead(_) => {}
                Stage::InTurn | Stage::Ended => continue,
            }
            self.turns.push_back(token);
        }
    }

    /// Looks at a shard whose turn it is, and lines it up again if there may be more.
    fn look(&mut self, token: u32) -> Result<Look, Error> {
        self.adopt_state();
        let Some(reader) = self.shards.get_mut(token as usize) else {
            return Ok(Look::Nothing);
        };
        if self.state.shard(reader.shard.id.index()).is_none() {
            // It was closed so long ago that it has expired.
            let (stream, shard) = (self.stream.name.clone(), reader.shard.id.index());
            return Err(Error::ShardNotFound { stream, shard });
        }
        let (found, from_disk) = match &reader.stage {
            Stage::InTurn => {
                reader.seen = reader.shard.tail.end();
                let found = self
                    .node
                    .read_hot(&reader.shard, reader.from, self.budget)?;
                (found, false)
            }
            Stage::Ahead(fetched) => {
                let Some(fetched) = lock(fetched).take() else {
                    return Ok(Look::Nothing);
                };
                self.ahead -= 1;
                reader.stage = Stage::InTurn;
                (Some(fetched?), true)
            }
            Stage::Armed | Stage::Ended => return Ok(Look::Nothing),
        };
        let Some(found) = found else {
            self.for_disk.push_back(token);
            self.read_ahead();
            return Ok(Look::Nothing);
        };
        let advanced = found.next > reader.from;
        reader.from = found.next.max(reader.from);
        let ends = reader
            .shard
            .closed_at()
            .is_some_and(|end| reader.from >= end);
        if found.pieces.is_empty() && !ends {
            self.arm(token, advanced);
            self.read_ahead();
            return Ok(Look::Nothing);
        }
        let delivery = Delivery {
            shard: reader.shard.id.index(),
            reply: reply(&self.state, &reader.shard, reader.start, found, reader.from),
        };
        match (ends, from_disk) {
            (true, _) => self.end_shard(token),
            (false, false) => self.turns.push_back(token),
            (false, true) => self.go_on_ahead(token),
        }
        self.read_ahead();
        Ok(Look::Delivered(delivery))
    }

    /// After a delivery from disk: more of it is fetched while the consumer is busy.
    fn go_on_ahead(&mut self, token: u32) {
        let Some(reader) = self.shards.get_mut(token as usize) else {
            return;
        };
        reader.seen = reader.shard.tail.end();
        match self.node.read_hot(&reader.shard, reader.from, self.budget) {
            Ok(None) => self.for_disk.push_back(token),
            // It has caught up with what was written last: these are slices, and cost nothing to keep.
            Ok(Some(found)) if !found.pieces.is_empty() => {
                reader.stage = Stage::Ahead(Arc::new(Mutex::new(Some(Ok(found)))));
                self.ahead += 1;
                self.turns.push_back(token);
            }
            // Found out, or failing again, when its turn comes.
            Ok(Some(_)) | Err(_) => self.turns.push_back(token),
        }
    }

    /// Waits for the shard's lane, unless something came since the shard was read, or the read got
    /// `advanced` over a gap and may find more behind it. That the shard ends further on is not
    /// enough: what was read may not be where the rest lies, and reading it again finds no more.
    fn arm(&mut self, token: u32, advanced: bool) {
        let Some(reader) = self.shards.get_mut(token as usize) else {
            return;
        };
        reader.stage = Stage::Armed;
        reader.shard.tail.arm(&self.ready, token);
        let end = reader.shard.tail.end();
        let more = end > reader.from && (advanced || end != reader.seen);
        if more || self.stream.is_stale(&self.state) {
            self.marked.push(token);
            self.line_up_marked();
        }
    }

    /// Starts reads from disk for the shards that wait for one, a few at a time.
    fn read_ahead(&mut self) {
        while self.ahead < AHEAD_MAX
            && let Some(token) = self.for_disk.pop_front()
        {
            let Some(reader) = self.shards.get_mut(token as usize) else {
                continue;
            };
            self.ahead += 1;
            reader.seen = reader.shard.tail.end();
            let fetched = Arc::new(ReadAhead::default());
            reader.stage = Stage::Ahead(Arc::clone(&fetched));
            let (node, shard) = (Arc::clone(&self.node), Arc::clone(&reader.shard));
            let (from, budget, ready) = (reader.from, self.budget, Arc::downgrade(&self.ready));
            self.node.background(async move {
                if ready.strong_count() == 0 {
                    return;
                }
                let result = node.read_cold(&shard, from, budget).await;
                *lock(&fetched) = Some(result);
                if let Some(waker) = ready.upgrade().and_then(|ready| ready.mark(token)) {
                    waker.wake();
                }
            });
        }
    }

    /// Learns what the stream has become.
    fn adopt_state(&mut self) {
        if !self.stream.is_stale(&self.state) {
            return;
        }
        self.state = self.stream.state();
        for reader in &mut self.shards {
            if let Some(shard) = self.state.shard(reader.shard.id.index()) {
                reader.shard = Arc::clone(shard);
            }
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        for reader in &self.shards {
            reader.shard.tail.disarm(&self.ready);
        }
    }
}
