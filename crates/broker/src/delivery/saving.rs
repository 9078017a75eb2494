//! What runners save: several at once share a commit.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use flumen_stream::delivery::DeliveryProgress;
use tokio::sync::oneshot;

use super::registry::Entry;
use crate::Error;
use crate::node::{Node, on_blocking_thread};
use flumen_world::lock;

/// One commit takes about this much.
const ROUND_BYTES: usize = 8 << 20;
/// What waits to be saved, at most: then whoever saves more is refused.
const QUEUE_MAX: usize = 16 << 10;

/// What waits to be saved.
#[derive(Debug, Default)]
pub(crate) struct Saves {
    queue: Mutex<Vec<Saving>>,
    /// One commits what everybody brought; the others wait here, and find it done.
    turn: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug)]
struct Saving {
    entry: Arc<Entry>,
    progress: DeliveryProgress,
    done: oneshot::Sender<Result<(), Error>>,
}

impl Saves {
    fn push(&self, saving: Saving) -> Result<(), Error> {
        let mut queue = lock(&self.queue);
        if queue.len() >= QUEUE_MAX {
            return Err(Error::QueueFull {
                retry_after: Duration::from_secs(1),
            });
        }
        queue.push(saving);
        Ok(())
    }

    /// What the next commit takes.
    fn take(&self) -> Vec<Saving> {
        let mut queue = lock(&self.queue);
        let mut bytes = 0;
        let fits = |saving: &&Saving| {
            bytes += saving.progress.bytes.len();
            bytes <= ROUND_BYTES
        };
        let count = queue.iter().take_while(fits).count().max(1);
        let count = count.min(queue.len());
        queue.drain(..count).collect()
    }
}

impl Node {
    /// Makes what a runner remembers durable.
    pub(super) async fn save_delivery(
        self: &Arc<Self>,
        entry: &Arc<Entry>,
        progress: DeliveryProgress,
    ) -> Result<(), Error> {
        let deliveries = &self.deliveries;
        deliveries.check()?;
        let allowed = deliveries.config.check_progress(&progress);
        allowed.map_err(|error| Error::delivery(&entry.name, error))?;
        let (done, mut saved) = oneshot::channel();
        deliveries.saves.push(Saving {
            entry: Arc::clone(entry),
            progress,
            done,
        })?;
        let turn = Arc::clone(&deliveries.saves.turn).lock_owned().await;
        if let Ok(saved) = saved.try_recv() {
            return saved;
        }
        let node = Arc::clone(self);
        on_blocking_thread(&*self.world, move || {
            node.commit_saves();
            // Not before, even when who asked has gone away: what came first is written first.
            drop(turn);
            Ok(())
        })
        .await?;
        saved.await.unwrap_or(Err(Error::Draining))
    }

    /// Commits what is in the queue. Blocks.
    fn commit_saves(&self) {
        loop {
            let savings = self.deliveries.saves.take();
            let Some(first) = savings.first() else { return };
            let name = first.entry.name.clone();
            let now = self.clock.now();
            let committed = self.deliveries.with_log(&name, |log| {
                // Whoever was removed meanwhile is told so.
                let there = savings.iter().filter(|saving| !is_gone(saving));
                let progress = there.map(|saving| (saving.entry.id, saving.progress.clone()));
                log.save(progress.collect(), now)?;
                for saving in savings.iter().filter(|saving| !is_gone(saving)) {
                    let mut standing = lock(&saving.entry.standing);
                    standing.progress = saving.progress.bytes.clone();
                    standing.held.clone_from(&saving.progress.held);
                }
                Ok(())
            });
            for saving in savings {
                let gone = Error::DeliveryNotFound {
                    delivery: saving.entry.name.clone(),
                };
                let result = match &committed {
                    Ok(()) if is_gone(&saving) => Err(gone),
                    result => result.clone(),
                };
                // Who asked may be gone.
                let _ = saving.done.send(result);
            }
        }
    }
}

fn is_gone(saving: &Saving) -> bool {
    *saving.entry.gone.borrow()
}
