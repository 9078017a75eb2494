//! How the demo looks. Boxes and colours on a terminal only; the same words everywhere.

use std::io::{IsTerminal, stdout};
use std::time::Duration;

use hdrhistogram::Histogram;

use super::consuming::Vanished;
use super::killing::Kill;
use super::splitting::Split;
use super::summary::{Check, Summary};
use crate::output::{Output, OutputError, Paint};
use crate::quantity::{count, duration, per_second, size};

/// Columns of the first word of a line.
const LABEL: usize = 12;
/// Columns of the progress bar.
const BAR: u64 = 32;

/// `label     text`, the label dim.
pub(super) fn fact(output: &mut Output, label: &str, text: &str) -> Result<(), OutputError> {
    let label = output.paint(Paint::Dim, &format!("{label:<LABEL$}"));
    output.line(&format!("  {label}{text}"))?;
    output.flush()
}

/// The first lines.
pub(super) fn head(output: &mut Output) -> Result<(), OutputError> {
    let title = output.paint(Paint::Strong, "flumen demo");
    let what = output.paint(
        Paint::Dim,
        "real telemetry to a consumer group and into Parquet, through a broker that is killed on the way",
    );
    output.line("")?;
    output.line(&format!("  {title}  {what}"))?;
    output.line("")
}

/// The line that moves, on a terminal only.
pub(super) fn progress(output: &mut Output, stored: u64, read: u64, total: u64, elapsed: Duration) {
    if !output.draws_progress() {
        return;
    }
    let full = read * BAR / total.max(1);
    let sent = (stored * BAR / total.max(1)).max(full) - full;
    let bar = |times: u64, mark: &str| mark.repeat(usize::try_from(times).unwrap_or(0));
    let bar = format!(
        "{}{}{}",
        bar(full, "█"),
        bar(sent, "▒"),
        bar(BAR - full - sent, "░")
    );
    output.progress(&format!(
        "  {bar}  {:>3} %  {:>9} stored  {:>9} read  {:>8}/s",
        read * 100 / total.max(1),
        count(stored),
        count(read),
        count(per_second(stored, elapsed))
    ));
}

/// What the split met.
pub(super) fn split(output: &mut Output, split: &Split) -> Result<(), OutputError> {
    let children: Vec<_> = split.children.iter().map(u32::to_string).collect();
    let text = format!(
        "shard {} into {} in {}, with {} readings sent and unacknowledged",
        split.shard,
        children.join(" and "),
        output.paint(
            Paint::Figure,
            &duration(Duration::from_micros(split.took_us))
        ),
        count(split.readings_in_flight),
    );
    fact(output, "split", &text)
}

/// What became of a member's shards.
pub(super) fn vanished(output: &mut Output, vanished: &Vanished) -> Result<(), OutputError> {
    let text = format!(
        "member {} of the group, with {} shard{}; others had what it had {} later (session timeout {})",
        output.paint(Paint::Strong, &vanished.member.to_string()),
        vanished.shards,
        if vanished.shards == 1 { "" } else { "s" },
        output.paint(
            Paint::Figure,
            &duration(Duration::from_micros(vanished.taken_over_us))
        ),
        duration(Duration::from_micros(vanished.session_timeout_us)),
    );
    fact(output, "killed", &text)
}

/// What the kill met.
pub(super) fn kill(output: &mut Output, kill: &Kill, percent: u64) -> Result<(), OutputError> {
    let batches: u64 = kill.batches_in_flight.iter().sum();
    let mut found = format!(
        "process {} at {percent} %, with {} of {} producers sent and unacknowledged",
        output.paint(Paint::Strong, &kill.pid.to_string()),
        output.paint(
            Paint::Figure,
            &format!(
                "{batches} batches ({} readings)",
                count(kill.readings_in_flight)
            )
        ),
        kill.batches_in_flight.len(),
    );
    if kill.kills > 1 {
        found.push_str(&format!("; kill {} found all of them busy", kill.kills));
    }
    fact(output, "kill -9", &found)?;
    let each = kill.batches_in_flight.iter().enumerate();
    let each: Vec<_> = each
        .map(|(n, batches)| format!("producer {}: {batches}", n + 1))
        .collect();
    fact(
        output,
        "",
        &format!("{}; none of them is a failure", each.join(", ")),
    )?;
    let delivered = kill.delivered;
    let written = format!(
        "{} cut{} in {} objects by then, {} objects of the next under way",
        delivered.cuts,
        if delivered.cuts == 1 { "" } else { "s" },
        count(delivered.objects),
        count(delivered.unnamed)
    );
    fact(output, "delivered", &written)?;
    let restart = format!(
        "recovered and ready in {}, first ack {} after the kill",
        output.paint(
            Paint::Figure,
            &duration(Duration::from_micros(kill.recovery_us))
        ),
        output.paint(
            Paint::Figure,
            &duration(Duration::from_micros(kill.outage_us))
        ),
    );
    fact(output, "restart", &restart)
}

