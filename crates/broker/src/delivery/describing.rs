//! What can be seen of delivery streams, all of it from memory.

use std::sync::Arc;

use flumen_record::DeliveryName;

use super::registry::Entry;
use super::{DeliveryBacklog, DeliveryDescription};
use crate::Error;
use crate::groups::backlog;
use crate::node::Node;
use flumen_world::lock;

impl Node {
    /// [`crate::Broker::describe_delivery`].
    pub(crate) fn describe_delivery(
        &self,
        name: &DeliveryName,
    ) -> Result<DeliveryDescription, Error> {
        Ok(self.describe_entry(&*self.deliveries.get(name)?))
    }

    /// [`crate::Broker::list_deliveries`].
    pub(crate) fn list_deliveries(
        &self,
        after: Option<&DeliveryName>,
        limit: usize,
    ) -> Result<(Vec<DeliveryDescription>, bool), Error> {
        self.deliveries.check_open()?;
        let (page, more) = self.deliveries.page(after, limit);
        let page = page.iter().map(|entry| self.describe_entry(entry));
        Ok((page.collect(), more))
    }

    pub(super) fn describe_entry(&self, entry: &Entry) -> DeliveryDescription {
        let orders = entry.orders();
        // Not within the value below: there they would be locked to its end.
        let updated = lock(&entry.standing).updated;
        let report = entry.report.borrow().clone();
        DeliveryDescription {
            id: entry.id,
            name: entry.name.clone(),
            stream: entry.stream.clone(),
            version: orders.version,
            settings: Arc::clone(&orders.settings),
            paused: orders.paused,
            created: entry.created,
            updated,
            report,
            backlog: self.delivery_backlog(entry),
            counts: entry.counters.read(),
        }
    }

    /// What is not delivered yet.
    fn delivery_backlog(&self, entry: &Entry) -> DeliveryBacklog {
        let (positions, oldest, expired) = {
            let standing = lock(&entry.standing);
            let positions = standing.positions.clone();
            (positions, standing.oldest, standing.expired)
        };
        let mut all = DeliveryBacklog {
            expired,
            ..DeliveryBacklog::default()
        };
        let Ok(stream) = self.streams.get(&entry.stream) else {
            return all;
        };
        let mut found = None;
        for shard in &stream.state().shards {
            let horizon = shard.bounds().trim_horizon;
            let from = positions.get(&shard.id.index()).copied();
            let here = backlog(shard, from.unwrap_or(horizon).max(horizon));
            if here.records == 0 {
                continue;
            }
            all.records += here.records;
            all.bytes += here.bytes;
            found = match (found, here.oldest) {
                (Some(found), Some(here)) => Some(here.min(found)),
                (found, here) => found.or(here),
            };
        }
        if all.records > 0 {
            all.oldest = oldest.or(found);
        }
        all
    }
}
