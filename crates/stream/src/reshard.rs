//! Splitting and merging shards: what is allowed, and which steps lead to a number of shards. Pure.

mod scale;
#[cfg(test)]
mod tests;

use flumen_record::{HashKey, HashRange, ShardIndex};
use thiserror::Error;

use crate::{ShardState, StreamInfo};

pub use scale::next_steps;

/// Closed shards are kept until their retention ends; a stream that is resharded all the time must
/// still fit into one catalog record.
pub const SHARDS_KEPT_MAX: u32 = 1 << 16;

/// One step: open shards close, and others open in their place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reshard {
    /// One shard becomes two.
    Split {
        /// The shard.
        shard: ShardIndex,
        /// First key of the upper child; `None`: the middle of the range.
        at: Option<HashKey>,
    },
    /// Two neighbours become one.
    Merge {
        /// One of them.
        shard: ShardIndex,
        /// The other.
        adjacent: ShardIndex,
    },
}

impl Reshard {
    /// The shards that it closes.
    pub fn parents(&self) -> impl Iterator<Item = ShardIndex> {
        let (one, other) = match *self {
            Self::Split { shard, .. } => (shard, None),
            Self::Merge { shard, adjacent } => (shard, Some(adjacent)),
        };
        std::iter::once(one).chain(other)
    }
}

/// Why shards are not split or merged. Nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ReshardError {
    /// No such shard.
    #[error("there is no shard {shard}")]
    NotFound {
        /// The index asked for.
        shard: ShardIndex,
    },
    /// It was split or merged before.
    #[error("shard {shard} is closed")]
    Closed {
        /// The shard.
        shard: ShardIndex,
        /// First number it never gave out.
        end: flumen_record::SequenceNumber,
    },
    /// Their ranges do not touch.
    #[error("shards {shard} and {other} are not neighbours")]
    NotAdjacent {
        /// One shard.
        shard: ShardIndex,
        /// The other.
        other: ShardIndex,
    },
    /// A split there would leave one child without keys.
    #[error("shard {shard} cannot be split at hash key {at}")]
    Outside {
        /// The shard.
        shard: ShardIndex,
        /// The key asked for.
        at: HashKey,
        /// The shard's range.
        range: HashRange,
    },
    /// More shards than a stream may have.
    #[error("{shards} shards are more than {max}")]
    TooMany {
        /// How many there would be.
        shards: u64,
        /// The bound.
        max: u32,
        /// Whether closed shards that are still kept count, too.
        closed_too: bool,
    },
}

/// What one step makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) parents: Vec<ShardIndex>,
    /// In the order of their keys.
    pub(crate) children: Vec<HashRange>,
}

/// What becomes of `stream` by steps that do not touch each other's shards.
pub(crate) fn outcomes(
    stream: &StreamInfo,
    steps: &[Reshard],
    shards_max: u32,
) -> Result<Vec<Outcome>, ReshardError> {
    let mut outcomes = Vec::with_capacity(steps.len());
    let mut closing: Vec<ShardIndex> = Vec::new();
    for step in steps {
        let outcome = outcome(stream, step)?;
        if let Some(shard) = outcome.parents.iter().find(|shard| closing.contains(shard)) {
            // The caller asked for the same shard twice: it would be closed by the first.
            return Err(ReshardError::NotFound { shard: *shard });
        }
        closing.extend(&outcome.parents);
        outcomes.push(outcome);
    }
    let children: u64 = outcomes.iter().map(|one| one.children.len() as u64).sum();
    let open = stream.open_shards().count() as u64;
    let bounds = [
        (open + children - closing.len() as u64, shards_max, false),
        (stream.shards.len() as u64 + children, SHARDS_KEPT_MAX, true),
    ];
    for (shards, max, closed_too) in bounds {
        if children > closing.len() as u64 && shards > u64::from(max) {
            return Err(ReshardError::TooMany {
                shards,
                max,
                closed_too,
            });
        }
    }
    Ok(outcomes)
}

fn outcome(stream: &StreamInfo, step: &Reshard) -> Result<Outcome, ReshardError> {
    match *step {
        Reshard::Split { shard, at } => {
            let range = open_range(stream, shard)?;
            let at = at.unwrap_or_else(|| middle(range));
            if at <= range.start || at > range.end {
                return Err(ReshardError::Outside { shard, at, range });
            }
            let lower = HashRange {
                start: range.start,
                end: HashKey::new(at.value() - 1),
            };
            let upper = HashRange {
                start: at,
                end: range.end,
            };
            Ok(Outcome {
                parents: vec![shard],
                children: vec![lower, upper],
            })
        }
        Reshard::Merge { shard, adjacent } => {
            let (one, other) = (open_range(stream, shard)?, open_range(stream, adjacent)?);
            let (lower, upper) = if one.start <= other.start {
                (one, other)
            } else {
                (other, one)
            };
            if lower.end.value().checked_add(1) != Some(upper.start.value()) {
                return Err(ReshardError::NotAdjacent {
                    shard,
                    other: adjacent,
                });
            }
            let merged = HashRange {
                start: lower.start,
                end: upper.end,
            };
            Ok(Outcome {
                parents: vec![shard, adjacent],
                children: vec![merged],
            })
        }
    }
}

fn open_range(stream: &StreamInfo, shard: ShardIndex) -> Result<HashRange, ReshardError> {
    let found = stream
        .shard(shard)
        .ok_or(ReshardError::NotFound { shard })?;
    match found.state {
        ShardState::Open => Ok(found.range),
        ShardState::Closed { end, .. } => Err(ReshardError::Closed { shard, end }),
    }
}

/// Where a range is split when nobody says: both halves own as many keys.
pub(crate) fn middle(range: HashRange) -> HashKey {
    cut(range, 1, 2)
}

/// First key behind `part` of `parts` equal parts of a range. `0 < part < parts`.
fn cut(range: HashRange, part: u32, parts: u32) -> HashKey {
    let (part, parts) = (u128::from(part), u128::from(parts.max(1)));
    let last = range.end.value() - range.start.value();
    // In two steps, as the product does not fit.
    let keys = last / parts * part + last % parts * part / parts;
    HashKey::new((range.start.value() + keys).saturating_add(1))
}
