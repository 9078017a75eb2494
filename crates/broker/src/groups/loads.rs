//! Tells groups how much their shards take, so that the loaded ones are spread.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use flumen_record::{ShardIndex, StreamId};
use flumen_stream::group::Event;

use crate::Error;
use crate::node::Node;

/// How often loads are told. One that is older than a few of these is no reason to move a shard.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// Bytes that shards had taken, by stream.
type Taken = BTreeMap<StreamId, BTreeMap<ShardIndex, u64>>;

/// Starts the loop. It ends with the node.
pub(crate) fn start(node: &Arc<Node>) {
    let mut stop = node.stop.subscribe();
    let clock = node.clock.clone();
    let groups = Arc::clone(&node.groups);
    let (here, node) = (node, Arc::downgrade(node));
    here.background(async move {
        let mut before = Taken::new();
        loop {
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                // Nobody has a lease whose place could depend on it.
                () = groups.busy.notified(), if !groups.has_sessions() => {}
                () = clock.sleep(TELL_EVERY), if groups.has_sessions() => {}
            }
            let Some(node) = node.upgrade() else { return };
            if !groups.has_sessions() {
                before.clear();
                continue;
            }
            // A thread that has ended has said why; this is no news.
            let _ = node.tell_loads(&mut before).await;
        }
    });
}

impl Node {
    async fn tell_loads(&self, before: &mut Taken) -> Result<(), Error> {
        let known: Vec<StreamId> = self
            .groups
            .look(|coordinator| coordinator.streams().collect())
            .await?;
        let mut now = Taken::new();
        for stream in self.streams.all() {
            let state = stream.state();
            let id = state.info.id;
            if known.binary_search(&id).is_err() {
                continue;
            }
            let taken: BTreeMap<ShardIndex, u64> = state
                .shards
                .iter()
                .map(|shard| (shard.id.index(), shard.tail.load.taken().0))
                .collect();
            if let Some(before) = before.get(&id) {
                let per_second = |(shard, bytes): (&ShardIndex, &u64)| {
                    let before = before.get(shard).copied().unwrap_or(*bytes);
                    let rate = bytes.saturating_sub(before) / TELL_EVERY.as_secs();
                    (*shard, rate)
                };
                let loads = taken.iter().map(per_second).collect();
                self.groups.say(Event::LoadObserved { stream: id, loads })?;
            }
            now.insert(id, taken);
        }
        *before = now;
        Ok(())
    }
}
