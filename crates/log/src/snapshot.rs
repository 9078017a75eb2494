//! The snapshot of a log: where every shard stands, so that opening reads little. Layout:
//! `docs/format.md`, "Log files".

use std::io;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};
use flumen_record::{SequenceNumber, ShardId, Timestamp};

use crate::checksum;
use crate::index::Mark;
use crate::log::active::ChainEnd;
use crate::log::writer::Writer;
use crate::shared::Shared;
use crate::state::{ShardStanding, decode_table, encode_table};
use crate::storage::SMALL_BYTES_MAX;

/// The snapshot's file name in the log's folder.
pub(crate) const SNAPSHOT_NAME: &str = "snapshot";

const MAGIC: u64 = u64::from_le_bytes(*b"flumenSS");
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 80;
const MARK_BYTES: usize = 32;

/// A shard's part of a snapshot.
#[derive(Debug, Clone)]
pub(crate) struct SnapshotShard {
    pub(crate) standing: ShardStanding,
    pub(crate) marks: Arc<Vec<Mark>>,
}

/// What a snapshot says.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) log: u64,
    /// Everything up to this round is in it, and was durable when it was written.
    pub(crate) chain: ChainEnd,
    /// The newest segment: that round is in it or in an older one. A later one holds rounds up to
    /// that one only if they were written again since.
    pub(crate) segment: u64,
    /// Where the next round would have gone in the active segment; 0 without one.
    pub(crate) position: u64,
    pub(crate) catalog: u64,
    pub(crate) taken: Timestamp,
    pub(crate) shards: Vec<SnapshotShard>,
    /// What the caller wanted to get back.
    pub(crate) states: Vec<(ShardId, Bytes)>,
}

/// Why a file is not a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SnapshotFault {
    /// Bytes that do not verify.
    Damaged,
    /// Of a version this program does not know.
    UnknownVersion,
}

/// A snapshot to write on another thread.
#[derive(Debug)]
pub struct SnapshotJob {
    shared: Arc<Shared>,
    snapshot: Snapshot,
}

impl SnapshotJob {
    pub(crate) fn capture(writer: &Writer, states: Vec<(ShardId, Bytes)>, now: Timestamp) -> Self {
        let shared = Arc::clone(&writer.shared);
        let cells = shared.index.all();
        let shards = cells.iter().map(|cell| {
            let state = cell.lock();
            SnapshotShard {
                standing: state.standing(cell.shard),
                marks: Arc::clone(&state.marks),
            }
        });
        let active = writer.active.as_ref().map(|active| active.segment.id());
        let newest = active.max(shared.last_segment_id());
        let snapshot = Snapshot {
            log: shared.key.id(),
            chain: writer.chain,
            segment: newest.unwrap_or(0),
            position: writer.active.as_ref().map_or(0, |active| active.position),
            catalog: writer.catalog,
            taken: now,
            shards: shards.collect(),
            states,
        };
        Self { shared, snapshot }
    }

    /// Writes it, replacing the last one. Blocks. Fails with [`io::ErrorKind::WouldBlock`] when
    /// what it contains is not durable yet, with [`io::ErrorKind::FileTooLarge`] when it is larger
    /// than what is read.
    pub fn run(self) -> io::Result<()> {
        if self.shared.durable_round() < self.snapshot.chain.round {
            let what = "what the snapshot contains is not durable yet";
            return Err(io::Error::new(io::ErrorKind::WouldBlock, what));
        }
        let bytes = self.snapshot.encoded_bytes();
        let most = self.shared.config.snapshot_bytes_max.min(SMALL_BYTES_MAX);
        if bytes > most {
            let what = format!("a snapshot of {bytes} bytes; at most {most} are written");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, what));
        }
        let path = self.shared.path(SNAPSHOT_NAME);
        self.shared
            .storage
            .replace_small(&path, &self.snapshot.encode())
    }
}

