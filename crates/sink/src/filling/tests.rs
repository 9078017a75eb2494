//! Cuts filled from pieces.

use flumen_broker::Clock;
use flumen_record::{
    BatchBuilder, Compression, FrameHeader, ProducerId, ProducerSequence, RecordLimits,
    SequenceNumber, ShardEpoch, ShardId, ShardIndex,
};
use serde_json::{Value, json};

use super::*;
use crate::cut::Incarnation;
use crate::spool::Spool;

const MIB: usize = 1 << 20;

/// One frame with these records, from `base` on.
fn frame(base: u64, data: &[Vec<u8>]) -> Bytes {
    let mut batch = BatchBuilder::new(RecordLimits::MAX);
    for data in data {
        let record = Record {
            partition_key: Bytes::from_static(b"key"),
            explicit_hash_key: None,
            data: Bytes::copy_from_slice(data),
            client_timestamp: None,
            headers: Vec::new(),
        };
        batch.push(&record, record.hash_key()).unwrap();
    }
    let batch = batch.finish(
        ProducerId::NONE,
        ProducerSequence::new(0),
        Compression::None,
    );
    let header = FrameHeader {
        frame_bytes: 0,
        checksum: 0,
        shard: ShardId::from_value(1),
        epoch: ShardEpoch::new(1),
        base: SequenceNumber::new(base),
        arrival: Timestamp::from_micros(1_800_000_000_000_000 + base),
    };
    let length = u32::try_from(batch.bytes().len()).unwrap();
    let mut bytes = header.encode(length, batch.header().checksum, 0).to_vec();
    bytes.extend_from_slice(batch.bytes());
    Bytes::from(bytes)
}

fn piece(from: u64, to: u64, frames: Vec<Bytes>) -> Piece {
    Piece {
        shard: ShardIndex::new(0),
        from: SequenceNumber::new(from),
        to: SequenceNumber::new(to),
        frames,
        ends_shard: false,
    }
}

struct Cut {
    filling: Filling,
    _dir: tempfile::TempDir,
}

fn cut(more: &Value) -> Cut {
    cut_after(more, Schema::default())
}

fn cut_after(more: &Value, known: Schema) -> Cut {
    let mut settings = json!({
        "source": { "kind": "stream", "stream": "s" },
        "destination": { "kind": "memory", "name": "m" },
        "buffering": { "size_bytes": MIB, "interval_ms": 1000 },
        "format": { "kind": "delimited", "delimiter": "\n" },
    });
    settings
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    let settings = Arc::new(serde_json::from_value(settings).unwrap());
    let clock = Clock::manual(Timestamp::ZERO);
    let bundle = Bundle::compile(&"d".parse().unwrap(), 1, settings, &clock).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::new(dir.path().join("1"), 1 << 30).cut(0);
    let incarnation = Incarnation {
        began: Timestamp::from_micros(1),
        number: 1,
    };
    let name = CutName {
        incarnation,
        number: 0,
        epoch: None,
        again: 0,
        remade: None,
    };
    let schema = known;
    let filling = Filling::new(
        &Arc::new(bundle),
        name,
        &spool,
        schema,
        1 << 20,
        Timestamp::ZERO,
    );
    Cut { filling, _dir: dir }
}

fn content(object: &FilledObject) -> Vec<u8> {
    object
        .object
        .read()
        .unwrap()
        .iter()
        .flatten()
        .copied()
        .collect()
}

fn objects(filled: &Filled) -> Vec<(ObjectKind, String)> {
    let objects = filled.objects.iter();
    objects
        .map(|object| (object.kind, String::from_utf8(content(object)).unwrap()))
        .collect()
}

#[test]
fn it_closes_at_the_record_that_reaches_the_size_and_the_rest_comes_again() {
    let record = |byte| vec![byte; MIB * 2 / 5];
    let frames = vec![
        frame(0, &[record(b'a'), record(b'b')]),
        frame(2, &[record(b'c'), record(b'd')]),
    ];
    let mut first = cut(&json!({})).filling;
    let taken = first.take(&piece(0, 4, frames.clone())).unwrap();
    assert_eq!(
        taken,
        Taken {
            next: SequenceNumber::new(3),
            is_full: true
        }
    );
    assert_eq!(
        (first.tally().records, first.tally().bytes),
        (3, 3 * (MIB as u64 * 2 / 5))
    );
    let mut second = cut(&json!({})).filling;
    let taken = second.take(&piece(3, 4, frames.clone())).unwrap();
    assert_eq!(
        taken,
        Taken {
            next: SequenceNumber::new(4),
            is_full: false
        }
    );
    assert_eq!(second.tally().records, 1);
    // Planned already, it takes what it is given.
    let mut again = cut(&json!({})).filling.without_limit();
    let taken = again.take(&piece(1, 4, frames)).unwrap();
    assert_eq!((taken.is_full, again.tally().records), (false, 3));
}

#[test]
fn one_record_may_be_larger_than_a_cut() {
    let large = vec![b'x'; 10 * MIB - 100];
    let frames = vec![frame(5, &[b"a".to_vec(), large, b"b".to_vec()])];
    let mut filling = cut(&json!({})).filling;
    let taken = filling.take(&piece(5, 8, frames)).unwrap();
    assert_eq!(
        taken,
        Taken {
            next: SequenceNumber::new(7),
            is_full: true
        }
    );
    let filled = filling.finish().unwrap();
    assert_eq!(filled.objects.len(), 1);
    assert_eq!(
        (filled.objects[0].records, content(&filled.objects[0]).len()),
        (2, 10 * MIB - 97)
    );
}

