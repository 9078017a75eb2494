//! Ending in order.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::Error;
use crate::hold::ask;
use crate::lane::Control;
use crate::node::{Node, on_blocking_thread};
use flumen_world::lock;

impl Node {
    /// [`crate::Broker::shutdown`]. A second call waits for the first and finds nothing to do.
    pub(crate) async fn shutdown(self: &Arc<Self>) -> Result<(), Error> {
        self.draining.store(true, Ordering::Release);
        self.stop.send_replace(true);
        self.stir_readers();
        let node = Arc::clone(self);
        // Carried through even when who asked does not wait.
        let ending = self.world.join(async move { node.end().await });
        ending.await.unwrap_or(Err(Error::Draining))
    }

    async fn end(self: &Arc<Self>) -> Result<(), Error> {
        // What runs beside comes to its end first: nothing of it is left when this returns.
        self.alone().await;
        let _no_more_changes = self.changes.lock().await;
        self.lanes.finish_housekeeping().await;
        for housekeeping in [
            &self.catalog_housekeeping,
            &self.groups_housekeeping,
            &self.deliveries_housekeeping,
        ] {
            let housekeeping = lock(housekeeping).take();
            housekeeping.finish().await;
        }
        // Members are told by their sessions, which drain; what they said before is decided.
        let mut result = self.groups.close().await;
        for lane in self.lanes.all() {
            // A lane that has ended before has said why then.
            let closed = ask(&lane, Control::Shutdown).await.unwrap_or(Ok(()));
            result = result.and(closed);
        }
        self.groups.ended().await;
        for lane in self.lanes.all() {
            lane.ended().await;
        }
        let node = Arc::clone(self);
        on_blocking_thread(&*self.world, move || {
            let now = node.clock.now();
            let deliveries = node.deliveries.close(now);
            // All others are closed: the catalog vouches for everything they hold.
            node.vouch(true);
            let catalog = lock(&node.catalog).take();
            let closed = catalog.map_or(Ok(()), |catalog| Ok(catalog.close(now)?));
            node.remember_clock();
            closed.and(deliveries)
        })
        .await?;
        // Also when it went after the last look of every log.
        let gone = self.storage.look("").err().or_else(|| self.storage.gone());
        gone.map_or(result, |gone| Err(gone.into()))
    }
}
