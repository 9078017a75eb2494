//! The thread's inbox, and what it leaves behind of streams that are deleted.

use flumen_log::MemoryStorage;
use flumen_stream::group::{InitialPosition, InstanceId, Reset};
use flumen_stream::{NewStream, StreamSettings};

use super::*;
use crate::BrokerConfig;

#[tokio::test]
async fn after_a_failure_nobody_waits() {
    let groups = Arc::new(Groups::new(Clock::system()));
    let looking = groups.look(|_| ());
    let closing = groups.close();
    let failing = async { groups.fail() };
    let (looked, closed, ()) = tokio::join!(looking, closing, failing);
    assert_eq!(looked, Err(Error::GroupsFailed));
    assert_eq!(closed, Err(Error::GroupsFailed));
    assert_eq!(groups.look(|_| ()).await, Err(Error::GroupsFailed));
    assert_eq!(groups.close().await, Err(Error::GroupsFailed));
}

async fn node() -> Arc<Node> {
    let storage = Arc::new(MemoryStorage::new());
    crate::open::on_threads(storage, BrokerConfig::default(), Clock::system())
        .await
        .unwrap()
}

async fn stream(node: &Arc<Node>) -> Arc<Stream> {
    let new = NewStream {
        name: "readings".parse().unwrap(),
        shards: 2,
        settings: StreamSettings::default(),
    };
    let created = node.create_stream(new).await.unwrap();
    node.streams.get(&created.name).unwrap()
}

/// Nothing is left of a stream that was deleted: no group, nothing told, nothing fenced.
async fn check_nothing_left(node: &Arc<Node>) {
    let groups = node.groups.look(Coordinator::group_count).await.unwrap();
    let streams = node
        .groups
        .look(|coordinator| coordinator.streams().count());
    assert_eq!((groups, streams.await.unwrap()), (0, 0));
    assert_eq!(lock(&node.groups.told).len(), 0);
    assert_eq!(node.groups.standing.len(), 0);
    assert_eq!(node.groups.fences.len(), (0, 0));
}

/// A reset that had found its stream before that was deleted was acknowledged, and left a group that
/// nobody could see or delete.
#[tokio::test]
async fn a_reset_that_comes_behind_the_deletion_of_its_stream_is_refused() {
    let node = node().await;
    let stream = stream(&node).await;
    node.delete_stream((&stream.name).into()).await.unwrap();
    let request = Request::Reset(Reset {
        shards: Vec::new(),
        force: false,
        dry_run: false,
    });
    let group = "g".parse().unwrap();
    let reset = node.groups.ask(&stream, &group, request);
    let gone = Error::StreamNotFound {
        stream: stream.name.clone(),
    };
    assert_eq!(reset.await, Err(gone.clone()));
    // Nor is anything of its shards told behind it.
    node.groups.stream_changed(&stream);
    check_nothing_left(&node).await;
}

/// A member that saved while its stream was deleted left an entry behind each time.
#[tokio::test]
async fn a_member_that_saves_while_its_stream_is_deleted_leaves_nothing_behind() {
    let node = node().await;
    for round in 0..3 {
        let stream = stream(&node).await;
        let join = JoinGroup {
            group: "g".parse().unwrap(),
            member: "m".parse().unwrap(),
            instance: InstanceId::new(round).value(),
            session_timeout: None,
            start: InitialPosition::Latest,
        };
        let mut member = node.join_group((&stream.name).into(), join).await.unwrap();
        let saved = |shard, generation| SaveCheckpoint {
            shard: flumen_record::ShardIndex::new(shard),
            generation,
            checkpoint: Some(flumen_stream::group::Checkpoint::at(
                flumen_record::SequenceNumber::ZERO,
            )),
            skipped: Vec::new(),
        };
        member.save(1, vec![saved(0, 1)]).unwrap();
        let deleting = node.delete_stream((&stream.name).into());
        let saving = async {
            loop {
                // Before it is deleted, while it is, and after.
                if member.save(2, vec![saved(1, 2)]).is_err() {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        let (deleted, ()) = tokio::join!(deleting, saving);
        deleted.unwrap();
        check_nothing_left(&node).await;
    }
}
