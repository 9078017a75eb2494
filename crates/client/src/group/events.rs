//! What happens to a member on its way to whoever takes it: bounded, and a shard that stands still is
//! told however full it is.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flumen_record::ShardIndex;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::GroupEvent;

/// The end that tells.
#[derive(Debug, Clone)]
pub(super) struct Events {
    queue: mpsc::Sender<GroupEvent>,
    stops: Arc<Stops>,
}

/// The end that is told.
#[derive(Debug)]
pub(super) struct Taken {
    queue: mpsc::Receiver<GroupEvent>,
    stops: Arc<Stops>,
}

/// Shards that stand still, for which the queue had no room: one word for each.
#[derive(Debug, Default)]
struct Stops(Mutex<BTreeMap<ShardIndex, GroupEvent>>);

impl Stops {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<ShardIndex, GroupEvent>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A queue for so many events.
pub(super) fn channel(room: usize) -> (Events, Taken) {
    let (sender, receiver) = mpsc::channel(room);
    let stops = Arc::<Stops>::default();
    let events = Events {
        queue: sender,
        stops: Arc::clone(&stops),
    };
    let taken = Taken {
        queue: receiver,
        stops,
    };
    (events, taken)
}

impl Events {
    /// Events that nobody takes are not waited for.
    pub(super) fn tell(&self, event: GroupEvent) {
        if let Err(TrySendError::Full(event)) = self.queue.try_send(event)
            && let GroupEvent::Stopped { shard, .. } = event
        {
            self.stops.lock().insert(shard, event);
        }
    }
}

impl Taken {
    /// The next event; `None` when there will be none. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<GroupEvent> {
        // While something is put beside the queue it is full: there is no waiting for that.
        if let Ok(event) = self.queue.try_recv() {
            return Some(event);
        }
        let stop = self.stops.lock().pop_first();
        match stop {
            Some((_, event)) => Some(event),
            None => self.queue.recv().await,
        }
    }

    /// Nothing more is taken.
    pub(super) fn close(&mut self) {
        self.queue.close();
    }
}

#[cfg(test)]
mod tests {
    use flumen_record::SequenceNumber;

    use super::*;

    /// A shard that stood still was told of in a queue that was full, and the member went on mute.
    #[tokio::test]
    async fn a_shard_that_stands_still_is_told_though_the_queue_is_full() {
        let (events, mut taken) = channel(2);
        let shard = ShardIndex::new;
        let stopped = |index| GroupEvent::Stopped {
            shard: shard(index),
            at: SequenceNumber::ZERO,
            reason: String::new(),
        };
        for index in 0..4 {
            events.tell(GroupEvent::Finished {
                shard: shard(index),
            });
        }
        events.tell(stopped(7));
        events.tell(stopped(5));
        events.tell(stopped(7));
        drop(events);
        let mut told = Vec::new();
        while let Some(event) = taken.next().await {
            told.push(match event {
                GroupEvent::Stopped { shard, .. } => (shard.value(), true),
                GroupEvent::Finished { shard } => (shard.value(), false),
                other => panic!("{other:?}"),
            });
        }
        assert_eq!(told, [(0, false), (1, false), (5, true), (7, true)]);
    }
}
