//! As much of CSV (RFC 4180) as it takes to know that a file is one, and to find a column.

use std::io::{self, BufRead};

use anyhow::{Context, Result, bail, ensure};

/// Largest row, in bytes: no record can be larger.
const ROW_BYTES_MAX: u64 = 10 << 20;

/// Rows of a CSV file, checked against its header.
#[derive(Debug)]
pub(crate) struct Rows<R> {
    input: R,
    /// Lines read so far: rows may have several.
    lines: u64,
    /// The line that the last row began on, from 1.
    line: u64,
    columns: Vec<String>,
}

impl<R: BufRead> Rows<R> {
    /// Reads the header.
    pub(crate) fn open(input: R) -> Result<Self> {
        let mut rows = Self {
            input,
            lines: 0,
            line: 0,
            columns: Vec::new(),
        };
        let Some(header) = rows.row()? else {
            bail!("it is empty: a CSV begins with a header")
        };
        let columns = fields(&header).context("line 1: not a CSV header")?;
        ensure!(
            columns.iter().all(|name| !name.trim().is_empty()),
            "line 1: not a CSV header: a column has no name"
        );
        rows.columns = columns;
        Ok(rows)
    }

    /// The names in the header.
    pub(crate) fn columns(&self) -> &[String] {
        &self.columns
    }

    /// The line that the last row began on, from 1.
    pub(crate) fn line(&self) -> u64 {
        self.line
    }

    /// The next row as it stands, without its line end; empty lines are left out.
    pub(crate) fn next_row(&mut self) -> Result<Option<String>> {
        loop {
            let Some(row) = self.row()? else {
                return Ok(None);
            };
            if row.is_empty() {
                continue;
            }
            let line = self.line;
            let found = fields(&row)
                .with_context(|| format!("line {line}: not CSV"))?
                .len();
            let expected = self.columns.len();
            ensure!(
                found == expected,
                "line {line}: {found} fields where the header names {expected}"
            );
            return Ok(Some(row));
        }
    }

    /// Whether more input is at hand without waiting for it.
    pub(crate) fn input(&mut self) -> &mut R {
        &mut self.input
    }

    fn row(&mut self) -> Result<Option<String>> {
        let mut row = Vec::new();
        self.line = self.lines + 1;
        let line = self.line;
        loop {
            let more = ROW_BYTES_MAX.saturating_sub(row.len() as u64) + 1;
            let read = io::Read::take(&mut self.input, more).read_until(b'\n', &mut row)?;
            if read == 0 && row.is_empty() {
                return Ok(None);
            }
            ensure!(
                row.len() as u64 <= ROW_BYTES_MAX,
                "line {line}: longer than any record may be"
            );
            self.lines += 1;
            // A line end inside quotes belongs to the row.
            let quotes = row.iter().filter(|byte| **byte == b'"').count();
            if quotes.is_multiple_of(2) || read == 0 {
                break;
            }
        }
        while matches!(row.last(), Some(b'\n' | b'\r')) {
            row.pop();
        }
        ensure!(!row.contains(&0), "line {line}: not CSV: it has zero bytes");
        let row = String::from_utf8(row);
        Ok(Some(row.ok().with_context(|| {
            format!("line {line}: not CSV: it is not UTF-8")
        })?))
    }
}

/// The fields of a row, without quotes.
pub(crate) fn fields(row: &str) -> Result<Vec<String>> {
    let mut fields = Vec::new();
    let mut rest = row;
    loop {
        let (field, after) = match rest.strip_prefix('"') {
            Some(quoted) => unquote(quoted)?,
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                let (field, after) = rest.split_at_checked(end).unwrap_or((rest, ""));
                ensure!(!field.contains('"'), "a quote inside an unquoted field");
                (field.to_owned(), after)
            }
        };
        fields.push(field);
        match after.strip_prefix(',') {
            Some(next) => rest = next,
            None if after.is_empty() => return Ok(fields),
            None => bail!("text after a closing quote"),
        }
    }
}

fn unquote(text: &str) -> Result<(String, &str)> {
    let mut field = String::new();
    let mut rest = text;
    loop {
        let (before, after) = rest
            .split_once('"')
            .context("a quote that is never closed")?;
        field.push_str(before);
        match after.strip_prefix('"') {
            Some(next) => {
                field.push('"');
                rest = next;
            }
            None => return Ok((field, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &str) -> Result<Vec<String>> {
        let mut rows = Rows::open(text.as_bytes())?;
        let mut found = Vec::new();
        while let Some(row) = rows.next_row()? {
            found.push(row);
        }
        Ok(found)
    }

    #[test]
    fn rows_keep_their_text() {
        assert_eq!(
            rows("a,b\n1,2\r\n\n3,\"x\ny,\"\"z\"\"\"").unwrap(),
            ["1,2", "3,\"x\ny,\"\"z\"\"\""]
        );
        assert_eq!(rows("only\n1").unwrap(), ["1"]);
        assert_eq!(
            fields("3,\"x\ny,\"\"z\"\"\",").unwrap(),
            ["3", "x\ny,\"z\"", ""]
        );
    }

    #[test]
    fn what_is_not_one_is_named_with_its_line() {
        for (text, refusal) in [
            ("", "it is empty"),
            ("a,,b\n", "line 1: not a CSV header"),
            (
                "a,b\n1,2\n1,2,3\n",
                "line 3: 3 fields where the header names 2",
            ),
            ("a,b\n1\n", "line 2: 1 fields where the header names 2"),
            ("a,b\n\"1,2\n", "line 2: not CSV"),
            ("a,b\n1,x\"y\n", "line 2: not CSV"),
            ("a,b\n1,\0\n", "line 2: not CSV: it has zero bytes"),
        ] {
            let found = format!("{:#}", rows(text).unwrap_err());
            assert!(found.starts_with(refusal), "{text:?}: {found}");
        }
        let binary = Rows::open(&b"\xff\xfe\x00"[..]).map(drop).unwrap_err();
        assert!(
            binary.to_string().starts_with("line 1: not CSV"),
            "{binary}"
        );
    }
}
