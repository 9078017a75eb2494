//! The producers: each replays some devices, row by row, at a steady pace.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use flumen_client::{
    Client, ClientConfig, Delivery, Header, Producer, ProducerConfig, ProducerStats, Record,
    SendError, StreamName,
};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hdrhistogram::Histogram;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::ledger::ROW;
use super::telemetry::Telemetry;
use crate::quantity::micros;

/// A batch leaves with this many readings at the latest: many small ones are on their way at once.
const BATCH_READINGS: u32 = 64;
/// What a producer holds at most: it waits when the broker is away.
const MEMORY_BYTES: usize = 512 << 10;

/// What producers and consumers share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) telemetry: Arc<Telemetry>,
    /// What `sent_us` counts from.
    pub(super) begun: Instant,
    /// When each reading was given to its producer, by number.
    sent_us: Vec<AtomicU64>,
    /// Readings are sent as fast as they are taken.
    pub(super) burst: AtomicBool,
}

impl Shared {
    pub(super) fn new(telemetry: Arc<Telemetry>) -> Self {
        let sent_us = (0..telemetry.readings).map(|_| AtomicU64::new(0)).collect();
        Self {
            telemetry,
            begun: Instant::now(),
            sent_us,
            burst: AtomicBool::new(false),
        }
    }

    fn sent(&self, number: usize) {
        if let Some(sent) = self.sent_us.get(number) {
            sent.store(micros(self.begun.elapsed()), Ordering::Relaxed);
        }
    }

    /// How long a reading took from its producer to here.
    pub(super) fn since_sent(&self, number: usize) -> u64 {
        let sent = self
            .sent_us
            .get(number)
            .map_or(0, |sent| sent.load(Ordering::Relaxed));
        micros(self.begun.elapsed()).saturating_sub(sent).max(1)
    }
}

/// The producers as somebody sees them who does not run them.
#[derive(Debug, Clone)]
pub(super) struct Watched(Vec<Producer>);

impl Watched {
    /// What each did so far.
    pub(super) fn stats(&self) -> Vec<ProducerStats> {
        self.0.iter().map(Producer::stats).collect()
    }

    /// Readings acknowledged so far.
    pub(super) fn stored(&self) -> u64 {
        self.0
            .iter()
            .map(|producer| producer.stats().records_stored)
            .sum()
    }
}

/// Running producers.
#[derive(Debug)]
pub(super) struct Producers {
    each: Vec<Producer>,
    sending: Vec<JoinHandle<Result<Instant>>>,
    timing: Vec<JoinHandle<Result<Histogram<u64>, SendError>>>,
}

impl Producers {
    /// Opens `count` producers, each on a connection of its own, and lets them send over `time`.
    pub(super) async fn start(
        endpoint: &str,
        stream: &StreamName,
        shared: &Arc<Shared>,
        count: usize,
        time: Duration,
    ) -> Result<Self> {
        let mut producers = Self {
            each: Vec::new(),
            sending: Vec::new(),
            timing: Vec::new(),
        };
        for (index, devices) in shared_out(&shared.telemetry, count).into_iter().enumerate() {
            let client = Client::connect(ClientConfig::new(endpoint))?;
            let config = ProducerConfig {
                linger: Duration::from_millis(1),
                batch_records: BATCH_READINGS,
                memory_bytes: MEMORY_BYTES,
                ..ProducerConfig::default()
            };
            let opened = Producer::open(&client, stream, config).await;
            let producer = opened.with_context(|| format!("producer {}", index + 1))?;
            let (deliveries, taken) = mpsc::channel(4_096);
            producers.timing.push(tokio::spawn(time_acks(taken)));
            let replay = replay(
                producer.clone(),
                Arc::clone(shared),
                devices,
                time,
                deliveries,
            );
            producers.sending.push(tokio::spawn(replay));
            producers.each.push(producer);
        }
        Ok(producers)
    }

    /// A view of them.
    pub(super) fn watched(&self) -> Watched {
        Watched(self.each.clone())
    }

