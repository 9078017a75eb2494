//! A footer's bytes: rows, control marks, runs and producers behind the data, and a trailer in the
//! file's last sector that says where they are.

use bytes::{Buf, BufMut};
use flumen_record::{ProducerId, ProducerSequence, SequenceNumber, ShardEpoch, ShardId, Timestamp};

use super::{Footer, FooterRow, FooterSummary};
use crate::checksum;
use crate::control::{CONTROL_BYTES, Control};
use crate::index::Run;
use crate::recovery::BatchMark;
use crate::segment_header::{SECTOR_BYTES, SegmentHeader};

/// A footer begins at a page of its own.
pub(crate) const FOOTER_ALIGN: u64 = 4096;
/// The trailer's sector.
pub(crate) const TRAILER_BYTES: u64 = SECTOR_BYTES;

const SECTOR: usize = 512;
const CHECKSUM_AT: usize = SECTOR - 4;
const MAGIC: u64 = u64::from_le_bytes(*b"flumenFT");
const VERSION: u16 = 1;
const HAS_HOLE: u16 = 1;
pub(crate) const ROW_BYTES: usize = 88;
pub(crate) const RUN_BYTES: usize = 40;
pub(crate) const PRODUCER_BYTES: usize = 48;

/// Bytes a footer with so many parts takes at the end of its file, trailer and alignment included:
/// what an active segment keeps free.
pub(crate) fn footer_bytes(rows: u64, controls: u64, runs: u64, producers: u64) -> u64 {
    let parts = rows * ROW_BYTES as u64
        + controls * CONTROL_BYTES as u64
        + runs * RUN_BYTES as u64
        + producers * PRODUCER_BYTES as u64;
    parts + 2 * FOOTER_ALIGN
}

/// The last sector of a sealed segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Trailer {
    pub(crate) segment: u64,
    pub(crate) generation: u32,
    pub(crate) summary: FooterSummary,
    pub(crate) footer_at: u64,
    pub(crate) rows: u32,
    pub(crate) controls: u32,
    pub(crate) runs: u32,
    pub(crate) producers: u32,
    /// Over rows and control marks.
    pub(crate) rows_checksum: u32,
    /// The unused rest was, or was about to be, given back: the file is not used again.
    pub(crate) has_hole: bool,
}

/// What seeds the checksums of a footer's parts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FooterSums {
    pub(crate) salt: u64,
    pub(crate) footer_at: u64,
}

impl FooterSums {
    /// Over bytes that begin `at` bytes into the footer.
    fn of(self, at: u64, bytes: &[u8]) -> u32 {
        checksum::seeded(checksum::seed(self.salt, self.footer_at + at), &[bytes])
    }
}

impl Trailer {
    /// Size of rows and control marks.
    pub(crate) fn rows_bytes(&self) -> u64 {
        u64::from(self.rows) * ROW_BYTES as u64 + u64::from(self.controls) * CONTROL_BYTES as u64
    }

    /// Where a shard's runs are in the file, and their size.
    pub(crate) fn runs_place(&self, row: &FooterRow) -> (u64, usize) {
        let at = self.footer_at + self.rows_bytes() + u64::from(row.runs_at) * RUN_BYTES as u64;
        (at, row.run_count as usize * RUN_BYTES)
    }

    /// Where a shard's producers are in the file, and their size.
    pub(crate) fn producers_place(&self, row: &FooterRow) -> (u64, usize) {
        let runs = u64::from(self.runs) * RUN_BYTES as u64;
        let before = u64::from(row.producers_at) * PRODUCER_BYTES as u64;
        let at = self.footer_at + self.rows_bytes() + runs + before;
        (at, row.producer_count as usize * PRODUCER_BYTES)
    }

    /// Size of everything before the trailer's own sector.
    pub(crate) fn footer_bytes(&self) -> u64 {
        self.rows_bytes()
            + u64::from(self.runs) * RUN_BYTES as u64
            + u64::from(self.producers) * PRODUCER_BYTES as u64
    }

    pub(crate) fn encode(&self, salt: u64) -> [u8; SECTOR] {
        let mut sector = [0; SECTOR];
        let mut fields = sector.as_mut_slice();
        fields.put_u64_le(MAGIC);
        fields.put_u16_le(VERSION);
        fields.put_u16_le(if self.has_hole { HAS_HOLE } else { 0 });
        fields.put_u32_le(self.generation);
        fields.put_u64_le(self.segment);
        fields.put_u64_le(self.footer_at);
        fields.put_u64_le(self.summary.first_round);
        fields.put_u64_le(self.summary.last_round);
        fields.put_u64_le(self.summary.data_end);
        fields.put_u64_le(self.summary.catalog);
        fields.put_u64_le(self.summary.last_written.as_micros());
        fields.put_u32_le(self.summary.last_checksum);
        fields.put_u32_le(self.rows);
        fields.put_u32_le(self.controls);
        fields.put_u32_le(self.runs);
        fields.put_u32_le(self.producers);
        fields.put_u32_le(self.rows_checksum);
        let (covered, mut place) = sector.split_at_mut(CHECKSUM_AT);
        place.put_u32_le(checksum::seeded(salt, &[covered]));
        sector
    }

