//! What has come for the loop, and waits until the coordinator takes it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use flumen_record::{GroupName, StreamId};
use flumen_stream::group::{Answer, Event, GroupError, Request, RequestId, SessionId};
use tokio::sync::oneshot;

use super::member::MemberQueue;
use super::{Groups, Input, Look};
use crate::Error;

/// The members that are told things. However the loop ends, they are told that too.
pub(super) struct Sessions {
    groups: Arc<Groups>,
    pub(super) queues: BTreeMap<SessionId, Arc<MemberQueue>>,
    /// What came and did not fit into the steps so far, in order.
    pub(super) waiting: VecDeque<Input>,
}

impl Sessions {
    pub(super) fn new(groups: &Arc<Groups>) -> Self {
        Self {
            groups: Arc::clone(groups),
            queues: BTreeMap::new(),
            waiting: VecDeque::new(),
        }
    }
}

impl Drop for Sessions {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.groups.failed.store(true, Ordering::Release);
        }
        let error: Error = self.groups.gone();
        let opening = self.waiting.drain(..).filter_map(|input| match input {
            Input::Opened(_, queue) => Some(queue),
            _ => None,
        });
        let opening: Vec<_> = opening.collect();
        for queue in self.queues.values().chain(&opening) {
            queue.end(error.clone());
        }
    }
}

/// What has come, input by input, as the coordinator takes it.
pub(super) struct Taken<'a> {
    pub(super) sessions: &'a mut Sessions,
    pub(super) asked: &'a mut BTreeMap<RequestId, oneshot::Sender<Result<Answer, GroupError>>>,
    pub(super) deleting: &'a mut BTreeMap<RequestId, (StreamId, GroupName)>,
    /// Behind what was taken.
    pub(super) looks: Vec<Look>,
    pub(super) deleted: Vec<StreamId>,
}

impl Iterator for Taken<'_> {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        loop {
            match self.sessions.waiting.pop_front()? {
                Input::Event(event) => {
                    self.note(&event);
                    return Some(event);
                }
                Input::Opened(session, queue) => {
                    self.sessions.queues.insert(session, queue);
                }
                Input::Asked(id, answer) => {
                    self.asked.insert(id, answer);
                }
                Input::Look(look) => self.looks.push(look),
            }
        }
    }
}

impl Taken<'_> {
    fn note(&mut self, event: &Event) {
        match event {
            Event::SessionLost { session } => {
                self.sessions.queues.remove(session);
            }
            Event::StreamDeleted { stream } => self.deleted.push(*stream),
            Event::Request {
                id,
                stream,
                group,
                request: Request::Delete { .. },
            } => {
                self.deleting.insert(*id, (*stream, group.clone()));
            }
            _ => {}
        }
    }
}

/// Whose sign of life it is.
pub(super) fn alive(input: &Input) -> Option<SessionId> {
    match input {
        Input::Event(
            Event::Heartbeat { session, .. }
            | Event::Release { session, .. }
            | Event::Request {
                request:
                    Request::Checkpoint {
                        session: Some(session),
                        ..
                    },
                ..
            },
        ) => Some(*session),
        _ => None,
    }
}
