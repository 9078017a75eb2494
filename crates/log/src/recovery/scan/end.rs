//! How the walk ends: against what vouches for the log, and parted into what stays and what is written
//! again.

use super::super::search::search;
use super::{PAGE_BYTES, Scan, Walk, io_at, sealed};
use crate::error::OpenError;
use crate::round::{CLOSED, RoundOwner, Window};
use crate::voucher::{Shortfall, Voucher};

impl Walk<'_, '_> {
    /// Refuses a log that is not all that another one vouches for. A last round that is damaged
    /// where it stands is not meant: something follows it.
    pub(super) fn check(&mut self, voucher: Voucher) -> Result<(), OpenError> {
        let segments = &self.inventory.segments;
        if self.scan.reached < voucher.round {
            for segment in segments.iter().filter(|one| sealed(one).is_none()) {
                let mut window = Window::new(&*segment.file, segment.file.bytes());
                let owner = RoundOwner::of(&segment.header);
                let found = search(&mut window, owner, segment.header.rounds_at(), 0);
                self.scan.reached = self.scan.reached.max(found.map_err(io_at(segment))?.last);
            }
        }
        let found = (!segments.is_empty()).then_some(Voucher {
            epoch: self.scan.epoch,
            round: self.scan.reached,
        });
        if voucher.is_met_by(found) {
            return Ok(());
        }
        Err(OpenError::Short(Shortfall {
            log: self.inventory.key,
            vouched: voucher,
            found,
        }))
    }

    /// A log that ends below what vouches for it has lost its end.
    pub(super) fn check_end(&mut self) {
        let missing = self.expected;
        if missing > self.vouched {
            return;
        }
        self.emit_all();
        let last = self.inventory.segments.last();
        let name = last.map_or_else(|| "snapshot".to_owned(), |last| last.name.to_string());
        let reason = format!(
            "rounds {missing} to {} are missing at the end",
            self.vouched
        );
        self.restorer.lose_rounds(&name, reason);
        self.scan.last_round = self.vouched;
        self.scan.last_checksum = 0;
        self.expected = self.vouched + 1;
    }

    /// Parts what is in line into what stays and what is written again.
    pub(super) fn finish(mut self) -> Scan {
        let vouched = self.vouched;
        let only_closed = self
            .line
            .iter()
            .all(|round| round.round() <= vouched || !round.is_loaded());
        let closed = self
            .line
            .back()
            .is_some_and(|round| round.found.header.flags & CLOSED != 0);
        self.scan.clean =
            self.inventory.segments.is_empty() || (closed && only_closed && !self.torn);
        let first_unvouched = self.line.iter().position(|round| round.round() > vouched);
        if self.scan.clean {
            self.line
                .truncate(first_unvouched.unwrap_or(self.line.len()));
        } else if first_unvouched.is_some() || self.torn {
            let tail_at = first_unvouched
                .and_then(|place| self.line.get(place))
                .map(|round| (round.segment, round.position))
                .or(self.ended_at);
            if let Some((segment, position)) = tail_at {
                let page = position - position % PAGE_BYTES;
                while self.line.front().is_some_and(|front| {
                    front.round() <= vouched && (front.segment < segment || front.end() <= page)
                }) {
                    self.emit_front();
                }
                self.scan.tail = std::mem::take(&mut self.line).into();
            }
        }
        self.emit_all();
        self.scan.vouched = vouched;
        self.scan
    }
}
