//! Bytes written once and for all, compared with what the code writes today: a changed format
//! cannot go unnoticed.
//!
//! `FLUMEN_TEST_FIXTURES=write cargo test -p flumen-log --lib fixtures` writes them anew, which is
//! right only together with a new format version (`docs/format.md`, "Log files").

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use flumen_record::{
    BatchBuilder, Compression, HashKey, ProducerId, ProducerSequence, Record, RecordLimits,
    SequenceNumber, ShardEpoch, ShardId, Timestamp,
};

use crate::control::Control;
use crate::footer::{FooterBuilder, FooterSummary};
use crate::index::{Mark, Run};
use crate::log::NewFrame;
use crate::log::active::ChainEnd;
use crate::recovery::BatchMark;
use crate::round::{COPIED, RoundEncoder, RoundHeader};
use crate::segment_header::{HeaderSector, PREDECESSOR_FAILED, SegmentHeader};
use crate::snapshot::{Snapshot, SnapshotShard};
use crate::state::{Gap, ShardStanding, encode_table};

/// A round and a footer are somewhere in a file, and that counts.
const ROUND_AT: u64 = 8704;
const FOOTER_AT: u64 = 12_288;

fn check(name: &str, bytes: &[u8]) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name);
    if std::env::var_os("FLUMEN_TEST_FIXTURES").is_some_and(|what| what == "write") {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
    }
    let stored = fs::read(&path).unwrap();
    let differs = stored.iter().zip(bytes).position(|(old, new)| old != new);
    assert_eq!(differs, None, "{name}: first changed byte");
    assert_eq!(stored.len(), bytes.len(), "{name}: length");
}

fn shard(value: u64) -> ShardId {
    ShardId::from_value(value)
}

fn number(value: u64) -> SequenceNumber {
    SequenceNumber::new(value)
}

fn at(micros: u64) -> Timestamp {
    Timestamp::from_micros(1_700_000_000_000_000 + micros)
}

fn header() -> SegmentHeader {
    SegmentHeader {
        flags: PREDECESSOR_FAILED,
        log: 0x2000_0001_8000_0000,
        segment: 0x0102_0304_0506_0708,
        generation: 0x1112_1314,
        epoch: 0x2122_2324,
        salt: 0x3132_3334_3536_3738,
        file_bytes: 32 << 20,
        continues_after: 0x4142_4344_4546_4748,
        last_durable: 0x5152_5354_5556_5758,
        previous_checksum: 0x6162_6364,
        state_bytes: 513,
        state_checksum: 0x7172_7374,
        created: at(1),
    }
}

fn standings() -> Vec<ShardStanding> {
    let mut second = ShardStanding::new(shard(0x0000_0003_0000_0004));
    second.horizon = number(10);
    second.end = number(20);
    second.last_arrival = at(2);
    second.epoch = ShardEpoch::new(5);
    second.last_segment = 6;
    second.stored_bytes = 7;
    second.gaps = [(11, 12, false), (13, 15, true)]
        .map(|(from, to, lost)| Gap {
            from: number(from),
            to: number(to),
            lost,
        })
        .into();
    vec![ShardStanding::new(shard(1)), second]
}

fn controls() -> [Control; 4] {
    let shard = shard(0x0000_0003_0000_0004);
    let jump = |lost| Control::Jump {
        shard,
        from: number(21),
        to: number(22),
        lost,
    };
    let before = number(10);
    [
        Control::Trim { shard, before },
        Control::Forget { shard },
        jump(false),
        jump(true),
    ]
}

fn frame(shard_value: u64, base: u64) -> NewFrame {
    let mut builder = BatchBuilder::new(RecordLimits::default());
    let record = Record {
        partition_key: Bytes::from_static(b"key"),
        explicit_hash_key: None,
        data: Bytes::from_static(b"data"),
        client_timestamp: None,
        headers: Vec::new(),
    };
    builder.push(&record, HashKey::of(b"key")).unwrap();
    let (producer, sequence) = (ProducerId::new(9), ProducerSequence::new(base));
    NewFrame {
        shard: shard(shard_value),
        epoch: ShardEpoch::new(5),
        base: number(base),
        arrival: at(base),
        batch: builder.finish(producer, sequence, Compression::None),
    }
}

