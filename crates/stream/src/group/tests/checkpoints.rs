//! Which checkpoints are accepted.

use super::*;

#[test]
fn every_case() {
    let (a, beyond_end) = ("a".parse().unwrap(), number(10));
    let stale = |asked, current| {
        Err(CheckpointError::Stale {
            shard: shard(0),
            asked: generation(asked),
            current: generation(current),
        })
    };
    let behind = |asked| {
        Err(CheckpointError::Behind {
            shard: shard(0),
            asked,
            current: at(5),
        })
    };
    let beyond = |asked| {
        Err(CheckpointError::Beyond {
            shard: shard(0),
            asked,
            end: beyond_end,
        })
    };
    let held = Err(CheckpointError::Held {
        shard: shard(0),
        member: a,
    });
    let part = |record, part| Checkpoint::after_part(number(record), part);
    for (held_by_member, asked, checkpoint, expected) in [
        (true, Some(1), at(5), Ok(())),
        (true, Some(1), at(6), Ok(())),
        (true, Some(1), part(5, 0), Ok(())),
        (true, Some(1), at(10), Ok(())),
        (true, Some(1), at(4), behind(at(4))),
        (true, Some(1), part(4, 9), behind(part(4, 9))),
        (true, Some(1), at(11), beyond(at(11))),
        (true, Some(1), part(10, 0), beyond(part(10, 0))),
        (true, Some(0), at(6), stale(0, 1)),
        (true, Some(2), at(6), stale(2, 1)),
        // Stale comes first: nothing else is of a zombie's concern.
        (true, Some(2), at(4), stale(2, 1)),
        (true, Some(2), at(11), stale(2, 1)),
        (true, None, at(6), held.clone()),
        (true, None, at(4), held),
        (false, None, at(5), Ok(())),
        (false, None, at(6), Ok(())),
        (false, None, at(10), Ok(())),
        (false, None, at(4), behind(at(4))),
        (false, None, at(11), beyond(at(11))),
        (false, Some(1), at(6), stale(1, 0)),
    ] {
        let mut node = Node::new(1);
        node.shards(vec![closed(0, &[], 10)]);
        let session = node.join("a");
        node.checkpoint(0, Some(1), at(5)).unwrap();
        if !held_by_member {
            node.step(vec![Event::Leave { session }]);
        }
        let case = format!("{held_by_member} {asked:?} {checkpoint}");
        assert_eq!(node.checkpoint(0, asked, checkpoint), expected, "{case}");
        let stands = node.describe().shards[0].checkpoint.map(|(found, _)| found);
        let expected = if expected.is_ok() { checkpoint } else { at(5) };
        assert_eq!(stands, Some(expected), "{case}");
    }
}

/// A checkpoint of 1,000 after 5 records was taken: the group was blind for ever, with lag 0, and after
/// a split the shard counted as finished.
#[test]
fn nothing_beyond_the_end_of_an_open_shard_is_taken() {
    let mut node = Node::new(1);
    node.stands(0, 0, 5);
    node.join("a");
    for asked in [
        at(6),
        at(1_000),
        at(u64::MAX),
        Checkpoint::after(number(5)),
        Checkpoint::after_part(number(5), 0),
        Checkpoint::after_part(number(u64::MAX), u64::MAX),
    ] {
        let (shard, end) = (shard(0), number(5));
        let refused = node.checkpoint(0, Some(1), asked);
        assert_eq!(refused, Err(CheckpointError::Beyond { shard, asked, end }));
        let reset = Request::Reset(Reset {
            shards: vec![(shard, asked)],
            force: true,
            dry_run: false,
        });
        let refused = node.request(reset);
        assert_eq!(refused, Err(GroupError::Beyond { shard, asked, end }));
    }
    node.checkpoint(0, Some(1), Checkpoint::after_part(number(4), 7))
        .unwrap();
    node.checkpoint(0, Some(1), at(5)).unwrap();
}

