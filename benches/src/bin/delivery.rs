//! Delivery streams: what one core writes of them per second, beside the encoder alone and the store
//! alone in the same minutes; and what many idle ones cost.
//!
//! `delivery throughput --data CSV-FOLDER --dir EMPTY-FOLDER` and `delivery idle --dir EMPTY-FOLDER`
//! print one JSON object each. The broker runs within, on real files.
#![forbid(unsafe_code)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::{Parser, Subcommand, ValueEnum};
use flumen_broker::{
    Broker, BrokerConfig, BufferingHints, Clock, DeliverySettings, Destination, NewDelivery,
    NewStream, ObjectCompression, ObjectFormat, ParquetSettings, PutRecord, StreamSettings,
};
use flumen_log::DiskStorage;
use flumen_record::{DeliveryName, StreamName};
use flumen_sink::{
    Destinations, Encoding, PutPayload, RealDestinations, Schema, Sink, SinkConfig, Tag,
};
use tokio::time::Instant;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Nothing takes longer.
const PATIENCE: Duration = Duration::from_secs(3600);
/// After the rows were put.
const SETTLE: Duration = Duration::from_secs(10);
/// Records of one put.
const PUT_RECORDS: usize = 2_000;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Subcommand)]
enum Mode {
    /// What one core delivers of a backlog.
    Throughput {
        /// CSV files, `timestamp,value` with a header; the file is the device
        #[arg(long)]
        data: PathBuf,
        /// Where the broker and the objects are
        #[arg(long)]
        dir: PathBuf,
        #[arg(long, value_enum, default_value_t = Format::NdjsonGzip)]
        format: Format,
        /// Rows are repeated up to this many bytes
        #[arg(long, default_value_t = 256 << 20)]
        bytes: u64,
        /// Buffering size
        #[arg(long, default_value_t = 16 << 20)]
        size: u64,
        #[arg(long, default_value_t = 3)]
        rounds: u32,
        /// Everything runs on this core
        #[arg(long, default_value_t = 0)]
        core: usize,
    },
    /// What delivery streams cost that have nothing to do.
    Idle {
        #[arg(long)]
        dir: PathBuf,
        #[arg(long, default_value_t = 100)]
        streams: u32,
        #[arg(long, default_value_t = 20)]
        seconds: u64,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    NdjsonGzip,
    ParquetZstd,
}

fn main() -> Result<(), Failure> {
    let mode = Arguments::parse().mode;
    if let Mode::Throughput { core, .. } = &mode {
        // Before there are threads: they inherit it.
        let mut set = rustix::thread::CpuSet::new();
        set.set(*core);
        rustix::thread::sched_setaffinity(None, &set)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let report = match mode {
        Mode::Throughput {
            data,
            dir,
            format,
            bytes,
            size,
            rounds,
            ..
        } => {
            let rows = rows(&data, bytes)?;
            runtime.block_on(throughput(&dir, format, &rows, size, rounds))?
        }
        Mode::Idle {
            dir,
            streams,
            seconds,
        } => runtime.block_on(idle(&dir, streams, seconds))?,
    };
    writeln!(std::io::stdout(), "{report}")?;
    Ok(())
}

/// Readings as JSON, in the order of the files.
fn rows(data: &Path, bytes: u64) -> Result<Vec<Bytes>, Failure> {
    let (mut files, mut folders) = (Vec::new(), vec![data.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            match path.extension() {
                _ if path.is_dir() => folders.push(path),
                Some(extension) if extension == "csv" => files.push(path),
                _ => {}
            }
        }
    }
    files.sort();
    let (mut once, mut total) = (Vec::new(), 0);
    for file in files {
        let device = file
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        for line in std::fs::read_to_string(&file)?.lines().skip(1) {
            if let Some((timestamp, value)) = line.split_once(',') {
                let row = format!(
                    "{{\"device\":\"{device}\",\"timestamp\":\"{timestamp}\",\"value\":{value}}}"
                );
                total += row.len() as u64;
                once.push(Bytes::from(row));
            }
        }
    }
    if once.is_empty() {
        return Err(format!("no rows in {}", data.display()).into());
    }
    let times = bytes.div_ceil(total.max(1));
    let repeated = (0..times).flat_map(|_| once.iter().cloned());
    Ok(repeated.collect())
}

fn settings(
    stream: &str,
    dir: &Path,
    format: Format,
    size: u64,
) -> Result<DeliverySettings, Failure> {
    let settings: DeliverySettings = serde_json::from_value(serde_json::json!({
        "source": { "kind": "stream", "stream": stream },
        "destination": { "kind": "directory", "path": dir },
    }))?;
    let (format, compression) = match format {
        Format::NdjsonGzip => (ObjectFormat::Ndjson, ObjectCompression::Gzip),
        Format::ParquetZstd => (
            ObjectFormat::Parquet(ParquetSettings::default()),
            ObjectCompression::None,
        ),
    };
    Ok(DeliverySettings {
        format,
        compression,
        buffering: BufferingHints {
            size_bytes: size,
            interval_ms: 900_000,
        },
        ..settings
    })
}

struct Node {
    broker: Broker,
    sink: Sink,
}

impl Node {
    async fn start(dir: &Path) -> Result<Self, Failure> {
        let storage = DiskStorage::open(&dir.join("data"), DiskStorage::LOCK_WAIT)?;
        let clock = Clock::system();
        let broker =
            Broker::open(Arc::new(storage), BrokerConfig::default(), clock.clone()).await?;
        let destinations = Arc::new(RealDestinations::of_this_process());
        let spool = dir.join("data/sink");
        let sink = Sink::start(&broker, SinkConfig::default(), destinations, clock, spool);
        let sink = sink.ok_or("the seat is taken")?;
        Ok(Self { broker, sink })
    }

    async fn stop(self) -> Result<(), Failure> {
        self.sink.shutdown().await;
        Ok(self.broker.shutdown().await?)
    }
}

async fn create(broker: &Broker, name: &str) -> Result<StreamName, Failure> {
    let name: StreamName = name.parse()?;
    let new = NewStream {
        name: name.clone(),
        shards: 1,
        settings: StreamSettings::default(),
    };
    broker.create_stream(new).await?;
    Ok(name)
}

async fn throughput(
    dir: &Path,
    format: Format,
    rows: &[Bytes],
    size: u64,
    rounds: u32,
) -> Result<serde_json::Value, Failure> {
    let node = Node::start(dir).await?;
    let stream = create(&node.broker, "rows").await?;
    for rows in rows.chunks(PUT_RECORDS) {
        let record = |row: &Bytes| PutRecord {
            partition_key: Bytes::from_static(b"key"),
            explicit_hash_key: None,
            data: row.clone(),
            client_timestamp: None,
            headers: Vec::new(),
        };
        for put in node
            .broker
            .put(&stream, rows.iter().map(record).collect())
            .await?
        {
            put?;
        }
    }
    // The broker prepares files for what it thinks is coming: on one core that would be measured too.
    tokio::time::sleep(SETTLE).await;
    let bytes: u64 = rows.iter().map(|row| row.len() as u64).sum();
    let (mut encoder, mut store, mut sink) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let objects = dir.join(format!("objects-{round}"));
        let settings = settings(stream.as_str(), &objects, format, size)?;
        let (encoded, seconds) = encode(&settings, rows, size)?;
        encoder.push(seconds);
        store.push(write(&settings, &encoded, &dir.join(format!("store-{round}"))).await?);
        drop(encoded);
        sink.push(deliver(&node.broker, settings, rows.len(), round).await?);
        std::fs::remove_dir_all(&objects)?;
    }
    node.stop().await?;
    let slower: Vec<_> = std::iter::zip(&encoder, &store)
        .map(|(encoder, store)| per_second(bytes, encoder.max(*store)))
        .collect();
    let sinks: Vec<_> = sink.iter().map(|sink| per_second(bytes, *sink)).collect();
    let (encoder, store, sink) = (median(encoder), median(store), median(sink));
    Ok(serde_json::json!({
        "format": match format { Format::NdjsonGzip => "ndjson+gzip", Format::ParquetZstd => "parquet+zstd" },
        "rows": rows.len(), "bytes": bytes, "size_bytes": size, "rounds": rounds,
        "encoder_bytes_per_s": per_second(bytes, encoder),
        "store_bytes_per_s": per_second(bytes, store),
        "sink_bytes_per_s": sinks, "slower_bytes_per_s": slower,
        "ratio_to_slower": encoder.max(store) / sink,
    }))
}

/// The rows in objects as large as cuts, and nothing else.
fn encode(
    settings: &DeliverySettings,
    rows: &[Bytes],
    size: u64,
) -> Result<(Vec<Vec<u8>>, f64), Failure> {
    let encoding = Encoding::compile(settings)?;
    let mut admission = encoding.admission(Schema::default());
    for row in rows.iter().take(10_000) {
        admission.admit(row.clone())?;
    }
    let schema = admission.schema().clone();
    let mut objects = Vec::new();
    let began = Instant::now();
    let mut rest = rows.iter().peekable();
    while rest.peek().is_some() {
        let (mut encoder, mut bytes) = (encoding.encoder(&schema, Vec::new())?, 0);
        while bytes < size
            && let Some(row) = rest.next()
        {
            encoder.row(row)?;
            bytes += row.len() as u64;
        }
        objects.push(encoder.finish()?.0);
    }
    Ok((objects, began.elapsed().as_secs_f64()))
}

/// Those objects into the same kind of store, and nothing else.
async fn write(
    settings: &DeliverySettings,
    objects: &[Vec<u8>],
    dir: &Path,
) -> Result<f64, Failure> {
    let destination = Destination::Directory {
        path: dir.to_owned(),
    };
    let config = SinkConfig::default();
    let store =
        RealDestinations::of_this_process().open(&destination, &settings.object, &config.store)?;
    let began = Instant::now();
    for (n, object) in objects.iter().enumerate() {
        let tag = Tag {
            cut: format!("cut-{n}"),
            crc32: 0,
            bytes: object.len() as u64,
            content_type: "application/octet-stream".to_owned(),
            content_encoding: None,
        };
        let body = PutPayload::from(Bytes::copy_from_slice(object));
        store.create(&format!("object-{n}"), body, &tag).await?;
    }
    let seconds = began.elapsed().as_secs_f64();
    std::fs::remove_dir_all(dir)?;
    Ok(seconds)
}

async fn deliver(
    broker: &Broker,
    settings: DeliverySettings,
    rows: usize,
    round: u32,
) -> Result<f64, Failure> {
    let name: DeliveryName = format!("round-{round}").parse()?;
    let began = Instant::now();
    let new = NewDelivery {
        name: name.clone(),
        settings,
    };
    broker.create_delivery(new).await?;
    let described = broker.flush_delivery(&name, PATIENCE).await?;
    let seconds = began.elapsed().as_secs_f64();
    if described.counts.delivered_records != rows as u64 {
        let delivered = described.counts.delivered_records;
        return Err(format!("{delivered} of {rows} rows were delivered").into());
    }
    broker
        .delete_delivery(&name, flumen_broker::DeliveryEnd::Drop, PATIENCE)
        .await?;
    Ok(seconds)
}

async fn idle(dir: &Path, streams: u32, seconds: u64) -> Result<serde_json::Value, Failure> {
    let node = Node::start(dir).await?;
    for n in 0..streams {
        let stream = create(&node.broker, &format!("idle-{n}")).await?;
        let settings = settings(
            stream.as_str(),
            &dir.join("objects"),
            Format::NdjsonGzip,
            5 << 20,
        )?;
        let name: DeliveryName = format!("idle-{n}").parse()?;
        node.broker
            .create_delivery(NewDelivery { name, settings })
            .await?;
    }
    // Probes, first reports.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = cpu_seconds()?;
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let used = cpu_seconds()? - before;
    node.stop().await?;
    Ok(serde_json::json!({
        "streams": streams, "seconds": seconds, "cpu_seconds": used,
        "cpu_percent": 100.0 * used / seconds as f64,
    }))
}

/// CPU time of this process.
fn cpu_seconds() -> Result<f64, Failure> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let after = stat.rsplit_once(')').ok_or("no name in stat")?.1;
    let fields: Vec<&str> = after.split_whitespace().collect();
    let ticks: f64 = fields
        .get(11..13)
        .ok_or("no times in stat")?
        .iter()
        .map(|ticks| ticks.parse::<f64>())
        .sum::<Result<f64, _>>()?;
    Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN)
}

fn per_second(bytes: u64, seconds: f64) -> f64 {
    (bytes as f64 / seconds).round()
}
