//! Parents before children, expiry, deletion, load, where reading begins.

use super::*;

fn from(node: &Node) -> Vec<(u32, ReadFrom)> {
    let leases = node.last.effects.iter().filter_map(|effect| match effect {
        Effect::Assigned { lease, .. } => Some((lease.shard.value(), lease.from)),
        _ => None,
    });
    leases.collect()
}

#[test]
fn children_follow_when_their_parent_is_finished() {
    let mut node = Node::new(1);
    node.join("a");
    node.shards(vec![closed(0, &[], 10), open(1, &[0]), open(2, &[0])]);
    node.check_told(&[]);
    assert!(node.describe().shards[1].is_waiting);
    node.checkpoint(0, Some(1), at(9)).unwrap();
    node.check_told(&[]);
    node.checkpoint(0, Some(1), at(10)).unwrap();
    node.check_told(&["1 assigned 1@2", "1 assigned 2@3"]);
    assert!(node.describe().shards[0].is_finished);
    // The answer was lost: it is asked again, and nothing changes. Nobody else's is accepted.
    node.checkpoint(0, Some(1), at(10)).unwrap();
    assert!(node.last.changes.is_empty());
    assert!(node.checkpoint(0, Some(2), at(10)).is_err());
    assert!(node.checkpoint(0, Some(1), at(9)).is_err());
}

#[test]
fn a_merge_waits_for_both_parents() {
    let mut node = Node::new(2);
    node.join("a");
    node.shards(vec![
        closed(0, &[], 10),
        closed(1, &[], 20),
        open(2, &[0, 1]),
    ]);
    node.checkpoint(1, Some(2), at(20)).unwrap();
    node.check_told(&[]);
    node.checkpoint(0, Some(1), at(10)).unwrap();
    node.check_told(&["1 assigned 2@3"]);
}

#[test]
fn grandchildren_wait_too() {
    let mut node = Node::new(0);
    node.shards(vec![closed(0, &[], 10), closed(1, &[0], 0), open(2, &[1])]);
    node.join("a");
    node.check_told(&["1 joined []", "1 assigned 0@1"]);
    node.checkpoint(0, Some(1), at(10)).unwrap();
    // Empty as it is, it has to be finished.
    node.check_told(&["1 assigned 1@2"]);
    node.checkpoint(1, Some(2), at(0)).unwrap();
    node.check_told(&["1 assigned 2@3"]);
}

#[test]
fn an_expired_parent_is_finished_and_its_lease_over() {
    let mut node = Node::new(1);
    node.join("a");
    node.checkpoint(0, Some(1), at(3)).unwrap();
    node.shards(vec![closed(0, &[], 10), open(1, &[0])]);
    node.shards(vec![open(1, &[0])]);
    node.check_told(&["1 lost 0@1 Expired", "1 assigned 1@2"]);
    let refused = node.checkpoint(0, Some(1), at(10));
    assert!(matches!(refused, Err(CheckpointError::NoShard { .. })));
}

#[test]
fn a_shard_that_closes_where_its_member_stands_is_finished() {
    let mut node = Node::new(1);
    node.join("a");
    node.checkpoint(0, Some(1), at(10)).unwrap();
    node.shards(vec![closed(0, &[], 10), open(1, &[0])]);
    node.check_told(&["1 lost 0@1 Finished", "1 assigned 1@2"]);
    node.checkpoint(0, Some(1), at(10)).unwrap();
    assert!(node.last.changes.is_empty());
}

#[test]
fn finished_shards_weigh_nothing() {
    let mut node = Node::new(4);
    let a = node.join("a");
    node.shards(vec![
        closed(0, &[], 1),
        closed(1, &[], 1),
        open(2, &[]),
        open(3, &[]),
    ]);
    for (index, generation) in [(0, 1), (1, 2)] {
        node.checkpoint(index, Some(generation), at(1)).unwrap();
    }
    node.join("b");
    node.check_told(&["2 joined []", "1 revoked 3@4"]);
    node.release(a, 3, 4);
    node.check_leases("-:1 -:2 a:3 b:5");
}

