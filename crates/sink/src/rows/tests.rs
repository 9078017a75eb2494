//! Rows wait and come back.

use super::*;
use crate::spool::Spool;

/// Rows of three partitions, of all sizes, by turns.
fn rows() -> impl Iterator<Item = (usize, Vec<u8>)> {
    (0..600_usize).map(|n| {
        (
            n * n % 3,
            vec![b'a' + u8::try_from(n % 26).unwrap(); n % 200],
        )
    })
}

#[test]
fn rows_come_back_in_order_wherever_they_were() {
    for memory_max in [0, 100, 20_000, 1 << 20] {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::new(dir.path().join("1"), 1 << 20);
        let mut store = RowStore::new(spool.cut(0), memory_max);
        let mut parts = [
            KeptRows::default(),
            KeptRows::default(),
            KeptRows::default(),
        ];
        let mut expected = [Vec::new(), Vec::new(), Vec::new()];
        for (part, row) in rows() {
            if store.keep(&mut parts[part], &row) {
                store.spill(parts.iter_mut()).unwrap();
                assert!(
                    store.in_memory <= memory_max,
                    "{} of {memory_max}",
                    store.in_memory
                );
            }
            expected[part].push(row);
        }
        assert_eq!(store.file.is_some(), memory_max < 1 << 20);
        for (part, expected) in parts.into_iter().zip(expected) {
            let mut read = Vec::new();
            let reading = store.read(part, &mut |row| {
                read.push(row.to_vec());
                Ok(())
            });
            reading.unwrap();
            assert_eq!(read, expected);
        }
        assert_eq!(store.in_memory, 0);
    }
}

#[test]
fn what_is_torn_is_refused() {
    for torn in [&[3, 0, 0][..], &[3, 0, 0, 0, b'x'], &[0, 0, 0, 0, 1]] {
        assert!(walk(torn, &mut |_| Ok(())).is_err(), "{torn:?}");
    }
}
