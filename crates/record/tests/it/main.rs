//! The encoded form of batches and frames, through the public API only.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test that is wrong may panic, and its numbers are small"
)]

mod any_bytes;
mod body_lies;
mod compressed_lies;
mod fixtures;
mod frames;
mod hash_keys;
mod header_lies;
mod lie;
mod made;
mod refusals;
mod round_trip;
