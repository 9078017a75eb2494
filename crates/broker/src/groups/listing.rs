//! Lists of groups, page by page, and their lag for metrics.
//!
//! The loop that decides is asked where groups stand only, a bounded number of shards at a time, so that
//! a long list never holds up a heartbeat; what is left to process is looked up by who asks, in memory.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use flumen_record::{GroupName, StreamId, StreamName};
use flumen_stream::group::{Coordinator, GroupPositions, GroupSummary};

use super::lag::{backlog, lag, stand};
use super::{GroupLag, GroupStatus, ShardLag};
use crate::Error;
use crate::node::Node;
use crate::streams::{Stream, StreamRef};

/// Streams, groups and checkpoints that the thread looks up at once, about.
const LOOK_MAX: usize = 4096;
/// Shards whose lag is looked up before others get a turn.
const TURN_MAX: usize = 256;
/// Groups of as many shards together are on a page of metrics at most.
const LAG_SHARDS_MAX: usize = 100_000;
/// Lag is looked up for metrics at most this often.
const LAGS_KEPT: Duration = Duration::from_secs(1);

/// Lag of many groups at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupLags {
    /// By stream and name.
    pub groups: Vec<GroupStatus>,
    /// Groups that are not among them, because there are too many.
    pub left_out: u64,
}

/// What was looked up last, when, and for how many groups at most.
pub(super) type KeptLags = Option<(Duration, usize, Arc<GroupLags>)>;

/// What the thread knows of a group, for a list.
#[derive(Debug)]
struct Listed {
    stream: Arc<Stream>,
    group: GroupSummary,
    positions: GroupPositions,
}

/// A list under way: streams by name, and where in them it is.
struct Cursor {
    streams: Vec<Arc<Stream>>,
    /// The stream it is in.
    at: usize,
    /// The last group of that stream which was found.
    after: Option<GroupName>,
    found: Vec<Listed>,
    /// Groups to find.
    wanted: usize,
}

impl Cursor {
    /// Finds some more; `Break` when there are enough or no more.
    fn go_on(&mut self, coordinator: &Coordinator) -> ControlFlow<()> {
        let mut looked = 0;
        while let Some(stream) = self.streams.get(self.at) {
            let id = stream.state().info.id;
            looked += 1;
            while let Some(group) = next(coordinator, id, self.after.as_ref()) {
                if self.found.len() >= self.wanted {
                    return ControlFlow::Break(());
                }
                if looked >= LOOK_MAX {
                    return ControlFlow::Continue(());
                }
                self.after = Some(group.name.clone());
                looked += 1;
                if let Some(positions) = coordinator.positions(id, &group.name) {
                    looked += positions.len();
                    self.found.push(Listed {
                        stream: Arc::clone(stream),
                        group,
                        positions,
                    });
                }
            }
            self.at += 1;
            self.after = None;
            if looked >= LOOK_MAX {
                return ControlFlow::Continue(());
            }
        }
        ControlFlow::Break(())
    }
}

fn next(
    coordinator: &Coordinator,
    stream: StreamId,
    after: Option<&GroupName>,
) -> Option<GroupSummary> {
    let after = after.map(|group| (stream, group));
    coordinator.list(Some(stream), after, 1).pop()
}

impl Node {
    /// [`crate::Broker::list_groups`].
    pub(crate) async fn list_groups(
        self: &Arc<Self>,
        stream: Option<StreamRef<'_>>,
        after: Option<(StreamName, GroupName)>,
        limit: usize,
    ) -> Result<(Vec<GroupStatus>, bool), Error> {
        let streams = match stream {
            Some(stream) => vec![self.groups_of(stream)?],
            None => self.streams.all(),
        };
        let mut found = self
            .find_groups(streams, after, limit.saturating_add(1))
            .await?;
        let more = found.len() > limit;
        found.truncate(limit);
        Ok((self.statuses(found, usize::MAX).await?, more))
    }

