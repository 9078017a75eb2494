//! Consumer groups, running: one loop takes what came, decides, makes it durable, tells members.
//!
//! Decisions are `flumen_stream::group`'s. Here is the inbox before it (`Groups`), the loop (`worker`,
//! `taking`), what a member's session holds (`member`), who may read (`fence`), where shards stand
//! (`standing`), and what is asked about groups beside (`asking`, `listing`, `lag`).

mod asking;
mod fence;
mod lag;
mod listing;
mod loads;
mod member;
mod standing;
mod taking;
mod worker;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use flumen_log::LogReader;
use flumen_record::{GroupName, StreamId};
use flumen_stream::group::{
    Answer, BoundsOf, Coordinator, Event, GroupError, Request, RequestId, SessionId,
};
use tokio::sync::{Notify, oneshot};

use self::standing::Standing;
use crate::node::Node;
use crate::streams::{Stream, StreamRef};
use crate::{Clock, Error};
use flumen_world::{Running, lock};

pub use asking::{
    GroupLag, GroupPosition, GroupReset, GroupState, GroupStatus, LeaseStatus, MemberStatus,
    ShardLag,
};
pub(crate) use fence::Fences;
pub use fence::LeaseGuard;
pub(crate) use lag::backlog;
pub use listing::GroupLags;
pub(crate) use loads::start as start_loads;
pub(crate) use member::MemberQueue;
pub use member::{JoinGroup, MemberLease, MemberWord, Membership, SaveCheckpoint, SavedCheckpoint};
pub(crate) use worker::start;

/// Whoever asks waits so long for an answer: a full disk is tried for as long as it takes.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// What waits for the thread, at most: then whoever says more is refused.
const INBOX_MAX: usize = 256 << 10;
/// And so many bytes.
const INBOX_BYTES_MAX: u64 = 64 << 20;

/// Something for the thread.
enum Input {
    /// Somebody said something.
    Event(Event),
    /// A member's session opens; its join follows.
    Opened(SessionId, Arc<MemberQueue>),
    /// Who waits for the answer to a request, which follows.
    Asked(RequestId, oneshot::Sender<Result<Answer, GroupError>>),
    /// A look at what is decided and durable.
    Look(Look),
}

type Look = Box<dyn FnOnce(&Coordinator) + Send>;

impl Input {
    /// About what it takes while it waits.
    fn bytes(&self) -> u64 {
        let items = match self {
            Self::Event(Event::Request {
                request: Request::Checkpoint { items, .. },
                ..
            }) => {
                let skipped = items.iter().map(|item| item.skipped.len());
                items.len() + skipped.sum::<usize>()
            }
            Self::Event(Event::Request {
                request: Request::Reset(reset),
                ..
            }) => reset.shards.len(),
            Self::Event(Event::Release { leases, .. }) => leases.len(),
            Self::Event(Event::ShardsChanged { shards, .. }) => shards.len(),
            Self::Event(Event::LoadObserved { loads, .. }) => loads.len(),
            Self::Event(Event::Began { begins, .. }) => begins.len(),
            _ => 0,
        };
        256 + 64 * items as u64
    }
}

#[derive(Default)]
struct Inbox {
    inputs: Vec<Input>,
    /// About what they take.
    bytes: u64,
    /// End, leaving everything as it is, or (with an answer) in order.
    stop: bool,
    closing: Option<oneshot::Sender<Result<(), Error>>>,
}

/// The handle of the loop.
pub(crate) struct Groups {
    clock: Clock,
    inbox: Mutex<Inbox>,
    sessions: AtomicU64,
    requests: AtomicU64,
    /// Its log has failed: it decides nothing any more.
    failed: AtomicBool,
    /// Its log did not open: there is no thread.
    refusal: OnceLock<Error>,
    /// Says how far the log has got, also when it is closed.
    reader: OnceLock<LogReader>,
    /// Which state of each stream was told last. Held while a stream's shards are read and told, so
    /// that the last word is the newest.
    told: Mutex<BTreeMap<StreamId, u64>>,
    pub(crate) fences: Fences,
    pub(crate) counters: GroupCounters,
    /// What metrics were told last.
    lags: tokio::sync::Mutex<listing::KeptLags>,
    standing: Arc<Standing>,
    running: OnceLock<Running>,
    /// There was no session, and there is one.
    pub(crate) busy: Notify,
}

