//! Tests of the directory store.