#[test]
fn headers_of_segments() {
    let mut bytes = header().encode().to_vec();
    bytes.extend_from_slice(&HeaderSector::spare());
    check("segment_headers.bin", &bytes);
}

#[test]
fn state_tables() {
    let mut bytes = Vec::new();
    encode_table(&standings(), &mut bytes);
    check("state_table.bin", &bytes);
}

#[test]
fn rounds() {
    let header = RoundHeader {
        flags: COPIED,
        bytes: 0,
        control_bytes: 0,
        frame_count: 0,
        log: header().log,
        segment: header().segment,
        salt: header().salt,
        round: 0x0102_0304,
        last_durable: 0x1112_1314,
        catalog: 0x2122_2324,
        written: at(3),
        epoch: 0x3132_3334,
        previous_checksum: 0x4142_4344,
        frames_checksum: 0,
    };
    let frames = [frame(1, 30), frame(1, 31), frame(2, 40)];
    let mut encoder = RoundEncoder::default();
    encoder.encode(header, &controls(), &frames, ROUND_AT);
    let mut buffers = Vec::new();
    encoder.buffers(&frames, &mut buffers);
    let bytes: Vec<u8> = buffers.iter().flat_map(|buffer| buffer.to_vec()).collect();
    check("round.bin", &bytes);
}

#[test]
fn footers() {
    let mut builder = FooterBuilder::default();
    for (shard_value, base) in [(2, 40), (1, 30), (1, 31)] {
        let run = Run {
            segment: header().segment,
            base: number(base),
            end: number(base + 1),
            arrival: at(base),
            last_arrival: at(base + 1),
            position: 0x0102_0304,
            bytes: 0x1112_1314,
        };
        builder.push_run(shard(shard_value), run, ShardEpoch::new(5), 11);
        let mark = BatchMark {
            producer: ProducerId::new(base),
            sequence: ProducerSequence::new(12),
            base: number(base),
            count: 1,
            checksum: 0x2122_2324,
            arrival: at(base),
            frame_bytes: 0x3132_3334,
        };
        builder.push_batch(shard(shard_value), mark);
    }
    builder.push_controls(&controls());
    let footer = builder.finish(FooterSummary {
        first_round: 0x0102_0304,
        last_round: 0x0102_0305,
        last_checksum: 0x1112_1314,
        data_end: FOOTER_AT - 512,
        catalog: 0x2122_2324,
        last_written: at(4),
    });
    let (mut bytes, mut trailer) = footer.encode(&header(), FOOTER_AT);
    trailer.has_hole = true;
    bytes.extend_from_slice(&trailer.encode(header().salt));
    check("footer.bin", &bytes);
}

#[test]
fn snapshots() {
    let mark = |base| Mark {
        base: number(base),
        arrival: at(base),
        segment: base + 1,
        previous: base,
    };
    let marks = [vec![], vec![mark(4), mark(5)]];
    let shards = standings().into_iter().zip(marks);
    let snapshot = Snapshot {
        log: header().log,
        chain: ChainEnd {
            round: 0x0102_0304,
            checksum: 0x1112_1314,
            durable: 0x0102_0304,
            epoch: 0x2122_2324,
        },
        segment: 6,
        position: ROUND_AT,
        catalog: 0x3132_3334,
        taken: at(5),
        shards: shards
            .map(|(standing, marks)| SnapshotShard {
                standing,
                marks: Arc::new(marks),
            })
            .collect(),
        states: vec![(shard(1), Bytes::from_static(b"state"))],
    };
    check("snapshot.bin", &snapshot.encode());
}
