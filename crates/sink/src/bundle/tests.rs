//! Settings compiled, and what objects are called.

use flumen_record::Timestamp;
use serde_json::{Value, json};

use super::*;

fn compile(more: &Value) -> Result<Bundle, SettingRefused> {
    let mut settings = json!({
        "source": { "kind": "stream", "stream": "s" },
        "destination": { "kind": "memory", "name": "m" },
    });
    let fields = settings.as_object_mut().unwrap();
    fields.extend(more.as_object().unwrap().clone());
    let settings = serde_json::from_value(settings).unwrap();
    let clock = Clock::manual(Timestamp::ZERO);
    Bundle::compile(&"d".parse().unwrap(), 3, Arc::new(settings), &clock)
}

#[test]
fn buffering_is_within_its_bounds() {
    let partitioned = json!({ "keys": { "p": ".p" } });
    let prefix = json!({ "prefix": "!{partitionKeyFromQuery:p}/", "error_prefix": "e/" });
    let cases = [
        (
            json!({ "size_bytes": (1 << 20) - 1 }),
            false,
            Some("buffering.size_bytes"),
        ),
        (
            json!({ "size_bytes": 1 << 20, "interval_ms": 0 }),
            false,
            None,
        ),
        (
            json!({ "size_bytes": (128 << 20) + 1 }),
            false,
            Some("buffering.size_bytes"),
        ),
        (json!({ "interval_ms": 900_000 }), false, None),
        (
            json!({ "interval_ms": 900_001 }),
            false,
            Some("buffering.interval_ms"),
        ),
        (
            json!({ "interval_ms": 0 }),
            true,
            Some("buffering.interval_ms"),
        ),
        (json!({ "interval_ms": 1000 }), true, None),
    ];
    for (buffering, with_partitions, refused) in cases {
        let more = match with_partitions {
            true => json!({ "buffering": buffering, "partitioning": partitioned, "keys": prefix }),
            false => json!({ "buffering": buffering }),
        };
        let setting = compile(&more).err().map(|refused| refused.setting);
        assert_eq!(setting, refused, "{buffering}");
    }
}

#[test]
fn what_comes_out_differently_a_second_time_is_known() {
    let transform = json!({ "transform": { "url": "http://localhost/" } });
    let cases = [
        (json!({}), true),
        (json!({ "map": "{a: .b}" }), true),
        (json!({ "map": "{a: now}" }), false),
        (json!({ "filter": ".at < now" }), false),
        (transform, false),
    ];
    for (processing, expected) in cases {
        let bundle = compile(&json!({ "processing": processing })).unwrap();
        assert_eq!(bundle.is_deterministic(), expected, "{processing}");
    }
}

#[test]
fn keys_derive_from_the_cut_and_its_part_alone() {
    let bundle = compile(&json!({})).unwrap();
    let cut = |number, again| CutName {
        incarnation: crate::cut::Incarnation {
            began: Timestamp::from_micros(9),
            number: 1,
        },
        number,
        epoch: None,
        again,
        remade: None,
    };
    let part = |value: &str| PartName {
        by_query: vec![("p".to_owned(), value.to_owned())],
        by_transform: Vec::new(),
        piece: 0,
    };
    let at = Timestamp::from_micros(1_800_000_000_000_000);
    let key =
        |bundle: &Bundle, kind, cut, part: &PartName| bundle.key(kind, cut, part, at).unwrap();
    let one = key(&bundle, ObjectKind::Data, cut(0, 0), &part("a"));
    assert_eq!(
        key(
            &compile(&json!({})).unwrap(),
            ObjectKind::Data,
            cut(0, 0),
            &part("a")
        ),
        one
    );
    let error = ObjectKind::Error(ErrorType::ProcessingFailed);
    let others = [
        key(&bundle, ObjectKind::Data, cut(1, 0), &part("a")),
        key(&bundle, ObjectKind::Data, cut(0, 1), &part("a")),
        key(&bundle, ObjectKind::Data, cut(0, 0), &part("b")),
        key(&bundle, error, cut(0, 0), &part("a")),
    ];
    for other in others {
        assert_ne!(other.rsplit('/').next(), one.rsplit('/').next());
    }
}
