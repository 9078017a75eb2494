//! The clock beyond the node's end: what the time was is remembered in the data directory, a start
//! compares with it, and a wall clock that is not believed is looked at until it is.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use flumen_log::Storage;
use flumen_stream::RememberedMoment;
use flumen_world::{Clock, Remembered};

use crate::Error;
use crate::node::{Node, on_blocking_thread};

/// The file in the data directory.
const FILE: &str = "clock";
/// How often the kernel is asked while the wall clock is not believed, and the time written down at
/// most.
pub(crate) const ASK_AGAIN: Duration = Duration::from_secs(120);

/// What was remembered. A file that is damaged is as good as none: then what was written last tells.
pub(crate) fn read(storage: &dyn Storage) -> Option<Remembered> {
    let bytes = match storage.read_small(FILE) {
        Ok(bytes) => bytes,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(%error, "clock: what was remembered of the time cannot be read");
            }
            return None;
        }
    };
    let moment = RememberedMoment::decode(&bytes);
    if moment.is_none() {
        tracing::warn!("clock: what was remembered of the time is damaged");
    }
    moment.map(|moment| Remembered {
        wall: moment.wall,
        boot: moment.boot,
        uptime: moment.uptime,
    })
}

/// By how many seconds the wall clock is ahead (behind: negative) of what a data directory saw last, if
/// that is more than a start would believe now.
pub fn clock_doubt(storage: &dyn Storage) -> Option<f64> {
    let clock = Clock::system();
    let believed = clock.resume(read(storage), flumen_record::Timestamp::ZERO);
    (!believed).then(|| clock.jump_seconds())
}

/// Says what a start found.
pub(crate) fn report(clock: &Clock) {
    let seconds = clock.jump_seconds();
    if clock.is_trusted() {
        return;
    }
    let (ahead, off) = (seconds > 0.0, Duration::from_secs_f64(seconds.abs()));
    tracing::warn!(
        seconds = off.as_secs(),
        direction = if ahead { "ahead" } else { "behind" },
        "clock: the wall clock is not believed; it is far from what this data directory saw last, and nothing says that it is right. Nothing expires, and time goes on from there, until the kernel's clock is synchronised, `flumen clock confirm` is run, or 24 hours have passed"
    );
}

impl Node {
    /// Asks about a wall clock that is not believed, and writes down what the time is when something
    /// has happened (`moved`), or the wall clock is believed again. As often as the catalog vouches for
    /// logs: less than what a start takes for granted. Blocks.
    pub(crate) fn look_at_clock(&self, was_trusted: bool, moved: bool) {
        if !self.clock.is_trusted() && self.clock.ask_kernel() {
            tracing::info!("clock: the kernel's clock is synchronised, and believed");
        }
        if moved || (!was_trusted && self.clock.is_trusted()) {
            self.remember_clock();
        }
    }

    /// Writes down what the time is. Blocks.
    pub(crate) fn remember_clock(&self) {
        if self.storage.gone().is_some() {
            return;
        }
        let Remembered { wall, boot, uptime } = self.clock.remember();
        let moment = RememberedMoment { wall, boot, uptime };
        if let Err(error) = self.storage.replace_small(FILE, &moment.encode()) {
            tracing::debug!(%error, "clock: the time was not written down");
        }
    }

    /// [`crate::Broker::confirm_clock`].
    pub(crate) async fn confirm_clock(self: &Arc<Self>) -> Result<f64, Error> {
        self.check_serving()?;
        let jump = self.clock.jump_seconds();
        self.clock.confirm();
        tracing::info!(jump_seconds = jump, "clock: confirmed by the operator");
        let node = Arc::clone(self);
        on_blocking_thread(&*self.world, move || {
            // Or the next start doubts it again.
            node.remember_clock();
            Ok(jump)
        })
        .await
    }
}
