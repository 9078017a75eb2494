//! A store of `object_store`'s, one attempt at a time.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::path::Path as ObjectPath;
use object_store::{
    Attribute, Attributes, GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt, PutOptions,
    PutPayload,
};

use flumen_world::World;

use super::error::{Outcome, classify};
use super::{CRC32_METADATA, CUT_METADATA, Found, Put, StoreError};

/// Larger bodies are hashed where it keeps nobody waiting: that is about a millisecond.
const HASHED_HERE_BYTES: usize = 1 << 20;

/// A bucket, or memory, or what a test puts here.
#[derive(Debug)]
pub(crate) struct Objects {
    inner: Arc<dyn ObjectStore>,
    /// For people.
    name: String,
}

impl Objects {
    /// Under this name.
    pub(crate) fn new(inner: Arc<dyn ObjectStore>, name: String) -> Self {
        Self { inner, name }
    }

    /// Puts an object.
    pub(crate) async fn put(
        &self,
        path: &ObjectPath,
        body: PutPayload,
        options: PutOptions,
        world: Option<&Arc<dyn World>>,
    ) -> Result<Put, StoreError> {
        let large = body.content_length() >= HASHED_HERE_BYTES;
        let (inner, to) = (Arc::clone(&self.inner), path.clone());
        let putting = async move { inner.put_opts(&to, body, options).await };
        let put = match world {
            Some(world) if large => begun_aside(&**world, putting).await?,
            _ => putting.await,
        };
        match put {
            Ok(put) => Ok(Put::Stored { e_tag: put.e_tag }),
            Err(error) => match classify(&error, &self.name) {
                Outcome::There => Ok(Put::There),
                Outcome::Unsupported => Ok(Put::Unsupported),
                // What is missing when something is created is the bucket.
                Outcome::Missing => Err(StoreError::NoSuchBucket {
                    destination: self.name.clone(),
                }),
                Outcome::Failed(error) => Err(error),
            },
        }
    }

    /// What is under the key.
    pub(crate) async fn look(&self, path: &ObjectPath) -> Result<Option<Found>, StoreError> {
        let options = GetOptions {
            head: true,
            ..GetOptions::default()
        };
        match self.inner.get_opts(path, options).await {
            Ok(got) => Ok(Some(found(&got.meta, &got.attributes))),
            Err(error) => match self.failure(&error, path) {
                StoreError::Missing { .. } => Ok(None),
                error => Err(error),
            },
        }
    }

    /// A whole object.
    pub(crate) async fn read(
        &self,
        path: &ObjectPath,
        max_bytes: u64,
    ) -> Result<Bytes, StoreError> {
        let failed = |error: object_store::Error| self.failure(&error, path);
        let got = self.inner.get(path).await.map_err(failed)?;
        let bytes = got.meta.size;
        if bytes > max_bytes {
            return Err(StoreError::TooLarge {
                key: path.to_string(),
                bytes,
                bytes_max: max_bytes,
            });
        }
        let mut content = Vec::new();
        let mut pieces = got.into_stream();
        while let Some(piece) = pieces.try_next().await.map_err(failed)? {
            content.extend_from_slice(&piece);
            if content.len() as u64 > bytes {
                break;
            }
        }
        if content.len() as u64 != bytes {
            return Err(StoreError::Truncated {
                key: path.to_string(),
                got: content.len() as u64,
                bytes,
            });
        }
        Ok(content.into())
    }

    /// Removes an object; that there is none is fine.
    pub(crate) async fn remove(&self, path: &ObjectPath) -> Result<(), StoreError> {
        match self.inner.delete(path).await {
            Ok(()) => Ok(()),
            Err(error) => match self.failure(&error, path) {
                StoreError::Missing { .. } => Ok(()),
                error => Err(error),
            },
        }
    }

    /// What an error means where something should be there, or may be.
    fn failure(&self, error: &object_store::Error, path: &ObjectPath) -> StoreError {
        match classify(error, &self.name) {
            Outcome::Missing => StoreError::Missing {
                key: path.to_string(),
            },
            Outcome::Failed(error) => error,
            Outcome::There | Outcome::Unsupported => StoreError::Refused {
                status: 501,
                code: String::new(),
            },
        }
    }
}

/// A future whose first step takes long (a request is signed then, which hashes its body): it is
/// made on a thread that keeps nobody waiting.
async fn begun_aside<T: Send + 'static>(
    world: &dyn World,
    future: impl Future<Output = T> + Send + 'static,
) -> Result<T, StoreError> {
    let mut future = Box::pin(future);
    let begun = world.blocked(move || {
        // Whoever awaits it polls it again at once.
        let mut context = Context::from_waker(Waker::noop());
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => Ok(output),
            Poll::Pending => Err(future),
        }
    });
    match begun.await {
        Ok(Ok(output)) => Ok(output),
        Ok(Err(future)) => Ok(future.await),
        Err(error) => Err(StoreError::Unreachable {
            detail: error.to_string(),
            sent: true,
        }),
    }
}

fn found(meta: &ObjectMeta, attributes: &Attributes) -> Found {
    let text = |attribute: &Attribute| attributes.get(attribute).map(|value| value.to_string());
    Found {
        bytes: meta.size,
        cut: text(&Attribute::Metadata(CUT_METADATA.into())),
        crc32: text(&Attribute::Metadata(CRC32_METADATA.into()))
            .and_then(|crc32| u32::from_str_radix(&crc32, 16).ok()),
        e_tag: meta.e_tag.clone(),
        content_type: text(&Attribute::ContentType),
        content_encoding: text(&Attribute::ContentEncoding),
    }
}
