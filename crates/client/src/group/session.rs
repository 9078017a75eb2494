//! One session of a member with the broker.

use std::collections::HashMap;
use std::time::Duration;

use flumen_api::v1;
use flumen_api::v1::group_request::Request;
use flumen_api::v1::group_response::Response;
use flumen_record::{SequenceNumber, ShardIndex, StreamIncarnation, Timestamp};
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
    sent: HashMap<u64, Instant>,
    /// The last heartbeat.
    number: u64,
    /// When the last one that is answered was sent.
    answered: Instant,
    pub(super) session_timeout: Duration,
    /// Which stream of its name the group is of.
    pub(super) stream: StreamIncarnation,
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
        let answered = Instant::now();
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
            number: 0,
            answered,
            session_timeout: Duration::from_micros(joined.session_timeout_us),
            stream: StreamIncarnation::new(joined.stream_incarnation),
        };
        Ok((session, joined.kept.iter().map(grant).collect()))
    }

    /// Says something to the broker, unless that takes nothing for the session timeout.
    pub(super) async fn say(&self, client: &Client, request: Request) -> Result<(), Error> {
        let request = v1::GroupRequest {
            request: Some(request),
        };
        let sent = timeout(self.session_timeout, self.out.send(request)).await;
        let sent = sent.map_err(|_| self.silence(client))?;
        sent.map_err(|_| Error::session_ended(client.endpoint()))
    }

    /// A sign of life.
    pub(super) async fn beat(&mut self, client: &Client) -> Result<(), Error> {
        self.number += 1;
        let number = self.number;
        self.sent.insert(number, Instant::now());
        let heartbeat = Request::Heartbeat(v1::Heartbeat { number });
        self.say(client, heartbeat).await
    }

    /// The broker has heard a sign of life: when it was sent.
    pub(super) fn heard(&mut self, number: u64) -> Option<Instant> {
        let sent = self.sent.remove(&number)?;
        self.sent.retain(|later, _| *later > number);
        self.answered = self.answered.max(sent);
        Some(sent)
    }

    /// When the broker has left signs of life unanswered for so long that it has given the member up:
    /// the session is as good as broken, whatever the connection says.
    pub(super) fn silent_at(&self) -> Instant {
        self.answered + self.session_timeout
    }

    /// Why a session ends that nobody has ended.
    pub(super) fn silence(&self, client: &Client) -> Error {
        Error::timed_out(client.endpoint(), self.session_timeout)
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
