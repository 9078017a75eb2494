//! What runs the broker and its clients, and lets time pass.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flumen_broker::{Broker, BrokerConfig};
use flumen_log::MemoryStorage;
use flumen_world::{Clock, lock};

use crate::executor::{Executor, Stopped};
use crate::random::Dice;

/// A node that has little to do takes no more turns than this in a while, …
const IDLE_STEPS: u64 = 100_000;
/// … and this in each second of it.
const STEPS_A_SECOND: u64 = 20;
/// Steps of one wait at most.
const STEPS_MAX: u64 = 5_000_000;

/// One process of the node, with its clients.
#[derive(Debug)]
pub(crate) struct Driver {
    executor: Executor,
}

impl Driver {
    pub(crate) fn new(clock: Clock, dice: Dice) -> Self {
        Self {
            executor: Executor::new(clock, dice),
        }
    }

    pub(crate) fn clock(&self) -> &Clock {
        self.executor.clock()
    }

    /// Starts something of a client.
    pub(crate) fn spawn(&self, name: &str, future: impl Future<Output = ()> + Send + 'static) {
        self.executor.spawn(name, future);
    }

    /// Lets time pass.
    pub(crate) fn pass(&self, time: Duration) -> Result<Stopped, String> {
        let until = self.clock().monotonic() + time;
        let before = self.executor.turns();
        let steps = IDLE_STEPS + time.as_secs().saturating_mul(STEPS_A_SECOND);
        let stopped = self.executor.run_until(until, steps, || false)?;
        if stopped == Stopped::Steps {
            let busy: BTreeMap<String, u64> = {
                let turns = self.executor.turns().into_iter();
                let taken = |(name, all): (String, u64)| {
                    let before = before.get(&name).copied().unwrap_or(0);
                    (name, all.saturating_sub(before))
                };
                turns
                    .map(taken)
                    .filter(|(_, taken)| *taken > 1_000)
                    .collect()
            };
            let next = self.executor.deadlines();
            return Err(format!(
                "too many turns within {time:?}: {busy:?}, next {next:?}"
            ));
        }
        Ok(stopped)
    }

    /// Lets some steps be done, within some time.
    pub(crate) fn some(&self, steps: u64, time: Duration) -> Result<Stopped, String> {
        let until = self.clock().monotonic() + time;
        self.executor.run_until(until, steps, || false)
    }

    /// Runs until something is done, and not longer than `limit`.
    pub(crate) fn wait<T: Send + 'static>(
        &self,
        what: &str,
        limit: Duration,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, String> {
        let slot = Arc::new(Mutex::new(None));
        let filled = Arc::clone(&slot);
        self.executor.spawn(what, async move {
            let value = future.await;
            *lock(&filled) = Some(value);
        });
        let until = self.clock().monotonic() + limit;
        let is_done = || lock(&slot).is_some();
        self.executor.run_until(until, STEPS_MAX, is_done)?;
        let value = lock(&slot).take();
        value.ok_or_else(|| format!("{what} is not done after {limit:?}"))
    }

    /// Opens the node.
    pub(crate) fn open(
        &self,
        storage: &MemoryStorage,
        config: &BrokerConfig,
    ) -> Result<Result<Broker, String>, String> {
        let storage = Arc::new(storage.clone());
        let (config, clock) = (config.clone(), self.clock().clone());
        let world = Arc::new(self.executor.clone());
        let opening = async move {
            Broker::open_in(world, storage, config, clock)
                .await
                .map_err(|error| error.to_string())
        };
        self.wait("opening", Duration::from_secs(3600), opening)
    }

    /// Ends it as a killed process would.
    pub(crate) fn end(&self) -> Dice {
        self.executor.end().unwrap_or_else(|| Dice::new(0))
    }
}
