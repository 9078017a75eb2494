//! A store that fails by a schedule: for tests.
//!
//! What fails, and how, follows from a seed, the kind of operation, its key and how often that key
//! was asked before: not from the order in which threads come. Outages and the crash count
//! operations of all kinds.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use object_store::client::{HttpError, HttpErrorKind};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result,
};
use tokio::sync::watch;

use crate::store::ServerAnswer;

/// How often each fault happens, in operations of a thousand that it applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FaultRates {
    /// 503 SlowDown.
    pub slow_down: u16,
    /// 500 InternalError, nothing done.
    pub server_error: u16,
    /// No connection.
    pub no_connection: u16,
    /// No answer ever, nothing done.
    pub silence: u16,
    /// No answer ever, and it is done.
    pub silence_after: u16,
    /// The connection breaks, nothing done.
    pub reset: u16,
    /// The connection breaks, and it is done: the answer is lost.
    pub reset_after: u16,
    /// The body of an upload breaks off; nothing is stored.
    pub partial_upload: u16,
    /// The body of a read breaks off.
    pub truncated_read: u16,
    /// Access is denied.
    pub denied: u16,
    /// It takes a while, and then works.
    pub delay: u16,
    /// How long, in milliseconds, at most.
    pub delay_ms_max: u64,
}

impl FaultRates {
    /// Some of each.
    pub fn rough() -> Self {
        Self {
            slow_down: 60,
            server_error: 40,
            no_connection: 20,
            silence: 10,
            silence_after: 15,
            reset: 30,
            reset_after: 60,
            partial_upload: 30,
            truncated_read: 50,
            denied: 10,
            delay: 100,
            delay_ms_max: 200,
        }
    }

    fn table(&self) -> [(Fault, u16); 11] {
        [
            (Fault::SlowDown, self.slow_down),
            (Fault::ServerError, self.server_error),
            (Fault::NoConnection, self.no_connection),
            (Fault::Silence, self.silence),
            (Fault::SilenceAfter, self.silence_after),
            (Fault::Reset, self.reset),
            (Fault::ResetAfter, self.reset_after),
            (Fault::PartialUpload, self.partial_upload),
            (Fault::TruncatedRead, self.truncated_read),
            (Fault::Denied, self.denied),
            (Fault::Delay, self.delay),
        ]
    }
}

/// One thing that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "as in `FaultRates`")]
pub enum Fault {
    SlowDown,
    ServerError,
    NoConnection,
    Silence,
    SilenceAfter,
    Reset,
    ResetAfter,
    PartialUpload,
    TruncatedRead,
    Denied,
    Delay,
    /// 404 NoSuchBucket.
    NoSuchBucket,
    /// 400 ExpiredToken.
    ExpiredToken,
}

/// A fault that every operation meets for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outage {
    /// The first operation, counted from 0.
    pub from: u64,
    /// How many.
    pub operations: u64,
    /// What they meet.
    pub fault: Fault,
}

/// The death of the process that uses the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crash {
    /// At this operation, counted from 0.
    pub at: u64,
    /// Whether that operation still takes effect. None after it does.
    pub after_effect: bool,
}

/// How a store keeps conditions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Conditions {
    /// Create if absent is atomic.
    #[default]
    Kept,
    /// It looks, and then writes.
    Raced,
    /// It overwrites.
    Ignored,
    /// 501 NotImplemented.
    Refused,
}

/// What goes wrong, whole.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FaultPlan {
    /// Decides what `rates` hit.
    pub seed: u64,
    /// What happens now and then.
    pub rates: FaultRates,
    /// What happens for a while.
    pub outages: Vec<Outage>,
    /// What ends it.
    pub crash: Option<Crash>,
    /// How conditions are kept.
    pub conditions: Conditions,
}

/// What was asked, and what went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FaultCounts {
    /// Operations of all kinds.
    pub operations: u64,
    /// Puts.
    pub puts: u64,
    /// Gets of metadata alone.
    pub heads: u64,
    /// Gets.
    pub gets: u64,
    /// Deletes.
    pub deletes: u64,
    /// Faults, by kind.
    pub faults: BTreeMap<Fault, u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Put,
    Head,
    Get,
    Delete,
}

/// Another store, with faults. Clones share them.
#[derive(Debug, Clone)]
pub struct FaultyStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    inner: Arc<dyn ObjectStore>,
    state: Mutex<State>,
    crashed: watch::Sender<bool>,
}

