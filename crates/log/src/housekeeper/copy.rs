//! Copying what is live of a segment into a new file: the same id, a higher generation, the header
//! last.

use std::io::{self, IoSlice};
use std::sync::Arc;

use flumen_record::SequenceNumber;

use super::{Housekeeper, HousekeepingReport};
use crate::checksum;
use crate::control::Control;
use crate::footer::{FooterBuilder, FooterRow, FooterSummary, footer_bytes};
use crate::footer_cache::IndexLook;
use crate::index::Run;
use crate::log::NewFrame;
use crate::log::active::{create_file, head_bytes};
use crate::round::{
    COPIED, FoundFrame, RoundEncoder, RoundHeader, RoundOwner, Window, mark_of, read_frames,
    read_header,
};
use crate::segment::{FooterPlace, Segment, SegmentName};
use crate::segment_header::{COPIES, HEAD, HEAD_BYTES, SECTOR_BYTES, SegmentHeader};
use crate::shared::count;
use crate::storage::Preparation;

/// Copied rounds are gathered up to this size.
const ROUND_BYTES: usize = 1 << 20;
const FILE_ALIGN: u64 = 4096;

/// A copy being filled.
struct Copy<'a> {
    old: &'a Segment,
    segment: Segment,
    position: u64,
    encoder: RoundEncoder,
    builder: FooterBuilder,
    rows: &'a [FooterRow],
    controls: Vec<Control>,
    frames: Vec<NewFrame>,
    gathered: usize,
    /// Number of the last round written to the copy.
    last_put: Option<u64>,
}

