//! Searches by time and by bytes, against what is really kept: while segments are freed, copied and
//! released from memory, and after restarts.

use std::sync::Arc;

use flumen_log::{Housekeeper, Log, LogConfig, LogReader, MemoryStorage, SearchAnswer, Storage};

use crate::fixture::{ALL, DISK, at, frame, number, open, shard, small_segments};

/// Nothing stays in memory but what was written last.
fn cold_config() -> LogConfig {
    LogConfig {
        hot_window_bytes: 0,
        ..small_segments()
    }
}

fn keep_house(keeper: &mut Housekeeper, millis: &mut u64) {
    let mut idle = 0;
    while idle < 3 {
        *millis += 2000;
        let report = keeper.step(at(*millis)).unwrap();
        let busy = report.more || report.sealed + report.freed + report.copied > 0;
        idle = if busy { 0 } else { idle + 1 };
    }
}

/// A batch that was written: its number, when it arrived, its stored bytes.
#[derive(Debug, Clone, Copy)]
struct Batch {
    base: u64,
    arrived: u64,
    bytes: u64,
}

/// A log with one shard that is searched, beside others.
struct Searched {
    twin: MemoryStorage,
    log: Option<Log>,
    keeper: Option<Housekeeper>,
    millis: u64,
    next: u64,
    kept: Vec<Batch>,
    seed: u64,
}

impl Searched {
    fn new(seed: u64) -> Self {
        let mut searched = Self {
            twin: MemoryStorage::new(),
            log: None,
            keeper: None,
            millis: 1_000_000,
            next: 0,
            kept: Vec::new(),
            seed,
        };
        searched.open();
        searched
    }

    fn open(&mut self) {
        let storage: Arc<dyn Storage> = Arc::new(self.twin.clone());
        let (log, recovery, _) = open(&storage, DISK, &cold_config(), at(self.millis));
        assert_eq!(recovery.quarantined, []);
        self.keeper = Some(log.housekeeper());
        self.log = Some(log);
    }

    fn random(&mut self, below: u64) -> u64 {
        self.seed = self
            .seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) % below
    }

    fn log(&mut self) -> &mut Log {
        self.log.as_mut().unwrap()
    }

    fn write(&mut self, rounds: u64) {
        for _ in 0..rounds {
            self.millis += self.random(3);
            let now = at(self.millis);
            let other = frame(2, self.next, 1, 3000, now);
            let size = 100 + usize::try_from(self.random(9000)).unwrap();
            let mut frames = vec![other];
            for _ in 0..self.random(4) {
                let new = frame(1, self.next, 1, size, now);
                self.kept.push(Batch {
                    base: self.next,
                    arrived: self.millis,
                    bytes: (new.batch.bytes().len() + flumen_record::FRAME_HEADER_BYTES) as u64,
                });
                frames.push(new);
                self.next += 1;
            }
            // Shards take turns.
            if frames.len() > 1 {
                self.log().commit(&frames, 0, now).unwrap().unwrap();
            }
        }
    }

    fn trim(&mut self, before: u64) {
        self.log().trim(shard(1), number(before));
        let millis = self.millis;
        self.log().trim(shard(2), number(before));
        self.log().commit(&[], 0, at(millis)).unwrap().unwrap();
        self.kept.retain(|batch| batch.base >= before);
    }

    fn snapshot(&mut self) {
        let millis = self.millis;
        let job = self.log().snapshot(Vec::new(), at(millis));
        job.run().unwrap();
    }

    fn reopen(&mut self, closed: bool) {
        let millis = self.millis;
        if let Some(log) = self.log.take()
            && closed
        {
            log.close(at(millis)).unwrap();
        }
        self.twin = self.twin.kill();
        self.open();
    }

    /// Every search says what a look at all that is kept says.
    fn check(&mut self) {
        let reader = self.log().reader();
        let first = self.kept.first().map_or(self.millis, |batch| batch.arrived);
        let mut times = vec![
            0,
            first.saturating_sub(1),
            first,
            self.millis,
            self.millis + 9,
        ];
        for _ in 0..6 {
            times.push(first.saturating_sub(50) + self.random(self.millis - first + 100));
        }
        for time in times {
            let expected = self.kept.iter().find(|batch| batch.arrived >= time);
            let expected = expected.map_or(SearchAnswer::AllOlder, |batch| {
                SearchAnswer::At(number(batch.base))
            });
            let found = reader.find_time(shard(1), &ALL, at(time)).unwrap();
            assert_eq!(found, expected, "at {time} of {:?}", self.kept.first());
        }
        self.check_bytes(&reader);
    }

    fn check_bytes(&mut self, reader: &LogReader) {
        let stored: u64 = self.kept.iter().map(|batch| batch.bytes).sum();
        assert_eq!(reader.count_bytes(shard(1), &ALL).unwrap(), Some(stored));
        for limit in [0, 1, stored / 3, stored, self.random(stored + 2), u64::MAX] {
            let mut sum = 0;
            let fits = |batch: &&Batch| {
                sum += batch.bytes;
                sum <= limit
            };
            let kept = self.kept.iter().rev().take_while(fits).count();
            let boundary = self.kept.len() - kept;
            let base = self
                .kept
                .get(boundary)
                .map_or(self.next, |batch| batch.base);
            let found = reader.find_bytes_from_end(shard(1), &ALL, limit).unwrap();
            assert_eq!(found, SearchAnswer::At(number(base)), "{limit} of {stored}");
        }
    }
}