#[test]
fn only_the_records_of_the_piece_are_meant_and_gaps_are_passed() {
    let frames = vec![frame(0, &[b"a".to_vec(), b"b".to_vec(), b"c".to_vec()])];
    let mut filling = cut(&json!({})).filling;
    filling.take(&piece(1, 2, frames)).unwrap();
    // Numbers that were never given out.
    let taken = filling.take(&piece(3, 1 << 32, Vec::new())).unwrap();
    assert_eq!(
        taken,
        Taken {
            next: SequenceNumber::new(1 << 32),
            is_full: false
        }
    );
    let filled = filling.finish().unwrap();
    assert_eq!(objects(&filled), [(ObjectKind::Data, "b\n".to_owned())]);
    assert_eq!(
        filled.objects[0].oldest,
        Timestamp::from_micros(1_800_000_000_000_000)
    );
    assert!(!filled.is_bound_to_order);
}

#[test]
fn parts_of_records_are_rows_and_what_has_none_fails() {
    let mut filling =
        cut(&json!({ "processing": { "sub_records": "json", "filter": ".a != 2" } })).filling;
    let data = [
        br#"{"a":1}{"a":2}"#.to_vec(),
        b"{".to_vec(),
        br#"[{"a":3}]"#.to_vec(),
    ];
    filling.take(&piece(0, 3, vec![frame(0, &data)])).unwrap();
    let tally = filling.tally();
    assert_eq!(
        (tally.records, tally.rows, tally.dropped, tally.failed),
        (3, 2, 1, 1)
    );
    let filled = filling.finish().unwrap();
    let objects = objects(&filled);
    assert_eq!(objects.len(), 2);
    let data = objects
        .iter()
        .find(|(kind, _)| *kind == ObjectKind::Data)
        .unwrap();
    assert_eq!(data.1.lines().count(), 2);
}

#[test]
fn who_comes_first_decides_when_partitions_run_out() {
    let partitioned = |most: u32| {
        json!({
            "partitioning": { "keys": { "p": ".p" }, "partitions_max": most },
            "keys": { "prefix": "!{partitionKeyFromQuery:p}/", "error_prefix": "e/" },
        })
    };
    let data: Vec<_> = (0..6)
        .map(|n| format!(r#"{{"p":{}}}"#, n % 3).into_bytes())
        .collect();
    for (most, overflows) in [(3, 0), (2, 2)] {
        let mut filling = cut(&partitioned(most)).filling;
        filling.take(&piece(0, 6, vec![frame(0, &data)])).unwrap();
        assert_eq!(
            (filling.tally().overflows, filling.partitions()),
            (overflows, most)
        );
        assert_eq!(filling.finish().unwrap().is_bound_to_order, overflows > 0);
    }
}

#[test]
fn new_columns_bind_a_cut_to_its_order() {
    let parquet = json!({ "format": { "kind": "parquet" } });
    for (data, expected) in [(&b"{}"[..], false), (br#"{"a":1}"#, true)] {
        let mut filling = cut(&parquet).filling;
        filling
            .take(&piece(0, 1, vec![frame(0, &[data.to_vec()])]))
            .unwrap();
        assert_eq!(filling.finish().unwrap().is_bound_to_order, expected);
    }
}

#[test]
fn a_damaged_frame_is_an_error_and_not_a_loss() {
    let bytes = frame(0, &[b"a".to_vec()]);
    let torn = bytes.slice(..bytes.len() - 1);
    let mut filling = cut(&json!({})).filling;
    assert!(filling.take(&piece(0, 1, vec![torn])).is_err());
}

/// Where columns are known rows go straight into their object. A column that changes begins another, a
/// few times; after that rows wait for the end of the cut.
#[test]
fn a_column_that_changes_begins_another_object_but_not_for_ever() {
    let known = json!([{ "name": "a", "type": "bigint" }]);
    let known = serde_json::from_value(known).unwrap();
    let mut cut = cut_after(&json!({ "format": { "kind": "parquet" } }), known);
    let rows = [
        r#"{"a":1}"#,
        r#"{"a":2}"#,
        r#"{"a":1.5}"#,
        r#"{"a":2}"#,
        r#"{"b":1}"#,
        r#"{"c":1}"#,
        r#"{"d":1}"#,
        r#"{"e":1}"#,
    ];
    let rows = rows.map(|row| row.as_bytes().to_vec());
    cut.filling
        .take(&piece(0, 8, vec![frame(0, &rows)]))
        .unwrap();
    let filled = cut.filling.finish().unwrap();
    let records: Vec<_> = filled.objects.iter().map(|object| object.records).collect();
    assert_eq!(records, [2, 2, 1, 3]);
    let keys: std::collections::BTreeSet<_> =
        filled.objects.iter().map(|object| &object.key).collect();
    assert_eq!(keys.len(), 4);
    assert_eq!((filled.tally.rows, filled.schema.columns().len()), (8, 5));
    assert!(filled.is_bound_to_order);
}
