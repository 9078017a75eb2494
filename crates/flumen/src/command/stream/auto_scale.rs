//! The flags of automatic scaling.

use std::time::Duration;

use flumen_client::AutoScaleUpdate;
use thiserror::Error;

use crate::quantity::{parse_duration, parse_size};

/// Of `stream create`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct AutoScaleArgs {
    /// Split and merge shards by load, between so many open ones, as in 1..16
    #[arg(long, value_parser = parse_shards, value_name = "MIN..MAX")]
    auto_scale: Option<Shards>,
    #[command(flatten)]
    rates: Rates,
}

/// Of `stream update`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct AutoScaleChangeArgs {
    /// Split and merge shards by load, between so many open ones, as in 1..16; `off`: by hand
    #[arg(long, value_parser = parse_shards_or_off, value_name = "MIN..MAX|off")]
    auto_scale: Option<Switch>,
    #[command(flatten)]
    rates: Rates,
}

/// When shards are split and merged.
#[derive(Debug, Clone, clap::Args)]
struct Rates {
    /// What one shard is meant to take, in bytes per second (this or records, or both)
    #[arg(long, value_parser = parse_size, value_name = "SIZE")]
    scale_bytes_per_s: Option<u64>,
    /// What one shard is meant to take, in records per second
    #[arg(long, value_name = "N")]
    scale_records_per_s: Option<u64>,
    /// Split a shard that is above this part of its rate … [default: 70]
    #[arg(long, value_name = "PERCENT")]
    scale_split_above: Option<u32>,
    /// … for this long [default: 60s]
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    scale_split_after: Option<Duration>,
    /// Merge neighbours that are together below this part of it … [default: 20]
    #[arg(long, value_name = "PERCENT")]
    scale_merge_below: Option<u32>,
    /// … for this long [default: 10m]
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    scale_merge_after: Option<Duration>,
    /// Do nothing for this long after a split or merge [default: 5m]
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    scale_cool_down: Option<Duration>,
}

/// Open shards, at least and at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shards {
    least: u32,
    most: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Switch {
    Off,
    On(Shards),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not a range of shards: write the least and the most, as in 1..16")]
struct NotShards;

fn parse_shards(text: &str) -> Result<Shards, NotShards> {
    let (least, most) = text.split_once("..").ok_or(NotShards)?;
    Ok(Shards {
        least: least.parse().map_err(|_| NotShards)?,
        most: most.parse().map_err(|_| NotShards)?,
    })
}

fn parse_shards_or_off(text: &str) -> Result<Switch, NotShards> {
    match text {
        "off" => Ok(Switch::Off),
        shards => parse_shards(shards).map(Switch::On),
    }
}

impl AutoScaleArgs {
    /// What they ask for, if anything.
    pub(super) fn update(&self) -> Option<AutoScaleUpdate> {
        self.rates.update(self.auto_scale.map(Switch::On))
    }
}

impl AutoScaleChangeArgs {
    /// What they ask for, if anything.
    pub(super) fn update(&self) -> Option<AutoScaleUpdate> {
        self.rates.update(self.auto_scale)
    }
}

impl Rates {
    fn update(&self, switch: Option<Switch>) -> Option<AutoScaleUpdate> {
        let shards = match switch {
            Some(Switch::On(shards)) => Some(shards),
            _ => None,
        };
        let update = AutoScaleUpdate {
            off: switch == Some(Switch::Off),
            shards_min: shards.map(|shards| shards.least),
            shards_max: shards.map(|shards| shards.most),
            shard_bytes_per_s: self.scale_bytes_per_s,
            shard_records_per_s: self.scale_records_per_s,
            split_above_percent: self.scale_split_above,
            split_after: self.scale_split_after,
            merge_below_percent: self.scale_merge_below,
            merge_after: self.scale_merge_after,
            cool_down: self.scale_cool_down,
        };
        (update != AutoScaleUpdate::default()).then_some(update)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_the_least_and_the_most() {
        let on = |least, most| Ok(Switch::On(Shards { least, most }));
        for (text, expected) in [
            ("1..16", on(1, 16)),
            ("4..4", on(4, 4)),
            ("off", Ok(Switch::Off)),
            ("16", Err(NotShards)),
            ("1..", Err(NotShards)),
            ("a..b", Err(NotShards)),
            ("", Err(NotShards)),
        ] {
            assert_eq!(parse_shards_or_off(text), expected, "{text}");
        }
    }
}