#[test]
fn where_reading_begins() {
    let time = Timestamp::from_micros(77);
    let mut node = Node::new(1);
    node.stands(0, 10, 90);
    for (group, start, expected) in [
        ("t", InitialPosition::TrimHorizon, 10),
        ("l", InitialPosition::Latest, 90),
        ("a", InitialPosition::AtTimestamp(time), 50),
    ] {
        node.last_session += 1;
        let session = SessionId::new(node.last_session);
        node.step(vec![Event::Join(Join {
            session,
            stream: STREAM,
            group: group.parse().unwrap(),
            member: "m".parse().unwrap(),
            instance: InstanceId::new(1),
            session_timeout: None,
            start,
            begins: Some(vec![(shard(0), number(50))]),
        })]);
        let expected = ReadFrom::At(number(expected));
        assert_eq!(from(&node), [(0, expected)], "{start:?}");
    }
    // A later shard is read from its beginning, whatever the clock says.
    node.shards(vec![open(0, &[]), open(1, &[])]);
    assert_eq!(from(&node), [(1, ReadFrom::At(number(0))); 3]);
}

#[test]
fn the_next_member_begins_where_the_group_did_not_where_it_joins() {
    let mut node = Node::new(1);
    node.stands(0, 0, 40);
    let join = |session| {
        Event::Join(Join {
            session: SessionId::new(session),
            stream: STREAM,
            group: group(),
            member: "m".parse().unwrap(),
            instance: InstanceId::new(session),
            session_timeout: None,
            start: InitialPosition::Latest,
            begins: None,
        })
    };
    node.step(vec![join(1)]);
    node.wait(seconds(60));
    node.stands(0, 0, 70);
    node.step(vec![join(2)]);
    assert_eq!(from(&node), [(0, ReadFrom::At(number(40)))]);
}

#[test]
fn a_deleted_stream_ends_its_groups() {
    let mut node = Node::new(1);
    node.join("a");
    let watch = node.coordinator.watch(STREAM, &group(), shard(0)).unwrap();
    node.step(vec![Event::StreamDeleted { stream: STREAM }]);
    node.check_told(&["1 fenced Deleted"]);
    assert!(!watch.is_current(generation(1)));
    assert_eq!(node.coordinator.group_count(), 0);
    assert_eq!(node.coordinator.next_deadline(), None);
}

#[test]
fn load_moves_running_shards_only_when_it_spreads() {
    let mut node = Node::new(4);
    let a = node.join("a");
    let b = node.join("b");
    node.release(a, 3, 4);
    node.release(a, 2, 3);
    node.check_leases("a:1 a:2 b:6 b:5");
    let loads = |loads: [u64; 4]| {
        let loads = loads.into_iter().zip(0..);
        Event::LoadObserved {
            stream: STREAM,
            loads: loads.map(|(load, index)| (shard(index), load)).collect(),
        }
    };
    node.step(vec![loads([1_000_000, 1_000_000, 1_040_000, 1_040_000])]);
    node.check_told(&[]);
    for _ in 0..4 {
        node.step(vec![loads([9_000_000, 9_000_000, 100_000, 100_000])]);
    }
    let moving = node.describe().shards;
    let moving = moving.iter().filter(|shard| shard.revoked.is_some());
    assert_eq!(moving.count(), 1);
    let _ = b;
}

#[test]
fn groups_are_listed_by_page() {
    let mut node = Node::new(1);
    for index in 0..5 {
        let stream = StreamId::new(7 + index % 2);
        node.step(vec![
            Event::ShardsChanged {
                stream,
                shards: vec![open(0, &[])],
            },
            Event::Request {
                id: RequestId(1),
                stream,
                group: format!("g{index}").parse().unwrap(),
                request: Request::Reset(Reset {
                    shards: Vec::new(),
                    force: false,
                    dry_run: false,
                }),
            },
        ]);
    }
    let names = |stream, after: Option<(u32, &str)>, limit| {
        let after = after.map(|(stream, name)| (StreamId::new(stream), name.parse().unwrap()));
        let after = after.as_ref().map(|(stream, name)| (*stream, name));
        let found = node.coordinator.list(stream, after, limit);
        let names = found.iter().map(|group| group.name.to_string());
        names.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names(None, None, 9), "g0 g2 g4 g1 g3");
    assert_eq!(names(None, None, 2), "g0 g2");
    assert_eq!(names(None, Some((7, "g2")), 2), "g4 g1");
    assert_eq!(names(Some(StreamId::new(8)), None, 9), "g1 g3");
    assert_eq!(names(Some(StreamId::new(8)), Some((8, "g1")), 9), "g3");
}
