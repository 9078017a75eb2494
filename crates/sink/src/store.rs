//! Object stores, as the sink needs them: create if absent, look, read, and know what is promised.
//!
//! One call here is one attempt; trying again is the caller's, who knows the budget and the pace.
//! What a call must settle itself is **ambiguity**: a create whose answer is lost, or that is
//! refused because something is there, may have been our own. So after anything but success or a
//! definite refusal the object is looked at. The same cut id and the same content mean done; nothing
//! there means that the error stands and may be tried again; anything else is a conflict, which no retry
//! mends.
//!
//! | file | purpose |
//! |---|---|
//! | `answer` | status and code of a refusal, which `object_store` hides |
//! | `error` | what goes wrong and what it means |
//! | `destinations` | from settings to a store |
//! | `s3` | region, endpoint, certificates of a bucket |
//! | `credentials`, `profile` | who signs: environment, profiles, roles |
//! | `objects` | a bucket, or any other store of `object_store`'s |
//! | `directory` | a local directory as a store |
//! | `probe` | what a store promises about racing creates |

mod answer;
mod config;
mod credentials;
mod destinations;
mod directory;
mod error;
mod objects;
mod probe;
mod profile;
mod s3;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use flumen_broker::{Clock, ObjectSettings};
use flumen_world::World;
#[cfg(any(test, feature = "test-util"))]
use object_store::ObjectStore;
use object_store::path::Path as ObjectPath;
use object_store::{Attribute, Attributes, PutMode, PutOptions};

pub use credentials::CredentialError;
pub use destinations::{Destinations, RealDestinations};
pub use error::StoreError;
pub use object_store::PutPayload;

use answer::Racer;
#[cfg(any(test, feature = "test-util"))]
pub(crate) use answer::ServerAnswer;
pub use config::StoreConfig;
use directory::Directory;
use objects::Objects;

/// Metadata of an object: the cut that wrote it (`x-amz-meta-flumen-cut` in S3).
pub(crate) const CUT_METADATA: &str = "flumen-cut";
/// Metadata of an object: CRC-32 of its bytes, 8 hexadecimal digits.
pub(crate) const CRC32_METADATA: &str = "flumen-crc32";

/// What is said about an object when it is created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    /// Id of the cut that writes it: printable ASCII, the same in every attempt.
    pub cut: String,
    /// CRC-32 of its bytes.
    pub crc32: u32,
    /// Its size.
    pub bytes: u64,
    /// `Content-Type`, unless the settings say otherwise.
    pub content_type: String,
    /// `Content-Encoding`.
    pub content_encoding: Option<String>,
}

/// An object that is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its size.
    pub bytes: u64,
    /// CRC-32 of its bytes, as the store has it.
    pub crc32: Option<u32>,
    /// The store's name for its content.
    pub e_tag: Option<String>,
    /// It was there already, from an earlier attempt.
    pub was_there: bool,
}

/// What is under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its size.
    pub bytes: u64,
    /// The cut that wrote it.
    pub cut: Option<String>,
    /// CRC-32 of its bytes, as its writer said.
    pub crc32: Option<u32>,
    /// The store's name for its content.
    pub e_tag: Option<String>,
    /// `Content-Type`; a directory keeps none.
    pub content_type: Option<String>,
    /// `Content-Encoding`; a directory keeps none.
    pub content_encoding: Option<String>,
}

/// One destination. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    shared: Arc<Shared>,
    clock: Clock,
    /// Where what takes long is begun; `None`: here.
    world: Option<Arc<dyn World>>,
}

#[derive(Debug)]
struct Shared {
    backend: Backend,
    /// For people.
    name: String,
    object: ObjectSettings,
    config: StoreConfig,
    /// The store said that it does not know conditions, so it is not asked again.
    unconditional: AtomicBool,
}

#[derive(Debug)]
enum Backend {
    Objects(Objects),
    Directory(Arc<Directory>),
}

/// What became of one create, not yet settled.
#[derive(Debug)]
enum Put {
    Stored { e_tag: Option<String> },
    There,
    Unsupported,
}

impl Store {
    fn new(backend: Backend, name: String, object: ObjectSettings, config: StoreConfig) -> Self {
        Self {
            shared: Arc::new(Shared {
                backend,
                name,
                object,
                config,
                unconditional: AtomicBool::new(false),
            }),
            clock: Clock::system(),
            world: None,
        }
    }

    /// The same, in a world and by its clock.
    #[must_use]
    pub fn run_in(self, world: Arc<dyn World>, clock: Clock) -> Self {
        Self {
            world: Some(world),
            clock,
            ..self
        }
    }

    /// Over any store of `object_store`'s: for tests that put one in between.
    #[cfg(any(test, feature = "test-util"))]
    pub fn over(
        objects: Arc<dyn ObjectStore>,
        name: &str,
        object: &ObjectSettings,
        config: &StoreConfig,
    ) -> Self {
        let objects = Objects::new(objects, name.to_owned());
        Self::new(
            Backend::Objects(objects),
            name.to_owned(),
            object.clone(),
            config.clone(),
        )
    }

