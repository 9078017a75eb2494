//! The broker's numbers as OpenMetrics text. Names get their prefix here and counters `_total`.

use std::fmt;

use flumen_broker::{HistogramSnapshot, MetricsSnapshot};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeCounterValue, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::process::ProcessStats;

/// The content type of [`render`]'s text.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The prefix of every name.
const PREFIX: &str = "flumen";

pub(crate) type Labels = Vec<(&'static str, String)>;
pub(crate) type Family<V> = (&'static str, &'static str, Labels, V);

/// What a page says about the broker.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    /// Most of it.
    pub(crate) snapshot: MetricsSnapshot,
    /// Ever-growing times, in seconds.
    pub(crate) seconds: Vec<Family<f64>>,
}

impl From<MetricsSnapshot> for Numbers {
    fn from(snapshot: MetricsSnapshot) -> Self {
        Self {
            snapshot,
            seconds: Vec::new(),
        }
    }
}

/// One text of everything. `broker` is `None` until the data directory is open.
pub(crate) fn render(
    broker: Option<Numbers>,
    process: ProcessStats,
    ready: bool,
) -> Result<String, fmt::Error> {
    let mut numbers = broker.unwrap_or_default();
    numbers.snapshot.gauges.extend(own_gauges(process, ready));
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register_collector(Box::new(Exposition(numbers)));
    let mut out = String::new();
    text::encode(&mut out, &registry)?;
    Ok(out)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "gauges are floating point; memory fits in 2^53"
)]
fn own_gauges(process: ProcessStats, ready: bool) -> Vec<Family<f64>> {
    let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
    let mut gauges = vec![
        ("build_info", "The version of this binary", version, 1.0),
        (
            "ready",
            "1 when work should be sent here",
            Vec::new(),
            f64::from(u8::from(ready)),
        ),
    ];
    let measured = [
        (
            "process_resident_bytes",
            "Resident memory",
            process.resident_bytes,
        ),
        (
            "process_anonymous_bytes",
            "Resident memory that is not backed by files",
            process.anonymous_bytes,
        ),
        ("process_threads", "Threads", process.threads),
        (
            "process_open_files",
            "Open file descriptors",
            process.open_files,
        ),
    ];
    for (name, help, value) in measured {
        gauges.extend(value.map(|value| (name, help, Vec::new(), value as f64)));
    }
    gauges
}

#[derive(Debug)]
struct Exposition(Numbers);

impl Collector for Exposition {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let numbers = &self.0.snapshot;
        for family in families(&numbers.counters) {
            counters(&mut encoder, &family)?;
        }
        for family in families(&self.0.seconds) {
            counters(&mut encoder, &family)?;
        }
        for family in families(&numbers.gauges) {
            gauges(&mut encoder, &family)?;
        }
        for family in families(&numbers.histograms) {
            histograms(&mut encoder, &family)?;
        }
        Ok(())
    }
}

/// Samples of one name together, in the order in which names first appear: the format wants each
/// name described once.
fn families<V>(samples: &[Family<V>]) -> Vec<Vec<&Family<V>>> {
    let mut families: Vec<Vec<&Family<V>>> = Vec::new();
    for sample in samples {
        let known = families
            .iter_mut()
            .find(|family| family.first().is_some_and(|first| first.0 == sample.0));
        match known {
            Some(family) => family.push(sample),
            None => families.push(vec![sample]),
        }
    }
    families
}

fn counters<V: EncodeCounterValue>(
    encoder: &mut DescriptorEncoder<'_>,
    family: &[&Family<V>],
) -> fmt::Result {
    let Some((name, help, ..)) = family.first() else {
        return Ok(());
    };
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (_, _, labels, value) in family {
        if labels.is_empty() {
            metric.encode_counter::<NoLabelSet, _, u64>(value, None)?;
        } else {
            metric
                .encode_family(labels)?
                .encode_counter::<NoLabelSet, _, u64>(value, None)?;
        }
    }
    Ok(())
}

fn gauges(encoder: &mut DescriptorEncoder<'_>, family: &[&Family<f64>]) -> fmt::Result {
    let Some((name, help, ..)) = family.first() else {
        return Ok(());
    };
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (_, _, labels, value) in family {
        if labels.is_empty() {
            metric.encode_gauge(value)?;
        } else {
            metric.encode_family(labels)?.encode_gauge(value)?;
        }
    }
    Ok(())
}

fn histograms(
    encoder: &mut DescriptorEncoder<'_>,
    family: &[&Family<HistogramSnapshot>],
) -> fmt::Result {
    let Some((name, help, ..)) = family.first() else {
        return Ok(());
    };
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    for (_, _, labels, histogram) in family {
        let (sum, count) = (histogram.sum_seconds, histogram.count);
        let buckets = buckets(histogram);
        if labels.is_empty() {
            metric.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        } else {
            let mut metric = metric.encode_family(labels)?;
            metric.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
    }
    Ok(())
}

/// The encoder adds buckets up itself and wants the last one open; ours come added up.
fn buckets(histogram: &HistogramSnapshot) -> Vec<(f64, u64)> {
    let mut below = 0;
    let mut buckets = Vec::with_capacity(histogram.buckets.len() + 1);
    for &(bound, at_or_below) in &histogram.buckets {
        if bound.is_finite() {
            buckets.push((bound, at_or_below.saturating_sub(below)));
            below = below.max(at_or_below);
        }
    }
    buckets.push((f64::INFINITY, histogram.count.saturating_sub(below)));
    buckets
}

#[cfg(test)]
mod tests;
