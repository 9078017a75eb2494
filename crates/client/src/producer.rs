//! Sends records: batches per shard, bounded memory, each record stored once and in order.
//!
//! A record goes into the open batch of its shard behind a lock (`intake`); one task per producer
//! (`driver`) takes batches that are full or due, encodes them, sends them through one `Append`
//! session and settles the acks. What to send again after a refusal or a lost session is decided per
//! shard in `shard_queue`; where keys go, in `routing`.

mod delivery;
mod driver;
mod intake;
mod ledger;
mod routing;
mod shard_queue;
mod shared;
mod stats;
mod verdict;

use std::sync::Arc;

use flumen_record::{ProducerId, Record, RecordLimits, StreamName};
use tokio::time::Instant;

use driver::Driver;
use intake::Intake;
use routing::Routing;
use shared::Shared;

pub use delivery::{Delivered, Delivery, Receipt};
pub use stats::ProducerStats;

use crate::retry::{Retry, random_seed};
use crate::{Client, Error, ProducerConfig, SendError};

/// Sends records to one stream. Cheap to clone; clones share batches and the session. When the last
/// clone is dropped, what was sent is still delivered in the background as long as the runtime
/// lives; [`Producer::close`] waits for it.
#[derive(Debug, Clone)]
pub struct Producer {
    handle: Arc<Handle>,
}

/// Lets the driver finish once the last producer is gone.
#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.close();
    }
}

/// Records that [`Producer::send_all`] puts behind the lock at once, at most.
const GULP_RECORDS: usize = 512;
/// And their memory, at most (or one larger record).
const GULP_BYTES: usize = 128 << 10;

impl Producer {
    /// Learns the stream's shards, gets a producer id and starts the session. Waits for a broker
    /// that is not there yet, up to `retry_for`. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the stream does not exist, or the last failure once `retry_for` is over.
    pub async fn open(
        client: &Client,
        stream: &StreamName,
        config: ProducerConfig,
    ) -> Result<Self, Error> {
        let config = config.clamped();
        let mut retry = Retry::new(random_seed(), config.retry_for, Instant::now());
        let (description, routing) = loop {
            let description = retry.run(|| client.describe_stream(stream)).await?;
            if let Some(routing) = Routing::new(&description) {
                break (description, routing);
            }
            // A reshard is under way.
            let hole = Error::nonsense(client.endpoint(), "open shards with a hole between them");
            retry.wait(hole).await?;
        };
        let producer = if config.idempotent {
            retry.run(|| client.open_producer()).await?
        } else {
            ProducerId::NONE
        };
        let limits = RecordLimits {
            max_record_bytes: description.max_record_bytes,
        };
        let intake = Intake::new(routing, limits, &config);
        let shared = Arc::new(Shared::new(intake, config.memory_bytes));
        let driver = Driver::new(
            client.clone(),
            (stream.clone(), description.incarnation),
            config,
            Arc::clone(&shared),
            producer,
        );
        tokio::spawn(driver.run());
        Ok(Self {
            handle: Arc::new(Handle { shared }),
        })
    }

    /// Takes a record into a batch; waits only while the producer's memory is used up. What became
    /// of it: [`Delivery::wait`]. Records of one key are stored in the order of the calls. When the
    /// future is dropped before it is ready, the record was not taken.
    ///
    /// # Errors
    /// When the record can never be stored, or the producer is closed; it was not taken.
    pub async fn send(&self, record: Record) -> Result<Delivery, SendError> {
        let shared = &self.handle.shared;
        shared.reserve(shared.cost(&record)).await?;
        self.push(&record)
    }

    /// [`Producer::send`] without waiting: gives the record back while memory is used up.
    ///
    /// # Errors
    /// As [`Producer::send`].
    pub fn try_send(&self, record: Record) -> Result<Result<Delivery, Record>, SendError> {
        let shared = &self.handle.shared;
        if !shared.try_reserve(shared.cost(&record))? {
            return Ok(Err(record));
        }
        self.push(&record).map(Ok)
    }

    /// Takes a record whose memory is reserved.
    fn push(&self, record: &Record) -> Result<Delivery, SendError> {
        let shared = &self.handle.shared;
        let mut intake = shared.lock();
        match intake.push(record) {
            Ok((cell, index, wake)) => {
                let delivery = Delivery::new(Arc::clone(cell), index);
                drop(intake);
                if wake {
                    shared.wake();
                }
                Ok(delivery)
            }
            Err(error) => {
                drop(intake);
                shared.release(shared.cost(record));
                Err(error)
            }
        }
    }

    /// Takes many records, waiting for memory where needed: the fast path, without a handle per
    /// record. When the future is dropped, a prefix of the records was taken.
    ///
    /// # Errors
    /// At the first record that cannot be stored, or when closed; the ones before it were taken.
    pub async fn send_all<I>(&self, records: I) -> Result<Receipt, SendError>
    where
        I: IntoIterator<Item = Record>,
        I::IntoIter: Send,
    {
        let shared = &self.handle.shared;
        let mut records = records.into_iter();
        let mut receipt = Receipt::default();
        let mut gulp = Vec::with_capacity(GULP_RECORDS);
        loop {
            let mut bytes = 0;
            while gulp.len() < GULP_RECORDS && bytes < GULP_BYTES {
                let Some(record) = records.next() else { break };
                bytes += shared.cost(&record);
                gulp.push(record);
            }
            if gulp.is_empty() {
                return Ok(receipt);
            }
            self.push_all(&gulp, &mut receipt).await?;
            gulp.clear();
        }
    }

    async fn push_all(&self, mut gulp: &[Record], receipt: &mut Receipt) -> Result<(), SendError> {
        let shared = &self.handle.shared;
        while let Some(first) = gulp.first() {
            // All of it at once, unless it can never fit.
            let whole: usize = gulp.iter().map(|record| shared.cost(record)).sum();
            let (taken, reserved) = match whole <= shared.memory_bytes() / 2 {
                true => (gulp.len(), whole),
                false => (1, shared.cost(first)),
            };
            shared.reserve(reserved).await?;
            let (now, later) = gulp.split_at_checked(taken).unwrap_or((gulp, &[]));
            gulp = later;
            let mut used = 0;
            let mut wake = false;
            let mut failure = None;
            let mut intake = shared.lock();
            for record in now {
                match intake.push(record) {
                    Ok((cell, _, ready)) => {
                        receipt.add(cell);
                        wake |= ready;
                        used += shared.cost(record);
                    }
                    Err(error) => {
                        failure = Some(error);
                        break;
                    }
                }
            }
            drop(intake);
            if wake {
                shared.wake();
            }
            if let Some(error) = failure {
                shared.release(reserved - used);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Sends what is gathered without lingering and waits until everything taken so far has its
    /// answer.
    ///
    /// # Errors
    /// The first failure among them since the last flush.
    pub async fn flush(&self) -> Result<(), SendError> {
        self.handle.shared.flush().await
    }

    /// Takes no more records, waits as [`Producer::flush`] does, and ends the session.
    ///
    /// # Errors
    /// As [`Producer::flush`].
    pub async fn close(&self) -> Result<(), SendError> {
        self.handle.shared.close();
        self.handle.shared.flush().await
    }

    /// Counters so far.
    pub fn stats(&self) -> ProducerStats {
        self.handle.shared.lock().stats
    }
}
