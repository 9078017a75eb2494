//! `flumen.v1.Consumer`: reading shards, asked for or pushed.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use flumen_api::convert::{ConvertError, group_name, stream_name};
use flumen_api::v1;
use flumen_broker::{
    Broker, Delivery, Error, LeaseGuard, ReadBudget, ShardDescription, StartPosition, StreamRef,
    Subscription,
};
use flumen_record::{SequenceNumber, ShardIndex, Timestamp};
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::call::meant;
use crate::drain::{Drain, DrainWait};
use crate::frames;
use crate::response::Replies;
use crate::status::Facts;

/// Bytes of a reply when the caller does not say how many.
const REPLY_BYTES: u64 = 1 << 20;

/// A subscription that has nothing to send looks this often whether its leases still stand.
const LEASE_CHECK: Duration = Duration::from_millis(250);

/// The pieces of one reply.
pub(crate) async fn read(
    broker: &Broker,
    drain: &Drain,
    request: v1::ReadRequest,
) -> Result<VecDeque<Bytes>, Facts> {
    let name = stream_name("stream", &request.stream)?;
    let stream = meant(&name, request.stream_incarnation);
    let shard = ShardIndex::new(request.shard);
    let start = start_position("start", request.start.as_ref())?;
    let budget = budget(request.max_bytes, request.max_records);
    let wait = Duration::from_micros(request.max_wait_us);
    let lease = match &request.lease {
        Some(named) => Some(lease(broker, stream, shard, named)?),
        None => None,
    };
    let reply = tokio::select! {
        biased;
        reply = broker.read(stream, shard, start, budget, wait) => reply?,
        () = drain.started() => return Err(Error::Draining.into()),
    };
    // What came while it waited is not for somebody whose lease has ended meanwhile.
    lease.as_ref().map_or(Ok(()), LeaseGuard::check)?;
    let mut pieces = VecDeque::new();
    frames::reply(shard, reply, &mut pieces);
    Ok(pieces)
}

/// The lease that a reader names.
fn lease(
    broker: &Broker,
    stream: StreamRef<'_>,
    shard: ShardIndex,
    named: &v1::ReadLease,
) -> Result<LeaseGuard, Facts> {
    let group = group_name("lease.group", &named.group)?;
    Ok(broker.lease(stream, &group, shard, named.generation)?)
}

/// Opens a subscription; its replies come when they are asked for.
pub(crate) async fn subscribe(
    broker: &Broker,
    drain: &Drain,
    request: v1::SubscribeRequest,
) -> Result<SubscribeReplies, Facts> {
    let name = stream_name("stream", &request.stream)?;
    let stream = meant(&name, request.stream_incarnation);
    let mut shards = Vec::with_capacity(request.shards.len());
    let mut leases = HashMap::new();
    for one in &request.shards {
        let shard = ShardIndex::new(one.shard);
        if let Some(named) = &one.lease {
            leases.insert(shard, lease(broker, stream, shard, named)?);
        }
        let start = start_position("shards.start", one.start.as_ref())
            .map_err(|error| Facts::from(error).with("shard", shard))?;
        shards.push((shard, start));
    }
    if shards.is_empty() {
        let start = start_position("start", request.start.as_ref())?;
        let described = broker.describe_stream(stream)?;
        // Nothing new comes to closed shards; their older records are not asked for.
        let wanted = |shard: &&ShardDescription| shard.open || start != StartPosition::Latest;
        let all = described.shards.iter().filter(wanted);
        shards.extend(all.map(|shard| (shard.index, start)));
    }
    let budget = budget(request.max_bytes, 0);
    let subscription = broker.subscribe(stream, shards, budget).await?;
    let mut checks = interval(LEASE_CHECK);
    checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    Ok(SubscribeReplies {
        next: Box::pin(next(subscription)),
        draining: drain.started(),
        checks: (!leases.is_empty()).then_some(checks),
        leases,
    })
}

type Next = (Subscription, Option<Result<Delivery, Error>>);

async fn next(mut subscription: Subscription) -> Next {
    let delivery = subscription.next().await;
    (subscription, delivery)
}

/// The replies of one subscription.
pub(crate) struct SubscribeReplies {
    next: Pin<Box<dyn Future<Output = Next> + Send>>,
    draining: DrainWait,
    /// Of the shards that are read for a group.
    leases: HashMap<ShardIndex, LeaseGuard>,
    /// When to look at them; without any, never.
    checks: Option<Interval>,
}

impl SubscribeReplies {
    /// The end of a lease, also while there is nothing to send.
    fn poll_stale(&mut self, cx: &mut Context<'_>) -> Option<Facts> {
        let checks = self.checks.as_mut()?;
        let mut stale = None;
        while checks.poll_tick(cx).is_ready() {
            let each = self.leases.iter();
            stale = each
                .filter_map(|(shard, lease)| Some((*shard, lease.check().err()?)))
                .next()
                .or(stale);
        }
        stale.map(|(shard, error)| Facts::from(error).with("shard", shard))
    }
}

impl Replies for SubscribeReplies {
    fn poll_reply(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &mut VecDeque<Bytes>,
    ) -> Poll<Option<Result<(), Facts>>> {
        if Pin::new(&mut self.draining).poll(cx).is_ready() {
            return Poll::Ready(Some(Err(Error::Draining.into())));
        }
        if let Some(facts) = self.poll_stale(cx) {
            return Poll::Ready(Some(Err(facts)));
        }
        let (subscription, delivery) = ready!(self.next.as_mut().poll(cx));
        let failed = subscription.failed_shard();
        self.next = Box::pin(next(subscription));
        Poll::Ready(match delivery {
            Some(Ok(delivery)) => {
                let lease = self.leases.get(&delivery.shard);
                if let Some(Err(error)) = lease.map(LeaseGuard::check) {
                    return Poll::Ready(Some(Err(error.into())));
                }
                frames::reply(delivery.shard, delivery.reply, pieces);
                Some(Ok(()))
            }
            Some(Err(error)) => Some(Err(match failed {
                Some(shard) => Facts::from(error).with("shard", shard),
                None => error.into(),
            })),
            None => None,
        })
    }
}

fn budget(bytes: u64, records: u64) -> ReadBudget {
    ReadBudget {
        bytes: if bytes == 0 { REPLY_BYTES } else { bytes },
        records: if records == 0 { u64::MAX } else { records },
    }
}

pub(crate) fn start_position(
    field: &'static str,
    start: Option<&v1::StartPosition>,
) -> Result<StartPosition, ConvertError> {
    use v1::start_position::Position;

    let position = start.and_then(|start| start.position.as_ref());
    Ok(match position.ok_or(ConvertError::Missing { field })? {
        Position::TrimHorizon(_) => StartPosition::TrimHorizon,
        Position::Latest(_) => StartPosition::Latest,
        Position::AtSequenceNumber(number) => StartPosition::At(SequenceNumber::new(*number)),
        Position::AfterSequenceNumber(number) => StartPosition::After(SequenceNumber::new(*number)),
        Position::AtTimestampUs(micros) => {
            StartPosition::AtTimestamp(Timestamp::from_micros(*micros))
        }
    })
}
