//! Making the next segments ready while the disk has time for it.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use flumen_record::Timestamp;

use super::{Housekeeper, HousekeepingReport};
use crate::log::active::create_file;
use crate::segment::SegmentName;
use crate::segment_header::{HeaderSector, SECOND_COPY};
use crate::shared::{count, elapsed};
use crate::storage::{Preparation, SegmentFile};
use crate::work::PreparedFile;

/// Prepared segments may take this share of the free space.
const FREE_SHARE: u64 = 50;
/// Files that were segments before are kept beyond those the writer wants: better than new ones.
const RECYCLED_EXTRA: usize = 2;
/// What writing zeroes ahead achieves at least, in bytes per second: a log that is filled faster
/// gets allocated blocks, so that it need not wait for them.
const WRITE_AHEAD_RATE: u64 = 100 << 20;

/// How fast the log is written.
#[derive(Debug, Default)]
pub(super) struct Pace {
    at: Timestamp,
    written: u64,
    /// Bytes per second.
    rate: u64,
}

impl Pace {
    /// Bytes per second, as of the last look.
    pub(super) fn rate(&self) -> u64 {
        self.rate
    }

    pub(super) fn look(&mut self, now: Timestamp, written: u64) -> u64 {
        let millis = u64::try_from(elapsed(self.at, now).as_millis()).unwrap_or(u64::MAX);
        if millis >= 100 {
            let bytes = written.saturating_sub(self.written);
            self.rate = bytes.saturating_mul(1000) / millis;
            self.at = now;
            self.written = written;
        }
        self.rate
    }
}

impl Housekeeper {
    /// Makes one segment ready when the writer wants one.
    pub(super) fn prepare(
        &mut self,
        now: Timestamp,
        report: &mut HousekeepingReport,
    ) -> io::Result<()> {
        let rate = self
            .pace
            .look(now, self.shared.written.load(Ordering::Relaxed));
        let (name, bytes, first) = {
            let mut work = self.shared.work.lock();
            if self.is_below_floor() {
                // While appends are refused they are of no use, and somebody else's space.
                let pool = std::mem::take(&mut work.pool);
                report.more |= !pool.is_empty();
                work.discarded.extend(pool);
            }
            if work.pool.len() >= work.wanted || self.shared.is_poisoned() {
                return Ok(());
            }
            let bytes = work.next_bytes;
            if !self.affords(bytes.saturating_mul(work.pool.len() as u64 + 1)) {
                return Ok(());
            }
            let name = SegmentName {
                segment: work.take_id(),
                generation: 0,
            };
            (name, bytes, work.pool.is_empty())
        };
        let hurry = first && rate > WRITE_AHEAD_RATE;
        let preparation = if hurry {
            Preparation::Allocated
        } else {
            Preparation::Written
        };
        match create_file(&self.shared, name, bytes, preparation) {
            Ok(prepared) => {
                mark_spare(&*prepared.file)?;
                if preparation == Preparation::Written {
                    count(&self.shared.counters.segments_prepared, 1);
                }
                report.prepared += 1;
                self.put_prepared(prepared, report);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::StorageFull => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn affords(&self, bytes: u64) -> bool {
        let free = self.shared.free_bytes();
        bytes <= free / FREE_SHARE && free - bytes >= self.shared.floor_bytes()
    }

    pub(super) fn put_prepared(&self, prepared: PreparedFile, report: &mut HousekeepingReport) {
        let mut work = self.shared.work.lock();
        work.put_prepared(prepared);
        report.more |= work.pool.len() < work.wanted || !work.discarded.is_empty();
    }

    /// Makes a file that nobody uses any more ready to be the next segment. `Ok(None)`: it cannot
    /// be used again.
    pub(super) fn recycle(&self, path: &str) -> io::Result<Option<PreparedFile>> {
        let storage = &self.shared.storage;
        let file = match storage.open(path, true) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => return Ok(None),
            Err(error) => return Err(error),
        };
        mark_spare(&*file)?;
        let name = SegmentName {
            segment: self.shared.work.lock().take_id(),
            generation: 0,
        };
        let new_path = self.shared.path(&name.to_string());
        storage.rename(path, &new_path)?;
        storage.sync_dir(&self.shared.dir)?;
        Ok(Some(PreparedFile {
            name,
            path: new_path,
            file,
        }))
    }

    /// Whether a file of `bytes` would be welcome in the pool.
    pub(super) fn wants_file_of(&self, bytes: u64) -> bool {
        if self.is_below_floor() {
            return false;
        }
        let work = self.shared.work.lock();
        let fits = bytes >= work.next_bytes && bytes <= self.shared.config.segment_bytes_max;
        fits && work.wanted > 0 && work.pool.len() < work.wanted + RECYCLED_EXTRA
    }

    /// Unlinks, or uses again, files that are not part of the log.
    pub(super) fn drop_files(&self, report: &mut HousekeepingReport) -> io::Result<()> {
        let (discarded, doomed) = {
            let mut work = self.shared.work.lock();
            (work.discarded.pop(), work.doomed.pop())
        };
        if let Some(doomed) = doomed {
            self.shared.storage.remove(&doomed.path)?;
            self.shared.storage.sync_dir(&self.shared.dir)?;
        }
        let Some(PreparedFile { path, file, .. }) = discarded else {
            return Ok(());
        };
        let bytes = file.bytes();
        drop_handle(file);
        let reused = if self.wants_file_of(bytes) {
            self.recycle(&path)?
        } else {
            None
        };
        match reused {
            Some(prepared) => self.put_prepared(prepared, report),
            None => {
                self.shared.storage.remove(&path)?;
                self.shared.storage.sync_dir(&self.shared.dir)?;
            }
        }
        let work = self.shared.work.lock();
        report.more |= !work.discarded.is_empty() || !work.doomed.is_empty();
        Ok(())
    }
}

/// A file has one writable handle: this one must be gone before it is opened again.
fn drop_handle(file: Arc<dyn SegmentFile>) {
    drop(file);
}

/// Overwrites both copies of the header, durably: whatever the file held is no segment any more.
fn mark_spare(file: &dyn SegmentFile) -> io::Result<()> {
    let sector = HeaderSector::spare();
    file.write_at(&[IoSlice::new(&sector)], 0)?;
    file.write_at(&[IoSlice::new(&sector)], SECOND_COPY)?;
    file.sync()
}