    /// Groups of these streams (by name) after this one, at most as many as wanted.
    async fn find_groups(
        &self,
        mut streams: Vec<Arc<Stream>>,
        after: Option<(StreamName, GroupName)>,
        wanted: usize,
    ) -> Result<Vec<Listed>, Error> {
        // A stream that was deleted since the page before is gone with its groups: the next one is
        // begun from its first.
        let mut group = None;
        if let Some((stream, last)) = after {
            streams.retain(|one| one.name >= stream);
            group = streams
                .first()
                .is_some_and(|first| first.name == stream)
                .then_some(last);
        }
        let mut cursor = Cursor {
            streams,
            at: 0,
            after: group,
            found: Vec::new(),
            wanted,
        };
        loop {
            let look = move |coordinator: &Coordinator| {
                let mut cursor = cursor;
                let end = cursor.go_on(coordinator).is_break();
                (cursor, end)
            };
            let (looked, end) = self.groups.look(look).await?;
            if end {
                return Ok(looked.found);
            }
            cursor = looked;
        }
    }

    /// What is left to process in each, until shards are as many as this.
    async fn statuses(
        self: &Arc<Self>,
        found: Vec<Listed>,
        shards_max: usize,
    ) -> Result<Vec<GroupStatus>, Error> {
        let mut statuses = Vec::with_capacity(found.len());
        let (mut shards, mut turn) = (0, 0);
        for listed in found {
            shards += listed.stream.state().shards.len();
            if shards > shards_max && !statuses.is_empty() {
                break;
            }
            statuses.push(self.status_of(&listed, &mut turn).await?);
        }
        Ok(statuses)
    }

    async fn status_of(
        self: &Arc<Self>,
        listed: &Listed,
        turn: &mut usize,
    ) -> Result<GroupStatus, Error> {
        let now = self.clock.now();
        let group = &listed.group;
        let mut all = GroupLag::default();
        let mut expired = listed.positions.expired;
        let mut began = Vec::new();
        let mut by_shard = Vec::new();
        for shard in &listed.stream.state().shards {
            *turn += 1;
            if turn.is_multiple_of(TURN_MAX) {
                tokio::task::yield_now().await;
            }
            let index = shard.id.index();
            let position = listed.positions.of(index);
            if position.is_finished(shard.closed_at()) {
                expired = expired.and(position.expired);
                continue;
            }
            let stand = stand(self, shard, &position).await?;
            began.extend(stand.began.map(|at| (index, at)));
            expired = expired.and(stand.expired);
            let behind = backlog(shard, stand.from);
            let left = lag(&behind, behind.oldest, now);
            all.add(left);
            by_shard.push(ShardLag {
                shard: index,
                lag: left,
                expired: stand.expired,
            });
        }
        self.write_begins(listed.positions.number, began);
        Ok(GroupStatus {
            stream: listed.stream.name.clone(),
            incarnation: listed.stream.incarnation,
            group: group.name.clone(),
            members: group.members,
            shards: by_shard.len(),
            lag: all,
            expired,
            by_shard,
        })
    }

    /// [`crate::Broker::group_lags`].
    pub(crate) async fn group_lags(
        self: &Arc<Self>,
        limit: usize,
    ) -> Result<Arc<GroupLags>, Error> {
        let there = || self.groups.counters.groups.load(Ordering::Relaxed);
        if there() == 0 {
            return Ok(Arc::default());
        }
        // Whoever comes meanwhile waits for the same answer.
        let mut kept = self.groups.lags.lock().await;
        let now = self.clock.monotonic();
        if let Some((at, of, lags)) = &*kept
            && *of == limit
            && now.saturating_sub(*at) < LAGS_KEPT
        {
            return Ok(Arc::clone(lags));
        }
        let found = self.find_groups(self.streams.all(), None, limit).await?;
        let groups = self.statuses(found, LAG_SHARDS_MAX).await?;
        let left_out = there().saturating_sub(groups.len() as u64);
        let lags = Arc::new(GroupLags { groups, left_out });
        *kept = Some((now, limit, Arc::clone(&lags)));
        Ok(lags)
    }
}
