//! The compressions of an object, as one writer.

use std::io::{self, Write};

use bytes::BufMut;
use flate2::write::GzEncoder;
use flumen_broker::ObjectCompression;

/// What tools mean by gzip when nothing is said.
const GZIP_LEVEL: u32 = 6;
/// What tools mean by zstd when nothing is said.
const ZSTD_LEVEL: i32 = 3;
/// What deflate holds at that level, about: window, chains, output.
const GZIP_HELD_BYTES: usize = 320 << 10;
/// What zstd holds at that level, about: window, tables, block.
const ZSTD_HELD_BYTES: usize = 3 << 20;

/// Magic, version 1, readable by version 1 on; the numbers big-endian.
const SNAPPY_JAVA_HEADER: [u8; 16] = [
    0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0, 0, 0, 0, 1, 0, 0, 0, 1,
];
/// What snappy-java puts in a block.
const SNAPPY_BLOCK_BYTES: usize = 32 << 10;

/// Compresses what is written to it.
pub(super) enum Compressor<W: Write> {
    None(W),
    Gzip(GzEncoder<W>),
    Snappy(Box<SnappyJava<W>>),
    Zstd(zstd::stream::write::Encoder<'static, W>),
}

impl<W: Write> Compressor<W> {
    pub(super) fn new(compression: ObjectCompression, out: W) -> io::Result<Self> {
        Ok(match compression {
            ObjectCompression::None => Self::None(out),
            ObjectCompression::Gzip => {
                // The header has no time and no name, so that equal rows give equal bytes.
                Self::Gzip(GzEncoder::new(out, flate2::Compression::new(GZIP_LEVEL)))
            }
            ObjectCompression::Snappy => Self::Snappy(Box::new(SnappyJava::new(out)?)),
            ObjectCompression::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(out, ZSTD_LEVEL)?;
                encoder.include_checksum(true)?;
                Self::Zstd(encoder)
            }
        })
    }

    pub(super) fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::None(out) => out.write_all(bytes),
            Self::Gzip(out) => out.write_all(bytes),
            Self::Snappy(out) => out.write_all(bytes),
            Self::Zstd(out) => out.write_all(bytes),
        }
    }

    pub(super) fn finish(self) -> io::Result<W> {
        match self {
            Self::None(out) => Ok(out),
            Self::Gzip(out) => out.finish(),
            Self::Snappy(out) => out.finish(),
            Self::Zstd(out) => out.finish(),
        }
    }

    /// Memory beside what was written to it, about.
    pub(super) fn held_bytes(&self) -> usize {
        match self {
            Self::None(_) => 0,
            Self::Gzip(_) => GZIP_HELD_BYTES,
            Self::Snappy(_) => 2 * SNAPPY_BLOCK_BYTES,
            Self::Zstd(_) => ZSTD_HELD_BYTES,
        }
    }
}

/// The stream format of snappy-java: a header, then blocks, each after its length.
pub(super) struct SnappyJava<W: Write> {
    out: W,
    encoder: snap::raw::Encoder,
    block: Vec<u8>,
    compressed: Vec<u8>,
}

impl<W: Write> SnappyJava<W> {
    fn new(mut out: W) -> io::Result<Self> {
        out.write_all(&SNAPPY_JAVA_HEADER)?;
        Ok(Self {
            out,
            encoder: snap::raw::Encoder::new(),
            block: Vec::with_capacity(SNAPPY_BLOCK_BYTES),
            compressed: Vec::new(),
        })
    }

    fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = SNAPPY_BLOCK_BYTES - self.block.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.block.extend_from_slice(now);
            if self.block.len() == SNAPPY_BLOCK_BYTES {
                self.end_block()?;
            }
            bytes = later;
        }
        Ok(())
    }

    fn end_block(&mut self) -> io::Result<()> {
        let length_max = snap::raw::max_compress_len(self.block.len());
        self.compressed.resize(length_max, 0);
        let length = self.encoder.compress(&self.block, &mut self.compressed)?;
        self.compressed.truncate(length);
        let mut prefix = [0; 4];
        prefix
            .as_mut_slice()
            .put_u32(u32::try_from(length).map_err(io::Error::other)?);
        self.out.write_all(&prefix)?;
        self.out.write_all(&self.compressed)?;
        self.block.clear();
        Ok(())
    }

    fn finish(mut self) -> io::Result<W> {
        if !self.block.is_empty() {
            self.end_block()?;
        }
        Ok(self.out)
    }
}
