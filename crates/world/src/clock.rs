//! The only place in a node that reads a clock.
//!
//! **Wall clock.** Stamps and retention use wall-clock time that is checked against monotonic time.
//! A jump of more than 5 minutes, forwards or backwards, is neither stamped nor expires anything
//! until it is confirmed: meanwhile time goes on from the last trusted moment at the pace of the
//! monotonic clock. A jump is confirmed by [`Clock::confirm`], by a kernel whose clock is synchronised
//! ([`Clock::ask_kernel`]), or by lasting for 24 hours; it ends without trace when the wall clock
//! comes back. Smaller corrections are followed at once. Sleep of the machine is no jump.
//!
//! **A start** trusts no more than that: [`Clock::resume`] compares with what was remembered.
//!
//! **Monotonic time** ([`Clock::monotonic`]) measures durations, and nothing else. What sleeps and what
//! waits for a deadline goes by it.
//!
//! **A manual clock** stands still until it is moved: wall time, monotonic time, sleeping and deadlines
//! alike. Nothing about it is real time.

mod start;

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Poll, Waker};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use flumen_record::Timestamp;

pub use start::Remembered;

use crate::lock::lock;
use crate::sleep::{Elapsed, Sleep};
use crate::threads::unparks;
use crate::timers::Timers;

/// A larger step of the wall clock against the monotonic one is a jump.
const JUMP: Duration = Duration::from_secs(5 * 60);
/// While there is a jump, how long the machine has slept is asked this often: that reads a file.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// A jump that lasts this long is believed.
const CONFIRMED_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Wall-clock time that is checked against monotonic time. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Clock {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    source: Source,
    guard: Mutex<Guard>,
}

/// The wall clock (checked against the monotonic one) and monotonic time, at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// For stamping and retention, as [`Clock::now`].
    pub wall: Timestamp,
    /// For durations and deadlines, as [`Clock::monotonic`].
    pub monotonic: Duration,
}

#[derive(Debug)]
enum Source {
    System {
        started: Instant,
        /// How long the machine had been up then, its sleep included.
        uptime: Duration,
    },
    Manual(Mutex<Manual>),
}

#[derive(Debug)]
struct Manual {
    reading: Reading,
    /// Whether the kernel vouches for the wall time.
    synchronised: bool,
    timers: Timers,
}

/// Both clocks at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reading {
    wall: Timestamp,
    monotonic: Duration,
}

/// The last reading that was believed, and a jump that is not.
#[derive(Debug, Clone, Copy)]
struct Guard {
    trusted: Reading,
    /// How long the machine had slept by then, as far as anybody looked.
    slept: Duration,
    jump: Option<Jump>,
}

#[derive(Debug, Clone, Copy)]
struct Jump {
    /// Monotonic time at which it was first seen.
    since: Duration,
    /// By how much, in microseconds.
    micros: i64,
    /// How long the machine had slept, and the monotonic time at which that was asked.
    slept: Duration,
    asked: Duration,
}

impl Jump {
    /// Whether the clocks are still as far apart.
    fn explains(&self, micros: i64) -> bool {
        u128::from(self.micros.abs_diff(micros)) <= JUMP.as_micros()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::system()
    }
}

