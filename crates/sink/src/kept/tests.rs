//! What is kept of a cut is found again.

use std::io::Write;

use flumen_record::{SequenceNumber, ShardIndex};

use super::*;
use crate::cut::CutStage;
use crate::unit::ErrorType;

fn range(to: u64) -> CutRange {
    CutRange {
        shard: ShardIndex::new(1),
        from: SequenceNumber::new(2),
        to: SequenceNumber::new(to),
    }
}

fn planned(number: u64, to: u64) -> Cut {
    Cut {
        number,
        version: 1,
        ranges: vec![range(to)],
        oldest_us: 0,
        records: 1,
        stage: CutStage::Planned,
        spooled: true,
        epoch: None,
        again: 0,
        remade: None,
    }
}

#[test]
fn a_cut_comes_back_as_it_was_and_only_as_it_was_planned() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::new(dir.path().join("1"), 1 << 20);
    let cut = spool.cut(4);
    let mut out = cut.object(0).unwrap();
    out.write_all(b"content").unwrap();
    let part = PartName {
        by_query: vec![("p".to_owned(), "1".to_owned())],
        by_transform: vec![("t".to_owned(), "2".to_owned())],
        piece: 0,
    };
    let object = FilledObject {
        kind: ObjectKind::Error(ErrorType::ProcessingFailed),
        part: part.clone(),
        key: "key".to_owned(),
        oldest: Timestamp::from_micros(77),
        records: 1,
        object: out.finish().unwrap(),
    };
    let tally = Tally {
        records: 5,
        oldest: Some(Timestamp::from_micros(3)),
        ..Tally::default()
    };
    let gathered = GatheredCut {
        number: 4,
        ranges: vec![range(9)],
        filled: Filled {
            objects: vec![object],
            schema: Schema::default(),
            tally,
            is_bound_to_order: false,
        },
        spool: cut,
        expired: 6,
        damaged: vec![range(3)],
    };
    keep(&gathered).unwrap();
    drop(gathered);
    let loaded = load(&spool, &planned(4, 9)).unwrap();
    assert_eq!((loaded.number, loaded.expired), (4, 6));
    assert_eq!(
        (&loaded.ranges, &loaded.damaged),
        (&vec![range(9)], &vec![range(3)])
    );
    assert_eq!(
        (loaded.filled.tally.records, loaded.filled.tally.oldest),
        (5, tally.oldest)
    );
    let [object] = &loaded.filled.objects[..] else {
        panic!("{} objects", loaded.filled.objects.len());
    };
    assert_eq!(
        (object.kind, &object.part),
        (ObjectKind::Error(ErrorType::ProcessingFailed), &part)
    );
    assert_eq!(
        (object.key.as_str(), object.oldest.as_micros()),
        ("key", 77)
    );
    let content: Vec<u8> = object
        .object
        .read()
        .unwrap()
        .iter()
        .flatten()
        .copied()
        .collect();
    assert_eq!(content, b"content");
}

#[test]
fn of_other_records_it_is_another_cut() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::new(dir.path().join("1"), 1 << 20);
    let gathered = GatheredCut {
        number: 4,
        ranges: vec![range(9)],
        filled: Filled {
            objects: Vec::new(),
            schema: Schema::default(),
            tally: Tally::default(),
            is_bound_to_order: false,
        },
        spool: spool.cut(4),
        expired: 0,
        damaged: Vec::new(),
    };
    keep(&gathered).unwrap();
    load(&spool, &planned(4, 9)).unwrap();
    assert!(load(&spool, &planned(4, 10)).unwrap_err().is_loss());
    assert!(load(&spool, &planned(5, 9)).unwrap_err().is_loss());
    std::fs::write(dir.path().join("1/4/index.json"), b"{").unwrap();
    assert!(load(&spool, &planned(4, 9)).unwrap_err().is_loss());
}