/// One member that pipelined checkpoints made a step of 109 MB.
#[test]
fn a_step_ends_when_it_is_large_and_the_rest_is_for_the_next_one() {
    let mut node = Node::new(1);
    node.coordinator = Coordinator::new(GroupConfig {
        step_bytes_max: 500,
        ..GroupConfig::default()
    })
    .with_bounds(node.bounds());
    node.shards(vec![open(0, &[])]);
    let a = node.join("a");
    let event = |n| Event::Request {
        id: RequestId(n),
        stream: STREAM,
        group: group(),
        request: Request::Checkpoint {
            session: Some(a),
            items: vec![CheckpointItem {
                shard: shard(0),
                generation: Some(generation(1)),
                checkpoint: at(n),
                skipped: Vec::new(),
            }],
        },
    };
    let events: Vec<_> = (1..=100).map(event).collect();
    let mut events = events.into_iter();
    let mut steps = 0;
    while events.len() > 0 {
        let before = events.len();
        // What waits is a sign of life: nobody is silent because of what comes before it.
        node.now += seconds(9);
        node.coordinator.heard(node.now, a);
        let wall = node.wall();
        let step = node.coordinator.step_bounded(node.now, wall, &mut events);
        let taken = before - events.len();
        assert!((1..=10).contains(&taken), "{taken}");
        assert_eq!(step.changes.len(), taken);
        steps += 1;
    }
    assert!(steps >= 10);
    node.check_leases("a:1");
    assert_eq!(
        node.describe().shards[0].position.from,
        ReadFrom::At(number(100))
    );
}

/// One that an older broker took is shown, finishes nothing, and can be reset.
#[test]
fn a_checkpoint_beyond_the_end_finishes_no_shard() {
    let mut node = Node::new(1);
    node.join("a");
    node.checkpoint(0, Some(1), at(1_000)).unwrap();
    node.stands(0, 0, 5);
    node.shards(vec![closed(0, &[], 5), open(1, &[0])]);
    node.check_told(&[]);
    let described = node.describe().shards;
    assert!(!described[0].is_finished && described[1].is_waiting);
    assert_eq!(described[0].position.from, ReadFrom::At(number(1_000)));
    let reset = Request::Reset(Reset {
        shards: vec![(shard(0), at(5))],
        force: true,
        dry_run: false,
    });
    node.request(reset).unwrap();
    node.check_told(&["1 lost 0@1 Reset", "1 assigned 1@2"]);
}

#[test]
fn what_does_not_exist_is_said_to_be_missing() {
    let mut node = Node::new(1);
    let items = |generation| {
        vec![CheckpointItem {
            shard: shard(0),
            generation,
            checkpoint: at(1),
            skipped: Vec::new(),
        }]
    };
    let with = |generation| Request::Checkpoint {
        session: None,
        items: items(generation),
    };
    let refused = node.request(with(Some(generation(1))));
    assert_eq!(refused, Err(GroupError::NotFound { group: group() }));
    node.request(with(None)).unwrap();
    let shard = shard(9);
    let refused = node.checkpoint(9, None, at(1));
    assert_eq!(refused, Err(CheckpointError::NoShard { shard }));
    let id = RequestId(1);
    node.step(vec![Event::Request {
        id,
        stream: StreamId::new(99),
        group: group(),
        request: with(None),
    }]);
    let answer = node.last.effects.iter().any(|effect| {
        matches!(
            effect,
            Effect::Answered {
                answer: Err(GroupError::NoStream { .. }),
                ..
            }
        )
    });
    assert!(answer);
}

#[test]
fn an_equal_checkpoint_is_no_change() {
    let mut node = Node::new(1);
    node.join("a");
    node.checkpoint(0, Some(1), at(5)).unwrap();
    assert_eq!(node.last.changes.len(), 1);
    node.checkpoint(0, Some(1), at(5)).unwrap();
    assert!(node.last.changes.is_empty());
}

#[test]
fn a_lease_that_is_being_handed_over_still_checkpoints() {
    let mut node = Node::new(2);
    node.join("a");
    node.join("b");
    node.check_told(&["2 joined []", "1 revoked 1@2"]);
    node.checkpoint(1, Some(2), at(5)).unwrap();
}

#[test]
fn a_checkpoint_with_a_session_is_a_sign_of_life() {
    let mut node = Node::new(1);
    let a = node.join("a");
    for _ in 0..5 {
        node.wait(seconds(6));
        let request = Request::Checkpoint {
            session: Some(a),
            items: Vec::new(),
        };
        node.request(request).unwrap();
    }
    node.check_leases("a:1");
}
