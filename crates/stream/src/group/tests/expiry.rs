//! What expires before a group has read it: never said to be nothing when it is something, or unknown.

use super::*;

fn create() -> Request {
    Request::Reset(Reset {
        shards: Vec::new(),
        force: false,
        dry_run: false,
    })
}

fn join(
    session: u64,
    start: InitialPosition,
    begins: Option<Vec<(ShardIndex, SequenceNumber)>>,
) -> Event {
    Event::Join(Join {
        session: SessionId::new(session),
        stream: STREAM,
        group: group(),
        member: "m".parse().unwrap(),
        instance: InstanceId::new(session),
        session_timeout: None,
        start,
        begins,
    })
}

/// What the last step gave out: shard, where it begins, what expired before.
fn given(node: &Node) -> Vec<(u32, ReadFrom, Option<u64>)> {
    let leases = node.last.effects.iter().filter_map(|effect| match effect {
        Effect::Assigned { lease, .. } => Some((lease.shard.value(), lease.from, lease.expired)),
        _ => None,
    });
    leases.collect()
}

fn from(value: u64) -> ReadFrom {
    ReadFrom::At(number(value))
}

fn exactly(records: u64) -> Expired {
    Some(records).into()
}

fn expired(node: &Node) -> Expired {
    let described = node.describe();
    let shards = described.shards.iter();
    shards.fold(described.expired, |all, shard| {
        all.and(shard.position.expired)
    })
}

/// A group is there, 700 records arrive, 571 expire, a member joins: it was told "expired 0".
#[test]
fn records_that_expire_before_the_first_member_are_counted_once() {
    let mut node = Node::new(1);
    node.stands(0, 0, 0);
    node.request(create()).unwrap();
    node.stands(0, 571, 700);
    let a = node.join("a");
    assert_eq!(given(&node), [(0, from(571), Some(571))]);
    node.step(vec![Event::Leave { session: a }]);
    node.stands(0, 600, 700);
    node.join("b");
    assert_eq!(given(&node), [(0, from(600), Some(29))]);
    assert_eq!(expired(&node), exactly(600));
    node.checkpoint(0, Some(2), at(650)).unwrap();
    node.restart(vec![open(0, &[])]);
    assert_eq!(expired(&node), exactly(600));
}

#[test]
fn so_are_those_of_children_that_nobody_held() {
    let mut node = Node::new(1);
    node.stands(0, 0, 10);
    node.join("a");
    node.shards(vec![closed(0, &[], 10), open(1, &[0]), open(2, &[0])]);
    node.stands(1, 40, 50);
    node.checkpoint(0, Some(1), at(10)).unwrap();
    let expected = [(1, from(40), Some(40)), (2, from(0), Some(0))];
    assert_eq!(given(&node), expected);
}

#[test]
fn those_of_a_group_that_begins_at_the_end_or_at_a_time_count_from_there() {
    for (start, found, expected) in [
        (InitialPosition::Latest, None, 100),
        (
            InitialPosition::AtTimestamp(Timestamp::from_micros(7)),
            Some(vec![(shard(0), number(30))]),
            30,
        ),
        // Nothing that is gone at the beginning is missed.
        (
            InitialPosition::AtTimestamp(Timestamp::from_micros(7)),
            Some(vec![(shard(0), number(3))]),
            20,
        ),
    ] {
        let mut node = Node::new(1);
        node.stands(0, 20, 100);
        node.step(vec![join(1, start, found)]);
        assert_eq!(given(&node), [(0, from(expected), Some(0))]);
        node.stands(0, 150, 200);
        node.step(vec![join(2, start, None)]);
        assert_eq!(given(&node), [(0, from(150), Some(150 - expected))]);
    }
}

/// The caller looks the time up before the group comes into being. It was there then, and is gone now.
#[test]
fn a_group_does_not_begin_at_a_time_that_was_not_looked_up() {
    let mut node = Node::new(1);
    let start = InitialPosition::AtTimestamp(Timestamp::from_micros(7));
    node.step(vec![join(1, start, None)]);
    assert_eq!(node.coordinator.group_count(), 0);
    let refused = node.told();
    assert!(
        refused[0].starts_with("1 refused: group billing does not exist"),
        "{refused:?}"
    );
}

