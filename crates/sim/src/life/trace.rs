//! What happened, line by line: equal seeds write equal lines.

use std::collections::VecDeque;
use std::io::Write;
use std::time::Duration;

/// Lines that are kept.
const KEPT: usize = 60;

/// The last lines, and a fingerprint over all there ever were.
#[derive(Debug)]
pub(crate) struct Trace {
    is_told: bool,
    lines: VecDeque<String>,
    fingerprint: u64,
    count: u64,
}

impl Trace {
    pub(crate) fn new(is_told: bool) -> Self {
        Self {
            is_told,
            lines: VecDeque::new(),
            fingerprint: 0xcbf2_9ce4_8422_2325,
            count: 0,
        }
    }

    /// Writes a line down.
    pub(crate) fn line(&mut self, now: Duration, line: impl FnOnce() -> String) {
        let seconds = now.as_secs();
        let line = format!(
            "{}d {:02}:{:02}:{:02}.{:06} {}",
            seconds / 86_400,
            seconds / 3600 % 24,
            seconds / 60 % 60,
            seconds % 60,
            now.subsec_micros(),
            line()
        );
        for byte in line.bytes() {
            self.fingerprint ^= u64::from(byte);
            self.fingerprint = self.fingerprint.wrapping_mul(0x0100_0000_01b3);
        }
        self.count += 1;
        if self.is_told {
            // Who reads it may be gone.
            let _ = writeln!(std::io::stdout(), "{line}");
        }
        if self.lines.len() >= KEPT {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    /// The lines that are kept.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.iter().cloned().collect()
    }

    /// Over all lines.
    pub(crate) fn fingerprint(&self) -> u64 {
        self.fingerprint
    }
}
