//! Which partition key a record gets.

use anyhow::{Result, bail, ensure};
use bytes::Bytes;
use serde_json::Value;

use crate::csv;

/// Where partition keys come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum KeyChoice {
    /// A new one for every record.
    Random,
    /// The same for all.
    Fixed(String),
    /// A column or a JSON field.
    Field(String),
    /// What stands before this text in a line.
    Separator(String),
}

/// Gives keys, record by record.
#[derive(Debug)]
pub(super) struct Keys {
    choice: KeyChoice,
    fixed: Bytes,
    /// The column of `Field`, once the header is known.
    column: usize,
}

impl Keys {
    pub(super) fn new(choice: KeyChoice) -> Self {
        let fixed = match &choice {
            KeyChoice::Fixed(key) => Bytes::from(key.clone()),
            _ => Bytes::new(),
        };
        Self {
            choice,
            fixed,
            column: 0,
        }
    }

    /// Learns the columns of a CSV.
    pub(super) fn columns(&mut self, header: &[String]) -> Result<()> {
        if let KeyChoice::Field(field) = &self.choice {
            let Some(column) = header.iter().position(|name| name == field) else {
                bail!(
                    "there is no column {field:?}; the columns are {}",
                    header.join(", ")
                );
            };
            self.column = column;
        }
        Ok(())
    }

    /// The key and the data of a line.
    pub(super) fn of_line(&self, line: Bytes) -> Result<(Bytes, Bytes)> {
        let KeyChoice::Separator(separator) = &self.choice else {
            return Ok((self.plain(), line));
        };
        let at = line
            .windows(separator.len())
            .position(|window| window == separator.as_bytes());
        let Some(at) = at else {
            bail!("no key: the line has no {separator:?}")
        };
        let key = checked(line.slice(..at))?;
        Ok((key, line.slice(at + separator.len()..)))
    }

    /// The key of a JSON text, which must be one.
    pub(super) fn of_json(&self, line: &Bytes) -> Result<Bytes> {
        let KeyChoice::Field(path) = &self.choice else {
            let valid: Result<serde::de::IgnoredAny, _> = serde_json::from_slice(line);
            return match valid {
                Ok(_) => Ok(self.plain()),
                Err(error) => bail!("not JSON: {error}"),
            };
        };
        let value: Value = match serde_json::from_slice(line) {
            Ok(value) => value,
            Err(error) => bail!("not JSON: {error}"),
        };
        let field = path
            .split('.')
            .try_fold(&value, |value, name| value.get(name));
        let key = match field {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Number(number)) => number.to_string(),
            Some(Value::Bool(flag)) => flag.to_string(),
            Some(_) => bail!("field {path} is not a text, a number, true or false"),
            None => bail!("there is no field {path}"),
        };
        checked(Bytes::from(key))
    }

    /// The key of a CSV row.
    pub(super) fn of_row(&self, row: &str) -> Result<Bytes> {
        match &self.choice {
            KeyChoice::Field(_) => match csv::fields(row)?.get(self.column) {
                Some(key) => checked(Bytes::from(key.clone())),
                None => bail!("the row has no column {}", self.column + 1),
            },
            _ => Ok(self.plain()),
        }
    }

    fn plain(&self) -> Bytes {
        match self.choice {
            KeyChoice::Fixed(_) => self.fixed.clone(),
            _ => Bytes::from(format!("{:016x}", rand::random::<u64>())),
        }
    }
}

fn checked(key: Bytes) -> Result<Bytes> {
    ensure!(!key.is_empty(), "the partition key is empty");
    ensure!(
        std::str::from_utf8(&key).is_ok(),
        "the partition key is not UTF-8"
    );
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &Bytes) -> &str {
        std::str::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_separator_cuts_the_key_off() {
        let keys = Keys::new(KeyChoice::Separator("::".to_owned()));
        let (key, data) = keys.of_line(Bytes::from("a::b::c")).unwrap();
        assert_eq!((text(&key), text(&data)), ("a", "b::c"));
        assert!(keys.of_line(Bytes::from("::b")).is_err());
        assert!(keys.of_line(Bytes::from("b")).is_err());
    }

    #[test]
    fn json_fields_may_be_nested() {
        let keys = Keys::new(KeyChoice::Field("device.id".to_owned()));
        let key = keys
            .of_json(&Bytes::from(r#"{"device":{"id":42}}"#))
            .unwrap();
        assert_eq!(text(&key), "42");
        for bad in [
            r#"{"device":{}}"#,
            r#"{"device":{"id":[1]}}"#,
            "{",
            r#"{"device":{"id":""}}"#,
        ] {
            assert!(keys.of_json(&Bytes::from(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn columns_are_found_by_name() {
        let mut keys = Keys::new(KeyChoice::Field("b".to_owned()));
        let header = ["a", "b"].map(str::to_owned);
        keys.columns(&header).unwrap();
        assert_eq!(text(&keys.of_row("1,\"x,y\"").unwrap()), "x,y");
        let refusal = Keys::new(KeyChoice::Field("c".to_owned()))
            .columns(&header)
            .unwrap_err();
        assert!(refusal.to_string().contains("the columns are a, b"));
    }

    #[test]
    fn random_keys_differ_and_a_fixed_one_does_not() {
        let random = Keys::new(KeyChoice::Random);
        assert_ne!(random.plain(), random.plain());
        let fixed = Keys::new(KeyChoice::Fixed("k".to_owned()));
        assert_eq!(fixed.plain(), Bytes::from("k"));
    }
}