fn live(seed: u64, steps: u64) {
    let mut searched = Searched::new(seed);
    searched.write(10);
    for _ in 0..steps {
        match searched.random(8) {
            0..3 => {
                let rounds = searched.random(60);
                searched.write(rounds);
            }
            3 => {
                let kept = searched.kept.len() as u64;
                let first = searched
                    .kept
                    .first()
                    .map_or(searched.next, |batch| batch.base);
                let before = first + searched.random(kept + 1);
                searched.trim(before);
            }
            4 => {
                let mut millis = searched.millis;
                let mut keeper = searched.keeper.take().unwrap();
                keep_house(&mut keeper, &mut millis);
                searched.keeper = Some(keeper);
            }
            5 => searched.snapshot(),
            6 => {
                let closed = searched.random(2) == 0;
                searched.reopen(closed);
            }
            _ => {
                // Trimmed until little is left, and freed.
                let before = searched.next - searched.next.min(searched.random(4));
                searched.trim(before);
                let mut millis = searched.millis;
                let mut keeper = searched.keeper.take().unwrap();
                keep_house(&mut keeper, &mut millis);
                searched.keeper = Some(keeper);
            }
        }
        searched.check();
    }
}

/// `FLUMEN_SEARCH_SEEDS` makes it longer.
#[test]
fn searches_say_what_is_kept() {
    let seeds = std::env::var("FLUMEN_SEARCH_SEEDS").ok();
    let seeds = seeds.and_then(|seeds| seeds.parse().ok()).unwrap_or(8);
    for seed in 0..seeds {
        println!("seed {seed}");
        live(seed, 60);
    }
}

/// A bound in bytes frees segments; the index remembered them, and "before them" was answered with
/// "nothing is there", which became "the end". Retention by time deletes up to what it is told.
#[test]
fn a_time_before_a_freed_segment_is_not_the_end() {
    let mut searched = Searched::new(1);
    searched.write(300);
    searched.snapshot();
    let first = searched.next - 20;
    searched.trim(first);
    let mut millis = searched.millis;
    let mut keeper = searched.keeper.take().unwrap();
    keep_house(&mut keeper, &mut millis);
    searched.keeper = Some(keeper);
    let ask = |searched: &mut Searched| {
        let reader = searched.log().reader();
        reader.find_time(shard(1), &ALL, at(0)).unwrap()
    };
    assert_eq!(ask(&mut searched), SearchAnswer::At(number(first)));
    searched.reopen(true);
    assert_eq!(ask(&mut searched), SearchAnswer::At(number(first)));
}
