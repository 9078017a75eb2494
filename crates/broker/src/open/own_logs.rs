//! Opening what the node itself remembers beside the catalog: consumer groups and delivery streams.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use flumen_log::{LogKey, Storage};
use flumen_stream::delivery::{DeliveryLog, DeliveryLogError};
use flumen_stream::group::{Coordinator, GroupLog, GroupLogError};
use flumen_stream::{Catalog, Vouched};

use super::{OpenError, refusal_of, refused};
use crate::delivery::Deliveries;
use crate::{BrokerConfig, Clock, Error};

/// Why a log with damaged records is not served, and the way out.
struct Damaged<E>(E);

impl<E: fmt::Display> fmt::Display for Damaged<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way =
            "put the folder back as it was, or let `flumen doctor repair` keep what is intact";
        write!(f, "{}; {way}", self.0)
    }
}

/// Opens the log of consumer groups, or says why it is not served.
pub(super) fn open_groups(
    storage: &Arc<dyn Storage>,
    config: &BrokerConfig,
    clock: &Clock,
    catalog: &Catalog,
) -> Result<Result<(GroupLog, Coordinator), Error>, OpenError> {
    let key = LogKey::GROUPS;
    let voucher = catalog.vouched(key).and_then(Vouched::voucher);
    let opened = GroupLog::open_vouched(
        Arc::clone(storage),
        config.groups.clone(),
        clock.now(),
        clock.monotonic(),
        voucher,
    );
    let (mut log, coordinator, recovery) = match opened {
        Ok(opened) => opened,
        Err(GroupLogError::Open(error)) => {
            return refusal_of(key, &error).map_or(Err(error.into()), |why| Ok(Err(why)));
        }
        Err(error @ (GroupLogError::Damaged { .. } | GroupLogError::Read(_))) => {
            return Ok(Err(refused(key, &Damaged(error))));
        }
        Err(error) => return Err(error.into()),
    };
    catalog.check_named(recovery.catalog_named)?;
    log.know_catalog(catalog.last_record());
    if let Err(error) = log.begin(clock.now()) {
        tracing::warn!(%error, "consumer-group ledger: no first round; nobody vouches for it yet");
    }
    Ok(Ok((log, coordinator)))
}

/// Opens the log of delivery streams. One that is not served answers why.
pub(super) fn open_deliveries(
    storage: &Arc<dyn Storage>,
    config: &BrokerConfig,
    clock: &Clock,
    catalog: &Catalog,
    catalog_record: &Arc<AtomicU64>,
) -> Result<Deliveries, OpenError> {
    let key = LogKey::DELIVERIES;
    let config = config.delivery.clone();
    let voucher = catalog.vouched(key).and_then(Vouched::voucher);
    let now = clock.now();
    let opened = DeliveryLog::open_vouched(Arc::clone(storage), config.clone(), now, voucher);
    let (mut log, recovery) = match opened {
        Ok(opened) => opened,
        Err(DeliveryLogError::Open(error)) => {
            let refused = |why| Ok(Deliveries::refused(config, why));
            return refusal_of(key, &error).map_or(Err(error.into()), refused);
        }
        Err(error @ (DeliveryLogError::Damaged { .. } | DeliveryLogError::Read(_))) => {
            return Ok(Deliveries::refused(config, refused(key, &Damaged(error))));
        }
        Err(error) => return Err(error.into()),
    };
    catalog.check_named(recovery.catalog_named)?;
    log.know_catalog(catalog.last_record());
    if let Err(error) = log.begin(now) {
        tracing::warn!(%error, "delivery-stream ledger: no first round; nobody vouches for it yet");
    }
    let named = Arc::clone(catalog_record);
    Deliveries::of(log, config, named, now, |stream| {
        catalog.stream(stream).is_some()
    })
}
