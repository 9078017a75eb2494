//! What the producer's handles and its driver share.

use std::sync::{Mutex, MutexGuard, PoisonError};

use flumen_record::Record;
use tokio::sync::{Notify, Semaphore, TryAcquireError};

use super::intake::Intake;
use crate::SendError;

#[derive(Debug)]
pub(crate) struct Shared {
    /// Held for short synchronous steps only, never across an await.
    intake: Mutex<Intake>,
    /// A permit per byte that is free.
    memory: Semaphore,
    memory_bytes: usize,
    /// The driver has to look.
    work: Notify,
    /// Batches were answered.
    answered: Notify,
}

impl Shared {
    pub(crate) fn new(intake: Intake, memory_bytes: usize) -> Self {
        Self {
            intake: Mutex::new(intake),
            memory: Semaphore::new(memory_bytes),
            memory_bytes,
            work: Notify::new(),
            answered: Notify::new(),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Intake> {
        // A panic behind the lock is a bug that ends the driver; handles then learn that it is closed.
        self.intake.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// What a record holds of the memory.
    pub(crate) fn cost(&self, record: &Record) -> usize {
        Intake::cost(record, self.memory_bytes)
    }

    /// Takes memory, waiting for it. First come, first served.
    pub(crate) async fn reserve(&self, bytes: usize) -> Result<(), SendError> {
        if self.try_reserve(bytes)? {
            return Ok(());
        }
        if self.lock().pressed(bytes) {
            self.wake();
        }
        let permits = self.memory.acquire_many(permits(bytes)).await;
        permits.map_err(|_| SendError::Closed)?.forget();
        Ok(())
    }

    /// Takes memory if it is there.
    pub(crate) fn try_reserve(&self, bytes: usize) -> Result<bool, SendError> {
        match self.memory.try_acquire_many(permits(bytes)) {
            Ok(permits) => {
                permits.forget();
                Ok(true)
            }
            Err(TryAcquireError::NoPermits) => Ok(false),
            Err(TryAcquireError::Closed) => Err(SendError::Closed),
        }
    }

    /// Gives memory back.
    pub(crate) fn release(&self, bytes: usize) {
        self.memory.add_permits(bytes);
    }

    /// Wakes the driver.
    pub(crate) fn wake(&self) {
        self.work.notify_one();
    }

    /// Waits for [`Shared::wake`]; one that came before counts.
    pub(crate) async fn work(&self) {
        self.work.notified().await;
    }

    /// Wakes whoever waits for a flush.
    pub(crate) fn answered(&self) {
        self.answered.notify_waiters();
    }

    /// Waits until everything taken so far is answered.
    pub(crate) async fn flush(&self) -> Result<(), SendError> {
        let turned = {
            let mut intake = self.lock();
            intake.hurry();
            intake.ledger.turn()
        };
        self.wake();
        loop {
            let answered = self.answered.notified();
            tokio::pin!(answered);
            answered.as_mut().enable();
            if let Some(result) = self.lock().ledger.finished(turned) {
                return result;
            }
            answered.await;
        }
    }

    /// No more records are taken; the driver ends when the last is answered.
    pub(crate) fn close(&self) {
        self.lock().close();
        self.memory.close();
        self.wake();
    }
}

/// Memory is bounded below 4 GiB (`ProducerConfig::clamped`).
fn permits(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("BUG: more memory asked for than a producer may have")
}
