//! What a delivery stream wrote into a directory, read as any reader should: by its manifests.
//!
//! An object counts because a manifest names it; what a crash left beside does not. Everything that a
//! manifest says is checked: names and numbers of cuts, sizes and checksums of objects, how many rows
//! they hold. Synchronous: it reads files. For tests, for the demo, and as the pattern for readers in
//! other languages (`examples/read_manifests.py`).

mod rows;

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use serde_json::{Map, Value};
use thiserror::Error;

use crate::manifest::{Manifest, ManifestObject};

/// Bytes of a manifest at most: some 100,000 objects.
const MANIFEST_BYTES_MAX: u64 = 64 << 20;

/// Why what was delivered cannot be read, or is not what it should be.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReadBackError {
    /// A file or folder.
    #[error("cannot read {path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Something among the manifests is none.
    #[error("{path} is not a manifest: {source}")]
    NoManifest {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: serde_json::Error,
    },
    /// A manifest of another version, or under a name that is not its own.
    #[error(
        "{path} has format {format:?} and says it is {name}; this reader takes what it knows under its own name"
    )]
    Unknown {
        /// Which.
        path: PathBuf,
        /// Its format.
        format: String,
        /// The name it should have.
        name: String,
    },
    /// A cut without a manifest, before others that have one.
    #[error("there is no manifest of cut {cut} of {incarnation}, and there are later ones")]
    Gap {
        /// Of which life of the delivery stream.
        incarnation: String,
        /// The cut.
        cut: u64,
    },
    /// Two manifests, or one twice.
    #[error("{key} is named twice")]
    NamedTwice {
        /// The object.
        key: String,
    },
    /// A key that leads out of the directory.
    #[error("{key} is not the key of an object")]
    BadKey {
        /// The key.
        key: String,
    },
    /// An object is not what its manifest says.
    #[error("{key} has {bytes} bytes and checksum {crc32}, and its manifest says something else")]
    Different {
        /// The object.
        key: String,
        /// Its size.
        bytes: u64,
        /// CRC-32 of its bytes, hexadecimal; empty when the size is wrong already.
        crc32: String,
    },
    /// Records that are bytes, or compressed so that this reader does not know how.
    #[error(
        "{key} is {encoding}, compressed with {compression}: this reader takes rows from parquet, and from ndjson with none, gzip or zstd"
    )]
    NoRows {
        /// The object.
        key: String,
        /// Its encoding.
        encoding: String,
        /// Its compression.
        compression: String,
    },
    /// An object does not hold rows after all.
    #[error("{key} cannot be read as rows: {detail}")]
    Unreadable {
        /// The object.
        key: String,
        /// What the decoder says.
        detail: String,
    },
    /// It holds more or fewer.
    #[error("{key} has {found} rows; its manifest says {expected}")]
    Count {
        /// The object.
        key: String,
        /// What the manifest says.
        expected: u64,
        /// What is there.
        found: u64,
    },
}

/// All committed cuts under one manifest prefix.
#[derive(Debug)]
pub struct Manifests {
    root: PathBuf,
    cuts: Vec<Manifest>,
}

impl Manifests {
    /// Reads `<root>/<manifest_prefix>_manifest/`; where that is not there yet, no cut is committed.
    /// The manifest prefix of a delivery stream is `<its name>/` unless its settings say otherwise.
    ///
    /// # Errors
    /// When something in that folder is not a manifest, a cut is missing before others, or two of
    /// them name the same object.
    pub fn read(root: &Path, manifest_prefix: &str) -> Result<Self, ReadBackError> {
        let folder = root.join(format!("{manifest_prefix}_manifest"));
        let mut cuts = Vec::new();
        for path in names(&folder)? {
            cuts.push(manifest(&path)?);
        }
        let read = Self {
            root: root.to_owned(),
            cuts,
        };
        read.check_numbers()?;
        read.check_keys()?;
        Ok(read)
    }

    /// The cuts: of each life of the delivery stream in order, earlier lives first.
    pub fn cuts(&self) -> &[Manifest] {
        &self.cuts
    }

    /// The objects of all cuts, of a kind: `data`, `error` or `backup`.
    pub fn objects<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a ManifestObject> {
        let all = self.cuts.iter().flat_map(|cut| &cut.objects);
        all.filter(move |object| object.kind == kind)
    }

