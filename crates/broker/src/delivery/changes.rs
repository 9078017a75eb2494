//! Create, update, pause, resume, delete: one at a time with the changes of streams, each durable
//! before its runner is told.

use std::sync::Arc;

use bytes::Bytes;
use flumen_record::{DeliveryName, SequenceNumber, StreamName};
use flumen_stream::delivery::{DeliveryDefinition, DeliveryEnding};
use flumen_stream::{NewStream, StreamSettings};

use super::registry::{Entry, backing_stream};
use super::{
    DeliveryDescription, DeliveryEnd, DeliverySettings, DeliverySource, NewDelivery, SettingRefused,
};
use crate::Error;
use crate::node::{Node, on_blocking_thread};
use flumen_world::lock;

impl Node {
    /// [`crate::Broker::create_delivery`].
    pub(crate) async fn create_delivery(
        self: &Arc<Self>,
        new: NewDelivery,
    ) -> Result<DeliveryDescription, Error> {
        self.change(|node| async move { node.create_a_delivery(new).await })
            .await
    }

    /// [`crate::Broker::update_delivery`].
    pub(crate) async fn update_delivery(
        self: &Arc<Self>,
        name: &DeliveryName,
        version: Option<u64>,
        settings: DeliverySettings,
    ) -> Result<DeliveryDescription, Error> {
        let name = name.clone();
        self.change(|node| async move { node.update_a_delivery(&name, version, settings).await })
            .await
    }

    /// [`crate::Broker::pause_delivery`].
    pub(crate) async fn pause_delivery(
        self: &Arc<Self>,
        name: &DeliveryName,
    ) -> Result<DeliveryDescription, Error> {
        let name = name.clone();
        self.change(|node| async move {
            let entry = node.deliveries.get(&name)?;
            entry.check_stays()?;
            if !entry.orders().paused {
                node.define(&entry, |definition| definition.paused = true)
                    .await?;
                entry.order(|orders| orders.paused = true);
            }
            Ok(node.describe_entry(&entry))
        })
        .await
    }

    /// [`crate::Broker::resume_delivery`], or the beginning of [`crate::Broker::renew_delivery`].
    pub(crate) async fn resume_delivery(
        self: &Arc<Self>,
        name: &DeliveryName,
        renew: bool,
    ) -> Result<DeliveryDescription, Error> {
        let name = name.clone();
        self.change(|node| async move {
            let entry = node.deliveries.get(&name)?;
            if entry.orders().paused {
                node.define(&entry, |definition| definition.paused = false)
                    .await?;
            }
            entry.order(|orders| {
                orders.paused = false;
                orders.tries += 1;
                orders.renew += u64::from(renew);
            });
            Ok(node.describe_entry(&entry))
        })
        .await
    }

    async fn create_a_delivery(
        self: Arc<Self>,
        new: NewDelivery,
    ) -> Result<DeliveryDescription, Error> {
        let NewDelivery { name, settings } = new;
        self.check_settings(&name, &settings)?;
        if self.deliveries.get(&name).is_ok() {
            return Err(Error::DeliveryExists { delivery: name });
        }
        let encoded = encode(&settings)?;
        let backing = match &settings.source {
            DeliverySource::Stream { stream, .. } => {
                self.streams.get(&stream.0)?;
                None
            }
            DeliverySource::Direct { shards } => self.open_backing(&name, *shards).await?,
        };
        let (node, now, new_name) = (Arc::clone(&self), self.clock.now(), name.clone());
        let stored = on_blocking_thread(&*self.world, move || {
            node.deliveries.with_log(&new_name, |log| {
                let id = log.create(new_name.clone(), encoded, now)?;
                Ok((id, log.get(id).cloned()))
            })
        })
        .await;
        let (id, stored) = match stored {
            Ok((id, stored)) => (id, stored.expect("BUG: what was created is not there")),
            Err(error) => {
                if let Some(backing) = backing
                    && error != Error::DeliveriesFailed
                    && let Err(error) = self.delete_unchecked(&backing).await
                {
                    tracing::warn!(stream = %backing, %error, "a stream without a delivery stream is left");
                }
                return Err(error);
            }
        };
        let entry = Arc::new(Entry::new(id, stored, settings));
        self.deliveries.add(Arc::clone(&entry));
        Ok(self.describe_entry(&entry))
    }

    /// Creates the stream that takes direct puts; its name if that is new. One that was left by a
    /// creation which did not come to its end is taken over: nothing was ever put there.
    async fn open_backing(
        self: &Arc<Self>,
        delivery: &DeliveryName,
        shards: u32,
    ) -> Result<Option<StreamName>, Error> {
        let name = backing_stream(delivery);
        if let Ok(stream) = self.streams.get(&name) {
            let state = stream.state();
            let is_fresh = state
                .shards
                .iter()
                .all(|shard| shard.bounds().durable_end == SequenceNumber::ZERO);
            self.deliveries.check_unused(&name)?;
            return if is_fresh {
                Ok(None)
            } else {
                Err(Error::StreamExists { stream: name })
            };
        }
        let new = NewStream {
            name: name.clone(),
            shards,
            settings: StreamSettings::default(),
        };
        Arc::clone(self).create(new).await?;
        Ok(Some(name))
    }