    /// Reads the trailer of the segment with `header`; `None` when there is none that verifies or
    /// its places do not fit the file.
    pub(crate) fn decode(sector: &[u8], header: &SegmentHeader) -> Option<Self> {
        let (mut fields, mut place) = sector.split_at_checked(CHECKSUM_AT)?;
        if checksum::seeded(header.salt, &[fields]) != place.try_get_u32_le().ok()? {
            return None;
        }
        if fields.get_u64_le() != MAGIC || fields.get_u16_le() != VERSION {
            return None;
        }
        let has_hole = fields.get_u16_le() & HAS_HOLE != 0;
        let generation = fields.get_u32_le();
        let segment = fields.get_u64_le();
        let footer_at = fields.get_u64_le();
        let first_round = fields.get_u64_le();
        let last_round = fields.get_u64_le();
        let data_end = fields.get_u64_le();
        let catalog = fields.get_u64_le();
        let last_written = Timestamp::from_micros(fields.get_u64_le());
        let last_checksum = fields.get_u32_le();
        let trailer = Self {
            segment,
            generation,
            summary: FooterSummary {
                first_round,
                last_round,
                last_checksum,
                data_end,
                catalog,
                last_written,
            },
            footer_at,
            rows: fields.get_u32_le(),
            controls: fields.get_u32_le(),
            runs: fields.get_u32_le(),
            producers: fields.get_u32_le(),
            rows_checksum: fields.get_u32_le(),
            has_hole,
        };
        let fits = trailer.segment == header.segment
            && trailer.generation == header.generation
            && data_end <= footer_at
            && footer_at
                .checked_add(trailer.footer_bytes())
                .and_then(|end| end.checked_add(TRAILER_BYTES))
                .is_some_and(|end| end <= header.file_bytes);
        fits.then_some(trailer)
    }
}

impl Footer {
    /// Encodes everything before the trailer, and the trailer. `footer_at` is where it will be.
    pub(crate) fn encode(&self, header: &SegmentHeader, footer_at: u64) -> (Vec<u8>, Trailer) {
        let sums = FooterSums {
            salt: header.salt,
            footer_at,
        };
        let mut trailer = Trailer {
            segment: header.segment,
            generation: header.generation,
            summary: self.summary,
            footer_at,
            rows: super::count(self.rows.len()),
            controls: super::count(self.controls.len()),
            runs: super::count(self.runs.len()),
            producers: super::count(self.producers.len()),
            rows_checksum: 0,
            has_hole: false,
        };
        let mut tail = Vec::new();
        for run in &self.runs {
            encode_run(run, &mut tail);
        }
        for mark in &self.producers {
            encode_producer(mark, &mut tail);
        }
        let mut bytes = Vec::with_capacity(tail.len() + self.rows.len() * ROW_BYTES);
        for row in &self.rows {
            let mut row = *row;
            let part = |(at, length): (u64, usize)| {
                let from = usize::try_from(at - footer_at - trailer.rows_bytes())
                    .expect("BUG: a footer is smaller than its segment");
                sums.of(
                    at - footer_at,
                    tail.get(from..from + length).unwrap_or_default(),
                )
            };
            row.runs_checksum = part(trailer.runs_place(&row));
            row.producers_checksum = part(trailer.producers_place(&row));
            encode_row(&row, &mut bytes);
        }
        for control in &self.controls {
            control.encode(&mut bytes);
        }
        trailer.rows_checksum = sums.of(0, &bytes);
        bytes.append(&mut tail);
        (bytes, trailer)
    }
}

/// Reads and verifies rows and control marks.
pub(crate) fn decode_rows(
    bytes: &[u8],
    trailer: &Trailer,
    salt: u64,
) -> Option<(Vec<FooterRow>, Vec<Control>)> {
    let sums = FooterSums {
        salt,
        footer_at: trailer.footer_at,
    };
    if sums.of(0, bytes) != trailer.rows_checksum {
        return None;
    }
    let (mut rows, controls) = bytes.split_at_checked(trailer.rows as usize * ROW_BYTES)?;
    let mut found = Vec::with_capacity(trailer.rows as usize);
    while rows.len() >= ROW_BYTES {
        found.push(decode_row(&mut rows));
    }
    Some((found, Control::decode_all(controls)?))
}

