//! A stream that moves between levels and classes any number of times, with kills and power cuts in
//! between: against a plain list of what was acknowledged.

use std::sync::Arc;
use std::time::Duration;

use flumen_broker::{
    Appended, Broker, BrokerConfig, Clock, Error, StartPosition, StreamSettings, StreamUpdate,
};
use flumen_log::{Grain, MemoryStorage};
use flumen_record::{Durability, ProducerId, StreamName, Timestamp};

use crate::fixture::*;

const HOUR: Duration = Duration::from_secs(3600);
const STEPS: u32 = 50;

/// A batch of one record that was acknowledged.
#[derive(Debug, Clone)]
struct Kept {
    base: u64,
    data: String,
    arrival: Timestamp,
    /// At which level, and whether the disk has it whatever happens.
    on_disk: bool,
}

struct Life {
    storage: MemoryStorage,
    clock: Clock,
    broker: Broker,
    stream: StreamName,
    kept: Vec<Kept>,
    /// What has expired: after a kill it may be there again, as a trim is durable a little later.
    expired: Vec<Kept>,
    producer: ProducerId,
    next: u64,
    /// The last batches of this producer: sequence, data, base.
    sent: Vec<(u64, String, u64)>,
    durability: Durability,
    hours: u64,
    names: u64,
    seed: u64,
}

fn small_files() -> BrokerConfig {
    let mut config = config();
    config.log.segment_bytes_min = 128 << 10;
    config.log.segment_bytes_max = 256 << 10;
    config.log.hot_window_bytes = 0;
    config
}

