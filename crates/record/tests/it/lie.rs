//! Batches put together by hand, their checksum right whatever they say.

use bytes::{BufMut, Bytes, BytesMut};
use flumen_record::{Batch, BatchError, Record, RecordFault};

/// A batch put together by hand: the fields of its header as somebody may write them.
#[derive(Clone)]
pub(crate) struct Lie {
    pub(crate) encoded_bytes: Option<u32>,
    pub(crate) version: u8,
    pub(crate) compression: u8,
    pub(crate) flags: u16,
    pub(crate) count: u32,
    pub(crate) uncompressed_bytes: u32,
    pub(crate) key: u32,
    pub(crate) span: (u128, u128),
    pub(crate) body: Vec<u8>,
}

impl Lie {
    /// Nothing but the truth: `count` records in an uncompressed body.
    pub(crate) fn around(count: u32, body: &[u8]) -> Self {
        Self {
            encoded_bytes: None,
            version: 1,
            compression: 0,
            flags: 0,
            count,
            uncompressed_bytes: body.len() as u32,
            key: 0,
            span: (0, u128::MAX),
            body: body.to_vec(),
        }
    }

    pub(crate) fn compressed(
        count: u32,
        uncompressed_bytes: usize,
        code: u8,
        body: Vec<u8>,
    ) -> Self {
        let uncompressed_bytes = uncompressed_bytes as u32;
        Self {
            compression: code,
            uncompressed_bytes,
            ..Self::around(count, &body)
        }
    }

    pub(crate) fn bytes(&self) -> Bytes {
        let mut bytes = BytesMut::new();
        let encoded_bytes = (Batch::HEADER_BYTES + self.body.len()) as u32;
        bytes.put_u32_le(self.encoded_bytes.unwrap_or(encoded_bytes));
        bytes.put_u32_le(0);
        bytes.put_u8(self.version);
        bytes.put_u8(self.compression);
        bytes.put_u16_le(self.flags);
        bytes.put_u32_le(self.count);
        bytes.put_u32_le(self.uncompressed_bytes);
        bytes.put_u32_le(self.key);
        bytes.put_u64_le(0);
        bytes.put_u64_le(0);
        bytes.put_u128_le(self.span.0);
        bytes.put_u128_le(self.span.1);
        bytes.extend_from_slice(&self.body);
        sealed(bytes)
    }

    pub(crate) fn decode(&self) -> Result<Batch, BatchError> {
        Batch::decode(self.bytes())
    }

    pub(crate) fn records(&self) -> Vec<Result<Record, BatchError>> {
        self.decode().unwrap().records().collect()
    }
}

/// The same bytes with the checksum they should have.
fn sealed(mut bytes: BytesMut) -> Bytes {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..4]);
    hasher.update(&bytes[8..]);
    bytes[4..8].copy_from_slice(&hasher.finalize().to_le_bytes());
    bytes.freeze()
}

/// Flags, key "k", data "d".
pub(crate) const RECORD: [u8; 5] = [0, 1, b'k', 1, b'd'];

pub(crate) fn malformed(index: u32, fault: RecordFault) -> BatchError {
    BatchError::Malformed { index, fault }
}