impl Housekeeper {
    /// Copies the live runs of segment `id`.
    pub(super) fn copy(&mut self, id: u64, report: &mut HousekeepingReport) -> io::Result<()> {
        let Some(old) = self.shared.segment(id) else {
            return Ok(());
        };
        match self.copy_live(&old) {
            Ok(Some(segment)) => {
                self.shared.insert_segment(Arc::new(segment));
                self.shared.footers.forget(id);
                count(&self.shared.counters.segments_copied, 1);
                report.copied += 1;
                self.retire(old, report)
            }
            Ok(None) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                // What is damaged stays as it is.
                tracing::error!(segment = %old.path, %error, "not copied");
                old.set_failed();
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// `Ok(None)`: there is no room, or it has no footer.
    fn copy_live(&self, old: &Arc<Segment>) -> io::Result<Option<Segment>> {
        let Some(index) = self.shared.index_of(old)? else {
            return Ok(None);
        };
        let state = read_state(old)?;
        // Looked at once: a shard that comes back meanwhile has no room in the copy.
        let rows = index.rows();
        let horizons: Vec<SequenceNumber> = rows.iter().map(|row| self.live_from(row)).collect();
        let bytes = self.copy_bytes(old, &index, &horizons, state.len())?;
        if bytes > self.shared.free_bytes() || bytes >= old.file.bytes() {
            return Ok(None);
        }
        let name = SegmentName {
            segment: old.id(),
            generation: old.name.generation.saturating_add(1),
        };
        let prepared = create_file(&self.shared, name, bytes, Preparation::Allocated)?;
        let result = self.fill(old, &index, &horizons, &state, prepared);
        if result.is_err() {
            self.shared
                .storage
                .remove(&self.shared.path(&name.to_string()))?;
        }
        result.map(Some)
    }

    fn fill(
        &self,
        old: &Arc<Segment>,
        index: &IndexLook,
        horizons: &[SequenceNumber],
        state: &[u8],
        prepared: crate::work::PreparedFile,
    ) -> io::Result<Segment> {
        let mut header = SegmentHeader {
            generation: prepared.name.generation,
            file_bytes: prepared.file.bytes(),
            salt: checksum::new_salt(
                self.shared.key,
                old.id(),
                prepared.name.generation,
                old.header.epoch,
                old.header.salt,
            ),
            ..old.header
        };
        header.state_checksum = header.state_sum(state);
        let segment = Segment::new(
            prepared.path,
            prepared.file,
            header,
            None,
            FooterPlace::Recent,
        );
        let mut copy = Copy {
            old,
            position: header.rounds_at(),
            segment,
            encoder: RoundEncoder::default(),
            builder: FooterBuilder::default(),
            rows: index.rows(),
            controls: Vec::new(),
            frames: Vec::new(),
            gathered: 0,
            last_put: None,
        };
        let summary = index.summary();
        copy.rounds(summary, horizons)?;
        // The old footer's, which knows of shards that came back; a copied round has lost the order.
        copy.builder
            .push_controls(&self.shared.controls_of(old, index)?);
        copy.finish(summary, state)
    }

    /// Size of the copy's file.
    fn copy_bytes(
        &self,
        old: &Arc<Segment>,
        index: &IndexLook,
        horizons: &[SequenceNumber],
        state: usize,
    ) -> io::Result<u64> {
        let rows = index.rows();
        let (mut live, mut runs, mut producers) = (0, 0, 0);
        for (row, &horizon) in rows.iter().zip(horizons) {
            if horizon >= row.end {
                continue;
            }
            for run in self.shared.runs_of(old, index, row)?.iter() {
                if run.end > horizon {
                    live += u64::from(run.bytes);
                    runs += 1;
                }
            }
            producers += u64::from(row.producer_count);
        }
        let controls = index.control_count();
        let rounds = live / ROUND_BYTES as u64 + 2;
        // A round in which runs of a few shards live between dead ones ends no run early, so that
        // no more runs come out than went in.
        let total = HEAD_BYTES
            + state as u64
            + live
            + rounds * 2 * SECTOR_BYTES
            + controls * 64
            + footer_bytes(rows.len() as u64, controls, runs, producers)
            + 4 * FILE_ALIGN;
        Ok(total.next_multiple_of(FILE_ALIGN))
    }
}

impl Copy<'_> {
    /// Walks the old segment's rounds and copies the live frames.
    fn rounds(&mut self, summary: FooterSummary, horizons: &[SequenceNumber]) -> io::Result<()> {
        let old = self.old;
        let mut window = Window::new(&*old.file, summary.data_end);
        let mut position = old.header.rounds_at();
        let mut last = None;
        while position < summary.data_end {
            let found = read_header(&mut window, RoundOwner::of(&old.header), position)?
                .ok_or_else(|| damaged("a round's header"))?;
            let content = read_frames(&mut window, &found, position)?;
            if !content.is_intact() {
                return Err(damaged("a round's frames"));
            }
            self.controls.extend_from_slice(&found.control);
            for run in runs_of(&content.frames) {
                self.copy_run(run, horizons);
            }
            position += found.header.padded_bytes();
            last = Some(found.header);
            if self.gathered >= ROUND_BYTES {
                self.put_round(&found.header)?;
            }
        }
        match last {
            // Everything up to the last source round was put already.
            Some(header) if self.last_put == Some(header.round) => Ok(()),
            Some(header) => self.put_round(&header),
            None => Err(damaged("its rounds")),
        }
    }

    fn copy_run(&mut self, run: &[FoundFrame], horizons: &[SequenceNumber]) {
        let (Some(first), Some(end)) = (run.first(), run.last().map(FoundFrame::end)) else {
            return;
        };
        let shard = first.header.shard;
        let place = self.rows.partition_point(|row| row.shard < shard);
        let live = self.rows.get(place).is_some_and(|row| row.shard == shard)
            && horizons.get(place).is_some_and(|horizon| *horizon < end);
        if live {
            self.gathered += run
                .iter()
                .map(|f| f.header.frame_bytes as usize)
                .sum::<usize>();
            self.frames.extend(run.iter().map(FoundFrame::to_new));
        }
    }

    /// Writes what was gathered as one round with the number of the last source round.
    fn put_round(&mut self, source: &RoundHeader) -> io::Result<()> {
        let header = &self.segment.header;
        let round = RoundHeader {
            flags: COPIED,
            bytes: 0,
            control_bytes: 0,
            frame_count: 0,
            log: header.log,
            segment: header.segment,
            salt: header.salt,
            round: source.round,
            // Without the header of its segment a copy must not vouch for itself.
            last_durable: header.continues_after,
            catalog: source.catalog,
            written: source.written,
            epoch: source.epoch,
            previous_checksum: 0,
            frames_checksum: 0,
        };
        self.encoder
            .encode(round, &self.controls, &self.frames, self.position);
        let mut buffers = Vec::new();
        self.encoder.buffers(&self.frames, &mut buffers);
        self.segment.file.write_at(&buffers, self.position)?;
        for run in self.encoder.runs() {
            let place = self.rows.partition_point(|row| row.shard < run.shard);
            let previous = self.rows.get(place).map_or(0, |row| row.previous);
            self.builder.push_run(
                run.shard,
                Run::new(header.segment, run),
                run.epoch,
                previous,
            );
        }
        for frame in &self.frames {
            let mark = mark_of(
                &flumen_record::FrameHeader {
                    frame_bytes: u32::try_from(
                        frame.batch.bytes().len() + flumen_record::FRAME_HEADER_BYTES,
                    )
                    .unwrap_or(u32::MAX),
                    checksum: 0,
                    shard: frame.shard,
                    epoch: frame.epoch,
                    base: frame.base,
                    arrival: frame.arrival,
                },
                frame.batch.header(),
            );
            self.builder.push_batch(frame.shard, mark);
        }
        self.position += self.encoder.bytes();
        self.controls.clear();
        self.frames.clear();
        self.gathered = 0;
        self.last_put = Some(source.round);
        Ok(())
    }

    /// State, footer, sync; then the header.
    fn finish(self, summary: FooterSummary, state: &[u8]) -> io::Result<Segment> {
        let Self {
            segment,
            builder,
            position,
            ..
        } = self;
        let footer = builder.finish(FooterSummary {
            data_end: position,
            ..summary
        });
        let head = head_bytes(&segment.header, state);
        let (headers, rest) = head
            .split_at_checked(HEAD)
            .expect("BUG: a head is longer than its headers");
        if !rest.is_empty() {
            segment.file.write_at(&[IoSlice::new(rest)], HEAD_BYTES)?;
        }
        let place = super::seal::put_footer(&segment, &footer)?
            .ok_or_else(|| io::Error::other("BUG: a copy was made too small for its footer"))?;
        let headers = headers
            .get(..COPIES)
            .expect("BUG: a head holds both headers");
        segment.file.write_durable_at(&[IoSlice::new(headers)], 0)?;
        segment.file.publish(position);
        segment.set_end(position, summary.last_round);
        segment.set_footer(place);
        Ok(segment)
    }
}

/// Parts frames into runs: one shard's, consecutive.
fn runs_of(frames: &[FoundFrame]) -> impl Iterator<Item = &[FoundFrame]> {
    frames.chunk_by(|first, second| {
        first.header.shard == second.header.shard && first.end() == second.header.base
    })
}

fn read_state(segment: &Segment) -> io::Result<Vec<u8>> {
    let mut state = vec![0; segment.header.state_bytes as usize];
    segment.file.read_at(&mut state, HEAD_BYTES)?;
    if segment.header.state_sum(&state) != segment.header.state_checksum {
        return Err(damaged("the state table"));
    }
    Ok(state)
}

fn damaged(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("damaged: {what}"))
}
