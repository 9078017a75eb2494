//! What a sealed segment says about itself: its runs by shard, each producer's last batch, and the
//! segment before that holds a shard. Layout: `docs/format.md`, "Log files".

mod encoding;
mod rebuild;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use flumen_record::{ProducerId, SequenceNumber, ShardEpoch, ShardId, Timestamp};

use crate::control::{Control, GatheredControls};
use crate::index::Run;
use crate::recovery::BatchMark;

pub(crate) use encoding::{
    FOOTER_ALIGN, TRAILER_BYTES, Trailer, decode_producers, decode_rows, decode_runs, footer_bytes,
};
pub(crate) use rebuild::rebuild;

/// One shard's part of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FooterRow {
    pub(crate) shard: ShardId,
    pub(crate) base: SequenceNumber,
    pub(crate) end: SequenceNumber,
    pub(crate) arrival: Timestamp,
    pub(crate) last_arrival: Timestamp,
    pub(crate) bytes: u64,
    /// The segment before this one that holds the shard; 0 when none does.
    pub(crate) previous: u64,
    pub(crate) epoch: ShardEpoch,
    /// Index of its first run among the segment's, and how many it has.
    pub(crate) runs_at: u32,
    pub(crate) run_count: u32,
    pub(crate) producers_at: u32,
    pub(crate) producer_count: u32,
    pub(crate) runs_checksum: u32,
    pub(crate) producers_checksum: u32,
}

/// What the trailer says of the segment as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FooterSummary {
    pub(crate) first_round: u64,
    pub(crate) last_round: u64,
    /// Header checksum of the last round.
    pub(crate) last_checksum: u32,
    /// Where the last round ends.
    pub(crate) data_end: u64,
    /// Highest catalog record named by a round.
    pub(crate) catalog: u64,
    /// When the last round was written.
    pub(crate) last_written: Timestamp,
}

/// A whole footer in memory: just built, or of a segment that must not get one on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Footer {
    pub(crate) summary: FooterSummary,
    /// Ascending by shard.
    pub(crate) rows: Vec<FooterRow>,
    pub(crate) controls: Vec<Control>,
    /// By shard, then by sequence number.
    pub(crate) runs: Vec<Run>,
    /// By shard.
    pub(crate) producers: Vec<BatchMark>,
}

impl Footer {
    pub(crate) fn runs_of(&self, row: &FooterRow) -> &[Run] {
        let from = row.runs_at as usize;
        self.runs
            .get(from..from + row.run_count as usize)
            .unwrap_or_default()
    }
}

/// Looks a shard up in rows that ascend by shard.
pub(crate) fn find_row(rows: &[FooterRow], shard: ShardId) -> Option<&FooterRow> {
    let place = rows.partition_point(|row| row.shard < shard);
    rows.get(place).filter(|row| row.shard == shard)
}

/// What is gathered of one shard.
#[derive(Debug, Default)]
struct ShardPart {
    previous: u64,
    epoch: ShardEpoch,
    runs: Vec<Run>,
    producers: HashMap<ProducerId, BatchMark>,
}

/// Gathers a footer run by run.
#[derive(Debug, Default)]
pub(crate) struct FooterBuilder {
    shards: BTreeMap<ShardId, ShardPart>,
    controls: GatheredControls,
}

impl FooterBuilder {
    /// Adds a run; those of one shard come in order. `previous` counts with the shard's first.
    pub(crate) fn push_run(&mut self, shard: ShardId, run: Run, epoch: ShardEpoch, previous: u64) {
        let part = self.shards.entry(shard).or_default();
        if part.runs.is_empty() {
            part.previous = previous;
        }
        part.epoch = part.epoch.max(epoch);
        part.runs.push(run);
        self.controls.run(shard, run.base);
    }

    /// Adds a batch, in order within its shard.
    pub(crate) fn push_batch(&mut self, shard: ShardId, mark: BatchMark) {
        if mark.producer != ProducerId::NONE {
            let part = self.shards.entry(shard).or_default();
            part.producers.insert(mark.producer, mark);
        }
    }

    /// Adds the control marks of a round, before its runs.
    pub(crate) fn push_controls(&mut self, controls: &[Control]) {
        self.controls.push(controls);
    }

    pub(crate) fn finish(self, summary: FooterSummary) -> Arc<Footer> {
        let mut footer = Footer {
            summary,
            rows: Vec::with_capacity(self.shards.len()),
            controls: self.controls.into_marks(),
            runs: Vec::new(),
            producers: Vec::new(),
        };
        for (shard, part) in self.shards {
            let (Some(first), Some(last)) = (part.runs.first(), part.runs.last()) else {
                continue;
            };
            let mut producers: Vec<BatchMark> = part.producers.into_values().collect();
            producers.sort_unstable_by_key(|mark| mark.base);
            footer.rows.push(FooterRow {
                shard,
                base: first.base,
                end: last.end,
                arrival: first.arrival,
                last_arrival: last.last_arrival,
                bytes: part.runs.iter().map(|run| u64::from(run.bytes)).sum(),
                previous: part.previous,
                epoch: part.epoch,
                runs_at: count(footer.runs.len()),
                run_count: count(part.runs.len()),
                producers_at: count(footer.producers.len()),
                producer_count: count(producers.len()),
                runs_checksum: 0,
                producers_checksum: 0,
            });
            footer.runs.extend_from_slice(&part.runs);
            footer.producers.append(&mut producers);
        }
        Arc::new(footer)
    }
}

fn count(length: usize) -> u32 {
    u32::try_from(length).expect("BUG: a segment below 4 GiB holds fewer")
}
