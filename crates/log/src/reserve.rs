//! Space set aside for what the node itself has to write when others have taken all the rest: deletes
//! and trims, which free space, and checkpoints (decision 0004).
//!
//! It is a few files with real blocks. One of them becomes the next segment of a log that needs one
//! for that and finds no space; it is made again when there is plenty.

use std::io;
use std::sync::Arc;

use crate::config::LogConfig;
use crate::segment::SegmentName;
use crate::shared::Shared;
use crate::storage::{Preparation, SegmentFile, Storage};
use crate::work::PreparedFile;

/// Their names in the data directory begin so.
const NAME: &str = "reserve-";
/// How many files it is parted into, as long as each has …
const PIECES: u64 = 16;
/// … at least this size.
const PIECE_BYTES_MIN: u64 = 256 << 10;
/// It takes no larger part of the file system than this …
const PART_OF_DISK: u64 = 32;
/// … nor of the floor.
const PART_OF_FLOOR: u64 = 4;

/// Makes what is missing of the reserve, where there is space enough above the floor. Blocks.
///
/// # Errors
/// What the file system says, but for a disk that is full.
pub fn keep_reserve(storage: &dyn Storage, config: &LogConfig) -> io::Result<()> {
    let space = storage.space()?;
    let floor = config.floor_bytes(space.total_bytes);
    let bytes = config
        .reserve_bytes
        .min(space.total_bytes / PART_OF_DISK)
        .min(floor / PART_OF_FLOOR);
    let piece = (bytes / PIECES).max(PIECE_BYTES_MIN).next_multiple_of(4096);
    let plenty = floor.saturating_add(bytes.saturating_mul(2));
    if bytes < piece || space.free_bytes < plenty {
        return Ok(());
    }
    let there = pieces(storage)?;
    let mut made = false;
    for number in 0..bytes / piece {
        let name = format!("{NAME}{number:02}");
        if there.iter().any(|(known, _)| *known == name) {
            continue;
        }
        match storage.create(&name, piece, Preparation::Allocated) {
            Ok(_) => made = true,
            Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
            Err(error) => return Err(error),
        }
    }
    if made { storage.sync_dir("") } else { Ok(()) }
}

/// Names and sizes of the files that are left.
fn pieces(storage: &dyn Storage) -> io::Result<Vec<(String, u64)>> {
    let files = storage.list("")?.into_iter();
    let ours = files.filter(|file| file.name.starts_with(NAME));
    Ok(ours.map(|file| (file.name, file.bytes)).collect())
}

/// Turns a file of the reserve into a segment of at least `needed` bytes. `None`: there is none.
pub(crate) fn take(shared: &Shared, name: SegmentName, needed: u64) -> Option<PreparedFile> {
    let storage = &*shared.storage;
    let (reserved, _) = pieces(storage)
        .ok()?
        .into_iter()
        .find(|(_, bytes)| *bytes >= needed)?;
    let path = shared.path(&name.to_string());
    match rename(storage, &reserved, &path, &shared.dir) {
        Ok(file) => {
            tracing::warn!(log = %shared.dir, "log: the disk is full, its next segment is from the reserve");
            Some(PreparedFile { name, path, file })
        }
        Err(error) => {
            tracing::warn!(log = %shared.dir, %error, "log: the reserve cannot be used");
            None
        }
    }
}

fn rename(
    storage: &dyn Storage,
    from: &str,
    to: &str,
    dir: &str,
) -> io::Result<Arc<dyn SegmentFile>> {
    storage.rename(from, to)?;
    storage.sync_dir(dir)?;
    storage.sync_dir("")?;
    storage.open(to, true)
}
