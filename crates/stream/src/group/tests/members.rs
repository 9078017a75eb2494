//! Joining, coming back, replacing, falling silent, leaving, handing over.

use super::*;

#[test]
fn the_first_member_has_everything_and_the_second_its_half_after_the_first_has_drained() {
    let mut node = Node::new(4);
    let a = node.join("a");
    node.check_told(&[
        "1 joined []",
        "1 assigned 0@1",
        "1 assigned 1@2",
        "1 assigned 2@3",
        "1 assigned 3@4",
    ]);
    let b = node.join("b");
    node.check_told(&["2 joined []", "1 revoked 2@3", "1 revoked 3@4"]);
    node.check_leases("a:1 a:2 a:3 a:4");
    // Until it is released the lease is the first's, and nothing else is moved meanwhile.
    node.checkpoint(3, Some(4), at(9)).unwrap();
    node.release(a, 3, 4);
    node.check_told(&["2 assigned 3@5"]);
    node.release(a, 2, 3);
    node.check_told(&["2 assigned 2@6"]);
    node.check_leases("a:1 a:2 b:6 b:5");
    node.wait_alive(seconds(100), &[a, b]);
    node.check_told(&[]);
}

#[test]
fn a_lease_begins_after_the_checkpoint() {
    let mut node = Node::new(1);
    let a = node.join("a");
    node.checkpoint(0, Some(1), Checkpoint::after_part(number(41), 2))
        .unwrap();
    node.step(vec![Event::Leave { session: a }]);
    node.join("b");
    let assigned = node.last.effects.iter().find_map(|effect| match effect {
        Effect::Assigned { lease, .. } => Some(lease.from),
        _ => None,
    });
    let from = ReadFrom::At(number(41));
    assert_eq!(assigned, Some(from));
}

#[test]
fn a_lease_that_is_not_released_is_taken_at_the_deadline_and_counted() {
    let mut node = Node::new(2);
    let a = node.join("a");
    let b = node.join("b");
    node.check_told(&["2 joined []", "1 revoked 1@2"]);
    node.wait_alive(DRAIN - seconds(1), &[a, b]);
    node.check_told(&[]);
    assert_eq!(node.describe().forced, 0);
    node.wait_alive(seconds(1), &[a, b]);
    node.check_told(&["1 lost 1@2 Forced", "2 assigned 1@3"]);
    assert_eq!(node.describe().forced, 1);
    let late = node.checkpoint(1, Some(2), at(5));
    let stale = CheckpointError::Stale {
        shard: shard(1),
        asked: generation(2),
        current: generation(3),
    };
    assert_eq!(late, Err(stale));
    // Too late: nothing happens.
    node.release(a, 1, 2);
    node.check_told(&[]);
    node.check_leases("a:1 b:3");
}

#[test]
fn leaving_hands_everything_over_at_once() {
    let mut node = Node::new(2);
    let a = node.join("a");
    let b = node.join("b");
    node.step(vec![Event::Leave { session: a }]);
    node.check_told(&["1 left", "2 assigned 0@3", "2 assigned 1@4"]);
    node.step(vec![Event::Leave { session: b }]);
    node.check_told(&["2 left"]);
    node.check_leases("-:3 -:4");
    assert!(node.describe().members.is_empty());
    // It is nobody's session any more.
    node.step(vec![
        Event::Leave { session: b },
        Event::Heartbeat {
            session: a,
            beat: 1,
        },
        Event::SessionLost { session: a },
    ]);
    node.check_told(&["2 fenced NotMember", "1 fenced NotMember"]);
}

#[test]
fn a_silent_member_loses_its_leases_at_its_session_timeout() {
    let mut node = Node::new(2);
    let a = node.join("a");
    let b = node.join("b");
    node.release(a, 1, 2);
    node.check_leases("a:1 b:3");
    node.wait_alive(TIMEOUT - seconds(1), &[b]);
    node.check_told(&[]);
    node.wait_alive(seconds(1), &[b]);
    node.check_told(&["1 fenced Silent", "2 assigned 0@4"]);
    assert!(node.checkpoint(0, Some(1), at(1)).is_err());
}

#[test]
fn a_broken_session_keeps_its_leases_until_the_session_timeout() {
    let mut node = Node::new(2);
    let a = node.join("a");
    let b = node.join("b");
    node.release(a, 1, 2);
    node.step(vec![Event::SessionLost { session: a }]);
    node.check_told(&[]);
    // Nothing that happens meanwhile moves them.
    let c = node.join("c");
    node.check_told(&["3 joined []"]);
    node.wait_alive(seconds(5), &[b, c]);
    let again = node.join_as("a", 1);
    node.check_told(&["4 joined [0@1]"]);
    node.checkpoint(0, Some(1), at(3)).unwrap();
    node.step(vec![Event::SessionLost { session: again }]);
    node.wait_alive(TIMEOUT, &[b, c]);
    node.check_told(&["3 assigned 0@4"]);
}

#[test]
fn the_same_instance_on_another_session_keeps_everything() {
    let mut node = Node::new(2);
    let a = node.join("a");
    node.join("b");
    node.check_told(&["2 joined []", "1 revoked 1@2"]);
    let again = node.join_as("a", 1);
    node.check_told(&["1 fenced Superseded", "3 joined [0@1 1@2]"]);
    let Some(Effect::Joined { leases, .. }) = node.last.effects.get(1) else {
        panic!("{:?}", node.last);
    };
    // It is told again what it has to drain, and by when.
    assert_eq!(leases[0].revoked, None);
    assert_eq!(leases[1].revoked, Some(node.now + DRAIN));
    // The old session's end is not the new one's.
    node.step(vec![Event::SessionLost { session: a }]);
    node.release(again, 1, 2);
    node.check_told(&["2 assigned 1@3"]);
}