impl Clock {
    /// The system's clock.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the place that reads the clock"
    )]
    pub fn system() -> Self {
        Self::new(Source::System {
            started: Instant::now(),
            uptime: uptime(),
        })
    }

    /// A clock that stands at `start` until it is moved: for tests and simulations.
    pub fn manual(start: Timestamp) -> Self {
        Self::new(Source::Manual(Mutex::new(Manual {
            reading: Reading {
                wall: start,
                monotonic: Duration::ZERO,
            },
            synchronised: false,
            timers: Timers::default(),
        })))
    }

    fn new(source: Source) -> Self {
        let trusted = source.read();
        Self {
            shared: Arc::new(Shared {
                source,
                guard: Mutex::new(Guard::trusting(trusted, Duration::ZERO)),
            }),
        }
    }

    /// Now, for stamping and retention.
    pub fn now(&self) -> Timestamp {
        self.both().wall
    }

    /// [`Clock::now`] and [`Clock::monotonic`], at one moment.
    pub fn both(&self) -> Now {
        let reading = self.shared.source.read();
        let slept = || self.shared.source.slept(reading.monotonic);
        Now {
            wall: self.guard().observe(reading, slept),
            monotonic: reading.monotonic,
        }
    }

    /// Time that has passed since the clock was made; of a manual one, by how much it was advanced.
    pub fn monotonic(&self) -> Duration {
        self.shared.source.monotonic()
    }

    /// By how many seconds the wall clock has jumped and is not believed; 0 when all is well. While
    /// it is not 0 nothing expires.
    pub fn jump_seconds(&self) -> f64 {
        self.now();
        #[expect(clippy::cast_precision_loss, reason = "a gauge")]
        self.guard()
            .jump
            .map_or(0.0, |jump| jump.micros as f64 / 1e6)
    }

    /// Whether what is old by [`Clock::now`] may be expired.
    pub fn is_trusted(&self) -> bool {
        self.now();
        self.guard().jump.is_none()
    }

    /// Believes the wall clock as it stands: an operator has looked at it.
    pub fn confirm(&self) {
        let reading = self.shared.source.read();
        let slept = self.shared.source.slept(reading.monotonic);
        *self.guard() = Guard::trusting(reading, slept);
    }

    /// Moves a manual clock forward, wall and monotonic time alike, and wakes what is due by then, in
    /// the order in which it is. Does nothing to the system's.
    pub fn advance(&self, by: Duration) {
        let Source::Manual(manual) = &self.shared.source else {
            return;
        };
        let due = {
            let mut manual = lock(manual);
            manual.reading.wall = manual.reading.wall.saturating_add(by);
            manual.reading.monotonic += by;
            let now = manual.reading.monotonic;
            manual.timers.take_due(now)
        };
        due.into_iter().for_each(Waker::wake);
    }

    /// Sets a manual clock's wall time and leaves monotonic time: a jump. Does nothing to the
    /// system's.
    pub fn jump_to(&self, wall: Timestamp) {
        if let Source::Manual(manual) = &self.shared.source {
            lock(manual).reading.wall = wall;
        }
    }

    /// Whether it stands still until it is moved.
    pub fn is_manual(&self) -> bool {
        matches!(self.shared.source, Source::Manual(_))
    }

    /// The monotonic time at which the first of those who sleep by a manual clock is due. A simulator
    /// advances to it when nothing else is left to do.
    pub fn next_timer(&self) -> Option<Duration> {
        match &self.shared.source {
            Source::System { .. } => None,
            Source::Manual(manual) => lock(manual).timers.first(),
        }
    }

    /// Waits until `duration` has passed, from this call on; by a manual clock, until it was advanced
    /// by as much. By the system's clock it is tokio that wakes.
    pub fn sleep(&self, duration: Duration) -> Sleep {
        match self.shared.source {
            Source::System { .. } => Sleep::system(duration),
            Source::Manual(_) => {
                let until = self.monotonic().saturating_add(duration);
                Sleep::manual(self.clone(), until)
            }
        }
    }

    /// Waits for `future`, but not longer than `duration`. What is ready when time is up counts.
    pub async fn timeout<F: Future>(
        &self,
        duration: Duration,
        future: F,
    ) -> Result<F::Output, Elapsed> {
        let mut future = pin!(future);
        let mut sleep = self.sleep(duration);
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending => Pin::new(&mut sleep).poll(cx).map(|()| Err(Elapsed)),
        })
        .await
    }

    /// Parks the thread until it is unparked or the monotonic time is there. It may return for no
    /// reason.
    pub(crate) fn park(&self, until: Option<Duration>) {
        let Some(until) = until else {
            return thread::park();
        };
        if let Source::System { .. } = self.shared.source {
            return thread::park_timeout(until.saturating_sub(self.monotonic()));
        }
        let mut number = None;
        if self.keep_until(until, &mut number, &unparks(thread::current())) {
            thread::park();
        }
        if let Some(number) = number {
            self.forget(until, number);
        }
    }

    /// Keeps a waker among the timers, under the number it has or gets. `false`: the time is there, or
    /// the clock is the system's.
    pub(crate) fn keep_until(
        &self,
        until: Duration,
        number: &mut Option<u64>,
        waker: &Waker,
    ) -> bool {
        let Source::Manual(manual) = &self.shared.source else {
            return false;
        };
        let mut manual = lock(manual);
        if manual.reading.monotonic >= until {
            if let Some(number) = number.take() {
                manual.timers.remove(until, number);
            }
            return false;
        }
        match *number {
            Some(known) if manual.timers.replace(until, known, waker) => {}
            _ => *number = Some(manual.timers.add(until, waker.clone())),
        }
        true
    }

    /// Takes a waker back.
    pub(crate) fn forget(&self, until: Duration, number: u64) {
        if let Source::Manual(manual) = &self.shared.source {
            lock(manual).timers.remove(until, number);
        }
    }

    fn guard(&self) -> MutexGuard<'_, Guard> {
        lock(&self.shared.guard)
    }
}

