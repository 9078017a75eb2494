//! The one place that writes to the standard streams.
//!
//! Results go to standard output, as text or one JSON object per line; notes and progress go to
//! standard error. When whoever reads standard output has left, the command ends quietly.

use std::io::{self, BufWriter, IsTerminal, Write};

use clap::ValueEnum;
use serde::Serialize;
use thiserror::Error;

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum OutputFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line, keys in snake_case, units in the key.
    Json,
}

/// Whether colours are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum ColorChoice {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Standard output cannot be written.
#[derive(Debug, Error)]
pub(crate) enum OutputError {
    /// Its reader has left (`| head`): not a failure.
    #[error("standard output was closed")]
    Closed,
    /// Something else, such as a full disk behind a redirection.
    #[error("writing to standard output: {0}")]
    Io(#[source] io::Error),
}

impl From<io::Error> for OutputError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

/// What a painted word means; colours are chosen here only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Paint {
    /// It held.
    Good,
    /// It did not.
    Bad,
    /// Look here.
    Strong,
    /// Less important.
    Dim,
    /// A figure.
    Figure,
}

impl Paint {
    const fn code(self) -> &'static str {
        match self {
            Self::Good => "32",
            Self::Bad => "31;1",
            Self::Strong => "1",
            Self::Dim => "2",
            Self::Figure => "36",
        }
    }
}

/// The standard streams of one command.
#[derive(Debug)]
pub(crate) struct Output {
    out: BufWriter<io::Stdout>,
    format: OutputFormat,
    quiet: bool,
    color: bool,
    /// Progress is drawn (standard error is a terminal and nobody asked for quiet).
    progress: bool,
    progress_drawn: bool,
}

impl Output {
    /// For a command with these global options.
    pub(crate) fn new(format: OutputFormat, quiet: bool, color: ColorChoice) -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let color = match color {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => io::stdout().is_terminal() && !dumb && !set("NO_COLOR"),
        };
        let progress = io::stderr().is_terminal() && !quiet && !dumb;
        Self {
            out: BufWriter::with_capacity(64 << 10, io::stdout()),
            format,
            quiet,
            color,
            progress,
            progress_drawn: false,
        }
    }

    /// Whether results are JSON.
    pub(crate) fn is_json(&self) -> bool {
        self.format == OutputFormat::Json
    }

    /// Whether [`Output::progress`] draws.
    pub(crate) fn draws_progress(&self) -> bool {
        self.progress
    }

    /// A line of text.
    pub(crate) fn line(&mut self, text: &str) -> Result<(), OutputError> {
        self.clear_progress();
        writeln!(self.out, "{text}")?;
        Ok(())
    }

    /// Columns as wide as their widest cell, numbers or not.
    pub(crate) fn table<const N: usize>(
        &mut self,
        rows: &[[String; N]],
    ) -> Result<(), OutputError> {
        let mut widths = [0; N];
        for row in rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        for row in rows {
            let cells = row
                .iter()
                .zip(widths)
                .map(|(cell, width)| format!("{cell:width$}"));
            let line = cells.collect::<Vec<_>>().join("  ");
            self.line(line.trim_end())?;
        }
        Ok(())
    }

    /// One JSON object as a line.
    pub(crate) fn json(&mut self, value: &impl Serialize) -> Result<(), OutputError> {
        self.clear_progress();
        serde_json::to_writer(&mut self.out, value).map_err(io::Error::from)?;
        self.out.write_all(b"\n")?;
        Ok(())
    }

    /// Bytes as they are.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> Result<(), OutputError> {
        self.out.write_all(bytes)?;
        Ok(())
    }

    /// What was written reaches its reader now.
    pub(crate) fn flush(&mut self) -> Result<(), OutputError> {
        self.out.flush()?;
        Ok(())
    }

    /// A remark to standard error, unless `--quiet`. What cannot be written there is let go.
    pub(crate) fn note(&mut self, text: &str) {
        if !self.quiet {
            self.clear_progress();
            drop(writeln!(io::stderr(), "{text}"));
        }
    }

    /// Draws a line over the last one, on a terminal only.
    pub(crate) fn progress(&mut self, text: &str) {
        if self.progress {
            self.progress_drawn = true;
            let mut err = io::stderr().lock();
            drop(write!(err, "\r\x1b[2K{text}").and_then(|()| err.flush()));
        }
    }

    /// Takes the progress line away.
    pub(crate) fn clear_progress(&mut self) {
        if std::mem::take(&mut self.progress_drawn) {
            drop(write!(io::stderr(), "\r\x1b[2K"));
        }
    }

    /// The text in the colour of its meaning, where colours are used.
    pub(crate) fn paint(&self, paint: Paint, text: &str) -> String {
        if self.color {
            format!("\x1b[{}m{text}\x1b[0m", paint.code())
        } else {
            text.to_owned()
        }
    }
}

/// Says why a command failed, in one line.
pub(crate) fn complain(message: &str) {
    let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    drop(writeln!(io::stderr(), "flumen: {line}"));
}

/// Clap's help or version text, as it is.
pub(crate) fn help(text: &str, to_stdout: bool) {
    let written = if to_stdout {
        io::stdout().write_all(text.as_bytes())
    } else {
        io::stderr().write_all(text.as_bytes())
    };
    // Nobody reads it: then nothing is missing.
    drop(written);
}