#[derive(Debug)]
struct State {
    plan: FaultPlan,
    counts: FaultCounts,
    /// How often each key was asked.
    asked: BTreeMap<(Kind, Path), u64>,
}

/// What an operation meets.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Fine,
    Met { fault: Fault, draw: u64 },
    Dies { after_effect: bool },
    Dead,
}

#[derive(Debug, thiserror::Error)]
#[error("the process is dead")]
struct Dead;

impl FaultyStore {
    /// Faults around a store.
    pub fn new(inner: Arc<dyn ObjectStore>, plan: FaultPlan) -> Self {
        Self {
            shared: Arc::new(Shared {
                inner,
                state: Mutex::new(State {
                    plan,
                    counts: FaultCounts::default(),
                    asked: BTreeMap::new(),
                }),
                crashed: watch::Sender::new(false),
            }),
        }
    }

    /// Another plan from here on. Counting goes on.
    pub fn set_plan(&self, plan: FaultPlan) {
        self.state().plan = plan;
    }

    /// What was asked so far.
    pub fn counts(&self) -> FaultCounts {
        self.state().counts.clone()
    }

    /// Whether the crash has happened.
    pub fn is_crashed(&self) -> bool {
        *self.shared.crashed.borrow()
    }

    /// Resolves when the crash happens.
    pub async fn crashed(&self) {
        // It ends only with the store, which is borrowed here.
        let _ = self.shared.crashed.subscribe().wait_for(|is| *is).await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        let state = self.shared.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }

    fn conditions(&self) -> Conditions {
        self.state().plan.conditions
    }

    fn fate(&self, kind: Kind, path: &Path) -> Fate {
        if self.is_crashed() {
            return Fate::Dead;
        }
        let mut state = self.state();
        let number = state.counts.operations;
        state.counts.operations += 1;
        *match kind {
            Kind::Put => &mut state.counts.puts,
            Kind::Head => &mut state.counts.heads,
            Kind::Get => &mut state.counts.gets,
            Kind::Delete => &mut state.counts.deletes,
        } += 1;
        let asked = state.asked.entry((kind, path.clone())).or_default();
        let times = *asked;
        *asked += 1;
        if let Some(crash) = state.plan.crash
            && number >= crash.at
        {
            drop(state);
            self.shared.crashed.send_replace(true);
            let after_effect = crash.after_effect;
            return Fate::Dies { after_effect };
        }
        let draw = draw(state.plan.seed, kind, path, times);
        let outage = state.plan.outages.iter().find(|outage| {
            number
                .checked_sub(outage.from)
                .is_some_and(|n| n < outage.operations)
        });
        let met = match outage {
            Some(outage) => Some(outage.fault),
            None => drawn(&state.plan.rates, kind, draw),
        };
        let Some(fault) = met else { return Fate::Fine };
        *state.counts.faults.entry(fault).or_default() += 1;
        Fate::Met { fault, draw }
    }

    /// Runs an operation, or does what its fate says.
    async fn meet<T>(
        &self,
        kind: Kind,
        path: &Path,
        operation: impl Future<Output = Result<T>>,
    ) -> Result<(T, Option<u64>)> {
        let delay_ms_max = self.state().plan.rates.delay_ms_max;
        let (fault, draw) = match self.fate(kind, path) {
            Fate::Fine => {
                let done = operation.await?;
                // Its answer comes to nobody.
                return if self.is_crashed() {
                    Err(dead())
                } else {
                    Ok((done, None))
                };
            }
            Fate::Dead => return Err(dead()),
            Fate::Dies { after_effect } => {
                if after_effect {
                    let _ = operation.await;
                }
                return Err(dead());
            }
            Fate::Met { fault, draw } => (fault, draw),
        };
        match fault {
            Fault::SlowDown => Err(answer(503, "SlowDown")),
            Fault::ServerError => Err(answer(500, "InternalError")),
            Fault::Denied => Err(answer(403, "AccessDenied")),
            Fault::ExpiredToken => Err(answer(400, "ExpiredToken")),
            Fault::NoSuchBucket if kind == Kind::Head => Err(answer(404, "")),
            Fault::NoSuchBucket => Err(answer(404, "NoSuchBucket")),
            Fault::NoConnection => Err(broken(HttpErrorKind::Connect)),
            Fault::Reset | Fault::PartialUpload => Err(broken(HttpErrorKind::Interrupted)),
            Fault::ResetAfter => {
                operation.await?;
                Err(broken(HttpErrorKind::Interrupted))
            }
            Fault::Silence => std::future::pending().await,
            Fault::SilenceAfter => {
                operation.await?;
                std::future::pending().await
            }
            Fault::TruncatedRead => Ok((operation.await?, Some(draw))),
            Fault::Delay => {
                let ms = draw.checked_rem(delay_ms_max).unwrap_or_default();
                tokio::time::sleep(Duration::from_millis(ms)).await;
                // The process may have died meanwhile.
                if self.is_crashed() {
                    return Err(dead());
                }
                Ok((operation.await?, None))
            }
        }
    }

