//! Input that is wrong, at the running broker: each has its typed refusal or its one clear line,
//! and nothing else is lost by it. `bad_start.rs` has what keeps a broker from starting.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use flumen_api::v1;
use flumen_api::v1::start_position::{Oldest, Position};
use tonic::Code::{self, DataLoss, FailedPrecondition, InvalidArgument, ResourceExhausted};

use crate::cli::{Ran, run};
use crate::disk::Disk;
use crate::process::BrokerProcess;
use crate::wire::{Refused, Wire, batch};

/// The lowest hash key of the second of two shards.
const UPPER: u128 = 1 << 127;

/// A broker with a stream `s` of two shards.
struct Stage {
    broker: BrokerProcess,
    wire: Wire,
    dir: tempfile::TempDir,
}

impl Stage {
    fn set() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let broker = BrokerProcess::start(&dir.path().join("data"));
        let wire = Wire::to(&broker.endpoint);
        let stage = Self { broker, wire, dir };
        stage.flumen("stream create s --shards 2", b"").good();
        stage
    }

    fn flumen(&self, words: &str, input: &[u8]) -> Ran {
        flumen(self.dir.path(), &self.broker, words, input)
    }

    /// Appends one batch in a session of its own.
    #[track_caller]
    fn append(&self, shard: u32, batch: Bytes) -> v1::AppendAck {
        let (mut acks, ended) = self.wire.append("s", vec![(shard, batch)]);
        assert!(ended.is_ok() && acks.len() == 1, "{acks:?} {ended:?}");
        acks.remove(0)
    }
}

pub(crate) fn flumen(dir: &Path, broker: &BrokerProcess, words: &str, input: &[u8]) -> Ran {
    run(
        dir,
        &format!("--endpoint {} {words}", broker.endpoint),
        input,
    )
}

/// Three records in the lower shard, changed somewhere (`docs/format.md`, "Batch").
fn changed(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut changed = batch(0, 0, 7, &[b"one", b"two", b"three"]).bytes().to_vec();
    changed[at..at + bytes.len()].copy_from_slice(bytes);
    changed
}

/// With a checksum that fits.
fn sealed(mut batch: Vec<u8>) -> Bytes {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&batch[..4]);
    crc.update(&batch[8..]);
    batch[4..8].copy_from_slice(&crc.finalize().to_le_bytes());
    Bytes::from(batch)
}

