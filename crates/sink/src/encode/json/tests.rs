//! Against serde_json, and cases by hand.

use proptest::prelude::*;
use serde_json::Value as Json;

use super::*;

/// What serde_json says: `None` if it is not JSON, else whether it is an object.
fn reference(row: &[u8]) -> Option<bool> {
    let value = serde_json::from_slice::<Json>(row).ok()?;
    Some(value.is_object())
}

/// A name as it stands in its row, and the value.
type Field = (Vec<u8>, Value);

/// Fields in order, and what they are guessed to be.
#[derive(Default)]
struct Seen {
    guesses: Vec<Vec<u8>>,
    fields: Vec<Field>,
}

impl Visit for Seen {
    fn guess(&self) -> &[u8] {
        let guess = self.guesses.get(self.fields.len());
        guess.map_or(&[], Vec::as_slice)
    }

    fn guessed(&mut self, value: Value) {
        let guess = self.guess();
        let name = guess[1..guess.len() - 2].to_vec();
        self.fields.push((name, value));
    }

    fn field(&mut self, name: &[u8], value: Value) {
        self.fields.push((name.to_vec(), value));
    }
}

/// Reads the fields twice: first without guesses, then guessing what was there.
fn seen(row: &[u8]) -> Result<(bool, Vec<Field>), JsonInvalid> {
    let mut first = Seen::default();
    let object = fields(row, &mut first);
    let guess = |(name, _): &Field| [b"\"", name.as_slice(), b"\":"].concat();
    let mut second = Seen {
        guesses: first.fields.iter().map(guess).collect(),
        fields: Vec::new(),
    };
    assert_eq!(fields(row, &mut second), object);
    assert_eq!(second.fields, first.fields);
    Ok((object?, first.fields))
}

fn accepts(row: &[u8]) -> bool {
    text(row).is_ok() && value(row).is_ok()
}

#[test]
fn takes_json_and_nothing_else() {
    let deep = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
    let good = [
        "0",
        "-0",
        "-1.5e+10",
        "1E5",
        "true",
        "false",
        "null",
        "\"\"",
        "[]",
        "{}",
        " { } ",
        "[[],{}]",
        r#"{"a":[1,{"b":[]},"\ud83d\ude00\u00e9\"\\\/\b\f\n\r\t"],"a":null}"#,
        "\t[1 , 2 ]\r\n",
        "1e999",
        "\"no escape in here, longer than a word\"",
        &deep(127),
    ];
    for row in good {
        assert!(accepts(row.as_bytes()), "{row}");
    }
    let bad = [
        "",
        " ",
        "01",
        "1.",
        ".5",
        "+1",
        "1e",
        "-",
        "tru",
        "nul",
        "\"",
        "\"\n\"",
        "\"\u{1}\"",
        r#""\x""#,
        r#""\ud83d""#,
        r#""\ud83dx\ude00""#,
        r#""\ude00\ud83d""#,
        r#""\u12g4""#,
        r#""\u+123""#,
        "[1,]",
        "[,1]",
        "[1 2]",
        "{,}",
        r#"{"a"}"#,
        r#"{"a":}"#,
        r#"{"a":1,}"#,
        r#"{a:1}"#,
        "[}",
        "{]",
        "[1",
        "{\"a\":1",
        "1 2",
        "{}{}",
        "[1]]",
        "\u{feff}1",
        "NaN",
        "'a'",
        "\u{0}",
        "1\u{0}",
        &deep(128),
    ];
    for row in bad {
        assert!(!accepts(row.as_bytes()), "{row}");
    }
    assert!(!accepts(b"\"\xff\""));
}