/// The end: figures, what had to hold, and whether it did.
pub(super) fn summary(output: &mut Output, summary: &Summary) -> Result<(), OutputError> {
    let rate = format!(
        "{} readings/s ({}/s of data), the outage included",
        output.paint(Paint::Figure, &count(summary.readings_per_s())),
        size(per_second(summary.bytes, summary.took)),
    );
    fact(output, "rate", &rate)?;
    let acks = spread(output, &summary.send_to_ack, "the outage");
    fact(output, "to ack", &acks)?;
    let reads = spread(output, &summary.send_to_read, "the killed member's shards");
    fact(output, "to read", &reads)?;
    let resent = format!(
        "{} batches; {} readings in them were stored already and were recognised",
        count(summary.batches_resent),
        count(summary.recognised)
    );
    fact(output, "sent again", &resent)?;
    let delivered = &summary.delivered;
    let objects = format!(
        "{} cuts, {} Parquet objects, {} rows, {}; what was left at the end in {}",
        count(delivered.cuts),
        output.paint(Paint::Figure, &count(delivered.objects)),
        count(delivered.rows),
        size(delivered.bytes),
        duration(Duration::from_micros(delivered.flush_us))
    );
    fact(output, "delivered", &objects)?;
    let again = format!(
        "{} readings in {}",
        count(summary.again.present),
        duration(summary.again_took)
    );
    fact(output, "read again", &again)?;
    output.line("")?;
    checks(output, &summary.checks())?;
    output.line("")?;
    let verdict = if summary.held() {
        output.paint(Paint::Good, "Everything held.")
    } else {
        output.paint(Paint::Bad, "NOT everything held.")
    };
    output.line(&format!("  {verdict}"))?;
    output.line("")
}

/// The slowest are those that waited, and for what.
fn spread(output: &Output, latency: &Histogram<u64>, slowest: &str) -> String {
    let at = |quantile| duration(Duration::from_micros(latency.value_at_quantile(quantile)));
    format!(
        "p50 {}  p90 {}  p99 {}  max {} ({slowest})",
        output.paint(Paint::Figure, &at(0.5)),
        at(0.9),
        at(0.99),
        duration(Duration::from_micros(latency.max()))
    )
}

fn checks(output: &mut Output, checks: &[Check]) -> Result<(), OutputError> {
    let name = checks
        .iter()
        .map(|check| check.name.chars().count())
        .max()
        .unwrap_or(0);
    let figures = checks
        .iter()
        .map(|check| check.figures.chars().count())
        .max()
        .unwrap_or(0);
    let boxed = stdout().is_terminal();
    let rule = "─".repeat(name + figures + 11);
    if boxed {
        output.line(&format!("  ╭{rule}╮"))?;
    }
    for check in checks {
        let line = format!("{:<name$}   {:<figures$}", check.name, check.figures);
        let (sign, paint) = match (check.held, boxed) {
            (true, true) => ("✔", Paint::Good),
            (true, false) => ("ok", Paint::Good),
            (false, true) => ("✘", Paint::Bad),
            (false, false) => ("FAILED", Paint::Bad),
        };
        let sign = output.paint(paint, sign);
        if boxed {
            output.line(&format!("  │  {line}   {sign}  │"))?;
        } else {
            output.line(&format!("  {line}   {sign}"))?;
        }
    }
    if boxed {
        output.line(&format!("  ╰{rule}╯"))?;
    }
    Ok(())
}