    /// Waits until everything is acknowledged: when that was, and how long acks took.
    pub(super) async fn finish(self) -> Result<(Instant, Histogram<u64>)> {
        let mut ended = None;
        for sending in self.sending {
            ended = ended.max(Some(sending.await.context("a producer")??));
        }
        let mut latency = latencies();
        for timing in self.timing {
            latency
                .add(timing.await.context("a producer")??)
                .expect("BUG: bounds differ");
        }
        Ok((ended.context("there are no producers")?, latency))
    }
}

/// An empty histogram of microseconds.
pub(super) fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("BUG: fixed bounds")
}

/// Devices dealt to producers so that each has about as many readings.
fn shared_out(telemetry: &Telemetry, count: usize) -> Vec<Vec<usize>> {
    let mut devices: Vec<_> = telemetry.devices.iter().enumerate().collect();
    devices.sort_by_key(|(_, device)| std::cmp::Reverse(device.rows.len()));
    let mut hands: Vec<(usize, Vec<usize>)> = vec![(0, Vec::new()); count.clamp(1, devices.len())];
    for (index, device) in devices {
        if let Some(hand) = hands.iter_mut().min_by_key(|(readings, _)| *readings) {
            hand.0 += device.rows.len();
            hand.1.push(index);
        }
    }
    hands.into_iter().map(|(_, devices)| devices).collect()
}

/// Sends the rows of some devices, first rows first; when everything was acknowledged.
async fn replay(
    producer: Producer,
    shared: Arc<Shared>,
    devices: Vec<usize>,
    time: Duration,
    deliveries: mpsc::Sender<(Instant, Delivery)>,
) -> Result<Instant> {
    let devices: Vec<_> = devices
        .iter()
        .filter_map(|index| shared.telemetry.devices.get(*index))
        .collect();
    let readings: usize = devices.iter().map(|device| device.rows.len()).sum();
    let longest = devices
        .iter()
        .map(|device| device.rows.len())
        .max()
        .unwrap_or(0);
    let mut pace = Pace::new(time, readings);
    for row in 0..longest {
        for device in &devices {
            let Some(data) = device.rows.get(row) else {
                continue;
            };
            pace.wait(&shared.burst).await;
            let record = Record {
                partition_key: Bytes::from(device.name.clone()),
                explicit_hash_key: None,
                data: data.clone(),
                client_timestamp: None,
                headers: vec![Header {
                    name: Bytes::from(ROW),
                    value: Bytes::from(row.to_string()),
                }],
            };
            let sent = Instant::now();
            shared.sent(device.first + row);
            let delivery = producer.send(record).await?;
            deliveries
                .send((sent, delivery))
                .await
                .context("nobody waits for acks")?;
        }
    }
    drop(deliveries);
    producer.flush().await?;
    Ok(Instant::now())
}

/// Waits for acks beside the sending, so that a waiting sender does not delay what they show.
async fn time_acks(
    mut deliveries: mpsc::Receiver<(Instant, Delivery)>,
) -> Result<Histogram<u64>, SendError> {
    let mut latency = latencies();
    let mut waiting = FuturesUnordered::new();
    let mut open = true;
    while open || !waiting.is_empty() {
        tokio::select! {
            delivery = deliveries.recv(), if open => match delivery {
                Some((sent, delivery)) => waiting.push(async move {
                    delivery.wait().await.map(|_| sent)
                }),
                None => open = false,
            },
            Some(acknowledged) = waiting.next() => {
                latency.saturating_record(micros(acknowledged?.elapsed()).max(1));
            }
        }
    }
    Ok(latency)
}

/// Spreads readings evenly over some time; what an outage held up is made good at full speed.
struct Pace {
    interval: Duration,
    due: Instant,
}

impl Pace {
    fn new(time: Duration, readings: usize) -> Self {
        let readings = u32::try_from(readings).unwrap_or(u32::MAX).max(1);
        Self {
            interval: time / readings,
            due: Instant::now(),
        }
    }

    async fn wait(&mut self, burst: &AtomicBool) {
        self.due += self.interval;
        let now = Instant::now();
        if burst.load(Ordering::Relaxed) {
            self.due = self.due.min(now);
        } else if self.due > now + Duration::from_millis(1) {
            tokio::time::sleep_until(self.due).await;
        }
    }
}
