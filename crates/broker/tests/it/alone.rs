//! A node without any thread, and without tokio's runtime: everything that it does is a turn, a poll or
//! a job of one loop, and all its time is virtual.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use flumen_broker::{
    Broker, Clock, Error, InitialPosition, JoinGroup, MemberWord, Reshard, StartPosition,
    StreamUpdate,
};
use flumen_log::MemoryStorage;
use flumen_record::{Durability, ProducerId};
use flumen_world::{BoxFuture, SpawnError, Task, Turn, TurnLoop, Wake, World};

use crate::fixture::*;

enum Unit {
    Loop(TurnLoop),
    Task(BoxFuture<'static, ()>),
    Job(Box<dyn FnOnce() + Send>),
}

#[derive(Default)]
struct State {
    units: BTreeMap<u64, (String, Option<Unit>)>,
    ready: BTreeSet<u64>,
    /// When loops want a turn.
    due: BTreeMap<u64, Duration>,
    next: u64,
    /// What ran, one line each.
    ran: Vec<String>,
}

/// Runs what is ready, the oldest first, and moves the clock when nothing is.
#[derive(Clone)]
struct Alone {
    clock: Clock,
    state: Arc<Mutex<State>>,
}

impl fmt::Debug for Alone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Alone").finish_non_exhaustive()
    }
}

struct Ready(u64, Weak<Mutex<State>>);

impl std::task::Wake for Ready {
    fn wake(self: Arc<Self>) {
        if let Some(state) = self.1.upgrade() {
            state.lock().unwrap().ready.insert(self.0);
        }
    }
}

impl Alone {
    fn add(&self, name: &str, unit: Unit) -> Waker {
        let mut state = self.state.lock().unwrap();
        state.next += 1;
        let id = state.next;
        state.units.insert(id, (name.to_owned(), Some(unit)));
        state.ready.insert(id);
        Waker::from(Arc::new(Ready(id, Arc::downgrade(&self.state))))
    }

    /// Runs one thing; `false`: nothing is ready.
    fn run_one(&self) -> bool {
        let now = self.clock.both();
        let (id, name, unit) = {
            let mut state = self.state.lock().unwrap();
            let due = state.due.iter().filter(|(_, at)| **at <= now.monotonic);
            let due: Vec<u64> = due.map(|(id, _)| *id).collect();
            state.ready.extend(due);
            let Some(id) = state.ready.pop_first() else {
                return false;
            };
            state.due.remove(&id);
            let Some((name, unit)) = state.units.get_mut(&id) else {
                return true;
            };
            let (name, unit) = (name.clone(), unit.take().unwrap());
            state.ran.push(format!("{:?} {name}", now.monotonic));
            (id, name, unit)
        };
        let (kept, again, due) = match unit {
            Unit::Loop(mut turn) => match turn(now) {
                Turn::Again => (Some(Unit::Loop(turn)), true, None),
                Turn::Wait(due) => (Some(Unit::Loop(turn)), false, due),
                Turn::Ended => (None, false, None),
            },
            Unit::Task(mut task) => {
                let waker = Waker::from(Arc::new(Ready(id, Arc::downgrade(&self.state))));
                match task.as_mut().poll(&mut Context::from_waker(&waker)) {
                    Poll::Pending => (Some(Unit::Task(task)), false, None),
                    Poll::Ready(()) => (None, false, None),
                }
            }
            Unit::Job(job) => {
                job();
                (None, false, None)
            }
        };
        let mut state = self.state.lock().unwrap();
        match kept {
            Some(unit) => {
                state.units.insert(id, (name, Some(unit)));
                state.due.extend(due.map(|at| (id, at)));
                if again {
                    state.ready.insert(id);
                }
            }
            None => drop(state.units.remove(&id)),
        }
        true
    }

    /// Runs everything until `future` is done.
    fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        loop {
            let mut cx = Context::from_waker(Waker::noop());
            if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
                return output;
            }
            if !self.run_one() {
                let due = self.next_due().expect("it waits for ever");
                self.clock
                    .advance(due.saturating_sub(self.clock.monotonic()));
            }
        }
    }

    fn next_due(&self) -> Option<Duration> {
        let state = self.state.lock().unwrap();
        let loops = state.due.values().copied();
        loops.chain(self.clock.next_timer()).min()
    }

    fn takes(&self) -> usize {
        self.state.lock().unwrap().ran.len()
    }
}

impl World for Alone {
    fn run(&self, name: &str, turn: TurnLoop) -> Result<Wake, SpawnError> {
        Ok(Wake::new(self.add(name, Unit::Loop(turn))))
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
        7
    }
}

fn alone() -> Alone {
    Alone {
        clock: clock(),
        state: Arc::default(),
    }
}

async fn open_in(world: &Alone, storage: &MemoryStorage) -> Broker {
    let mut config = config();
    config.retention_interval_ms = 3_600_000;
    let shared: Arc<dyn World> = Arc::new(world.clone());
    let storage = Arc::new(storage.clone());
    let opened = Broker::open_in(shared, storage, config, world.clock.clone());
    opened.await.unwrap()
}

