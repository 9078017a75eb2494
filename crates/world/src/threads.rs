//! The world of production: a thread for each loop, tokio for tasks and jobs.

use std::sync::Arc;
use std::task::Waker;
use std::thread::{self, Thread};

use tokio::runtime::Handle;

use crate::clock::Clock;
use crate::task::{BoxFuture, Task};
use crate::world::{SpawnError, Turn, TurnLoop, Wake, World};

/// Loops are threads, tasks and jobs are a tokio runtime's.
#[derive(Debug, Clone)]
pub struct Threads {
    clock: Clock,
    runtime: Handle,
}

impl Threads {
    /// With the runtime of the caller, whose loops go by `clock`. Panics outside of a tokio runtime.
    pub fn new(clock: Clock) -> Self {
        Self::on(Handle::current(), clock)
    }

    /// With a runtime.
    pub fn on(runtime: Handle, clock: Clock) -> Self {
        Self { clock, runtime }
    }
}

impl World for Threads {
    fn run(&self, name: &str, mut turn: TurnLoop) -> Result<Wake, SpawnError> {
        let clock = self.clock.clone();
        let turns = move || {
            loop {
                match turn(clock.both()) {
                    Turn::Again => {}
                    Turn::Wait(until) => clock.park(until),
                    Turn::Ended => return,
                }
            }
        };
        let thread = thread::Builder::new().name(name.to_owned());
        let running = thread.spawn(turns).map_err(|source| SpawnError {
            name: name.to_owned(),
            source: Arc::new(source),
        })?;
        Ok(Wake::new(unparks(running.thread().clone())))
    }

    fn task(&self, future: BoxFuture<'static, ()>) -> Task {
        let (task, future) = Task::of(future);
        self.runtime.spawn(future);
        task
    }

    fn blocking(&self, job: Box<dyn FnOnce() + Send>) {
        self.runtime.spawn_blocking(job);
    }

    fn random(&self) -> u64 {
        rand::random()
    }
}

/// A waker that unparks a thread: a call while it runs lets its next parking return at once.
pub(crate) fn unparks(thread: Thread) -> Waker {
    struct Unpark(Thread);

    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }

        fn wake_by_ref(self: &Arc<Self>) {
            self.0.unpark();
        }
    }

    Waker::from(Arc::new(Unpark(thread)))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use flumen_record::Timestamp;
    use tokio::sync::mpsc;

    use super::*;
    use crate::{Gone, Now, Running};

    fn world() -> (Clock, Arc<dyn World>) {
        let clock = Clock::manual(Timestamp::from_micros(1_800_000_000_000_000));
        let world: Arc<dyn World> = Arc::new(Threads::new(clock.clone()));
        (clock, world)
    }

    /// Its first turn comes by itself; then it is woken by whoever wakes it, by the clock at its
    /// deadline, and its end is learnt when what it held is gone.
    #[tokio::test]
    async fn a_loop_turns_when_it_is_woken_and_when_it_is_due() {
        let (clock, world) = world();
        let (turned, mut turns) = mpsc::channel(10);
        let held = Arc::new(());
        let kept = Arc::clone(&held);
        let mut left = vec![
            Turn::Ended,
            Turn::Wait(Some(Duration::from_secs(60))),
            Turn::Wait(None),
        ];
        let turn = move |now: Now| {
            let _kept = &kept;
            turned.blocking_send(now.monotonic).unwrap();
            left.pop().unwrap()
        };
        let running = Running::start(&*world, "loop", Box::new(turn)).unwrap();
        assert_eq!(turns.recv().await, Some(Duration::ZERO));
        assert!(!running.has_ended());
        running.wake().wake();
        assert_eq!(turns.recv().await, Some(Duration::ZERO));
        clock.advance(Duration::from_secs(60));
        assert_eq!(turns.recv().await, Some(Duration::from_secs(60)));
        running.ended().await;
        assert!(running.has_ended());
        assert_eq!(Arc::strong_count(&held), 1);
        // Nobody is there any more, and nothing happens.
        running.wake().wake();
    }

    /// Whoever waits for a loop that panics must not wait for ever.
    #[tokio::test]
    async fn a_loop_that_panics_has_ended() {
        let (_, world) = world();
        let running = Running::start(&*world, "loop", Box::new(|_| panic!("told to"))).unwrap();
        running.ended().await;
    }

    #[tokio::test]
    async fn results_of_tasks_and_jobs_are_waited_for() {
        let (_, world) = world();
        assert_eq!(world.join(async { 1 }).await, Ok(1));
        assert_eq!(world.blocked(|| 2).await, Ok(2));
        let panicking = tokio::spawn(world.blocked(|| panic!("told to")));
        assert!(panicking.await.unwrap_err().is_panic());
        let panicking = tokio::spawn(world.join(async { panic!("told to") }));
        assert!(panicking.await.unwrap_err().is_panic());
    }

    /// A runtime that ends drops what it has not done.
    #[test]
    fn what_will_never_run_is_gone() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let world: Arc<dyn World> = Arc::new(Threads::on(
            runtime.handle().clone(),
            Clock::manual(Timestamp::ZERO),
        ));
        let never = world.join(std::future::pending::<()>());
        drop(runtime);
        let other = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        assert_eq!(other.block_on(never), Err(Gone));
    }

    #[tokio::test]
    async fn an_aborted_task_gives_back_what_it_held() {
        let (_, world) = world();
        let held = Arc::new(AtomicU32::new(0));
        let kept = Arc::clone(&held);
        let task = world.task(Box::pin(async move {
            kept.fetch_add(1, Ordering::SeqCst);
            std::future::pending::<()>().await;
        }));
        tokio::task::yield_now().await;
        assert!(!task.has_ended());
        task.abort();
        task.ended().await;
        assert!(task.has_ended());
        assert_eq!(Arc::strong_count(&held), 1);
        assert_eq!(held.load(Ordering::SeqCst), 1);
    }
}