/// What groups did, for metrics.
#[derive(Debug, Default)]
pub(crate) struct GroupCounters {
    /// Groups there are.
    pub(crate) groups: AtomicU64,
    /// Open sessions.
    pub(crate) sessions: AtomicU64,
    /// Checkpoints made durable.
    pub(crate) checkpoints: AtomicU64,
    /// Leases granted.
    pub(crate) leases_granted: AtomicU64,
    /// Leases that ended without a release: silent members, forced hand-overs.
    pub(crate) leases_lost: AtomicU64,
    /// Rounds of the groups' log.
    pub(crate) rounds: AtomicU64,
}

impl std::fmt::Debug for Groups {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Groups")
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}

impl Groups {
    pub(crate) fn new(clock: Clock) -> Self {
        Self {
            clock,
            inbox: Mutex::default(),
            busy: Notify::new(),
            sessions: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            refusal: OnceLock::new(),
            reader: OnceLock::new(),
            told: Mutex::default(),
            fences: Fences::default(),
            counters: GroupCounters::default(),
            lags: tokio::sync::Mutex::default(),
            standing: Arc::default(),
            running: OnceLock::new(),
        }
    }

    /// Its log did not open: this is every answer.
    pub(crate) fn refuse(&self, why: Error) {
        let _ = self.refusal.set(why);
    }

    /// Says how far the log has got; `None` when it did not open.
    pub(crate) fn reader(&self) -> Option<&LogReader> {
        self.reader.get()
    }

    /// Why its log did not open, if it did not.
    pub(crate) fn refusal(&self) -> Option<&Error> {
        self.refusal.get()
    }

