//! Keeps the machine's memory touched while peers and Flumen are measured.
//!
//! A virtual machine whose host takes free memory back pays for every page again when it is
//! next used, at a fraction of the speed of memory. Whoever is measured first after an idle
//! minute would be measured against that. So a thread holds what is free, but for a margin,
//! gives it up as page caches and processes need it, and takes it again when they end. Both
//! sides of every comparison run beside it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};

/// Held and given up in pieces of this many bytes.
const PIECE: usize = 32 << 20;
/// Free memory below which pieces are given up.
const LOW: u64 = 640 << 20;
/// Free memory above which pieces are taken.
const HIGH: u64 = 896 << 20;
/// How often the margin is looked at: at 4 GB/s a tenth of it is used meanwhile.
const PAUSE: Duration = Duration::from_millis(10);

/// Holds free memory until it is dropped.
pub(crate) struct Kept {
    stop: Arc<AtomicBool>,
    keeper: Option<JoinHandle<()>>,
}

impl Kept {
    /// Takes what is free, which takes as long as the host needs to give it, and starts the keeper.
    pub(crate) fn all() -> Result<Self> {
        let mut pieces = Vec::new();
        while free()? > HIGH {
            pieces.push(vec![1u8; PIECE]);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let keeper = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || keep(pieces, &stop)
        });
        Ok(Self {
            stop,
            keeper: Some(keeper),
        })
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(keeper) = self.keeper.take() {
            // It holds nothing but memory, which goes with it.
            let _ = keeper.join();
        }
    }
}

fn keep(mut pieces: Vec<Vec<u8>>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let Ok(free) = free() else { return };
        if free < LOW {
            pieces.truncate(pieces.len().saturating_sub(8));
        } else if free > HIGH {
            pieces.push(vec![1u8; PIECE]);
            continue;
        }
        std::thread::sleep(PAUSE);
    }
}

/// Memory that nobody uses, not even as a cache, in bytes.
fn free() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemFree:"));
    let kib: u64 = line
        .and_then(|line| line.split_whitespace().next())
        .context("no MemFree")?
        .parse()?;
    Ok(kib << 10)
}