#[test]
fn says_where_and_what() {
    let cases = [
        (r#"{"a":1"#, "it ends within a value at byte 6"),
        (r#"{"a":x}"#, "not json at byte 5"),
        (r#"{"a":1} {"a":2}"#, "more after the value at byte 8"),
        ("[\"\\q\"]", "a bad escape at byte 2"),
        (
            "[\"a\nb\"]",
            "a string that does not end, or has a control character in it at byte 3",
        ),
    ];
    for (row, says) in cases {
        assert_eq!(
            value(row.as_bytes()).unwrap_err().to_string(),
            says,
            "{row}"
        );
    }
}

#[test]
fn hands_over_fields_in_order() {
    let row =
        br#" { "a" : 1 , "b\n":"x", "a":[{"a":2}],"c":null, "":-2.5,"d":"\u0041" , "e":true } "#;
    let text = std::str::from_utf8(row).unwrap();
    let (object, fields) = seen(row).unwrap();
    assert!(object);
    let seen_fields: Vec<_> = fields
        .iter()
        .map(|(name, value)| {
            let name = std::str::from_utf8(name).unwrap();
            (name, value.kind, &text[value.start..value.end])
        })
        .collect();
    let expected = [
        ("a", Kind::Integer, "1"),
        (r"b\n", Kind::Text, "\"x\""),
        ("a", Kind::Nested, r#"[{"a":2}]"#),
        ("c", Kind::Null, "null"),
        ("", Kind::Decimal, "-2.5"),
        ("d", Kind::EscapedText, r#""\u0041""#),
        ("e", Kind::Boolean, "true"),
    ];
    assert_eq!(seen_fields, expected);
    assert_eq!(seen(b"{}"), Ok((true, vec![])));
    assert_eq!(seen(b" [1] "), Ok((false, vec![])));
    assert!(seen(b"{\"a\":1}x").is_err());
}

#[test]
fn a_value_is_found_without_the_space_around_it() {
    let placed = |row: &str| value(row.as_bytes()).unwrap();
    assert_eq!(placed("\n {\"a\":1} \n").range, 2..9);
    assert!(!placed("\n{\"a\":1}\n").lines);
    assert!(placed("{\"a\":\n1}").lines && placed("[1,\r2]").lines);
    assert!(!placed(r#"{"a":"\n"}"#).lines);
}

fn json() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        any::<f64>().prop_map(Json::from),
        any::<String>().prop_map(Json::from),
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Json::from),
            prop::collection::btree_map(any::<String>(), inner, 0..5)
                .prop_map(|fields| Json::Object(fields.into_iter().collect())),
        ]
    })
}

/// Bytes that are nearly JSON.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let bytes = prop::sample::select(b"{}[]\",:\\u0d8e1-+.tfn \n\x00\xc3\xa9".to_vec());
    let edits = prop::collection::vec((any::<prop::sample::Index>(), 0..3, bytes), 0..4);
    (json(), any::<bool>(), edits).prop_map(|(value, pretty, edits)| {
        let text = if pretty {
            serde_json::to_vec_pretty(&value)
        } else {
            serde_json::to_vec(&value)
        };
        let mut bytes = text.unwrap();
        for (at, how, byte) in edits {
            let at = at.index(bytes.len() + 1);
            match how {
                0 => bytes.insert(at, byte),
                1 if at < bytes.len() => bytes[at] = byte,
                _ if at < bytes.len() => drop(bytes.remove(at)),
                _ => (),
            }
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn agrees_with_serde_json(row in damaged()) {
        let large_number = matches!(
            serde_json::from_slice::<Json>(&row), Err(e) if e.to_string().contains("number out of range")
        );
        if !large_number {
            prop_assert_eq!(accepts(&row), reference(&row).is_some(), "{}", String::from_utf8_lossy(&row));
        }
        if let Some(true) = reference(&row) {
            prop_assert!(seen(&row).unwrap().0);
        }
    }

    #[test]
    fn strings_are_what_they_mean(text in any::<String>(), plain in any::<bool>()) {
        let quoted = if plain {
            serde_json::to_string(&text).unwrap()
        } else {
            let units: String = text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
            format!("\"{units}\"")
        };
        prop_assert!(accepts(quoted.as_bytes()));
        let mut unescaped = String::new();
        unescape(&quoted[1..quoted.len() - 1], |piece| unescaped.push_str(piece));
        prop_assert_eq!(unescaped, text);
    }

    #[test]
    fn one_line_is_the_same_value(value in json()) {
        let pretty = serde_json::to_vec_pretty(&value).unwrap();
        prop_assert_eq!(compact(&pretty), serde_json::to_vec(&value).unwrap());
    }
}
