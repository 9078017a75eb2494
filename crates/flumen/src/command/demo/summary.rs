//! What the demo proved and measured, in figures.

use std::time::Duration;

use crate::inspection::Inspection;
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::consuming::Vanished;
use super::delivering::Delivered;
use super::killing::Kill;
use super::ledger::Findings;
use super::splitting::Split;
use crate::quantity::{count, micros, per_second};

/// Everything about a finished run.
#[derive(Debug)]
pub(super) struct Summary {
    pub(super) readings: u64,
    pub(super) bytes: u64,
    pub(super) devices: u64,
    pub(super) shards: u32,
    pub(super) durability: &'static str,
    pub(super) producers: u64,
    pub(super) members: u64,
    pub(super) split: Split,
    pub(super) kill: Kill,
    pub(super) vanished: Vanished,
    /// Readings that the group had left to process at the end, by the broker's word.
    pub(super) lag_records: u64,
    /// Closed shards that it has processed to their end.
    pub(super) finished_shards: usize,
    /// Batches sent again, and readings in them that were stored already: recognised, not doubled.
    pub(super) batches_resent: u64,
    pub(super) recognised: u64,
    /// What the members saw that rode through the outage.
    pub(super) live: Findings,
    /// What lies on disk.
    pub(super) delivered: Delivered,
    /// What a fresh reader saw afterwards.
    pub(super) again: Findings,
    pub(super) again_took: Duration,
    /// From the first send to the last ack.
    pub(super) took: Duration,
    pub(super) send_to_ack: Histogram<u64>,
    pub(super) send_to_read: Histogram<u64>,
    /// The broker's exit code after it was asked to end.
    pub(super) exit: Option<i32>,
    pub(super) inspection: Inspection,
}

/// One thing that had to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Check {
    pub(super) name: &'static str,
    pub(super) held: bool,
    pub(super) figures: String,
}

impl Summary {
    /// Readings per second over the whole run, outage included.
    pub(super) fn readings_per_s(&self) -> u64 {
        per_second(self.readings, self.took)
    }

    /// Whether everything held.
    pub(super) fn held(&self) -> bool {
        self.checks().iter().all(|check| check.held)
    }

    /// What had to hold.
    pub(super) fn checks(&self) -> Vec<Check> {
        let check = |name, held, figures| Check {
            name,
            held,
            figures,
        };
        let Findings {
            present,
            missing,
            repeated,
            strange,
            ..
        } = self.live;
        let in_order = self.devices - self.live.devices_out_of_order;
        let [whole, fits, delivered] = self.delivery_checks();
        vec![
            check(
                "every reading processed",
                missing == 0 && repeated == 0 && strange == 0,
                format!(
                    "{} of {}, {missing} lost, {repeated} twice ({} more of the killed member)",
                    count(present),
                    count(self.readings),
                    count(self.live.repeated_after_kill)
                ),
            ),
            check(
                "each device in order",
                self.live.out_of_order == 0,
                format!("{in_order} of {} devices, by row", self.devices),
            ),
            check(
                "group has nothing left",
                self.lag_records == 0 && self.finished_shards == 1,
                format!(
                    "lag {} records, {} closed shard finished",
                    count(self.lag_records),
                    self.finished_shards
                ),
            ),
            check(
                "bytes equal",
                self.live.different == 0,
                format!("{} of {}", count(self.live.bytes), count(self.bytes)),
            ),
            check(
                "the same when read again",
                self.again.clean(),
                format!("{} readings from the first on", count(self.again.present)),
            ),
            whole,
            fits,
            delivered,
            check(
                "broker drained and ended",
                self.exit == Some(0),
                self.exit
                    .map_or_else(|| "killed".to_owned(), |code| format!("exit {code}")),
            ),
            check(
                "data directory undamaged",
                self.inspection.findings.is_empty(),
                format!(
                    "{} segments, {} rounds, {} findings",
                    self.inspection.segments,
                    count(self.inspection.rounds),
                    self.inspection.findings.len()
                ),
            ),
        ]
    }

    /// Of these, what the delivery stream had to do.
    fn delivery_checks(&self) -> [Check; 3] {
        let Delivered {
            findings,
            cuts,
            objects,
            failed,
            fault,
            ..
        } = &self.delivered;
        let Findings {
            present,
            missing,
            repeated,
            different,
            strange,
            ..
        } = *findings;
        let backlog = self.delivered.backlog_records;
        let freshness = Duration::from_micros(self.delivered.freshness_us);
        [
            Check {
                name: "each in one Parquet object",
                held: [missing, repeated, different, strange, *failed] == [0; 5],
                figures: format!(
                    "{} of {}, {missing} lost, {repeated} twice, {different} of another value",
                    count(present),
                    count(self.readings)
                ),
            },
            Check {
                name: "manifests say what is there",
                held: fault.is_none() && *cuts > 0,
                figures: fault.clone().unwrap_or_else(|| {
                    format!(
                        "{cuts} cuts without a gap, {} objects intact",
                        count(*objects)
                    )
                }),
            },
            Check {
                name: "nothing left to deliver",
                held: backlog == 0 && freshness.is_zero(),
                figures: format!(
                    "{} readings waiting, freshness {} ms",
                    count(backlog),
                    freshness.as_millis()
                ),
            },
        ]
    }

    /// As one JSON object.
    pub(super) fn json(&self) -> Value {
        json!({
            "held": self.held(),
            "readings": self.readings,
            "bytes": self.bytes,
            "devices": self.devices,
            "shards": self.shards,
            "durability": self.durability,
            "producers": self.producers,
            "members": self.members,
            "split": self.split,
            "kill": self.kill,
            "member_killed": self.vanished,
            "lag_records": self.lag_records,
            "batches_resent": self.batches_resent,
            "readings_recognised": self.recognised,
            "live": self.live,
            "delivered": self.delivered,
            "read_again": self.again,
            "read_again_us": micros(self.again_took),
            "seconds": self.took.as_secs_f64(),
            "readings_per_s": self.readings_per_s(),
            "send_to_ack_us": percentiles(&self.send_to_ack),
            "send_to_read_us": percentiles(&self.send_to_read),
            "exit_code": self.exit,
            "damage_found": self.inspection.findings.len(),
            "segments": self.inspection.segments,
            "rounds": self.inspection.rounds,
        })
    }
}

fn percentiles(latency: &Histogram<u64>) -> Value {
    json!({
        "p50": latency.value_at_quantile(0.5),
        "p90": latency.value_at_quantile(0.9),
        "p99": latency.value_at_quantile(0.99),
        "p999": latency.value_at_quantile(0.999),
        "max": latency.max(),
    })
}
