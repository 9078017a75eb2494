//! Tables of what a delivery stream remembers.
use serde_json::json;

use super::*;

fn range(shard: u32, from: u64, to: u64) -> CutRange {
    CutRange {
        shard: ShardIndex::new(shard),
        from: SequenceNumber::new(from),
        to: SequenceNumber::new(to),
    }
}

fn cut(number: u64, ranges: &[CutRange]) -> Cut {
    Cut {
        number,
        version: 1,
        ranges: ranges.to_vec(),
        oldest_us: 5,
        records: 3,
        stage: CutStage::Planned,
        spooled: false,
        epoch: Some(Epoch(1)),
        again: 0,
        remade: None,
    }
}

fn settings(name: &str) -> DeliverySettings {
    let json = json!({
        "source": { "kind": "direct" },
        "destination": { "kind": "memory", "name": name },
    });
    serde_json::from_value(json).unwrap()
}

fn schema(columns: &[&str]) -> Schema {
    let columns = columns
        .iter()
        .map(|name| json!({ "name": name, "type": "string" }));
    serde_json::from_value(columns.collect()).unwrap()
}

fn places(positions: BTreeMap<ShardIndex, SequenceNumber>) -> Vec<(u32, u64)> {
    let places = positions.into_iter();
    places
        .map(|(shard, at)| (shard.value(), at.value()))
        .collect()
}

/// Begun at 10 in shard 1, with one planned cut.
fn planned() -> Progress {
    let begin = (ShardIndex::new(1), SequenceNumber::new(10));
    let mut progress = Progress::begin([begin]);
    let ranges = [range(1, 10, 20), range(2, 0, 0), range(3, 5, 9)];
    progress.plan(cut(0, &ranges), &settings("a"), schema(&["x"]));
    progress
}

#[test]
fn a_plan_moves_on_and_what_it_holds_is_held_and_not_delivered() {
    let progress = planned();
    assert_eq!(places(progress.positions()), [(1, 20), (2, 0), (3, 9)]);
    assert_eq!(
        places(progress.undelivered_from()),
        [(1, 10), (2, 0), (3, 5)]
    );
    let held: BTreeMap<_, _> = progress.held().into_iter().collect();
    assert_eq!(
        places(held),
        [(1, 10), (3, 5)],
        "an empty range holds nothing"
    );
    assert_eq!((progress.next_cut(), progress.committed()), (1, 0));
    assert_eq!(progress.oldest(), Some(Timestamp::from_micros(5)));
    assert_eq!(
        (progress.schema(), progress.schema_before()),
        (&schema(&["x"]), &schema(&[]))
    );
    assert_eq!(progress.settings(), Some(&settings("a")));
}

#[test]
fn a_commit_lets_go_of_everything_but_what_is_counted() {
    let mut progress = planned();
    progress.seal();
    progress.commit(schema(&["x", "y"]), 7, last(0, &[]));
    assert_eq!(
        (
            progress.next_cut(),
            progress.committed(),
            progress.expired()
        ),
        (1, 1, 7)
    );
    assert_eq!(progress.undelivered_from(), progress.positions());
    assert!(progress.held().is_empty() && progress.cuts().is_empty());
    assert_eq!((progress.settings(), progress.oldest()), (None, None));
    assert_eq!(
        progress.schema(),
        &schema(&["x", "y"]),
        "what was written last"
    );
}

#[test]
fn only_what_has_no_manifest_for_sure_is_planned_again() {
    let mut progress = planned();
    assert!(progress.replan(2, &settings("b"), Epoch(2)));
    assert_eq!(
        (progress.cuts()[0].version, progress.settings()),
        (2, Some(&settings("b")))
    );
    assert_eq!(progress.cuts()[0].epoch, Some(Epoch(2)), "another cut");
    progress.seal();
    assert!(!progress.replan(3, &settings("c"), Epoch(2)));
    assert_eq!(
        (progress.cuts()[0].version, progress.settings()),
        (2, Some(&settings("b")))
    );
    progress.commit(schema(&[]), 0, last(0, &[]));
    assert!(
        !progress.replan(4, &settings("d"), Epoch(2)),
        "there is nothing to plan"
    );
}

#[test]
fn a_lost_spool_gives_a_cut_other_names() {
    let mut progress = planned();
    progress.forgive_spool(Epoch(2));
    assert_eq!(progress.cuts()[0].again, 0, "it had none");
    progress.spooled();
    progress.forgive_spool(Epoch(2));
    let cut = &progress.cuts()[0];
    assert_eq!((cut.again, cut.spooled), (1, false));
    // The plan is what it was: only what is made of it has other names.
    assert_eq!((cut.epoch, cut.remade), (Some(Epoch(1)), Some(Epoch(2))));
}