impl Snapshot {
    /// Reads the log's snapshot. `Ok(None)`: there is none.
    pub(crate) fn read(shared: &Shared) -> io::Result<Option<Result<Self, SnapshotFault>>> {
        match shared.storage.read_small(&shared.path(SNAPSHOT_NAME)) {
            Ok(bytes) => Ok(Some(Self::decode(bytes))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            // None that was written whole.
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                Ok(Some(Err(SnapshotFault::Damaged)))
            }
            Err(error) => Err(error),
        }
    }

    /// Length of what [`Snapshot::encode`] makes.
    fn encoded_bytes(&self) -> u64 {
        const LENGTH: usize = size_of::<u32>();
        let shards = self
            .shards
            .iter()
            .map(|shard| shard.standing.encoded_bytes() + LENGTH + shard.marks.len() * MARK_BYTES);
        let states = self.states.iter();
        let states = states.map(|(_, state)| size_of::<u64>() + LENGTH + state.len());
        (HEADER_BYTES + LENGTH + shards.sum::<usize>() + states.sum::<usize>()) as u64
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; HEADER_BYTES];
        let table: Vec<ShardStanding> = self
            .shards
            .iter()
            .map(|shard| shard.standing.clone())
            .collect();
        let mut part = Vec::new();
        encode_table(&table, &mut part);
        put_part(&mut out, &part);
        for shard in &self.shards {
            part.clear();
            for mark in shard.marks.iter() {
                part.put_u64_le(mark.base.value());
                part.put_u64_le(mark.arrival.as_micros());
                part.put_u64_le(mark.segment);
                part.put_u64_le(mark.previous);
            }
            put_part(&mut out, &part);
        }
        for (shard, state) in &self.states {
            out.put_u64_le(shard.value());
            put_part(&mut out, state);
        }
        let mut header = Vec::with_capacity(HEADER_BYTES);
        header.put_u64_le(MAGIC);
        header.put_u16_le(VERSION);
        header.put_u16_le(0);
        header.put_u32_le(self.chain.epoch);
        header.put_u64_le(self.log);
        header.put_u64_le(self.chain.round);
        header.put_u64_le(self.segment);
        header.put_u64_le(self.position);
        header.put_u64_le(self.catalog);
        header.put_u64_le(self.taken.as_micros());
        header.put_u32_le(self.chain.checksum);
        header.put_u32_le(u32::try_from(self.states.len()).expect("BUG: shards are bounded"));
        header.put_u32_le(u32::try_from(self.shards.len()).expect("BUG: shards are bounded"));
        let body = out.get(HEADER_BYTES..).unwrap_or_default();
        header.put_u32_le(checksum::seeded(MAGIC, &[&header, body]));
        out.get_mut(..HEADER_BYTES)
            .expect("BUG: the header's place was made first")
            .copy_from_slice(&header);
        out
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<Self, SnapshotFault> {
        Self::parse(&bytes).ok_or_else(|| {
            let known = bytes.as_ref().try_get_u64_le() == Ok(MAGIC);
            let version = bytes
                .get(8..)
                .and_then(|mut rest| rest.try_get_u16_le().ok());
            if known && version.is_some_and(|version| version != VERSION) {
                SnapshotFault::UnknownVersion
            } else {
                SnapshotFault::Damaged
            }
        })
    }