    /// Where this is, for people: `s3://bucket`, `file:///directory`. Without secrets.
    pub fn describe(&self) -> String {
        self.shared.name.clone()
    }

    /// Creates an object, or finds that an earlier attempt of the same cut did.
    ///
    /// One attempt, and a look if its outcome is not certain. Nothing is ever replaced, but by a
    /// store that does not know conditions.
    pub async fn create(
        &self,
        key: &str,
        body: PutPayload,
        tag: &Tag,
    ) -> Result<Stored, StoreError> {
        let path = object_path(key)?;
        let bytes = body.content_length() as u64;
        let bytes_max = self.shared.config.object_bytes_max;
        if bytes > bytes_max {
            return Err(StoreError::TooLarge {
                key: key.to_owned(),
                bytes,
                bytes_max,
            });
        }
        match self.put(&path, body, tag, None).await {
            Ok(Put::Stored { e_tag }) => Ok(Stored {
                bytes,
                crc32: Some(tag.crc32),
                e_tag,
                was_there: false,
            }),
            Ok(Put::There) => {
                let key = key.to_owned();
                self.settle(&path, tag, StoreError::Contended { key }).await
            }
            Ok(Put::Unsupported) => Err(StoreError::Refused {
                status: 501,
                code: "NotImplemented".to_owned(),
            }),
            Err(error) if error.is_definite() => Err(error),
            Err(error) => self.settle(&path, tag, error).await,
        }
    }

    /// Looks at what is under the key: size and metadata. S3 denies access instead of saying that
    /// nothing is there, unless the credentials may list the bucket (`s3:ListBucket`).
    pub async fn look(&self, key: &str) -> Result<Option<Found>, StoreError> {
        self.look_at(&object_path(key)?).await
    }

    /// Reads an object of at most so many bytes, whole.
    pub async fn read(&self, key: &str, max_bytes: u64) -> Result<Bytes, StoreError> {
        let path = object_path(key)?;
        match &self.shared.backend {
            Backend::Objects(objects) => {
                let reading = objects.read(&path, max_bytes);
                self.in_time(max_bytes, reading).await
            }
            Backend::Directory(directory) => {
                let reading = Arc::clone(directory).read(&path, max_bytes);
                self.in_time(max_bytes, reading).await
            }
        }
    }

    /// Whether the store says that it does not know conditions.
    fn is_unconditional(&self) -> bool {
        self.shared.unconditional.load(Ordering::Relaxed)
    }

    /// One create. A store without conditions is looked at first, and then written to: that is not
    /// atomic, which the probe finds and reports.
    async fn put(
        &self,
        path: &ObjectPath,
        body: PutPayload,
        tag: &Tag,
        racer: Option<Racer>,
    ) -> Result<Put, StoreError> {
        if !self.is_unconditional() {
            match self
                .put_once(path, body.clone(), tag, PutMode::Create, racer)
                .await?
            {
                Put::Unsupported => self.shared.unconditional.store(true, Ordering::Relaxed),
                put => return Ok(put),
            }
        }
        if self.look_at(path).await?.is_some() {
            return Ok(Put::There);
        }
        self.put_once(path, body, tag, PutMode::Overwrite, None)
            .await
    }

    async fn put_once(
        &self,
        path: &ObjectPath,
        body: PutPayload,
        tag: &Tag,
        mode: PutMode,
        racer: Option<Racer>,
    ) -> Result<Put, StoreError> {
        let bytes = body.content_length() as u64;
        match &self.shared.backend {
            Backend::Objects(objects) => {
                let mut options = PutOptions {
                    mode,
                    attributes: self.attributes(tag),
                    ..PutOptions::default()
                };
                if let Some(racer) = racer {
                    options.extensions.insert(racer);
                }
                self.in_time(bytes, objects.put(path, body, options, self.world.as_ref()))
                    .await
            }
            Backend::Directory(directory) => {
                let putting = Arc::clone(directory).create(path, body, tag);
                let created = self.in_time(bytes, putting).await?;
                Ok(if created {
                    Put::Stored { e_tag: None }
                } else {
                    Put::There
                })
            }
        }
    }

    fn attributes(&self, tag: &Tag) -> Attributes {
        let object = &self.shared.object;
        let mut attributes = Attributes::new();
        let mut set = |attribute: Attribute, value: &str| {
            attributes.insert(attribute, value.to_owned().into());
        };
        for (name, value) in &object.metadata {
            set(Attribute::Metadata(name.clone().into()), value);
        }
        set(Attribute::Metadata(CUT_METADATA.into()), &tag.cut);
        let crc32 = format!("{:08x}", tag.crc32);
        set(Attribute::Metadata(CRC32_METADATA.into()), &crc32);
        let content_type = object.content_type.as_deref();
        set(
            Attribute::ContentType,
            content_type.unwrap_or(&tag.content_type),
        );
        if let Some(encoding) = &tag.content_encoding {
            set(Attribute::ContentEncoding, encoding);
        }
        if let Some(cache_control) = &object.cache_control {
            set(Attribute::CacheControl, cache_control);
        }
        if let Some(class) = &object.storage_class {
            set(Attribute::StorageClass, class);
        }
        attributes
    }

