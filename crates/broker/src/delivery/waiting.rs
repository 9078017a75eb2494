//! Waiting until a runner has done what it was told.

use std::sync::Arc;
use std::time::Duration;

use flumen_record::DeliveryName;

use super::registry::Entry;
use super::{DeliveryDescription, DeliveryEnd};
use crate::Error;
use crate::node::Node;

impl Node {
    /// [`crate::Broker::flush_delivery`].
    pub(crate) async fn flush_delivery(
        self: &Arc<Self>,
        name: &DeliveryName,
        wait: Duration,
    ) -> Result<DeliveryDescription, Error> {
        self.check_serving()?;
        self.deliveries.check()?;
        self.deliveries.checks()?;
        let entry = self.deliveries.get(name)?;
        entry.check_stays()?;
        check_runs(&entry)?;
        let mut asked = 0;
        entry.order(|orders| {
            orders.flush += 1;
            asked = orders.flush;
        });
        let flushed = async {
            let mut reports = entry.report.subscribe();
            // Its sender is in the entry, which is ours.
            let _ = reports.wait_for(|report| report.flushed >= asked).await;
        };
        let interrupted = async {
            let mut orders = entry.orders.subscribe();
            let stopped = orders.wait_for(|orders| orders.paused || orders.ending.is_some());
            let _ = stopped.await;
            check_runs(&entry)?;
            entry.check_stays()
        };
        tokio::select! {
            biased;
            () = flushed => {}
            refused = interrupted => refused?,
            ended = self.patience(&entry, "flush", wait) => return Err(ended),
        }
        Ok(self.describe_entry(&entry))
    }

    /// [`crate::Broker::renew_delivery`].
    pub(crate) async fn renew_delivery(
        self: &Arc<Self>,
        name: &DeliveryName,
        wait: Duration,
    ) -> Result<DeliveryDescription, Error> {
        self.check_serving()?;
        self.deliveries.check()?;
        self.deliveries.checks()?;
        let entry = self.deliveries.get(name)?;
        entry.check_stays()?;
        self.resume_delivery(name, true).await?;
        let asked = entry.orders().renew;
        let renewed = async {
            let mut reports = entry.report.subscribe();
            // Its sender is in the entry, which is ours.
            let _ = reports.wait_for(|report| report.renewed >= asked).await;
        };
        let interrupted = async {
            let mut orders = entry.orders.subscribe();
            let stopped = orders.wait_for(|orders| orders.paused || orders.ending.is_some());
            let _ = stopped.await;
            check_runs(&entry)?;
            entry.check_stays()
        };
        tokio::select! {
            biased;
            () = renewed => {}
            refused = interrupted => refused?,
            ended = self.patience(&entry, "new incarnation", wait) => return Err(ended),
        }
        Ok(self.describe_entry(&entry))
    }

    /// [`crate::Broker::delete_delivery`].
    pub(crate) async fn delete_delivery(
        self: &Arc<Self>,
        name: &DeliveryName,
        end: DeliveryEnd,
        wait: Duration,
    ) -> Result<(), Error> {
        let entry = self.end_delivery(name, end).await?;
        let mut gone = entry.gone.subscribe();
        tokio::select! {
            biased;
            _ = gone.wait_for(|gone| *gone) => Ok(()),
            ended = self.patience(&entry, "deletion", wait) => Err(ended),
        }
    }

    /// Returns when it is not waited for any longer, with what is to be said then.
    async fn patience(&self, entry: &Entry, work: &'static str, wait: Duration) -> Error {
        let mut stop = self.stop.subscribe();
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => Error::Draining,
            () = self.clock.sleep(wait) => {
                let report = entry.report.borrow();
                let last_error = report.last_error.as_ref().filter(|error| error.times > 0);
                Error::DeliveryUnfinished {
                    delivery: entry.name.clone(),
                    work,
                    waited: wait,
                    last_error: last_error.map(|error| error.text.clone()),
                }
            }
        }
    }
}

/// [`Error::DeliveryPaused`] while it is.
fn check_runs(entry: &Entry) -> Result<(), Error> {
    if entry.orders().paused {
        return Err(Error::DeliveryPaused {
            delivery: entry.name.clone(),
        });
    }
    Ok(())
}
