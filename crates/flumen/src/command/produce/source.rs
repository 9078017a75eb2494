//! Input, read on a thread of its own and handed over in bounded pieces.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use flumen_client::Record;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::Format;
use super::keys::{KeyChoice, Keys};
use crate::csv::Rows;

/// Pieces that wait between the reader and the producer.
const PIECES: usize = 4;
/// A piece is handed over at this size, or when no more input is at hand.
const PIECE_RECORDS: usize = 4_096;
const PIECE_BYTES: usize = 1 << 20;
/// Longest line, in bytes: no record can be larger.
const LINE_BYTES_MAX: u64 = 10 << 20;

/// What to read, and how.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) files: Vec<PathBuf>,
    pub(super) format: Format,
    pub(super) keys: KeyChoice,
}

impl Source {
    /// Reads on a thread; the channel ends with the input, the handle says why.
    pub(super) fn start(self) -> (mpsc::Receiver<Vec<Record>>, JoinHandle<Result<()>>) {
        let (pieces, receiver) = mpsc::channel(PIECES);
        let reading = tokio::task::spawn_blocking(move || {
            let mut reader = Reader {
                keys: Keys::new(self.keys),
                pieces,
                piece: Vec::new(),
                piece_bytes: 0,
            };
            reader.files(&self.files, self.format)
        });
        (receiver, reading)
    }
}

struct Reader {
    keys: Keys,
    pieces: mpsc::Sender<Vec<Record>>,
    piece: Vec<Record>,
    piece_bytes: usize,
}

impl Reader {
    fn files(&mut self, files: &[PathBuf], format: Format) -> Result<()> {
        if files.is_empty() {
            return self.one(
                BufReader::with_capacity(256 << 10, io::stdin()),
                format,
                "standard input",
            );
        }
        for file in files {
            if file == Path::new("-") {
                self.one(BufReader::new(io::stdin()), format, "standard input")?;
                continue;
            }
            let name = file.display().to_string();
            let opened = File::open(file).with_context(|| name.clone())?;
            self.one(BufReader::with_capacity(256 << 10, opened), format, &name)?;
        }
        Ok(())
    }

    /// One input. What was read before a failure is handed over all the same.
    fn one<R: io::Read>(&mut self, input: BufReader<R>, format: Format, name: &str) -> Result<()> {
        let read = match format {
            Format::Lines | Format::Ndjson => self.lines(input, format),
            Format::Csv => self.rows(input),
        };
        self.hand_over();
        read.with_context(|| name.to_owned())
    }

    fn lines<R: io::Read>(&mut self, mut input: BufReader<R>, format: Format) -> Result<()> {
        let mut number = 0_u64;
        loop {
            let mut line = Vec::new();
            number += 1;
            let limited = (&mut input)
                .take(LINE_BYTES_MAX + 1)
                .read_until(b'\n', &mut line);
            if limited? == 0 || self.pieces.is_closed() {
                return Ok(());
            }
            if line.last() == Some(&b'\n') {
                line.pop();
            }
            ensure!(
                line.len() as u64 <= LINE_BYTES_MAX,
                "line {number}: longer than any record may be"
            );
            if format == Format::Ndjson && line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let line = Bytes::from(line);
            let keyed = match format {
                Format::Ndjson => self.keys.of_json(&line).map(|key| (key, line)),
                _ => self.keys.of_line(line),
            };
            let (key, data) = keyed.with_context(|| format!("line {number}"))?;
            let waits = input.buffer().is_empty();
            self.push(key, data, waits);
        }
    }

    fn rows<R: io::Read>(&mut self, input: BufReader<R>) -> Result<()> {
        let mut rows = Rows::open(input)?;
        self.keys.columns(rows.columns())?;
        while let Some(row) = rows.next_row()? {
            if self.pieces.is_closed() {
                return Ok(());
            }
            let key = self
                .keys
                .of_row(&row)
                .with_context(|| format!("line {}", rows.line()))?;
            let waits = rows.input().buffer().is_empty();
            self.push(key, Bytes::from(row), waits);
        }
        Ok(())
    }

    fn push(&mut self, partition_key: Bytes, data: Bytes, waits: bool) {
        self.piece_bytes += data.len() + partition_key.len();
        self.piece.push(Record {
            partition_key,
            explicit_hash_key: None,
            data,
            client_timestamp: None,
            headers: Vec::new(),
        });
        if waits || self.piece.len() >= PIECE_RECORDS || self.piece_bytes >= PIECE_BYTES {
            self.hand_over();
        }
    }

    fn hand_over(&mut self) {
        self.piece_bytes = 0;
        if !self.piece.is_empty() {
            // Nobody receives: then nobody wants more, and `is_closed` ends the reading.
            drop(self.pieces.blocking_send(std::mem::take(&mut self.piece)));
        }
    }
}
