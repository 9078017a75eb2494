//! `docs/errors.md` says what the edge refuses, and a status says all that a refusal knows.

use std::collections::BTreeSet;

use flumen_api::convert::{group_name, stream_name};
use flumen_record::{HashKey, HashRange};

use super::*;

fn converts() -> Vec<ConvertError> {
    let field = "start";
    let range = HashRange {
        start: HashKey::new(2),
        end: HashKey::new(1),
    };
    let all = vec![
        ConvertError::Missing { field },
        stream_name(field, "a/b").unwrap_err(),
        group_name(field, "a/b").unwrap_err(),
        ConvertError::Position { field },
        ConvertError::HashKeyLength { field, bytes: 3 },
        ConvertError::EmptyRange { field, range },
        ConvertError::Durability { field, value: 9 },
        ConvertError::Enumeration { field, value: 9 },
        ConvertError::NotUtf8 { field },
    ];
    for error in &all {
        // A new one belongs in the list above.
        match error {
            ConvertError::Missing { .. }
            | ConvertError::StreamName { .. }
            | ConvertError::Name { .. }
            | ConvertError::Position { .. }
            | ConvertError::HashKeyLength { .. }
            | ConvertError::EmptyRange { .. }
            | ConvertError::Durability { .. }
            | ConvertError::Enumeration { .. }
            | ConvertError::NotUtf8 { .. } => {}
        }
    }
    all
}

fn calls() -> Vec<CallError> {
    let all = vec![
        CallError::MessageTooLarge { bytes: 2, limit: 1 },
        CallError::MessageMalformed {
            expected: "flumen.v1.PutRequest",
        },
        CallError::MessageCut {
            needed: 2,
            found: 1,
        },
        CallError::MessageMissing,
        CallError::MessageExtra,
        CallError::Compressed,
        CallError::UnknownMethod {
            path: "/a/b".to_owned(),
        },
        CallError::OtherStream {
            session: "a".to_owned(),
            asked: "b".to_owned(),
        },
        CallError::DeadlineExceeded,
        CallError::Cancelled,
    ];
    for error in &all {
        // A new one belongs in the list above.
        match error {
            CallError::MessageTooLarge { .. }
            | CallError::MessageMalformed { .. }
            | CallError::MessageCut { .. }
            | CallError::MessageMissing
            | CallError::MessageExtra
            | CallError::Compressed
            | CallError::UnknownMethod { .. }
            | CallError::OtherStream { .. }
            | CallError::DeadlineExceeded
            | CallError::Cancelled => {}
        }
    }
    all
}

fn all() -> Vec<Facts> {
    let converts = converts().into_iter().map(Facts::from);
    converts
        .chain(calls().into_iter().map(Facts::from))
        .collect()
}

/// `InvalidArgument` as the document writes it: `INVALID_ARGUMENT`.
fn code_name(code: Code) -> String {
    let mut name = String::new();
    for character in format!("{code:?}").chars() {
        if character.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(character.to_ascii_uppercase());
    }
    name
}

/// Each row of the document is a reason with its code and all its metadata, and there are no others.
#[test]
fn the_document_lists_what_the_code_says() {
    let document = include_str!("../../../../docs/errors.md");
    let section = document.split("## From the gRPC edge").nth(1).unwrap();
    let rows: Vec<Vec<&str>> = section
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.split('|').map(str::trim).collect())
        .collect();
    let mut documented = BTreeSet::new();
    for row in &rows {
        for reason in row[1].split(", ") {
            let code = row[2].trim_matches('`').to_owned();
            documented.insert((reason.trim_matches('`').to_owned(), code));
        }
    }
    let known = all()
        .into_iter()
        .map(|facts| (facts.reason.to_owned(), code_name(facts.code)));
    assert_eq!(documented, known.collect());
    for facts in all() {
        let row = rows.iter().find(|row| row[1].contains(facts.reason));
        let listed = row.unwrap()[3];
        for (name, value) in &facts.metadata {
            assert!(listed.contains(&format!("`{name}`")), "{name}: {listed}");
            assert!(!value.is_empty(), "{}: {name}", facts.reason);
        }
        let names = listed.matches('`').count() / 2;
        assert_eq!(names, facts.metadata.len(), "{}: {listed}", facts.reason);
    }
}

#[test]
fn messages_are_single_lines() {
    for facts in all() {
        let message = facts.message;
        assert!(
            !message.contains('\n') && !message.ends_with('.'),
            "{message}"
        );
    }
}

/// A status and a refusal in a reply say the same.
#[test]
fn nothing_is_lost_on_the_way_out() {
    let full = Error::StorageFull {
        free_bytes: 1,
        floor_bytes: 2,
    };
    let facts = all().into_iter().chain([Facts::from(full)]);
    for facts in facts {
        let status = Status::from(facts.clone());
        let refusal = v1::Refusal::from(facts.clone());
        let details = status.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!(
            (status.code(), status.message()),
            (facts.code, &*facts.message)
        );
        assert_eq!((&*info.domain, &*info.reason), (ERROR_DOMAIN, facts.reason));
        assert_eq!(info.metadata, refusal.metadata);
        assert_eq!(info.metadata.len(), facts.metadata.len());
        let waits = details.retry_info().and_then(|retry| retry.retry_delay);
        assert_eq!(waits, facts.retry_after);
        let waits_us = facts.retry_after.unwrap_or_default().as_micros();
        assert_eq!(u128::from(refusal.retry_after_us), waits_us);
        assert_eq!(
            (refusal.code, &*refusal.reason),
            (facts.code.into(), facts.reason)
        );
    }
}
