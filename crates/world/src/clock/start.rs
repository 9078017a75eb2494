//! Whether the wall clock is believed when a node starts, by what it knew when it last ran.

use std::process::{Command, Stdio};
use std::time::Duration;

use flumen_record::Timestamp;

use super::{Clock, Guard, JUMP, Jump, Reading, Source, signed_micros, uptime};
use crate::lock::lock;

/// The time is remembered every 10 minutes while something happens, and a machine that is started anew after a power cut takes
/// some more: so far ahead the wall clock may be at another start of the machine.
const RESTART: Duration = Duration::from_secs(15 * 60);
/// Who asks the kernel waits no longer for an answer.
const ANSWER: Duration = Duration::from_secs(2);
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// A moment that a node remembers beyond its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remembered {
    /// What the time was.
    pub wall: Timestamp,
    /// Which start of the machine it was in; 0: unknown.
    pub boot: u128,
    /// How long the machine had been up, its sleep included.
    pub uptime: Duration,
}

impl Clock {
    /// This moment, to be remembered.
    pub fn remember(&self) -> Remembered {
        let wall = self.now();
        let (boot, uptime) = self.shared.source.machine();
        Remembered { wall, boot, uptime }
    }

    /// Compares the wall clock with what was remembered last, and with the newest time that was
    /// written. In the same start of the machine it is known how much time has passed since. Otherwise
    /// time has passed, and how much nobody knows: a wall clock that is more than 15 minutes ahead, or 5
    /// behind, is a jump, unless the kernel says that its clock is synchronised. Blocks.
    ///
    /// Returns whether the wall clock is believed.
    pub fn resume(&self, remembered: Option<Remembered>, written: Timestamp) -> bool {
        let Some((expected, ahead)) = self.expected(remembered, written) else {
            return true;
        };
        let reading = self.shared.source.read();
        let is_near = reading.wall.since(expected) <= ahead && expected.since(reading.wall) <= JUMP;
        let believed = is_near || self.is_synchronised();
        // What was written cannot have been later than it is.
        let expected = expected.max(written);
        let slept = self.shared.source.slept(reading.monotonic);
        let mut guard = self.guard();
        *guard = if believed {
            Guard::trusting(reading, slept)
        } else {
            let monotonic = reading.monotonic;
            let trusted = Reading {
                wall: expected,
                monotonic,
            };
            Guard {
                jump: Some(Jump {
                    since: monotonic,
                    micros: signed_micros(reading.wall, expected),
                    slept,
                    asked: monotonic,
                }),
                ..Guard::trusting(trusted, slept)
            }
        };
        believed
    }

    /// What the time is now as far as that follows, and how far ahead of it is nothing to wonder at;
    /// `None`: nothing is known.
    fn expected(
        &self,
        remembered: Option<Remembered>,
        written: Timestamp,
    ) -> Option<(Timestamp, Duration)> {
        let (boot, uptime) = self.shared.source.machine();
        if let Some(last) = remembered
            && last.boot != 0
            && last.boot == boot
            && let Some(passed) = uptime.checked_sub(last.uptime)
        {
            return Some((last.wall.saturating_add(passed), JUMP));
        }
        let last = remembered.map_or(Timestamp::ZERO, |last| last.wall);
        let last = last.max(written);
        (last > Timestamp::ZERO).then_some((last, RESTART))
    }

    /// Ends a jump when the kernel says that its clock is synchronised. Whether the wall clock is
    /// believed now. Blocks.
    pub fn ask_kernel(&self) -> bool {
        if !self.is_trusted() && self.is_synchronised() {
            self.confirm();
        }
        self.is_trusted()
    }

    /// Says of a manual clock whether the kernel vouches for its wall time; it does not at first. Does
    /// nothing to the system's.
    pub fn set_synchronised(&self, synchronised: bool) {
        if let Source::Manual(manual) = &self.shared.source {
            lock(manual).synchronised = synchronised;
        }
    }

    fn is_synchronised(&self) -> bool {
        match &self.shared.source {
            Source::System { .. } => kernel_is_synchronised(),
            Source::Manual(manual) => lock(manual).synchronised,
        }
    }
}

impl Source {
    /// Which start of the machine this is, and how long ago that was. A manual clock's machine starts
    /// with it.
    fn machine(&self) -> (u128, Duration) {
        match self {
            Self::System { .. } => (boot(), uptime()),
            Self::Manual(manual) => (1, lock(manual).reading.monotonic),
        }
    }
}

/// The number of this start of the machine; 0 where the system does not say.
fn boot() -> u128 {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = text.trim().split('-').collect();
    u128::from_str_radix(&digits, 16).unwrap_or(0)
}

/// Whether something keeps the clock right: systemd-timesyncd leaves a file, and of anything else
/// `timedatectl` knows, which asks the kernel. Where neither is there (in most containers) nobody says.
fn kernel_is_synchronised() -> bool {
    std::path::Path::new("/run/systemd/timesync/synchronized").exists() || timedatectl_says_so()
}

fn timedatectl_says_so() -> bool {
    let asking = Command::new("timedatectl")
        .args(["show", "--property=NTPSynchronized", "--value"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut asking) = asking else { return false };
    let mut waited = Duration::ZERO;
    while let Ok(None) = asking.try_wait() {
        if waited >= ANSWER {
            // It may end at this very moment.
            let _ = asking.kill();
            break;
        }
        std::thread::sleep(ASK_AGAIN);
        waited += ASK_AGAIN;
    }
    let answer = asking.wait_with_output();
    answer.is_ok_and(|answer| answer.status.success() && answer.stdout.trim_ascii() == b"yes")
}