#[test]
fn another_instance_takes_its_predecessors_place_under_new_generations() {
    let mut node = Node::new(2);
    node.join_as("a", 1);
    let watch = node.coordinator.watch(STREAM, &group(), shard(0)).unwrap();
    assert!(watch.is_current(generation(1)));
    node.join_as("a", 2);
    node.check_told(&[
        "1 fenced Replaced",
        "2 joined []",
        "2 assigned 0@3",
        "2 assigned 1@4",
    ]);
    assert!(!watch.is_current(generation(1)) && watch.is_current(generation(3)));
    assert!(node.checkpoint(0, Some(1), at(1)).is_err());
    node.checkpoint(0, Some(3), at(1)).unwrap();
}

#[test]
fn what_a_replaced_member_was_handing_over_goes_where_it_was_meant_to() {
    let mut node = Node::new(2);
    node.join_as("a", 1);
    node.join("b");
    node.check_told(&["2 joined []", "1 revoked 1@2"]);
    node.join_as("a", 2);
    node.check_told(&[
        "1 fenced Replaced",
        "3 joined []",
        "3 assigned 0@3",
        "2 assigned 1@4",
    ]);
}

#[test]
fn a_target_that_goes_is_replaced_by_another() {
    let mut node = Node::new(2);
    let a = node.join("a");
    let b = node.join("b");
    node.check_told(&["2 joined []", "1 revoked 1@2"]);
    node.step(vec![Event::Leave { session: b }]);
    node.check_told(&["2 left"]);
    // It comes back to who gave it up, under another generation.
    node.release(a, 1, 2);
    node.check_told(&["1 assigned 1@3"]);
}

#[test]
fn hand_overs_under_way_count_for_their_targets() {
    let mut node = Node::new(6);
    let a = node.join("a");
    node.join("b");
    assert_eq!(node.told().len(), 1 + 3);
    node.join("c");
    // One more of the first's; what is on the way to the second is turned to the third.
    node.check_told(&["3 joined []", "1 revoked 2@3"]);
    for (index, generation) in [(5, 6), (4, 5), (3, 4), (2, 3)] {
        node.release(a, index, generation);
    }
    let members = node.describe().members;
    assert_eq!(
        members
            .iter()
            .map(|member| member.leases)
            .collect::<Vec<_>>(),
        [2, 2, 2]
    );
}

#[test]
fn limits_are_kept() {
    let mut node = Node::new(1);
    node.coordinator = Coordinator::new(GroupConfig {
        groups_max: 1,
        members_per_group_max: 2,
        ..GroupConfig::default()
    })
    .with_bounds(node.bounds());
    let join = |session: u64, stream, group: &str, member: &str, timeout: u64| {
        Event::Join(Join {
            session: SessionId::new(session),
            stream,
            group: group.parse().unwrap(),
            member: member.parse().unwrap(),
            instance: InstanceId::new(1),
            session_timeout: Some(Duration::from_millis(timeout)),
            start: InitialPosition::TrimHorizon,
            begins: None,
        })
    };
    node.step(vec![join(1, STREAM, "g", "a", 1000)]);
    node.check_told(&["1 refused: stream number 7 does not exist"]);
    node.shards(vec![open(0, &[])]);
    let mut check = |event: Event, expected: &str| {
        node.step(vec![event]);
        assert_eq!(node.told()[0], expected);
    };
    check(
        join(1, STREAM, "g", "a", 999),
        "1 refused: the session timeout in ms is 999, allowed is 1000 to 300000",
    );
    check(
        join(1, STREAM, "g", "a", 300_001),
        "1 refused: the session timeout in ms is 300001, allowed is 1000 to 300000",
    );
    check(join(1, STREAM, "g", "a", 300_000), "1 joined []");
    check(
        join(1, STREAM, "g", "b", 1000),
        "1 refused: the session has joined as a already: open another one",
    );
    check(join(2, STREAM, "g", "b", 1000), "2 joined []");
    check(
        join(3, STREAM, "g", "c", 1000),
        "3 refused: members of the group is 3, allowed is 1 to 2",
    );
    check(
        join(3, STREAM, "h", "c", 1000),
        "3 refused: groups is 2, allowed is 1 to 1",
    );
}

#[test]
fn deadlines_are_told_in_advance() {
    let mut node = Node::new(2);
    assert_eq!(node.coordinator.next_deadline(), None);
    let a = node.join("a");
    let begun = node.now;
    assert_eq!(node.coordinator.next_deadline(), Some(begun + TIMEOUT));
    node.now += seconds(4);
    node.step(vec![Event::Heartbeat {
        session: a,
        beat: 5,
    }]);
    assert!(matches!(
        node.last.effects[..],
        [Effect::HeartbeatAnswered { beat: 5, .. }]
    ));
    assert!(node.last.changes.is_empty());
    // Looked at once in vain, then again when it is due.
    node.now = begun + TIMEOUT;
    node.step(Vec::new());
    node.check_told(&[]);
    let due = begun + seconds(4) + TIMEOUT;
    assert_eq!(node.coordinator.next_deadline(), Some(due));
    node.now = due;
    node.step(Vec::new());
    node.check_told(&["1 fenced Silent"]);
    assert_eq!(node.coordinator.next_deadline(), None);
}

#[test]
fn a_sign_of_life_that_waited_in_the_queue_is_one() {
    let mut node = Node::new(1);
    let a = node.join("a");
    node.now += seconds(60);
    node.step(vec![Event::Heartbeat {
        session: a,
        beat: 1,
    }]);
    node.check_told(&[]);
    node.check_leases("a:1");
}
