//! From the destination in the settings to a store that can be written to.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use flumen_broker::{Destination, ObjectSettings, SettingRefused};
use object_store::HeaderValue;
use object_store::memory::InMemory;

use super::directory::Directory;
use super::objects::Objects;
use super::{Backend, Store, StoreConfig, s3};

/// What opens destinations: the real ones, or a test's.
pub trait Destinations: Send + Sync + std::fmt::Debug {
    /// Looks at the settings and makes a store of them. Nobody is asked anything yet.
    fn open(
        &self,
        destination: &Destination,
        object: &ObjectSettings,
        config: &StoreConfig,
    ) -> Result<Store, SettingRefused>;
}

/// Looks a variable of the environment up.
pub(crate) type Lookup = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// S3, directories, and memory.
pub struct RealDestinations {
    environment: Lookup,
    /// Memory of this process, by name.
    memories: Mutex<BTreeMap<String, Arc<InMemory>>>,
    /// Directories that are in use: all users of one share what sweeps it.
    directories: Mutex<BTreeMap<PathBuf, Weak<Directory>>>,
}

impl std::fmt::Debug for RealDestinations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Names alone: the environment holds secrets.
        f.debug_struct("RealDestinations").finish_non_exhaustive()
    }
}

impl RealDestinations {
    /// With the environment of this process.
    pub fn of_this_process() -> Self {
        Self::new(|name| std::env::var(name).ok())
    }

    /// With another environment: for tests.
    pub fn new(environment: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Self {
        // An empty variable is one that is not set, as AWS's programs have it.
        let environment =
            move |name: &str| environment(name).filter(|value| !value.trim().is_empty());
        Self {
            environment: Arc::new(environment),
            memories: Mutex::default(),
            directories: Mutex::default(),
        }
    }

    fn memory(&self, name: &str) -> Arc<InMemory> {
        Arc::clone(lock(&self.memories).entry(name.to_owned()).or_default())
    }

    fn directory(&self, path: &std::path::Path) -> Arc<Directory> {
        let mut directories = lock(&self.directories);
        directories.retain(|_, directory| directory.strong_count() > 0);
        if let Some(directory) = directories.get(path).and_then(Weak::upgrade) {
            return directory;
        }
        let directory = Arc::new(Directory::new(path.to_owned()));
        directories.insert(path.to_owned(), Arc::downgrade(&directory));
        directory
    }
}

impl Destinations for RealDestinations {
    fn open(
        &self,
        destination: &Destination,
        object: &ObjectSettings,
        config: &StoreConfig,
    ) -> Result<Store, SettingRefused> {
        check_object(object)?;
        let (backend, name) = match destination {
            Destination::S3(bucket) => {
                let (objects, name) = s3::open(bucket, &self.environment, config)?;
                (Backend::Objects(Objects::new(objects, name.clone())), name)
            }
            Destination::Directory { path } => {
                if !path.is_absolute() {
                    return Err(refused(
                        "destination.path",
                        "give the absolute path of a directory",
                    ));
                }
                let name = format!("file://{}", path.display());
                (Backend::Directory(self.directory(path)), name)
            }
            Destination::Memory { name: of } => {
                let name = format!("memory://{of}");
                let objects = Objects::new(self.memory(of), name.clone());
                (Backend::Objects(objects), name)
            }
        };
        Ok(Store::new(backend, name, object.clone(), config.clone()))
    }
}

/// Everything here becomes a header, and must be able to.
fn check_object(object: &ObjectSettings) -> Result<(), SettingRefused> {
    /// S3's limit for all of it, names and values together.
    const METADATA_BYTES_MAX: usize = 2048;
    let value = |setting, value: &Option<String>| match value {
        Some(value) if !is_header_value(value) => Err(refused(
            setting,
            "takes printable ASCII without spaces at its ends",
        )),
        _ => Ok(()),
    };
    value("object.storage_class", &object.storage_class)?;
    value("object.content_type", &object.content_type)?;
    value("object.cache_control", &object.cache_control)?;
    let mut bytes = 0;
    for (name, value) in &object.metadata {
        bytes += name.len() + value.len();
        if name.starts_with("flumen-") {
            return Err(refused("object.metadata", "names with `flumen-` are taken"));
        }
        if !is_metadata_name(name) {
            return Err(refused(
                "object.metadata",
                "a name has lower-case letters, digits and `-`",
            ));
        }
        if !is_header_value(value) {
            return Err(refused(
                "object.metadata",
                "a value is printable ASCII without spaces at its ends",
            ));
        }
    }
    if bytes > METADATA_BYTES_MAX {
        return Err(refused("object.metadata", "takes 2048 bytes in all"));
    }
    Ok(())
}

fn is_header_value(text: &str) -> bool {
    let printable = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    printable && !text.is_empty() && text.trim() == text && HeaderValue::from_str(text).is_ok()
}

/// Servers differ about capitals and underscores, so there are none.
fn is_metadata_name(name: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !name.is_empty() && name.bytes().all(letter)
}

pub(crate) fn refused(setting: &'static str, reason: &str) -> SettingRefused {
    SettingRefused {
        setting,
        reason: reason.to_owned(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A map of names is whole at any time.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
