//! The cache of hash keys says what hashing says, whatever was asked before.

use flumen_record::{HashKey, HashKeyCache, Record};
use proptest::prelude::*;

use crate::made::record;

proptest! {
    #[test]
    fn a_cache_of_any_size_says_what_hashing_says(
        keys in prop::collection::vec(prop::collection::vec(0u8..3, 0..70), 1..200),
        size in 0usize..50,
    ) {
        let mut cache = HashKeyCache::new(size);
        for key in keys.iter().chain(&keys) {
            prop_assert_eq!(cache.of(key), HashKey::of(key));
        }
    }
}

#[test]
fn keys_that_differ_in_length_or_one_byte_only_are_told_apart() {
    let mut cache = HashKeyCache::new(1);
    for _ in 0..3 {
        for key in [
            "a",
            "a\0",
            "a\0\0",
            "",
            "b",
            "aaaaaaaaa",
            "aaaaaaaab",
            "baaaaaaaa",
        ] {
            assert_eq!(
                cache.of(key.as_bytes()),
                HashKey::of(key.as_bytes()),
                "{key:?}"
            );
        }
    }
}

#[test]
fn an_explicit_hash_key_comes_before_the_partition_keys() {
    let mut cache = HashKeyCache::default();
    let plain = record("key", "");
    let explicit = Record {
        explicit_hash_key: Some(HashKey::new(5)),
        ..plain.clone()
    };
    assert_eq!(cache.hash_key(&plain), HashKey::of(b"key"));
    assert_eq!(cache.hash_key(&explicit), HashKey::new(5));
    assert_eq!(cache.hash_key(&plain), plain.hash_key());
}