/// Everything that a node is asked for, over one restart.
fn live(world: &Alone) {
    let storage = MemoryStorage::new();
    world.block_on(async {
        let broker = open_in(world, &storage).await;
        let memory = create(&broker, "memory", 2, level(Durability::Memory)).await;
        let disk = create(&broker, "disk", 1, level(Durability::Disk)).await;
        let records = (0..10).map(|n| record_for(n % 2, 2, "data")).collect();
        for outcome in broker.put(&memory, records).await.unwrap() {
            outcome.unwrap();
        }
        for n in 0..10 {
            append_counted(&broker, &disk, n).await;
        }
        let from_start = vec![(shard(0), StartPosition::TrimHorizon)];
        let mut pushed = broker.subscribe(&disk, from_start, BUDGET).await.unwrap();
        assert_eq!(pushed.next().await.unwrap().unwrap().reply.next, number(10));
        let at_end = broker
            .read(&disk, shard(0), StartPosition::Latest, BUDGET, WAIT)
            .await;
        assert!(at_end.unwrap().pieces.is_empty());
        let update = StreamUpdate {
            durability: Some(Durability::Memory),
            ..StreamUpdate::default()
        };
        broker.update_stream(&disk, update).await.unwrap();
        append_counted(&broker, &disk, 10).await;
        let split = Reshard::Split {
            shard: shard(0),
            at: None,
        };
        broker.reshard(&disk, split).await.unwrap();
        join(&broker, &memory).await;
        broker.shutdown().await.unwrap();
    });
    world.block_on(async {
        let broker = open_in(world, &storage.kill()).await;
        let disk = name("disk");
        assert_eq!(read_all(&broker, &disk, shard(0)).await, counted(0..11));
        let first = broker
            .describe_group(&name("memory"), &"group".parse().unwrap())
            .await;
        assert_eq!(first.unwrap().members.len(), 0);
        broker.shutdown().await.unwrap();
    });
}

async fn append_counted(broker: &Broker, stream: &flumen_record::StreamName, n: u64) {
    let (mut sender, mut receiver) = broker.append_session(stream).unwrap();
    sender.append(n, shard(0), one(n.to_string(), ProducerId::NONE, 0));
    sender.flush().await.unwrap();
    let mut acks = Vec::new();
    std::future::poll_fn(|cx| receiver.poll_acks(cx, &mut acks)).await;
    assert_eq!(acks[0].outcome.as_ref().unwrap().base, number(n));
}

/// A member that falls silent loses its leases by virtual time.
async fn join(broker: &Broker, stream: &flumen_record::StreamName) {
    let join = JoinGroup {
        group: "group".parse().unwrap(),
        member: "member".parse().unwrap(),
        instance: 1,
        session_timeout: None,
        start: InitialPosition::TrimHorizon,
    };
    let mut member = broker.join_group(stream, join).await.unwrap();
    let mut leases = 0;
    let ended = loop {
        match std::future::poll_fn(|cx| member.poll_word(cx)).await {
            MemberWord::Joined { kept, .. } => assert!(kept.is_empty()),
            MemberWord::Assigned(_) => leases += 1,
            MemberWord::Ended(error) => break error,
            _ => {}
        }
    };
    assert_eq!(leases, 2);
    assert!(!matches!(ended, Error::GroupsFailed), "{ended}");
}

/// The same node twice: what ran, and when, is the same to the last line.
#[test]
fn a_node_runs_without_a_thread_and_every_run_is_the_same() {
    let [one, other] = [alone(), alone()];
    live(&one);
    live(&other);
    let (one, other) = (one.state.lock().unwrap(), other.state.lock().unwrap());
    let differ = one.ran.iter().zip(&other.ran).position(|(a, b)| a != b);
    assert_eq!(differ.map(|at| (at, &one.ran[at], &other.ran[at])), None);
    assert_eq!(one.ran.len(), other.ran.len());
    assert_eq!(one.units.len(), 0, "something runs after the end");
}

/// Threads that looked four times a second whether there was something to do were 31 million turns in
/// 90 days.
#[test]
fn a_node_at_rest_does_next_to_nothing() {
    let world = alone();
    let storage = MemoryStorage::new();
    let broker = world.block_on(async {
        let broker = open_in(&world, &storage).await;
        for (text, durability) in [("m", Durability::Memory), ("d", Durability::Disk)] {
            let stream = create(&broker, text, 1, level(durability)).await;
            append_counted(&broker, &stream, 0).await;
        }
        broker
    });
    world.block_on(world.clock.sleep(Duration::from_secs(24 * 3600)));
    let before = world.takes();
    let days = 30;
    world.block_on(world.clock.sleep(Duration::from_secs(days * 24 * 3600)));
    let ran = world.takes() - before;
    let per_day = ran as u64 / days;
    let mut by_name: BTreeMap<String, usize> = BTreeMap::new();
    for line in &world.state.lock().unwrap().ran[before..] {
        let name = line.split_once(' ').unwrap().1.to_owned();
        *by_name.entry(name).or_default() += 1;
    }
    assert!(per_day < 1500, "{per_day} a day: {by_name:?}");
    drop(broker);
}
