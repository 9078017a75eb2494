//! What a run found, as text and as JSON.

use std::time::Duration;

use flumen_client::StreamName;
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::output::{Output, OutputError, Paint};
use crate::quantity::{count, duration, per_second, size};

/// Longest latency told apart, in microseconds.
const LATENCY_MAX_US: u64 = 60_000_000;

/// An empty histogram of microseconds, three digits.
pub(super) fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX_US, 3).expect("BUG: fixed bounds")
}

/// Everything about a run.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) mode: &'static str,
    pub(super) stream: StreamName,
    pub(super) shards: u64,
    pub(super) durability: &'static str,
    pub(super) record_bytes: u64,
    pub(super) batch_records: u32,
    pub(super) sessions: u32,
    pub(super) in_flight: u32,
    pub(super) connections: u32,
    pub(super) rate_target_per_s: Option<u64>,
    pub(super) records: u64,
    /// Data bytes only.
    pub(super) bytes: u64,
    pub(super) errors: u64,
    pub(super) took: Duration,
    /// From due (or sent, without a rate) to acknowledged. None where nothing is acknowledged.
    pub(super) latency: Option<Histogram<u64>>,
    pub(super) consumed: Option<Consumed>,
    pub(super) verified_records: Option<u64>,
    /// Why the run failed, for a person.
    pub(super) first_error: Option<String>,
}

/// The reading half of a run end to end.
#[derive(Debug)]
pub(super) struct Consumed {
    pub(super) consumers: u32,
    pub(super) bytes_out: u64,
    /// Until the last consumer had everything.
    pub(super) took: Duration,
    /// From due to received.
    pub(super) latency: Histogram<u64>,
}

impl Report {
    /// Prints it.
    pub(super) fn print(&self, output: &mut Output) -> Result<(), OutputError> {
        if output.is_json() {
            output.json(&self.json())
        } else {
            self.text(output)
        }
    }

    fn json(&self) -> Value {
        let mut report = json!({
            "mode": self.mode,
            "stream": self.stream.as_str(),
            "shards": self.shards,
            "durability": self.durability,
            "record_bytes": self.record_bytes,
            "batch_records": self.batch_records,
            "sessions": self.sessions,
            "in_flight": self.in_flight,
            "connections": self.connections,
            "rate_target_per_s": self.rate_target_per_s,
            "records": self.records,
            "bytes": self.bytes,
            "errors": self.errors,
            "seconds": self.took.as_secs_f64(),
            "records_per_s": per_second(self.records, self.took),
            "bytes_per_s": per_second(self.bytes, self.took),
            "latency_us": self.latency.as_ref().map(percentiles),
        });
        let mut more = |key: &str, value: Value| {
            if let Some(fields) = report.as_object_mut() {
                fields.insert(key.to_owned(), value);
            }
        };
        if let Some(consumed) = &self.consumed {
            more("end_to_end_us", percentiles(&consumed.latency));
            more("consumers", consumed.consumers.into());
            more("bytes_out", consumed.bytes_out.into());
            more(
                "bytes_out_per_s",
                per_second(consumed.bytes_out, consumed.took).into(),
            );
        }
        if let Some(verified) = self.verified_records {
            more("verified_records", verified.into());
        }
        report
    }

    fn text(&self, output: &mut Output) -> Result<(), OutputError> {
        let head = format!(
            "bench {} · {} · {}",
            self.mode, self.stream, self.durability
        );
        let head = output.paint(Paint::Strong, &head);
        output.line(&head)?;
        let rate = match self.rate_target_per_s {
            Some(rate) => format!("open loop, {} records/s", count(rate)),
            None => "closed loop".to_owned(),
        };
        let mut rows = Vec::new();
        if self.latency.is_some() {
            rows.push((
                "load",
                format!(
                    "{} × {} B a batch, {} sessions × {} in flight, {} connections, {} shards; {rate}",
                    self.batch_records, self.record_bytes, self.sessions, self.in_flight,
                    self.connections, self.shards
                ),
            ));
        }
        rows.push((
            "done",
            format!(
                "{} records, {} in {}, {} errors",
                count(self.records),
                size(self.bytes),
                duration(self.took),
                self.errors
            ),
        ));
        rows.push((
            "rate",
            format!(
                "{} records/s, {}/s",
                count(per_second(self.records, self.took)),
                size(per_second(self.bytes, self.took))
            ),
        ));
        rows.extend(
            self.latency
                .as_ref()
                .map(|latency| ("ack", spread(latency))),
        );
        if let Some(consumed) = &self.consumed {
            rows.push(("end to end", spread(&consumed.latency)));
            let out = size(per_second(consumed.bytes_out, consumed.took));
            rows.push((
                "out",
                format!("{out}/s to {} consumers", consumed.consumers),
            ));
        }
        if let Some(verified) = self.verified_records {
            let said = format!("{} records: count, order, contents", count(verified));
            rows.push(("verified", said));
        }
        for (name, value) in rows {
            let name = output.paint(Paint::Dim, &format!("  {name:<11}"));
            output.line(&format!("{name}{value}"))?;
        }
        Ok(())
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

fn spread(latency: &Histogram<u64>) -> String {
    let at = |quantile| duration(Duration::from_micros(latency.value_at_quantile(quantile)));
    format!(
        "p50 {}, p90 {}, p99 {}, p99.9 {}, max {}",
        at(0.5),
        at(0.9),
        at(0.99),
        at(0.999),
        duration(Duration::from_micros(latency.max()))
    )
}
