//! What a delivery stream says about itself while it runs.

use std::sync::{Mutex, MutexGuard, PoisonError};

use flumen_broker::{
    Clock, DeliveryDesk, DeliveryPhase, DeliveryReport, LastError, LastObject, StoreGuarantee,
};
use flumen_record::Timestamp;

use crate::lineage::Positions;
use crate::progress::Progress;
use crate::trouble::Trouble;

/// Tells the node how a delivery stream is doing.
#[derive(Debug)]
pub(crate) struct Reporter {
    desk: DeliveryDesk,
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    report: DeliveryReport,
    /// What it is doing while it works.
    usual: DeliveryPhase,
    /// What is not in a committed cut begins here.
    undelivered: Positions,
    /// Arrival of the oldest record of planned cuts, and of the one that is being filled.
    planned: Option<Timestamp>,
    filling: Option<Timestamp>,
}

impl Reporter {
    pub(crate) fn new(desk: DeliveryDesk, clock: Clock) -> Self {
        Self {
            desk,
            clock,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut DeliveryReport)) {
        let mut state = self.state();
        let before = state.report.clone();
        change(&mut state.report);
        if state.report != before {
            self.desk.report(state.report.clone());
        }
    }

    /// What it is doing now.
    pub(crate) fn phase(&self) -> DeliveryPhase {
        self.state().report.phase
    }

    /// It does something else from now on.
    pub(crate) fn enter(&self, phase: DeliveryPhase) {
        self.change(|report| report.phase = phase);
    }

    /// What the store is known to guarantee.
    pub(crate) fn guarantee(&self) -> StoreGuarantee {
        self.state().report.guarantee
    }

    /// The last time that it has gone on under another life.
    pub(crate) fn last_renewed(&self) -> u64 {
        self.state().report.renewed
    }

    /// It has gone on under another life, as was asked for the `renewed`-th time.
    pub(crate) fn renewed(&self, renewed: u64) {
        self.change(|report| report.renewed = report.renewed.max(renewed));
    }

    /// What the store guarantees.
    pub(crate) fn guaranteed(&self, guarantee: StoreGuarantee) {
        self.change(|report| report.guarantee = guarantee);
    }

    /// Something failed and is tried again. Told to the log when it is new, then now and then.
    pub(crate) fn failed(&self, trouble: &Trouble, phase: DeliveryPhase) {
        let (reason, text, at) = (trouble.reason(), trouble.to_string(), self.clock.now());
        let mut times = 1;
        self.change(|report| {
            let last = report.last_error.as_ref();
            let again = last.filter(|last| last.reason == reason && report.phase == phase);
            times = again.map_or(1, |last| last.times.saturating_add(1));
            report.phase = phase;
            report.last_error = Some(LastError {
                reason,
                text,
                at,
                times,
            });
        });
        if times.is_power_of_two() {
            tracing::warn!(
                delivery = %self.desk.name(), reason, times, error = %trouble,
                stopped = phase == DeliveryPhase::Stopped,
                "delivery failed"
            );
        }
    }

    /// Something failed that holds nothing up.
    pub(crate) fn noted(&self, trouble: &Trouble) {
        let phase = self.phase();
        self.failed(trouble, phase);
    }

    /// It works (again): what held it up is over.
    pub(crate) fn works(&self) {
        let usual = self.state().usual;
        self.change(|report| {
            let was_held_up = matches!(
                report.phase,
                DeliveryPhase::Retrying | DeliveryPhase::Stopped
            );
            if let Some(last) = report.last_error.as_mut().filter(|_| was_held_up) {
                last.times = 0;
            }
            report.phase = usual;
        });
    }

    /// What it is doing while it works.
    pub(crate) fn usually(&self, phase: DeliveryPhase) {
        self.state().usual = phase;
    }

    /// An object is there.
    pub(crate) fn wrote(&self, key: &str, bytes: u64, records: u64) {
        let at = self.clock.now();
        self.change(|report| {
            report.last_object = Some(LastObject {
                key: key.to_owned(),
                bytes,
                records,
                at,
            });
        });
    }

    /// Everything that was there when this flush was asked is committed.
    pub(crate) fn flushed(&self, flush: u64) {
        self.change(|report| report.flushed = report.flushed.max(flush));
    }

    /// The last flush that is done.
    pub(crate) fn last_flush(&self) -> u64 {
        self.state().report.flushed
    }

    /// How many cuts are committed.
    pub(crate) fn committed(&self) -> u64 {
        self.state().report.cuts
    }

    /// Where it stands.
    pub(crate) fn stands(&self, progress: &Progress) {
        self.change(|report| {
            report.cuts = progress.committed();
            report.cuts_open = u32::try_from(progress.cuts().len()).unwrap_or(u32::MAX);
        });
        self.desk.expired(progress.expired());
        let mut state = self.state();
        (state.undelivered, state.planned) = (progress.undelivered_from(), progress.oldest());
        self.tell(&state);
    }

    /// The oldest record of the cut that is being filled.
    pub(crate) fn filling(&self, oldest: Option<Timestamp>) {
        let mut state = self.state();
        if state.filling != oldest {
            state.filling = oldest;
            self.tell(&state);
        }
    }

    fn tell(&self, state: &State) {
        let from = state.undelivered.iter().map(|(shard, at)| (*shard, *at));
        let oldest = state.planned.into_iter().chain(state.filling).min();
        self.desk.deliver_from(from.collect(), oldest);
    }
}