impl Life {
    async fn begin(seed: u64) -> Self {
        let (storage, clock) = (MemoryStorage::new(), clock());
        let broker = open_with(Arc::new(storage.clone()), small_files(), clock.clone()).await;
        let durability = if seed.is_multiple_of(2) {
            Durability::Memory
        } else {
            Durability::Disk
        };
        let settings = StreamSettings {
            retention: 24 * HOUR,
            ..level(durability)
        };
        let stream = create(&broker, "readings", 1, settings).await;
        let producer = broker.open_producer().await.unwrap();
        Self {
            storage,
            clock,
            broker,
            stream,
            kept: Vec::new(),
            expired: Vec::new(),
            producer,
            next: 0,
            sent: Vec::new(),
            durability,
            hours: 24,
            names: 0,
            seed,
        }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.seed = self
            .seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) % below
    }

    async fn send(&self, sequence: u64, data: &str) -> Result<Appended, Error> {
        let mut session = Session::open(&self.broker, &self.stream);
        loop {
            let batch = one(data.to_owned(), self.producer, sequence);
            match session.append(batch).await {
                // The clock went on while a sync was under way.
                Err(Error::DiskStuck { .. }) => tokio::time::sleep(Duration::from_millis(1)).await,
                answer => return answer,
            }
        }
    }

    async fn put(&mut self) {
        let now = Duration::from_millis(1 + self.random(2000));
        self.clock.advance(now);
        self.names += 1;
        let data = format!("{:06}{}", self.names, "x".repeat(6000));
        let mut appended = self.send(self.next, &data).await;
        if let Err(Error::ProducerStateLost { .. }) = &appended
            && self.is_expired()
        {
            self.begin_again().await;
            appended = self.send(self.next, &data).await;
        }
        let appended = appended.unwrap_or_else(|error| panic!("batch {}: {error}", self.next));
        assert!(!appended.duplicate);
        self.note(&appended, data);
    }

    /// Whether nothing is kept of what the producer sent: then it may be forgotten.
    fn is_expired(&self) -> bool {
        let first = self.kept.first();
        let last = self.sent.last().map(|(_, _, base)| *base);
        last.is_none_or(|last| first.is_none_or(|first| last < first.base))
    }

    async fn begin_again(&mut self) {
        self.producer = self.broker.open_producer().await.unwrap();
        (self.next, self.sent) = (0, Vec::new());
    }

    /// Takes the oldest records for expired.
    fn expire_before(&mut self, first: usize) {
        self.expired.extend(self.kept.drain(..first));
    }

    fn note(&mut self, appended: &Appended, data: String) {
        let base = appended.base.value();
        assert!(self.kept.last().is_none_or(|last| last.base < base));
        self.sent.push((self.next, data.clone(), base));
        self.next += 1;
        self.kept.push(Kept {
            base,
            data,
            arrival: appended.arrival,
            on_disk: appended.durability == Durability::Disk,
        });
    }

    /// An ack was lost: the batch is sent again, and must not be stored again.
    async fn retry(&mut self) {
        let last: Vec<_> = self.sent.iter().rev().take(7).cloned().collect();
        for (sequence, data, base) in last {
            match self.send(sequence, &data).await {
                Ok(again) => assert_eq!((again.base.value(), again.duplicate), (base, true)),
                Err(Error::AlreadyAppended { .. }) => {}
                Err(Error::ProducerStateLost { .. }) if self.is_expired() => {
                    return self.begin_again().await;
                }
                Err(error) => panic!("batch {sequence} of {}: {error}", self.next),
            }
        }
    }

    fn update(&mut self) -> (StreamUpdate, Durability, u64) {
        let durability = match self.random(3) {
            0 => Durability::Disk,
            _ => Durability::Memory,
        };
        let hours = [6, 24, 24][usize::try_from(self.random(3)).unwrap()];
        let update = StreamUpdate {
            durability: Some(durability),
            retention: Some(u32::try_from(hours).unwrap() * HOUR),
            ..StreamUpdate::default()
        };
        (update, durability, hours)
    }

    async fn go(&mut self) {
        let (update, durability, hours) = self.update();
        let moved = (durability, hours) != (self.durability, self.hours);
        self.broker
            .update_stream(&self.stream, update)
            .await
            .unwrap();
        (self.durability, self.hours) = (durability, hours);
        if moved {
            // Everything before is on disk, at any level.
            self.kept.iter_mut().for_each(|kept| kept.on_disk = true);
        }
    }

    async fn open(&mut self, storage: MemoryStorage) {
        self.storage = storage;
        let storage = Arc::new(self.storage.clone());
        self.broker = open_with(storage, small_files(), self.clock.clone()).await;
        let description = self.broker.describe_stream(&self.stream).unwrap();
        let horizon = description.shards[0].trim_horizon.value();
        let back = self
            .expired
            .partition_point(|expired| expired.base < horizon);
        self.kept.splice(..0, self.expired.drain(back..));
    }

    async fn kill(&mut self) {
        let killed = self.storage.kill();
        self.open(killed).await;
    }

    async fn stop(&mut self) {
        self.broker.shutdown().await.unwrap();
        self.kept.iter_mut().for_each(|kept| kept.on_disk = true);
        self.kill().await;
    }

    /// What was acknowledged by memory alone may be gone, from somewhere on.
    async fn cut_power(&mut self) {
        let seed = self.random(1 << 30);
        let grain = if seed.is_multiple_of(2) {
            Grain::Page
        } else {
            Grain::Sector
        };
        let cut = self.storage.crash_seeded(grain, seed);
        self.open(cut).await;
        let found = read_all(&self.broker, &self.stream, shard(0)).await;
        let expected = self.kept.len();
        self.kept
            .retain(|kept| found.iter().any(|(base, _)| *base == kept.base) || kept.on_disk);
        if self.kept.len() < expected {
            // What the producer has sent is gone: it is told, and goes on under a new id.
            self.begin_again().await;
        }
        // Opening has written what it found.
        self.kept.iter_mut().for_each(|kept| kept.on_disk = true);
    }

    /// Killed while a move is under way and a batch is sent.
    async fn kill_amid_a_move(&mut self) {
        let (update, ..) = self.update();
        let (broker, stream) = (self.broker.clone(), self.stream.clone());
        let moving = tokio::spawn(async move { broker.update_stream(&stream, update).await });
        self.names += 1;
        let data = format!("{:06}{}", self.names, "y".repeat(100));
        let mut session = Session::open(&self.broker, &self.stream);
        let batch = one(data.clone(), self.producer, self.next);
        session.sender.append(7, shard(0), batch);
        let _ = session.sender.flush().await;
        for _ in 0..self.random(40) {
            tokio::task::yield_now().await;
        }
        let pause = Duration::from_micros(self.random(1500));
        tokio::time::sleep(pause).await;
        let killed = self.storage.kill();
        let _ = moving.await;
        self.open(killed).await;
        let info = self.broker.describe_stream(&self.stream).unwrap();
        self.durability = info.settings.durability;
        self.hours = info.settings.retention.as_secs() / 3600;
        // Nobody knows whether it was taken; sent again, it is there once.
        let mut appended = self.send(self.next, &data).await;
        if let Err(Error::ProducerStateLost { .. }) = &appended
            && self.is_expired()
        {
            self.begin_again().await;
            appended = self.send(self.next, &data).await;
        }
        let appended = appended.unwrap_or_else(|error| panic!("batch {}: {error}", self.next));
        self.note(&appended, data);
    }

    /// Exactly what is beyond the bound goes.
    async fn bound_bytes(&mut self) {
        self.expire().await;
        let keep = self.random(self.kept.len() as u64 + 2);
        let of_batch = |kept: &Kept| 40 + one(kept.data.clone(), self.producer, 0).bytes().len();
        let sizes: Vec<u64> = self.kept.iter().map(|kept| of_batch(kept) as u64).collect();
        let first = sizes.len().saturating_sub(usize::try_from(keep).unwrap());
        let bound: u64 = sizes[first..].iter().sum::<u64>() + self.random(100);
        let bound = bound.max(1);
        self.set_bound(Some(bound)).await;
        self.broker.apply_retention().await.unwrap();
        self.set_bound(None).await;
        self.expire_before(first);
        let description = self.broker.describe_stream(&self.stream).unwrap();
        let shard = &description.shards[0];
        let expected = self
            .kept
            .first()
            .map_or_else(|| shard.durable_end.value(), |kept| kept.base);
        let at = shard.trim_horizon.value();
        // Numbers that a jump left in front of what is kept may be kept with it.
        assert!(at <= expected && (first == 0 || at > 0), "{at} {expected}");
    }

    async fn set_bound(&self, bound: Option<u64>) {
        let update = StreamUpdate {
            retention_bytes: Some(bound),
            ..StreamUpdate::default()
        };
        self.broker
            .update_stream(&self.stream, update)
            .await
            .unwrap();
    }

    /// Exactly what is older than the retention goes.
    async fn age(&mut self) {
        if self.kept.is_empty() {
            return;
        }
        let at = usize::try_from(self.random(self.kept.len() as u64)).unwrap();
        let retention = u32::try_from(self.hours).unwrap() * HOUR;
        let due = self.kept[at].arrival.saturating_add(retention);
        let now = self.clock.now();
        if due > now {
            self.clock.advance(due.since(now));
        }
        self.expire().await;
    }

    /// A shorter retention may have made some due.
    async fn expire(&mut self) {
        self.broker.apply_retention().await.unwrap();
        let retention = u32::try_from(self.hours).unwrap() * HOUR;
        let cut_off = self.clock.now().saturating_sub(retention);
        let first = self.kept.partition_point(|kept| kept.arrival < cut_off);
        self.expire_before(first);
    }

    /// Housekeepers and lanes do what is due.
    async fn rest(&self) {
        for _ in 0..3 {
            self.clock.advance(Duration::from_secs(3));
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }

    /// Every position that there can be reads what is kept, once and in order.
    async fn check(&mut self) {
        self.expire().await;
        let description = self.broker.describe_stream(&self.stream).unwrap();
        let bounds = &description.shards[0];
        let (horizon, end) = (bounds.trim_horizon.value(), bounds.durable_end.value());
        let expected: Vec<(u64, String)> = self
            .kept
            .iter()
            .map(|kept| (kept.base, kept.data.clone()))
            .collect();
        let text = |data: &[u8]| String::from_utf8(data.to_vec()).unwrap();
        let all = read_all(&self.broker, &self.stream, shard(0)).await;
        let all: Vec<_> = all.iter().map(|(base, data)| (*base, text(data))).collect();
        let short = |all: &[(u64, String)]| -> Vec<(u64, String)> {
            all.iter()
                .map(|(base, data)| (*base, data[..7].to_owned()))
                .collect()
        };
        assert_eq!(short(&all), short(&expected), "from {horizon} to {end}");
        assert!(all == expected);
        let mut from = vec![horizon, end];
        for kept in &self.kept {
            from.extend([kept.base, kept.base + 1, kept.base + 7]);
        }
        from.retain(|from| (horizon..=end).contains(from));
        for from in from {
            let start = StartPosition::At(number(from));
            let read = self
                .broker
                .read(&self.stream, shard(0), start, BUDGET, Duration::ZERO);
            let reply = read
                .await
                .unwrap_or_else(|error| panic!("from {from}: {error}"));
            let first = records(&reply).first().map(|(base, _)| *base);
            let next = expected
                .iter()
                .map(|(base, _)| *base)
                .find(|base| *base >= from);
            // A reply may end in a jump.
            assert!(
                first == next || (first.is_none() && reply.next.value() > from),
                "{from}: {first:?} {next:?}"
            );
        }
        if horizon > 0 {
            let start = StartPosition::At(number(horizon - 1));
            let read = self
                .broker
                .read(&self.stream, shard(0), start, BUDGET, Duration::ZERO);
            assert!(matches!(read.await, Err(Error::Trimmed { .. })));
        }
        self.check_times(end).await;
    }

    async fn check_times(&mut self, end: u64) {
        for _ in 0..4 {
            let Some(last) = self.kept.len().checked_sub(1) else {
                return;
            };
            let at = usize::try_from(self.random(last as u64 + 1)).unwrap();
            let time = self.kept[at]
                .arrival
                .saturating_sub(Duration::from_micros(self.random(2)));
            let start = StartPosition::AtTimestamp(time);
            let found = self
                .broker
                .resolve_start(&self.stream, shard(0), start)
                .await;
            let expected = self.kept.iter().find(|kept| kept.arrival >= time);
            let expected = expected.map_or(end, |kept| kept.base);
            assert_eq!(found.unwrap().value(), expected);
        }
    }

    async fn step(&mut self) {
        match self.random(16) {
            0..5 => {
                for _ in 0..=self.random(8) {
                    self.put().await;
                }
            }
            5 => self.retry().await,
            6..9 => self.go().await,
            9 | 10 => self.kill().await,
            11 => self.stop().await,
            12 => self.cut_power().await,
            13 => self.kill_amid_a_move().await,
            14 => self.bound_bytes().await,
            _ => match self.random(3) {
                0 => self.age().await,
                _ => self.rest().await,
            },
        }
    }
}

/// `FLUMEN_STAYS_SEEDS` makes it longer.
#[tokio::test]
async fn a_stream_that_moves_about_keeps_what_it_acknowledged() {
    let number = |name: &str, default: u64| -> u64 {
        let set = std::env::var(name).ok();
        set.and_then(|set| set.parse().ok()).unwrap_or(default)
    };
    let from = number("FLUMEN_STAYS_FROM", 0);
    let seeds = number("FLUMEN_STAYS_SEEDS", 12);
    for seed in from..from + seeds {
        println!("seed {seed}");
        let mut life = Life::begin(seed.wrapping_mul(7919).wrapping_add(seed)).await;
        for _ in 0..STEPS {
            life.step().await;
            life.retry().await;
            life.check().await;
        }
    }
}
