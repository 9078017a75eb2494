//! A world that one thread runs, from a seed.
//!
//! What can go on (loops, tasks, jobs that were woken or whose time has come) lies in an ordered set,
//! and the dice draw from it; virtual time moves to the next deadline only when nothing can go on. So
//! equal seeds give equal runs: neither addresses nor the order of wakes matter, for a wake only puts
//! a number into the set.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use flumen_world::{BoxFuture, Clock, SpawnError, Task, Turn, TurnLoop, Wake, World, lock};

use crate::random::{Dice, place};

/// Steps without any time passing that are one too many: something turns in a circle.
const STEPS_MAX: u64 = 200_000;

/// Something that the executor runs.
enum Unit {
    Loop(TurnLoop),
    Task(BoxFuture<'static, ()>),
    Job(Box<dyn FnOnce() + Send>),
}

#[derive(Default)]
struct State {
    dice: Option<Dice>,
    next: u64,
    units: BTreeMap<u64, Unit>,
    /// What runs now, taken out of `units`.
    running: Option<u64>,
    ready: BTreeSet<u64>,
    /// When loops want their next turn.
    deadlines: BTreeSet<(Duration, u64)>,
    names: BTreeMap<u64, String>,
    turns: BTreeMap<String, u64>,
    /// Nothing runs any more; what still comes waits here to be dropped.
    is_over: bool,
    late: Vec<Unit>,
    /// What a unit panicked with.
    panicked: Option<String>,
    /// Steps since time passed.
    at_once: u64,
}

struct Inner {
    clock: Clock,
    state: Mutex<State>,
}

/// The executor. Clones are handles of the same.
#[derive(Clone)]
pub(crate) struct Executor {
    inner: Arc<Inner>,
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executor").finish_non_exhaustive()
    }
}

/// Puts a unit into the set.
struct Waking {
    inner: Weak<Inner>,
    unit: u64,
}

impl std::task::Wake for Waking {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if let Some(inner) = self.inner.upgrade() {
            let mut state = lock(&inner.state);
            if state.units.contains_key(&self.unit) || state.running == Some(self.unit) {
                state.ready.insert(self.unit);
            }
        }
    }
}

/// Why running has stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// The time has come.
    Time,
    /// As many steps as were asked for are done.
    Steps,
    /// What was waited for is there.
    Done,
}

impl Executor {
    pub(crate) fn new(clock: Clock, dice: Dice) -> Self {
        let state = State {
            dice: Some(dice),
            ..State::default()
        };
        Self {
            inner: Arc::new(Inner {
                clock,
                state: Mutex::new(state),
            }),
        }
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.inner.clock
    }

    /// Runs until the clock shows `until`, `steps` are done, or `done` says so. `Err`: something
    /// panicked, or turns in a circle.
    pub(crate) fn run_until(
        &self,
        until: Duration,
        mut steps: u64,
        mut done: impl FnMut() -> bool,
    ) -> Result<Stopped, String> {
        loop {
            if done() {
                return Ok(Stopped::Done);
            }
            if steps == 0 {
                return Ok(Stopped::Steps);
            }
            steps -= 1;
            if self.step()? {
                continue;
            }
            let next = self.next_deadline().map_or(until, whole_micros).min(until);
            let now = self.inner.clock.monotonic();
            self.inner.clock.advance(next.saturating_sub(now));
            self.time_passed(next);
            if next >= until && lock(&self.inner.state).ready.is_empty() {
                return Ok(Stopped::Time);
            }
        }
    }

    /// Ends everything as a killed process would: nothing gets another turn.
    pub(crate) fn end(&self) -> Option<Dice> {
        let (units, dice) = {
            let mut state = lock(&self.inner.state);
            state.is_over = true;
            state.ready.clear();
            state.deadlines.clear();
            (std::mem::take(&mut state.units), state.dice.take())
        };
        drop(units);
        loop {
            // What was dropped may have started something to say farewell.
            let late = std::mem::take(&mut lock(&self.inner.state).late);
            if late.is_empty() {
                return dice;
            }
            drop(late);
        }
    }

    /// How many turns loops took, tasks were polled and jobs ran, by name.
    pub(crate) fn turns(&self) -> BTreeMap<String, u64> {
        lock(&self.inner.state).turns.clone()
    }

    /// When loops want their next turn, from now on.
    pub(crate) fn deadlines(&self) -> Vec<(String, Duration)> {
        let now = self.inner.clock.monotonic();
        let state = lock(&self.inner.state);
        let of = |(at, unit): &(Duration, u64)| {
            let name = state.names.get(unit).cloned().unwrap_or_default();
            (name, at.saturating_sub(now))
        };
        state.deadlines.iter().map(of).collect()
    }

    fn next_deadline(&self) -> Option<Duration> {
        let timer = self.inner.clock.next_timer();
        let state = lock(&self.inner.state);
        let turn = state.deadlines.first().map(|(at, _)| *at);
        match (timer, turn) {
            (Some(timer), Some(turn)) => Some(timer.min(turn)),
            (timer, turn) => timer.or(turn),
        }
    }

