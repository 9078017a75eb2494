//! Rows into objects: what one core admits and encodes per second, by format.
#![expect(clippy::unwrap_used, reason = "a benchmark that is wrong may panic")]

use std::hint::black_box;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use flumen_broker::{
    DeliverySettings, Destination, ObjectCompression, ObjectFormat, ParquetSettings,
};
use flumen_sink::{Admission, Encoding, Schema};

/// About what a cut of the default size has.
const ROWS: usize = 65_536;

/// Readings as devices send them.
fn rows() -> Vec<Bytes> {
    let row = |i: usize| {
        let value = (i * 7_919 % 1_000_003) as f64 / 64.0;
        Bytes::from(format!(
            "{{\"device\":\"device-{:05}\",\"timestamp\":\"2014-07-{:02} {:02}:{:02}:{:02}\",\"value\":{value:?}}}",
            i * 31 % 1_000,
            i / 3_000 + 1,
            i / 125 % 24,
            i / 2 % 60,
            i % 60,
        ))
    };
    (0..ROWS).map(row).collect()
}

fn encoding(format: ObjectFormat, compression: ObjectCompression) -> Encoding {
    let settings = serde_json::json!({
        "source": {"kind": "direct"},
        "destination": Destination::Memory { name: String::from("bench") },
    });
    let settings: DeliverySettings = serde_json::from_value(settings).unwrap();
    Encoding::compile(&DeliverySettings {
        format,
        compression,
        ..settings
    })
    .unwrap()
}

fn admit(admission: &mut Admission, rows: &[Bytes]) {
    for row in rows {
        black_box(admission.admit(row.clone()).unwrap());
    }
}

fn encode(encoding: &Encoding, schema: &Schema, rows: &[Bytes]) {
    let mut encoder = encoding.encoder(schema, io::sink()).unwrap();
    for row in rows {
        encoder.row(row).unwrap();
    }
    black_box(encoder.finish().unwrap());
}

fn benchmark(criterion: &mut Criterion) {
    let rows = rows();
    let bytes: usize = rows.iter().map(Bytes::len).sum();
    let parquet = ObjectFormat::Parquet(ParquetSettings::default());
    let encodings = [
        (
            "ndjson_gzip",
            encoding(ObjectFormat::Ndjson, ObjectCompression::Gzip),
        ),
        (
            "ndjson_zstd",
            encoding(ObjectFormat::Ndjson, ObjectCompression::Zstd),
        ),
        ("parquet_zstd", encoding(parquet, ObjectCompression::None)),
    ];
    for (name, encoding) in encodings {
        let mut learnt = encoding.admission(Schema::default());
        admit(&mut learnt, &rows);
        let schema = learnt.schema().clone();
        let mut group = criterion.benchmark_group(format!("encode/{name}"));
        group
            .throughput(Throughput::ElementsAndBytes {
                elements: ROWS as u64,
                bytes: bytes as u64,
            })
            .sample_size(10)
            .measurement_time(Duration::from_secs(5));
        group.bench_function("admit", |bencher| {
            bencher.iter(|| admit(&mut encoding.admission(Schema::default()), &rows));
        });
        group.bench_function("encode", |bencher| {
            bencher.iter(|| encode(&encoding, &schema, &rows));
        });
        group.bench_function("both", |bencher| {
            bencher.iter(|| {
                admit(&mut encoding.admission(Schema::default()), &rows);
                encode(&encoding, &schema, &rows);
            });
        });
        group.finish();
    }
}

criterion_group!(benches, benchmark);
criterion_main!(benches);