    async fn put_as_it_does(
        &self,
        path: &Path,
        payload: PutPayload,
        mut options: PutOptions,
    ) -> Result<PutResult> {
        let inner = &self.shared.inner;
        if options.mode == PutMode::Create {
            match self.conditions() {
                Conditions::Kept => {}
                Conditions::Refused => return Err(answer(501, "NotImplemented")),
                Conditions::Ignored => options.mode = PutMode::Overwrite,
                Conditions::Raced => {
                    if inner.head(path).await.is_ok() {
                        return Err(answer(412, "PreconditionFailed"));
                    }
                    tokio::task::yield_now().await;
                    options.mode = PutMode::Overwrite;
                }
            }
        }
        inner.put_opts(path, payload, options).await
    }
}

/// A number from everything that decides, well mixed (splitmix64 over FNV-1a).
fn draw(seed: u64, kind: Kind, path: &Path, times: u64) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ seed;
    let bytes = path.as_ref().bytes().chain([kind as u8]);
    for byte in bytes.chain(times.to_le_bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let mut z = hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn drawn(rates: &FaultRates, kind: Kind, draw: u64) -> Option<Fault> {
    let mut at = draw % 1000;
    for (fault, rate) in rates.table() {
        let applies = match fault {
            Fault::PartialUpload => kind == Kind::Put,
            Fault::TruncatedRead => kind == Kind::Get,
            _ => true,
        };
        if !applies {
            continue;
        }
        match at.checked_sub(u64::from(rate)) {
            Some(rest) => at = rest,
            None => return Some(fault),
        }
    }
    None
}

fn answer(status: u16, code: &str) -> Error {
    let code = code.to_owned();
    generic(ServerAnswer { status, code })
}

fn broken(kind: HttpErrorKind) -> Error {
    generic(HttpError::new(
        kind,
        std::io::Error::from(std::io::ErrorKind::ConnectionReset),
    ))
}

fn dead() -> Error {
    generic(Dead)
}

fn generic(source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Generic {
        store: "faulty",
        source: Box::new(source),
    }
}

fn missing(operation: &str) -> Error {
    Error::NotImplemented {
        operation: operation.to_owned(),
        implementer: "the faulty store".to_owned(),
    }
}

/// Half of a body, and then an error, or nothing.
async fn truncated(got: GetResult, draw: u64) -> Result<GetResult> {
    let (meta, range, attributes) = (got.meta.clone(), got.range.clone(), got.attributes.clone());
    let extensions = got.extensions.clone();
    let mut whole = got.bytes().await?;
    let half: Bytes = whole.split_to(whole.len() / 2);
    let mut pieces = vec![Ok(half)];
    if draw & (1 << 40) == 0 {
        pieces.push(Err(broken(HttpErrorKind::Interrupted)));
    }
    Ok(GetResult {
        payload: GetResultPayload::Stream(futures_util::stream::iter(pieces).boxed()),
        meta,
        range,
        attributes,
        extensions,
    })
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "faulty {}", self.shared.inner)
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let putting = self.put_as_it_does(location, payload, options);
        let (put, _) = self.meet(Kind::Put, location, putting).await?;
        Ok(put)
    }

    async fn put_multipart_opts(
        &self,
        _: &Path,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        Err(missing("multipart"))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let kind = if options.head { Kind::Head } else { Kind::Get };
        let getting = self.shared.inner.get_opts(location, options);
        let (got, cut) = self.meet(kind, location, getting).await?;
        match cut {
            Some(draw) => truncated(got, draw).await,
            None => Ok(got),
        }
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let this = self.clone();
        locations
            .then(move |location| {
                let this = this.clone();
                async move {
                    let location = location?;
                    let inner = &this.shared.inner;
                    let deleting = async { inner.delete(&location).await };
                    this.meet(Kind::Delete, &location, deleting).await?;
                    Ok(location)
                }
                .boxed()
            })
            .boxed()
    }

    /// Without faults: nothing of the sink lists.
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.shared.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.shared.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(missing("copy"))
    }
}
