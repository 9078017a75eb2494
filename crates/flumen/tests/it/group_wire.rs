//! A member of a consumer group as the wire sees it: its session, word by word.

use flumen_api::v1;
use flumen_api::v1::group_request::Request;
use flumen_api::v1::group_response::Response;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::wire::Wire;

/// A session of a member.
pub(crate) struct Member {
    said: mpsc::Sender<v1::GroupRequest>,
    /// `Err`: it was refused at once.
    heard: Result<Streaming<v1::GroupResponse>, Status>,
}

/// What a member says first.
pub(crate) fn join(stream: &str, group: &str, member: &str, instance: u64) -> v1::JoinGroup {
    v1::JoinGroup {
        stream: stream.to_owned(),
        group: group.to_owned(),
        member: member.to_owned(),
        instance,
        ..Default::default()
    }
}

impl Member {
    /// Opens a session with this as its first word.
    pub(crate) fn open(wire: &Wire, first: Request) -> Self {
        let (said, queue) = mpsc::channel(16);
        let first = v1::GroupRequest {
            request: Some(first),
        };
        wire.wait(said.send(first)).expect("room");
        let mut consumer = wire.consumer();
        let opened = wire.wait(consumer.group(ReceiverStream::new(queue)));
        let heard = opened.map(tonic::Response::into_inner);
        Self { said, heard }
    }

    /// Joins and is let in.
    #[track_caller]
    pub(crate) fn join(
        wire: &Wire,
        stream: &str,
        group: &str,
        member: &str,
        instance: u64,
    ) -> Self {
        let mut member = Self::open(wire, Request::Join(join(stream, group, member, instance)));
        let joined = member.hear(wire, |word| match word {
            Response::Joined(joined) => Some(joined),
            other => panic!("{other:?} came before it was let in"),
        });
        assert!(joined.kept.is_empty(), "{joined:?}");
        member
    }

    pub(crate) fn say(&self, wire: &Wire, request: Request) {
        let request = v1::GroupRequest {
            request: Some(request),
        };
        wire.wait(self.said.send(request)).expect("room");
    }

    /// The first word that this makes something of; others are let go.
    #[track_caller]
    pub(crate) fn hear<T>(&mut self, wire: &Wire, mut of: impl FnMut(Response) -> Option<T>) -> T {
        let heard = self.heard.as_mut().expect("a session");
        wire.wait(async {
            loop {
                let word = heard.message().await.expect("a word").expect("a word");
                if let Some(found) = of(word.response.expect("a word")) {
                    return found;
                }
            }
        })
    }

    /// Leases, as soon as it has so many, by shard.
    #[track_caller]
    pub(crate) fn leases(&mut self, wire: &Wire, many: usize) -> Vec<v1::ShardAssigned> {
        let mut leases = Vec::new();
        self.hear(wire, |word| {
            if let Response::Assigned(assigned) = word {
                leases.extend(assigned.shards);
            }
            (leases.len() >= many).then_some(())
        });
        leases.sort_by_key(|lease| lease.shard);
        leases
    }

    /// Saves checkpoints and waits for the answer.
    #[track_caller]
    pub(crate) fn save(
        &mut self,
        wire: &Wire,
        request: u64,
        checkpoints: Vec<v1::Checkpoint>,
    ) -> v1::CheckpointsSaved {
        let save = v1::SaveCheckpoints {
            request,
            checkpoints,
        };
        self.say(wire, Request::Checkpoints(save));
        let saved = self.hear(wire, |word| match word {
            Response::Checkpoints(saved) => Some(saved),
            _ => None,
        });
        assert_eq!(saved.request, request);
        saved
    }

    /// Leaves, and waits until it is out.
    #[track_caller]
    pub(crate) fn leave(&mut self, wire: &Wire) {
        self.say(wire, Request::Leave(v1::LeaveGroup {}));
        self.hear(wire, |word| matches!(word, Response::Left(_)).then_some(()));
    }

    /// How the session ends by itself.
    pub(crate) fn ended(&mut self, wire: &Wire) -> Result<(), Status> {
        let heard = match &mut self.heard {
            Ok(heard) => heard,
            Err(refused) => return Err(refused.clone()),
        };
        wire.wait(async {
            while heard.message().await?.is_some() {}
            Ok(())
        })
    }
}