/// What is sent, what it is, and how it is refused: reason and metadata.
type Lie<'a> = (&'a str, Bytes, &'a str, Vec<(&'a str, &'a str)>);

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn batches_that_are_none_or_lie_are_refused_and_not_stored() {
    let stage = Stage::set();
    let good = changed(0, &[]);
    let whole = good.len();
    let cut = |length: usize| Bytes::copy_from_slice(&good[..length]);
    let claims = |bytes: u32| sealed(changed(0, &bytes.to_le_bytes()));
    let excess = Bytes::from([&good[..], b"x"].concat());
    let found = format!("{:08x}", u32::from_le_bytes(good[4..8].try_into().unwrap()));
    let large = batch(0, 0, 7, &[b"small", &vec![0; (1 << 20) + 1]]);
    let cases: Vec<Lie<'_>> = vec![
        ("nothing", Bytes::new(), "BATCH_MALFORMED", vec![]),
        ("half a header", cut(50), "BATCH_MALFORMED", vec![]),
        ("half a body", cut(whole - 1), "BATCH_MALFORMED", vec![]),
        ("bytes behind it", excess, "BATCH_MALFORMED", vec![]),
        (
            "a claim of 4 GiB",
            claims(u32::MAX),
            "BATCH_TOO_LARGE",
            vec![("bytes", "4294967295")],
        ),
        ("a claim of nothing", claims(0), "BATCH_MALFORMED", vec![]),
        (
            "a byte of the body",
            Bytes::from(changed(whole - 1, b"E")),
            "BATCH_CHECKSUM",
            vec![("expected", &found)],
        ),
        (
            "a byte of the header",
            Bytes::from(changed(12, &[2])),
            "BATCH_CHECKSUM",
            vec![("expected", &found)],
        ),
        (
            "a later version",
            sealed(changed(8, &[9])),
            "BATCH_UNSUPPORTED",
            vec![("version", "9")],
        ),
        (
            "a compression nobody knows",
            sealed(changed(9, &[7])),
            "BATCH_UNSUPPORTED",
            vec![("compression", "7")],
        ),
        (
            "flags nobody knows",
            sealed(changed(10, &[1])),
            "BATCH_UNSUPPORTED",
            vec![],
        ),
        (
            "fewer records than it has",
            sealed(changed(12, &[2])),
            "BATCH_MALFORMED",
            vec![],
        ),
        (
            "more records than it has",
            sealed(changed(12, &[4])),
            "BATCH_MALFORMED",
            vec![],
        ),
        (
            "no records",
            sealed(changed(12, &[0])),
            "BATCH_MALFORMED",
            vec![],
        ),
        (
            "another size",
            sealed(changed(16, &[9])),
            "BATCH_MALFORMED",
            vec![],
        ),
        (
            "a span without its records",
            sealed(changed(40, &[9])),
            "BATCH_MALFORMED",
            vec![],
        ),
        (
            "a record above the stream's limit",
            large.bytes().clone(),
            "RECORD_TOO_LARGE",
            vec![("record", "1"), ("limit", "1048576")],
        ),
    ];
    for (what, bytes, reason, metadata) in cases {
        println!("{what}");
        let ack = stage.append(0, bytes);
        Refused::of_ack(&ack).says(InvalidArgument, reason, &metadata);
    }
    let elsewhere = batch(0, 0, UPPER, &[b"x"]).bytes().clone();
    let span = format!("{UPPER:032x}");
    let ack = stage.append(0, elsewhere.clone());
    Refused::of_ack(&ack).says(FailedPrecondition, "WRONG_SHARD", &[("span_start", &span)]);
    let ack = stage.append(2, elsewhere);
    Refused::of_ack(&ack).says(Code::NotFound, "SHARD_NOT_FOUND", &[("shard", "2")]);
    // The session with the refused batch took nothing behind it; the next one goes on.
    assert_eq!(stage.append(0, Bytes::from(good)).base, 0);
    assert_eq!(stage.flumen("consume s", b"").good(), "one\ntwo\nthree\n");
}

/// A compressed body is not looked at before somebody reads it: a lie takes exactly the numbers it
/// claims, says so to who reads it, and hides nothing behind it.
#[test]
fn a_compressed_batch_that_lies_is_told_to_its_readers() {
    let stage = Stage::set();
    let compressed = sealed(changed(9, &[1]));
    assert_eq!(stage.append(0, compressed).count, 3);
    assert_eq!(stage.append(0, Bytes::from(changed(0, &[]))).base, 3);
    let read = stage.flumen("--quiet consume s --shard 0", b"");
    assert_eq!(read.out, "one\ntwo\nthree\n", "{read:?}");
    read.refused(1, "3 records do not decode");
}

#[test]
fn sequence_numbers_that_do_not_follow_are_refused() {
    let stage = Stage::set();
    let open = || {
        let mut producer = stage.wire.producer();
        let opened = producer.open_producer(v1::OpenProducerRequest {});
        stage.wire.good(opened).producer_id
    };
    let id = open();
    let bytes = |id, sequence, data| batch(id, sequence, 0, &[data]).bytes().clone();
    let batches = vec![
        (0, bytes(id, 0, b"0")),
        (0, bytes(id, 2, b"2")),
        (0, bytes(id, 0, b"another")),
        (0, bytes(id, 1, b"1")),
        (0, bytes(id, 0, b"0")),
        (0, bytes(id + 5_000_000, 0, b"0")),
    ];
    let (acks, ended) = stage.wire.append("s", batches);
    assert!(ended.is_ok(), "{ended:?}");
    let refused = |place: usize| Refused::of_ack(&acks[place]);
    let gap = [("expected", "1"), ("got", "2")];
    refused(1).says(FailedPrecondition, "OUT_OF_SEQUENCE", &gap);
    refused(2).says(FailedPrecondition, "SEQUENCE_REUSED", &[("sequence", "0")]);
    assert_eq!(
        (acks[3].base, acks[4].base, acks[4].duplicate),
        (1, 0, true)
    );
    let never = (id + 5_000_000).to_string();
    refused(5).says(InvalidArgument, "UNKNOWN_PRODUCER", &[("producer", &never)]);
    assert_eq!(stage.flumen("consume s", b"").good(), "0\n1\n");
}