#[test]
fn a_shard_that_came_while_the_time_was_looked_up_is_read_from_its_first_record() {
    let mut node = Node::new(1);
    node.stands(0, 0, 10);
    node.shards(vec![closed(0, &[], 10), open(1, &[0])]);
    let start = InitialPosition::AtTimestamp(Timestamp::from_micros(7));
    node.step(vec![join(1, start, Some(vec![(shard(0), number(10))]))]);
    node.checkpoint(0, Some(1), at(10)).unwrap();
    assert_eq!(given(&node), [(1, from(0), Some(0))]);
}

#[test]
fn whole_shards_that_go_are_counted_held_or_not() {
    let mut node = Node::new(1);
    node.stands(0, 0, 10);
    node.join("a");
    node.checkpoint(0, Some(1), at(3)).unwrap();
    let all = vec![
        closed(0, &[], 10),
        closed(1, &[0], 20),
        open(2, &[0]),
        open(3, &[1]),
    ];
    node.shards(all);
    node.shards(vec![open(2, &[0]), open(3, &[1])]);
    assert_eq!(expired(&node), exactly(27));
    node.check_told(&["1 lost 0@1 Expired", "1 assigned 2@2", "1 assigned 3@3"]);
}

#[test]
fn a_finished_shard_that_goes_is_no_loss_and_a_jump_is_no_record() {
    let mut node = Node::new(2);
    node.stands(0, 0, 10);
    node.join("a");
    let end = 5 + (1 << 32);
    node.shards(vec![
        closed(0, &[], 10),
        closed(1, &[], end),
        open(2, &[0]),
        open(3, &[1]),
    ]);
    node.checkpoint(0, Some(1), at(10)).unwrap();
    node.checkpoint(1, Some(2), at(2)).unwrap();
    node.shards(vec![open(2, &[0]), open(3, &[1])]);
    assert_eq!(expired(&node), exactly(3));
}

/// The catalog let go of shards, and the process ended before groups heard of it.
#[test]
fn what_went_while_nobody_looked_is_unknown_and_not_none() {
    let shards = vec![closed(0, &[], 10), closed(1, &[0], 20), open(2, &[1])];
    for gone in [1, 2] {
        let mut node = Node::new(1);
        node.stands(0, 0, 10);
        node.join("a");
        node.shards(shards.clone());
        if gone == 2 {
            // Of this one something was written down.
            node.checkpoint(0, Some(1), at(3)).unwrap();
        }
        node.restart(shards[gone..].to_vec());
        assert!(!expired(&node).is_exact, "{gone}");
        // Said once.
        let changes = node.history.len();
        node.restart(shards[gone..].to_vec());
        let again = node.history[changes..].iter();
        assert_eq!(again.map(|(_, changes)| changes.len()).sum::<usize>(), 0);
    }
}

#[test]
fn what_a_member_skipped_is_counted_with_its_checkpoint() {
    let mut node = Node::new(1);
    node.stands(0, 0, 100);
    node.join("a");
    for (to, skipped, expected) in [
        (10, &[][..], 0),
        (30, &[(12, 20), (22, 25)], 11),
        // The answer was lost, and it goes on.
        (40, &[(12, 20), (22, 25), (31, 33)], 13),
        // What a member says is no more than what lies before its checkpoint.
        (50, &[(0, 1_000), (0, 1_000)], 23),
    ] {
        let ranges = skipped
            .iter()
            .map(|(from, to)| (number(*from), number(*to)));
        let request = Request::Checkpoint {
            session: None,
            items: vec![CheckpointItem {
                shard: shard(0),
                generation: Some(generation(1)),
                checkpoint: at(to),
                skipped: ranges.collect(),
            }],
        };
        node.request(request).unwrap();
        assert_eq!(expired(&node), exactly(expected));
    }
}

/// A lease that a member has kept is told of again as it was given: nothing is counted twice.
#[test]
fn a_lease_that_is_kept_counts_nothing_again() {
    let mut node = Node::new(1);
    node.stands(0, 0, 100);
    node.join("a");
    node.stands(0, 50, 100);
    node.join("a");
    let kept = node.last.effects.iter().find_map(|effect| match effect {
        Effect::Joined { leases, .. } => leases.first().map(|lease| (lease.from, lease.expired)),
        _ => None,
    });
    assert_eq!(kept, Some((from(0), Some(0))));
    assert_eq!(expired(&node), exactly(0));
}