    fn time_passed(&self, now: Duration) {
        let mut state = lock(&self.inner.state);
        state.at_once = 0;
        while let Some((at, unit)) = state.deadlines.first().copied()
            && at <= now
        {
            state.deadlines.remove(&(at, unit));
            state.ready.insert(unit);
        }
    }

    /// One turn, poll or job; `false` when nothing can go on.
    fn step(&self) -> Result<bool, String> {
        let (number, unit) = {
            let mut state = lock(&self.inner.state);
            if let Some(panicked) = state.panicked.take() {
                return Err(panicked);
            }
            let ready = state.ready.len() as u64;
            if ready == 0 || state.is_over {
                return Ok(false);
            }
            state.at_once += 1;
            if state.at_once > STEPS_MAX {
                return Err(format!("no end within one moment: {:?}", state.turns));
            }
            let drawn = state.dice.as_mut().map_or(0, |dice| dice.below(ready));
            let Some(number) = state.ready.iter().nth(place(drawn)).copied() else {
                return Ok(false);
            };
            state.ready.remove(&number);
            let name = state.names.get(&number).cloned().unwrap_or_default();
            *state.turns.entry(name).or_default() += 1;
            state.running = Some(number);
            let Some(unit) = state.units.remove(&number) else {
                return Ok(true);
            };
            (number, unit)
        };
        let unit = match catch_unwind(AssertUnwindSafe(|| self.run_unit(number, unit))) {
            Ok(unit) => unit,
            Err(panic) => {
                let name = lock(&self.inner.state).names.get(&number).cloned();
                lock(&self.inner.state).panicked = Some(format!(
                    "{} panicked: {}",
                    name.unwrap_or_default(),
                    told(&*panic)
                ));
                None
            }
        };
        let mut state = lock(&self.inner.state);
        state.running = None;
        match unit {
            Some(unit) if state.is_over => state.late.push(unit),
            Some(unit) => {
                state.units.insert(number, unit);
            }
            None => {
                state.names.remove(&number);
                state.ready.remove(&number);
            }
        }
        Ok(true)
    }

    /// Gives one unit its turn; `None` when it has ended (and is dropped, outside of any lock).
    fn run_unit(&self, number: u64, unit: Unit) -> Option<Unit> {
        match unit {
            Unit::Loop(mut turn) => {
                let turned = turn(self.inner.clock.both());
                let mut state = lock(&self.inner.state);
                match turned {
                    Turn::Again => {
                        state.ready.insert(number);
                    }
                    Turn::Wait(until) => {
                        // What it wanted before is over.
                        state.deadlines.retain(|(_, of)| *of != number);
                        if let Some(until) = until {
                            if until <= self.inner.clock.monotonic() {
                                state.ready.insert(number);
                            } else {
                                state.deadlines.insert((until, number));
                            }
                        }
                    }
                    Turn::Ended => {
                        drop(state);
                        return None;
                    }
                }
                drop(state);
                Some(Unit::Loop(turn))
            }
            Unit::Task(mut future) => {
                let waker = self.waker(number);
                match future.as_mut().poll(&mut Context::from_waker(&waker)) {
                    Poll::Ready(()) => None,
                    Poll::Pending => Some(Unit::Task(future)),
                }
            }
            Unit::Job(job) => {
                job();
                None
            }
        }
    }

    fn waker(&self, unit: u64) -> Waker {
        Waker::from(Arc::new(Waking {
            inner: Arc::downgrade(&self.inner),
            unit,
        }))
    }

    fn add(&self, name: &str, unit: Unit) -> u64 {
        let mut state = lock(&self.inner.state);
        state.next += 1;
        let number = state.next;
        if state.is_over {
            state.late.push(unit);
            return number;
        }
        state.units.insert(number, unit);
        state.names.insert(number, name.to_owned());
        state.ready.insert(number);
        number
    }

    /// Starts a task under a name of its own.
    pub(crate) fn spawn(&self, name: &str, future: impl Future<Output = ()> + Send + 'static) {
        self.add(name, Unit::Task(Box::pin(future)));
    }
}

impl World for Executor {
    fn run(&self, name: &str, turn: TurnLoop) -> Result<Wake, SpawnError> {
        let number = self.add(name, Unit::Loop(turn));
        Ok(Wake::new(self.waker(number)))
    }

    fn task(&self, future: BoxFuture<'static, ()>) -> Task {
        let (task, future) = Task::of(future);
        self.add("task", Unit::Task(future));
        task
    }

    fn blocking(&self, job: Box<dyn FnOnce() + Send>) {
        self.add("job", Unit::Job(job));
    }

    fn random(&self) -> u64 {
        lock(&self.inner.state).dice.as_mut().map_or(0, Dice::next)
    }
}

/// The wall clock counts microseconds: smaller steps would leave it behind the monotonic one.
fn whole_micros(at: Duration) -> Duration {
    let left = at.subsec_nanos() % 1_000;
    if left == 0 {
        return at;
    }
    at.saturating_add(Duration::from_nanos(u64::from(1_000 - left)))
}

/// What a panic said.
fn told(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "something".to_owned())
}
