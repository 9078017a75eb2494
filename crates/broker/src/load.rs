//! What a shard takes, as its lane notes it for automatic scaling: a few plain stores per batch, and
//! now and then a batch that is kept for who wants to know the keys.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use flumen_record::Batch;

use flumen_world::lock;

/// Batches kept at most until they are fetched.
const SAMPLES_MAX: usize = 16;
/// And their bytes, of one shard.
const SAMPLES_BYTES_MAX: usize = 1 << 20;
/// How many batches one wants to keep until the next look.
const SAMPLES_WANTED: u64 = 8;

/// One shard's load. Written by its lane, read by whoever wants to know.
#[derive(Debug, Default)]
pub(crate) struct Load {
    batches: AtomicU64,
    bytes: AtomicU64,
    records: AtomicU64,
    /// About one batch of so many is kept; 0: none, nobody looks.
    stride: AtomicU64,
    samples: Mutex<Vec<Sample>>,
}

/// A batch that stands for `stride` batches.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) batch: Batch,
    pub(crate) stride: u64,
    /// Which of the shard's batches it is.
    pub(crate) number: u64,
}

impl Load {
    /// Takes note of a batch. Only the shard's lane does.
    pub(crate) fn came(&self, batch: &Batch) {
        let batches = add(&self.batches, 1);
        add(&self.bytes, batch.bytes().len() as u64);
        add(&self.records, u64::from(batch.header().count));
        let stride = self.stride.load(Ordering::Relaxed);
        if stride > 0 && is_drawn(batches, stride) {
            self.keep(batch, stride, batches);
        }
    }

    #[cold]
    fn keep(&self, batch: &Batch, stride: u64, number: u64) {
        let mut samples = lock(&self.samples);
        let bytes = |sample: &Sample| sample.batch.bytes().len();
        let kept: usize = samples.iter().map(bytes).sum();
        if samples.len() < SAMPLES_MAX && kept + batch.bytes().len() <= SAMPLES_BYTES_MAX {
            let batch = batch.clone();
            samples.push(Sample {
                batch,
                stride,
                number,
            });
        }
    }

    /// Bytes and records so far.
    pub(crate) fn taken(&self) -> (u64, u64) {
        (
            self.bytes.load(Ordering::Relaxed),
            self.records.load(Ordering::Relaxed),
        )
    }

    /// The batches that were kept since the last look. `before` is how many had come by then, and is
    /// moved on: the next ones are drawn so that about as many are kept as are wanted.
    pub(crate) fn look(&self, before: &mut u64) -> Vec<Sample> {
        let batches = self.batches.load(Ordering::Relaxed);
        let came = batches.saturating_sub(std::mem::replace(before, batches));
        let stride = (came / SAMPLES_WANTED).max(1);
        self.stride.store(stride, Ordering::Relaxed);
        std::mem::take(&mut *lock(&self.samples))
    }

    /// Nobody looks any more.
    pub(crate) fn look_away(&self) {
        self.stride.store(0, Ordering::Relaxed);
        lock(&self.samples).clear();
    }
}

/// One of `stride` on average, and not every so many: producers often take turns.
fn is_drawn(number: u64, stride: u64) -> bool {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) <= u64::MAX / stride
}

/// Adds to a count that one thread writes; what it was.
fn add(count: &AtomicU64, by: u64) -> u64 {
    let before = count.load(Ordering::Relaxed);
    count.store(before.wrapping_add(by), Ordering::Relaxed);
    before
}

#[cfg(test)]
mod tests {
    use flumen_record::{
        BatchBuilder, Compression, ProducerId, ProducerSequence, Record, RecordLimits,
    };

    use super::*;

    fn batch(bytes: usize) -> Batch {
        let record = Record {
            partition_key: "key".into(),
            explicit_hash_key: None,
            data: vec![0; bytes].into(),
            client_timestamp: None,
            headers: Vec::new(),
        };
        let mut builder = BatchBuilder::new(RecordLimits::default());
        builder.push(&record, record.hash_key()).unwrap();
        builder.finish(
            ProducerId::NONE,
            ProducerSequence::new(0),
            Compression::None,
        )
    }

    #[test]
    fn everything_is_counted_and_some_of_it_kept() {
        let load = Load::default();
        let one = batch(100);
        (0..1000).for_each(|_| load.came(&one));
        let bytes = 1000 * one.bytes().len() as u64;
        assert_eq!(load.taken(), (bytes, 1000));
        let mut before = 0;
        assert!(load.look(&mut before).is_empty(), "nobody looked");
        (0..1000).for_each(|_| load.came(&one));
        let kept = load.look(&mut before);
        assert!((4..=SAMPLES_MAX).contains(&kept.len()), "{}", kept.len());
        assert!(kept.iter().all(|sample| sample.stride == 125));
        load.look_away();
        (0..1000).for_each(|_| load.came(&one));
        assert!(load.look(&mut before).is_empty());
        // Of few batches all are kept.
        assert!(load.look(&mut before).is_empty());
        (0..5).for_each(|_| load.came(&one));
        assert_eq!(load.look(&mut before).len(), 5);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let load = Load::default();
        let mut before = 0;
        load.look(&mut before);
        let large = batch(400 << 10);
        (0..10).for_each(|_| load.came(&large));
        assert_eq!(load.look(&mut before).len(), 2);
    }
}
