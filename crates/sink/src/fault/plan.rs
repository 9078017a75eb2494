//! What goes wrong, and when.

use std::collections::BTreeMap;

use object_store::path::Path;

/// How often each fault happens, in operations of a thousand that it applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FaultRates {
    /// 503 SlowDown.
    pub slow_down: u16,
    /// 500 InternalError, nothing done.
    pub server_error: u16,
    /// No connection.
    pub no_connection: u16,
    /// No answer ever, nothing done.
    pub silence: u16,
    /// No answer ever, and it is done.
    pub silence_after: u16,
    /// The connection breaks, nothing done.
    pub reset: u16,
    /// The connection breaks, and it is done: the answer is lost.
    pub reset_after: u16,
    /// The body of an upload breaks off; nothing is stored.
    pub partial_upload: u16,
    /// The body of a read breaks off.
    pub truncated_read: u16,
    /// Access is denied.
    pub denied: u16,
    /// It takes a while, and then works.
    pub delay: u16,
    /// How long, in milliseconds, at most.
    pub delay_ms_max: u64,
}

impl FaultRates {
    /// Some of each.
    pub fn rough() -> Self {
        Self {
            slow_down: 60,
            server_error: 40,
            no_connection: 20,
            silence: 10,
            silence_after: 15,
            reset: 30,
            reset_after: 60,
            partial_upload: 30,
            truncated_read: 50,
            denied: 10,
            delay: 100,
            delay_ms_max: 200,
        }
    }

    pub(super) fn table(&self) -> [(Fault, u16); 11] {
        [
            (Fault::SlowDown, self.slow_down),
            (Fault::ServerError, self.server_error),
            (Fault::NoConnection, self.no_connection),
            (Fault::Silence, self.silence),
            (Fault::SilenceAfter, self.silence_after),
            (Fault::Reset, self.reset),
            (Fault::ResetAfter, self.reset_after),
            (Fault::PartialUpload, self.partial_upload),
            (Fault::TruncatedRead, self.truncated_read),
            (Fault::Denied, self.denied),
            (Fault::Delay, self.delay),
        ]
    }
}

/// One thing that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "as in `FaultRates`")]
pub enum Fault {
    SlowDown,
    ServerError,
    NoConnection,
    Silence,
    SilenceAfter,
    Reset,
    ResetAfter,
    PartialUpload,
    TruncatedRead,
    Denied,
    Delay,
    /// 404 NoSuchBucket.
    NoSuchBucket,
    /// 400 ExpiredToken.
    ExpiredToken,
}

/// A fault that every operation meets for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outage {
    /// The first operation, counted from 0.
    pub from: u64,
    /// How many.
    pub operations: u64,
    /// What they meet.
    pub fault: Fault,
}

/// The death of the process that uses the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crash {
    /// At this operation, counted from 0.
    pub at: u64,
    /// Whether that operation still takes effect. None after it does.
    pub after_effect: bool,
}

/// How a store keeps conditions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Conditions {
    /// Create if absent is atomic.
    #[default]
    Kept,
    /// It looks, and then writes.
    Raced,
    /// It overwrites.
    Ignored,
    /// 501 NotImplemented.
    Refused,
}

/// What goes wrong, whole.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FaultPlan {
    /// Decides what `rates` hit.
    pub seed: u64,
    /// What happens now and then.
    pub rates: FaultRates,
    /// What happens for a while.
    pub outages: Vec<Outage>,
    /// What ends it.
    pub crash: Option<Crash>,
    /// How conditions are kept.
    pub conditions: Conditions,
}

/// What was asked, and what went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FaultCounts {
    /// Operations of all kinds.
    pub operations: u64,
    /// Puts.
    pub puts: u64,
    /// Gets of metadata alone.
    pub heads: u64,
    /// Gets.
    pub gets: u64,
    /// Deletes.
    pub deletes: u64,
    /// Faults, by kind.
    pub faults: BTreeMap<Fault, u64>,
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Put,
    Head,
    Get,
    Delete,
}

/// A number from everything that decides, well mixed (splitmix64 over FNV-1a).
pub(super) fn draw(seed: u64, kind: Kind, path: &Path, times: u64) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ seed;
    let bytes = path.as_ref().bytes().chain([kind as u8]);
    for byte in bytes.chain(times.to_le_bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let mut z = hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What these rates make of the number.
pub(super) fn drawn(rates: &FaultRates, kind: Kind, draw: u64) -> Option<Fault> {
    let mut at = draw % 1000;
    for (fault, rate) in rates.table() {
        let applies = match fault {
            Fault::PartialUpload => kind == Kind::Put,
            Fault::TruncatedRead => kind == Kind::Get,
            _ => true,
        };
        if !applies {
            continue;
        }
        match at.checked_sub(u64::from(rate)) {
            Some(rest) => at = rest,
            None => return Some(fault),
        }
    }
    None
}