impl Source {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the place that reads the clock"
    )]
    fn read(&self) -> Reading {
        match self {
            Self::System { .. } => {
                let since_epoch = SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or(Duration::ZERO);
                Reading {
                    wall: Timestamp::ZERO.saturating_add(since_epoch),
                    monotonic: self.monotonic(),
                }
            }
            Self::Manual(manual) => lock(manual).reading,
        }
    }

    fn monotonic(&self) -> Duration {
        match self {
            Self::System { started, .. } => started.elapsed(),
            Self::Manual(manual) => lock(manual).reading.monotonic,
        }
    }

    /// How long the machine has slept since the start: monotonic time stands still meanwhile.
    fn slept(&self, monotonic: Duration) -> Duration {
        match self {
            Self::System {
                uptime: at_start, ..
            } => uptime().saturating_sub(*at_start).saturating_sub(monotonic),
            Self::Manual(_) => Duration::ZERO,
        }
    }
}

impl Guard {
    fn trusting(trusted: Reading, slept: Duration) -> Self {
        Self {
            trusted,
            slept,
            jump: None,
        }
    }

    /// What to take for now, given what the clocks say. How long the machine has slept is only
    /// asked when something looks wrong.
    fn observe(&mut self, reading: Reading, slept: impl FnOnce() -> Duration) -> Timestamp {
        let passed = reading.monotonic.saturating_sub(self.trusted.monotonic);
        let expected = self.trusted.wall.saturating_add(passed);
        if apart(reading.wall, expected) <= JUMP {
            *self = Self::trusting(reading, self.slept);
            return reading.wall;
        }
        let awake = |slept: Duration| expected.saturating_add(slept.saturating_sub(self.slept));
        if let Some(jump) = self.jump
            && reading.monotonic.saturating_sub(jump.asked) < ASK_AGAIN
            && jump.explains(signed_micros(reading.wall, awake(jump.slept)))
        {
            return awake(jump.slept);
        }
        let slept = slept();
        let expected = awake(slept);
        if apart(reading.wall, expected) <= JUMP {
            *self = Self::trusting(reading, slept);
            return reading.wall;
        }
        let micros = signed_micros(reading.wall, expected);
        let known = self.jump.filter(|jump| jump.explains(micros));
        let jump = Jump {
            // A second jump on top of the first one starts the wait again.
            since: known.map_or(reading.monotonic, |jump| jump.since),
            micros: known.map_or(micros, |jump| jump.micros),
            slept,
            asked: reading.monotonic,
        };
        if reading.monotonic.saturating_sub(jump.since) >= CONFIRMED_AFTER {
            *self = Self::trusting(reading, slept);
            return reading.wall;
        }
        self.jump = Some(jump);
        expected
    }
}

fn apart(a: Timestamp, b: Timestamp) -> Duration {
    a.since(b).max(b.since(a))
}

/// How long the machine has been up, its sleep included; zero where the system does not say.
fn uptime() -> Duration {
    std::fs::read_to_string("/proc/uptime")
        .ok()
        .and_then(|text| text.split_whitespace().next()?.parse().ok())
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .unwrap_or(Duration::ZERO)
}

fn signed_micros(wall: Timestamp, expected: Timestamp) -> i64 {
    let ahead = i64::try_from(wall.since(expected).as_micros()).unwrap_or(i64::MAX);
    let behind = i64::try_from(expected.since(wall).as_micros()).unwrap_or(i64::MAX);
    ahead - behind
}

#[cfg(test)]
mod tests;
