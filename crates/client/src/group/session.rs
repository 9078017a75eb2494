//! One session of a member with the broker.

use std::collections::HashMap;
use std::time::Duration;

use flumen_api::v1;
use flumen_api::v1::group_request::Request;
use flumen_api::v1::group_response::Response;
use flumen_record::{SequenceNumber, ShardIndex, Timestamp};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::leases::Grant;
use crate::{Client, Error, StartPosition};

/// Words to the broker that wait for the connection.
const OUT_MAX: usize = 64;

/// An open session.
pub(super) struct Session {
    out: mpsc::Sender<v1::GroupRequest>,
    pub(super) responses: Streaming<v1::GroupResponse>,
    /// Heartbeats that are not answered, by number.
    pub(super) sent: HashMap<u64, Instant>,
    pub(super) session_timeout: Duration,
}

impl Session {
    /// Opens a session; and the leases that the broker has kept for this member.
    pub(super) async fn open(
        client: &Client,
        join: v1::JoinGroup,
    ) -> Result<(Self, Vec<Grant>), Error> {
        let (out, requests) = mpsc::channel(OUT_MAX);
        // The channel is new and empty.
        let _ = out.try_send(v1::GroupRequest {
            request: Some(Request::Join(join)),
        });
        let mut consumer = client.consumer();
        let bound = client.config().connect_timeout;
        let opening = async {
            let responses = consumer.group(ReceiverStream::new(requests)).await;
            let mut responses = responses
                .map_err(|status| client.failure(&status))?
                .into_inner();
            let first = responses
                .message()
                .await
                .map_err(|status| client.failure(&status))?;
            Ok((responses, first))
        };
        let opened = timeout(bound, opening).await;
        let (responses, first) =
            opened.unwrap_or_else(|_| Err(Error::timed_out(client.endpoint(), bound)))?;
        let Some(Response::Joined(joined)) = first.and_then(|first| first.response) else {
            return Err(Error::session_ended(client.endpoint()));
        };
        let session = Self {
            out,
            responses,
            sent: HashMap::new(),
            session_timeout: Duration::from_micros(joined.session_timeout_us),
        };
        Ok((session, joined.kept.iter().map(grant).collect()))
    }

    /// Says something to the broker.
    pub(super) async fn say(&self, client: &Client, request: Request) -> Result<(), Error> {
        let request = v1::GroupRequest {
            request: Some(request),
        };
        let sent = self.out.send(request).await;
        sent.map_err(|_| Error::session_ended(client.endpoint()))
    }
}

/// A lease as the broker says it.
pub(super) fn grant(shard: &v1::ShardAssigned) -> Grant {
    use v1::start_position::Position;

    let position = shard
        .start
        .as_ref()
        .and_then(|start| start.position.as_ref());
    let start = match position {
        Some(Position::Latest(_)) => StartPosition::Latest,
        Some(Position::AtSequenceNumber(at)) => StartPosition::At(SequenceNumber::new(*at)),
        Some(Position::AfterSequenceNumber(at)) => StartPosition::After(SequenceNumber::new(*at)),
        Some(Position::AtTimestampUs(at)) => {
            StartPosition::AtTimestamp(Timestamp::from_micros(*at))
        }
        Some(Position::TrimHorizon(_)) | None => StartPosition::TrimHorizon,
    };
    Grant {
        shard: ShardIndex::new(shard.shard),
        generation: shard.generation,
        start,
        expired_records: shard.expired_records,
        revoked: shard.revoked_us.is_some(),
    }
}