    /// The bytes of an object, checked against its manifest.
    ///
    /// # Errors
    /// When it cannot be read, or its size or checksum is not what the manifest says.
    pub fn bytes(&self, object: &ManifestObject) -> Result<Bytes, ReadBackError> {
        let key = &object.key;
        let path = place(&self.root, key)?;
        let failed = |source| ReadBackError::Io {
            path: path.clone(),
            source,
        };
        let different = |bytes, crc32| ReadBackError::Different {
            key: key.clone(),
            bytes,
            crc32,
        };
        let file = File::open(&path).map_err(failed)?;
        let there = file.metadata().map_err(failed)?.len();
        if there != object.bytes {
            return Err(different(there, String::new()));
        }
        let mut bytes = Vec::new();
        file.take(there).read_to_end(&mut bytes).map_err(failed)?;
        let crc32 = format!("{:08x}", crc32fast::hash(&bytes));
        // A store that did not say it has none in the manifest.
        if object.crc32.as_ref().is_some_and(|said| *said != crc32) {
            return Err(different(there, crc32));
        }
        Ok(bytes.into())
    }

    /// Hands out the rows of an object as JSON objects, and says how many they were. Columns without
    /// a value are left out, `date` and `timestamp` columns are text (RFC 3339, UTC), and a `json`
    /// column is the text that it is.
    ///
    /// # Errors
    /// As [`Manifests::bytes`]; and when it does not hold rows, or not as many as the manifest says.
    pub fn rows(
        &self,
        object: &ManifestObject,
        each: &mut dyn FnMut(Map<String, Value>),
    ) -> Result<u64, ReadBackError> {
        let bytes = self.bytes(object)?;
        let mut found = 0;
        let mut counted = |row| {
            found += 1;
            each(row);
        };
        rows::read(object, bytes, &mut counted)?;
        if found != object.records {
            return Err(ReadBackError::Count {
                key: object.key.clone(),
                expected: object.records,
                found,
            });
        }
        Ok(found)
    }

    fn check_numbers(&self) -> Result<(), ReadBackError> {
        let mut before: Option<&Manifest> = None;
        for cut in &self.cuts {
            let same = before.filter(|before| before.incarnation == cut.incarnation);
            let expected = same.map_or(0, |before| before.cut + 1);
            if cut.cut != expected {
                return Err(ReadBackError::Gap {
                    incarnation: cut.incarnation.clone(),
                    cut: expected,
                });
            }
            before = Some(cut);
        }
        Ok(())
    }

    fn check_keys(&self) -> Result<(), ReadBackError> {
        let mut keys = HashSet::new();
        let objects = self.cuts.iter().flat_map(|cut| &cut.objects);
        match objects
            .map(|object| &object.key)
            .find(|key| !keys.insert(*key))
        {
            Some(key) => Err(ReadBackError::NamedTwice { key: key.clone() }),
            None => Ok(()),
        }
    }
}

/// The files of a folder, by name.
fn names(folder: &Path) -> Result<Vec<PathBuf>, ReadBackError> {
    let failed = |source| ReadBackError::Io {
        path: folder.to_owned(),
        source,
    };
    let listing = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listing => listing.map_err(failed)?,
    };
    let paths = listing.map(|entry| entry.map(|entry| entry.path()));
    let mut paths = paths.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    paths.sort();
    Ok(paths)
}

fn manifest(path: &Path) -> Result<Manifest, ReadBackError> {
    let failed = |source| ReadBackError::Io {
        path: path.to_owned(),
        source,
    };
    let mut text = Vec::new();
    let file = File::open(path).map_err(failed)?;
    let read = file.take(MANIFEST_BYTES_MAX).read_to_end(&mut text);
    read.map_err(failed)?;
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|source| ReadBackError::NoManifest {
            path: path.to_owned(),
            source,
        })?;
    let name = manifest.file_name();
    if !manifest.is_known() || !path.ends_with(&name) {
        return Err(ReadBackError::Unknown {
            path: path.to_owned(),
            format: manifest.format,
            name,
        });
    }
    Ok(manifest)
}

/// The file of a key; it never leaves the directory.
fn place(root: &Path, key: &str) -> Result<PathBuf, ReadBackError> {
    let inside = |part| matches!(part, Component::Normal(_));
    if key.is_empty() || !Path::new(key).components().all(inside) {
        return Err(ReadBackError::BadKey {
            key: key.to_owned(),
        });
    }
    Ok(root.join(key))
}

#[cfg(test)]
mod tests;
