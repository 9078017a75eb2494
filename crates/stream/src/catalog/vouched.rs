//! What the catalog remembers of how far other logs have got: a log that is missing, emptied or an
//! older copy cannot say so itself.
//!
//! What is remembered was on disk before the record was written, so that a crash in between leaves a
//! log that is more than is remembered, never less.

use std::collections::BTreeMap;

use flumen_log::{LogKey, Shortfall, Voucher};
use flumen_record::Timestamp;

use super::change::Change;
use super::{Catalog, State};
use crate::CatalogError;

/// What is remembered of one log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vouched {
    /// It got this far: less is refused.
    Reached(Voucher),
    /// An operator has accepted that it is less than it was: it is taken as it is, and what may have
    /// been lost of its shards is skipped over, as lost.
    LossAccepted,
}

impl Vouched {
    /// How far it must have got.
    pub fn voucher(self) -> Option<Voucher> {
        match self {
            Self::Reached(voucher) => Some(voucher),
            Self::LossAccepted => None,
        }
    }
}

impl State {
    pub(super) fn vouch(&mut self, vouched: Vec<(LogKey, Vouched)>) {
        self.vouched.extend(vouched);
    }

    pub(super) fn all_vouched(&self) -> Vec<(LogKey, Vouched)> {
        let all = self.vouched.iter();
        all.map(|(log, vouched)| (*log, *vouched)).collect()
    }
}

impl Catalog {
    /// What is remembered of a log; `None` of one that was there before this was remembered, or has
    /// never held anything.
    pub fn vouched(&self, log: LogKey) -> Option<Vouched> {
        self.state.vouched.get(&log).copied()
    }

    /// What is remembered, of all logs.
    pub fn all_vouched(&self) -> &BTreeMap<LogKey, Vouched> {
        &self.state.vouched
    }

    /// Remembers how far logs have got, all in one record; nothing is written when that is known.
    pub fn vouch(
        &mut self,
        reached: impl IntoIterator<Item = (LogKey, Voucher)>,
        now: Timestamp,
    ) -> Result<(), CatalogError> {
        let is_more = |(log, voucher): &(LogKey, Voucher)| match self.vouched(*log) {
            Some(Vouched::Reached(known)) => *voucher > known,
            Some(Vouched::LossAccepted) | None => true,
        };
        let reached: Vec<_> = reached
            .into_iter()
            .filter(is_more)
            .map(|(log, voucher)| (log, Vouched::Reached(voucher)))
            .collect();
        if reached.is_empty() {
            return Ok(());
        }
        let change = Change::Vouch(reached);
        // It can wait for space; what frees some cannot.
        self.log.has_room(&change)?;
        self.commit(change, now)
    }

    /// The logs that are less than is remembered of them. `reaches`: how far each log that is there
    /// gets ([`flumen_log::LogInspection::reaches`]).
    pub fn shortfalls(&self, reaches: &BTreeMap<LogKey, Option<Voucher>>) -> Vec<Shortfall> {
        let vouched = self.state.vouched.iter();
        let short = vouched.filter_map(|(log, vouched)| {
            let vouched = vouched.voucher()?;
            let found = reaches.get(log).copied().flatten();
            (!vouched.is_met_by(found)).then_some(Shortfall {
                log: *log,
                vouched,
                found,
            })
        });
        short.collect()
    }

    /// Takes a log as it is from the next start on, whatever was lost of it. Until that start has
    /// skipped what may be lost, it is remembered.
    pub fn accept_loss(&mut self, log: LogKey, now: Timestamp) -> Result<(), CatalogError> {
        self.commit(Change::Vouch(vec![(log, Vouched::LossAccepted)]), now)
    }
}
