//! How far a log is known to have got, by what another log remembers of it.

use std::fmt;

use crate::config::LogKey;

/// A moment of a log: everything up to there was on disk once, so that less than that is damage,
/// however whole what is left looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Voucher {
    /// The log's epoch: it rises with every open.
    pub epoch: u32,
    /// A round that a later durable one names durable; 0: there was a round.
    pub round: u64,
}

impl Voucher {
    /// Whether a log that reaches to `found` (`None`: there is no segment of it) may be the one that
    /// this vouches for.
    pub fn is_met_by(self, found: Option<Self>) -> bool {
        found.is_some_and(|found| found.epoch >= self.epoch && found.round >= self.round)
    }
}

/// A log that is less than another one vouches for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shortfall {
    /// Which.
    pub log: LogKey,
    /// How far it got.
    pub vouched: Voucher,
    /// How far what is there gets; `None`: there is no segment.
    pub found: Option<Voucher>,
}

impl fmt::Display for Shortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dir = self.log.dir_name();
        let found = shown(self.found.as_ref());
        write!(
            f,
            "{dir}: {found}, but the catalog vouches for {}; put the folder back as it was, or accept the loss with `flumen doctor repair`",
            self.vouched
        )
    }
}

impl fmt::Display for Voucher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "round {} of epoch {}", self.round, self.epoch)
    }
}

/// What is there, in words.
fn shown(found: Option<&Voucher>) -> String {
    match found {
        Some(found) => format!("it ends at {found}"),
        None => "it is missing or empty".to_owned(),
    }
}