    /// [`Error::GroupsFailed`] once the groups' log has failed, [`Error::LogRefused`] when it did not
    /// open.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if let Some(refusal) = self.refusal.get() {
            return Err(refusal.clone());
        }
        if self.failed.load(Ordering::Acquire) {
            Err(Error::GroupsFailed)
        } else {
            Ok(())
        }
    }

    /// Where shards stand, for the coordinator.
    pub(crate) fn bounds(&self) -> Arc<dyn BoundsOf> {
        Arc::clone(&self.standing) as Arc<dyn BoundsOf>
    }

    /// Gives the thread inputs that belong together. Refused when it is far behind.
    fn push(&self, inputs: impl IntoIterator<Item = Input>) -> Result<(), Error> {
        self.put(inputs, false)
    }

    /// As [`Groups::push`]; what is not asked for but has happened is taken however much waits.
    fn put(
        &self,
        inputs: impl IntoIterator<Item = Input>,
        has_happened: bool,
    ) -> Result<(), Error> {
        self.check()?;
        let mut inbox = lock(&self.inbox);
        if inbox.stop {
            return Err(Error::Draining);
        }
        let is_full = inbox.inputs.len() >= INBOX_MAX || inbox.bytes >= INBOX_BYTES_MAX;
        if is_full && !has_happened {
            return Err(Error::QueueFull {
                retry_after: Duration::from_secs(1),
            });
        }
        let was_empty = inbox.inputs.is_empty();
        for input in inputs {
            inbox.bytes += input.bytes();
            inbox.inputs.push(input);
        }
        drop(inbox);
        if was_empty {
            self.wake();
        }
        Ok(())
    }

    fn say(&self, event: Event) -> Result<(), Error> {
        self.push([Input::Event(event)])
    }

    /// Tells a stream's shards as they are now, unless they are known, before `then`. Refused once
    /// the stream is deleted: nothing comes behind that.
    fn tell_shards(
        &self,
        stream: &Arc<Stream>,
        then: impl IntoIterator<Item = Input>,
    ) -> Result<(), Error> {
        let mut told = lock(&self.told);
        stream.check_exists()?;
        let state = stream.state();
        let id = state.info.id;
        let is_known = told.get(&id) == Some(&state.generation);
        let shards = (!is_known).then(|| Input::Event(worker::shards_of(&state.info)));
        self.standing.know(id, stream);
        let mut then = then.into_iter().peekable();
        let has_happened = then.peek().is_none();
        self.put(shards.into_iter().chain(then), has_happened)?;
        told.insert(id, state.generation);
        Ok(())
    }

    /// A stream has other shards than before.
    pub(crate) fn stream_changed(&self, stream: &Arc<Stream>) {
        if self.refusal.get().is_some() {
            return;
        }
        if let Err(error) = self.tell_shards(stream, []) {
            tracing::warn!(stream = %stream.name, %error, "consumer groups: shards not told");
        }
    }

    /// A stream is gone, and marked so.
    pub(crate) fn stream_deleted(&self, stream: &Stream) {
        let mut told = lock(&self.told);
        let stream = stream.state().info.id;
        told.remove(&stream);
        self.standing.forget(stream);
        // A thread that has ended is told at the next start, by its absence.
        let _ = self.happened(Event::StreamDeleted { stream });
    }

    /// Says what has happened already, and cannot be refused.
    fn happened(&self, event: Event) -> Result<(), Error> {
        self.put([Input::Event(event)], true)
    }

    /// Asks something of a group and waits until the answer is durable.
    async fn ask(
        &self,
        stream: &Arc<Stream>,
        group: &GroupName,
        request: Request,
    ) -> Result<Answer, Error> {
        let id = RequestId(self.requests.fetch_add(1, Ordering::Relaxed));
        let (answer, answered) = oneshot::channel();
        let event = Event::Request {
            id,
            stream: stream.state().info.id,
            group: group.clone(),
            request,
        };
        self.tell_shards(stream, [Input::Asked(id, answer), Input::Event(event)])?;
        let answer = self.answered(answered).await?;
        answer.map_err(|error| Error::group(&stream.name, error))
    }

    /// Looks at what is decided and durable.
    async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Coordinator) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (seen, found) = oneshot::channel();
        let look = Box::new(move |coordinator: &Coordinator| {
            // Who asked may be gone.
            let _ = seen.send(look(coordinator));
        });
        self.push([Input::Look(look)])?;
        self.answered(found).await
    }

    /// Waits for the thread's answer, not for ever.
    async fn answered<T>(&self, answer: oneshot::Receiver<T>) -> Result<T, Error> {
        let waited = ANSWER_WITHIN;
        match self.clock.timeout(waited, answer).await {
            Ok(answer) => answer.map_err(|_| self.gone()),
            Err(_) => Err(Error::GroupsUnanswered { waited }),
        }
    }

    /// Why the thread does not answer.
    fn gone(&self) -> Error {
        self.check().err().unwrap_or(Error::Draining)
    }

    /// Ends the thread in order: everything said before is decided and durable.
    pub(crate) async fn close(&self) -> Result<(), Error> {
        if self.refusal.get().is_some() {
            return Ok(());
        }
        let (done, closed) = oneshot::channel();
        {
            let mut inbox = lock(&self.inbox);
            // A thread that has ended before takes no more questions.
            self.check()?;
            inbox.stop = true;
            inbox.closing = Some(done);
        }
        self.wake();
        closed.await.unwrap_or(Ok(()))
    }

    /// Nothing more is decided: whoever waits, or asks from now on, is told so.
    fn fail(&self) {
        self.failed.store(true, Ordering::Release);
        let mut inbox = lock(&self.inbox);
        for input in inbox.inputs.drain(..) {
            if let Input::Opened(_, queue) = input {
                queue.end(Error::GroupsFailed);
            }
        }
        if let Some(done) = inbox.closing.take() {
            // Who asked may be gone.
            let _ = done.send(Err(Error::GroupsFailed));
        }
    }

    /// The loop runs.
    fn runs(&self, running: Running) {
        running.wake().wake();
        // There is one.
        let _ = self.running.set(running);
    }

    /// Waits for the loop to end.
    pub(crate) async fn ended(&self) {
        if let Some(running) = self.running.get() {
            running.ended().await;
        }
    }

    /// Tells the loop to end as it is.
    pub(crate) fn stop(&self) {
        lock(&self.inbox).stop = true;
        self.wake();
    }

    fn wake(&self) {
        if let Some(running) = self.running.get() {
            running.wake().wake();
        }
    }

    /// Whether members have sessions.
    pub(crate) fn has_sessions(&self) -> bool {
        self.counters.sessions.load(Ordering::Relaxed) > 0
    }

    /// What came. `None`: nothing, and nothing comes any more.
    fn take(&self) -> Option<Vec<Input>> {
        let mut inbox = lock(&self.inbox);
        let inputs = std::mem::take(&mut inbox.inputs);
        inbox.bytes = 0;
        if inputs.is_empty() && inbox.stop {
            return None;
        }
        Some(inputs)
    }
}

impl Node {
    /// The stream and, for its groups, proof that they work.
    fn groups_of(&self, meant: StreamRef<'_>) -> Result<Arc<Stream>, Error> {
        self.check_serving()?;
        self.groups.check()?;
        self.streams.get(meant)
    }
}

#[cfg(test)]
mod tests;
