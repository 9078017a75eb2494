//! Who has which file open: one writer, or any number of readers.
//!
//! Slices of the map promise that their bytes never change; a second handle that writes would
//! break that promise behind the first one's back. A slice counts as its handle.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// Device and inode: what a file is, whatever its name.
type Identity = (u64, u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Writer,
    Readers(u32),
}

/// The files one storage has open.
#[derive(Debug, Clone, Default)]
pub(crate) struct OpenFiles {
    uses: Arc<Mutex<HashMap<Identity, Use>>>,
}

impl OpenFiles {
    /// Registers one more handle; `ResourceBusy` when it cannot be together with those there are.
    pub(crate) fn claim(&self, identity: Identity, writable: bool) -> io::Result<OpenFile> {
        let mut uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
        let next = match (uses.get(&identity), writable) {
            (None, true) => Use::Writer,
            (None, false) => Use::Readers(1),
            (Some(Use::Readers(readers)), false) => Use::Readers(readers + 1),
            (Some(_), _) => return Err(io::ErrorKind::ResourceBusy.into()),
        };
        uses.insert(identity, next);
        Ok(OpenFile {
            files: self.clone(),
            identity,
        })
    }

    /// Whether anybody has it open.
    pub(crate) fn is_open(&self, identity: Identity) -> bool {
        self.uses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains_key(&identity)
    }
}

/// One handle; gives itself back.
#[derive(Debug)]
pub(crate) struct OpenFile {
    files: OpenFiles,
    identity: Identity,
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        let mut uses = self
            .files
            .uses
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match uses.get_mut(&self.identity) {
            Some(Use::Readers(readers)) if *readers > 1 => *readers -= 1,
            _ => {
                uses.remove(&self.identity);
            }
        }
    }
}
