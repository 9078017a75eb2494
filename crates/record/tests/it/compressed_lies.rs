//! Compressed bodies that lie: taken on append, malformed records to who reads them.

use flumen_record::{BatchError, Compression, RecordFault, RecordLimits};
use lz4_flex::block::compress as lz4;

use crate::lie::{Lie, malformed};
use crate::made::record;

#[test]
fn a_compressed_body_is_not_looked_at_on_append_and_its_lies_become_malformed_records() {
    let body = vec![[0, 1, b'k', 0]; 100].concat();
    let zstd = |bytes: &[u8]| zstd::bulk::compress(bytes, 1).unwrap();
    for (code, compressed) in [(1, lz4(&body)), (2, zstd(&body))] {
        let truth = Lie::compressed(100, body.len(), code, compressed);
        assert_eq!(truth.records(), vec![Ok(record("k", "")); 100]);

        let low = Lie {
            count: 99,
            ..truth.clone()
        };
        assert_eq!(
            low.decode().unwrap().check_body(RecordLimits::default()),
            Ok(())
        );
        let records = low.records();
        assert_eq!(records[97], Ok(record("k", "")));
        assert_eq!(
            records[98],
            Err(malformed(98, RecordFault::TrailingBytes { bytes: 4 }))
        );
    }
}

/// Each must be refused without ever taking more memory than it declares.
#[test]
fn a_compressed_body_that_lies_about_its_size_is_one_error_per_record() {
    let zstd = |bytes: &[u8]| zstd::bulk::compress(bytes, 1).unwrap();
    let (lz4_code, zstd_code) = (1, 2);
    let body = vec![[0, 1, b'k', 0]; 100].concat();
    let no_lz4 = BatchError::Decompression {
        compression: Compression::Lz4,
    };
    let no_zstd = BatchError::Decompression {
        compression: Compression::Zstd,
    };
    let length = |declared, found| BatchError::BodyLength { declared, found };
    let mut unsized_frame = Vec::new();
    let mut encoder = zstd::stream::write::Encoder::new(&mut unsized_frame, 1).unwrap();
    std::io::Write::write_all(&mut encoder, &body).unwrap();
    encoder.finish().unwrap();
    let two_frames = [zstd(&body[..200]), zstd(&body[200..])].concat();
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0][..], &zstd(&body)].concat();
    let bomb = zstd(&vec![0; 200 << 20]);
    let mut wrong_inside = zstd(&body);
    let last = wrong_inside.len() - 1;
    wrong_inside[last] ^= 0xff;
    let table = [
        (lz4_code, body.len() + 4, lz4(&body), length(404, 400)),
        (lz4_code, body.len() - 4, lz4(&body), no_lz4),
        (lz4_code, 400, vec![0xff; 40], no_lz4),
        (lz4_code, 64 << 20, lz4(&body), no_lz4),
        (lz4_code, 400, Vec::new(), no_lz4),
        (zstd_code, body.len() + 4, zstd(&body), length(404, 400)),
        (zstd_code, body.len() - 4, zstd(&body), length(396, 400)),
        (zstd_code, 400, vec![0xff; 40], no_zstd),
        (zstd_code, 400, Vec::new(), no_zstd),
        (zstd_code, 400, unsized_frame, no_zstd),
        (zstd_code, 400, two_frames, no_zstd),
        (zstd_code, 400, skippable, no_zstd),
        (zstd_code, 400, zstd(&body)[..last].to_vec(), no_zstd),
        (zstd_code, 64 << 20, bomb, length(64 << 20, 200 << 20)),
    ];
    for (code, declared, compressed, error) in table {
        let lie = Lie::compressed(3, declared, code, compressed);
        assert_eq!(
            lie.decode().unwrap().check_body(RecordLimits::default()),
            Ok(())
        );
        assert_eq!(lie.records(), [Err(error), Err(error), Err(error)]);
    }
    for (code, compressed) in [(lz4_code, lz4(&body)), (zstd_code, wrong_inside)] {
        for place in 0..compressed.len() {
            let mut garbled = compressed.clone();
            garbled[place] ^= 0x55;
            let lie = Lie::compressed(100, body.len(), code, garbled);
            assert_eq!(lie.records().len(), 100);
        }
    }
}
