//! A store that asks the test about every create, by its key: go on, wait, or die.

use std::fmt;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use tokio::sync::watch;

/// What becomes of a create.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Go,
    /// Waits until the store is opened.
    Wait,
    /// The process dies here: nothing is answered any more.
    Die {
        after_effect: bool,
    },
}

type Decide = Box<dyn FnMut(&str) -> Fate + Send>;

/// Another store, watched. Probes go through.
#[derive(Clone)]
pub(crate) struct Watched {
    inner: Arc<dyn ObjectStore>,
    decide: Arc<Mutex<Decide>>,
    /// Keys that were asked to be created, each time.
    keys: Arc<Mutex<Vec<String>>>,
    open: watch::Sender<bool>,
    dead: watch::Sender<bool>,
}

impl Watched {
    pub(crate) fn new(
        inner: Arc<dyn ObjectStore>,
        decide: impl FnMut(&str) -> Fate + Send + 'static,
    ) -> Self {
        Self {
            inner,
            decide: Arc::new(Mutex::new(Box::new(decide))),
            keys: Arc::default(),
            open: watch::Sender::new(false),
            dead: watch::Sender::new(false),
        }
    }

    /// Dies at this create, counted from 0.
    pub(crate) fn dying(inner: Arc<dyn ObjectStore>, at: usize, after_effect: bool) -> Self {
        let mut creates = 0;
        Self::new(inner, move |_| {
            creates += 1;
            if creates > at {
                Fate::Die { after_effect }
            } else {
                Fate::Go
            }
        })
    }

    pub(crate) fn open(&self) {
        self.open.send_replace(true);
    }

    pub(crate) fn keys(&self) -> Vec<String> {
        self.keys.lock().unwrap().clone()
    }

    /// Resolves when a create of such a key has been asked for; its key.
    pub(crate) async fn asked(&self, part: &str) -> String {
        let asking = async {
            loop {
                if let Some(key) = self.keys().into_iter().find(|key| key.contains(part)) {
                    return key;
                }
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(crate::fixture::WAIT, asking)
            .await
            .unwrap()
    }

    pub(crate) async fn died(&self) {
        let _ = self.dead.subscribe().wait_for(|dead| *dead).await;
    }

    async fn live(&self) {
        if *self.dead.borrow() {
            std::future::pending::<()>().await;
        }
    }
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").finish_non_exhaustive()
    }
}

impl fmt::Display for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "watched {}", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Watched {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        self.live().await;
        let key = location.to_string();
        if !key.contains("_probe/") {
            let fate = (self.decide.lock().unwrap())(&key);
            self.keys.lock().unwrap().push(key);
            match fate {
                Fate::Go => {}
                Fate::Wait => {
                    let _ = self.open.subscribe().wait_for(|open| *open).await;
                }
                Fate::Die { after_effect } => {
                    self.dead.send_replace(true);
                    if after_effect {
                        let _ = self.inner.put_opts(location, payload, options).await;
                    }
                    std::future::pending::<()>().await;
                    unreachable!("it is dead");
                }
            }
        }
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        _: &Path,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        unreachable!("nothing is uploaded in parts")
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.live().await;
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        unreachable!("nothing is copied")
    }
}
