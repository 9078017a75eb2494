//! Writing rounds again into a fresh segment, its header last: before the header the copy does not
//! exist, after it older bytes beyond its first round do not.

use std::io::{self, IoSlice};

use flumen_record::Timestamp;

use super::NewFrame;
use super::active::{Active, ChainEnd};
use crate::control::Control;
use crate::round::{NewRun, RoundEncoder};
use crate::segment_header::{COPIES, HEAD, HEAD_BYTES};

/// A round that is written again.
#[derive(Debug)]
pub(crate) struct OldRound {
    pub(crate) frames: Vec<NewFrame>,
    pub(crate) controls: Vec<Control>,
    pub(crate) catalog: u64,
    pub(crate) written: Timestamp,
    pub(crate) flags: u16,
}

impl OldRound {
    /// Bytes it takes when written.
    pub(crate) fn bytes(&self) -> u64 {
        RoundEncoder::bytes_of(self.controls.len(), &self.frames)
    }
}

/// Where a round was put.
#[derive(Debug)]
pub(crate) struct PutRound {
    pub(crate) round: u64,
    pub(crate) position: u64,
    pub(crate) bytes: u64,
    pub(crate) checksum: u32,
    pub(crate) runs: Vec<NewRun>,
}

/// A fresh segment being filled.
#[derive(Debug)]
pub(crate) struct FreshSegment {
    active: Active,
    chain: ChainEnd,
    encoder: RoundEncoder,
}

impl FreshSegment {
    /// Begins with the state table; `active` is new and has its head.
    pub(crate) fn begin(active: Active, chain: ChainEnd) -> io::Result<Self> {
        let state = active
            .head
            .as_deref()
            .and_then(|head| head.get(HEAD..))
            .unwrap_or_default();
        if !state.is_empty() {
            active
                .segment
                .file
                .write_at(&[IoSlice::new(state)], HEAD_BYTES)?;
        }
        Ok(Self {
            active,
            chain,
            encoder: RoundEncoder::default(),
        })
    }

    /// Adds a round. It names nothing durable that is in this file: without the header it must
    /// not vouch for itself.
    pub(crate) fn push(&mut self, old: &OldRound) -> io::Result<PutRound> {
        let mut header = super::writer::next_header(
            &self.active.segment,
            self.chain,
            old.catalog,
            old.written,
            old.flags,
        );
        header.epoch = self.chain.epoch;
        let position = self.active.position;
        self.encoder
            .encode(header, &old.controls, &old.frames, position);
        let mut buffers = Vec::with_capacity(16);
        self.encoder.buffers(&old.frames, &mut buffers);
        self.active.segment.file.write_at(&buffers, position)?;
        let bytes = self.encoder.bytes();
        self.chain.round += 1;
        self.chain.checksum = self.encoder.checksum();
        let head = self.active.head.take();
        self.active
            .advance(bytes, self.encoder.runs(), &old.controls, old.catalog);
        self.active.head = head;
        Ok(PutRound {
            round: self.chain.round,
            position,
            bytes,
            checksum: self.chain.checksum,
            runs: self.encoder.runs().to_vec(),
        })
    }

    /// Syncs the rounds, then writes the header: from here on the copy is what counts.
    pub(crate) fn finish(mut self) -> io::Result<(Active, ChainEnd)> {
        self.active.segment.file.sync()?;
        if let Some(head) = self.active.head.take() {
            let headers = head.get(..COPIES).expect("BUG: a head holds both headers");
            self.active
                .segment
                .file
                .write_durable_at(&[IoSlice::new(headers)], 0)?;
        }
        self.chain.durable = self.chain.round;
        Ok((self.active, self.chain))
    }
}