/// A disk that does not answer: what does not fit into the queue is refused with a delay, then
/// everything is, and what was taken is stored when the disk answers again. Needs root.
#[test]
fn a_queue_that_is_full_says_when_to_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::new(folder.path(), 64 << 20) else {
        return;
    };
    let settings = ["broker.lane_queue_bytes_max=64KiB"];
    let broker = BrokerProcess::start_with(&disk.mounted.join("data"), &settings);
    let wire = Wire::to(&broker.endpoint);
    flumen(folder.path(), &broker, "stream create s", b"").good();
    let put = || {
        let mut producer = wire.producer();
        let record = v1::PutRecord {
            partition_key: "k".to_owned(),
            data: vec![b'x'; 30 << 10].into(),
            ..Default::default()
        };
        let stream = "s".to_owned();
        let records = vec![record];
        async move {
            let put = producer
                .put(v1::PutRequest {
                    stream,
                    records,
                    stream_incarnation: 0,
                })
                .await;
            put.expect("a reply").into_inner().results.remove(0)
        }
    };
    wire.wait(put());
    disk.freeze();
    // Two fit; the others wait for room, and not for ever.
    let (tell, mut told) = tokio::sync::mpsc::channel(5);
    for _ in 0..5 {
        let (put, tell) = (put(), tell.clone());
        wire.spawn(async move { drop(tell.send(put.await).await) });
    }
    for _ in 0..3 {
        let refused = wire.wait(told.recv()).expect("an answer");
        Refused::of_put(&refused).says(ResourceExhausted, "QUEUE_FULL", &[]);
    }
    // Ten seconds after the disk stopped to answer, waiting is not worth it any more.
    let stuck = loop {
        let refused = Refused::of_put(&wire.wait(put()));
        if refused.reason != "QUEUE_FULL" {
            break refused;
        }
    };
    stuck.says(Code::Unavailable, "DISK_STUCK", &[]);
    let health = broker.get("/readyz");
    assert!(health.contains("the disk is slow"), "{health}");
    disk.thaw();
    for _ in 0..2 {
        let stored = wire.wait(told.recv()).expect("an answer");
        assert!(stored.refusal.is_none(), "{stored:?}");
    }
    let described = flumen(
        folder.path(),
        &broker,
        "--output json stream describe s",
        b"",
    );
    assert!(described.good().contains("\"records\":3,"));
}

/// The data directory of a broker that has ended, with three segments and more, and where its
/// sealed ones are.
pub(crate) fn data_at_rest(dir: &Path) -> (PathBuf, Vec<PathBuf>) {
    let data = dir.join("data");
    let mut broker = BrokerProcess::start_with(&data, &["broker.log.segment_bytes_max=1MiB"]);
    flumen(dir, &broker, "stream create s", b"").good();
    // One after the other, so that each is a round of its own: two of them fill a segment.
    for piece in 0..8 {
        let numbers = piece * 500..(piece + 1) * 500;
        let lines: Vec<_> = numbers.map(|n| format!("{n:0>999}\n")).collect();
        let lines = lines.concat();
        flumen(dir, &broker, "produce s --key-fixed k", lines.as_bytes()).good();
    }
    assert_eq!(broker.terminate(), Some(0));
    let log = data.join("log-disk-168h-0");
    let files = std::fs::read_dir(log)
        .unwrap()
        .map(|file| file.unwrap().path());
    let mut segments: Vec<_> = files
        .filter(|path| path.extension().is_some_and(|kind| kind == "seg"))
        .collect();
    segments.sort();
    assert!(segments.len() >= 4, "{segments:?}");
    (data, segments)
}

