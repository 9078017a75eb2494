//! `flumen.v1.Delivery`: delivery streams, what is set about them and how they do.

mod description;
mod settings;

use std::time::Duration;

use flumen_api::convert::{ConvertError, delivery_name};
use flumen_api::v1;
use flumen_broker::{
    Broker, Clock, DeliveryDescription, DeliveryEnd, DeliverySettings, Error, NewDelivery,
};

use crate::drain::Drain;
use crate::status::Facts;

pub use settings::{delivery_settings, wire_delivery_settings};

/// Delivery streams listed when the caller does not say how many.
const LISTED: u32 = 100;
/// Delivery streams listed at most.
const LISTED_MAX: u32 = 1_000;
/// How long a flush or a deletion is waited for when the caller does not say.
const WAIT: Duration = Duration::from_secs(60);
/// And at most.
const WAIT_MAX: Duration = Duration::from_secs(3_600);

pub(crate) async fn create(
    broker: &Broker,
    request: v1::CreateDeliveryRequest,
) -> Result<v1::CreateDeliveryResponse, Facts> {
    let new = NewDelivery {
        name: delivery_name("delivery", &request.delivery)?,
        settings: understood(request.settings)?,
    };
    let delivery = broker.create_delivery(new).await?;
    Ok(v1::CreateDeliveryResponse {
        delivery: described(&delivery),
    })
}

fn understood(settings: Option<v1::DeliverySettings>) -> Result<DeliverySettings, ConvertError> {
    delivery_settings(settings.ok_or(ConvertError::Missing { field: "settings" })?)
}

fn described(delivery: &DeliveryDescription) -> Option<v1::DeliveryDescription> {
    Some(description::describe(delivery, Clock::system().now()))
}

pub(crate) fn describe(
    broker: &Broker,
    request: &v1::DescribeDeliveryRequest,
) -> Result<v1::DescribeDeliveryResponse, Facts> {
    let name = delivery_name("delivery", &request.delivery)?;
    let delivery = broker.describe_delivery(&name)?;
    Ok(v1::DescribeDeliveryResponse {
        delivery: described(&delivery),
    })
}

pub(crate) fn list(
    broker: &Broker,
    request: &v1::ListDeliveriesRequest,
) -> Result<v1::ListDeliveriesResponse, Facts> {
    let after = match request.after.as_str() {
        "" => None,
        name => Some(delivery_name("after", name)?),
    };
    let limit = match request.limit {
        0 => LISTED,
        limit if limit > LISTED_MAX => {
            return Err(Facts::from(Error::OutOfBounds {
                setting: "limit",
                value: u64::from(limit),
                min: 1,
                max: u64::from(LISTED_MAX),
            }));
        }
        limit => limit,
    };
    let (deliveries, more) = broker.list_deliveries(after.as_ref(), limit as usize)?;
    let now = Clock::system().now();
    let deliveries = deliveries.iter().map(|one| description::describe(one, now));
    Ok(v1::ListDeliveriesResponse {
        deliveries: deliveries.collect(),
        more,
    })
}

pub(crate) async fn update(
    broker: &Broker,
    request: v1::UpdateDeliveryRequest,
) -> Result<v1::UpdateDeliveryResponse, Facts> {
    let name = delivery_name("delivery", &request.delivery)?;
    let version = (request.version > 0).then_some(request.version);
    let settings = understood(request.settings)?;
    let delivery = broker.update_delivery(&name, version, settings).await?;
    Ok(v1::UpdateDeliveryResponse {
        delivery: described(&delivery),
    })
}

pub(crate) async fn pause(
    broker: &Broker,
    request: v1::PauseDeliveryRequest,
) -> Result<v1::PauseDeliveryResponse, Facts> {
    let name = delivery_name("delivery", &request.delivery)?;
    let delivery = broker.pause_delivery(&name).await?;
    Ok(v1::PauseDeliveryResponse {
        delivery: described(&delivery),
    })
}

pub(crate) async fn resume(
    broker: &Broker,
    drain: &Drain,
    request: v1::ResumeDeliveryRequest,
) -> Result<v1::ResumeDeliveryResponse, Facts> {
    let name = delivery_name("delivery", &request.delivery)?;
    let wait = wait(request.wait_us)?;
    let delivery = if request.new_incarnation {
        until_drain(drain, broker.renew_delivery(&name, wait)).await?
    } else {
        broker.resume_delivery(&name).await?
    };
    Ok(v1::ResumeDeliveryResponse {
        delivery: described(&delivery),
    })
}

pub(crate) async fn flush(
    broker: &Broker,
    drain: &Drain,
    request: v1::FlushDeliveryRequest,
) -> Result<v1::FlushDeliveryResponse, Facts> {
    let name = delivery_name("delivery", &request.delivery)?;
    let wait = wait(request.wait_us)?;
    let delivery = until_drain(drain, broker.flush_delivery(&name, wait)).await?;
    Ok(v1::FlushDeliveryResponse {
        delivery: described(&delivery),
    })
}

pub(crate) async fn delete(
    broker: &Broker,
    drain: &Drain,
    request: v1::DeleteDeliveryRequest,
) -> Result<v1::DeleteDeliveryResponse, Facts> {
    let name = delivery_name("delivery", &request.delivery)?;
    let end = if request.drop {
        DeliveryEnd::Drop
    } else {
        DeliveryEnd::Flush
    };
    let wait = wait(request.wait_us)?;
    until_drain(drain, broker.delete_delivery(&name, end, wait)).await?;
    Ok(v1::DeleteDeliveryResponse {})
}

fn wait(micros: Option<u64>) -> Result<Duration, Facts> {
    let wait = micros.map_or(WAIT, Duration::from_micros);
    if wait > WAIT_MAX {
        return Err(Facts::from(Error::OutOfBounds {
            setting: "wait_us",
            value: micros.unwrap_or_default(),
            min: 0,
            max: u64::try_from(WAIT_MAX.as_micros()).unwrap_or(u64::MAX),
        }));
    }
    Ok(wait)
}

/// A server that goes away does not wait for a destination that is slow: what was asked goes on after
/// its next start.
async fn until_drain<T>(
    drain: &Drain,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::select! {
        biased;
        done = work => done,
        () = drain.started() => Err(Error::Draining),
    }
}
