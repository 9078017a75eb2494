//! A store that fails by a schedule: for tests.
//!
//! What fails, and how, follows from a seed, the kind of operation, its key and how often that key
//! was asked before: not from the order in which threads come. Outages and the crash count
//! operations of all kinds.

mod plan;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flumen_broker::{Clock, Destination, ObjectSettings, SettingRefused};
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

use crate::store::{Destinations, ServerAnswer, Store, StoreConfig};
pub use plan::{Conditions, Crash, Fault, FaultCounts, FaultPlan, FaultRates, Outage};
use plan::{Kind, draw, drawn};

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
    /// Delays go by it.
    clock: Clock,
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
                    clock: Clock::system(),
                    counts: FaultCounts::default(),
                    asked: BTreeMap::new(),
                }),
                crashed: watch::Sender::new(false),
            }),
        }
    }

    /// Delays by this clock from here on.
    pub fn set_clock(&self, clock: Clock) {
        self.state().clock = clock;
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
                let clock = self.state().clock.clone();
                clock.sleep(Duration::from_millis(ms)).await;
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

/// Whatever is opened is this.
impl Destinations for FaultyStore {
    fn open(
        &self,
        _: &Destination,
        object: &ObjectSettings,
        config: &StoreConfig,
    ) -> std::result::Result<Store, SettingRefused> {
        let objects = Arc::new(self.clone());
        Ok(Store::over(objects, "faulty://", object, config))
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