#[test]
fn another_life_begins_with_what_is_in_no_manifest() {
    let life = Incarnation {
        began: Timestamp::from_micros(77),
        number: 5,
    };
    let mut progress = planned();
    progress.go_on_as(life, false);
    assert_eq!(places(progress.positions()), [(1, 10), (2, 0), (3, 5)]);
    assert_eq!((progress.next_cut(), progress.committed()), (0, 0));
    assert!(progress.cuts().is_empty() && progress.settings().is_none());
    let created = Incarnation {
        began: Timestamp::ZERO,
        number: 1,
    };
    assert_eq!(progress.incarnation(created), life);

    // The last manifest was replaced by another one, or was not.
    for (is_lost, expected, committed) in [
        (false, [(1, 20), (2, 0), (3, 9)], 1),
        (true, [(1, 10), (2, 0), (3, 5)], 0),
    ] {
        let mut progress = planned();
        let ranges = progress.cuts()[0].ranges.clone();
        progress.commit(schema(&[]), 0, last(0, &ranges));
        assert_eq!(progress.last().unwrap().cut, 0);
        progress.go_on_as(life, is_lost);
        assert_eq!(places(progress.positions()), expected);
        assert_eq!((progress.next_cut(), progress.committed()), (0, committed));
        assert_eq!(progress.last(), None);
    }
}

fn last(cut: u64, ranges: &[CutRange]) -> LastManifest {
    let from = ranges.iter();
    let from = from.map(|range| (range.shard.value(), range.from.value()));
    LastManifest {
        cut,
        bytes: 9,
        crc32: 8,
        from: from.collect(),
    }
}

/// As it was written before copies of a data directory were told apart.
#[test]
fn form_1_is_read() {
    let form_1 = br#"{"form":1,"next_cut":8,"positions":{"0":40},"cuts":[{"number":7,"version":2,
        "ranges":[{"shard":0,"from":30,"to":40}],"oldest_us":5,"records":10,"stage":"sealing"}],
        "settings":{"source":{"kind":"direct","shards":1},"destination":{"kind":"memory","name":"a"},
        "buffering":{"size_bytes":5242880,"interval_ms":300000},"format":{"kind":"verbatim"},
        "compression":"none","keys":{}},"schema_before":[],"schema":[],"expired":3}"#;
    let read = Progress::decode(form_1).unwrap();
    assert_eq!(
        (read.next_cut(), read.committed(), read.expired()),
        (8, 7, 3)
    );
    assert_eq!((read.last(), read.cuts()[0].epoch), (None, None));
    let mut read = read;
    let (one, other) = (StreamIncarnation::new(1), StreamIncarnation::new(2));
    assert!(read.reads(one), "not known before");
    assert!(read.reads(one) && !read.reads(other));
    let created = Incarnation {
        began: Timestamp::ZERO,
        number: 1,
    };
    assert_eq!(read.incarnation(created), created);
    let id = read.cuts()[0].name(created).id(2);
    assert_eq!(
        id, "00000000000000-0001-7-2",
        "as what it has written is named"
    );
    assert_eq!(Progress::decode(&read.encode()).unwrap(), read);
}

#[test]
fn shards_that_are_gone_are_forgotten() {
    let mut progress = planned();
    progress.forget(|shard| shard == ShardIndex::new(3));
    assert_eq!(places(progress.positions()), [(1, 20), (2, 0)]);
}

#[test]
fn what_is_stored_is_read_and_nothing_else() {
    for progress in [planned(), Progress::begin([])] {
        assert_eq!(Progress::decode(&progress.encode()).unwrap(), progress);
    }
    let mut other: serde_json::Value = serde_json::from_slice(&planned().encode()).unwrap();
    other["form"] = json!(3);
    other["news"] = json!("of a later version");
    let refused = Progress::decode(other.to_string().as_bytes()).unwrap_err();
    assert!(
        matches!(refused, ProgressError::Form { found: 3 }),
        "{refused}"
    );
    other["form"] = json!(2);
    let refused = Progress::decode(other.to_string().as_bytes()).unwrap_err();
    assert!(matches!(refused, ProgressError::Json(_)), "{refused}");
    assert!(Progress::decode(b"{").is_err());
}

/// What is written, and what it becomes when bytes of it change.
mod stored_form {
    use super::*;

    fn stored() -> Vec<u8> {
        let starts = [(0, 7), (3, 0)];
        let starts = starts.map(|(shard, at)| (ShardIndex::new(shard), SequenceNumber::new(at)));
        Progress::begin(starts).encode()
    }

    #[test]
    fn what_is_stored_is_read_and_another_form_is_named() {
        let read = Progress::decode(&stored()).unwrap();
        assert_eq!(read.encode(), stored());
        assert_eq!(read.positions().len(), 2);
        let text = String::from_utf8(stored()).unwrap();
        let later = text.replacen("\"form\":2", "\"form\":3,\"news\":0", 1);
        let refused = Progress::decode(later.as_bytes()).unwrap_err();
        assert!(matches!(refused, ProgressError::Form { found: 3 }));
    }

    proptest::proptest! {
        #[test]
        fn what_decodes_encodes_to_the_same(
            edits in proptest::collection::vec((0_usize..400, proptest::num::u8::ANY), 0..4),
        ) {
            let mut bytes = stored();
            for (at, byte) in edits {
                let at = at % bytes.len();
                bytes[at] = byte;
            }
            if let Ok(read) = Progress::decode(&bytes) {
                assert_eq!(Progress::decode(&read.encode()).unwrap(), read);
            }
        }
    }
}
