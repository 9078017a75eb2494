//! Manifests against the state: the one that is due is created, or is there already and stands for the
//! same cut; the one before it and the one after it are what they should be.
//!
//! A manifest is named by the number of its cut, so that two states of one delivery stream that have
//! forked (a data directory that was copied, or restored from a backup) meet at its name. Whoever finds
//! another one there stops.

use std::collections::BTreeMap;

use tokio::sync::OnceCell;

use crate::active::Active;
use crate::cut::Cut;
use crate::manifest::Manifest;
use crate::progress::{LastManifest, Progress};
use crate::store::{StoreError, Tag};
use crate::trouble::Trouble;

/// Bytes of a manifest at most: some 100,000 objects.
const MANIFEST_BYTES_MAX: u64 = 64 << 20;

/// A cut that has its manifest.
#[derive(Debug)]
pub(crate) struct Sealed {
    pub(crate) last: LastManifest,
    /// What was gone of its records.
    pub(crate) expired: u64,
}

impl Sealed {
    fn new(cut: &Cut, manifest: &Manifest, content: &[u8]) -> Self {
        let from = cut.ranges.iter();
        let from = from.map(|range| (range.shard.value(), range.from.value()));
        Self {
            last: LastManifest {
                cut: cut.number,
                bytes: content.len() as u64,
                crc32: crc32fast::hash(content),
                from: from.collect::<BTreeMap<_, _>>(),
            },
            expired: manifest.expired,
        }
    }
}

/// The manifest of a planned cut, of which so many records can be read, if there is one.
///
/// # Errors
/// When there is one that does not stand for this cut.
pub(crate) async fn there(
    active: &Active<'_>,
    cut: &Cut,
    records: u64,
) -> Result<Option<Sealed>, Trouble> {
    let key = active.manifest_key(cut.number);
    let look = || async { Ok(active.store.read_there(&key, MANIFEST_BYTES_MAX).await?) };
    let Some(content) = active.insist(look).await? else {
        return Ok(None);
    };
    let incarnation = active.incarnation.to_string();
    let found = match serde_json::from_slice::<Manifest>(&content) {
        Ok(found) if found.stands_for(cut, &incarnation, records) => {
            return Ok(Some(Sealed::new(cut, &found, &content)));
        }
        Ok(found) => describe(&found),
        Err(error) => format!("not a manifest: {error}"),
    };
    Err(Trouble::Forked {
        cut: cut.number,
        key,
        found,
    })
}

/// Creates the manifest of a planned cut.
pub(crate) async fn seal(
    active: &Active<'_>,
    cut: &Cut,
    id: String,
    manifest: &Manifest,
) -> Result<Sealed, Trouble> {
    let key = active.manifest_key(cut.number);
    let content = bytes::Bytes::from(manifest.encode());
    let tag = Tag {
        cut: id,
        crc32: crc32fast::hash(&content),
        bytes: content.len() as u64,
        content_type: "application/json".to_owned(),
        content_encoding: None,
    };
    let create = || async {
        let body = content.clone().into();
        Ok(active.store.create(&key, body, &tag).await?)
    };
    match active.insist(create).await {
        Ok(_) => Ok(Sealed::new(cut, manifest, &content)),
        Err(Trouble::Store(conflict @ StoreError::Conflict { .. })) => {
            let there = there(active, cut, manifest.records).await?;
            there.ok_or(Trouble::Store(conflict))
        }
        Err(trouble) => Err(trouble),
    }
}

/// Whether the store agrees with the state that work begins with: looked at once, beside the work, and
/// before anything is written.
#[derive(Debug)]
pub(crate) struct Agreement<'a> {
    active: &'a Active<'a>,
    last: Option<LastManifest>,
    next: u64,
    looked: OnceCell<()>,
}

impl<'a> Agreement<'a> {
    /// Of a state without planned cuts.
    pub(crate) fn new(active: &'a Active<'a>, progress: &Progress) -> Self {
        Self {
            active,
            last: progress.last().cloned(),
            next: progress.next_cut(),
            looked: OnceCell::new(),
        }
    }

    /// Looks, unless that is done.
    ///
    /// # Errors
    /// [`Trouble::Forked`] when another state went on from here.
    pub(crate) async fn check(&self) -> Result<(), Trouble> {
        let look = async || {
            check_last(self.active, self.last.as_ref()).await?;
            check_next(self.active, self.next).await
        };
        self.looked.get_or_try_init(look).await.copied()
    }
}

/// Whether the last manifest is still the one that was written; that it is gone is somebody's right.
///
/// # Errors
/// [`Trouble::Forked`] when it is another one.
pub(crate) async fn check_last(
    active: &Active<'_>,
    last: Option<&LastManifest>,
) -> Result<(), Trouble> {
    let Some(last) = last else {
        return Ok(());
    };
    let key = active.manifest_key(last.cut);
    let look = || async { Ok(active.store.has(&key, last.bytes, last.crc32).await) };
    match active.insist_unless_denied(look).await? {
        Some(Some(false)) => Err(Trouble::Forked {
            cut: last.cut,
            key,
            found: "it has other content than was written".to_owned(),
        }),
        _ => Ok(()),
    }
}

/// Whether the manifest of the next cut is absent: only another state can have gone on from here.
///
/// # Errors
/// [`Trouble::Forked`] when it is there.
async fn check_next(active: &Active<'_>, cut: u64) -> Result<(), Trouble> {
    let key = active.manifest_key(cut);
    let look = || async { Ok(active.store.look(&key).await) };
    match active.insist_unless_denied(look).await? {
        Some(Some(found)) => Err(Trouble::Forked {
            cut,
            key,
            found: format!("{found}; this node has not planned that cut yet"),
        }),
        _ => Ok(()),
    }
}

fn describe(found: &Manifest) -> String {
    let epoch = found.epoch.as_deref().unwrap_or("none");
    let ranges = found.ranges.iter().take(3);
    let ranges = ranges.map(|range| format!("{} {} to {}", range.shard, range.from, range.to));
    let ranges: Vec<_> = ranges.collect();
    format!(
        "{} records of epoch {epoch}, settings version {}, shard {}",
        found.records,
        found.settings_version,
        ranges.join(", ")
    )
}
