//! Syncing what was written: at once, or on another thread for a `memory` log.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use flumen_record::Timestamp;

use super::writer::{Writer, WrittenRound};
use crate::error::SyncError;
use crate::segment::Segment;
use crate::shared::count;

/// A sync to run on another thread.
#[derive(Debug)]
pub struct SyncJob {
    segments: Vec<Arc<Segment>>,
    up_to: u64,
}

impl SyncJob {
    pub(crate) fn new(unsettled: &VecDeque<WrittenRound>, up_to: u64) -> Self {
        let mut segments: Vec<Arc<Segment>> = Vec::with_capacity(1);
        for written in unsettled {
            if segments
                .last()
                .is_none_or(|last| !Arc::ptr_eq(last, &written.segment))
            {
                segments.push(Arc::clone(&written.segment));
            }
        }
        Self { segments, up_to }
    }

    /// Syncs. Blocks.
    pub fn run(self) -> SyncDone {
        let result = self
            .segments
            .iter()
            .try_for_each(|segment| segment.file.sync());
        SyncDone {
            up_to: self.up_to,
            newest: self.segments.last().map_or(0, |segment| segment.id()),
            result,
        }
    }
}

/// What a [`SyncJob`] brought.
#[derive(Debug)]
pub struct SyncDone {
    up_to: u64,
    newest: u64,
    result: io::Result<()>,
}

impl Writer {
    /// Makes everything written durable, here and now.
    pub(crate) fn sync_all(&mut self, now: Timestamp) -> Result<(), SyncError> {
        let Some(last) = self.unsettled.back() else {
            return Ok(());
        };
        if self.shared.is_poisoned() {
            let source = io::Error::other("the log was poisoned before");
            return Err(SyncError::Poisoned { source });
        }
        let done = SyncJob::new(&self.unsettled, last.round).run();
        self.finish_sync(done, now)
    }

    pub(crate) fn finish_sync(&mut self, done: SyncDone, now: Timestamp) -> Result<(), SyncError> {
        match done.result {
            Ok(()) => {
                count(&self.shared.counters.syncs, 1);
                self.settle(done.up_to);
                Ok(())
            }
            // Everything of that job went into a fresh segment in the meantime.
            Err(_)
                if self
                    .unsettled
                    .front()
                    .is_none_or(|written| written.segment.id() > done.newest) =>
            {
                Ok(())
            }
            Err(cause) => self.move_to_fresh(None, now, &cause),
        }
    }
}