/// Reads and verifies a shard's runs.
pub(crate) fn decode_runs(
    mut bytes: &[u8],
    trailer: &Trailer,
    row: &FooterRow,
    salt: u64,
) -> Option<Vec<Run>> {
    let sums = FooterSums {
        salt,
        footer_at: trailer.footer_at,
    };
    let (at, length) = trailer.runs_place(row);
    if bytes.len() != length || sums.of(at - trailer.footer_at, bytes) != row.runs_checksum {
        return None;
    }
    let mut runs = Vec::with_capacity(row.run_count as usize);
    while bytes.len() >= RUN_BYTES {
        runs.push(decode_run(&mut bytes, trailer.segment));
    }
    Some(runs)
}

/// Reads and verifies a shard's producers.
pub(crate) fn decode_producers(
    mut bytes: &[u8],
    trailer: &Trailer,
    row: &FooterRow,
    salt: u64,
) -> Option<Vec<BatchMark>> {
    let sums = FooterSums {
        salt,
        footer_at: trailer.footer_at,
    };
    let (at, length) = trailer.producers_place(row);
    if bytes.len() != length || sums.of(at - trailer.footer_at, bytes) != row.producers_checksum {
        return None;
    }
    let mut marks = Vec::with_capacity(row.producer_count as usize);
    while bytes.len() >= PRODUCER_BYTES {
        marks.push(decode_producer(&mut bytes));
    }
    Some(marks)
}

fn encode_row(row: &FooterRow, out: &mut Vec<u8>) {
    out.put_u64_le(row.shard.value());
    out.put_u64_le(row.base.value());
    out.put_u64_le(row.end.value());
    out.put_u64_le(row.arrival.as_micros());
    out.put_u64_le(row.last_arrival.as_micros());
    out.put_u64_le(row.bytes);
    out.put_u64_le(row.previous);
    out.put_u32_le(row.epoch.value());
    out.put_u32_le(row.runs_at);
    out.put_u32_le(row.run_count);
    out.put_u32_le(row.producers_at);
    out.put_u32_le(row.producer_count);
    out.put_u32_le(row.runs_checksum);
    out.put_u32_le(row.producers_checksum);
    out.put_u32_le(0);
}

fn decode_row(bytes: &mut &[u8]) -> FooterRow {
    let row = FooterRow {
        shard: ShardId::from_value(bytes.get_u64_le()),
        base: SequenceNumber::new(bytes.get_u64_le()),
        end: SequenceNumber::new(bytes.get_u64_le()),
        arrival: Timestamp::from_micros(bytes.get_u64_le()),
        last_arrival: Timestamp::from_micros(bytes.get_u64_le()),
        bytes: bytes.get_u64_le(),
        previous: bytes.get_u64_le(),
        epoch: ShardEpoch::new(bytes.get_u32_le()),
        runs_at: bytes.get_u32_le(),
        run_count: bytes.get_u32_le(),
        producers_at: bytes.get_u32_le(),
        producer_count: bytes.get_u32_le(),
        runs_checksum: bytes.get_u32_le(),
        producers_checksum: bytes.get_u32_le(),
    };
    bytes.advance(4);
    row
}

fn encode_run(run: &Run, out: &mut Vec<u8>) {
    out.put_u64_le(run.base.value());
    out.put_u64_le(run.end.value());
    out.put_u64_le(run.arrival.as_micros());
    out.put_u64_le(run.last_arrival.as_micros());
    out.put_u32_le(run.position);
    out.put_u32_le(run.bytes);
}

fn decode_run(bytes: &mut &[u8], segment: u64) -> Run {
    Run {
        segment,
        base: SequenceNumber::new(bytes.get_u64_le()),
        end: SequenceNumber::new(bytes.get_u64_le()),
        arrival: Timestamp::from_micros(bytes.get_u64_le()),
        last_arrival: Timestamp::from_micros(bytes.get_u64_le()),
        position: bytes.get_u32_le(),
        bytes: bytes.get_u32_le(),
    }
}

fn encode_producer(mark: &BatchMark, out: &mut Vec<u8>) {
    out.put_u64_le(mark.producer.value());
    out.put_u64_le(mark.sequence.value());
    out.put_u64_le(mark.base.value());
    out.put_u64_le(mark.arrival.as_micros());
    out.put_u32_le(mark.count);
    out.put_u32_le(mark.checksum);
    out.put_u32_le(mark.frame_bytes);
    out.put_u32_le(0);
}

fn decode_producer(bytes: &mut &[u8]) -> BatchMark {
    let mark = BatchMark {
        producer: ProducerId::new(bytes.get_u64_le()),
        sequence: ProducerSequence::new(bytes.get_u64_le()),
        base: SequenceNumber::new(bytes.get_u64_le()),
        arrival: Timestamp::from_micros(bytes.get_u64_le()),
        count: bytes.get_u32_le(),
        checksum: bytes.get_u32_le(),
        frame_bytes: bytes.get_u32_le(),
    };
    bytes.advance(4);
    mark
}