    /// The outcome of a create is not certain: looks at what is there. `error` is what stands if
    /// nothing is, and if that cannot be told.
    async fn settle(
        &self,
        path: &ObjectPath,
        tag: &Tag,
        error: StoreError,
    ) -> Result<Stored, StoreError> {
        let found = match self.look_at(path).await {
            Ok(Some(found)) => found,
            Ok(None) => return Err(error),
            Err(looking) => {
                tracing::debug!(key = %path, %looking, "cannot look at what an attempt left");
                return Err(match error {
                    // Something is there: why it cannot be looked at says more.
                    StoreError::Contended { .. } => looking,
                    error => error,
                });
            }
        };
        let is_ours = match found.is_of(tag) {
            Some(is_ours) => is_ours,
            // What is byte for byte what would be written counts as written by this cut.
            None => self.holds(path, tag.bytes, tag.crc32).await?,
        };
        if !is_ours {
            return Err(StoreError::Conflict {
                key: path.to_string(),
                found: Box::new(found),
            });
        }
        if let Backend::Directory(directory) = &self.shared.backend {
            // It may have got its name in an attempt that did not live to sync it.
            Arc::clone(directory).sync(path).await?;
        }
        Ok(Stored {
            bytes: found.bytes,
            crc32: Some(tag.crc32),
            e_tag: found.e_tag,
            was_there: true,
        })
    }

    async fn holds(&self, path: &ObjectPath, bytes: u64, crc32: u32) -> Result<bool, StoreError> {
        let content = self.read(path.as_ref(), bytes).await?;
        Ok(crc32fast::hash(&content) == crc32)
    }

    /// Whether an object with this content is under the key; `None`: nothing is.
    pub(crate) async fn has(
        &self,
        key: &str,
        bytes: u64,
        crc32: u32,
    ) -> Result<Option<bool>, StoreError> {
        let path = object_path(key)?;
        let Some(found) = self.look_at(&path).await? else {
            return Ok(None);
        };
        Ok(Some(match found.crc32 {
            _ if found.bytes != bytes => false,
            Some(said) => said == crc32,
            None => self.holds(&path, bytes, crc32).await?,
        }))
    }

    /// Reads what is there for good under a key, if something is: of a directory, its name is durable.
    pub(crate) async fn read_there(
        &self,
        key: &str,
        max_bytes: u64,
    ) -> Result<Option<Bytes>, StoreError> {
        let path = object_path(key)?;
        if self.look_at(&path).await?.is_none() {
            return Ok(None);
        }
        if let Backend::Directory(directory) = &self.shared.backend {
            Arc::clone(directory).sync(&path).await?;
        }
        match self.read(key, max_bytes).await {
            Err(StoreError::Missing { .. }) => Ok(None),
            read => read.map(Some),
        }
    }

    async fn look_at(&self, path: &ObjectPath) -> Result<Option<Found>, StoreError> {
        match &self.shared.backend {
            Backend::Objects(objects) => self.in_time(0, objects.look(path)).await,
            Backend::Directory(directory) => {
                self.in_time(0, Arc::clone(directory).look(path)).await
            }
        }
    }

    /// Removes an object; that there is none is fine.
    async fn remove(&self, path: &ObjectPath) -> Result<(), StoreError> {
        match &self.shared.backend {
            Backend::Objects(objects) => self.in_time(0, objects.remove(path)).await,
            Backend::Directory(directory) => {
                self.in_time(0, Arc::clone(directory).remove(path)).await
            }
        }
    }

    async fn in_time<T>(
        &self,
        bytes: u64,
        operation: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let after = self.shared.config.patience(bytes);
        self.clock
            .timeout(after, operation)
            .await
            .unwrap_or(Err(StoreError::TimedOut { after }))
    }
}

/// A key as it is, if it is one: `object_store` would quietly take `/` away from its ends.
fn object_path(key: &str) -> Result<ObjectPath, StoreError> {
    /// S3's limit, in bytes.
    const KEY_LEN_MAX: usize = 1024;
    let refused = |why| StoreError::BadKey {
        key: key.to_owned(),
        why,
    };
    if key.is_empty() || key.len() > KEY_LEN_MAX {
        return Err(refused("a key has 1 to 1024 bytes"));
    }
    if key.starts_with('/') || key.ends_with('/') {
        return Err(refused("a key neither begins nor ends with `/`"));
    }
    ObjectPath::parse(key).map_err(|_| {
        refused("no part between `/` may be empty, `.`, `..`, or hold control characters")
    })
}

#[cfg(test)]
mod tests;
