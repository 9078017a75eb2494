//! What the durable changes add up to.

use std::collections::BTreeMap;

use bytes::Bytes;
use flumen_record::{DeliveryId, DeliveryName, SequenceNumber, ShardId, Timestamp};

use super::DeliveryChange;

/// How a delivery stream that is being deleted ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeliveryEnding {
    /// What is there is delivered first.
    Flush,
    /// At once.
    Drop,
}

/// What a delivery stream is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryDefinition {
    /// Its name, which never changes.
    pub name: DeliveryName,
    /// When it was created.
    pub created: Timestamp,
    /// When its settings last changed.
    pub updated: Timestamp,
    /// Counts changes of the settings, from 1.
    pub version: u64,
    /// Nothing is delivered while this holds.
    pub paused: bool,
    /// It is being deleted.
    pub ending: Option<DeliveryEnding>,
    /// Its settings, as whoever runs it understands them.
    pub settings: Bytes,
}

/// How far a delivery stream came.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeliveryProgress {
    /// As whoever runs it understands them; empty at first.
    pub bytes: Bytes,
    /// Retention waits for these shards' records from there on.
    pub held: Vec<(ShardId, SequenceNumber)>,
}

/// A delivery stream as it is remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredDelivery {
    /// What it is to do.
    pub definition: DeliveryDefinition,
    /// How far it came.
    pub progress: DeliveryProgress,
}

/// All that is durable.
#[derive(Debug, Clone, Default)]
pub(super) struct State {
    pub(super) deliveries: BTreeMap<DeliveryId, StoredDelivery>,
    pub(super) names: BTreeMap<DeliveryName, DeliveryId>,
    /// The highest number ever given.
    pub(super) last: DeliveryId,
    /// Older records are gone, and the snapshot that stands for them has not been read to its end:
    /// what a change is about may come later.
    pub(super) is_partial: bool,
}

impl State {
    /// Which has this name.
    pub(super) fn named(&self, name: &DeliveryName) -> Option<DeliveryId> {
        self.names.get(name).copied()
    }

    /// Does what a change says; the error says why it does not follow from those before it.
    pub(super) fn apply(&mut self, change: &DeliveryChange) -> Result<(), &'static str> {
        match change {
            DeliveryChange::Set { id, definition } => {
                let known = self.deliveries.get(id);
                if known.is_none() && *id <= self.last && !self.is_partial {
                    return Err("its number was given before");
                }
                let progress = known.map(|known| known.progress.clone());
                let stored = StoredDelivery {
                    definition: definition.clone(),
                    progress: progress.unwrap_or_default(),
                };
                self.put(*id, stored)
            }
            DeliveryChange::Progress { id, progress } => {
                match self.deliveries.get_mut(id) {
                    Some(known) => known.progress = progress.clone(),
                    // It is in the snapshot that follows.
                    None if self.is_partial => {}
                    None => return Err(UNKNOWN),
                }
                Ok(())
            }
            DeliveryChange::Removed { id } => match self.deliveries.remove(id) {
                Some(gone) => {
                    self.names.remove(&gone.definition.name);
                    Ok(())
                }
                None if self.is_partial => Ok(()),
                None => Err(UNKNOWN),
            },
            DeliveryChange::SnapshotBegin { last } => {
                self.last = self.last.max(*last);
                Ok(())
            }
            DeliveryChange::SnapshotDelivery { id, stored } => self.put(*id, stored.clone()),
            DeliveryChange::SnapshotEnd { deliveries } => {
                if self.deliveries.len() as u64 != *deliveries {
                    return Err("the snapshot it ends is not complete");
                }
                self.is_partial = false;
                Ok(())
            }
        }
    }

    fn put(&mut self, id: DeliveryId, stored: StoredDelivery) -> Result<(), &'static str> {
        let name = &stored.definition.name;
        let renamed = self
            .deliveries
            .get(&id)
            .is_some_and(|known| known.definition.name != *name);
        if renamed {
            return Err("it has another name than before");
        }
        if self.named(name).is_some_and(|taken| taken != id) {
            return Err("another delivery stream has its name");
        }
        self.names.insert(name.clone(), id);
        self.last = self.last.max(id);
        self.deliveries.insert(id, stored);
        Ok(())
    }
}

const UNKNOWN: &str = "it is about a delivery stream that does not exist";