/// A group stands still before damage and says so; told to, it goes on behind it, once.
#[track_caller]
fn a_group_goes_over_damage(at: &impl Fn(&str) -> Ran, before: usize, rest: &str) {
    let stopped = at("--quiet consume s --group g");
    let first = stopped.out.clone();
    stopped.refused(1, "--skip-gaps");
    assert_eq!(first.lines().count(), before);
    let second = at("--quiet consume s --group g --skip-gaps").good();
    assert_eq!(first + &second, rest);
    assert_eq!(at("--quiet consume s --group g").good(), "");
}

#[test]
fn a_damaged_segment_is_named_and_the_rest_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let (data, segments) = data_at_rest(dir.path());
    let sound = run(dir.path(), "doctor --data-dir data", b"").good();
    assert!(sound.contains("no damage"), "{sound}");

    let name = segments[1].file_name().unwrap().to_str().unwrap();
    let segment = std::fs::File::options()
        .write(true)
        .open(&segments[1])
        .unwrap();
    segment.write_all_at(&[0xa5; 64], 300 << 10).unwrap();
    let found = run(dir.path(), "doctor --data-dir data", b"");
    assert_eq!(found.code, Some(1), "{found:?}");
    assert!(
        found.out.contains(name) && found.out.contains(" finding"),
        "{found:?}"
    );
    assert_eq!(found.err, "");

    let broker = BrokerProcess::start(&data);
    let at = |words: &str| flumen(dir.path(), &broker, words, b"");
    let failed = at("--quiet consume s");
    let before = failed.out.lines().count();
    failed.refused(1, "run `flumen doctor` on the broker; --skip-gaps");
    let rest = at("--quiet consume s --skip-gaps").good();
    let numbers: Vec<u64> = rest.lines().map(|line| line.parse().unwrap()).collect();
    assert!(
        numbers.is_sorted() && (3_000..4_000).contains(&numbers.len()),
        "{}",
        numbers.len()
    );
    assert_eq!((numbers[0], numbers.last()), (0, Some(&3_999)));

    a_group_goes_over_damage(&at, before, &rest);

    // Programs learn the range and where to go on.
    let wire = Wire::to(&broker.endpoint);
    let read = |number| {
        let request = v1::ReadRequest {
            stream: "s".to_owned(),
            start: Some(v1::StartPosition {
                position: Some(Position::AtSequenceNumber(number)),
            }),
            ..Default::default()
        };
        let mut consumer = wire.consumer();
        wire.wait(async move { consumer.read(request).await })
    };
    let lost = Refused::from(&read(before as u64).expect_err("damage"));
    let from = before.to_string();
    let shard = [("shard", "0"), ("from", &*from), ("segment", name)];
    lost.says(DataLoss, "DATA_LOSS", &shard);
    let to: u64 = lost.metadata["to"].parse().unwrap();
    assert_eq!(4_000 - numbers.len() as u64, to - before as u64, "{lost:?}");
    assert_eq!(read(to).expect("the rest").into_inner().start, to);
    let subscribe = v1::SubscribeRequest {
        stream: "s".to_owned(),
        start: Some(v1::StartPosition {
            position: Some(Position::TrimHorizon(Oldest {})),
        }),
        ..Default::default()
    };
    let mut replies = wire.good(wire.consumer().subscribe(subscribe));
    let ended = wire.wait(async {
        loop {
            match replies.message().await {
                Ok(reply) => assert!(reply.is_some(), "it ended without a word"),
                Err(status) => break status,
            }
        }
    });
    Refused::from(&ended).says(DataLoss, "DATA_LOSS", &[("shard", "0"), ("segment", name)]);
    flumen(dir.path(), &broker, "produce s --key-fixed k", b"4000\n").good();
    let last = at("--quiet consume s --from at:4000");
    assert_eq!(last.good(), "4000\n");
}

/// A directory on a file system that became read-only is looked at, not served. Needs root.
#[test]
fn a_read_only_directory_is_refused_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::new(folder.path(), 64 << 20) else {
        return;
    };
    data_at_rest(&disk.mounted);
    disk.make_read_only();
    let words = "serve --data-dir disk/data --listen-grpc 127.0.0.1:0 --listen-console 127.0.0.1:0";
    run(folder.path(), words, b"").refused(1, "disk/data");
    let found = run(folder.path(), "doctor --data-dir disk/data", b"").good();
    assert!(found.contains("no damage"), "{found}");
}