    async fn update_a_delivery(
        self: Arc<Self>,
        name: &DeliveryName,
        version: Option<u64>,
        settings: DeliverySettings,
    ) -> Result<DeliveryDescription, Error> {
        let entry = self.deliveries.get(name)?;
        entry.check_stays()?;
        let before = entry.orders();
        if let Some(expected) = version
            && expected != before.version
        {
            return Err(Error::DeliveryVersion {
                expected,
                current: before.version,
            });
        }
        check_unchanged(&before.settings, &settings)?;
        self.check_settings(name, &settings)?;
        let encoded = encode(&settings)?;
        let now = self.clock.now();
        let version = before.version.saturating_add(1);
        self.define(&entry, move |definition| {
            definition.settings = encoded;
            definition.version = version;
            definition.updated = now;
        })
        .await?;
        lock(&entry.standing).updated = now;
        entry.order(|orders| {
            orders.version = version;
            orders.settings = Arc::new(settings);
            orders.tries += 1;
        });
        Ok(self.describe_entry(&entry))
    }

    /// Whether settings can be run.
    fn check_settings(
        &self,
        name: &DeliveryName,
        settings: &DeliverySettings,
    ) -> Result<(), Error> {
        self.deliveries.check()?;
        let checks = self.deliveries.checks()?;
        checks.check(name, settings)?;
        if let Some(dead_letters) = &settings.dead_letters {
            let stream = &dead_letters.0;
            self.streams.get(stream)?;
            let reads = match &settings.source {
                DeliverySource::Stream { stream, .. } => stream.0.clone(),
                DeliverySource::Direct { .. } => backing_stream(name),
            };
            if *stream == reads {
                return Err(Error::DeliverySetting {
                    setting: "dead_letters",
                    reason: "it is the stream that is read; name another one".to_owned(),
                });
            }
        }
        Ok(())
    }

    /// Changes what is durable of a delivery stream, but for its progress.
    async fn define(
        self: &Arc<Self>,
        entry: &Arc<Entry>,
        change: impl FnOnce(&mut DeliveryDefinition) + Send + 'static,
    ) -> Result<(), Error> {
        let (node, entry) = (Arc::clone(self), Arc::clone(entry));
        on_blocking_thread(&*self.world, move || {
            let now = node.clock.now();
            node.deliveries.with_log(&entry.name, |log| {
                let known = log.get(entry.id).map(|known| known.definition.clone());
                let mut definition = known.expect("BUG: a delivery stream that its log forgot");
                change(&mut definition);
                log.set(entry.id, definition, now)
            })
        })
        .await
    }

    /// [`crate::Broker::delete_delivery`], without waiting for its runner.
    pub(super) async fn end_delivery(
        self: &Arc<Self>,
        name: &DeliveryName,
        end: DeliveryEnd,
    ) -> Result<Arc<Entry>, Error> {
        let name = name.clone();
        self.change(|node| async move {
            let entry = node.deliveries.get(&name)?;
            let orders = entry.orders();
            if orders.ending == Some(end) || orders.ending == Some(DeliveryEnd::Drop) {
                return Ok(entry);
            }
            if orders.paused && end == DeliveryEnd::Flush {
                return Err(Error::DeliveryPaused { delivery: name });
            }
            let ending = match end {
                DeliveryEnd::Flush => DeliveryEnding::Flush,
                DeliveryEnd::Drop => DeliveryEnding::Drop,
            };
            node.define(&entry, move |definition| {
                definition.ending = Some(ending);
                definition.paused = false;
            })
            .await?;
            entry.order(|orders| {
                orders.ending = Some(end);
                orders.paused = false;
            });
            Ok(entry)
        })
        .await
    }

    /// Its runner is done with a deletion: the stream of direct puts goes, then the delivery stream
    /// itself. What a crash leaves in between is finished by the next start, or the next call.
    pub(super) async fn remove_delivery(self: &Arc<Self>, entry: &Arc<Entry>) -> Result<(), Error> {
        let entry = Arc::clone(entry);
        self.change(|node| async move {
            if *entry.gone.borrow() {
                return Ok(());
            }
            if entry.is_direct() && node.streams.get(&entry.stream).is_ok() {
                node.delete_unchecked(&entry.stream).await?;
            }
            let (removing, removed) = (Arc::clone(&node), Arc::clone(&entry));
            on_blocking_thread(&*node.world, move || {
                let now = removing.clock.now();
                removing.deliveries.with_log(&removed.name, |log| {
                    log.remove(removed.id, now)?;
                    // Before the log is free again: nobody saves what it has forgotten.
                    removing.deliveries.remove(&removed);
                    Ok(())
                })
            })
            .await
        })
        .await
    }
}

/// Settings as they are stored.
fn encode(settings: &DeliverySettings) -> Result<Bytes, Error> {
    let encoded = serde_json::to_vec(settings).map_err(|error| Error::DeliverySetting {
        setting: "settings",
        reason: error.to_string(),
    })?;
    Ok(Bytes::from(encoded))
}

/// What is set at creation stays.
fn check_unchanged(before: &DeliverySettings, after: &DeliverySettings) -> Result<(), Error> {
    let setting = if before.source != after.source {
        "source"
    } else if before.partitioning.is_some() != after.partitioning.is_some() {
        "partitioning"
    } else {
        return Ok(());
    };
    Err(Error::DeliveryImmutable { setting })
}

impl From<SettingRefused> for Error {
    fn from(refused: SettingRefused) -> Self {
        Self::DeliverySetting {
            setting: refused.setting,
            reason: refused.reason,
        }
    }
}
