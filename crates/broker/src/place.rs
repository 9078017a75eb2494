//! Looking whether the data directory is still where it was opened, also while nothing is written.

use std::sync::Arc;
use std::time::Duration;

use flumen_log::LogReader;

use crate::node::{Node, on_blocking_thread};

/// Starts the loop, where the data directory can go at all. It ends with the node.
pub(crate) fn start(node: &Arc<Node>) {
    let interval = Duration::from_millis(node.config.log.place_look_ms);
    if interval.is_zero() || !node.storage.has_a_place() {
        return;
    }
    let mut stop = node.stop.subscribe();
    let (world, clock) = (Arc::clone(&node.world), node.clock.clone());
    let node = Arc::downgrade(node);
    world.task(Box::pin(async move {
        loop {
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                () = clock.sleep(interval) => {}
            }
            let Some(node) = node.upgrade() else { return };
            let world = Arc::clone(&node.world);
            // What is gone is remembered by the storage; a poisoned log has been told of.
            let looked = on_blocking_thread(&*world, move || Ok(node.is_in_place())).await;
            if looked == Ok(false) {
                return;
            }
        }
    }));
}

impl Node {
    /// Whether nothing is gone. Blocks.
    fn is_in_place(&self) -> bool {
        if let Err(gone) = self.storage.look("") {
            tracing::error!(%gone, "data directory: nothing is written any more");
            self.storage.lose(gone);
            return false;
        }
        let now = self.clock.now();
        let lanes = self.lanes.all();
        let of_lanes = lanes.iter().map(|lane| lane.reader());
        let own = [self.groups.reader(), self.deliveries.reader()];
        let mut readers = of_lanes.chain(own.into_iter().flatten());
        readers.all(|reader: &LogReader| reader.is_in_place(now))
    }
}
