//! Encoding, verifying and reading batches: what one core can do per second.
#![expect(clippy::unwrap_used, reason = "a benchmark that is wrong may panic")]

use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use flumen_record::{
    Batch, BatchBuilder, Compression, HashKeyCache, HashRange, ProducerId, ProducerSequence,
    Record, RecordLimits,
};

/// A batch's worth of records: (name, data bytes, records per batch).
const SHAPES: [(&str, usize, usize); 3] = [
    ("256B", 256, 3_800),
    ("1KiB", 1024, 1_000),
    ("256B_alone", 256, 1),
];
/// As many as a fleet of devices behind one session.
const PARTITION_KEYS: usize = 1_000;

/// Readings that compress as telemetry does.
fn records(data_bytes: usize, count: usize) -> Vec<Record> {
    let record = |i: usize| {
        let mut text = String::with_capacity(data_bytes + 80);
        while text.len() < data_bytes {
            let noise = (i * 7_919 + text.len() * 104_729) % 1_000_003;
            text += &format!(
                "{{\"sensor\":{},\"value\":{noise}.{i},\"ok\":true}},",
                noise % 16
            );
        }
        text.truncate(data_bytes);
        Record {
            partition_key: Bytes::from(format!("device-{:06}", i * 31 % PARTITION_KEYS)),
            explicit_hash_key: None,
            data: Bytes::from(text),
            client_timestamp: None,
            headers: Vec::new(),
        }
    };
    (0..count).map(record).collect()
}

fn fill(builder: &mut BatchBuilder, records: &[Record], hash_keys: &mut HashKeyCache) {
    for record in records {
        let hash_key = hash_keys.hash_key(record);
        builder.push(record, hash_key).unwrap();
    }
}

fn finish(builder: &mut BatchBuilder, compression: Compression) -> Batch {
    builder.finish(ProducerId::new(1), ProducerSequence::new(1), compression)
}

fn batch(records: &[Record], compression: Compression) -> Batch {
    let mut builder = BatchBuilder::new(RecordLimits::default());
    fill(&mut builder, records, &mut HashKeyCache::default());
    finish(&mut builder, compression)
}

/// One group measured in bytes of data, one in records.
fn both<'c>(
    criterion: &'c mut Criterion,
    name: &str,
    data_bytes: usize,
    count: usize,
) -> BenchmarkGroup<'c, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::ElementsAndBytes {
        elements: count as u64,
        bytes: (data_bytes * count) as u64,
    });
    group
        .measurement_time(Duration::from_secs(2))
        .warm_up_time(Duration::from_millis(500));
    group
}

fn encode(criterion: &mut Criterion) {
    for (shape, data_bytes, count) in SHAPES {
        let records = records(data_bytes, count);
        let mut group = both(criterion, &format!("encode/{shape}"), data_bytes, count);
        let mut builder = BatchBuilder::new(RecordLimits::default());
        group.bench_function("hash_each", |bencher| {
            bencher.iter(|| {
                for record in &records {
                    builder.push(record, record.hash_key()).unwrap();
                }
                black_box(finish(&mut builder, Compression::None))
            });
        });
        let mut hash_keys = HashKeyCache::default();
        for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
            group.bench_function(format!("cached_{compression}"), |bencher| {
                bencher.iter(|| {
                    fill(&mut builder, &records, &mut hash_keys);
                    black_box(finish(&mut builder, compression))
                });
            });
        }
        group.bench_function("full_range", |bencher| {
            bencher.iter(|| {
                for record in &records {
                    builder.push_within(record, HashRange::FULL).unwrap();
                }
                black_box(finish(&mut builder, Compression::None))
            });
        });
    }
}

fn check(criterion: &mut Criterion) {
    let limits = RecordLimits::default();
    for (shape, data_bytes, count) in SHAPES {
        let encoded = batch(&records(data_bytes, count), Compression::None);
        let mut group = both(criterion, &format!("decode/{shape}"), data_bytes, count);
        group.bench_function("header_and_checksum", |bencher| {
            bencher.iter(|| black_box(Batch::decode(encoded.bytes().clone()).unwrap()));
        });
        group.bench_function("check_body", |bencher| {
            bencher.iter(|| {
                Batch::decode(encoded.bytes().clone())
                    .unwrap()
                    .check_body(limits)
            });
        });
        let mut hash_keys = HashKeyCache::default();
        group.bench_function("check_body_with_cache", |bencher| {
            bencher.iter(|| {
                let batch = Batch::decode(encoded.bytes().clone()).unwrap();
                batch.check_body_with(limits, &mut hash_keys)
            });
        });
    }
}

fn walk(criterion: &mut Criterion) {
    for (shape, data_bytes, count) in SHAPES {
        let records = records(data_bytes, count);
        let mut group = both(criterion, &format!("records/{shape}"), data_bytes, count);
        for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
            let encoded = batch(&records, compression);
            group.bench_function(compression.to_string(), |bencher| {
                bencher.iter(|| {
                    encoded
                        .records()
                        .map(|record| record.unwrap().data.len())
                        .sum::<usize>()
                });
            });
        }
    }
}

criterion_group!(benches, encode, check, walk);
criterion_main!(benches);
