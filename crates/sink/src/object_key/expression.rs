//! Prefixes: text with `!{…}` expressions.

use std::fmt::Write as _;

use jiff::ZonedDateTime;
use md5::{Digest, Md5};

use super::date_pattern::DatePattern;
use super::{KeyParts, KeyRefused};
use crate::unit::ErrorType;

/// The longest prefix as it is written, in bytes.
const MAX_PREFIX_BYTES: usize = 1024;
/// Characters of `!{firehose:random-string}`.
const RANDOM_CHARACTERS: usize = 11;
/// What stands for an empty value of a partition key.
const EMPTY_VALUE: &str = "__empty__";

/// A part of a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    Text(String),
    Time(DatePattern),
    Random,
    ErrorType,
    Query(String),
    Transform(String),
}

/// A prefix, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Expression(pub(crate) Vec<Part>);

impl Expression {
    /// Reads a prefix; the error says what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text.len() > MAX_PREFIX_BYTES {
            let bytes = text.len();
            return Err(format!("{bytes} bytes long, of at most {MAX_PREFIX_BYTES}"));
        }
        let (mut parts, mut rest) = (Vec::new(), text);
        while let Some((before, after)) = rest.split_once("!{") {
            push_text(&mut parts, before)?;
            let Some((inside, after)) = after.split_once('}') else {
                return Err(format!("!{{{after} has no closing brace"));
            };
            parts.push(part(inside)?);
            rest = after;
        }
        push_text(&mut parts, rest)?;
        Ok(Self(parts))
    }

    /// `yyyy/MM/dd/HH/`.
    pub(crate) fn hourly() -> Vec<Part> {
        let slash = || Part::Text("/".to_owned());
        let parts = ["yyyy", "MM", "dd", "HH"].into_iter().flat_map(|pattern| {
            let time = DatePattern::parse(pattern).ok().map(Part::Time);
            time.into_iter().chain([slash()])
        });
        parts.collect()
    }

    /// Whether a part is like that.
    pub(crate) fn any(&self, like: impl Fn(&Part) -> bool) -> bool {
        self.0.iter().any(like)
    }

    /// Whether there is anything but text.
    pub(crate) fn has_expressions(&self) -> bool {
        self.any(|part| !matches!(part, Part::Text(_)))
    }

    /// Writes it.
    pub(crate) fn write(
        &self,
        at: &KeyParts<'_>,
        time: &ZonedDateTime,
        class: Class,
        out: &mut String,
    ) -> Result<(), KeyRefused> {
        for (index, part) in self.0.iter().enumerate() {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Time(pattern) => pattern.write(time, out),
                Part::Random => random(at.unique, class, index, out),
                Part::ErrorType => out.push_str(class.error_type()),
                Part::Query(name) => write_value(name, at.partition, out)?,
                Part::Transform(name) => write_value(name, at.transform_keys, out)?,
            }
        }
        Ok(())
    }
}

/// What an object holds. Objects of one cut never share a key, whatever their prefixes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Data,
    Backup,
    Error(ErrorType),
}

impl Class {
    fn error_type(self) -> &'static str {
        match self {
            Self::Error(kind) => kind.as_str(),
            Self::Data | Self::Backup => "",
        }
    }

    fn tag(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Backup => "backup",
            Self::Error(kind) => kind.as_str(),
        }
    }
}

/// 16 bytes that look random and derive from all that is given.
pub(crate) fn derived(unique: u128, class: Class, index: usize) -> [u8; 16] {
    let mut digest = Md5::new();
    digest.update(b"flumen object key");
    digest.update(unique.to_le_bytes());
    digest.update((index as u64).to_le_bytes());
    digest.update(class.tag());
    digest.finalize().into()
}

fn random(unique: u128, class: Class, index: usize, out: &mut String) {
    const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    // The first index is that of the name.
    let mut left = u128::from_le_bytes(derived(unique, class, index + 1));
    for _ in 0..RANDOM_CHARACTERS {
        let digit = usize::try_from(left % 62).unwrap_or(0);
        out.push(char::from(ALPHABET.get(digit).copied().unwrap_or(b'0')));
        left /= 62;
    }
}

fn push_text(parts: &mut Vec<Part>, text: &str) -> Result<(), String> {
    if let Some(control) = text.chars().find(|c| c.is_control()) {
        return Err(format!(
            "the control character {control:?} cannot be in a key"
        ));
    }
    if !text.is_empty() {
        parts.push(Part::Text(text.to_owned()));
    }
    Ok(())
}

fn part(inside: &str) -> Result<Part, String> {
    const KNOWN: &str = "timestamp:…, firehose:random-string, firehose:error-output-type, partitionKeyFromQuery:… and partitionKeyFromLambda:… are known";
    let Some((space, value)) = inside.split_once(':') else {
        return Err(format!("!{{{inside}}} is no expression; {KNOWN}"));
    };
    match (space, value) {
        ("timestamp", pattern) => DatePattern::parse(pattern)
            .map(Part::Time)
            .map_err(|refused| format!("!{{{inside}}}: {refused}")),
        ("firehose", "random-string") => Ok(Part::Random),
        ("firehose", "error-output-type") => Ok(Part::ErrorType),
        ("partitionKeyFromQuery", name) if !name.is_empty() => Ok(Part::Query(name.to_owned())),
        ("partitionKeyFromLambda", name) if !name.is_empty() => {
            Ok(Part::Transform(name.to_owned()))
        }
        _ => Err(format!("!{{{inside}}} is no expression; {KNOWN}")),
    }
}

fn write_value(
    name: &str,
    values: &[(String, String)],
    out: &mut String,
) -> Result<(), KeyRefused> {
    let Some((_name, value)) = values.iter().find(|(of, _value)| of == name) else {
        return Err(KeyRefused::NoValue {
            name: name.to_owned(),
        });
    };
    safe_value(value, out);
    Ok(())
}

/// A value that stays within one segment of a key, and differs where values differ.
fn safe_value(value: &str, out: &mut String) {
    if value.is_empty() {
        return out.push_str(EMPTY_VALUE);
    }
    let dots = value.bytes().all(|byte| byte == b'.');
    for character in value.chars() {
        if dots || character.is_control() || matches!(character, '/' | '\\' | '%') {
            for byte in character.encode_utf8(&mut [0; 4]).bytes() {
                // Writing to a String cannot fail.
                let _ = write!(out, "%{byte:02X}");
            }
        } else {
            out.push(character);
        }
    }
}
