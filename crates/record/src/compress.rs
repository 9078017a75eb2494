//! Compressing and decompressing bodies, with the memory for it kept per thread.

use std::cell::RefCell;

use bytes::Bytes;
use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe;

use crate::{Batch, BatchError, BatchHeader, Compression};

/// The fastest level; what telemetry gains above it is small.
const ZSTD_LEVEL: i32 = 1;
/// Working memory above this is given back after use.
const KEPT_BYTES: usize = 4 << 20;

/// What compressing needs besides the body. Per thread, because a producer has a builder per
/// shard, maybe thousands, and a Zstandard context takes about a megabyte.
struct Workshop {
    output: Vec<u8>,
    lz4: CompressTable,
    zstd_in: Option<Compressor<'static>>,
    zstd_out: Option<Decompressor<'static>>,
}

thread_local! {
    static WORKSHOP: RefCell<Workshop> = RefCell::new(Workshop {
        output: Vec::new(),
        lz4: CompressTable::default(),
        zstd_in: None,
        zstd_out: None,
    });
}

/// Calls `take` with the compressed body; does not when compressing would not make it smaller.
pub(crate) fn compress<T>(
    compression: Compression,
    body: &[u8],
    take: impl FnOnce(&[u8]) -> T,
) -> Option<T> {
    WORKSHOP.with_borrow_mut(|workshop| {
        let written = match compression {
            Compression::None => None,
            Compression::Lz4 => workshop.lz4(body),
            Compression::Zstd => workshop.zstd(body),
        };
        let smaller = written.filter(|bytes| *bytes < body.len());
        let taken = smaller
            .and_then(|bytes| workshop.output.get(..bytes))
            .map(take);
        if workshop.output.capacity() > KEPT_BYTES {
            workshop.output = Vec::new();
        }
        taken
    })
}

impl Workshop {
    fn lz4(&mut self, body: &[u8]) -> Option<usize> {
        let bound = get_maximum_output_size(body.len());
        if self.output.len() < bound {
            self.output.resize(bound, 0);
        }
        compress_into_with_table(body, &mut self.output, &mut self.lz4).ok()
    }

    fn zstd(&mut self, body: &[u8]) -> Option<usize> {
        let bound = zstd_safe::compress_bound(body.len());
        if self.output.len() < bound {
            self.output.resize(bound, 0);
        }
        if self.zstd_in.is_none() {
            self.zstd_in = Compressor::new(ZSTD_LEVEL).ok();
        }
        self.zstd_in
            .as_mut()?
            .compress_to_buffer(body, self.output.as_mut_slice())
            .ok()
    }
}

/// The body as it was before compression. Allocates no more than the size the header declares,
/// which [`BatchHeader::decode`] has bounded.
pub(crate) fn decompress(header: &BatchHeader, body: Bytes) -> Result<Bytes, BatchError> {
    let compression = header.compression;
    let declared = header.uncompressed_bytes as usize;
    debug_assert!(declared <= Batch::MAX_DECODED_BYTES);
    let decompressed = match compression {
        Compression::None => return Ok(body),
        Compression::Lz4 => lz4(&body, declared)?,
        Compression::Zstd => zstd(&body, declared)?,
    };
    if decompressed.len() == declared {
        Ok(Bytes::from(decompressed))
    } else {
        Err(length(declared, decompressed.len() as u64))
    }
}

fn length(declared: usize, found: u64) -> BatchError {
    BatchError::BodyLength {
        declared: declared as u64,
        found,
    }
}

fn lz4(body: &[u8], declared: usize) -> Result<Vec<u8>, BatchError> {
    const FAILED: BatchError = BatchError::Decompression {
        compression: Compression::Lz4,
    };
    // One byte of LZ4 stands for at most 255: a tiny body cannot make us reserve much.
    if declared / 255 > body.len() {
        return Err(FAILED);
    }
    let mut output = vec![0; declared];
    let written = lz4_flex::block::decompress_into(body, &mut output).map_err(|_error| FAILED)?;
    output.truncate(written);
    Ok(output)
}

fn zstd(body: &[u8], declared: usize) -> Result<Vec<u8>, BatchError> {
    const FAILED: BatchError = BatchError::Decompression {
        compression: Compression::Zstd,
    };
    // Exactly one frame that knows its size. More of them, or ones to be skipped, would be bytes
    // that no record accounts for.
    if zstd_safe::find_frame_compressed_size(body) != Ok(body.len()) {
        return Err(FAILED);
    }
    match zstd_safe::get_frame_content_size(body) {
        Ok(Some(found)) if found == declared as u64 => {}
        Ok(Some(found)) => return Err(length(declared, found)),
        Ok(None) | Err(_) => return Err(FAILED),
    }
    WORKSHOP.with_borrow_mut(|workshop| {
        if workshop.zstd_out.is_none() {
            workshop.zstd_out = Decompressor::new().ok();
        }
        let decompressor = workshop.zstd_out.as_mut().ok_or(FAILED)?;
        let mut output = Vec::with_capacity(declared);
        decompressor
            .decompress_to_buffer(body, &mut output)
            .map_err(|_error| FAILED)?;
        Ok(output)
    })
}
