//! The only place in Flumen that reads a clock.
//!
//! **Wall clock.** Stamps and retention use wall-clock time that is checked against monotonic time.
//! A jump of more than 5 minutes, forwards or backwards, is neither stamped nor expires anything
//! until it is confirmed: meanwhile time goes on from the last trusted moment at the pace of the
//! monotonic clock. A jump is confirmed by [`Clock::confirm`], by a restart (which takes the wall
//! clock as it finds it), or by lasting for 24 hours; it ends without trace when the wall clock
//! comes back. Smaller corrections are followed at once. Sleep of the machine is no jump.
//!
//! **Monotonic time** ([`Clock::monotonic`]) measures durations, and nothing else.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use flumen_record::Timestamp;
use tokio::sync::Notify;

use crate::lock::lock;

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
    /// What [`Clock::monotonic`] counts from.
    started: Instant,
    guard: Mutex<Guard>,
    /// A manual clock moved.
    moved: Notify,
}

#[derive(Debug)]
enum Source {
    System {
        started: Instant,
        /// How long the machine had been up then, its sleep included.
        uptime: Duration,
    },
    Manual(Mutex<Reading>),
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
        Self::new(Source::Manual(Mutex::new(Reading {
            wall: start,
            monotonic: Duration::ZERO,
        })))
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "this is the place that reads the clock"
    )]
    fn new(source: Source) -> Self {
        let trusted = source.read();
        Self {
            shared: Arc::new(Shared {
                source,
                started: Instant::now(),
                guard: Mutex::new(Guard::trusting(trusted, Duration::ZERO)),
                moved: Notify::new(),
            }),
        }
    }

    /// Now, for stamping and retention.
    pub fn now(&self) -> Timestamp {
        let reading = self.shared.source.read();
        self.guard()
            .observe(reading, || self.shared.source.slept(reading.monotonic))
    }

    /// Time that has really passed since the clock was made, also of a manual one: for measuring
    /// durations only.
    pub fn monotonic(&self) -> Duration {
        self.shared.started.elapsed()
    }

    /// Monotonic time as [`Clock::sleep`] counts it: of a manual clock, by how much it was advanced.
    pub(crate) fn steady(&self) -> Duration {
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

    /// Moves a manual clock forward, wall and monotonic time alike. Does nothing to the system's.
    pub fn advance(&self, by: Duration) {
        if let Source::Manual(reading) = &self.shared.source {
            let mut reading = lock(reading);
            reading.wall = reading.wall.saturating_add(by);
            reading.monotonic += by;
        }
        self.shared.moved.notify_waiters();
    }

    /// Sets a manual clock's wall time and leaves monotonic time: a jump. Does nothing to the
    /// system's.
    pub fn jump_to(&self, wall: Timestamp) {
        if let Source::Manual(reading) = &self.shared.source {
            lock(reading).wall = wall;
        }
        self.shared.moved.notify_waiters();
    }

    /// Waits until `duration` has passed; with a manual clock, until it was advanced by as much.
    pub async fn sleep(&self, duration: Duration) {
        if let Source::System { .. } = self.shared.source {
            return tokio::time::sleep(duration).await;
        }
        let until = self.shared.source.monotonic() + duration;
        loop {
            let mut moved = std::pin::pin!(self.shared.moved.notified());
            moved.as_mut().enable();
            if self.shared.source.monotonic() >= until {
                return;
            }
            moved.await;
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
            Self::Manual(reading) => *lock(reading),
        }
    }

    fn monotonic(&self) -> Duration {
        match self {
            Self::System { started, .. } => started.elapsed(),
            Self::Manual(reading) => lock(reading).monotonic,
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
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);
    const MINUTE: Duration = Duration::from_secs(60);

    fn started() -> (Clock, Timestamp) {
        let start = Timestamp::from_micros(1_800_000_000_000_000);
        (Clock::manual(start), start)
    }

    #[test]
    fn follows_the_wall_clock_and_small_corrections() {
        let (clock, start) = started();
        clock.advance(MINUTE);
        assert_eq!(clock.now(), start.saturating_add(MINUTE));
        clock.jump_to(start.saturating_add(5 * MINUTE));
        assert_eq!(clock.now(), start.saturating_add(5 * MINUTE));
        clock.jump_to(start.saturating_add(MINUTE));
        assert_eq!(clock.now(), start.saturating_add(MINUTE));
        assert!(clock.is_trusted());
    }

    /// A clock set wrong by 40 days must not expire everything there is.
    #[test]
    fn does_not_stamp_a_jump_in_either_direction() {
        for wrong in [
            |t: Timestamp| t.saturating_add(40 * DAY),
            |t: Timestamp| t.saturating_sub(40 * DAY),
        ] {
            let (clock, start) = started();
            clock.jump_to(wrong(start));
            clock.advance(MINUTE);
            assert_eq!(clock.now(), start.saturating_add(MINUTE));
            assert!(!clock.is_trusted());
            assert!((clock.jump_seconds().abs() - 40.0 * 86_400.0).abs() < 1.0);
            clock.jump_to(start.saturating_add(2 * MINUTE));
            assert_eq!(clock.now(), start.saturating_add(2 * MINUTE));
            assert!(clock.is_trusted());
        }
    }

    #[test]
    fn believes_a_jump_when_it_is_confirmed_or_lasts() {
        let (clock, start) = started();
        let ahead = start.saturating_add(2 * DAY);
        clock.jump_to(ahead);
        assert_eq!(clock.now(), start);
        clock.confirm();
        assert_eq!(clock.now(), ahead);

        let (clock, start) = started();
        clock.jump_to(start.saturating_add(2 * DAY));
        assert_eq!(clock.now(), start);
        clock.advance(DAY - MINUTE);
        assert_eq!(clock.now(), start.saturating_add(DAY - MINUTE));
        clock.advance(MINUTE);
        assert_eq!(clock.now(), start.saturating_add(3 * DAY));
        assert!(clock.is_trusted());
    }

    #[test]
    fn a_second_jump_starts_the_wait_again() {
        let (clock, start) = started();
        clock.jump_to(start.saturating_add(2 * DAY));
        clock.now();
        clock.advance(DAY - MINUTE);
        clock.now();
        clock.jump_to(start.saturating_add(9 * DAY));
        clock.now();
        clock.advance(MINUTE);
        assert_eq!(clock.now(), start.saturating_add(DAY));
    }

    /// Monotonic time stands still while a laptop sleeps; waking up must not look like a jump.
    #[test]
    fn sleep_of_the_machine_is_no_jump() {
        let start = Reading {
            wall: Timestamp::from_micros(1_000_000),
            monotonic: Duration::ZERO,
        };
        let mut guard = Guard::trusting(start, Duration::ZERO);
        let woken = Reading {
            wall: start.wall.saturating_add(DAY),
            monotonic: MINUTE,
        };
        assert_eq!(guard.observe(woken, || DAY - MINUTE), woken.wall);
        assert!(guard.jump.is_none());
    }

    /// Every lane asks for the time several times a round, for as long as a jump lasts.
    #[test]
    fn a_jump_does_not_make_the_clock_slow() {
        let start = Reading {
            wall: Timestamp::from_micros(1_800_000_000_000_000),
            monotonic: Duration::ZERO,
        };
        let mut guard = Guard::trusting(start, Duration::ZERO);
        let mut asked = 0;
        let mut observe = |passed: Duration| {
            let reading = Reading {
                wall: start.wall.saturating_add(DAY + passed),
                monotonic: passed,
            };
            let now = guard.observe(reading, || {
                asked += 1;
                Duration::ZERO
            });
            assert_eq!(now, start.wall.saturating_add(passed));
        };
        for millis in 0..3500 {
            observe(Duration::from_millis(millis));
        }
        assert_eq!(asked, 4);
    }

    /// What it has slept while there was a jump does not add to the jump.
    #[test]
    fn sleep_during_a_jump_is_seen_at_once() {
        let start = Reading {
            wall: Timestamp::from_micros(1_800_000_000_000_000),
            monotonic: Duration::ZERO,
        };
        let mut guard = Guard::trusting(start, Duration::ZERO);
        let jumped = Reading {
            wall: start.wall.saturating_add(2 * DAY),
            monotonic: Duration::ZERO,
        };
        assert_eq!(guard.observe(jumped, || Duration::ZERO), start.wall);
        let passed = Duration::from_millis(1);
        let woken = Reading {
            wall: start.wall.saturating_add(3 * DAY + passed),
            monotonic: passed,
        };
        let now = start.wall.saturating_add(DAY + passed);
        assert_eq!(guard.observe(woken, || DAY), now);
        let jump = guard.jump.unwrap();
        assert_eq!(jump.since, Duration::ZERO);
    }
}
