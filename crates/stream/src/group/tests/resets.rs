//! Resets and deletion.

use super::*;

fn reset(shards: &[(u32, u64)], force: bool, dry_run: bool) -> Request {
    let shards = shards.iter();
    Request::Reset(Reset {
        shards: shards
            .map(|(index, value)| (shard(*index), at(*value)))
            .collect(),
        force,
        dry_run,
    })
}

#[test]
fn a_shard_that_is_held_is_reset_by_force_only() {
    let mut node = Node::new(2);
    node.join("a");
    node.checkpoint(0, Some(1), at(9)).unwrap();
    let member: MemberName = "a".parse().unwrap();
    let held = GroupError::Held {
        shard: shard(0),
        member: member.clone(),
    };
    for dry_run in [false, true] {
        let refused = node.request(reset(&[(0, 3)], false, dry_run));
        assert_eq!(refused, Err(held.clone()));
    }
    let mut report = ResetReport {
        shards: vec![ResetShard {
            shard: shard(0),
            from: Some(at(9)),
            to: at(3),
        }],
        ended: vec![(shard(0), member)],
        applied: false,
    };
    let answer = node.request(reset(&[(0, 3)], true, true));
    assert_eq!(answer, Ok(Answer::Reset(report.clone())));
    assert!(node.last.changes.is_empty());
    report.applied = true;
    let answer = node.request(reset(&[(0, 3)], true, false));
    assert_eq!(answer, Ok(Answer::Reset(report)));
    // Ended, and given out again under another generation.
    node.check_told(&["1 lost 0@1 Reset", "1 assigned 0@3"]);
    assert!(node.checkpoint(0, Some(1), at(9)).is_err());
    node.checkpoint(0, Some(3), at(4)).unwrap();
}

#[test]
fn a_group_comes_into_being_by_a_reset() {
    let mut node = Node::new(1);
    node.request(reset(&[(0, 3)], false, false)).unwrap();
    let found = node.coordinator.checkpoints(STREAM, &group());
    let found: Vec<_> = found.map(|(shard, at, _)| (shard, at)).collect();
    assert_eq!(found, [(shard(0), at(3))]);
}

#[test]
fn what_cannot_be_reset_is_refused_as_a_whole() {
    let mut node = Node::new(1);
    node.shards(vec![closed(0, &[], 10)]);
    let refused = node.request(reset(&[(0, 3), (4, 0)], false, false));
    assert_eq!(refused, Err(GroupError::NoShard { shard: shard(4) }));
    let refused = node.request(reset(&[(0, 11)], true, false));
    assert!(matches!(refused, Err(GroupError::Beyond { .. })));
    assert_eq!(node.coordinator.group_count(), 0);
}

#[test]
fn a_parent_that_is_finished_no_more_comes_before_its_children_again() {
    let mut node = Node::new(1);
    node.shards(vec![closed(0, &[], 10), open(1, &[0])]);
    node.join("a");
    node.checkpoint(0, Some(1), at(10)).unwrap();
    node.check_told(&["1 assigned 1@2"]);
    let refused = node.request(reset(&[(0, 0)], false, false));
    assert!(matches!(refused, Err(GroupError::Held { .. })));
    node.request(reset(&[(0, 0)], true, false)).unwrap();
    node.check_told(&["1 lost 1@2 Reset", "1 assigned 0@3"]);
    node.checkpoint(0, Some(3), at(10)).unwrap();
    node.check_told(&["1 assigned 1@4"]);
    // To its end it stays finished.
    node.request(reset(&[(0, 10)], false, false)).unwrap();
    node.check_told(&[]);
}

#[test]
fn a_group_with_members_is_deleted_by_force_only() {
    let mut node = Node::new(1);
    node.join("a");
    let refused = node.request(Request::Delete { force: false });
    let expected = GroupError::HasMembers {
        group: group(),
        members: 1,
    };
    assert_eq!(refused, Err(expected));
    let deleted = node.request(Request::Delete { force: true });
    assert_eq!(deleted, Ok(Answer::Deleted));
    node.check_told(&["1 fenced Deleted"]);
    let missing = node.request(Request::Delete { force: true });
    assert_eq!(missing, Err(GroupError::NotFound { group: group() }));
    // A group of the same name does not use its generations again.
    node.join("b");
    node.check_told(&["2 joined []", "2 assigned 0@2"]);
    assert!(node.checkpoint(0, Some(1), at(1)).is_err());
}