    fn parse(bytes: &Bytes) -> Option<Self> {
        let (header, body) = bytes.split_at_checked(HEADER_BYTES)?;
        let (covered, mut stored) = header.split_at_checked(HEADER_BYTES - 4)?;
        if checksum::seeded(MAGIC, &[covered, body]) != stored.get_u32_le() {
            return None;
        }
        let mut fields = covered;
        if fields.get_u64_le() != MAGIC || fields.get_u16_le() != VERSION {
            return None;
        }
        fields.advance(2);
        let epoch = fields.get_u32_le();
        let log = fields.get_u64_le();
        let round = fields.get_u64_le();
        let segment = fields.get_u64_le();
        let position = fields.get_u64_le();
        let catalog = fields.get_u64_le();
        let taken = Timestamp::from_micros(fields.get_u64_le());
        let checksum = fields.get_u32_le();
        let state_count = fields.get_u32_le();
        let shard_count = fields.get_u32_le() as usize;
        let mut rest = bytes.slice(HEADER_BYTES..);
        let table = decode_table(&take_part(&mut rest)?)?;
        if table.len() != shard_count {
            return None;
        }
        let mut shards = Vec::with_capacity(table.len());
        for standing in table {
            let marks = Arc::new(decode_marks(take_part(&mut rest)?)?);
            shards.push(SnapshotShard { standing, marks });
        }
        let mut states = Vec::new();
        for _ in 0..state_count {
            let shard = ShardId::from_value(rest.try_get_u64_le().ok()?);
            states.push((shard, take_part(&mut rest)?));
        }
        rest.is_empty().then_some(Self {
            log,
            chain: ChainEnd {
                round,
                checksum,
                durable: round,
                epoch,
            },
            segment,
            position,
            catalog,
            taken,
            shards,
            states,
        })
    }
}

fn put_part(out: &mut Vec<u8>, part: &[u8]) {
    out.put_u32_le(u32::try_from(part.len()).expect("BUG: snapshots are below 256 MiB"));
    out.put_slice(part);
}

fn take_part(rest: &mut Bytes) -> Option<Bytes> {
    let length = rest.try_get_u32_le().ok()? as usize;
    (length <= rest.len()).then(|| rest.split_to(length))
}

fn decode_marks(mut bytes: Bytes) -> Option<Vec<Mark>> {
    let mut marks = Vec::with_capacity(bytes.len() / MARK_BYTES);
    while !bytes.is_empty() {
        if bytes.len() < MARK_BYTES {
            return None;
        }
        marks.push(Mark {
            base: SequenceNumber::new(bytes.get_u64_le()),
            arrival: Timestamp::from_micros(bytes.get_u64_le()),
            segment: bytes.get_u64_le(),
            previous: bytes.get_u64_le(),
        });
    }
    Some(marks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot() -> Snapshot {
        let shard = ShardId::from_value(7);
        let mark = Mark {
            base: SequenceNumber::new(4),
            arrival: Timestamp::from_micros(5),
            segment: 6,
            previous: 3,
        };
        Snapshot {
            log: 99,
            chain: ChainEnd {
                round: 12,
                checksum: 34,
                durable: 12,
                epoch: 5,
            },
            segment: 6,
            position: 8192,
            catalog: 3,
            taken: Timestamp::from_micros(1),
            shards: vec![SnapshotShard {
                standing: ShardStanding::new(shard),
                marks: Arc::new(vec![mark; 3]),
            }],
            states: vec![(shard, Bytes::from_static(b"state"))],
        }
    }

    #[test]
    fn a_snapshot_reads_back_as_written() {
        let bytes = Bytes::from(snapshot().encode());
        let read = Snapshot::decode(bytes).unwrap();
        assert_eq!(read.chain.round, 12);
        assert_eq!(read.shards[0].standing, snapshot().shards[0].standing);
        assert_eq!(read.shards[0].marks, snapshot().shards[0].marks);
        assert_eq!(read.states, snapshot().states);
        assert_eq!(read.encode(), snapshot().encode());
        assert_eq!(read.encoded_bytes(), read.encode().len() as u64);
    }

    #[test]
    fn any_changed_or_missing_byte_is_seen() {
        let bytes = snapshot().encode();
        for position in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[position] ^= 1;
            assert!(Snapshot::decode(changed.into()).is_err(), "{position}");
            let cut = Bytes::copy_from_slice(&bytes[..position]);
            assert_eq!(Snapshot::decode(cut).unwrap_err(), SnapshotFault::Damaged);
        }
        let mut newer = bytes;
        newer[8] = 2;
        assert_eq!(
            Snapshot::decode(newer.into()).unwrap_err(),
            SnapshotFault::UnknownVersion
        );
    }
}
